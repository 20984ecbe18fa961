//! Statistics of a topic, as every layer above the broker shows them.

use crate::id::{Index, LedgerId};
use crate::subscription::SubscriptionType;
use crate::topic::ProducerName;

/// Statistics of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TopicStats {
    /// 0 when it is not partitioned; otherwise the numbers are sums.
    pub partitions: u32,
    /// First index that is kept.
    pub first_index: Index,
    /// Index after the newest message.
    pub end_index: Index,
    /// Bytes stored.
    pub stored_bytes: u64,
    /// Entries stored.
    pub entries: u64,
    /// The ledgers, oldest first.
    pub ledgers: Vec<LedgerStats>,
    /// Connected producers.
    pub producers: Vec<ProducerStats>,
    /// Subscriptions and readers.
    pub subscriptions: Vec<SubscriptionStats>,
    /// The limit for which producers wait now.
    pub held_back_by: Option<String>,
    /// Messages published since the topic was loaded.
    pub messages_in: u64,
    /// Bytes published since the topic was loaded.
    pub bytes_in: u64,
    /// Messages delivered since the topic was loaded.
    pub messages_out: u64,
    /// Bytes delivered since the topic was loaded.
    pub bytes_out: u64,
}

/// A ledger of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerStats {
    /// Its id.
    pub ledger: LedgerId,
    /// Index of its first message.
    pub first_index: Index,
    /// Entries.
    pub entries: u64,
    /// Bytes.
    pub bytes: u64,
    /// `open` or `closed`.
    pub state: &'static str,
}

/// A connected producer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerStats {
    /// Its name.
    pub name: ProducerName,
    /// Highest persisted sequence id.
    pub last_sequence_id: Option<u64>,
}

/// A subscription or reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionStats {
    /// Its name; readers have one made up.
    pub name: String,
    /// How consumers share.
    pub kind: SubscriptionType,
    /// First index that is not acknowledged.
    pub mark_delete: Index,
    /// Messages that are not acknowledged.
    pub backlog_messages: u64,
    /// Messages delivered and waiting for their acknowledgement.
    pub unacknowledged_messages: u64,
    /// Messages that storage could not give, and that are neither acknowledged nor skipped.
    pub damaged_messages: u64,
    /// The rate for which delivery waits now.
    pub held_back_by: Option<String>,
    /// Names of the connected consumers.
    pub consumers: Vec<String>,
    /// Whether it outlives its consumers.
    pub durable: bool,
    /// Acknowledged islands above the mark.
    pub acknowledged_ranges: u64,
}
