//! Administration and operation of the fake: only what handlers are checked with.

use aquifer_model::backup::{
    BackupBegun, BackupRevisions, BackupScope, ForgetBackup, RestoreAccess, RestoreTopic, Restored,
    RestoredAccess, TopicCapture,
};
use aquifer_model::bundle::BundleRange;
use aquifer_model::content::{Removed, TopicContent};
use aquifer_model::hash::KeyHash;
use aquifer_model::id::{BackupId, BookieId, BrokerId, Index, LedgerId};
use aquifer_model::inventory::{BookieView, LedgerView, ListedLedger};
use aquifer_model::load::LoadReport;
use aquifer_model::place::Place;
use aquifer_model::policy::{Policies, PolicyScope, PolicyUpdate, PolicyView};
use aquifer_model::ranges::TopicRanges;
use aquifer_model::stats::{OffloadProgress, TopicEnd, TopicStats};
use aquifer_model::subscription::Properties;
use aquifer_model::topic::{NamespaceName, SubscriptionName, TopicName};
use async_trait::async_trait;

use crate::admin::{
    Admin, Clear, Deletion, Page, PageRequest, Peeked, Reimport, Removal, SubscriptionReset,
    TopicDescription, TopicLayout,
};
use crate::backup::Backups;
use crate::conformance::fake::{FakeBroker, LIFE};
use crate::consumer::IndexRange;
use crate::context::RequestContext;
use crate::error::ApiResult;
use crate::operator::{BrokerInfo, BundleInfo, Operator};

#[async_trait]
impl Admin for FakeBroker {
    async fn create_tenant(&self, _ctx: &RequestContext, _tenant: String) -> ApiResult<()> {
        self.not_faked()
    }

    async fn delete_tenant(
        &self,
        _ctx: &RequestContext,
        _tenant: String,
        _how: Removal,
    ) -> ApiResult<Removed> {
        self.not_faked()
    }

    async fn delete_namespace(
        &self,
        _ctx: &RequestContext,
        _namespace: NamespaceName,
        _how: Removal,
    ) -> ApiResult<Removed> {
        self.not_faked()
    }

    async fn list_tenants(
        &self,
        _ctx: &RequestContext,
        _page: PageRequest,
    ) -> ApiResult<Page<String>> {
        self.not_faked()
    }

    async fn create_namespace(
        &self,
        _ctx: &RequestContext,
        _namespace: NamespaceName,
        _policies: Policies,
    ) -> ApiResult<PolicyView> {
        self.not_faked()
    }

    async fn get_policies(
        &self,
        _ctx: &RequestContext,
        _scope: PolicyScope,
    ) -> ApiResult<PolicyView> {
        self.not_faked()
    }

    async fn update_policies(
        &self,
        _ctx: &RequestContext,
        _scope: PolicyScope,
        _update: PolicyUpdate,
    ) -> ApiResult<PolicyView> {
        self.not_faked()
    }

    async fn list_namespaces(
        &self,
        _ctx: &RequestContext,
        _tenant: String,
        _page: PageRequest,
    ) -> ApiResult<Page<NamespaceName>> {
        self.not_faked()
    }

    async fn create_topic(
        &self,
        _ctx: &RequestContext,
        topic: TopicName,
        _partitions: u32,
    ) -> ApiResult<()> {
        self.called(&topic)
    }

    async fn describe_topic(
        &self,
        _ctx: &RequestContext,
        topic: TopicName,
        _create: bool,
    ) -> ApiResult<TopicLayout> {
        self.called(&topic)?;
        Ok(TopicLayout {
            topic,
            ranges: TopicRanges::default(),
            key_hash: KeyHash::default(),
            incarnation: LIFE,
        })
    }

    async fn delete_topic(
        &self,
        _ctx: &RequestContext,
        topic: TopicName,
        _how: Deletion,
    ) -> ApiResult<()> {
        self.called(&topic)
    }

    async fn delete_topic_dry_run(
        &self,
        _ctx: &RequestContext,
        topic: TopicName,
    ) -> ApiResult<TopicContent> {
        self.called(&topic)?;
        Ok(TopicContent::default())
    }

    async fn list_topics(
        &self,
        _ctx: &RequestContext,
        _namespace: NamespaceName,
        _page: PageRequest,
    ) -> ApiResult<Page<TopicDescription>> {
        self.not_faked()
    }

    async fn offload_topic(
        &self,
        _ctx: &RequestContext,
        topic: TopicName,
        _before: Place,
    ) -> ApiResult<OffloadProgress> {
        self.called(&topic)?;
        Ok(OffloadProgress::default())
    }

    async fn reimport_topic(
        &self,
        _ctx: &RequestContext,
        topic: TopicName,
        _what: Reimport,
    ) -> ApiResult<OffloadProgress> {
        self.called(&topic)?;
        Ok(OffloadProgress::default())
    }

    async fn grow_topic(
        &self,
        _ctx: &RequestContext,
        topic: TopicName,
        _partitions: u32,
    ) -> ApiResult<()> {
        self.called(&topic)
    }

    async fn unload_topic(&self, _ctx: &RequestContext, topic: TopicName) -> ApiResult<u32> {
        self.called(&topic)?;
        Ok(0)
    }

    async fn terminate_topic(
        &self,
        _ctx: &RequestContext,
        topic: TopicName,
    ) -> ApiResult<Vec<TopicEnd>> {
        self.called(&topic)?;
        Ok(Vec::new())
    }

