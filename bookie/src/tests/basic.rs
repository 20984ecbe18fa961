//! Adds, reads, fences, deletions, restarts on a healthy disk.

use super::*;

#[test]
fn entries_are_readable_at_once_and_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path());
    let bookie = open(&config);
    let id = bookie.id();
    let replies: Vec<_> = (0..100)
        .flat_map(|entry| [(1, entry), (2, entry)])
        .map(|(ledger, entry)| start(&bookie, add_request(ledger, entry, 1_000)))
        .collect();
    for reply in &replies {
        done(answer(reply));
    }
    expect(&bookie, 1, 99, 1_000);
    shutdown(&bookie);
    assert!(matches!(
        ask(&bookie, add_request(1, 100, 10)),
        Err(BookieError::ShuttingDown)
    ));
    drop(bookie);
    let bookie = open(&config);
    assert_eq!(bookie.id(), id);
    let batch = read(&bookie, range(1, 10, 60)).unwrap();
    assert_eq!(batch.entries.len(), 51);
    // What its entries carry: nothing else is looked at for it.
    assert_eq!(batch.last_add_confirmed, Some(EntryId(59)));
    for entry in 0..100 {
        expect(&bookie, 2, entry, 1_000);
    }
    let status = bookie.status();
    assert_eq!(status.flushed_commit, status.synced_commit);
}

#[test]
fn negatives_name_what_is_absent() {
    let directory = tempfile::tempdir().unwrap();
    let bookie = open(&config(directory.path()));
    assert_eq!(read_one(&bookie, 5, 0), Err(BookieError::NoSuchLedger));
    done(ask(&bookie, add_request(5, 0, 10)));
    assert_eq!(read_one(&bookie, 5, 1), Err(BookieError::NoSuchEntry));
    // A gap ends a range.
    done(ask(&bookie, add_request(5, 2, 10)));
    assert_eq!(read(&bookie, range(5, 0, 9)).unwrap().entries.len(), 1);
    assert_eq!(read(&bookie, range(5, 2, 9)).unwrap().entries.len(), 1);
}

#[test]
fn reads_keep_to_their_bounds_and_always_return_one_entry() {
    // Of those in the tree, and of those in blob files.
    reads_keep_to_their_bounds(1_000);
    reads_keep_to_their_bounds(10_000);
}

fn reads_keep_to_their_bounds(len: usize) {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path());
    let bookie = open(&config);
    for entry in 0..20 {
        done(ask(&bookie, add_request(1, entry, len)));
    }
    for round in 0..2 {
        let bounded = |bytes_max, entries_max| {
            let range = ReadRange {
                bytes_max,
                entries_max,
                ..range(1, 0, 19)
            };
            read(&bookie, range).unwrap().entries.len()
        };
        assert_eq!(bounded(1, 100), 1, "round {round}");
        assert_eq!(bounded(len * 7 / 2, 100), 3);
        assert_eq!(bounded(MIB, 7), 7);
        let prefix = ReadRange {
            prefix_bytes: Some(5),
            ..range(1, 3, 8)
        };
        let heads = read(&bookie, prefix).unwrap().entries;
        assert_eq!(heads.len(), 6);
        assert!(heads.iter().all(|entry| &entry.data[..] == b"head "));
        eventually("applied", || {
            let status = bookie.status();
            status.applied_commit == status.synced_commit
        });
    }
}

