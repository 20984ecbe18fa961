//! Tenants and namespaces: their records in metadata, and the bundles of the namespaces that are in
//! use, cached and kept current by one watch each. Their policies are in `policies.rs`.

pub(crate) mod listing;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys;
use aquifer_metadata::record;
use aquifer_metadata::store::{
    Expect, Guard, MetadataStore, Operation, Revision, Transaction, Versioned, WatchEvent,
};
use aquifer_model::policy::{EffectivePolicies, Policies, PolicyScope};
use aquifer_model::topic::{DEFAULT_NAMESPACE, DEFAULT_TENANT, NamespaceName, RESERVED_TENANT};
use aquifer_proto::v1::{NamespaceRecord, Removal, TenantRecord};
use aquifer_protocol_api::error::{ApiError, ErrorKind};
use aquifer_runtime::clock;
use aquifer_runtime::task::TaskGroup;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::bundle::Bundles;
use crate::error::BrokerError;
use crate::policies::{self, PolicyTable};

/// How long a broken watch waits before it is started again.
const WATCH_RETRY: Duration = Duration::from_secs(1);

/// Tenants and namespaces.
pub(crate) struct Namespaces {
    store: Arc<dyn MetadataStore>,
    tasks: TaskGroup,
    /// Bundles of a namespace that is created.
    bundles: u32,
    policies: PolicyTable,
    cached: Cache,
}

/// The bundles of the namespaces that are in use.
type Cache = Arc<Mutex<HashMap<NamespaceName, watch::Receiver<Bundles>>>>;

impl Namespaces {
    /// Namespaces whose topics have these policies where nothing says otherwise.
    pub(crate) fn new(
        store: Arc<dyn MetadataStore>,
        tasks: TaskGroup,
        bundles: u32,
        defaults: EffectivePolicies,
    ) -> Namespaces {
        let policies = PolicyTable::start(Arc::clone(&store), defaults, &tasks);
        Namespaces {
            store,
            tasks,
            bundles,
            policies,
            cached: Arc::default(),
        }
    }

    pub(crate) fn store(&self) -> &Arc<dyn MetadataStore> {
        &self.store
    }

