//! Back-pressure and full disks.

use super::*;
use crate::BookieMode;
use crate::ledger_state::LedgerState;

/// I13: bytes in flight are bounded; over the bound adds are refused at once, and fences and
/// reads have shares of their own.
#[test]
fn over_the_budget_adds_are_refused_and_fences_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let config = BookieConfig {
        bytes_in_flight_max: MIB,
        ..config(directory.path())
    };
    let bookie = open(&config);
    done(ask(&bookie, add_request(1, 0, 10)));
    eventually("applied", || bookie.status().bytes_in_flight == 0);
    let held = bookie
        .core
        .shared
        .adds
        .whole()
        .try_acquire(MIB - 100)
        .unwrap();
    let refused = ask(&bookie, add_request(1, 1, 10));
    assert_eq!(refused, Err(BookieError::Overloaded));
    done(ask(&bookie, recovery_add(1, 1, 10)));
    expect(&bookie, 1, 0, 10);
    done(ask(&bookie, request(2, OrderedOperation::Fence)));
    drop(held);
    done(ask(&bookie, add_request(1, 2, 10)));
}

/// Under a flood every request is answered, what is acknowledged is there, and the bytes in
/// flight stay within their bound.
#[test]
fn a_flood_is_answered_within_the_bounds() {
    let directory = tempfile::tempdir().unwrap();
    let config = BookieConfig {
        bytes_in_flight_max: 2 * MIB,
        ..config(directory.path())
    };
    let bookie = open(&config);
    done(ask(&bookie, add_request(1, 0, 10)));
    let replies: Vec<_> = (1..2_000)
        .map(|entry| (entry, start(&bookie, add_request(1, entry, 20_000))))
        .inspect(|_| assert!(bookie.status().bytes_in_flight <= 2 * 1024 * 1024))
        .collect();
    let mut acknowledged = 0;
    for (entry, reply) in replies {
        match answer(&reply) {
            Ok(_) => {
                acknowledged += 1;
                expect(&bookie, 1, entry, 20_000);
            }
            Err(error) => assert_eq!(error, BookieError::Overloaded),
        }
    }
    assert!(acknowledged > 50, "{acknowledged}");
    eventually("everything is applied", || {
        bookie.status().bytes_in_flight == 0
    });
}

#[test]
fn below_the_mark_the_bookie_is_read_only_and_comes_back_above_the_other() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(directory.path());
    let bookie = open(&config);
    done(ask(&bookie, add_request(1, 0, 10)));
    shutdown(&bookie);
    drop(bookie);
    config.read_only_below_free_bytes = u64::MAX - 1;
    config.writable_above_free_bytes = u64::MAX;
    let bookie = open(&config);
    assert!(matches!(bookie.status().mode, BookieMode::ReadOnly(_)));
    let refused = ask(&bookie, add_request(1, 1, 10));
    assert!(
        matches!(refused, Err(BookieError::ReadOnly(_))),
        "{refused:?}"
    );
    expect(&bookie, 1, 0, 10);
    done(ask(&bookie, request(1, OrderedOperation::Fence)));
    done(ask(&bookie, recovery_add(1, 1, 10)));
    done(ask(&bookie, request(2, OrderedOperation::Delete)));
    bookie.core.shared.mode.set_full(false);
    done(ask(&bookie, add_request(3, 0, 10)));
}

/// Holds the database back, which is what a stalled flush does, until it is ended or dropped.
struct Stall {
    release: std::sync::mpsc::SyncSender<()>,
    thread: std::thread::JoinHandle<Result<(), crate::store::StoreError>>,
}

impl Stall {
    fn begin(bookie: &Bookie) -> Stall {
        let (hold, held) = sync_channel::<()>(0);
        let (release, released) = sync_channel::<()>(0);
        let store = std::sync::Arc::clone(&bookie.core.shared.store);
        let thread = aquifer_runtime::task::spawn_thread("stall", move || {
            rocks(&*store).reopen_with(false, |db| {
                hold.send(()).unwrap();
                // Dropped: the test has failed.
                let _ = released.recv();
                db.flush()
            })
        })
        .unwrap();
        held.recv().unwrap();
        Stall { release, thread }
    }

    fn end(self) {
        self.release.send(()).unwrap();
        self.thread.join().unwrap().unwrap();
    }
}

