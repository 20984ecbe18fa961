//! Reads: of one key, and of pages that all show the same state.

use std::collections::VecDeque;
use std::time::Duration;

use redb::{Database, ReadTransaction, ReadableDatabase};

use super::Shared;
use super::file::from_redb;
use super::rows;
use crate::error::{MetadataError, MetadataResult};
use crate::store::{PageToken, Revision, ScanPage, Versioned};

/// Snapshots kept for scans that have more pages to come. Each keeps its old pages in the file.
const SNAPSHOTS_MAX: usize = 8;
/// A page ends after so many bytes, in keys and values.
const PAGE_BYTES_MAX: usize = 1 << 20;

/// The states that paged scans still read from.
#[derive(Debug)]
pub(super) struct Snapshots {
    /// The least recently used first.
    kept: VecDeque<Snapshot>,
    idle_max: Duration,
}

struct Snapshot {
    revision: Revision,
    transaction: ReadTransaction,
    used: Duration,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.revision.fmt(f)
    }
}

impl Snapshots {
    pub(super) fn new(idle_max: Duration) -> Self {
        Self {
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
        self.kept
            .retain(|snapshot| now.saturating_sub(snapshot.used) < idle_max);
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

    fn keep(&mut self, snapshot: Snapshot) {
        // Two scans that began at one revision share its snapshot.
        self.kept.retain(|kept| kept.revision != snapshot.revision);
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
        used: now,
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
        return Ok(snapshot);
    }
    // Nothing has changed since, or the page before came from an earlier life of the store.
    let snapshot = newest(database, now)?;
    if snapshot.revision == revision {
        return Ok(snapshot);
    }
    Err(MetadataError::Unavailable(format!(
        "the scan's revision {} is no longer available: restart it",
        revision.0
    )))
}
