//! Brokers and bundles, as operators see and move them.

use aquifer_model::bundle::BundleRange;
use aquifer_model::id::BrokerId;
use aquifer_model::listener::Listeners;
use aquifer_model::topic::NamespaceName;
use aquifer_protocol_api::operator::{BrokerInfo, BundleInfo};

use crate::balance;
use crate::broker::Broker;
use crate::bundle::view::BundleView;
use crate::bundle::{Bundle, split, transfer, view};
use crate::error::BrokerError;
use crate::members::Member;

impl Broker {
    pub(super) fn brokers(&self) -> Vec<BrokerInfo> {
        let Some(cluster) = self.shared.ownership.cluster() else {
            return vec![BrokerInfo {
                broker: self.shared.id,
                listeners: Listeners::default(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                draining: false,
                is_self: true,
            }];
        };
        let all = cluster.members.all().into_iter();
        all.map(|member| self.info(member)).collect()
    }

    fn info(&self, member: Member) -> BrokerInfo {
        BrokerInfo {
            is_self: member.id == self.shared.id,
            broker: member.id,
            listeners: member.listeners,
            version: member.version,
            draining: member.draining,
        }
    }

    pub(super) async fn bundles(
        &self,
        namespace: &NamespaceName,
    ) -> Result<Vec<BundleInfo>, BrokerError> {
        let views = view::list(&self.shared, namespace).await?;
        let info = |view: BundleView| BundleInfo {
            range: view.bundle.range,
            broker: view.owner,
            listeners: view.listeners,
            epoch: view.epoch,
        };
        Ok(views.into_iter().map(info).collect())
    }

    pub(super) async fn transfer(
        &self,
        namespace: NamespaceName,
        range: BundleRange,
        target: Option<BrokerId>,
    ) -> Result<BrokerInfo, BrokerError> {
        let bundle = Bundle { namespace, range };
        let chosen = transfer::transfer(&self.shared, &bundle, target).await?;
        Ok(self.info(chosen))
    }

    pub(super) async fn split(
        &self,
        namespace: NamespaceName,
        range: BundleRange,
        at: Option<u32>,
    ) -> Result<[BundleRange; 2], BrokerError> {
        let bundle = Bundle { namespace, range };
        let at = match at {
            Some(at) => Some(at),
            None => balance::split_at(&self.shared, &bundle).await,
        };
        let parts = split::split(&self.shared, &bundle, at).await?;
        Ok(parts.map(|part| part.range))
    }
}
