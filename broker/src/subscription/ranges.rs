//! Disjoint ranges of indexes, each with a value: what the pending set and the replay set are made
//! of.
//!
//! Neighbouring ranges with equal values are joined, so memory follows the number of differing
//! ranges, not the number of messages. It knows nothing of consumers or cursors.

use std::collections::BTreeMap;
use std::ops::Range;

/// Disjoint half-open ranges with a value each.
#[derive(Debug, Clone)]
pub(crate) struct RangeMap<V> {
    /// Start to (end, value).
    ranges: BTreeMap<u64, (u64, V)>,
    total: u64,
}

impl<V> Default for RangeMap<V> {
    fn default() -> RangeMap<V> {
        RangeMap {
            ranges: BTreeMap::new(),
            total: 0,
        }
    }
}

impl<V: Copy + PartialEq> RangeMap<V> {
    /// How many indexes are in it.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// How many ranges.
    pub(crate) fn len(&self) -> usize {
        self.ranges.len()
    }

    /// The first range.
    pub(crate) fn first(&self) -> Option<Range<u64>> {
        self.ranges
            .first_key_value()
            .map(|(&start, &(end, _))| start..end)
    }

    /// Adds a range that overlaps none that is there.
    pub(crate) fn insert(&mut self, range: Range<u64>, value: V) {
        debug_assert!(self.touched(&range).is_empty(), "ranges are disjoint");
        if range.is_empty() {
            return;
        }
        self.total += range.end - range.start;
        let mut joined = range;
        if let Some((&start, &(end, left))) = self.ranges.range(..joined.start).next_back()
            && end == joined.start
            && left == value
        {
            joined.start = start;
        }
        if let Some(&(end, right)) = self.ranges.get(&joined.end)
            && right == value
        {
            self.ranges.remove(&joined.end);
            joined.end = end;
        }
        self.ranges.insert(joined.start, (joined.end, value));
    }

    /// Takes out what of `range` is there and has a value that `wanted` accepts, in order.
    pub(crate) fn take(
        &mut self,
        range: Range<u64>,
        wanted: impl Fn(&V) -> bool,
    ) -> Vec<(Range<u64>, V)> {
        let mut taken = Vec::new();
        for (part, value) in self.touched(&range) {
            if !wanted(&value) {
                continue;
            }
            self.ranges.remove(&part.start);
            if part.start < range.start {
                self.ranges.insert(part.start, (range.start, value));
            }
            if part.end > range.end {
                self.ranges.insert(range.end, (part.end, value));
            }
            let cut = part.start.max(range.start)..part.end.min(range.end);
            self.total -= cut.end - cut.start;
            taken.push((cut, value));
        }
        taken
    }

    /// All ranges, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Range<u64>, V)> {
        let all = self.ranges.iter();
        #[cfg(test)]
        let all = all.inspect(|_| looked::add(1));
        all.map(|(&start, &(end, value))| (start..end, value))
    }

    /// What of `range` is there, in order.
    pub(crate) fn overlap(&self, range: Range<u64>) -> Vec<(Range<u64>, V)> {
        self.touched(&range)
            .into_iter()
            .map(|(part, value)| (part.start.max(range.start)..part.end.min(range.end), value))
            .collect()
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.ranges.clear();
        self.total = 0;
    }

    /// The whole ranges that `range` meets.
    pub(super) fn touched(&self, range: &Range<u64>) -> Vec<(Range<u64>, V)> {
        if range.is_empty() {
            return Vec::new();
        }
        let begin = self
            .ranges
            .range(..range.start)
            .next_back()
            .filter(|(_, (end, _))| *end > range.start)
            .map_or(range.start, |(&start, _)| start);
        let touched = self.ranges.range(begin..range.end);
        let touched: Vec<_> = touched
            .map(|(&start, &(end, value))| (start..end, value))
            .collect();
        #[cfg(test)]
        looked::add(touched.len());
        touched
    }
}

/// How many ranges this thread has looked at: what tests count instead of time.
#[cfg(test)]
pub(super) mod looked {
    use std::cell::Cell;

    std::thread_local! {
        static LOOKED: Cell<usize> = const { Cell::new(0) };
    }

    pub(super) fn add(ranges: usize) {
        LOOKED.set(LOOKED.get() + ranges);
    }

    /// Runs something, and tells how many ranges it has looked at.
    pub(in crate::subscription) fn during<T>(run: impl FnOnce() -> T) -> (T, usize) {
        let before = LOOKED.get();
        (run(), LOOKED.get() - before)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Insert(Range<u64>, u8),
        Take(Range<u64>, Option<u8>),
    }

    fn range() -> impl Strategy<Value = Range<u64>> {
        (0u64..60, 0u64..20).prop_map(|(start, len)| start..start + len)
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (range(), 0u8..3).prop_map(|(range, value)| Step::Insert(range, value)),
            (range(), proptest::option::of(0u8..3))
                .prop_map(|(range, only)| Step::Take(range, only)),
        ]
    }

    fn expand(parts: Vec<(Range<u64>, u8)>) -> BTreeMap<u64, u8> {
        parts
            .into_iter()
            .flat_map(|(range, value)| range.map(move |index| (index, value)))
            .collect()
    }

    proptest! {
        #[test]
        fn behaves_like_a_map_of_single_indexes(steps in proptest::collection::vec(step(), 0..80)) {
            let mut ranges = RangeMap::default();
            let mut model = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Insert(range, value) => {
                        ranges.take(range.clone(), |_| true);
                        ranges.insert(range.clone(), value);
                        model.extend(range.map(|index| (index, value)));
                    }
                    Step::Take(range, only) => {
                        let wanted = |value: &u8| only.is_none_or(|only| only == *value);
                        let taken = ranges.take(range.clone(), wanted);
                        let expected: BTreeMap<u64, u8> = model
                            .range(range)
                            .filter(|(_, value)| wanted(value))
                            .map(|(&index, &value)| (index, value))
                            .collect();
                        model.retain(|index, _| !expected.contains_key(index));
                        prop_assert_eq!(expand(taken), expected);
                    }
                }
                prop_assert_eq!(ranges.total(), model.len() as u64);
                prop_assert_eq!(ranges.first().map(|range| range.start), model.keys().next().copied());
                prop_assert_eq!(&expand(ranges.overlap(0..100)), &model);
                prop_assert_eq!(&expand(ranges.iter().collect()), &model);
            }
        }
    }
}
