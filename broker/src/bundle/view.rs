//! Bundles and their owners as operators see them.

use aquifer_metadata::record;
use aquifer_model::id::BrokerId;
use aquifer_model::listener::Listeners;
use aquifer_model::topic::NamespaceName;
use aquifer_proto::v1::BundleOwnerRecord;

use crate::bundle::Bundle;
use crate::bundle::ownership::{self, broker_id};
use crate::context::Context;
use crate::error::BrokerError;

/// A bundle as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BundleView {
    pub(crate) bundle: Bundle,
    /// A bundle that was never used has no owner.
    pub(crate) owner: Option<BrokerId>,
    pub(crate) epoch: u64,
    pub(crate) listeners: Option<Listeners>,
}

/// The owners of a namespace's bundles.
///
/// # Errors
/// When metadata does not answer.
pub(crate) async fn list(
    shared: &Context,
    namespace: &NamespaceName,
) -> Result<Vec<BundleView>, BrokerError> {
    let (_, bundles) = shared.namespaces.record(namespace).await?;
    let mut views = Vec::new();
    for range in bundles.ranges() {
        let namespace = namespace.clone();
        views.push(view(shared, Bundle { namespace, range }).await?);
    }
    Ok(views)
}

/// The owner of one bundle.
///
/// # Errors
/// When metadata does not answer.
pub(super) async fn view(shared: &Context, bundle: Bundle) -> Result<BundleView, BrokerError> {
    let store = shared.ownership.store();
    let found = store.get(&ownership::key(&bundle)).await?;
    let record = match &found {
        Some(found) => record::decode::<BundleOwnerRecord>(found)?,
        None => BundleOwnerRecord::default(),
    };
    let owner = broker_id(&record.broker_id);
    let members = shared.ownership.cluster().map(|cluster| &cluster.members);
    let listeners = owner.and_then(|owner| members?.listeners(owner));
    Ok(BundleView {
        bundle,
        owner,
        epoch: record.epoch,
        listeners,
    })
}
