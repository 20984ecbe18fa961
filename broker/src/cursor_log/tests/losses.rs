//! Logs of which records are lost.

use super::*;

/// A log that begins with a snapshot in parts, as after a trim, and has changes between and behind
/// them.
fn trimmed_log(count: usize) -> (Vec<Bytes>, Vec<String>) {
    let names: Vec<String> = (0..count).map(|number| format!("s{number}")).collect();
    let states = names.iter().map(|name| {
        let mut cursor = CursorState::new(Index(10));
        cursor.acknowledge_range(IndexRange {
            first: Index(20),
            last: Index(29),
        });
        cursor.encode(name, SubscriptionType::Shared, 7)
    });
    let snapshot = v1::CursorSnapshot {
        snapshot_id: 3,
        subscriptions: states.collect(),
        producers: vec![producer(0, 1)],
        dedup_index: 40,
        ..Default::default()
    };
    let parts = encode_parts(snapshot, 120);
    let ack = |name: &String, index| v1::CursorDelta {
        subscription: name.clone(),
        change: Some(v1::cursor_delta::Change::Acknowledged(v1::AckDelta {
            cumulative: Some(index),
            ..Default::default()
        })),
    };
    let mut log = Vec::new();
    for part in parts {
        log.push(part);
        log.extend(encode_deltas(names.iter().map(|n| ack(n, 12)).collect()));
    }
    log.extend(encode_deltas(names.iter().map(|n| ack(n, 14)).collect()));
    (log, names)
}

/// What a record has of a snapshot.
fn part_of(record: &Bytes) -> Option<v1::CursorSnapshot> {
    let decoded = v1::CursorLogRecord::decode(&record[..]).expect("sound");
    match decoded.record {
        Some(v1::cursor_log_record::Record::Snapshot(part)) => Some(part),
        _ => None,
    }
}

/// I9: one part of a snapshot that cannot be read costs what only that part has, and says so.
#[test]
fn a_damaged_part_of_a_snapshot_costs_what_is_in_it() {
    let (log, names) = trimmed_log(6);
    let parts: Vec<usize> = (0..log.len())
        .filter(|at| part_of(&log[*at]).is_some())
        .collect();
    assert!(parts.len() > 3, "{}", parts.len());
    for damaged in parts {
        let missing: BTreeSet<String> = part_of(&log[damaged])
            .into_iter()
            .flat_map(|part| part.subscriptions)
            .map(|state| state.name)
            .collect();
        for unreadable in [true, false] {
            let mut replay = Replay::default();
            for (at, record) in log.iter().enumerate() {
                let index = Index(100 + at as u64);
                if at != damaged {
                    replay.record(index, record).expect("sound");
                } else if unreadable {
                    replay.lost("no copy".to_owned());
                } else {
                    let error = replay.record(index, b"\xff\xff").expect_err("damaged");
                    replay.lost(error.to_string());
                }
            }
            let (state, losses) = replay.finish_with_losses();
            let losses = losses.expect("something is lost");
            assert!(losses.certain.is_empty(), "all of it waits for a reset");
            let told: BTreeSet<_> = losses.nameless.iter().map(ToString::to_string).collect();
            assert_eq!(
                told, missing,
                "part {damaged}: what is left of them is a name"
            );
            for name in names.iter().filter(|name| !missing.contains(*name)) {
                let name = SubscriptionName::new(name).expect("a valid name");
                let known = &state.subscriptions[&name];
                assert_eq!(known.cursor.mark_delete(), Index(15), "{name}");
                assert_eq!(known.cursor.unacknowledged(15..40), [15..20, 30..40]);
                assert_eq!(known.created_ms, 7);
            }
            assert_eq!(state.subscriptions.len(), names.len() - missing.len());
            // The message log tells of producers, from the beginning.
            assert_eq!((state.producers.len(), state.dedup_index), (0, Index(0)));
            assert_eq!(state.snapshot_at, None, "nothing may be trimmed");
        }
    }
}

fn delta(name: &str, change: v1::cursor_delta::Change) -> Bytes {
    let delta = v1::CursorDelta {
        subscription: name.to_owned(),
        change: Some(change),
    };
    encode_deltas(vec![delta]).remove(0)
}

fn created(name: &str, created_ms: u64, index: u64) -> Bytes {
    let cursor = CursorState::new(Index(index));
    let state = cursor.encode(name, SubscriptionType::Shared, created_ms);
    delta(name, v1::cursor_delta::Change::Created(state))
}

