//! Policies in force: what tenants, namespaces and topics say, resolved, and kept current.
//!
//! One watch over all policies of the cluster serves everything that is in use here; nothing on the
//! path of a message reads metadata for a policy. Memory holds what is in use, not what is stored.
//!
//! Invariants:
//! - A scope is registered before its record is read, so that no change falls between the read and
//!   the watch; what was read is dropped when the watch has shown something newer, or when the
//!   scope was dropped and registered again meanwhile.
//! - A record that cannot be decoded concerns its own scope alone: what was in force there stays
//!   so, and everything else is followed.

mod follow;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys;
use aquifer_metadata::record;
use aquifer_metadata::store::{
    Expect, Guard, MetadataStore, Operation, Revision, Transaction, Versioned,
};
use aquifer_model::policy::{
    EffectivePolicies, Level, Policies, PolicyName, PolicyScope, PolicyUpdate, PolicyView, resolve,
};
use aquifer_model::topic::{NamespaceName, TopicName};
use aquifer_proto::v1::{PolicyRecord, TopicRecord};
use aquifer_protocol_api::error::ApiError;
use aquifer_runtime::task::TaskGroup;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::error::BrokerError;

/// How often a change is made again when others change the record at the same time.
const ATTEMPTS_MAX: u32 = 32;
/// How long a broken watch waits before it begins again.
const WATCH_RETRY: Duration = Duration::from_secs(1);
/// What is not in use any more is dropped when there is twice as much as after the last time, and
/// this.
const PRUNE_ABOVE: usize = 64;

/// The policies in force.
pub(crate) struct PolicyTable {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn MetadataStore>,
    defaults: EffectivePolicies,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What the scopes that are in use say.
    said: HashMap<PolicyScope, Known>,
    /// What is in force for what is in use.
    live: HashMap<PolicyScope, watch::Sender<EffectivePolicies>>,
    live_after_prune: usize,
    said_after_prune: usize,
    /// Registrations of scopes so far.
    registrations: u64,
}

/// What a scope says, as of a revision of the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Said {
    policies: Policies,
    /// Of its record; 0 without one.
    version: Revision,
    /// None: not read yet.
    as_of: Option<Revision>,
}

/// A scope that is in use.
#[derive(Debug, Clone, Copy)]
struct Known {
    said: Said,
    /// Which registration this is.
    registration: u64,
}

/// A record as it was read, and as of when.
struct Stored {
    record: Option<Versioned>,
    revision: Revision,
}

impl PolicyTable {
    /// Policies over what the broker is configured with, followed until `tasks` shuts down.
    pub(crate) fn start(
        store: Arc<dyn MetadataStore>,
        defaults: EffectivePolicies,
        tasks: &TaskGroup,
    ) -> PolicyTable {
        let inner = Arc::new(Inner {
            store,
            defaults,
            state: Mutex::default(),
        });
        let (watcher, token) = (Arc::clone(&inner), tasks.shutdown_token());
        tasks.spawn("policy-watch", async move {
            tokio::select! {
                () = watcher.watch() => {}
                () = token.wait() => {}
            }
        });
        PolicyTable { inner }
    }

    /// What is in force for a topic as it changes; a partition has what its topic has.
    pub(crate) async fn of_topic(
        &self,
        topic: &TopicName,
    ) -> Result<watch::Receiver<EffectivePolicies>, BrokerError> {
        let scope = PolicyScope::Topic(topic.base());
        self.inner.follow(&scope).await
    }

    /// What is in force for topics of a namespace that say nothing themselves.
    pub(crate) async fn of_namespace(
        &self,
        namespace: &NamespaceName,
    ) -> Result<EffectivePolicies, BrokerError> {
        let scope = PolicyScope::Namespace(namespace.clone());
        Ok(*self.inner.follow(&scope).await?.borrow())
    }

    /// What is in force for a scope that exists, as it changes.
    pub(crate) async fn of_scope(
        &self,
        scope: &PolicyScope,
    ) -> Result<watch::Receiver<EffectivePolicies>, BrokerError> {
        self.inner.follow(scope).await
    }

    /// Whether a topic of a namespace says something itself.
    pub(crate) async fn has_topics(&self, namespace: &NamespaceName) -> Result<bool, BrokerError> {
        let scope = PolicyScope::Namespace(namespace.clone());
        let below = format!("{}/", keys::policies(&scope));
        let page = self.inner.store.scan(&below, None, 1).await?;
        Ok(!page.items.is_empty())
    }

