//! Where a message is, for tests: every message at or above the mark is in exactly one place.

use crate::subscription::ConsumerId;
use crate::subscription::cursor::Cursor;
use crate::subscription::dispatcher::Dispatcher;
use crate::subscription::mode::{Attached, HoldReason};

/// One of the five.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::subscription) enum Place {
    Acknowledged,
    Pending(ConsumerId),
    Replay,
    HeldBack(HoldReason),
    Unread,
}

impl Dispatcher {
    /// The places of a message at or above the mark.
    pub(in crate::subscription) fn places(&self, cursor: &Cursor, index: u64) -> Vec<Place> {
        let message = index..index + 1;
        let is_acknowledged = cursor.unacknowledged(message.clone()).is_empty();
        let holder = self.pending.holder(index);
        let reason = self.held_back.reason(index);
        let waits = !self.replay.overlap(message).is_empty();
        let unread = index >= self.read && !is_acknowledged;
        let places = [
            is_acknowledged.then_some(Place::Acknowledged),
            holder.map(Place::Pending),
            waits.then_some(Place::Replay),
            reason.map(Place::HeldBack),
            unread.then_some(Place::Unread),
        ];
        places.into_iter().flatten().collect()
    }

    /// Whether a consumer may get a message.
    pub(in crate::subscription) fn has_room(&self, consumer: ConsumerId) -> bool {
        let attached = Attached {
            consumers: &self.consumers,
            pending: &self.pending,
            held_max: self.unacked.consumer,
        };
        attached.room(consumer).is_some()
    }

    /// Messages that the cap on new reads counts.
    pub(in crate::subscription) fn counted(&self) -> u64 {
        self.pending.counted() + self.replay.total() + self.held_back.total()
    }
}
