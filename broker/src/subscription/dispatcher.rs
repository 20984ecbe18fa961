//! The dispatcher of a subscription: which consumer gets which message next, and what comes back.
//!
//! It holds what is lost with the topic's owner: consumers with their credit, what they hold, what
//! is to be delivered again or held back. The cursor is lent to it by the subscription, and its
//! mode decides which consumer gets what.
//!
//! Invariants of a durable subscription:
//! - What lies between the mark and `read` and is not pending, in replay or held back is
//!   acknowledged.
//! - Without consumers nothing is held back: reasons concern those that are attached.
//! - Pending, replay and held-back messages together stop new reads at one cap (I13).

mod deliver;
mod gaps;
#[cfg(test)]
pub(super) mod places;
mod redelivered;

use std::collections::BTreeMap;
use std::ops::Range;

use aquifer_model::id::{Index, SeekEpoch};
use aquifer_model::limits::CONSUMERS_PER_SUBSCRIPTION_MAX;
use aquifer_model::policy::bounds::Unacked;
use aquifer_model::subscription::SubscriptionType;
use aquifer_protocol_api::consumer::{NegativeAcknowledge, Redelivered};
use aquifer_protocol_api::error::{ApiError, ErrorKind};

use crate::subscription::consumer::{Attach, Consumer, ConsumerId, Notice};
use crate::subscription::cursor::Cursor;
use crate::subscription::held_back::HeldBack;
use crate::subscription::mode::{self, Attached, Mode};
use crate::subscription::pending::Pending;
use crate::subscription::ranges::RangeMap;
use crate::subscription::replay::Replay;

/// Most bytes that one read asks for.
const READ_BYTES_MAX: u64 = 1024 * 1024;
/// Most entries that one read asks for.
const READ_ENTRIES_MAX: u64 = 1024;
/// What to read from the topic log. Whether there is anything at `from` the log knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextRead {
    /// The message to begin with; its whole entry is wanted.
    pub from: Index,
    /// Most bytes, but at least one entry.
    pub bytes_max: usize,
    /// Most entries.
    pub entries_max: usize,
    /// A read of an older seek epoch is void.
    seek_epoch: SeekEpoch,
}

/// Consumers of one subscription, and the messages between the log and them.
#[derive(Debug)]
pub(super) struct Dispatcher {
    /// The first message that was never delivered in this seek epoch by this object.
    read: u64,
    /// What lies below may have been delivered before the topic was loaded, by the same owner.
    earlier: u64,
    /// How often an earlier owner has delivered messages that this one has not read yet.
    before: RangeMap<u32>,
    pending: Pending,
    replay: Replay,
    held_back: HeldBack,
    /// Of all these, what storage could not give when it was read last.
    damaged: RangeMap<()>,
    mode: Box<dyn Mode>,
    consumers: BTreeMap<ConsumerId, Consumer>,
    unacked: Unacked,
}

impl Dispatcher {
    /// A dispatcher without consumers. An earlier load of the topic may have delivered what is
    /// below `delivered`.
    pub(super) fn new(
        cursor: &Cursor,
        delivered: Index,
        redelivered: &[Redelivered],
    ) -> Dispatcher {
        let mut before = RangeMap::default();
        for Redelivered { range, count } in redelivered {
            for part in cursor.unacknowledged(range.first.0..range.last.0 + 1) {
                before.insert(part, *count);
            }
        }
        Dispatcher {
            before,
            read: cursor.mark_delete().0,
            earlier: delivered.0,
            pending: Pending::default(),
            replay: Replay::default(),
            held_back: HeldBack::default(),
            damaged: RangeMap::default(),
            mode: mode::of(cursor.kind()),
            consumers: BTreeMap::new(),
            unacked: Unacked::default(),
        }
    }

    /// Bounds what is delivered and not acknowledged.
    pub(super) fn set_unacked(&mut self, unacked: Unacked) {
        if self.unacked == unacked {
            return;
        }
        self.unacked = unacked;
        let consumers: Vec<ConsumerId> = self.consumers.keys().copied().collect();
        for consumer in consumers {
            self.wake(consumer);
        }
    }

    /// Another mode than that of a type.
    #[cfg(test)]
    pub(super) fn set_mode(&mut self, mode: Box<dyn Mode>) {
        self.mode = mode;
    }

    /// Attaches a consumer. Without other consumers its type becomes the subscription's.
    pub(super) fn attach(
        &mut self,
        cursor: &mut Cursor,
        attach: Attach,
    ) -> Result<Vec<Notice>, ApiError> {
        self.check_attach(cursor, &attach)?;
        let consumer = attach.consumer;
        if self.consumers.is_empty() && cursor.is_durable() && cursor.kind() != attach.kind {
            cursor.set_kind(attach.kind);
            self.mode = mode::of(attach.kind);
        }
        let notices = self.mode.attach(consumer, attach.priority)?;
        self.consumers.insert(consumer, Consumer::new(attach.name));
        self.give_up_of_unserved(&notices);
        Ok(notices)
    }

