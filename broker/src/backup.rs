//! Captures topics for backups, and lets backups begin and end. A tool drives it, topic by topic;
//! what a backup is made of is in `aquifer_log::backup`.
//!
//! Invariants:
//! - The subscriptions of a topic are captured before its end, so that none is behind it.
//! - The producers are captured before the end as well: what was published later is no duplicate
//!   after a restore.

mod restore;
mod scopes;

use std::sync::Arc;

use aquifer_log::TopicRecordCell;
use aquifer_log::backup;
use aquifer_log::error::LogError;
use aquifer_model::backup::{
    BackupBegun, BackupRevisions, BackupScope, BackupTotals, ForgetBackup, RestoreAccess,
    RestoredAccess, TopicCapture,
};
use aquifer_model::id::{BackupId, Index};
use aquifer_model::topic::TopicName;
use aquifer_proto::v1;
use aquifer_proto::v1::backup_item::Item;
use aquifer_protocol_api::context::RequestContext;
use bytes::Bytes;

use crate::broker::Broker;
use crate::cursor_log;
use crate::error::BrokerError;
use crate::security::audit::cause::Create;
use crate::topic::event::Event;
use crate::topic::pull::{Cursors, Pull};

impl Broker {
    /// Begins a backup.
    pub(crate) async fn begin_backup_hold(
        &self,
        url: &str,
        scope: BackupScope,
    ) -> Result<BackupBegun, BrokerError> {
        let log = &self.shared.log;
        let begun = backup::begin(log, url, scope.clone()).await;
        let mut begun = begun.map_err(refused)?;
        let listed = async {
            let items = scopes::items(&*log.ledgers.store, &scope).await?;
            Ok::<_, BrokerError>(backup::write(log, begun.id, items).await?)
        };
        let listed = listed.await;
        begun.lists = match listed {
            Ok(lists) => lists,
            Err(error) => {
                // It keeps nothing for a caller that does not know of it.
                let given_up = ForgetBackup {
                    url: url.to_owned(),
                    backup: Some(begun.id),
                    unfinished: true,
                };
                if let Err(error) = backup::forget(log, &given_up).await {
                    tracing::warn!(backup = %begun.id, %error, "backup is given up later");
                }
                return Err(error);
            }
        };
        tracing::info!(backup = %begun.id, "backup begun");
        Ok(begun)
    }

    /// Ends a backup.
    pub(crate) async fn finish_backup_hold(
        &self,
        id: BackupId,
    ) -> Result<BackupRevisions, BrokerError> {
        let revisions = backup::finish(&self.shared.log, id).await;
        let revisions = revisions.map_err(refused)?;
        tracing::info!(backup = %id, "backup finished");
        Ok(revisions)
    }

    /// Forgets a backup; answers the name of the cluster.
    pub(crate) async fn forget_backup_hold(
        &self,
        wanted: ForgetBackup,
    ) -> Result<String, BrokerError> {
        let cluster = backup::forget(&self.shared.log, &wanted).await;
        let cluster = cluster.map_err(refused)?;
        if let Some(id) = wanted.backup {
            tracing::info!(backup = %id, "backup forgotten");
        }
        Ok(cluster)
    }

    /// Brings tokens and grants of a backup back.
    pub(crate) async fn restore_access_records(
        &self,
        ctx: &RequestContext,
        wanted: RestoreAccess,
    ) -> Result<RestoredAccess, BrokerError> {
        let guard = self.shared.guard.as_deref().ok_or_else(|| {
            BrokerError::invalid(
                "authentication is off: there are no tokens and grants",
                "start the server with --auth, or restore topics alone",
            )
        })?;
        let place = (wanted.url.as_str(), wanted.cluster.as_str());
        let (log, files) = (&self.shared.log, wanted.files.clone());
        let files = backup::BackupFiles::open(log, place, wanted.backup, files);
        let mut files = files.await.map_err(refused)?;
        let tenant = wanted.tenant.as_deref();
        let mut round = guard.begin_access(ctx, tenant, &self.shared.namespaces);
        let mut done = Ok(());
        while done.is_ok() {
            let items = match files.next().await {
                Ok(Some(items)) => items,
                Ok(None) => break,
                Err(error) => {
                    done = Err(refused(error));
                    break;
                }
            };
            done = round.restore_items(items).await;
        }
        // Also what was brought back before a failure is told.
        let restored = round.end().await;
        done.map(|()| restored)
    }

