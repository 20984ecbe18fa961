//! A backup that is found in a store: which one is meant, its root, and the stores of what it
//! names.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use aquifer_cold::backup::{self, Found, Lists};
use aquifer_cold::error::ColdError;
use aquifer_cold::location::{PlaceOfObjects, marker_of};
use aquifer_cold::store::ColdStore;
use aquifer_model::id::{BackupId, LocationId};
use aquifer_proto::convert::backup::scope;
use aquifer_proto::v1;
use aquifer_runtime::clock;

use crate::args::{StoreArgs, WhichBackup};
use crate::commands::backup::expire::begun_ms;
use crate::commands::object::{failed, open};
use crate::exit::CliError;

/// A backup in a store.
pub(super) struct Opened {
    pub(super) url: String,
    pub(super) args: StoreArgs,
    pub(super) store: Arc<dyn ColdStore>,
    pub(super) root: v1::BackupRoot,
}

impl Opened {
    pub(super) async fn open(which: &WhichBackup) -> Result<Opened, CliError> {
        let store = open(&which.place, &which.store)?;
        let found = pick(&*store, which).await?;
        let root = backup::read_root(&*store, &found.cluster, found.id).await;
        Ok(Opened {
            url: which.place.clone(),
            args: which.store.clone(),
            store,
            root: root.map_err(failed)?,
        })
    }

    pub(super) async fn lists(&self) -> Result<Lists, CliError> {
        let lists = backup::read_lists(&*self.store, &self.root).await;
        lists.map_err(failed)
    }

    /// How the stores of the places are opened that a backup names: its own is where it was found.
    pub(super) async fn places(&self) -> Result<Places<'_>, CliError> {
        let marker = marker_of(&*self.store, &self.root.cluster).await;
        Ok(Places {
            opened: self,
            marker: marker.map_err(failed)?,
        })
    }
}

/// See [`Opened::places`].
pub(super) struct Places<'a> {
    opened: &'a Opened,
    marker: Option<LocationId>,
}

impl Places<'_> {
    pub(super) fn open(&self, place: &PlaceOfObjects) -> Result<Arc<dyn ColdStore>, ColdError> {
        match self.marker == Some(place.id) {
            true => Ok(Arc::clone(&self.opened.store)),
            false => open(&place.url, &self.opened.args)
                .map_err(|error| ColdError::Config(error.to_string())),
        }
    }
}

/// The backup that is meant: of the cluster, or of the only one that has any; the newest.
async fn pick(store: &dyn ColdStore, which: &WhichBackup) -> Result<Found, CliError> {
    let clusters = match &which.cluster {
        Some(cluster) => vec![cluster.clone()],
        None => backup::clusters(store).await.map_err(failed)?,
    };
    let mut newest: Vec<Found> = Vec::new();
    for cluster in clusters {
        let all = backup::list(store, &cluster).await.map_err(failed)?;
        let mut whole = all.into_iter().filter(|found| {
            let is_it = which.id.is_none_or(|id| id == found.id);
            found.has_root && is_it
        });
        match which.at {
            None => newest.extend(whole.next_back()),
            Some(at) => newest.extend(newest_at(store, whole.collect(), at).await?),
        }
    }
    match newest.as_slice() {
        [one] => Ok(one.clone()),
        [] if which.at.is_some() => Err(CliError::failed(format!(
            "{} has no backup that was finished by then",
            which.place
        ))
        .advise("see when they were made with `aquifer backup list`, and give a later time")),
        [] => Err(
            CliError::failed(format!("{} has no such backup", which.place))
                .advise("list them with `aquifer backup list`; one without a root does not count"),
        ),
        [..] => {
            let names: Vec<&str> = newest.iter().map(|found| found.cluster.as_str()).collect();
            let names = names.join(", ");
            Err(
                CliError::usage(format!("clusters {names} have backups there"))
                    .advise("give one of them with --cluster"),
            )
        }
    }
}

/// The newest of the backups of a cluster that was finished by a time: none of its topics has
/// anything that is later.
async fn newest_at(
    store: &dyn ColdStore,
    oldest_first: Vec<Found>,
    at: SystemTime,
) -> Result<Option<Found>, CliError> {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let at_ms = clock::millis(since);
    for found in oldest_first.into_iter().rev() {
        if begun_ms(found.id) > at_ms {
            continue;
        }
        let root = backup::read_root(store, &found.cluster, found.id).await;
        if root.map_err(failed)?.finished_ms <= at_ms {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

pub(super) fn scope_of(root: &v1::BackupRoot) -> String {
    let scope = scope(&root.tenant, &root.topic);
    scope.map_or_else(|error| error, |scope| scope.to_string())
}

pub(super) fn id_of(root: &v1::BackupRoot) -> Result<BackupId, CliError> {
    let id = BackupId::try_from(root.backup_id.as_ref());
    id.map_err(|error| CliError::failed(error.to_string()))
}
