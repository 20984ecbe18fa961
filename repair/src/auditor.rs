//! The auditor: knows which ledgers are at which bookies, and marks those that lost one.
//!
//! There is one per cluster at a time; two at once only do the same twice. It never copies, swaps
//! or deletes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aquifer_ledger::deletion;
use aquifer_ledger::error::LedgerError;
use aquifer_ledger::index::LedgerIndex;
use aquifer_ledger::ledger_metadata::{self, LedgerState};
use aquifer_ledger::marks::{self, Mark};
use aquifer_ledger::members::{Member, Members};
use aquifer_metadata::error::MetadataError;
use aquifer_metadata::store::Versioned;
use aquifer_metadata::{keys, scan};
use aquifer_model::id::{BookieId, EntryId, LedgerId};
use aquifer_model::limits::METADATA_PAGE_KEYS_MAX;
use futures::StreamExt;

use crate::checks::CheckCycle;
use crate::config::ReplicationConfig;
use crate::context::RepairContext;
use crate::losses::{LossPolicy, LossWatch};
use crate::orphans::{OrphanAudit, OrphanReport};

/// Marks that are written at once.
const WRITES_AT_ONCE: usize = 16;
/// How old the knowledge of many marks may be.
const MARKS_AGE_MAX: Duration = Duration::from_secs(60);
/// From one scan to the next, while bookies are emptied, at least this many times its duration.
const SCAN_REST: u32 = 10;

/// What a pass found and did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuditReport {
    /// Ledger records, as of the last scan.
    pub ledgers: u64,
    /// Bookies that hold ledgers and are not registered.
    pub away: usize,
    /// Bookies whose ledgers are being moved: lost ones, and those that are to leave.
    pub emptied: BTreeSet<BookieId>,
    /// Ledgers that still name one of these.
    pub remaining: u64,
    /// Ledgers marked in this pass.
    pub marked: u64,
    /// Ledgers that should have been marked in this pass, and could not be.
    pub failed: u64,
    /// Marks that wait for a worker.
    pub waiting: u64,
    /// How long ago the oldest of these was written, as of when they were listed.
    pub oldest_mark: Duration,
    /// Ledgers whose turn it was to be checked replica by replica, although nothing is known.
    pub checked: u64,
    /// Why lost bookies are not acted upon.
    pub paused: Option<String>,
    /// Whether this pass looked for ledgers without a topic.
    pub orphans: Option<OrphanReport>,
}

/// Whether an operator waits for a bookie to become empty.
fn is_any_draining(members: &Members) -> bool {
    let mut members = members.iter();
    members.any(|member| member.is_leaving() && !member.is_decommissioned())
}

/// What came of one ledger; `None` if what failed is the ledger's own, which must not keep the
/// others from being marked.
pub(crate) fn of_one_ledger<T>(
    ledger: LedgerId,
    result: Result<T, LedgerError>,
) -> Result<Option<T>, LedgerError> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(LedgerError::Metadata(
            error @ (MetadataError::Unavailable(_)
            | MetadataError::Denied(_)
            | MetadataError::Full(_)
            | MetadataError::SessionExpired),
        )) => Err(error.into()),
        Err(error) => {
            tracing::error!(%ledger, %error, "a ledger cannot be marked");
            Ok(None)
        }
    }
}

/// Ledgers that carry a mark.
#[derive(Default)]
struct Marked {
    /// The bookies that it calls lost.
    lost: BTreeMap<LedgerId, BTreeSet<BookieId>>,
    /// When the oldest was written, by the clock of the process that wrote it.
    oldest_ms: Option<u64>,
}

impl Marked {
    fn count(&self) -> usize {
        self.lost.len()
    }

    fn add(&mut self, ledger: LedgerId, mark: Option<Mark>) {
        let marked_ms = mark.as_ref().map(|mark| mark.marked_ms);
        // One that cannot be read does not say when it was written.
        self.oldest_ms = self.oldest_ms.into_iter().chain(marked_ms).min();
        let lost = mark.map(|mark| mark.lost).unwrap_or_default();
        self.lost.insert(ledger, lost);
    }

    /// How long ago the oldest was written.
    fn age(&self, now_ms: u64) -> Duration {
        let oldest_ms = self.oldest_ms.unwrap_or(now_ms);
        Duration::from_millis(now_ms.saturating_sub(oldest_ms))
    }
}

