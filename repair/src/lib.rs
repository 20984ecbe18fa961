//! Keeping ledgers replicated: which bookies are missing, what that leaves incomplete, and copying
//! it, and looking after what is no longer needed.
//!
//! Two parts, which meet in the marks of metadata alone (`u/ID`):
//! - The [`Auditor`], one per cluster, compares ledgers with bookies and writes marks. It keeps an
//!   index of ledgers by bookie in memory, found by scanning.
//! - [`RepairWorker`]s, one per bookie by default, take marks, several at once, copy, swap and
//!   clear.
//!
//! Nothing here deletes anything: audits write intents (`g/ID`), and only when everything that
//! could contradict them was read without an error.

#![deny(missing_docs)]

mod auditor;
mod checks;
mod config;
pub mod context;
mod copy;
pub mod decommission;
mod entry;
pub mod inspect;
mod local;
mod losses;
pub mod metrics;
mod news;
mod orphans;
pub mod outlook;
mod pace;
mod plan;
mod restore;
mod share;
#[cfg(test)]
mod tests;
mod worker;

pub use auditor::{AuditReport, Auditor};
pub use config::ReplicationConfig;
pub use entry::{EntryRepair, doubt_ledger, repair_entry};
pub use local::{LocalAudit, LocalLedger, LocalPass, LocalReport};
pub use news::News;
pub use orphans::{OrphanAudit, OrphanReport};
pub use restore::{Restore, RestoreReport};
pub use worker::{RepairWorker, Round};

use std::sync::Arc;
use std::time::Duration;

use aquifer_ledger::deletion;
use aquifer_metadata::election::Election;
use aquifer_metadata::keys;
use aquifer_metadata::lease::Lease;
use aquifer_metadata::store::Session;
use aquifer_model::id::BookieId;
use aquifer_runtime::clock;
use aquifer_runtime::task::ShutdownToken;
use bytes::Bytes;

use crate::context::RepairContext;

/// Before another session is looked for, or another candidacy is tried.
const SESSION_PAUSE: Duration = Duration::from_secs(2);

/// Runs a repair worker, and the auditor whenever no other process does, until shutdown is asked
/// for or the lease is closed: everything that `aquifer autorecovery` is, and that a bookie hosts
/// by default. Locks live as long as sessions of `lease`, the one of the process; `holder` names
/// this process in them, and no other may have the same name.
pub async fn run(
    ctx: Arc<RepairContext>,
    config: ReplicationConfig,
    holder: String,
    lease: Lease,
    shutdown: ShutdownToken,
) {
    while !shutdown.is_shutdown() {
        let session = tokio::select! {
            () = shutdown.wait() => return,
            session = lease.session() => session,
        };
        let Some(session) = session else {
            return;
        };
        run_in_session(&ctx, &session, &config, &holder, &shutdown).await;
        tokio::select! {
            () = shutdown.wait() => return,
            () = clock::sleep(SESSION_PAUSE) => {}
        }
    }
}

/// Runs both until shutdown is asked for or the session is lost. Neither may end the other: locks
/// of a repair that is dropped half done stay until the session ends.
async fn run_in_session(
    ctx: &Arc<RepairContext>,
    session: &Arc<dyn Session>,
    config: &ReplicationConfig,
    holder: &str,
    shutdown: &ShutdownToken,
) {
    let worker = run_worker(
        Arc::clone(ctx),
        Arc::clone(session),
        config.clone(),
        holder.to_owned(),
        shutdown.clone(),
    );
    let auditor = async {
        loop {
            audit_when_elected(ctx, session, config, holder, shutdown).await;
            clock::sleep(SESSION_PAUSE).await;
        }
    };
    // Whatever is dropped half done is done again: every step may be repeated.
    tokio::select! {
        () = worker => {}
        () = auditor => {}
        () = session.lost() => {}
    }
}

