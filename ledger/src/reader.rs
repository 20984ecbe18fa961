//! Reads of entries: every reply is checked, and the next replica is asked until one is good, or
//! beside one that takes longer than it usually does.
//!
//! It reads what its caller knows to be confirmed; it never finds out where a ledger ends.

mod latency;
mod newest;

use std::time::Duration;

use aquifer_model::id::{BookieId, EntryId};
use aquifer_model::storage::{BookieError, BookieResult, ReadBatch, ReadRange, StoredEntry};
use aquifer_runtime::clock;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

pub(crate) use latency::ReadLatencies;
pub use newest::newest_whole;

use crate::context::LedgerContext;
use crate::error::{LedgerError, lacks_entry};
use crate::ledger_metadata::LedgerInfo;

/// What to read.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// The first entry wanted.
    pub first: EntryId,
    /// Last entry wanted; must be confirmed.
    pub last: EntryId,
    /// Most bytes, beyond the first entry.
    pub bytes_max: usize,
    /// Most entries, at least 1.
    pub entries_max: usize,
    /// Only this many bytes of each entry, from its beginning.
    pub prefix_bytes: Option<usize>,
}

impl Wanted {
    /// One whole entry.
    #[must_use]
    pub fn one(entry: EntryId) -> Wanted {
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
///
/// # Errors
/// [`LedgerError::Offload`] when bookies owe nothing of the ledger: none is asked.
pub async fn read_range(
    ctx: &LedgerContext,
    info: &LedgerInfo,
    wanted: Wanted,
) -> Result<Vec<StoredEntry>, LedgerError> {
    let Some((members, fragment_last)) = info.duties().at(wanted.first) else {
        return Err(info.not_at_bookies());
    };
    let last = fragment_last.map_or(wanted.last, |end| wanted.last.min(end));
    let range = ReadRange {
        ledger: info.id,
        token: Some(info.token),
        first: wanted.first,
        last,
        bytes_max: wanted.bytes_max,
        entries_max: wanted.entries_max.max(1),
        prefix_bytes: wanted.prefix_bytes,
    };
    let mut replicas = replicas_of(ctx, info, members, wanted.first).into_iter();
    let mut worst = BookieError::NoSuchEntry;
    let mut asked = FuturesUnordered::new();
    let mut hedge = Duration::ZERO;
    loop {
        if asked.is_empty() {
            let Some(bookie) = replicas.next() else {
                return Err(LedgerError::Unreadable {
                    ledger: info.id.0,
                    entry: wanted.first.0,
                    last: worst,
                });
            };
            hedge = ctx.shared.read_latencies.usual_max(bookie);
            asked.push(ask(ctx, bookie, range));
        }
        let is_last = replicas.len() == 0;
        let answer = tokio::select! {
            biased;
            answer = asked.next() => answer,
            () = clock::sleep(hedge), if !is_last => None,
        };
        match answer {
            Some((_, Ok(entries))) => return Ok(entries),
            Some((bookie, Err(error))) => {
                tracing::debug!(%bookie, ledger = info.id.0, entry = wanted.first.0, %error, "replica did not serve a read");
                worst = worse(worst, error);
            }
            // It takes longer than it usually does: another is asked too, and the first wins.
            None => {
                if let Some(bookie) = replicas.next() {
                    ctx.metrics.hedged_reads.add(1, &[]);
                    hedge = ctx.shared.read_latencies.usual_max(bookie);
                    asked.push(ask(ctx, bookie, range));
                }
            }
        }
    }
}

/// The bookies that have an entry, in the order in which they are asked. Ledgers begin at different
/// positions, so that all replicas serve reads; one ledger is read from the same, so that its reads
/// are sequential there. A bookie that failed lately comes last.
fn replicas_of(
    ctx: &LedgerContext,
    info: &LedgerInfo,
    members: &[BookieId],
    entry: EntryId,
) -> Vec<BookieId> {
    let mut positions: Vec<usize> = info.quorum.write_set(entry.0).collect();
    let ensemble = info.quorum.ensemble();
    let first = usize::try_from(info.id.0 % ensemble as u64).unwrap_or(0);
    positions.sort_by_key(|position| (position + ensemble - first) % ensemble);
    let mut bookies: Vec<BookieId> = positions.into_iter().map(|p| members[p]).collect();
    if bookies.len() > 1 {
        bookies.sort_by_key(|bookie| ctx.bookies.is_quarantined(*bookie));
    }
    bookies
}

/// The answer that says more about whether the entry may still be read somewhere.
fn worse(a: BookieError, b: BookieError) -> BookieError {
    // A tombstone explains why others have nothing.
    let explains = a == BookieError::Deleted && hope(&b) == Hope::Gone;
    if explains || hope(&b) < hope(&a) {
        a
    } else {
        b
    }
}

/// What an answer leaves to hope for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Hope {
    /// That replica has not the entry as it was written, and will not by itself.
    Gone,
    /// It may have lost it.
    Limbo,
    /// It may have it, and did not answer: to be asked again, whatever the others say.
    MayHaveIt,
}

fn hope(error: &BookieError) -> Hope {
    match error {
        BookieError::Limbo => Hope::Limbo,
        error if lacks_entry(error) => Hope::Gone,
        _ => Hope::MayHaveIt,
    }
}

async fn ask(
    ctx: &LedgerContext,
    bookie: BookieId,
    range: ReadRange,
) -> (BookieId, BookieResult<Vec<StoredEntry>>) {
    let started = ctx.clock.monotonic();
    let read = ctx.transport.read(bookie, range);
    let batch = clock::timeout(ctx.settings.request_timeout, read)
        .await
        .unwrap_or(Err(BookieError::Timeout));
    let took = ctx.clock.monotonic().saturating_sub(started);
    let entries = batch.and_then(|batch| {
        let is_checked = ctx.transport.checks_reads();
        check(batch, range, is_checked).inspect_err(|_| ctx.metrics.digest_failures.add(1, &[]))
    });
    if let Ok(entries) = &entries {
        ctx.shared.read_latencies.took(bookie, took);
        let bytes: usize = entries.iter().map(|entry| entry.data.len()).sum();
        ctx.metrics.read_entries.add(entries.len() as u64, &[]);
        ctx.metrics.read_bytes.add(bytes as u64, &[]);
    }
    (bookie, entries)
}

/// The good entries at the beginning of a reply; an error if no entry is good.
fn check(batch: ReadBatch, range: ReadRange, is_checked: bool) -> BookieResult<Vec<StoredEntry>> {
    // A prefix has no digest of its own.
    let is_checked = is_checked || range.prefix_bytes.is_some();
    let mut entries = batch.entries;
    let good = entries
        .iter()
        .zip(range.first.0..=range.last.0)
        .take_while(|(entry, id)| {
            entry.entry.0 == *id && (is_checked || entry.is_intact(range.ledger))
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
