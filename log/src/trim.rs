//! Deleting what is neither needed nor to be kept: whole sealed segments from the front.

use std::time::Duration;

use aquifer_ledger::ledger_metadata;
use aquifer_metadata::store::MetadataStore;
use aquifer_model::id::{Index, LedgerId};
use aquifer_model::policy::Retention;
use aquifer_model::topic::TopicName;
use aquifer_proto::v1;

use crate::deletion;
use crate::error::LogError;
use crate::pages::{self, Page};
use crate::state::{LogInner, Phase, Segment, SegmentStatus, State};
use crate::types::LogKind;

/// Segments that one transaction removes, at most.
const SEGMENTS_PER_CHANGE: usize = 50;

/// An open ledger whose messages have all had their time is sealed for trimming, but not before it
/// is this old: a topic with a message now and then would begin a ledger for each. A shorter age of
/// the rollover policy goes first.
const SEAL_AGE_MIN: Duration = Duration::from_secs(60);

/// What policy lets a trim delete now: from the front, whole segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrimDue {
    /// The end of the first segment.
    pub first_end: Index,
    /// The end of the last one.
    pub end: Index,
}

/// The same as far as metadata tells of a topic that is not loaded: where its first segment ends if
/// that is due. The end of a segment that is not sealed is not known; it is due if the ledger is
/// old enough to have messages that are. Reads the record, and one page or one ledger, however many
/// segments there are.
///
/// # Errors
/// When the first page, or the record of a ledger, cannot be read.
pub async fn first_due_on_record(
    store: &dyn MetadataStore,
    topic: &TopicName,
    record: &v1::TopicRecord,
    retention: Retention,
    now_ms: u64,
) -> Result<Option<Index>, LogError> {
    let kept_until_ms = record
        .restored
        .as_ref()
        .map_or(0, |from| from.trim_after_ms);
    if kept_until_ms > now_ms {
        return Ok(None);
    }
    let page = pages::first_page(store, topic, record).await?;
    let paged = page.as_ref().and_then(|page| page.segments().first());
    let Some(first) = paged.or(record.segments.first()) else {
        return Ok(None);
    };
    let listed = record.segments.iter().map(|segment| segment.bytes);
    let all = listed.fold(record.paged_bytes, u64::saturating_add);
    let kept = all.saturating_sub(first.bytes);
    if first.sealed {
        let is_due = retention.lets_go(first.last_time_ms, kept, now_ms);
        return Ok(is_due.then_some(Index(first.end_index)));
    }
    let created_ms = match ledger_metadata::load(store, LedgerId(first.ledger_id)).await? {
        Some(info) => info.created_ms,
        None => 0,
    };
    let is_due = retention.lets_go(created_ms, kept, now_ms);
    Ok(is_due.then_some(Index(first.first_index)))
}

impl LogInner {
    pub(crate) async fn trim(&self, below: Index, retention: Retention) -> Result<Index, LogError> {
        if self.wants_seal(below, retention) {
            // A seal that metadata does not answer would hold back appends.
            self.reach_metadata().await?;
            self.seal(false).await?;
        }
        loop {
            let goners = self.goners(below, retention);
            if goners.is_empty() {
                return Ok(self.first());
            }
            deletion::again_after_repairs(|| self.remove(&goners)).await?;
        }
    }

    pub(crate) fn trim_due(&self, below: Index, retention: Retention) -> Option<TrimDue> {
        let state = self.state.lock();
        let seal = self.may_seal(&state);
        let mut due = self
            .expired(&state, below, retention)
            .take_while(|s| s.status == SegmentStatus::Sealed || seal)
            .map(|segment| segment.end_index);
        let first_end = due.next()?;
        Some(TrimDue {
            first_end,
            end: due.last().unwrap_or(first_end),
        })
    }

    pub(crate) fn wants_seal(&self, below: Index, retention: Retention) -> bool {
        let state = self.state.lock();
        let Some(last) = state.segments.back() else {
            return false;
        };
        // Old ledgers do not stay open, trimmed or not.
        let is_old = state.phase == Phase::Idle || self.is_over_age(&state);
        let segments = state.segments.len();
        last.status != SegmentStatus::Sealed
            && self.may_seal(&state)
            && (is_old || self.expired(&state, below, retention).count() == segments)
    }

