//! The repair of one ledger. Several run at once, and share nothing but what is bounded for all of
//! them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use aquifer_ledger::deletion;
use aquifer_ledger::error::LedgerError;
use aquifer_ledger::ledger_metadata::{self, LedgerInfo};
use aquifer_ledger::marks::{self, Mark};
use aquifer_ledger::members::Members;
use aquifer_ledger::recovery::driver::close_by_recovery;
use aquifer_model::id::BookieId;
use tokio::sync::Semaphore;

use crate::context::RepairContext;
use crate::copy::{Copier, Depth, Trouble};
use crate::plan::{self, Care, Plan, Work};
use crate::share::Share;
use crate::worker::replace::{Moved, Replacement};
use crate::worker::waits::Writers;

/// Recoveries of a worker at once: each has a window of entries in memory that the bound on copies
/// does not cover.
const RECOVERIES_AT_ONCE: usize = 4;

/// What became of one ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It has all its replicas, or does not exist any more; the mark is gone.
    Repaired,
    /// Something has to happen first.
    Waiting,
    /// It did not work this time.
    Failed(String),
}

/// Repairs ledgers.
pub(super) struct LedgerRepair {
    ctx: Arc<RepairContext>,
    share: Arc<Share>,
    writers: Writers,
    recoveries: Semaphore,
}

impl LedgerRepair {
    pub(super) fn new(
        ctx: Arc<RepairContext>,
        share: Arc<Share>,
        open_grace: Duration,
    ) -> LedgerRepair {
        LedgerRepair {
            ctx,
            share,
            writers: Writers::new(open_grace),
            recoveries: Semaphore::new(RECOVERIES_AT_ONCE),
        }
    }

    /// The open ledgers that wait for their writer.
    pub(super) fn writers(&self) -> &Writers {
        &self.writers
    }

    /// Repairs one ledger as far as possible now.
    pub(super) async fn repair(
        &self,
        mark: &Mark,
        members: &Members,
    ) -> Result<Outcome, LedgerError> {
        let store = &*self.ctx.ledgers.store;
        let mut done: BTreeSet<Work> = BTreeSet::new();
        let mut failed = None;
        let mut mark = mark.clone();
        loop {
            // A change of the record by what is read here is made only if the intent is the same.
            let (info, intent) = futures::try_join!(
                ledger_metadata::load(store, mark.ledger),
                deletion::load(store, mark.ledger)
            )?;
            let stays = |info: &LedgerInfo| intent.as_ref().is_none_or(|i| !i.deletes(info));
            let Some(mut info) = info.filter(stays) else {
                marks::clear(store, &mark).await?;
                return Ok(Outcome::Repaired);
            };
            let plan = plan::plan(&info, &mark, members);
            let now = self.ctx.ledgers.clock.monotonic();
            if plan.recover && self.writers.had_time(&info, now) {
                let _turn = self.recoveries.acquire().await;
                close_by_recovery(&self.ctx.ledgers, info.id, &[]).await?;
                // It says which bookies to doubt (H16).
                if let Some(marked) = marks::load(store, mark.ledger).await? {
                    mark = marked;
                }
                continue;
            }
            if let Some((work, is_last)) = next_work(&plan, &done) {
                done.insert(work);
                let clears = is_last && failed.is_none();
                let clears = clears.then_some(&mark);
                match self
                    .attend(&mut info, members, &mark.lost, work, clears)
                    .await
                {
                    Ok(Moved::WithMark) => return Ok(whole(&mark)),
                    Ok(Moved::MarkStays) => {}
                    Err(trouble) => {
                        tracing::debug!(ledger = info.id.0, ?work, %trouble, "position is not repaired");
                        failed = Some(trouble.to_string());
                    }
                }
                continue;
            }
            return Ok(match failed {
                Some(why) => Outcome::Failed(why),
                None if plan.recover || plan.wait => Outcome::Waiting,
                // Another process knows of more to do.
                None if !marks::clear(store, &mark).await? => Outcome::Waiting,
                None => whole(&mark),
            });
        }
    }

    async fn attend(
        &self,
        info: &mut LedgerInfo,
        members: &Members,
        lost: &BTreeSet<BookieId>,
        work: Work,
        clears: Option<&Mark>,
    ) -> Result<Moved, Trouble> {
        let replacement = Replacement {
            ctx: &self.ctx,
            pace: self.share.pace(),
            members,
            lost,
            work,
        };
        match work.care {
            Care::Replace => replacement.run(info, clears).await,
            Care::Verify(depth, _) if self.complete(info, members, lost, work, depth).await? => {
                Ok(Moved::MarkStays)
            }
            Care::Verify(..) => {
                tracing::warn!(bookie = %work.bookie, ledger = info.id.0, "bookie cannot keep its copy: another takes its place");
                replacement.run(info, None).await
            }
        }
    }

    /// Gives a bookie that is there what it lacks; `false` if it does not take it, and is to be
    /// replaced.
    async fn complete(
        &self,
        info: &LedgerInfo,
        members: &Members,
        lost: &BTreeSet<BookieId>,
        work: Work,
        depth: Depth,
    ) -> Result<bool, Trouble> {
        let copier = Copier::new(&self.ctx, info, members, lost, self.share.pace());
        let gaps = copier
            .gaps(work.bookie, work.doubtful(info), depth, false)
            .await?;
        if gaps.is_empty() {
            return Ok(true);
        }
        match copier.copy(&gaps, work.bookie).await {
            Ok(holes) => {
                holes.check()?;
                let again = copier
                    .gaps(work.bookie, gaps.into_iter(), depth, false)
                    .await?;
                Ok(again.is_empty())
            }
            Err(Trouble::Refused(_)) => Ok(false),
            Err(trouble) => Err(trouble),
        }
    }
}

/// What is done next, and whether nothing is left to do after it. What is lost comes first.
fn next_work(plan: &Plan, done: &BTreeSet<Work>) -> Option<(Work, bool)> {
    let left = || plan.work.iter().filter(|work| !done.contains(*work));
    let next = left().min_by_key(|work| work.care != Care::Replace)?;
    let is_last = left().count() == 1 && !plan.recover && !plan.wait;
    Some((*next, is_last))
}

fn whole(mark: &Mark) -> Outcome {
    tracing::info!(ledger = mark.ledger.0, "ledger has all its replicas");
    Outcome::Repaired
}
