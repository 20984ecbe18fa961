//! What a producer has accepted and not yet completed: its batches, in order. Plain state: no I/O,
//! no tasks; time and events come in.
//!
//! Invariants: batches leave in the order in which they were opened (I7); a batch that was sent
//! once keeps its composition (H7, I8).
//!
//! ```text
//! batches   sealed, sent │ sealed │ sealing? │ gathering, full │ gathering, open or due?
//!                        ^sent    ^sealed
//! ```
//!
//! Frame `acked + n + 1` of a session is `batches[n]`.

mod batch;
mod encode;

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use aquifer_model::batch::{BatchBuilder, ROW_BYTES};
use aquifer_model::id::{EntryId, Index, LedgerId};
use aquifer_proto::v1;
use aquifer_runtime::clock::Instant;
use bytes::{Bytes, BytesMut};

use self::batch::{Batch, Readiness, Sent, State};
use crate::error::{ClientError, Outcome, Result};
use crate::message::Message;
use crate::producer::budget::Cost;
use crate::producer::settings::Batching;
use crate::wake::Wakers;

pub(crate) use self::batch::{BatchOutcome, Completed, Stored};
pub(crate) use self::encode::Unsealed;

/// Buffers of acknowledged batches that are kept for the next ones.
const SPARE_MAX: usize = 16;
/// Longer delays are as good as this one, which every clock can add.
const DELAY_MAX: Duration = Duration::from_secs(365 * 24 * 3_600);

/// What follows from a change once the lock is released.
#[derive(Debug)]
pub(crate) struct Effects<'a> {
    pub(crate) wakers: &'a mut Wakers,
    pub(crate) completed: &'a mut Vec<Completed>,
}

/// Where an accepted message is.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) outcome: Arc<BatchOutcome>,
    /// Its place in the batch.
    pub(crate) slot: u32,
    pub(crate) sequence_id: u64,
}

/// What the stream is to do next.
#[derive(Debug)]
pub(crate) enum Next {
    /// Send these bytes as this frame.
    Frame(u64, Bytes),
    /// Seal this batch, outside the lock, and hand it to [`Queue::sealed`].
    Seal(Box<Unsealed>),
    /// Nothing now; at this time the open batch is due.
    WaitUntil(Instant),
    /// Nothing until woken.
    Wait,
    /// Nothing ever: the session is over.
    End,
}

/// The messages of one producer on one partition.
#[derive(Debug)]
pub(crate) struct Queue {
    batching: Batching,
    send_timeout: Option<Duration>,
    batches: VecDeque<Batch>,
    /// How many of `batches` are sealed.
    sealed: usize,
    /// How many of these were sent in this session.
    sent: usize,
    /// Receipts of this session.
    acked: u64,
    /// Counts sessions; a stream of an older one ends.
    session: u64,
    /// The broker has answered the opening of this session.
    is_ready: bool,
    closing: bool,
    failed: Option<ClientError>,
    /// Why the last session or attempt ended, until something is stored again.
    last_error: Option<ClientError>,
    next_sequence_id: u64,
    last_assigned: Option<u64>,
    /// The highest sequence id that was stored when the producer was opened.
    stored_before: Option<u64>,
    stream: Option<Waker>,
    spare: Vec<BytesMut>,
    /// Messages that the next batch is laid out for.
    rows_hint: usize,
}

impl Queue {
    pub(crate) fn new(batching: Batching, send_timeout: Option<Duration>) -> Queue {
        Queue {
            batching,
            send_timeout,
            batches: VecDeque::new(),
            sealed: 0,
            sent: 0,
            acked: 0,
            session: 0,
            is_ready: false,
            closing: false,
            failed: None,
            last_error: None,
            next_sequence_id: 0,
            last_assigned: None,
            stored_before: None,
            stream: None,
            spare: Vec::new(),
            rows_hint: 8,
        }
    }

