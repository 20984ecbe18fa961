//! The port through which messages come and go.

use aquifer_model::id::{BrokerId, Index};
use aquifer_model::topic::{SubscriptionName, TopicName};
use async_trait::async_trait;

use crate::consumer::{ConsumerSession, Subscribe};
use crate::context::RequestContext;
use crate::error::ApiResult;
use crate::producer::{OpenProducer, ProducerSession};
use crate::pull::{Append, Appended, Commit, Locate, Located, Read, ReadBatches, TopicBounds};

/// What moves messages: sessions of producers, consumers and readers, and requests that stand
/// alone.
#[async_trait]
pub trait DataPlane: Send + Sync + 'static {
    /// The identity of this broker.
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

    /// Stores a body without a session: waits for free bytes as producers do, and until it is
    /// durable. Creates the topic if its namespace allows that.
    ///
    /// A body that names a producer is refused while a producer of that name is open, as are one
    /// whose sequence ids are stored in part and one that repeats a body in flight.
    async fn append(&self, ctx: &RequestContext, request: Append) -> ApiResult<Appended>;

    /// Reads whole entries from an index up to the visible end, and waits for them if asked. A
    /// request that is dropped holds nothing any more.
    async fn read(&self, ctx: &RequestContext, request: Read) -> ApiResult<ReadBatches>;

    /// Finds a place, and what is stored there.
    async fn locate(&self, ctx: &RequestContext, request: Locate) -> ApiResult<Located>;

    /// The extent of a topic or partition.
    async fn bounds(&self, ctx: &RequestContext, topic: TopicName) -> ApiResult<TopicBounds>;

    /// Moves a subscription to an index, durably, in either direction. Answers where it stands
    /// then: behind the index when later messages were acknowledged already.
    async fn commit(&self, ctx: &RequestContext, request: Commit) -> ApiResult<Index>;

    /// Where a subscription stands, durably: the first message that is not acknowledged. `None`
    /// when it does not exist.
    async fn committed(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        subscription: SubscriptionName,
    ) -> ApiResult<Option<Index>>;
}

/// The identity of a broker, and what it accepts.
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
