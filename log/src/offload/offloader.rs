//! The work of an offloader: ledgers that brokers leave to it go into objects. It owns no topic,
//! and changes records of ledgers and objects alone; copies at bookies are dropped by the owners of
//! the topics, who know what a load reads.
//!
//! Invariants:
//! - A task is ended only when its ledger is in an object or gone, so that whatever an offloader
//!   that dies has begun is begun again by another: the reaper gives its claims up once its lease
//!   is gone.
//! - Of several that take one task, one commits: the others find another claim in the ledger's
//!   record (H22).
//! - It is announced before its first claim, or the reaper of another process would take it for
//!   dead.

use std::collections::BTreeMap;
use std::time::Duration;

use aquifer_ledger::ledger_metadata::{self, LedgerState};
use aquifer_ledger::objects::tasks::{self, OffloadTask, Tasks};
use aquifer_model::id::LedgerId;
use aquifer_runtime::clock;
use aquifer_runtime::task::ShutdownToken;
use futures::StreamExt;
use futures::stream;

use crate::context::LogContext;
use crate::error::LogError;
use crate::metrics::AttemptOutcome;
use crate::offload::care::LEDGER_REST;
use crate::offload::reaper::reap;
use crate::offload::tier::ColdTier;
use crate::offload::upload::{Origin, Outcome, offload_ledger};

/// Between two looks at what is left to offloaders.
const LOOK_PAUSE: Duration = Duration::from_secs(2);
/// Between two looks at what failed attempts have left.
const REAP_PAUSE: Duration = Duration::from_secs(60);
/// One whose attempt failed otherwise: others may be faster.
const RETRY_REST: Duration = Duration::from_secs(30);

/// What a look at the tasks came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Looked {
    /// Tasks that were found.
    pub(crate) found: usize,
    /// Ledgers that this process has brought into objects.
    pub(crate) stored: usize,
    /// Tasks that failed, and are tried again.
    pub(crate) failed: usize,
}

/// Ledgers that wait after a failure, until when on the monotonic clock.
#[derive(Debug, Default)]
pub(crate) struct Rests(BTreeMap<LedgerId, Duration>);

/// Offloads what brokers leave, until it is told to end. What has begun by then is finished.
pub async fn work(ctx: &LogContext, ends: &ShutdownToken) {
    let Some(tier) = &ctx.cold else { return };
    let mut rests = Rests::default();
    while !ends.is_shutdown() {
        match look(ctx, tier, &mut rests, ends).await {
            Ok(looked) if looked == Looked::default() => {}
            Ok(looked) => tracing::debug!(?looked, "looked for ledgers to offload"),
            Err(error) => tracing::warn!(%error, "ledgers to offload are looked for later"),
        }
        tokio::select! {
            () = clock::sleep(ctx.ledgers.rng.jitter(LOOK_PAUSE)) => {}
            () = ends.wait() => {}
        }
    }
}