    /// Where sequence ids begin: after what is stored, and not below `initial`.
    pub(crate) fn begin(&mut self, stored: Option<u64>, initial: Option<u64>) -> Result<()> {
        let after = match stored.map(|id| id.checked_add(1)) {
            None => 0,
            Some(Some(id)) => id,
            Some(None) => return Err(exhausted()),
        };
        self.next_sequence_id = after.max(initial.unwrap_or(0));
        self.stored_before = stored;
        Ok(())
    }

    /// The sequence id of the newest message: the last one accepted, or the last one stored by an
    /// earlier producer of the name.
    pub(crate) fn last_sequence_id(&self) -> Option<u64> {
        self.last_assigned.or(self.stored_before)
    }

    /// Accepts a message whose size was checked and for which budget was taken.
    pub(crate) fn append(
        &mut self,
        message: &Message,
        cost: Cost,
        now: impl FnOnce() -> Instant,
        wakers: &mut Wakers,
    ) -> Result<Accepted> {
        const OPEN: &str = "a batch that gathers was left at the back";
        if let Some(error) = &self.failed {
            return Err(error.clone().with_outcome(Outcome::NotApplied));
        }
        if self.closing {
            return Err(ClientError::closed("producer"));
        }
        let sequence_id = self.assign(message.sequence_id)?;
        let size = message.size_bytes() + ROW_BYTES;
        let is_new = self.ensure_gathering(sequence_id, size, now);
        let batch = self.batches.back_mut().expect(OPEN);
        let lowest = batch.lowest;
        let (builder, readiness) = batch.gathering().expect(OPEN);
        let slot = u32::try_from(builder.message_count()).unwrap_or(u32::MAX);
        let pushed = builder.push(&message.record, message.row(sequence_id - lowest));
        if let Err(error) = pushed {
            // Nothing was appended; an empty batch is not worth keeping.
            if slot == 0 {
                self.batches.pop_back();
            }
            return Err(error.into());
        }
        let is_full = builder.size_bytes() >= self.batching.bytes_max
            || slot + 1 >= self.batching.messages_max;
        if is_full {
            *readiness = Readiness::Full;
        }
        batch.highest = sequence_id;
        batch.trace = batch.trace.or_else(|| message.trace());
        batch.cost.add(cost);
        let outcome = Arc::clone(&batch.outcome);
        self.last_assigned = Some(sequence_id);
        self.next_sequence_id = sequence_id.saturating_add(1);
        // A batch that opens may be sent at once or needs a timer, one that is full must go; what
        // happens between these changes nothing for the stream.
        if is_new || is_full {
            wakers.add(self.stream.take());
        }
        Ok(Accepted {
            outcome,
            slot,
            sequence_id,
        })
    }

    /// Leaves a batch at the back that takes the message; answers whether it is a new one.
    fn ensure_gathering(
        &mut self,
        sequence_id: u64,
        size: usize,
        now: impl FnOnce() -> Instant,
    ) -> bool {
        let (bytes_max, stored_before) = (self.batching.bytes_max, self.stored_before);
        if let Some(batch) = self.batches.back_mut() {
            let lowest = batch.lowest;
            // A batch never mixes what an earlier producer of the name has stored with what it has
            // not: it is a duplicate as a whole, or not at all.
            let mixes = stored_before.is_some_and(|id| lowest <= id && id < sequence_id);
            let is_far = u32::try_from(sequence_id.saturating_sub(lowest)).is_err();
            if let Some((builder, readiness)) = batch.gathering()
                && *readiness != Readiness::Full
            {
                if builder.size_bytes() + size <= bytes_max && !mixes && !is_far {
                    return false;
                }
                *readiness = Readiness::Full;
            }
        }
        let batch = self.new_batch(sequence_id, size, now());
        self.batches.push_back(batch);
        true
    }

