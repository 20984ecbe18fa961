//! How consumers of a subscription share its messages.

/// How consumers of a subscription share its messages.
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