/// Cleans up what attempts have left, until it is told to end.
pub async fn clean_up(ctx: &LogContext, ends: &ShutdownToken) {
    let Some(tier) = &ctx.cold else { return };
    while !ends.is_shutdown() {
        let pause = ctx.ledgers.rng.jitter(REAP_PAUSE);
        tokio::select! {
            // What is left by this process is reaped at once.
            _ = clock::timeout(pause, tier.has_left()) => {}
            () = ends.wait() => return,
        }
        // Those that live now had been announced before they claimed anything.
        let reaped = match tasks::brokers(&*ctx.ledgers.store).await {
            Ok(brokers) => reap(ctx, tier, |broker| brokers.contains(&broker)).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = reaped {
            tracing::warn!(%error, "objects that are to go are looked for later");
        }
    }
}

/// Looks at all tasks once, and does those that it can.
///
/// # Errors
/// When the tasks cannot be read. A task that fails keeps no other.
pub(crate) async fn look(
    ctx: &LogContext,
    tier: &ColdTier,
    rests: &mut Rests,
    ends: &ShutdownToken,
) -> Result<Looked, LogError> {
    let now = ctx.ledgers.clock.monotonic();
    rests.0.retain(|_, until| *until > now);
    let (mut looked, mut oldest_ms) = (Looked::default(), 0);
    let mut pages = Tasks::new(&*ctx.ledgers.store);
    while let Some(mut page) = pages.next().await? {
        looked.found += page.len();
        let asked = page.iter().map(|task| task.asked_ms).min();
        oldest_ms = match (oldest_ms, asked) {
            (0, asked) => asked.unwrap_or(0),
            (oldest, asked) => asked.map_or(oldest, |asked| oldest.min(asked)),
        };
        tier.figures.found_tasks(looked.found, oldest_ms);
        page.retain(|task| !rests.0.contains_key(&task.ledger));
        // Offloaders that look at once begin at different places.
        let turn = ctx.ledgers.rng.next_u64() % page.len().max(1) as u64;
        page.rotate_left(usize::try_from(turn).unwrap_or(0));
        let begins = page.into_iter().take_while(|_| !ends.is_shutdown());
        let mut done = stream::iter(begins)
            .map(|task| one(ctx, tier, task))
            .buffer_unordered(tier.settings.workers_max.max(1));
        while let Some((ledger, outcome)) = done.next().await {
            match outcome {
                Ok(is_stored) => looked.stored += usize::from(is_stored),
                Err(error) => {
                    let rest = match error {
                        LogError::Damaged(_) | LogError::Invalid(_) => LEDGER_REST,
                        _ => RETRY_REST,
                    };
                    tracing::warn!(%ledger, %error, "ledger is not offloaded, and is tried again later");
                    let until = ctx.ledgers.clock.monotonic().saturating_add(rest);
                    rests.0.insert(ledger, until);
                    looked.failed += 1;
                }
            }
        }
    }
    tier.figures.set_tasks(looked.found, oldest_ms);
    Ok(looked)
}

/// Does a task; says whether this process has brought the ledger into an object.
async fn one(
    ctx: &LogContext,
    tier: &ColdTier,
    task: OffloadTask,
) -> (LedgerId, Result<bool, LogError>) {
    // Never closed.
    let _turn = tier.workers.acquire().await.ok();
    let done = attempt(ctx, tier, &task).await;
    (task.ledger, done)
}

async fn attempt(ctx: &LogContext, tier: &ColdTier, task: &OffloadTask) -> Result<bool, LogError> {
    let store = &*ctx.ledgers.store;
    let Some(info) = ledger_metadata::load(store, task.ledger).await? else {
        // It went with its topic, or was trimmed.
        tasks::end(store, task).await?;
        return Ok(false);
    };
    let bytes = match info.state {
        LedgerState::Closed(end) => end.length,
        LedgerState::Open | LedgerState::InRecovery => 0,
    };
    let origin = Origin {
        topic: task.topic.clone(),
        incarnation: task.incarnation.clone(),
    };
    let what = (task.ledger, task.compression);
    let outcome = match offload_ledger(ctx, tier, &origin, what).await {
        Ok(outcome) => outcome,
        Err(error) => return failed(ctx, task, error).await,
    };
    let told = match outcome {
        Outcome::Stored => AttemptOutcome::Stored,
        Outcome::NothingToDo | Outcome::Busy | Outcome::Left => AttemptOutcome::Spared,
    };
    ctx.metrics.attempted(told);
    match outcome {
        Outcome::Stored => {
            ctx.metrics.offloaded_bytes.add(bytes, &[]);
            tasks::end(store, task).await?;
            Ok(true)
        }
        Outcome::NothingToDo => {
            tasks::end(store, task).await?;
            Ok(false)
        }
        // The task stays, until that attempt has come to an end.
        Outcome::Busy | Outcome::Left => Ok(false),
    }
}

/// What a failure means: another attempt that was faster is no failure.
async fn failed(ctx: &LogContext, task: &OffloadTask, error: LogError) -> Result<bool, LogError> {
    let found = ledger_metadata::load(&*ctx.ledgers.store, task.ledger).await?;
    let (told, is_failure) = match found {
        None => (AttemptOutcome::Trimmed, false),
        Some(info) if info.offload.is_some() => (AttemptOutcome::Spared, false),
        Some(_) => (AttemptOutcome::Failed, true),
    };
    ctx.metrics.attempted(told);
    match is_failure {
        true => Err(error),
        false => Ok(false),
    }
}
