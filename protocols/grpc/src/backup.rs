//! Backups: every method parses, calls once and converts.

use aquifer_model::backup::{ForgetBackup, RestoreAccess, RestoreTopic, TopicCapture};
use aquifer_model::id::{BackupId, Index, LedgerId};
use aquifer_proto::convert::backup::{files, scope};
use aquifer_proto::v1;
use aquifer_protocol_api::error::ApiResult;
use bytes::Bytes;
use tonic::{Request, async_trait};

use crate::convert::{id16, invalid, topic};
use crate::service::{Answer, Service};

fn id(bytes: &Bytes) -> ApiResult<BackupId> {
    id16("the id of a backup", bytes)
}

#[async_trait]
impl v1::backup_server::Backup for Service {
    async fn begin_backup(
        &self,
        request: Request<v1::BeginBackupRequest>,
    ) -> Answer<v1::BeginBackupResponse> {
        self.unary("begin_backup", request, |broker, ctx, r| async move {
            let scope = scope(&r.tenant, &r.topic).map_err(invalid)?;
            let begun = broker.begin_backup(&ctx, r.url, scope).await?;
            Ok(v1::BeginBackupResponse {
                backup_id: Bytes::copy_from_slice(&begun.id.0),
                cluster: begun.cluster,
                start_revision: begun.start_revision,
                lists: begun.lists.iter().map(v1::BackupFile::from).collect(),
            })
        })
        .await
    }

    async fn backup_topic(
        &self,
        request: Request<v1::BackupTopicRequest>,
    ) -> Answer<v1::BackupTopicResponse> {
        self.unary("backup_topic", request, |broker, ctx, r| async move {
            let (backup, topic) = (id(&r.backup_id)?, topic(&r.topic)?);
            let end = r.end_index.map(Index);
            let capture = broker.backup_topic(&ctx, backup, topic, end).await?;
            Ok(wire_capture(capture))
        })
        .await
    }

    async fn finish_backup(
        &self,
        request: Request<v1::FinishBackupRequest>,
    ) -> Answer<v1::FinishBackupResponse> {
        self.unary("finish_backup", request, |broker, ctx, r| async move {
            let revisions = broker.finish_backup(&ctx, id(&r.backup_id)?).await?;
            Ok(v1::FinishBackupResponse {
                start_revision: revisions.start,
                end_revision: revisions.end,
            })
        })
        .await
    }

    async fn forget_backup(
        &self,
        request: Request<v1::ForgetBackupRequest>,
    ) -> Answer<v1::ForgetBackupResponse> {
        self.unary("forget_backup", request, |broker, ctx, r| async move {
            let backup = match r.backup_id.is_empty() {
                true => None,
                false => Some(id(&r.backup_id)?),
            };
            let wanted = ForgetBackup {
                url: r.url,
                backup,
                unfinished: r.unfinished,
            };
            let cluster = broker.forget_backup(&ctx, wanted).await?;
            Ok(v1::ForgetBackupResponse { cluster })
        })
        .await
    }

    async fn restore_topic(
        &self,
        request: Request<v1::RestoreTopicRequest>,
    ) -> Answer<v1::RestoreTopicResponse> {
        self.unary("restore_topic", request, |broker, ctx, r| async move {
            let restored = broker.restore_topic(&ctx, restore_request(r)?).await?;
            Ok(v1::RestoreTopicResponse {
                outcome: v1::RestoreOutcome::from(restored.outcome).into(),
                totals: Some(restored.totals.into()),
            })
        })
        .await
    }

    async fn restore_access(
        &self,
        request: Request<v1::RestoreAccessRequest>,
    ) -> Answer<v1::RestoreAccessResponse> {
        self.unary("restore_access", request, |broker, ctx, r| async move {
            check_cluster(&r.cluster)?;
            let wanted = RestoreAccess {
                backup: id(&r.backup_id)?,
                files: files(r.lists).map_err(invalid)?,
                url: r.url,
                cluster: r.cluster,
                tenant: Some(r.tenant).filter(|tenant| !tenant.is_empty()),
            };
            let restored = broker.restore_access(&ctx, wanted).await?;
            Ok(v1::RestoreAccessResponse {
                revocations: restored.revocations,
                tokens: restored.tokens,
                grants: restored.grants,
                kept: restored.kept,
                refused: restored.refused,
            })
        })
        .await
    }
}

fn check_cluster(name: &str) -> ApiResult<()> {
    let legal = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
    match !name.is_empty() && name.bytes().all(legal) {
        true => Ok(()),
        false => Err(invalid("the cluster of a backup is its name")),
    }
}

fn restore_request(r: v1::RestoreTopicRequest) -> ApiResult<RestoreTopic> {
    check_cluster(&r.cluster)?;
    let target = topic(&r.topic)?;
    let (topic, as_topic) = match r.from_topic.as_str() {
        "" => (target, None),
        from => (topic(from)?, Some(target)),
    };
    Ok(RestoreTopic {
        backup: id(&r.backup_id)?,
        topic,
        as_topic,
        files: files(r.parts).map_err(invalid)?,
        url: r.url,
        cluster: r.cluster,
        last_ledger: LedgerId(r.last_ledger_id),
        trim_after_ms: r.trim_after_ms,
        prepare: r.prepare,
    })
}

fn wire_capture(capture: TopicCapture) -> v1::BackupTopicResponse {
    v1::BackupTopicResponse {
        end_index: capture.end.0,
        ledgers_left: capture.ledgers_left,
        bytes_left: capture.bytes_left,
        parts: capture.files.iter().map(v1::BackupFile::from).collect(),
        totals: capture.totals.map(v1::BackupTotals::from),
        partitions: capture.partitions,
        subscriptions: capture.subscriptions,
    }
}
