//! Deletion of namespaces and tenants, on request to any broker.
//!
//! The record is marked first. From then on nothing is created in it (creating a topic compares
//! that record), so what is found in it afterwards is all that there will ever be. Then its topics
//! are deleted, each by its owner, then what is written of it elsewhere, then the record. A mark
//! says whether the topics may be deleted: one that was made for an empty namespace is taken back
//! when a topic has come before it. A deletion belongs to no request: it goes on when the request
//! ends; when its broker ends, the next request or the next broker that finds the mark finishes it,
//! the sweep at the latest.
//!
//! Any number of deletions of one name may run at once, and the name may be created again when one
//! of them is done. Invariants:
//! - Only a request marks a record. What goes on with a deletion that was begun marks nothing.
//! - What is deleted besides topics was there while the record was as it was marked: either the
//!   change compares that record, or it was found before the record was looked at again.
//!
//! A deletion that finds its record changed begins at the mark again, a bounded number of times.
//! This is not `store.update`: between the mark and the end many other keys are deleted, and topics
//! by their owners, for as long as that takes.
//!
//! The records of who owned the bundles stay: epochs must not begin again.

mod marks;
mod tenants;
mod writing;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use aquifer_metadata::keys::{self, Key};
use aquifer_metadata::scan;
use aquifer_metadata::store::{Expect, Guard, Revision, Versioned};
use aquifer_model::content::Removed;
use aquifer_model::policy::PolicyScope;
use aquifer_model::topic::{NamespaceName, TopicName};
use aquifer_proto::v1::{NamespaceRecord, Removal};
use aquifer_protocol_api::admin::PageRequest;
use aquifer_protocol_api::error::{ApiError, ErrorKind};
use futures::StreamExt;

use crate::error::BrokerError;
use crate::namespace::listing::{Listed, Lister, parse};
use crate::topics::Topics;
use crate::topics::running::{Answer, Running};

/// Topics or namespaces that are read at once.
const PAGE_ITEMS: usize = 100;
/// Topics that are deleted at once.
const TOPICS_AT_ONCE: usize = 8;
/// How often a deletion begins again whose records others change at the same time.
const ATTEMPTS_MAX: u32 = 16;
/// Deletions begun by others that this broker finishes at a time.
const RESUMED_MAX: usize = 4;

/// What is to be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum RemovalScope {
    Tenant(String),
    Namespace(NamespaceName),
}

impl RemovalScope {
    /// The tenant, or that of the namespace.
    pub(crate) fn tenant(&self) -> &str {
        match self {
            RemovalScope::Tenant(tenant) => tenant,
            RemovalScope::Namespace(namespace) => namespace.tenant(),
        }
    }
}

impl fmt::Display for RemovalScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RemovalScope::Tenant(tenant) => write!(f, "tenant {tenant}"),
            RemovalScope::Namespace(namespace) => write!(f, "namespace {namespace}"),
        }
    }
}

/// How a deletion goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum How {
    /// If there is nothing in it.
    IfEmpty,
    /// With all that is in it.
    Force,
    /// As it was begun. Nothing is marked: what was created since stays.
    Resume,
}

impl How {
    /// The mark that a request sets.
    fn wanted(self) -> Option<Removal> {
        match self {
            How::IfEmpty => Some(Removal::IfEmpty),
            How::Force => Some(Removal::All),
            How::Resume => None,
        }
    }
}

/// The deletions that run.
pub(super) type Removals = Running<(RemovalScope, How), Removed>;

impl Topics {
    /// Deletes a tenant or namespace.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` when it is not empty and not forced; what metadata and
    /// other brokers say. What was begun by then goes on with the next call.
    pub(crate) async fn remove(
        self: &Arc<Self>,
        scope: RemovalScope,
        force: bool,
    ) -> Result<Removed, BrokerError> {
        let how = match force {
            true => How::Force,
            false => How::IfEmpty,
        };
        self.begin_removal(scope, how).wait().await
    }

