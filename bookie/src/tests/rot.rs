//! Bytes that rot in RocksDB's files: they cost the entries that they belong to, and the bookie
//! goes on with everything else, repair included.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::scrub::RepairHook;
use crate::tests::damage::files_with;

/// What a bookie told of damage.
#[derive(Default)]
struct Told(Mutex<BTreeSet<(u64, u64)>>);

impl RepairHook for Told {
    fn damaged(&self, ledger: LedgerId, entry: EntryId) {
        self.0.lock().insert((ledger.0, entry.0));
    }

    fn end_hidden(&self, ledger: LedgerId, first: EntryId) {
        panic!("nothing hides the end of {ledger} from {first} on");
    }
}

pub(crate) fn quiet(directory: &Path) -> BookieConfig {
    BookieConfig {
        scrub_bytes_per_second: 0,
        ..config(directory)
    }
}

pub(crate) fn stop(bookie: Bookie) {
    shutdown(&bookie);
    drop(bookie);
}

/// Flips a bit in the file of RocksDB that holds these bytes, at their end.
pub(super) fn flip_bytes(config: &BookieConfig, suffix: &str, bytes: &[u8]) {
    for path in files_with(&config.ledger_dir.join("rocksdb"), suffix) {
        let mut stored = std::fs::read(&path).unwrap();
        let found = stored.windows(bytes.len()).position(|part| part == bytes);
        if let Some(at) = found {
            stored[at + bytes.len() - 1] ^= 0x10;
            std::fs::write(&path, stored).unwrap();
            return;
        }
    }
    panic!("no {suffix} file has these bytes");
}

pub(crate) fn flip_entry(config: &BookieConfig, suffix: &str, ledger: u64, entry: u64) {
    flip_bytes(config, suffix, &data(ledger, entry, 64).head);
}

fn recovery_added(bookie: &Bookie, ledger: u64, entry: u64, len: usize) {
    done(ask(bookie, recovery_add(ledger, entry, len)));
    expect(bookie, ledger, entry, len);
}

/// I5: what is stored last is an entry as any other. A ledger whose last one is damaged is read,
/// fenced, repaired and deleted, and the entry that is told of is the damaged one.
#[test]
fn a_damaged_last_entry_costs_nothing_but_itself() {
    // A block of 16 KiB holds four of the smaller ones.
    for (len, suffix, spared) in [
        (3_900, ".sst", 16),
        (6_000, ".blob", 19),
        (40_000, ".blob", 19),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let config = quiet(directory.path());
        let bookie = open(&config);
        for entry in 0..20 {
            done(ask(&bookie, add_request(1, entry, len)));
        }
        stop(bookie);
        flip_entry(&config, suffix, 1, 19);

        let bookie = open(&config);
        let told = Arc::new(Told::default());
        bookie.on_damage(told.clone());
        (0..spared).for_each(|entry| expect(&bookie, 1, entry, len));
        assert_eq!(*told.0.lock(), BTreeSet::new());
        assert!(matches!(
            read_one(&bookie, 1, 19),
            Err(BookieError::Digest(_))
        ));
        assert_eq!(*told.0.lock(), BTreeSet::from([(1, 19)]));
        assert_eq!(read_one(&bookie, 1, 20), Err(BookieError::NoSuchEntry));

        done(ask(&bookie, request(1, OrderedOperation::Fence)));
        let refused = ask(&bookie, add_request(1, 20, len));
        assert_eq!(refused, Err(BookieError::Fenced));
        for entry in spared..20 {
            recovery_added(&bookie, 1, entry, len);
        }
        // In RocksDB too, where the damaged block still is.
        flush_all(&bookie);
        (0..20).for_each(|entry| expect(&bookie, 1, entry, len));
        let mut first = 0;
        while first < 20 {
            let batch = read(&bookie, range(1, first, 19)).unwrap();
            first += batch.entries.len() as u64;
        }
        done(ask(&bookie, request(1, OrderedOperation::Delete)));
        assert_eq!(read_one(&bookie, 1, 0), Err(BookieError::Deleted));
        stop(bookie);
    }
}