    /// Whether the newest batch is to be sent, while it takes messages.
    fn open(&mut self) -> Option<&mut Readiness> {
        let (_, readiness) = self.batches.back_mut()?.gathering()?;
        Some(readiness).filter(|readiness| **readiness != Readiness::Full)
    }

    /// Answers a message that an earlier producer of the name has stored, instead of taking it.
    pub(crate) fn skip(&mut self, id: u64) -> Result<Option<Accepted>> {
        if Some(id) > self.stored_before {
            return Ok(None);
        }
        let sequence_id = self.assign(Some(id))?;
        self.last_assigned = Some(sequence_id);
        let outcome = Arc::new(BatchOutcome::default());
        outcome.set(Ok(Stored {
            at: None,
            duplicate: true,
        }));
        Ok(Some(Accepted {
            outcome,
            slot: 0,
            sequence_id,
        }))
    }

    fn assign(&self, given: Option<u64>) -> Result<u64> {
        match (given, self.last_assigned) {
            (Some(id), Some(last)) if id <= last => Err(ClientError::Invalid(format!(
                "sequence id {id} follows {last}: the ids of a producer must increase"
            ))),
            (Some(id), _) => Ok(id),
            (None, Some(u64::MAX)) => Err(exhausted()),
            (None, _) => Ok(self.next_sequence_id),
        }
    }

    fn new_batch(&mut self, sequence_id: u64, size: usize, now: Instant) -> Batch {
        let buffer = self.spare.pop().unwrap_or_default();
        // A busy producer's batch is about as large as the one before; a quiet one's is small.
        let payload = (self.rows_hint * size)
            .min(self.batching.bytes_max)
            .max(size);
        let rows = self.rows_hint + self.rows_hint / 8 + 2;
        Batch {
            lowest: sequence_id,
            highest: sequence_id,
            outcome: Arc::new(BatchOutcome::default()),
            cost: Cost::default(),
            opened_at: now,
            trace: None,
            state: State::Gathering {
                builder: BatchBuilder::new(buffer, rows, payload),
                readiness: Readiness::Open,
            },
        }
    }

    /// What the stream of `session` is to do next; `waker` is woken when that changes.
    pub(crate) fn next(&mut self, session: u64, now: Instant, waker: &Waker) -> Next {
        if session != self.session || self.failed.is_some() {
            return Next::End;
        }
        self.stream = Some(waker.clone());
        if !self.is_ready {
            return Next::Wait;
        }
        let is_idle = self.sent == 0;
        let Some(batch) = self.batches.get_mut(self.sent) else {
            let is_done = self.closing && is_idle;
            return if is_done { Next::End } else { Next::Wait };
        };
        let due_at = batch.opened_at + self.batching.delay_max.min(DELAY_MAX);
        match &mut batch.state {
            State::Sealed { bytes, sent } => {
                if *sent == Sent::No {
                    *sent = Sent::Yes;
                }
                self.sent += 1;
                Next::Frame(self.acked + self.sent as u64, bytes.clone())
            }
            // The stream of the session before is at it; a later batch must not overtake.
            State::Sealing => Next::Wait,
            State::Gathering { builder, readiness } => {
                let is_due = *readiness != Readiness::Open
                    || self.closing
                    || now >= due_at
                    || (self.batching.adaptive && is_idle);
                if !is_due {
                    return Next::WaitUntil(due_at);
                }
                // Falls slowly, so that full batches between small ones need no growing, and fast
                // enough that many small ones in flight do not each hold a large buffer.
                let rows = builder.message_count();
                self.rows_hint = rows.max(self.rows_hint * 3 / 4);
                let empty = BatchBuilder::new(BytesMut::new(), 0, 0);
                let builder = std::mem::replace(builder, empty);
                batch.state = State::Sealing;
                Next::Seal(Box::new(Unsealed {
                    builder,
                    lowest: batch.lowest,
                    highest: batch.highest,
                    trace: batch.trace,
                    outcome: Arc::clone(&batch.outcome),
                }))
            }
        }
    }

