//! Ends the limbo of a bookie: makes sure that it holds everything that it must, and that it
//! refuses whatever it must refuse.
//!
//! A bookie that lost synced data may have lost entries, fences and tombstones, and does not know
//! of which ledgers; metadata does. It may give negative answers again once, for every ledger whose
//! record names it and for every ledger that it stores (docs/decisions, limbo that ends):
//! - every entry of a fixed fragment that it must have is there, from peers where it was lost (I2);
//! - no fragment that is still written, or whose end is not known, names it: its writer has
//!   replaced it, or the ledger was closed (I3);
//! - it is fenced, unless the ledger is open: of an open ledger no fence can have been lost,
//!   because a recovery says so in the record before it fences (I4).
//!
//! Nothing here may conclude anything from a part of the records: any that cannot be read keeps the
//! limbo. Work that is done stays done: a bookie loses nothing while it is in limbo.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aquifer_ledger::deletion;
use aquifer_ledger::error::LedgerError;
use aquifer_ledger::index::LedgerIndex;
use aquifer_ledger::ledger_metadata::{self, LedgerInfo, LedgerState};
use aquifer_ledger::marks;
use aquifer_ledger::members::Members;
use aquifer_ledger::recovery::driver::close_by_recovery;
use aquifer_model::id::{BookieId, CreationToken, EntryId, LedgerId, TenantKey};
use aquifer_model::storage::{BookieError, OrderedOperation, OrderedRequest};
use aquifer_runtime::clock;
use roaring::RoaringTreemap;
use tokio::sync::oneshot;

use crate::config::ReplicationConfig;
use crate::context::RepairContext;
use crate::copy::{Copier, Depth, Trouble};
use crate::local::LocalLedger;
use crate::pace::Pace;

/// Ledgers that a report names.
const NAMED_MAX: usize = 20;

/// How far a bookie is from the end of its limbo.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RestoreReport {
    /// Ledgers that concern it.
    pub ledgers: u64,
    /// Those of which everything is known to be here.
    pub whole: u64,
    /// Those that are still written, or being recovered, with a place here.
    pub waiting: u64,
    /// Those that could not be restored now, the first of them, and why.
    pub failed: Vec<String>,
    /// Ledgers that could not be restored now.
    pub failures: u64,
}

impl RestoreReport {
    /// Whether the limbo may end.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.waiting == 0 && self.failures == 0
    }
}

/// What a look at one ledger came to.
enum Found {
    Whole,
    Waiting,
}

/// What is known of a bookie in limbo.
pub struct Restore {
    ctx: Arc<RepairContext>,
    bookie: BookieId,
    pace: Pace,
    open_grace: Duration,
    whole: RoaringTreemap,
    /// Ledgers that wait for their writer: their last fragment, and since when.
    open: BTreeMap<LedgerId, (EntryId, Duration)>,
}

impl Restore {
    /// Nothing is known yet. The bookie must have said in its cookie that it is in limbo: a copy
    /// that others had brought to it before is then doubted by them.
    #[must_use]
    pub fn new(ctx: Arc<RepairContext>, bookie: BookieId, config: &ReplicationConfig) -> Restore {
        Restore {
            ctx,
            bookie,
            pace: Pace::new(config.repair_bytes_per_second),
            open_grace: Duration::from_millis(config.open_ledger_grace_ms),
            whole: RoaringTreemap::new(),
            open: BTreeMap::new(),
        }
    }

    /// Looks at every ledger that concerns the bookie once; `local` are all that it stores.
    ///
    /// # Errors
    /// When ledgers cannot be listed, or a record cannot be read: it may name the bookie.
    pub async fn pass(&mut self, local: &[LocalLedger]) -> Result<RestoreReport, LedgerError> {
        let index = LedgerIndex::scan(&*self.ctx.ledgers.store).await?;
        if let Some(damaged) = index.damaged().first() {
            let what = format!("it may name this bookie: {damaged}");
            return Err(LedgerError::BadRecord(0, what));
        }
        let members = Members::load(&*self.ctx.ledgers.store).await?;
        let stored = local.iter().map(|local| (local.ledger, Some(local.token)));
        let named = index.ledgers_of(self.bookie).map(|ledger| (ledger, None));
        // What is stored comes last and brings its token.
        let ledgers: BTreeMap<LedgerId, Option<CreationToken>> = named.chain(stored).collect();
        let mut report = RestoreReport {
            ledgers: ledgers.len() as u64,
            ..RestoreReport::default()
        };
        self.open.retain(|ledger, _| ledgers.contains_key(ledger));
        for (ledger, token) in ledgers {
            if self.whole.contains(ledger.0) {
                report.whole += 1;
                continue;
            }
            match self.look(ledger, token, &members).await {
                Ok(Found::Whole) => {
                    self.whole.insert(ledger.0);
                    report.whole += 1;
                }
                Ok(Found::Waiting) => report.waiting += 1,
                Err(trouble) => {
                    report.failures += 1;
                    if report.failed.len() < NAMED_MAX {
                        report.failed.push(format!("ledger {ledger}: {trouble}"));
                    }
                }
            }
        }
        Ok(report)
    }

