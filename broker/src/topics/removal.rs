//! Deletion of namespaces and tenants, on request to any broker.
//!
//! The record is marked first. From then on nothing is created in it (creating a topic compares that
//! record), so what is found in it afterwards is all that there will ever be. Then its topics
//! are deleted, each by its owner, then what is written of it elsewhere, then the record. A mark
//! says whether the topics may be deleted: one that was made for an empty namespace is taken back
//! when a topic has come before it. A deletion belongs to no request: it goes on when the request
//! ends; when its broker ends, the next request or the next broker that finds the mark finishes it,
//! the sweep at the latest.
//!
//! The records of who owned the bundles stay: epochs must not begin again.

mod tenants;
mod writing;

use std::collections::HashMap;
use std::sync::Arc;

use aquifer_metadata::keys::{self, Key};
use aquifer_metadata::store::{Expect, Versioned};
use aquifer_metadata::{record, scan};
use aquifer_model::policy::PolicyScope;
use aquifer_model::topic::{NamespaceName, TopicName};
use aquifer_proto::v1::Removal;
use aquifer_protocol_api::admin::{PageRequest, Removed};
use aquifer_protocol_api::error::{ApiError, ErrorKind};
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::error::BrokerError;
use crate::namespace::listing::{Listed, Lister, parse};
use crate::topics::Topics;

/// Topics or namespaces that are read at once.
const PAGE_ITEMS: usize = 100;
/// Topics that are deleted at once.
const TOPICS_AT_ONCE: usize = 8;
/// How often a record is changed again that others change at the same time.
const ATTEMPTS_MAX: u32 = 16;
/// Deletions begun by others that this broker finishes at a time.
const RESUMED_MAX: usize = 4;

/// What is to be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Doomed {
    Tenant(String),
    Namespace(NamespaceName),
}

type Answer = watch::Receiver<Option<Result<Removed, BrokerError>>>;

/// The deletions that run, each with whether it is forced.
#[derive(Default)]
pub(super) struct Removals(Mutex<HashMap<(Doomed, bool), Answer>>);

impl Topics {
    /// Deletes a tenant or namespace.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` when it is not empty and not forced; what metadata and
    /// other brokers say. What was begun by then goes on with the next call.
    pub(crate) async fn remove(
        self: &Arc<Self>,
        doomed: Doomed,
        force: bool,
    ) -> Result<Removed, BrokerError> {
        let mut answer = self.begin_removal(doomed, force);
        let gone = || BrokerError::Unloading("the deletion was given up".to_owned());
        let answer = answer.wait_for(Option::is_some).await;
        let answer = answer.map_or(None, |answer| answer.clone());
        answer.unwrap_or_else(|| Err(gone()))
    }

    /// Finishes a deletion that was begun.
    pub(crate) fn resume_removal(self: &Arc<Self>, doomed: Doomed) {
        let running = self.removals.0.lock().len();
        if running < RESUMED_MAX {
            drop(self.begin_removal(doomed, false));
        }
    }

    fn begin_removal(self: &Arc<Self>, doomed: Doomed, force: bool) -> Answer {
        let key = (doomed, force);
        let mut running = self.removals.0.lock();
        if let Some(answer) = running.get(&key) {
            return answer.clone();
        }
        let (sender, answer) = watch::channel(None);
        running.insert(key.clone(), answer.clone());
        let topics = Arc::clone(self);
        self.shared.tasks.spawn("removal", async move {
            let outcome = match &key.0 {
                Doomed::Tenant(tenant) => topics.remove_tenant(tenant, force).await,
                Doomed::Namespace(namespace) => topics.remove_namespace(namespace, force).await,
            };
            if let Err(error) = &outcome {
                tracing::debug!(what = ?key.0, %error, "it is not deleted");
            }
            topics.removals.0.lock().remove(&key);
            sender.send_replace(Some(outcome));
        });
        answer
    }

