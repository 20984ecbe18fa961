//! The port of administration: what belongs to tenants.

use aquifer_model::content::{Removed, TopicContent};
use aquifer_model::hash::KeyHash;
use aquifer_model::id::{Index, TopicIncarnation};
use aquifer_model::place::Place;
use aquifer_model::policy::{Policies, PolicyScope, PolicyUpdate, PolicyView};
use aquifer_model::ranges::TopicRanges;
use aquifer_model::stats::{OffloadProgress, TopicEnd, TopicStats};
use aquifer_model::subscription::Properties;
use aquifer_model::topic::{NamespaceName, SubscriptionName, TopicName};
use async_trait::async_trait;

use crate::consumer::{Gap, IndexRange};
use crate::context::RequestContext;
use crate::error::ApiResult;
use crate::pull::StoredBatch;

/// What tenants and their operators do: tenants, namespaces, topics, subscriptions.
#[async_trait]
pub trait Admin: Send + Sync + 'static {
    /// Creates a tenant.
    async fn create_tenant(&self, ctx: &RequestContext, tenant: String) -> ApiResult<()>;

    /// Deletes a tenant, with its tokens and grants. One that has namespaces is refused, unless it
    /// is forced: then these go first. What was begun is finished by repeating it, or by itself.
    async fn delete_tenant(
        &self,
        ctx: &RequestContext,
        tenant: String,
        how: Removal,
    ) -> ApiResult<Removed>;

    /// Deletes a namespace, with its policies and grants. One that has topics is refused, unless it
    /// is forced: then these go first. No topic is created in it meanwhile. What was begun is
    /// finished by repeating it, or by itself.
    async fn delete_namespace(
        &self,
        ctx: &RequestContext,
        namespace: NamespaceName,
        how: Removal,
    ) -> ApiResult<Removed>;

    /// Lists tenants in name order.
    async fn list_tenants(
        &self,
        ctx: &RequestContext,
        page: PageRequest,
    ) -> ApiResult<Page<String>>;

    /// Creates a namespace with these policies at once; what is not given is inherited. Answers
    /// them.
    async fn create_namespace(
        &self,
        ctx: &RequestContext,
        namespace: NamespaceName,
        policies: Policies,
    ) -> ApiResult<PolicyView>;

    /// Reads the policies of a tenant, a namespace or a topic, and what is in force for it.
    async fn get_policies(&self, ctx: &RequestContext, scope: PolicyScope)
    -> ApiResult<PolicyView>;

    /// Changes policies of a tenant, a namespace or a topic. What the change does not name stays,
    /// also when that is changed at the same time; with another version than it names nothing is
    /// changed, and it fails as [`ErrorKind::Conflict`](crate::error::ErrorKind::Conflict). Answers
    /// the policies.
    async fn update_policies(
        &self,
        ctx: &RequestContext,
        scope: PolicyScope,
        update: PolicyUpdate,
    ) -> ApiResult<PolicyView>;

    /// Lists the namespaces of a tenant in name order.
    async fn list_namespaces(
        &self,
        ctx: &RequestContext,
        tenant: String,
        page: PageRequest,
    ) -> ApiResult<Page<NamespaceName>>;

    /// Creates a topic; `partitions` 0 makes one that is not partitioned.
    async fn create_topic(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        partitions: u32,
    ) -> ApiResult<()>;

    /// Says where the messages of a topic are: in itself or in its partitions; creates it if asked
    /// and allowed.
    async fn describe_topic(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        create: bool,
    ) -> ApiResult<TopicLayout>;

    /// Deletes a topic, all its partitions, subscriptions and data, wherever they are served. A
    /// partition alone is not deleted, unless its topic is gone.
    async fn delete_topic(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        how: Deletion,
    ) -> ApiResult<()>;

    /// What the deletion of a topic would delete, and whether it would need force. Deletes nothing.
    async fn delete_topic_dry_run(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
    ) -> ApiResult<TopicContent>;

    /// Lists the topics of a namespace in name order; partitions are not listed apart.
    async fn list_topics(
        &self,
        ctx: &RequestContext,
        namespace: NamespaceName,
        page: PageRequest,
    ) -> ApiResult<Page<TopicDescription>>;

    /// Has the ledgers of a topic, or of all its partitions, offloaded that are closed and end at
    /// or before a place, in the background. Answers what is left to do: repeat the call to follow
    /// it. The failure of an attempt since the last call is the answer of this one, and the attempt
    /// is made again by the next.
    async fn offload_topic(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        before: Place,
    ) -> ApiResult<OffloadProgress>;

    /// Has the ledgers of a topic, or of all its partitions, brought back to bookies that only
    /// objects have, in the background, or ends that. Answers what is left to do: repeat the call
    /// to follow it. A failure since the last call is the answer of this one, and ends it.
    async fn reimport_topic(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        what: Reimport,
    ) -> ApiResult<OffloadProgress>;

    /// Gives a partitioned topic more partitions. That is not built: what could be done is refused
    /// as `Unimplemented`, with what to do instead.
    async fn grow_topic(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        partitions: u32,
    ) -> ApiResult<()>;

    /// Closes a topic, or each of its partitions, where it is served. It finishes what is in
    /// flight; its clients come back and have it loaded again. Answers how many were loaded.
    async fn unload_topic(&self, ctx: &RequestContext, topic: TopicName) -> ApiResult<u32>;

    /// Lets a topic, or each of its partitions, take no more messages, for good. What is in flight
    /// is finished; what is stored can be read. Answers where each ends, also when it was
    /// terminated before.
    async fn terminate_topic(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
    ) -> ApiResult<Vec<TopicEnd>>;

    /// Statistics of a topic; sums over the partitions of a partitioned one.
    async fn topic_stats(&self, ctx: &RequestContext, topic: TopicName) -> ApiResult<TopicStats>;

    /// Deletes a subscription. Without `force` only when no consumer is connected to it.
    async fn delete_subscription(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        subscription: SubscriptionName,
        force: bool,
    ) -> ApiResult<()>;

    /// Creates a subscription that begins at a place and has these properties, without a consumer,
    /// and the topic if the namespace allows that. Answers where it begins.
    async fn create_subscription(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        subscription: SubscriptionName,
        place: Place,
        properties: Properties,
    ) -> ApiResult<Index>;

    /// Moves a subscription; its consumers are told and continue from there.
    async fn seek_subscription(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        subscription: SubscriptionName,
        place: Place,
    ) -> ApiResult<Index>;

    /// Gives messages up for a subscription as if they had been acknowledged, durably: those of a
    /// range, or, without one, those of which storage could not give any when it was read last.
    /// Answers which; at most 1,024 ranges at once. Of one topic or partition: a partitioned topic
    /// is refused, and the advice names its partitions.
    async fn skip_messages(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        subscription: SubscriptionName,
        range: Option<IndexRange>,
    ) -> ApiResult<Vec<IndexRange>>;

    /// Gives up what a subscription has not acknowledged, in every partition of a partitioned
    /// topic: all of it, or what is old. Answers how many messages that are.
    async fn clear_subscription(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        subscription: SubscriptionName,
        clear: Clear,
    ) -> ApiResult<u64>;

    /// Shows the next messages of one topic or partition that a subscription has not acknowledged,
    /// at most [`PEEK_MESSAGES_MAX`]. Changes nothing.
    async fn peek_messages(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        subscription: SubscriptionName,
        limit: usize,
    ) -> ApiResult<Peeked>;

    /// Lets the subscriptions of a topic, or of each of its partitions, whose record of them is
    /// damaged go on from what is whole. Answers from where each goes on; nothing when nothing is
    /// damaged.
    async fn reset_subscriptions(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
    ) -> ApiResult<Vec<SubscriptionReset>>;
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PageRequest {
    /// The `next` of the page before; `None` for the first.
    pub after: Option<String>,
    /// Most items; the broker may give fewer.
    pub limit: usize,
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The items, in order. There may be few, or none, before the end.
    pub items: Vec<T>,
    /// Where the following page begins; `None` at the end.
    pub next: Option<String>,
}

