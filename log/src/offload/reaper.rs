//! What becomes of attempts that were given up and of objects of deleted ledgers. It looks at the
//! records of these and at nothing else; any number of processes may do it at once.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use aquifer_cold::location::Location;
use aquifer_ledger::objects::{self, DyingObject, PlannedObject};
use aquifer_model::id::BrokerId;

use crate::context::LogContext;
use crate::error::LogError;
use crate::offload::tier::ColdTier;
use crate::offload::upload::of_store;

/// How long a process must be gone before its attempts are given up.
const GONE_MIN: Duration = Duration::from_secs(60);
/// What an attempt may take beyond its own limit.
const LATE_MAX: Duration = Duration::from_secs(60);

/// What a look did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reaped {
    /// Attempts that were given up.
    pub given_up: usize,
    /// Objects that are gone.
    pub deleted: usize,
    /// Objects that are not gone yet.
    pub left: usize,
}

/// Gives up attempts whose process is gone or which take too long, and deletes objects that are to
/// go. `is_alive` says whether another process still lives.
///
/// # Errors
/// When metadata cannot be read. A store that does not answer is no error: its objects wait.
pub async fn reap(
    ctx: &LogContext,
    tier: &ColdTier,
    is_alive: impl Fn(BrokerId) -> bool,
) -> Result<Reaped, LogError> {
    let store = &*ctx.ledgers.store;
    let mut reaped = Reaped::default();
    let planned = objects::planned(store).await?;
    for dead in dead(ctx, tier, &planned, is_alive) {
        objects::give_up(store, dead.attempt).await?;
        tracing::info!(attempt = %dead.attempt, ledger = %dead.ledger, "attempt to offload a ledger given up");
        reaped.given_up += 1;
    }
    let mut locations: BTreeMap<u32, Result<Arc<Location>, LogError>> = BTreeMap::new();
    let all_dying = objects::dying(store).await?;
    tier.figures.set_under_way(planned.len(), all_dying.len());
    for dying in all_dying {
        if let Entry::Vacant(place) = locations.entry(dying.location) {
            let location = checked(tier, dying.location).await;
            if let Err(error) = &location {
                tracing::warn!(location = dying.location, %error, "objects that are to be deleted wait for their store");
            }
            place.insert(location);
        }
        let Some(Ok(location)) = locations.get(&dying.location) else {
            reaped.left += 1;
            continue;
        };
        match delete(ctx, location, &dying).await {
            Ok(true) => reaped.deleted += 1,
            Ok(false) => reaped.left += 1,
            Err(error) => {
                tracing::warn!(object = dying.name, %error, "object is not deleted yet");
                reaped.left += 1;
            }
        }
    }
    Ok(reaped)
}

/// The place, if it is certainly the right one: a name that does not exist elsewhere is no object
/// that is gone.
async fn checked(tier: &ColdTier, number: u32) -> Result<Arc<Location>, LogError> {
    let location = tier.locations.get(number).await.map_err(of_store)?;
    location.check().await.map_err(of_store)?;
    Ok(location)
}

/// Deletes an object and forgets it, unless it may still appear.
async fn delete(
    ctx: &LogContext,
    location: &Location,
    dying: &DyingObject,
) -> Result<bool, LogError> {
    let store = &location.store;
    if !dying.upload_id.is_empty() {
        let aborted = store.abort(&dying.name, &dying.upload_id).await;
        aborted.map_err(of_store)?;
    }
    store.delete(&dying.name).await.map_err(of_store)?;
    if dying.until_ms > ctx.ledgers.clock.wall_ms() {
        return Ok(false);
    }
    objects::forget(&*ctx.ledgers.store, dying).await?;
    tracing::debug!(object = dying.name, "object deleted");
    Ok(true)
}

/// The attempts that come to no end any more, by this process' own clock.
fn dead(
    ctx: &LogContext,
    tier: &ColdTier,
    planned: &[PlannedObject],
    is_alive: impl Fn(BrokerId) -> bool,
) -> Vec<PlannedObject> {
    let now = ctx.ledgers.clock.monotonic();
    let mut seen = tier.seen.lock();
    seen.retain(|attempt, _| planned.iter().any(|p| p.attempt == *attempt));
    let mut dead = Vec::new();
    for planned in planned {
        let (first, gone) = seen.entry(planned.attempt).or_insert((now, None));
        let is_dead = if planned.worker == tier.worker {
            !tier.active.lock().contains(&planned.attempt)
        } else {
            let limit = Duration::from_millis(planned.deadline_ms).saturating_add(LATE_MAX);
            *gone = match is_alive(planned.worker) {
                true => None,
                false => gone.or(Some(now)),
            };
            let is_gone = gone.is_some_and(|since| now.saturating_sub(since) >= GONE_MIN);
            is_gone || now.saturating_sub(*first) >= limit
        };
        if is_dead {
            dead.push(planned.clone());
        }
    }
    dead
}
