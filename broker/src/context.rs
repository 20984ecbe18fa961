//! What all parts of a broker share: settings, storage, budgets, metrics, namespaces, ownership.
//!
//! Invariant: it imports nothing of the parts that use it (topics, bundles that move, balance,
//! administration), so that each of them can be given the context alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use aquifer_log::context::LogContext;
use aquifer_metadata::lease::Lease;
use aquifer_model::id::{BrokerId, TenantKey};
use aquifer_model::topic::TopicName;
use aquifer_runtime::budget::{BudgetParts, ByteBudget};
use aquifer_runtime::clock::SharedClock;
use aquifer_runtime::net::tls::ServerTls;
use aquifer_runtime::rng::SharedRng;
use aquifer_runtime::task::TaskGroup;
use opentelemetry::metrics::Meter;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::bundle::ownership::{Cluster, Owned, Ownership};
use crate::config::BrokerConfig;
use crate::error::BrokerError;
use crate::metrics::BrokerMetrics;
use crate::namespace::Namespaces;
use crate::pages::Pages;
use crate::peers::Peers;
use crate::quota::shared::Aggregates;
use crate::quota::topics::TopicCounts;
use crate::security::Guard;
use crate::topic::waiting::WaitingBytes;
use crate::traffic::LoadMeter;

/// Times that a request reads the bundles of a namespace again.
const BUNDLES_ATTEMPTS_MAX: u32 = 5;
/// Topics of all bundles that seal their ledgers at once: each is away for as long as its own
/// takes, and the new owner opens one before the next are there.
const SEALING_AT_ONCE: usize = 4;

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
    /// Which certificates are those of brokers of this cluster, when there may be some.
    pub brokers: Option<Arc<ServerTls>>,
}

/// See the module.
pub(crate) struct Context {
    pub(crate) config: BrokerConfig,
    pub(crate) id: BrokerId,
    pub(crate) log: Arc<LogContext>,
    pub(crate) clock: SharedClock,
    pub(crate) rng: SharedRng,
    pub(crate) tasks: TaskGroup,
    pub(crate) metrics: BrokerMetrics,
    /// Bytes of published batches that storage does not have yet, by tenant.
    pub(crate) publish_budget: BudgetParts<TenantKey>,
    /// Bytes that reads of backlogs may hold until they are handed to consumers, by tenant.
    pub(crate) read_budget: BudgetParts<TenantKey>,
    /// Bytes of changes that wait for the cursor logs of all topics.
    pub(crate) waiting_changes: WaitingBytes,
    pub(crate) namespaces: Namespaces,
    /// Rates that topics of a tenant or a namespace share.
    pub(crate) aggregates: Aggregates,
    pub(crate) topic_counts: TopicCounts,
    pub(crate) ownership: Ownership,
    /// Permits of topics that seal their ledgers for another broker.
    pub(crate) sealing: Semaphore,
    /// The permit of a request that reads the records of all ledgers.
    pub(crate) scanning: Semaphore,
    pub(crate) meter: Mutex<LoadMeter>,
    pub(crate) peers: Option<Arc<dyn Peers>>,
    /// Seals where lists go on.
    pub(crate) pages: Pages,
    /// Decides what each caller may do; `None`: every caller may do everything.
    pub(crate) guard: Option<Arc<Guard>>,
    closing: AtomicBool,
    next_id: AtomicU64,
}

impl Context {
    /// The context of a broker that starts: creates the default namespace if it is missing, and
    /// waits until the cluster's brokers and owners are known.
    ///
    /// # Errors
    /// When a setting is wrong or the metadata store does not answer.
    pub(crate) async fn start(
        config: BrokerConfig,
        deps: BrokerDeps,
    ) -> Result<Arc<Context>, BrokerError> {
        config.validate()?;
        // What other brokers see in the records of attempts is that this one lives.
        let cold = deps.log.cold.as_ref();
        let id = cold.map_or_else(|| BrokerId(deps.rng.id16()), |tier| tier.worker());
        let store = Arc::clone(&deps.log.ledgers.store);
        let bundles = config.namespace_bundles;
        let tasks = deps.tasks.clone();
        let mut defaults = config.default_policies();
        if let Some(tier) = cold {
            defaults.offload = tier.settings.policy;
            // Where no place is set nothing is offloaded, whatever the age.
            defaults.offload.enabled &= tier.locations.takes_objects();
        }
        let namespaces = Namespaces::new(Arc::clone(&store), tasks, bundles, defaults);
        namespaces.ensure_default().await?;
        let pages = Pages::start(&*store, deps.clock.wall_ms()).await?;
        let auth = &config.auth;
        let seams = (&deps.clock, &deps.meter, &deps.tasks);
        let guard = Guard::start(id, auth, &store, seams, deps.brokers).await?;
        let cluster = match deps.lease {
            Some(lease) => Some(Cluster::join(&store, id, lease, &deps.rng, &deps.tasks).await),
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
        Ok(Arc::new(Context {
            id,
            metrics: BrokerMetrics::new(&deps.meter),
            publish_budget: BudgetParts::new(publish_budget),
            read_budget: BudgetParts::new(read_budget),
            waiting_changes: WaitingBytes::default(),
            namespaces,
            aggregates: Aggregates::default(),
            topic_counts: TopicCounts::default(),
            ownership: Ownership::new(store, Arc::clone(&deps.clock), id, cluster),
            sealing: Semaphore::new(SEALING_AT_ONCE),
            scanning: Semaphore::new(1),
            meter: Mutex::new(LoadMeter::new(config.balance.window())),
            peers: deps.peers,
            pages,
            guard,
            log: deps.log,
            clock: deps.clock,
            rng: deps.rng,
            tasks: deps.tasks,
            closing: AtomicBool::new(false),
            next_id: AtomicU64::new(1),
            config,
        }))
    }

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

    /// Refuses the creation of a topic of which the namespace may have no more.
    pub(crate) async fn check_topics(
        &self,
        topic: &TopicName,
        partitions: u32,
    ) -> Result<(), BrokerError> {
        let counts = &self.topic_counts;
        let checked = counts.check(&self.namespaces, &self.clock, topic, partitions);
        let checked = checked.await;
        if let Err(BrokerError::Quota { limit, .. }) = &checked {
            self.metrics.refused(limit);
        }
        checked
    }

    /// Gives a tenant a weight: its shares of this broker, and of bookies.
    pub(crate) fn weigh(&self, tenant: &str, weight: u32) {
        let tenant = TenantKey::of(tenant);
        self.publish_budget.weigh(tenant, weight);
        self.read_budget.weigh(tenant, weight);
        self.log.ledgers.transport.weigh(tenant, weight);
    }

    /// The way to other brokers.
    pub(crate) fn peers(&self) -> Result<&Arc<dyn Peers>, BrokerError> {
        let none = || BrokerError::Internal("another broker of a standalone server".to_owned());
        self.peers.as_ref().ok_or_else(none)
    }

    /// Refuses requests from now on.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// Refuses when the broker shuts down.
    pub(crate) fn check_open(&self) -> Result<(), BrokerError> {
        if self.closing.load(Ordering::Acquire) {
            return Err(BrokerError::Unloading(
                "this broker is shutting down".to_owned(),
            ));
        }
        Ok(())
    }
}
