//! Reads of entries: every reply is checked, and the next replica is asked until one is good.
//!
//! It reads what its caller knows to be confirmed; it never finds out where a ledger ends.

use aquifer_model::id::{BookieId, EntryId};
use aquifer_model::storage::{BookieError, BookieResult, ReadBatch, ReadRange, StoredEntry};
use aquifer_runtime::clock;

use crate::context::LogContext;
use crate::error::LedgerError;
use crate::ledger_metadata::LedgerInfo;

/// What to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) first: EntryId,
    /// Last entry wanted; must be confirmed.
    pub(crate) last: EntryId,
    pub(crate) bytes_max: usize,
    pub(crate) entries_max: usize,
    pub(crate) prefix_bytes: Option<usize>,
}

impl Wanted {
    /// One whole entry.
    pub(crate) fn one(entry: EntryId) -> Wanted {
        Wanted {
            first: entry,
            last: entry,
            bytes_max: 0,
            entries_max: 1,
            prefix_bytes: None,
        }
    }
}

/// Reads consecutive entries from `wanted.first` on, at least one, none from beyond the fragment.
pub(crate) async fn read_range(
    ctx: &LogContext,
    info: &LedgerInfo,
    wanted: Wanted,
) -> Result<Vec<StoredEntry>, LedgerError> {
    let (members, fragment_last) = info.fragment_of(wanted.first);
    let last = fragment_last.map_or(wanted.last, |end| wanted.last.min(end));
    let range = ReadRange {
        ledger: info.id,
        first: wanted.first,
        last,
        bytes_max: wanted.bytes_max,
        entries_max: wanted.entries_max.max(1),
        prefix_bytes: wanted.prefix_bytes,
    };
    let mut worst = BookieError::NoSuchEntry;
    for position in info.quorum.write_set(wanted.first.0) {
        let bookie = members[position];
        match ask(ctx, bookie, range).await {
            Ok(entries) => return Ok(entries),
            Err(error) => {
                tracing::debug!(%bookie, ledger = info.id.0, entry = wanted.first.0, %error, "replica did not serve a read");
                worst = worse(worst, error);
            }
        }
    }
    Err(LedgerError::Unreadable {
        ledger: info.id.0,
        entry: wanted.first.0,
        last: worst,
    })
}

/// The answer that says more about whether the entry may still exist somewhere.
fn worse(a: BookieError, b: BookieError) -> BookieError {
    let definite = |error: &BookieError| {
        matches!(
            error,
            BookieError::NoSuchEntry | BookieError::NoSuchLedger | BookieError::Deleted
        )
    };
    if definite(&b) && !definite(&a) { a } else { b }
}

async fn ask(
    ctx: &LogContext,
    bookie: BookieId,
    range: ReadRange,
) -> BookieResult<Vec<StoredEntry>> {
    let read = ctx.transport.read(bookie, range);
    let batch = clock::timeout(ctx.settings.request_timeout, read)
        .await
        .unwrap_or(Err(BookieError::Timeout))?;
    let entries = check(batch, range).inspect_err(|_| ctx.metrics.digest_failures.add(1, &[]))?;
    let bytes: usize = entries.iter().map(|entry| entry.data.len()).sum();
    ctx.metrics.read_entries.add(entries.len() as u64, &[]);
    ctx.metrics.read_bytes.add(bytes as u64, &[]);
    Ok(entries)
}

/// The good entries at the beginning of a reply; an error if there is none.
fn check(batch: ReadBatch, range: ReadRange) -> BookieResult<Vec<StoredEntry>> {
    let mut entries = batch.entries;
    let good = entries
        .iter()
        .zip(range.first.0..=range.last.0)
        .take_while(|(entry, id)| {
            entry.entry.0 == *id && (range.prefix_bytes.is_some() || entry.is_intact(range.ledger))
        })
        .count();
    if good == 0 {
        let what = if entries.is_empty() {
            "the reply is empty"
        } else {
            "the first entry is not what was stored"
        };
        return Err(BookieError::Digest(what.to_owned()));
    }
    entries.truncate(good);
    Ok(entries)
}
