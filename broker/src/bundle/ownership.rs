//! Ownership of bundles. A broker that is asked for a topic reads the owner of its bundle: itself,
//! then it serves the topic; another live broker, to which it points; or none, and then it gives
//! the bundle to a live broker. All of that is compare-and-swap of one record with an epoch that
//! rises.
//!
//! Every metadata change of the write path carries the record's revision as a guard,
//! so a former owner can change nothing, whatever it believes (I4). A broker's id is random per
//! start, so a restart never inherits an epoch.
//!
//! Without a cluster there is no other broker: what another process owned is taken over at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aquifer_metadata::cache::PrefixCache;
use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys;
use aquifer_metadata::lease::Lease;
use aquifer_metadata::record;
use aquifer_metadata::store::{Expect, Guard, MetadataStore, Revision, Versioned};
use aquifer_metadata::update::{Change, UpdateError};
use aquifer_model::id::{BrokerId, OwnerEpoch};
use aquifer_model::listener::Listeners;
use aquifer_proto::v1::BundleOwnerRecord;
use aquifer_runtime::clock::{self, SharedClock};
use aquifer_runtime::rng::SharedRng;
use aquifer_runtime::task::TaskGroup;
use parking_lot::Mutex;

use crate::bundle::{Bundle, Bundles};
use crate::error::BrokerError;
use crate::members::Members;

/// How long metadata is waited for where something else can answer, too.
const CONFIRM_MAX: Duration = Duration::from_secs(1);
/// Bundles that a cluster may have.
const OWNERS_MAX: usize = 1_000_000;

/// How long a broker that drains hands its bundles over, before it ends anyway.
pub(crate) const DRAIN_MAX: Duration = Duration::from_secs(60);

/// What owning a bundle gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owned {
    pub(crate) bundle: Bundle,
    /// The owner's epoch.
    pub(crate) epoch: OwnerEpoch,
    /// Holds until another broker takes over.
    pub(crate) guard: Guard,
    /// The broker that handed it over, and may be sealing its ledgers still.
    pub(crate) source: Option<BrokerId>,
    /// The session of the process's lease under which this was known.
    pub(crate) session: Option<u64>,
    /// When this broker came to know it, on the monotonic clock.
    pub(crate) since: Duration,
}

impl Owned {
    /// The revision that the guard compares.
    pub(crate) fn revision(&self) -> Revision {
        match self.guard.expect {
            Expect::Revision(revision) => revision,
            Expect::Any | Expect::Absent => Revision(0),
        }
    }
}

/// The other brokers, and the owners of bundles as far as this one knows.
pub(crate) struct Cluster {
    pub(crate) members: Members,
    pub(crate) owners: PrefixCache,
}

impl Cluster {
    /// Begins to follow the brokers of the cluster and the owners of its bundles; waits until both
    /// are known.
    pub(crate) async fn join(
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

    /// The broker that owns a bundle, as far as this broker knows without asking.
    fn known_owner(&self, bundle: &Bundle) -> Option<BrokerId> {
        let found = self.owners.get(&key(bundle))?;
        let record: BundleOwnerRecord = record::decode(&found).ok()?;
        broker_id(&record.broker_id)
    }
}

/// What is known of one bundle.
#[derive(Default)]
struct Cell {
    /// Held while metadata is asked: one at a time, whatever that takes. Nothing else waits for it.
    acquiring: tokio::sync::Mutex<()>,
    owned: Mutex<Option<Owned>>,
}

/// The bundles that this broker owns.
pub(crate) struct Ownership {
    store: Arc<dyn MetadataStore>,
    clock: SharedClock,
    broker: BrokerId,
    cluster: Option<Cluster>,
    /// One cell per bundle: single-flight without a lock across bundles.
    owned: Mutex<HashMap<Bundle, Arc<Cell>>>,
}

/// The owner of a bundle after a look at its record.
enum Found {
    Mine(Owned),
    Of(Listeners),
}

/// What an acquisition decides on a look at the record.
enum Decided {
    Served(Found),
    /// This broker gets it, with this epoch.
    Mine(u64),
}

impl Ownership {
    pub(crate) fn new(
        store: Arc<dyn MetadataStore>,
        clock: SharedClock,
        broker: BrokerId,
        cluster: Option<Cluster>,
    ) -> Ownership {
        Ownership {
            store,
            clock,
            broker,
            cluster,
            owned: Mutex::new(HashMap::new()),
        }
    }

    /// The other brokers, if there can be any.
    pub(crate) fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    pub(crate) fn store(&self) -> &Arc<dyn MetadataStore> {
        &self.store
    }