/// I4, H3: adds after a fence are refused, adds before it are visible to the recovery read.
#[test]
fn a_fence_stops_the_writer_and_recovery_sees_what_was_admitted_before() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path());
    let bookie = open(&config);
    for ledger in 0..50 {
        // The answer to the first add shows that the ledger is loaded, so that the next requests
        // race with the journal thread.
        done(ask(&bookie, add_request(ledger, 0, 100)));
        let adds: Vec<_> = (1..5)
            .map(|entry| start(&bookie, add_request(ledger, entry, 100)))
            .collect();
        let recovery = OrderedOperation::RecoveryRead(EntryId(4));
        let seen = start(&bookie, request(ledger, recovery));
        let late = start(&bookie, add_request(ledger, 5, 100));
        let OrderedReply::Entry(entry) = answer(&seen).unwrap() else {
            panic!("expected an entry");
        };
        assert!(entry.is_intact(LedgerId(ledger)));
        assert_eq!(answer(&late), Err(BookieError::Fenced));
        for add in &adds {
            done(answer(add));
        }
        let absent = OrderedOperation::RecoveryRead(EntryId(5));
        assert_eq!(
            ask(&bookie, request(ledger, absent)),
            Err(BookieError::NoSuchEntry)
        );
        done(ask(&bookie, recovery_add(ledger, 5, 100)));
        expect(&bookie, ledger, 5, 100);
    }
    // A fence of a ledger that was never here holds too, and survives.
    done(ask(&bookie, request(99, OrderedOperation::Fence)));
    drop(bookie);
    let bookie = open(&config);
    for ledger in [0, 49, 99] {
        assert_eq!(
            ask(&bookie, add_request(ledger, 6, 100)),
            Err(BookieError::Fenced)
        );
    }
}

/// H14: the token and the bytes of an entry are kept for ever.
#[test]
fn another_token_or_other_bytes_are_refused_and_repeats_succeed() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path());
    let mut bookie = open(&config);
    done(ask(&bookie, add_request(1, 0, 500)));
    done(ask(&bookie, add_request(1, 1, 500)));
    for round in 0..3 {
        done(ask(&bookie, add_request(1, 0, 500)));
        assert_eq!(
            ask(&bookie, add_request(1, 0, 501)),
            Err(BookieError::Conflict),
            "round {round}"
        );
        let mut foreign = add_request(1, 2, 500);
        foreign.token = token(2);
        assert_eq!(ask(&bookie, foreign), Err(BookieError::Token));
        let mut foreign = request(1, OrderedOperation::Fence);
        foreign.token = token(2);
        assert_eq!(ask(&bookie, foreign), Err(BookieError::Token));
        match round {
            0 => eventually("applied", || bookie.status().applied_commit >= 2),
            _ => {
                shutdown(&bookie);
                drop(bookie);
                bookie = open(&config);
            }
        }
    }
    expect(&bookie, 1, 0, 500);
}

#[test]
fn damaged_oversized_and_senseless_adds_are_refused_at_the_door() {
    let directory = tempfile::tempdir().unwrap();
    let bookie = open(&config(directory.path()));
    let mut damaged = add(1, 0, 100);
    damaged.digest ^= 1;
    let refused = ask(&bookie, request(1, OrderedOperation::Add(damaged)));
    assert!(
        matches!(refused, Err(BookieError::Digest(_))),
        "{refused:?}"
    );
    let refused = ask(&bookie, add_request(1, 0, 6 * MIB));
    assert!(
        matches!(refused, Err(BookieError::Invalid(_))),
        "{refused:?}"
    );
    let refused = ask(&bookie, add_request(1 << 53, 0, 10));
    assert!(
        matches!(refused, Err(BookieError::Invalid(_))),
        "{refused:?}"
    );
    assert_eq!(read_one(&bookie, 1, 0), Err(BookieError::NoSuchLedger));
    // The largest entry fits.
    let largest = aquifer_model::limits::ENTRY_BYTES_MAX - 64;
    done(ask(&bookie, add_request(1, 0, largest)));
    expect(&bookie, 1, 0, largest);
}

/// H15: a deletion is durable before it is acknowledged, and nothing brings the ledger back.
#[test]
fn a_deleted_ledger_stays_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path());
    let mut bookie = open(&config);
    for entry in 0..10 {
        done(ask(&bookie, add_request(1, entry, 2_000)));
        done(ask(&bookie, add_request(2, entry, 2_000)));
    }
    done(ask(&bookie, request(1, OrderedOperation::Delete)));
    for _ in 0..2 {
        assert_eq!(read_one(&bookie, 1, 3), Err(BookieError::Deleted));
        assert_eq!(
            ask(&bookie, add_request(1, 10, 10)),
            Err(BookieError::Deleted)
        );
        let fence = request(1, OrderedOperation::Fence);
        assert_eq!(ask(&bookie, fence), Err(BookieError::Deleted));
        done(ask(&bookie, request(1, OrderedOperation::Delete)));
        expect(&bookie, 2, 9, 2_000);
        drop(bookie);
        bookie = open(&config);
    }
}

