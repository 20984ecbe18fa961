//! What the parts of a run share: what the seed has drawn, and the surroundings of processes.

use std::sync::Arc;
use std::time::Duration;

use aquifer_ledger::context::{LedgerContext, LedgerSettings, LedgerShared};
use aquifer_ledger::metrics::LedgerMetrics;
use aquifer_ledger::placement::{BookieInfo, Bookies};
use aquifer_log::cache::EntryCache;
use aquifer_log::context::{LogContext, LogSettings, LogShared};
use aquifer_log::metrics::LogMetrics;
use aquifer_log::pages::Paging;
use aquifer_model::quorum::Quorum;
use aquifer_runtime::clock::SharedClock;
use aquifer_runtime::rng::{Rng, SeededRng, SharedRng};
use aquifer_runtime::task::TaskGroup;
use opentelemetry::metrics::MeterProvider;
use opentelemetry::metrics::noop::NoopMeterProvider;

use crate::cluster::history::History;
use crate::cluster::ids::id_of;
use crate::cluster::net::Net;
use crate::cluster::store::SharedStore;
use crate::defect::Defect;

/// What a seed has drawn for the whole run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) quorum: Quorum,
    pub(super) bookies: u8,
    pub(super) topics: u8,
    /// Whether what was read is trimmed.
    pub(super) trims: bool,
}

impl Shape {
    pub(super) fn draw(rng: &dyn Rng) -> Shape {
        let shapes = [
            (3, 3, 2, 5),
            (3, 3, 2, 3),
            (3, 2, 2, 5),
            (5, 3, 2, 6),
            (2, 2, 2, 4),
            (3, 3, 3, 5),
            (2, 2, 1, 4),
            (1, 1, 1, 2),
        ];
        // The first is what clusters use.
        let at = rng.below(2 * shapes.len() as u64);
        let at = usize::try_from(at).unwrap_or(0);
        let (ensemble, write, ack, bookies) = *shapes.get(at).unwrap_or(&shapes[0]);
        Shape {
            quorum: Quorum::new(ensemble, write, ack).expect("shapes are in order"),
            bookies,
            topics: 1 + u8::try_from(rng.below(2)).unwrap_or(0),
            trims: rng.below(2) == 0,
        }
    }
}

/// Everything that the parts of a run share.
pub(super) struct Cluster {
    pub(super) shape: Shape,
    pub(super) defect: Option<Defect>,
    pub(super) rng: SharedRng,
    pub(super) clock: SharedClock,
    pub(super) net: Arc<Net>,
    pub(super) store: Arc<SharedStore>,
    pub(super) history: Arc<History>,
    pub(super) tasks: TaskGroup,
}

impl Cluster {
    /// Surroundings of a new process.
    pub(super) fn process(self: &Arc<Cluster>) -> (u32, Arc<LogContext>) {
        let id = self.net.new_process();
        let info = |number: u8| BookieInfo {
            id: id_of(number),
            zone: format!("zone {}", number % 3),
            read_only: false,
            free_bytes: 1 << 30,
            capacity_bytes: 1 << 31,
        };
        let known = (0..self.shape.bookies).map(info).collect();
        let delay = match self.rng.below(3) {
            0 => Duration::from_millis(300),
            _ => Duration::ZERO,
        };
        let settings = LedgerSettings {
            request_timeout: Duration::from_secs(2),
            overload_backoff: Duration::from_millis(5),
            overload_retries_max: 100,
            ensemble_change_delay: delay,
            kept_bytes_per_ledger_max: 4 * 1024,
            quarantine: Duration::from_secs(1),
            recovery_window_entries: 1 + u32::try_from(self.rng.below(8)).unwrap_or(0),
            retry_backoff_min: Duration::from_millis(5),
            retry_backoff_max: Duration::from_millis(500),
            ..LedgerSettings::default()
        };
        let meter = NoopMeterProvider::new().meter("simulation");
        let ledgers = LedgerContext {
            store: self.store.of_process(id, &self.net),
            transport: self.net.transport(id),
            bookies: Bookies::with_clock(known, Arc::clone(&self.clock)),
            clock: Arc::clone(&self.clock),
            rng: SeededRng::shared(self.rng.next_u64()),
            tasks: TaskGroup::new("process"),
            metrics: LedgerMetrics::new(&meter),
            settings,
            shared: LedgerShared::default(),
        };
        let context = LogContext {
            ledgers: Arc::new(ledgers),
            cache: EntryCache::new(512, 1024),
            cold: None,
            metrics: LogMetrics::new(&meter),
            settings: LogSettings {
                read_ahead_range_bytes: 256,
                paging: Paging { kept: 2, page: 2 },
                ..LogSettings::default()
            },
            shared: LogShared::default(),
        };
        (id, Arc::new(context))
    }

    pub(super) fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    /// A random duration between two bounds, in milliseconds.
    pub(super) fn between(&self, from_ms: u64, to_ms: u64) -> Duration {
        Duration::from_millis(from_ms + self.rng.below(to_ms - from_ms + 1))
    }

    pub(super) fn chance(&self, one_in: u64) -> bool {
        self.rng.below(one_in) == 0
    }

    pub(super) fn random_node(&self) -> u8 {
        u8::try_from(self.rng.below(u64::from(self.shape.bookies))).unwrap_or(0)
    }
}
