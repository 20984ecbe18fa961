//! Backups of topics, and what brings them back: records, never the bytes of messages.
//!
//! A capture of a topic names the objects of its ledgers. These stay as long as the backup has a
//! record in metadata (`aquifer_ledger::holds`). A topic that is restored gets records of ledgers
//! that name the same objects: in a place of another cluster these are only read.

mod capture;
mod copy;
mod cursors;
mod source;

use std::collections::BTreeSet;
use std::sync::Arc;

use aquifer_cold::backup::{PartWriter, read_part};
use aquifer_cold::store::ColdStore;
use aquifer_ledger::holds::{self, Hold};
use aquifer_model::backup::{BackupBegun, BackupFile, BackupRevisions, BackupScope, ForgetBackup};
use aquifer_model::id::{BackupId, LedgerId};
use aquifer_proto::v1::backup_item::Item;

use crate::context::LogContext;
use crate::error::LogError;
use crate::offload::tier::ColdTier;
use crate::offload::upload::of_store;

pub use self::capture::CapturedLedgers;
pub use self::copy::CopiedEntries;
pub use self::source::{BackedUpTopic, read_topic};

/// Files that are read for one request: each has thousands of tokens and grants.
const FILES_MAX: usize = 256;
/// Bytes of these files together: more than the tokens and grants of any cluster take.
const FILES_BYTES_MAX: u64 = 256 << 20;

pub(crate) fn tier(ctx: &LogContext) -> Result<&Arc<ColdTier>, LogError> {
    ctx.cold.as_ref().ok_or_else(|| {
        LogError::Invalid("this broker has no object stores: restart it with them".to_owned())
    })
}

/// Checks that a place is the one where the objects of this cluster go, and answers the name of the
/// cluster: backups are beside them.
async fn check_place(ctx: &LogContext, url: &str) -> Result<String, LogError> {
    let tier = tier(ctx)?;
    let location = tier.locations.primary().await.map_err(of_store)?;
    if url.trim_end_matches('/') != location.url.trim_end_matches('/') {
        return Err(LogError::Invalid(format!(
            "backups of this cluster are beside its objects, in {}: give that URL",
            location.url
        )));
    }
    location.check().await.map_err(of_store)?;
    Ok(tier.locations.cluster().to_owned())
}

/// Begins a backup into the place where the cluster's objects go: what dies from now on is kept.
///
/// # Errors
/// [`LogError::Invalid`] for another place; those of the store and of metadata.
pub async fn begin(
    ctx: &LogContext,
    url: &str,
    scope: BackupScope,
) -> Result<BackupBegun, LogError> {
    let cluster = check_place(ctx, url).await?;
    let now_ms = ctx.ledgers.clock.wall_ms();
    let mut id = ctx.ledgers.rng.id16();
    // Ids sort by time.
    id[..6].copy_from_slice(&now_ms.to_be_bytes()[2..]);
    let id = BackupId(id);
    let store = &*ctx.ledgers.store;
    let revision = holds::begin(store, id, url, scope, now_ms).await?;
    Ok(BackupBegun {
        id,
        cluster,
        start_revision: revision.0,
        lists: Vec::new(),
    })
}

fn given_up(id: BackupId) -> LogError {
    LogError::Invalid(format!(
        "backup {id} is not running: it was ended, or took too long; make another"
    ))
}

/// Checks that a backup runs, so that what it is told stays.
///
/// # Errors
/// [`LogError::Invalid`] when it does not; when metadata cannot be read.
pub async fn check_running(ctx: &LogContext, id: BackupId) -> Result<(), LogError> {
    match holds::load(&*ctx.ledgers.store, id).await? {
        Some(hold) if !hold.is_finished() => Ok(()),
        Some(_) | None => Err(given_up(id)),
    }
}

/// Ends a backup, whose root is written next.
///
/// # Errors
/// [`LogError::Invalid`] when it was given up; when metadata cannot be changed.
pub async fn finish(ctx: &LogContext, id: BackupId) -> Result<BackupRevisions, LogError> {
    let finished = holds::finish(&*ctx.ledgers.store, id).await?;
    finished.ok_or_else(|| given_up(id))
}

