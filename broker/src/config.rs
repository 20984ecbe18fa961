//! Settings of the broker. Everything here is validated once, at start.

use aquifer_model::policy::EffectivePolicies;
use aquifer_model::quorum::Quorum;
use serde::{Deserialize, Serialize};

use crate::balance::config::BalanceConfig;
use crate::bundle::BUNDLES_MAX;
use crate::error::BrokerError;
use crate::security::config::AuthConfig;

/// Lines of the metrics that subscriptions may have: each is four labels.
const SUBSCRIPTIONS_SHOWN_MAX: usize = 1_000;

/// Settings of a broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BrokerConfig {
    /// Name of the cluster.
    pub cluster: String,
    /// Bytes of published batches that may be read from producers and wait for storage, over all
    /// topics: one that gets no answers from storage leaves a share to the others.
    pub publish_bytes_in_flight_max: usize,
    /// Bytes of deliveries, from the read to the client's transport, over all topics and
    /// subscriptions: clients that do not read leave a share to the others.
    pub read_bytes_in_flight_max: usize,
    /// Frames of one producer that may wait for storage.
    pub producer_frames_in_flight_max: usize,
    /// Bytes of deliveries that one consumer's session may hold before its client takes them.
    pub consumer_queue_bytes_max: usize,
    /// Topics that are loaded at once; others wait, those with most clients in front.
    pub topic_loads_max: usize,
    /// A topic without clients is unloaded after this time.
    pub topic_idle_ms: u64,
    /// How often trimming and idleness are looked at.
    pub housekeeping_ms: u64,
    /// Subscriptions that have lines of their own in the metrics: those that are furthest behind.
    pub subscriptions_shown: usize,
    /// A cursor log of this many bytes beyond its snapshot is rolled.
    pub cursor_log_bytes_max: u64,
    /// A snapshot of producers' states is taken after this many entries, so that replay stays
    /// bounded.
    pub dedup_snapshot_entries: u64,
    /// A snapshot of producers' states is taken after this many bytes: the bookies read them whole
    /// when the topic is loaded after a crash, although only heads are asked for.
    pub dedup_snapshot_bytes: u64,
    /// A snapshot of producers' states is taken after this time when anything was published.
    pub dedup_snapshot_ms: u64,
    /// Bundles of a namespace that is created: the units in which topics are spread over brokers.
    pub namespace_bundles: u32,
    /// How load is balanced between brokers.
    pub balance: BalanceConfig,
    /// Replication where no policy says otherwise.
    #[serde(skip)]
    pub default_quorum: Quorum,
    /// What callers may do. The process has a section of its own for it.
    #[serde(skip)]
    pub auth: AuthConfig,
}

impl Default for BrokerConfig {
    fn default() -> BrokerConfig {
        BrokerConfig {
            cluster: "standalone".to_owned(),
            publish_bytes_in_flight_max: 32 << 20,
            read_bytes_in_flight_max: 64 << 20,
            producer_frames_in_flight_max: 1024,
            consumer_queue_bytes_max: 8 << 20,
            topic_loads_max: 128,
            topic_idle_ms: 5 * 60 * 1000,
            housekeeping_ms: 30 * 1000,
            subscriptions_shown: 0,
            cursor_log_bytes_max: 8 << 20,
            dedup_snapshot_entries: 20_000,
            dedup_snapshot_bytes: 32 << 20,
            dedup_snapshot_ms: 120 * 1000,
            namespace_bundles: 16,
            balance: BalanceConfig::default(),
            default_quorum: Quorum::SINGLE,
            auth: AuthConfig::default(),
        }
    }
}

impl BrokerConfig {
    /// The policies where none says otherwise.
    pub(crate) fn default_policies(&self) -> EffectivePolicies {
        EffectivePolicies {
            persistence: self.default_quorum,
            ..EffectivePolicies::default()
        }
    }

    /// Checks what types cannot say.
    ///
    /// # Errors
    /// When a value is out of its range; the text says which.
    pub fn validate(&self) -> Result<(), BrokerError> {
        let positive = [
            (
                "publish_bytes_in_flight_max",
                self.publish_bytes_in_flight_max as u64,
            ),
            (
                "read_bytes_in_flight_max",
                self.read_bytes_in_flight_max as u64,
            ),
            (
                "producer_frames_in_flight_max",
                self.producer_frames_in_flight_max as u64,
            ),
            (
                "consumer_queue_bytes_max",
                self.consumer_queue_bytes_max as u64,
            ),
            ("topic_loads_max", self.topic_loads_max as u64),
            ("topic_idle_ms", self.topic_idle_ms),
            ("housekeeping_ms", self.housekeeping_ms),
            ("cursor_log_bytes_max", self.cursor_log_bytes_max),
            ("dedup_snapshot_entries", self.dedup_snapshot_entries),
            ("dedup_snapshot_bytes", self.dedup_snapshot_bytes),
            ("dedup_snapshot_ms", self.dedup_snapshot_ms),
            ("namespace_bundles", self.namespace_bundles.into()),
        ];
        for (name, value) in positive {
            if value == 0 {
                return Err(BrokerError::Config(format!("{name} is 0: give at least 1")));
            }
        }
        if self.namespace_bundles as usize > BUNDLES_MAX {
            return Err(BrokerError::Config(format!(
                "namespace_bundles is {}: give at most {BUNDLES_MAX}",
                self.namespace_bundles
            )));
        }
        if self.subscriptions_shown > SUBSCRIPTIONS_SHOWN_MAX {
            return Err(BrokerError::Config(format!(
                "subscriptions_shown is {}: give at most {SUBSCRIPTIONS_SHOWN_MAX}",
                self.subscriptions_shown
            )));
        }
        if self.cluster.is_empty() {
            return Err(BrokerError::Config(
                "cluster is empty: give it a name".to_owned(),
            ));
        }
        self.auth.validate()?;
        self.balance.validate()
    }
}
