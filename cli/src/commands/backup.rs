//! `aquifer backup`: backs topics up, and brings them back. Brokers capture and restore topics;
//! this tool drives them, and keeps the lists and the root of a backup.

mod create;
mod expire;
mod failures;
mod kept;
mod restore;
mod verify;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use aquifer_cold::backup::{self, Found, Lists};
use aquifer_cold::location::{PlaceOfObjects, marker_of};
use aquifer_cold::store::ColdStore;
use aquifer_model::backup::{BackupScope, BackupTotals};
use aquifer_model::place::rfc3339_ms;
use aquifer_proto::convert::backup::scope;
use aquifer_proto::v1;
use aquifer_runtime::clock;
use serde_json::{Value, json};

use crate::args::{BackupCommand, StoreArgs, WhichBackup};
use crate::commands::backup::failures::Failures;
use crate::commands::object::{failed, open};
use crate::connect::Connect;
use crate::exit::CliError;
use crate::output::{Output, Table};

/// Runs the command.
///
/// # Errors
/// When a store or a broker cannot be reached, or something is damaged.
pub async fn run(command: BackupCommand, connect: &Connect, out: &Output) -> Result<(), CliError> {
    match command {
        BackupCommand::Create {
            place,
            tenant,
            topic,
            store,
        } => {
            let scope = match (tenant, topic) {
                (Some(tenant), _) => BackupScope::Tenant(tenant),
                (None, Some(topic)) => BackupScope::Topic(topic),
                (None, None) => BackupScope::Cluster,
            };
            create::run(&place, &scope, &store, &connect.client()?, out).await
        }
        BackupCommand::List { place, store } => list(&place, &store, out).await,
        BackupCommand::Show { which } => show(&Opened::open(&which).await?, out).await,
        BackupCommand::Verify { which, deep } => {
            verify::run(&Opened::open(&which).await?, deep, out).await
        }
        BackupCommand::Expire { place, keep, store } => {
            expire::run(&place, keep, &store, &connect.client()?, out).await
        }
        BackupCommand::Restore {
            which,
            tenant,
            topic,
            new_name,
            dry_run,
            access,
            trim_after,
        } => {
            let opened = Opened::open(&which).await?;
            let wanted = restore::Wanted {
                tenant,
                topic,
                new_name,
                dry_run,
                access,
                trim_after,
            };
            restore::run(&opened, &wanted, &connect.client()?, out).await
        }
    }
}

/// A backup in a store.
struct Opened {
    url: String,
    args: StoreArgs,
    store: Arc<dyn ColdStore>,
    root: v1::BackupRoot,
}

impl Opened {
    async fn open(which: &WhichBackup) -> Result<Opened, CliError> {
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

    async fn lists(&self) -> Result<Lists, CliError> {
        let lists = backup::read_lists(&*self.store, &self.root).await;
        lists.map_err(failed)
    }

    /// How the stores of the places are opened that a backup names: its own is where it was found.
    async fn places(&self) -> Result<Places<'_>, CliError> {
        let marker = marker_of(&*self.store, &self.root.cluster).await;
        Ok(Places {
            opened: self,
            marker: marker.map_err(failed)?,
        })
    }
}

/// See [`Opened::places`].
struct Places<'a> {
    opened: &'a Opened,
    marker: Option<aquifer_model::id::LocationId>,
}

