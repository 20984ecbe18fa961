//! Receiving from a durable subscription.
//!
//! Each partition has an [`inbox`], which is plain state; the transport pulls requests out of it
//! ([`requests`]), one task per partition puts deliveries in and reconnects ([`session`]), and the
//! [`receiver`] takes from the partitions in round-robin order.

mod acks;
pub(crate) mod credit;
pub(crate) mod handle;
mod inbox;
pub(crate) mod receiver;
mod requests;
mod session;
pub(crate) mod settings;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use aquifer_model::id::{EntryId, Index, LedgerId};
use aquifer_model::limits::ACK_RANGES_MAX;
use aquifer_model::place::Place;
use aquifer_model::subscription::SubscriptionType;
use aquifer_model::topic::{ConsumerName, SubscriptionName};

use crate::context::Context;
use crate::error::{ClientError, Result};
use crate::message::{Damaged, ReceivedMessage};
use acks::{AckOutcome, Acknowledged, resolved};
use credit::Amount;
use handle::Handle;
use settings::{Purpose, Settings, Subscription};

pub use settings::{DEFAULT_QUEUE_BYTES, DEFAULT_QUEUE_MESSAGES, DEFAULT_SHARED_QUEUE_MESSAGES};

/// Prepares a [`Consumer`].
#[derive(Clone)]
pub struct ConsumerBuilder {
    context: Arc<Context>,
    topic: String,
    subscription: Subscription,
    start: Place,
    /// `None`: the default of the subscription's type.
    queue_messages: Option<usize>,
    queue_bytes: usize,
}

impl ConsumerBuilder {
    pub(crate) fn new(context: Arc<Context>, topic: &str, subscription: &str) -> ConsumerBuilder {
        ConsumerBuilder {
            context,
            topic: topic.to_owned(),
            subscription: Subscription {
                name: subscription.to_owned(),
                kind: SubscriptionType::Exclusive,
                consumer_name: String::new(),
                priority: 0,
            },
            start: Place::Earliest,
            queue_messages: None,
            queue_bytes: DEFAULT_QUEUE_BYTES,
        }
    }

    /// How this consumer shares the subscription with others. Default: exclusive.
    #[must_use]
    pub fn kind(mut self, kind: SubscriptionType) -> ConsumerBuilder {
        self.subscription.kind = kind;
        self
    }

    /// Where the subscription begins if it does not exist yet. Default: the oldest message.
    #[must_use]
    pub fn start(mut self, start: Place) -> ConsumerBuilder {
        self.start = start;
        self
    }

    /// A name for statistics and logs. Default: none.
    #[must_use]
    pub fn name(mut self, name: &str) -> ConsumerBuilder {
        self.subscription.consumer_name = name.to_owned();
        self
    }

    /// Messages that may wait in memory for [`receive`](Consumer::receive); partitions share them.
    /// Default 20,000, and 1,000 where consumers share a subscription.
    #[must_use]
    pub fn queue_messages(mut self, messages: usize) -> ConsumerBuilder {
        self.queue_messages = Some(messages);
        self
    }

    /// Bytes that may wait in memory, packed as they came, beyond which at most one batch is taken;
    /// and, unpacked, that [`receive_batch`](Consumer::receive_batch) gives at once. Default 8 MiB.
    #[must_use]
    pub fn queue_bytes(mut self, bytes: usize) -> ConsumerBuilder {
        self.queue_bytes = bytes;
        self
    }

    /// Which consumer of a Failover subscription is served: the one with the lowest number.
    /// Default 0.
    #[must_use]
    pub fn priority(mut self, priority: i32) -> ConsumerBuilder {
        self.subscription.priority = priority;
        self
    }

