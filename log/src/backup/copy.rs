//! A topic of a backup under another name: its entries are written again, through the ordinary log
//! of a topic that is not seen yet.
//!
//! Invariants:
//! - Every entry has the index, the broker time (H13) and the body that it had; its ledger is
//!   another.
//! - Nothing of the copy names an object of the backup: it lives on when that is expired, and is
//!   deleted without a look at it (I10).
//! - How far it has come is told by the end of the log itself, so that any process goes on there
//!   (H10).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aquifer_ledger::ledger_metadata::LedgerInfo;
use aquifer_ledger::reader::Wanted;
use aquifer_model::id::{EntryId, Index, LedgerId};
use aquifer_model::storage::StoredEntry;
use aquifer_proto::v1;
use aquifer_runtime::clock;
use tokio::sync::mpsc;

use crate::context::LogContext;
use crate::error::LogError;
use crate::read::split;
use crate::record::restoring::{RestoredLedger, RestoringTopic};
use crate::source::{Before, narrowed, read_stored};
use crate::topic_log::TopicLog;
use crate::types::{Append, AppendSink, Appended, LogKind, LogOptions};

/// What is read of an object at once, and written before the next.
const READ_BYTES: usize = 2 << 20;
const READ_ENTRIES: usize = 1_024;
/// Until the process may have room for more.
const ROOM_PAUSE: Duration = Duration::from_millis(50);

/// Waits for some appends.
struct Outcomes(mpsc::Sender<Result<Appended, LogError>>);

impl AppendSink for Outcomes {
    fn appended(&self, _tag: u64, outcome: Result<Appended, LogError>) {
        // It has room for all of them; the copy may have been given up.
        let _ = self.0.try_send(outcome);
    }
}

impl RestoringTopic {
    /// Copies entries of ledgers of a backup, oldest first, from where the topic ends on, and seals
    /// what was written. `false` when the time was over before all were copied: ask again.
    ///
    /// # Errors
    /// [`LogError::Damaged`] when the ledgers do not have what the backup says; those of the log
    /// and of the store.
    pub async fn copy(
        &self,
        ctx: &Arc<LogContext>,
        options: LogOptions,
        ledgers: &[RestoredLedger],
        limit: Duration,
    ) -> Result<bool, LogError> {
        let cell = Arc::clone(self.cell());
        let log = TopicLog::open(Arc::clone(ctx), cell, LogKind::Messages, options).await?;
        let copied = copy_all(ctx, &log, ledgers, limit).await;
        let closed = log.close().await;
        let is_done = copied?;
        closed.map(|()| is_done)
    }

    /// Where the entries of these ledgers are, once all of them are copied.
    ///
    /// # Errors
    /// When metadata cannot be read.
    pub async fn copied_entries(
        &self,
        ledgers: &[RestoredLedger],
    ) -> Result<CopiedEntries, LogError> {
        let (_, copies) = self.cell().all_segments().await?;
        let from = numbered(ledgers.iter().map(|ledger| &ledger.segment));
        let by_ledger = from.map(|(first, segment)| (segment.ledger_id, (first, segment.entries)));
        let to = numbered(copies.iter());
        Ok(CopiedEntries {
            from: by_ledger.collect(),
            to: to
                .map(|(first, segment)| (first, (segment.ledger_id, segment.entries)))
                .collect(),
        })
    }
}

/// Segments that hold anything, oldest first, each with the number of entries before it.
fn numbered<'a>(
    segments: impl Iterator<Item = &'a v1::SegmentRecord>,
) -> impl Iterator<Item = (u64, &'a v1::SegmentRecord)> {
    let number = |next: &mut u64, segment: &'a v1::SegmentRecord| {
        let first = *next;
        *next = next.saturating_add(segment.entries);
        Some((first, segment))
    };
    segments
        .filter(|segment| segment.entries > 0)
        .scan(0, number)
}

