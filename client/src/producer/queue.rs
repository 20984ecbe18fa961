//! What a producer has accepted and not yet settled, in order: batches that fill, batches that
//! are full, batches that were sent. Plain state: no I/O, no tasks; time and events come in.
//!
//! Invariants: batches leave in the order in which they were opened (I7); a batch that was sent
//! once keeps its composition (H7, I8); frame `acked + n + 1` of a session is `sealed[n]`.

mod encode;

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use aquifer_model::batch::{BatchBuilder, ROW_BYTES};
use aquifer_model::id::{EntryId, Index, LedgerId};
use aquifer_proto::v1;
use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use self::encode::row;
use super::room::Cost;
use crate::error::{ClientError, Outcome, Result};
use crate::message::Message;
use crate::producer::settings::Batching;
use crate::settle::Settle;
use crate::wake::Wakers;

/// Buffers of acknowledged batches that are kept for the next ones.
const SPARE_MAX: usize = 16;
/// Longer delays are as good as this one, which every clock can add.
const DELAY_MAX: Duration = Duration::from_secs(365 * 24 * 3_600);

/// The shared outcome of a batch.
pub(crate) type BatchOutcome = Settle<Result<Stored>>;

/// A batch is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Where; `None` for a duplicate that the broker no longer remembers.
    pub(crate) at: Option<(LedgerId, EntryId, Index)>,
    pub(crate) duplicate: bool,
}

/// A batch that takes messages, or waits to be sent for the first time.
#[derive(Debug)]
pub(crate) struct OpenBatch {
    builder: BatchBuilder,
    lowest: u64,
    highest: u64,
    outcome: Arc<BatchOutcome>,
    cost: Cost,
    opened_at: Instant,
    /// To be sent now, although it could take more.
    due: bool,
}

/// A batch in its final bytes.
#[derive(Debug)]
struct SealedBatch {
    bytes: Bytes,
    highest: u64,
    outcome: Arc<BatchOutcome>,
    cost: Cost,
    opened_at: Instant,
    /// Whether a broker may have stored it.
    was_sent: bool,
    /// Whether it was sent in an earlier session that said nothing about it.
    in_doubt: bool,
}

#[derive(Debug)]
struct Sealing {
    outcome: Arc<BatchOutcome>,
    /// Everything failed meanwhile.
    failed: Option<ClientError>,
}

/// A batch whose outcome is to be announced, outside the lock.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) outcome: Arc<BatchOutcome>,
    pub(crate) result: Result<Stored>,
    pub(crate) cost: Cost,
}

