//! The former owner's part of a hand-over: its topics end, and seal their ledgers for the new
//! owner.

use std::sync::Arc;
use std::time::Duration;

use aquifer_runtime::clock;
use futures::future::join_all;

use crate::bundle::Bundle;
use crate::context::Context;
use crate::topic::event::Departure;
use crate::topic::handle::TopicHandle;

/// How long a topic with clients keeps its permit at least. Its clients reach the new owner
/// meanwhile, which does more work for each of them than this broker, and would be slow if all came
/// at once.
const PERMIT_MIN: Duration = Duration::from_millis(20);
/// How long one topic may take to seal before another one gets its permit.
const SEAL_MAX: Duration = Duration::from_secs(10);

/// Ends the topics of a bundle that another broker owns. When their ledgers are to be sealed, a few
/// end at a time, over all bundles; otherwise all end at once.
pub(super) async fn hand_over(
    shared: &Context,
    bundle: &Bundle,
    departure: &Arc<Departure>,
    leaving: Vec<TopicHandle>,
) {
    let is_sealing = departure.sealing.is_some();
    let end = async |handle: &TopicHandle| {
        // The semaphore is never closed.
        let permit = match is_sealing {
            true => shared.sealing.acquire().await.ok(),
            false => None,
        };
        let least = match &permit {
            Some(_) if handle.counters.now().sessions > 0 => PERMIT_MIN,
            Some(_) | None => Duration::ZERO,
        };
        let least = clock::sleep(least);
        handle.moved(departure);
        if clock::timeout(SEAL_MAX, handle.wait_ended()).await.is_err() {
            tracing::warn!(%bundle, "a topic that moves does not end in time");
        }
        least.await;
        drop(permit);
    };
    join_all(leaving.iter().map(end)).await;
    let (topics, to) = (leaving.len(), departure.at.to_string());
    tracing::info!(%bundle, topics, to, handed_over = is_sealing, "bundle moved away");
}
