//! Ranges against a simple model: who covers each hash, asked of every range.

use proptest::prelude::*;

use super::*;

fn range(number: u32, first: u32, last: u32) -> TopicRange {
    TopicRange {
        number,
        first,
        last,
        parents: Vec::new(),
        sealed: false,
    }
}

/// A topic that was split and merged at random, as a list of ranges.
fn grown() -> impl Strategy<Value = (u64, Vec<TopicRange>)> {
    let steps = prop::collection::vec(
        (any::<bool>(), any::<prop::sample::Index>(), any::<u32>()),
        0..20,
    );
    (1u32..40, steps).prop_map(|(partitions, steps)| {
        let mut ranges = TopicRanges::even(partitions).all().to_vec();
        let mut generation = 1;
        for (split, which, at) in steps {
            let mut in_use: Vec<usize> =
                (0..ranges.len()).filter(|at| !ranges[*at].sealed).collect();
            in_use.sort_by_key(|at| ranges[*at].first);
            let next = u32::try_from(ranges.len()).unwrap();
            let chosen = which.index(in_use.len());
            let old = ranges[in_use[chosen]].clone();
            if split {
                let cut = old.first.max(at.min(old.last));
                if cut == old.first {
                    continue;
                }
                ranges[in_use[chosen]].sealed = true;
                for (number, first, last) in [(next, old.first, cut - 1), (next + 1, cut, old.last)]
                {
                    ranges.push(TopicRange {
                        parents: vec![old.number],
                        ..range(number, first, last)
                    });
                }
            } else if let Some(neighbour) = in_use.get(chosen + 1) {
                let other = ranges[*neighbour].clone();
                ranges[in_use[chosen]].sealed = true;
                ranges[*neighbour].sealed = true;
                ranges.push(TopicRange {
                    parents: vec![old.number, other.number],
                    ..range(next, old.first, other.last)
                });
            }
            generation += 1;
        }
        (generation, ranges)
    })
}

/// Hashes at which something could go wrong.
fn hashes(ranges: &[TopicRange]) -> Vec<u32> {
    let bounds = ranges.iter().flat_map(|range| [range.first, range.last]);
    let mut all: Vec<u32> = bounds
        .flat_map(|at| [at.saturating_sub(1), at, at.saturating_add(1)])
        .collect();
    all.extend([0, 1, u32::MAX / 2, u32::MAX]);
    all
}

proptest! {
    #[test]
    fn however_a_topic_grew_each_hash_has_exactly_one_range((generation, list) in grown(), more in any::<[u32; 8]>()) {
        let ranges = TopicRanges::new(generation, list.clone()).unwrap();
        prop_assert_eq!(ranges.generation(), generation);
        prop_assert_eq!(ranges.all(), &list[..]);
        for hash in hashes(&list).into_iter().chain(more) {
            let holders: Vec<&TopicRange> = list
                .iter()
                .filter(|range| !range.sealed && range.first <= hash && hash <= range.last)
                .collect();
            prop_assert_eq!(holders.len(), 1);
            let found = ranges.position_of(hash).and_then(|at| ranges.in_use().nth(at));
            prop_assert_eq!(found, Some(holders[0]));
        }
        let in_use: Vec<&TopicRange> = ranges.in_use().collect();
        prop_assert!(in_use.windows(2).all(|pair| pair[0].last < pair[1].first));
        prop_assert_eq!(in_use.len(), list.iter().filter(|range| !range.sealed).count());
    }

    #[test]
    fn a_gap_or_an_overlap_is_refused((generation, mut list) in grown(), which in any::<prop::sample::Index>(), by in 1u32..1000, at_last: bool, grow: bool) {
        let at = which.index(list.len());
        let old = list[at].clone();
        let moved = match (at_last, grow) {
            (true, true) => TopicRange { last: old.last.saturating_add(by), ..old.clone() },
            (true, false) => TopicRange { last: old.last.saturating_sub(by), ..old.clone() },
            (false, true) => TopicRange { first: old.first.saturating_sub(by), ..old.clone() },
            (false, false) => TopicRange { first: old.first.saturating_add(by), ..old.clone() },
        };
        prop_assume!(!old.sealed && moved != old);
        list[at] = moved;
        let is_malformed = list[at].first > list[at].last;
        match TopicRanges::new(generation, list) {
            Err(RangesError::Coverage { .. }) => {}
            Err(RangesError::Malformed { .. }) => prop_assert!(is_malformed),
            // One that was moved away from its parent.
            Err(RangesError::Parent { number, .. }) => prop_assert_eq!(number, old.number),
            other => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn ranges_of_a_new_topic_are_even(partitions in 1..=PARTITIONS_MAX) {
        let even = TopicRanges::even(partitions);
        prop_assert_eq!(&TopicRanges::new(1, even.all().to_vec()).unwrap(), &even);
        prop_assert_eq!(even.partitions(), partitions);
        let sizes = even.all().iter().map(|range| u64::from(range.last - range.first));
        prop_assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1);
        prop_assert!(even.contains(partitions - 1) && !even.contains(partitions));
    }
}

#[test]
fn a_topic_without_partitions_has_no_range() {
    let none = TopicRanges::even(0);
    assert_eq!(none, TopicRanges::default());
    assert_eq!(TopicRanges::new(0, Vec::new()), Ok(none.clone()));
    assert_eq!(none.position_of(7), None);
    assert!(none.is_empty() && !none.contains(0));
}

#[test]
fn a_parent_is_sealed_and_shares_keys() {
    let halves = |sealed, parent| {
        let mut list = vec![
            TopicRange {
                sealed,
                ..range(0, 0, 99)
            },
            range(1, 100, u32::MAX),
            TopicRange {
                parents: vec![parent],
                ..range(2, 0, 99)
            },
        ];
        if !sealed {
            list[2].sealed = true;
        }
        TopicRanges::new(2, list)
    };
    assert!(halves(true, 0).is_ok());
    for (sealed, parent) in [(false, 0), (true, 1), (true, 2), (true, 3)] {
        let refused = RangesError::Parent { number: 2, parent };
        assert_eq!(halves(sealed, parent), Err(refused), "{sealed} {parent}");
    }
}

#[test]
fn numbers_ascend_below_their_bound() {
    let whole = |number| range(number, 0, u32::MAX);
    assert!(TopicRanges::new(1, vec![whole(PARTITIONS_MAX - 1)]).is_ok());
    let malformed = |number| Err(RangesError::Malformed { number });
    assert_eq!(
        TopicRanges::new(1, vec![whole(PARTITIONS_MAX)]),
        malformed(PARTITIONS_MAX)
    );
    let twice = vec![range(3, 0, 5), range(3, 6, u32::MAX)];
    assert_eq!(TopicRanges::new(1, twice), malformed(3));
    assert_eq!(TopicRanges::new(1, vec![range(0, 7, 6)]), malformed(0));
}
