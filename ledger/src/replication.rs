//! Keeping ledgers replicated: who is missing, what that leaves thin, and copying it (reference.md
//! A8), and looking after what nobody needs any more.
//!
//! Two parts, which meet in the marks of metadata alone (`u/ID`):
//! - The [`Auditor`], one per cluster, compares ledgers with bookies and writes marks. It keeps an
//!   index of ledgers by bookie in memory, found by scanning.
//! - [`RepairWorker`]s, one per bookie by default, take marks, copy, swap and clear.
//!
//! Nothing here deletes anything: audits write intents (`g/ID`), and only when everything that
//! could contradict them was read without an error.

mod auditor;
mod checks;
mod copy;
pub mod decommission;
mod entry;
mod index;
pub mod inspect;
mod local;
mod losses;
pub(crate) mod marks;
mod members;
mod orphans;
mod plan;
#[cfg(test)]
mod tests;
mod worker;

pub use auditor::{AuditReport, Auditor};
pub use entry::{EntryRepair, repair_entry};
pub use index::LedgerIndex;
pub use local::{LocalAudit, LocalLedger, LocalPass, LocalReport};
pub use marks::{Mark, write as write_mark};
pub use members::{Member, Members};
pub use orphans::{OrphanAudit, OrphanReport};
pub use worker::{RepairWorker, Round};

use std::sync::Arc;
use std::time::Duration;

use aquifer_metadata::election::Election;
use aquifer_metadata::keys;
use aquifer_metadata::store::{Session, Watch, WatchEvent};
use aquifer_model::id::BookieId;
use aquifer_runtime::clock;
use aquifer_runtime::task::ShutdownToken;
use bytes::Bytes;
use futures::FutureExt;
use serde::{Deserialize, Serialize};

use crate::context::LogContext;
use crate::deletion;

/// The settings of auditing and repair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReplicationConfig {
    /// A bookie that is away for so many milliseconds is lost, and what it held is copied.
    pub lost_after_ms: u64,
    /// With more bookies than these away at once nothing is copied.
    pub lost_bookies_max: usize,
    /// With a larger share of the bookies than this away at once nothing is copied, in percent.
    pub lost_percent_max: usize,
    /// Bytes a second that one worker reads for repair and checks. Every bookie hosts a worker by
    /// default.
    pub repair_bytes_per_second: u64,
    /// How long an open ledger that lost a bookie is left to its writer, in milliseconds.
    pub open_ledger_grace_ms: u64,
    /// How often a worker looks for marks when nothing tells it of any, in milliseconds.
    pub poll_ms: u64,
    /// How often the auditor looks at the bookies, in milliseconds.
    pub audit_ms: u64,
    /// How often the auditor reads all ledger records although nothing has happened, in
    /// milliseconds.
    pub scan_ms: u64,
    /// Marks that may wait at once; more are written as these are cleared.
    pub marks_max: usize,
    /// In so many milliseconds every closed ledger is checked replica by replica once; 0: never.
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

/// How long locks outlive a process that dies with them.
const SESSION_TTL: Duration = Duration::from_secs(15);
/// Before another session is opened.
const SESSION_PAUSE: Duration = Duration::from_secs(2);
/// From the first news to a look at all of them: changes come in crowds, and most are done by
/// then by whoever began them.
const SETTLE: Duration = Duration::from_secs(1);

/// Runs a repair worker, and the auditor whenever no other process does, until shutdown is asked
/// for: everything that `aquifer autorecovery` is, and that a bookie hosts by default. `holder`
/// names this process in locks.
pub async fn run(
    ctx: Arc<LogContext>,
    config: ReplicationConfig,
    holder: String,
    shutdown: ShutdownToken,
) {
    while !shutdown.is_shutdown() {
        let opened = tokio::select! {
            () = shutdown.wait() => return,
            opened = ctx.store.open_session(SESSION_TTL) => opened,
        };
        match opened {
            Ok(session) => {
                let session: Arc<dyn Session> = session.into();
                run_in_session(&ctx, &session, &config, &holder, &shutdown).await;
                // If this fails its keys expire.
                drop(session.close().await);
            }
            Err(error) => tracing::warn!(%error, "no session for repair, trying again"),
        }
        tokio::select! {
            () = shutdown.wait() => return,
            () = clock::sleep(SESSION_PAUSE) => {}
        }
    }
}