    /// What this broker may do in the bundle; acquires a bundle without an owner.
    ///
    /// # Errors
    /// [`BrokerError::Elsewhere`] when another broker owns it; [`BrokerError::BundlesChanged`] when
    /// the namespace has other bundles by now.
    pub(crate) async fn ensure(
        &self,
        bundle: &Bundle,
        bundles: &Bundles,
    ) -> Result<Owned, BrokerError> {
        let cell = self.cell(bundle);
        if let Some(owned) = cell.owned.lock().clone() {
            return Ok(owned);
        }
        let _one = cell.acquiring.lock().await;
        if let Some(owned) = cell.owned.lock().clone() {
            return Ok(owned);
        }
        if let Some(at) = self.known_elsewhere(bundle) {
            return Err(elsewhere(bundle, at));
        }
        let session = self.session();
        match self.acquire(bundle, bundles).await? {
            Found::Of(at) => Err(elsewhere(bundle, at)),
            Found::Mine(acquired) => {
                let acquired = Owned {
                    session,
                    since: self.clock.monotonic(),
                    ..acquired
                };
                *cell.owned.lock() = Some(acquired.clone());
                // A move that was seen before it stood there was seen in vain.
                if self.is_known_newer(&acquired) {
                    self.forget(&acquired);
                    let moved = "the bundle moves at the same time".to_owned();
                    return Err(MetadataError::Unavailable(moved).into());
                }
                tracing::info!(%bundle, epoch = acquired.epoch.0, "bundle acquired");
                Ok(acquired)
            }
        }
    }

    /// Whether the record of a bundle was seen to have been written since.
    fn is_known_newer(&self, owned: &Owned) -> bool {
        let cluster = self.cluster.as_ref();
        let known = cluster.and_then(|cluster| cluster.owners.get(&owned.guard.key));
        known.is_some_and(|known| known.revision > owned.revision())
    }

    fn session(&self) -> Option<u64> {
        self.cluster.as_ref()?.members.session()
    }

    /// Whether no other broker can own the bundle meanwhile: the lease under which the ownership
    /// was known is still held, or there are no other brokers. Moves are not covered: the owner
    /// sees them.
    pub(crate) fn is_certain(&self, owned: &Owned) -> bool {
        self.cluster.is_none() || owned.session.is_some() && owned.session == self.session()
    }

    /// Whether a broker is there, as far as this one knows.
    pub(crate) fn is_announced(&self, broker: BrokerId) -> bool {
        let cluster = self.cluster.as_ref();
        cluster.is_some_and(|cluster| cluster.members.listeners(broker).is_some())
    }

    /// Asks metadata whether this broker owns a bundle still, and answers under which session that
    /// is certain from now on; `None` when it cannot be known.
    pub(crate) async fn confirm(&self, owned: &Owned) -> Option<u64> {
        let session = self.session()?;
        let cell = self.cell(&owned.bundle);
        let is_same = |known: &&mut Owned| known.revision() == owned.revision();
        // Another topic of the bundle may have asked.
        let known = cell.owned.lock().as_mut().filter(is_same).cloned();
        if known.is_some_and(|known| known.session == Some(session)) {
            return Some(session);
        }
        let asked = self.store.get(&owned.guard.key);
        let found = clock::timeout(CONFIRM_MAX, asked).await.ok()?.ok()??;
        if found.revision != owned.revision() {
            return None;
        }
        if let Some(known) = cell.owned.lock().as_mut().filter(is_same) {
            known.session = Some(session);
        }
        Some(session)
    }

    /// Forgets an ownership that turned out to be lost; the next use reads it again.
    pub(crate) fn lost(&self, lost: &Owned) {
        if self.forget(lost) {
            tracing::warn!(bundle = %lost.bundle, epoch = lost.epoch.0, "bundle ownership lost");
        }
    }

    /// Forgets an ownership that was handed over, or split into others.
    pub(crate) fn given_up(&self, given: &Owned) {
        self.forget(given);
    }

    fn forget(&self, lost: &Owned) -> bool {
        let cell = self.cell(&lost.bundle);
        let mut owned = cell.owned.lock();
        owned.take_if(|owned| owned.epoch == lost.epoch).is_some()
    }

    /// Takes over what a split has made of an owned bundle.
    pub(crate) fn rebound(&self, owned: Owned) {
        let cell = self.cell(&owned.bundle);
        *cell.owned.lock() = Some(owned);
    }

    /// The bundles that this broker owns, as far as it knows. One that is being acquired is not
    /// included, and not waited for.
    pub(crate) fn all(&self) -> Vec<Owned> {
        let cells: Vec<Arc<Cell>> = self.owned.lock().values().cloned().collect();
        let owned = cells.iter().filter_map(|cell| cell.owned.lock().clone());
        owned.collect()
    }

    fn cell(&self, bundle: &Bundle) -> Arc<Cell> {
        Arc::clone(self.owned.lock().entry(bundle.clone()).or_default())
    }

    /// Where another broker serves a bundle, as far as this one knows without asking.
    pub(crate) fn known_elsewhere(&self, bundle: &Bundle) -> Option<Listeners> {
        let cluster = self.cluster.as_ref()?;
        let owner = cluster.known_owner(bundle)?;
        (owner != self.broker).then(|| cluster.members.listeners(owner))?
    }

