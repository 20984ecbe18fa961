//! Administration: tenants, namespaces, topics, subscriptions, and what belongs to the cluster.
//!
//! Reads are retried after any retryable failure, changes only when they were certainly not
//! applied; all within the client's operation timeout.

mod load;
mod operator;
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

pub use aquifer_model::content::{Removed, TopicContent};
pub use aquifer_model::stats::{
    LedgerPlace, LedgerStats, ProducerStats, SubscriptionStats, TopicEnd, TopicStats,
};
pub use operator::{BookieInfo, BrokerInfo, BundleInfo, LedgerFragment, LedgerInfo};
pub use subscriptions::{ClearOptions, SubscriptionReset};
pub use tenancy::DeleteOptions;

type Client = v1::admin_client::AdminClient<Authorized>;
type Operator = v1::operator_client::OperatorClient<Authorized>;

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

    /// Has the ledgers of a topic, or of all its partitions, offloaded that are closed and end at
    /// or before a place, in the background, and answers how many of them are left and their bytes.
    /// Repeat the call to follow it; it fails when an attempt has failed since the last call.
    ///
    /// # Errors
    /// `Invalid` for its name, for an index or position in a partitioned topic, and when the
    /// cluster has no place for objects; `NotFound`; what every call may answer.
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

    /// Has the ledgers of a topic, or of all its partitions, with messages between two places
    /// brought back to bookies that only objects have, in the background, and answers how many of
    /// them are left and their bytes. Repeat the call to follow it; it fails when one has failed
    /// since the last call, which has ended it.
    ///
    /// # Errors
    /// As for [`Admin::offload_topic`].
    pub async fn reimport_topic(&self, topic: &str, from: Place, to: Place) -> Result<(u64, u64)> {
        self.reimport(v1::ReimportTopicRequest {
            topic: topic.parse::<TopicName>()?.to_string(),
            from: from.to_string(),
            to: to.to_string(),
            cancel: false,
        })
        .await
    }

    /// Ends what [`Admin::reimport_topic`] has begun, in the middle of a ledger too.
    ///
    /// # Errors
    /// As for [`Admin::offload_topic`].
    pub async fn cancel_reimport(&self, topic: &str) -> Result<()> {
        let request = v1::ReimportTopicRequest {
            topic: topic.parse::<TopicName>()?.to_string(),
            cancel: true,
            ..v1::ReimportTopicRequest::default()
        };
        self.reimport(request).await.map(drop)
    }

    async fn reimport(&self, request: v1::ReimportTopicRequest) -> Result<(u64, u64)> {
        let call = |mut client: Client| {
            let request = request.clone();
            async move { client.reimport_topic(request).await }
        };
        let left = self.call("re-importing the topic", false, call).await?;
        Ok((left.ledgers, left.bytes))
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

    async fn operate<T, F, Fut>(&self, what: &'static str, idempotent: bool, call: F) -> Result<T>
    where
        F: Fn(Operator) -> Fut,
        Fut: Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>,
    {
        let deadline = Deadline::after(self.context.operation_timeout);
        unary(&self.context, what, idempotent, deadline, |connection| {
            call(connection.operator())
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