/// Where the entries of a topic of a backup are in its copy, which has the same ones in the same
/// order.
#[derive(Debug)]
pub struct CopiedEntries {
    /// By ledger of the backup: how many entries are before it, and in it.
    from: BTreeMap<u64, (u64, u64)>,
    /// By how many entries are before it: a ledger of the copy, and how many are in it.
    to: BTreeMap<u64, (u64, u64)>,
}

impl CopiedEntries {
    /// Where an entry is; `None` when it was not copied.
    #[must_use]
    pub fn place(&self, ledger: LedgerId, entry: EntryId) -> Option<(LedgerId, EntryId)> {
        let (before, entries) = self.from.get(&ledger.0)?;
        if entry.0 >= *entries {
            return None;
        }
        let number = before.checked_add(entry.0)?;
        let (first, (copy, entries)) = self.to.range(..=number).next_back()?;
        let entry = number - first;
        (entry < *entries).then_some((LedgerId(*copy), EntryId(entry)))
    }
}

async fn copy_all(
    ctx: &LogContext,
    log: &TopicLog,
    ledgers: &[RestoredLedger],
    limit: Duration,
) -> Result<bool, LogError> {
    let until = ctx.ledgers.clock.monotonic().saturating_add(limit);
    for ledger in ledgers {
        let (info, entries) = (&ledger.info, ledger.segment.entries);
        let end = Index(ledger.segment.end_index);
        if log.end() >= end {
            continue;
        }
        let among = narrowed(ctx, info, entries, Before::Index(log.end())).await;
        let mut next = EntryId(among.start);
        while log.end() < end {
            if ctx.ledgers.clock.monotonic() >= until {
                return Ok(false);
            }
            if next.0 >= entries {
                let what = format!("ledger {} of the backup ends before index {end}", info.id);
                return Err(LogError::Damaged(what));
            }
            let wanted = Wanted {
                first: next,
                last: EntryId(entries - 1),
                bytes_max: READ_BYTES,
                entries_max: READ_ENTRIES,
                prefix_bytes: None,
            };
            let stored = read_stored(ctx, info, wanted).await?;
            let taken = write(log, info, &stored).await?;
            if taken == 0 {
                clock::sleep(ROOM_PAUSE).await;
            }
            next = EntryId(next.0 + taken as u64);
        }
    }
    Ok(true)
}

/// Writes entries again that follow the end of a log, and waits for them; those before its end are
/// passed over. Answers how many are behind it now: fewer than all when the process has no room.
async fn write(
    log: &TopicLog,
    info: &LedgerInfo,
    stored: &[StoredEntry],
) -> Result<usize, LogError> {
    let (tell, mut outcomes) = mpsc::channel(stored.len().max(1));
    let sink: Arc<dyn AppendSink> = Arc::new(Outcomes(tell));
    let (mut next, mut taken, mut sent) = (log.end(), 0, 0_usize);
    for entry in stored {
        let (head, body) = split(info, entry)?;
        let end = head.end_index();
        if end <= next {
            taken += 1;
            continue;
        }
        if head.base_index != next {
            return Err(LogError::Damaged(format!(
                "entry {} of ledger {} of the backup begins at index {}, and {next} is due",
                entry.entry, info.id, head.base_index
            )));
        }
        let time_ms = head.broker_time_ms;
        let append = Append {
            format: head.format,
            message_count: head.message_count,
            flags: head.flags,
            extensions: head.extensions,
            body,
            tag: 0,
            trace: None,
        };
        match log.append_at(append, time_ms, &sink) {
            Ok(_) => {}
            Err(LogError::Overloaded) => break,
            Err(error) => return Err(error),
        }
        next = end;
        taken += 1;
        sent += 1;
    }
    for _ in 0..sent {
        let gone = || LogError::Unavailable("the process is shutting down".to_owned());
        outcomes.recv().await.unwrap_or_else(|| Err(gone()))?;
    }
    Ok(taken)
}
