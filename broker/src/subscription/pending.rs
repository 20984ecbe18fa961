//! What is delivered and not yet acknowledged, and by which consumer it is held.
//!
//! A message is in here or in the replay set, never in both. The counters per consumer are those of
//! its ranges and nothing else, so that the caps cannot drift from what is really held.
//! The caps themselves are the subscription's: it stops dispatching at them.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::subscription::consumer::ConsumerId;
use crate::subscription::ranges::RangeMap;

/// The holder of a range, and how often it was delivered before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) consumer: ConsumerId,
    pub(crate) redeliveries: u32,
    /// The consumer was told that storage cannot give it. The caps do not count it: one entry may
    /// have more messages than they allow, and no consumer works on them.
    pub(crate) damaged: bool,
}

/// Messages delivered and not acknowledged.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pending {
    ranges: RangeMap<Held>,
    /// The same by consumer, so that what concerns one costs in proportion to what it holds.
    held: BTreeMap<ConsumerId, Own>,
    damaged: u64,
}

#[derive(Debug, Clone, Default)]
struct Own {
    ranges: RangeMap<Held>,
    damaged: u64,
}

impl Pending {
    /// Messages of all consumers.
    pub(crate) fn total(&self) -> u64 {
        self.ranges.total()
    }

    /// Those of them that the caps count.
    pub(crate) fn counted(&self) -> u64 {
        self.ranges.total() - self.damaged
    }

    /// Messages that `consumer` holds, as the caps count them.
    pub(crate) fn held_by(&self, consumer: ConsumerId) -> u64 {
        let own = self.held.get(&consumer);
        own.map_or(0, |own| own.ranges.total() - own.damaged)
    }

    /// Notes a delivery.
    pub(crate) fn add(&mut self, range: Range<u64>, held: Held) {
        let own = self.held.entry(held.consumer).or_default();
        if held.damaged {
            own.damaged += range.end - range.start;
            self.damaged += range.end - range.start;
        }
        own.ranges.insert(range.clone(), held);
        self.ranges.insert(range, held);
    }

    /// Takes out what of `range` is held.
    pub(crate) fn take(&mut self, range: Range<u64>) -> Vec<(Range<u64>, Held)> {
        let taken = self.ranges.take(range, |_| true);
        for (part, held) in &taken {
            if let Some(own) = self.held.get_mut(&held.consumer) {
                own.ranges.take(part.clone(), |_| true);
            }
            self.uncount(part, *held);
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
        let taken = own.ranges.take(range, |_| true);
        for (part, held) in &taken {
            self.ranges.take(part.clone(), |_| true);
            self.uncount(part, *held);
        }
        taken
    }

    /// How often each was delivered, this time included.
    pub(crate) fn redelivered(&self) -> impl Iterator<Item = (Range<u64>, u32)> {
        let all = self.ranges.iter();
        all.map(|(range, held)| (range, held.redeliveries.saturating_add(1)))
    }

    /// The holder of a message.
    #[cfg(test)]
    pub(crate) fn holder(&self, index: u64) -> Option<ConsumerId> {
        let (_, held) = self.ranges.overlap(index..index + 1).pop()?;
        Some(held.consumer)
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        *self = Pending::default();
    }

    fn uncount(&mut self, part: &Range<u64>, held: Held) {
        let damaged = match held.damaged {
            true => part.end - part.start,
            false => 0,
        };
        self.damaged -= damaged;
        if let Some(own) = self.held.get_mut(&held.consumer) {
            own.damaged -= damaged;
            if own.ranges.total() == 0 {
                self.held.remove(&held.consumer);
            }
        }
    }
}
