//! The brokers of the cluster as metadata shows them.
//!
//! Who is announced is alive, or was a moment ago: it steers who gets what, and decides nothing
//! (I4).

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
use aquifer_proto::v1::BrokerRecord;
use aquifer_runtime::rng::SharedRng;
use aquifer_runtime::task::TaskGroup;
use parking_lot::Mutex;

/// Brokers that a cluster may have.
const BROKERS_MAX: usize = 1_000;

/// A broker that is announced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) id: BrokerId,
    pub(crate) url: String,
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

    /// Announces where clients reach this broker, for as long as the lease is held.
    pub(crate) fn announce(&self, url: &str) {
        self.change(|record| {
            url.clone_into(&mut record.url);
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
    pub(crate) fn url(&self, broker: BrokerId) -> Option<String> {
        let found = self.cache.get(&keys::broker(broker))?;
        self.not_replaced(parse(&found)?)
    }

    /// A broker that was reached where this one is now was its predecessor: its announcement may
    /// outlive it by a lease, but nothing has to wait for that.
    fn is_replaced(&self, member: &Member) -> bool {
        member.id != self.me && member.url == self.announced.lock().url
    }

    fn not_replaced(&self, member: Member) -> Option<String> {
        (!self.is_replaced(&member)).then_some(member.url)
    }

    /// Where a broker is reached, as metadata says now; `None` when it is gone.
    pub(crate) async fn current_url(
        &self,
        broker: BrokerId,
    ) -> Result<Option<String>, MetadataError> {
        let found = self.store.get(&keys::broker(broker)).await?;
        let found = found.as_ref().and_then(parse);
        Ok(found.and_then(|member| self.not_replaced(member)))
    }

    /// Who should get something, by its name: the same everywhere, and spread over all brokers but
    /// `without` and those that drain. `None` when none is left.
    pub(crate) fn choose(&self, what: &str, without: Option<BrokerId>) -> Option<Member> {
        let free = self.serving().into_iter();
        free.filter(|member| Some(member.id) != without)
            .max_by_key(|member| rank(what, member.id))
    }

    /// All that may get something: who drains, or does not serve yet, gets nothing.
    pub(crate) fn serving(&self) -> Vec<Member> {
        let mut all = self.all();
        all.retain(|member| {
            !member.draining && !member.url.is_empty() && !self.is_replaced(member)
        });
        all
    }
}

/// Rendezvous hashing: who has the highest rank for a thing gets it, so that most things stay where
/// they are when a broker comes or goes.
fn rank(what: &str, broker: BrokerId) -> (u32, BrokerId) {
    let mut bytes = what.as_bytes().to_vec();
    bytes.extend_from_slice(&broker.0);
    (key_hash(&bytes), broker)
}

fn parse(item: &Versioned) -> Option<Member> {
    let (Ok(Key::Broker(id)), Ok(record)) =
        (item.key.parse(), record::decode::<BrokerRecord>(item))
    else {
        tracing::warn!(key = item.key, "a broker's announcement is not understood");
        return None;
    };
    Some(Member {
        id,
        url: record.url,
        version: record.version,
        draining: record.draining,
    })
}
