//! Policies in force: what tenants, namespaces and topics say, resolved, and kept current.
//!
//! One watch over all policies of the cluster serves everything that is in use here; nothing on the
//! path of a message reads metadata for a policy. Memory holds what is in use, not what is stored.
//!
//! Invariants:
//! - A scope is registered before its record is read, so that no change falls between the read and
//!   the watch; what was read is dropped when the watch has shown something newer, or when the
//!   scope was dropped and registered again meanwhile.
//! - What a request is reading is in use: else requests that come at once would drop each other's
//!   registrations, and read again without an end.
//! - A record that cannot be decoded concerns its own scope alone: what was in force there stays
//!   so, and everything else is followed.

mod follow;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys;
use aquifer_metadata::record;
use aquifer_metadata::store::{Expect, Guard, MetadataStore, Revision, Versioned};
use aquifer_metadata::update::{Change, UpdateError};
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
    /// Requests that read it, or a scope below it.
    reading: usize,
}

/// Keeps the scopes of a path from being dropped as not in use.
struct Reading<'a> {
    inner: &'a Inner,
    path: &'a [PolicyScope],
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut state = self.inner.state.lock();
        for scope in self.path {
            if let Some(known) = state.said.get_mut(scope) {
                known.reading = known.reading.saturating_sub(1);
            }
        }
    }
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
        // What this call has tried to store. It may have succeeded without an answer: then it is
        // found, under a version that the caller cannot know.
        let tried: Mutex<Option<Policies>> = Mutex::default();
        let decide = |stored: Option<Versioned>| {
            let tried = &tried;
            async move {
                let exists = inner.existence(scope).await?;
                // Read first: nothing that can fail may come between the change and the answer.
                let above = inner.above(scope).await?;
                let said = replaceable(scope, update.version, stored.as_ref())?;
                if *tried.lock() == Some(said.policies) {
                    return Ok(Change::none((said, above)));
                }
                let found = said.version.0;
                if let Some(wanted) = update.version.filter(|version| *version != found) {
                    return Err(BrokerError::Conflict {
                        what: format!("the policies of {scope}"),
                        found,
                        wanted,
                    });
                }
                let wanted = update.apply(said.policies);
                if wanted == said.policies {
                    return Ok(Change::none((said, above)));
                }
                *tried.lock() = Some(wanted);
                Ok(change(scope, exists, wanted, above))
            }
        };
        let key = keys::policies(scope);
        let updated = inner.store.update(&key, &[], decide).await;
        let updated = updated.map_err(UpdateError::<BrokerError>::flatten)?;
        let (mut said, above) = updated.answer;
        if let Some(revision) = updated.applied {
            said = Said::at(said.policies, revision);
            inner.learn(scope, said, None);
        }
        Ok(inner.view_of(scope, above, said))
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

/// What the levels above a scope say, the farthest first.
type Above = Vec<(Level, Policies)>;

/// The change of a record to what it is to say. It needs the scope to exist.
fn change(
    scope: &PolicyScope,
    exists: Guard,
    wanted: Policies,
    above: Above,
) -> Change<(Said, Above)> {
    let partition = keys::partition_of_policies(scope);
    let said = Said {
        policies: wanted,
        ..Said::default()
    };
    let change = match wanted == Policies::default() {
        true => Change::delete(&partition, (said, above)),
        false => Change::put(&partition, record_of(wanted), (said, above)),
    };
    change.guarded(exists)
}

/// What a record says, if a change of it loses nothing. A damaged record is replaced whole by a
/// change that names its version.
fn replaceable(
    scope: &PolicyScope,
    version: Option<u64>,
    stored: Option<&Versioned>,
) -> Result<Said, BrokerError> {
    let Some(stored) = stored else {
        return Ok(Said::default());
    };
    let said = match decode(stored) {
        Ok(said) => said,
        Err(_) if version == Some(stored.revision.0) => {
            return Ok(Said {
                version: stored.revision,
                ..Said::default()
            });
        }
        Err(error) => {
            let error = ApiError::from(error).advise(format!(
                "restore it from a backup, or set the policies of {scope} with version {}, which \
                 replaces all of them",
                stored.revision.0
            ));
            return Err(error.into());
        }
    };
    // Policies that this build does not know would be gone after the change.
    if record_of(said.policies) != stored.value {
        return Err(BrokerError::invalid(
            format!("{scope} has policies that this broker does not know"),
            "change them through a broker of a newer version",
        ));
    }
    Ok(said)
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

    /// What the levels above a scope say, the farthest first.
    async fn above(&self, scope: &PolicyScope) -> Result<Above, BrokerError> {
        let mut levels = Vec::new();
        for above in scope.path().iter().filter(|level| *level != scope) {
            levels.push((above.level(), self.read(above).await?.policies));
        }
        Ok(levels)
    }

    fn view_of(&self, scope: &PolicyScope, mut levels: Above, own: Said) -> PolicyView {
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
        let (registrations, _reading) = {
            let mut state = self.state.lock();
            if let Some(sender) = state.live.get(scope) {
                return Ok(sender.subscribe());
            }
            // Registrations whose reads failed are dropped by others that come.
            state.prune();
            let registrations = path.iter().map(|scope| state.register(scope));
            let registrations: Vec<u64> = registrations.collect();
            let reading = Reading {
                inner: self,
                path: &path,
            };
            (registrations, reading)
        };
        for (scope, registration) in path.iter().zip(registrations) {
            // Another request may have read it by now.
            if !self.state.lock().is_read(scope) {
                let said = self.read(scope).await?;
                self.learn(scope, said, Some(registration));
            }
        }
        let mut state = self.state.lock();
        let Some(effective) = state.resolved(&path, self.defaults) else {
            let why = "policies that were read are not there".to_owned();
            return Err(MetadataError::Unavailable(why).into());
        };
        // Another request may have been first: all receivers belong to one sender.
        let sender = state.live.entry(scope.clone());
        let sender = sender.or_insert_with(|| watch::Sender::new(effective));
        let receiver = sender.subscribe();
        state.prune();
        Ok(receiver)
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
    /// Notes that a request reads a scope; answers the number of its registration.
    fn register(&mut self, scope: &PolicyScope) -> u64 {
        let known = self.said.entry(scope.clone()).or_insert_with(|| {
            self.registrations += 1;
            Known {
                said: Said::default(),
                registration: self.registrations,
                reading: 0,
            }
        });
        known.reading += 1;
        known.registration
    }

    /// Whether it is known what a scope says.
    fn is_read(&self, scope: &PolicyScope) -> bool {
        let known = self.said.get(scope);
        known.is_some_and(|known| known.said.as_of.is_some())
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
        self.said
            .retain(|scope, known| known.reading > 0 || used.contains(scope));
        self.said_after_prune = self.said.len();
    }
}

#[cfg(test)]
mod tests;
