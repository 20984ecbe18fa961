//! What the broker offers to wire protocols.

use aquifer_model::bundle::BundleRange;
use aquifer_model::id::{
    BrokerId, ConsumerInstance, EntryId, Index, LedgerId, OwnerEpoch, ProducerInstance, SeekEpoch,
    TopicIncarnation,
};
use aquifer_model::load::LoadReport;
use aquifer_model::place::Place;
use aquifer_model::policy::{NamespacePolicies, PolicyChanges};
use aquifer_model::topic::{
    ConsumerName, NamespaceName, ProducerName, SubscriptionName, TopicName,
};
use aquifer_runtime::budget::{ByteBudget, BytePermit};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::context::RequestContext;
use crate::error::ApiError;

/// Result of every call.
pub type ApiResult<T> = Result<T, ApiError>;

/// The broker as protocols see it. Names arrive validated (`model::topic`).
#[async_trait]
pub trait BrokerApi: Send + Sync + 'static {
    /// Who this is.
    fn identity(&self) -> BrokerIdentity;

    /// Opens a producer: waits for adds of that name in flight, then answers its highest persisted
    /// sequence id.
    async fn open_producer(
        &self,
        ctx: &RequestContext,
        request: OpenProducer,
    ) -> ApiResult<ProducerSession>;

    /// Opens a consumer of a subscription, or a reader.
    async fn subscribe(
        &self,
        ctx: &RequestContext,
        request: Subscribe,
    ) -> ApiResult<ConsumerSession>;

    /// Creates a tenant.
    async fn create_tenant(&self, ctx: &RequestContext, tenant: String) -> ApiResult<()>;
    /// Lists tenants in name order.
    async fn list_tenants(
        &self,
        ctx: &RequestContext,
        page: PageRequest,
    ) -> ApiResult<Page<String>>;
    /// Creates a namespace with these policies at once; what is not given is as the broker is
    /// configured. Answers the policies.
    async fn create_namespace(
        &self,
        ctx: &RequestContext,
        namespace: NamespaceName,
        policies: PolicyChanges,
    ) -> ApiResult<NamespacePolicies>;
    /// Reads the policies of a namespace.
    async fn get_namespace(
        &self,
        ctx: &RequestContext,
        namespace: NamespaceName,
    ) -> ApiResult<NamespacePolicies>;
    /// Changes policies of a namespace; what is not given stays, whoever changes it at the same time.
    /// Answers the policies.
    async fn update_namespace(
        &self,
        ctx: &RequestContext,
        namespace: NamespaceName,
        changes: PolicyChanges,
    ) -> ApiResult<NamespacePolicies>;
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
    /// Says whether a topic is partitioned; creates it if asked and allowed.
    async fn describe_topic(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        create: bool,
    ) -> ApiResult<TopicDescription>;
    /// Deletes a topic, all its partitions, subscriptions and data, wherever they are served. A
    /// partition alone is not deleted, unless its topic is gone.
    async fn delete_topic(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        how: Deletion,
    ) -> ApiResult<()>;
    /// Lists the topics of a namespace in name order; partitions are not listed apart.
    async fn list_topics(
        &self,
        ctx: &RequestContext,
        namespace: NamespaceName,
        page: PageRequest,
    ) -> ApiResult<Page<TopicDescription>>;
    /// Statistics of a topic; sums over the partitions of a partitioned one.
    async fn topic_stats(&self, ctx: &RequestContext, topic: TopicName) -> ApiResult<TopicStats>;
    /// Deletes a subscription. Without `force` only when nobody is connected to it.
    async fn delete_subscription(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        subscription: SubscriptionName,
        force: bool,
    ) -> ApiResult<()>;
    /// Creates a subscription that begins at a place, without a consumer, and the topic if the
    /// namespace allows that. Answers where it begins.
    async fn create_subscription(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        subscription: SubscriptionName,
        place: Place,
    ) -> ApiResult<Index>;
    /// Moves a subscription; its consumers are told and continue from there.
    async fn seek_subscription(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        subscription: SubscriptionName,
        place: Place,
    ) -> ApiResult<Index>;

    /// Gives messages up for a subscription as if they had been acknowledged, durably: those of a range,
    /// or, without one, those of which storage could not give any when it was read last. Answers which;
    /// at most 1,024 ranges at once.
    async fn skip_messages(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        subscription: SubscriptionName,
        range: Option<IndexRange>,
    ) -> ApiResult<Vec<IndexRange>>;
    /// Lets the subscriptions of a topic whose record of them is damaged go on from what is whole.
    /// Answers from where each goes on; nothing when nothing is damaged.
    async fn reset_subscriptions(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
    ) -> ApiResult<Vec<SubscriptionReset>>;

    /// The brokers that are announced; a standalone server is its only one.
    async fn list_brokers(&self, ctx: &RequestContext) -> ApiResult<Vec<BrokerInfo>>;
    /// The bundles of a namespace, in order, and who owns them.
    async fn list_bundles(
        &self,
        ctx: &RequestContext,
        namespace: NamespaceName,
    ) -> ApiResult<Vec<BundleInfo>>;
    /// Moves a bundle to a broker, or to any other; answers who it is.
    async fn transfer_bundle(
        &self,
        ctx: &RequestContext,
        namespace: NamespaceName,
        bundle: BundleRange,
        broker: Option<BrokerId>,
    ) -> ApiResult<BrokerInfo>;
    /// Splits a bundle in front of a hash, or where that halves its load as far as its owner knows, or
    /// in its middle; both parts stay where they are.
    async fn split_bundle(
        &self,
        ctx: &RequestContext,
        namespace: NamespaceName,
        bundle: BundleRange,
        at: Option<u32>,
    ) -> ApiResult<[BundleRange; 2]>;
    /// The load of this broker.
    async fn load_report(&self, ctx: &RequestContext) -> ApiResult<LoadReport>;
}

