//! What a topic has.

/// What the deletion of a topic would delete.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TopicContent {
    /// Its partitions; 0 when it is not partitioned.
    pub partitions: u32,
    /// Messages that are kept.
    pub messages: u64,
    /// Bytes stored.
    pub stored_bytes: u64,
    /// Subscriptions that outlive their consumers.
    pub subscriptions: u64,
    /// Clients are connected: it is deleted by force only.
    pub in_use: bool,
}
