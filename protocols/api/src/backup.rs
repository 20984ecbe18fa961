//! The port of backups.

use aquifer_model::backup::{
    BackupBegun, BackupRevisions, BackupScope, ForgetBackup, RestoreAccess, RestoreTopic, Restored,
    RestoredAccess, TopicCapture,
};
use aquifer_model::id::{BackupId, Index};
use aquifer_model::topic::TopicName;
use async_trait::async_trait;

use crate::context::RequestContext;
use crate::error::ApiResult;

/// What a tool needs to back topics up and to bring them back.
#[async_trait]
pub trait Backups: Send + Sync + 'static {
    /// Begins a backup into the place where objects go: what dies from now on is kept for it.
    async fn begin_backup(
        &self,
        ctx: &RequestContext,
        url: String,
        scope: BackupScope,
    ) -> ApiResult<BackupBegun>;

    /// Captures a topic: without an end its subscriptions as they are now, and the end; with that
    /// end its ledgers, once they are in objects. Until then it says what is left: repeat it.
    async fn backup_topic(
        &self,
        ctx: &RequestContext,
        backup: BackupId,
        topic: TopicName,
        end: Option<Index>,
    ) -> ApiResult<TopicCapture>;

    /// Ends a backup: its root may be written.
    async fn finish_backup(
        &self,
        ctx: &RequestContext,
        backup: BackupId,
    ) -> ApiResult<BackupRevisions>;

    /// Forgets a backup whose root is gone; one that is not finished only if that is said. Answers
    /// the name of the cluster, whose backups are at the URL.
    async fn forget_backup(&self, ctx: &RequestContext, wanted: ForgetBackup) -> ApiResult<String>;

    /// Brings a topic back, unless one of its name is there.
    async fn restore_topic(
        &self,
        ctx: &RequestContext,
        wanted: RestoreTopic,
    ) -> ApiResult<Restored>;

    /// Brings tokens and grants back, where nothing stands in their place. What the caller may not
    /// give is left out.
    async fn restore_access(
        &self,
        ctx: &RequestContext,
        wanted: RestoreAccess,
    ) -> ApiResult<RestoredAccess>;
}
