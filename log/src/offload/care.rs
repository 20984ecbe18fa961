//! The ledgers of one log on their way into objects: which are due, by command or by age, and when
//! their copies at bookies go.
//!
//! One task of a log does it at a time. What it knows of a ledger is remembered, since nothing but
//! offload changes it; before a step the ledger's record is read again.

use std::collections::BTreeMap;
use std::sync::Arc;

use aquifer_ledger::deletion;
use aquifer_ledger::error::LedgerError;
use aquifer_ledger::ledger_metadata;
use aquifer_ledger::objects;
use aquifer_ledger::offload::{Copies, Offload};
use aquifer_model::id::{AttemptId, Index, LedgerId};
use aquifer_runtime::clock;
use futures::StreamExt;
use parking_lot::Mutex;

use crate::error::LogError;
use crate::offload::tier::ColdTier;
use crate::offload::upload::{Outcome, of_store, offload_ledger};
use crate::state::{LogInner, Segment};
use crate::types::LogKind;

/// Records of ledgers that are read at once.
const READS_AT_ONCE: usize = 16;
/// Records that are read for statistics, the newest first: they are asked for often.
const READS_FOR_STATS_MAX: usize = 1_000;

/// Where the bytes of a segment are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SegmentState {
    /// At bookies.
    Local,
    /// At bookies, and an attempt to write an object is under way.
    Offloading,
    /// In an object.
    Offloaded {
        /// Its name.
        object: Arc<str>,
        /// Whether bookies have copies too.
        local: bool,
    },
}

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

/// What is remembered of a log.
#[derive(Default)]
pub(crate) struct OffloadState {
    known: BTreeMap<LedgerId, Known>,
    /// What was asked for: segments that end at or below are due.
    below: Index,
    running: bool,
    failure: Option<LogError>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Known {
    Local,
    Claimed,
    Stored {
        attempt: AttemptId,
        object: Arc<str>,
        copies: Copies,
        stored_ms: u64,
    },
}

impl Known {
    fn of(offload: Option<Offload>) -> Known {
        match offload {
            None => Known::Local,
            Some(Offload::Claimed { .. }) => Known::Claimed,
            Some(Offload::Stored {
                attempt,
                object,
                copies,
            }) => Known::Stored {
                attempt,
                object: object.name.into(),
                copies,
                stored_ms: object.stored_ms,
            },
        }
    }

    /// Whether it may change without this log.
    fn may_change(&self) -> bool {
        match self {
            Known::Local => false,
            Known::Claimed => true,
            Known::Stored { copies, .. } => *copies == Copies::Going,
        }
    }
}

pub(crate) type SharedOffloadState = Mutex<OffloadState>;

impl LogInner {
    /// The sealed segments that hold anything, oldest first.
    fn sealed(&self) -> Vec<Segment> {
        let state = self.state.lock();
        let sealed = state.segments.iter().filter(|s| s.is_sealed_with_entries());
        sealed.cloned().collect()
    }

    fn known(&self, ledger: LedgerId) -> Option<Known> {
        self.offload.lock().known.get(&ledger).cloned()
    }

    async fn look(&self, ledger: LedgerId) -> Result<(), LedgerError> {
        // Never closed.
        let _turn = match &self.ctx.cold {
            Some(tier) => tier.looks.acquire().await.ok(),
            None => None,
        };
        let info = ledger_metadata::load(&*self.ctx.ledgers.store, ledger).await?;
        let mut state = self.offload.lock();
        match info {
            Some(info) => state.known.insert(ledger, Known::of(info.offload)),
            None => state.known.remove(&ledger),
        };
        Ok(())
    }

    /// Learns where the bytes of segments are, for statistics.
    pub(crate) async fn learn_for_stats(&self) -> Result<(), LogError> {
        self.learn(READS_FOR_STATS_MAX).await
    }

    /// Learns where the bytes of segments are, the newest first, as far as that is not known.
    async fn learn(&self, reads_max: usize) -> Result<(), LogError> {
        let sealed = self.sealed();
        let unknown: Vec<LedgerId> = {
            let mut state = self.offload.lock();
            // What was trimmed belongs to the log no more.
            let first = sealed.first().map_or(LedgerId(u64::MAX), |s| s.ledger);
            state.known = state.known.split_off(&first);
            let is_unknown =
                |ledger: &LedgerId| state.known.get(ledger).is_none_or(Known::may_change);
            let unknown = sealed.iter().rev().map(|s| s.ledger).filter(is_unknown);
            unknown.take(reads_max).collect()
        };
        let mut looks = futures::stream::iter(unknown)
            .map(|ledger| self.look(ledger))
            .buffer_unordered(READS_AT_ONCE);
        while let Some(looked) = looks.next().await {
            looked?;
        }
        Ok(())
    }

