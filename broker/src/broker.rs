//! The broker object: what all topics share, start and end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use aquifer_log::context::LogContext;
use aquifer_metadata::cache::PrefixCache;
use aquifer_metadata::keys;
use aquifer_metadata::lease::Lease;
use aquifer_metadata::store::MetadataStore;
use aquifer_model::id::BrokerId;
use aquifer_model::topic::TopicName;
use aquifer_runtime::budget::ByteBudget;
use aquifer_runtime::clock::SharedClock;
use aquifer_runtime::rng::SharedRng;
use aquifer_runtime::task::TaskGroup;
use opentelemetry::metrics::Meter;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::balance;
use crate::config::BrokerConfig;
use crate::error::BrokerError;
use crate::load::LoadMeter;
use crate::members::Members;
use crate::metrics::BrokerMetrics;
use crate::movement;
use crate::namespace::Namespaces;
use crate::ownership::{Cluster, OWNERS_MAX, Owned, Ownership};
use crate::peers::Peers;
use crate::sweep;
use crate::topics::Topics;

/// Times that a request reads the bundles of a namespace again.
const BUNDLES_ATTEMPTS_MAX: u32 = 5;
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
    /// The lease of the process, when there may be other brokers.
    pub lease: Option<Lease>,
    /// The way to other brokers, when there may be some.
    pub peers: Option<Arc<dyn Peers>>,
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
    /// Bytes of published batches that storage does not have yet.
    pub(crate) publish_budget: ByteBudget,
    /// Bytes that reads of backlogs may hold until they are handed to consumers.
    pub(crate) read_budget: ByteBudget,
    pub(crate) namespaces: Namespaces,
    pub(crate) ownership: Ownership,
    /// Turns of topics that seal their ledgers for another broker.
    pub(crate) sealing: Semaphore,
    pub(crate) meter: Mutex<LoadMeter>,
    pub(crate) peers: Option<Arc<dyn Peers>>,
    closing: AtomicBool,
    next_id: AtomicU64,
}

impl Shared {
    /// A number that no other object of this broker has.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// What this broker may do with a topic: owning its bundle, which it acquires if no broker
    /// does.
    pub(crate) async fn own(&self, topic: &TopicName) -> Result<Owned, BrokerError> {
        let mut attempts = 0;
        loop {
            let bundles = self.namespaces.bundles(topic.namespace()).await?;
            let owned = self.ownership.ensure(&bundles.of(topic), &bundles).await;
            match owned {
                Err(BrokerError::BundlesChanged(_)) if attempts < BUNDLES_ATTEMPTS_MAX => {
                    attempts += 1;
                    self.namespaces.forget(topic.namespace());
                }
                owned => return owned,
            }
        }
    }

    /// The way to other brokers.
    pub(crate) fn peers(&self) -> Result<&Arc<dyn Peers>, BrokerError> {
        let none = || BrokerError::Internal("another broker of a standalone server".to_owned());
        self.peers.as_ref().ok_or_else(none)
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
        let store = Arc::clone(&deps.log.ledgers.store);
        let bundles = config.namespace_bundles;
        let tasks = deps.tasks.clone();
        let defaults = config.default_policies();
        let namespaces = Namespaces::new(Arc::clone(&store), tasks, bundles, defaults);
        namespaces.ensure_default().await?;
        let cluster = match deps.lease.clone() {
            Some(lease) => Some(join(&store, id, lease, &deps.rng, &deps.tasks).await),
            None => None,
        };
        // Below what the logs take together, which cursors need a part of.
        let of_logs = deps.log.settings.pending_bytes_max / 4 * 3;
        let publish_bytes = config.publish_bytes_in_flight_max.min(of_logs);
        let publish_budget = ByteBudget::new(publish_bytes);
        let read_budget = ByteBudget::new(config.read_bytes_in_flight_max);
        let budgets = [
            ("aquifer_broker_publish_bytes", &publish_budget),
            ("aquifer_broker_delivery_bytes", &read_budget),
        ];
        for (name, budget) in budgets {
            BrokerMetrics::watch_budget(&deps.meter, name, budget);
        }
        let shared = Arc::new(Shared {
            id,
            metrics: BrokerMetrics::new(&deps.meter),
            publish_budget,
            read_budget,
            namespaces,
            ownership: Ownership::new(store, Arc::clone(&deps.clock), id, cluster),
            sealing: Semaphore::new(movement::SEALING_AT_ONCE),
            meter: Mutex::new(LoadMeter::new(config.balance.window())),
            peers: deps.peers,
            log: deps.log,
            clock: deps.clock,
            rng: deps.rng,
            tasks: deps.tasks,
            closing: AtomicBool::new(false),
            next_id: AtomicU64::new(1),
            config,
        });
        tracing::info!(broker = %id, cluster = shared.config.cluster, "broker started");
        let topics = Topics::new(Arc::clone(&shared));
        if shared.ownership.cluster().is_some() {
            movement::start(&topics);
        }
        balance::start(&topics, deps.lease);
        sweep::start(&topics);
        Ok(Arc::new(Broker { shared, topics }))
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
        movement::drain(&self.topics).await;
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

/// Begins to follow who else is there and who owns what; waits until it is known.
async fn join(
    store: &Arc<dyn MetadataStore>,
    me: BrokerId,
    lease: Lease,
    rng: &SharedRng,
    tasks: &TaskGroup,
) -> Cluster {
    let members = Members::start(Arc::clone(store), me, lease, Arc::clone(rng), tasks);
    let (store, rng) = (Arc::clone(store), Arc::clone(rng));
    let owners = PrefixCache::start(store, keys::OWNERS_PREFIX, OWNERS_MAX, rng, tasks);
    members.ready().await;
    owners.ready().await;
    Cluster { members, owners }
}
