//! The space of deleted ledgers.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Four ledgers, written side by side, of about 8 MiB in all.
fn written(directory: &Path, len: usize, quiet_flush_ms: u64) -> (Bookie, u64) {
    let config = BookieConfig {
        memtable_bytes: MIB,
        quiet_flush_ms,
        ..config(directory)
    };
    let bookie = open(&config);
    let entries = u64::try_from(8 * MIB / len / 4).unwrap();
    for entry in 0..entries {
        let replies: Vec<_> = (1..=4)
            .map(|ledger| start(&bookie, add_request(ledger, entry, len)))
            .collect();
        for reply in &replies {
            done(answer(reply));
        }
    }
    eventually("everything is flushed", || {
        let status = bookie.status();
        status.flushed_commit == status.synced_commit && status.store_bytes > 7_000_000
    });
    (bookie, entries)
}

fn delete_all_but_the_first(bookie: &Bookie) {
    for ledger in 2..=4 {
        done(ask(bookie, request(ledger, OrderedOperation::Delete)));
    }
}

fn comes_back(bookie: &Bookie) {
    eventually("the space comes back", || {
        bookie.status().store_bytes < 3_500_000
    });
}

/// H17: the space of deleted ledgers comes back, of small entries and of blobs, although a
/// long-lived ledger was written between them.
#[test]
fn space_of_deleted_ledgers_comes_back() {
    for len in [1_000, 40_000] {
        let directory = tempfile::tempdir().unwrap();
        let (bookie, entries) = written(directory.path(), len, 20);
        delete_all_but_the_first(&bookie);
        comes_back(&bookie);
        // Of blob files the second names go last.
        eventually("no file is left that is only to be removed", || {
            let left = std::fs::read_dir(directory.path().join("ledgers/removed")).unwrap();
            left.count() == 0
        });
        for entry in 0..entries {
            expect(&bookie, 1, entry, len);
        }
        shutdown(&bookie);
    }
}

/// An add now and then keeps nothing: a deletion's turn comes although the bookie is never quiet.
#[test]
fn space_comes_back_although_it_is_never_quiet() {
    for len in [1_000, 40_000] {
        let directory = tempfile::tempdir().unwrap();
        let (bookie, entries) = written(directory.path(), len, 200);
        let bookie = std::sync::Arc::new(bookie);
        let ends = std::sync::Arc::new(AtomicBool::new(false));
        let writer = {
            let (bookie, ends) = (std::sync::Arc::clone(&bookie), std::sync::Arc::clone(&ends));
            aquifer_runtime::task::spawn_thread("writer", move || {
                let mut entry = 0;
                while !ends.load(Ordering::Acquire) {
                    done(ask(&bookie, add_request(9, entry, 10)));
                    entry += 1;
                    block_on(aquifer_runtime::clock::sleep(Duration::from_millis(50)));
                }
            })
            .unwrap()
        };
        delete_all_but_the_first(&bookie);
        let came_back = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            comes_back(&bookie);
        }));
        ends.store(true, Ordering::Release);
        writer.join().unwrap();
        came_back.unwrap();
        for entry in 0..entries {
            expect(&bookie, 1, entry, len);
        }
        shutdown(&bookie);
    }
}

/// A full disk is when space is needed: what deleted ledgers had comes back although the bookie
/// takes nothing, shared files included.
#[test]
fn space_comes_back_on_a_full_disk() {
    for len in [1_000, 40_000] {
        let directory = tempfile::tempdir().unwrap();
        let (bookie, entries) = written(directory.path(), len, 20);
        shutdown(&bookie);
        drop(bookie);
        let config = BookieConfig {
            memtable_bytes: MIB,
            quiet_flush_ms: 20,
            read_only_below_free_bytes: u64::MAX - 1,
            writable_above_free_bytes: u64::MAX,
            ..config(directory.path())
        };
        let bookie = open(&config);
        let refused = ask(&bookie, add_request(9, 0, 10));
        assert!(
            matches!(refused, Err(BookieError::ReadOnly(_))),
            "{refused:?}"
        );
        delete_all_but_the_first(&bookie);
        comes_back(&bookie);
        for entry in 0..entries {
            expect(&bookie, 1, entry, len);
        }
        shutdown(&bookie);
    }
}
