//! Hosts ledger replication inside a bookie: the one file of this crate that knows `ledger` and
//! `repair`.
//!
//! With every bookie runs a repair worker and a candidate for the cluster's auditor. What concerns
//! this bookie alone runs here too: deletions that name it, the audit of what it stores, and the
//! repair of what its scrubber finds damaged.

use std::sync::Arc;
use std::time::Duration;

#[cfg(test)]
use aquifer_ledger::deletion::sweep_intents_of;
use aquifer_ledger::error::LedgerError;
use aquifer_ledger::index::LedgerIndex;
#[cfg(test)]
use aquifer_ledger::marks::Mark;
#[cfg(test)]
use aquifer_ledger::testing::{MemoryStore, TestWorld};
use aquifer_ledger::transport::BookieTransport;
use aquifer_metadata::error::MetadataResult;
use aquifer_metadata::lease::Lease;
use aquifer_metadata::{keys, record};
use aquifer_model::id::{BookieId, EntryId, LedgerId};
use aquifer_model::storage::{
    BookieResult, OrderedRequest, Presence, PresenceRange, ReadBatch, ReadRange, ReplyCallback,
    TailState, TailWait,
};
use aquifer_proto::v1::CookieRecord;
use aquifer_repair::context::RepairContext;
use aquifer_repair::{
    EntryRepair, LocalAudit, LocalLedger, LocalReport, News, ReplicationConfig, Restore,
    RestoreReport, doubt_ledger, repair_entry,
};
use aquifer_runtime::clock;
use aquifer_runtime::task::{ShutdownToken, TaskGroup};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::registration;
use crate::scrub::RepairHook;
use crate::{Bookie, DamageReport};

#[cfg(test)]
mod tests;

/// Damaged entries that wait for their repair; what does not fit is found again.
const DAMAGED_WAITING_MAX: usize = 1_024;
/// Between two looks at what a bookie in limbo lacks.
const RESTORE_PAUSE: Duration = Duration::from_secs(2);
/// How often the cookie is looked at when nothing tells of a change.
const COOKIE_LOOK: Duration = Duration::from_secs(5);
/// Ledgers that are listed at once.
const PAGE_LEDGERS: usize = 1_000;

/// The settings of what a bookie hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AutorecoveryConfig {
    /// Whether this bookie hosts a repair worker and a candidate for the auditor. What concerns
    /// the bookie itself runs in any case.
    pub enabled: bool,
    /// How often deletions are looked for when nothing tells of any, in milliseconds.
    pub deletions_poll_ms: u64,
    /// How often what is stored is compared with the ledgers that there are, in milliseconds.
    pub local_audit_ms: u64,
    /// Auditing and repair.
    pub replication: ReplicationConfig,
}

impl Default for AutorecoveryConfig {
    fn default() -> AutorecoveryConfig {
        AutorecoveryConfig {
            enabled: true,
            deletions_poll_ms: 30_000,
            local_audit_ms: 43_200_000,
            replication: ReplicationConfig::default(),
        }
    }
}

