//! What a topic remembers when it is loaded: the cursor log adds up to its subscriptions and its
//! producers, and the message log behind the producers' snapshot is repeated into deduplication.

use std::collections::BTreeMap;

use aquifer_log::error::LogError;
use aquifer_log::{Found, LogHead, ReadLimits, ReadPoint, TopicLog, TopicRecordCell};
use aquifer_model::format::FORMAT_CURSOR;
use aquifer_model::id::{EntryId, Index, LedgerId};
use aquifer_model::topic::{ProducerName, SubscriptionName};
use aquifer_protocol_api::producer::StoredAt;

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
    /// The ledger of the entry that was repeated last, and its bytes with that.
    last_ledger: Option<(LedgerId, u64)>,
    /// What of the subscriptions and producers may be missing.
    pub(super) losses: Option<Losses>,
}

/// What the logs say; nothing when they were opened from a record that has changed since.
pub(super) async fn recover(
    cell: &TopicRecordCell,
    messages: &TopicLog,
    cursors: &TopicLog,
) -> Result<Option<Recovered>, BrokerError> {
    let Some((state, losses)) = replay_cursors(cell, cursors).await? else {
        return Ok(None);
    };
    let dedup = DedupTable::restore(&state.producers)
        .map_err(|error| damaged(format!("a producer of the cursor log: {error}")))?;
    // No snapshot is written over what is lost, however much is published.
    let dedup_index = match &losses {
        Some(_) => {
            let ledgers = messages.stats().ledgers;
            let sizes = ledgers.iter().rev().map(|l| (l.first_index, l.bytes));
            state
                .dedup_index
                .max(first_of_newest(sizes, messages.end()))
        }
        None => state.dedup_index,
    };
    let mut recovered = Recovered {
        subscriptions: state.subscriptions,
        dedup,
        dedup_index,
        repeated: (0, 0),
        last_ledger: None,
        losses,
    };
    repeat_messages(cell, messages, &mut recovered)
        .await
        .map(|is_current| is_current.then_some(recovered))
}

/// Where deduplication begins when no new snapshot says it: what is older than this is not
/// repeated, since a load that reads a whole topic would never end. `ledgers` are first index and
/// size of each, newest first.
fn first_of_newest(ledgers: impl Iterator<Item = (Index, u64)>, end: Index) -> Index {
    let (mut left, mut first) = (REPEATED_BYTES_MAX, end.0);
    for (begins, bytes) in ledgers {
        if bytes > left {
            let count = u128::from(first.saturating_sub(begins.0));
            let part = count * u128::from(left) / u128::from(bytes);
            first -= u64::try_from(part).unwrap_or(0);
            break;
        }
        left -= bytes;
        first = begins.0;
    }
    Index(first)
}

/// Adds the cursor log up. What of it is damaged is left out and told: the messages of the topic
/// are there whether its subscriptions are or not.
async fn replay_cursors(
    cell: &TopicRecordCell,
    log: &TopicLog,
) -> Result<Option<(CursorLogState, Option<Losses>)>, BrokerError> {
    let mut replay = Replay::default();
    let mut at = ReadPoint::from(log.first());
    let mut is_current = false;
    loop {
        let entries = match log.read_or_skip(&mut at, LIMITS).await? {
            Found::Entries(entries) => entries,
            // A former owner that seals may have trimmed it a moment ago.
            Found::Damaged(..) if !is_current && cell.refresh().await? => return Ok(None),
            Found::Damaged(_, reason) => {
                is_current = true;
                replay.lost(reason);
                continue;
            }
        };
        if entries.is_empty() {
            return Ok(Some(replay.finish_with_losses()));
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

/// Answers whether the record that the log was opened from is still the topic's.
async fn repeat_messages(
    cell: &TopicRecordCell,
    log: &TopicLog,
    recovered: &mut Recovered,
) -> Result<bool, BrokerError> {
    let from = recovered.dedup_index.max(log.first());
    let mut at = ReadPoint::from(from);
    let mut is_current = false;
    // Within an entry there is no place to begin: the snapshot ends between entries.
    while at.index < log.end() {
        let heads = match log.read_heads_or_skip(&mut at, LIMITS.entries_max).await? {
            Found::Entries(heads) => heads,
            Found::Damaged(..) if !is_current && cell.refresh().await? => return Ok(false),
            // Consumers that read it are told. What is lost is lost for deduplication too, and
            // everything else of the topic goes on.
            Found::Damaged(damage, reason) => {
                is_current = true;
                tracing::error!(?damage, reason, "messages are damaged: left out");
                continue;
            }
        };
        if heads.is_empty() {
            break;
        }
        for head in heads {
            repeat(&head, recovered);
        }
    }
    Ok(true)
}

fn repeat(entry: &LogHead, recovered: &mut Recovered) {
    recovered.repeated.0 += 1;
    // What a ledger has grown by since the entry before, damaged ones between them included. For an
    // entry in the middle of a ledger where repeating begins this is not known.
    let before = match recovered.last_ledger {
        Some((ledger, bytes)) if ledger == entry.ledger => bytes,
        _ if entry.entry == EntryId::FIRST => 0,
        _ => entry.ledger_bytes,
    };
    recovered.repeated.1 += entry.ledger_bytes.saturating_sub(before);
    recovered.last_ledger = Some((entry.ledger, entry.ledger_bytes));
    let extensions = &entry.head.extensions;
    // What has no producer was never checked for duplicates.
    let Some(stamp) = extensions.producer() else {
        return;
    };
    let name = std::str::from_utf8(&stamp.name).ok();
    let Some(name) = name.and_then(|name| ProducerName::new(name).ok()) else {
        return;
    };
    let at = StoredAt {
        ledger: entry.ledger,
        entry: entry.entry,
        base_index: entry.head.base_index,
    };
    let range = SequenceRange::from(&stamp);
    let instance = extensions.producer_instance();
    recovered
        .dedup
        .replayed(&name, instance, range, at, entry.head.broker_time_ms);
}

fn damaged(reason: String) -> BrokerError {
    BrokerError::Log(LogError::Damaged(reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_part_is_repeated_however_large_ledgers_are() {
        const MAX: u64 = REPEATED_BYTES_MAX;
        let first = |ledgers: &[(u64, u64)]| {
            let sizes = ledgers.iter().rev().map(|(i, b)| (Index(*i), *b));
            first_of_newest(sizes, Index(10_000)).0
        };
        assert_eq!(first(&[]), 10_000);
        assert_eq!(first(&[(100, MAX)]), 100);
        assert_eq!(first(&[(0, 4 * MAX)]), 7_500);
        assert_eq!(first(&[(0, 4 * MAX), (8_000, MAX / 2)]), 7_000);
        assert_eq!(first(&[(0, MAX), (8_000, 0)]), 0);
    }
}
