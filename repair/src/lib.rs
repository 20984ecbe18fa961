//! Keeping ledgers replicated: which bookies are missing, what that leaves thin, and copying it,
//! and looking after what is no longer needed.
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
pub mod context;
mod copy;
pub mod decommission;
mod entry;
pub mod inspect;
mod local;
mod losses;
mod members;
pub mod metrics;
mod news;
mod orphans;
mod pace;
mod plan;
mod restore;
pub mod room;
mod share;
#[cfg(test)]
mod tests;
mod worker;

pub use auditor::{AuditReport, Auditor};
pub use entry::{EntryRepair, doubt_ledger, repair_entry};
pub use local::{LocalAudit, LocalLedger, LocalPass, LocalReport};
pub use members::{Member, Members};
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
use serde::{Deserialize, Serialize};

use crate::context::RepairContext;

/// Most ledgers that one worker may repair at once: every worker looks at the locks of all others.
const LEDGERS_AT_ONCE_MAX: usize = 256;

/// The settings of auditing and repair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReplicationConfig {
    /// A bookie that is away for this many milliseconds is lost, and what it held is copied.
    pub lost_after_ms: u64,
    /// With more bookies than these away at once nothing is copied.
    pub lost_bookies_max: usize,
    /// With a larger share of the bookies than this away at once nothing is copied, in percent.
    pub lost_percent_max: usize,
    /// Bytes a second that repair and checks read in the whole cluster: the workers that live share
    /// them evenly.
    pub repair_bytes_per_second: u64,
    /// Ledgers that one worker repairs at once. They share its part of the rate, and its bound on
    /// bytes in flight: more of them use the time that each waits for metadata.
    pub ledgers_at_once: usize,
    /// How long an open ledger that lost a bookie is left to its writer, in milliseconds.
    pub open_ledger_grace_ms: u64,
    /// How often a worker looks for marks when nothing tells it of any, in milliseconds.
    pub poll_ms: u64,
    /// How often the auditor looks at the bookies, in milliseconds.
    pub audit_ms: u64,
    /// How often the auditor reads all ledger records although nothing has happened, in
    /// milliseconds.
    pub scan_ms: u64,
    /// Marks that may wait before the auditor writes others; more are written as these are cleared.
    /// Those of recoveries count as well, but are written in any case.
    pub marks_max: usize,
    /// In this many milliseconds every closed ledger is checked replica by replica once; 0: never.
    pub check_cycle_ms: u64,
    /// How often ledgers that no topic refers to are looked for, in milliseconds; 0: never.
    pub orphan_audit_ms: u64,
    /// A ledger is no orphan before it is so old, in milliseconds.
    pub orphan_age_ms: u64,
    /// With more orphans than these at once something else is wrong: none is deleted.
    pub orphans_max: usize,
}

impl Default for ReplicationConfig {
    fn default() -> ReplicationConfig {
        ReplicationConfig {
            lost_after_ms: 600_000,
            lost_bookies_max: 2,
            lost_percent_max: 40,
            repair_bytes_per_second: 32 << 20,
            ledgers_at_once: 16,
            open_ledger_grace_ms: 30_000,
            poll_ms: 10_000,
            audit_ms: 5_000,
            scan_ms: 3_600_000,
            marks_max: 10_000,
            check_cycle_ms: 604_800_000,
            orphan_audit_ms: 21_600_000,
            orphan_age_ms: 86_400_000,
            orphans_max: 1_000,
        }
    }
}

impl ReplicationConfig {
    /// Checks that everything makes progress.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn check(&self) -> Result<(), String> {
        let positive = [
            ("repair_bytes_per_second", self.repair_bytes_per_second),
            ("ledgers_at_once", self.ledgers_at_once as u64),
            ("poll_ms", self.poll_ms),
            ("audit_ms", self.audit_ms),
            ("marks_max", self.marks_max as u64),
        ];
        let zero = positive.iter().find(|(_, value)| *value == 0);
        if let Some((name, _)) = zero {
            return Err(format!("autorecovery.replication.{name} must not be 0"));
        }
        if self.ledgers_at_once > LEDGERS_AT_ONCE_MAX {
            let name = "autorecovery.replication.ledgers_at_once";
            return Err(format!("{name} must not be above {LEDGERS_AT_ONCE_MAX}"));
        }
        Ok(())
    }
}

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
