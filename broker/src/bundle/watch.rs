//! What metadata says about the bundles of this broker, followed: moves to other brokers, and
//! splits.

use std::sync::Arc;

use aquifer_metadata::record;
use aquifer_metadata::store::{Expect, Guard};
use aquifer_proto::v1::BundleOwnerRecord;

use crate::bundle::hand_over::hand_over;
use crate::bundle::ownership::{Cluster, Owned, broker_id};
use crate::bundle::split;
use crate::topic::event::Departure;
use crate::topics::Topics;

/// Follows what metadata says about the bundles of this broker.
pub(crate) fn start(topics: &Arc<Topics>) {
    let topics = Arc::clone(topics);
    let shared = Arc::clone(topics.shared());
    let token = shared.tasks.shutdown_token();
    shared.tasks.spawn("bundle-watch", async move {
        let Some(cluster) = topics.shared().ownership.cluster() else {
            return;
        };
        let mut changes = cluster.owners.changes();
        loop {
            tokio::select! {
                () = token.wait() => return,
                changed = changes.changed() => if changed.is_err() { return },
            }
            changes.borrow_and_update();
            for owned in topics.shared().ownership.all() {
                look(&topics, cluster, owned);
            }
        }
    });
}

/// Looks whether an ownership is still what metadata says.
fn look(topics: &Arc<Topics>, cluster: &Cluster, owned: Owned) {
    let Some(now) = cluster.owners.get(&owned.guard.key) else {
        split::seen(topics, cluster, &owned);
        return;
    };
    if now.revision <= owned.revision() {
        return; // the cache may be behind what this broker wrote itself
    }
    let me = topics.shared().id;
    let record: BundleOwnerRecord = match record::decode(&now) {
        Ok(record) => record,
        Err(error) => {
            tracing::error!(bundle = %owned.bundle, %error, "the owner of a bundle is unreadable");
            return;
        }
    };
    let is_mine = broker_id(&record.broker_id) == Some(me);
    let from_me = broker_id(&record.source_id) == Some(me) && record.source_epoch == owned.epoch.0;
    let at = broker_id(&record.broker_id).and_then(|owner| cluster.members.listeners(owner));
    let sealing = (!is_mine && from_me).then(|| Owned {
        guard: Guard {
            key: owned.guard.key.clone(),
            expect: Expect::Revision(now.revision),
        },
        ..owned.clone()
    });
    match sealing {
        Some(_) => topics.shared().ownership.given_up(&owned),
        None => topics.shared().ownership.lost(&owned),
    }
    let departure = Arc::new(Departure {
        sealing,
        at: at.unwrap_or_default(),
    });
    // Before anything else may begin with them.
    let leaving = topics.leave(&owned.bundle, &departure);
    let shared = Arc::clone(topics.shared());
    let sealing = Arc::clone(&shared);
    shared.tasks.spawn("bundle-hand-over", async move {
        hand_over(&sealing, &owned.bundle, &departure, leaving).await;
    });
}
