//! Metadata with delays, outages and lost answers, over the store in memory.

use std::sync::Arc;
use std::time::Duration;

use aquifer_ledger::testing::MemoryStore;
use aquifer_metadata::error::{MetadataError, MetadataResult};
use aquifer_metadata::store::{
    MetadataStore, Operation, PageToken, Revision, ScanPage, Session, Transaction, Until,
    Versioned, Watch,
};
use aquifer_metadata::{keys, record};
use aquifer_proto::v1;
use aquifer_runtime::clock::{SharedClock, sleep};
use aquifer_runtime::rng::SharedRng;
use async_trait::async_trait;
use parking_lot::Mutex;

use crate::cluster::history::History;
use crate::cluster::net::Net;
use crate::defect::Defect;

/// The store of the cluster.
pub(super) struct SharedStore {
    inner: MemoryStore,
    rng: SharedRng,
    clock: SharedClock,
    history: Arc<History>,
    defect: Option<Defect>,
    away_until: Mutex<Duration>,
}

/// The store as a process sees it.
struct Seen {
    store: Arc<SharedStore>,
    net: Arc<Net>,
    process: u32,
}

impl SharedStore {
    pub(super) fn new(
        rng: SharedRng,
        clock: SharedClock,
        history: Arc<History>,
        defect: Option<Defect>,
    ) -> Arc<SharedStore> {
        Arc::new(SharedStore {
            inner: MemoryStore::default(),
            rng,
            clock,
            history,
            defect,
            away_until: Mutex::default(),
        })
    }

    pub(super) fn of_process(
        self: &Arc<SharedStore>,
        process: u32,
        net: &Arc<Net>,
    ) -> Arc<dyn MetadataStore> {
        Arc::new(Seen {
            store: Arc::clone(self),
            net: Arc::clone(net),
            process,
        })
    }

    /// It is unreachable for this time.
    pub(super) fn go_away(&self, pause: Duration) {
        *self.away_until.lock() = self.clock.monotonic() + pause;
    }

    pub(super) fn heal(&self) {
        *self.away_until.lock() = Duration::ZERO;
    }

    fn is_away(&self) -> bool {
        self.clock.monotonic() < *self.away_until.lock()
    }
}

impl Seen {
    /// Whether a change moves a part of a fragment of a closed ledger, and leaves the rest where it
    /// is.
    async fn splits_closed_ledger(&self, transaction: &Transaction) -> MetadataResult<bool> {
        for operation in &transaction.operations {
            let Operation::Put { key, value, .. } = operation else {
                continue;
            };
            let former = self.store.inner.get(key).await?;
            let Some(former) = former.filter(|_| key.starts_with(keys::LEDGERS_PREFIX)) else {
                continue;
            };
            let new = Versioned {
                value: value.clone(),
                ..former.clone()
            };
            let (former, new): (v1::LedgerRecord, v1::LedgerRecord) =
                (record::decode(&former)?, record::decode(&new)?);
            let closed = former.state() == v1::LedgerState::Closed;
            if closed && new.fragments.len() > former.fragments.len() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The way there: dead processes never arrive, frozen ones later.
    async fn travel(&self) -> MetadataResult<()> {
        sleep(Duration::from_millis(1 + self.store.rng.below(3))).await;
        loop {
            let (dead, frozen_until) = self.net.fate(self.process);
            if dead {
                return std::future::pending().await;
            }
            let now = self.store.clock.monotonic();
            let frozen_until = Duration::from_micros(frozen_until);
            if now >= frozen_until {
                break;
            }
            sleep(frozen_until - now).await;
        }
        if self.store.is_away() {
            return Err(MetadataError::Unavailable("simulated outage".to_owned()));
        }
        Ok(())
    }
}

#[async_trait]
impl MetadataStore for Seen {
    async fn get(&self, key: &str) -> MetadataResult<Option<Versioned>> {
        self.travel().await?;
        self.store.inner.get(key).await
    }

    async fn scan(
        &self,
        prefix: &str,
        page: Option<PageToken>,
        limit: usize,
    ) -> MetadataResult<ScanPage> {
        self.travel().await?;
        self.store.inner.scan(prefix, page, limit).await
    }

    async fn commit_until(
        &self,
        mut transaction: Transaction,
        until: Until,
    ) -> MetadataResult<Revision> {
        if self.store.defect == Some(Defect::IncompleteLedgerNotMarked) {
            let is_mark = |key: &str| key.starts_with(keys::UNDER_REPLICATED_PREFIX);
            let operations = &mut transaction.operations;
            operations.retain(|o| !matches!(o, Operation::Put { key, .. } if is_mark(key)));
        }
        self.travel().await?;
        if self.store.defect == Some(Defect::RepairStopsAtHole)
            && self.splits_closed_ledger(&transaction).await?
        {
            return Err(MetadataError::Unavailable("the defect".to_owned()));
        }
        let revision = self.store.inner.commit(transaction.clone()).await?;
        self.store.history.committed(&transaction);
        self.net.note(("commit", revision.0));
        let (lost, back) = (self.store.rng.below(25) == 0, 1 + self.store.rng.below(3));
        sleep(Duration::from_millis(back)).await;
        if self.net.fate(self.process).0 {
            return std::future::pending().await;
        }
        if lost || self.store.is_away() {
            let for_good = self.store.rng.below(4) == 0;
            if until == Until::Deadline || for_good {
                return Err(MetadataError::UnknownOutcome("simulated".to_owned()));
            }
            // The store is asked until it tells.
            while self.travel().await.is_err() {}
        }
        Ok(revision)
    }

    async fn watch(&self, prefix: &str, after: Revision) -> MetadataResult<Box<dyn Watch>> {
        self.store.inner.watch(prefix, after).await
    }

    async fn open_session(&self, ttl: Duration) -> MetadataResult<Box<dyn Session>> {
        self.store.inner.open_session(ttl).await
    }
}