    /// What is in force for a topic that is not in use, as metadata says now, under what is in
    /// force for its namespace.
    pub(crate) async fn of_unused(
        &self,
        topic: &TopicName,
        above: EffectivePolicies,
    ) -> Result<EffectivePolicies, BrokerError> {
        let said = self.inner.read(&PolicyScope::Topic(topic.base())).await?;
        Ok(resolve(above, &[(Level::Topic, said.policies)]).0)
    }

    /// The policies of a scope that exists.
    pub(crate) async fn view(&self, scope: &PolicyScope) -> Result<PolicyView, BrokerError> {
        self.inner.existence(scope).await?;
        self.inner.view(scope).await
    }

    /// The policies of a namespace that `create` makes with these, as of the revision it answers.
    pub(crate) async fn of_created(
        &self,
        namespace: &NamespaceName,
        policies: Policies,
        create: impl Future<Output = Result<Revision, BrokerError>>,
    ) -> Result<PolicyView, BrokerError> {
        let scope = PolicyScope::Namespace(namespace.clone());
        check_levels(&scope, &policies)?;
        let above = self.inner.above(&scope).await?;
        let said = Said::at(policies, create.await?);
        Ok(self.inner.view_of(&scope, above, said))
    }

    /// Changes what a scope says, and shows it here at once.
    pub(crate) async fn update(
        &self,
        scope: &PolicyScope,
        update: &PolicyUpdate,
    ) -> Result<PolicyView, BrokerError> {
        if update.is_empty() {
            return Err(BrokerError::invalid(
                "no policy is given",
                "give those that are to change; the others stay as they are",
            ));
        }
        check_levels(scope, &update.set)?;
        let inner = &self.inner;
        let mut last = MetadataError::Unavailable("the policies keep changing".to_owned());
        // Set when a change of ours may have been made although no answer came.
        let mut in_doubt: Option<Policies> = None;
        for _ in 0..ATTEMPTS_MAX {
            let exists = inner.existence(scope).await?;
            // Read first: nothing that can fail may come between the change and the answer.
            let above = inner.above(scope).await?;
            let said = inner.replaceable(scope, update.version).await?;
            let answer = |said: Said| Ok(inner.view_of(scope, above.clone(), said));
            if in_doubt.is_some_and(|wanted| wanted == said.policies) {
                return answer(said);
            }
            let found = said.version.0;
            if let Some(wanted) = update.version.filter(|version| *version != found) {
                // It may be our own change that is found.
                return Err(match in_doubt {
                    Some(_) => last.into(),
                    None => BrokerError::Conflict {
                        what: format!("the policies of {scope}"),
                        found,
                        wanted,
                    },
                });
            }
            let wanted = update.apply(said.policies);
            if wanted == said.policies {
                return answer(said);
            }
            match inner
                .store
                .commit(change(scope, exists, said, wanted))
                .await
            {
                Ok(revision) => {
                    let said = Said::at(wanted, revision);
                    inner.learn(scope, said, None);
                    return answer(said);
                }
                Err(error @ MetadataError::UnknownOutcome(_)) => {
                    in_doubt = Some(wanted);
                    last = error;
                }
                Err(error @ MetadataError::Conflict { .. }) => last = error,
                Err(error) => return Err(error.into()),
            }
        }
        Err(last.into())
    }
}

/// Refuses policies that may not be set at the level of a scope.
fn check_levels(scope: &PolicyScope, set: &Policies) -> Result<(), BrokerError> {
    let is_wrong = |name: &&PolicyName| set.has(**name) && !name.levels().contains(&scope.level());
    let Some(name) = PolicyName::ALL.iter().find(is_wrong) else {
        return Ok(());
    };
    let levels: Vec<&str> = name.levels().iter().map(|level| level.as_str()).collect();
    Err(BrokerError::invalid(
        format!("{name} cannot be set at {scope}"),
        format!("set it at a {}", levels.join(" or a ")),
    ))
}

/// The change of a record from what it says to what it is to say. It needs the scope to exist.
fn change(scope: &PolicyScope, exists: Guard, said: Said, wanted: Policies) -> Transaction {
    let key = keys::policies(scope);
    let expect = match said.version {
        Revision(0) => Expect::Absent,
        revision => Expect::Revision(revision),
    };
    let operation = if wanted == Policies::default() {
        Operation::Delete { key, expect }
    } else {
        let value = record_of(wanted);
        Operation::Put { key, value, expect }
    };
    Transaction {
        partition: keys::partition_of_policies(scope),
        guards: vec![exists],
        operations: vec![operation],
    }
}

