//! A bookie over a store that is not RocksDB: what the seam between them promises.

mod store;

use super::*;
use crate::BookieMode;
use crate::store::{Opened, Pressure};
use store::MemoryStore;

const LEN: usize = 3_000;

fn open_on(config: &BookieConfig, store: &MemoryStore) -> Bookie {
    open_with(config, &deps(RealDisk::shared()), store)
}

fn open_with(config: &BookieConfig, deps: &BookieDeps, store: &MemoryStore) -> Bookie {
    open_when_free(|| {
        let opened = Opened {
            store: std::sync::Arc::new(store.clone()),
            damage: None,
            set_aside: None,
        };
        Bookie::open_on(config.clone(), deps, |_, _| Ok(opened))
    })
}

fn fill(bookie: &Bookie, ledger: u64, entries: std::ops::Range<u64>) {
    for entry in entries {
        done(ask(bookie, add_request(ledger, entry, LEN)));
    }
}

/// What was acknowledged outlives a crash of a store that had flushed a part of it, and decisions
/// are the same as over RocksDB.
#[test]
fn a_bookie_runs_and_starts_again_on_any_store() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path());
    let store = MemoryStore::default();
    let bookie = open_on(&config, &store);
    fill(&bookie, 1, 0..8);
    flush_all(&bookie);
    fill(&bookie, 1, 8..12);
    fill(&bookie, 2, 0..3);
    done(ask(&bookie, request(2, OrderedOperation::Fence)));
    fill(&bookie, 3, 0..3);
    done(ask(&bookie, request(3, OrderedOperation::Delete)));
    eventually("applied", || {
        bookie.status().applied_commit == bookie.status().synced_commit
    });
    bookie.core.halt();
    drop(bookie);
    store.crash();

    let bookie = open_on(&config, &store);
    (0..12).for_each(|entry| expect(&bookie, 1, entry, LEN));
    (0..3).for_each(|entry| expect(&bookie, 2, entry, LEN));
    assert_eq!(read_one(&bookie, 1, 12), Err(BookieError::NoSuchEntry));
    assert_eq!(read_one(&bookie, 3, 0), Err(BookieError::Deleted));
    let refused = ask(&bookie, add_request(2, 3, LEN));
    assert_eq!(refused, Err(BookieError::Fenced));
    // The same entry again is known; another one in its place is not taken (H14).
    done(ask(&bookie, add_request(1, 4, LEN)));
    let other = ask(&bookie, add_request(1, 4, LEN + 1));
    assert_eq!(other, Err(BookieError::Conflict));
    let ledgers = block_on(bookie.ledgers(None, 10)).unwrap();
    assert_eq!(ledgers, [(LedgerId(1), token(1)), (LedgerId(2), token(2))]);
    shutdown(&bookie);
}

/// A store may leave a value where the journal has it.
#[test]
fn values_lie_in_the_journal_where_their_commits_say() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path());
    let store = MemoryStore::default();
    let bookie = open_on(&config, &store);
    let replies: Vec<_> = (0..200)
        .map(|entry| start(&bookie, add_request(entry % 3, entry / 3, LEN)))
        .collect();
    replies.iter().for_each(|reply| _ = done(answer(reply)));
    shutdown(&bookie);
    let placed = store.placed();
    assert_eq!(placed.len(), 200);
    for (place, start, value) in placed {
        let name = format!("segment-{:08}.aqj", place.segment);
        let segment = std::fs::read(config.journal_dir.join(name)).unwrap();
        let offset = usize::try_from(place.offset).unwrap() + start;
        assert!(segment[offset..].starts_with(&value), "{place:?}");
        let generation = u64::from_le_bytes(segment[16..24].try_into().unwrap());
        assert_eq!(place.generation, generation);
    }
}

/// A store that refuses is opened again with what it lost, and adds are refused meanwhile.
#[test]
fn a_store_that_refuses_gets_everything_again() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path());
    let store = MemoryStore::default();
    let bookie = open_on(&config, &store);
    fill(&bookie, 1, 0..4);
    flush_all(&bookie);
    fill(&bookie, 1, 4..8);
    eventually("applied", || {
        bookie.status().applied_commit == bookie.status().synced_commit
    });
    store.refuse(2);
    fill(&bookie, 1, 8..9);
    let is_read_only = || matches!(bookie.status().mode, BookieMode::ReadOnly(_));
    eventually("the bookie is read-only", is_read_only);
    eventually("the store takes writes again", || !is_read_only());
    assert_eq!(store.reopened(), 1);
    (0..9).for_each(|entry| expect(&bookie, 1, entry, LEN));
    fill(&bookie, 1, 9..10);
    shutdown(&bookie);
}

/// A store that holds writes up is seen from outside, and also that it does not.
#[test]
fn what_a_store_is_behind_with_is_shown() {
    let directory = tempfile::tempdir().unwrap();
    let config = BookieConfig {
        quiet_flush_ms: 5,
        ..config(directory.path())
    };
    let telemetry = Telemetry::for_tests();
    let deps = BookieDeps {
        meter: telemetry.meter("bookie"),
        ..deps(RealDisk::shared())
    };
    let store = MemoryStore::default();
    let bookie = open_with(&config, &deps, &store);
    let shows = |stopped: u64, slowed_to: u64, debt: u64| {
        let text = telemetry.render_metrics();
        let lines = [
            format!("aquifer_bookie_store_writes_stopped {stopped}"),
            format!("aquifer_bookie_store_writes_slowed_to_bytes_per_second {slowed_to}"),
            format!("aquifer_bookie_store_compaction_debt_bytes {debt}"),
        ];
        let has = |line: &String| text.lines().any(|found| found == line);
        lines.iter().all(has)
    };
    assert!(shows(0, 0, 0));
    store.hold_up(Pressure {
        is_stopped: true,
        slowed_to: 7,
        debt_bytes: 9,
    });
    eventually("it is shown", || shows(1, 7, 9));
    store.hold_up(Pressure::default());
    eventually("it is over", || shows(0, 0, 0));
    shutdown(&bookie);
}

/// Records of deleted ledgers do not hold up the end of a bookie, however many there are.
#[test]
fn the_scrubber_stops_among_tombstones() {
    let directory = tempfile::tempdir().unwrap();
    let config = BookieConfig {
        scrub_bytes_per_second: 1 << 40,
        scrub_pause_ms: 1,
        ..config(directory.path())
    };
    let store = MemoryStore::default();
    let bookie = open_on(&config, &store);
    store.list_tombstones();
    eventually("tombstones are listed", || store.listed() > 2);
    let (tell, ended) = sync_channel(1);
    // Not joined: without the stop it never ends.
    let _thread = aquifer_runtime::task::spawn_thread("stop", move || {
        shutdown(&bookie);
        tell.send(()).unwrap();
    });
    let stopped = ended.recv_timeout(Duration::from_secs(30));
    assert!(stopped.is_ok(), "the bookie does not stop");
}