/// The auditor's knowledge. What it says in metrics ends with it.
pub struct Auditor {
    ctx: Arc<RepairContext>,
    config: ReplicationConfig,
    losses: LossWatch,
    index: Option<(LedgerIndex, Duration)>,
    marked: Option<(Arc<Marked>, Duration)>,
    deleting: BTreeSet<LedgerId>,
    scan_took: Duration,
    /// The bookies that were registered, and those that were to be emptied, at the last scan.
    scanned_with: Option<(BTreeSet<BookieId>, BTreeSet<BookieId>)>,
    checks: CheckCycle,
    orphans: OrphanAudit,
    orphans_at: Option<Duration>,
    was_paused: bool,
    has_told: bool,
}

impl Auditor {
    /// An auditor that knows nothing yet: the grace of every absent bookie begins with it.
    #[must_use]
    pub fn new(ctx: Arc<RepairContext>, config: ReplicationConfig) -> Auditor {
        let losses = LossWatch::new(LossPolicy {
            grace: Duration::from_millis(config.lost_after_ms),
            bookies_max: config.lost_bookies_max,
            percent_max: config.lost_percent_max,
        });
        Auditor {
            orphans: OrphanAudit::new(Arc::clone(&ctx), &config),
            checks: CheckCycle::new(config.check_cycle_ms),
            ctx,
            config,
            losses,
            index: None,
            marked: None,
            deleting: BTreeSet::new(),
            scan_took: Duration::ZERO,
            scanned_with: None,
            orphans_at: None,
            was_paused: false,
            has_told: false,
        }
    }

    /// The ledgers by bookie, as of the last scan.
    #[must_use]
    pub fn index(&self) -> Option<&LedgerIndex> {
        self.index.as_ref().map(|(index, _)| index)
    }

    /// Looks at everything once.
    ///
    /// # Errors
    /// When metadata cannot be read; nothing is concluded from a part of it.
    pub async fn pass(&mut self) -> Result<AuditReport, LedgerError> {
        let now = self.ctx.ledgers.clock.monotonic();
        let every = Duration::from_millis(self.config.scan_ms);
        let mut fresh = self.is_older(now, every);
        if fresh {
            self.scan(now).await?;
        }
        let members = Members::load(&*self.ctx.ledgers.store).await?;
        if fresh {
            let is_gone = |id| members.get(id).is_some_and(Member::is_decommissioned);
            deletion::finish_without(&*self.ctx.ledgers.store, is_gone).await?;
        }
        let mut report = self.judge(now, &members);
        let stirs = self.bookies_change(&members, &report) || is_any_draining(&members);
        if !fresh && (stirs || self.remaining(&report.emptied) > 0) {
            // Ledgers were created, and others repaired, since the last scan. While they are, a
            // tenth of the time is spent on scans at most.
            fresh = self.is_older(now, self.scan_took * SCAN_REST);
            if fresh {
                self.scan(now).await?;
                report = self.judge(now, &members);
            }
        }
        if fresh {
            self.scanned_with = Some((members.registered(), report.emptied.clone()));
        }
        report.remaining = self.remaining(&report.emptied);
        let writes_marks = fresh && report.remaining > 0;
        let marked = self.marked(now, writes_marks).await?;
        report.waiting = marked.count() as u64;
        report.oldest_mark = marked.age(self.ctx.ledgers.clock.wall_ms());
        // By an older index what was just repaired would be marked again.
        if writes_marks {
            self.mark(&members, &mut report, &marked).await?;
            report.waiting += report.marked;
        }
        self.doubt_some(now, &mut report, &marked).await?;
        report.orphans = self.look_for_orphans(now).await;
        self.tell(&report);
        Ok(report)
    }

    /// Whether other bookies are there, or are to be emptied, than when ledgers were scanned last:
    /// what these hold since then only another scan tells.
    fn bookies_change(&self, members: &Members, report: &AuditReport) -> bool {
        let then = self.scanned_with.as_ref();
        then.is_none_or(|(registered, emptied)| {
            *registered != members.registered() || *emptied != report.emptied
        })
    }

    /// Whether the index is so old, or is not there yet.
    fn is_older(&self, now: Duration, age: Duration) -> bool {
        let at = self.index.as_ref().map(|(_, at)| *at);
        at.is_none_or(|at| now.saturating_sub(at) >= age)
    }

    async fn scan(&mut self, now: Duration) -> Result<(), LedgerError> {
        let began = self.ctx.ledgers.clock.monotonic();
        let index = LedgerIndex::scan(&*self.ctx.ledgers.store).await?;
        // Their records may stay for as long as a bookie that had them is away; no repair gives
        // them another.
        self.deleting = deletion::going(&*self.ctx.ledgers.store).await?;
        let took = self.ctx.ledgers.clock.monotonic().saturating_sub(began);
        let metrics = &self.ctx.metrics;
        metrics.scan_seconds.record(took.as_secs_f64(), &[]);
        self.scan_took = took;
        self.index = Some((index, now));
        Ok(())
    }

