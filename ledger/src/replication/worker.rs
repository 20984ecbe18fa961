//! The replication worker: takes marked ledgers one at a time and gives them their replicas back.
//!
//! Every step may be repeated by anybody: copies are idempotent, a position is swapped by
//! compare-and-swap, and the mark goes last. The lock of a ledger only spares double work.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys;
use aquifer_metadata::store::{Expect, Guard, Revision, Session, Transaction};
use aquifer_metadata::{record, store::Operation};
use aquifer_model::id::{BookieId, EntryId, LedgerId};
use aquifer_model::limits::METADATA_PAGE_KEYS_MAX;
use aquifer_proto::v1;

use crate::context::LogContext;
use crate::deletion;
use crate::error::LedgerError;
use crate::ledger_metadata::{self, LedgerInfo};
use crate::recover::close_by_recovery;
use crate::replication::ReplicationConfig;
use crate::replication::copy::{Copier, Depth, Holes, Trouble};
use crate::replication::marks::{self, Mark};
use crate::replication::members::{Member, Members};
use crate::replication::plan::{self, Care, Work};
use crate::replication::share::Share;

/// Times that a record may change under one repair before it is left for the next round.
const CONFLICTS_MAX: usize = 16;
/// Bookies that are tried as the new place of one position.
const PLACES_MAX: usize = 8;
/// How old the knowledge of bookies may be that a repair begins with.
const MEMBERS_AGE_MAX: Duration = Duration::from_secs(5);
/// How long a round may look at copies that are not known to be lost.
const ROUND_LONG: Duration = Duration::from_secs(60);
/// First and longest pause before a ledger that could not be repaired is tried again.
const RETRY_FIRST: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_secs(300);

/// Which marks come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Urgency {
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

/// What a round over the marks came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Round {
    /// Marks that were there.
    pub marked: usize,
    /// Ledgers that are whole again, or gone.
    pub repaired: usize,
    /// Ledgers that wait for their writer, for a bookie, or for another worker.
    pub waiting: usize,
    /// Ledgers that could not be repaired now.
    pub failed: usize,
}

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

/// A worker. It repairs one ledger at a time.
pub struct RepairWorker {
    ctx: Arc<LogContext>,
    session: Arc<dyn Session>,
    open_grace: Duration,
    share: Arc<Share>,
    holder: String,
    /// Who there is, and when that was read.
    members: (Arc<Members>, Duration),
    /// Open ledgers that wait for their writer: their last fragment, and since when.
    open: BTreeMap<LedgerId, (EntryId, Vec<BookieId>, Duration)>,
    /// Ledgers that failed: how long they wait, and until when.
    put_off: BTreeMap<LedgerId, (Duration, Duration)>,
}

impl RepairWorker {
    /// A worker whose locks live as long as `session`. `holder` names it in them: no other worker
    /// that may live at the same time has the same name.
    #[must_use]
    pub fn new(
        ctx: Arc<LogContext>,
        session: Arc<dyn Session>,
        config: &ReplicationConfig,
        holder: String,
    ) -> RepairWorker {
        let share = Share::new(
            Arc::clone(&ctx),
            Arc::clone(&session),
            holder.clone(),
            config.repair_bytes_per_second,
        );
        RepairWorker {
            ctx,
            session,
            open_grace: Duration::from_millis(config.open_ledger_grace_ms),
            share: Arc::new(share),
            holder,
            members: (Arc::default(), Duration::ZERO),
            open: BTreeMap::new(),
            put_off: BTreeMap::new(),
        }
    }

    /// Its share in the cluster's rate, which whoever runs it for long keeps up to date.
    pub(crate) fn share(&self) -> Arc<Share> {
        Arc::clone(&self.share)
    }

    /// Takes every mark once: first those of ledgers that have lost a copy, then those of ledgers that are
    /// only to be looked at, which may be all that there are. Ends early when the latter take long, so
    /// that the next round finds what was lost meanwhile.
    ///
    /// # Errors
    /// When marks or bookies cannot be listed. What fails at a single ledger is counted.
    pub async fn round(&mut self) -> Result<Round, LedgerError> {
        self.share.take().await?;
        self.load_members().await?;
        let mut round = Round::default();
        let mut seen = BTreeSet::new();
        self.take_marks(Urgency::Lost, &mut round, &mut seen)
            .await?;
        let all = self
            .take_marks(Urgency::Other, &mut round, &mut seen)
            .await?;
        if all {
            self.open.retain(|ledger, _| seen.contains(ledger));
            self.put_off.retain(|ledger, _| seen.contains(ledger));
        }
        round.marked = seen.len();
        Ok(round)
    }

