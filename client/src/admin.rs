//! Administration: tenants, namespaces, topics, subscriptions.
//!
//! Reads are retried after any retryable failure, changes only when they were certainly not
//! applied; all within the client's operation timeout.

mod load;
mod subscriptions;
mod tenancy;
mod topics;

use std::sync::Arc;

use aquifer_model::place::Place;
use aquifer_model::policy::{Policies, PolicyScope, PolicyUpdate, PolicyView};
use aquifer_model::topic::{NamespaceName, TopicName};
use aquifer_proto::convert::stats;
use aquifer_proto::v1;

use crate::connection::Authorized;
use crate::context::Context;
use crate::error::{ClientError, Result};
use crate::lookup::{Layout, layout_of, unary};
use crate::retry::Deadline;

pub use aquifer_model::stats::{
    LedgerPlace, LedgerStats, ProducerStats, SubscriptionStats, TopicStats,
};
pub use subscriptions::{ClearOptions, SubscriptionReset};
pub use tenancy::{DeleteOptions, Removed};
pub use topics::TopicEnd;

type Client = v1::admin_client::AdminClient<Authorized>;

/// Items asked for in one page of a list.
const PAGE_ITEMS: u32 = 1_000;

/// The administrative operations of a cluster.
#[derive(Clone)]
pub struct Admin {
    context: Arc<Context>,
}

/// What a topic is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicDescription {
    /// Its full name.
    pub topic: String,
    /// Its partitions; 0 when it is not partitioned.
    pub partitions: u32,
}

/// A broker of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerInfo {
    /// Its id, drawn at its start.
    pub broker: String,
    /// Where it is reached through the listener that the broker was asked through; empty when it
    /// has none of that name.
    pub url: String,
    /// All its addresses, by the name of the listener.
    pub listeners: Vec<(String, String)>,
    /// What it runs.
    pub version: String,
    /// Whether it is about to end.
    pub draining: bool,
}

/// A bundle: a range of a namespace's topics by hash, the unit that brokers own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleInfo {
    /// Its hashes, as other calls take them.
    pub bundle: String,
    /// Its owner; `None` when it was not used yet.
    pub broker: Option<String>,
    /// Where the owner is; `None` when it is gone.
    pub url: Option<String>,
    /// The owner's epoch.
    pub epoch: u64,
}

impl Admin {
    pub(crate) fn new(context: Arc<Context>) -> Admin {
        Admin { context }
    }

    /// Creates a tenant.
    ///
    /// # Errors
    /// [`crate::ErrorKind::AlreadyExists`], or what every call may
    /// answer: cannot connect, timed out, refused, unavailable.
    pub async fn create_tenant(&self, tenant: &str) -> Result<()> {
        let request = v1::CreateTenantRequest {
            tenant: tenant.to_owned(),
        };
        self.call("creating the tenant", false, move |mut client: Client| {
            let request = request.clone();
            async move { client.create_tenant(request).await }
        })
        .await
        .map(|_| ())
    }

    /// Every tenant, in name order.
    ///
    /// # Errors
    /// What every call may answer.
    pub async fn list_tenants(&self) -> Result<Vec<String>> {
        let mut all = Vec::new();
        let mut after = String::new();
        loop {
            let request = v1::ListTenantsRequest {
                after,
                limit: PAGE_ITEMS,
            };
            let page = self
                .call("listing tenants", true, move |mut client: Client| {
                    let request = request.clone();
                    async move { client.list_tenants(request).await }
                })
                .await?;
            all.extend(page.tenants);
            if page.next.is_empty() {
                return Ok(all);
            }
            after = page.next;
        }
    }

    /// Creates a namespace, given as `tenant/namespace`, with these policies at once; what is not
    /// given is inherited. Answers them.
    ///
    /// # Errors
    /// `AlreadyExists`, `NotFound` for its tenant, `Invalid` for its name, and what every call may
    /// answer.
    pub async fn create_namespace(
        &self,
        namespace: &str,
        policies: Policies,
    ) -> Result<PolicyView> {
        let request = v1::CreateNamespaceRequest {
            namespace: namespace.parse::<NamespaceName>()?.to_string(),
            policies: Some(policies.into()),
        };
        let answer = self
            .call(
                "creating the namespace",
                false,
                move |mut client: Client| {
                    let request = request.clone();
                    async move { client.create_namespace(request).await }
                },
            )
            .await?;
        view_of(answer.policies)
    }

