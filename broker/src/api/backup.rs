//! Backups, as protocols see them.

use aquifer_model::backup::{
    BackupBegun, BackupRevisions, BackupScope, ForgetBackup, RestoreAccess, RestoreTopic, Restored,
    RestoredAccess, TopicCapture,
};
use aquifer_model::id::{BackupId, Index};
use aquifer_model::topic::TopicName;
use aquifer_protocol_api::access::{Access, Action, Resource};
use aquifer_protocol_api::backup::Backups;
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::error::ApiResult;
use async_trait::async_trait;
use tracing::info_span;

use crate::api::serve;
use crate::broker::Broker;

#[async_trait]
impl Backups for Broker {
    async fn begin_backup(
        &self,
        ctx: &RequestContext,
        url: String,
        scope: BackupScope,
    ) -> ApiResult<BackupBegun> {
        serve!(
            self,
            ctx,
            "begin_backup",
            Action::Operate,
            Resource::Cluster,
            self.begin_backup_hold(&url, scope)
        )
    }

    async fn backup_topic(
        &self,
        ctx: &RequestContext,
        backup: BackupId,
        topic: TopicName,
        end: Option<Index>,
    ) -> ApiResult<TopicCapture> {
        serve!(
            self,
            ctx,
            "backup_topic",
            Action::Operate,
            Resource::Cluster,
            self.backup_topic_capture(backup, &topic, end)
        )
    }

    async fn finish_backup(
        &self,
        ctx: &RequestContext,
        backup: BackupId,
    ) -> ApiResult<BackupRevisions> {
        serve!(
            self,
            ctx,
            "finish_backup",
            Action::Operate,
            Resource::Cluster,
            self.finish_backup_hold(backup)
        )
    }

    async fn forget_backup(&self, ctx: &RequestContext, wanted: ForgetBackup) -> ApiResult<String> {
        serve!(
            self,
            ctx,
            "forget_backup",
            Action::Operate,
            Resource::Cluster,
            self.forget_backup_hold(wanted)
        )
    }

    async fn restore_topic(
        &self,
        ctx: &RequestContext,
        wanted: RestoreTopic,
    ) -> ApiResult<Restored> {
        serve!(
            self,
            ctx,
            "restore_topic",
            Action::Operate,
            Resource::Cluster,
            self.restore_topic_records(wanted)
        )
    }

    async fn restore_access(
        &self,
        ctx: &RequestContext,
        wanted: RestoreAccess,
    ) -> ApiResult<RestoredAccess> {
        serve!(
            self,
            ctx,
            "restore_access",
            Action::Operate,
            Resource::Cluster,
            self.restore_access_records(ctx, wanted)
        )
    }
}
