//! The reader of a stream, message by message, and the queue.

use std::time::Duration;

use aquifer_runtime::clock;
use etcd_client::proto::{PbKeyValue, PbResponseHeader};
use proptest::prelude::*;

use super::*;

fn event(space: &Space, key: &str, at: i64) -> PbEvent {
    PbEvent {
        r#type: 0,
        kv: Some(PbKeyValue {
            key: space.key(key),
            mod_revision: at,
            ..PbKeyValue::default()
        }),
        prev_kv: None,
    }
}

fn message(events: Vec<PbEvent>, fragment: bool) -> PbWatchResponse {
    PbWatchResponse {
        events,
        fragment,
        ..PbWatchResponse::default()
    }
}

fn revisions(brought: Brought) -> Vec<u64> {
    let Brought::Events(events) = brought else {
        panic!("the watch goes on");
    };
    let revisions = events.iter().map(|event| match event {
        WatchEvent::Put(item) => item.revision.0,
        WatchEvent::Delete { revision, .. } => revision.0,
        WatchEvent::Resync => panic!("nothing was compacted"),
    });
    revisions.collect()
}

proptest! {
    /// However a history is cut into messages and streams, every event arrives once, in order.
    #[test]
    fn a_stream_that_breaks_anywhere_is_taken_up_where_it_was(
        sizes in prop::collection::vec(1_usize..4, 1..12),
        cuts in prop::collection::vec((1_usize..5, any::<bool>()), 1..20),
    ) {
        let space = Space::new("c");
        let history: Vec<(i64, usize)> = sizes
            .iter()
            .enumerate()
            .flat_map(|(at, size)| (0..*size).map(move |part| (10 + at as i64, part)))
            .collect();
        let mut seen = Vec::new();
        let mut position = Position::after(Revision(9));
        let mut reader = Reader::new(&space, position);
        let mut rest = history.clone();
        let mut cuts = cuts.iter().cycle();
        while !rest.is_empty() {
            let (count, breaks) = *cuts.next().unwrap();
            // Each stream brings something new, or this would never end.
            let count = count + reader.again;
            let part: Vec<_> = rest.drain(..count.min(rest.len())).collect();
            let last = part.last().unwrap().0;
            let fragment = rest.first().is_some_and(|next| next.0 == last);
            let events = part.iter().map(|(at, part)| event(&space, &part.to_string(), *at));
            let Brought::Events(events) = reader.read(message(events.collect(), fragment)) else {
                panic!("the watch goes on");
            };
            for event in events {
                if let WatchEvent::Put(item) = event {
                    seen.push((item.revision.0 as i64, item.key.parse::<usize>().unwrap()));
                }
            }
            position = reader.position;
            if breaks {
                reader = Reader::new(&space, position);
                let start = position.start();
                rest = history.iter().filter(|(at, _)| *at >= start).copied().collect();
            }
        }
        prop_assert_eq!(seen, history);
    }

    /// Whatever arrives is read without a panic.
    #[test]
    fn garbage_is_no_panic(
        keys in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..30), any::<i64>(), any::<i32>()), 0..5),
        at in any::<i64>(),
        flags in any::<(bool, bool, bool)>(),
    ) {
        let space = Space::new("c");
        let mut reader = Reader::new(&space, Position::after(Revision(5)));
        let events = keys.into_iter().map(|(key, at, r#type)| PbEvent {
            r#type,
            kv: Some(PbKeyValue { key, mod_revision: at, ..PbKeyValue::default() }),
            prev_kv: None,
        });
        let read = reader.read(PbWatchResponse {
            header: Some(PbResponseHeader { revision: at, ..PbResponseHeader::default() }),
            events: events.chain([PbEvent::default()]).collect(),
            created: flags.0,
            canceled: flags.1,
            fragment: flags.2,
            ..PbWatchResponse::default()
        });
        match read {
            Brought::Events(_) | Brought::Ended(_) => {}
            Brought::Compacted => prop_assert!(false, "nothing was compacted"),
        }
    }
}

#[test]
fn progress_moves_a_quiet_watch_on_and_a_creation_does_not() {
    let space = Space::new("c");
    let mut reader = Reader::new(&space, Position::after(Revision(5)));
    let notice = |at: i64, created: bool| PbWatchResponse {
        header: Some(PbResponseHeader {
            revision: at,
            ..PbResponseHeader::default()
        }),
        created,
        ..PbWatchResponse::default()
    };
    assert!(revisions(reader.read(notice(50, true))).is_empty());
    assert_eq!(reader.position.start(), 6);
    assert!(revisions(reader.read(notice(40, false))).is_empty());
    assert_eq!(reader.position.start(), 41);
    // A member that lags behind reports less: that takes nothing back.
    assert!(revisions(reader.read(notice(30, false))).is_empty());
    assert_eq!(reader.position.start(), 41);
    let events = vec![event(&space, "old", 40), event(&space, "new", 41)];
    assert_eq!(revisions(reader.read(message(events, false))), [41]);
}

#[test]
fn compaction_is_told_from_other_ends() {
    let space = Space::new("c");
    let mut reader = Reader::new(&space, Position::after(Revision(5)));
    let ended = PbWatchResponse {
        canceled: true,
        cancel_reason: "permission denied".to_owned(),
        ..PbWatchResponse::default()
    };
    let compacted = PbWatchResponse {
        canceled: true,
        compact_revision: 9,
        ..PbWatchResponse::default()
    };
    assert!(matches!(reader.read(ended), Brought::Ended(reason) if reason == "permission denied"));
    assert!(matches!(reader.read(compacted), Brought::Compacted));
}

#[tokio::test]
async fn a_queue_is_full_until_it_was_drained_to_half() {
    let queue = Queue::default();
    let deletion = |number: usize| WatchEvent::Delete {
        key: number.to_string(),
        revision: Revision(1),
    };
    queue.push((0..QUEUED_EVENTS_MAX).map(deletion).collect());
    assert!(queue.is_full());
    let room = queue.room();
    tokio::pin!(room);
    let early = clock::timeout(Duration::ZERO, &mut room).await;
    assert!(early.is_err(), "nothing was taken yet");
    for _ in 0..QUEUED_EVENTS_MAX / 2 {
        assert!(queue.pop().await.is_some());
    }
    room.await;
    queue.end();
    for _ in 0..QUEUED_EVENTS_MAX / 2 {
        assert!(
            queue.pop().await.is_some(),
            "what was queued before the end is kept"
        );
    }
    assert_eq!(queue.pop().await, None);
    assert_eq!(queue.state.lock().bytes, 0);
}
