//! Bounds: how long messages are kept for subscriptions, how many may wait, and how many of each
//! thing there may be.

use crate::limits::{
    PRODUCERS_PER_TOPIC_MAX, SUBSCRIPTIONS_PER_TOPIC_MAX, UNACKED_PER_CONSUMER_MAX,
    UNACKED_PER_SUBSCRIPTION_MAX,
};
use crate::policy::rate::lowest;
use crate::subscription::SubscriptionType;

/// How long messages wait for subscriptions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TimeToLive {
    /// Messages this old, in ms, are acknowledged for every subscription; `None`: none are.
    pub after_ms: Option<u64>,
}

/// What becomes of publishing, or of messages, when a backlog is at its quota.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum BacklogAction {
    /// Producers wait, as for a rate.
    #[default]
    Hold,
    /// What is published is refused.
    Refuse,
    /// The oldest messages of the slowest subscriptions are acknowledged for them.
    Evict,
}

impl BacklogAction {
    /// Every action.
    pub const ALL: [BacklogAction; 3] = [
        BacklogAction::Hold,
        BacklogAction::Refuse,
        BacklogAction::Evict,
    ];

    /// Its name for people and scripts.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            BacklogAction::Hold => "hold",
            BacklogAction::Refuse => "refuse",
            BacklogAction::Evict => "evict",
        }
    }
}

/// Most that the slowest subscription of a topic may leave unacknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BacklogQuota {
    /// Stored bytes from the first message that it has not acknowledged to the end of the topic;
    /// `None`: unlimited.
    pub bytes: Option<u64>,
    /// Age of that message in ms; `None`: unlimited.
    pub age_ms: Option<u64>,
    /// What happens at the quota.
    pub action: BacklogAction,
}

impl BacklogQuota {
    /// Whether nothing is limited.
    #[must_use]
    pub const fn is_unlimited(&self) -> bool {
        self.bytes.is_none() && self.age_ms.is_none()
    }
}

/// Ways of sharing that consumers may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubscriptionTypes(u8);

impl SubscriptionTypes {
    /// Every type.
    pub const ALL: SubscriptionTypes = SubscriptionTypes(0b1111);
    /// No type.
    pub const NONE: SubscriptionTypes = SubscriptionTypes(0);

    const KINDS: [SubscriptionType; 4] = [
        SubscriptionType::Exclusive,
        SubscriptionType::Failover,
        SubscriptionType::Shared,
        SubscriptionType::KeyShared,
    ];

    const fn bit(kind: SubscriptionType) -> u8 {
        match kind {
            SubscriptionType::Exclusive => 1,
            SubscriptionType::Failover => 2,
            SubscriptionType::Shared => 4,
            SubscriptionType::KeyShared => 8,
        }
    }

    /// These and one more.
    #[must_use]
    pub const fn with(self, kind: SubscriptionType) -> SubscriptionTypes {
        SubscriptionTypes(self.0 | SubscriptionTypes::bit(kind))
    }

    /// Whether a type is among them.
    #[must_use]
    pub const fn has(self, kind: SubscriptionType) -> bool {
        self.0 & SubscriptionTypes::bit(kind) != 0
    }

    /// The types.
    pub fn iter(self) -> impl Iterator<Item = SubscriptionType> {
        SubscriptionTypes::KINDS
            .into_iter()
            .filter(move |kind| self.has(*kind))
    }
}

/// Most messages that are delivered and not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unacked {
    /// Of one consumer.
    pub consumer: u64,
    /// Of one subscription, with those that wait to be delivered again.
    pub subscription: u64,
}

impl Unacked {
    /// The lower of two bounds, each for itself.
    #[must_use]
    pub fn lowest(self, other: Unacked) -> Unacked {
        Unacked {
            consumer: self.consumer.min(other.consumer),
            subscription: self.subscription.min(other.subscription),
        }
    }
}

impl Default for Unacked {
    fn default() -> Unacked {
        Unacked {
            consumer: UNACKED_PER_CONSUMER_MAX,
            subscription: UNACKED_PER_SUBSCRIPTION_MAX,
        }
    }
}

/// How many there may be at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Topics of a namespace, a partitioned one as many as it has partitions; `None`: unlimited.
    pub topics: Option<u64>,
    /// Producers of a topic.
    pub producers: u64,
    /// Subscriptions and readers of a topic.
    pub subscriptions: u64,
    /// Consumers and readers of a topic; `None`: unlimited.
    pub consumers: Option<u64>,
}

impl Counts {
    /// The lower of two bounds, each for itself.
    #[must_use]
    pub fn lowest(self, other: Counts) -> Counts {
        Counts {
            topics: lowest(self.topics, other.topics),
            producers: self.producers.min(other.producers),
            subscriptions: self.subscriptions.min(other.subscriptions),
            consumers: lowest(self.consumers, other.consumers),
        }
    }
}

impl Default for Counts {
    fn default() -> Counts {
        Counts {
            topics: None,
            producers: PRODUCERS_PER_TOPIC_MAX as u64,
            subscriptions: SUBSCRIPTIONS_PER_TOPIC_MAX as u64,
            consumers: None,
        }
    }
}