/// What follows from a change once the lock is released.
#[derive(Debug)]
pub(crate) struct Effects<'a> {
    pub(crate) wakers: &'a mut Wakers,
    pub(crate) settled: &'a mut Vec<Settled>,
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
    Seal(Box<OpenBatch>),
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
    open: Option<OpenBatch>,
    full: VecDeque<OpenBatch>,
    /// The batch that is being sealed outside the lock; it comes after `sealed`, before `full`.
    sealing: Option<Sealing>,
    sealed: VecDeque<SealedBatch>,
    /// How many of `sealed` were sent in this session.
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
            open: None,
            full: VecDeque::new(),
            sealing: None,
            sealed: VecDeque::new(),
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

    /// Accepts a message whose size was checked and for which room was taken.
    pub(crate) fn append(
        &mut self,
        message: &Message,
        cost: Cost,
        now: impl FnOnce() -> Instant,
        wakers: &mut Wakers,
    ) -> Result<Accepted> {
        if let Some(error) = &self.failed {
            return Err(error.clone().with_outcome(Outcome::NotApplied));
        }
        if self.closing {
            return Err(ClientError::closed("producer"));
        }
        let sequence_id = self.assign(message.sequence_id)?;
        let size = message.size_bytes() + ROW_BYTES;
        if self
            .open
            .as_ref()
            .is_some_and(|open| self.must_cut(open, size, sequence_id))
        {
            self.full.extend(self.open.take());
        }
        let opened = self.open.is_none();
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.new_batch(sequence_id, size, now()),
        };
        let slot = u32::try_from(open.builder.message_count()).unwrap_or(u32::MAX);
        let row = row(message, sequence_id - open.lowest);
        let pushed = open.builder.push(&message.record, row);
        if let Err(error) = pushed {
            // Nothing was appended; an empty batch is not worth keeping.
            self.open = Some(open).filter(|open| open.builder.message_count() > 0);
            return Err(error.into());
        }
        open.highest = sequence_id;
        open.cost.add(cost);
        self.last_assigned = Some(sequence_id);
        self.next_sequence_id = sequence_id.saturating_add(1);
        let outcome = Arc::clone(&open.outcome);
        let is_full = open.builder.size_bytes() >= self.batching.bytes_max
            || slot + 1 >= self.batching.messages_max;
        match is_full {
            true => self.full.push_back(open),
            false => self.open = Some(open),
        }
        // A batch that opens may be sent at once or needs a timer, one that is full must go; what
        // happens between these changes nothing for the stream.
        if opened || is_full {
            wakers.add(self.stream.take());
        }
        Ok(Accepted {
            outcome,
            slot,
            sequence_id,
        })
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

    /// Whether the message must begin another batch. A batch never mixes what an earlier producer
    /// of the name has stored with what it has not: it is a duplicate as a whole, or not at all.
    fn must_cut(&self, open: &OpenBatch, size: usize, sequence_id: u64) -> bool {
        open.builder.size_bytes() + size > self.batching.bytes_max
            || u32::try_from(sequence_id - open.lowest).is_err()
            || self
                .stored_before
                .is_some_and(|stored| open.lowest <= stored && stored < sequence_id)
    }

    fn new_batch(&mut self, sequence_id: u64, size: usize, now: Instant) -> OpenBatch {
        let buffer = self.spare.pop().unwrap_or_default();
        // A busy producer's batch is about as large as the one before; a quiet one's is small.
        let payload = (self.rows_hint * size)
            .min(self.batching.bytes_max)
            .max(size);
        let rows = self.rows_hint + self.rows_hint / 8 + 2;
        OpenBatch {
            builder: BatchBuilder::new(buffer, rows, payload),
            lowest: sequence_id,
            highest: sequence_id,
            outcome: Arc::new(BatchOutcome::default()),
            cost: Cost::default(),
            opened_at: now,
            due: false,
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
        if let Some(batch) = self.sealed.get_mut(self.sent) {
            batch.was_sent = true;
            self.sent += 1;
            let number = self.acked + self.sent as u64;
            return Next::Frame(number, batch.bytes.clone());
        }
        if self.sealing.is_some() {
            // The stream of the session before is at it; a later batch must not overtake.
            return Next::Wait;
        }
        if let Some(batch) = self.full.pop_front() {
            return self.seal(batch);
        }
        let idle = self.sealed.is_empty();
        let Some(open) = self.open.take() else {
            let done = self.closing && idle;
            return if done { Next::End } else { Next::Wait };
        };
        let due_at = open.opened_at + self.batching.delay_max.min(DELAY_MAX);
        if open.due || self.closing || now >= due_at || (self.batching.adaptive && idle) {
            return self.seal(open);
        }
        self.open = Some(open);
        Next::WaitUntil(due_at)
    }

    fn seal(&mut self, batch: OpenBatch) -> Next {
        // Falls slowly, so that full batches between small ones need no growing, and fast enough
        // that many small ones in flight do not each hold a large buffer.
        let rows = batch.builder.message_count();
        self.rows_hint = rows.max(self.rows_hint * 3 / 4);
        self.sealing = Some(Sealing {
            outcome: Arc::clone(&batch.outcome),
            failed: None,
        });
        Next::Seal(Box::new(batch))
    }

    /// Takes back a batch that was sealed. If everything failed meanwhile, it fails too.
    pub(crate) fn sealed(
        &mut self,
        session: u64,
        batch: OpenBatch,
        bytes: Result<Bytes>,
        effects: &mut Effects<'_>,
    ) {
        let failed = self.sealing.take().and_then(|sealing| sealing.failed);
        if session != self.session {
            // Another session's stream waits for this one.
            effects.wakers.add(self.stream.take());
        }
        let failed = match (failed, bytes) {
            (Some(error), _) => error.with_outcome(Outcome::NotApplied),
            (None, Err(error)) => error,
            (None, Ok(bytes)) => {
                self.sealed.push_back(SealedBatch {
                    bytes,
                    highest: batch.highest,
                    outcome: batch.outcome,
                    cost: batch.cost,
                    opened_at: batch.opened_at,
                    was_sent: false,
                    in_doubt: false,
                });
                return;
            }
        };
        effects.settled.push(Settled {
            outcome: batch.outcome,
            result: Err(failed),
            cost: batch.cost,
        });
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
    /// broker does not deduplicate, batches that it has stored are settled instead of sent again.
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
        let is_stored = |batch: &SealedBatch| {
            batch.was_sent
                && Some(batch.highest) > self.stored_before
                && Some(batch.highest) <= stored_up_to
        };
        let stored = self.sealed.iter().rposition(is_stored);
        let stored = stored.map_or(0, |newest| newest + 1);
        let settled = self.sealed.drain(..stored).map(|batch| Settled {
            outcome: batch.outcome,
            result: Ok(Stored {
                at: None,
                duplicate: false,
            }),
            cost: batch.cost,
        });
        effects.settled.extend(settled);
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
        for batch in self.sealed.iter_mut().take(self.sent) {
            match refused && !batch.in_doubt {
                true => batch.was_sent = false,
                false => batch.in_doubt = true,
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
        effects.settled.reserve(receipts.len());
        for receipt in receipts {
            if self.sent == 0 || receipt.frame_number != self.acked + 1 {
                return Err(ClientError::Protocol(format!(
                    "a receipt for frame {} where {} of {} was due",
                    receipt.frame_number,
                    self.acked + 1,
                    self.acked + self.sent as u64,
                )));
            }
            let Some(batch) = self.sealed.pop_front() else {
                return Err(ClientError::Protocol("a receipt too many".to_owned()));
            };
            self.sent -= 1;
            self.acked += 1;
            self.last_error = None;
            self.keep_buffer(batch.bytes);
            effects.settled.push(Settled {
                outcome: batch.outcome,
                result: Ok(stored(receipt)),
                cost: batch.cost,
            });
        }
        // What has gathered while these were under way goes now.
        if let Some(open) = self.open.as_mut().filter(|_| self.batching.adaptive) {
            open.due = true;
            effects.wakers.add(self.stream.take());
        } else if self.closing && self.sealed.is_empty() {
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

    /// Sends what has gathered now. Answers the newest batch, if any is not settled.
    pub(crate) fn flush(&mut self, wakers: &mut Wakers) -> Option<Arc<BatchOutcome>> {
        if let Some(open) = &mut self.open {
            open.due = true;
            wakers.add(self.stream.take());
        }
        let newest = self.open.as_ref().or(self.full.back());
        let newest = newest.map(|batch| &batch.outcome);
        let newest = newest.or(self.sealing.as_ref().map(|sealing| &sealing.outcome));
        let newest = newest.or(self.sealed.back().map(|batch| &batch.outcome));
        newest.map(Arc::clone)
    }

    /// Accepts nothing more; the stream ends when everything is acknowledged.
    pub(crate) fn close(&mut self, wakers: &mut Wakers) {
        self.closing = true;
        wakers.add(self.stream.take());
    }

    /// Whether nothing is left to do for a producer that closes.
    pub(crate) fn is_closed(&self) -> bool {
        self.closing && self.is_empty()
    }

    fn is_empty(&self) -> bool {
        let unsealed = self.open.is_some() || !self.full.is_empty() || self.sealing.is_some();
        !unsealed && self.sealed.is_empty()
    }

    /// When the oldest batch times out.
    pub(crate) fn expires_at(&self) -> Option<Instant> {
        let limit = self.send_timeout?;
        let oldest = self.sealed.front().map(|batch| batch.opened_at);
        let oldest = oldest.or(self.full.front().map(|batch| batch.opened_at));
        let oldest = oldest.or(self.open.as_ref().map(|batch| batch.opened_at));
        oldest.and_then(|at| at.checked_add(limit))
    }

    /// Fails everything unsettled, in order: after one batch failed, storing a later one would
    /// break the order. The session is over. With `dead`, everything to come fails too.
    pub(crate) fn fail(&mut self, error: &ClientError, dead: bool, effects: &mut Effects<'_>) {
        if dead && self.failed.is_none() {
            self.failed = Some(error.clone());
        }
        if let Some(sealing) = &mut self.sealing {
            sealing.failed = Some(error.clone());
        }
        let sealed = self.sealed.drain(..).map(|batch| {
            // What the error says is about frames of this session.
            let outcome = match (batch.was_sent, batch.in_doubt) {
                (true, true) => Outcome::Unknown,
                (true, false) => error.outcome(),
                (false, _) => Outcome::NotApplied,
            };
            Settled {
                outcome: batch.outcome,
                result: Err(error.clone().with_outcome(outcome)),
                cost: batch.cost,
            }
        });
        let unsent = self.full.drain(..).chain(self.open.take());
        let unsent = unsent.map(|batch| Settled {
            outcome: batch.outcome,
            result: Err(error.clone().with_outcome(Outcome::NotApplied)),
            cost: batch.cost,
        });
        effects.settled.extend(sealed.chain(unsent));
        // Frames of the session may be on their way: what comes next needs a new one.
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
