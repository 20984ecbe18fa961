//! Damaged files of RocksDB: what compactions cannot read, what cannot be opened, what is missing.

use std::path::PathBuf;

use super::*;
use crate::BookieMode;
use crate::tests::damage::files_with;
use crate::tests::rot::{flip_bytes, flip_entry, quiet, stop};

const LEN: usize = 3_900;

fn rocksdb(config: &BookieConfig) -> PathBuf {
    config.ledger_dir.join("rocksdb")
}

/// One flush with entries of two ledgers, so that files overlap and a compaction must merge them.
fn flushed(bookie: &Bookie, entries: std::ops::Range<u64>) {
    for entry in entries {
        for ledger in [1, 2] {
            done(ask(bookie, add_request(ledger, entry, LEN)));
        }
    }
    flush_all(bookie);
}

fn is_read_only(bookie: &Bookie) -> bool {
    matches!(bookie.status().mode, BookieMode::ReadOnly(_))
}

/// Table files of a family that no compaction has taken.
fn flushed_files(bookie: &Bookie, family: &str) -> usize {
    let store = rocks(&*bookie.core.shared.store);
    store.with(|db| db.flushed_files(family)).unwrap()
}

/// Waits until compactions have left fewer files than they begin with.
fn compacted(bookie: &Bookie) {
    for family in ["ledgers", "entries"] {
        eventually("flushed files are compacted", || {
            flushed_files(bookie, family) < 4
        });
    }
}

/// Writes until a compaction has met the damage.
pub(crate) fn meet(bookie: &Bookie) {
    let next = std::cell::Cell::new(15);
    eventually("a compaction meets it", || {
        // Another file each time, until there are enough for a compaction.
        let entry = next.replace(next.get() + 1);
        done(ask(bookie, request(100 + entry, OrderedOperation::Fence)));
        for ledger in [1, 2] {
            // Refused once it is read-only.
            let _ = ask(bookie, add_request(ledger, entry, LEN));
        }
        checkpoint(bookie);
        bookie.status().damage.is_some()
    });
}

/// H17: a damaged block that a compaction meets makes the bookie read-only once and for good, with
/// everything else served, until a start sets the file aside; what can be read of it is kept.
#[test]
fn a_block_that_stops_compactions_is_read_only_until_it_is_set_aside() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = quiet(directory.path());
    let bookie = open(&config);
    flushed(&bookie, 0..10);
    flushed(&bookie, 10..15);
    stop(bookie);
    flip_entry(&config, ".sst", 1, 1);

    let bookie = open(&config);
    meet(&bookie);
    let damage = bookie.status().damage.unwrap();
    assert_eq!(damage.files.len(), 1);
    assert!(damage.touches(LedgerId(1)) && damage.touches(LedgerId(2)));
    assert!(damage.files[0].name.ends_with(".sst"), "{damage}");
    // Nothing that succeeds makes it writable again.
    for round in 0..20 {
        let refused = ask(&bookie, add_request(1, 10_000, LEN));
        assert!(
            matches!(refused, Err(BookieError::ReadOnly(_))),
            "{refused:?}"
        );
        done(ask(&bookie, request(200 + round, OrderedOperation::Fence)));
        flush_all(&bookie);
        assert!(is_read_only(&bookie));
    }
    // No compaction meets it again: each round has left a file.
    let held_back = flushed_files(&bookie, "ledgers");
    assert!(held_back >= 20, "{held_back}");
    (4..15).for_each(|entry| expect(&bookie, 1, entry, LEN));
    (0..15).for_each(|entry| expect(&bookie, 2, entry, LEN));
    done(ask(&bookie, recovery_add(1, 0, LEN)));
    flush_all(&bookie);
    expect(&bookie, 1, 0, LEN);
    assert!(read_one(&bookie, 1, 1).is_err());
    let unreadable = block_on(bookie.unreadable(LedgerId(1))).unwrap();
    assert_eq!(unreadable, [(EntryId(1), EntryId(3))]);
    stop(bookie);

    let bookie = open(&config);
    assert!(is_read_only(&bookie));
    assert_eq!(bookie.status().damage, Some(damage));
    assert_eq!(bookie.set_aside(), None);
    stop(bookie);

    config.accept_loss = true;
    let bookie = open(&config);
    config.accept_loss = false;
    let aside = bookie.set_aside().expect("the file is set aside").clone();
    assert_eq!(aside.lost.len(), 1, "{aside:?}");
    let lost = &aside.lost[0];
    let range = (lost.ledger, lost.first, lost.last);
    assert_eq!(range, (LedgerId(1), EntryId(1), EntryId(3)));
    assert_eq!(files_with(&aside.directory, ".sst").len(), 1);
    let status = bookie.status();
    assert_eq!((status.mode, status.damage), (BookieMode::Writable, None));
    for round in 0..2 {
        // Of what was held back, and then of what is written.
        compacted(&bookie);
        expect(&bookie, 1, 0, LEN);
        assert_eq!(read_one(&bookie, 1, 1), Err(BookieError::NoSuchEntry));
        (4..15).for_each(|entry| expect(&bookie, 1, entry, LEN));
        (0..15).for_each(|entry| expect(&bookie, 2, entry, LEN));
        // Compactions work again.
        for entry in 0..6 {
            flushed(
                &bookie,
                1_000 + round * 10 + entry..1_001 + round * 10 + entry,
            );
        }
        assert_eq!(bookie.status().mode, BookieMode::Writable);
    }
    compacted(&bookie);
    stop(bookie);
    let bookie = open(&config);
    assert_eq!(bookie.status().mode, BookieMode::Writable);
    assert_eq!(bookie.set_aside(), None);
    expect(&bookie, 1, 1_015, LEN);
}

