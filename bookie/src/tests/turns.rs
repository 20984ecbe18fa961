//! Tenants share a bookie: what one has waiting delays another by a bounded part of it.

use std::sync::Arc;

use aquifer_model::id::TenantKey;
use parking_lot::Mutex;

use super::*;

const FLOOD: TenantKey = TenantKey(1);
const VICTIM: TenantKey = TenantKey(2);
const ADD_BYTES: usize = 50_000;

/// What was answered, in order: of which ledger, which entry.
type Answers = Arc<Mutex<Vec<(u64, u64)>>>;

fn of(tenant: TenantKey, request: OrderedRequest) -> OrderedRequest {
    OrderedRequest { tenant, ..request }
}

/// Holds the thread of the journal, which answers, until what this returns is dropped.
fn hold_journal(bookie: &Bookie) -> std::sync::mpsc::SyncSender<()> {
    let (hold, held) = sync_channel::<()>(0);
    let (release, released) = sync_channel::<()>(0);
    let answer_slowly = move |_| {
        hold.send(()).unwrap();
        let _ = released.recv();
    };
    bookie.submit(
        request(99, OrderedOperation::Fence),
        Box::new(answer_slowly),
    );
    held.recv().unwrap();
    release
}

fn submit(bookie: &Bookie, answers: &Answers, (tenant, ledger, entry): (TenantKey, u64, u64)) {
    let answers = Arc::clone(answers);
    let reply = move |outcome: BookieResult<OrderedReply>| {
        assert!(outcome.is_ok(), "{ledger}:{entry} {outcome:?}");
        answers.lock().push((ledger, entry));
    };
    let request = of(tenant, add_request(ledger, entry, ADD_BYTES));
    bookie.submit(request, Box::new(reply));
}

#[test]
fn a_tenant_with_much_waiting_delays_another_by_a_part_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let config = BookieConfig {
        bytes_in_flight_max: 32 * MIB,
        commit_bytes_max: 4 * MIB,
        ..config(directory.path())
    };
    let bookie = open(&config);
    for (tenant, ledger) in [(FLOOD, 1), (VICTIM, 2), (FLOOD, 3)] {
        done(ask(&bookie, of(tenant, add_request(ledger, 0, 10))));
    }
    let journal = hold_journal(&bookie);
    let answers = Answers::default();
    // 9 MB over two ledgers, and behind that a little of another tenant.
    let flood = (1..=90).flat_map(|entry| [(FLOOD, 1, entry), (FLOOD, 3, entry)]);
    let victim = (1..=5).map(|entry| (VICTIM, 2, entry));
    for add in flood.chain(victim) {
        submit(&bookie, &answers, add);
    }
    drop(journal);
    eventually("all are answered", || answers.lock().len() == 185);
    let answers = answers.lock();
    let last = answers.iter().rposition(|(ledger, _)| *ledger == 2);
    // What the journal's queue takes, a commit of as much, and the turns of both.
    let bound = 2 * MIB / ADD_BYTES + 15;
    assert!(last.unwrap() <= bound, "{last:?} of 185");
    for ledger in [1, 2, 3] {
        let entries = answers.iter().filter(|(of, _)| *of == ledger);
        let entries: Vec<u64> = entries.map(|(_, entry)| *entry).collect();
        assert!(entries.is_sorted(), "ledger {ledger}: {entries:?}");
    }
    shutdown(&bookie);
}

/// H3: what comes behind adds that wait for their turn takes effect behind them.
#[test]
fn a_fence_behind_adds_that_wait_refuses_none_of_them() {
    let directory = tempfile::tempdir().unwrap();
    let bookie = open(&config(directory.path()));
    for (tenant, ledger) in [(FLOOD, 1), (VICTIM, 2)] {
        done(ask(&bookie, of(tenant, add_request(ledger, 0, 10))));
    }
    let journal = hold_journal(&bookie);
    let answers = Answers::default();
    for entry in 1..=60 {
        submit(&bookie, &answers, (FLOOD, 1, entry));
    }
    let fence = start(&bookie, of(FLOOD, request(1, OrderedOperation::Fence)));
    let late = start(&bookie, of(FLOOD, add_request(1, 61, 10)));
    drop(journal);
    done(answer(&fence));
    assert_eq!(answer(&late), Err(BookieError::Fenced));
    assert_eq!(answers.lock().len(), 60);
    shutdown(&bookie);
}

/// A tenant that fills its part of the budget is refused; another one is not.
#[test]
fn a_tenant_that_fills_its_part_leaves_one_to_another() {
    let directory = tempfile::tempdir().unwrap();
    let bookie = open(&config(directory.path()));
    for (tenant, ledger) in [(FLOOD, 1), (VICTIM, 2)] {
        done(ask(&bookie, of(tenant, add_request(ledger, 0, 10))));
    }
    let journal = hold_journal(&bookie);
    let flood: Vec<_> = (1..=400)
        .map(|entry| start(&bookie, of(FLOOD, add_request(1, entry, ADD_BYTES))))
        .collect();
    let refused = flood.last().expect("some").try_recv();
    assert_eq!(refused, Ok(Err(BookieError::Overloaded)));
    let victim: Vec<_> = (1..=10)
        .map(|entry| start(&bookie, of(VICTIM, add_request(2, entry, ADD_BYTES))))
        .collect();
    drop(journal);
    for reply in &victim {
        done(answer(reply));
    }
    shutdown(&bookie);
}

/// What waits for its turn when the bookie stops is answered, too.
#[test]
fn what_waits_for_its_turn_is_answered_when_the_bookie_stops() {
    let directory = tempfile::tempdir().unwrap();
    let bookie = open(&config(directory.path()));
    for (tenant, ledger) in [(FLOOD, 1), (VICTIM, 2)] {
        done(ask(&bookie, of(tenant, add_request(ledger, 0, 10))));
    }
    let journal = hold_journal(&bookie);
    let waiting: Vec<_> = (1..=100)
        .map(|entry| start(&bookie, of(FLOOD, add_request(1, entry, ADD_BYTES))))
        .collect();
    let stopping = {
        let bookie = bookie.clone();
        aquifer_runtime::task::spawn_thread("stop", move || shutdown(&bookie)).unwrap()
    };
    drop(journal);
    for reply in &waiting {
        let outcome = answer(reply);
        let is_expected = matches!(
            outcome,
            Ok(OrderedReply::Done { .. }) | Err(BookieError::ShuttingDown)
        );
        assert!(is_expected, "{outcome:?}");
    }
    stopping.join().unwrap();
}