/// What a process left half removed goes although nothing writes to the next one.
#[test]
fn files_that_were_left_half_removed_go() {
    let directory = tempfile::tempdir().unwrap();
    let config = BookieConfig {
        quiet_flush_ms: 20,
        ..config(directory.path())
    };
    shutdown(&open(&config));
    let left = config.ledger_dir.join("removed/000001.blob");
    std::fs::create_dir_all(left.parent().unwrap()).unwrap();
    std::fs::write(&left, [0; 4096]).unwrap();
    let bookie = open(&config);
    eventually("it goes", || !left.exists());
    shutdown(&bookie);
}

#[test]
fn explicit_lac_is_remembered() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path());
    let bookie = open(&config);
    done(ask(&bookie, add_request(1, 0, 10)));
    let write = OrderedOperation::WriteLac(EntryId(7));
    assert_eq!(done(ask(&bookie, request(1, write))), Some(EntryId(7)));
    let lower = OrderedOperation::WriteLac(EntryId(3));
    assert_eq!(done(ask(&bookie, request(1, lower))), Some(EntryId(7)));
    drop(bookie);
    let bookie = open(&config);
    let batch = read(&bookie, range(1, 0, 0)).unwrap();
    assert_eq!(batch.last_add_confirmed, Some(EntryId(7)));
    let fence = ask(&bookie, request(1, OrderedOperation::Fence));
    assert_eq!(done(fence), Some(EntryId(7)));
}

#[test]
fn two_bookies_on_one_directory_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path());
    let bookie = open(&config);
    let error = try_open(&config).map(drop).unwrap_err();
    assert!(matches!(error, BookieOpenError::Locked { .. }), "{error}");
    drop(bookie);
    open(&config);
}

/// I13: the table of ledgers forgets idle ones and loads them again.
#[test]
fn more_ledgers_than_memory_keeps() {
    let directory = tempfile::tempdir().unwrap();
    let config = BookieConfig {
        ledgers_cached_max: 16,
        ..config(directory.path())
    };
    let bookie = open(&config);
    for entry in 0..3 {
        for ledger in 0..200 {
            done(ask(&bookie, add_request(ledger, entry, 50)));
        }
    }
    for ledger in 0..200 {
        done(ask(&bookie, request(ledger, OrderedOperation::Fence)));
    }
    for ledger in 0..200 {
        let refused = ask(&bookie, add_request(ledger, 3, 50));
        assert_eq!(refused, Err(BookieError::Fenced));
        expect(&bookie, ledger, 2, 50);
    }
}

/// Journal segments are recycled under load, and nothing is lost on the way.
#[test]
fn the_journal_is_trimmed_and_recycled() {
    let directory = tempfile::tempdir().unwrap();
    let config = BookieConfig {
        memtable_bytes: 4 * MIB,
        ..config(directory.path())
    };
    let bookie = open(&config);
    let (len, count) = (200_000, 400);
    // On a slow disk the journal has no room for a moment, and says so.
    let check = |(entry, reply)| {
        let mut outcome = answer(&reply);
        while outcome == Err(BookieError::Overloaded) {
            outcome = ask(&bookie, add_request(1, entry, len));
        }
        done(outcome);
    };
    let mut waiting = std::collections::VecDeque::new();
    for entry in 0..count {
        waiting.push_back((entry, start(&bookie, add_request(1, entry, len))));
        if waiting.len() > 8 {
            check(waiting.pop_front().unwrap());
        }
    }
    waiting.into_iter().for_each(check);
    let status = bookie.status();
    let most = u64::try_from(config.journal_segments_max * 8 * MIB).unwrap();
    assert!(status.journal_bytes <= most, "{status:?}");
    drop(bookie);
    let bookie = open(&config);
    for entry in 0..count {
        expect(&bookie, 1, entry, len);
    }
}