/// A file that cannot be opened hides what is whole in others, so it is set aside at once: what is
/// whole is served, nothing is said to be absent, and accepting the loss goes on.
#[test]
fn a_file_that_cannot_be_opened_does_not_stop_the_start() {
    for family in ["default", "ledgers", "entries"] {
        let directory = tempfile::tempdir().unwrap();
        let mut config = quiet(directory.path());
        let bookie = open(&config);
        flushed(&bookie, 0..4);
        flushed(&bookie, 4..8);
        let store = rocks(&*bookie.core.shared.store);
        let newest = store.with(|db| db.newest_file(family)).unwrap();
        stop(bookie);
        let path = rocksdb(&config).join(newest);
        flip_in(&path, b"rocksdb.");

        let bookie = open(&config);
        let limbo = bookie.status().limbo.expect("it may have lost anything");
        assert!(limbo.reason.contains(".sst"), "{}", limbo.reason);
        let whole = if family == "entries" { 4 } else { 8 };
        for ledger in [1, 2] {
            (0..whole).for_each(|entry| expect(&bookie, ledger, entry, LEN));
            (whole..9).for_each(|entry| assert!(is_limbo(read_one(&bookie, ledger, entry))));
        }
        // A record that was lost may have been a fence.
        let refused = ask(&bookie, add_request(1, 8, LEN));
        let is_refused = matches!(refused, Err(BookieError::Limbo | BookieError::Fenced));
        assert!(is_refused, "{family}: {refused:?}");
        stop(bookie);

        config.accept_loss = true;
        let bookie = open(&config);
        let status = bookie.status();
        assert_eq!((status.mode, status.limbo), (BookieMode::Writable, None));
        assert!(bookie.accepted_loss().is_some());
        for ledger in [1, 2] {
            (0..whole).for_each(|entry| expect(&bookie, ledger, entry, LEN));
            let behind = read_one(&bookie, ledger, 8);
            assert_eq!(behind, Err(BookieError::NoSuchEntry), "{family}");
            done(ask(&bookie, request(ledger, OrderedOperation::Fence)));
        }
        done(ask(&bookie, add_request(3, 0, LEN)));
        stop(bookie);
    }
}

/// A file that is missing may be found again; an operator that says that it will not goes on
/// without it.
#[test]
fn a_missing_file_is_gone_on_without_only_on_demand() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = quiet(directory.path());
    let bookie = open(&config);
    flushed(&bookie, 0..4);
    flushed(&bookie, 4..8);
    let newest = rocks(&*bookie.core.shared.store).with(|db| db.newest_file("entries"));
    let newest = rocksdb(&config).join(newest.unwrap());
    stop(bookie);
    let moved = newest.with_extension("away");
    std::fs::rename(&newest, &moved).unwrap();
    let refused = try_open(&config);
    assert!(matches!(refused, Err(BookieOpenError::Store { .. })));
    drop(refused);
    std::fs::rename(&moved, &newest).unwrap();
    let bookie = open(&config);
    expect(&bookie, 1, 7, LEN);
    stop(bookie);
    std::fs::rename(&newest, &moved).unwrap();
    config.accept_loss = true;
    let bookie = open(&config);
    (0..4).for_each(|entry| expect(&bookie, 1, entry, LEN));
    assert_eq!(bookie.status().mode, BookieMode::Writable);
    assert_eq!(read_one(&bookie, 1, 7), Err(BookieError::NoSuchEntry));
    done(ask(&bookie, add_request(1, 7, LEN)));
}

/// Flips a bit behind the last place of a file that has these bytes.
fn flip_in(path: &Path, bytes: &[u8]) {
    let mut stored = std::fs::read(path).unwrap();
    let found = stored.windows(bytes.len()).rposition(|part| part == bytes);
    let at = found.expect("the file has these bytes");
    stored[at] ^= 0x10;
    std::fs::write(path, stored).unwrap();
}

/// A set-aside that was cut short goes on at the next start.
#[test]
fn a_start_goes_on_with_what_another_began() {
    let directory = tempfile::tempdir().unwrap();
    let config = quiet(directory.path());
    let bookie = open(&config);
    flushed(&bookie, 0..4);
    let token_bytes = token(2).0;
    let newest = rocks(&*bookie.core.shared.store).with(|db| db.newest_file("ledgers"));
    let newest = newest.unwrap();
    stop(bookie);
    flip_bytes(&config, ".sst", &token_bytes);
    let report = crate::DamageReport {
        files: vec![crate::DamagedFile {
            name: newest,
            first: LedgerId(1),
            last: LedgerId(2),
            what: "for a test".to_owned(),
        }],
    };
    crate::store::open::set_aside::begin(&config, &report).unwrap();
    let bookie = open(&config);
    assert!(bookie.set_aside().is_some());
    for ledger in [1, 2] {
        (0..4).for_each(|entry| expect(&bookie, ledger, entry, LEN));
        assert_eq!(read_one(&bookie, ledger, 4), Err(BookieError::NoSuchEntry));
        let refused = ask(&bookie, add_request(ledger, 4, LEN));
        assert_eq!(refused, Err(BookieError::Fenced));
    }
    stop(bookie);
    let bookie = open(&config);
    assert_eq!(bookie.set_aside(), None);
    expect(&bookie, 1, 0, LEN);
}
