use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn range(first: u64, last: u64) -> IndexRange {
    IndexRange {
        first: Index(first),
        last: Index(last),
    }
}

#[derive(Debug, Clone)]
enum Step {
    Cumulative(u64),
    Range(u64, u64),
    Seek(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (0u64..200).prop_map(Step::Cumulative),
        8 => (0u64..200, 0u64..12).prop_map(|(first, len)| Step::Range(first, first + len)),
        1 => (0u64..200).prop_map(Step::Seek),
    ]
}

/// The cursor as a set of everything acknowledged.
struct Model {
    base: u64,
    acknowledged: BTreeSet<u64>,
    mark: u64,
    epoch: u64,
}

impl Model {
    fn acknowledge(&mut self, range: impl Iterator<Item = u64>) -> u64 {
        let mut new = 0;
        for index in range {
            if index >= self.mark && self.acknowledged.insert(index) {
                new += 1;
            }
        }
        while self.acknowledged.contains(&self.mark) {
            self.mark += 1;
        }
        new
    }

    fn check(&self, cursor: &CursorState) {
        let acknowledged = |index: &u64| *index < self.mark || self.acknowledged.contains(index);
        let window = self.base..self.base + 260;
        assert_eq!(cursor.mark_delete(), Index(self.mark));
        assert_eq!(cursor.seek_epoch(), SeekEpoch(self.epoch));
        let open: Vec<u64> = window.clone().filter(|i| !acknowledged(i)).collect();
        assert_eq!(cursor.backlog(Index(window.end)), open.len() as u64);
        let parts = cursor.unacknowledged(window.clone());
        assert!(
            parts.windows(2).all(|pair| pair[0].end < pair[1].start),
            "{parts:?}"
        );
        assert_eq!(parts.into_iter().flatten().collect::<Vec<u64>>(), open);
        for from in window.clone() {
            assert_eq!(cursor.is_acknowledged(Index(from)), acknowledged(&from));
            let next = (from.max(self.mark)..).find(|i| !acknowledged(i));
            assert_eq!(Some(cursor.next_unacknowledged(Index(from)).0), next);
        }
        let islands = window
            .filter(|i| *i > self.mark && acknowledged(i) && !acknowledged(&(i - 1)))
            .count();
        assert_eq!(cursor.acknowledged_ranges(), islands as u64);
    }
}

proptest! {
    /// I9: the cursor is exactly the set of what was acknowledged, also across the borders of the
    /// bitmap's containers and halves, and its stored form loses nothing.
    #[test]
    fn behaves_like_a_set(
        base in prop_oneof![Just(0u64), Just((1 << 16) - 100), Just((1 << 32) - 100)],
        steps in proptest::collection::vec(step(), 0..40),
    ) {
        let mut cursor = CursorState::new(Index(base));
        let mut model = Model { base, acknowledged: BTreeSet::new(), mark: base, epoch: 0 };
        for step in steps {
            match step {
                Step::Cumulative(last) => {
                    let new = cursor.acknowledge_cumulative(Index(base + last));
                    prop_assert_eq!(new, model.acknowledge(base..=base + last));
                }
                Step::Range(first, last) => {
                    // At or below the mark a range reaches down to it: nothing below is open.
                    let new = cursor.acknowledge_range(range(base + first, base + last));
                    prop_assert_eq!(new, model.acknowledge(base + first..=base + last));
                }
                Step::Seek(to) => {
                    cursor.seek(Index(base + to));
                    model.acknowledged.clear();
                    model.mark = base + to;
                    model.epoch += 1;
                }
            }
            model.check(&cursor);
            let stored = cursor.encode("s", SubscriptionType::Shared, 7);
            let restored = CursorState::decode(&stored);
            model.check(&restored.expect("what was encoded decodes"));
        }
    }

    #[test]
    fn damaged_bitmaps_never_panic(bytes in proptest::collection::vec(any::<u8>(), 1..300)) {
        let state = v1::SubscriptionState { acknowledged: bytes.into(), ..Default::default() };
        let _ = CursorState::decode(&state);
    }

    #[test]
    fn truncated_or_flipped_bitmaps_never_panic(
        indexes in proptest::collection::btree_set(0u64..1 << 34, 1..50),
        cut in any::<prop::sample::Index>(),
        bit in any::<prop::sample::Index>(),
    ) {
        let whole = encode_bitmap(&indexes.into_iter().collect());
        let cut = cut.index(whole.len());
        prop_assert!(cut == 0 || decode_bitmap(&whole[..cut]).is_err());
        let mut flipped = whole;
        let bit = bit.index(flipped.len() * 8);
        flipped[bit / 8] ^= 1 << (bit % 8);
        if let Ok(bitmap) = decode_bitmap(&flipped) {
            let mut cursor = CursorState::new(Index(0));
            cursor.merge(bitmap);
            let _ = (cursor.acknowledged_ranges(), cursor.backlog(Index(1 << 40)));
        }
    }
}