/// Forgets a backup whose root is gone, so that what it kept may go. Answers the name of the
/// cluster.
///
/// # Errors
/// [`LogError::Invalid`] when it is running, or for another place; when metadata cannot be changed.
pub async fn forget(ctx: &LogContext, wanted: &ForgetBackup) -> Result<String, LogError> {
    let cluster = check_place(ctx, &wanted.url).await?;
    let Some(id) = wanted.backup else {
        return Ok(cluster);
    };
    let may_go = |hold: &Hold| hold.is_finished() || wanted.unfinished;
    match holds::forget(&*ctx.ledgers.store, id, may_go).await? {
        true => {
            if let Some(tier) = &ctx.cold {
                tier.left.notify_one();
            }
            Ok(cluster)
        }
        false => Err(LogError::Invalid(format!("backup {id} is running"))),
    }
}

/// Whether a backup of this cluster keeps what it names.
///
/// # Errors
/// When metadata cannot be read.
pub async fn is_kept(ctx: &LogContext, id: BackupId) -> Result<bool, LogError> {
    Ok(holds::load(&*ctx.ledgers.store, id).await?.is_some())
}

/// Writes files of a backup of this cluster.
///
/// # Errors
/// Those of the store.
pub async fn write(
    ctx: &LogContext,
    id: BackupId,
    items: Vec<Item>,
) -> Result<Vec<BackupFile>, LogError> {
    let locations = &tier(ctx)?.locations;
    let location = locations.primary().await.map_err(of_store)?;
    location.check().await.map_err(of_store)?;
    let (store, rng) = (Arc::clone(&location.store), Arc::clone(&ctx.ledgers.rng));
    let mut parts = PartWriter::new(store, locations.cluster(), id, rng);
    for item in items {
        parts.add(item).await.map_err(of_store)?;
    }
    parts.finish().await.map_err(of_store)
}

/// Files of a backup, of this cluster or of another, which are read one by one.
pub struct BackupFiles {
    store: Arc<dyn ColdStore>,
    cluster: String,
    id: BackupId,
    files: std::vec::IntoIter<BackupFile>,
}

impl BackupFiles {
    /// Opens the place; reads no file yet.
    ///
    /// # Errors
    /// [`LogError::Invalid`] when these are too many or too long, or one is named twice; those of
    /// the store.
    pub async fn open(
        ctx: &LogContext,
        (url, cluster): (&str, &str),
        id: BackupId,
        files: Vec<BackupFile>,
    ) -> Result<BackupFiles, LogError> {
        check_files(&files)?;
        let visited = tier(ctx)?.locations.visit(url, cluster).await;
        let (_, store) = visited.map_err(of_store)?;
        Ok(BackupFiles {
            store,
            cluster: cluster.to_owned(),
            id,
            files: files.into_iter(),
        })
    }

    /// What the next file has; `None` behind the last.
    ///
    /// # Errors
    /// [`LogError::Damaged`] when it is not what was written; those of the store.
    pub async fn next(&mut self) -> Result<Option<Vec<Item>>, LogError> {
        let Some(file) = self.files.next() else {
            return Ok(None);
        };
        let read = read_part(&*self.store, &self.cluster, self.id, &file).await;
        read.map(Some).map_err(of_store)
    }
}

/// Checks that these files may be read for one request.
fn check_files(files: &[BackupFile]) -> Result<(), LogError> {
    let count = files.len();
    if count > FILES_MAX {
        return Err(LogError::Invalid(format!(
            "{count} files of a backup were named, and up to {FILES_MAX} can be"
        )));
    }
    let bytes = files
        .iter()
        .fold(0_u64, |sum, file| sum.saturating_add(file.bytes));
    if bytes > FILES_BYTES_MAX {
        return Err(LogError::Invalid(format!(
            "the files that were named have {bytes} bytes, and up to {FILES_BYTES_MAX} are read"
        )));
    }
    let mut names = BTreeSet::new();
    for file in files {
        if !names.insert(file.name.as_str()) {
            let name = &file.name;
            return Err(LogError::Invalid(format!("file {name} is named twice")));
        }
    }
    Ok(())
}

/// Lets no ledger that is created from now on have an id that is to be restored.
///
/// # Errors
/// When metadata cannot be changed.
pub async fn reserve_up_to(ctx: &LogContext, last: LedgerId) -> Result<(), LogError> {
    let ledgers = &ctx.ledgers;
    Ok(ledgers
        .shared
        .ledger_ids
        .reserve_up_to(&*ledgers.store, last)
        .await?)
}
