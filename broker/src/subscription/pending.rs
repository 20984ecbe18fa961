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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::subscription::ranges::looked;

    const CONSUMERS: u64 = 4;

    fn held(consumer: u64, redeliveries: u32, damaged: bool) -> Held {
        Held {
            consumer: ConsumerId(consumer),
            redeliveries,
            damaged,
        }
    }

    /// Ten thousand consumers that disconnect together must not each look at what all of them
    /// hold.
    #[test]
    fn what_one_consumer_holds_is_taken_back_without_a_look_at_that_of_others() {
        const OTHERS: u64 = 1_000;
        let mut pending = Pending::default();
        // In turns, so that what each has lies between that of all others.
        for index in 0..10 * OTHERS {
            pending.add(index..index + 1, held(index % OTHERS, 0, false));
        }
        let (taken, looked) = looked::during(|| pending.take_from(0..u64::MAX, ConsumerId(7)));
        assert_eq!(taken.len(), 10);
        assert!(looked <= 2 * taken.len(), "{looked} ranges");
        let (taken, looked) = looked::during(|| pending.take_from(0..u64::MAX, ConsumerId(7)));
        assert_eq!((taken.len(), looked), (0, 0));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Add(Range<u64>, Held),
        Take(Range<u64>),
        TakeFrom(Range<u64>, u64),
        Clear,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let range = || (0u64..60, 1u64..20).prop_map(|(start, len)| start..start + len);
        let holder = (0..CONSUMERS, 0u32..2, any::<bool>());
        let holder = holder.prop_map(|(consumer, often, damaged)| held(consumer, often, damaged));
        let step = prop_oneof![
            8 => (range(), holder).prop_map(|(range, held)| Step::Add(range, held)),
            3 => range().prop_map(Step::Take),
            3 => (range(), 0..CONSUMERS).prop_map(|(range, who)| Step::TakeFrom(range, who)),
            1 => (0..CONSUMERS).prop_map(|who| Step::TakeFrom(0..u64::MAX, who)),
            1 => Just(Step::Clear),
        ];
        prop::collection::vec(step, 0..60)
    }

    fn expand(parts: impl IntoIterator<Item = (Range<u64>, Held)>) -> BTreeMap<u64, Held> {
        let parts = parts.into_iter();
        parts
            .flat_map(|(range, held)| range.map(move |index| (index, held)))
            .collect()
    }

    /// What of a model is in a range and of a consumer, or of any; the model has it no longer.
    fn cut(
        model: &mut BTreeMap<u64, Held>,
        range: &Range<u64>,
        of: Option<u64>,
    ) -> BTreeMap<u64, Held> {
        let is_wanted = |index: &u64, held: &mut Held| {
            range.contains(index) && of.is_none_or(|who| held.consumer == ConsumerId(who))
        };
        model.extract_if(.., is_wanted).collect()
    }

    /// What is known of all consumers, and of each of them, is what a map of messages tells.
    fn check(pending: &Pending, model: &BTreeMap<u64, Held>) -> Result<(), TestCaseError> {
        let count = |is_counted: &dyn Fn(&Held) -> bool| {
            let counted = model.values().filter(|held| is_counted(held));
            counted.count() as u64
        };
        prop_assert_eq!(&expand(pending.ranges.iter()), model);
        prop_assert_eq!(pending.total(), count(&|_| true));
        prop_assert_eq!(pending.counted(), count(&|held| !held.damaged));
        for consumer in (0..CONSUMERS).map(ConsumerId) {
            let is_own = |held: &Held| held.consumer == consumer;
            let held_by = count(&|held| is_own(held) && !held.damaged);
            prop_assert_eq!(pending.held_by(consumer), held_by);
            let own = pending.held.get(&consumer);
            prop_assert_eq!(
                own.is_some(),
                count(&is_own) > 0,
                "one without messages goes"
            );
            let own = own.into_iter().flat_map(|own| own.ranges.iter());
            let expected = model.iter().filter(|(_, held)| is_own(held));
            let expected = expected.map(|(index, held)| (*index, *held));
            prop_assert_eq!(expand(own), expected.collect::<BTreeMap<_, _>>());
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn all_and_each_agree_with_a_map_of_single_messages(steps in steps()) {
            let mut pending = Pending::default();
            let mut model = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Add(range, held) => {
                        pending.take(range.clone());
                        pending.add(range.clone(), held);
                        model.extend(range.map(|index| (index, held)));
                    }
                    Step::Take(range) => {
                        let taken = expand(pending.take(range.clone()));
                        prop_assert_eq!(taken, cut(&mut model, &range, None));
                    }
                    Step::TakeFrom(range, who) => {
                        let consumer = ConsumerId(who);
                        let take = || pending.take_from(range.clone(), consumer);
                        let (taken, looked) = looked::during(take);
                        prop_assert!(looked <= 2 * taken.len(), "{} ranges", looked);
                        prop_assert_eq!(expand(taken), cut(&mut model, &range, Some(who)));
                    }
                    Step::Clear => {
                        pending.clear();
                        model.clear();
                    }
                }
                check(&pending, &model)?;
            }
        }
    }
}
