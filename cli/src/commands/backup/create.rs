//! `aquifer backup create`.

use std::sync::Arc;
use std::time::Duration;

use aquifer_client::backup::Backups;
use aquifer_client::{Admin, Client, ClientError, ErrorKind};
use aquifer_cold::backup::{self, PartWriter};
use aquifer_cold::store::ColdStore;
use aquifer_model::backup::{BackupBegun, BackupFile, BackupScope, BackupTotals, ForgetBackup};
use aquifer_model::id::BackupId;
use aquifer_model::policy::{Policies, PolicyScope};
use aquifer_model::topic::TopicName;
use aquifer_proto::v1;
use aquifer_proto::v1::backup_item::Item;
use aquifer_runtime::clock::{self, Clock, SystemClock};
use aquifer_runtime::rng::SystemRng;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use serde_json::json;

use crate::args::StoreArgs;
use crate::commands::backup::failures::{Failures, Trouble};
use crate::commands::backup::kept::check_kept;
use crate::commands::backup::opened::{Opened, scope_of};
use crate::commands::backup::verify;
use crate::commands::object::{failed, open};
use crate::exit::CliError;
use crate::output::Output;

/// Topics that are captured at once.
const TOPICS_AT_ONCE: usize = 8;
/// How often it is asked whether a topic is in objects.
const POLL_PAUSE: Duration = Duration::from_millis(200);

/// What a backup is made with.
struct Making<'a> {
    admin: Admin,
    backups: Backups,
    begun: BackupBegun,
    store: Arc<dyn ColdStore>,
    scope: &'a BackupScope,
    url: &'a str,
}

/// What is captured so far.
struct Taken {
    lists: PartWriter,
    saved: u64,
    failures: Failures,
}

/// A topic with its partitions, or why it is left out.
type Tried = Result<Vec<v1::BackupTopicEntry>, (String, CliError)>;

pub(super) async fn run(
    url: &str,
    scope: &BackupScope,
    args: &StoreArgs,
    client: &Client,
    out: &Output,
) -> Result<(), CliError> {
    let created_ms = SystemClock.wall_ms();
    let backups = client.backups();
    // The first that uses the place makes it.
    let begun = backups.begin(url, scope).await?;
    let id = begun.id;
    let captured = async {
        let store = open(url, args)?;
        let making = Making {
            begun,
            admin: client.admin(),
            backups: client.backups(),
            store: Arc::clone(&store),
            scope,
            url,
        };
        let (root, failures) = making.capture(created_ms).await?;
        failures.write(&*store, &root).await?;
        let opened = Opened {
            url: url.to_owned(),
            args: args.clone(),
            store,
            root,
        };
        let opened = finish(opened, &making, id).await?;
        Ok::<(Opened, Failures), CliError>((opened, failures))
    };
    let (opened, failures) = match captured.await {
        Ok(captured) => captured,
        Err(error) => {
            let given_up = ForgetBackup {
                url: url.to_owned(),
                backup: Some(id),
                unfinished: true,
            };
            if let Err(error) = backups.forget(&given_up).await {
                out.note(&format!("backup {id} is not given up yet: {error}"));
            }
            return Err(error);
        }
    };
    // From here on it is kept, whether the answer comes or not.
    backup::write_root(&*opened.store, &opened.root)
        .await
        .map_err(|error| {
            failed(error)
                .advise("`aquifer backup expire` removes what has no root after seven days")
        })?;
    let place = (&*opened.store, opened.root.cluster.as_str());
    check_kept(backups.finish(id).await, place, id).await?;
    told(&opened, id, &failures, out)?;
    failures.result(
        &format!("backup {id} is partial"),
        "the other topics are saved; `aquifer backup show` lists what is not",
    )
}