/// Starts everything that a bookie hosts, until `tasks` shuts down. `ctx` must reach all bookies
/// of the cluster, this one by [`transport`]; without a lease of the process, which a standalone
/// server has not, the cluster's ledgers are not repaired here.
pub fn start(
    bookie: &Bookie,
    ctx: &Arc<RepairContext>,
    config: &AutorecoveryConfig,
    lease: Option<&Lease>,
    tasks: &TaskGroup,
) {
    let id = bookie.id();
    let shutdown = || tasks.shutdown_token();
    if let Some(lease) = lease.filter(|_| config.enabled) {
        let replication = config.replication.clone();
        let (ctx, lease) = (Arc::clone(ctx), lease.clone());
        let run = aquifer_repair::run(ctx, replication, id.to_string(), lease, shutdown());
        tasks.spawn("replication", run);
    }
    let poll = Duration::from_millis(config.deletions_poll_ms);
    let deletions = aquifer_repair::run_deletions(Arc::clone(ctx), id, poll, shutdown());
    tasks.spawn("bookie-deletions", deletions);
    let audit = audit_for_ever(bookie.clone(), Arc::clone(ctx), config.clone(), shutdown());
    tasks.spawn("bookie-audit", audit);
    let wishes = obey_for_ever(bookie.clone(), Arc::clone(ctx), shutdown());
    tasks.spawn("bookie-draining", wishes);
    if lease.is_some() && bookie.status().limbo.is_some() {
        let replication = config.replication.clone();
        let restore = restore(bookie.clone(), Arc::clone(ctx), replication, shutdown());
        tasks.spawn("bookie-restore", restore);
    }
    let damage = look_at_damage(bookie.clone(), Arc::clone(ctx), lease.is_some(), shutdown());
    tasks.spawn("bookie-damage", damage);
    let (damaged, found) = mpsc::channel(DAMAGED_WAITING_MAX);
    bookie.on_damage(Arc::new(Queue(damaged)));
    let repair = repair_for_ever(id, Arc::clone(ctx), found, shutdown());
    tasks.spawn("bookie-scrub-repair", repair);
}

/// Gets what the bookie lost from others, and ends its limbo when nothing is missing.
async fn restore(
    bookie: Bookie,
    ctx: Arc<RepairContext>,
    config: ReplicationConfig,
    shutdown: ShutdownToken,
) {
    let mut restore = Restore::new(Arc::clone(&ctx), bookie.id(), &config);
    let mut before = RestoreReport::default();
    loop {
        let ended = tokio::select! {
            () = shutdown.wait() => return,
            ended = restore_once(&bookie, &ctx, &mut restore, &mut before) => ended,
        };
        match ended {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "this bookie is not restored yet, trying again"),
        }
        tokio::select! {
            () = shutdown.wait() => return,
            () = clock::sleep(RESTORE_PAUSE) => {}
        }
    }
}

/// Restores what can be restored now; says whether limbo is over.
async fn restore_once(
    bookie: &Bookie,
    ctx: &RepairContext,
    restore: &mut Restore,
    before: &mut RestoreReport,
) -> Result<bool, LedgerError> {
    let report = restore.pass(&stored(bookie).await?).await?;
    if !report.is_complete() {
        if report != *before {
            tracing::warn!(?report, "this bookie stays in limbo");
        }
        *before = report;
        return Ok(false);
    }
    bookie.end_limbo().await.map_err(LedgerError::Undecided)?;
    if let Err(error) = registration::restored(bookie, &*ctx.ledgers.store).await {
        tracing::warn!(%error, "metadata does not know yet that this bookie is restored");
    }
    Ok(true)
}

/// Everything that the bookie stores.
async fn stored(bookie: &Bookie) -> Result<Vec<LocalLedger>, LedgerError> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = bookie.ledgers(after, PAGE_LEDGERS).await;
        let page = page.map_err(LedgerError::Undecided)?;
        let Some((last, _)) = page.last() else {
            return Ok(all);
        };
        after = Some(*last);
        let page = page.into_iter();
        all.extend(page.map(|(ledger, token)| LocalLedger { ledger, token }));
    }
}

/// Follows what operators have written into this bookie's cookie.
async fn obey_for_ever(bookie: Bookie, ctx: Arc<RepairContext>, shutdown: ShutdownToken) {
    let mut news = News::of(&ctx, &keys::cookie(bookie.id()));
    loop {
        match cookie(&ctx, bookie.id()).await {
            Ok(Some(cookie)) if cookie.decommissioned_ms > 0 => {
                // Deletions do not wait for it any more: what it holds is not to be believed.
                bookie.fail("this bookie is decommissioned: it never serves again");
                return;
            }
            Ok(cookie) => bookie.set_draining(cookie.is_some_and(|cookie| cookie.draining)),
            // As before, until metadata is back.
            Err(error) => tracing::debug!(%error, "the cookie of this bookie cannot be read"),
        }
        tokio::select! {
            () = shutdown.wait() => return,
            () = news.wait(COOKIE_LOOK) => {}
        }
    }
}