    /// Takes the marks of one kind, page by page; whether it came to the end of them.
    async fn take_marks(
        &mut self,
        urgency: Urgency,
        round: &mut Round,
        seen: &mut BTreeSet<LedgerId>,
    ) -> Result<bool, LedgerError> {
        let began = self.ctx.clock.monotonic();
        let mut page = None;
        loop {
            let prefix = keys::UNDER_REPLICATED_PREFIX;
            let store = &self.ctx.store;
            let found = store.scan(prefix, page, METADATA_PAGE_KEYS_MAX).await?;
            let mut items = found.items;
            // Workers that begin at different ledgers seldom meet.
            let turn = self.ctx.rng.below(items.len().max(1) as u64);
            items.rotate_left(usize::try_from(turn).unwrap_or(0));
            for item in &items {
                match Mark::decode(item) {
                    Ok(mark) if Urgency::of(&mark) == urgency => {
                        let now = self.ctx.clock.monotonic();
                        let long = now.saturating_sub(began) >= ROUND_LONG;
                        if urgency == Urgency::Other && long {
                            return Ok(false);
                        }
                        // One that was taken as lost is not taken again.
                        if seen.insert(mark.ledger) {
                            self.take(&mark, round).await?;
                        }
                    }
                    Err(error) if urgency == Urgency::Other => {
                        tracing::error!(key = item.key, %error, "a mark is unreadable");
                        round.failed += 1;
                    }
                    Ok(_) | Err(_) => {}
                }
            }
            page = found.next;
            if page.is_none() {
                return Ok(true);
            }
        }
    }

    async fn take(&mut self, mark: &Mark, round: &mut Round) -> Result<(), LedgerError> {
        let now = self.ctx.clock.monotonic();
        let put_off = self.put_off.get(&mark.ledger);
        if put_off.is_some_and(|(_, until)| now < *until) {
            round.failed += 1;
            return Ok(());
        }
        if now.saturating_sub(self.members.1) >= MEMBERS_AGE_MAX {
            self.load_members().await?;
        }
        let Some(lock) = self.lock(mark.ledger).await? else {
            round.waiting += 1;
            return Ok(());
        };
        let outcome = match self.repair(mark).await {
            Ok(outcome) => outcome,
            Err(error) => Outcome::Failed(error.to_string()),
        };
        self.unlock(mark, lock).await;
        match outcome {
            Outcome::Repaired => {
                self.put_off.remove(&mark.ledger);
                self.open.remove(&mark.ledger);
                self.ctx.metrics.repair.repaired_ledgers.add(1, &[]);
                round.repaired += 1;
            }
            Outcome::Waiting => round.waiting += 1,
            Outcome::Failed(why) => {
                let pause = match self.put_off.get(&mark.ledger) {
                    None => RETRY_FIRST,
                    Some((pause, _)) => (*pause * 2).min(RETRY_MAX),
                };
                tracing::warn!(ledger = mark.ledger.0, why, "ledger is not repaired yet");
                self.ctx.metrics.repair.failed_repairs.add(1, &[]);
                self.put_off.insert(mark.ledger, (pause, now + pause));
                round.failed += 1;
            }
        }
        Ok(())
    }

    async fn load_members(&mut self) -> Result<(), LedgerError> {
        let members = Members::load(&*self.ctx.store).await?;
        self.members = (Arc::new(members), self.ctx.clock.monotonic());
        Ok(())
    }