/// H12: what was acknowledged before a seek does not count after it.
#[test]
fn acknowledgements_of_another_seek_epoch_change_nothing() {
    let mut cursor = CursorState::new(Index(10));
    let old = v1::AckDelta {
        seek_epoch: 0,
        cumulative: Some(50),
        individual: vec![],
    };
    cursor.seek(Index(0));
    cursor.apply_acknowledged(&old).expect("valid");
    assert_eq!(cursor.mark_delete(), Index(0));
    let seek = |seek_epoch, index| v1::SeekDelta { seek_epoch, index };
    cursor.apply_seek(&seek(1, 30)).expect("valid");
    assert_eq!(cursor.mark_delete(), Index(0), "this seek is known already");
    cursor.apply_seek(&seek(2, 30)).expect("valid");
    assert_eq!(cursor.mark_delete(), Index(30));
    assert_eq!(cursor.seek_epoch(), SeekEpoch(2));
}

#[test]
fn records_that_cannot_be_are_refused_and_cost_nothing() {
    let mut cursor = CursorState::new(Index(0));
    let before = cursor.clone();
    let ack = |cumulative, ranges: &[(u64, u64)]| v1::AckDelta {
        seek_epoch: 0,
        cumulative,
        individual: ranges
            .iter()
            .map(|&(first, last)| v1::IndexRange { first, last })
            .collect(),
    };
    for bad in [
        ack(Some(u64::MAX), &[]),
        ack(None, &[(5, 4)]),
        ack(None, &[(1, 1 << 61)]),
        ack(None, &[(0, u64::MAX)]),
        ack(Some(3), &[(7, u64::MAX)]),
    ] {
        assert!(cursor.apply_acknowledged(&bad).is_err(), "{bad:?}");
        assert_eq!(cursor, before);
    }
    let seek = v1::SeekDelta {
        seek_epoch: 1,
        index: u64::MAX,
    };
    assert!(cursor.apply_seek(&seek).is_err());
    for bad in [
        v1::SubscriptionState {
            mark_delete: u64::MAX,
            ..Default::default()
        },
        v1::SubscriptionState {
            acknowledged: encode_bitmap(&[u64::MAX].into_iter().collect()).into(),
            ..Default::default()
        },
    ] {
        assert!(CursorState::decode(&bad).is_err(), "{bad:?}");
    }
    assert_eq!(decode_kind(0), Err(CursorError::Kind(0)));
    assert_eq!(decode_kind(99), Err(CursorError::Kind(99)));
}

/// State follows the islands, not the span that they cover.
#[test]
fn a_long_acknowledged_span_stays_small() {
    let mut cursor = CursorState::new(Index(0));
    for million in 0..100u64 {
        let first = 1 + million * 1_000_000;
        let new = cursor.acknowledge_range(range(first, first + 999_998));
        assert_eq!(new, 999_999);
    }
    let stored = cursor.encode("s", SubscriptionType::Shared, 0);
    assert!(
        stored.acknowledged.len() < 64 * 1024,
        "{}",
        stored.acknowledged.len()
    );
    assert_eq!(cursor.acknowledged_ranges(), 100);
    assert_eq!(cursor.acknowledge_range(range(1, 100_000_000)), 100);
    assert_eq!(cursor.acknowledge_cumulative(Index(0)), 1);
    assert_eq!(cursor.mark_delete(), Index(100_000_001));
    assert_eq!(cursor.acknowledged_ranges(), 0);
}
