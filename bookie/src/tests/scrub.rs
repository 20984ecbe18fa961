//! The scrubber finds what is damaged; repair replaces it through the journal, and nothing else.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::scrub::RepairHook;
use crate::tests::damage::{files_with, flip};
use crate::tests::rot::flip_entry;

/// Entries of ledgers.
type Numbers = &'static [(u64, u64)];

/// What a bookie told of damaged entries, and of hidden ends.
#[derive(Default)]
struct Found(Mutex<BTreeSet<(u64, u64)>>, Mutex<Vec<(u64, u64)>>);

impl RepairHook for Found {
    fn damaged(&self, ledger: LedgerId, entry: EntryId) {
        self.0.lock().insert((ledger.0, entry.0));
    }

    fn end_hidden(&self, ledger: LedgerId, first: EntryId) {
        self.1.lock().push((ledger.0, first.0));
    }
}

fn scrubbing(directory: &Path) -> BookieConfig {
    BookieConfig {
        scrub_bytes_per_second: 1 << 40,
        scrub_pause_ms: 1,
        ..config(directory)
    }
}

fn quiet(directory: &Path) -> BookieConfig {
    BookieConfig {
        scrub_bytes_per_second: 0,
        ..config(directory)
    }
}

fn filled(bookie: &Bookie, ledgers: u64, entries: u64, len: usize) {
    for ledger in 1..=ledgers {
        for entry in 0..entries {
            done(ask(bookie, add_request(ledger, entry, len)));
        }
    }
    flush_all(bookie);
}

#[test]
fn the_scrubber_finds_exactly_what_is_damaged() {
    let directory = tempfile::tempdir().unwrap();
    let bookie = open(&quiet(directory.path()));
    filled(&bookie, 5, 30, 20_000);
    let expected = BTreeSet::from([(1, 0), (3, 17), (3, 18), (5, 29)]);
    for (ledger, entry) in &expected {
        corrupt(&bookie, *ledger, *entry);
    }
    shutdown(&bookie);
    drop(bookie);
    let bookie = open(&scrubbing(directory.path()));
    let found = Arc::new(Found::default());
    bookie.on_damage(found.clone());
    eventually("two passes", || bookie.status().scrub.passes >= 2);
    assert_eq!(*found.0.lock(), expected);
    let scrub = bookie.status().scrub;
    assert!(scrub.damaged >= 4 && scrub.entries >= 146, "{scrub:?}");
    shutdown(&bookie);
}

#[test]
fn damaged_files_are_found_and_what_is_whole_is_not_suspected() {
    for (len, suffix) in [(3_900, ".sst"), (6_000, ".blob"), (40_000, ".blob")] {
        let directory = tempfile::tempdir().unwrap();
        let bookie = open(&quiet(directory.path()));
        filled(&bookie, 2, 20, len);
        shutdown(&bookie);
        drop(bookie);
        let rocksdb = scrubbing(directory.path()).ledger_dir.join("rocksdb");
        let largest = files_with(&rocksdb, suffix)
            .into_iter()
            .max_by_key(|path| path.metadata().unwrap().len())
            .unwrap();
        // Within a ledger: a damaged block at its end hides where that is.
        flip(&largest, 0.3);
        let bookie = open(&scrubbing(directory.path()));
        let found = Arc::new(Found::default());
        bookie.on_damage(found.clone());
        let passes = bookie.status().scrub.passes;
        eventually("passes", || bookie.status().scrub.passes >= passes + 2);
        let found = found.0.lock().clone();
        let mut damaged = BTreeSet::new();
        for ledger in 1..=2 {
            for entry in 0..20 {
                match read_one(&bookie, ledger, entry) {
                    Ok(_) => expect(&bookie, ledger, entry, len),
                    Err(_) => drop(damaged.insert((ledger, entry))),
                }
            }
        }
        assert!(!damaged.is_empty());
        assert!(
            found.is_superset(&damaged),
            "{suffix}: {found:?} {damaged:?}"
        );
        assert!(
            found.len() <= damaged.len() + 1,
            "{suffix}: {found:?} {damaged:?}"
        );
        shutdown(&bookie);
    }
}

/// A damaged block at the end of a ledger hides where that is from the bookie. It is told once, not
/// for each of the thousands of numbers that cannot be looked up; entries of other ledgers are
/// named.
#[test]
fn a_hidden_end_of_a_ledger_is_told_once() {
    // A block of 16 KiB has four entries. The end of the last ledger is that of its file.
    let cases: [(u64, (u64, u64), Numbers, Numbers); 3] = [
        (20, (1, 19), &[], &[(1, 16)]),
        (22, (1, 21), &[(2, 0), (2, 1)], &[(1, 20)]),
        (20, (2, 19), &[(2, 16), (2, 17), (2, 18), (2, 19)], &[]),
    ];
    for (entries, (ledger, entry), damaged, hidden) in cases {
        let directory = tempfile::tempdir().unwrap();
        let bookie = open(&quiet(directory.path()));
        filled(&bookie, 2, entries, 3_900);
        shutdown(&bookie);
        drop(bookie);
        let config = scrubbing(directory.path());
        flip_entry(&config, ".sst", ledger, entry);
        let bookie = open(&config);
        let found = Arc::new(Found::default());
        bookie.on_damage(found.clone());
        eventually("two passes", || bookie.status().scrub.passes >= 2);
        shutdown(&bookie);
        let (told, scrub) = (found.1.lock().clone(), bookie.status().scrub);
        let all = BTreeSet::from_iter(told.iter().copied());
        assert_eq!(
            *found.0.lock(),
            BTreeSet::from_iter(damaged.iter().copied())
        );
        assert_eq!(all, BTreeSet::from_iter(hidden.iter().copied()));
        let passes = scrub.passes + 1;
        assert!(told.len() as u64 <= passes, "{told:?} in {passes} passes");
        let most = (damaged.len() + hidden.len()) as u64 * passes;
        assert!(scrub.damaged <= most, "{scrub:?}");
    }
}

