//! What a bookie hosts, on three real bookies and metadata in memory.

use std::collections::BTreeMap;

use aquifer_metadata::store::{Expect, MetadataStore};
use aquifer_model::storage::{BookieError, OrderedOperation};
use aquifer_proto::v1;
use aquifer_runtime::disk::RealDisk;
use aquifer_runtime::rng::SeededRng;
use bytes::Bytes;
use opentelemetry::metrics::MeterProvider;
use opentelemetry::metrics::noop::NoopMeterProvider;

mod damage;
mod restore;

use super::*;
use crate::tests::{
    add_request, ask, config, corrupt, deps, done, expect, flush_all, range, read_one,
    recovery_add, token,
};
use crate::{BookieConfig, BookieDeps};

const PATIENCE: Duration = Duration::from_secs(60);
const LEN: usize = 100;

struct Router(BTreeMap<BookieId, Bookie>);

#[async_trait]
impl BookieTransport for Router {
    fn submit(&self, bookie: BookieId, request: OrderedRequest, reply: ReplyCallback) {
        self.0[&bookie].submit(request, reply);
    }

    async fn read(&self, bookie: BookieId, range: ReadRange) -> BookieResult<ReadBatch> {
        self.0[&bookie].read(range).await
    }

    async fn has(&self, bookie: BookieId, range: PresenceRange) -> BookieResult<Presence> {
        self.0[&bookie].has(range).await
    }

    async fn wait(&self, bookie: BookieId, wait: TailWait) -> BookieResult<TailState> {
        self.0[&bookie].wait(wait).await
    }
}

/// Three bookies with ledger 1, closed with five entries, in one process.
struct World {
    bookies: Vec<Bookie>,
    store: MemoryStore,
    ctx: Arc<RepairContext>,
    tasks: TaskGroup,
    _directory: tempfile::TempDir,
}

impl World {
    async fn new() -> World {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let bookies: Vec<Bookie> = blocking(move || {
            let filled = |n: u64| {
                let bookie = opened(config(&path.join(n.to_string())), n);
                fill(&bookie, [1]);
                bookie
            };
            (1..=3).map(filled).collect()
        })
        .await;
        World::of(bookies, directory).await
    }

    async fn of(bookies: Vec<Bookie>, directory: tempfile::TempDir) -> World {
        let routes = bookies.iter().map(|b| (b.id(), b.clone())).collect();
        let store = MemoryStore::default();
        let ledgers = TestWorld::new(0).process_with(
            Arc::new(store.clone()),
            Arc::new(Router(routes)),
            TestWorld::settings(),
        );
        let ctx = RepairContext::new(ledgers, &NoopMeterProvider::new().meter("test"));
        let world = World {
            bookies,
            store,
            ctx,
            tasks: TaskGroup::new("test"),
            _directory: directory,
        };
        world.record(1, v1::LedgerState::Closed, &[]).await;
        world
    }

    /// Writes the record of a ledger with entries 0 to 4 on all bookies; `last` are the members of
    /// a fragment behind these.
    async fn record(&self, ledger: u64, state: v1::LedgerState, last: &[Bytes]) {
        let fragment = |first_entry_id, bookies| v1::Fragment {
            first_entry_id,
            bookies,
        };
        let mut fragments = vec![fragment(0, self.ids())];
        if !last.is_empty() {
            fragments.push(fragment(5, last.to_vec()));
        }
        let closed = state == v1::LedgerState::Closed;
        let record = record::encode(v1::LedgerRecord {
            ensemble: 3,
            write_quorum: 3,
            ack_quorum: 2,
            state: state.into(),
            fragments,
            last_entry_id: closed.then_some(4),
            length_bytes: if closed { 500 } else { 0 },
            creation_token: token(ledger).0.to_vec().into(),
            ..v1::LedgerRecord::default()
        });
        self.put(keys::ledger(LedgerId(ledger)), record).await;
    }

    fn ids(&self) -> Vec<Bytes> {
        let ids = self.bookies.iter().map(|b| b.id().0.to_vec().into());
        ids.collect()
    }

    async fn put(&self, key: String, value: Bytes) {
        let partition = keys::CLUSTER_PARTITION;
        let put = self.store.put(partition, &key, value, Expect::Any).await;
        put.unwrap();
    }

    fn start(&self, n: usize) {
        let config = AutorecoveryConfig {
            enabled: false,
            deletions_poll_ms: 10,
            ..AutorecoveryConfig::default()
        };
        start(&self.bookies[n], &self.ctx, &config, None, &self.tasks);
    }

    async fn end(self) {
        self.tasks.drain(PATIENCE).await;
        for bookie in &self.bookies {
            bookie.shutdown().await;
        }
    }
}

/// The bookie of this number.
fn opened(config: BookieConfig, n: u64) -> Bookie {
    let deps = BookieDeps {
        rng: SeededRng::shared(n),
        ..deps(RealDisk::shared())
    };
    Bookie::open(config, deps).unwrap()
}

