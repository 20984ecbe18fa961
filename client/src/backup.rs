//! Backups: what a tool asks brokers to capture and to bring back. The files of a backup that lists
//! what was captured are the tool's own.

use std::sync::Arc;

use aquifer_model::backup::{
    BackupBegun, BackupRevisions, BackupScope, BackupTotals, ForgetBackup, RestoreAccess,
    RestoreTopic, Restored, RestoredAccess, TopicCapture,
};
use aquifer_model::id::{BackupId, Index};
use aquifer_model::topic::TopicName;
use aquifer_proto::convert::backup::{files, outcome};
use aquifer_proto::v1;
use bytes::Bytes;

use crate::connection::Authorized;
use crate::context::Context;
use crate::error::{ClientError, Result};
use crate::lookup::unary;
use crate::retry::Deadline;

type Client = v1::backup_client::BackupClient<Authorized>;

/// Backups of a cluster, for its operators.
#[derive(Clone)]
pub struct Backups {
    context: Arc<Context>,
}

fn id_bytes(id: BackupId) -> Bytes {
    Bytes::copy_from_slice(&id.0)
}

impl Backups {
    pub(crate) fn new(context: Arc<Context>) -> Backups {
        Backups { context }
    }

    /// Begins a backup: objects that die from now on are kept for it. The URL is where the
    /// cluster's objects go.
    ///
    /// # Errors
    /// `Invalid` for another place, and what every call may answer.
    pub async fn begin(&self, url: &str, scope: &BackupScope) -> Result<BackupBegun> {
        let (tenant, topic) = scope.texts();
        let request = v1::BeginBackupRequest {
            url: url.to_owned(),
            tenant,
            topic,
        };
        let call = |mut client: Client| {
            let request = request.clone();
            async move { client.begin_backup(request).await }
        };
        let begun = self.call("beginning the backup", false, call).await?;
        let id = BackupId::try_from(begun.backup_id.as_ref());
        Ok(BackupBegun {
            id: id.map_err(|error| ClientError::Protocol(error.to_string()))?,
            cluster: begun.cluster,
            start_revision: begun.start_revision,
            lists: files(begun.lists).map_err(ClientError::Protocol)?,
        })
    }

    /// Has a topic captured. Without an end its subscriptions as they are now; repeat it with the
    /// end that was answered, until there are totals.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` when the backup is not running, and what every call may answer.
    pub async fn capture(
        &self,
        backup: BackupId,
        topic: &TopicName,
        end: Option<Index>,
    ) -> Result<TopicCapture> {
        let request = v1::BackupTopicRequest {
            backup_id: id_bytes(backup),
            topic: topic.to_string(),
            end_index: end.map(|index| index.0),
        };
        let call = |mut client: Client| {
            let request = request.clone();
            async move { client.backup_topic(request).await }
        };
        // Files of an answer that was lost are named by nothing, and go with the backup.
        let capture = self.call("capturing the topic", true, call).await?;
        Ok(TopicCapture {
            end: Index(capture.end_index),
            ledgers_left: capture.ledgers_left,
            bytes_left: capture.bytes_left,
            files: files(capture.parts).map_err(ClientError::Protocol)?,
            subscriptions: capture.subscriptions,
            totals: capture.totals.map(BackupTotals::from),
            partitions: capture.partitions,
        })
    }

    /// Ends a backup, whose root may be written then.
    ///
    /// # Errors
    /// `Invalid` when it was given up, and what every call may answer.
    pub async fn finish(&self, backup: BackupId) -> Result<BackupRevisions> {
        let request = v1::FinishBackupRequest {
            backup_id: id_bytes(backup),
        };
        let call = |mut client: Client| {
            let request = request.clone();
            async move { client.finish_backup(request).await }
        };
        let finished = self.call("finishing the backup", true, call).await?;
        Ok(BackupRevisions {
            start: finished.start_revision,
            end: finished.end_revision,
        })
    }

    /// Forgets a backup whose root is gone, so that what it kept may go. Answers the name of the
    /// cluster, whose backups are at the URL.
    ///
    /// # Errors
    /// `Invalid` when the backup is running, or the URL is not where the cluster's objects go; what
    /// every call may answer.
    pub async fn forget(&self, wanted: &ForgetBackup) -> Result<String> {
        let request = v1::ForgetBackupRequest {
            url: wanted.url.clone(),
            backup_id: wanted.backup.map(id_bytes).unwrap_or_default(),
            unfinished: wanted.unfinished,
        };
        let call = |mut client: Client| {
            let request = request.clone();
            async move { client.forget_backup(request).await }
        };
        let answer = self.call("forgetting the backup", true, call).await?;
        Ok(answer.cluster)
    }

    /// Brings a topic of a backup back, unless one of its name is there.
    ///
    /// # Errors
    /// `Invalid` when an id of its ledgers is in use here, and what every call may answer.
    pub async fn restore(&self, wanted: &RestoreTopic) -> Result<Restored> {
        let parts: Vec<v1::BackupFile> = wanted.files.iter().map(v1::BackupFile::from).collect();
        let request = v1::RestoreTopicRequest {
            url: wanted.url.clone(),
            cluster: wanted.cluster.clone(),
            backup_id: id_bytes(wanted.backup),
            topic: wanted.target().to_string(),
            parts,
            last_ledger_id: wanted.last_ledger.0,
            trim_after_ms: wanted.trim_after_ms,
            prepare: wanted.prepare,
            from_topic: match wanted.as_topic {
                Some(_) => wanted.topic.to_string(),
                None => String::new(),
            },
        };
        let call = |mut client: Client| {
            let request = request.clone();
            async move { client.restore_topic(request).await }
        };
        let answer = self.call("restoring the topic", true, call).await?;
        let unknown = || ClientError::Protocol("an outcome that is not known".to_owned());
        Ok(Restored {
            outcome: outcome(answer.outcome()).ok_or_else(unknown)?,
            totals: answer.totals.unwrap_or_default().into(),
        })
    }

    /// Brings tokens and grants of a backup back, where nothing stands in their place.
    ///
    /// # Errors
    /// `Invalid` when the cluster has no authentication, and what every call may answer.
    pub async fn restore_access(&self, wanted: &RestoreAccess) -> Result<RestoredAccess> {
        let request = v1::RestoreAccessRequest {
            url: wanted.url.clone(),
            cluster: wanted.cluster.clone(),
            backup_id: id_bytes(wanted.backup),
            lists: wanted.files.iter().map(v1::BackupFile::from).collect(),
            tenant: wanted.tenant.clone().unwrap_or_default(),
        };
        let call = |mut client: Client| {
            let request = request.clone();
            async move { client.restore_access(request).await }
        };
        let answer = self.call("restoring tokens and grants", true, call).await?;
        Ok(RestoredAccess {
            revocations: answer.revocations,
            tokens: answer.tokens,
            grants: answer.grants,
            kept: answer.kept,
            refused: answer.refused,
        })
    }

    async fn call<T, F, Fut>(&self, what: &'static str, idempotent: bool, call: F) -> Result<T>
    where
        F: Fn(Client) -> Fut,
        Fut: Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>,
    {
        let deadline = Deadline::after(self.context.operation_timeout);
        unary(&self.context, what, idempotent, deadline, |connection| {
            call(connection.backup())
        })
        .await
    }
}
