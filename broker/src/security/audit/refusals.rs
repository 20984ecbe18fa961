//! Which refusals are written, and which are counted. A state machine without I/O.
//!
//! Invariants:
//! - What it remembers is bounded, and so is what it lets be written in a second; every refusal is
//!   either written or in a count.
//! - One caller that makes up names is told apart in a part of the places alone, so that it hides
//!   no other.

use std::collections::HashMap;
use std::time::Duration;

/// Refusals that are told apart at once.
const KINDS_MAX: usize = 4_096;
/// Those of one caller.
const KINDS_OF_ONE_MAX: usize = 256;
/// What stands in place of the names in what one caller has beyond that.
const OTHERS: &str = "(others)";
/// How often counts are written.
const COUNTED: Duration = Duration::from_secs(60);
/// Lines that may be written in a second.
const LINES_MAX: u32 = 100;
/// Counts that are written at once; the rest is summed up.
const COUNTS_MAX: usize = 50;

/// What makes refusals the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Refusal {
    pub(super) who: String,
    pub(super) request: String,
    pub(super) resource: String,
    pub(super) code: String,
    /// Whose resource it is.
    pub(super) tenant: Option<String>,
}

/// See the module.
pub(super) struct Refusals {
    /// Those since the last counts, and how many were not written.
    seen: HashMap<Refusal, u64>,
    /// Kinds of each caller.
    kinds: HashMap<String, usize>,
    /// Not written and not told apart.
    others: u64,
    counted: Duration,
    second: Duration,
    lines: u32,
}

impl Refusals {
    pub(super) fn new(now: Duration) -> Refusals {
        Refusals {
            seen: HashMap::new(),
            kinds: HashMap::new(),
            others: 0,
            counted: now,
            second: now,
            lines: 0,
        }
    }

    /// Whether a refusal is written now.
    pub(super) fn is_written(&mut self, refusal: Refusal, now: Duration) -> bool {
        if now.saturating_sub(self.second) >= Duration::from_secs(1) {
            (self.second, self.lines) = (now, 0);
        }
        let has_line = self.lines < LINES_MAX;
        if let Some(count) = self.seen.get_mut(&refusal) {
            *count += 1;
            return false;
        }
        if self.seen.len() >= KINDS_MAX {
            self.others += 1;
            return false;
        }
        let kinds = self.kinds.entry(refusal.who.clone()).or_default();
        if *kinds >= KINDS_OF_ONE_MAX {
            let others = Refusal {
                request: OTHERS.to_owned(),
                resource: OTHERS.to_owned(),
                ..refusal
            };
            *self.seen.entry(others).or_default() += 1;
            return false;
        }
        *kinds += 1;
        self.seen.insert(refusal, u64::from(!has_line));
        self.lines += u32::from(has_line);
        has_line
    }

    /// The counts, when it is time for them: those that are highest, and the sum of the rest.
    pub(super) fn due(&mut self, now: Duration) -> Vec<(Refusal, u64)> {
        if now.saturating_sub(self.counted) < COUNTED {
            return Vec::new();
        }
        self.counted = now;
        self.kinds.clear();
        let seen = std::mem::take(&mut self.seen);
        let mut counts: Vec<(Refusal, u64)> =
            seen.into_iter().filter(|(_, count)| *count > 0).collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let rest = counts.split_off(counts.len().min(COUNTS_MAX));
        let rest: u64 = rest.iter().map(|(_, count)| count).sum();
        let others = std::mem::take(&mut self.others) + rest;
        if others > 0 {
            counts.push((Refusal::default(), others));
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(number: usize) -> Refusal {
        Refusal {
            who: number.to_string(),
            ..Refusal::default()
        }
    }

    #[test]
    fn the_first_is_written_and_the_others_are_counted() {
        let mut refusals = Refusals::new(Duration::ZERO);
        let at = Duration::from_secs(1);
        assert!(refusals.is_written(refusal(1), at));
        for _ in 0..9 {
            assert!(!refusals.is_written(refusal(1), at));
        }
        assert!(refusals.due(at).is_empty());
        let later = COUNTED + at;
        assert_eq!(refusals.due(later), [(refusal(1), 9)]);
        assert!(refusals.is_written(refusal(1), later), "it is told again");
    }

    #[test]
    fn one_that_makes_up_names_hides_no_other() {
        let mut refusals = Refusals::new(Duration::ZERO);
        let made_up = 2 * KINDS_MAX;
        for number in 0..made_up {
            let resource = number.to_string();
            let who = "greedy".to_owned();
            refusals.is_written(
                Refusal {
                    who,
                    resource,
                    ..Refusal::default()
                },
                Duration::ZERO,
            );
        }
        assert!(refusals.is_written(refusal(1), Duration::from_secs(1)));
        let counts = refusals.due(COUNTED);
        let counted: u64 = counts.iter().map(|(_, count)| count).sum();
        assert_eq!(
            usize::try_from(counted).unwrap() + LINES_MAX as usize,
            made_up
        );
        assert_eq!(
            (&*counts[0].0.who, &*counts[0].0.resource),
            ("greedy", OTHERS)
        );
    }

    #[test]
    fn a_flood_is_bounded_and_none_is_lost() {
        let mut refusals = Refusals::new(Duration::ZERO);
        let all = 3 * KINDS_MAX;
        let written = (0..all).filter(|n| refusals.is_written(refusal(*n), Duration::ZERO));
        let written = written.count();
        assert_eq!(written, LINES_MAX as usize);
        let counts = refusals.due(COUNTED);
        assert!(counts.len() <= COUNTS_MAX + 1);
        let counted: u64 = counts.iter().map(|(_, count)| count).sum();
        assert_eq!(usize::try_from(counted).unwrap() + written, all);
    }
}