/// I2, I5: a recovery is told what damage proves. An entry that is damaged was stored, and those
/// behind the last are absent; but where a damaged block has the end of a ledger and the beginning
/// of the next, nothing tells.
#[test]
fn a_recovery_is_told_what_damage_proves() {
    // A block of 16 KiB has four of the smaller entries. The end of the last ledger is that of its
    // file.
    for (len, suffix, ledger, is_hidden) in [
        (3_900, ".sst", 1, true),
        (3_900, ".sst", 2, false),
        (40_000, ".blob", 1, false),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let config = quiet(directory.path());
        let bookie = open(&config);
        for (ledger, entry) in (1..=2).flat_map(|ledger| (0..20).map(move |e| (ledger, e))) {
            done(ask(&bookie, add_request(ledger, entry, len)));
        }
        stop(bookie);
        flip_entry(&config, suffix, ledger, 19);
        let bookie = open(&config);
        let read = |entry| {
            let read = OrderedOperation::RecoveryRead(EntryId(entry));
            ask(&bookie, request(ledger, read))
        };
        assert!(matches!(read(15), Ok(OrderedReply::Entry(_))));
        for entry in [19, 20, 5_000] {
            let answer = read(entry);
            match answer {
                Err(BookieError::EndHidden(_)) => assert!(is_hidden, "{entry}"),
                Err(BookieError::Digest(_)) => assert!(!is_hidden && entry == 19, "{entry}"),
                Err(BookieError::NoSuchEntry) => assert!(!is_hidden && entry > 19, "{entry}"),
                other => panic!("{ledger}:{entry}: {other:?}"),
            }
        }
        // Others are told what they can use: it is not what was stored.
        assert!(matches!(
            read_one(&bookie, ledger, 19),
            Err(BookieError::Digest(_))
        ));
        stop(bookie);
    }
}

/// A ledger whose end cannot be read takes further adds, and none that contradicts what is there.
#[test]
fn a_ledger_whose_end_is_damaged_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let config = quiet(directory.path());
    let bookie = open(&config);
    for entry in 0..3 {
        done(ask(&bookie, add_request(1, entry, 40_000)));
    }
    stop(bookie);
    flip_entry(&config, ".blob", 1, 2);
    let bookie = open(&config);
    done(ask(&bookie, add_request(1, 3, 40_000)));
    done(ask(&bookie, add_request(1, 1, 40_000)));
    for entry in [1, 2, 3] {
        let other = ask(&bookie, add_request(1, entry, 41_000));
        assert_eq!(other, Err(BookieError::Conflict), "{entry}");
    }
    for entry in [0, 1, 3] {
        expect(&bookie, 1, entry, 40_000);
    }
}

