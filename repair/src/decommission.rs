//! Taking a bookie out of the cluster: nothing new, then nothing at all, then never again.
//!
//! 1. [`set_draining`]: its cookie says that it is to be empty. No writer chooses it for new
//!    entries, and the auditor marks its ledgers.
//! 2. Workers copy what it holds; [`references`] says how many ledgers still name it. Ledgers that
//!    are being deleted do not count: their records go when the bookie is no longer waited for.
//! 3. [`Retirement`]: once no ledger names it, or only for entries that no bookie has, its cookie
//!    becomes a tombstone. The incarnation never starts again, and deletions do not wait for it.

use std::collections::BTreeSet;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use aquifer_ledger::deletion;
use aquifer_ledger::duties::FragmentDuty;
use aquifer_ledger::error::LedgerError;
use aquifer_ledger::index::LedgerIndex;
use aquifer_ledger::ledger_metadata;
use aquifer_ledger::marks::{self, Mark};
use aquifer_ledger::members::{Member, Members};
use aquifer_metadata::store::{MetadataStore, Versioned};
use aquifer_metadata::update::{Change, UpdateError};
use aquifer_metadata::{keys, record};
use aquifer_model::id::{BookieId, EntryId, LedgerId};
use aquifer_proto::v1;
use bytes::Bytes;
use roaring::RoaringTreemap;

use crate::auditor::of_one_ledger;
use crate::context::RepairContext;
use crate::copy::{Copier, Trouble};
use crate::pace::Pace;

/// How long writers may take to hear that a bookie is not announced as writable any more.
const SILENCE: Duration = Duration::from_secs(3);
/// How long a bookie may be away for a start.
const AWAY: Duration = Duration::from_secs(10);
/// With more ledgers than these left, they are not all lost.
const LOST_LEDGERS_MAX: u64 = 10_000;

/// Why a bookie is not retired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Retired {
    /// It is: its cookie is a tombstone.
    Yes,
    /// It announces itself as writable still, or did a moment ago: writers may choose it.
    Announced,
    /// This many ledgers still name it.
    Referenced(u64),
    /// Ledgers name it only for entries that no other bookie has, and it is not there to be asked.
    LastHope(Vec<Lost>),
    /// Records that cannot be read may name it.
    Unknown(String),
}

/// Entries that no bookie has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lost {
    /// Their ledger.
    pub ledger: LedgerId,
    /// The first.
    pub first: EntryId,
    /// The last.
    pub last: EntryId,
}

/// Says that a bookie is to be emptied, or no longer. A bookie that has no cookie gets one, so
/// that one which was lost before it was known can be emptied as well.
///
/// # Errors
/// When metadata does not do it.
pub async fn set_draining(
    store: &dyn MetadataStore,
    bookie: BookieId,
    draining: bool,
) -> Result<(), LedgerError> {
    change(store, bookie, |cookie| cookie.draining = draining).await
}

/// How many ledgers name a bookie, and whether every record could be read.
///
/// # Errors
/// When ledgers cannot be listed.
pub async fn references(
    store: &dyn MetadataStore,
    bookie: BookieId,
) -> Result<(u64, bool), LedgerError> {
    let index = LedgerIndex::scan(store).await?;
    let count = staying(store, &index, bookie).await?.len();
    Ok((count, index.is_complete()))
}

/// The ledgers that name a bookie and are not being deleted.
async fn staying(
    store: &dyn MetadataStore,
    index: &LedgerIndex,
    bookie: BookieId,
) -> Result<RoaringTreemap, LedgerError> {
    let mut staying: RoaringTreemap = index.ledgers_of(bookie).map(|ledger| ledger.0).collect();
    for ledger in deletion::going(store).await? {
        staying.remove(ledger.0);
    }
    Ok(staying)
}

/// A decommission in progress. A ledger may be created with a place on the bookie after a scan by a
/// writer that does not know yet: so the scan that counts begins a while after nothing announces
/// the bookie as writable. Adds of such a ledger are refused by the bookie's gate in any case.
pub struct Retirement {
    ctx: Arc<RepairContext>,
    bookie: BookieId,
    /// Whether what no bookie has is given up although the bookie might have it.
    accept_loss: bool,
    /// Since when it is not announced as a choice.
    silent_since: Option<Duration>,
    /// Since when it is not registered.
    away_since: Option<Duration>,
    /// The ledger that was found to have something on another bookie still.
    moving: Option<LedgerId>,
    lost: BTreeSet<Lost>,
}