/// The bytes that say this.
pub(crate) fn record_of(policies: Policies) -> bytes::Bytes {
    record::encode(PolicyRecord {
        policies: Some(policies.into()),
    })
}

fn decode(stored: &Versioned) -> Result<Said, BrokerError> {
    let record: PolicyRecord = record::decode(stored)?;
    let policies = Policies::try_from(record.policies.unwrap_or_default());
    let damaged = |reason| MetadataError::Damaged {
        key: stored.key.clone(),
        reason,
    };
    Ok(Said {
        policies: policies.map_err(damaged)?,
        version: stored.revision,
        as_of: Some(stored.revision),
    })
}

impl Said {
    /// After a change by this build, which leaves no record that says nothing.
    fn at(policies: Policies, revision: Revision) -> Said {
        let is_stored = policies != Policies::default();
        Said {
            policies,
            version: if is_stored { revision } else { Revision(0) },
            as_of: Some(revision),
        }
    }
}

impl Stored {
    fn said(&self) -> Result<Said, BrokerError> {
        let said = self.record.as_ref().map(decode).transpose()?;
        Ok(Said {
            as_of: Some(self.revision),
            ..said.unwrap_or_default()
        })
    }
}

impl Inner {
    /// The guard that a scope exists as it does now.
    async fn existence(&self, scope: &PolicyScope) -> Result<Guard, BrokerError> {
        let (key, absent) = match scope {
            PolicyScope::Tenant(name) => (keys::tenant(name), BrokerError::no_tenant(name)),
            PolicyScope::Namespace(name) => {
                (keys::namespace(name), BrokerError::no_namespace(name))
            }
            PolicyScope::Topic(name) if name.partition().is_some() => {
                return Err(BrokerError::invalid(
                    format!("{name} is a partition"),
                    "name the topic: its partitions have its policies",
                ));
            }
            PolicyScope::Topic(name) => (keys::topic(name), BrokerError::no_topic(name)),
        };
        let stored = self.store.get(&key).await?.ok_or(absent)?;
        if let PolicyScope::Topic(name) = scope
            && record::decode::<TopicRecord>(&stored)?.deleting
        {
            return Err(BrokerError::Deleted(name.to_string()));
        }
        let expect = Expect::Revision(stored.revision);
        Ok(Guard { key, expect })
    }

    async fn stored(&self, scope: &PolicyScope) -> Result<Stored, BrokerError> {
        let key = keys::policies(scope);
        // The key itself is the first of those that begin with it, and a scan tells as of when.
        let page = self.store.scan(&key, None, 1).await?;
        let first = page.items.into_iter().next();
        Ok(Stored {
            record: first.filter(|item| item.key == key),
            revision: page.revision,
        })
    }

    /// What a scope says now.
    async fn read(&self, scope: &PolicyScope) -> Result<Said, BrokerError> {
        self.stored(scope).await?.said()
    }

    /// What a scope says now, if a change of it loses nothing. A damaged record is replaced whole
    /// by a change that names its version.
    async fn replaceable(
        &self,
        scope: &PolicyScope,
        version: Option<u64>,
    ) -> Result<Said, BrokerError> {
        let stored = self.stored(scope).await?;
        let Some(record) = &stored.record else {
            return stored.said();
        };
        let said = match stored.said() {
            Ok(said) => said,
            Err(_) if version == Some(record.revision.0) => {
                return Ok(Said {
                    version: record.revision,
                    as_of: Some(stored.revision),
                    ..Said::default()
                });
            }
            Err(error) => {
                let error = ApiError::from(error).advise(format!(
                    "restore it from a backup, or set the policies of {scope} with version {}, which \
                     replaces all of them",
                    record.revision.0
                ));
                return Err(error.into());
            }
        };
        // Policies that this build does not know would be gone after the change.
        if record_of(said.policies) != record.value {
            return Err(BrokerError::invalid(
                format!("{scope} has policies that this broker does not know"),
                "change them through a broker of a newer version",
            ));
        }
        Ok(said)
    }

    /// What the levels above a scope say, the farthest first.
    async fn above(&self, scope: &PolicyScope) -> Result<Vec<(Level, Policies)>, BrokerError> {
        let mut levels = Vec::new();
        for above in scope.path().iter().filter(|level| *level != scope) {
            levels.push((above.level(), self.read(above).await?.policies));
        }
        Ok(levels)
    }