    /// Subscribes, to every partition of a partitioned topic; creates the topic if the namespace
    /// allows that.
    ///
    /// # Errors
    /// `Connect` when no broker answers, `Busy` when another consumer has the subscription
    /// exclusively or shares it in another way, `NotFound`, `Refused`, `Invalid` for a name or
    /// setting, `Timeout` when the client's operation timeout passes.
    pub async fn open(self) -> Result<Consumer> {
        let subscription = self.subscription;
        SubscriptionName::new(&subscription.name)?;
        if !subscription.consumer_name.is_empty() {
            ConsumerName::new(&subscription.consumer_name)?;
        }
        let messages = self.queue_messages.unwrap_or(match subscription.kind {
            SubscriptionType::Shared | SubscriptionType::KeyShared => DEFAULT_SHARED_QUEUE_MESSAGES,
            SubscriptionType::Exclusive | SubscriptionType::Failover => DEFAULT_QUEUE_MESSAGES,
        });
        let keeps_order = subscription.keeps_order();
        let settings = Settings {
            start: self.start,
            queue: Amount {
                messages: messages as u64,
                bytes: self.queue_bytes as u64,
            },
            purpose: Purpose::Subscription(subscription),
        };
        let handle = Handle::open(self.context, &self.topic, settings).await?;
        Ok(Consumer {
            handle,
            keeps_order,
        })
    }
}

/// Receives the messages of a subscription. Dropping it ends the consumer; what it has not
/// acknowledged is delivered again, to it or to others.
///
/// It reconnects by itself. After a reconnect everything unacknowledged is delivered again; what
/// was acknowledged and confirmed is not (I9).
pub struct Consumer {
    handle: Handle,
    keeps_order: bool,
}

impl Consumer {
    /// Waits for the next message. Dropping the future loses nothing; several tasks may receive.
    ///
    /// # Errors
    /// [`Damaged`](ClientError::Damaged) for messages that cannot be read, which stay
    /// unacknowledged until [`ack_damaged`](Self::ack_damaged) while those after them follow;
    /// [`EndOfTopic`](ClientError::EndOfTopic) when the topic was terminated and everything of the
    /// subscription is acknowledged; every other error has ended the consumer: `Fenced` when the
    /// topic was deleted, `Busy` when another
    /// consumer got the subscription while this one was away, `Refused`, `NotFound`, `Closed`.
    pub async fn receive(&self) -> Result<ReceivedMessage> {
        self.handle.receiver.take().await
    }

