//! The broker object: what all topics share, start and end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use aquifer_ledger::context::LogContext;
use aquifer_model::id::BrokerId;
use aquifer_runtime::budget::ByteBudget;
use aquifer_runtime::clock::SharedClock;
use aquifer_runtime::rng::SharedRng;
use aquifer_runtime::task::TaskGroup;
use opentelemetry::metrics::Meter;

use crate::config::BrokerConfig;
use crate::error::BrokerError;
use crate::metrics::BrokerMetrics;
use crate::namespace::Namespaces;
use crate::ownership::Ownership;
use crate::topics::Topics;

/// How long a shutdown waits for topics to seal their ledgers.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(30);

/// What a broker needs from its process.
pub struct BrokerDeps {
    /// The way to storage: metadata store, bookies, cache.
    pub log: Arc<LogContext>,
    /// The clock.
    pub clock: SharedClock,
    /// The random source.
    pub rng: SharedRng,
    /// Where metrics go.
    pub meter: Meter,
    /// The group that all tasks of the broker belong to.
    pub tasks: TaskGroup,
}

/// What all parts of a broker share.
pub(crate) struct Shared {
    pub(crate) config: BrokerConfig,
    pub(crate) id: BrokerId,
    pub(crate) log: Arc<LogContext>,
    pub(crate) clock: SharedClock,
    pub(crate) rng: SharedRng,
    pub(crate) tasks: TaskGroup,
    pub(crate) metrics: BrokerMetrics,
    /// Bytes of published batches on their way to storage.
    pub(crate) publish_budget: ByteBudget,
    /// Bytes that reads of backlogs may hold until they are handed to consumers.
    pub(crate) read_budget: ByteBudget,
    pub(crate) namespaces: Namespaces,
    pub(crate) ownership: Ownership,
    closing: AtomicBool,
    next_id: AtomicU64,
}

impl Shared {
    /// A number that no other object of this broker has.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Refuses when the broker goes away.
    pub(crate) fn check_open(&self) -> Result<(), BrokerError> {
        if self.closing.load(Ordering::Acquire) {
            return Err(BrokerError::Unloading(
                "this broker is shutting down".to_owned(),
            ));
        }
        Ok(())
    }
}

/// A broker. It serves until [`Broker::shutdown`].
pub struct Broker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) topics: Arc<Topics>,
}

impl Broker {
    /// Starts a broker: creates the default namespace if it is missing; ownership of a namespace
    /// is taken when it is first used.
    ///
    /// # Errors
    /// When a setting is wrong or the metadata store does not answer.
    pub async fn new(config: BrokerConfig, deps: BrokerDeps) -> Result<Arc<Broker>, BrokerError> {
        config.validate()?;
        let id = BrokerId(deps.rng.id16());
        let store = Arc::clone(&deps.log.store);
        let namespaces = Namespaces::new(Arc::clone(&store), deps.tasks.clone());
        namespaces.ensure_default(config.default_policies()).await?;
        let shared = Arc::new(Shared {
            id,
            metrics: BrokerMetrics::new(&deps.meter),
            publish_budget: ByteBudget::new(config.publish_bytes_in_flight_max),
            read_budget: ByteBudget::new(config.read_bytes_in_flight_max),
            namespaces,
            ownership: Ownership::new(store, id),
            log: deps.log,
            clock: deps.clock,
            rng: deps.rng,
            tasks: deps.tasks,
            closing: AtomicBool::new(false),
            next_id: AtomicU64::new(1),
            config,
        });
        tracing::info!(broker = %id, cluster = shared.config.cluster, "broker started");
        Ok(Arc::new(Broker {
            topics: Topics::new(Arc::clone(&shared)),
            shared,
        }))
    }

    /// The identity of this broker, drawn at its start.
    #[must_use]
    pub fn id(&self) -> BrokerId {
        self.shared.id
    }

    /// Stops: refuses new requests, finishes what is in flight, seals ledgers, and tells clients
    /// to come back or go elsewhere. The tasks of the group are not waited for: drain it after.
    pub async fn shutdown(&self) {
        self.shared.closing.store(true, Ordering::Release);
        let left = self.topics.close_all(SHUTDOWN_DEADLINE).await;
        if left > 0 {
            tracing::warn!(topics = left, "topics did not close in time");
        }
        tracing::info!(broker = %self.shared.id, "broker stopped");
    }
}