/// A broker of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerInfo {
    /// Random per process start.
    pub broker: BrokerId,
    /// Where clients reach it; empty for a standalone server.
    pub url: String,
    /// What it runs.
    pub version: String,
    /// Whether it is about to end.
    pub draining: bool,
    /// Whether it is the one that answers.
    pub is_self: bool,
}

/// A bundle: a range of a namespace's topics, by hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleInfo {
    /// Its hashes.
    pub range: BundleRange,
    /// Who owns it; `None` when nobody has used it yet.
    pub broker: Option<BrokerId>,
    /// Where the owner is; `None` when it is gone.
    pub url: Option<String>,
    /// The owner's epoch.
    pub epoch: u64,
}

/// Who a broker is and what it accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerIdentity {
    /// Random per process start.
    pub broker: BrokerId,
    /// Name of the cluster.
    pub cluster: String,
    /// Largest message, in bytes.
    pub message_bytes_max: u64,
    /// Largest batch, in bytes.
    pub batch_bytes_max: u64,
}

/// Request to open a producer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenProducer {
    /// One topic or partition, never a partitioned topic as a whole.
    pub topic: TopicName,
    /// `None`: the broker draws one.
    pub name: Option<ProducerName>,
    /// The producer object.
    pub instance: ProducerInstance,
    /// Counts the reconnects of the instance; an older one is fenced.
    pub epoch: u64,
    /// Fence a live foreign instance of the name instead of answering `ProducerBusy`.
    pub take_over: bool,
    /// The topic's life that the producer knows, on reconnect.
    pub incarnation: Option<TopicIncarnation>,
}

/// An open producer. Dropping `port` or `receipts` closes it.
pub struct ProducerSession {
    /// What the broker decided.
    pub opened: ProducerOpened,
    /// Where frames go.
    pub port: Box<dyn ProducerPort>,
    /// Receipts in frame order; an error is the last item. Its capacity covers every frame that may
    /// be in flight, so the broker never waits for a slow client here.
    pub receipts: mpsc::Receiver<ApiResult<Receipt>>,
    /// What frames take their bytes from. A handler that takes them here before it reads a frame
    /// hands them over with it: then nothing is in memory that no budget counts.
    pub room: Option<ByteBudget>,
}

