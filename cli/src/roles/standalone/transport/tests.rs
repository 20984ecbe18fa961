//! In the process and over gRPC, a bookie is the same.

use std::sync::Arc;
use std::time::Duration;

use aquifer_bookie::{BookieConfig, BookieDeps};
use aquifer_ledger::bookie_client::{BookieClientConfig, GrpcTransport};
use aquifer_model::entry::EntryData;
use aquifer_model::id::{CreationToken, EntryId, LedgerId, TenantKey};
use aquifer_model::storage::{AddEntry, OrderedOperation, OrderedReply};
use aquifer_runtime::clock::SystemClock;
use aquifer_runtime::disk::RealDisk;
use aquifer_runtime::net::ListenAddress;
use aquifer_runtime::rng::SystemRng;
use aquifer_runtime::task::TaskGroup;
use aquifer_runtime::telemetry::Telemetry;
use tokio::sync::oneshot;

use super::*;

type Answer = oneshot::Receiver<BookieResult<OrderedReply>>;

fn bookie(directory: &std::path::Path) -> Bookie {
    bookie_with(BookieConfig::in_directory(directory))
}

fn bookie_with(config: BookieConfig) -> Bookie {
    let config = BookieConfig {
        read_only_below_free_bytes: 0,
        writable_above_free_bytes: 1,
        ..config
    };
    let deps = BookieDeps {
        disk: RealDisk::shared(),
        clock: SystemClock::shared(),
        rng: SystemRng::shared(),
        meter: Telemetry::for_tests().meter("bookie"),
    };
    Bookie::open(config, deps).unwrap()
}

fn request(ledger: u64, operation: OrderedOperation) -> OrderedRequest {
    OrderedRequest {
        ledger: LedgerId(ledger),
        token: CreationToken([4; 16]),
        tenant: TenantKey::UNKNOWN,
        operation,
    }
}

fn add(ledger: u64, entry: u64, bytes: usize) -> OrderedRequest {
    let data = EntryData {
        head: format!("{ledger}:{entry} ").into(),
        body: vec![u8::try_from(entry % 251).unwrap(); bytes].into(),
    };
    let lac = entry.checked_sub(1).map(EntryId);
    let add = AddEntry::new(LedgerId(ledger), EntryId(entry), lac, entry + 1, data);
    request(ledger, OrderedOperation::Add(add))
}

fn submit(transport: &dyn BookieTransport, to: BookieId, request: OrderedRequest) -> Answer {
    let (sender, answer) = oneshot::channel();
    let reply = Box::new(move |outcome| {
        let _ = sender.send(outcome);
    });
    transport.submit(to, request, reply);
    answer
}

async fn answer(answer: Answer) -> BookieResult<OrderedReply> {
    let patience = Duration::from_secs(60);
    let answered = aquifer_runtime::clock::timeout(patience, answer).await;
    answered.expect("every request is answered").expect("once")
}

fn range(ledger: u64, first: u64, last: u64) -> ReadRange {
    ReadRange {
        ledger: LedgerId(ledger),
        token: None,
        first: EntryId(first),
        last: EntryId(last),
        bytes_max: 64 << 20,
        entries_max: 10_000,
        prefix_bytes: None,
    }
}

fn wait(ledger: u64, above: u64, limit_ms: u64) -> TailWait {
    TailWait {
        ledger: LedgerId(ledger),
        token: None,
        above: Some(EntryId(above)),
        limit: Duration::from_millis(limit_ms),
    }
}

fn tail(lac: u64, fenced: bool) -> BookieResult<TailState> {
    Ok(TailState {
        last_add_confirmed: Some(EntryId(lac)),
        fenced,
    })
}

/// Longer than any test.
const PATIENT_MS: u64 = 60_000;

/// News of the end come at once, when they come, or not.
async fn tells_of_the_end(transport: &dyn BookieTransport, to: BookieId, ledger: u64) {
    let news = transport.wait(to, wait(ledger, 97, PATIENT_MS)).await;
    assert_eq!(news, tail(98, false));
    assert_eq!(
        transport.wait(to, wait(ledger, 98, 1)).await,
        tail(98, false)
    );
    let told = request(ledger, OrderedOperation::WriteLac(EntryId(99)));
    let (news, told) = tokio::join!(
        transport.wait(to, wait(ledger, 98, PATIENT_MS)),
        answer(submit(transport, to, told))
    );
    assert!(told.is_ok());
    assert_eq!(news, tail(99, false));
}

