//! Flipped bits, missing files: damage is told from torn writes, and never served silently.

use aquifer_runtime::disk::Disk;
use aquifer_runtime::rng::{Rng, SeededRng};

use super::*;
use crate::journal::segment::FIRST_COMMIT_OFFSET;
use crate::tests::crash::Machine;

const ENTRIES: u64 = 20;
const LEN: usize = 6_000;

/// A stopped machine whose journal holds one commit per entry that RocksDB does not have.
fn written() -> Machine {
    let mut machine = Machine::new();
    let bookie = machine.boot();
    for entry in 0..ENTRIES {
        done(ask(&bookie, add_request(1, entry, LEN)));
    }
    machine.kill(bookie);
    machine
}

fn segment(machine: &Machine) -> std::path::PathBuf {
    machine.config.journal_dir.join("segment-00000001.aqj")
}

/// Every entry is either right or unknown; returns how many are right.
fn served(bookie: &Bookie) -> u64 {
    let mut right = 0;
    for entry in 0..ENTRIES {
        match read_one(bookie, 1, entry) {
            Ok(_) => {
                expect(bookie, 1, entry, LEN);
                right += 1;
            }
            Err(error) => assert_eq!(error, BookieError::Limbo, "entry {entry}"),
        }
    }
    right
}

/// I5, H4: a flipped bit in any commit, the last one included, is a loss and never a torn tail.
#[test]
fn a_flipped_bit_in_the_journal_is_limbo_until_the_loss_is_accepted() {
    let rng = SeededRng::new(3);
    let commit_bytes = 8_192;
    for entry in [0, 1, ENTRIES / 2, ENTRIES - 1] {
        let mut machine = written();
        // Within the head, the record, or the data; padding is not content.
        let within = [0, 5, 20, 60, 100, 48 + rng.below(LEN as u64)];
        let within = within[usize::try_from(rng.below(6)).unwrap()];
        let offset = FIRST_COMMIT_OFFSET + entry * commit_bytes + within;
        machine
            .disk
            .flip_bit(&segment(&machine), offset, 3)
            .unwrap();
        let bookie = machine.boot();
        let loss = bookie.status().limbo.expect("the loss is noticed");
        assert_eq!(
            (loss.first_commit, loss.last_commit),
            (entry + 1, entry + 1)
        );
        assert_eq!(served(&bookie), ENTRIES - 1);
        // Neither an unknown ledger nor an unfenced one is believed in (H6).
        assert!(is_limbo(read_one(&bookie, 77, 0)));
        assert!(is_limbo(ask(&bookie, add_request(1, ENTRIES, 10))));
        assert!(is_limbo(ask(&bookie, add_request(77, 0, 10))));
        let absent = OrderedOperation::RecoveryRead(EntryId(ENTRIES));
        assert!(is_limbo(ask(&bookie, request(1, absent))));
        done(ask(&bookie, recovery_add(1, entry, LEN)));
        expect(&bookie, 1, entry, LEN);
        // Limbo outlives restarts, and ends only on demand.
        machine.kill(bookie);
        let bookie = machine.boot();
        assert!(bookie.status().limbo.is_some());
        assert!(is_limbo(read_one(&bookie, 1, ENTRIES)));
        machine.kill(bookie);
        machine.config.accept_loss = true;
        let bookie = machine.boot();
        let accepted = bookie
            .accepted_loss()
            .expect("the loss is reported")
            .clone();
        assert_eq!(accepted.first_commit, entry + 1);
        assert_eq!(accepted.ledgers.len(), 1);
        assert_eq!(accepted.ledgers[0].ledger, LedgerId(1));
        assert_eq!(bookie.status().limbo, None);
        assert_eq!(read_one(&bookie, 77, 0), Err(BookieError::NoSuchLedger));
        machine.kill(bookie);
        machine.config.accept_loss = false;
        let bookie = machine.boot();
        assert_eq!(bookie.status().limbo, None);
        assert_eq!(bookie.accepted_loss(), None);
        done(ask(&bookie, add_request(78, 0, 10)));
    }
}

#[test]
fn a_truncated_missing_or_headless_segment_is_limbo() {
    type Damage = fn(&Machine);
    let damages: [Damage; 4] = [
        |machine| {
            let file = machine.disk.open(&segment(machine), Default::default());
            file.unwrap()
                .set_len(FIRST_COMMIT_OFFSET + 3 * 8_192)
                .unwrap();
        },
        |machine| machine.disk.remove(&segment(machine)).unwrap(),
        |machine| machine.disk.flip_bit(&segment(machine), 20, 0).unwrap(),
        |machine| {
            let mark = machine.config.journal_dir.join("synced.mark");
            machine.disk.remove(&mark).unwrap();
        },
    ];
    for (number, damage) in damages.iter().enumerate() {
        let machine = written();
        damage(&machine);
        let bookie = machine.boot();
        assert!(bookie.status().limbo.is_some(), "damage {number}");
        served(&bookie);
        assert!(is_limbo(read_one(&bookie, 1, ENTRIES)));
    }
}

