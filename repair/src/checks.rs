//! Whose turn it is to be checked: every ledger once in a cycle, spread evenly. Pure state.

use std::time::Duration;

use aquifer_model::id::LedgerId;

use aquifer_ledger::index::LedgerIndex;

/// Ledgers that are due at once, at most, however long none was asked for.
const DUE_MAX: u128 = 100;

/// Where a cycle is. It is kept in memory only: a new auditor begins from the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CheckCycle {
    cycle_ms: u64,
    asked_at: Option<Duration>,
    /// What is due and not yet handed out, in parts of a ledger: one is `cycle_ms` of them.
    owed: u128,
    next: LedgerId,
}

impl CheckCycle {
    pub(crate) fn new(cycle_ms: u64) -> CheckCycle {
        CheckCycle {
            cycle_ms,
            asked_at: None,
            owed: 0,
            next: LedgerId(0),
        }
    }

    /// The ledgers whose turn has come since the last question, `room` at most.
    pub(crate) fn due(&mut self, now: Duration, index: &LedgerIndex, room: usize) -> Vec<LedgerId> {
        let before = self.asked_at.replace(now);
        let Some(before) = before.filter(|_| self.cycle_ms > 0) else {
            return Vec::new();
        };
        let one = u128::from(self.cycle_ms);
        let elapsed_ms = now.saturating_sub(before).as_millis();
        self.owed += elapsed_ms * u128::from(index.ledgers());
        let at_most = DUE_MAX.min(u128::from(index.ledgers())).min(room as u128);
        self.owed = self.owed.min(one * DUE_MAX);
        let count = (self.owed / one).min(at_most);
        self.owed -= count * one;
        let count = usize::try_from(count).unwrap_or(0);
        let mut due = index.page(self.next, count);
        if due.len() < count {
            let rest = count - due.len();
            due.extend(index.page(LedgerId(0), rest));
        }
        if let Some(last) = due.last() {
            self.next = LedgerId(last.0 + 1);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ledger_has_its_turn_once_in_a_cycle() {
        let ids = [3, 5, 8, 13, 21, 34, 55, 89, 144, 233];
        let index = LedgerIndex::of_ids(ids);
        let mut cycle = CheckCycle::new(1_000);
        let mut found = Vec::new();
        for ms in (0..=3_000).step_by(7) {
            let now = Duration::from_millis(ms);
            found.extend(cycle.due(now, &index, 50).into_iter().map(|id| id.0));
        }
        let twice: Vec<u64> = ids.into_iter().chain(ids).collect();
        assert_eq!(found[..20], twice);
        assert!(found.len() <= 30);
        // A long pause does not pile up, and without room nothing is forgotten.
        let later = Duration::from_secs(1_000_000);
        assert_eq!(cycle.due(later, &index, 0), []);
        assert_eq!(cycle.due(later, &index, 4).len(), 4);
        let mut never = CheckCycle::new(0);
        never.due(Duration::ZERO, &index, 50);
        assert_eq!(never.due(later, &index, 50), []);
    }
}