/// What the broker decided about a producer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerOpened {
    /// Its name.
    pub name: ProducerName,
    /// Highest persisted sequence id of the name.
    pub last_sequence_id: Option<u64>,
    /// Index of the first message of the batch that ends with that id.
    pub last_index: Option<Index>,
    /// The topic's life.
    pub incarnation: TopicIncarnation,
    /// The owner's epoch.
    pub owner_epoch: OwnerEpoch,
    /// Largest batch, in bytes.
    pub batch_bytes_max: u64,
    /// What is sent again is stored once.
    pub deduplication: bool,
}

/// Where a protocol puts the frames of a producer.
#[async_trait]
pub trait ProducerPort: Send {
    /// Hands frames over, in order; waits while the broker's or producer's bytes in flight are
    /// exhausted. Outcomes come as receipts; after the first failed frame all later ones fail (H7).
    ///
    /// # Errors
    /// When the producer is closed.
    async fn publish(&mut self, frames: Vec<PublishFrame>) -> ApiResult<()>;

    /// The same with bytes that were taken from [`ProducerSession::room`] for these frames; they
    /// are used first.
    ///
    /// # Errors
    /// As [`ProducerPort::publish`].
    async fn publish_held(
        &mut self,
        frames: Vec<PublishFrame>,
        held: Option<BytePermit>,
    ) -> ApiResult<()> {
        drop(held);
        self.publish(frames).await
    }
}

/// One body on its way in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishFrame {
    /// From 1 per session, without gaps.
    pub number: u64,
    /// Format of the body (`model::format`).
    pub format: u16,
    /// The body as the client sent it.
    pub body: Bytes,
}

/// A batch is stored, durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The frame.
    pub frame_number: u64,
    /// Where it is; `None` for a duplicate from before the remembered window.
    pub stored: Option<StoredAt>,
    /// It was stored before, and `stored` is where the original is.
    pub duplicate: bool,
}

/// Where a batch is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredAt {
    /// The ledger.
    pub ledger: LedgerId,
    /// The entry.
    pub entry: EntryId,
    /// Index of its first message.
    pub base_index: Index,
}

/// How consumers of a subscription share its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SubscriptionType {
    /// One consumer.
    Exclusive,
    /// Each message to one of many.
    Shared,
    /// One consumer, others stand by.
    Failover,
    /// Each key to one of many.
    KeyShared,
}

/// Request to consume or read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe {
    /// One topic or partition.
    pub topic: TopicName,
    /// `None`: a reader, which is not durable and leaves nothing behind.
    pub subscription: Option<SubscriptionName>,
    /// How consumers share; ignored for a reader.
    pub kind: SubscriptionType,
    /// For stats.
    pub consumer: Option<ConsumerName>,
    /// Where a new subscription or a reader begins.
    pub start: Place,
    /// The topic's life that the consumer knows, on reconnect.
    pub incarnation: Option<TopicIncarnation>,
    /// Lower is served first (Failover).
    pub priority: i32,
    /// The consumer object; a newer epoch of it replaces its older session at once. `None`: this
    /// session replaces none.
    pub instance: Option<ConsumerInstance>,
    /// Counts the sessions of the instance; an older one is fenced.
    pub epoch: u64,
}

/// An open consumer. Dropping `port` or `events` closes it; what it had is redelivered.
pub struct ConsumerSession {
    /// What the broker decided.
    pub opened: Subscribed,
    /// Where the consumer's requests go.
    pub port: Box<dyn ConsumerPort>,
    /// What the broker sends. Deliveries stay within the granted credit.
    pub events: mpsc::Receiver<ConsumerEvent>,
}

/// What the broker decided about a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subscribed {
    /// The topic's life.
    pub incarnation: TopicIncarnation,
    /// The owner's epoch.
    pub owner_epoch: OwnerEpoch,
    /// The subscription's seek epoch.
    pub seek_epoch: SeekEpoch,
    /// Where delivery begins.
    pub start: Index,
    /// Index after the newest message.
    pub end: Index,
}