    /// Whether the last ledger may be sealed though nothing is appended: one that a recovery has
    /// closed, and one that has been open for long. Else neither could ever go.
    fn may_seal(&self, state: &State) -> bool {
        // What is handed over is sealed in its turn, and would take nothing any more until then.
        if self.cell.is_handed_over() {
            return false;
        }
        match state.phase {
            Phase::Ready => self.is_over_age(state) || self.age(state) >= Some(SEAL_AGE_MIN),
            Phase::Idle => {
                let last = state.segments.back().map(|segment| segment.status);
                last == Some(SegmentStatus::Closed)
            }
            Phase::RollingOver | Phase::Recovering | Phase::Suspended | Phase::Closed(_) => false,
        }
    }

    fn is_over_age(&self, state: &State) -> bool {
        let age_max = Duration::from_millis(self.rollover().age_ms);
        self.age(state) >= Some(age_max)
    }

    /// Age of the open ledger, if it has entries.
    fn age(&self, state: &State) -> Option<Duration> {
        let current = state.current.as_ref()?;
        let now = self.ctx.ledgers.clock.monotonic();
        (current.entries_sent > 0).then(|| now.saturating_sub(current.opened))
    }

    /// The segments at the front that end at or below `below` and that no bound of the policy
    /// keeps.
    fn expired<'a>(
        &self,
        state: &'a State,
        below: Index,
        retention: Retention,
    ) -> impl Iterator<Item = &'a Segment> {
        let now_ms = self.ctx.ledgers.clock.wall_ms();
        let mut kept: u64 = state.segments.iter().map(|segment| segment.bytes).sum();
        // The end of the cursor log is written nowhere but in its last segment.
        let spare = match self.kind {
            LogKind::Messages => state.segments.len(),
            LogKind::Cursors => state.segments.len().saturating_sub(1),
        };
        state
            .segments
            .iter()
            .take(spare)
            .take_while(move |segment| {
                kept = kept.saturating_sub(segment.bytes);
                segment.end_index <= below && retention.lets_go(segment.last_time_ms, kept, now_ms)
            })
    }

    fn goners(&self, below: Index, retention: Retention) -> Vec<LedgerId> {
        let state = self.state.lock();
        let expired = self.expired(&state, below, retention);
        let sealed = expired.take_while(|segment| segment.status == SegmentStatus::Sealed);
        sealed.take(SEGMENTS_PER_CHANGE).map(|s| s.ledger).collect()
    }

    /// Takes segments off the front of the first page, or of the record if there are no pages, and
    /// notes that their ledgers are to be deleted. May take fewer than it was given.
    async fn remove(&self, goners: &[LedgerId]) -> Result<(), LogError> {
        let page = match self.kind {
            LogKind::Messages => self.cell.first_page().await?,
            LogKind::Cursors => None,
        };
        let goners = match &page {
            Some(page) => &goners[..goners.len().min(page.segments().len())],
            None => goners,
        };
        let listed = page.iter().flat_map(Page::ledgers).take(goners.len());
        if page.is_some() && listed.ne(goners.iter().copied()) {
            return Err(LogError::Fenced);
        }
        // What this process remembers may name bookies that repair has replaced since.
        let ledgers = goners.iter().copied();
        let (intents, taken) = deletion::intents_that_fit(&self.cell, ledgers).await?;
        let goners = &goners[..taken];
        let changed = match (&page, self.kind) {
            (Some(page), _) => self.cell.shorten_page(page, taken, intents).await,
            (None, LogKind::Messages) => self.cell.shorten_record(goners, intents).await,
            (None, LogKind::Cursors) => {
                let change = |record: &mut v1::TopicRecord| {
                    pages::drain_front(&mut record.cursor_segments, goners).map(drop)
                };
                self.cell.update(intents, change).await.map(drop)
            }
        };
        match changed {
            // A rollover has moved them into a page since: the caller begins again.
            Err(_) if page.is_none() && self.cell.has_pages() && self.kind == LogKind::Messages => {
                return Ok(());
            }
            changed => changed?,
        }
        {
            let mut guard = self.state.lock();
            let state: &mut State = &mut guard;
            state.segments.drain(..goners.len());
            let front = state.segments.front();
            state.first = front.map_or(state.acked.index, |s| s.first_index);
        }
        self.infos.lock().retain(|id, _| !goners.contains(id));
        deletion::delete_in_background(&self.ctx, goners.to_vec());
        Ok(())
    }
}
