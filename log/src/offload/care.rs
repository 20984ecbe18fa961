//! The ledgers of one log on their way into objects: which are due, by command or by policy, and
//! when their copies at bookies go.
//!
//! One task of a log does it at a time. What it knows of a ledger is remembered, since nothing but
//! offload changes it; before a step the ledger's record is read again. How far it is the record of
//! the topic says, so that a topic that is not loaded is loaded only when something is due.

use std::collections::BTreeSet;
use std::time::Duration;

use aquifer_cold::error::ColdError;
use aquifer_ledger::deletion;
use aquifer_ledger::error::LedgerError;
use aquifer_ledger::ledger_metadata;
use aquifer_ledger::objects;
use aquifer_ledger::offload::{Copies, Offload, StoredObject};
use aquifer_model::id::{BookieId, Index, LedgerId};
use aquifer_model::policy::Retention;
use aquifer_model::policy::offload::OffloadPolicy;
use futures::StreamExt;

use crate::error::LogError;
use crate::metrics::AttemptOutcome;
use crate::offload::figures::BehindOfLog;
use crate::offload::known::Known;
use crate::offload::left::leave_ledger;
use crate::offload::tier::ColdTier;
use crate::offload::upload::{Origin, Outcome, of_store, offload_ledger};
use crate::state::{LogInner, Segment, SegmentStatus};
use crate::types::{LogKind, SegmentState};

/// Records of ledgers that are read at once.
const READS_AT_ONCE: usize = 16;
/// Records that are read for statistics, the newest first: they are asked for often.
const READS_FOR_STATS_MAX: usize = 1_000;
/// A ledger whose attempt failed for a reason of its own is left alone for this time.
pub(super) const LEDGER_REST: Duration = Duration::from_secs(600);
/// One whose copies cannot go, since another intent names it, is left alone for this time: that
/// ends when bookies come back, and nothing of the topic is worth waiting for it.
const INTENT_REST: Duration = Duration::from_secs(60);

/// One that is left to offloaders is looked at again after this time.
const LEFT_REST: Duration = Duration::from_secs(15);

/// How far the offload of a log is that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Offloading {
    /// Ledgers that are to be offloaded, and are not yet.
    pub ledgers: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Why the last attempt failed, if no attempt has begun since.
    pub failure: Option<LogError>,
}

impl LogInner {
    /// The sealed segments that hold anything, oldest first.
    pub(crate) fn sealed(&self) -> Vec<Segment> {
        let state = self.state.lock();
        let sealed =
            |segment: &&Segment| segment.status == SegmentStatus::Sealed && segment.entries > 0;
        state.segments.iter().filter(sealed).cloned().collect()
    }

    /// The policy in force.
    pub(super) fn offload_policy(&self, tier: &ColdTier) -> OffloadPolicy {
        let now = self
            .policies
            .get()
            .map(|policies| policies.borrow().offload);
        now.unwrap_or(tier.settings.policy)
    }

    /// What trimming keeps, if it follows a policy.
    pub(super) fn retention(&self) -> Option<Retention> {
        let policies = self.policies.get()?;
        Some(policies.borrow().retention)
    }

    fn known(&self, ledger: LedgerId) -> Option<Known> {
        self.offload.lock().known.get(&ledger).cloned()
    }

    pub(super) async fn look(&self, ledger: LedgerId) -> Result<(), LedgerError> {
        // Never closed.
        let _turn = match &self.ctx.cold {
            Some(tier) => tier.looks.acquire().await.ok(),
            None => None,
        };
        let info = ledger_metadata::load(&*self.ctx.ledgers.store, ledger).await?;
        let mut state = self.offload.lock();
        let Some(info) = info else {
            state.known.remove(&ledger);
            state.at.remove(&ledger);
            return Ok(());
        };
        let at: Box<[BookieId]> = info.duties().bookies().into_iter().collect();
        match at.is_empty() {
            true => state.at.remove(&ledger),
            false => state.at.insert(ledger, at),
        };
        state.known.insert(ledger, Known::of(info.offload));
        Ok(())
    }

    /// Learns where the bytes of segments are, for statistics.
    pub(crate) async fn learn_for_stats(&self) -> Result<(), LogError> {
        self.learn(Index(0), READS_FOR_STATS_MAX).await
    }

