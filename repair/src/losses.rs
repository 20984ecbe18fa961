//! When a bookie that is not registered counts as lost: pure state, told the time by its caller.
//!
//! Most bookies that vanish come back, and copying what they hold costs the cluster hours. So a
//! bookie is lost after a grace period only, and when many vanish at once none is: then the
//! network or the metadata store is at fault more often than the bookies, and copying everything
//! onto the few that are left would take these down too.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aquifer_model::id::BookieId;

/// When to believe in a loss.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LossPolicy {
    /// A bookie is lost when it was away for this time.
    pub(crate) grace: Duration,
    /// More bookies than these at once, and nothing is done.
    pub(crate) bookies_max: usize,
    /// A larger share of all bookies than this at once, and nothing is done.
    pub(crate) percent_max: usize,
}

/// Remembers since when bookies are away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LossWatch {
    policy: LossPolicy,
    away_since: BTreeMap<BookieId, Duration>,
}

/// What the absences of a moment mean.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Verdict {
    /// Bookies whose ledgers are to be copied from elsewhere.
    pub(crate) lost: BTreeSet<BookieId>,
    /// Bookies that are away, lost or not yet.
    pub(crate) away: usize,
    /// Why nothing counts as lost now.
    pub(crate) paused: Option<String>,
}

impl LossWatch {
    pub(crate) fn new(policy: LossPolicy) -> LossWatch {
        LossWatch {
            policy,
            away_since: BTreeMap::new(),
        }
    }

    /// Takes note of the bookies that are here at a moment. `holders` are the bookies that hold
    /// anything and that were not asked to leave: a bookie without ledgers may vanish unnoticed.
    pub(crate) fn observe(
        &mut self,
        now: Duration,
        holders: &BTreeSet<BookieId>,
        registered: &BTreeSet<BookieId>,
    ) -> Verdict {
        let away: BTreeSet<BookieId> = holders.difference(registered).copied().collect();
        self.away_since.retain(|bookie, _| away.contains(bookie));
        for bookie in &away {
            self.away_since.entry(*bookie).or_insert(now);
        }
        let over = |since: &Duration| now.saturating_sub(*since) >= self.policy.grace;
        let due = self.away_since.iter().filter(|(_, since)| over(since));
        let lost: BTreeSet<BookieId> = due.map(|(bookie, _)| *bookie).collect();
        let all = holders.union(registered).count();
        let too_many = away.len() > self.policy.bookies_max
            || away.len() * 100 > self.policy.percent_max * all;
        if too_many && !lost.is_empty() {
            return Verdict {
                lost: BTreeSet::new(),
                away: away.len(),
                paused: Some(format!("{} of {all} bookies are away", away.len())),
            };
        }
        Verdict {
            lost,
            away: away.len(),
            paused: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn ids(range: std::ops::RangeInclusive<u8>) -> BTreeSet<BookieId> {
        range.map(|n| BookieId([n; 16])).collect()
    }

    fn watch() -> LossWatch {
        LossWatch::new(LossPolicy {
            grace: 10 * MINUTE,
            bookies_max: 2,
            percent_max: 40,
        })
    }

    #[test]
    fn a_bookie_is_lost_after_the_grace_period_and_not_when_it_returns() {
        let mut watch = watch();
        let all = ids(1..=5);
        assert_eq!(watch.observe(MINUTE, &all, &all), Verdict::default());
        let at = |watch: &mut LossWatch, minutes: u32, here: &BTreeSet<BookieId>| {
            watch.observe(minutes * MINUTE, &all, here)
        };
        assert_eq!(at(&mut watch, 2, &ids(2..=5)).lost, BTreeSet::new());
        assert_eq!(at(&mut watch, 11, &ids(2..=5)).lost, BTreeSet::new());
        assert_eq!(at(&mut watch, 12, &ids(2..=5)).lost, ids(1..=1));
        // A return, however short, begins the grace again.
        assert_eq!(at(&mut watch, 13, &all), Verdict::default());
        assert_eq!(at(&mut watch, 14, &ids(2..=5)).lost, BTreeSet::new());
    }

    #[test]
    fn a_mass_loss_pauses_until_enough_are_back() {
        let mut watch = watch();
        let all = ids(1..=6);
        watch.observe(Duration::ZERO, &all, &ids(4..=6));
        let verdict = watch.observe(20 * MINUTE, &all, &ids(4..=6));
        assert_eq!((verdict.lost, verdict.away), (BTreeSet::new(), 3));
        assert_eq!(verdict.paused.unwrap(), "3 of 6 bookies are away");
        let verdict = watch.observe(21 * MINUTE, &all, &ids(3..=6));
        assert_eq!((verdict.lost, verdict.paused), (ids(1..=2), None));
    }

    #[test]
    fn the_share_counts_in_small_clusters_and_empty_bookies_do_not() {
        let mut watch = watch();
        watch.observe(Duration::ZERO, &ids(1..=3), &ids(3..=3));
        let verdict = watch.observe(20 * MINUTE, &ids(1..=3), &ids(3..=3));
        assert!(verdict.paused.is_some(), "two of three");
        let verdict = watch.observe(21 * MINUTE, &ids(1..=3), &ids(2..=3));
        assert_eq!(verdict.lost, ids(1..=1), "one of three");
        let verdict = watch.observe(60 * MINUTE, &ids(2..=3), &ids(2..=3));
        assert_eq!(verdict, Verdict::default(), "1 holds nothing any more");
    }
}
