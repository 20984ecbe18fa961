//! Operation of the cluster: its brokers, bundles, load, bookies and ledgers.

use aquifer_model::bundle::BundleRange;
use aquifer_model::id::{BookieId, BrokerId, LedgerId};
use aquifer_model::inventory::{BookieView, LedgerView, ListedLedger};
use aquifer_model::load::LoadReport;
use aquifer_model::topic::{NamespaceName, TopicName};
use aquifer_protocol_api::access::{Access, Action, Resource};
use aquifer_protocol_api::admin::{Page, PageRequest};
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::error::ApiResult;
use aquifer_protocol_api::operator::{BrokerInfo, BundleInfo, Operator};
use async_trait::async_trait;
use tracing::info_span;

use crate::api::serve;
use crate::balance;
use crate::broker::Broker;

#[async_trait]
impl Operator for Broker {
    async fn list_brokers(&self, ctx: &RequestContext) -> ApiResult<Vec<BrokerInfo>> {
        serve!(
            self,
            ctx,
            "list_brokers",
            Action::Describe,
            Resource::Cluster,
            async { Ok(self.brokers()) }
        )
    }

    async fn list_bundles(
        &self,
        ctx: &RequestContext,
        namespace: NamespaceName,
    ) -> ApiResult<Vec<BundleInfo>> {
        serve!(
            self,
            ctx,
            "list_bundles",
            Action::Describe,
            Resource::Namespace(namespace.clone()),
            self.bundles(&namespace)
        )
    }

    async fn transfer_bundle(
        &self,
        ctx: &RequestContext,
        namespace: NamespaceName,
        bundle: BundleRange,
        broker: Option<BrokerId>,
    ) -> ApiResult<BrokerInfo> {
        serve!(
            self,
            ctx,
            "transfer_bundle",
            Action::Operate,
            Resource::Bundle(namespace.clone(), bundle),
            self.transfer(namespace, bundle, broker)
        )
    }

    async fn split_bundle(
        &self,
        ctx: &RequestContext,
        namespace: NamespaceName,
        bundle: BundleRange,
        at: Option<u32>,
    ) -> ApiResult<[BundleRange; 2]> {
        serve!(
            self,
            ctx,
            "split_bundle",
            Action::Operate,
            Resource::Bundle(namespace.clone(), bundle),
            self.split(namespace, bundle, at)
        )
    }

    async fn load_report(&self, ctx: &RequestContext) -> ApiResult<LoadReport> {
        serve!(
            self,
            ctx,
            "load_report",
            Action::Operate,
            Resource::Cluster,
            balance::report(&self.shared)
        )
    }

    async fn list_bookies(
        &self,
        ctx: &RequestContext,
        count_ledgers: bool,
    ) -> ApiResult<Vec<BookieView>> {
        serve!(
            self,
            ctx,
            "list_bookies",
            Action::Describe,
            Resource::Cluster,
            self.bookies(count_ledgers)
        )
    }

    async fn get_bookie(
        &self,
        ctx: &RequestContext,
        bookie: BookieId,
        count_ledgers: bool,
    ) -> ApiResult<BookieView> {
        serve!(
            self,
            ctx,
            "get_bookie",
            Action::Describe,
            Resource::Cluster,
            self.bookie(bookie, count_ledgers)
        )
    }

    async fn list_ledgers(
        &self,
        ctx: &RequestContext,
        page: PageRequest,
    ) -> ApiResult<Page<ListedLedger>> {
        serve!(
            self,
            ctx,
            "list_ledgers",
            Action::Operate,
            Resource::Cluster,
            self.ledgers(page)
        )
    }

    async fn list_topic_ledgers(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        page: PageRequest,
    ) -> ApiResult<Page<ListedLedger>> {
        serve!(
            self,
            ctx,
            "list_topic_ledgers",
            Action::Manage,
            Resource::Topic(topic.clone()),
            self.ledgers_of(&topic, page)
        )
    }

    async fn get_ledger(&self, ctx: &RequestContext, ledger: LedgerId) -> ApiResult<LedgerView> {
        serve!(
            self,
            ctx,
            "get_ledger",
            Action::Operate,
            Resource::Cluster,
            self.ledger(ledger)
        )
    }
}
