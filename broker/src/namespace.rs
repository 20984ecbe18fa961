//! Tenants and namespaces: their records in metadata, and the policies of the namespaces that are
//! in use, cached and kept current by one watch each.
//!
//! A topic never reads metadata for a policy: it holds a receiver of its namespace's.

pub(crate) mod listing;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys;
use aquifer_metadata::record;
use aquifer_metadata::store::{Expect, MetadataStore, Revision, Versioned, WatchEvent};
use aquifer_model::policy::{NamespacePolicies, PolicyChanges};
use aquifer_model::topic::{DEFAULT_NAMESPACE, DEFAULT_TENANT, NamespaceName};
use aquifer_proto::v1::{NamespaceRecord, TenantRecord};
use aquifer_runtime::clock;
use aquifer_runtime::task::TaskGroup;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::bundles::Bundles;
use crate::error::BrokerError;

/// How often a change is made anew when others change the record at the same time.
const ATTEMPTS_MAX: u32 = 32;
/// How long a broken watch waits before it is begun anew.
const WATCH_RETRY: Duration = Duration::from_secs(1);

/// Tenants and namespaces.
pub(crate) struct Namespaces {
    store: Arc<dyn MetadataStore>,
    tasks: TaskGroup,
    /// Bundles of a namespace that is created.
    bundles: u32,
    cached: Cache,
}

/// A namespace that is in use.
#[derive(Clone)]
struct Cached {
    policies: watch::Receiver<NamespacePolicies>,
    bundles: watch::Receiver<Bundles>,
    /// Shows policies to whoever holds a receiver.
    show: Arc<watch::Sender<NamespacePolicies>>,
}

type Cache = Arc<Mutex<HashMap<NamespaceName, Cached>>>;

impl Namespaces {
    pub(crate) fn new(store: Arc<dyn MetadataStore>, tasks: TaskGroup, bundles: u32) -> Namespaces {
        Namespaces {
            store,
            tasks,
            bundles,
            cached: Arc::default(),
        }
    }

    pub(crate) fn store(&self) -> &Arc<dyn MetadataStore> {
        &self.store
    }