/// Checks that everything is there that the backup names, and ends it.
async fn finish(mut opened: Opened, making: &Making<'_>, id: BackupId) -> Result<Opened, CliError> {
    let found = verify::look(&opened, false).await?;
    if let Some(problem) = found.problems.first() {
        return Err(CliError::failed(format!(
            "the backup is not whole: {problem}"
        )));
    }
    let revisions = making.backups.finish(id).await?;
    let root = &mut opened.root;
    root.start_revision = revisions.start;
    root.end_revision = revisions.end;
    root.last_ledger_id = found.last_ledger;
    root.topics = found.topics;
    root.entries = found.entries;
    root.bytes = found.bytes;
    root.object_bytes = found.object_bytes;
    root.objects_sha256 = Bytes::copy_from_slice(&found.objects_sha256);
    root.finished_ms = SystemClock.wall_ms();
    Ok(opened)
}

fn told(opened: &Opened, id: BackupId, failures: &Failures, out: &Output) -> Result<(), CliError> {
    let root = &opened.root;
    let seconds = root.finished_ms.saturating_sub(root.created_ms) / 1000;
    if out.is_json() {
        return out.object(&json!({
            "backup": id.to_string(),
            "cluster": root.cluster,
            "topics": root.topics,
            "entries": root.entries,
            "bytes": root.bytes,
            "object_bytes": root.object_bytes,
            "seconds": seconds,
            "failed": failures.failed,
            "failed_count": failures.count,
        }));
    }
    failures.lines(out)?;
    out.line(format!(
        "backup {id} of {}: {} topics, {} entries, {} bytes, in {seconds} s",
        scope_of(root),
        root.topics,
        root.entries,
        root.bytes
    ))
}