    /// Sealed segments that end above an index and are not known for good, the newest first.
    fn unknown(&self, above: Index) -> Vec<LedgerId> {
        let sealed = self.sealed();
        let mut state = self.offload.lock();
        // What was trimmed belongs to the log no more.
        let first = sealed.first().map_or(LedgerId(u64::MAX), |s| s.ledger);
        state.forget_before(first);
        let is_unknown = |ledger: &LedgerId| state.known.get(ledger).is_none_or(Known::may_change);
        let beyond = sealed.iter().rev().take_while(|s| s.end_index > above);
        beyond.map(|s| s.ledger).filter(is_unknown).collect()
    }

    /// Learns where the bytes of segments are that end above an index, the newest first, as far as
    /// that is not known.
    pub(super) async fn learn(&self, above: Index, reads_max: usize) -> Result<(), LogError> {
        let unknown = self.unknown(above).into_iter().take(reads_max);
        let mut looks = futures::stream::iter(unknown)
            .map(|ledger| self.look(ledger))
            .buffer_unordered(READS_AT_ONCE);
        while let Some(looked) = looks.next().await {
            looked?;
        }
        Ok(())
    }

    /// Below this everything is offloaded, and bookies have no copies.
    pub(super) fn dropped_end(&self) -> Index {
        Index(self.cell.offload_mark().dropped_end)
    }

    /// Where the bytes of a segment are, as far as that is known.
    pub(crate) fn segment_state(&self, ledger: LedgerId) -> SegmentState {
        match self.known(ledger) {
            None | Some(Known::Local) => SegmentState::Local,
            Some(Known::Claimed) => SegmentState::Offloading,
            Some(Known::Stored { object, copies, .. }) => SegmentState::Offloaded {
                object,
                local: copies.serve(),
            },
        }
    }

    /// Has everything offloaded that is sealed and ends at or below an index, in the background,
    /// and says how far that is.
    pub(crate) async fn request_offload(&self, below: Index) -> Result<Offloading, LogError> {
        let tier = self.ctx.cold.as_ref();
        let is_set = tier.is_some_and(|tier| tier.locations.takes_objects());
        if self.kind != LogKind::Messages || !is_set {
            return Err(LogError::Invalid(
                "no place for objects is set: start brokers with --cold-store URL".to_owned(),
            ));
        }
        let done = self.dropped_end();
        self.learn(done, usize::MAX).await?;
        {
            let mut state = self.offload.lock();
            state.below = state.below.max(below);
        }
        let mut found = Offloading::default();
        let is_asked = |segment: &&Segment| segment.end_index > done && segment.end_index <= below;
        for segment in self.sealed().iter().filter(is_asked) {
            if !matches!(self.known(segment.ledger), Some(Known::Stored { .. })) {
                found.ledgers += 1;
                found.bytes += segment.bytes;
            }
        }
        if found.ledgers > 0 {
            {
                let mut state = self.offload.lock();
                found.failure = state.failure.take();
                // A command does not wait for a ledger's rest.
                state.not_before.clear();
            }
            if found.failure.is_none() {
                self.begin_offload(Index(0));
            }
        }
        Ok(found)
    }

    /// Starts to offload what is due, and to drop copies below an index, unless that goes on or
    /// there is nothing to do. Retention deletes what ends at or below `unneeded`.
    pub(crate) fn care_for_offload(&self, droppable: Index, unneeded: Index) {
        let Some(tier) = self.ctx.cold.as_ref() else {
            return;
        };
        if self.kind != LogKind::Messages || !tier.locations.takes_objects() {
            return;
        }
        self.offload.lock().unneeded = unneeded;
        let due = self.look_for_work(tier);
        if due.is_unknown || due.has_work(droppable) || self.awaits_import() {
            self.begin_offload(droppable);
        }
    }

    pub(super) fn begin_offload(&self, droppable: Index) {
        let (Some(me), Some(tier)) = (self.me.upgrade(), self.ctx.cold.clone()) else {
            return;
        };
        if self.cell.is_handed_over() || !tier.locations.takes_objects() {
            return;
        }
        {
            let mut state = self.offload.lock();
            if std::mem::replace(&mut state.running, true) {
                return;
            }
            state.has_failed = false;
            let behind = state.behind.take();
            state.behind = behind.or_else(|| Some(BehindOfLog::new(&tier)));
        }
        self.spawn("offload", async move {
            let done = me.care(&tier, droppable).await;
            let token = me.ctx.ledgers.tasks.shutdown_token();
            tokio::select! {
                () = me.write_mark() => {}
                () = token.wait() => {}
            }
            let _ = me.look_for_work(&tier); // tells how far behind it is
            // Statistics lock the state first: never the other way round.
            let closing = me.state.lock().closing;
            let mut state = me.offload.lock();
            state.running = false;
            state.has_failed = done.is_err();
            // A log that ends takes its ledgers along, or leaves them to the next owner.
            if let Err(error) = done
                && !closing
            {
                tracing::warn!(topic = %me.cell.topic(), %error, "offload failed, and is tried again later");
                // For the one that asked, if any did.
                let import = state.import.take();
                let is_asked = state.below > Index(0) || import.is_some();
                state.failure = Some(error).filter(|_| is_asked);
            }
        });
    }

