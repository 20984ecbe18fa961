//! Which redelivery a subscription that keeps its order waits for. Plain state, no I/O.
//!
//! After a nack the broker delivers everything from that message on again. What it had sent before
//! it knew of the nack is still in flight and must not be handed out: it would come twice, and
//! before the message that it follows.

use std::time::Duration;

use aquifer_runtime::clock::Instant;

use crate::consumer::acks::{Acknowledged, Ranges};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// The lowest message whose redelivery is waited for, and since when.
    awaited: Option<(u64, Instant)>,
    /// Everything below was acknowledged cumulatively.
    acknowledged_below: u64,
    /// What was acknowledged above that. Merged ranges: bounded by what is not acknowledged.
    acknowledged: Ranges,
    /// The index after the last message that has arrived; goes back where one is delivered again.
    arrived: u64,
}

impl Order {
    /// A session begins: everything unacknowledged is delivered again.
    pub(super) fn begin_session(&mut self) {
        self.awaited = None;
        self.arrived = 0;
    }

    /// A seek has led here.
    pub(super) fn moved_to(&mut self, index: u64) {
        self.arrived = index;
    }

    /// The index after the last message that has arrived.
    pub(super) fn arrived(&self) -> u64 {
        self.arrived
    }

    pub(super) fn acknowledged(&mut self, what: Acknowledged<'_>) {
        match what {
            Acknowledged::One(index) => self.acknowledged.insert(index, index),
            Acknowledged::Ranges(ranges) => {
                for (first, last) in ranges {
                    self.acknowledged.insert(first.0, last.0);
                }
            }
            Acknowledged::UpTo(index) if index >= self.acknowledged_below => {
                self.acknowledged_below = index.saturating_add(1);
                self.acknowledged.remove_up_to(index);
            }
            Acknowledged::UpTo(_) => {}
        }
    }

    /// The first message from `index` on that was not acknowledged.
    fn unacknowledged_from(&self, index: u64) -> u64 {
        self.acknowledged
            .gap_from(index.max(self.acknowledged_below))
    }

    /// Whether the broker must be told of a nack. It need not be when the message did not arrive
    /// in this session, was acknowledged, or comes again anyway.
    pub(super) fn nack(&mut self, index: u64, now: Instant) -> bool {
        if index >= self.arrived
            || self.unacknowledged_from(index) != index
            || self.awaited.is_some_and(|(from, _)| from <= index)
        {
            return false;
        }
        self.awaited = Some((index, now));
        true
    }

    /// Whether a delivery is void that begins with the message `first` and ends before `end`.
    pub(super) fn is_void(&mut self, first: u64, end: u64) -> bool {
        self.arrived = end;
        if self.unacknowledged_from(first) != first {
            // An acknowledgement has failed, or the broker would not deliver the message again.
            self.acknowledged = Ranges::default();
            self.acknowledged_below = 0;
        }
        let Some((from, _)) = self.awaited else {
            return false;
        };
        if first <= self.unacknowledged_from(from) {
            self.awaited = None;
        }
        self.awaited.is_some()
    }

    pub(super) fn waits_longer_than(&self, limit: Duration, now: Instant) -> bool {
        self.awaited
            .is_some_and(|(_, since)| now.saturating_duration_since(since) >= limit)
    }
}