impl Retirement {
    /// Begins with a bookie that is draining.
    #[must_use]
    pub fn new(ctx: Arc<RepairContext>, bookie: BookieId) -> Retirement {
        Retirement {
            ctx,
            bookie,
            accept_loss: false,
            silent_since: None,
            away_since: None,
            moving: None,
            lost: BTreeSet::new(),
        }
    }

    /// The same, which does not wait for the bookie because of entries that no other has.
    #[must_use]
    pub fn accept_loss(mut self, accept: bool) -> Retirement {
        self.accept_loss = accept;
        self
    }

    /// The entries that no bookie had when this one was retired.
    pub fn lost(&self) -> impl Iterator<Item = &Lost> {
        self.lost.iter()
    }

    /// Makes the bookie's cookie a tombstone, if no ledger names it any more, or only for entries
    /// that are lost.
    ///
    /// # Errors
    /// When metadata does not do it.
    pub async fn step(&mut self) -> Result<Retired, LedgerError> {
        let ctx = Arc::clone(&self.ctx);
        let store = &*ctx.ledgers.store;
        let now = ctx.ledgers.clock.monotonic();
        let members = Members::load(store).await?;
        let member = members.get(self.bookie);
        let announced = member.and_then(|member| member.registration.as_ref());
        if announced.is_some_and(|registration| !registration.read_only) {
            self.silent_since = None;
        } else {
            self.silent_since.get_or_insert(now);
        }
        match announced {
            Some(_) => self.away_since = None,
            None => {
                self.away_since.get_or_insert(now);
            }
        }
        let index = LedgerIndex::scan(store).await?;
        if let Some(damaged) = index.damaged().first() {
            return Ok(Retired::Unknown(damaged.clone()));
        }
        let staying = staying(store, &index, self.bookie).await?;
        let gone = member.is_some_and(Member::is_decommissioned);
        if !staying.is_empty()
            && !gone
            && let Some(waits) = self.waits_for(&members, &staying, now).await?
        {
            return Ok(waits);
        }
        let silent = self.silent_since.map(|since| now.saturating_sub(since));
        if silent.is_none_or(|silent| silent < SILENCE) {
            return Ok(Retired::Announced);
        }
        let now_ms = self.ctx.ledgers.clock.wall_ms();
        change(store, self.bookie, |cookie| {
            cookie.draining = true;
            if cookie.decommissioned_ms == 0 {
                cookie.decommissioned_ms = now_ms.max(1);
            }
        })
        .await?;
        // It is not waited for any more.
        let is_gone = |bookie| {
            let member = members.get(bookie);
            bookie == self.bookie || member.is_some_and(Member::is_decommissioned)
        };
        deletion::finish_without(store, is_gone).await?;
        // A writer that stood still may have created one all the same: it is moved as well, and so
        // are the places of what is lost.
        match self.mark_late().await? {
            0 => Ok(Retired::Yes),
            late => Ok(Retired::Referenced(late)),
        }
    }

    /// What ledgers that name the bookie still wait for; `None` when all that they name it for is
    /// lost.
    async fn waits_for(
        &mut self,
        members: &Members,
        staying: &RoaringTreemap,
        now: Duration,
    ) -> Result<Option<Retired>, LedgerError> {
        let Some(lost) = self.lost_of_all(members, staying).await? else {
            return Ok(Some(Retired::Referenced(staying.len())));
        };
        if let Some(since) = self.away_since {
            // It may only be restarting.
            if now.saturating_sub(since) < AWAY {
                return Ok(Some(Retired::Referenced(staying.len())));
            }
            if !self.accept_loss {
                return Ok(Some(Retired::LastHope(lost)));
            }
        }
        self.lost.extend(lost);
        Ok(None)
    }

    /// Marks the ledgers that name a bookie which is a tombstone, for the repair workers. Returns
    /// how many name it, whether or not each could be marked.
    async fn mark_late(&self) -> Result<u64, LedgerError> {
        let store = &*self.ctx.ledgers.store;
        let index = LedgerIndex::scan(store).await?;
        let late = staying(store, &index, self.bookie).await?;
        for ledger in late.iter().map(LedgerId) {
            of_one_ledger(ledger, self.mark_one(ledger).await)?;
        }
        Ok(late.len())
    }

