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

use crate::cursor_log::{CursorLogState, Losses, RecoveredSubscription, Replay};
use crate::error::BrokerError;
use crate::topic::dedup::{DedupTable, SequenceRange};

/// How much is read at a time.
const LIMITS: ReadLimits = ReadLimits {
    bytes_max: 2 << 20,
    entries_max: 4096,
};

/// Bytes of messages that are repeated at most when no snapshot is left.
const REPEATED_BYTES_MAX: u64 = 256 << 20;

/// What was recovered.
pub(super) struct Recovered {
    pub(super) subscriptions: BTreeMap<SubscriptionName, RecoveredSubscription>,
    pub(super) dedup: DedupTable,
    /// Where the snapshot of the producers ends.
    pub(super) dedup_index: Index,
    /// Entries and bytes that were repeated behind it.
    pub(super) repeated: (u64, u64),
    /// What of the subscriptions and producers may be missing.
    pub(super) losses: Option<Losses>,
}

pub(super) async fn recover(
    messages: &TopicLog,
    cursors: &TopicLog,
) -> Result<Recovered, BrokerError> {
    let (state, losses) = replay_cursors(cursors).await?;
    let dedup = DedupTable::restore(&state.producers)
        .map_err(|error| damaged(format!("a producer of the cursor log: {error}")))?;
    let dedup_index = match &losses {
        Some(losses) if !losses.has_snapshot => recent(messages, state.dedup_index),
        Some(_) | None => state.dedup_index,
    };
    let mut recovered = Recovered {
        subscriptions: state.subscriptions,
        dedup,
        dedup_index,
        repeated: (0, 0),
        losses,
    };
    repeat_messages(messages, &mut recovered).await?;
    Ok(recovered)
}

/// Where deduplication begins when no snapshot says it: what is older than this is not repeated, since
/// a load that reads a whole topic would never end.
fn recent(messages: &TopicLog, index: Index) -> Index {
    let mut bytes = 0;
    let ledgers = messages.stats().ledgers;
    let recent = ledgers.iter().rev().take_while(|ledger| {
        bytes += ledger.bytes;
        bytes <= REPEATED_BYTES_MAX
    });
    let first = recent.last().map_or(messages.end(), |l| l.first_index);
    index.max(first)
}

/// Adds the cursor log up. What of it is damaged is left out and told: the messages of the topic are
/// there whether its subscriptions are or not.
async fn replay_cursors(log: &TopicLog) -> Result<(CursorLogState, Option<Losses>), BrokerError> {
    let mut replay = Replay::default();
    let mut at = ReadPoint::from(log.first());
    loop {
        let entries = match log.read(&mut at, LIMITS).await {
            Ok(entries) => entries,
            Err(LogError::Damaged(reason)) => {
                let damage = log.skip_damaged(&mut at).await?;
                if damage.end <= damage.from {
                    return Err(damaged(reason));
                }
                replay.lost(reason);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if entries.is_empty() {
            return Ok(replay.finish_with_losses());
        }
        for entry in entries {
            let (index, format) = (entry.head.base_index, entry.head.format);
            let recorded = match format {
                FORMAT_CURSOR => replay.record(index, &entry.body).map_err(|e| e.to_string()),
                _ => Err(format!(
                    "entry {index} of the cursor log has format {format}"
                )),
            };
            if let Err(reason) = recorded {
                replay.lost(reason);
            }
        }
    }
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
                let damage = log.skip_damaged(&mut at).await?;
                tracing::error!(?damage, reason, "messages are damaged: left out");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if entries.is_empty() {
            break;
        }
        for entry in entries {
            repeat(entry, recovered);
        }
    }
    Ok(())
}

fn repeat(entry: LogEntry, recovered: &mut Recovered) {
    recovered.repeated.0 += 1;
    recovered.repeated.1 += entry.body.len() as u64;
    if entry.head.format != FORMAT_NATIVE {
        return;
    }
    let at = StoredAt {
        ledger: entry.ledger,
        entry: entry.entry,
        base_index: entry.head.base_index,
    };
    let batch = match Batch::parse(entry.body) {
        Ok(batch) => batch,
        // Its consumers see it; it is lost for deduplication only.
        Err(error) => {
            tracing::error!(index = %at.base_index, %error, "batch cannot be parsed: left out");
            return;
        }
    };
    let fields = batch.fields();
    let name = std::str::from_utf8(&fields.producer_name)
        .ok()
        .and_then(|name| ProducerName::new(name).ok());
    // A batch without a name was never checked for duplicates.
    let Some(name) = name else { return };
    let range = SequenceRange {
        lowest: fields.lowest_sequence_id,
        highest: fields.highest_sequence_id,
    };
    let instance = fields.producer_instance;
    recovered
        .dedup
        .replayed(&name, instance, range, at, entry.head.broker_time_ms);
}

fn damaged(reason: String) -> BrokerError {
    BrokerError::Log(LogError::Damaged(reason))
}
