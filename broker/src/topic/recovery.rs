//! What a topic remembers when it is loaded: the cursor log adds up to its subscriptions and its
//! producers, and the message log behind the producers' snapshot is repeated into deduplication.

use std::collections::BTreeMap;

use aquifer_ledger::error::LogError;
use aquifer_ledger::managed::{LogEntry, ReadLimits, ReadPoint, TopicLog};
use aquifer_model::batch::Batch;
use aquifer_model::entry::{FORMAT_CURSOR, FORMAT_NATIVE};
use aquifer_model::id::Index;
use aquifer_model::topic::{ProducerName, SubscriptionName};
use aquifer_protocol_api::broker::StoredAt;

use crate::cursor_log::{CursorLogState, RecoveredSubscription, Replay};
use crate::error::BrokerError;
use crate::topic::dedup::{DedupTable, SequenceRange};

/// How much is read at a time.
const LIMITS: ReadLimits = ReadLimits {
    bytes_max: 2 << 20,
    entries_max: 4096,
};

/// What was recovered.
pub(super) struct Recovered {
    pub(super) subscriptions: BTreeMap<SubscriptionName, RecoveredSubscription>,
    pub(super) dedup: DedupTable,
    /// Where the snapshot of the producers ends.
    pub(super) dedup_index: Index,
    /// Entries and bytes that were repeated behind it.
    pub(super) repeated: (u64, u64),
}

pub(super) async fn recover(
    messages: &TopicLog,
    cursors: &TopicLog,
) -> Result<Recovered, BrokerError> {
    let state = replay_cursors(cursors).await?;
    let dedup = DedupTable::restore(&state.producers)
        .map_err(|error| damaged(format!("a producer of the cursor log: {error}")))?;
    let mut recovered = Recovered {
        subscriptions: state.subscriptions,
        dedup,
        dedup_index: state.dedup_index,
        repeated: (0, 0),
    };
    repeat_messages(messages, &mut recovered).await?;
    Ok(recovered)
}

async fn replay_cursors(log: &TopicLog) -> Result<CursorLogState, BrokerError> {
    let mut replay = Replay::default();
    let mut at = ReadPoint::from(log.first());
    loop {
        let entries = log.read(&mut at, LIMITS).await?;
        if entries.is_empty() {
            break;
        }
        for entry in entries {
            if entry.head.format != FORMAT_CURSOR {
                return Err(damaged(format!(
                    "entry {} of the cursor log has format {}",
                    entry.head.base_index, entry.head.format
                )));
            }
            replay
                .record(entry.head.base_index, &entry.body)
                .map_err(|error| damaged(error.to_string()))?;
        }
    }
    replay.finish().map_err(|error| damaged(error.to_string()))
}

async fn repeat_messages(log: &TopicLog, recovered: &mut Recovered) -> Result<(), BrokerError> {
    let from = recovered.dedup_index.max(log.first());
    let mut at = ReadPoint::from(from);
    // Within an entry there is no place to begin: the snapshot ends between entries.
    while at.index < log.end() {
        let entries = match log.read(&mut at, LIMITS).await {
            Ok(entries) => entries,
            // Who reads it is told. What is lost is lost for deduplication too, and everything
            // else of the topic goes on.
            Err(LogError::Damaged(reason)) => {
                let from = at.index;
                let to = log.skip_damaged(&mut at).await?;
                tracing::error!(%from, %to, reason, "messages are damaged: left out");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if entries.is_empty() {
            break;
        }
        for entry in entries {
            repeat(entry, recovered)?;
        }
    }
    Ok(())
}

fn repeat(entry: LogEntry, recovered: &mut Recovered) -> Result<(), BrokerError> {
    recovered.repeated.0 += 1;
    recovered.repeated.1 += entry.body.len() as u64;
    if entry.head.format != FORMAT_NATIVE {
        return Ok(());
    }
    let at = StoredAt {
        ledger: entry.ledger,
        entry: entry.entry,
        base_index: entry.head.base_index,
    };
    let batch = Batch::parse(entry.body)
        .map_err(|error| damaged(format!("entry at index {}: {error}", at.base_index)))?;
    let fields = batch.fields();
    let name = std::str::from_utf8(&fields.producer_name)
        .ok()
        .and_then(|name| ProducerName::new(name).ok());
    // A batch without a name was never checked for duplicates.
    let Some(name) = name else { return Ok(()) };
    let range = SequenceRange {
        lowest: fields.lowest_sequence_id,
        highest: fields.highest_sequence_id,
    };
    let instance = fields.producer_instance;
    recovered
        .dedup
        .replayed(&name, instance, range, at, entry.head.broker_time_ms);
    Ok(())
}

fn damaged(reason: String) -> BrokerError {
    BrokerError::Log(LogError::Damaged(reason))
}
