//! Audit and repair against bookies and metadata in memory. Whatever happens, an acknowledged
//! entry has its Qw intact copies again in the end (I2), or a mark says that it has not.

mod at_once;
mod audits;
mod crash;
mod deletions;
mod history;
mod holes;
mod looks;
mod newer;
mod offloaded;
mod repairs;
mod running;

use std::sync::Arc;
use std::time::Duration;

use aquifer_ledger::context::LedgerContext;
use aquifer_ledger::error::LedgerError;
use aquifer_ledger::ledger_metadata::{self, LedgerInfo, LedgerState};
use aquifer_ledger::marks::{self, Mark};
use aquifer_ledger::members::Members;
use aquifer_ledger::placement::BookieInfo;
use aquifer_ledger::testing::{Fuse, Mode, TestWorld};
use aquifer_ledger::writer::driver::{LedgerWriter, WriterOwner};
use aquifer_ledger::writer::machine::LedgerEnd;
use aquifer_metadata::store::Operation;
use aquifer_metadata::store::{Expect, Guard, MetadataStore, Revision, Session, Transaction};
use aquifer_metadata::{keys, record};
use aquifer_model::entry::EntryData;
use aquifer_model::id::{BookieId, CreationToken, EntryId, LedgerId};
use aquifer_model::quorum::Quorum;
use aquifer_proto::v1;
use aquifer_runtime::clock;
use bytes::Bytes;
use opentelemetry::metrics::MeterProvider;
use opentelemetry::metrics::noop::NoopMeterProvider;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::*;

pub(super) const HOME: &str = "public/default";

pub(super) fn quorum(ensemble: u32, write: u32, ack: u32) -> Quorum {
    Quorum::new(ensemble, write, ack).unwrap()
}

pub(super) fn bookie(n: u8) -> BookieId {
    BookieId([n; 16])
}

pub(super) fn payload(ledger: LedgerId, entry: u64) -> Bytes {
    Bytes::from(format!("{ledger}:{entry} {}", "x".repeat(40)))
}

/// Hears what a writer acknowledges.
#[derive(Default)]
pub(super) struct Heard {
    acknowledged: watch::Sender<u64>,
    stopped: Mutex<Option<LedgerError>>,
}

impl WriterOwner for Heard {
    fn added(&self, _: LedgerId, entry: EntryId) {
        self.acknowledged.send_replace(entry.0 + 1);
    }

    fn stopped(&self, _: LedgerId, error: LedgerError) {
        *self.stopped.lock() = Some(error);
        self.acknowledged.send_modify(|_| ());
    }
}

/// A ledger with its writer.
pub(super) struct Open {
    pub(super) id: LedgerId,
    pub(super) writer: LedgerWriter,
    pub(super) heard: Arc<Heard>,
    appended: u64,
}

impl Open {
    /// Appends and waits until everything is acknowledged, or the writer is stopped.
    pub(super) async fn append(&mut self, count: u64) -> Option<LedgerError> {
        for _ in 0..count {
            let data = EntryData {
                head: Bytes::new(),
                body: payload(self.id, self.appended),
            };
            if self.writer.enqueue(data, None).is_none() {
                break;
            }
            self.appended += 1;
        }
        self.writer.flush();
        let mut acknowledged = self.heard.acknowledged.subscribe();
        let done = |count: &u64| *count >= self.appended || self.heard.stopped.lock().is_some();
        let _ = acknowledged.wait_for(done).await;
        self.heard.stopped.lock().clone()
    }

    pub(super) fn acknowledged(&self) -> u64 {
        *self.heard.acknowledged.borrow()
    }
}

/// Repair over these ledgers.
pub(super) fn repairing(ledgers: Arc<LedgerContext>) -> Arc<RepairContext> {
    RepairContext::new(ledgers, &NoopMeterProvider::new().meter("test"))
}