    /// Takes back a batch that was sealed, unless it has failed meanwhile.
    pub(crate) fn sealed(
        &mut self,
        session: u64,
        unsealed: &Unsealed,
        bytes: Result<Bytes>,
        effects: &mut Effects<'_>,
    ) {
        if session != self.session {
            // Another session's stream waits for this one.
            effects.wakers.add(self.stream.take());
        }
        let batch = self.batches.get_mut(self.sealed);
        let Some(batch) = batch.filter(|batch| Arc::ptr_eq(&batch.outcome, &unsealed.outcome))
        else {
            return;
        };
        match bytes {
            Ok(bytes) => {
                let sent = Sent::No;
                batch.state = State::Sealed { bytes, sent };
                self.sealed += 1;
            }
            Err(error) => {
                let batch = self.batches.remove(self.sealed);
                let completed = batch.map(|batch| batch.complete(Err(error)));
                effects.completed.extend(completed);
            }
        }
    }

    /// A new session begins: everything unacknowledged is to be sent again, in order, with frames
    /// numbered from 1 (H7). Answers its number and wakes the stream of the old one, so that it
    /// ends.
    pub(crate) fn begin_session(&mut self, wakers: &mut Wakers) -> u64 {
        self.session += 1;
        self.is_ready = false;
        self.sent = 0;
        self.acked = 0;
        wakers.add(self.stream.take());
        self.session
    }

    /// The broker has opened the producer: frames may flow. With `stored_up_to`, given when the
    /// broker does not deduplicate, batches that it has stored are completed instead of sent again.
    pub(crate) fn opened(
        &mut self,
        session: u64,
        stored_up_to: Option<u64>,
        effects: &mut Effects<'_>,
    ) {
        if session != self.session {
            return;
        }
        self.is_ready = true;
        // Only ids above those that earlier producers of the name stored tell whose is stored. What
        // was sent before a batch that is stored is stored, too.
        let is_stored = |batch: &Batch| {
            batch.sent() != Sent::No
                && Some(batch.highest) > self.stored_before
                && Some(batch.highest) <= stored_up_to
        };
        let newest = self.batches.iter().take(self.sealed).rposition(is_stored);
        let count = newest.map_or(0, |newest| newest + 1);
        self.sealed -= count;
        let stored = Stored {
            at: None,
            duplicate: false,
        };
        let completed = self.batches.drain(..count);
        let completed = completed.map(|batch| batch.complete(Ok(stored)));
        effects.completed.extend(completed);
        effects.wakers.add(self.stream.take());
    }

    /// A session, or an attempt to open one, has failed and another follows. When the broker
    /// refused the only batch under way, that is as if it had never been sent.
    pub(crate) fn interrupted(&mut self, error: &ClientError) {
        error.remember(&mut self.last_error);
        let refuses_frames = matches!(
            error.code(),
            Some(v1::ErrorCode::StorageFull | v1::ErrorCode::Overloaded)
        );
        let refused = refuses_frames && error.outcome() == Outcome::NotApplied && self.sent == 1;
        for batch in self.batches.iter_mut().take(self.sent) {
            if let State::Sealed { sent, .. } = &mut batch.state {
                *sent = match refused && *sent == Sent::Yes {
                    true => Sent::No,
                    false => Sent::InDoubt,
                };
            }
        }
        self.sent = 0;
        self.is_ready = false;
    }

    /// Why nothing is stored at the moment.
    pub(crate) fn last_error(&self) -> Option<&ClientError> {
        self.last_error.as_ref()
    }

