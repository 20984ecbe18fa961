//! Looks for what is stored: right, and at a bounded price.

use aquifer_model::storage::{Presence, PresenceRange};

use super::*;

const LARGE: usize = 100 * 1024;

fn has(bookie: &Bookie, ledger: u64, first: u64, last: u64) -> BookieResult<Presence> {
    block_on(bookie.has(PresenceRange {
        ledger: LedgerId(ledger),
        token: Some(token(ledger)),
        first: EntryId(first),
        last: EntryId(last),
    }))
}

/// All of a range, by as many looks as that takes: what is there, what one look read at most, and
/// what all of them read.
fn look_through(bookie: &Bookie, ledger: u64, last: u64) -> (Vec<u64>, u64, u64) {
    let (mut all, mut most, mut sum) = (Vec::new(), 0, 0);
    let mut next = 0;
    while next <= last {
        let found = has(bookie, ledger, next, last).unwrap();
        assert!(found.until.0 >= next && found.until.0 <= last);
        all.extend(found.runs.iter().flat_map(|run| run.0.0..=run.1.0));
        (most, sum) = (most.max(found.bytes), sum + found.bytes);
        next = found.until.0 + 1;
    }
    (all, most, sum)
}

#[test]
fn what_is_stored_is_found_wherever_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path());
    let bookie = open(&config);
    let wanted: Vec<u64> = (0..60).filter(|entry| entry % 7 != 3).collect();
    for (ledger, len) in [(1, 100), (2, LARGE)] {
        for entry in &wanted {
            done(ask(&bookie, add_request(ledger, *entry, len)));
        }
    }
    let check = |bookie: &Bookie| {
        for ledger in 1..=2 {
            assert_eq!(
                look_through(bookie, ledger, 80).0,
                wanted,
                "ledger {ledger}"
            );
            let found = has(bookie, ledger, 10, 12).unwrap();
            assert_eq!(found.runs, [(EntryId(11), EntryId(12))]);
            assert_eq!(has(bookie, ledger, 70, 75).unwrap().runs, []);
        }
        assert_eq!(has(bookie, 3, 0, 9).unwrap().runs, []);
        let other = PresenceRange {
            ledger: LedgerId(1),
            token: Some(token(2)),
            first: EntryId(0),
            last: EntryId(9),
        };
        assert_eq!(block_on(bookie.has(other)), Err(BookieError::Token));
        assert!(has(bookie, 1, 5, 4).is_err());
    };
    check(&bookie);
    flush_all(&bookie);
    check(&bookie);
    shutdown(&bookie);
    drop(bookie);
    let bookie = open(&config);
    check(&bookie);
    // What comes after that is found beside it.
    for ledger in 1..=2 {
        done(ask(&bookie, recovery_add(ledger, 3, 200)));
        assert_eq!(
            has(&bookie, ledger, 2, 5).unwrap().runs,
            [(EntryId(2), EntryId(5))]
        );
    }
    done(ask(&bookie, request(1, OrderedOperation::Delete)));
    assert_eq!(has(&bookie, 1, 0, 9), Err(BookieError::Deleted));
}

/// Storage 5: large entries are found by their keys, and what one look reads has a bound.
#[test]
fn large_entries_are_not_read_to_be_found() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path());
    let bookie = open(&config);
    for entry in 0..200 {
        done(ask(&bookie, add_request(1, entry, LARGE)));
    }
    flush_all(&bookie);
    shutdown(&bookie);
    drop(bookie);
    let bookie = open(&config);
    let (found, most, sum) = look_through(&bookie, 1, 199);
    assert_eq!(found, (0..200).collect::<Vec<u64>>());
    let stored = 200 * LARGE as u64;
    assert!(most <= (4 << 20) + LARGE as u64, "{most} bytes in one look");
    assert!(sum < stored / 4, "{sum} bytes of {stored}");
}

/// What is in the tree and what is in blob files is read and found, whatever the bound between them
/// was when it was stored.
#[test]
fn entries_are_found_whatever_bound_they_were_stored_by() {
    for (before, after) in [(16 * 1024, 4 * 1024), (4 * 1024, 16 * 1024)] {
        let directory = tempfile::tempdir().unwrap();
        let mut config = config(directory.path());
        config.blob_bytes_min = before;
        let mut first = 0;
        for bound in [before, after] {
            config.blob_bytes_min = bound;
            let bookie = open(&config);
            for entry in first..first + 40 {
                done(ask(&bookie, add_request(1, entry, 6_000)));
            }
            first += 40;
            flush_all(&bookie);
            shutdown(&bookie);
        }
        let bookie = open(&config);
        (0..80).for_each(|entry| expect(&bookie, 1, entry, 6_000));
        let mut read_to = 0;
        while read_to < 80 {
            let batch = read(&bookie, range(1, read_to, 79)).unwrap();
            assert_eq!(batch.entries[0].entry, EntryId(read_to));
            read_to += batch.entries.len() as u64;
        }
        assert_eq!(read_one(&bookie, 1, 80), Err(BookieError::NoSuchEntry));
        let (found, _, _) = look_through(&bookie, 1, 99);
        assert_eq!(found, (0..80).collect::<Vec<u64>>());
        shutdown(&bookie);
    }
}

/// A peer that asks for the first byte of each of 65,536 entries gets what a bounded read finds.
#[test]
fn a_read_of_beginnings_reads_no_more_than_others() {
    let directory = tempfile::tempdir().unwrap();
    let bookie = open(&config(directory.path()));
    for entry in 0..20 {
        done(ask(&bookie, add_request(1, entry, MIB)));
    }
    flush_all(&bookie);
    let greedy = ReadRange {
        prefix_bytes: Some(1),
        entries_max: 65_536,
        bytes_max: MIB,
        ..range(1, 0, 65_535)
    };
    let batch = read(&bookie, greedy).unwrap();
    assert!(
        (1..=5).contains(&batch.entries.len()),
        "{}",
        batch.entries.len()
    );
    assert!(batch.entries.iter().all(|entry| entry.data.len() == 1));
}