    /// Where the bytes of a segment are, as far as that is known.
    pub(crate) fn segment_state(&self, ledger: LedgerId) -> SegmentState {
        match self.known(ledger) {
            None | Some(Known::Local) => SegmentState::Local,
            Some(Known::Claimed) => SegmentState::Offloading,
            Some(Known::Stored { object, copies, .. }) => SegmentState::Offloaded {
                object,
                local: copies == Copies::Kept,
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
        self.learn(usize::MAX).await?;
        {
            let mut state = self.offload.lock();
            state.below = state.below.max(below);
        }
        let mut found = Offloading::default();
        for segment in self.sealed().iter().filter(|s| s.end_index <= below) {
            if !matches!(self.known(segment.ledger), Some(Known::Stored { .. })) {
                found.ledgers += 1;
                found.bytes += segment.bytes;
            }
        }
        if found.ledgers > 0 {
            found.failure = self.offload.lock().failure.take();
            if found.failure.is_none() {
                self.care_for_offload(Index(0));
            }
        }
        Ok(found)
    }

    /// Starts to offload what is due, and to drop copies below an index, unless that goes on.
    pub(crate) fn care_for_offload(&self, droppable: Index) {
        let (Some(me), Some(tier)) = (self.me.upgrade(), self.ctx.cold.clone()) else {
            return;
        };
        let takes_objects = tier.locations.takes_objects();
        if self.cell.is_handed_over() || !takes_objects || !self.needs_care(&tier, droppable) {
            return;
        }
        {
            let mut state = self.offload.lock();
            if std::mem::replace(&mut state.running, true) {
                return;
            }
        }
        self.spawn("offload", async move {
            let done = me.care(&tier, droppable).await;
            // Never while the lock below is held: others take these two in this order.
            let closing = me.state.lock().closing;
            let mut state = me.offload.lock();
            state.running = false;
            // A log that ends takes its ledgers along, or leaves them to the next owner.
            if let Err(error) = done
                && !closing
            {
                tracing::warn!(topic = %me.cell.topic(), %error, "offload failed, and is tried again later");
                // For the one that asked, if any did.
                state.failure = Some(error).filter(|_| state.below > Index(0));
            }
        });
    }

    /// Whether there is anything to look at or to do now: most logs have nothing, most of the time.
    fn needs_care(&self, tier: &ColdTier, droppable: Index) -> bool {
        let now_ms = self.ctx.ledgers.clock.wall_ms();
        let is_over = |since_ms: u64, time| since_ms.saturating_add(clock::millis(time)) <= now_ms;
        let log = self.state.lock();
        let state = self.offload.lock();
        let needs = |segment: &Segment| match state.known.get(&segment.ledger) {
            None | Some(Known::Claimed) => true,
            Some(Known::Local) => {
                let is_old = |after| is_over(segment.last_time_ms, after);
                segment.end_index <= state.below || tier.settings.after.is_some_and(is_old)
            }
            Some(Known::Stored {
                copies, stored_ms, ..
            }) => match copies {
                Copies::Kept => {
                    segment.end_index <= droppable && is_over(*stored_ms, tier.settings.lag)
                }
                Copies::Going => true,
                Copies::Gone => false,
            },
        };
        log.segments
            .iter()
            .any(|segment| segment.is_sealed_with_entries() && needs(segment))
    }

    /// Whether something of this log waits for its time: an age, a lag, or an attempt.
    pub(crate) fn awaits_offload(&self) -> bool {
        let tier = self.ctx.cold.as_ref();
        let Some(tier) = tier.filter(|tier| tier.locations.takes_objects()) else {
            return false;
        };
        let by_age = tier.settings.after.is_some();
        let state = self.offload.lock();
        let waits = |known: &Known| match known {
            Known::Local => by_age,
            Known::Claimed => true,
            Known::Stored { copies, .. } => *copies != Copies::Gone,
        };
        state.running || state.known.values().any(waits)
    }

    /// Whether copies of a ledger could go but for a load, which would read them.
    pub(crate) fn awaits_snapshot(&self, droppable: Index) -> bool {
        let Some(tier) = self.ctx.cold.as_ref() else {
            return false;
        };
        let now_ms = self.ctx.ledgers.clock.wall_ms();
        let lag_ms = clock::millis(tier.settings.lag);
        let waits = |segment: &Segment| match self.known(segment.ledger) {
            Some(Known::Stored {
                copies: Copies::Kept,
                stored_ms,
                ..
            }) => stored_ms.saturating_add(lag_ms) <= now_ms,
            _ => false,
        };
        let above = |segment: &&Segment| segment.end_index > droppable;
        self.sealed().iter().rev().take_while(above).any(waits)
    }

    async fn care(&self, tier: &ColdTier, droppable: Index) -> Result<(), LogError> {
        // The end of this process is no reason to keep it waiting: the reaper knows what to do.
        let token = self.ctx.ledgers.tasks.shutdown_token();
        let work = async {
            self.learn(usize::MAX).await?;
            self.offload_due(tier).await?;
            self.drop_due(tier, droppable).await
        };
        tokio::select! {
            done = work => done,
            () = token.wait() => Ok(()),
        }
    }

    async fn offload_due(&self, tier: &ColdTier) -> Result<(), LogError> {
        let now_ms = self.ctx.ledgers.clock.wall_ms();
        for segment in self.sealed() {
            let below = self.offload.lock().below;
            let is_old = tier.settings.after.is_some_and(|after| {
                segment.last_time_ms.saturating_add(clock::millis(after)) <= now_ms
            });
            let is_local = self.known(segment.ledger) == Some(Known::Local);
            if !is_local || !(is_old || segment.end_index <= below) {
                continue;
            }
            let permit = tier.workers.acquire().await;
            let ledger = segment.ledger;
            let outcome = offload_ledger(&self.ctx, tier, &self.cell, ledger).await;
            drop(permit);
            // Also after a failure: a lost answer may hide that it was done.
            let looked = self.look(ledger).await;
            if outcome.is_err() {
                self.ctx.metrics.offload_failures.add(1, &[]);
            }
            let outcome = match outcome {
                // It was trimmed meanwhile, which is no failure of the offload.
                Err(_) if !self.sealed().iter().any(|s| s.ledger == ledger) => continue,
                outcome => outcome?,
            };
            looked?;
            if outcome == Outcome::Stored {
                self.infos.lock().remove(&ledger);
                self.ctx.metrics.offloaded_ledgers.add(1, &[]);
                self.ctx.metrics.offloaded_bytes.add(segment.bytes, &[]);
            }
        }
        Ok(())
    }

    /// Lets copies go whose lag is over, while their object is there.
    async fn drop_due(&self, tier: &ColdTier, droppable: Index) -> Result<(), LogError> {
        let now_ms = self.ctx.ledgers.clock.wall_ms();
        let lag_ms = clock::millis(tier.settings.lag);
        let store = &*self.ctx.ledgers.store;
        for segment in self.sealed() {
            let Some(Known::Stored {
                attempt,
                copies: Copies::Kept,
                stored_ms,
                ..
            }) = self.known(segment.ledger)
            else {
                continue;
            };
            let is_over = stored_ms.saturating_add(lag_ms) <= now_ms;
            if !is_over || segment.end_index > droppable {
                continue;
            }
            let ledger = segment.ledger;
            let Some(info) = ledger_metadata::load(store, ledger).await? else {
                continue;
            };
            let Some(Offload::Stored { object, .. }) = &info.offload else {
                self.look(ledger).await?;
                continue;
            };
            let location = tier
                .locations
                .get(object.location)
                .await
                .map_err(of_store)?;
            location.check().await.map_err(of_store)?;
            let size = location.store.size(&object.name).await.map_err(of_store)?;
            if size != object.size_bytes {
                let what = "is not as long as it was written: copies at bookies stay";
                return Err(LogError::Damaged(format!("object {} {what}", object.name)));
            }
            if objects::drop_copies(store, ledger, attempt).await? {
                self.infos.lock().remove(&ledger);
                let carried = deletion::carry_out(&self.ctx.ledgers, ledger).await;
                if let Err(error) = carried {
                    tracing::debug!(%ledger, %error, "copies are not deleted yet");
                }
            }
            self.look(ledger).await?;
        }
        Ok(())
    }
}
