//! The replay set: what is to be read again before anything new. It was delivered and came back, by
//! a negative acknowledgement or a lost consumer, or it was held back and is released.
//!
//! Redelivery counts live here, in the pending set and with what is held back: each message that
//! was read and is not acknowledged is in exactly one of the three, so their memory is bounded by
//! the caps on unacknowledged messages. They are recorded with snapshots, and lost with a seek.

use std::ops::Range;

use crate::subscription::pending::Held;
use crate::subscription::ranges::RangeMap;

/// Messages to be delivered again, with how often each was delivered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Replay {
    ranges: RangeMap<u32>,
}

impl Replay {
    /// How many messages wait.
    pub(crate) fn total(&self) -> u64 {
        self.ranges.total()
    }

    /// The first messages that wait: consecutive, delivered equally often.
    pub(crate) fn first(&self) -> Option<Range<u64>> {
        self.ranges.first()
    }

    /// Takes over what the pending set gave up.
    pub(crate) fn add(&mut self, given_up: Vec<(Range<u64>, Held)>) {
        for (range, held) in given_up {
            self.ranges
                .insert(range, held.redeliveries.saturating_add(1));
        }
    }

    /// Takes over what is held back no longer: as often delivered as it was.
    pub(crate) fn put_back(&mut self, released: Vec<(Range<u64>, u32)>) {
        for (range, redeliveries) in released {
            self.ranges.insert(range, redeliveries);
        }
    }

    /// How often each that waits was delivered.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (Range<u64>, u32)> {
        self.ranges.iter()
    }

    /// What of `range` waits, and how often it was delivered.
    pub(crate) fn overlap(&self, range: Range<u64>) -> Vec<(Range<u64>, u32)> {
        self.ranges.overlap(range)
    }

    /// Removes what of `range` waits; returns how many messages that were.
    pub(crate) fn remove(&mut self, range: Range<u64>) -> u64 {
        let before = self.ranges.total();
        self.ranges.take(range, |_| true);
        before - self.ranges.total()
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.ranges.clear();
    }
}
