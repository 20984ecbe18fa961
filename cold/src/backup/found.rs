//! The backups in a place: which there are, and deleting them.

use std::collections::{BTreeMap, BTreeSet};

use aquifer_model::id::BackupId;

use crate::backup::{ROOT, damaged, name_of};
use crate::error::ColdResult;
use crate::listing;
use crate::store::{ColdStore, Listed};

/// Backups that one place may show.
const BACKUPS_MAX: usize = 100_000;

/// A directory of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The cluster.
    pub cluster: String,
    /// The backup.
    pub id: BackupId,
    /// Whether it has a root. Else it is not finished, or is being deleted.
    pub has_root: bool,
    /// The names of its files.
    pub files: Vec<String>,
}

/// The clusters that have something in a place.
///
/// # Errors
/// Those of the store.
pub async fn clusters(store: &dyn ColdStore) -> ColdResult<Vec<String>> {
    let mut found = BTreeSet::new();
    let mut after: Option<String> = None;
    // No `listing::each`, which shows every object of every cluster: this jumps from one folder to
    // the next, so that it reads one object of each cluster.
    loop {
        let page = store.list("", after.as_deref(), 1).await?;
        let Some(first) = page.first() else {
            return Ok(found.into_iter().collect());
        };
        let cluster = first.name.split('/').next().unwrap_or_default();
        // `0` follows `/`: what comes behind everything below the cluster.
        after = Some(match first.name.contains('/') {
            true => format!("{cluster}0"),
            false => first.name.clone(),
        });
        if first.name.contains('/') {
            found.insert(cluster.to_owned());
        }
    }
}

/// The backups of a cluster in a place, oldest first, also those without a root.
///
/// # Errors
/// Those of the store.
pub async fn list(store: &dyn ColdStore, cluster: &str) -> ColdResult<Vec<Found>> {
    let below = format!("{cluster}/backups");
    let mut found: BTreeMap<BackupId, Found> = BTreeMap::new();
    let look = |object: Listed| {
        let rest = object.name.strip_prefix(&below).unwrap_or_default();
        let Some((id, file)) = rest.trim_start_matches('/').split_once('/') else {
            return Ok(());
        };
        let Ok(id) = id.parse::<BackupId>() else {
            return Ok(());
        };
        if found.len() >= BACKUPS_MAX {
            return Err(damaged(&below, "it has more backups than any place"));
        }
        let backup = found.entry(id).or_insert_with(|| Found {
            cluster: cluster.to_owned(),
            id,
            has_root: false,
            files: Vec::new(),
        });
        backup.has_root |= file == ROOT;
        backup.files.push(file.to_owned());
        Ok(())
    };
    listing::each(store, &below, look).await??;
    Ok(found.into_values().collect())
}

/// Deletes the root: from now on there is no backup.
///
/// # Errors
/// Those of the store.
pub async fn delete_root(store: &dyn ColdStore, found: &Found) -> ColdResult<()> {
    store.delete(&name_of(&found.cluster, found.id, ROOT)).await
}

/// Deletes what is left without a root.
///
/// # Errors
/// Those of the store.
pub async fn delete_parts(store: &dyn ColdStore, found: &Found) -> ColdResult<()> {
    for file in found.files.iter().filter(|file| *file != ROOT) {
        store
            .delete(&name_of(&found.cluster, found.id, file))
            .await?;
    }
    Ok(())
}