    fn judge(&mut self, now: Duration, members: &Members) -> AuditReport {
        let Some((index, _)) = &self.index else {
            return AuditReport::default();
        };
        let leaving = members.leaving();
        let holders: BTreeSet<BookieId> = index
            .bookies()
            .filter(|bookie| !leaving.contains(bookie) && self.left_on(index, *bookie) > 0)
            .collect();
        let verdict = self.losses.observe(now, &holders, &members.registered());
        let mut emptied = verdict.lost;
        emptied.extend(leaving);
        AuditReport {
            ledgers: index.ledgers(),
            away: verdict.away,
            emptied,
            paused: verdict.paused,
            ..AuditReport::default()
        }
    }

    fn remaining(&self, emptied: &BTreeSet<BookieId>) -> u64 {
        let Some((index, _)) = &self.index else {
            return 0;
        };
        emptied.iter().map(|b| self.left_on(index, *b)).sum()
    }

    /// Ledgers of a bookie, without those that are being deleted.
    fn left_on(&self, index: &LedgerIndex, bookie: BookieId) -> u64 {
        let deleting = self.deleting.iter();
        let deleting = deleting.filter(|ledger| index.names(**ledger, bookie));
        index
            .count_of(bookie)
            .saturating_sub(deleting.count() as u64)
    }

    /// Ledgers that carry a mark. Many marks are read again only when others are to be written, or
    /// after a while.
    async fn marked(&mut self, now: Duration, exact: bool) -> Result<Arc<Marked>, LedgerError> {
        if let Some((marked, at)) = &self.marked
            && !exact
            && marked.count() >= METADATA_PAGE_KEYS_MAX
            && now.saturating_sub(*at) < MARKS_AGE_MAX
        {
            return Ok(Arc::clone(marked));
        }
        let take = |marked: &mut Marked, item: &Versioned| {
            if let Ok(keys::Key::UnderReplicated(ledger)) = item.key.parse() {
                let mark = Mark::decode(item).inspect_err(|error| {
                    tracing::error!(key = item.key, %error, "a mark is unreadable");
                });
                marked.add(ledger, mark.ok());
            }
            Ok::<(), LedgerError>(())
        };
        let (store, prefix) = (&*self.ctx.ledgers.store, keys::UNDER_REPLICATED_PREFIX);
        let (marked, _) = scan::each(store, prefix, Marked::default, take).await?;
        let marked = Arc::new(marked);
        self.marked = Some((Arc::clone(&marked), now));
        Ok(marked)
    }

    /// Marks ledgers of the bookies that are to be emptied, as many as may wait at once. A ledger
    /// that carries a mark already takes no room: a recovery writes one whatever the bound says,
    /// and if it names a bookie that is away, only the word that this one is lost lets it go again.
    async fn mark(
        &self,
        members: &Members,
        report: &mut AuditReport,
        marked: &Marked,
    ) -> Result<(), LedgerError> {
        let Some((index, _)) = &self.index else {
            return Ok(());
        };
        let mut room = self.config.marks_max.saturating_sub(marked.count());
        let mut chosen: BTreeSet<LedgerId> = BTreeSet::new();
        for bookie in &report.emptied {
            for ledger in index.ledgers_of(*bookie) {
                let lost = marked.lost.get(&ledger);
                let says_so = lost.is_some_and(|lost| lost.contains(bookie));
                if says_so || self.deleting.contains(&ledger) || chosen.contains(&ledger) {
                    continue;
                }
                if lost.is_none() {
                    if room == 0 {
                        continue;
                    }
                    room -= 1;
                }
                chosen.insert(ledger);
            }
        }
        let emptied = &report.emptied;
        let writes = chosen.into_iter().map(|ledger| {
            let named = emptied.iter().copied();
            let named: Vec<_> = named.filter(|b| index.names(ledger, *b)).collect();
            let leaving = named.iter().all(|bookie| members.is_leaving(*bookie));
            let reason = if leaving {
                "a bookie is leaving"
            } else {
                "a bookie is lost"
            };
            async move { (ledger, self.mark_one(ledger, named, reason).await) }
        });
        let (mut written, mut failed) = (0, 0);
        let mut results = futures::stream::iter(writes).buffer_unordered(WRITES_AT_ONCE);
        while let Some((ledger, result)) = results.next().await {
            match of_one_ledger(ledger, result)? {
                Some(news) => written += u64::from(news),
                None => failed += 1,
            }
        }
        drop(results);
        self.ctx.metrics.marked_ledgers.add(written, &[]);
        report.marked = written;
        report.failed += failed;
        Ok(())
    }