/// I4, I5: the damaged record of a ledger may have said that it is fenced. What is there is served,
/// nothing is said to be absent, and the next change writes a record that is fenced.
#[test]
fn a_damaged_ledger_record_is_limbo_of_its_ledger_only() {
    let directory = tempfile::tempdir().unwrap();
    let config = quiet(directory.path());
    let bookie = open(&config);
    for ledger in 1..=4 {
        done(ask(&bookie, add_request(ledger, 0, 100)));
    }
    done(ask(&bookie, request(1, OrderedOperation::Fence)));
    flush_all(&bookie);
    for ledger in 11..=12 {
        done(ask(&bookie, add_request(ledger, 0, 100)));
    }
    stop(bookie);
    flip_bytes(&config, ".sst", &token(3).0);

    let bookie = open(&config);
    for ledger in (1..=4).chain(11..=12) {
        expect(&bookie, ledger, 0, 100);
    }
    assert!(is_limbo(read_one(&bookie, 1, 1)));
    assert!(is_limbo(ask(&bookie, add_request(1, 1, 100))));
    assert_eq!(read_one(&bookie, 11, 1), Err(BookieError::NoSuchEntry));
    done(ask(&bookie, add_request(11, 1, 100)));
    // What it lists is what it can read.
    let listed = block_on(bookie.ledgers(None, 100)).unwrap();
    let listed: Vec<u64> = listed.iter().map(|(ledger, _)| ledger.0).collect();
    assert_eq!(listed, [11, 12]);
    let page = block_on(bookie.ledgers(None, 1)).unwrap();
    assert_eq!(page.len(), 1);

    recovery_added(&bookie, 2, 1, 100);
    let refused = ask(&bookie, add_request(2, 2, 100));
    assert_eq!(refused, Err(BookieError::Fenced));
    done(ask(&bookie, request(1, OrderedOperation::Fence)));
    assert_eq!(read_one(&bookie, 1, 1), Err(BookieError::NoSuchEntry));
    done(ask(&bookie, request(4, OrderedOperation::Delete)));
    stop(bookie);
    let bookie = open(&config);
    assert_eq!(read_one(&bookie, 4, 0), Err(BookieError::Deleted));
    for ledger in [1, 2] {
        let refused = ask(&bookie, add_request(ledger, 5, 100));
        assert_eq!(refused, Err(BookieError::Fenced));
    }
}

/// The journal is replayed although the record of its ledger cannot be read.
#[test]
fn the_journal_of_a_ledger_without_a_record_is_replayed() {
    let mut machine = super::crash::Machine::new();
    let bookie = machine.boot();
    done(ask(&bookie, add_request(1, 0, 100)));
    flush_all(&bookie);
    done(ask(&bookie, add_request(1, 1, 100)));
    machine.kill(bookie);
    flip_bytes(&machine.config, ".sst", &token(1).0);
    let bookie = machine.boot();
    (0..2).for_each(|entry| expect(&bookie, 1, entry, 100));
    let refused = ask(&bookie, add_request(1, 2, 100));
    assert_eq!(refused, Err(BookieError::Fenced));
}

/// A place of the disk that cannot be read, here a whole file, does not hold the scrubber up, is
/// told of, and can be rewritten.
#[test]
fn what_cannot_be_read_is_damage_that_the_scrubber_passes_and_repair_replaces() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = quiet(directory.path());
    let bookie = open(&config);
    for entry in 0..3 {
        done(ask(&bookie, add_request(1, entry, 40_000)));
    }
    flush_all(&bookie);
    for entry in 3..6 {
        done(ask(&bookie, add_request(1, entry, 40_000)));
    }
    done(ask(&bookie, add_request(2, 0, 40_000)));
    stop(bookie);
    let blobs = files_with(&config.ledger_dir.join("rocksdb"), ".blob");
    std::fs::remove_file(&blobs[0]).unwrap();

    config.scrub_bytes_per_second = 1 << 40;
    config.scrub_pause_ms = 1;
    let bookie = open(&config);
    let told = Arc::new(Told::default());
    bookie.on_damage(told.clone());
    let passes = || bookie.status().scrub.passes;
    eventually("two passes", || passes() >= 2);
    let lost = BTreeSet::from([(1, 0), (1, 1), (1, 2)]);
    assert_eq!(*told.0.lock(), lost);
    for (ledger, entry) in lost {
        recovery_added(&bookie, ledger, entry, 40_000);
    }
    flush_all(&bookie);
    // A pass may have begun before the repair.
    let before = passes();
    eventually("passes after the repair", || passes() >= before + 2);
    let damaged = bookie.status().scrub.damaged;
    let before = passes();
    eventually("another pass", || passes() > before);
    assert_eq!(bookie.status().scrub.damaged, damaged);
    (0..6).for_each(|entry| expect(&bookie, 1, entry, 40_000));
    expect(&bookie, 2, 0, 40_000);
    stop(bookie);
}