    /// Notes in the topic's record how far the offload is.
    async fn write_mark(&self) {
        let before = self.cell.offload_mark();
        let mark = {
            let sealed = self.sealed();
            self.offload.lock().mark(before, &sealed)
        };
        if mark == before || self.cell.is_handed_over() || self.state.lock().closing {
            return;
        }
        let noted = self.cell.update(Vec::new(), |record| {
            record.offloaded = Some(mark);
            Ok(())
        });
        // It steers only: without it a topic is loaded once more than it had to be.
        if let Err(error) = noted.await {
            tracing::debug!(topic = %self.cell.topic(), %error, "how far the offload is was not noted");
        }
    }

    /// Whether something of this log is being done, or is due now. What waits for its age or its
    /// lag needs no log that is open: what is due on the record is found there.
    pub(crate) fn awaits_offload(&self, droppable: Index) -> bool {
        let tier = self.ctx.cold.as_ref();
        let Some(tier) = tier.filter(|tier| tier.locations.takes_objects()) else {
            return false;
        };
        {
            let state = self.offload.lock();
            if state.running || state.has_failed {
                return state.running;
            }
        }
        self.look_for_work(tier).has_work(droppable) || self.awaits_import()
    }

    /// Whether copies of a ledger could go but for a load, which would read them, as of the last
    /// look.
    pub(crate) fn awaits_snapshot(&self, droppable: Index) -> bool {
        self.offload.lock().over_end > droppable
    }

    async fn care(&self, tier: &ColdTier, droppable: Index) -> Result<(), LogError> {
        // The end of this process is no reason to keep it waiting: the reaper knows what to do.
        let token = self.ctx.ledgers.tasks.shutdown_token();
        let work = async {
            self.learn(self.dropped_end(), usize::MAX).await?;
            self.give_up_imports().await?;
            self.offload_due(tier).await?;
            self.import_due(tier).await?;
            self.drop_due(tier, droppable).await
        };
        tokio::select! {
            done = work => done,
            () = token.wait() => Ok(()),
        }
    }

    /// An attempt failed for a reason of its ledger: the others go on without it.
    fn let_rest(&self, ledger: LedgerId, error: &LogError) {
        tracing::warn!(%ledger, topic = %self.cell.topic(), %error, "ledger is not offloaded, and is left alone for a while");
        self.rest(ledger, LEDGER_REST);
    }

    fn rest(&self, ledger: LedgerId, time: Duration) {
        let until = self.ctx.ledgers.clock.monotonic() + time;
        self.offload.lock().not_before.insert(ledger, until);
    }

    /// Writes a ledger into an object, or leaves that to offloaders.
    async fn offload_one(&self, tier: &ColdTier, ledger: LedgerId) -> Result<Outcome, LogError> {
        let what = (ledger, self.offload_policy(tier).compression);
        let origin = Origin::of(&self.cell);
        if tier.settings.leaves_to_offloaders {
            return leave_ledger(&self.ctx, origin, what).await;
        }
        // Never closed.
        let _turn = tier.workers.acquire().await.ok();
        offload_ledger(&self.ctx, tier, &origin, what).await
    }