    fn check_attach(&self, cursor: &Cursor, attach: &Attach) -> Result<(), ApiError> {
        if cursor.is_durable() && attach.kind == SubscriptionType::KeyShared {
            return Err(ApiError::new(
                ErrorKind::Unimplemented,
                "Key_Shared subscriptions are not built yet",
            )
            .advise("subscribe as shared, or as failover where order matters"));
        }
        if cursor.is_durable() && !self.consumers.is_empty() && cursor.kind() != attach.kind {
            return Err(ApiError::new(
                ErrorKind::FailedPrecondition,
                format!(
                    "the subscription has consumers of type {:?}, not {:?}",
                    cursor.kind(),
                    attach.kind
                ),
            )
            .advise("use their type, or close them first"));
        }
        if self.consumers.len() >= CONSUMERS_PER_SUBSCRIPTION_MAX {
            return Err(ApiError::new(
                ErrorKind::QuotaExceeded,
                format!("the subscription has {CONSUMERS_PER_SUBSCRIPTION_MAX} consumers already"),
            ));
        }
        if self.consumers.contains_key(&attach.consumer) {
            return Err(ApiError::new(
                ErrorKind::Internal,
                "a consumer attached twice",
            ));
        }
        Ok(())
    }

    /// Detaches a consumer: what it holds is redelivered.
    pub(super) fn detach(&mut self, consumer: ConsumerId) -> Vec<Notice> {
        if self.consumers.remove(&consumer).is_none() {
            return Vec::new();
        }
        self.give_up(consumer, 0);
        let notices = self.mode.detach(consumer);
        self.give_up_of_unserved(&notices);
        if self.consumers.is_empty() {
            self.replay.put_back(self.held_back.take_all());
        }
        notices
    }

    /// Raises the totals that a consumer was granted since it attached.
    pub(super) fn credit(&mut self, consumer: ConsumerId, messages_total: u64, bytes_total: u64) {
        if let Some(attached) = self.consumers.get_mut(&consumer) {
            attached.grant(messages_total, bytes_total);
            self.wake(consumer);
        }
    }

    /// Takes messages back that `consumer` holds. In order-keeping types everything that it holds
    /// from the earliest of these on comes back, so that order restarts (I7).
    pub(super) fn negative_acknowledge(
        &mut self,
        consumer: ConsumerId,
        negative: &NegativeAcknowledge,
    ) {
        for range in &negative.ranges {
            let wanted = range.first.0..range.last.0.saturating_add(1);
            if wanted.is_empty() {
                continue;
            }
            let given_up = self.pending.take_from(wanted, consumer);
            let earliest = given_up.first().map(|(part, _)| part.start);
            self.replay.add(given_up);
            if let Some(earliest) = earliest
                && self.mode.keeps_order()
            {
                self.give_up(consumer, earliest);
            }
        }
        self.wake(consumer);
    }

    /// The cursor was moved to `index`: everything in flight is void.
    pub(super) fn restart_at(&mut self, index: Index) {
        self.read = index.0;
        self.earlier = 0;
        self.before.clear();
        self.pending.clear();
        self.replay.clear();
        self.held_back.take_all();
        self.damaged.clear();
        let consumers: Vec<ConsumerId> = self.consumers.keys().copied().collect();
        for consumer in consumers {
            self.wake(consumer);
        }
    }

    /// Notes that the log begins at `first` now.
    pub(super) fn trimmed(&mut self, cursor: &mut Cursor, first: Index) {
        if first > cursor.mark_delete() {
            self.take_out(cursor, 0..first.0);
            cursor.pass(first);
        }
        self.advance(first.0);
    }

    /// Takes out what of `range` a consumer holds, waits for one or is held back, as it is
    /// acknowledged. Says whether that was anything, or whether some of it is yet to be read: then
    /// it was delivered before the topic was loaded. All else below `read` is acknowledged already.
    pub(super) fn take_out(&mut self, cursor: &Cursor, range: Range<u64>) -> bool {
        let held = self.pending.take(range.clone());
        for (_, held) in &held {
            self.wake(held.consumer);
        }
        self.damaged.take(range.clone(), |()| true);
        if self.before.total() > 0 {
            self.before.take(range.clone(), |_| true);
        }
        let unread = range.start.max(self.read)..range.end;
        let earlier = !unread.is_empty() && !cursor.unacknowledged(unread).is_empty();
        let waiting = self.replay.remove(range.clone()) + self.held_back.remove(range);
        waiting > 0 || !held.is_empty() || earlier
    }

