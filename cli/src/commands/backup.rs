//! `aquifer backup`: backs topics up, and brings them back. Brokers capture and restore topics;
//! this tool drives them, and keeps the lists and the root of a backup.

mod create;
mod expire;
mod failures;
mod kept;
mod opened;
mod restore;
mod topics;
mod verify;

use aquifer_cold::backup;
use aquifer_model::backup::BackupScope;
use aquifer_model::place::rfc3339_ms;
use aquifer_proto::v1;
use serde_json::{Value, json};

use crate::args::{BackupCommand, StoreArgs};
use crate::commands::backup::failures::Failures;
use crate::commands::backup::opened::{Opened, id_of, scope_of};
use crate::commands::backup::topics::{topic_object, topics_table, totals_of};
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
