//! Statistics of a topic, as every layer above the broker shows them.

use crate::id::{Index, LedgerId};
use crate::subscription::{Properties, SubscriptionType};
use crate::topic::{ProducerName, TopicName};

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
    /// Where the topic ends, or each of its partitions that ends, when it takes no more messages.
    pub ends: Vec<TopicEnd>,
    /// Messages published since the topic was loaded.
    pub messages_in: u64,
    /// Bytes published since the topic was loaded.
    pub bytes_in: u64,
    /// Messages delivered since the topic was loaded.
    pub messages_out: u64,
    /// Bytes delivered since the topic was loaded.
    pub bytes_out: u64,
    /// The lists were too long: the newest ledgers and some of the rest are here.
    pub shortened: bool,
}

impl TopicStats {
    /// Whether the topic takes no more messages: it, or every one of its partitions, has an end.
    #[must_use]
    pub fn is_terminated(&self) -> bool {
        self.ends.len() as u64 >= u64::from(self.partitions.max(1))
    }

    /// Whether clients are connected.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        let mut subscriptions = self.subscriptions.iter();
        !self.producers.is_empty() || subscriptions.any(|found| !found.consumers.is_empty())
    }
}

/// Where a topic ends that takes no more messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicEnd {
    /// The topic, or the partition.
    pub topic: TopicName,
    /// Index after its last message.
    pub end: Index,
}

impl TopicEnd {
    /// Index of its last message; `None`: it never had any.
    #[must_use]
    pub fn last_index(&self) -> Option<Index> {
        self.end.0.checked_sub(1).map(Index)
    }
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
    /// Where it is in its life.
    pub state: LedgerPlace,
    /// Whether bookies have it.
    pub local: bool,
    /// The object that it is in.
    pub object: Option<String>,
}

/// Where a ledger is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LedgerPlace {
    /// It takes entries.
    Open,
    /// It never changes again.
    Closed,
    /// It is being written into an object.
    Offloading,
    /// It is in an object.
    Offloaded,
}

impl LedgerPlace {
    /// Its name, as every protocol shows it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            LedgerPlace::Open => "open",
            LedgerPlace::Closed => "closed",
            LedgerPlace::Offloading => "offloading",
            LedgerPlace::Offloaded => "offloaded",
        }
    }

    /// What is called so; another name, of a newer version, is of a closed ledger.
    #[must_use]
    pub fn named(name: &str) -> LedgerPlace {
        let all = [
            LedgerPlace::Open,
            LedgerPlace::Offloading,
            LedgerPlace::Offloaded,
        ];
        let found = all.into_iter().find(|place| place.name() == name);
        found.unwrap_or(LedgerPlace::Closed)
    }
}

/// Ledgers that are to be offloaded and are not yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OffloadProgress {
    /// How many.
    pub ledgers: u64,
    /// Their bytes.
    pub bytes: u64,
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
    /// What its creator has recorded of it.
    pub properties: Properties,
}
