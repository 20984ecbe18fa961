//! Records the seeks of a session, as those of the administration are. Everything else of it
//! passes.

use aquifer_model::place::Place;
use aquifer_protocol_api::access::Access;
use aquifer_protocol_api::consumer::{Acknowledge, ConsumerPort, NegativeAcknowledge};
use aquifer_protocol_api::error::ApiResult;
use async_trait::async_trait;

use crate::security::audit::cause::Cause;

/// The client's end of a session whose callers are recorded.
pub(super) struct RecordedSeeks {
    pub(super) inner: Box<dyn ConsumerPort>,
    pub(super) cause: Cause,
    pub(super) access: Access,
}

#[async_trait]
impl ConsumerPort for RecordedSeeks {
    async fn credit(&mut self, messages_total: u64, bytes_total: u64) -> ApiResult<()> {
        self.inner.credit(messages_total, bytes_total).await
    }

    async fn acknowledge(&mut self, acknowledge: Acknowledge) -> ApiResult<()> {
        self.inner.acknowledge(acknowledge).await
    }

    async fn negative_acknowledge(&mut self, negative: NegativeAcknowledge) -> ApiResult<()> {
        self.inner.negative_acknowledge(negative).await
    }

    /// What becomes of it the client is told in its order among the events of the session: the
    /// record says whether the topic was asked.
    async fn seek(&mut self, request_id: u64, place: Place) -> ApiResult<()> {
        let recorded = self.cause.begins(&self.access);
        let asked = self.inner.seek(request_id, place).await;
        if let Some(recorded) = recorded {
            recorded.ended(&asked);
        }
        asked
    }
}