/// H5: what an earlier use of a segment left behind never comes back. The journal is filled
/// again after a clean stop, and the power goes.
#[test]
fn stale_commits_of_a_recycled_segment_do_not_replay() {
    let mut machine = Machine::new();
    machine.config.journal_segments_max = 2;
    let mut bookie = machine.boot();
    let mut entry = 0;
    for round in 0..6 {
        for _ in 0..15 {
            let replies: Vec<_> = (0..4)
                .map(|i| start(&bookie, add_request(round + 1, entry + i, 200_000)))
                .collect();
            for reply in &replies {
                done(answer(reply));
            }
            entry += 4;
            flush_all(&bookie);
        }
        done(ask(&bookie, request(round + 1, OrderedOperation::Delete)));
        flush_all(&bookie);
        machine.crash(bookie, &SeededRng::new(round));
        bookie = machine.boot();
        assert_eq!(bookie.status().limbo, None);
        for old in 1..=round + 1 {
            assert_eq!(read_one(&bookie, old, 0), Err(BookieError::Deleted));
        }
    }
}

pub(super) fn files_with(directory: &Path, suffix: &str) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().ends_with(suffix))
        .collect();
    files.sort();
    files
}

pub(super) fn flip(path: &Path, at_part: f64) {
    let mut bytes = std::fs::read(path).unwrap();
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a place somewhere in the file"
    )]
    let at = (bytes.len() as f64 * at_part) as usize;
    bytes[at] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

fn stored(len: usize) -> (tempfile::TempDir, BookieConfig) {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path());
    let bookie = open(&config);
    for entry in 0..ENTRIES {
        done(ask(&bookie, add_request(1, entry, len)));
    }
    shutdown(&bookie);
    drop(bookie);
    (directory, config)
}

/// I5: damage in RocksDB's files is an error for the entries that it touches, for no others, and
/// never an absence.
#[test]
fn flipped_bytes_in_sst_and_blob_files_are_errors_of_single_entries() {
    for (len, suffix) in [(3_900, ".sst"), (6_000, ".blob"), (40_000, ".blob")] {
        let (_directory, config) = stored(len);
        let rocksdb = config.ledger_dir.join("rocksdb");
        let largest = files_with(&rocksdb, suffix)
            .into_iter()
            .max_by_key(|path| path.metadata().unwrap().len())
            .expect("the store has such files");
        flip(&largest, 0.4);
        let bookie = open(&config);
        let mut damaged = 0;
        for entry in 0..ENTRIES {
            match read_one(&bookie, 1, entry) {
                Ok(_) => expect(&bookie, 1, entry, len),
                Err(BookieError::Io(_) | BookieError::Digest(_)) => damaged += 1,
                Err(other) => panic!("{suffix} {entry}: {other:?}"),
            }
        }
        assert!((1..=6).contains(&damaged), "{suffix}: {damaged}");
        // A range ends before the damage instead of hiding it.
        let batch = read(&bookie, range(1, 0, ENTRIES)).unwrap();
        assert!(batch.entries.len() < usize::try_from(ENTRIES).unwrap());
    }
}

#[test]
fn a_store_with_missing_or_damaged_files_does_not_start_and_says_why() {
    type Damage = fn(&Path);
    let damages: [Damage; 4] = [
        |path| {
            let sst = files_with(path, ".sst");
            std::fs::remove_file(sst.last().unwrap()).unwrap();
        },
        |path| std::fs::remove_file(path.join("CURRENT")).unwrap(),
        |path| {
            for file in std::fs::read_dir(path).unwrap() {
                let file = file.unwrap().path();
                if file.to_str().unwrap().contains("MANIFEST") {
                    flip(&file, 0.5);
                }
            }
        },
        |path| std::fs::remove_dir_all(path).unwrap(),
    ];
    for (number, damage) in damages.iter().enumerate() {
        let (_directory, config) = stored(3_900);
        damage(&config.ledger_dir.join("rocksdb"));
        match try_open(&config) {
            Ok(_) => panic!("damage {number} went unnoticed"),
            Err(error) => assert!(
                matches!(error, BookieOpenError::Store { .. }),
                "damage {number}: {error:?}"
            ),
        }
    }
}

/// A RocksDB that is older than the trimmed journal, as a restored backup would be, is noticed.
#[test]
fn a_store_from_an_old_backup_is_limbo() {
    let mut machine = Machine::new();
    machine.config.journal_segments_max = 2;
    let bookie = machine.boot();
    done(ask(&bookie, add_request(1, 0, 10)));
    flush_all(&bookie);
    let backup = machine.config.ledger_dir.join("rocksdb");
    let kept = tempfile::tempdir().unwrap();
    copy_directory(&backup, kept.path());
    for entry in 1..100 {
        done(ask(&bookie, add_request(1, entry, 200_000)));
        flush_all(&bookie);
    }
    machine.kill(bookie);
    let current = machine.config.ledger_dir.join("rocksdb");
    std::fs::remove_dir_all(&current).unwrap();
    copy_directory(kept.path(), &current);
    let bookie = machine.boot();
    assert!(bookie.status().limbo.is_some());
    expect(&bookie, 1, 0, 10);
    assert!(is_limbo(read_one(&bookie, 1, 1)));
}