/// Waits until this process is the auditor, and audits for as long as it is. Two auditors at once,
/// for a moment, only do the same twice.
async fn audit_when_elected(
    ctx: &Arc<RepairContext>,
    session: &Arc<dyn Session>,
    config: &ReplicationConfig,
    holder: &str,
    shutdown: &ShutdownToken,
) {
    let election = Election::new(Arc::clone(&ctx.ledgers.store), keys::ELECTION_AUDITOR);
    let candidate = Bytes::copy_from_slice(holder.as_bytes());
    let leadership = match election.campaign(Arc::clone(session), candidate).await {
        Ok(leadership) => leadership,
        Err(error) => {
            tracing::warn!(%error, "this process cannot become the auditor, trying again");
            return;
        }
    };
    tracing::info!("this process audits replication now");
    tokio::select! {
        () = leadership.lost() => tracing::info!("another process audits replication"),
        () = run_auditor(Arc::clone(ctx), config.clone(), shutdown.clone()) => {}
    }
}

/// Runs a repair worker until shutdown is asked for or the session is lost.
pub async fn run_worker(
    ctx: Arc<RepairContext>,
    session: Arc<dyn Session>,
    config: ReplicationConfig,
    holder: String,
    shutdown: ShutdownToken,
) {
    let poll = Duration::from_millis(config.poll_ms);
    let worker = RepairWorker::new(Arc::clone(&ctx), Arc::clone(&session), &config, holder);
    let share = worker.share();
    tokio::select! {
        () = share.keep() => {}
        () = session.lost() => {}
        () = repair_marked(ctx, worker, poll, shutdown) => {}
    }
}

/// Takes marks, round by round, until shutdown is asked for.
async fn repair_marked(
    ctx: Arc<RepairContext>,
    mut worker: RepairWorker,
    poll: Duration,
    shutdown: ShutdownToken,
) {
    let mut news = News::of(&ctx, keys::UNDER_REPLICATED_PREFIX);
    loop {
        let round = tokio::select! {
            () = shutdown.wait() => return,
            round = worker.round() => round,
        };
        match round {
            Ok(round) if round.marked > 0 => tracing::debug!(?round, "repair round"),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "repair round failed, trying again"),
        }
        tokio::select! {
            () = shutdown.wait() => return,
            () = news.wait(poll) => {}
        }
    }
}

/// Runs the auditor for as long as its caller leads, that is, until the future is dropped or
/// shutdown is asked for.
pub async fn run_auditor(
    ctx: Arc<RepairContext>,
    config: ReplicationConfig,
    shutdown: ShutdownToken,
) {
    let pause = Duration::from_millis(config.audit_ms);
    let mut auditor = Auditor::new(Arc::clone(&ctx), config);
    let mut news = News::of(&ctx, keys::BOOKIES_PREFIX);
    loop {
        let pass = tokio::select! {
            () = shutdown.wait() => return,
            pass = auditor.pass() => pass,
        };
        match pass {
            Ok(report) if report.marked > 0 => tracing::info!(?report, "ledgers marked"),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "audit failed, trying again"),
        }
        tokio::select! {
            () = shutdown.wait() => return,
            () = news.wait(pause) => {}
        }
    }
}

/// Carries out the deletion intents that name a bookie, when it starts and whenever there are new
/// ones, until shutdown is asked for.
pub async fn run_deletions(
    ctx: Arc<RepairContext>,
    bookie: BookieId,
    poll: Duration,
    shutdown: ShutdownToken,
) {
    let mut news = News::of(&ctx, keys::DELETIONS_PREFIX);
    loop {
        let swept = tokio::select! {
            () = shutdown.wait() => return,
            swept = deletion::sweep_intents_of(&ctx.ledgers, bookie) => swept,
        };
        match swept {
            Ok(0) => {}
            Ok(ledgers) => tracing::info!(ledgers, "ledgers deleted on this bookie"),
            Err(error) => tracing::warn!(%error, "deletions are not looked at, trying again"),
        }
        tokio::select! {
            () = shutdown.wait() => return,
            () = news.wait(poll) => {}
        }
    }
}
