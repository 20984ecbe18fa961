//! The brokers of the cluster as metadata shows them.
//!
//! A broker that is announced is alive, or was a moment ago. Announcements steer which broker gets
//! what, and decide nothing (I4).

use std::sync::Arc;
use std::time::Duration;

use aquifer_metadata::cache::PrefixCache;
use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys::{self, Key};
use aquifer_metadata::lease::Lease;
use aquifer_metadata::record;
use aquifer_metadata::store::{MetadataStore, Versioned};
use aquifer_model::hash::key_hash;
use aquifer_model::id::BrokerId;
use aquifer_model::listener::{DEFAULT_LISTENER, Listener, Listeners};
use aquifer_proto::v1;
use aquifer_proto::v1::BrokerRecord;
use aquifer_runtime::rng::SharedRng;
use aquifer_runtime::task::TaskGroup;
use parking_lot::Mutex;

use crate::peers::peer_url;

/// Brokers that a cluster may have.
const BROKERS_MAX: usize = 1_000;

/// A broker that is announced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) id: BrokerId,
    /// Where it is reached; none: it does not serve yet.
    pub(crate) listeners: Listeners,
    pub(crate) version: String,
    pub(crate) draining: bool,
}

/// The brokers of a cluster, and what this one says about itself under the lease of its process.
pub(crate) struct Members {
    store: Arc<dyn MetadataStore>,
    me: BrokerId,
    lease: Lease,
    cache: PrefixCache,
    announced: Mutex<BrokerRecord>,
}

impl Members {
    pub(crate) fn start(
        store: Arc<dyn MetadataStore>,
        me: BrokerId,
        lease: Lease,
        rng: SharedRng,
        tasks: &TaskGroup,
    ) -> Members {
        let prefix = keys::BROKERS_PREFIX;
        let cache = PrefixCache::start(Arc::clone(&store), prefix, BROKERS_MAX, rng, tasks);
        let announced = Mutex::default();
        Members {
            store,
            me,
            lease,
            cache,
            announced,
        }
    }

    /// Announces where this broker is reached, for as long as the lease is held.
    pub(crate) fn announce(&self, listeners: &Listeners) {
        let wire = |listener: &Listener| v1::Listener {
            name: listener.name.to_string(),
            url: listener.url.clone(),
        };
        self.change(|record| {
            record.listeners = listeners.iter().map(wire).collect();
            env!("CARGO_PKG_VERSION").clone_into(&mut record.version);
        });
    }

    /// Announces that it gets no more bundles, and waits until others can know.
    pub(crate) async fn announce_draining(&self) {
        self.change(|record| record.draining = true);
        self.lease.announced().await;
    }

    fn change(&self, change: impl FnOnce(&mut BrokerRecord)) {
        let mut announced = self.announced.lock();
        change(&mut announced);
        self.lease
            .set(&keys::broker(self.me), record::encode(announced.clone()));
    }

    /// How long the lease of a broker lasts without being renewed.
    pub(crate) fn lease_time(&self) -> Duration {
        self.lease.time()
    }

    /// The session of this process's lease, while that is certainly alive.
    pub(crate) fn session(&self) -> Option<u64> {
        self.lease.held()
    }

    /// Waits until the brokers were read for the first time.
    pub(crate) async fn ready(&self) {
        self.cache.ready().await;
    }

    /// All that are announced.
    pub(crate) fn all(&self) -> Vec<Member> {
        self.cache.items().iter().filter_map(parse).collect()
    }

    /// Where a broker is reached, as far as it is known here.
    pub(crate) fn listeners(&self, broker: BrokerId) -> Option<Listeners> {
        let found = self.cache.get(&keys::broker(broker))?;
        self.not_replaced(parse(&found)?)
    }

    /// A broker that was reached where this one is now was its predecessor: its announcement may
    /// outlive it by a lease, but nothing has to wait for that.
    fn is_replaced(&self, member: &Member) -> bool {
        let announced = self.announced.lock();
        let mut own = announced.listeners.iter();
        let own = own.find(|listener| listener.name == DEFAULT_LISTENER);
        let own = own.map_or("", |listener| listener.url.as_str());
        member.id != self.me && peer_url(&member.listeners) == own
    }

    fn not_replaced(&self, member: Member) -> Option<Listeners> {
        (!self.is_replaced(&member)).then_some(member.listeners)
    }

    /// Where a broker is reached, as metadata says now; `None` when it is gone.
    pub(crate) async fn current_listeners(
        &self,
        broker: BrokerId,
    ) -> Result<Option<Listeners>, MetadataError> {
        let found = self.store.get(&keys::broker(broker)).await?;
        let found = found.as_ref().and_then(parse);
        Ok(found.and_then(|member| self.not_replaced(member)))
    }

    /// The broker that should get something, by its name: the same everywhere, and spread over all
    /// brokers but `without` and those that drain. `None` when no broker is left.
    pub(crate) fn choose(&self, what: &str, without: Option<BrokerId>) -> Option<Member> {
        let free = self.serving().into_iter();
        free.filter(|member| Some(member.id) != without)
            .max_by_key(|member| rank(what, member.id))
    }

    /// All brokers that may get something: one that drains, or does not serve yet, gets nothing.
    pub(crate) fn serving(&self) -> Vec<Member> {
        let mut all = self.all();
        all.retain(|member| {
            !member.draining && !member.listeners.is_empty() && !self.is_replaced(member)
        });
        all
    }

    /// Whether this broker has the lowest id of those.
    pub(crate) fn is_first(&self) -> bool {
        let ids = self.serving().into_iter().map(|member| member.id);
        ids.min() == Some(self.me)
    }
}

/// Rendezvous hashing: the broker with the highest rank for a thing gets it, so that most things
/// stay where they are when a broker comes or goes.
pub(crate) fn rank(what: &str, broker: BrokerId) -> (u32, BrokerId) {
    let mut bytes = what.as_bytes().to_vec();
    bytes.extend_from_slice(&broker.0);
    (key_hash(&bytes), broker)
}

fn parse(item: &Versioned) -> Option<Member> {
    let parsed = understand(item);
    if parsed.is_none() {
        tracing::warn!(key = item.key, "a broker's announcement is not understood");
    }
    parsed
}

fn understand(item: &Versioned) -> Option<Member> {
    let (Ok(Key::Broker(id)), Ok(record)) =
        (item.key.parse(), record::decode::<BrokerRecord>(item))
    else {
        return None;
    };
    let named = |listener: v1::Listener| {
        Some(Listener {
            name: listener.name.parse().ok()?,
            url: listener.url,
        })
    };
    let listeners: Option<Vec<Listener>> = record.listeners.into_iter().map(named).collect();
    let listeners = Listeners::new(listeners?).ok()?;
    // Other brokers could not reach it.
    if !listeners.is_empty() && listeners.default_url().is_none() {
        return None;
    }
    Some(Member {
        id,
        listeners,
        version: record.version,
        draining: record.draining,
    })
}