async fn cookie(ctx: &RepairContext, bookie: BookieId) -> MetadataResult<Option<CookieRecord>> {
    let stored = ctx.ledgers.store.get(&keys::cookie(bookie)).await?;
    stored.map(|stored| record::decode(&stored)).transpose()
}

/// What the scrubber tells.
enum Told {
    /// An entry is damaged.
    Entry(LedgerId, EntryId),
    /// What is there of a ledger from an entry on cannot be read.
    EndHidden(LedgerId, EntryId),
}

/// What the scrubber tells the task that repairs.
struct Queue(mpsc::Sender<Told>);

impl RepairHook for Queue {
    fn damaged(&self, ledger: LedgerId, entry: EntryId) {
        // Full: the scrubber comes by again.
        let _ = self.0.try_send(Told::Entry(ledger, entry));
    }

    fn end_hidden(&self, ledger: LedgerId, first: EntryId) {
        // Full: the scrubber comes by again.
        let _ = self.0.try_send(Told::EndHidden(ledger, first));
    }
}

async fn repair_for_ever(
    bookie: BookieId,
    ctx: Arc<RepairContext>,
    mut found: mpsc::Receiver<Told>,
    shutdown: ShutdownToken,
) {
    loop {
        let next = tokio::select! {
            () = shutdown.wait() => return,
            next = found.recv() => next,
        };
        let (ledger, entry) = match next {
            None => return,
            Some(Told::Entry(ledger, entry)) => (ledger, entry),
            // Which entries there are says the record of the ledger: a worker goes by that.
            Some(Told::EndHidden(ledger, first)) => {
                let why = "the end of a ledger cannot be read";
                match doubt_ledger(&ctx, bookie, ledger, why).await {
                    Ok(is_here) => tracing::warn!(%ledger, %first, is_here, why, "doubted"),
                    Err(error) => {
                        tracing::warn!(%ledger, %first, %error, why, "not repaired yet");
                    }
                }
                continue;
            }
        };
        match repair_entry(&ctx, bookie, ledger, entry).await {
            Ok(EntryRepair::Repaired | EntryRepair::Irrelevant) => {}
            Ok(EntryRepair::Marked(why)) => {
                tracing::warn!(%ledger, %entry, why, "damaged entry is not repaired in place");
            }
            Err(error) => {
                tracing::warn!(%ledger, %entry, %error, "damaged entry is not repaired yet");
            }
        }
    }
}

/// Does what damaged files of the ledger store make necessary, whenever more of them are known: in
/// a cluster the ledgers that they touch are marked, so that others look after the copies; alone, a
/// person is told what is lost.
async fn look_at_damage(
    bookie: Bookie,
    ctx: Arc<RepairContext>,
    has_others: bool,
    shutdown: ShutdownToken,
) {
    let mut before = None;
    loop {
        let report = tokio::select! {
            () = shutdown.wait() => return,
            report = bookie.damaged(before.as_ref()) => report,
        };
        let looked = async {
            if has_others {
                doubt(&bookie, &ctx, &report).await
            } else {
                tell_of_damage(&bookie, &report).await
            }
        };
        let looked = tokio::select! {
            () = shutdown.wait() => return,
            looked = looked => looked,
        };
        match looked {
            Ok(()) => before = Some(report),
            Err(error) => {
                tracing::warn!(%error, "what is damaged is not dealt with yet, trying again");
                tokio::select! {
                    () = shutdown.wait() => return,
                    () = clock::sleep(RESTORE_PAUSE) => {}
                }
            }
        }
    }
}

/// Marks every ledger of which the damaged files may have something.
async fn doubt(
    bookie: &Bookie,
    ctx: &RepairContext,
    report: &DamageReport,
) -> Result<(), LedgerError> {
    let why = "a file of the ledger store is damaged";
    let index = LedgerIndex::scan(&*ctx.ledgers.store).await?;
    let mut marked = 0;
    for ledger in index.ledgers_of(bookie.id()) {
        if report.touches(ledger) {
            let is_here = doubt_ledger(ctx, bookie.id(), ledger, why).await?;
            marked += u64::from(is_here);
        }
    }
    tracing::error!(%report, marked, "the copies of these ledgers on this bookie are in doubt");
    Ok(())
}