    /// The policies of a tenant, a namespace or a topic, and what is in force for it.
    ///
    /// # Errors
    /// `NotFound`, and what every call may answer.
    pub async fn get_policies(&self, scope: &PolicyScope) -> Result<PolicyView> {
        let request = v1::GetPoliciesRequest {
            scope: Some(scope.clone().into()),
        };
        let answer = self
            .call("reading the policies", true, move |mut client: Client| {
                let request = request.clone();
                async move { client.get_policies(request).await }
            })
            .await?;
        view_of(answer.policies)
    }

    /// Changes policies of a tenant, a namespace or a topic. What the change does not name stays,
    /// even if another caller changes it at the same time. Answers the policies.
    ///
    /// # Errors
    /// `Conflict` when they have another version than the change names, `NotFound`, `Invalid` when
    /// nothing is to change, and what every call may answer.
    pub async fn update_policies(
        &self,
        scope: &PolicyScope,
        update: PolicyUpdate,
    ) -> Result<PolicyView> {
        // Done twice it is done once, unless it names a version, which is another afterwards.
        let idempotent = update.version.is_none();
        let mut request = v1::UpdatePoliciesRequest::from(update);
        request.scope = Some(scope.clone().into());
        let answer = self
            .call(
                "changing the policies",
                idempotent,
                move |mut client: Client| {
                    let request = request.clone();
                    async move { client.update_policies(request).await }
                },
            )
            .await?;
        view_of(answer.policies)
    }

    /// Every namespace of a tenant as `tenant/namespace`, in name order.
    ///
    /// # Errors
    /// `NotFound` for the tenant, and what every call may answer.
    pub async fn list_namespaces(&self, tenant: &str) -> Result<Vec<String>> {
        let mut all = Vec::new();
        let mut after = String::new();
        loop {
            let request = v1::ListNamespacesRequest {
                tenant: tenant.to_owned(),
                after,
                limit: PAGE_ITEMS,
            };
            let page = self
                .call("listing namespaces", true, move |mut client: Client| {
                    let request = request.clone();
                    async move { client.list_namespaces(request).await }
                })
                .await?;
            all.extend(page.namespaces);
            if page.next.is_empty() {
                return Ok(all);
            }
            after = page.next;
        }
    }

    /// Creates a topic; `partitions` 0 makes one that is not partitioned.
    ///
    /// # Errors
    /// `AlreadyExists`, `NotFound` for its namespace, `Invalid` for its name, and what every call
    /// may answer.
    pub async fn create_topic(&self, topic: &str, partitions: u32) -> Result<()> {
        let request = v1::CreateTopicRequest {
            topic: topic.parse::<TopicName>()?.to_string(),
            partitions,
        };
        self.call("creating the topic", false, move |mut client: Client| {
            let request = request.clone();
            async move { client.create_topic(request).await }
        })
        .await
        .map(|_| ())
    }

    /// Says whether a topic is partitioned; never creates it.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` for its name, and what every call may answer.
    pub async fn describe_topic(&self, topic: &str) -> Result<TopicDescription> {
        let topic = topic.parse::<TopicName>()?;
        Ok(TopicDescription {
            partitions: self.layout(&topic).await?.partitions(),
            topic: topic.to_string(),
        })
    }

    /// Where the messages of a topic are, which must exist.
    async fn layout(&self, topic: &TopicName) -> Result<Layout> {
        let request = v1::DescribeTopicRequest {
            topic: topic.to_string(),
            create: false,
        };
        let answer = self
            .call("describing the topic", true, move |mut client: Client| {
                let request = request.clone();
                async move { client.describe_topic(request).await }
            })
            .await?;
        layout_of(topic.clone(), &answer)
    }