/// Where a protocol puts the requests of a consumer. Calls wait while the topic is busy.
#[async_trait]
pub trait ConsumerPort: Send {
    /// Raises the totals granted since the session began; lower ones are ignored. A delivery uses
    /// one message of them per message that it does not skip, and the bytes of its batch; so does
    /// a redelivery, and one that a seek made void on its way. The last entry may exceed them.
    async fn credit(&mut self, messages_total: u64, bytes_total: u64) -> ApiResult<()>;
    /// Acknowledges; with a request id, [`ConsumerEvent::Confirmed`] follows when it is durable. A
    /// refused one is answered with [`ConsumerEvent::AcknowledgeRefused`], and the session goes on.
    async fn acknowledge(&mut self, acknowledge: Acknowledge) -> ApiResult<()>;
    /// Asks for redelivery.
    async fn negative_acknowledge(&mut self, negative: NegativeAcknowledge) -> ApiResult<()>;
    /// Moves the subscription; [`ConsumerEvent::SeekDone`] follows, or
    /// [`ConsumerEvent::SeekRefused`], after which the session goes on.
    async fn seek(&mut self, request_id: u64, place: Place) -> ApiResult<()>;
}

/// Consecutive indexes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexRange {
    /// First.
    pub first: Index,
    /// Last, inclusive.
    pub last: Index,
}

/// An acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Acknowledge {
    /// Echoed when it is durable; 0 asks for no confirmation.
    pub request_id: u64,
    /// Owner epoch of the deliveries; another is dropped (H9).
    pub owner_epoch: OwnerEpoch,
    /// Seek epoch of the deliveries; another is dropped (H12).
    pub seek_epoch: SeekEpoch,
    /// Everything up to here, inclusive.
    pub cumulative: Option<Index>,
    /// Single messages.
    pub individual: Vec<IndexRange>,
}

/// A wish for redelivery.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NegativeAcknowledge {
    /// Owner epoch of the deliveries.
    pub owner_epoch: OwnerEpoch,
    /// Seek epoch of the deliveries.
    pub seek_epoch: SeekEpoch,
    /// The messages.
    pub ranges: Vec<IndexRange>,
}

/// What the broker sends to a consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsumerEvent {
    /// Messages.
    Deliveries {
        /// The owner's epoch.
        owner_epoch: OwnerEpoch,
        /// The subscription's seek epoch.
        seek_epoch: SeekEpoch,
        /// Entries in order.
        deliveries: Vec<Delivery>,
    },
    /// Messages that storage cannot give, in their place of the order and held like a delivery:
    /// acknowledged, they are passed over for good; negatively acknowledged, or in a later session,
    /// reading them is tried again. Uses one message of credit and no bytes.
    Gap {
        /// The owner's epoch.
        owner_epoch: OwnerEpoch,
        /// The subscription's seek epoch.
        seek_epoch: SeekEpoch,
        /// What is missing.
        gap: Gap,
    },
    /// The acknowledgement with this id is durable.
    Confirmed {
        /// Its id.
        request_id: u64,
    },
    /// The acknowledgement with this id was refused and has changed nothing.
    AcknowledgeRefused {
        /// Its id, 0 included.
        request_id: u64,
        /// Why.
        error: ApiError,
    },
    /// The seek with this id was refused and has changed nothing.
    SeekRefused {
        /// Its id.
        request_id: u64,
        /// Why.
        error: ApiError,
    },
    /// The seek with this id is durable; deliveries of older seek epochs are void.
    SeekDone {
        /// Its id; 0 when somebody else moved the subscription.
        request_id: u64,
        /// The new epoch.
        seek_epoch: SeekEpoch,
        /// Where delivery continues.
        index: Index,
    },
    /// Failover: whether this consumer is the one that is served.
    Active(bool),
    /// The session is over.
    Failed(ApiError),
}

/// One entry, or what of it a consumer is to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Where it is stored.
    pub at: StoredAt,
    /// When the broker accepted it.
    pub broker_time_ms: u64,
    /// How often it was delivered before.
    pub redelivery_count: u32,
    /// Messages of the batch that are not for this consumer.
    pub skip: Vec<IndexRange>,
    /// Messages of the entry, by its head: tells the indexes of a batch that cannot be read.
    pub message_count: u32,
    /// Format of the body (`model::format`).
    pub format: u16,
    /// The body as the producer sent it.
    pub body: Bytes,
    /// What it holds of the broker's budget until it is on its way to the client.
    pub held: Held,
}