    /// What is in a tenant or namespace.
    pub(crate) async fn count(&self, doomed: &Doomed) -> Result<Removed, BrokerError> {
        let namespaces = &self.shared.namespaces;
        let prefix = match doomed {
            Doomed::Tenant(tenant) => {
                namespaces.check_tenant(tenant).await?;
                keys::tenant_prefix(tenant)
            }
            Doomed::Namespace(namespace) => {
                namespaces.read(namespace).await?;
                keys::topics_prefix(namespace)
            }
        };
        let is_namespace = matches!(doomed, Doomed::Namespace(_));
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

    async fn remove_namespace(
        self: &Arc<Self>,
        namespace: &NamespaceName,
        force: bool,
    ) -> Result<Removed, BrokerError> {
        let mut topics = 0;
        if self.mark_namespace(namespace, force).await? == Removal::All {
            topics = self.delete_topics(namespace).await?;
        } else if self.has_topic(namespace).await? {
            self.unmark_namespace(namespace).await?;
            return Err(not_empty(&format!("namespace {namespace}"), "topics"));
        }
        self.forget_namespace(namespace).await?;
        tracing::info!(%namespace, topics, "namespace deleted");
        Ok(Removed {
            namespaces: 1,
            topics,
        })
    }

    /// Has a namespace take no more topics in. Answers how it is marked: as one whose topics go
    /// with it, if it was once marked so.
    async fn mark_namespace(
        &self,
        namespace: &NamespaceName,
        force: bool,
    ) -> Result<Removal, BrokerError> {
        for _ in 0..ATTEMPTS_MAX {
            let (mut record, revision) = self.shared.namespaces.read(namespace).await?;
            let (now, wanted) = (record.removal(), wanted(force));
            if now == wanted || now == Removal::All {
                return Ok(now);
            }
            if !force && self.has_topic(namespace).await? {
                return Err(not_empty(&format!("namespace {namespace}"), "topics"));
            }
            record.set_removal(wanted);
            let (partition, key) = (
                keys::partition_of_namespace(namespace),
                keys::namespace(namespace),
            );
            let value = record::encode(record);
            if self.replace(partition, key, value, revision).await? {
                return Ok(wanted);
            }
        }
        Err(changing())
    }

    /// Has a namespace take topics in again that was marked because it looked empty.
    async fn unmark_namespace(&self, namespace: &NamespaceName) -> Result<(), BrokerError> {
        for _ in 0..ATTEMPTS_MAX {
            let (mut record, revision) = self.shared.namespaces.read(namespace).await?;
            if record.removal() != Removal::IfEmpty {
                return Ok(());
            }
            record.set_removal(Removal::Unspecified);
            let (partition, key) = (
                keys::partition_of_namespace(namespace),
                keys::namespace(namespace),
            );
            let value = record::encode(record);
            if self.replace(partition, key, value, revision).await? {
                return Ok(());
            }
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

    async fn has_topic(&self, namespace: &NamespaceName) -> Result<bool, BrokerError> {
        Ok(!self.topics_in(namespace, 1).await?.is_empty())
    }

    /// Deletes the topics of a namespace that takes none in. Answers how many.
    async fn delete_topics(
        self: &Arc<Self>,
        namespace: &NamespaceName,
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
            if found.is_empty() {
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

    /// Deletes what is written of an empty namespace, its record last.
    async fn forget_namespace(&self, namespace: &NamespaceName) -> Result<(), BrokerError> {
        let partition = keys::partition_of_namespace(namespace);
        let policies = keys::policies(&PolicyScope::Namespace(namespace.clone()));
        self.delete_below(&partition, &format!("{policies}/"))
            .await?;
        self.delete_grants(namespace).await?;
        for _ in 0..ATTEMPTS_MAX {
            let (record, revision) = match self.shared.namespaces.read(namespace).await {
                // Another broker was faster.
                Err(BrokerError::NotFound { .. }) => return Ok(()),
                found => found?,
            };
            if record.removal() == Removal::Unspecified {
                return Ok(()); // created since
            }
            let keys = vec![
                (keys::namespace(namespace), Expect::Revision(revision)),
                (policies.clone(), Expect::Any),
            ];
            if self.delete_keys(&partition, keys).await? {
                self.shared.namespaces.forget(namespace);
                return Ok(());
            }
        }
        Err(changing())
    }
}

/// How a record is marked by a request.
fn wanted(force: bool) -> Removal {
    match force {
        true => Removal::All,
        false => Removal::IfEmpty,
    }
}

fn not_empty(what: &str, has: &str) -> BrokerError {
    let error = ApiError::new(ErrorKind::FailedPrecondition, format!("{what} has {has}"));
    let advice = format!("delete its {has} first, or force it: that deletes them all");
    error.advise(advice).into()
}

fn changing() -> BrokerError {
    BrokerError::Unloading("it is changed by others all the time".to_owned())
}