    async fn offload_due(&self, tier: &ColdTier) -> Result<(), LogError> {
        let (mut failed, mut left) = (None, BTreeSet::new());
        // One at a time, so that the topics of a process take turns.
        while let Some((ledger, bytes)) = self.look_for_work(tier).next {
            let outcome = self.offload_one(tier, ledger).await;
            // Also after a failure: a lost answer may hide that it was done.
            let looked = self.look(ledger).await;
            let is_there = self.sealed().iter().any(|s| s.ledger == ledger);
            let told = match &outcome {
                Ok(Outcome::Stored) => Some(AttemptOutcome::Stored),
                Ok(Outcome::NothingToDo | Outcome::Busy) => Some(AttemptOutcome::Spared),
                // An offloader counts what it does.
                Ok(Outcome::Left) => None,
                // It was trimmed meanwhile, which is no failure of the offload.
                Err(_) if !is_there => Some(AttemptOutcome::Trimmed),
                Err(_) => Some(AttemptOutcome::Failed),
            };
            if let Some(told) = told {
                self.ctx.metrics.attempted(told);
            }
            match outcome {
                Err(_) if !is_there => {}
                Err(error @ (LogError::Damaged(_) | LogError::Invalid(_))) => {
                    self.let_rest(ledger, &error);
                    failed.get_or_insert(error);
                }
                Err(error) => return Err(error),
                Ok(Outcome::Stored) => {
                    self.infos.lock().remove(&ledger);
                    self.ctx.metrics.offloaded_bytes.add(bytes, &[]);
                }
                Ok(Outcome::Left) => {
                    self.rest(ledger, LEFT_REST);
                    // All are written down when the first is due again.
                    if !left.insert(ledger) {
                        looked?;
                        break;
                    }
                }
                Ok(Outcome::NothingToDo | Outcome::Busy) => {
                    // What the record says is known now; a ledger of which it says nothing rests.
                    let is_local = self.known(ledger) == Some(Known::Local);
                    if is_local {
                        self.rest(ledger, LEDGER_REST);
                    }
                }
            }
            looked?;
        }
        failed.map_or(Ok(()), Err)
    }

    /// Lets copies go whose lag is over, while their object is there.
    async fn drop_due(&self, tier: &ColdTier, droppable: Index) -> Result<(), LogError> {
        let mut failed = None;
        for ledger in self.look_for_work(tier).droppable(droppable) {
            match self.drop_copies(tier, ledger).await {
                Err(error @ LogError::Damaged(_)) => {
                    self.let_rest(ledger, &error);
                    failed.get_or_insert(error);
                }
                done => done?,
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Whether the copies of a ledger may go, by what its record says of its object: that may have
    /// taken the place of a damaged one, and is given its own lag.
    fn may_go(&self, tier: &ColdTier, ledger: LedgerId, object: &StoredObject) -> bool {
        let policy = self.offload_policy(tier);
        let now_ms = self.ctx.ledgers.clock.wall_ms();
        if policy.lag_is_over(object.stored_ms, now_ms) {
            return true;
        }
        let pressed = tier.pressure.bookies();
        policy.enabled && self.offload.lock().is_at(ledger, &pressed)
    }

    /// Whether an object is there as it was written, as far as its length tells.
    pub(super) async fn check_object(
        &self,
        tier: &ColdTier,
        object: &StoredObject,
    ) -> Result<(), LogError> {
        let name = &object.name;
        if object.is_damaged {
            return Err(LogError::Damaged(format!(
                "a scrub found object {name} damaged: copies at bookies stay"
            )));
        }
        let location = tier.locations.get(object.location).await;
        let location = location.map_err(of_store)?;
        location.check().await.map_err(of_store)?;
        let damaged = |what: &str| {
            self.ctx.metrics.found_bad_object(what);
            LogError::Damaged(format!("object {name} is {what}: copies at bookies stay"))
        };
        match location.store.size(name).await {
            Ok(size) if size == object.size_bytes => Ok(()),
            Ok(_) => Err(damaged("damaged")),
            // The place is the right one.
            Err(ColdError::NotFound(_)) => Err(damaged("missing")),
            Err(error) => Err(of_store(error)),
        }
    }

    async fn drop_copies(&self, tier: &ColdTier, ledger: LedgerId) -> Result<(), LogError> {
        let store = &*self.ctx.ledgers.store;
        let Some(info) = ledger_metadata::load(store, ledger).await? else {
            return Ok(());
        };
        self.drop_imported(tier, &info).await?;
        if let Some(Offload::Stored {
            attempt,
            object,
            copies: Copies::Kept,
        }) = &info.offload
        {
            if !self.may_go(tier, ledger, object) {
                // Another object than the one that was looked at: its own lag runs.
                self.infos.lock().remove(&ledger);
                self.look(ledger).await?;
                return Ok(());
            }
            self.check_object(tier, object).await?;
            if objects::drop_copies(store, ledger, *attempt).await? {
                self.infos.lock().remove(&ledger);
                self.ctx.metrics.dropped_ledgers.add(1, &[]);
                let carried = deletion::carry_out(&self.ctx.ledgers, ledger).await;
                if let Err(error) = carried {
                    tracing::debug!(%ledger, %error, "copies are not deleted yet");
                }
            } else {
                tracing::debug!(%ledger, "copies stay until another intent has ended");
                self.rest(ledger, INTENT_REST);
            }
        }
        self.look(ledger).await?;
        Ok(())
    }
}