    /// Captures a topic: first its subscriptions and its end, then, asked again with that end, its
    /// ledgers once all of them are in objects.
    pub(crate) async fn backup_topic_capture(
        &self,
        id: BackupId,
        topic: &TopicName,
        end: Option<Index>,
    ) -> Result<TopicCapture, BrokerError> {
        let ctx = Arc::clone(&self.shared.log);
        backup::check_running(&ctx, id).await.map_err(refused)?;
        let cell = TopicRecordCell::load(ctx, topic, Vec::new()).await?;
        let cell = cell.filter(|cell| !cell.is_deleting());
        let cell = cell.ok_or_else(|| BrokerError::no_topic(topic))?;
        match end {
            _ if !cell.ranges().is_empty() => self.capture_ranges(id, &cell).await,
            None => self.capture_cursors(id, topic).await,
            Some(end) => self.capture_ledgers(id, topic, &cell, end).await,
        }
    }

    async fn capture_ranges(
        &self,
        id: BackupId,
        cell: &TopicRecordCell,
    ) -> Result<TopicCapture, BrokerError> {
        let totals = BackupTotals {
            captured_ms: self.shared.clock.wall_ms(),
            ..BackupTotals::default()
        };
        let items = vec![head(cell, totals, false)];
        let ranges = cell.ranges();
        Ok(TopicCapture {
            files: backup::write(&self.shared.log, id, items).await?,
            totals: Some(totals),
            partitions: ranges.all().iter().map(|range| range.number).collect(),
            ..TopicCapture::default()
        })
    }

    async fn capture_cursors(
        &self,
        id: BackupId,
        topic: &TopicName,
    ) -> Result<TopicCapture, BrokerError> {
        let Cursors {
            door,
            subscriptions,
            producers,
            dedup_index,
        } = self
            .topics
            .ask(topic, &Create::Never, |reply| Pull::Capture(reply).event())
            .await?;
        let count = subscriptions.len() as u64;
        // No subscription is behind what was acknowledged by then.
        let least = door.log.end();
        let records = cursor_log::encode_snapshot(1, subscriptions, producers, dedup_index);
        let end = door.log.seal_for_backup(least).await?;
        let items = records.into_iter().map(Item::Cursors).collect();
        let files = backup::write(&self.shared.log, id, items).await?;
        let left = door.log.request_offload(end).await.map_err(refused)?;
        Ok(TopicCapture {
            end,
            ledgers_left: left.ledgers,
            bytes_left: left.bytes,
            files,
            subscriptions: count,
            ..TopicCapture::default()
        })
    }

    async fn capture_ledgers(
        &self,
        id: BackupId,
        topic: &TopicName,
        cell: &TopicRecordCell,
        end: Index,
    ) -> Result<TopicCapture, BrokerError> {
        let door = self.topics.door(topic).await?;
        if door.incarnation != cell.incarnation() {
            return Err(BrokerError::Incarnation(topic.to_string()));
        }
        let left = door.log.request_offload(end).await.map_err(refused)?;
        if let Some(failure) = left.failure {
            return Err(failure.into());
        }
        let mut capture = TopicCapture {
            end,
            ledgers_left: left.ledgers,
            bytes_left: left.bytes,
            ..TopicCapture::default()
        };
        if left.ledgers > 0 {
            return Ok(capture);
        }
        let found = door.log.capture(end).await.map_err(refused)?;
        // What was terminated after messages behind this end were taken is brought back open: its
        // consumers are not told an end that it has not.
        let stats = self.topics.ask(topic, &Create::Never, Event::Stats).await?;
        let terminated = stats.ends.iter().any(|last| last.end == end);
        let ledgers = found.ledgers.into_iter().map(Item::Ledger);
        let places = found.places.into_iter().map(Item::Location);
        let items = [head(cell, found.totals, terminated)]
            .into_iter()
            .chain(places);
        let items = items.chain(ledgers).collect();
        capture.files = backup::write(&self.shared.log, id, items).await?;
        capture.totals = Some(found.totals);
        Ok(capture)
    }
}

fn head(cell: &TopicRecordCell, totals: BackupTotals, terminated: bool) -> Item {
    let record = cell.record();
    Item::Head(v1::BackupTopicHead {
        topic: cell.topic().to_string(),
        incarnation: Bytes::copy_from_slice(&cell.incarnation().0),
        key_hash: record.key_hash,
        ranges: record.ranges,
        range_generation: record.range_generation,
        totals: Some(totals.into()),
        terminated,
    })
}

/// What a request asks for that cannot be done is no trouble of storage.
fn refused(error: LogError) -> BrokerError {
    match error {
        LogError::Invalid(message) => {
            BrokerError::invalid(message, "see docs/operations/backup.md")
        }
        error => error.into(),
    }
}
