//! One producer's session: its frames, and the order of their answers.
//!
//! Invariants (H7):
//! - Frames are answered in order. The first one that fails is answered with its error, which is
//!   the last thing that the session says; later frames are dropped, and the client opens again and
//!   rewinds.
//! - A frame behind a repetition is taken only when it is known what became of the original.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aquifer_model::topic::ProducerName;
use aquifer_protocol_api::error::{ApiError, ApiResult, ErrorKind};
use aquifer_protocol_api::producer::{Receipt, StoredAt};
use tokio::sync::mpsc;

use crate::error::BrokerError;
use crate::topic::dedup::{DedupTable, Opener, SequenceRange, Verdict};
use crate::topic::event::Frame;

/// See the module.
pub(super) struct Session {
    pub(super) name: ProducerName,
    pub(super) opener: Opener,
    receipts: mpsc::Sender<ApiResult<Receipt>>,
    /// Keeps room for the error that ends the session.
    last: Option<mpsc::OwnedPermit<ApiResult<Receipt>>>,
    closed: Arc<AtomicBool>,
    pending: VecDeque<Pending>,
    /// Frames that are not taken yet: those behind a repetition whose original is in flight. Until
    /// that is decided, it is not known whether they follow a failed frame.
    stalled: VecDeque<Frame>,
    /// Ends the session when everything pending is answered; frames are dropped from then on.
    end: Option<ApiError>,
}

/// A frame that is not answered.
struct Pending {
    number: u64,
    permit: mpsc::OwnedPermit<ApiResult<Receipt>>,
    answer: Answer,
}

/// What is known of the answer to a frame.
pub(super) enum Answer {
    /// Comes with the outcome of this append.
    Append(u64),
    /// The frame repeats what is stored.
    Duplicate(Option<StoredAt>),
    /// The frame is stored.
    Stored(StoredAt),
    /// The frame repeats something that was in flight: known when everything before it is answered.
    Repeats(SequenceRange),
}

impl Session {
    /// A session of this name; `closed` tells its client that no frame is taken any more.
    pub(super) fn new(
        name: ProducerName,
        opener: Opener,
        receipts: mpsc::Sender<ApiResult<Receipt>>,
        closed: Arc<AtomicBool>,
    ) -> Session {
        Session {
            name,
            opener,
            last: receipts.clone().try_reserve_owned().ok(),
            receipts,
            closed,
            pending: VecDeque::new(),
            stalled: VecDeque::new(),
            end: None,
        }
    }

    /// Whether its client does not read receipts any more.
    pub(super) fn is_dead(&self) -> bool {
        self.receipts.is_closed()
    }

    /// Whether the outcome of a frame is not known.
    pub(super) fn has_in_flight(&self) -> bool {
        let in_flight = |pending: &Pending| matches!(pending.answer, Answer::Append(_));
        self.pending.iter().any(in_flight)
    }

    /// Takes frames in, unless the session is about to end.
    pub(super) fn queue(&mut self, frames: Vec<Frame>) {
        if self.end.is_none() {
            self.stalled.extend(frames);
        }
    }

    /// The next frame to be taken, if one may be.
    pub(super) fn next_frame(&mut self) -> Option<Frame> {
        let undecided = |pending: &Pending| matches!(pending.answer, Answer::Repeats(_));
        if self.end.is_some() || self.pending.back().is_some_and(undecided) {
            return None;
        }
        self.stalled.pop_front()
    }

    /// A frame was taken.
    pub(super) fn pend(
        &mut self,
        number: u64,
        permit: mpsc::OwnedPermit<ApiResult<Receipt>>,
        answer: Answer,
    ) {
        self.pending.push_back(Pending {
            number,
            permit,
            answer,
        });
    }

    /// An append has succeeded.
    pub(super) fn stored(&mut self, tag: u64, at: StoredAt) {
        let of_append =
            |pending: &&mut Pending| matches!(pending.answer, Answer::Append(of) if of == tag);
        if let Some(pending) = self.pending.iter_mut().find(of_append) {
            pending.answer = Answer::Stored(at);
        }
    }

    /// Sends receipts as far as they are known, in order. Answers the error that ends the session
    /// when everything before it is answered.
    pub(super) fn answer(&mut self, dedup: &DedupTable) -> Option<ApiError> {
        while let Some(pending) = self.pending.pop_front() {
            let number = pending.number;
            let receipt = match pending.answer {
                Answer::Append(_) => {
                    self.pending.push_front(pending);
                    return None;
                }
                Answer::Duplicate(stored) => duplicate(number, stored),
                Answer::Stored(at) => Receipt {
                    frame_number: number,
                    stored: Some(at),
                    duplicate: false,
                },
                // Everything of the name before it is answered, so it is stored by now.
                Answer::Repeats(range) => match dedup.check(&self.name, range) {
                    Verdict::Duplicate(stored) => duplicate(number, stored),
                    Verdict::PartialOverlap => return Some(partial(range).into()),
                    Verdict::New | Verdict::InFlightDuplicate | Verdict::OutOfOrder => {
                        return Some(out_of_order(range).into());
                    }
                },
            };
            pending.permit.send(Ok(receipt));
        }
        self.end.take()
    }

    /// Has the session end when its pending frames are answered; the first error decides.
    pub(super) fn end_after_pending(&mut self, error: BrokerError) {
        if self.end.is_none() {
            self.end = Some(error.into());
            self.stalled.clear();
        }
    }