    /// Creates `public/default` unless it exists.
    pub(crate) async fn ensure_default(&self) -> Result<(), BrokerError> {
        let namespace = NamespaceName::new(DEFAULT_TENANT, DEFAULT_NAMESPACE)
            .map_err(|error| BrokerError::Internal(error.to_string()))?;
        match self.create_tenant(DEFAULT_TENANT).await {
            Ok(()) | Err(BrokerError::AlreadyExists { .. }) => {}
            Err(error) => return Err(error),
        }
        match self.create(&namespace, Policies::default()).await {
            Ok(_) | Err(BrokerError::AlreadyExists { .. }) => Ok(()),
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

    /// Creates a namespace that says these policies, with its first bundles.
    pub(crate) async fn create(
        &self,
        namespace: &NamespaceName,
        policies: Policies,
    ) -> Result<Revision, BrokerError> {
        self.check_taking(namespace.tenant()).await?;
        let mut operations = vec![Operation::Put {
            key: keys::namespace(namespace),
            value: record::encode(NamespaceRecord {
                bundle_boundaries: Bundles::even(self.bundles),
                ..NamespaceRecord::default()
            }),
            expect: Expect::Absent,
        }];
        if policies != Policies::default() {
            operations.push(Operation::Put {
                key: keys::policies(&PolicyScope::Namespace(namespace.clone())),
                value: policies::record_of(policies),
                expect: Expect::Any,
            });
        }
        let transaction = Transaction {
            partition: keys::partition_of_namespace(namespace),
            operations,
            ..Transaction::default()
        };
        let created = match self.store.commit(transaction).await {
            Ok(revision) => revision,
            Err(MetadataError::Conflict { .. }) => {
                return Err(BrokerError::AlreadyExists {
                    what: "namespace",
                    name: namespace.to_string(),
                });
            }
            Err(error) => return Err(error.into()),
        };
        // The record of a tenant belongs to another partition and cannot be compared: a deletion of
        // the tenant that has looked into it before finds nothing of this.
        match self.check_taking(namespace.tenant()).await {
            Ok(()) => Ok(created),
            Err(refused) => {
                self.undo(namespace, created).await;
                Err(refused)
            }
        }
    }

    /// Begins to delete a namespace that has just been created in a tenant that takes none in. A
    /// topic may have been created in it meanwhile, so that it goes as any other: the next deletion
    /// or sweep that finds the mark finishes it.
    async fn undo(&self, namespace: &NamespaceName, created: Revision) {
        let marked = async {
            let (mut record, _) = self.read(namespace).await?;
            record.set_removal(Removal::All);
            let partition = keys::partition_of_namespace(namespace);
            let (key, value) = (keys::namespace(namespace), record::encode(record));
            let expect = Expect::Revision(created);
            self.store.put(&partition, &key, value, expect).await?;
            Ok::<(), BrokerError>(())
        };
        if let Err(error) = marked.await {
            tracing::warn!(%namespace, %error, "a namespace may be left of a tenant that is deleted");
        }
    }

    /// The policies in force.
    pub(crate) fn policies(&self) -> &PolicyTable {
        &self.policies
    }

    /// Refuses when a namespace, or its tenant, does not exist.
    pub(crate) async fn check(&self, namespace: &NamespaceName) -> Result<(), BrokerError> {
        self.cached(namespace).await.map(drop)
    }

    /// Holds as long as a namespace takes new topics in.
    ///
    /// # Errors
    /// `FailedPrecondition` when it is being deleted, and when it is gone.
    pub(crate) async fn taking_topics(
        &self,
        namespace: &NamespaceName,
    ) -> Result<Guard, BrokerError> {
        let (record, revision) = self.read(namespace).await?;
        check_stays(record.removal(), &format!("namespace {namespace}"))?;
        Ok(Guard {
            key: keys::namespace(namespace),
            expect: Expect::Revision(revision),
        })
    }

    /// Refuses when a tenant takes no new namespaces in, because it is being deleted or is gone.
    async fn check_taking(&self, tenant: &str) -> Result<(), BrokerError> {
        self.taking(tenant).await.map(drop)
    }

    /// Holds as long as a tenant takes in what is made in it.
    async fn taking(&self, tenant: &str) -> Result<Guard, BrokerError> {
        let key = keys::tenant(tenant);
        let found = self.store.get(&key).await?;
        let found = found.ok_or_else(|| BrokerError::no_tenant(tenant))?;
        let record: TenantRecord = record::decode(&found)?;
        check_stays(record.removal(), &format!("tenant {tenant}"))?;
        let expect = Expect::Revision(found.revision);
        Ok(Guard { key, expect })
    }

    /// Holds as long as tokens, grants and roles may be made in a tenant; nothing has to hold for
    /// those of the cluster.
    ///
    /// # Errors
    /// `NotFound`, and `FailedPrecondition` when it is being deleted.
    pub(crate) async fn taking_access(
        &self,
        tenant: Option<&str>,
    ) -> Result<Vec<Guard>, BrokerError> {
        match tenant {
            None => Ok(Vec::new()),
            Some(tenant) => Ok(vec![self.taking(tenant).await?]),
        }
    }

    /// Holds as long as something may be given to tokens of a tenant, which may not be there yet:
    /// what its deletion has looked for already would stay for the next of its name.
    ///
    /// # Errors
    /// `FailedPrecondition` when it is being deleted.
    pub(crate) async fn taking_grantees(
        &self,
        tenant: Option<&str>,
    ) -> Result<Vec<Guard>, BrokerError> {
        // What is no name of a tenant has no tokens.
        let tenant = tenant.filter(|tenant| NamespaceName::new(tenant, DEFAULT_NAMESPACE).is_ok());
        match (self.taking_access(tenant).await, tenant) {
            (Err(BrokerError::NotFound { .. }), Some(tenant)) => Ok(vec![Guard {
                key: keys::tenant(tenant),
                expect: Expect::Absent,
            }]),
            (taken, _) => taken,
        }
    }

    /// Whether a namespace is there and takes something in; an error when it is being deleted.
    ///
    /// # Errors
    /// `FailedPrecondition`.
    pub(crate) async fn is_taking(&self, namespace: &NamespaceName) -> Result<bool, BrokerError> {
        match self.read(namespace).await {
            Ok((record, _)) => {
                check_stays(record.removal(), &format!("namespace {namespace}"))?;
                Ok(true)
            }
            Err(BrokerError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The record of a namespace as metadata has it now.
    pub(crate) async fn read(
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
                Err(BrokerError::no_tenant(namespace.tenant()))
            }
            None => Err(BrokerError::no_namespace(namespace)),
        }
    }

    /// The bundles of a namespace, as this broker knows them.
    pub(crate) async fn bundles(&self, namespace: &NamespaceName) -> Result<Bundles, BrokerError> {
        Ok(self.cached(namespace).await?.borrow().clone())
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

    /// Forgets what is known of a namespace: the next request reads it again.
    pub(crate) fn forget(&self, namespace: &NamespaceName) {
        self.cached.lock().remove(namespace);
    }

    async fn cached(
        &self,
        namespace: &NamespaceName,
    ) -> Result<watch::Receiver<Bundles>, BrokerError> {
        if let Some(cached) = self.cached.lock().get(namespace) {
            return Ok(cached.clone());
        }
        let (record, revision) = self.read(namespace).await?;
        let bundles = bundles_of(namespace, &record, revision)?;
        let (sender, bundles) = watch::channel(bundles);
        let watcher = Watcher {
            store: Arc::clone(&self.store),
            namespace: namespace.clone(),
            cached: Arc::clone(&self.cached),
            sender,
        };
        self.cached
            .lock()
            .insert(namespace.clone(), bundles.clone());
        let token = self.tasks.shutdown_token();
        self.tasks.spawn("namespace-watch", async move {
            tokio::select! {
                () = watcher.run(revision) => {}
                () = token.wait() => {}
            }
        });
        Ok(bundles)
    }

    /// Whether a tenant exists.
    pub(crate) async fn check_tenant(&self, tenant: &str) -> Result<(), BrokerError> {
        match self.store.get(&keys::tenant(tenant)).await? {
            Some(_) => Ok(()),
            None => Err(BrokerError::no_tenant(tenant)),
        }
    }
}

/// Refuses the tenant that only brokers change, whatever is granted: what is there would prove
/// nothing otherwise.
pub(crate) fn check_unreserved(tenant: &str) -> Result<(), BrokerError> {
    if tenant != RESERVED_TENANT {
        return Ok(());
    }
    Err(BrokerError::invalid(
        format!("the tenant {tenant} is kept for topics of the brokers"),
        "choose another tenant",
    ))
}

/// Refuses what is marked for its deletion.
fn check_stays(removal: Removal, what: &str) -> Result<(), BrokerError> {
    if removal == Removal::Unspecified {
        return Ok(());
    }
    let text = format!("{what} is being deleted");
    let error = ApiError::new(ErrorKind::FailedPrecondition, text);
    let error = error.advise("wait until it is gone, then create it again");
    Err(error.into())
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

/// Keeps what is cached of one namespace current until it is not used any more.
struct Watcher {
    store: Arc<dyn MetadataStore>,
    namespace: NamespaceName,
    cached: Cache,
    sender: watch::Sender<Bundles>,
}

impl Watcher {
    async fn run(self, mut after: Revision) {
        loop {
            match self.follow(&mut after).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::warn!(namespace = %self.namespace, %error, "watch of a namespace begins again");
                    clock::sleep(WATCH_RETRY).await;
                }
            }
        }
        // Only its own entry: a newer watch may be in its place.
        let mut cached = self.cached.lock();
        let own = cached
            .get(&self.namespace)
            .is_some_and(|cached| cached.same_channel(&self.sender.subscribe()));
        if own {
            cached.remove(&self.namespace);
        }
    }

    /// Follows one watch; `Ok(false)` when the namespace is gone or no receiver is left.
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
        self.sender.send_replace(bundles);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
