//! Moves of bundles: one update of the bundle's record, by any broker.

use std::time::Duration;

use aquifer_metadata::keys;
use aquifer_metadata::record;
use aquifer_metadata::store::Versioned;
use aquifer_metadata::update::{Change, UpdateError};
use aquifer_model::id::BrokerId;
use aquifer_proto::v1::BundleOwnerRecord;
use aquifer_runtime::clock;

use crate::bundle::Bundle;
use crate::bundle::ownership::{self, broker_id};
use crate::bundle::view::view;
use crate::context::Context;
use crate::error::BrokerError;
use crate::members::Member;

/// How long a move is waited for to appear among the owners that this broker follows.
const SEEN_MAX: Duration = Duration::from_secs(10);

/// Moves a bundle to a broker that is chosen, or named.
///
/// # Errors
/// When there is no such bundle or broker, or metadata does not answer.
pub(crate) async fn transfer(
    shared: &Context,
    bundle: &Bundle,
    target: Option<BrokerId>,
) -> Result<Member, BrokerError> {
    let cluster = shared.ownership.cluster().ok_or_else(alone)?;
    let (_, bundles) = shared.namespaces.record(&bundle.namespace).await?;
    bundles.check(bundle)?;
    let owner = view(shared, bundle.clone()).await?.owner;
    let chosen = match target {
        Some(target) => cluster
            .members
            .all()
            .into_iter()
            .find(|member| member.id == target),
        None => cluster.members.choose(&bundle.to_string(), owner),
    };
    let chosen = chosen.ok_or_else(|| BrokerError::NotFound {
        what: "broker",
        name: target.map_or_else(|| "that could take it".to_owned(), |id| id.to_string()),
        advice: "`aquifer cluster brokers` lists those that are there".to_owned(),
    })?;
    if owner != Some(chosen.id) {
        transfer_to(shared, bundle, &chosen).await?;
    }
    Ok(chosen)
}

/// Moves a bundle of a certain broker to another one; `false` when it is not that one's any more.
///
/// # Errors
/// When metadata does not answer, or the record keeps changing.
pub(crate) async fn transfer_from(
    shared: &Context,
    bundle: &Bundle,
    from: BrokerId,
    target: &Member,
) -> Result<bool, BrokerError> {
    write_transfer(shared, bundle, Some(from), target).await
}

/// Moves a bundle to a broker, whichever owns it now.
///
/// # Errors
/// When metadata does not answer, or the record keeps changing.
pub(super) async fn transfer_to(
    shared: &Context,
    bundle: &Bundle,
    target: &Member,
) -> Result<(), BrokerError> {
    write_transfer(shared, bundle, None, target).await.map(drop)
}

/// Moves a bundle, of a certain broker only if one is given; `false` when it is not that one's.
async fn write_transfer(
    shared: &Context,
    bundle: &Bundle,
    from: Option<BrokerId>,
    target: &Member,
) -> Result<bool, BrokerError> {
    let partition = keys::partition_of_namespace(&bundle.namespace);
    let decide = |stored: Option<Versioned>| {
        let record = match &stored {
            Some(found) => record::decode(found)?,
            // Without a record, the bundle may be none any more.
            None if from.is_some() => return Ok(Change::none(None)),
            None => BundleOwnerRecord::default(),
        };
        let (owner, source) = (broker_id(&record.broker_id), broker_id(&record.source_id));
        if from.is_none_or(|from| source == Some(from)) && owner == Some(target.id) {
            // It is there, perhaps by an attempt whose answer did not come.
            return Ok(Change::none(stored.map(|found| found.revision)));
        }
        if from.is_some_and(|from| owner != Some(from)) {
            return Ok(Change::none(None));
        }
        let moved = BundleOwnerRecord {
            broker_id: target.id.0.to_vec().into(),
            epoch: record.epoch + 1,
            source_id: record.broker_id,
            source_epoch: record.epoch,
        };
        Ok(Change::put(&partition, record::encode(moved), None))
    };
    let store = shared.ownership.store();
    let key = ownership::key(bundle);
    let updated = store.update(&key, &[], |stored| std::future::ready(decide(stored)));
    let updated = updated.await.map_err(UpdateError::<BrokerError>::flatten)?;
    let Some(revision) = updated.applied.or(updated.answer) else {
        return Ok(false);
    };
    tracing::info!(%bundle, to = %target.id, "bundle is given to another broker");
    if let Some(cluster) = shared.ownership.cluster() {
        // So that an answer about the owner that follows is the new one.
        let reached = cluster.owners.reached(revision);
        if clock::timeout(SEEN_MAX, reached).await.is_err() {
            tracing::debug!("the owners are not seen in time");
        }
    }
    Ok(true)
}

fn alone() -> BrokerError {
    BrokerError::invalid(
        "this broker is a standalone server",
        "bundles move in clusters, between brokers",
    )
}