/// A cluster of test bookies that are registered.
pub(super) struct Cluster {
    pub(super) world: TestWorld,
    pub(super) ctx: Arc<RepairContext>,
    pub(super) config: ReplicationConfig,
}

impl Cluster {
    pub(super) async fn new(bookies: u8) -> Cluster {
        let world = TestWorld::new(bookies);
        let ctx = repairing(world.process());
        let config = ReplicationConfig {
            repair_bytes_per_second: u64::MAX,
            scan_ms: 0,
            check_cycle_ms: 0,
            orphan_age_ms: 1_000,
            ..ReplicationConfig::default()
        };
        let cluster = Cluster { world, ctx, config };
        for n in 1..=bookies {
            cluster.register(bookie(n)).await;
        }
        cluster
    }

    pub(super) fn store(&self) -> &dyn MetadataStore {
        &*self.ctx.ledgers.store
    }

    async fn change(&self, operation: Operation) {
        self.change_at(keys::CLUSTER_PARTITION, operation).await;
    }

    pub(super) async fn change_at(&self, partition: &str, operation: Operation) {
        let transaction = Transaction {
            partition: partition.to_owned(),
            guards: Vec::new(),
            operations: vec![operation],
        };
        self.store().commit(transaction).await.unwrap();
    }

    pub(super) async fn register(&self, bookie: BookieId) {
        self.world.bookies.set_mode(bookie, Mode::Up);
        self.change(Operation::Put {
            key: keys::bookie(bookie),
            value: record::encode(v1::BookieRecord::default()),
            expect: Expect::Any,
        })
        .await;
        self.refresh().await;
    }

    /// The bookie vanishes, with its registration.
    pub(super) async fn lose(&self, bookie: BookieId) {
        self.world.bookies.set_mode(bookie, Mode::Unreachable);
        self.change(Operation::Delete {
            key: keys::bookie(bookie),
            expect: Expect::Any,
        })
        .await;
        self.refresh().await;
    }

    /// What placement of every process knows: the registered bookies.
    async fn refresh(&self) {
        let members = Members::load(self.store()).await.unwrap();
        let known = members.registered().into_iter().map(|id| BookieInfo {
            id,
            zone: String::new(),
            read_only: false,
            free_bytes: 0,
            capacity_bytes: 0,
        });
        self.ctx.ledgers.bookies.replace(known.collect());
    }

    pub(super) async fn open(&self, quorum: Quorum) -> Open {
        let members = self.ctx.ledgers.bookies.snapshot();
        let members = members.iter().map(|info| info.id);
        let members = members.take(quorum.ensemble()).collect();
        self.open_on(quorum, members).await
    }

    pub(super) async fn open_on(&self, quorum: Quorum, members: Vec<BookieId>) -> Open {
        let mut info = LedgerInfo {
            id: self
                .ctx
                .ledgers
                .shared
                .ledger_ids
                .next(self.store(), LedgerId(0))
                .await
                .unwrap(),
            token: CreationToken(self.ctx.ledgers.rng.id16()),
            quorum,
            state: LedgerState::Open,
            fragments: [(EntryId::FIRST, members)].into(),
            home: HOME.to_owned(),
            recovery_epoch: 0,
            created_ms: self.ctx.ledgers.clock.wall_ms(),
            offload: None,
            revision: Revision(0),
        };
        let transaction = Transaction {
            partition: HOME.to_owned(),
            guards: Vec::new(),
            operations: vec![info.put(Expect::Absent)],
        };
        info.revision = self.store().commit(transaction).await.unwrap();
        let id = info.id;
        let heard = Arc::new(Heard::default());
        let owner: Arc<dyn WriterOwner> = heard.clone();
        let writer = LedgerWriter::new(
            self.ctx.ledgers.clone(),
            info,
            aquifer_ledger::guards::Guards::default(),
            Arc::downgrade(&owner),
            false,
        );
        Open {
            id,
            writer,
            heard,
            appended: 0,
        }
    }