    /// Ends the session; frames without an answer get none.
    pub(super) fn close(self, error: Option<ApiError>) {
        self.closed.store(true, Ordering::Release);
        drop((self.pending, self.stalled));
        if let (Some(error), Some(last)) = (error, self.last) {
            last.send(Err(error));
        }
    }
}

fn duplicate(frame_number: u64, stored: Option<StoredAt>) -> Receipt {
    Receipt {
        frame_number,
        stored,
        duplicate: true,
    }
}

pub(super) fn partial(range: SequenceRange) -> BrokerError {
    BrokerError::PartialDuplicate {
        lowest: range.lowest,
        highest: range.highest,
    }
}

pub(super) fn out_of_order(range: SequenceRange) -> BrokerError {
    let SequenceRange { lowest, highest } = range;
    BrokerError::Api(
        ApiError::new(
            ErrorKind::InvalidArgument,
            format!(
                "sequence ids {lowest} to {highest} are below what is stored, and are not stored"
            ),
        )
        .advise("let the sequence ids of a producer name ascend"),
    )
}

#[cfg(test)]
mod tests {
    use aquifer_model::id::{EntryId, Index, LedgerId, ProducerInstance};
    use aquifer_runtime::budget::ByteBudget;

    use super::*;

    fn at(index: u64) -> StoredAt {
        StoredAt {
            ledger: LedgerId(1),
            entry: EntryId(index),
            base_index: Index(index),
        }
    }

    fn ids(id: u64) -> SequenceRange {
        SequenceRange {
            lowest: id,
            highest: id,
        }
    }

    struct Client {
        session: Session,
        dedup: DedupTable,
        receipts: mpsc::Receiver<ApiResult<Receipt>>,
        numbers: u64,
    }

    impl Client {
        fn new() -> Client {
            let (sender, receipts) = mpsc::channel(17);
            let opener = Opener {
                instance: ProducerInstance([1; 16]),
                epoch: 0,
            };
            let name = ProducerName::new("p").unwrap();
            Client {
                session: Session::new(name, opener, sender, Arc::default()),
                dedup: DedupTable::default(),
                receipts,
                numbers: 0,
            }
        }

        fn pend(&mut self, answer: Answer) {
            self.numbers += 1;
            let permit = self.session.receipts.clone().try_reserve_owned().unwrap();
            self.session.pend(self.numbers, permit, answer);
        }

        /// The batch with this id is stored, in the log and for deduplication.
        fn store(&mut self, id: u64) {
            let name = self.session.name.clone();
            self.dedup.persisted(&name, ids(id), at(id), 1);
        }

        /// The numbers of the frames that were answered, with whether they are duplicates.
        fn answered(&mut self) -> Vec<(u64, bool)> {
            let receipts = std::iter::from_fn(|| self.receipts.try_recv().ok());
            receipts
                .map(|receipt| receipt.map(|r| (r.frame_number, r.duplicate)).unwrap())
                .collect()
        }
    }

    #[test]
    fn answers_keep_the_order_of_frames() {
        let mut client = Client::new();
        client.pend(Answer::Append(1));
        client.pend(Answer::Duplicate(None));
        client.pend(Answer::Append(2));
        client.session.stored(2, at(2));
        assert_eq!(client.session.answer(&client.dedup), None);
        assert_eq!(client.answered(), [], "the first one is in flight");
        client.session.stored(1, at(1));
        assert_eq!(client.session.answer(&client.dedup), None);
        assert_eq!(client.answered(), [(1, false), (2, true), (3, false)]);
    }

    #[test]
    fn an_error_waits_for_what_is_pending_and_is_the_last() {
        let mut client = Client::new();
        client.pend(Answer::Append(1));
        client.session.end_after_pending(BrokerError::SlowClient);
        client.session.end_after_pending(BrokerError::SessionClosed);
        assert_eq!(client.session.answer(&client.dedup), None);
        client.session.stored(1, at(1));
        let error = client.session.answer(&client.dedup);
        assert_eq!(
            error,
            Some(BrokerError::SlowClient.into()),
            "the first error"
        );
        assert_eq!(client.answered(), [(1, false)]);
    }

    #[test]
    fn a_repetition_stalls_what_follows_until_its_original_is_decided() {
        let mut client = Client::new();
        let frame = |client: &Client| Frame {
            number: 3,
            body: Err(BrokerError::SessionClosed),
            permit: client.session.receipts.clone().try_reserve_owned().unwrap(),
            bytes: ByteBudget::new(10).try_acquire(1).unwrap(),
            received: std::time::Duration::ZERO,
        };
        client.pend(Answer::Append(1));
        client.pend(Answer::Repeats(ids(1)));
        let third = frame(&client);
        client.session.queue(vec![third]);
        assert!(client.session.next_frame().is_none());
        client.session.stored(1, at(1));
        client.store(1);
        assert_eq!(client.session.answer(&client.dedup), None);
        assert_eq!(client.answered(), [(1, false), (2, true)]);
        assert!(client.session.next_frame().is_some());
    }

    #[test]
    fn a_repetition_whose_original_was_never_stored_ends_the_session() {
        let mut client = Client::new();
        client.store(5);
        client.pend(Answer::Repeats(ids(6)));
        client.pend(Answer::Duplicate(None));
        let error = client.session.answer(&client.dedup);
        assert_eq!(error, Some(out_of_order(ids(6)).into()));
        assert_eq!(client.answered(), [], "nothing behind it is answered");
        let Client {
            session,
            mut receipts,
            ..
        } = client;
        let closed = Arc::clone(&session.closed);
        session.close(error.clone());
        assert!(closed.load(Ordering::Acquire));
        assert_eq!(receipts.try_recv().ok(), error.map(Err));
    }
}