    /// Takes the lock of a ledger; `None` when somebody else has it. One of this holder, which
    /// repairs one ledger at a time, is left over: an answer was lost, or it could not be removed.
    async fn lock(&self, ledger: LedgerId) -> Result<Option<Operation>, LedgerError> {
        let key = keys::repair_lock(ledger);
        let value = record::encode(v1::LockRecord {
            holder: self.holder.clone(),
        });
        let mut locked = self.session.put(&key, value.clone(), Expect::Absent).await;
        if matches!(locked, Err(MetadataError::Conflict { .. }))
            && let Some(left) = self.ctx.store.get(&key).await?
            && left.value == value
        {
            let expect = Expect::Revision(left.revision);
            locked = self.session.put(&key, value, expect).await;
        }
        match locked {
            Ok(revision) => Ok(Some(Operation::Delete {
                key,
                expect: Expect::Revision(revision),
            })),
            Err(MetadataError::Conflict { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn unlock(&self, mark: &Mark, unlock: Operation) {
        let transaction = Transaction {
            partition: keys::CLUSTER_PARTITION.to_owned(),
            guards: Vec::new(),
            operations: vec![unlock],
        };
        // If this fails the next round of this worker takes it over, or it goes with the session.
        if let Err(error) = self.ctx.store.commit(transaction).await {
            tracing::debug!(ledger = mark.ledger.0, %error, "repair lock is not removed");
        }
    }

    /// Repairs one ledger as far as possible now.
    pub(crate) async fn repair(&mut self, mark: &Mark) -> Result<Outcome, LedgerError> {
        let ctx = Arc::clone(&self.ctx);
        let members = Arc::clone(&self.members.0);
        let mut done: BTreeSet<Work> = BTreeSet::new();
        let mut failed = None;
        let mut mark = mark.clone();
        loop {
            let info = ledger_metadata::load(&*ctx.store, mark.ledger).await?;
            let intent = deletion::load(&*ctx.store, mark.ledger).await?;
            let stays = |info: &LedgerInfo| intent.as_ref().is_none_or(|i| !i.deletes(info));
            let Some(mut info) = info.filter(stays) else {
                marks::clear(&*ctx.store, &mark).await?;
                return Ok(Outcome::Repaired);
            };
            let plan = plan::plan(&info, &mark, &members);
            if plan.recover && self.writer_had_time(&info) {
                close_by_recovery(&ctx, info.id, &[]).await?;
                // It says whom to doubt (H16).
                if let Some(marked) = marks::load(&*ctx.store, mark.ledger).await? {
                    mark = marked;
                }
                continue;
            }
            let left = plan.work.iter().filter(|work| !done.contains(*work));
            let next = left.min_by_key(|work| work.care != Care::Replace);
            if let Some(work) = next {
                done.insert(*work);
                if let Err(trouble) = self.attend(&mut info, &members, &mark.lost, *work).await {
                    tracing::debug!(ledger = info.id.0, ?work, %trouble, "position is not repaired");
                    failed = Some(trouble.to_string());
                }
                continue;
            }
            return Ok(match failed {
                Some(why) => Outcome::Failed(why),
                None if plan.recover || plan.wait => Outcome::Waiting,
                None => {
                    if !marks::clear(&*ctx.store, &mark).await? {
                        // Somebody knows of more to do.
                        return Ok(Outcome::Waiting);
                    }
                    tracing::info!(ledger = mark.ledger.0, "ledger has all its replicas");
                    Outcome::Repaired
                }
            });
        }
    }

    /// Whether the writer of an open ledger could have replaced the bookies that are lost.
    fn writer_had_time(&mut self, info: &LedgerInfo) -> bool {
        let now = self.ctx.clock.monotonic();
        let (first, bookies) = info.last_fragment();
        match self.open.get(&info.id) {
            Some((known, members, since)) if *known == first && *members == bookies => {
                now.saturating_sub(*since) >= self.open_grace
            }
            _ => {
                self.open.insert(info.id, (first, bookies, now));
                self.open_grace.is_zero()
            }
        }
    }

    async fn attend(
        &self,
        info: &mut LedgerInfo,
        members: &Members,
        lost: &BTreeSet<BookieId>,
        work: Work,
    ) -> Result<(), Trouble> {
        match work.care {
            Care::Verify(depth, _) => self.complete(info, members, lost, work, depth).await,
            Care::Replace => self.replace(info, members, lost, work).await,
        }
    }

    /// Gives a bookie that is there what it lacks; one that does not take it is replaced.
    async fn complete(
        &self,
        info: &mut LedgerInfo,
        members: &Members,
        lost: &BTreeSet<BookieId>,
        work: Work,
        depth: Depth,
    ) -> Result<(), Trouble> {
        let refused = {
            let copier = self.copier(info, members, lost);
            let gaps = copier
                .gaps(work.bookie, work.doubtful(info), depth, false)
                .await?;
            if gaps.is_empty() {
                return Ok(());
            }
            match copier.copy(&gaps, work.bookie).await {
                Ok(holes) => {
                    holes.check()?;
                    let again = copier
                        .gaps(work.bookie, gaps.into_iter(), depth, false)
                        .await?;
                    !again.is_empty()
                }
                Err(Trouble::Refused(_)) => true,
                Err(trouble) => return Err(trouble),
            }
        };
        if refused {
            tracing::warn!(bookie = %work.bookie, ledger = info.id.0, "bookie cannot keep its copy: another takes its place");
            return self.replace(info, members, lost, work).await;
        }
        Ok(())
    }

    /// Copies a position to another bookie and swaps it in the record, but for entries that no replica
    /// has: these stay where they are named until a mark is all that waits for them.
    async fn replace(
        &self,
        info: &mut LedgerInfo,
        members: &Members,
        lost: &BTreeSet<BookieId>,
        work: Work,
    ) -> Result<(), Trouble> {
        let mut unfit: Vec<BookieId> = members.leaving().into_iter().collect();
        let mut place = None;
        let (mut places, mut conflicts) = (0, 0);
        loop {
            let current = info.fragments.get(&work.first).cloned().unwrap_or_default();
            if current.get(work.position) != Some(&work.bookie) {
                // Somebody else has done it.
                return Ok(());
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
            let holes = match self.bring(info, members, lost, work, to).await {
                Err(trouble @ (Trouble::Refused(_) | Trouble::Silent(_))) => {
                    tracing::debug!(bookie = %to, ledger = info.id.0, %trouble, "bookie does not take a copy");
                    unfit.push(to);
                    place = None;
                    continue;
                }
                brought => brought?,
            };
            // Nobody who is gone for good comes back with anything.
            let gone = members.get(work.bookie);
            let kept = match gone.is_some_and(Member::is_decommissioned) {
                true => &[][..],
                false => &holes.runs[..],
            };
            let Some(fragments) = plan::split(info, &work, to, kept) else {
                return holes.check();
            };
            let doubted = kept.len() < holes.runs.len();
            match self.swap(info, work, to, fragments).await? {
                Swap::Done => {
                    self.look_back(info, to, before, doubted).await?;
                    return holes.check();
                }
                Swap::Again => {}
                Swap::Gone => return Ok(()),
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
            *info = ledger_metadata::load_existing(&*self.ctx.store, info.id).await?;
        }
    }

    /// Doubts a bookie that has a place now, when it is not what it was when it was chosen, or is known to
    /// lack something.
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

    /// Copies to a bookie what a position stores and it does not hold yet. Returns what nobody has.
    async fn bring(
        &self,
        info: &LedgerInfo,
        members: &Members,
        lost: &BTreeSet<BookieId>,
        work: Work,
        to: BookieId,
    ) -> Result<Holes, Trouble> {
        let copier = self.copier(info, members, lost);
        let gaps = copier.gaps(to, work.runs(info), Depth::Keys, true).await?;
        copier.copy(&gaps, to).await
    }

    /// Tells whether a bookie that takes a copy is as it was when the copy began: a cookie is
    /// written anew whenever its bookie lost data or shall leave.
    async fn cookie_revision(&self, bookie: BookieId) -> Result<Option<Revision>, LedgerError> {
        let stored = self.ctx.store.get(&keys::cookie(bookie)).await?;
        Ok(stored.map(|stored| stored.revision))
    }

    async fn doubt(&self, info: &LedgerInfo, bookie: BookieId) -> Result<(), LedgerError> {
        let now_ms = self.ctx.clock.wall_ms();
        let reason = "a bookie changed while it got a copy";
        let mark = Mark::new(info.id, &info.home, reason, now_ms);
        let mark = mark.thin([(bookie, EntryId::FIRST)]);
        marks::write(&*self.ctx.store, &mark).await.map(drop)
    }

    fn choose(&self, unfit: &[BookieId], beside: &[BookieId]) -> Result<BookieId, Trouble> {
        let chosen = self
            .ctx
            .bookies
            .choose(1, unfit, beside, &*self.ctx.rng)
            .map_err(|error| Trouble::Blocked(error.to_string()))?;
        let none = || Trouble::Blocked("no bookie was chosen".to_owned());
        chosen.first().copied().ok_or_else(none)
    }

    /// Writes a record in which a bookie has the place of another, unless a deletion names it: the copy
    /// could be what is being deleted.
    async fn swap(
        &self,
        info: &mut LedgerInfo,
        work: Work,
        to: BookieId,
        fragments: BTreeMap<EntryId, Vec<BookieId>>,
    ) -> Result<Swap, LedgerError> {
        let mut changed = LedgerInfo {
            fragments,
            ..info.clone()
        };
        // An intent for the copies of others may wait for a bookie that is away, for ever.
        let intent = deletion::load(&*self.ctx.store, info.id).await?;
        match &intent {
            Some(intent) if intent.deletes(info) => return Ok(Swap::Gone),
            Some(intent) if intent.names(to) => return Ok(Swap::Unfit),
            _ => {}
        }
        let as_it_was = Guard {
            key: keys::deletion(info.id),
            expect: intent.map_or(Expect::Absent, |intent| intent.expect()),
        };
        match ledger_metadata::replace(&*self.ctx.store, &mut changed, &[as_it_was]).await {
            Ok(()) => {
                self.ctx.metrics.repair.swapped_positions.add(1, &[]);
                tracing::info!(
                    ledger = info.id.0, fragment = work.first.0, position = work.position,
                    from = %work.bookie, %to, "a bookie has taken another's place"
                );
                *info = changed;
                Ok(Swap::Done)
            }
            // Somebody has changed it, or has begun to delete something: the next attempt sees what.
            Err(LedgerError::Metadata(MetadataError::Conflict { .. }) | LedgerError::Fenced) => {
                Ok(Swap::Again)
            }
            Err(error) => Err(error),
        }
    }

    fn copier<'a>(
        &'a self,
        info: &'a LedgerInfo,
        members: &'a Members,
        lost: &'a BTreeSet<BookieId>,
    ) -> Copier<'a> {
        Copier::new(&self.ctx, info, members, lost, self.share.pace())
    }
}

enum Swap {
    Done,
    Again,
    /// The ledger is being deleted.
    Gone,
    Unfit,
}