    async fn mark_one(&self, ledger: LedgerId) -> Result<(), LedgerError> {
        let store = &*self.ctx.ledgers.store;
        let Some(info) = ledger_metadata::load(store, ledger).await? else {
            return Ok(());
        };
        let now_ms = self.ctx.ledgers.clock.wall_ms();
        let reason = "it names a bookie that is decommissioned";
        let mark = Mark::new(ledger, &info.home, reason, now_ms).lost([self.bookie]);
        marks::write(store, &mark).await.map(drop)
    }

    /// What is lost of these ledgers where they name the bookie, if nothing else of them is left
    /// there to be copied.
    async fn lost_of_all(
        &mut self,
        members: &Members,
        ledgers: &RoaringTreemap,
    ) -> Result<Option<Vec<Lost>>, LedgerError> {
        if ledgers.len() > LOST_LEDGERS_MAX {
            return Ok(None);
        }
        // What was still being moved a moment ago most likely is.
        let moving = self.moving.filter(|ledger| ledgers.contains(ledger.0));
        let others = ledgers.iter().map(LedgerId);
        let others = others.filter(|ledger| Some(*ledger) != moving);
        let mut all = Vec::new();
        for ledger in moving.into_iter().chain(others) {
            match self.lost_of(members, ledger).await? {
                Some(lost) => all.extend(lost),
                None => {
                    self.moving = Some(ledger);
                    return Ok(None);
                }
            }
        }
        Ok(Some(all))
    }

    async fn lost_of(
        &self,
        members: &Members,
        ledger: LedgerId,
    ) -> Result<Option<Vec<Lost>>, LedgerError> {
        let store = &*self.ctx.ledgers.store;
        let Some(info) = ledger_metadata::load(store, ledger).await? else {
            return Ok(Some(Vec::new()));
        };
        let duties = info.duties();
        let named = |fragment: &FragmentDuty<'_>| fragment.members.contains(&self.bookie);
        if duties.fragments().any(|f| named(&f) && !f.fixed) {
            // It is still written, or its end is not known.
            return Ok(None);
        }
        let (dead, pace) = (marks::lost_of(store, ledger).await?, Pace::new(u64::MAX));
        let copier = Copier::new(&self.ctx, &info, members, &dead, &pace);
        let mut all = Vec::new();
        for fragment in duties.fixed() {
            let mut members = fragment.members.iter();
            let Some(position) = members.position(|bookie| *bookie == self.bookie) else {
                continue;
            };
            let found = copier.lost_by_all(fragment.of(position)).await;
            let holes = match found {
                Ok(Some(holes)) if !holes.runs.is_empty() => holes,
                Err(Trouble::Ledger(error)) => return Err(error),
                // A place without entries moves at once, and what is somewhere is copied.
                Ok(_) | Err(_) => return Ok(None),
            };
            all.extend(holes.runs.iter().map(|(first, last)| Lost {
                ledger,
                first: *first,
                last: *last,
            }));
        }
        Ok(Some(all))
    }
}

async fn change(
    store: &dyn MetadataStore,
    bookie: BookieId,
    change: impl Fn(&mut v1::CookieRecord),
) -> Result<(), LedgerError> {
    let decide = |stored: Option<Versioned>| {
        let before: Option<v1::CookieRecord> = stored.as_ref().map(record::decode).transpose()?;
        let mut cookie = before.clone().unwrap_or_else(|| v1::CookieRecord {
            bookie_id: Bytes::copy_from_slice(&bookie.0),
            ..v1::CookieRecord::default()
        });
        change(&mut cookie);
        if before.as_ref() == Some(&cookie) {
            return Ok(Change::none(()));
        }
        Ok(Change::put(
            keys::CLUSTER_PARTITION,
            record::encode(cookie),
            (),
        ))
    };
    let key = keys::cookie(bookie);
    let updated = store.update(&key, &[], |stored| ready(decide(stored)));
    let updated = updated.await;
    updated
        .map(drop)
        .map_err(UpdateError::<LedgerError>::flatten)
}