    /// Receipts of `session`, which come in frame order.
    pub(crate) fn receipts(
        &mut self,
        session: u64,
        receipts: &[v1::Receipt],
        effects: &mut Effects<'_>,
    ) -> Result<()> {
        if session != self.session {
            return Ok(());
        }
        effects.completed.reserve(receipts.len());
        for receipt in receipts {
            if self.sent == 0 || receipt.frame_number != self.acked + 1 {
                return Err(ClientError::Protocol(format!(
                    "a receipt for frame {} where {} of {} was due",
                    receipt.frame_number,
                    self.acked + 1,
                    self.acked + self.sent as u64,
                )));
            }
            let Some(mut batch) = self.batches.pop_front() else {
                return Err(ClientError::Protocol("a receipt too many".to_owned()));
            };
            self.sent -= 1;
            self.sealed -= 1;
            self.acked += 1;
            self.last_error = None;
            if let State::Sealed { bytes, .. } = &mut batch.state {
                self.keep_buffer(std::mem::take(bytes));
            }
            effects.completed.push(batch.complete(Ok(stored(receipt))));
        }
        // What has gathered while these were under way goes now.
        let is_adaptive = self.batching.adaptive;
        if let Some(readiness) = self.open().filter(|_| is_adaptive) {
            *readiness = Readiness::Due;
            effects.wakers.add(self.stream.take());
        } else if self.closing && self.sealed == 0 {
            effects.wakers.add(self.stream.take());
        }
        Ok(())
    }

    fn keep_buffer(&mut self, bytes: Bytes) {
        if self.spare.len() < SPARE_MAX
            && let Ok(buffer) = bytes.try_into_mut()
            && buffer.capacity() <= self.batching.bytes_max * 2
        {
            self.spare.push(buffer);
        }
    }

    /// Sends what has gathered now. Answers the newest batch, if any is not completed.
    pub(crate) fn flush(&mut self, wakers: &mut Wakers) -> Option<Arc<BatchOutcome>> {
        if let Some(readiness) = self.open() {
            *readiness = Readiness::Due;
            wakers.add(self.stream.take());
        }
        let newest = self.batches.back();
        newest.map(|batch| Arc::clone(&batch.outcome))
    }

    /// Accepts nothing more; the stream ends when everything is acknowledged.
    pub(crate) fn close(&mut self, wakers: &mut Wakers) {
        self.closing = true;
        wakers.add(self.stream.take());
    }

    /// Whether nothing is left to do for a producer that closes.
    pub(crate) fn is_closed(&self) -> bool {
        self.closing && self.batches.is_empty()
    }

    /// When the oldest batch times out.
    pub(crate) fn expires_at(&self) -> Option<Instant> {
        let oldest = self.batches.front()?;
        oldest.opened_at.checked_add(self.send_timeout?)
    }

    /// Fails everything unfinished, in order: after one batch failed, storing a later one would
    /// break the order. The session is over. With `dead`, everything to come fails too.
    pub(crate) fn fail(&mut self, error: &ClientError, dead: bool, effects: &mut Effects<'_>) {
        if dead && self.failed.is_none() {
            self.failed = Some(error.clone());
        }
        self.sealed = 0;
        let failed = self.batches.drain(..).map(|batch| {
            // What the error says is about frames of this session.
            let outcome = match batch.sent() {
                Sent::InDoubt => Outcome::Unknown,
                Sent::Yes => error.outcome(),
                Sent::No => Outcome::NotApplied,
            };
            batch.complete(Err(error.clone().with_outcome(outcome)))
        });
        effects.completed.extend(failed);
        // Frames of the session may be in flight: what comes next needs a new one.
        self.begin_session(effects.wakers);
    }
}

fn stored(receipt: &v1::Receipt) -> Stored {
    let at = (
        LedgerId(receipt.ledger_id),
        EntryId(receipt.entry_id),
        Index(receipt.base_index),
    );
    Stored {
        at: (!receipt.position_unknown).then_some(at),
        duplicate: receipt.duplicate,
    }
}

fn exhausted() -> ClientError {
    ClientError::Invalid("the sequence ids of this producer name are used up".to_owned())
}

#[cfg(test)]
mod tests;
