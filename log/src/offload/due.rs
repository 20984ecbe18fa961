//! What a log has to do about its offload now. It is found in one pass over the ledgers that may
//! still change, without a copy of them: each loaded topic asks once a second.
//!
//! Invariant: what ends at or below the mark `dropped_end` of the topic's record is done, and is
//! not looked at.

use aquifer_model::id::{Index, LedgerId};

use crate::offload::figures::Behind;
use crate::offload::known::Known;
use crate::offload::tier::ColdTier;
use crate::state::{LogInner, SegmentStatus};

/// What a pass found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// Of some closed ledger it is not known for good where its bytes are.
    pub(super) is_unknown: bool,
    /// The oldest ledger that is to be offloaded now, and its bytes.
    pub(super) next: Option<(LedgerId, u64)>,
    /// The ledgers whose lag is over, and where each ends, oldest first.
    over: Vec<(LedgerId, Index)>,
}

impl Due {
    /// The ledgers that end at or below an index and whose copies may go, oldest first.
    pub(super) fn droppable(&self, below: Index) -> impl Iterator<Item = LedgerId> + '_ {
        let all = self.over.iter().take_while(move |(_, end)| *end <= below);
        all.map(|(ledger, _)| *ledger)
    }

    /// Whether something is to be done.
    pub(super) fn has_work(&self, droppable: Index) -> bool {
        self.next.is_some() || self.droppable(droppable).next().is_some()
    }
}

impl LogInner {
    /// Looks what is to be done. Notes how far behind policy the log is, and where the last ledger
    /// ends whose copies could go.
    pub(super) fn look_for_work(&self, tier: &ColdTier) -> Due {
        let clock = &self.ctx.ledgers.clock;
        let (now, now_ms) = (clock.monotonic(), clock.wall_ms());
        let (policy, retention) = (self.offload_policy(tier), self.retention());
        let (pressed, done) = (tier.pressure.bookies(), self.dropped_end());
        let (mut due, mut behind, mut newer) = (Due::default(), Behind::default(), 0_u64);
        // In this order, as everywhere.
        let log = self.state.lock();
        let mut state = self.offload.lock();
        for segment in log.segments.iter().rev() {
            let (ledger, time_ms, newer_bytes) = (segment.ledger, segment.last_time_ms, newer);
            newer = newer.saturating_add(segment.bytes);
            if segment.status != SegmentStatus::Sealed || segment.entries == 0 {
                continue;
            }
            if segment.end_index <= done {
                break;
            }
            let is_pressed = policy.enabled && state.is_at(ledger, &pressed);
            let rests = state.rests(ledger, now);
            let known = state.known.get(&ledger);
            due.is_unknown |= known.is_none_or(Known::may_change);
            match known {
                Some(Known::Local) => {
                    let goes_soon = segment.end_index <= state.unneeded
                        && retention
                            .is_some_and(|r| policy.goes_soon(&r, time_ms, newer_bytes, now_ms));
                    let by_policy = !goes_soon && policy.is_due(time_ms, newer_bytes, now_ms);
                    if by_policy {
                        let since = policy.age_ms.map(|age_ms| time_ms.saturating_add(age_ms));
                        let is_late = policy.is_late(time_ms, newer_bytes, now_ms);
                        behind.add(segment.bytes, since.filter(|ms| *ms <= now_ms), is_late);
                    }
                    let is_asked = segment.end_index <= state.below;
                    if (by_policy || is_asked || is_pressed && !goes_soon) && !rests {
                        due.next = Some((ledger, segment.bytes));
                    }
                }
                Some(known) if !rests => {
                    let is_over = |since_ms| policy.lag_is_over(since_ms, now_ms) || is_pressed;
                    if known.copies_since().is_some_and(is_over) {
                        due.over.push((ledger, segment.end_index));
                    }
                }
                Some(_) | None => {}
            }
        }
        due.over.reverse();
        state.over_end = due.over.last().map_or(Index(0), |(_, end)| *end);
        if let Some(figures) = &state.behind {
            figures.set(behind);
        }
        due
    }
}
