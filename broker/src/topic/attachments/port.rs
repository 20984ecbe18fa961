//! The client's end of a consumer session.

use aquifer_model::place::Place;
use aquifer_protocol_api::consumer::{Acknowledge, ConsumerPort, NegativeAcknowledge};
use aquifer_protocol_api::error::ApiResult;
use async_trait::async_trait;

use crate::subscription::ConsumerId;
use crate::topic::event::{ConsumerRequest, Event, Mailbox, SubscriptionId};

/// The client's end.
pub(super) struct Port {
    pub(super) subscription: SubscriptionId,
    pub(super) consumer: ConsumerId,
    pub(super) mailbox: Mailbox,
    /// Requests in the mailbox, or handled.
    pub(super) sent: u64,
}

impl Port {
    async fn send(&mut self, request: ConsumerRequest) -> ApiResult<()> {
        let event = Event::Consumer(self.subscription, self.consumer, request);
        self.mailbox.send(event).await?;
        self.sent += 1;
        Ok(())
    }
}

#[async_trait]
impl ConsumerPort for Port {
    async fn credit(&mut self, messages_total: u64, bytes_total: u64) -> ApiResult<()> {
        self.send(ConsumerRequest::Credit {
            messages: messages_total,
            bytes: bytes_total,
        })
        .await
    }

    async fn acknowledge(&mut self, acknowledge: Acknowledge) -> ApiResult<()> {
        self.send(ConsumerRequest::Acknowledge(Box::new(acknowledge)))
            .await
    }

    async fn negative_acknowledge(&mut self, negative: NegativeAcknowledge) -> ApiResult<()> {
        self.send(ConsumerRequest::NegativeAcknowledge(negative))
            .await
    }

    async fn seek(&mut self, request_id: u64, place: Place) -> ApiResult<()> {
        self.send(ConsumerRequest::Seek { request_id, place }).await
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let gone = Event::ConsumerGone(self.subscription, self.consumer, self.sent);
        self.mailbox.urgent(gone);
    }
}
