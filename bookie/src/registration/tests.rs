//! Joining a cluster, and what others see of it.

use std::path::Path;

use aquifer_metadata::embedded::{EmbeddedOptions, EmbeddedStore};
use aquifer_metadata::store::Expect;
use aquifer_model::entry::EntryData;
use aquifer_model::id::{EntryId, TenantKey};
use aquifer_model::storage::{AddEntry, OrderedOperation, OrderedReply, OrderedRequest};
use aquifer_proto::v1::Fragment;
use aquifer_runtime::clock::{SystemClock, timeout};
use aquifer_runtime::disk::{Disk, RealDisk, SimDisk};
use aquifer_runtime::rng::SystemRng;
use bytes::Bytes;
use tokio::sync::oneshot;

use super::*;
use crate::tests::{config, deps};
use crate::{BookieConfig, BookieDeps};

const PATIENCE: Duration = Duration::from_secs(60);

async fn store(tasks: &TaskGroup) -> Arc<dyn MetadataStore> {
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new("/m")).unwrap();
    let store = EmbeddedStore::open(
        "/m/metadata.redb".into(),
        EmbeddedOptions::default(),
        disk.shared(),
        SystemClock::shared(),
        tasks,
    );
    Arc::new(store.await.unwrap())
}

fn open(directory: &Path) -> Bookie {
    let config = BookieConfig {
        cluster: Some("test".to_owned()),
        capacity_bytes: Some(1 << 30),
        ..config(directory)
    };
    let deps = BookieDeps {
        rng: SystemRng::shared(),
        ..deps(RealDisk::shared())
    };
    Bookie::open(config, deps).unwrap()
}

async fn announced(store: &dyn MetadataStore, id: BookieId) -> Option<BookieRecord> {
    let found = store.get(&keys::bookie(id)).await.unwrap();
    found.map(|found| record::decode(&found).unwrap())
}

#[tokio::test]
async fn a_new_bookie_joins_once_and_must_be_known_from_then_on() {
    let (folder, tasks) = (tempfile::tempdir().unwrap(), TaskGroup::new("test"));
    let store = store(&tasks).await;
    let bookie = open(folder.path());
    let id = bookie.id();
    join(&bookie, &*store, 1).await.unwrap();
    let stored = store.get(&keys::cookie(id)).await.unwrap().unwrap();
    let cookie: CookieRecord = record::decode(&stored).unwrap();
    assert_eq!(cookie.cluster, "test");
    bookie.shutdown().await;
    drop(bookie);

    // It starts again, and nothing is written.
    let bookie = open(folder.path());
    join(&bookie, &*store, 1).await.unwrap();
    let again = store.get(&keys::cookie(id)).await.unwrap().unwrap();
    assert_eq!(again.revision, stored.revision);

    // The metadata of another cluster, or restored from before: refused, and not written to (I5).
    let other = self::store(&tasks).await;
    let error = join(&bookie, &*other, 1).await.unwrap_err();
    assert!(
        matches!(error, BookieOpenError::NotAMember { .. }),
        "{error}"
    );
    assert_eq!(other.get(&keys::cookie(id)).await.unwrap(), None);

    // A cookie that names another cluster, or another bookie.
    for (bookie_id, cluster, said) in [
        (id, "elsewhere", "cluster elsewhere"),
        (BookieId([9; 16]), "test", "identity"),
    ] {
        let value = record::encode(CookieRecord {
            bookie_id: bookie_id.0.to_vec().into(),
            cluster: cluster.to_owned(),
            directories: Vec::new(),
            ..CookieRecord::default()
        });
        let put = store.put("", &keys::cookie(id), value, Expect::Any).await;
        put.unwrap();
        let error = join(&bookie, &*store, 1).await.unwrap_err();
        assert!(
            matches!(error, BookieOpenError::ForeignMember { .. }),
            "{error}"
        );
        assert!(error.to_string().contains(said), "{error}");
    }
    let (key, garbage) = (keys::cookie(id), Bytes::from_static(b"?"));
    store.put("", &key, garbage, Expect::Any).await.unwrap();
    let error = join(&bookie, &*store, 1).await.unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
    bookie.shutdown().await;
}