    async fn topic_stats(&self, _ctx: &RequestContext, topic: TopicName) -> ApiResult<TopicStats> {
        self.called(&topic)?;
        Ok(TopicStats::default())
    }

    async fn delete_subscription(
        &self,
        _ctx: &RequestContext,
        topic: TopicName,
        _subscription: SubscriptionName,
        _force: bool,
    ) -> ApiResult<()> {
        self.called(&topic)
    }

    async fn create_subscription(
        &self,
        _ctx: &RequestContext,
        topic: TopicName,
        _subscription: SubscriptionName,
        _place: Place,
        _properties: Properties,
    ) -> ApiResult<Index> {
        self.called(&topic)?;
        Ok(Index(0))
    }

    async fn seek_subscription(
        &self,
        _ctx: &RequestContext,
        topic: TopicName,
        _subscription: SubscriptionName,
        _place: Place,
    ) -> ApiResult<Index> {
        self.called(&topic)?;
        Ok(Index(0))
    }

    async fn skip_messages(
        &self,
        _ctx: &RequestContext,
        _topic: TopicName,
        _subscription: SubscriptionName,
        _range: Option<IndexRange>,
    ) -> ApiResult<Vec<IndexRange>> {
        self.not_faked()
    }

    async fn clear_subscription(
        &self,
        _ctx: &RequestContext,
        topic: TopicName,
        _subscription: SubscriptionName,
        _clear: Clear,
    ) -> ApiResult<u64> {
        self.called(&topic)?;
        Ok(0)
    }

    async fn peek_messages(
        &self,
        _ctx: &RequestContext,
        topic: TopicName,
        _subscription: SubscriptionName,
        _limit: usize,
    ) -> ApiResult<Peeked> {
        self.called(&topic)?;
        Ok(Peeked::default())
    }

    async fn reset_subscriptions(
        &self,
        _ctx: &RequestContext,
        _topic: TopicName,
    ) -> ApiResult<Vec<SubscriptionReset>> {
        self.not_faked()
    }
}

#[async_trait]
impl Operator for FakeBroker {
    async fn list_brokers(&self, _ctx: &RequestContext) -> ApiResult<Vec<BrokerInfo>> {
        self.not_faked()
    }

    async fn list_bundles(
        &self,
        _ctx: &RequestContext,
        _namespace: NamespaceName,
    ) -> ApiResult<Vec<BundleInfo>> {
        self.not_faked()
    }

    async fn transfer_bundle(
        &self,
        _ctx: &RequestContext,
        _namespace: NamespaceName,
        _bundle: BundleRange,
        _broker: Option<BrokerId>,
    ) -> ApiResult<BrokerInfo> {
        self.not_faked()
    }

    async fn split_bundle(
        &self,
        _ctx: &RequestContext,
        _namespace: NamespaceName,
        _bundle: BundleRange,
        _at: Option<u32>,
    ) -> ApiResult<[BundleRange; 2]> {
        self.not_faked()
    }

    async fn load_report(&self, _ctx: &RequestContext) -> ApiResult<LoadReport> {
        self.not_faked()
    }

    async fn list_bookies(
        &self,
        _ctx: &RequestContext,
        _count_ledgers: bool,
    ) -> ApiResult<Vec<BookieView>> {
        self.not_faked()
    }

    async fn get_bookie(
        &self,
        _ctx: &RequestContext,
        _bookie: BookieId,
        _count_ledgers: bool,
    ) -> ApiResult<BookieView> {
        self.not_faked()
    }

    async fn list_ledgers(
        &self,
        _ctx: &RequestContext,
        _page: PageRequest,
    ) -> ApiResult<Page<ListedLedger>> {
        self.not_faked()
    }

    async fn list_topic_ledgers(
        &self,
        _ctx: &RequestContext,
        _topic: TopicName,
        _page: PageRequest,
    ) -> ApiResult<Page<ListedLedger>> {
        self.not_faked()
    }

    async fn get_ledger(&self, _ctx: &RequestContext, _ledger: LedgerId) -> ApiResult<LedgerView> {
        self.not_faked()
    }
}

#[async_trait]
impl Backups for FakeBroker {
    async fn begin_backup(
        &self,
        _ctx: &RequestContext,
        _url: String,
        _scope: BackupScope,
    ) -> ApiResult<BackupBegun> {
        self.not_faked()
    }

    async fn backup_topic(
        &self,
        _ctx: &RequestContext,
        _backup: BackupId,
        _topic: TopicName,
        _end: Option<Index>,
    ) -> ApiResult<TopicCapture> {
        self.not_faked()
    }

    async fn finish_backup(
        &self,
        _ctx: &RequestContext,
        _backup: BackupId,
    ) -> ApiResult<BackupRevisions> {
        self.not_faked()
    }

    async fn forget_backup(
        &self,
        _ctx: &RequestContext,
        _wanted: ForgetBackup,
    ) -> ApiResult<String> {
        self.not_faked()
    }

    async fn restore_topic(
        &self,
        _ctx: &RequestContext,
        _wanted: RestoreTopic,
    ) -> ApiResult<Restored> {
        self.not_faked()
    }

    async fn restore_access(
        &self,
        _ctx: &RequestContext,
        _wanted: RestoreAccess,
    ) -> ApiResult<RestoredAccess> {
        self.not_faked()
    }
}
