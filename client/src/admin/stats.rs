//! Statistics of topics.

use aquifer_model::id::{Index, LedgerId};
use aquifer_model::subscription::SubscriptionType;
use aquifer_proto::v1;

use crate::admin::TopicEnd;

/// Statistics of a topic; sums over the partitions of a partitioned one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TopicStats {
    /// Its full name.
    pub topic: String,
    /// Its partitions; 0 when it is not partitioned.
    pub partitions: u32,
    /// First index that is kept.
    pub first_index: Index,
    /// Index after the newest message.
    pub end_index: Index,
    /// Bytes stored.
    pub stored_bytes: u64,
    /// Entries stored.
    pub entries: u64,
    /// Its ledgers, oldest first.
    pub ledgers: Vec<LedgerStats>,
    /// Connected producers.
    pub producers: Vec<ProducerStats>,
    /// Subscriptions and readers.
    pub subscriptions: Vec<SubscriptionStats>,
    /// Messages published since the topic was loaded.
    pub messages_in: u64,
    /// Bytes published since the topic was loaded.
    pub bytes_in: u64,
    /// Messages delivered since the topic was loaded.
    pub messages_out: u64,
    /// Bytes delivered since the topic was loaded.
    pub bytes_out: u64,
    /// The limit for which producers wait now.
    pub held_back_by: Option<String>,
    /// The lists were too long: the newest ledgers and some of the rest are here.
    pub shortened: bool,
    /// It takes no more messages, nor does any of its partitions.
    pub terminated: bool,
    /// Where the topic ends, or each partition that was terminated.
    pub ends: Vec<TopicEnd>,
}

/// A ledger of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerStats {
    /// Its id.
    pub ledger: LedgerId,
    /// Index of its first message.
    pub first_index: Index,
    /// Its entries.
    pub entries: u64,
    /// Its bytes.
    pub bytes: u64,
    /// `open`, `closed`, `offloading` or `offloaded`.
    pub state: String,
    /// Whether bookies have it.
    pub local: bool,
    /// The object that it is in.
    pub object: Option<String>,
}

/// A connected producer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerStats {
    /// Its name.
    pub name: String,
    /// Its highest persisted sequence id.
    pub last_sequence_id: Option<u64>,
}

/// A subscription or reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionStats {
    /// Its name; readers have one made up.
    pub name: String,
    /// How its consumers share.
    pub kind: SubscriptionType,
    /// First index that is not acknowledged.
    pub mark_delete_index: Index,
    /// Messages that are not acknowledged.
    pub backlog_messages: u64,
    /// Messages delivered that wait for their acknowledgement.
    pub unacknowledged_messages: u64,
    /// Names of the connected consumers.
    pub consumers: Vec<String>,
    /// Whether it outlives its consumers.
    pub durable: bool,
    /// Acknowledged islands above the mark.
    pub acknowledged_ranges: u64,
    /// Messages that storage could not give, and that were neither acknowledged nor skipped.
    pub damaged_messages: u64,
    /// The rate for which delivery waits now.
    pub held_back_by: Option<String>,
}

impl From<v1::TopicStatsResponse> for TopicStats {
    fn from(stats: v1::TopicStatsResponse) -> TopicStats {
        let ledger = |ledger: v1::LedgerStats| LedgerStats {
            ledger: LedgerId(ledger.ledger_id),
            first_index: Index(ledger.first_index),
            entries: ledger.entries,
            bytes: ledger.bytes,
            state: ledger.state,
            local: ledger.local,
            object: Some(ledger.object).filter(|name| !name.is_empty()),
        };
        let producer = |producer: v1::ProducerStats| ProducerStats {
            name: producer.name,
            last_sequence_id: producer.last_sequence_id,
        };
        TopicStats {
            topic: stats.topic,
            partitions: stats.partitions,
            first_index: Index(stats.first_index),
            end_index: Index(stats.end_index),
            stored_bytes: stats.stored_bytes,
            entries: stats.entries,
            ledgers: stats.ledgers.into_iter().map(ledger).collect(),
            producers: stats.producers.into_iter().map(producer).collect(),
            subscriptions: stats.subscriptions.into_iter().map(Into::into).collect(),
            messages_in: stats.messages_in,
            bytes_in: stats.bytes_in,
            messages_out: stats.messages_out,
            bytes_out: stats.bytes_out,
            held_back_by: named(stats.held_back_by),
            shortened: stats.shortened,
            terminated: stats.terminated,
            ends: stats.ends.into_iter().map(TopicEnd::from).collect(),
        }
    }
}

fn named(limit: String) -> Option<String> {
    (!limit.is_empty()).then_some(limit)
}

impl From<v1::SubscriptionStats> for SubscriptionStats {
    fn from(stats: v1::SubscriptionStats) -> SubscriptionStats {
        let kind = SubscriptionType::try_from(stats.r#type()).unwrap_or_default();
        SubscriptionStats {
            kind,
            name: stats.name,
            mark_delete_index: Index(stats.mark_delete_index),
            backlog_messages: stats.backlog_messages,
            unacknowledged_messages: stats.unacknowledged_messages,
            consumers: stats.consumers,
            durable: stats.durable,
            acknowledged_ranges: stats.acknowledged_ranges,
            damaged_messages: stats.damaged_messages,
            held_back_by: named(stats.held_back_by),
        }
    }
}