/// I9: a snapshot of which a part is missing knows what the records before it cannot: that a
/// subscription was created again, or that one of the same name is another.
#[test]
fn a_part_behind_a_loss_is_believed_before_what_was_known_of_an_earlier_life() {
    let (log, names) = trimmed_log(6);
    let last = names.last().expect("six");
    let deleted = delta(last, v1::cursor_delta::Change::Deleted(true));
    for before in [
        vec![created(last, 3, 100), deleted],
        vec![created(last, 3, 100)],
    ] {
        let mut replay = Replay::default();
        for (at, record) in before.iter().enumerate() {
            replay.record(Index(at as u64), record).expect("sound");
        }
        replay.lost("no copy".to_owned());
        for (at, record) in log[1..].iter().enumerate() {
            let index = Index(100 + at as u64);
            replay.record(index, record).expect("sound");
        }
        let (state, losses) = replay.finish_with_losses();
        assert!(losses.is_some());
        let name = SubscriptionName::new(last).expect("a valid name");
        let known = &state.subscriptions[&name];
        assert_eq!(
            (known.created_ms, known.cursor.mark_delete()),
            (7, Index(15))
        );
    }
}

/// I13: whatever follows a snapshot that misses a part, its last one included, is not kept.
#[test]
fn what_follows_a_broken_snapshot_is_not_gathered() {
    let (log, names) = trimmed_log(6);
    let parts: Vec<usize> = (0..log.len())
        .filter(|at| part_of(&log[*at]).is_some())
        .collect();
    for damaged in [parts[1], parts[parts.len() - 1]] {
        let mut replay = Replay::default();
        for (at, record) in log.iter().enumerate() {
            match at == damaged {
                true => replay.lost("no copy".to_owned()),
                false => replay.record(Index(at as u64), record).expect("sound"),
            }
        }
        for index in 0..2 * SINCE_MAX as u64 {
            let ack = v1::cursor_delta::Change::Acknowledged(v1::AckDelta {
                cumulative: Some(20 + index),
                ..Default::default()
            });
            let record = delta(&names[0], ack);
            replay.record(Index(1_000 + index), &record).expect("sound");
            let kept = replay.building.as_ref().map_or(0, |b| b.since.len());
            assert!(kept <= SINCE_MAX + names.len(), "{kept}");
        }
        assert!(replay.building.is_none(), "nothing waits for its end");
        let (state, _) = replay.finish_with_losses();
        let name = SubscriptionName::new(&names[0]).expect("a valid name");
        let mark = state.subscriptions[&name].cursor.mark_delete();
        assert_eq!(mark, Index(20 + 2 * SINCE_MAX as u64));
    }
}

/// The next complete snapshot makes everything good.
#[test]
fn a_complete_snapshot_behind_a_damaged_one_loses_nothing() {
    let (log, names) = trimmed_log(6);
    let mut replay = Replay::default();
    replay.lost("no copy".to_owned());
    for (at, record) in log[1..].iter().chain(&log).enumerate() {
        replay.record(Index(at as u64), record).expect("sound");
    }
    let (state, losses) = replay.finish_with_losses();
    assert_eq!(losses, None);
    assert_eq!(state.subscriptions.len(), names.len());
    assert_eq!(state.producers.len(), 1);
}

proptest! {
    /// I9: whatever record is lost, nothing counts as acknowledged that no consumer has
    /// acknowledged, and a subscription of which anything is left is told of.
    #[test]
    fn a_lost_record_acknowledges_nothing(
        steps in proptest::collection::vec(step(), 0..40),
        lost in any::<prop::sample::Index>(),
        trimmed in any::<bool>(),
    ) {
        let mut owner = Owner::default();
        (0..3).for_each(|number| owner.toggle(number));
        let is_monotonic = |step: &Step| !matches!(step, Step::Toggle(_) | Step::Seek(..));
        for step in steps.into_iter().filter(is_monotonic) {
            owner.run(step);
        }
        let whole = replay(records(&owner.log, 0)).expect("sound");
        let from = whole.snapshot_at.filter(|_| trimmed).unwrap_or(Index(0)).0;
        let from = usize::try_from(from).expect("small");
        let lost = from + lost.index(owner.log.len() - from);
        let mut found = Replay::default();
        for (index, record) in records(&owner.log, from) {
            match index.0 == lost as u64 {
                true => found.lost("no copy".to_owned()),
                // A snapshot without its beginning; what is in it counts where nothing else does.
                false => found.record(index, &record).expect("sound"),
            }
        }
        let (state, losses) = found.finish_with_losses();
        prop_assert!(losses.is_some() || state.snapshot_at > Some(Index(lost as u64)));
        for (name, known) in &state.subscriptions {
            for open in owner.subscriptions[name].cursor.unacknowledged(0..300_000) {
                let left = known.cursor.unacknowledged(open.clone());
                prop_assert_eq!(left, vec![open], "{}", name);
            }
        }
    }
}
