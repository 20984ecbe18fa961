//! Giving the place of one bookie in a ledger to another: copy, then swap in the record.

use std::collections::{BTreeMap, BTreeSet};

use aquifer_ledger::deletion;
use aquifer_ledger::error::LedgerError;
use aquifer_ledger::ledger_metadata::{self, LedgerInfo};
use aquifer_ledger::marks::{self, Mark};
use aquifer_ledger::members::{Member, Members};
use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys;
use aquifer_metadata::store::{Expect, Guard, Operation, Revision};
use aquifer_model::id::{BookieId, EntryId};

use crate::context::RepairContext;
use crate::copy::{Copier, Depth, Holes, Trouble};
use crate::pace::Pace;
use crate::plan::{self, Work};

/// Times that a record may change under one repair before it is left for the next round.
const CONFLICTS_MAX: usize = 16;
/// Bookies that are tried as the new place of one position.
const PLACES_MAX: usize = 8;

/// What became of a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moved {
    /// It is whole.
    MarkStays,
    /// It is whole, and the ledger with it: its mark went with the swap.
    WithMark,
}

/// One position that gets another bookie.
pub(super) struct Replacement<'a> {
    pub(super) ctx: &'a RepairContext,
    pub(super) pace: &'a Pace,
    pub(super) members: &'a Members,
    pub(super) lost: &'a BTreeSet<BookieId>,
    pub(super) work: Work,
}

