//! Deleting what is neither needed nor to be kept: whole sealed segments from the front.

use std::time::Duration;

use aquifer_model::id::{Index, LedgerId};
use aquifer_model::policy::Retention;

use crate::error::LogError;
use crate::managed::deletion;
use crate::managed::owner::note_removed;
use crate::managed::state::{LogInner, Phase, SegmentStatus, State};
use crate::managed::types::LogKind;

/// Segments that one transaction removes, at most.
const SEGMENTS_PER_CHANGE: usize = 50;

impl LogInner {
    pub(crate) async fn trim(&self, below: Index, retention: Retention) -> Result<Index, LogError> {
        if self.wants_seal() {
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

    /// An old current ledger is sealed even if nothing is appended any more, and one that a
    /// recovery has closed is noted as sealed: else neither could ever go.
    fn wants_seal(&self) -> bool {
        let now = self.ctx.clock.monotonic();
        let state = self.state.lock();
        let last = state.segments.back().map(|segment| segment.status);
        match state.phase {
            Phase::Ready => state.current.as_ref().is_some_and(|current| {
                let age = Duration::from_millis(self.options.rollover.age_ms);
                current.entries_sent > 0 && now.saturating_sub(current.opened) >= age
            }),
            Phase::Idle => last == Some(SegmentStatus::Closed),
            Phase::Turning | Phase::Recovering | Phase::Suspended | Phase::Closed(_) => false,
        }
    }

    fn goners(&self, below: Index, retention: Retention) -> Vec<LedgerId> {
        let (Some(time_ms), Some(size_bytes)) = (retention.time_ms, retention.size_bytes) else {
            return Vec::new();
        };
        let now_ms = self.ctx.clock.wall_ms();
        let state = self.state.lock();
        let mut kept: u64 = state.segments.iter().map(|segment| segment.bytes).sum();
        // The end of the cursor log is written nowhere but in its last segment.
        let spare = match self.kind {
            LogKind::Messages => state.segments.len(),
            LogKind::Cursors => state.segments.len().saturating_sub(1),
        };
        let goes = |segment: &&crate::managed::state::Segment| {
            kept = kept.saturating_sub(segment.bytes);
            segment.status == SegmentStatus::Sealed
                && segment.end_index <= below
                && segment.last_time_ms.saturating_add(time_ms) <= now_ms
                && kept >= size_bytes
        };
        let candidates = state.segments.iter().take(spare.min(SEGMENTS_PER_CHANGE));
        candidates.take_while(goes).map(|s| s.ledger).collect()
    }

    /// Takes segments off the record and notes that their ledgers are to be deleted, at once.
    async fn remove(&self, goners: &[LedgerId]) -> Result<(), LogError> {
        // What this process remembers may name bookies that repair has replaced since.
        let ledgers = goners.iter().copied();
        let (intents, taken) = deletion::intents_that_fit(&self.cell, ledgers).await?;
        let goners = &goners[..taken];
        let ids: Vec<u64> = goners.iter().map(|ledger| ledger.0).collect();
        let end = self.end();
        self.cell
            .update(intents, |record| {
                let segments = self.segments_of(record);
                let front = segments.iter().map(|s| s.ledger_id).take(ids.len());
                if front.ne(ids.iter().copied()) {
                    return Err(LogError::Fenced);
                }
                let removed: Vec<_> = segments.drain(..ids.len()).collect();
                if self.kind == LogKind::Messages {
                    note_removed(record, removed);
                    let first = record.segments.first().map_or(end.0, |s| s.first_index);
                    record.trimmed_index = record.trimmed_index.max(first);
                }
                Ok(())
            })
            .await?;
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