    async fn mark_one(
        &self,
        ledger: LedgerId,
        mut bookies: Vec<BookieId>,
        reason: &str,
    ) -> Result<bool, LedgerError> {
        let store = &*self.ctx.ledgers.store;
        let Some(info) = ledger_metadata::load(store, ledger).await? else {
            return Ok(false);
        };
        // Since the scan it may have been offloaded, or moved.
        bookies.retain(|bookie| info.duties().binds(*bookie));
        if bookies.is_empty() {
            return Ok(false);
        }
        let now_ms = self.ctx.ledgers.clock.wall_ms();
        let mark = Mark::new(ledger, &info.home, reason, now_ms).lost(bookies);
        marks::write(store, &mark).await
    }

    /// Doubts the ledgers whose turn it is: a defect, or a loss that was not noticed, would
    /// otherwise be found by a reader, too late.
    async fn doubt_some(
        &mut self,
        now: Duration,
        report: &mut AuditReport,
        marked: &Marked,
    ) -> Result<(), LedgerError> {
        let Some((index, _)) = &self.index else {
            return Ok(());
        };
        let room = self.config.marks_max.saturating_sub(marked.count());
        for ledger in self.checks.due(now, index, room) {
            match of_one_ledger(ledger, self.doubt_one(ledger).await)? {
                Some(doubted) => report.checked += u64::from(doubted),
                None => report.failed += 1,
            }
        }
        Ok(())
    }

    async fn doubt_one(&self, ledger: LedgerId) -> Result<bool, LedgerError> {
        let store = &*self.ctx.ledgers.store;
        let Some(info) = ledger_metadata::load(store, ledger).await? else {
            return Ok(false);
        };
        // An open ledger is in its writer's care.
        if !matches!(info.state, LedgerState::Closed(_)) {
            return Ok(false);
        }
        let now_ms = self.ctx.ledgers.clock.wall_ms();
        let all = info.duties().bookies();
        if all.is_empty() {
            return Ok(false);
        }
        let mark = Mark::new(ledger, &info.home, "its turn to be checked", now_ms);
        // Their bytes the scrubbers of the bookies look at.
        let mark = mark.incomplete(all.into_iter().map(|bookie| (bookie, EntryId::FIRST)));
        marks::write(store, &mark).await?;
        Ok(true)
    }

    async fn look_for_orphans(&mut self, now: Duration) -> Option<OrphanReport> {
        let every = Duration::from_millis(self.config.orphan_audit_ms);
        let waited = self.orphans_at.map(|at| now.saturating_sub(at));
        // Not first thing: a new leader has more urgent things to look at.
        if every.is_zero() || waited.is_none_or(|waited| waited < every) {
            self.orphans_at.get_or_insert(now);
            return None;
        }
        self.orphans_at = Some(now);
        match self.orphans.pass().await {
            Ok(report) => Some(report),
            Err(error) => {
                tracing::warn!(%error, "the audit of unreferenced ledgers found nothing out");
                None
            }
        }
    }

    fn tell(&mut self, report: &AuditReport) {
        self.has_told = true;
        let metrics = &self.ctx.metrics;
        metrics.is_auditor.record(1, &[]);
        metrics.under_replicated.record(report.waiting, &[]);
        let oldest = report.oldest_mark.as_secs();
        metrics.oldest_mark_seconds.record(oldest, &[]);
        if let Some(usage) = self.ctx.ledgers.store.usage() {
            metrics.metadata_used_bytes.record(usage.used_bytes, &[]);
            metrics.metadata_quota_bytes.record(usage.quota_bytes, &[]);
        }
        metrics.bookies_away.record(report.away as u64, &[]);
        let paused = report.paused.is_some();
        metrics.paused.record(u64::from(paused), &[]);
        if paused && !self.was_paused {
            tracing::error!(
                reason = report.paused,
                "repair is paused: bring bookies back, or decommission those that are lost"
            );
        } else if self.was_paused && !paused {
            tracing::info!("repair goes on");
        }
        self.was_paused = paused;
    }
}

impl Drop for Auditor {
    fn drop(&mut self) {
        if self.has_told {
            self.ctx.metrics.audits_no_more();
        }
    }
}