    /// Every topic of a namespace, in name order; partitions are not listed apart.
    ///
    /// # Errors
    /// `NotFound` for the namespace, `Invalid` for its name, and what every call may answer.
    pub async fn list_topics(&self, namespace: &str) -> Result<Vec<TopicDescription>> {
        let namespace = namespace.parse::<NamespaceName>()?.to_string();
        let mut all = Vec::new();
        let mut after = String::new();
        loop {
            let request = v1::ListTopicsRequest {
                namespace: namespace.clone(),
                after,
                limit: PAGE_ITEMS,
            };
            let page = self
                .call("listing topics", true, move |mut client: Client| {
                    let request = request.clone();
                    async move { client.list_topics(request).await }
                })
                .await?;
            all.extend(page.topics.into_iter().map(|topic| TopicDescription {
                topic: topic.topic,
                partitions: topic.partitions,
            }));
            if page.next.is_empty() {
                return Ok(all);
            }
            after = page.next;
        }
    }

    /// Statistics of a topic, or of one partition; sums over the partitions of a partitioned one.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` for its name, and what every call may answer.
    pub async fn topic_stats(&self, topic: &str) -> Result<TopicStats> {
        let name = topic.parse::<TopicName>()?;
        let deadline = Deadline::after(self.context.operation_timeout);
        let stats = topic_stats(&self.context, &name, false, deadline).await?;
        stats::stats(stats).map_err(|error| ClientError::Protocol(error.to_string()))
    }

    /// Has the ledgers of a topic offloaded that are closed and end at or before a place, in the
    /// background, and answers how many of them are left and their bytes. Repeat the call to follow
    /// it; it fails when an attempt has failed since the last call.
    ///
    /// # Errors
    /// `Invalid` for its name, for a partitioned topic, and when the cluster has no place for
    /// objects; `NotFound`; what every call may answer.
    pub async fn offload_topic(&self, topic: &str, before: Place) -> Result<(u64, u64)> {
        let request = v1::OffloadTopicRequest {
            topic: topic.parse::<TopicName>()?.to_string(),
            before: before.to_string(),
        };
        let call = |mut client: Client| {
            let request = request.clone();
            async move { client.offload_topic(request).await }
        };
        let left = self.call("offloading the topic", false, call).await?;
        Ok((left.ledgers, left.bytes))
    }

    /// Deletes a topic, all its partitions, subscriptions and messages. Without `force` only when
    /// no producer or consumer is connected. What a failure leaves of it is gone for users, and is
    /// deleted by the next attempt. A partition is not deleted alone.
    ///
    /// # Errors
    /// `NotFound`, `Busy` when it is in use, `Invalid` for its name, and what every call may
    /// answer.
    pub async fn delete_topic(&self, topic: &str, force: bool) -> Result<()> {
        self.delete(topic, force, false).await
    }

    /// Whether no producer or consumer of a topic is connected.
    ///
    /// # Errors
    /// `Busy` when one is, and what [`delete_topic`](Self::delete_topic) may answer.
    pub async fn check_unused(&self, topic: &str) -> Result<()> {
        self.delete(topic, false, true).await
    }

    async fn delete(&self, topic: &str, force: bool, check: bool) -> Result<()> {
        let request = v1::DeleteTopicRequest {
            topic: topic.parse::<TopicName>()?.to_string(),
            force,
            check,
        };
        self.call("deleting the topic", check, move |mut client: Client| {
            let request = request.clone();
            async move { client.delete_topic(request).await }
        })
        .await
        .map(|_| ())
    }

    /// The brokers of the cluster; a standalone server is its only one.
    ///
    /// # Errors
    /// What every call may answer.
    pub async fn list_brokers(&self) -> Result<Vec<BrokerInfo>> {
        let answer = self
            .call("listing brokers", true, |mut client: Client| async move {
                client.list_brokers(v1::ListBrokersRequest {}).await
            })
            .await?;
        let brokers = answer.brokers.into_iter().map(|broker| BrokerInfo {
            broker: broker.broker,
            url: broker.url,
            listeners: broker
                .listeners
                .into_iter()
                .map(|listener| (listener.name, listener.url))
                .collect(),
            version: broker.version,
            draining: broker.draining,
        });
        Ok(brokers.collect())
    }