    /// What to read next; `None` when no consumer has room, or as many messages as may be are held
    /// or wait. Replay comes before new messages, and with it what is held back no longer.
    pub(super) fn next_read(&mut self, cursor: &Cursor, now_ms: u64) -> Option<NextRead> {
        self.release(now_ms);
        let (messages, bytes) = self.room()?;
        let (from, messages) = match self.replay.first() {
            Some(range) => (range.start, messages.min(range.end - range.start)),
            None if self.may_dispatch_new() => {
                (cursor.next_unacknowledged(Index(self.read)).0, messages)
            }
            None => return None,
        };
        let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Some(NextRead {
            from: Index(from),
            bytes_max: size(bytes.min(READ_BYTES_MAX)),
            entries_max: size(messages.min(READ_ENTRIES_MAX)),
            seek_epoch: cursor.seek_epoch(),
        })
    }

    /// Releases what no reason holds back any more.
    fn release(&mut self, now_ms: u64) {
        let due = self.held_back.take_due(now_ms);
        self.replay.put_back(due);
        let attached = Attached {
            consumers: &self.consumers,
            pending: &self.pending,
            held_max: self.unacked.consumer,
        };
        while let Some(reason) = self.mode.ended(&attached) {
            self.replay.put_back(self.held_back.take_held_for(reason));
        }
    }

    /// When something that is held back is due, ms since the Unix epoch: the next time to ask for a
    /// read though nothing else has happened.
    pub(super) fn next_due_ms(&self) -> Option<u64> {
        self.held_back.next_due_ms()
    }

    /// The first message that no consumer may have yet, for one that attaches now.
    pub(super) fn start(&self, cursor: &Cursor) -> Index {
        let next = self.next_index(cursor);
        self.held_back
            .first()
            .map_or(next, |first| next.min(Index(first)))
    }

    /// Where delivery continues.
    pub(super) fn next_index(&self, cursor: &Cursor) -> Index {
        let new = cursor.next_unacknowledged(Index(self.read));
        match self.replay.first() {
            Some(range) => new.min(Index(range.start)),
            None => new,
        }
    }

    /// Everything below this index was read.
    fn advance(&mut self, read: u64) {
        self.read = self.read.max(read);
        if self.before.total() > 0 {
            self.before.take(0..self.read, |_| true);
        }
    }

    /// Whether some message was delivered more than once.
    pub(super) fn has_redelivered(&self) -> bool {
        self.counts().any(|(_, count)| count > 1)
    }

    /// How often each message that was read and is not acknowledged was delivered, in no order.
    fn counts(&self) -> impl Iterator<Item = (Range<u64>, u32)> {
        let waiting = self.replay.counts().chain(self.held_back.counts());
        waiting.chain(self.pending.redelivered())
    }

    /// Nothing at or above this index can have been delivered.
    pub(super) fn delivered_end(&self) -> Index {
        Index(self.read.max(self.earlier))
    }

    /// Whether a consumer is attached.
    pub(super) fn has(&self, consumer: ConsumerId) -> bool {
        self.consumers.contains_key(&consumer)
    }

    /// Names of the attached consumers.
    pub(super) fn consumer_names(&self) -> Vec<String> {
        let name = |consumer: &Consumer| {
            let name = consumer.name.as_ref();
            name.map_or_else(String::new, ToString::to_string)
        };
        self.consumers.values().map(name).collect()
    }

    /// Messages that consumers hold.
    pub(super) fn unacknowledged_messages(&self) -> u64 {
        self.pending.total()
    }

    /// Consumers that are not served any longer give up what they hold.
    fn give_up_of_unserved(&mut self, notices: &[Notice]) {
        for notice in notices {
            let Notice::Active { consumer, active } = *notice;
            if !active {
                self.give_up(consumer, 0);
            }
        }
    }

    /// Moves what a consumer holds from `earliest` on to the replay set.
    fn give_up(&mut self, consumer: ConsumerId, earliest: u64) {
        let given_up = self.pending.take_from(earliest..u64::MAX, consumer);
        self.replay.add(given_up);
    }

    /// Tells the mode of a consumer that may have got room.
    fn wake(&mut self, consumer: ConsumerId) {
        if self.consumers.contains_key(&consumer) {
            self.mode.wake(consumer);
        }
    }

    /// Whether the cap on what is delivered, comes back or is held back allows new messages.
    fn may_dispatch_new(&self) -> bool {
        let known = self.pending.counted() + self.replay.total() + self.held_back.total();
        known < self.unacked.subscription
    }

    /// Messages and bytes that can be delivered now; `None` when no consumer has room.
    fn room(&self) -> Option<(u64, u64)> {
        self.mode.room(&Attached {
            consumers: &self.consumers,
            pending: &self.pending,
            held_max: self.unacked.consumer,
        })
    }
}
