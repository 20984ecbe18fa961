//! Reads: of one key, and of pages that all show the same state.

use std::collections::VecDeque;
use std::time::Duration;

use redb::{Database, ReadTransaction, ReadableDatabase};

use crate::embedded::file::from_redb;
use crate::embedded::rows;
use crate::embedded::shared::Shared;
use crate::error::{MetadataError, MetadataResult};
use crate::store::{PageToken, Revision, ScanPage, Versioned};

/// Snapshots kept for scans that have more pages to come. Each keeps its old pages in the file.
const SNAPSHOTS_MAX: usize = 8;
/// How long a state is kept for a scan that has asked for its first page only. Most of those scans
/// wanted no more than that page.
const FIRST_PAGE_IDLE_MAX: Duration = Duration::from_secs(5);
/// How long a state is kept at most, however often it is read.
const SNAPSHOT_AGE_MAX: Duration = Duration::from_secs(120);
/// A page ends when it has this many bytes, in keys and values.
const PAGE_BYTES_MAX: usize = 1 << 20;

/// The states that paged scans still read from. None is kept without limit: the file cannot reuse
/// the pages that changed since the oldest of them.
#[derive(Debug)]
pub(super) struct Snapshots {
    /// The least recently used first.
    kept: VecDeque<Snapshot>,
    idle_max: Duration,
}

struct Snapshot {
    revision: Revision,
    transaction: ReadTransaction,
    opened: Duration,
    used: Duration,
    /// A scan has asked for a page behind its first.
    is_resumed: bool,
}

impl Snapshot {
    fn is_kept(&self, now: Duration, idle_max: Duration) -> bool {
        let idle_max = match self.is_resumed {
            true => idle_max,
            false => idle_max.min(FIRST_PAGE_IDLE_MAX),
        };
        now.saturating_sub(self.used) < idle_max
            && now.saturating_sub(self.opened) < SNAPSHOT_AGE_MAX
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.revision.fmt(f)
    }
}

impl Snapshots {
    pub(super) fn new(idle_max: Duration) -> Snapshots {
        Snapshots {
            kept: VecDeque::new(),
            idle_max,
        }
    }

    pub(super) fn clear(&mut self) {
        self.kept.clear();
    }

    /// Forgets the states that no scan has asked for lately.
    pub(super) fn expire(&mut self, now: Duration) {
        let idle_max = self.idle_max;
        self.kept.retain(|snapshot| snapshot.is_kept(now, idle_max));
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    /// Takes a state that is not too old, whether the old ones were swept yet or not.
    fn take(&mut self, revision: Revision, now: Duration) -> Option<Snapshot> {
        self.expire(now);
        let at = self
            .kept
            .iter()
            .position(|snapshot| snapshot.revision == revision)?;
        self.kept.remove(at)
    }

    fn keep(&mut self, mut snapshot: Snapshot) {
        // Two scans that began at one revision share its snapshot.
        let same = |kept: &Snapshot| kept.revision == snapshot.revision;
        if let Some(at) = self.kept.iter().position(same)
            && let Some(kept) = self.kept.remove(at)
        {
            snapshot.opened = snapshot.opened.min(kept.opened);
            snapshot.is_resumed |= kept.is_resumed;
        }
        if self.kept.len() >= SNAPSHOTS_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(snapshot);
    }
}

/// Reads one key.
pub(super) fn get(shared: &Shared, key: &str) -> MetadataResult<Option<Versioned>> {
    let database = shared.database.read();
    let transaction = begin(database.as_ref())?;
    rows::get(&transaction, key).map_err(from_redb)?
}

/// Reads one page of a scan.
pub(super) fn scan(
    shared: &Shared,
    prefix: &str,
    page: Option<PageToken>,
    limit: usize,
) -> MetadataResult<ScanPage> {
    // The guard is held to the end: a file that is being opened again must have no readers.
    let database = shared.database.read();
    let now = shared.clock.monotonic();
    let snapshot = match &page {
        None => newest(database.as_ref(), now)?,
        Some(page) => resume(shared, database.as_ref(), page.revision, now)?,
    };
    let after = page.as_ref().map(|page| page.after.as_str());
    let read = rows::range(&snapshot.transaction, prefix, after, limit, PAGE_BYTES_MAX);
    let (items, more) = read.map_err(from_redb)??;
    let revision = snapshot.revision;
    let next = items.last().filter(|_| more).map(|last| PageToken {
        after: last.key.clone(),
        revision,
    });
    // After the last page too: another scan of this revision may have pages to come.
    if next.is_some() || page.is_some() {
        shared.snapshots.lock().keep(snapshot);
    }
    Ok(ScanPage {
        items,
        next,
        revision,
    })
}

fn begin(database: Option<&Database>) -> MetadataResult<ReadTransaction> {
    let database = database
        .ok_or_else(|| MetadataError::Unavailable("the store's file is not open".to_owned()))?;
    database
        .begin_read()
        .map_err(|error| from_redb(error.into()))
}

fn newest(database: Option<&Database>, now: Duration) -> MetadataResult<Snapshot> {
    let transaction = begin(database)?;
    let revision = rows::revision_of(&transaction).map_err(from_redb)?;
    Ok(Snapshot {
        revision,
        transaction,
        opened: now,
        used: now,
        is_resumed: false,
    })
}

fn resume(
    shared: &Shared,
    database: Option<&Database>,
    revision: Revision,
    now: Duration,
) -> MetadataResult<Snapshot> {
    if let Some(mut snapshot) = shared.snapshots.lock().take(revision, now) {
        snapshot.used = now;
        snapshot.is_resumed = true;
        return Ok(snapshot);
    }
    // Nothing has changed since, or the page before came from an earlier life of the store.
    let mut snapshot = newest(database, now)?;
    if snapshot.revision == revision {
        snapshot.is_resumed = true;
        return Ok(snapshot);
    }
    Err(MetadataError::Unavailable(format!(
        "the scan's revision {} is no longer available: restart it",
        revision.0
    )))
}
