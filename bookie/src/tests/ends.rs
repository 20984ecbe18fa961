//! How a bookie ends: nothing of it is left when it has ended, nothing makes the end wait that
//! could be cancelled, and a thread that panics ends it.

use std::process::Command;

use super::*;
use crate::BookieMode;

/// Processes of this test binary that run one test and end.
const PROCESSES: u32 = 8;

/// A process that has used a bookie ends with 0: no thread of the bookie or of its database is left
/// that would run while the process is torn down.
#[test]
fn a_process_ends_well_after_its_bookies() {
    let binary = std::env::current_exe().unwrap();
    let name = format!("{}::bookies_come_and_go", module_path!());
    let name = name.split_once("::").unwrap().1;
    for _ in 0..PROCESSES {
        let mut child = Command::new(&binary);
        let child = child.args([name, "--exact", "--ignored", "--test-threads=2"]);
        let ended = child.output().unwrap();
        let said = String::from_utf8_lossy(&ended.stdout).into_owned();
        let error = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "{:?} {said} {error}", ended.status);
        assert!(said.contains("1 passed"), "{said}");
    }
}

/// What a process of the test above does: bookies that are dropped while they read.
#[test]
#[ignore = "run in processes of its own by the test above"]
fn bookies_come_and_go() {
    for round in 0..3 {
        let directory = tempfile::tempdir().unwrap();
        let bookie = open(&config(directory.path()));
        for entry in 0..20 {
            done(ask(&bookie, add_request(1, entry, 1_000)));
        }
        flush_all(&bookie);
        bookie.core.shared.ledgers.lock(LedgerId(1)).forget();
        let last = start(
            &bookie,
            request(1, OrderedOperation::RecoveryRead(EntryId(round))),
        );
        let other = start(&bookie, request(2, OrderedOperation::Fence));
        if round == 1 {
            shutdown(&bookie);
        }
        drop(bookie);
        // Answered, or not: the bookie has ended.
        let _ = (last.try_recv(), other.try_recv());
    }
}

/// A bookie that was dropped leaves its directory to a successor, jobs that it ran included.
#[test]
fn a_dropped_bookie_has_ended_when_its_last_clone_has() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path());
    for ledger in 1..=10 {
        let bookie = try_open(&config).unwrap();
        done(ask(&bookie, add_request(ledger, 0, 1_000)));
        flush_all(&bookie);
        bookie.core.shared.ledgers.lock(LedgerId(ledger)).forget();
        let read = request(ledger, OrderedOperation::RecoveryRead(EntryId(0)));
        drop(start(&bookie, read));
        drop(bookie);
    }
}

/// I1: an answer that panics takes the thread with it that gave it, and what waits behind it would
/// wait for ever. The bookie fails instead, says so, and answers.
#[test]
fn a_thread_that_panics_fails_the_bookie() {
    let operations = [
        // Answered by the journal's thread, and by one of those that read.
        OrderedOperation::Fence,
        OrderedOperation::RecoveryRead(EntryId(0)),
    ];
    for operation in operations {
        let directory = tempfile::tempdir().unwrap();
        let bookie = open(&config(directory.path()));
        done(ask(&bookie, add_request(1, 0, 10)));
        let panics = |_| panic!("a fault in the receiver of this answer");
        bookie.submit(request(1, operation), Box::new(panics));
        let why =
            block_on(async { aquifer_runtime::clock::timeout(PATIENCE, bookie.failed()).await });
        let why = why.expect("the bookie fails");
        assert!(why.contains("panicked"), "{why}");
        assert!(matches!(bookie.status().mode, BookieMode::Failed(_)));
        let refused = ask(&bookie, add_request(1, 1, 10));
        assert!(matches!(refused, Err(BookieError::Io(_))), "{refused:?}");
        shutdown(&bookie);
    }
}

/// The end does not wait for a compaction of everything: what is not collected now is collected
/// after the next start.
#[test]
fn the_end_cancels_a_compaction() {
    const LEN: usize = 40_000;
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path());
    let bookie = open(&config);
    for first in (0..1_000).step_by(100) {
        let adds = (first..first + 100).flat_map(|entry| [(1, entry), (2, entry)]);
        let replies: Vec<_> = adds
            .map(|(ledger, entry)| start(&bookie, add_request(ledger, entry, LEN)))
            .collect();
        for reply in &replies {
            done(answer(reply));
        }
    }
    done(ask(&bookie, request(1, OrderedOperation::Delete)));
    eventually("applied", || {
        let status = bookie.status();
        status.applied_commit == status.synced_commit
    });
    // Not a checkpoint: that would begin by itself what is begun below.
    let store = std::sync::Arc::clone(&bookie.core.shared.store);
    store.flush().unwrap();
    let reclaimed = rocks(&*store).with(|db| db.reclaim(&[LedgerId(1)], None));
    reclaimed.unwrap();
    let bytes = bookie.status().store_bytes;
    assert!(bytes > 1_500 * LEN as u64, "{bytes}");
    let collecting = std::sync::Arc::clone(&store);
    let collection = aquifer_runtime::task::spawn_thread("collection", move || {
        rocks(&*collecting).with(|db| db.collect_blobs(u64::MAX, |_| {}))
    });
    let collection = collection.unwrap();
    while !collection.is_finished() && rocks(&*store).with(|db| db.compactions()).unwrap() == 0 {
        std::thread::yield_now();
    }
    shutdown(&bookie);
    // Cancelled or not begun: an error says nothing here.
    let _ = collection.join().unwrap();
    drop(bookie);
    let bookie = open(&config);
    let bytes = bookie.status().store_bytes;
    assert!(bytes > 1_500 * LEN as u64, "{bytes}");
    expect(&bookie, 2, 999, LEN);
}