async fn run_in_session(
    ctx: &Arc<LogContext>,
    session: &Arc<dyn Session>,
    config: &ReplicationConfig,
    holder: &str,
    shutdown: &ShutdownToken,
) {
    let (config, shutdown) = (config.clone(), shutdown.clone());
    let worker = run_worker(
        Arc::clone(ctx),
        Arc::clone(session),
        config.clone(),
        holder.to_owned(),
        shutdown.clone(),
    );
    let election = Election::new(Arc::clone(&ctx.store), keys::ELECTION_AUDITOR);
    // Two auditors at once, for a moment, only do the same twice.
    let auditor = async {
        loop {
            let candidate = Bytes::copy_from_slice(holder.as_bytes());
            let leadership = match election.campaign(Arc::clone(session), candidate).await {
                Ok(leadership) => leadership,
                Err(error) => {
                    tracing::warn!(%error, "this process cannot become the auditor");
                    return;
                }
            };
            tracing::info!("this process audits replication now");
            tokio::select! {
                () = leadership.lost() => tracing::info!("another process audits replication"),
                () = run_auditor(Arc::clone(ctx), config.clone(), shutdown.clone()) => return,
            }
        }
    };
    // Whatever is dropped half done is done again: every step may be repeated.
    tokio::select! {
        () = worker => {}
        () = auditor => {}
        () = session.lost() => {}
    }
}

/// Runs a repair worker until shutdown is asked for or the session is lost.
pub async fn run_worker(
    ctx: Arc<LogContext>,
    session: Arc<dyn Session>,
    config: ReplicationConfig,
    holder: String,
    shutdown: ShutdownToken,
) {
    let poll = Duration::from_millis(config.poll_ms);
    let mut news = News::of(&ctx, keys::UNDER_REPLICATED_PREFIX);
    let mut worker = RepairWorker::new(Arc::clone(&ctx), Arc::clone(&session), &config, holder);
    loop {
        let round = tokio::select! {
            () = shutdown.wait() => return,
            () = session.lost() => return,
            round = worker.round() => round,
        };
        match round {
            Ok(round) if round.marked > 0 => tracing::debug!(?round, "repair round"),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "repair round failed, trying again"),
        }
        tokio::select! {
            () = shutdown.wait() => return,
            () = session.lost() => return,
            () = news.wait(poll) => {}
        }
    }
}

/// Runs the auditor for as long as its caller leads, that is, until the future is dropped or
/// shutdown is asked for.
pub async fn run_auditor(ctx: Arc<LogContext>, config: ReplicationConfig, shutdown: ShutdownToken) {
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
    ctx: Arc<LogContext>,
    bookie: BookieId,
    poll: Duration,
    shutdown: ShutdownToken,
) {
    let mut news = News::of(&ctx, keys::DELETIONS_PREFIX);
    loop {
        let swept = tokio::select! {
            () = shutdown.wait() => return,
            swept = deletion::sweep_intents_of(&ctx, bookie) => swept,
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

/// Waits for changes below a prefix, or for time to pass where the store does not tell.
struct News {
    ctx: Arc<LogContext>,
    prefix: &'static str,
    watch: Option<Box<dyn Watch>>,
}

impl News {
    fn of(ctx: &Arc<LogContext>, prefix: &'static str) -> News {
        News {
            ctx: Arc::clone(ctx),
            prefix,
            watch: None,
        }
    }

    async fn wait(&mut self, at_most: Duration) {
        if self.watch.is_none() {
            // What happens between a round and this watch is found by the next poll.
            let store = &self.ctx.store;
            if let Ok(page) = store.scan(self.prefix, None, 1).await {
                self.watch = store.watch(self.prefix, page.revision).await.ok();
            }
        }
        let Some(watch) = &mut self.watch else {
            return clock::sleep(at_most).await;
        };
        let next = clock::timeout(at_most, watch.next()).await;
        if matches!(next, Ok(None | Some(WatchEvent::Resync))) {
            self.watch = None;
        }
        if next.is_ok() {
            clock::sleep(SETTLE).await;
        }
        // What came meanwhile is looked at together.
        while let Some(watch) = &mut self.watch
            && let Some(next) = watch.next().now_or_never()
        {
            if matches!(next, None | Some(WatchEvent::Resync)) {
                self.watch = None;
            }
        }
    }
}
