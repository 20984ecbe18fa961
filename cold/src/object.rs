//! Reading objects through their store, by their index and as a whole.

use std::ops::Range;

use aquifer_model::id::{AttemptId, LedgerId};
use bytes::Bytes;
use futures::stream::{self, StreamExt};

use crate::error::{ColdError, ColdResult};
use crate::format::block::Block;
use crate::format::check::Checker;
use crate::format::tail::{IndexRow, Tail};
use crate::format::{Expected, FormatError, HEADER_BYTES, TRAILER_BYTES};
use crate::store::ColdStore;

/// Last bytes that are read of an object whose index may be anywhere: mostly all that is wanted.
const TAIL_BYTES: u64 = 64 << 10;
/// Bytes of one read of a check.
const RUN_BYTES: u64 = 8 << 20;
/// Reads of a check that are in flight while what came before is checked.
const RUNS_AT_ONCE: usize = 2;
/// Blocks that are checked before other tasks have a turn.
const CHECKED_AT_ONCE: usize = 4;
/// What the names of objects end in.
pub const SUFFIX: &str = ".aqo";

/// The name of the object of an attempt at a ledger. Entropy comes before what rises, so that
/// stores which divide names by their beginnings spread the load.
#[must_use]
pub fn name_of(cluster: &str, home: &str, ledger: LedgerId, attempt: AttemptId) -> String {
    let spread = attempt.0[15];
    format!("{cluster}/data/{home}/{spread:02x}/{ledger:016}-{attempt}{SUFFIX}")
}

/// What the name of an object says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameParts {
    /// The attempt that wrote it.
    pub attempt: AttemptId,
    /// The ledger that it was for.
    pub ledger: LedgerId,
    /// The metadata partition of that.
    pub home: String,
}

impl NameParts {
    /// When the attempt began, by the clock of its process, in milliseconds since 1970.
    #[must_use]
    pub fn began_ms(&self) -> u64 {
        let [a, b, c, d, e, f, ..] = self.attempt.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }
}

/// Reads a name that [`name_of`] has made; `None` for any other.
#[must_use]
pub fn parse_name(cluster: &str, name: &str) -> Option<NameParts> {
    let rest = name.strip_prefix(cluster)?.strip_prefix("/data/")?;
    let mut parts = rest.strip_suffix(SUFFIX)?.rsplitn(3, '/');
    let (file, _, home) = (parts.next()?, parts.next()?, parts.next()?);
    let (ledger, attempt) = file.split_once('-')?;
    let found = NameParts {
        attempt: attempt.parse().ok()?,
        ledger: LedgerId(ledger.parse().ok()?),
        home: home.to_owned(),
    };
    let same = name_of(cluster, &found.home, found.ledger, found.attempt);
    (same == name).then_some(found)
}

/// Reads the end of an object of a length; where the index begins may be known.
///
/// # Errors
/// Those of the store; `Damaged` when it is not the end of an object.
pub async fn read_tail(
    store: &dyn ColdStore,
    name: &str,
    size: u64,
    index_offset: Option<u64>,
) -> ColdResult<(Tail, Bytes)> {
    let damaged = |error: FormatError| ColdError::damaged(name, &error);
    let least = (HEADER_BYTES + TRAILER_BYTES) as u64;
    if size < least {
        return Err(damaged(FormatError::Short {
            what: "an object",
            needed: least,
            available: size,
        }));
    }
    let guess = index_offset.unwrap_or(size.saturating_sub(TAIL_BYTES));
    let first = guess.min(size - TRAILER_BYTES as u64);
    let last = store.get(name, first..size).await?;
    let begin = Tail::begins_at(&last, size).map_err(damaged)?;
    let bytes = match begin.checked_sub(first) {
        // In range: what was read reaches to the end.
        Some(before) => last.slice(usize::try_from(before).unwrap_or(last.len())..),
        None => {
            let front = store.get(name, begin..first).await?;
            [front, last].concat().into()
        }
    };
    let tail = Tail::parse(&bytes, size).map_err(damaged)?;
    Ok((tail, bytes))
}

/// Reads every byte of an object back and checks it; shows each block to `visit`. With what a
/// ledger is to be, also whether it is that.
///
/// # Errors
/// Those of the store; `Damaged` when anything is not as it was written.
pub async fn verify(
    store: &dyn ColdStore,
    name: &str,
    size: u64,
    expected: Option<&Expected>,
    mut visit: impl FnMut(&Tail, &Block) + Send,
) -> ColdResult<Tail> {
    let damaged = |error: FormatError| ColdError::damaged(name, &error);
    let (tail, tail_bytes) = read_tail(store, name, size, None).await?;
    if let Some(expected) = expected {
        tail.check_expected(expected).map_err(damaged)?;
    }
    let header = store.get(name, 0..HEADER_BYTES as u64).await?;
    let mut check = Checker::new(&tail, &header).map_err(damaged)?;
    let runs = runs_of(&tail.blocks);
    // What comes next is being read while a run is checked.
    let mut reads = stream::iter(runs)
        .map(|run| async move {
            let (blocks, bytes) = run;
            let first = bytes.start;
            Ok::<_, ColdError>((blocks, first, store.get(name, bytes).await?))
        })
        .buffered(RUNS_AT_ONCE);
    while let Some(read) = reads.next().await {
        let (blocks, first, bytes) = read?;
        for (at, row) in tail.blocks[blocks].iter().enumerate() {
            if at > 0 && at.is_multiple_of(CHECKED_AT_ONCE) {
                tokio::task::yield_now().await;
            }
            let part = part_of(&bytes, row.offset - first, row.end() - first);
            let block = check.block(&part).map_err(damaged)?;
            visit(&tail, &block);
        }
    }
    check.end(&tail_bytes).map_err(damaged)?;
    Ok(tail)
}

/// Blocks in runs that are read with one request each: which, and the bytes of the object.
fn runs_of(blocks: &[IndexRow]) -> Vec<(Range<usize>, Range<u64>)> {
    let (mut runs, mut at) = (Vec::new(), 0);
    while let Some(first) = blocks.get(at) {
        let rest = &blocks[at..];
        let within = rest.partition_point(|row| row.end() - first.offset <= RUN_BYTES);
        let run = &rest[..within.max(1)];
        let end = run.last().map_or(first.end(), IndexRow::end);
        runs.push((at..at + run.len(), first.offset..end));
        at += run.len();
    }
    runs
}

/// A part of bytes that were read for it.
pub(crate) fn part_of(bytes: &Bytes, from: u64, to: u64) -> Bytes {
    let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
    bytes.slice(place(from)..place(to))
}