impl Replacement<'_> {
    /// Copies a position to another bookie and swaps it in the record, but for entries that no
    /// replica has: these stay where they are named until a mark is all that waits for them.
    /// `clears` is the ledger's mark if nothing else in the record as it was read is left to do.
    pub(super) async fn run(
        &self,
        info: &mut LedgerInfo,
        mut clears: Option<&Mark>,
    ) -> Result<Moved, Trouble> {
        let work = &self.work;
        let mut unfit: Vec<BookieId> = self.members.leaving().into_iter().collect();
        let mut place = None;
        let (mut places, mut conflicts) = (0, 0);
        loop {
            let current = info.duties().members_from(work.first);
            let current = current.map(<[BookieId]>::to_vec).unwrap_or_default();
            if current.get(work.position) != Some(&work.bookie) {
                // Another process has done it.
                return Ok(Moved::MarkStays);
            }
            let to = match place.filter(|place| !current.contains(place)) {
                Some(place) => place,
                None if places == PLACES_MAX => {
                    return Err(Trouble::Blocked("no bookie takes the copy".to_owned()));
                }
                None => self.choose(&unfit, &current)?,
            };
            places += usize::from(place != Some(to));
            place = Some(to);
            let before = self.cookie_revision(to).await?;
            let holes = match self.bring(info, to).await {
                Err(trouble @ (Trouble::Refused(_) | Trouble::Silent(_))) => {
                    tracing::debug!(bookie = %to, ledger = info.id.0, %trouble, "bookie does not take a copy");
                    unfit.push(to);
                    place = None;
                    continue;
                }
                brought => brought?,
            };
            // No bookie that is gone for good comes back with anything.
            let gone = self.members.get(work.bookie);
            let kept = match gone.is_some_and(Member::is_decommissioned) {
                true => &[][..],
                false => &holes.runs[..],
            };
            let Some(fragments) = plan::split(info, work, to, kept) else {
                holes.check()?;
                return Ok(Moved::MarkStays);
            };
            let doubted = kept.len() < holes.runs.len();
            // What the mark says of the new bookie is still to be looked at.
            let mut mark = clears.filter(|mark| holes.runs.is_empty() && !mark.names(to));
            // With a bookie that is not what it was, the mark stays: what is left to do would be
            // forgotten if this process ended between the swap and the look back.
            if mark.is_some() && self.cookie_revision(to).await? != before {
                mark = None;
            }
            match self.swap_or_doubt(info, to, fragments, mark).await? {
                Swap::Done => {
                    self.look_back(info, to, before, doubted).await?;
                    holes.check()?;
                    return Ok(match mark {
                        Some(_) => Moved::WithMark,
                        None => Moved::MarkStays,
                    });
                }
                Swap::Again => {}
                Swap::Gone => return Ok(Moved::MarkStays),
                Swap::Unfit => {
                    unfit.push(to);
                    place = None;
                }
            }
            conflicts += 1;
            if conflicts > CONFLICTS_MAX {
                let why = "the ledger's record keeps changing";
                return Err(Trouble::Blocked(why.to_owned()));
            }
            *info = ledger_metadata::load_existing(&*self.ctx.ledgers.store, info.id).await?;
            // It is another record, or another mark: there may be more to do.
            clears = None;
        }
    }

    /// Doubts a bookie that has a place now, when it is not what it was when it was chosen, or is
    /// known to lack something.
    async fn look_back(
        &self,
        info: &LedgerInfo,
        to: BookieId,
        before: Option<Revision>,
        lacks: bool,
    ) -> Result<(), Trouble> {
        let changed = self.cookie_revision(to).await? != before;
        if changed || lacks {
            self.doubt(info, to).await?;
        }
        if changed {
            // It lost something, or was asked to leave, after it was chosen.
            let why = format!("bookie {to} has changed while it got a copy");
            return Err(Trouble::Blocked(why));
        }
        Ok(())
    }

    /// Copies to a bookie what the position stores and it does not hold yet. Returns what no bookie
    /// has.
    async fn bring(&self, info: &LedgerInfo, to: BookieId) -> Result<Holes, Trouble> {
        let copier = Copier::new(self.ctx, info, self.members, self.lost, self.pace);
        let runs = self.work.runs(info);
        let gaps = copier.gaps(to, runs, Depth::Keys, true).await?;
        copier.copy(&gaps, to).await
    }

    /// Tells whether a bookie that takes a copy is as it was when the copy began: a cookie is
    /// rewritten whenever its bookie lost data or shall leave.
    async fn cookie_revision(&self, bookie: BookieId) -> Result<Option<Revision>, LedgerError> {
        let stored = self.ctx.ledgers.store.get(&keys::cookie(bookie)).await?;
        Ok(stored.map(|stored| stored.revision))
    }

    async fn doubt(&self, info: &LedgerInfo, bookie: BookieId) -> Result<(), LedgerError> {
        let now_ms = self.ctx.ledgers.clock.wall_ms();
        let reason = "a bookie changed while it got a copy";
        let mark = Mark::new(info.id, &info.home, reason, now_ms);
        let mark = mark.incomplete([(bookie, EntryId::FIRST)]);
        marks::write(&*self.ctx.ledgers.store, &mark)
            .await
            .map(drop)
    }

    fn choose(&self, unfit: &[BookieId], beside: &[BookieId]) -> Result<BookieId, Trouble> {
        let chosen = self
            .ctx
            .ledgers
            .bookies
            .choose(1, unfit, beside, &*self.ctx.ledgers.rng)
            .map_err(|error| Trouble::Blocked(error.to_string()))?;
        let none = || Trouble::Blocked("no bookie was chosen".to_owned());
        chosen.first().copied().ok_or_else(none)
    }

    /// A swap of unknown outcome may have been made, and its mark may be gone with it: then the new
    /// bookie is marked as doubted, because it was not looked at again.
    async fn swap_or_doubt(
        &self,
        info: &mut LedgerInfo,
        to: BookieId,
        fragments: BTreeMap<EntryId, Vec<BookieId>>,
        mark: Option<&Mark>,
    ) -> Result<Swap, Trouble> {
        match self.swap(info, to, fragments, mark).await {
            Err(error @ LedgerError::Metadata(MetadataError::UnknownOutcome(_))) => {
                self.doubt(info, to).await?;
                Err(error.into())
            }
            swapped => Ok(swapped?),
        }
    }

    /// Writes a record in which a bookie has the place of another, unless a deletion names it: the
    /// copy could be what is being deleted. The mark of a ledger that is whole by it goes in the
    /// same transaction, which saves a write a ledger: both are as they were read, or nothing is
    /// done. Its lock cannot: it belongs to the partition of the cluster.
    async fn swap(
        &self,
        info: &mut LedgerInfo,
        to: BookieId,
        fragments: BTreeMap<EntryId, Vec<BookieId>>,
        clears: Option<&Mark>,
    ) -> Result<Swap, LedgerError> {
        let mut changed = LedgerInfo {
            fragments,
            ..info.clone()
        };
        // An intent for the copies of others may wait for a bookie that is away, for ever.
        let intent = deletion::load(&*self.ctx.ledgers.store, info.id).await?;
        match &intent {
            Some(intent) if intent.deletes(info) => return Ok(Swap::Gone),
            Some(intent) if intent.names(to) => return Ok(Swap::Unfit),
            _ => {}
        }
        let as_it_was = Guard {
            key: keys::deletion(info.id),
            expect: intent.map_or(Expect::Absent, |intent| intent.expect()),
        };
        let clearing: Vec<Operation> = clears.map(Mark::removal).into_iter().collect();
        let store = &*self.ctx.ledgers.store;
        match ledger_metadata::replace_and(store, &mut changed, &[as_it_was], clearing).await {
            Ok(()) => {
                self.ctx.metrics.swapped_positions.add(1, &[]);
                tracing::info!(
                    ledger = info.id.0, fragment = self.work.first.0, position = self.work.position,
                    from = %self.work.bookie, %to, "a bookie has taken another's place"
                );
                *info = changed;
                Ok(Swap::Done)
            }
            // Another process has changed it, or has begun to delete something: the next attempt
            // sees what.
            Err(LedgerError::Metadata(MetadataError::Conflict { .. }) | LedgerError::Fenced) => {
                Ok(Swap::Again)
            }
            Err(error) => Err(error),
        }
    }
}

enum Swap {
    Done,
    Again,
    /// The ledger is being deleted.
    Gone,
    Unfit,
}
