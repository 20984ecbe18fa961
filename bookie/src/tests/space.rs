//! The space of deleted ledgers.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::store::{Merged, SpaceLimits, ValueFiles};

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

fn blob_files(bookie: &Bookie) -> ValueFiles {
    bookie.core.shared.store.value_files().unwrap()
}

/// Writes four ledgers side by side, with a flush for every eight entries.
fn write_side_by_side(bookie: &Bookie, entries: std::ops::Range<u64>, len: usize) {
    for entry in entries {
        let replies: Vec<_> = (1..=4)
            .map(|ledger| start(bookie, add_request(ledger, entry, len)))
            .collect();
        for reply in &replies {
            done(answer(reply));
        }
        if entry % 2 == 1 {
            flush_all(bookie);
        }
    }
}

/// The number of files goes with the bytes and the size of a file, and not with how often a
/// memtable was flushed, while everything can be read and space comes back.
#[test]
fn small_blob_files_are_merged() {
    const LEN: usize = 8_000;
    let directory = tempfile::tempdir().unwrap();
    let mut config = BookieConfig {
        memtable_bytes: MIB,
        blob_file_bytes: 1 << 20,
        blob_files_max: 4,
        merge_bytes_per_second: 0,
        ..config(directory.path())
    };
    let bookie = open(&config);
    write_side_by_side(&bookie, 0..500, LEN);
    let before = blob_files(&bookie);
    assert!(
        before.count > 2 * config.blob_files_left(before.bytes),
        "{before:?}"
    );
    shutdown(&bookie);
    drop(bookie);

    config.merge_bytes_per_second = 1 << 30;
    config.quiet_flush_ms = 20;
    let bookie = open(&config);
    write_side_by_side(&bookie, 500..700, LEN);
    eventually("there are few files", || {
        let files = blob_files(&bookie);
        let is_all_there = files.bytes > 4 * 700 * 8_000;
        is_all_there && files.count <= config.blob_files_left(files.bytes)
    });
    for ledger in 1..=4 {
        (0..700).for_each(|entry| expect(&bookie, ledger, entry, LEN));
    }
    delete_all_but_the_first(&bookie);
    eventually("the space comes back", || {
        bookie.status().store_bytes < 13_000_000
    });
    // RocksDB knows all that is asked for.
    bookie.core.shared.store.pressure().unwrap();
    shutdown(&bookie);
    drop(bookie);
    let bookie = open(&config);
    (0..700).for_each(|entry| expect(&bookie, 1, entry, LEN));
    shutdown(&bookie);
}

/// H17: merging would be the first to read a value after years. One that is damaged stays where it
/// is, with the files that would move along with it, and the bookie stays writable.
#[test]
fn damage_does_not_stop_a_bookie_that_merges() {
    const LEN: usize = 8_000;
    let directory = tempfile::tempdir().unwrap();
    let config = BookieConfig {
        blob_file_bytes: 1 << 20,
        merge_bytes_per_second: 0,
        scrub_bytes_per_second: 0,
        ..config(directory.path())
    };
    let bookie = open(&config);
    write_side_by_side(&bookie, 0..100, LEN);
    shutdown(&bookie);
    drop(bookie);
    super::rot::flip_entry(&config, ".blob", 2, 60);

    let bookie = open(&config);
    let limits = SpaceLimits {
        is_full: false,
        bytes: u64::MAX,
    };
    let mut looked = 0;
    loop {
        match bookie.core.shared.store.merge(limits).unwrap() {
            Merged::Nothing => break,
            Merged::Checked { .. } => looked += 1,
            other => assert!(looked < 1_000, "it never ends: {other:?}"),
        }
    }
    assert!(looked > 0);
    write_side_by_side(&bookie, 100..102, LEN);
    assert!(bookie.status().damage.is_none());
    for ledger in 1..=4 {
        let whole = (0..102).filter(|entry| (ledger, *entry) != (2, 60));
        whole.for_each(|entry| expect(&bookie, ledger, entry, LEN));
    }
    let damaged = read_one(&bookie, 2, 60);
    assert!(
        matches!(damaged, Err(BookieError::Digest(_))),
        "{damaged:?}"
    );
    shutdown(&bookie);
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