    async fn look(
        &mut self,
        ledger: LedgerId,
        token: Option<CreationToken>,
        members: &Members,
    ) -> Result<Found, Trouble> {
        let store = Arc::clone(&self.ctx.ledgers.store);
        let Some(mut info) = ledger_metadata::load(&*store, ledger).await? else {
            // It was deleted: a writer that does not know must not go on here.
            return self.fence_stored(ledger, token).await;
        };
        if token.is_some_and(|token| token != info.token) {
            return self.fence_stored(ledger, token).await;
        }
        let intent = deletion::load(&*store, ledger).await?;
        if intent.is_none_or(|intent| !intent.deletes(&info)) {
            if self.is_written_here(&info) {
                if !self.writer_had_time(&info) {
                    return Ok(Found::Waiting);
                }
                tracing::info!(%ledger, "its writer does not replace a bookie in limbo: closing it");
                (info, _) = close_by_recovery(&self.ctx.ledgers, ledger, &[]).await?;
            }
            self.complete(&info, members).await?;
        }
        if !matches!(info.state, LedgerState::Open) {
            self.fence(ledger, info.token).await?;
        }
        self.open.remove(&ledger);
        Ok(Found::Whole)
    }

    /// Whether entries may still come to a fragment that names the bookie, or its end is not known.
    fn is_written_here(&self, info: &LedgerInfo) -> bool {
        let (_, members) = info.last_fragment();
        !matches!(info.state, LedgerState::Closed(_)) && members.contains(&self.bookie)
    }

    /// Whether the writer of a ledger could have replaced the bookie: it is told at its next add.
    fn writer_had_time(&mut self, info: &LedgerInfo) -> bool {
        let now = self.ctx.ledgers.clock.monotonic();
        let (first, _) = info.last_fragment();
        match self.open.get(&info.id) {
            Some((known, since)) if *known == first => {
                now.saturating_sub(*since) >= self.open_grace
            }
            _ => {
                self.open.insert(info.id, (first, now));
                self.open_grace.is_zero()
            }
        }
    }

    /// Gets what the bookie lacks of the fragments whose extent is fixed. An entry that no bookie
    /// has is the error in the end, when everything else is here.
    async fn complete(&self, info: &LedgerInfo, members: &Members) -> Result<(), Trouble> {
        let lost = marks::lost_of(&*self.ctx.ledgers.store, info.id).await?;
        let copier = Copier::new(&self.ctx, info, members, &lost, &self.pace);
        let mut missing = None;
        for fragment in info.duties().fixed() {
            let here = fragment.members.iter().enumerate();
            for (position, _) in here.filter(|(_, bookie)| **bookie == self.bookie) {
                let runs = fragment.of(position);
                let gaps = copier.gaps(self.bookie, runs, Depth::Keys, false).await?;
                if gaps.is_empty() {
                    continue;
                }
                let holes = copier.copy(&gaps, self.bookie).await?;
                if let Err(trouble) = holes.check() {
                    missing.get_or_insert(trouble);
                    continue;
                }
                let again = copier
                    .gaps(self.bookie, gaps.into_iter(), Depth::Keys, false)
                    .await?;
                if let Some((entry, _)) = again.first() {
                    let why = format!("entry {entry} was written and is not there");
                    return Err(Trouble::Blocked(why));
                }
            }
        }
        missing.map_or(Ok(()), Err)
    }

    async fn fence_stored(
        &self,
        ledger: LedgerId,
        token: Option<CreationToken>,
    ) -> Result<Found, Trouble> {
        // Nothing of it is here: it begins here only when metadata has a place for it.
        if let Some(token) = token {
            self.fence(ledger, token).await?;
        }
        Ok(Found::Whole)
    }

    async fn fence(&self, ledger: LedgerId, token: CreationToken) -> Result<(), Trouble> {
        let (tell, answer) = oneshot::channel();
        let request = OrderedRequest {
            ledger,
            token,
            tenant: TenantKey::UNKNOWN,
            operation: OrderedOperation::Fence,
        };
        let reply = Box::new(move |outcome| drop(tell.send(outcome)));
        self.ctx
            .ledgers
            .transport
            .submit(self.bookie, request, reply);
        let answer = clock::timeout(self.ctx.ledgers.settings.request_timeout, answer).await;
        match answer {
            // A tombstone refuses everything, and so does another token.
            Ok(Ok(Ok(_) | Err(BookieError::Deleted | BookieError::Token))) => Ok(()),
            Ok(Ok(Err(error))) => Err(Trouble::Silent(format!("it is not fenced: {error}"))),
            Ok(Err(_)) | Err(_) => Err(Trouble::Silent("it is not fenced: no answer".to_owned())),
        }
    }
}
