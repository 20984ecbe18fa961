//! Consuming.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use aquifer_model::id::Index;
use aquifer_model::place::Place;

use crate::client::Context;
use crate::error::{ClientError, Result};
use crate::message::ReceivedMessage;

/// How the consumers of a subscription share its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SubscriptionType {
    /// One consumer, in order.
    #[default]
    Exclusive,
    /// Each message to one of many.
    Shared,
    /// One consumer, in order; others stand by.
    Failover,
    /// Each key to one of many, in order per key.
    KeyShared,
}

/// x
#[derive(Clone)]
pub struct ConsumerBuilder {
    context: Arc<Context>,
    topic: String,
    subscription: String,
}

impl ConsumerBuilder {
    pub(crate) fn new(context: Arc<Context>, topic: &str, subscription: &str) -> ConsumerBuilder {
        ConsumerBuilder {
            context,
            topic: topic.to_owned(),
            subscription: subscription.to_owned(),
        }
    }
    /// x
    #[must_use]
    pub fn kind(self, kind: SubscriptionType) -> ConsumerBuilder {
        let _ = kind;
        self
    }
    /// x
    #[must_use]
    pub fn start(self, start: Place) -> ConsumerBuilder {
        let _ = start;
        self
    }
    /// x
    #[must_use]
    pub fn name(self, name: &str) -> ConsumerBuilder {
        let _ = name;
        self
    }
    /// x
    #[must_use]
    pub fn queue_messages(self, messages: usize) -> ConsumerBuilder {
        let _ = messages;
        self
    }
    /// x
    #[must_use]
    pub fn queue_bytes(self, bytes: usize) -> ConsumerBuilder {
        let _ = bytes;
        self
    }
    /// x
    #[must_use]
    pub fn priority(self, priority: i32) -> ConsumerBuilder {
        let _ = priority;
        self
    }
    /// x
    pub async fn open(self) -> Result<Consumer> {
        let _ = (&self.context, &self.topic, &self.subscription);
        Err(ClientError::closed("consumer"))
    }
}

/// x
pub struct Consumer {}

impl Consumer {
    /// x
    pub async fn receive(&self) -> Result<ReceivedMessage> {
        Err(ClientError::closed("consumer"))
    }
    /// x
    pub async fn receive_batch(
        &self,
        max: usize,
        max_wait: Duration,
    ) -> Result<Vec<ReceivedMessage>> {
        let _ = (max, max_wait);
        Err(ClientError::closed("consumer"))
    }
    /// x
    pub fn ack(&self, message: &ReceivedMessage) -> PendingAck {
        let _ = message;
        PendingAck {}
    }
    /// x
    pub async fn ack_all(&self, messages: &[ReceivedMessage]) -> Result<()> {
        let _ = messages;
        Ok(())
    }
    /// x
    pub fn ack_cumulative(&self, message: &ReceivedMessage) -> PendingAck {
        let _ = message;
        PendingAck {}
    }
    /// x
    pub fn nack(&self, message: &ReceivedMessage) {
        let _ = message;
    }
    /// x
    pub async fn seek(&self, place: Place) -> Result<Index> {
        let _ = place;
        Err(ClientError::closed("consumer"))
    }
    /// x
    #[must_use]
    pub fn is_active(&self) -> bool {
        false
    }
    /// x
    pub async fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// x
pub struct PendingAck {}

impl Future for PendingAck {
    type Output = Result<()>;
    fn poll(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(()))
    }
}