impl Places<'_> {
    fn open(
        &self,
        place: &PlaceOfObjects,
    ) -> Result<Arc<dyn ColdStore>, aquifer_cold::error::ColdError> {
        match self.marker == Some(place.id) {
            true => Ok(Arc::clone(&self.opened.store)),
            false => open(&place.url, &self.opened.args)
                .map_err(|error| aquifer_cold::error::ColdError::Config(error.to_string())),
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
        if expire::begun_ms(found.id) > at_ms {
            continue;
        }
        let root = backup::read_root(store, &found.cluster, found.id).await;
        if root.map_err(failed)?.finished_ms <= at_ms {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

async fn list(url: &str, args: &StoreArgs, out: &Output) -> Result<(), CliError> {
    let store = open(url, args)?;
    let mut table = Table::new([
        "cluster", "backup", "created", "scope", "topics", "bytes", "state",
    ]);
    for cluster in backup::clusters(&*store).await.map_err(failed)? {
        for found in backup::list(&*store, &cluster).await.map_err(failed)? {
            let root = match found.has_root {
                true => Some(backup::read_root(&*store, &cluster, found.id).await),
                false => None,
            };
            let (root, state) = match root {
                Some(Ok(root)) if found.files.iter().any(|file| file == failures::FILE) => {
                    (root, "partial".to_owned())
                }
                Some(Ok(root)) => (root, "whole".to_owned()),
                Some(Err(error)) => (v1::BackupRoot::default(), error.to_string()),
                None => (v1::BackupRoot::default(), "unfinished".to_owned()),
            };
            let scope = scope_of(&root);
            if out.is_json() {
                out.object(&json!({
                    "cluster": cluster,
                    "backup": found.id.to_string(),
                    "created": rfc3339_ms(root.created_ms),
                    "finished": rfc3339_ms(root.finished_ms),
                    "scope": scope,
                    "topics": root.topics,
                    "bytes": root.bytes,
                    "state": state,
                }))?;
            } else {
                table.row([
                    cluster.clone(),
                    found.id.to_string(),
                    rfc3339_ms(root.created_ms),
                    scope,
                    root.topics.to_string(),
                    root.bytes.to_string(),
                    state,
                ]);
            }
        }
    }
    match out.is_json() {
        true => Ok(()),
        false => out.table(&table),
    }
}

fn scope_of(root: &v1::BackupRoot) -> String {
    let scope = scope(&root.tenant, &root.topic);
    scope.map_or_else(|error| error, |scope| scope.to_string())
}

fn id_of(root: &v1::BackupRoot) -> Result<aquifer_model::id::BackupId, CliError> {
    let id = aquifer_model::id::BackupId::try_from(root.backup_id.as_ref());
    id.map_err(|error| CliError::failed(error.to_string()))
}

fn totals_of(entry: &v1::BackupTopicEntry) -> BackupTotals {
    entry.totals.unwrap_or_default().into()
}

fn topic_object(topic: &str, outcome: &str, totals: &BackupTotals) -> Value {
    json!({
        "topic": topic,
        "outcome": outcome,
        "first_index": totals.first.0,
        "end_index": totals.end.0,
        "messages": totals.end.0.saturating_sub(totals.first.0),
        "entries": totals.entries,
        "bytes": totals.bytes,
        "ledgers": totals.ledgers,
        "subscriptions": totals.subscriptions,
    })
}

async fn show(opened: &Opened, out: &Output) -> Result<(), CliError> {
    let (root, lists) = (&opened.root, opened.lists().await?);
    let id = id_of(root)?;
    let failures = Failures::read(&*opened.store, root).await?;
    if out.is_json() {
        let topics = lists.topics.iter();
        let topics = topics.map(|entry| topic_object(&entry.topic, "saved", &totals_of(entry)));
        return out.object(&json!({
            "backup": id.to_string(),
            "cluster": root.cluster,
            "writer": root.writer,
            "scope": scope_of(root),
            "created": rfc3339_ms(root.created_ms),
            "finished": rfc3339_ms(root.finished_ms),
            "revisions": [root.start_revision, root.end_revision],
            "last_ledger": root.last_ledger_id,
            "entries": root.entries,
            "bytes": root.bytes,
            "object_bytes": root.object_bytes,
            "topics": topics.collect::<Vec<Value>>(),
            "failed": failures.failed,
            "failed_count": failures.count,
        }));
    }
    for (what, text) in [
        ("backup", id.to_string()),
        ("cluster", root.cluster.clone()),
        ("scope", scope_of(root)),
        ("created", rfc3339_ms(root.created_ms)),
        ("finished", rfc3339_ms(root.finished_ms)),
        ("entries", root.entries.to_string()),
        (
            "bytes",
            format!("{}, {} in objects", root.bytes, root.object_bytes),
        ),
    ] {
        out.line(format!("{what:<9}{text}"))?;
    }
    out.table(&topics_table(lists.topics.iter().map(|entry| {
        let state = match entry.partitions.is_empty() {
            true => "saved".to_owned(),
            false => format!("{} partitions", entry.partitions.len()),
        };
        (entry.topic.clone(), state, totals_of(entry))
    })))?;
    failures.lines(out)
}

fn topics_table(rows: impl Iterator<Item = (String, String, BackupTotals)>) -> Table {
    let mut table = Table::new([
        "topic",
        "state",
        "first",
        "end",
        "entries",
        "bytes",
        "ledgers",
        "subscriptions",
    ]);
    for (topic, state, totals) in rows {
        table.row([
            topic,
            state,
            totals.first.to_string(),
            totals.end.to_string(),
            totals.entries.to_string(),
            totals.bytes.to_string(),
            totals.ledgers.to_string(),
            totals.subscriptions.to_string(),
        ]);
    }
    table
}
