//! Receiving from a durable subscription.
//!
//! Each partition has an [`inbox`], which is plain state; the transport pulls requests out of it
//! ([`requests`]), one task per partition puts deliveries in and reconnects ([`session`]), and the
//! [`hub`] lets the partitions take turns.

mod acks;
mod credit;
pub(crate) mod hub;
mod inbox;
mod requests;
mod session;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_model::topic::{ConsumerName, SubscriptionName, TopicName};
use aquifer_proto::v1;

use crate::client::Context;
use crate::error::{ClientError, Result};
use crate::lookup;
use crate::message::ReceivedMessage;
use crate::retry::Deadline;
use acks::{AckOutcome, settled};
pub(crate) use credit::Amount;
use hub::{Handle, Settings};

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

impl From<SubscriptionType> for v1::SubscriptionType {
    fn from(kind: SubscriptionType) -> v1::SubscriptionType {
        match kind {
            SubscriptionType::Exclusive => v1::SubscriptionType::Exclusive,
            SubscriptionType::Shared => v1::SubscriptionType::Shared,
            SubscriptionType::Failover => v1::SubscriptionType::Failover,
            SubscriptionType::KeyShared => v1::SubscriptionType::KeyShared,
        }
    }
}

/// Default size of the queue of a consumer that serves its subscription alone, and of a reader, in
/// messages: the bytes bound it, unless messages are small.
pub const DEFAULT_QUEUE_MESSAGES: usize = 20_000;
/// Default size of the queue of one of many consumers, in messages: what one has taken, the others
/// do not get.
pub const DEFAULT_SHARED_QUEUE_MESSAGES: usize = 1_000;
/// Default size of the queue of a consumer or reader, in bytes as stored.
pub const DEFAULT_QUEUE_BYTES: usize = 8 * 1024 * 1024;

/// Prepares a [`Consumer`].
#[derive(Clone)]
pub struct ConsumerBuilder {
    context: Arc<Context>,
    topic: String,
    settings: Settings,
    /// What the application asked for.
    queue_messages: Option<usize>,
}

impl ConsumerBuilder {
    pub(crate) fn new(context: Arc<Context>, topic: &str, subscription: &str) -> ConsumerBuilder {
        ConsumerBuilder {
            context,
            topic: topic.to_owned(),
            settings: Settings {
                what: "consumer",
                subscription: subscription.to_owned(),
                kind: v1::SubscriptionType::Exclusive,
                start: Place::Earliest,
                name: String::new(),
                priority: 0,
                queue: default_queue(),
            },
            queue_messages: None,
        }
    }

    /// How this consumer shares the subscription with others. Default: exclusive.
    #[must_use]
    pub fn kind(mut self, kind: SubscriptionType) -> ConsumerBuilder {
        self.settings.kind = kind.into();
        self
    }

    /// Where the subscription begins if it does not exist yet. Default: the oldest message.
    #[must_use]
    pub fn start(mut self, start: Place) -> ConsumerBuilder {
        self.settings.start = start;
        self
    }

    /// A name for statistics and logs. Default: none.
    #[must_use]
    pub fn name(mut self, name: &str) -> ConsumerBuilder {
        self.settings.name = name.to_owned();
        self
    }

    /// Messages that may wait in memory for [`receive`](Consumer::receive); partitions share them.
    /// Default 20,000, and 1,000 where consumers share a subscription.
    #[must_use]
    pub fn queue_messages(mut self, messages: usize) -> ConsumerBuilder {
        self.queue_messages = Some(messages);
        self
    }

    /// Bytes, as stored, that may wait in memory, beyond which at most one batch is taken.
    /// Default 8 MiB.
    #[must_use]
    pub fn queue_bytes(mut self, bytes: usize) -> ConsumerBuilder {
        self.settings.queue.bytes = bytes as u64;
        self
    }

    /// Which consumer of a Failover subscription is served: the one with the lowest number.
    /// Default 0.
    #[must_use]
    pub fn priority(mut self, priority: i32) -> ConsumerBuilder {
        self.settings.priority = priority;
        self
    }

    /// Subscribes, to every partition of a partitioned topic; creates the topic if the namespace
    /// allows that.
    ///
    /// # Errors
    /// `Connect` when no broker answers, `Busy` when another consumer has the subscription
    /// exclusively or shares it in another way, `NotFound`, `Refused`, `Invalid` for a name or
    /// setting, `Timeout` when the client's operation timeout passes.
    pub async fn open(mut self) -> Result<Consumer> {
        use v1::SubscriptionType as Kind;
        let messages = self.queue_messages.unwrap_or(match self.settings.kind {
            Kind::Shared | Kind::KeyShared => DEFAULT_SHARED_QUEUE_MESSAGES,
            _ => DEFAULT_QUEUE_MESSAGES,
        });
        self.settings.queue.messages = messages as u64;
        SubscriptionName::new(&self.settings.subscription)?;
        if !self.settings.name.is_empty() {
            ConsumerName::new(&self.settings.name)?;
        }
        let handle = open(self.context, &self.topic, self.settings).await?;
        Ok(Consumer { handle })
    }
}

pub(crate) fn default_queue() -> Amount {
    Amount {
        messages: DEFAULT_QUEUE_MESSAGES as u64,
        bytes: DEFAULT_QUEUE_BYTES as u64,
    }
}

