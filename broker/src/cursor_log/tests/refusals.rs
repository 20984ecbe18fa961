//! What is refused of a log that cannot be as it says.

use super::*;

#[test]
fn logs_that_do_not_add_up_are_refused_by_name() {
    let state = CursorState::new(Index(0)).encode("s", SubscriptionType::Shared, 0);
    let record = |delta| encode_deltas(vec![delta]).remove(0);
    let snapshot = |id| {
        let v1 = v1::CursorSnapshot {
            snapshot_id: id,
            producers: vec![producer(1, 1), producer(2, 1)],
            ..Default::default()
        };
        encode_parts(v1, 64)
    };
    let seek = record(moved("s", SeekEpoch(1), Index(3)));
    let at = Index(1);
    let good = record(created(state.clone()));
    let bad_kind = v1::SubscriptionState {
        r#type: 77,
        ..state.clone()
    };
    let bad_name = v1::SubscriptionState {
        name: String::new(),
        ..state
    };

    let orphan = replay([(Index(0), seek.clone())]);
    assert!(
        matches!(
            orphan,
            Err(CursorLogError::Orphan {
                index: Index(0),
                ..
            })
        ),
        "{orphan:?}"
    );
    let trimmed = replay([(at, good.clone())]);
    assert_eq!(trimmed, Err(CursorLogError::NoSnapshot { first: at }));
    let kind = replay([(Index(0), good.clone()), (at, record(created(bad_kind)))]);
    assert!(
        matches!(kind, Err(CursorLogError::Cursor { index, .. }) if index == at),
        "{kind:?}"
    );
    let named = replay([(Index(0), good.clone()), (at, record(created(bad_name)))]);
    assert!(
        matches!(named, Err(CursorLogError::Name { index, .. }) if index == at),
        "{named:?}"
    );
    let garbage = replay([
        (Index(0), good.clone()),
        (at, Bytes::from_static(b"\xff\xff")),
    ]);
    assert!(matches!(garbage, Err(CursorLogError::Damaged { index, .. }) if index == at));
    let empty = replay([(Index(0), Bytes::new())]);
    assert!(
        matches!(
            empty,
            Err(CursorLogError::Damaged {
                index: Index(0),
                ..
            })
        ),
        "{empty:?}"
    );
    let (one, other) = (snapshot(1), snapshot(2));
    assert!(one.len() > 1);
    let mixed = replay([(Index(0), one[0].clone()), (at, other[1].clone())]);
    assert!(matches!(mixed, Err(CursorLogError::Damaged { index, .. }) if index == at));
    // A leftover of a deleted subscription is no damage.
    let leftover = replay([
        (Index(0), good),
        (Index(1), record(deleted("s"))),
        (Index(2), seek),
    ]);
    assert_eq!(leftover.map(|state| state.subscriptions.len()), Ok(0));
}

/// Counts that are not ascending ranges of messages are damage.
#[test]
fn redelivery_counts_that_cannot_be_are_refused() {
    let state = CursorState::new(Index(0)).encode("s", SubscriptionType::Shared, 0);
    let record = |delta| encode_deltas(vec![delta]).remove(0);
    let counts = |ranges: &[(u64, u64)]| v1::SubscriptionState {
        redelivered: ranges
            .iter()
            .map(|&(first, last)| v1::RedeliveredRange {
                first,
                last,
                count: 1,
            })
            .collect(),
        ..state.clone()
    };
    for bad in [
        &[(5, 4)][..],
        &[(0, 5), (5, 6)],
        &[(3, 3), (1, 1)],
        &[(0, 1 << 62)],
    ] {
        let counted = replay([(Index(0), record(created(counts(bad))))]);
        assert!(
            matches!(counted, Err(CursorLogError::Cursor { .. })),
            "{counted:?}"
        );
    }
}
