//! Publishing: who may produce under a name, what is appended in which order, what each frame is
//! answered.
//!
//! Invariants (H7, I7, I8):
//! - Frames of a session are answered in order. The first one that fails is answered with its
//!   error, which is the last thing the session says; later frames are dropped, and the client
//!   opens anew and rewinds.
//! - A failed append fails every producer session of the topic before the log resumes, and takes
//!   back what deduplication noted as pushed: a retry must not be swallowed.
//! - A name is opened only when nothing of it is in flight, so the highest persisted sequence id
//!   that is answered is final.
//!
//! Only headers are looked at here, never single messages.

mod open;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aquifer_log::error::LogError;
use aquifer_log::{Append, AppendSink, Appended};
use aquifer_model::entry::EntryFlags;
use aquifer_model::id::Index;
use aquifer_model::stats::ProducerStats;
use aquifer_model::topic::ProducerName;
use aquifer_protocol_api::error::{ApiError, ApiResult, ErrorKind, Outcome};
use aquifer_protocol_api::producer::{OpenProducer, ProducerSession, Receipt, StoredAt};
use aquifer_runtime::budget::BytePermit;
use tokio::sync::mpsc;

use crate::error::BrokerError;
use crate::topic::Topic;
use crate::topic::dedup::{DedupTable, Opener, SequenceRange, SinceSnapshot, Verdict};
use crate::topic::event::{Body, Frame, Mailbox, Reply, SessionId};

/// What the topic knows of its producers.
pub(super) struct Publishing {
    pub(super) sink: Arc<dyn AppendSink>,
    pub(super) dedup: DedupTable,
    sessions: BTreeMap<SessionId, Session>,
    names: HashMap<ProducerName, SessionId>,
    /// Requests that wait until nothing of their name is in flight.
    opening: Vec<(OpenProducer, Reply<ProducerSession>)>,
    /// Appends without outcome, in order.
    in_flight: VecDeque<InFlight>,
    /// An append has failed; the others in flight fail too, then the log resumes.
    failed: bool,
    /// Outcomes came since subscriptions were last woken.
    advanced: bool,
    next_session: u64,
    next_tag: u64,
    /// Index after the last append whose outcome was handled here; the log's own end may be ahead.
    pub(super) persisted_end: Index,
    pub(super) since_snapshot: SinceSnapshot,
}

struct Session {
    name: ProducerName,
    receipts: mpsc::Sender<ApiResult<Receipt>>,
    /// Keeps room for the error that ends the session.
    last: Option<mpsc::OwnedPermit<ApiResult<Receipt>>>,
    closed: Arc<AtomicBool>,
    pending: VecDeque<Pending>,
    /// Frames behind a repetition whose original is in flight: until that is decided, nobody knows
    /// whether they come after a failed frame.
    stalled: VecDeque<Frame>,
    /// Ends the session when everything pending is answered; frames are dropped from then on.
    doom: Option<ApiError>,
    opener: Opener,
}

/// A frame that is not answered.
struct Pending {
    number: u64,
    permit: mpsc::OwnedPermit<ApiResult<Receipt>>,
    answer: Answer,
}

enum Answer {
    /// Comes with the outcome of this append.
    Append(u64),
    /// Known, and waits for its turn.
    Known(Receipt),
    /// Repeats something that was in flight: known when everything before it is answered.
    Repeats(SequenceRange),
}

struct InFlight {
    tag: u64,
    session: SessionId,
    name: ProducerName,
    range: SequenceRange,
    message_count: u32,
    bytes: u64,
    received: Duration,
    _permit: BytePermit,
}

impl Publishing {
    pub(super) fn new(mailbox: &Mailbox, dedup: DedupTable, end: Index) -> Publishing {
        Publishing {
            sink: mailbox.message_sink(),
            dedup,
            sessions: BTreeMap::new(),
            names: HashMap::new(),
            opening: Vec::new(),
            in_flight: VecDeque::new(),
            failed: false,
            advanced: false,
            next_session: 1,
            next_tag: 1,
            persisted_end: end,
            since_snapshot: SinceSnapshot::default(),
        }
    }

    /// Whether nothing is in flight and nobody waits for an answer.
    pub(super) fn is_quiet(&self) -> bool {
        self.in_flight.is_empty() && self.opening.is_empty()
    }

    /// Whether producers are connected or about to be.
    pub(super) fn is_used(&self) -> bool {
        !self.sessions.is_empty() || !self.opening.is_empty()
    }

    /// Sessions whose client does not read receipts any more.
    pub(super) fn dead_sessions(&self) -> Vec<SessionId> {
        let dead =
            |(id, session): (&SessionId, &Session)| session.receipts.is_closed().then_some(*id);
        self.sessions.iter().filter_map(dead).collect()
    }

    pub(super) fn stats(&self) -> Vec<ProducerStats> {
        let stats = |session: &Session| ProducerStats {
            name: session.name.clone(),
            last_sequence_id: self.dedup.last_sequence_id(&session.name),
        };
        self.sessions.values().map(stats).collect()
    }
}

