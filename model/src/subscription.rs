//! How consumers of a subscription share its messages.

/// How consumers of a subscription share its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SubscriptionType {
    /// One consumer.
    Exclusive,
    /// Each message to one of many.
    Shared,
    /// One consumer, others stand by.
    Failover,
    /// Each key to one of many.
    KeyShared,
}
