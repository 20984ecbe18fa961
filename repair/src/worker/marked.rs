//! The marks of one kind, page by page, as a round takes them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use aquifer_ledger::error::LedgerError;
use aquifer_ledger::marks::Mark;
use aquifer_ledger::members::Members;
use aquifer_metadata::keys;
use aquifer_metadata::scan::Pages;
use aquifer_metadata::store::Versioned;
use aquifer_model::id::LedgerId;

use crate::context::RepairContext;

/// How old the knowledge of bookies may be that a repair begins with.
const MEMBERS_AGE_MAX: Duration = Duration::from_secs(5);
/// For how long a round begins to look at copies that are not known to be lost.
const ROUND_LONG: Duration = Duration::from_secs(60);

/// Which marks come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    /// Copies are lost.
    Lost,
    /// Copies are to be looked at.
    Other,
}

impl Urgency {
    fn of(mark: &Mark) -> Urgency {
        match mark.lost.is_empty() {
            true => Urgency::Other,
            false => Urgency::Lost,
        }
    }
}

/// The members of the cluster, and when they were read.
pub(super) struct Known {
    members: Arc<Members>,
    at: Duration,
}

impl Known {
    pub(super) async fn load(ctx: &RepairContext) -> Result<Known, LedgerError> {
        Ok(Known {
            members: Arc::new(Members::load(&*ctx.ledgers.store).await?),
            at: ctx.ledgers.clock.monotonic(),
        })
    }
}

/// What comes next.
pub(super) enum Next {
    /// A ledger, and the members of the cluster.
    Ledger(Mark, Arc<Members>),
    Unreadable,
}

/// Finds the marks of one kind.
pub(super) struct Marked<'a> {
    ctx: &'a RepairContext,
    urgency: Urgency,
    known: &'a mut Known,
    /// Ledgers that this round has taken, by marks of either kind: none is taken twice.
    seen: &'a mut BTreeSet<LedgerId>,
    began: Duration,
    items: std::vec::IntoIter<Versioned>,
    pages: Pages<'a>,
    is_complete: bool,
}

impl<'a> Marked<'a> {
    pub(super) fn new(
        ctx: &'a RepairContext,
        urgency: Urgency,
        known: &'a mut Known,
        seen: &'a mut BTreeSet<LedgerId>,
    ) -> Marked<'a> {
        Marked {
            ctx,
            urgency,
            known,
            seen,
            began: ctx.ledgers.clock.monotonic(),
            items: Vec::new().into_iter(),
            pages: Pages::new(&*ctx.ledgers.store, keys::UNDER_REPLICATED_PREFIX),
            is_complete: false,
        }
    }

    /// Whether it came to the end of them.
    pub(super) fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// The next of them; `None` at their end, or when looks have taken long.
    pub(super) async fn next(&mut self) -> Result<Option<Next>, LedgerError> {
        loop {
            let Some(item) = self.items.next() else {
                let Some(items) = self.pages.next().await? else {
                    self.is_complete = true;
                    return Ok(None);
                };
                self.begin_anywhere(items);
                continue;
            };
            match Mark::decode(&item) {
                Ok(mark) if Urgency::of(&mark) == self.urgency => {
                    let now = self.ctx.ledgers.clock.monotonic();
                    let long = now.saturating_sub(self.began) >= ROUND_LONG;
                    if self.urgency == Urgency::Other && long {
                        return Ok(None);
                    }
                    // One that was taken as lost is not taken again.
                    if self.seen.insert(mark.ledger) {
                        let members = self.members(now).await?;
                        return Ok(Some(Next::Ledger(mark, members)));
                    }
                }
                Err(error) if self.urgency == Urgency::Other => {
                    tracing::error!(key = item.key, %error, "a mark is unreadable");
                    return Ok(Some(Next::Unreadable));
                }
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// Workers that begin at different ledgers seldom meet.
    fn begin_anywhere(&mut self, mut items: Vec<Versioned>) {
        let turn = self.ctx.ledgers.rng.below(items.len().max(1) as u64);
        items.rotate_left(usize::try_from(turn).unwrap_or(0));
        self.items = items.into_iter();
    }

    async fn members(&mut self, now: Duration) -> Result<Arc<Members>, LedgerError> {
        if now.saturating_sub(self.known.at) >= MEMBERS_AGE_MAX {
            *self.known = Known::load(self.ctx).await?;
        }
        Ok(Arc::clone(&self.known.members))
    }
}