impl Topic {
    pub(super) fn publish(&mut self, id: SessionId, frames: Vec<Frame>) {
        if let Some(session) = self.publishing.sessions.get_mut(&id)
            && session.doom.is_none()
        {
            session.stalled.extend(frames);
            self.advance(id);
        }
    }

    /// Takes frames and sends receipts as far as that goes.
    fn advance(&mut self, id: SessionId) {
        loop {
            self.answer(id);
            let Some(session) = self.publishing.sessions.get_mut(&id) else {
                return;
            };
            let undecided = |pending: &Pending| matches!(pending.answer, Answer::Repeats(_));
            if session.doom.is_some() || session.pending.back().is_some_and(undecided) {
                return;
            }
            let Some(frame) = session.stalled.pop_front() else {
                return;
            };
            if let Err(error) = self.publish_frame(id, frame) {
                self.doom(id, error);
            }
        }
    }

    fn publish_frame(&mut self, id: SessionId, frame: Frame) -> Result<(), BrokerError> {
        let body = frame.body?;
        let range = body.range;
        let Some(session) = self.publishing.sessions.get_mut(&id) else {
            return Ok(());
        };
        let verdict = if self.policies.borrow().deduplication {
            self.publishing.dedup.check(&session.name, range)
        } else {
            Verdict::New
        };
        let answer = match verdict {
            Verdict::New => {
                let name = session.name.clone();
                let tag = self.append(id, name, body, frame.received, frame.bytes)?;
                Answer::Append(tag)
            }
            Verdict::Duplicate(stored) => {
                self.shared.metrics.duplicates.add(1, &[]);
                Answer::Known(duplicate(frame.number, stored))
            }
            Verdict::InFlightDuplicate => Answer::Repeats(range),
            Verdict::PartialOverlap => return Err(partial(range)),
            Verdict::OutOfOrder => return Err(out_of_order(range)),
        };
        if let Some(session) = self.publishing.sessions.get_mut(&id) {
            session.pending.push_back(Pending {
                number: frame.number,
                permit: frame.permit,
                answer,
            });
        }
        Ok(())
    }

    fn append(
        &mut self,
        session: SessionId,
        name: ProducerName,
        body: Body,
        received: Duration,
        permit: BytePermit,
    ) -> Result<u64, BrokerError> {
        let tag = self.publishing.next_tag;
        let (range, message_count) = (body.range, body.said.message_count);
        let bytes = body.bytes.len() as u64;
        let append = Append {
            format: body.format,
            message_count,
            flags: EntryFlags::default(),
            extensions: body.said.extensions,
            body: body.bytes,
            tag,
        };
        self.log.append(append, &self.publishing.sink)?;
        self.publishing.next_tag += 1;
        self.publishing.dedup.pushed(&name, range);
        self.publishing.in_flight.push_back(InFlight {
            tag,
            session,
            name,
            range,
            message_count,
            bytes,
            received,
            _permit: permit,
        });
        Ok(tag)
    }

    pub(super) fn appended(&mut self, tag: u64, outcome: Result<Appended, LogError>) {
        let append = self
            .publishing
            .in_flight
            .pop_front()
            .expect("every outcome answers an append that was queued");
        assert_eq!(append.tag, tag, "outcomes come in the order of appends");
        match outcome {
            Ok(appended) => self.stored(append, appended),
            Err(error) => self.append_failed(&error),
        }
    }

    fn stored(&mut self, append: InFlight, appended: Appended) {
        let at = StoredAt {
            ledger: appended.ledger,
            entry: appended.entry,
            base_index: appended.base_index,
        };
        let messages = u64::from(append.message_count);
        let publishing = &mut self.publishing;
        publishing
            .dedup
            .persisted(&append.name, append.range, at, appended.broker_time_ms);
        publishing.persisted_end = appended.base_index.plus(messages);
        publishing.since_snapshot.entries += 1;
        publishing.since_snapshot.bytes += append.bytes;
        publishing.advanced = true;
        self.counters.published(messages, append.bytes);
        let metrics = &self.shared.metrics;
        metrics.messages_in.add(messages, &[]);
        metrics.bytes_in.add(append.bytes, &[]);
        let waited = self
            .shared
            .clock
            .monotonic()
            .saturating_sub(append.received);
        metrics.publish_seconds.record(waited.as_secs_f64(), &[]);
        let Some(session) = self.publishing.sessions.get_mut(&append.session) else {
            return;
        };
        let of_append = |pending: &&mut Pending| matches!(pending.answer, Answer::Append(tag) if tag == append.tag);
        if let Some(pending) = session.pending.iter_mut().find(of_append) {
            pending.answer = Answer::Known(Receipt {
                frame_number: pending.number,
                stored: Some(at),
                duplicate: false,
            });
        }
        self.advance(append.session);
    }

