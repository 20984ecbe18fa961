//! The end of a broker in a cluster: its bundles go to the other brokers, while it serves still.

use std::sync::Arc;
use std::time::Duration;

use aquifer_metadata::error::MetadataError;
use aquifer_runtime::clock;

use crate::bundle::ownership::DRAIN_MAX;
use crate::bundle::transfer::transfer_to;
use crate::error::BrokerError;
use crate::topics::Topics;

/// How long it may take until other brokers know that this one ends.
const ANNOUNCE_MAX: Duration = Duration::from_secs(3);

/// Gives everything away before this broker ends.
pub(crate) async fn drain(topics: &Arc<Topics>) {
    let shared = topics.shared();
    let Some(cluster) = shared.ownership.cluster() else {
        return;
    };
    // Without metadata nothing can be moved: the next owner fences.
    let announced = clock::timeout(ANNOUNCE_MAX, cluster.members.announce_draining());
    if announced.await.is_err() {
        tracing::warn!("metadata does not answer: bundles are not handed over");
        return;
    }
    for owned in shared.ownership.all() {
        let Some(target) = cluster
            .members
            .choose(&owned.bundle.to_string(), Some(shared.id))
        else {
            tracing::info!("no other broker is there: topics end here");
            return;
        };
        match transfer_to(shared, &owned.bundle, &target).await {
            Ok(()) => {}
            Err(BrokerError::Metadata(
                MetadataError::Unavailable(why) | MetadataError::Full(why),
            )) => {
                tracing::warn!(why, "metadata does not answer: bundles are not handed over");
                return;
            }
            Err(error) => {
                tracing::warn!(bundle = %owned.bundle, %error, "bundle is not handed over");
            }
        }
    }
    // The watch that sees these moves ends the topics; it is over when none of them is left.
    topics.wait_empty(DRAIN_MAX).await;
}
