//! The broker object: start and end of what serves topics over one context.

use std::sync::Arc;
use std::time::Duration;

use aquifer_model::id::BrokerId;

use crate::api::audit;
use crate::balance;
use crate::bundle::{drain, watch};
use crate::config::BrokerConfig;
use crate::context::{BrokerDeps, Context};
use crate::error::BrokerError;
use crate::offload;
use crate::quota::dividing;
use crate::security::manage::dead;
use crate::sweep;
use crate::topics::Topics;

/// How long a shutdown waits for topics to seal their ledgers.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(30);

/// A broker. It serves until [`Broker::shutdown`].
pub struct Broker {
    pub(crate) shared: Arc<Context>,
    pub(crate) topics: Arc<Topics>,
}

impl Broker {
    /// Starts a broker: creates the default namespace if it is missing; ownership of a namespace
    /// is taken when it is first used.
    ///
    /// # Errors
    /// When a setting is wrong or the metadata store does not answer.
    pub async fn new(config: BrokerConfig, deps: BrokerDeps) -> Result<Arc<Broker>, BrokerError> {
        let lease = deps.lease.clone();
        let shared = Context::start(config, deps).await?;
        tracing::info!(broker = %shared.id, cluster = shared.config.cluster, "broker started");
        let topics = Topics::new(Arc::clone(&shared));
        if shared.ownership.cluster().is_some() {
            watch::start(&topics);
        }
        balance::start(&topics, lease);
        dividing::start(topics.shared());
        dead::start(topics.shared());
        sweep::start(&topics);
        offload::start(&shared);
        let broker = Arc::new(Broker { shared, topics });
        audit::start(&broker);
        Ok(broker)
    }

    /// The identity of this broker, drawn at its start.
    #[must_use]
    pub fn id(&self) -> BrokerId {
        self.shared.id
    }

    /// Gives everything that it owns to the other brokers of its cluster, while it serves still:
    /// clients of each topic are told where to go when its ledgers are sealed. Without another
    /// broker nothing happens.
    pub async fn hand_over(&self) {
        drain::drain(&self.topics).await;
    }

    /// Stops: refuses new requests, finishes what is in flight, seals ledgers, and tells clients
    /// to come back or go elsewhere. The tasks of the group are not waited for: drain it after.
    pub async fn shutdown(&self) {
        audit::stop(self).await;
        self.shared.close();
        let left = self.topics.close_all(SHUTDOWN_DEADLINE).await;
        if left > 0 {
            tracing::warn!(topics = left, "topics did not close in time");
        }
        tracing::info!(broker = %self.shared.id, "broker stopped");
    }
}