/// A fence wakes waiting readers and ends what the writer may do; a deletion ends everything.
async fn fences_and_deletes(transport: &dyn BookieTransport, to: BookieId, ledger: u64) {
    // One order: the add behind the fence is refused, the entry before it is seen (H3).
    let before = submit(transport, to, add(ledger, 100, 10));
    let read = OrderedOperation::RecoveryRead(EntryId(100));
    let seen = submit(transport, to, request(ledger, read));
    let fence = transport.wait(to, wait(ledger, 99, PATIENT_MS)).await;
    assert_eq!(fence, tail(99, true));
    let behind = submit(transport, to, add(ledger, 101, 10));
    assert!(answer(before).await.is_ok());
    let seen = answer(seen).await;
    assert!(
        matches!(&seen, Ok(OrderedReply::Entry(e)) if e.is_intact(LedgerId(ledger))),
        "{seen:?}"
    );
    assert_eq!(answer(behind).await, Err(BookieError::Fenced));
    let gone = submit(transport, to, request(ledger, OrderedOperation::Delete));
    assert!(answer(gone).await.is_ok());
    let late = answer(submit(transport, to, add(ledger, 102, 10))).await;
    assert_eq!(late, Err(BookieError::Deleted));
    let waited = transport.wait(to, wait(ledger, 99, PATIENT_MS)).await;
    assert_eq!(waited, Err(BookieError::Deleted));
    let deleted = transport.read(to, range(ledger, 0, 0)).await;
    assert_eq!(deleted, Err(BookieError::Deleted));
}

/// What every transport does.
async fn contract(transport: &dyn BookieTransport, to: BookieId, ledger: u64) {
    // Together less than a bookie holds at once for one peer, however slow its disk is.
    let sizes = |entry: u64| if entry == 50 { 3 << 20 } else { 40_000 };
    let adds: Vec<Answer> = (0..100)
        .map(|entry| submit(transport, to, add(ledger, entry, sizes(entry))))
        .collect();
    for (entry, added) in (0..).zip(adds) {
        let lac = u64::checked_sub(entry, 1).map(EntryId);
        let done = OrderedReply::Done {
            last_add_confirmed: lac,
        };
        assert_eq!(answer(added).await, Ok(done), "entry {entry}");
    }
    let batch = transport.read(to, range(ledger, 10, 500)).await.unwrap();
    assert_eq!(batch.entries.len(), 90, "larger than a message");
    assert!(batch.entries.iter().all(|e| e.is_intact(LedgerId(ledger))));
    assert_eq!(batch.last_add_confirmed, Some(EntryId(98)));
    let few = ReadRange {
        entries_max: 3,
        prefix_bytes: Some(4),
        ..range(ledger, 0, 99)
    };
    let few = transport.read(to, few).await.unwrap().entries;
    assert_eq!(few.iter().map(|e| e.data.len()).collect::<Vec<_>>(), [4; 3]);
    tells_of_the_end(transport, to, ledger).await;
    // Another ledger's token opens nothing (H14).
    let mut stolen = add(ledger, 100, 10);
    stolen.token = CreationToken([5; 16]);
    let refused = answer(submit(transport, to, stolen)).await;
    assert_eq!(refused, Err(BookieError::Token));
    let mut stolen = range(ledger, 0, 9);
    assert_eq!(stolen.token.replace(CreationToken([5; 16])), None);
    let refused = transport.read(to, stolen).await;
    assert_eq!(refused.map(|_| ()), Err(BookieError::Token));
    let mut stolen = wait(ledger, 0, 10);
    stolen.token = Some(CreationToken([5; 16]));
    assert_eq!(transport.wait(to, stolen).await, Err(BookieError::Token));
    stolen.token = Some(CreationToken([4; 16]));
    assert!(transport.wait(to, stolen).await.is_ok());
    // Errors arrive as what they are, with their detail said once.
    let absent = transport.read(to, range(ledger, 100, 100)).await;
    assert_eq!(absent, Err(BookieError::NoSuchEntry));
    let absent = transport.read(to, range(ledger + 1000, 0, 0)).await;
    assert_eq!(absent, Err(BookieError::NoSuchLedger));
    let OrderedOperation::Add(mut damaged) = add(ledger, 100, 10).operation else {
        return;
    };
    damaged.digest ^= 1;
    let damaged = request(ledger, OrderedOperation::Add(damaged));
    let refused = answer(submit(transport, to, damaged)).await;
    let said = format!("entry {ledger}:100 as it arrived");
    assert_eq!(refused, Err(BookieError::Digest(said)));
    let conflict = answer(submit(transport, to, add(ledger, 7, 61_000))).await;
    assert_eq!(conflict, Err(BookieError::Conflict));
    fences_and_deletes(transport, to, ledger).await;
    let stranger = BookieId([9; 16]);
    let refused = answer(submit(transport, stranger, add(ledger, 0, 1))).await;
    assert!(matches!(refused, Err(BookieError::Unreachable(_))));
    let refused = transport.read(stranger, range(ledger, 0, 0)).await;
    assert!(matches!(refused, Err(BookieError::Unreachable(_))));
}

