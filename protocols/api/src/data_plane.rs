//! The port through which messages come and go.

use aquifer_model::id::BrokerId;
use async_trait::async_trait;

use crate::consumer::{ConsumerSession, Subscribe};
use crate::context::RequestContext;
use crate::error::ApiResult;
use crate::producer::{OpenProducer, ProducerSession};

/// What moves messages: sessions of producers, consumers and readers.
#[async_trait]
pub trait DataPlane: Send + Sync + 'static {
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
