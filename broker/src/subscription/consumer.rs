//! Consumers of a subscription: how one attaches, what it is told, and of an attached one its
//! credit and what it used of it.
//!
//! Credit is two totals since the consumer attached, never differences: it cannot leak or be
//! minted. A delivery uses one message of it per message that is not skipped, and the bytes of its
//! batch; a redelivery uses it again, and so does a delivery that a seek made void.

use aquifer_model::subscription::SubscriptionType;
use aquifer_model::topic::ConsumerName;

/// A consumer of a topic, unique while the topic is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConsumerId(pub u64);

/// A consumer that wants to attach.
#[derive(Debug, Clone)]
pub struct Attach {
    /// Its id.
    pub consumer: ConsumerId,
    /// How it expects messages to be shared.
    pub kind: SubscriptionType,
    /// For stats.
    pub name: Option<ConsumerName>,
    /// Lower is served first (Failover).
    pub priority: i32,
}

/// Something that consumers are to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// Failover: whether the consumer is the one that is served.
    Active {
        /// The consumer to tell.
        consumer: ConsumerId,
        /// Whether it is served.
        active: bool,
    },
}

/// An attached consumer.
#[derive(Debug, Clone)]
pub(crate) struct Consumer {
    pub(crate) name: Option<ConsumerName>,
    granted_messages: u64,
    granted_bytes: u64,
    used_messages: u64,
    used_bytes: u64,
}

impl Consumer {
    /// One without any credit.
    pub(crate) fn new(name: Option<ConsumerName>) -> Consumer {
        Consumer {
            name,
            granted_messages: 0,
            granted_bytes: 0,
            used_messages: 0,
            used_bytes: 0,
        }
    }

    /// Raises the totals; lower ones are ignored.
    pub(crate) fn grant(&mut self, messages_total: u64, bytes_total: u64) {
        self.granted_messages = self.granted_messages.max(messages_total);
        self.granted_bytes = self.granted_bytes.max(bytes_total);
    }

    /// Accounts a delivery.
    pub(crate) fn consume(&mut self, messages: u64, bytes: u64) {
        self.used_messages = self.used_messages.saturating_add(messages);
        self.used_bytes = self.used_bytes.saturating_add(bytes);
    }

    /// Messages and bytes left; both above 0, or `None`. The last entry may exceed what is left.
    pub(crate) fn credit_left(&self) -> Option<(u64, u64)> {
        let messages = self.granted_messages.saturating_sub(self.used_messages);
        let bytes = self.granted_bytes.saturating_sub(self.used_bytes);
        (messages > 0 && bytes > 0).then_some((messages, bytes))
    }
}
