//! What becomes of attempts that were given up and of objects of deleted ledgers. It looks at the
//! records of these and at nothing else; any number of processes may do it at once.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use aquifer_cold::location::Location;
use aquifer_cold::replaced;
use aquifer_ledger::holds::{self, Hold};
use aquifer_ledger::objects::{self, Dying, DyingObject, PlannedObject, tasks};
use aquifer_model::id::BrokerId;

use crate::context::LogContext;
use crate::error::LogError;
use crate::offload::adopt::adopt_dead;
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
    /// Attempts whose object was whole, and that have come to their end so.
    pub adopted: usize,
    /// Objects that are gone.
    pub deleted: usize,
    /// Objects that are not gone yet.
    pub left: usize,
    /// Objects that are kept for backups.
    pub kept: usize,
}

/// Ends attempts whose process is gone or which take too long: one whose object is whole is
/// committed, and the others are given up. Deletes objects that are to go. `is_alive` says whether
/// another process still lives.
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
    // After what is planned: an offloader is announced before it begins anything.
    let offloaders = tasks::offloaders(store).await?;
    let is_alive = |worker| is_alive(worker) || offloaders.contains(&worker);
    for dead in dead(ctx, tier, &planned, is_alive) {
        match adopt_dead(ctx, tier, &dead).await {
            Ok(true) => {
                reaped.adopted += 1;
                continue;
            }
            Ok(false) => {}
            // What is not known to be whole is written again.
            Err(error) => tracing::debug!(attempt = %dead.attempt, %error, "no object is taken"),
        }
        if let Err(error) = objects::give_up(store, dead.attempt).await {
            // It keeps nothing else from being cleaned up.
            tracing::warn!(attempt = %dead.attempt, ledger = %dead.ledger, %error, "attempt is given up later");
            continue;
        }
        tracing::info!(attempt = %dead.attempt, ledger = %dead.ledger, "attempt to offload a ledger given up");
        reaped.given_up += 1;
    }
    let mut locations = BTreeMap::new();
    let (mut pages, mut dying) = (Dying::new(store), 0);
    while let Some(page) = pages.next().await? {
        dying += page.len();
        reap_page(ctx, tier, page, &mut locations, &mut reaped).await?;
    }
    tier.figures.set_under_way(planned.len(), dying);
    Ok(reaped)
}

/// Places that were looked at in this round.
type Places = BTreeMap<u32, Result<Arc<Location>, LogError>>;

async fn reap_page(
    ctx: &LogContext,
    tier: &ColdTier,
    page: Vec<DyingObject>,
    locations: &mut Places,
    reaped: &mut Reaped,
) -> Result<(), LogError> {
    // After what is dying: a backup that is not there yet names nothing of it.
    let holds = holds(ctx).await?;
    for dying in page {
        if holds.iter().any(|hold| hold.keeps(&dying)) {
            reaped.kept += 1;
            continue;
        }
        let location = match locations.entry(dying.location) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(vacant) => {
                let location = checked(tier, dying.location).await;
                if let Err(error) = &location {
                    tracing::warn!(location = dying.location, %error, "objects that are to be deleted wait for their store");
                }
                vacant.insert(location)
            }
        };
        let Ok(location) = location else {
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
    Ok(())
}

/// The backups that keep objects. One that was given up is forgotten.
async fn holds(ctx: &LogContext) -> Result<Vec<Hold>, LogError> {
    let (store, now_ms) = (&*ctx.ledgers.store, ctx.ledgers.clock.wall_ms());
    let mut found = Vec::new();
    for hold in holds::all(store).await? {
        if hold.is_abandoned(now_ms) {
            tracing::warn!(backup = %hold.id, url = hold.url, "backup was never finished, and keeps nothing any more");
            let is_gone = holds::forget(store, hold.id, |hold| hold.is_abandoned(now_ms)).await?;
            if is_gone {
                continue;
            }
            // It was finished a moment ago. As it was read it keeps more, not less.
        }
        found.push(hold);
    }
    Ok(found)
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
    // A topic that was restored may have it again.
    if !objects::is_dying(&*ctx.ledgers.store, dying).await? {
        return Ok(true);
    }
    if location.is_foreign {
        // The ledger that was restored from it is gone; the object is another cluster's.
        objects::forget(&*ctx.ledgers.store, dying).await?;
        return Ok(true);
    }
    let store = &location.store;
    if !dying.upload_id.is_empty() {
        let aborted = store.abort(&dying.name, &dying.upload_id).await;
        aborted.map_err(of_store)?;
    }
    store.delete(&dying.name).await.map_err(of_store)?;
    if dying.until_ms > ctx.ledgers.clock.wall_ms() {
        return Ok(false);
    }
    if dying.replaced {
        let forgotten = replaced::forget(&**store, &location.owner, dying.attempt).await;
        forgotten.map_err(of_store)?;
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