/// Says which entries cannot be read.
async fn tell_of_damage(bookie: &Bookie, report: &DamageReport) -> Result<(), LedgerError> {
    let mut lost = 0;
    for local in stored(bookie).await? {
        if !report.touches(local.ledger) {
            continue;
        }
        let ranges = bookie.unreadable(local.ledger).await;
        for (first, last) in ranges.map_err(LedgerError::Undecided)? {
            lost += 1;
            tracing::error!(ledger = %local.ledger, %first, %last, "entries cannot be read");
        }
    }
    tracing::error!(%report, lost, "the ledger store has damaged files: see the operations guide");
    Ok(())
}

async fn audit_for_ever(
    bookie: Bookie,
    ctx: Arc<RepairContext>,
    config: AutorecoveryConfig,
    shutdown: ShutdownToken,
) {
    let every = Duration::from_millis(config.local_audit_ms);
    let mut audit = LocalAudit::new(ctx, bookie.id(), &config.replication);
    loop {
        // First a pause: a bookie that starts has more urgent things to do.
        tokio::select! {
            () = shutdown.wait() => return,
            () = clock::sleep(every) => {}
        }
        match audit_once(&bookie, &mut audit).await {
            Ok(report) if report.suspects > 0 => tracing::info!(?report, "stored ledgers audited"),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "the audit of stored ledgers found nothing out");
            }
        }
    }
}

/// Compares what a bookie stores with the ledgers that there are, once. Copies that nothing refers
/// to in two passes get a deletion intent.
///
/// # Errors
/// When anything could not be read or looks wrong; nothing happens then.
pub async fn audit_once(
    bookie: &Bookie,
    audit: &mut LocalAudit,
) -> Result<LocalReport, LedgerError> {
    let mut pass = audit.begin().await?;
    let mut after = None;
    loop {
        let page = bookie.ledgers(after, PAGE_LEDGERS).await;
        let page = page.map_err(LedgerError::Undecided)?;
        let Some((last, _)) = page.last() else {
            break;
        };
        after = Some(*last);
        let page: Vec<LocalLedger> = page
            .into_iter()
            .map(|(ledger, token)| LocalLedger { ledger, token })
            .collect();
        pass.look_at(&page);
    }
    audit.finish(pass).await
}

/// A transport that calls this bookie and connects to all others.
#[must_use]
pub fn transport(bookie: Bookie, others: Arc<dyn BookieTransport>) -> Arc<dyn BookieTransport> {
    Arc::new(SelfFirst { bookie, others })
}

struct SelfFirst {
    bookie: Bookie,
    others: Arc<dyn BookieTransport>,
}

#[async_trait]
impl BookieTransport for SelfFirst {
    fn submit(&self, bookie: BookieId, request: OrderedRequest, reply: ReplyCallback) {
        if bookie == self.bookie.id() {
            self.bookie.submit(request, reply);
        } else {
            self.others.submit(bookie, request, reply);
        }
    }

    async fn read(&self, bookie: BookieId, range: ReadRange) -> BookieResult<ReadBatch> {
        if bookie == self.bookie.id() {
            self.bookie.read(range).await
        } else {
            self.others.read(bookie, range).await
        }
    }

    async fn has(&self, bookie: BookieId, range: PresenceRange) -> BookieResult<Presence> {
        if bookie == self.bookie.id() {
            self.bookie.has(range).await
        } else {
            self.others.has(bookie, range).await
        }
    }

    async fn wait(&self, bookie: BookieId, wait: TailWait) -> BookieResult<TailState> {
        if bookie == self.bookie.id() {
            self.bookie.wait(wait).await
        } else {
            self.others.wait(bookie, wait).await
        }
    }
}
