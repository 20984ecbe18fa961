//! Test doubles for this crate's seams, for its tests and those of crates above it: bookies and a
//! metadata store in memory, both with faults, and a context made of them.

mod bookies;
mod fuse;
mod store;

pub use bookies::{Mode, ReadCounts, TestBookies};
pub use fuse::{Blow, Fuse};
pub use store::MemoryStore;

use std::sync::Arc;
use std::time::Duration;

use aquifer_metadata::store::MetadataStore;
use aquifer_runtime::clock::{ManualClock, SharedClock, SystemClock};
use aquifer_runtime::rng::SeededRng;
use aquifer_runtime::task::TaskGroup;
use opentelemetry::metrics::MeterProvider;
use opentelemetry::metrics::noop::NoopMeterProvider;

use crate::context::{LedgerContext, LedgerSettings, LedgerShared};
use crate::metrics::LedgerMetrics;
use crate::transport::BookieTransport;

/// A machine without hardware: what survives the crash of a process.
#[derive(Clone)]
pub struct TestWorld {
    /// The bookies.
    pub bookies: TestBookies,
    /// The metadata.
    pub store: MemoryStore,
    /// Time, if it is moved by hand.
    pub clock: Option<Arc<ManualClock>>,
}

impl TestWorld {
    /// A world with this many bookies, whose time is moved by hand.
    #[must_use]
    pub fn new(bookies: u8) -> TestWorld {
        TestWorld {
            bookies: TestBookies::new(bookies),
            store: MemoryStore::default(),
            clock: Some(ManualClock::new(1_700_000_000_000)),
        }
    }

    /// Short pauses, small ranges: what tests want.
    #[must_use]
    pub fn settings() -> LedgerSettings {
        LedgerSettings {
            request_timeout: Duration::from_secs(2),
            overload_backoff: Duration::from_millis(1),
            overload_retries_max: 20,
            retry_backoff_min: Duration::from_millis(1),
            retry_backoff_max: Duration::from_millis(20),
            ..LedgerSettings::default()
        }
    }

    /// The context of a process in this world.
    #[must_use]
    pub fn process(&self) -> Arc<LedgerContext> {
        let (store, transport) = (Arc::new(self.store.clone()), Arc::new(self.bookies.clone()));
        self.process_with(store, transport, TestWorld::settings())
    }

    /// The context of a process that reaches the world only until `fuse` blows.
    #[must_use]
    pub fn fused_process(&self, fuse: &Arc<Fuse>) -> Arc<LedgerContext> {
        let store = fuse.store(Arc::new(self.store.clone()));
        let transport = fuse.transport(Arc::new(self.bookies.clone()));
        self.process_with(store, transport, TestWorld::settings())
    }

    /// The context of a process over these seams.
    #[must_use]
    pub fn process_with(
        &self,
        store: Arc<dyn MetadataStore>,
        transport: Arc<dyn BookieTransport>,
        settings: LedgerSettings,
    ) -> Arc<LedgerContext> {
        let clock: SharedClock = match &self.clock {
            Some(clock) => clock.clone(),
            None => SystemClock::shared(),
        };
        let seed = self.store.next_seed();
        Arc::new(LedgerContext {
            store,
            transport,
            bookies: self.bookies.known(),
            clock,
            rng: SeededRng::shared(seed),
            tasks: TaskGroup::new("test"),
            metrics: LedgerMetrics::new(&NoopMeterProvider::new().meter("test")),
            settings,
            shared: LedgerShared::default(),
        })
    }
}
