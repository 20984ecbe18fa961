//! What is delivered and not yet acknowledged, and by whom it is held.
//!
//! A message is in here or in the replay set, never in both. The counters per consumer are those of
//! its ranges and nothing else, so that the caps cannot drift from what is really held
//! (reference.md C4). The caps themselves are the subscription's: it stops dispatching at them.

use std::collections::BTreeMap;
use std::ops::Range;

use super::ConsumerId;
use super::ranges::RangeMap;

/// Who holds a range, and how often it was delivered before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) consumer: ConsumerId,
    pub(crate) redeliveries: u32,
}

/// Messages delivered and not acknowledged.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pending {
    ranges: RangeMap<Held>,
    /// The same by consumer, so that what concerns one costs in proportion to what it holds.
    held: BTreeMap<ConsumerId, RangeMap<u32>>,
}

impl Pending {
    /// Messages of all consumers.
    pub(crate) fn total(&self) -> u64 {
        self.ranges.total()
    }

    /// Messages that `consumer` holds.
    pub(crate) fn held_by(&self, consumer: ConsumerId) -> u64 {
        self.held.get(&consumer).map_or(0, RangeMap::total)
    }

    /// Notes a delivery.
    pub(crate) fn add(&mut self, range: Range<u64>, held: Held) {
        let own = self.held.entry(held.consumer).or_default();
        own.insert(range.clone(), held.redeliveries);
        self.ranges.insert(range, held);
    }

    /// Takes out what of `range` anybody holds.
    pub(crate) fn take(&mut self, range: Range<u64>) -> Vec<(Range<u64>, Held)> {
        let taken = self.ranges.take(range, |_| true);
        for (part, held) in &taken {
            if let Some(own) = self.held.get_mut(&held.consumer) {
                own.take(part.clone(), |_| true);
                if own.total() == 0 {
                    self.held.remove(&held.consumer);
                }
            }
        }
        taken
    }

    /// Takes out what of `range` that consumer holds.
    pub(crate) fn take_from(
        &mut self,
        range: Range<u64>,
        consumer: ConsumerId,
    ) -> Vec<(Range<u64>, Held)> {
        let Some(own) = self.held.get_mut(&consumer) else {
            return Vec::new();
        };
        let taken = own.take(range, |_| true);
        if own.total() == 0 {
            self.held.remove(&consumer);
        }
        let mut parts = Vec::with_capacity(taken.len());
        for (part, _) in taken {
            parts.extend(self.ranges.take(part, |held| held.consumer == consumer));
        }
        parts
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.ranges.clear();
        self.held.clear();
    }
}