    /// Finishes a deletion if one was begun.
    pub(crate) fn resume_removal(self: &Arc<Self>, scope: RemovalScope) {
        let running = self.removals.count(|_| true);
        let is_running = self.removals.count(|(other, _)| *other == scope) > 0;
        if running < RESUMED_MAX && !is_running {
            drop(self.begin_removal(scope, How::Resume));
        }
    }

    fn begin_removal(self: &Arc<Self>, scope: RemovalScope, how: How) -> Answer<Removed> {
        let (topics, key) = (Arc::clone(self), (scope.clone(), how));
        let removal = async move {
            let outcome = match &scope {
                RemovalScope::Tenant(tenant) => topics.remove_tenant(tenant, how).await,
                RemovalScope::Namespace(namespace) => {
                    topics.remove_namespace(namespace, how, None).await
                }
            };
            outcome.inspect_err(|error| tracing::debug!(?scope, %error, "it is not deleted"))
        };
        self.removals
            .begin(&self.shared.tasks, "removal", key, removal)
    }

    /// What is in a tenant or namespace.
    pub(crate) async fn count(&self, scope: &RemovalScope) -> Result<Removed, BrokerError> {
        let namespaces = &self.shared.namespaces;
        let prefix = match scope {
            RemovalScope::Tenant(tenant) => {
                namespaces.check_tenant(tenant).await?;
                keys::tenant_prefix(tenant)
            }
            RemovalScope::Namespace(namespace) => {
                namespaces.read(namespace).await?;
                keys::topics_prefix(namespace)
            }
        };
        let is_namespace = matches!(scope, RemovalScope::Namespace(_));
        let begin = || Removed {
            namespaces: u64::from(is_namespace),
            topics: 0,
        };
        let look = |counted: &mut Removed, found: &Versioned| -> Result<(), BrokerError> {
            match parse(found)? {
                Key::Namespace(_) => counted.namespaces += 1,
                Key::Topic(topic) if topic.partition().is_none() => counted.topics += 1,
                _ => {}
            }
            Ok(())
        };
        let counted = scan::each(namespaces.store().as_ref(), &prefix, begin, look).await?;
        Ok(counted.0)
    }

    /// Deletes a namespace. With `at` it is marked only as the record of that revision.
    async fn remove_namespace(
        self: &Arc<Self>,
        namespace: &NamespaceName,
        how: How,
        at: Option<Revision>,
    ) -> Result<Removed, BrokerError> {
        let scope = RemovalScope::Namespace(namespace.clone());
        let (mut topics, mut step) = (0, how);
        let done = |namespaces: u64, topics: u64| Ok(Removed { namespaces, topics });
        for attempt in 0..ATTEMPTS_MAX {
            let marked = match self.mark::<NamespaceRecord>(&scope, step, at).await {
                // Another broker was faster.
                Err(BrokerError::NotFound { .. }) if attempt > 0 => return done(1, topics),
                marked => marked?,
            };
            let Some(marked) = marked else {
                return match (attempt, how) {
                    (0, _) => done(0, 0),
                    (_, How::IfEmpty) => Err(taken_back(&scope)),
                    (_, How::Force | How::Resume) => done(1, topics),
                };
            };
            let record = scope.guard(marked);
            if marked.removal == Removal::All {
                topics += self.delete_topics(namespace, &record).await?;
            } else if self.has_any(&scope).await? {
                self.unmark::<NamespaceRecord>(&scope).await?;
                return Err(not_empty(&scope));
            }
            if self.forget_namespace(namespace, &record).await? {
                tracing::info!(%namespace, topics, "namespace deleted");
                return done(1, topics);
            }
            step = How::Resume;
        }
        Err(changing())
    }