#[tokio::test]
async fn in_process_and_over_grpc_a_bookie_is_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let bookie = bookie(directory.path());
    let id = bookie.id();
    let (server, client) = (TaskGroup::new("server"), TaskGroup::new("client"));
    contract(&InProcess::new(bookie.clone(), &client), id, 1).await;
    let listen = ListenAddress::loopback_any_port();
    let bound = aquifer_bookie::service::serve(bookie.clone(), listen, None, &server).await;
    let url = format!("http://{}", bound.unwrap());
    let transport = GrpcTransport::new(
        BookieClientConfig::default(),
        &*SystemRng::shared(),
        client.clone(),
    );
    transport.set_address(id, &url).unwrap();
    let transport = Arc::new(transport);
    contract(&*transport, id, 2).await;
    // The way breaks: whatever has no answer is unreachable, later requests too, until the
    // bookie is back; then the same transport goes on.
    server.drain(Duration::from_secs(10)).await;
    let lost = answer(submit(&*transport, id, add(3, 0, 10))).await;
    assert!(matches!(lost, Err(BookieError::Unreachable(_))), "{lost:?}");
    let again = TaskGroup::new("server");
    let address = ListenAddress::new(url.trim_start_matches("http://").parse().unwrap());
    let bound = aquifer_bookie::service::serve(bookie.clone(), address, None, &again).await;
    bound.unwrap();
    let mut reached = false;
    for _ in 0..20 {
        // Each attempt is answered, after a longer and longer wait for the connection.
        reached |= answer(submit(&*transport, id, add(3, 0, 10))).await.is_ok();
        if reached {
            break;
        }
    }
    assert!(reached, "the stream comes back by itself");
    client.drain(Duration::from_secs(10)).await;
    again.drain(Duration::from_secs(10)).await;
    bookie.shutdown().await;
}

#[tokio::test]
async fn adds_wait_for_room_in_order_instead_of_being_refused() {
    let directory = tempfile::tempdir().unwrap();
    // Room for three of them.
    let bookie = bookie_with(BookieConfig {
        bytes_in_flight_max: 64 * 1024,
        ..BookieConfig::in_directory(directory.path())
    });
    let id = bookie.id();
    let tasks = TaskGroup::new("test");
    let transport = InProcess::new(bookie.clone(), &tasks);
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut answers = Vec::new();
    let adds = (0..200).map(|entry| add(1, entry, 20_000));
    // What comes behind them is not overtaken by it: the fence refuses none of them.
    let requests = adds.chain([request(1, OrderedOperation::Fence)]);
    for (number, request) in requests.enumerate() {
        let (sender, answer) = oneshot::channel();
        let order = Arc::clone(&order);
        let reply = Box::new(move |outcome| {
            order.lock().push(number);
            let _ = sender.send(outcome);
        });
        transport.submit(id, request, reply);
        answers.push(answer);
    }
    for pending in answers {
        let outcome = answer(pending).await;
        assert!(
            matches!(outcome, Ok(OrderedReply::Done { .. })),
            "{outcome:?}"
        );
    }
    assert_eq!(*order.lock(), (0..=200).collect::<Vec<_>>());
    let refused = answer(submit(&transport, id, add(1, 200, 10))).await;
    assert_eq!(refused, Err(BookieError::Fenced));
    tasks.drain(Duration::from_secs(10)).await;
    bookie.shutdown().await;
}