    /// Whether this broker speaks for the topics of a bundle that are not loaded: it owns the
    /// bundle, as far as it knows without asking, or no broker does and it `is_first` of all. Two
    /// brokers may think so for a moment, or no broker.
    pub(crate) fn speaks_for(&self, bundle: &Bundle, is_first: bool) -> bool {
        let Some(cluster) = self.cluster.as_ref() else {
            return true;
        };
        match cluster.known_owner(bundle) {
            Some(owner) if owner == self.broker => true,
            Some(owner) if cluster.members.listeners(owner).is_some() => false,
            Some(_) | None => is_first,
        }
    }

    /// Whether this broker is the first of those that serve.
    pub(crate) fn is_first(&self) -> bool {
        let cluster = self.cluster.as_ref();
        cluster.is_none_or(|cluster| cluster.members.is_first())
    }

    async fn acquire(&self, bundle: &Bundle, bundles: &Bundles) -> Result<Found, BrokerError> {
        let guard = Guard {
            key: keys::namespace(&bundle.namespace),
            expect: Expect::Revision(bundles.revision),
        };
        let partition = keys::partition_of_namespace(&bundle.namespace);
        let decide = |stored: Option<Versioned>| {
            let partition = &partition;
            async move {
                let mut epoch = 1;
                if let Some(stored) = &stored {
                    let record: BundleOwnerRecord = record::decode(stored)?;
                    if let Some(found) = self.served(bundle, stored, &record).await? {
                        return Ok(Change::none(Decided::Served(found)));
                    }
                    epoch = record.epoch + 1;
                }
                let (target, at) = self.choose(bundle);
                let record = BundleOwnerRecord {
                    broker_id: target.0.to_vec().into(),
                    epoch,
                    ..BundleOwnerRecord::default()
                };
                let given = match target == self.broker {
                    true => Decided::Mine(epoch),
                    false => Decided::Served(Found::Of(at)),
                };
                Ok(Change::put(partition, record::encode(record), given))
            }
        };
        let updated = self.store.update(&key(bundle), &[guard], decide).await;
        let updated = updated.map_err(|error: UpdateError<BrokerError>| match error {
            UpdateError::Guard { .. } => BrokerError::BundlesChanged(bundle.namespace.to_string()),
            error => error.flatten(),
        })?;
        Ok(match (updated.answer, updated.applied) {
            (Decided::Mine(epoch), revision) => {
                Found::Mine(owned(bundle, epoch, revision.unwrap_or_default(), None))
            }
            (Decided::Served(found), _) => found,
        })
    }

    /// The broker that serves a bundle by its record: this broker, or another one that lives.
    async fn served(
        &self,
        bundle: &Bundle,
        versioned: &Versioned,
        record: &BundleOwnerRecord,
    ) -> Result<Option<Found>, BrokerError> {
        if record.broker_id.as_ref() == self.broker.0 {
            // Written by this process, or by the broker that gave the bundle to it.
            let source = broker_id(&record.source_id);
            let mine = owned(bundle, record.epoch, versioned.revision, source);
            return Ok(Some(Found::Mine(mine)));
        }
        let (Some(cluster), Some(owner)) = (&self.cluster, broker_id(&record.broker_id)) else {
            return Ok(None);
        };
        let at = cluster.members.current_listeners(owner).await?;
        Ok(at.map(Found::Of))
    }

    /// The broker that gets a bundle without an owner.
    fn choose(&self, bundle: &Bundle) -> (BrokerId, Listeners) {
        let cluster = self.cluster.as_ref();
        let chosen = cluster.and_then(|c| c.members.choose(&bundle.to_string(), None));
        match chosen {
            Some(member) => (member.id, member.listeners),
            // No broker is announced yet, not even this one.
            None => (self.broker, Listeners::default()),
        }
    }
}

/// The key of a bundle's owner.
pub(crate) fn key(bundle: &Bundle) -> String {
    keys::bundle_owner(&bundle.namespace, bundle.range)
}

/// A broker's id from a record, if there is one.
pub(crate) fn broker_id(bytes: &[u8]) -> Option<BrokerId> {
    bytes.try_into().ok().map(BrokerId)
}

pub(crate) fn elsewhere(bundle: &Bundle, at: Listeners) -> BrokerError {
    BrokerError::Elsewhere {
        what: bundle.to_string(),
        at,
    }
}

pub(crate) fn owned(
    bundle: &Bundle,
    epoch: u64,
    revision: Revision,
    source: Option<BrokerId>,
) -> Owned {
    Owned {
        bundle: bundle.clone(),
        epoch: OwnerEpoch(epoch),
        guard: Guard {
            key: key(bundle),
            expect: Expect::Revision(revision),
        },
        source,
        session: None,
        since: Duration::ZERO,
    }
}