#[tokio::test]
async fn a_join_that_was_cut_off_is_repeated_and_another_directory_is_another_bookie() {
    let (folder, tasks) = (tempfile::tempdir().unwrap(), TaskGroup::new("test"));
    let store = store(&tasks).await;
    // It ended after its directories were set up, before the cluster knew it.
    let bookie = open(folder.path());
    let id = bookie.id();
    bookie.shutdown().await;
    drop(bookie);
    let bookie = open(folder.path());
    assert_eq!(bookie.id(), id);
    join(&bookie, &*store, 1).await.unwrap();
    bookie.shutdown().await;
    let other = tempfile::tempdir().unwrap();
    let other = open(other.path());
    assert_ne!(other.id(), id);
    join(&other, &*store, 1).await.unwrap();
    other.shutdown().await;
}

#[tokio::test]
async fn what_is_announced_follows_the_bookie_and_goes_with_the_lease() {
    let (folder, tasks) = (tempfile::tempdir().unwrap(), TaskGroup::new("test"));
    let store = store(&tasks).await;
    let bookie = open(folder.path());
    join(&bookie, &*store, 1).await.unwrap();
    let lease = Lease::start(
        Arc::clone(&store),
        Duration::from_secs(10),
        SystemRng::shared(),
        &tasks,
    );
    let announcement = Announcement {
        address: "http://192.0.2.1:7651".to_owned(),
        zone: "east".to_owned(),
    };
    announce(&bookie, announcement, &lease, &tasks).await;
    timeout(PATIENCE, lease.announced()).await.unwrap();
    let seen = announced(&*store, bookie.id()).await.unwrap();
    assert_eq!(
        (&*seen.address, &*seen.zone, seen.read_only),
        ("http://192.0.2.1:7651", "east", false)
    );
    assert_eq!(seen.capacity_bytes, 1 << 30);
    assert!(seen.free_bytes > 0 && seen.free_bytes <= 1 << 30);

    bookie.core.shared.mode.storage_failed("the test says so");
    let read_only = async {
        while !announced(&*store, bookie.id()).await.unwrap().read_only {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, read_only).await.unwrap();
    timeout(PATIENCE, lease.close()).await.unwrap();
    assert_eq!(announced(&*store, bookie.id()).await, None);
    bookie.shutdown().await;
}

const TOKEN: CreationToken = CreationToken([3; 16]);

async fn ask(
    bookie: &Bookie,
    ledger: u64,
    operation: OrderedOperation,
) -> BookieResult<OrderedReply> {
    let (sender, answer) = oneshot::channel();
    let request = OrderedRequest {
        ledger: LedgerId(ledger),
        token: TOKEN,
        tenant: TenantKey::UNKNOWN,
        operation,
    };
    bookie.submit(request, Box::new(move |outcome| drop(sender.send(outcome))));
    timeout(PATIENCE, answer).await.unwrap().unwrap()
}

fn add(ledger: u64, entry: u64, recovery: bool) -> OrderedOperation {
    let data = EntryData {
        head: Bytes::from_static(b"head"),
        body: Bytes::from_static(b"body"),
    };
    let add = AddEntry::new(LedgerId(ledger), EntryId(entry), None, 8, data);
    OrderedOperation::Add(AddEntry { recovery, ..add })
}

/// A fresh bookie has no fence that would stop a former writer, so it takes a ledger that it does
/// not know only where metadata names it as a member.
#[tokio::test]
async fn a_ledger_begins_here_only_when_metadata_has_a_place_for_it() {
    let (folder, tasks) = (tempfile::tempdir().unwrap(), TaskGroup::new("test"));
    let store = store(&tasks).await;
    let bookie = open(folder.path());
    guard_new_ledgers(&bookie, Arc::clone(&store), &tasks);
    let write = async |ledger: u64, state, members: &[BookieId], token: CreationToken| {
        let fragment = |members: &[BookieId], first_entry_id| Fragment {
            first_entry_id,
            bookies: members.iter().map(|id| id.0.to_vec().into()).collect(),
        };
        let value = record::encode(LedgerRecord {
            state: i32::from(state),
            // The first fragment names it, which is not enough.
            fragments: vec![fragment(&[bookie.id()], 0), fragment(members, 7)],
            creation_token: token.0.to_vec().into(),
            ..LedgerRecord::default()
        });
        let key = keys::ledger(LedgerId(ledger));
        store.put("t/n", &key, value, Expect::Any).await.unwrap();
    };
    let (here, there) = ([bookie.id()], [BookieId([9; 16])]);
    write(1, LedgerState::Open, &here, TOKEN).await;
    write(2, LedgerState::Open, &there, TOKEN).await;
    write(3, LedgerState::InRecovery, &here, TOKEN).await;
    write(4, LedgerState::Closed, &here, TOKEN).await;
    write(5, LedgerState::Open, &here, CreationToken([4; 16])).await;

    assert!(ask(&bookie, 1, add(1, 7, false)).await.is_ok());
    let elsewhere = ask(&bookie, 2, add(2, 7, false)).await;
    assert!(
        matches!(elsewhere, Err(BookieError::Invalid(_))),
        "{elsewhere:?}"
    );
    for closed in [3, 4] {
        let refused = ask(&bookie, closed, add(closed, 7, false)).await;
        assert_eq!(refused, Err(BookieError::Fenced), "{closed}");
    }
    assert_eq!(
        ask(&bookie, 5, add(5, 7, false)).await,
        Err(BookieError::Token)
    );
    let unknown = ask(&bookie, 6, add(6, 0, false)).await;
    assert!(
        matches!(unknown, Err(BookieError::Invalid(_))),
        "{unknown:?}"
    );

    // Recovery and repair ask no other process.
    assert!(ask(&bookie, 4, add(4, 3, true)).await.is_ok());
    assert!(ask(&bookie, 3, OrderedOperation::Fence).await.is_ok());
    // Asked once: a ledger that has begun goes on without metadata.
    write(1, LedgerState::Closed, &there, TOKEN).await;
    assert!(ask(&bookie, 1, add(1, 8, false)).await.is_ok());
    // A refusal is not for ever.
    write(2, LedgerState::Open, &here, TOKEN).await;
    assert!(ask(&bookie, 2, add(2, 7, false)).await.is_ok());

    // A writer that chose it before it was to become empty is told so, whatever it has heard
    // itself.
    write(7, LedgerState::Open, &here, TOKEN).await;
    write(8, LedgerState::Open, &here, TOKEN).await;
    let draining = async |draining| {
        let cookie = CookieRecord {
            draining,
            ..CookieRecord::default()
        };
        let (key, value) = (keys::cookie(bookie.id()), record::encode(cookie));
        store.put("", &key, value, Expect::Any).await.unwrap();
    };
    draining(true).await;
    let refused = ask(&bookie, 7, add(7, 7, false)).await;
    assert!(
        matches!(refused, Err(BookieError::ReadOnly(_))),
        "{refused:?}"
    );
    draining(false).await;
    assert!(ask(&bookie, 8, add(8, 7, false)).await.is_ok());
    bookie.shutdown().await;
}

/// Requests that wait behind the question are answered in order; no request waits for an answer
/// that does not come.
#[tokio::test]
async fn requests_wait_behind_the_question_and_a_lost_answer_refuses() {
    let folder = tempfile::tempdir().unwrap();
    let bookie = open(folder.path());
    let (sender, questions) = std::sync::mpsc::sync_channel(8);
    bookie.guard(Box::new(move |_, _, answer| sender.send(answer).unwrap()));
    let submit = |operation| {
        let (sender, answer) = oneshot::channel();
        let request = OrderedRequest {
            ledger: LedgerId(1),
            token: TOKEN,
            tenant: TenantKey::UNKNOWN,
            operation,
        };
        bookie.submit(request, Box::new(move |outcome| drop(sender.send(outcome))));
        answer
    };
    let answered = async |answer: oneshot::Receiver<BookieResult<OrderedReply>>| {
        timeout(PATIENCE, answer).await.unwrap().unwrap()
    };
    let one = submit(add(1, 0, false));
    let two = submit(add(1, 1, false));
    let first = questions.recv_timeout(PATIENCE).unwrap();
    drop(first);
    assert_eq!(answered(one).await, Err(BookieError::ShuttingDown));
    assert_eq!(answered(two).await, Err(BookieError::ShuttingDown));

    let before = submit(add(1, 0, false));
    let fence = submit(OrderedOperation::Fence);
    let behind = submit(add(1, 1, false));
    questions.recv_timeout(PATIENCE).unwrap().give(Ok(()));
    assert!(answered(before).await.is_ok());
    assert!(answered(fence).await.is_ok());
    assert_eq!(
        answered(behind).await,
        Err(BookieError::Fenced),
        "one order (H3)"
    );
    bookie.shutdown().await;
}
