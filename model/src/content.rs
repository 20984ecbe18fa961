//! What a deletion has deleted, or would delete.

/// What a topic has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
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

/// What of a tenant or namespace was deleted, or would be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Removed {
    /// Namespaces.
    pub namespaces: u64,
    /// Topics, a partitioned one counted once.
    pub topics: u64,
}