    /// The bundles of a namespace, in order, and their owners.
    ///
    /// # Errors
    /// `NotFound` for the namespace, `Invalid` for its name, and what every call may answer.
    pub async fn list_bundles(&self, namespace: &str) -> Result<Vec<BundleInfo>> {
        let request = v1::ListBundlesRequest {
            namespace: namespace.parse::<NamespaceName>()?.to_string(),
        };
        let answer = self
            .call("listing bundles", true, move |mut client: Client| {
                let request = request.clone();
                async move { client.list_bundles(request).await }
            })
            .await?;
        let bundles = answer.bundles.into_iter().map(|bundle| BundleInfo {
            bundle: bundle.bundle,
            broker: Some(bundle.broker).filter(|id| !id.is_empty()),
            url: Some(bundle.url).filter(|url| !url.is_empty()),
            epoch: bundle.epoch,
        });
        Ok(bundles.collect())
    }

    /// Moves a bundle to a broker, or to any other one; answers its id and URL.
    ///
    /// # Errors
    /// `NotFound` for the bundle or the broker, `Invalid` for a name, and what every call may
    /// answer.
    pub async fn transfer_bundle(
        &self,
        namespace: &str,
        bundle: &str,
        broker: Option<&str>,
    ) -> Result<(String, String)> {
        let request = v1::TransferBundleRequest {
            namespace: namespace.parse::<NamespaceName>()?.to_string(),
            bundle: bundle.to_owned(),
            broker: broker.unwrap_or_default().to_owned(),
        };
        let answer = self
            .call("moving the bundle", false, move |mut client: Client| {
                let request = request.clone();
                async move { client.transfer_bundle(request).await }
            })
            .await?;
        Ok((answer.broker, answer.url))
    }

    /// Splits a bundle in front of a hash, or where that halves its load as far as its owner knows,
    /// or in its middle; answers the parts, which stay where they are.
    ///
    /// # Errors
    /// `NotFound` for the bundle, `Invalid` where it cannot be split, and what every call may
    /// answer.
    pub async fn split_bundle(
        &self,
        namespace: &str,
        bundle: &str,
        at: Option<u32>,
    ) -> Result<Vec<String>> {
        let request = v1::SplitBundleRequest {
            namespace: namespace.parse::<NamespaceName>()?.to_string(),
            bundle: bundle.to_owned(),
            at,
        };
        let answer = self
            .call("splitting the bundle", false, move |mut client: Client| {
                let request = request.clone();
                async move { client.split_bundle(request).await }
            })
            .await?;
        Ok(answer.bundles)
    }

    async fn call<T, F, Fut>(&self, what: &'static str, idempotent: bool, call: F) -> Result<T>
    where
        F: Fn(Client) -> Fut,
        Fut: Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>,
    {
        let deadline = Deadline::after(self.context.operation_timeout);
        unary(&self.context, what, idempotent, deadline, |connection| {
            call(connection.admin())
        })
        .await
    }
}

/// Statistics as they come; `brief` for callers that need the end of a topic only.
pub(crate) async fn topic_stats(
    context: &Context,
    topic: &TopicName,
    brief: bool,
    deadline: Deadline,
) -> Result<v1::TopicStatsResponse> {
    let request = v1::TopicStatsRequest {
        topic: topic.to_string(),
        brief,
    };
    unary(
        context,
        "reading statistics",
        true,
        deadline,
        |connection| {
            let request = request.clone();
            async move { connection.admin().topic_stats(request).await }
        },
    )
    .await
}

fn view_of(view: Option<v1::PolicyView>) -> Result<PolicyView> {
    let view =
        view.ok_or_else(|| ClientError::Protocol("an answer without policies".to_owned()))?;
    PolicyView::try_from(view).map_err(ClientError::Protocol)
}
