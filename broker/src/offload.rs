//! Offload of the ledgers of topics: on request, by policy also for those that are not loaded
//! (`planner.rs`), the scrub of objects (`scrub.rs`), and the clean-up behind it. What happens to
//! one ledger is in `aquifer_log::offload`.

pub(crate) mod planner;
mod scrub;

use std::sync::Arc;
use std::time::Duration;

use aquifer_log::delete_given_up;
use aquifer_log::offload::Offloading;
use aquifer_log::offload::reaper::{Reaped, reap};
use aquifer_model::place::Place;
use aquifer_model::stats::OffloadProgress;
use aquifer_model::topic::TopicName;
use aquifer_protocol_api::admin::Reimport;
use aquifer_runtime::clock;

use crate::broker::Broker;
use crate::context::Context;
use crate::error::BrokerError;

/// Between two looks at what failed attempts and deleted ledgers have left.
const REAP_PAUSE: Duration = Duration::from_secs(60);
/// Between two looks at the space of the bookies.
const SPACE_PAUSE: Duration = Duration::from_secs(10);

/// Starts to clean up, where objects are written or read.
pub(crate) fn start(shared: &Arc<Context>) {
    if shared.log.cold.is_none() {
        return;
    }
    let context = Arc::clone(shared);
    let token = shared.tasks.shutdown_token();
    // A server that stands alone has its objects on the disk that its bookie has.
    if shared.ownership.cluster().is_some() {
        let (context, token) = (Arc::clone(shared), token.clone());
        shared.tasks.spawn("bookie-pressure", async move {
            tokio::select! {
                () = watch_space(&context) => {}
                () = token.wait() => {}
            }
        });
    }
    let (scrubbed, ends) = (Arc::clone(&context), token.clone());
    shared.tasks.spawn("object-scrub", async move {
        tokio::select! {
            () = scrub::rounds(&scrubbed) => {}
            () = ends.wait() => {}
        }
    });
    shared.tasks.spawn("object-reaper", async move {
        tokio::select! {
            () = rounds(&context) => {}
            () = token.wait() => {}
        }
    });
}

/// Looks at the space of the bookies, which their registrations say: nothing is read for it.
async fn watch_space(shared: &Context) {
    let Some(tier) = &shared.log.cold else { return };
    loop {
        tier.pressure.look(&shared.log.ledgers.bookies.snapshot());
        clock::sleep(SPACE_PAUSE).await;
    }
}

async fn rounds(shared: &Context) {
    let Some(tier) = &shared.log.cold else { return };
    loop {
        // What is left by this process is reaped at once; the timer is for that of others.
        let pause = shared.rng.jitter(REAP_PAUSE);
        let _ = clock::timeout(pause, tier.has_left()).await;
        let is_alive = |broker| shared.ownership.is_announced(broker);
        match reap(&shared.log, tier, is_alive).await {
            Ok(reaped) if reaped == Reaped::default() => {}
            Ok(reaped) => tracing::debug!(?reaped, "looked for objects that are to go"),
            Err(error) => tracing::warn!(%error, "objects that are to go are looked for later"),
        }
        if let Err(error) = delete_given_up(&shared.log).await {
            tracing::warn!(%error, "restores that were given up are looked for later");
        }
    }
}

impl Broker {
    /// Has the ledgers of a topic or partition offloaded that are sealed and end at or before a
    /// place.
    pub(crate) async fn offload_here(
        &self,
        topic: &TopicName,
        before: Place,
    ) -> Result<OffloadProgress, BrokerError> {
        let door = self.topics.door(topic).await?;
        let below = door.log.locate(before).await?;
        progress(door.log.request_offload(below).await?)
    }

    /// Has the ledgers of a topic or partition brought back to bookies that have messages between
    /// two places, or ends that.
    pub(crate) async fn reimport_here(
        &self,
        topic: &TopicName,
        what: Reimport,
    ) -> Result<OffloadProgress, BrokerError> {
        let door = self.topics.door(topic).await?;
        let Reimport::Range { from, to } = what else {
            door.log.cancel_import();
            return Ok(OffloadProgress::default());
        };
        let range = door.log.locate(from).await?..door.log.locate(to).await?;
        progress(door.log.request_import(range).await?)
    }
}

/// What is left to be done; an error when the last attempt has failed.
fn progress(found: Offloading) -> Result<OffloadProgress, BrokerError> {
    match found.failure {
        Some(failure) => Err(failure.into()),
        None => Ok(OffloadProgress {
            ledgers: found.ledgers,
            bytes: found.bytes,
        }),
    }
}