    /// Creates `public/default` unless it exists.
    pub(crate) async fn ensure_default(
        &self,
        policies: NamespacePolicies,
    ) -> Result<(), BrokerError> {
        let namespace = NamespaceName::new(DEFAULT_TENANT, DEFAULT_NAMESPACE)
            .map_err(|error| BrokerError::Internal(error.to_string()))?;
        match self.create_tenant(DEFAULT_TENANT).await {
            Ok(()) | Err(BrokerError::AlreadyExists { .. }) => {}
            Err(error) => return Err(error),
        }
        match self.create(&namespace, policies).await {
            Ok(()) | Err(BrokerError::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn create_tenant(&self, tenant: &str) -> Result<(), BrokerError> {
        let value = record::encode(TenantRecord::default());
        let key = keys::tenant(tenant);
        match self
            .store
            .put(keys::CLUSTER_PARTITION, &key, value, Expect::Absent)
            .await
        {
            Ok(_) => Ok(()),
            Err(MetadataError::Conflict { .. }) => Err(BrokerError::AlreadyExists {
                what: "tenant",
                name: tenant.to_owned(),
            }),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) async fn create(
        &self,
        namespace: &NamespaceName,
        policies: NamespacePolicies,
    ) -> Result<(), BrokerError> {
        if self
            .store
            .get(&keys::tenant(namespace.tenant()))
            .await?
            .is_none()
        {
            return Err(no_tenant(namespace.tenant()));
        }
        match self
            .write(
                namespace,
                policies,
                Bundles::even(self.bundles),
                Expect::Absent,
            )
            .await
        {
            Ok(_) => Ok(()),
            Err(MetadataError::Conflict { .. }) => Err(BrokerError::AlreadyExists {
                what: "namespace",
                name: namespace.to_string(),
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// Changes policies; what others change at the same time stays changed.
    pub(crate) async fn update(
        &self,
        namespace: &NamespaceName,
        changes: PolicyChanges,
    ) -> Result<NamespacePolicies, BrokerError> {
        let mut last = MetadataError::Unavailable("the namespace keeps changing".to_owned());
        for _ in 0..ATTEMPTS_MAX {
            let (record, revision) = self.read(namespace).await?;
            let boundaries = record.bundle_boundaries.clone();
            let before = policies_of(namespace, record)?;
            let after = changes.apply(before);
            if after == before {
                return Ok(after);
            }
            let expect = Expect::Revision(revision);
            match self.write(namespace, after, boundaries, expect).await {
                Ok(_) => {
                    // The watch brings it as well; this makes it visible to the caller's next request.
                    if let Some(cached) = self.cached.lock().get(namespace) {
                        cached.show.send_replace(after);
                    }
                    return Ok(after);
                }
                // Another change was first, or it was our own: what is there now says.
                Err(
                    error @ (MetadataError::Conflict { .. } | MetadataError::UnknownOutcome(_)),
                ) => last = error,
                Err(error) => return Err(error.into()),
            }
        }
        Err(last.into())
    }

    async fn write(
        &self,
        namespace: &NamespaceName,
        policies: NamespacePolicies,
        bundle_boundaries: Vec<u32>,
        expect: Expect,
    ) -> Result<Revision, MetadataError> {
        let value = record::encode(NamespaceRecord {
            policies: Some(policies.into()),
            bundle_boundaries,
        });
        let partition = keys::partition_of_namespace(namespace);
        self.store
            .put(&partition, &keys::namespace(namespace), value, expect)
            .await
    }

    async fn read(
        &self,
        namespace: &NamespaceName,
    ) -> Result<(NamespaceRecord, Revision), BrokerError> {
        match self.store.get(&keys::namespace(namespace)).await? {
            Some(versioned) => Ok((record::decode(&versioned)?, versioned.revision)),
            None if self
                .store
                .get(&keys::tenant(namespace.tenant()))
                .await?
                .is_none() =>
            {
                Err(no_tenant(namespace.tenant()))
            }
            None => Err(BrokerError::NotFound {
                what: "namespace",
                name: namespace.to_string(),
                advice: "create the namespace first, or correct its name".to_owned(),
            }),
        }
    }

    /// The policies of a namespace as they change, for topics.
    pub(crate) async fn policies(
        &self,
        namespace: &NamespaceName,
    ) -> Result<watch::Receiver<NamespacePolicies>, BrokerError> {
        Ok(self.cached(namespace).await?.policies)
    }

    /// The bundles of a namespace, as this broker knows them.
    pub(crate) async fn bundles(&self, namespace: &NamespaceName) -> Result<Bundles, BrokerError> {
        Ok(self.cached(namespace).await?.bundles.borrow().clone())
    }

    /// The namespace's record as metadata has it now.
    pub(crate) async fn record(
        &self,
        namespace: &NamespaceName,
    ) -> Result<(NamespaceRecord, Bundles), BrokerError> {
        let (record, revision) = self.read(namespace).await?;
        let bundles = bundles_of(namespace, &record, revision)?;
        Ok((record, bundles))
    }

    /// Forgets what is known of a namespace: the next request reads it anew.
    pub(crate) fn forget(&self, namespace: &NamespaceName) {
        self.cached.lock().remove(namespace);
    }

    async fn cached(&self, namespace: &NamespaceName) -> Result<Cached, BrokerError> {
        if let Some(cached) = self.cached.lock().get(namespace) {
            return Ok(cached.clone());
        }
        let (record, revision) = self.read(namespace).await?;
        let bundles = bundles_of(namespace, &record, revision)?;
        let (bundles_sender, bundles) = watch::channel(bundles);
        let (show, policies) = watch::channel(policies_of(namespace, record)?);
        let show = Arc::new(show);
        let watcher = Watcher {
            store: Arc::clone(&self.store),
            namespace: namespace.clone(),
            cached: Arc::clone(&self.cached),
            sender: Arc::clone(&show),
            bundles: bundles_sender,
        };
        let cached = Cached {
            policies,
            bundles,
            show,
        };
        self.cached.lock().insert(namespace.clone(), cached.clone());
        let token = self.tasks.shutdown_token();
        self.tasks.spawn("namespace-watch", async move {
            tokio::select! {
                () = watcher.run(revision) => {}
                () = token.wait() => {}
            }
        });
        Ok(cached)
    }

    /// The policies of a namespace as metadata has them now.
    pub(crate) async fn get(
        &self,
        namespace: &NamespaceName,
    ) -> Result<NamespacePolicies, BrokerError> {
        let (record, _) = self.read(namespace).await?;
        policies_of(namespace, record)
    }

    /// Whether a tenant exists.
    pub(crate) async fn check_tenant(&self, tenant: &str) -> Result<(), BrokerError> {
        match self.store.get(&keys::tenant(tenant)).await? {
            Some(_) => Ok(()),
            None => Err(no_tenant(tenant)),
        }
    }
}

fn no_tenant(tenant: &str) -> BrokerError {
    BrokerError::NotFound {
        what: "tenant",
        name: tenant.to_owned(),
        advice: "create the tenant first, or correct its name".to_owned(),
    }
}

pub(crate) fn policies_of(
    namespace: &NamespaceName,
    record: NamespaceRecord,
) -> Result<NamespacePolicies, BrokerError> {
    let damaged = |reason: String| {
        BrokerError::Metadata(MetadataError::Damaged {
            key: keys::namespace(namespace),
            reason,
        })
    };
    let policies = record
        .policies
        .ok_or_else(|| damaged("it has no policies".to_owned()))?;
    NamespacePolicies::try_from(policies).map_err(|error| damaged(error.to_string()))
}

pub(crate) fn bundles_of(
    namespace: &NamespaceName,
    record: &NamespaceRecord,
    revision: Revision,
) -> Result<Bundles, BrokerError> {
    Bundles::new(&record.bundle_boundaries, revision).map_err(|reason| {
        BrokerError::Metadata(MetadataError::Damaged {
            key: keys::namespace(namespace),
            reason,
        })
    })
}

/// Keeps what is cached of one namespace current until nobody uses it.
struct Watcher {
    store: Arc<dyn MetadataStore>,
    namespace: NamespaceName,
    cached: Cache,
    sender: Arc<watch::Sender<NamespacePolicies>>,
    bundles: watch::Sender<Bundles>,
}

impl Watcher {
    async fn run(self, mut after: Revision) {
        loop {
            match self.follow(&mut after).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::warn!(namespace = %self.namespace, %error, "policy watch is begun anew");
                    clock::sleep(WATCH_RETRY).await;
                }
            }
        }
        // Only its own entry: an update may have put a newer watch in its place.
        let mut cached = self.cached.lock();
        let own = cached
            .get(&self.namespace)
            .is_some_and(|cached| cached.policies.same_channel(&self.sender.subscribe()));
        if own {
            cached.remove(&self.namespace);
        }
    }

    /// Follows one watch; `Ok(false)` when the namespace is gone or nobody listens any more.
    async fn follow(&self, after: &mut Revision) -> Result<bool, BrokerError> {
        let key = keys::namespace(&self.namespace);
        let mut watch = self.store.watch(&key, *after).await?;
        loop {
            let event = tokio::select! {
                event = watch.next() => event,
                () = self.sender.closed() => return Ok(false),
            };
            match event {
                Some(WatchEvent::Put(versioned)) if versioned.key == key => {
                    *after = versioned.revision;
                    self.show(&versioned)?;
                }
                Some(WatchEvent::Delete { key: gone, .. }) if gone == key => return Ok(false),
                Some(WatchEvent::Put(_) | WatchEvent::Delete { .. }) => {}
                None => return Ok(false),
                Some(WatchEvent::Resync) => return self.resync(&key, after).await,
            }
        }
    }

    /// Takes the record as it is now, and the store's revision with it: the record may be older
    /// than everything that the store still remembers, and a watch from its own revision would be
    /// answered with a resync again, for ever.
    async fn resync(&self, key: &str, after: &mut Revision) -> Result<bool, BrokerError> {
        // The key itself is the first of those that begin with it.
        let page = self.store.scan(key, None, 1).await?;
        let Some(versioned) = page.items.first().filter(|item| item.key == key) else {
            return Ok(false);
        };
        self.show(versioned)?;
        *after = page.revision;
        Ok(true)
    }

    fn show(&self, versioned: &Versioned) -> Result<(), BrokerError> {
        let record: NamespaceRecord = record::decode(versioned)?;
        let bundles = bundles_of(&self.namespace, &record, versioned.revision)?;
        self.bundles.send_replace(bundles);
        self.sender
            .send_replace(policies_of(&self.namespace, record)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
