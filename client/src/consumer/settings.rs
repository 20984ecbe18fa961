//! What the application asks of a consumer or reader. Plain data.

use aquifer_model::place::Place;
use aquifer_model::subscription::SubscriptionType;

use crate::consumer::credit::Amount;
use crate::error::{ClientError, Result};

/// Default size of the queue of a consumer that serves its subscription alone, and of a reader, in
/// messages: the bytes bound it, unless messages are small.
pub const DEFAULT_QUEUE_MESSAGES: usize = 20_000;
/// Default size of the queue of one of many consumers, in messages: what one has taken, the others
/// do not get.
pub const DEFAULT_SHARED_QUEUE_MESSAGES: usize = 1_000;
/// Default size of the queue of a consumer or reader, in bytes as stored.
pub const DEFAULT_QUEUE_BYTES: usize = 8 * 1024 * 1024;

/// What the application asked for.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) purpose: Purpose,
    pub(crate) start: Place,
    pub(crate) queue: Amount,
}

/// What is received for.
#[derive(Debug, Clone)]
pub(crate) enum Purpose {
    /// A consumer of a durable subscription: the broker keeps its place.
    Subscription(Subscription),
    /// A reader: it keeps its place itself and leaves nothing on the broker.
    Reader,
}

/// A durable subscription and this consumer of it.
#[derive(Debug, Clone)]
pub(crate) struct Subscription {
    pub(crate) name: String,
    pub(crate) kind: SubscriptionType,
    pub(crate) consumer_name: String,
    pub(crate) priority: i32,
}

impl Purpose {
    /// What the receiver is called in errors.
    pub(crate) fn what(&self) -> &'static str {
        match self {
            Purpose::Subscription(_) => "consumer",
            Purpose::Reader => "reader",
        }
    }

    /// Whether messages of one key are received in order, by whichever consumer.
    pub(crate) fn keeps_key_order(&self) -> bool {
        match self {
            Purpose::Subscription(subscription) => subscription.kind != SubscriptionType::Shared,
            Purpose::Reader => true,
        }
    }
}

impl Subscription {
    /// Whether messages come in order, to one consumer at a time.
    pub(crate) fn keeps_order(&self) -> bool {
        match self.kind {
            SubscriptionType::Exclusive | SubscriptionType::Failover => true,
            SubscriptionType::Shared | SubscriptionType::KeyShared => false,
        }
    }
}

impl Settings {
    /// Whether every setting is within its bounds.
    pub(crate) fn check(&self) -> Result<()> {
        if self.queue.messages == 0 || self.queue.bytes == 0 {
            let text = "the queue must hold at least one message and one byte";
            return Err(ClientError::Invalid(text.to_owned()));
        }
        Ok(())
    }
}