/// Where the messages of a topic are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicLayout {
    /// Its name.
    pub topic: TopicName,
    /// Which keys each partition holds; none when the topic is not partitioned.
    pub ranges: TopicRanges,
    /// How its keys are hashed.
    pub key_hash: KeyHash,
    /// Its life.
    pub incarnation: TopicIncarnation,
}

/// A topic of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicDescription {
    /// Its name.
    pub topic: TopicName,
    /// 0 when it is not partitioned.
    pub partitions: u32,
    /// Its life.
    pub incarnation: TopicIncarnation,
}

/// How a tenant or namespace is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Removal {
    /// With all that is in it, used or not.
    pub force: bool,
    /// Not at all: it is only asked what is in it.
    pub dry_run: bool,
}

/// How a topic is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Deletion {
    /// Unless clients are connected.
    IfUnused,
    /// Although clients are connected.
    Force,
    /// Not at all: it is only asked whether clients are connected, as brokers ask each other.
    Check,
}

/// What of a subscription is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Clear {
    /// Only messages that the broker took longer ago than this, in ms; `None`: all.
    pub older_than_ms: Option<u64>,
    /// Nothing: it is only asked how many messages that would be.
    pub dry_run: bool,
}

/// Most messages that are shown at once.
pub const PEEK_MESSAGES_MAX: usize = 1_000;

/// The next messages of a subscription.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peeked {
    /// Those that are not acknowledged, in order.
    pub unacknowledged: Vec<IndexRange>,
    /// Whole entries that hold the first of them, and with these others.
    pub batches: Vec<StoredBatch>,
    /// What of them storage cannot give.
    pub gaps: Vec<Gap>,
}

/// What is to be brought back to bookies of a topic that only objects have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reimport {
    /// The ledgers that have messages between two places.
    Range {
        /// The first message.
        from: Place,
        /// Behind the last one.
        to: Place,
    },
    /// Nothing more: what was asked for is ended.
    Cancel,
}

/// From where a subscription goes on whose record was damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionReset {
    /// The topic, or the partition.
    pub topic: TopicName,
    /// The subscription.
    pub name: String,
    /// The first message that is not acknowledged, as far as is known.
    pub mark_delete: Index,
    /// Messages that are delivered from there on; some of them may have been acknowledged.
    pub repeated_messages: u64,
    /// Nothing was known but its name: it goes on from the first message that is kept.
    pub name_only: bool,
}