    /// Closes a ledger at what is acknowledged.
    pub(super) async fn close(&self, ledger: &Open) {
        let end = ledger.writer.finish();
        let mut info = self.info(ledger.id).await;
        info.state = LedgerState::Closed(LedgerEnd { ..end });
        let no_guards: &[Guard] = &[];
        ledger_metadata::replace(self.store(), &mut info, no_guards)
            .await
            .unwrap();
    }

    /// A closed ledger with this many entries.
    pub(super) async fn closed(&self, quorum: Quorum, entries: u64) -> LedgerId {
        let mut ledger = self.open(quorum).await;
        assert_eq!(ledger.append(entries).await, None);
        self.close(&ledger).await;
        ledger.id
    }

    pub(super) async fn info(&self, ledger: LedgerId) -> LedgerInfo {
        ledger_metadata::load_existing(self.store(), ledger)
            .await
            .unwrap()
    }

    pub(super) fn pass_time(&self, duration: Duration) {
        let clock = self.world.clock.as_ref().expect("moved by hand");
        clock.advance(duration);
    }

    pub(super) async fn session(&self) -> Arc<dyn Session> {
        let session = self.store().open_session(Duration::from_secs(6)).await;
        session.unwrap().into()
    }

    pub(super) fn auditor(&self) -> Auditor {
        Auditor::new(self.ctx.clone(), self.config.clone())
    }

    pub(super) async fn worker(&self) -> RepairWorker {
        let session = self.session().await;
        RepairWorker::new(self.ctx.clone(), session, &self.config, "test".to_owned())
    }

    /// A worker that dies at a step.
    pub(super) async fn fused_worker(&self, fuse: &Arc<Fuse>) -> RepairWorker {
        let ctx = repairing(self.world.fused_process(fuse));
        ctx.ledgers
            .bookies
            .replace(self.ctx.ledgers.bookies.snapshot().as_ref().clone());
        let session = self.session().await;
        RepairWorker::new(ctx, session, &self.config, "mortal".to_owned())
    }

    pub(super) async fn mark(&self, mark: Mark) {
        marks::write(self.store(), &mark).await.unwrap();
    }

    pub(super) fn marks(&self) -> Vec<String> {
        self.world.store.keys(keys::UNDER_REPLICATED_PREFIX)
    }

    /// Lets the grace of lost bookies pass, and auditor and worker go on until nothing more can be
    /// done.
    pub(super) async fn repair_all(&self) -> AuditReport {
        let mut auditor = self.auditor();
        let mut worker = self.worker().await;
        auditor.pass().await.unwrap();
        self.pass_time(Duration::from_millis(self.config.lost_after_ms));
        for _ in 0..100 {
            let report = auditor.pass().await.unwrap();
            let round = worker.round().await.unwrap();
            // What waits for the end of an open ledger goes on waiting.
            if report.remaining == 0 && round.repaired == 0 {
                return report;
            }
            self.pass_time(Duration::from_millis(self.config.open_ledger_grace_ms));
            self.pass_time(Duration::from_secs(300));
        }
        panic!("repair does not come to an end");
    }

    /// Every entry up to the end is intact at all of its Qw places.
    pub(super) async fn assert_whole(&self, ledger: LedgerId, entries: u64) {
        let info = self.info(ledger).await;
        for entry in 0..entries {
            let (members, _) = info.duties().at(EntryId(entry)).unwrap();
            for position in info.quorum.write_set(entry) {
                let copy = self
                    .world
                    .bookies
                    .intact(members[position], ledger, EntryId(entry));
                assert_eq!(
                    copy,
                    Some(payload(ledger, entry)),
                    "entry {ledger}:{entry} at position {position} of {members:?}"
                );
            }
        }
    }
}

/// Waits for a condition that tasks make true.
pub(super) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = clock::timeout(Duration::from_secs(60), async {
        while !condition() {
            clock::sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(waited.await.is_ok(), "never: {what}");
}