/// Messages that storage cannot give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Their indexes.
    pub range: IndexRange,
    /// The ledger that should have them.
    pub ledger: LedgerId,
    /// The first entry concerned.
    pub entry: EntryId,
    /// What is wrong.
    pub reason: String,
}

/// Bytes of a budget that something holds: no part of what it is.
#[derive(Debug, Default)]
pub struct Held(Option<BytePermit>);

impl Held {
    /// Takes it out, to be kept elsewhere.
    #[must_use]
    pub fn take(&mut self) -> Held {
        Held(self.0.take())
    }
}

impl From<BytePermit> for Held {
    fn from(permit: BytePermit) -> Held {
        Held(Some(permit))
    }
}

impl Clone for Held {
    /// The copy holds nothing: it shares the bytes of the original.
    fn clone(&self) -> Held {
        Held(None)
    }
}

impl PartialEq for Held {
    fn eq(&self, _: &Held) -> bool {
        true
    }
}

impl Eq for Held {}

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
    /// The items, in order.
    pub items: Vec<T>,
    /// Where the following page begins; `None` at the end.
    pub next: Option<String>,
}

/// What a topic is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicDescription {
    /// Its name.
    pub topic: TopicName,
    /// 0 when it is not partitioned.
    pub partitions: u32,
    /// Its life.
    pub incarnation: TopicIncarnation,
}

/// How a topic is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Deletion {
    /// Unless clients are connected.
    IfUnused,
    /// Although clients are connected.
    Force,
    /// Not at all: it is only asked whether clients are connected.
    Check,
}

/// Statistics of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TopicStats {
    /// 0 when it is not partitioned; otherwise the numbers are sums.
    pub partitions: u32,
    /// First index that is kept.
    pub first_index: Index,
    /// Index after the newest message.
    pub end_index: Index,
    /// Bytes stored.
    pub stored_bytes: u64,
    /// Entries stored.
    pub entries: u64,
    /// The ledgers, oldest first.
    pub ledgers: Vec<LedgerStats>,
    /// Connected producers.
    pub producers: Vec<ProducerStats>,
    /// Subscriptions and readers.
    pub subscriptions: Vec<SubscriptionStats>,
    /// Messages published since the topic was loaded.
    pub messages_in: u64,
    /// Bytes published since the topic was loaded.
    pub bytes_in: u64,
    /// Messages delivered since the topic was loaded.
    pub messages_out: u64,
    /// Bytes delivered since the topic was loaded.
    pub bytes_out: u64,
}

/// A ledger of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerStats {
    /// Its id.
    pub ledger: LedgerId,
    /// Index of its first message.
    pub first_index: Index,
    /// Entries.
    pub entries: u64,
    /// Bytes.
    pub bytes: u64,
    /// `open` or `closed`.
    pub state: &'static str,
}

/// A connected producer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerStats {
    /// Its name.
    pub name: ProducerName,
    /// Highest persisted sequence id.
    pub last_sequence_id: Option<u64>,
}

/// From where a subscription goes on whose record was damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionReset {
    /// The subscription.
    pub name: String,
    /// The first message that is not acknowledged, as far as is known.
    pub mark_delete: Index,
    /// Messages that are delivered from there on; some of them may have been acknowledged.
    pub repeated_messages: u64,
    /// Nothing was known but its name: it goes on from the first message that is kept.
    pub name_only: bool,
}

/// A subscription or reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionStats {
    /// Its name; readers have one made up.
    pub name: String,
    /// How consumers share.
    pub kind: SubscriptionType,
    /// First index that is not acknowledged.
    pub mark_delete: Index,
    /// Messages that are not acknowledged.
    pub backlog_messages: u64,
    /// Messages delivered and waiting for their acknowledgement.
    pub unacknowledged_messages: u64,
    /// Messages that storage could not give, and that nobody has acknowledged or skipped.
    pub damaged_messages: u64,
    /// Names of the connected consumers.
    pub consumers: Vec<String>,
    /// Whether it outlives its consumers.
    pub durable: bool,
    /// Acknowledged islands above the mark.
    pub acknowledged_ranges: u64,
}
