//! Logs in a test world, for tests of this crate and of crates above it.

use std::sync::Arc;

use aquifer_cold::cache::{CacheBytes, ObjectCache};
use aquifer_cold::error::ColdResult;
use aquifer_cold::location::Locations;
use aquifer_cold::store::ColdStore;
pub use aquifer_cold::testing::MemoryColdStore;
use aquifer_ledger::context::{LedgerContext, LedgerSettings};
use aquifer_ledger::testing::{Fuse, TestWorld};
use aquifer_ledger::transport::BookieTransport;
use aquifer_metadata::store::MetadataStore;
use aquifer_model::id::BrokerId;
use opentelemetry::metrics::MeterProvider;
use opentelemetry::metrics::noop::NoopMeterProvider;

use crate::cache::EntryCache;
use crate::context::{LogContext, LogSettings, LogShared};
use crate::metrics::LogMetrics;
use crate::offload::tier::{ColdTier, OffloadSettings};
use crate::pages::Paging;

/// Processes with logs in a [`TestWorld`].
pub trait TestLogs {
    /// The context of a process.
    fn logs(&self) -> Arc<LogContext>;
    /// The context of a process that reaches the world only until `fuse` blows.
    fn fused_logs(&self, fuse: &Arc<Fuse>) -> Arc<LogContext>;
    /// The context of a process over these seams.
    fn logs_with(
        &self,
        store: Arc<dyn MetadataStore>,
        transport: Arc<dyn BookieTransport>,
        settings: LedgerSettings,
    ) -> Arc<LogContext>;
}

impl TestLogs for TestWorld {
    fn logs(&self) -> Arc<LogContext> {
        over(self.process(), settings())
    }

    fn fused_logs(&self, fuse: &Arc<Fuse>) -> Arc<LogContext> {
        over(self.fused_process(fuse), settings())
    }

    fn logs_with(
        &self,
        store: Arc<dyn MetadataStore>,
        transport: Arc<dyn BookieTransport>,
        ledger_settings: LedgerSettings,
    ) -> Arc<LogContext> {
        over(
            self.process_with(store, transport, ledger_settings),
            settings(),
        )
    }
}

/// Small ranges and pages: what tests want.
#[must_use]
pub fn settings() -> LogSettings {
    LogSettings {
        read_ahead_range_bytes: 64 * 1024,
        paging: Paging { kept: 2, page: 2 },
        ..LogSettings::default()
    }
}

/// Logs over these ledgers.
#[must_use]
pub fn over(ledgers: Arc<LedgerContext>, settings: LogSettings) -> Arc<LogContext> {
    with_cold(ledgers, settings, None)
}

/// Logs over these ledgers, which are offloaded into this store.
#[must_use]
pub fn over_cold(
    ledgers: Arc<LedgerContext>,
    store: &MemoryColdStore,
    offload: OffloadSettings,
) -> Arc<LogContext> {
    over_cold_of("test", ledgers, store, offload)
}

/// The same for a cluster of another name.
#[must_use]
pub fn over_cold_of(
    cluster: &str,
    ledgers: Arc<LedgerContext>,
    store: &MemoryColdStore,
    offload: OffloadSettings,
) -> Arc<LogContext> {
    over_cold_with(cluster, ledgers, store, (settings(), offload))
}

/// The same with these settings.
#[must_use]
pub fn over_cold_with(
    cluster: &str,
    ledgers: Arc<LedgerContext>,
    store: &MemoryColdStore,
    (settings, offload): (LogSettings, OffloadSettings),
) -> Arc<LogContext> {
    let store = store.clone();
    let opener = move |_: &str| -> ColdResult<Arc<dyn ColdStore>> { Ok(Arc::new(store.clone())) };
    let sources = (Arc::clone(&ledgers.clock), Arc::clone(&ledgers.rng));
    let metadata = Arc::clone(&ledgers.store);
    let locations = Locations::new(metadata, sources, cluster, "mem://1", Box::new(opener));
    let cache = ObjectCache::new(CacheBytes::default(), Arc::clone(&ledgers.clock));
    let worker = BrokerId(ledgers.rng.id16());
    let tier = ColdTier::new(
        locations,
        cache,
        offload,
        (worker, Arc::clone(&ledgers.clock)),
    );
    with_cold(ledgers, settings, Some(Arc::new(tier)))
}

fn with_cold(
    ledgers: Arc<LedgerContext>,
    settings: LogSettings,
    cold: Option<Arc<ColdTier>>,
) -> Arc<LogContext> {
    Arc::new(LogContext {
        ledgers,
        cache: EntryCache::new(4 * 1024 * 1024, 4 * 1024 * 1024),
        cold,
        metrics: LogMetrics::new(&NoopMeterProvider::new().meter("test")),
        settings,
        shared: LogShared::default(),
    })
}