    /// Everything appended after a failed append fails as well; the producers learn it now.
    fn append_failed(&mut self, error: &LogError) {
        if !self.publishing.failed {
            tracing::warn!(topic = %self.name, %error, "append failed, producers are told to retry");
            self.shared.metrics.append_failures.add(1, &[]);
            self.publishing.failed = true;
            let told = match error {
                LogError::HandedOver => self.refusal(),
                _ => None,
            };
            self.fail_producers(&told.unwrap_or(BrokerError::Log(error.clone())));
        }
        self.survives(error);
    }

    /// After the outcomes of a turn: resumes a failed log, opens who waited, wakes subscriptions.
    pub(super) fn settle_appends(&mut self) {
        if self.publishing.failed && self.publishing.in_flight.is_empty() && !self.is_broken() {
            self.publishing.dedup.reset_pushed();
            self.publishing.failed = false;
            self.log.resume();
        }
        self.open_waiting();
        if std::mem::take(&mut self.publishing.advanced) {
            self.subscriptions.wake_at_end();
            self.maybe_snapshot();
        }
    }

    /// Sends receipts as far as they are known, in order, and the error of a doomed session last.
    fn answer(&mut self, id: SessionId) {
        let Some(session) = self.publishing.sessions.get_mut(&id) else {
            return;
        };
        while let Some(pending) = session.pending.pop_front() {
            let receipt = match pending.answer {
                Answer::Append(_) => {
                    session.pending.push_front(pending);
                    return;
                }
                Answer::Known(receipt) => receipt,
                // Everything of the name before it is answered, so it is stored by now.
                Answer::Repeats(range) => match self.publishing.dedup.check(&session.name, range) {
                    Verdict::Duplicate(stored) => duplicate(pending.number, stored),
                    Verdict::PartialOverlap => {
                        session.doom = Some(partial(range).into());
                        session.pending.clear();
                        break;
                    }
                    Verdict::New | Verdict::InFlightDuplicate | Verdict::OutOfOrder => {
                        session.doom = Some(out_of_order(range).into());
                        session.pending.clear();
                        break;
                    }
                },
            };
            pending.permit.send(Ok(receipt));
        }
        if let Some(error) = session.doom.take() {
            self.close_session(id, Some(error));
        }
    }

    /// Ends a session after its pending frames.
    fn doom(&mut self, id: SessionId, error: BrokerError) {
        if let Some(session) = self.publishing.sessions.get_mut(&id)
            && session.doom.is_none()
        {
            session.doom = Some(error.into());
            session.stalled.clear();
            self.answer(id);
        }
    }

    /// Ends a session now; its pending frames get no receipts.
    fn fail_session(&mut self, id: SessionId, error: &BrokerError) {
        let mut last: ApiError = error.clone().into();
        // What is on its way may be stored all the same. A failed log says so itself.
        let undecided = |session: &Session| {
            let on_its_way = |pending: &Pending| matches!(pending.answer, Answer::Append(_));
            session.pending.iter().any(on_its_way)
        };
        if !matches!(error, BrokerError::Log(_))
            && self.publishing.sessions.get(&id).is_some_and(undecided)
        {
            last = last.outcome(Outcome::Unknown);
        }
        self.close_session(id, Some(last));
    }

    fn close_session(&mut self, id: SessionId, error: Option<ApiError>) {
        let Some(mut session) = self.publishing.sessions.remove(&id) else {
            return;
        };
        session.closed.store(true, Ordering::Release);
        if self.publishing.names.get(&session.name) == Some(&id) {
            self.publishing.names.remove(&session.name);
        }
        self.publishing.dedup.disconnect(&session.name);
        session.pending.clear();
        session.stalled.clear();
        if let (Some(error), Some(last)) = (error, session.last.take()) {
            tracing::debug!(topic = %self.name, producer = %session.name, %error, "producer session failed");
            last.send(Err(error));
        }
        self.shared.metrics.producers.add(-1, &[]);
        self.counters.session_closed();
        self.last_used = self.now();
    }

    pub(super) fn producer_gone(&mut self, id: SessionId) {
        self.close_session(id, None);
    }

    pub(super) fn fail_producers(&mut self, error: &BrokerError) {
        let ids: Vec<SessionId> = self.publishing.sessions.keys().copied().collect();
        for id in ids {
            self.fail_session(id, error);
        }
    }

    pub(super) fn doom_producers(&mut self, error: &BrokerError) {
        let ids: Vec<SessionId> = self.publishing.sessions.keys().copied().collect();
        for id in ids {
            self.doom(id, error.clone());
        }
    }

    /// Refuses requests that wait for something that will not come any more.
    pub(super) fn refuse_waiting(&mut self, error: &BrokerError) {
        for (_, reply) in std::mem::take(&mut self.publishing.opening) {
            let _ = reply.send(Err(error.clone()));
        }
        self.subscriptions.refuse_waiting(error);
    }
}

fn duplicate(frame_number: u64, stored: Option<StoredAt>) -> Receipt {
    Receipt {
        frame_number,
        stored,
        duplicate: true,
    }
}

fn partial(range: SequenceRange) -> BrokerError {
    BrokerError::PartialDuplicate {
        lowest: range.lowest,
        highest: range.highest,
    }
}

fn out_of_order(range: SequenceRange) -> BrokerError {
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