    /// Some topics and partitions of a namespace, those that are being deleted among them.
    async fn topics_in(
        &self,
        namespace: &NamespaceName,
        limit: usize,
    ) -> Result<Vec<TopicName>, BrokerError> {
        let lister = Lister {
            store: self.shared.namespaces.store().as_ref(),
            prefix: keys::topics_prefix(namespace),
        };
        let request = PageRequest { after: None, limit };
        let look = |found: &Versioned| -> Result<Listed<TopicName>, BrokerError> {
            Ok(match parse(found)? {
                Key::Topic(topic) => Listed::Item(topic, String::new()),
                Key::SegmentPage(topic, ..) => {
                    Listed::SkipUnder(keys::segment_pages_prefix(&topic))
                }
                _ => Listed::Skip,
            })
        };
        Ok(lister.page(&request, None, look).await?.items)
    }

    /// Deletes the topics of a namespace that takes none in, for as long as its record is as
    /// expected. Answers how many.
    async fn delete_topics(
        self: &Arc<Self>,
        namespace: &NamespaceName,
        record: &Guard,
    ) -> Result<u64, BrokerError> {
        let mut deleted = 0;
        loop {
            let mut found: HashMap<TopicName, Vec<TopicName>> = HashMap::new();
            for topic in self.topics_in(namespace, PAGE_ITEMS).await? {
                let parts = found.entry(topic.base()).or_default();
                if topic.partition().is_some() {
                    parts.push(topic);
                }
            }
            // Once another broker has deleted the namespace, they may be those of the next one.
            if found.is_empty() || !self.holds(record).await? {
                return Ok(deleted);
            }
            let deletions = found.into_iter().map(|(topic, parts)| {
                let topics = Arc::clone(self);
                async move { topics.delete_with_parts(&topic, parts).await }
            });
            let mut outcomes = futures::stream::iter(deletions).buffer_unordered(TOPICS_AT_ONCE);
            let mut failed = None;
            while let Some(outcome) = outcomes.next().await {
                match outcome {
                    Ok(()) => deleted += 1,
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
    }

    /// Deletes a topic wherever it is served, and partitions that were left without it.
    async fn delete_with_parts(
        self: &Arc<Self>,
        topic: &TopicName,
        parts: Vec<TopicName>,
    ) -> Result<(), BrokerError> {
        match self.delete_wherever(topic).await {
            Ok(()) | Err(BrokerError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        for part in parts {
            self.delete_part(&part).await?;
        }
        Ok(())
    }

    /// Deletes what is written of an empty namespace, its record last. False: the record is not as
    /// expected any more.
    async fn forget_namespace(
        &self,
        namespace: &NamespaceName,
        record: &Guard,
    ) -> Result<bool, BrokerError> {
        let partition = keys::partition_of_namespace(namespace);
        let policies = keys::policies(&PolicyScope::Namespace(namespace.clone()));
        let below = format!("{policies}/");
        if !self.delete_below(&partition, &below, record).await?
            || !self.delete_grants(namespace, record).await?
        {
            return Ok(false);
        }
        let keys = vec![(record.key.clone(), record.expect), (policies, Expect::Any)];
        let is_gone = self.delete_keys(&partition, None, keys).await?;
        if is_gone {
            self.shared.namespaces.forget(namespace);
        }
        Ok(is_gone)
    }
}

fn not_empty(scope: &RemovalScope) -> BrokerError {
    let has = match scope {
        RemovalScope::Tenant(_) => "namespaces",
        RemovalScope::Namespace(_) => "topics",
    };
    let error = ApiError::new(ErrorKind::FailedPrecondition, format!("{scope} has {has}"));
    let advice = format!("delete its {has} first, or force it: that deletes them all");
    error.advise(advice).into()
}

/// A deletion of what looked empty finds no mark any more.
fn taken_back(scope: &RemovalScope) -> BrokerError {
    let text = format!("{scope} was not empty for another request, or was created again");
    let error = ApiError::new(ErrorKind::FailedPrecondition, text);
    error.advise("see what it has, then delete it again").into()
}

fn changing() -> BrokerError {
    BrokerError::Unloading("it is changed by others all the time".to_owned())
}

#[cfg(test)]
mod tests;
