//! The death of a process at a chosen step: after a number of changes of the world outside, nothing
//! that the process does has any effect, and nothing is answered.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aquifer_metadata::error::MetadataResult;
use aquifer_metadata::intercept::Intercept;
use aquifer_metadata::store::{
    MetadataStore, PageToken, Revision, ScanPage, Transaction, Until, Versioned,
};
use aquifer_model::id::BookieId;
use aquifer_model::storage::{
    BookieResult, OrderedRequest, Presence, PresenceRange, ReadBatch, ReadRange, ReplyCallback,
    TailState, TailWait,
};
use async_trait::async_trait;

use crate::transport::BookieTransport;

/// What becomes of the step at which the process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    /// It never happens.
    Before,
    /// It happens, and the process does not learn of it.
    After,
}

/// Counts the changes that a process makes, and ends its life.
#[derive(Debug)]
pub struct Fuse {
    steps: AtomicU64,
    last: u64,
    blow: Blow,
}

enum Fate {
    Lives,
    Dies,
    Dead,
}

impl Fuse {
    /// A process that completes `steps` changes and dies at the next.
    #[must_use]
    pub fn new(steps: u64, blow: Blow) -> Arc<Fuse> {
        Arc::new(Fuse {
            steps: AtomicU64::new(0),
            last: steps,
            blow,
        })
    }

    /// Whether the process has died.
    #[must_use]
    pub fn is_blown(&self) -> bool {
        self.steps.load(Ordering::SeqCst) > self.last
    }

    fn step(&self) -> Fate {
        match self.steps.fetch_add(1, Ordering::SeqCst) {
            step if step < self.last => Fate::Lives,
            step if step == self.last => Fate::Dies,
            _ => Fate::Dead,
        }
    }

    /// The process's way to bookies.
    #[must_use]
    pub fn transport(self: &Arc<Fuse>, inner: Arc<dyn BookieTransport>) -> Arc<FusedTransport> {
        Arc::new(FusedTransport {
            fuse: Arc::clone(self),
            inner,
        })
    }

    /// The process's way to metadata.
    #[must_use]
    pub fn store(self: &Arc<Fuse>, inner: Arc<dyn MetadataStore>) -> Arc<FusedStore> {
        Arc::new(FusedStore {
            fuse: Arc::clone(self),
            inner,
        })
    }
}

/// Bookies as a process sees them that will die.
pub struct FusedTransport {
    fuse: Arc<Fuse>,
    inner: Arc<dyn BookieTransport>,
}

#[async_trait]
impl BookieTransport for FusedTransport {
    fn submit(&self, bookie: BookieId, request: OrderedRequest, reply: ReplyCallback) {
        match (self.fuse.step(), self.fuse.blow) {
            (Fate::Lives, _) => self.inner.submit(bookie, request, reply),
            (Fate::Dies, Blow::After) => self.inner.submit(bookie, request, Box::new(drop)),
            (Fate::Dies, Blow::Before) | (Fate::Dead, _) => {}
        }
    }

    async fn read(&self, bookie: BookieId, range: ReadRange) -> BookieResult<ReadBatch> {
        if self.fuse.is_blown() {
            return pending().await;
        }
        self.inner.read(bookie, range).await
    }

    async fn has(&self, bookie: BookieId, range: PresenceRange) -> BookieResult<Presence> {
        if self.fuse.is_blown() {
            return pending().await;
        }
        self.inner.has(bookie, range).await
    }

    async fn wait(&self, bookie: BookieId, wait: TailWait) -> BookieResult<TailState> {
        if self.fuse.is_blown() {
            return pending().await;
        }
        self.inner.wait(bookie, wait).await
    }
}

/// Metadata as a process sees it that will die.
pub struct FusedStore {
    fuse: Arc<Fuse>,
    inner: Arc<dyn MetadataStore>,
}

#[async_trait]
impl Intercept for FusedStore {
    fn inner(&self) -> &dyn MetadataStore {
        &*self.inner
    }

    async fn on_get(&self, key: &str) -> MetadataResult<Option<Versioned>> {
        if self.fuse.is_blown() {
            return pending().await;
        }
        self.inner.get(key).await
    }

    async fn on_scan(
        &self,
        prefix: &str,
        page: Option<PageToken>,
        limit: usize,
    ) -> MetadataResult<ScanPage> {
        if self.fuse.is_blown() {
            return pending().await;
        }
        self.inner.scan(prefix, page, limit).await
    }

    async fn on_commit(&self, transaction: Transaction, until: Until) -> MetadataResult<Revision> {
        match (self.fuse.step(), self.fuse.blow) {
            (Fate::Lives, _) => return self.inner.commit_until(transaction, until).await,
            (Fate::Dies, Blow::After) => drop(self.inner.commit_until(transaction, until).await),
            (Fate::Dies, Blow::Before) | (Fate::Dead, _) => {}
        }
        pending().await
    }
}