/// Adds entries 0 to 4 of each of these ledgers, and flushes.
fn fill(bookie: &Bookie, ledgers: impl IntoIterator<Item = u64>) {
    for ledger in ledgers {
        for entry in 0..5 {
            done(ask(bookie, add_request(ledger, entry, LEN)));
        }
    }
    flush_all(bookie);
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = clock::timeout(PATIENCE, async {
        while !condition() {
            clock::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "never: {what}");
}

/// Asks from a thread that may block.
async fn blocking<T: Send + 'static>(ask: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(ask).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_reader_finds_damaged_comes_back_from_another_bookie() {
    let world = World::new().await;
    world.start(0);
    let bookie = world.bookies[0].clone();
    corrupt(&bookie, 1, 2);
    let found = bookie.read(range(1, 2, 2)).await;
    assert!(matches!(found, Err(BookieError::Digest(_))), "{found:?}");
    let repaired = clock::timeout(PATIENCE, async {
        while bookie.read(range(1, 2, 2)).await.is_err() {
            clock::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(repaired.await.is_ok(), "never repaired");
    blocking(move || expect(&bookie, 1, 2, LEN)).await;
    world.end().await;
}

/// How far a ledger goes whose end a bookie cannot read says the record: it is left to a worker.
#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_whose_end_is_hidden_is_marked() {
    let world = World::new().await;
    world.start(1);
    let scrubber = &world.bookies[1].core.scrubber;
    // Not a ledger of this cluster: no process is to look after it.
    scrubber.end_hidden(LedgerId(9), EntryId(0));
    scrubber.end_hidden(LedgerId(1), EntryId(3));
    let marked = || world.store.keys(keys::UNDER_REPLICATED_PREFIX);
    eventually("it is marked", || !marked().is_empty()).await;
    let key = keys::under_replicated(LedgerId(1));
    assert_eq!(marked(), std::slice::from_ref(&key));
    let stored = world.store.get(&key).await.unwrap().unwrap();
    let mark = Mark::decode(&stored).unwrap();
    assert_eq!(mark.doubted, [world.bookies[1].id()].into());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bookie_deletes_what_intents_say_and_obeys_its_cookie() {
    let world = World::new().await;
    let intent = v1::DeletionIntent {
        ledger_id: 1,
        bookies: world.ids(),
        creation_token: token(1).0.to_vec().into(),
        home: "public/default".to_owned(),
        ..v1::DeletionIntent::default()
    };
    let key = keys::deletion(LedgerId(1));
    world.put(key.clone(), record::encode(intent)).await;
    let (first, id) = (world.bookies[0].clone(), world.bookies[0].id());
    let cookie = |draining, decommissioned_ms| {
        record::encode(CookieRecord {
            draining,
            decommissioned_ms,
            ..CookieRecord::default()
        })
    };
    world.put(keys::cookie(id), cookie(true, 0)).await;
    (0..3).for_each(|n| world.start(n));
    let store = world.store.clone();
    eventually("all have deleted", || store.keys(&key).is_empty()).await;
    assert!(store.keys(keys::LEDGERS_PREFIX).is_empty());
    let gone = first.read(range(1, 0, 0)).await;
    assert_eq!(gone, Err(BookieError::Deleted));
    let bookie = first.clone();
    let draining = blocking(move || {
        done(ask(&bookie, recovery_add(2, 0, LEN)));
        ask(&bookie, add_request(3, 0, LEN))
    });
    assert!(matches!(draining.await, Err(BookieError::ReadOnly(_))));
    world.put(keys::cookie(id), cookie(true, 1)).await;
    let why = clock::timeout(PATIENCE, first.failed()).await.unwrap();
    assert!(why.contains("decommissioned"), "{why}");
    world.end().await;
}

/// The bookie's own audit, from the listing of its store to the tombstone.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_without_a_ledger_is_deleted_after_two_audits() {
    let world = World::new().await;
    let bookie = world.bookies[1].clone();
    let stray = bookie.clone();
    blocking(move || {
        done(ask(&stray, add_request(7, 0, LEN)));
        flush_all(&stray);
    })
    .await;
    let ids = record::encode(v1::IdRangeRecord { next: 100 });
    world.put(keys::id_range(keys::IDS_LEDGER), ids).await;
    let config = ReplicationConfig::default();
    let mut audit = LocalAudit::new(world.ctx.clone(), bookie.id(), &config);
    let first = audit_once(&bookie, &mut audit).await.unwrap();
    assert_eq!((first.stored, first.suspects), (2, 1));
    assert!(first.intents.is_empty());
    let second = audit_once(&bookie, &mut audit).await.unwrap();
    assert_eq!(second.intents, [LedgerId(7)]);
    let swept = sweep_intents_of(&world.ctx.ledgers, bookie.id()).await;
    assert_eq!(swept, Ok(1));
    let deleted = bookie.clone();
    let ask_again = move || {
        let fence = crate::tests::request(7, OrderedOperation::Fence);
        (read_one(&deleted, 7, 0).err(), ask(&deleted, fence).err())
    };
    let gone = Some(BookieError::Deleted);
    assert_eq!(blocking(ask_again).await, (gone.clone(), gone));
    let unlisted = async {
        while bookie.ledgers(None, 10).await.unwrap().len() > 1 {
            clock::sleep(Duration::from_millis(5)).await;
        }
    };
    clock::timeout(PATIENCE, unlisted).await.unwrap();
    world.end().await;
}