/// Opens a consumer, or a reader.
pub(crate) async fn open(context: Arc<Context>, topic: &str, settings: Settings) -> Result<Handle> {
    if settings.queue.messages == 0 || settings.queue.bytes == 0 {
        let text = "the queue must have room for a message and a byte";
        return Err(ClientError::Invalid(text.to_owned()));
    }
    let topic: TopicName = topic.parse()?;
    let deadline = Deadline::after(context.operation_timeout);
    let topics = lookup::partitions(&context, &topic, deadline).await?;
    Handle::open(context, settings, topics, deadline).await
}

/// Receives the messages of a subscription. Dropping it ends the consumer; what it has not
/// acknowledged is delivered again, to it or to others.
///
/// It reconnects by itself. After a reconnect everything unacknowledged is delivered again; what
/// was acknowledged and confirmed is not (I9).
pub struct Consumer {
    handle: Handle,
}

impl Consumer {
    /// Waits for the next message. Dropping the future loses nothing; several tasks may receive.
    ///
    /// # Errors
    /// `Damaged` for a batch that cannot be read, which stays unacknowledged while the messages
    /// after it follow; every other error has ended the consumer: `Fenced` when the topic was
    /// deleted, `Busy` when another consumer got the subscription while this one was away,
    /// `Refused`, `NotFound`, `Closed`.
    pub async fn receive(&self) -> Result<ReceivedMessage> {
        self.handle.hub.take().await
    }

    /// Waits for at least one message, but no longer than `max_wait`, and takes up to `max` of
    /// those that are there. Empty when the time passed.
    ///
    /// # Errors
    /// Those of [`receive`](Self::receive); messages that came before the error are given first.
    pub async fn receive_batch(
        &self,
        max: usize,
        max_wait: Duration,
    ) -> Result<Vec<ReceivedMessage>> {
        let mut messages = Vec::new();
        if max == 0 {
            return Ok(messages);
        }
        let first = aquifer_runtime::clock::timeout(max_wait, self.receive()).await;
        let Ok(first) = first else {
            return Ok(messages);
        };
        messages.push(first?);
        while messages.len() < max {
            match self.handle.hub.try_take_message() {
                Some(message) => messages.push(message),
                None => break,
            }
        }
        Ok(messages)
    }

    /// Acknowledges a message. It is on its way when this returns; await the answer to know that
    /// it is durable and the message is never delivered again. Acknowledgements that are made
    /// while others are under way travel together.
    pub fn ack(&self, message: &ReceivedMessage) -> PendingAck {
        PendingAck::new(self.handle.hub.ack(message, false))
    }

    /// Acknowledges messages and waits until that is durable.
    ///
    /// # Errors
    /// Those of [`PendingAck`], the first one.
    pub async fn ack_all(&self, messages: &[ReceivedMessage]) -> Result<()> {
        let mut pending: Vec<Arc<AckOutcome>> = Vec::new();
        for message in messages {
            let outcome = self.handle.hub.ack(message, false);
            // Most share one outcome: those of a partition that travel together.
            if !pending
                .iter()
                .rev()
                .any(|known| Arc::ptr_eq(known, &outcome))
            {
                pending.push(outcome);
            }
        }
        for outcome in pending {
            outcome.wait().await.clone()?;
        }
        Ok(())
    }

    /// Acknowledges a message and everything before it on its partition; not for Shared and
    /// Key_Shared subscriptions.
    pub fn ack_cumulative(&self, message: &ReceivedMessage) -> PendingAck {
        use v1::SubscriptionType as Kind;
        let hub = &self.handle.hub;
        if matches!(hub.settings.kind, Kind::Shared | Kind::KeyShared) {
            let text = "a shared subscription has no order to acknowledge cumulatively: use ack";
            return PendingAck::new(settled(Err(ClientError::Invalid(text.to_owned()))));
        }
        PendingAck::new(hub.ack(message, true))
    }

    /// Asks for redelivery of a message, to this consumer or another. With Exclusive and Failover
    /// everything after it is delivered again too, so that the order holds.
    pub fn nack(&self, message: &ReceivedMessage) {
        self.handle.hub.nack(message);
    }

    /// Moves the subscription, on all partitions of the topic, and drops what waits in memory.
    /// Answers the index where delivery continues; the lowest of a partitioned topic.
    /// Acknowledgements of messages that were received before fail with [`ClientError::Stale`].
    ///
    /// # Errors
    /// `Invalid` for a place that the topic does not have, `Timeout`, and what has ended the
    /// consumer.
    pub async fn seek(&self, place: Place) -> Result<Index> {
        self.handle.hub.seek(place).await
    }

    /// Whether messages come to this consumer: subscribed on every partition, and with Failover
    /// the one that is served.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.handle.hub.is_active()
    }

    /// Waits until acknowledgements that are on their way are settled, and ends the consumer.
    ///
    /// # Errors
    /// `Timeout` when the broker does not let go in time; the consumer is closed either way.
    pub async fn close(&self) -> Result<()> {
        self.handle.hub.close().await
    }
}

/// An acknowledgement on its way. Await it to know that it is durable.
///
/// # Errors
/// [`ClientError::Stale`] when a seek has voided it; `Unavailable` or `Timeout` with outcome
/// unknown when the topic moved or the broker did not answer, and the message may come again;
/// `Closed` and what else has ended the consumer.
#[derive(Debug)]
#[must_use = "the acknowledgement is sent either way, but only this says whether it is durable"]
pub struct PendingAck {
    outcome: Arc<AckOutcome>,
    waiter: Option<usize>,
}

impl PendingAck {
    fn new(outcome: Arc<AckOutcome>) -> PendingAck {
        PendingAck {
            outcome,
            waiter: None,
        }
    }
}

impl Future for PendingAck {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        this.outcome.poll(&mut this.waiter, cx).map(Clone::clone)
    }
}