#[test]
fn repair_replaces_a_damaged_entry_through_the_journal_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let bookie = open(&quiet(directory.path()));
    for len in [100, 30_000] {
        let ledger = len as u64;
        for entry in 0..3 {
            done(ask(&bookie, add_request(ledger, entry, len)));
        }
        flush_all(&bookie);
        corrupt(&bookie, ledger, 1);
        assert!(matches!(
            read_one(&bookie, ledger, 1),
            Err(BookieError::Digest(_))
        ));
        // A writer does not overwrite, whatever is there, and repair does not overwrite what is
        // whole.
        let normal = ask(&bookie, add_request(ledger, 1, len));
        assert_eq!(normal, Err(BookieError::Conflict));
        let mut other = add(ledger, 2, len + 1);
        other.recovery = true;
        let other = ask(&bookie, request(ledger, OrderedOperation::Add(other)));
        assert_eq!(other, Err(BookieError::Conflict));
        // Readable at once, and no other bytes for it from then on.
        done(ask(&bookie, recovery_add(ledger, 1, len)));
        expect(&bookie, ledger, 1, len);
        let mut twice = add(ledger, 1, len + 1);
        twice.recovery = true;
        let twice = ask(&bookie, request(ledger, OrderedOperation::Add(twice)));
        assert_eq!(twice, Err(BookieError::Conflict));
        (0..3).for_each(|entry| expect(&bookie, ledger, entry, len));
    }
    shutdown(&bookie);
    drop(bookie);
    let bookie = open(&quiet(directory.path()));
    for len in [100, 30_000] {
        (0..3).for_each(|entry| expect(&bookie, len as u64, entry, len));
    }
}

#[test]
fn a_reader_that_meets_damage_tells_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let bookie = open(&quiet(directory.path()));
    filled(&bookie, 1, 5, 100);
    let found = Arc::new(Found::default());
    bookie.on_damage(found.clone());
    corrupt(&bookie, 1, 3);
    assert_eq!(read(&bookie, range(1, 0, 4)).unwrap().entries.len(), 3);
    assert!(read_one(&bookie, 1, 3).is_err());
    assert_eq!(*found.0.lock(), BTreeSet::from([(1, 3)]));
}

/// A bookie that is restarted often still comes to the end of a pass.
#[test]
fn the_position_survives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut slow = quiet(directory.path());
    let bookie = open(&slow);
    filled(&bookie, 8, 4, 20_000);
    shutdown(&bookie);
    drop(bookie);
    // A step is at most a ledger, and takes a good while of this.
    slow.scrub_bytes_per_second = 400_000;
    slow.scrub_pause_ms = 1;
    let bookie = open(&slow);
    eventually("some ledgers are checked", || {
        bookie.status().scrub.ledger >= Some(LedgerId(3))
    });
    let before = bookie.status().scrub;
    shutdown(&bookie);
    drop(bookie);
    let bookie = open(&slow);
    eventually("it goes on", || bookie.status().scrub.ledger.is_some());
    let after = bookie.status().scrub;
    assert!(
        before.passes > 0 || after.ledger >= before.ledger,
        "{before:?} {after:?}"
    );
    shutdown(&bookie);
}

#[test]
fn a_draining_bookie_takes_repair_and_nothing_new() {
    let directory = tempfile::tempdir().unwrap();
    let bookie = open(&quiet(directory.path()));
    done(ask(&bookie, add_request(1, 0, 10)));
    bookie.set_draining(true);
    let refused = ask(&bookie, add_request(1, 1, 10));
    assert!(
        matches!(refused, Err(BookieError::ReadOnly(_))),
        "{refused:?}"
    );
    done(ask(&bookie, recovery_add(2, 0, 10)));
    done(ask(&bookie, request(1, OrderedOperation::Fence)));
    expect(&bookie, 1, 0, 10);
    bookie.set_draining(false);
    done(ask(&bookie, add_request(3, 0, 10)));
}

#[test]
fn stored_ledgers_are_listed_in_pages_without_the_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let bookie = open(&quiet(directory.path()));
    filled(&bookie, 5, 1, 10);
    done(ask(&bookie, request(3, OrderedOperation::Delete)));
    flush_all(&bookie);
    let mut listed = Vec::new();
    let mut after = None;
    loop {
        let page = block_on(bookie.ledgers(after, 2)).unwrap();
        let Some((last, _)) = page.last() else {
            break;
        };
        after = Some(*last);
        listed.extend(page);
    }
    let expected = [1, 2, 4, 5].map(|n| (LedgerId(n), token(n)));
    assert_eq!(listed, expected);
}