impl Making<'_> {
    /// Captures everything; answers the root as far as it is known, and what is not in it.
    async fn capture(&self, created_ms: u64) -> Result<(v1::BackupRoot, Failures), CliError> {
        let begun = &self.begun;
        let rng = SystemRng::shared();
        let mut taken = Taken {
            lists: PartWriter::new(Arc::clone(&self.store), &begun.cluster, begun.id, rng),
            saved: 0,
            failures: Failures::default(),
        };
        for namespace in self.listed().await? {
            self.capture_namespace(&namespace, &mut taken).await?;
        }
        if taken.saved == 0 {
            // What has no topic is not a backup, and takes the place of no other.
            let failures = &taken.failures;
            failures.result("no topic is saved", failures.first())?;
        }
        let files = taken.lists.finish().await.map_err(failed)?;
        let (tenant, topic) = self.scope.texts();
        let root = v1::BackupRoot {
            writer: concat!("aquifer ", env!("CARGO_PKG_VERSION")).to_owned(),
            backup_id: Bytes::copy_from_slice(&begun.id.0),
            cluster: begun.cluster.clone(),
            tenant,
            topic,
            created_ms,
            lists: begun
                .lists
                .iter()
                .chain(&files)
                .map(v1::BackupFile::from)
                .collect(),
            ..v1::BackupRoot::default()
        };
        Ok((root, taken.failures))
    }

    /// The namespaces of the lists that were written when the backup began.
    async fn listed(&self) -> Result<Vec<String>, CliError> {
        let begun = &self.begun;
        let (mut tenants, mut namespaces) = (0, Vec::new());
        for file in &begun.lists {
            let items = backup::read_part(&*self.store, &begun.cluster, begun.id, file).await;
            for item in items.map_err(failed)? {
                match item {
                    Item::Tenant(_) => tenants += 1,
                    Item::Namespace(namespace) => namespaces.push(namespace.namespace),
                    _ => {}
                }
            }
        }
        let missing = match self.scope {
            BackupScope::Topic(topic) if namespaces.is_empty() => topic.to_string(),
            BackupScope::Tenant(tenant) if tenants == 0 => format!("tenant {tenant}"),
            _ => return Ok(namespaces),
        };
        Err(CliError::failed(format!("{missing} does not exist")))
    }

    /// What is set at a scope itself.
    async fn policies(&self, scope: &PolicyScope) -> Result<Option<v1::Policies>, ClientError> {
        let view = self.admin.get_policies(scope).await?;
        let own = Some(view.own).filter(|own| *own != Policies::default());
        Ok(own.map(v1::Policies::from))
    }

    async fn capture_namespace(&self, namespace: &str, taken: &mut Taken) -> Result<(), CliError> {
        let topics: Vec<String> = match self.scope {
            BackupScope::Topic(topic) => vec![topic.to_string()],
            BackupScope::Cluster | BackupScope::Tenant(_) => {
                let listed = self.admin.list_topics(namespace).await?;
                listed.into_iter().map(|topic| topic.topic).collect()
            }
        };
        let mut captured = futures::stream::iter(topics)
            .map(|topic| self.try_topic(topic))
            .buffered(TOPICS_AT_ONCE);
        while let Some(tried) = captured.try_next().await? {
            let entries = match tried {
                Ok(entries) => entries,
                Err((topic, error)) => {
                    taken.failures.add(&topic, &error);
                    continue;
                }
            };
            for entry in entries {
                taken.saved += 1;
                let added = taken.lists.add(Item::Topic(entry)).await;
                added.map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Captures a topic. An error concerns every topic.
    async fn try_topic(&self, topic: String) -> Result<Tried, CliError> {
        let trouble = match self.capture_topic(&topic).await {
            Ok(entries) => return Ok(Ok(entries)),
            Err(trouble) => trouble,
        };
        match self.scope {
            BackupScope::Topic(_) => Err(trouble.into()),
            BackupScope::Cluster | BackupScope::Tenant(_) => {
                let error = trouble.of_topic(self.probe()).await?;
                Ok(Err((topic, error)))
            }
        }
    }

    /// Looks whether the cluster and its store answer.
    async fn probe(&self) -> Result<(), CliError> {
        let nothing = ForgetBackup {
            url: self.url.to_owned(),
            backup: None,
            unfinished: false,
        };
        self.backups.forget(&nothing).await?;
        Ok(())
    }

    /// A topic, and its partitions behind it. None when it was deleted meanwhile.
    async fn capture_topic(&self, topic: &str) -> Result<Vec<v1::BackupTopicEntry>, Trouble> {
        let name: TopicName = topic
            .parse()
            .map_err(|error| Trouble::Topic(CliError::failed(format!("{topic}: {error}"))))?;
        let Some(mut entry) = self.capture_one(&name).await? else {
            return match self.scope {
                BackupScope::Topic(_) => {
                    let error = CliError::failed(format!("{name} does not exist"));
                    Err(Trouble::Topic(error))
                }
                BackupScope::Cluster | BackupScope::Tenant(_) => Ok(Vec::new()),
            };
        };
        entry.policies = self.policies(&PolicyScope::Topic(name.clone())).await?;
        let partitions = entry.partitions.clone();
        let mut entries = vec![entry];
        for number in partitions {
            // One that was never used has nothing.
            entries.extend(self.capture_one(&name.partition_name(number)).await?);
        }
        Ok(entries)
    }

    async fn capture_one(&self, name: &TopicName) -> Result<Option<v1::BackupTopicEntry>, Trouble> {
        let id = self.begun.id;
        let mut capture = match self.backups.capture(id, name, None).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            capture => capture.map_err(|error| Trouble::of_backup(error, id))?,
        };
        let (mut files, end) = (std::mem::take(&mut capture.files), capture.end);
        let subscriptions = capture.subscriptions;
        while capture.totals.is_none() {
            if capture.ledgers_left > 0 {
                clock::sleep(POLL_PAUSE).await;
            }
            capture = match self.backups.capture(id, name, Some(end)).await {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                capture => capture.map_err(|error| Trouble::of_backup(error, id))?,
            };
            files.append(&mut capture.files);
        }
        let totals = BackupTotals {
            subscriptions,
            ..capture.totals.unwrap_or_default()
        };
        Ok(Some(entry_of(name, &files, totals, capture.partitions)))
    }
}

fn entry_of(
    name: &TopicName,
    files: &[BackupFile],
    totals: BackupTotals,
    partitions: Vec<u32>,
) -> v1::BackupTopicEntry {
    v1::BackupTopicEntry {
        topic: name.to_string(),
        parts: files.iter().map(v1::BackupFile::from).collect(),
        totals: Some(totals.into()),
        policies: None,
        partitions,
    }
}
