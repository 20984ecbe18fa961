//! Messages that delivery passed over, each for a reason, until the reason ends.
//!
//! They were read, no consumer has them, and what lies behind them goes on. A reason ends with
//! time, which comes in as an argument, or with an event that the mode of the subscription reports.
//! What is released is read again like what came back, and decided again.
//!
//! Memory is bounded by the cap on new reads, which counts these messages like delivered ones:
//! there are no more ranges than messages, and each range has one entry in the order of release.
//! They are lost with the topic's owner and with a seek, and read again.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::subscription::mode::HoldReason;
use crate::subscription::ranges::RangeMap;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hold {
    reason: HoldReason,
    /// How often the message was delivered before.
    redeliveries: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct HeldBack {
    ranges: RangeMap<Hold>,
    /// One entry for each range: when its reason ends, the reason, and where it begins.
    order: BTreeSet<(u64, HoldReason, u64)>,
}

impl HeldBack {
    /// How many messages are held back.
    pub(super) fn total(&self) -> u64 {
        self.ranges.total()
    }

    /// The first message.
    pub(super) fn first(&self) -> Option<u64> {
        Some(self.ranges.first()?.start)
    }

    /// When the first reason ends by itself, ms since the Unix epoch.
    pub(super) fn next_due_ms(&self) -> Option<u64> {
        let (ends, _, _) = self.order.first()?;
        (*ends < u64::MAX).then_some(*ends)
    }

    /// Holds messages back that are not yet.
    pub(super) fn add(&mut self, range: Range<u64>, reason: HoldReason, redeliveries: u32) {
        if range.is_empty() {
            return;
        }
        let hold = Hold {
            reason,
            redeliveries,
        };
        self.ranges.insert(range.clone(), hold);
        // It may have been joined to a neighbour on either side.
        for (whole, _) in self.ranges.touched(&range) {
            if whole.end > range.end {
                self.unlist(reason, range.end);
            }
            self.list(reason, whole.start);
        }
    }

    /// Takes out what of `range` is held back; says how many messages that were.
    pub(super) fn remove(&mut self, range: Range<u64>) -> u64 {
        let before = self.total();
        self.take(range);
        before - self.total()
    }

    /// Takes out what no reason holds any more at this time, in no order.
    pub(super) fn take_due(&mut self, now_ms: u64) -> Vec<(Range<u64>, u32)> {
        let mut released = Vec::new();
        while let Some(&(ends, _, start)) = self.order.first()
            && ends <= now_ms
            && ends < u64::MAX
        {
            released.extend(self.take_whole(start));
        }
        released
    }

    /// Takes out what is held back for `reason`.
    pub(super) fn take_held_for(&mut self, reason: HoldReason) -> Vec<(Range<u64>, u32)> {
        let ends = reason.ends_ms();
        let mut released = Vec::new();
        while let Some(&(_, _, start)) = self
            .order
            .range((ends, reason, 0)..=(ends, reason, u64::MAX))
            .next()
        {
            released.extend(self.take_whole(start));
        }
        released
    }

    /// How often each was delivered before.
    pub(super) fn counts(&self) -> impl Iterator<Item = (Range<u64>, u32)> {
        let all = self.ranges.iter();
        all.map(|(range, hold)| (range, hold.redeliveries))
    }

    /// Why a message is held back.
    #[cfg(test)]
    pub(super) fn reason(&self, index: u64) -> Option<HoldReason> {
        let (_, hold) = self.ranges.overlap(index..index + 1).pop()?;
        Some(hold.reason)
    }

    /// Takes out everything.
    pub(super) fn take_all(&mut self) -> Vec<(Range<u64>, u32)> {
        self.take(0..u64::MAX)
    }

    /// The range that begins there.
    fn take_whole(&mut self, start: u64) -> Vec<(Range<u64>, u32)> {
        let whole = self.ranges.touched(&(start..start + 1));
        let end = whole.first().map_or(start + 1, |(range, _)| range.end);
        self.take(start..end)
    }

    fn take(&mut self, range: Range<u64>) -> Vec<(Range<u64>, u32)> {
        for (whole, hold) in self.ranges.touched(&range) {
            self.unlist(hold.reason, whole.start);
            // What is left of it on either side stays listed.
            if whole.start < range.start {
                self.list(hold.reason, whole.start);
            }
            if whole.end > range.end {
                self.list(hold.reason, range.end);
            }
        }
        let taken = self.ranges.take(range, |_| true).into_iter();
        taken
            .map(|(part, hold)| (part, hold.redeliveries))
            .collect()
    }

    fn list(&mut self, reason: HoldReason, start: u64) {
        self.order.insert((reason.ends_ms(), reason, start));
    }

    fn unlist(&mut self, reason: HoldReason, start: u64) {
        self.order.remove(&(reason.ends_ms(), reason, start));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Add(Range<u64>, HoldReason, u32),
        Remove(Range<u64>),
        Due(u64),
        End(HoldReason),
    }

    fn range() -> impl Strategy<Value = Range<u64>> {
        (0u64..60, 0u64..20).prop_map(|(start, len)| start..start + len)
    }

    fn reason() -> impl Strategy<Value = HoldReason> {
        prop_oneof![
            (0u32..3).prop_map(HoldReason::KeyHash),
            (0u64..4).prop_map(HoldReason::NotDue),
            (0u64..4).prop_map(HoldReason::Rate),
        ]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (range(), reason(), 0u32..2).prop_map(|(r, reason, n)| Step::Add(r, reason, n)),
            2 => range().prop_map(Step::Remove),
            1 => (0u64..5).prop_map(Step::Due),
            1 => reason().prop_map(Step::End),
        ]
    }

    type Model = BTreeMap<u64, (HoldReason, u32)>;

    fn expand(parts: Vec<(Range<u64>, u32)>) -> BTreeMap<u64, u32> {
        let each = parts.into_iter();
        each.flat_map(|(range, count)| range.map(move |index| (index, count)))
            .collect()
    }

    fn split_off(model: &mut Model, which: impl Fn(HoldReason) -> bool) -> BTreeMap<u64, u32> {
        let out = model.iter().filter(|(_, (reason, _))| which(*reason));
        let out = out.map(|(index, (_, count))| (*index, *count)).collect();
        model.retain(|_, (reason, _)| !which(*reason));
        out
    }

    proptest! {
        #[test]
        fn behaves_like_a_map_of_single_messages(steps in proptest::collection::vec(step(), 0..80)) {
            let (mut held, mut model) = (HeldBack::default(), Model::new());
            for step in steps {
                match step {
                    Step::Add(range, reason, count) => {
                        held.remove(range.clone());
                        held.add(range.clone(), reason, count);
                        model.extend(range.map(|index| (index, (reason, count))));
                    }
                    Step::Remove(range) => {
                        let before = model.len() as u64;
                        model.retain(|index, _| !range.contains(index));
                        prop_assert_eq!(held.remove(range), before - model.len() as u64);
                    }
                    Step::Due(now) => {
                        let due = split_off(&mut model, |reason| reason.ends_ms() <= now);
                        prop_assert_eq!(expand(held.take_due(now)), due);
                    }
                    Step::End(ended) => {
                        let over = split_off(&mut model, |reason| reason == ended);
                        prop_assert_eq!(expand(held.take_held_for(ended)), over);
                    }
                }
                prop_assert_eq!(held.total(), model.len() as u64);
                prop_assert_eq!(held.first(), model.keys().next().copied());
                let next = model.values().map(|(reason, _)| reason.ends_ms()).min();
                prop_assert_eq!(held.next_due_ms(), next.filter(|ends| *ends < u64::MAX));
                // What bounds the memory: one entry of the order for each range.
                prop_assert_eq!(held.order.len(), held.ranges.len());
            }
            prop_assert_eq!(expand(held.take_all()), split_off(&mut model, |_| true));
            prop_assert!(held.order.is_empty());
        }
    }
}