    fn view_of(
        &self,
        scope: &PolicyScope,
        mut levels: Vec<(Level, Policies)>,
        own: Said,
    ) -> PolicyView {
        levels.push((scope.level(), own.policies));
        let (effective, origins) = resolve(self.defaults, &levels);
        PolicyView {
            own: own.policies,
            version: own.version.0,
            effective,
            origins,
        }
    }

    async fn view(&self, scope: &PolicyScope) -> Result<PolicyView, BrokerError> {
        let above = self.above(scope).await?;
        Ok(self.view_of(scope, above, self.read(scope).await?))
    }

    async fn follow(
        &self,
        scope: &PolicyScope,
    ) -> Result<watch::Receiver<EffectivePolicies>, BrokerError> {
        let path = scope.path();
        loop {
            let unread: Vec<(&PolicyScope, u64)> = {
                let mut state = self.state.lock();
                if let Some(sender) = state.live.get(scope) {
                    return Ok(sender.subscribe());
                }
                // Registrations whose reads failed are dropped by others that come.
                state.prune();
                let unread = |scope| state.register(scope).map(|number| (scope, number));
                path.iter().filter_map(unread).collect()
            };
            for (scope, registration) in unread {
                let said = self.read(scope).await?;
                self.learn(scope, said, Some(registration));
            }
            let mut state = self.state.lock();
            // Else something was dropped as not in use meanwhile.
            if let Some(effective) = state.resolved(&path, self.defaults) {
                // Another request may have been first: all receivers belong to one sender.
                let sender = state.live.entry(scope.clone());
                let sender = sender.or_insert_with(|| watch::Sender::new(effective));
                let receiver = sender.subscribe();
                state.prune();
                return Ok(receiver);
            }
        }
    }

    /// Takes in what a scope says, unless something newer is known or it is not in use. What was
    /// read for a registration counts for no later one, which may have missed a change.
    fn learn(&self, scope: &PolicyScope, said: Said, registration: Option<u64>) {
        let mut state = self.state.lock();
        let Some(known) = state.said.get_mut(scope) else {
            return;
        };
        let is_late = registration.is_some_and(|number| number != known.registration);
        if is_late || known.said.as_of >= said.as_of {
            return;
        }
        let is_same = known.said.policies == said.policies;
        known.said = said;
        if is_same {
            return;
        }
        match scope {
            PolicyScope::Topic(_) => state.show(scope, self.defaults),
            _ => {
                let below = state.live.keys().filter(|below| scope.covers(below));
                below.for_each(|below| state.show(below, self.defaults));
            }
        }
    }
}

impl State {
    /// Notes that a scope is in use; the number of the registration if its record is to be read.
    fn register(&mut self, scope: &PolicyScope) -> Option<u64> {
        let known = self.said.entry(scope.clone()).or_insert_with(|| {
            self.registrations += 1;
            Known {
                said: Said::default(),
                registration: self.registrations,
            }
        });
        known.said.as_of.is_none().then_some(known.registration)
    }

    /// What is in force at the end of a path, if all of it is known.
    fn resolved(
        &self,
        path: &[PolicyScope],
        defaults: EffectivePolicies,
    ) -> Option<EffectivePolicies> {
        let mut levels: Vec<(Level, Policies)> = Vec::with_capacity(path.len());
        for scope in path {
            let said = self.said.get(scope)?.said;
            said.as_of?;
            levels.push((scope.level(), said.policies));
        }
        Some(resolve(defaults, &levels).0)
    }

    /// Shows what is in force now to those that follow a scope.
    fn show(&self, scope: &PolicyScope, defaults: EffectivePolicies) {
        let effective = self.resolved(&scope.path(), defaults);
        if let (Some(sender), Some(effective)) = (self.live.get(scope), effective) {
            sender.send_if_modified(|now| std::mem::replace(now, effective) != effective);
        }
    }

    /// Drops what is not in use.
    fn prune(&mut self) {
        let is_due = |now: usize, then: usize| now > 2 * then + PRUNE_ABOVE;
        if !is_due(self.live.len(), self.live_after_prune)
            && !is_due(self.said.len(), self.said_after_prune)
        {
            return;
        }
        self.live.retain(|_, sender| sender.receiver_count() > 0);
        self.live_after_prune = self.live.len();
        let used: std::collections::HashSet<PolicyScope> =
            self.live.keys().flat_map(PolicyScope::path).collect();
        self.said.retain(|scope, _| used.contains(scope));
        self.said_after_prune = self.said.len();
    }
}

#[cfg(test)]
mod tests;
