//! Operation of the cluster: its brokers, bundles and load.

use aquifer_model::bundle::BundleRange;
use aquifer_model::id::BrokerId;
use aquifer_model::load::LoadReport;
use aquifer_model::topic::NamespaceName;
use aquifer_protocol_api::access::{Access, Action, Resource};
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
}