/// The journal cannot grow and RocksDB does not flush: adds are refused with a retryable error,
/// fences still work from the reserve, and everything goes on when space returns.
#[test]
fn fences_work_when_the_journal_is_full() {
    let mut machine = super::crash::Machine::new();
    machine.config.journal_segments_max = 2;
    // The journal is full before the part of the budget that a tenant may take.
    machine.config.bytes_in_flight_max = 32 * MIB;
    let bookie = machine.boot();
    eventually("the second segment", || {
        !bookie.core.shared.segments.needs_spare()
    });
    done(ask(&bookie, add_request(1, 0, 10)));
    let stall = Stall::begin(&bookie);
    let mut accepted = 1;
    let mut refused = None;
    for entry in 1..200 {
        match ask(&bookie, add_request(1, entry, 200_000)) {
            Ok(_) => accepted += 1,
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    assert_eq!(refused, Some(BookieError::Overloaded));
    let refused_entry = accepted;
    let fence = start(&bookie, request(1, OrderedOperation::Fence));
    done(answer(&fence));
    stall.end();
    let again = recovery_add(1, refused_entry, 200_000);
    eventually("the journal has room again", || {
        ask(&bookie, again.clone()).is_ok()
    });
    for entry in 1..=refused_entry {
        expect(&bookie, 1, entry, 200_000);
    }
}

/// I1: an add that is repeated while the first copy is in flight waits for that copy, and is
/// refused with it when the journal has no room. Nothing is acknowledged that no journal holds.
#[test]
fn a_repeated_add_is_refused_with_the_copy_that_it_waits_for() {
    let mut machine = super::crash::Machine::new();
    machine.config.journal_segments_max = 2;
    // The journal is full before the part of the budget that a tenant may take.
    machine.config.bytes_in_flight_max = 32 * MIB;
    let bookie = machine.boot();
    eventually("the second segment", || {
        !bookie.core.shared.segments.needs_spare()
    });
    done(ask(&bookie, add_request(1, 0, 10)));
    let stall = Stall::begin(&bookie);
    let mut refused = None;
    for entry in 1..200 {
        let first = start(&bookie, add_request(1, entry, 200_000));
        let again = start(&bookie, add_request(1, entry, 200_000));
        let (first, again) = (answer(&first), answer(&again));
        if let Err(error) = first {
            refused = Some((error, again));
            break;
        }
        done(again);
    }
    let overloaded = BookieError::Overloaded;
    assert_eq!(refused, Some((overloaded.clone(), Err(overloaded))));
    stall.end();
}

/// I13: while RocksDB takes nothing, commits wait in the memory that their permits account for,
/// however small they are.
#[test]
fn what_waits_for_a_stalled_database_is_bounded() {
    let machine = super::crash::Machine::new();
    let bookie = machine.boot();
    done(ask(&bookie, add_request(1, 0, 10)));
    let stall = Stall::begin(&bookie);
    for entry in 1..1_000 {
        // One by one, so that each is a commit of its own.
        done(ask(&bookie, add_request(1, entry, 10)));
    }
    let held = bookie.core.shared.apply_queue.held_bytes();
    assert!(held < 4 * MIB, "{held} bytes wait");
    assert!(
        bookie.core.shared.progress.applied.get() + 900 < bookie.core.shared.progress.synced.get()
    );
    stall.end();
    eventually("applied", || bookie.status().bytes_in_flight == 0);
    for entry in [1, 500, 999] {
        expect(&bookie, 1, entry, 10);
    }
}

/// I13: entries that were read for recoveries and are not taken are bounded together; the next
/// are read when some were taken.
#[test]
fn answers_that_nobody_takes_are_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let config = BookieConfig {
        read_bytes_in_flight_max: 8 * MIB,
        bytes_in_flight_max: 64 * MIB,
        ..config(directory.path())
    };
    let bookie = open(&config);
    for entry in 0..24 {
        done(ask(&bookie, add_request(1, entry, MIB)));
    }
    let replies: Vec<_> = (0..24)
        .map(|entry| {
            let read = OrderedOperation::RecoveryRead(EntryId(entry));
            start(&bookie, request(1, read))
        })
        .collect();
    let mut taken = Vec::new();
    for reply in &replies[..3] {
        taken.push(answer(reply).unwrap());
    }
    // The fences of all of them are synced before this is answered.
    done(ask(&bookie, request(1, OrderedOperation::Fence)));
    let held = bookie.core.answer_bytes();
    assert!(held <= 8 * MIB, "{held} bytes of answers");
    assert!(
        replies[23].try_recv().is_err(),
        "read although there is no room"
    );
    drop(taken);
    for reply in &replies[3..] {
        let entry = answer(reply).unwrap();
        assert!(matches!(entry, OrderedReply::Entry(_)), "{entry:?}");
    }
    drop(replies);
    eventually("everything is given back", || {
        bookie.core.answer_bytes() == 0
    });
}

/// A disk that is full for messages still takes what subscriptions acknowledge, until the reserve
/// is used up, too.
#[test]
fn a_full_disk_takes_entries_of_cursor_logs() {
    let directory = tempfile::tempdir().unwrap();
    let full = BookieConfig {
        read_only_below_free_bytes: u64::MAX - 1,
        writable_above_free_bytes: u64::MAX,
        ..config(directory.path())
    };
    let cursor = |entry| {
        let add = AddEntry {
            reserve: true,
            ..add(2, entry, 10)
        };
        request(2, OrderedOperation::Add(add))
    };
    let bookie = open(&full);
    let refused = ask(&bookie, add_request(1, 0, 10));
    assert!(
        matches!(refused, Err(BookieError::ReadOnly(_))),
        "{refused:?}"
    );
    done(ask(&bookie, cursor(0)));
    expect(&bookie, 2, 0, 10);
    bookie.core.shared.mode.storage_failed("the disk is full");
    let Err(BookieError::ReadOnly(why)) = ask(&bookie, cursor(1)) else {
        panic!("nothing is left to store it");
    };
    assert!(why.contains("disk"), "{why}");
    done(ask(&bookie, request(2, OrderedOperation::Delete)));
}

/// Adds that are refused take nothing of the reserve, however many they are: fences still work.
#[test]
fn refused_adds_do_not_use_up_the_reserve() {
    let mut machine = super::crash::Machine::new();
    machine.config.journal_segments_max = 2;
    // The journal is full before the part of the budget that a tenant may take.
    machine.config.bytes_in_flight_max = 32 * MIB;
    let bookie = machine.boot();
    eventually("the second segment", || {
        !bookie.core.shared.segments.needs_spare()
    });
    done(ask(&bookie, add_request(1, 0, 10)));
    let stall = Stall::begin(&bookie);
    let refused = |entry| ask(&bookie, add_request(1, entry, 200_000)).is_err();
    let full = (1..200).find(|entry| refused(*entry));
    let full = full.expect("the journal has only two segments");
    let synced = || bookie.core.shared.progress.synced.get();
    let before = synced();
    assert!((1..20).all(|more| refused(full + more)));
    assert_eq!(synced(), before);
    done(ask(&bookie, request(1, OrderedOperation::Fence)));
    stall.end();
}

/// I5: an add that is refused takes its ledger's record along, on which an add that was admitted
/// behind it counts. What that one acknowledged is found although nothing is in memory any more.
#[test]
fn a_refused_add_leaves_its_ledger_record_to_the_next() {
    let mut machine = super::crash::Machine::new();
    machine.config.journal_segments_max = 2;
    // The journal is full before the part of the budget that a tenant may take.
    machine.config.bytes_in_flight_max = 32 * MIB;
    machine.config.commit_bytes_max = 4_096;
    let bookie = machine.boot();
    eventually("the second segment", || {
        !bookie.core.shared.segments.needs_spare()
    });
    done(ask(&bookie, add_request(1, 0, 10)));
    // Known to be new, because it cannot be looked up while the database stands still.
    bookie.core.shared.ledgers.lock(LedgerId(2)).slot().state = Some(LedgerState::default());
    let stall = Stall::begin(&bookie);
    let refused = |entry| ask(&bookie, add_request(1, entry, 200_000)).is_err();
    (1..200)
        .find(|entry| refused(*entry))
        .expect("the journal has only two segments");
    // The journal's thread answers: while it does, both adds are queued, in commits of their own.
    let (hold, held) = sync_channel::<()>(0);
    let (release, released) = sync_channel::<()>(0);
    let answer_slowly = move |_| {
        hold.send(()).unwrap();
        let _ = released.recv();
    };
    bookie.submit(request(1, OrderedOperation::Fence), Box::new(answer_slowly));
    held.recv().unwrap();
    let queued = bookie.core.shared.queue.last_number();
    let large = start(&bookie, add_request(2, 0, 200_000));
    let small = start(&bookie, add_request(2, 1, 10));
    eventually("both are queued", || {
        bookie.core.shared.queue.last_number() == queued + 2
    });
    release.send(()).unwrap();
    assert_eq!(answer(&large), Err(BookieError::Overloaded));
    done(answer(&small));
    stall.end();
    eventually("applied", || {
        let status = bookie.status();
        status.applied_commit == status.synced_commit
    });
    bookie.core.shared.ledgers.lock(LedgerId(2)).forget();
    expect(&bookie, 2, 1, 10);
}
