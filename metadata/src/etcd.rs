//! The store in etcd, which the processes of a cluster share.
//!
//! Everything is below one root, so that clusters may share an etcd. Invariants:
//! - A commit is one transaction of etcd and applied at most once. Its answer is definite whenever
//!   etcd can be asked again for as long as the caller waits; `UnknownOutcome` otherwise
//!   ([`slots`]).
//! - Reads are linearizable; the pages of a scan are of one revision.
//! - A watch brings every event after its revision once, in order, whatever connections, members
//!   and leaders do, or it ends with a resync ([`watch`]).
//! - A session is believed in for no longer than its time to live after a renewal was sent
//!   ([`lease`]).
//! - Every request has a deadline, but for the question what became of a commit whose caller
//!   waits until that is known. What etcd sends is never trusted to be well formed.
//!
//! It must not hand out anything as a lock: a lease steers, conditions and fencing decide (I4).

mod commit;
mod config;
mod endpoints;
mod errors;
mod lease;
mod members;
mod session;
mod shared;
mod slots;
mod space;
mod usage_watch;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aquifer_model::limits::METADATA_PAGE_KEYS_MAX;
use aquifer_runtime::clock::SharedClock;
use aquifer_runtime::rng::SharedRng;
use aquifer_runtime::task::TaskGroup;
use async_trait::async_trait;
use etcd_client::Client;
use opentelemetry::metrics::Meter;
use tokio_util::sync::CancellationToken;

use crate::error::MetadataResult;
use crate::limits;
use crate::store::{
    MetadataStore, PageToken, Revision, ScanPage, Session, Transaction, Until, Usage, Versioned,
    Watch,
};
use commit::Request;
pub use config::EtcdConfig;
use endpoints::Endpoints;
pub use members::{EtcdMember, MemberStatus};
use session::EtcdSession;
use shared::Shared;
use slots::Slots;
use space::Space;
use usage_watch::UsageWatch;
use watch::EtcdWatch;

/// A metadata store in etcd.
#[derive(Debug)]
pub struct EtcdStore {
    shared: Arc<Shared>,
}

impl EtcdStore {
    /// Connects to etcd and makes sure that it can be read.
    ///
    /// # Errors
    /// `Invalid` when the settings are not usable or etcd refuses the user; `Unavailable` when no
    /// member answers before the deadline of a request.
    pub async fn connect(
        config: &EtcdConfig,
        clock: SharedClock,
        rng: SharedRng,
        tasks: &TaskGroup,
    ) -> MetadataResult<EtcdStore> {
        let endpoints = Endpoints::new(config, rng).await?;
        let shared = Arc::new(Shared {
            space: Space::new(&config.cluster),
            endpoints: Arc::new(endpoints),
            slots: Slots::new(),
            clock,
            usage: UsageWatch::default(),
            watch_restarts: Arc::new(AtomicU64::new(0)),
            quota_bytes: config.quota_bytes,
            tasks: tasks.clone(),
            closed: CancellationToken::new(),
        });
        let store = EtcdStore { shared };
        store.scan("", None, 1).await?;
        store.shared.look_at_usage().await;
        let watched = Arc::clone(&store.shared);
        drop(tasks.spawn("etcd-usage", usage_watch::watch(watched)));
        Ok(store)
    }

    /// Shows how many times watches had to start again: a stream broke or was compacted away, or
    /// was let go of because its events were not taken.
    pub fn show(&self, meter: &Meter) {
        let restarts = Arc::clone(&self.shared.watch_restarts);
        meter
            .u64_observable_counter("aquifer_metadata_watch_restarts_total")
            .with_callback(move |observer| observer.observe(restarts.load(Ordering::Relaxed), &[]))
            .build();
    }

    /// Closes the store: sessions are lost and expire unless they were closed before, watches
    /// end, and whatever is asked later is `Unavailable`.
    pub async fn close(&self) {
        if !self.shared.closed.is_cancelled() {
            self.shared.slots.revoke(&self.shared).await;
        }
        self.shared.closed.cancel();
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        self.shared.closed.cancel();
    }
}

#[async_trait]
impl MetadataStore for EtcdStore {
    async fn get(&self, key: &str) -> MetadataResult<Option<Versioned>> {
        self.shared.ensure_open()?;
        let full = self.shared.space.key(key);
        let get = |client: Client| {
            let full = full.clone();
            async move { client.kv_client().get(full, None).await }
        };
        let mut answer = self.shared.endpoints.call("a read", get).await?;
        let found = answer.take_kvs().into_iter().next();
        Ok(found.and_then(|found| self.shared.space.item(found.0)))
    }

    async fn scan(
        &self,
        prefix: &str,
        page: Option<PageToken>,
        limit: usize,
    ) -> MetadataResult<ScanPage> {
        self.shared.ensure_open()?;
        let (mut from, to) = self.shared.space.range(prefix);
        let limit = limit.clamp(1, METADATA_PAGE_KEYS_MAX);
        let limit = i64::try_from(limit).unwrap_or(1);
        let at = page.as_ref().map(|page| page.revision);
        if let Some(page) = page {
            from = from.max(Space::after(self.shared.space.key(&page.after)));
        }
        self.shared.page(from, &to, at, limit).await
    }

    async fn commit_until(
        &self,
        transaction: Transaction,
        until: Until,
    ) -> MetadataResult<Revision> {
        limits::check(&transaction)?;
        let request = Request::new(&self.shared.space, &transaction);
        self.shared.commit(request, until).await
    }

    fn usage(&self) -> Option<Usage> {
        self.shared.usage.usage()
    }

    async fn watch(&self, prefix: &str, after: Revision) -> MetadataResult<Box<dyn Watch>> {
        self.shared.ensure_open()?;
        Ok(Box::new(EtcdWatch::start(&self.shared, prefix, after)))
    }

    async fn open_session(&self, ttl: Duration) -> MetadataResult<Box<dyn Session>> {
        self.shared.ensure_open()?;
        let session = EtcdSession::open(Arc::clone(&self.shared), ttl).await?;
        Ok(Box::new(session))
    }
}