    /// Waits for at least one message, but no longer than `max_wait`, and takes up to `max` of
    /// those that are there, as long as their batches, unpacked, are smaller than
    /// [`queue_bytes`](ConsumerBuilder::queue_bytes): one batch may exceed it. Empty when the time
    /// passed.
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
        let first = first?;
        let bytes_max = self.handle.receiver.settings.queue.bytes;
        let mut held = Held::default();
        held.add(&first);
        messages.push(first);
        while messages.len() < max && held.bytes < bytes_max {
            let Some(message) = self.handle.receiver.try_take_message() else {
                break;
            };
            held.add(&message);
            messages.push(message);
        }
        Ok(messages)
    }

    /// Acknowledges a message. It is in flight when this returns; await the answer to know that
    /// it is durable and the message is never delivered again. Acknowledgements that are made
    /// while others are under way travel together.
    pub fn ack(&self, message: &ReceivedMessage) -> PendingAck {
        let what = Acknowledged::One(message.index.0);
        PendingAck::new(self.handle.receiver.ack(message.origin, what))
    }

    /// Passes over messages that cannot be read: they count as acknowledged and do not come again.
    pub fn ack_damaged(&self, damaged: &Damaged) -> PendingAck {
        let mut outcome = resolved(Ok(()));
        // Confirmed in order: the last one stands for all.
        for ranges in damaged.ranges.chunks(ACK_RANGES_MAX) {
            let what = Acknowledged::Ranges(ranges);
            outcome = self.handle.receiver.ack(damaged.origin, what);
        }
        PendingAck::new(outcome)
    }

    /// Asks for redelivery of messages that could not be read: in flight to this consumer they
    /// may have been damaged, storage may have been repaired.
    pub fn nack_damaged(&self, damaged: &Damaged) {
        for (first, last) in &damaged.ranges {
            self.handle.receiver.nack(damaged.origin, (first.0, last.0));
        }
    }

    /// Acknowledges messages and waits until that is durable. Those of an error may have been
    /// acknowledged or not: [`ack_each`](Self::ack_each) tells.
    ///
    /// # Errors
    /// Those of [`PendingAck`], the first one.
    pub async fn ack_all(&self, messages: &[ReceivedMessage]) -> Result<()> {
        let outcomes = self.ack_each(messages).await;
        outcomes.into_iter().collect()
    }

    /// Acknowledges messages, waits until it is known what became of each, and tells, in their
    /// order. Where a retryable error came back the message is delivered again, here or to another
    /// consumer, unless the acknowledgement was durable and only its confirmation was lost.
    pub async fn ack_each(&self, messages: &[ReceivedMessage]) -> Vec<Result<()>> {
        let ack = |message: &ReceivedMessage| {
            let what = Acknowledged::One(message.index.0);
            self.handle.receiver.ack(message.origin, what)
        };
        // All are in flight before the first is waited for, so that they travel together.
        let pending: Vec<Arc<AckOutcome>> = messages.iter().map(ack).collect();
        let mut outcomes = Vec::with_capacity(pending.len());
        for outcome in pending {
            outcomes.push(outcome.wait().await.clone());
        }
        outcomes
    }

    /// Acknowledges a message and everything before it on its partition; not for Shared and
    /// Key_Shared subscriptions.
    pub fn ack_cumulative(&self, message: &ReceivedMessage) -> PendingAck {
        if !self.keeps_order {
            let text = "a shared subscription has no order to acknowledge cumulatively: use ack";
            return PendingAck::new(resolved(Err(ClientError::Invalid(text.to_owned()))));
        }
        let what = Acknowledged::UpTo(message.index.0);
        PendingAck::new(self.handle.receiver.ack(message.origin, what))
    }

    /// Asks for redelivery of a message, to this consumer or another. With Exclusive and Failover
    /// everything after it is delivered again too, so that the order holds.
    pub fn nack(&self, message: &ReceivedMessage) {
        let range = (message.index.0, message.index.0);
        self.handle.receiver.nack(message.origin, range);
    }

    /// Moves the subscription, on all partitions of the topic, and drops what waits in memory.
    /// Answers the index where delivery continues; the lowest of a partitioned topic.
    /// Acknowledgements of messages that were received before fail with [`ClientError::Stale`].
    /// The end, and a time, are those of the call: what is published after that is delivered,
    /// also when the move has to be asked for again. For that the caller must be allowed to
    /// describe the topic; else they are those of when the broker moves it, the last time that it
    /// is asked.
    ///
    /// # Errors
    /// `Invalid` for a place that the topic does not have, `Timeout`, and what has ended the
    /// consumer.
    pub async fn seek(&self, place: Place) -> Result<Index> {
        self.handle.receiver.seek(place).await
    }

    /// Whether messages come to this consumer: subscribed on every partition, and with Failover
    /// the one that is served.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.handle.receiver.is_active()
    }

    /// Waits until acknowledgements that are in flight are resolved, and ends the consumer.
    ///
    /// # Errors
    /// `Timeout` when the broker does not let go in time; the consumer is closed either way.
    pub async fn close(&self) -> Result<()> {
        self.handle.receiver.close().await
    }
}

/// What the messages of a receive keep in memory: batches, each counted once.
#[derive(Default)]
struct Held {
    bytes: u64,
    last: Option<(usize, LedgerId, EntryId)>,
}

impl Held {
    fn add(&mut self, message: &ReceivedMessage) {
        let (partition, at) = (message.origin.partition, message.position);
        let batch = Some((partition, at.ledger, at.entry));
        if self.last != batch {
            self.last = batch;
            self.bytes += message.block_bytes as u64;
        }
    }
}

/// An acknowledgement in flight. Await it to know that it is durable.
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
