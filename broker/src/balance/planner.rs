//! Decides which bundles move and which are split, from one round of load reports after the other.
//!
//! A state machine without I/O: the time is given, and what it decides is done, or not, by its
//! driver, which tells it of what was done.
//!
//! Invariants:
//! - A bundle that moved, and every part of it, stays where it is for the cooldown.
//! - In any minute at most the configured share of the whole load moves; a leader that is new does
//!   not know what its predecessor has used of that.
//! - A move leaves its two brokers closer to each other than they were, by what is known of their
//!   load, so that with steady load moves come to an end.

#[cfg(test)]
mod tests;

mod round;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aquifer_model::bundle::BundleRange;
use aquifer_model::id::BrokerId;
use aquifer_model::load::{Load, LoadReport};

use crate::balance::config::BalanceConfig;
use crate::balance::planner::round::{Candidate, Place, Round};
use crate::bundle::Bundle;

/// Rounds in a row in which a broker must be out of bounds before anything is done about it.
const ROUNDS: u32 = 2;
/// What the budget is over.
const MINUTE: Duration = Duration::from_secs(60);

/// A bundle that shall go from one broker to another.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Move {
    pub(crate) bundle: Bundle,
    pub(crate) from: BrokerId,
    pub(crate) to: BrokerId,
    pub(crate) load: Load,
    /// Of the load of the whole cluster.
    pub(crate) share: f64,
}

/// A bundle that shall be split.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Split {
    pub(crate) bundle: Bundle,
    pub(crate) at: u32,
    pub(crate) why: &'static str,
}

/// What a round has decided. Splits do not concern bundles that move.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Plan {
    pub(crate) moves: Vec<Move>,
    pub(crate) splits: Vec<Split>,
    /// The highest load of a broker as a multiple of the mean; 1 without load.
    pub(crate) spread: f64,
}

/// What brokers are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Measure {
    /// Traffic.
    Units,
    /// Bundles and their topics, where traffic is no more than noise.
    Topics,
}

/// Whether a broker gives or gets; it begins and ends at different thresholds.
#[derive(Debug, Default)]
struct Trend {
    over: u32,
    under: u32,
    sheds: bool,
    fills: bool,
}

#[derive(Debug)]
struct Moved {
    at: Duration,
    to: BrokerId,
    load: Load,
}

/// The planner.
#[derive(Debug)]
pub(crate) struct Planner {
    config: Arc<BalanceConfig>,
    measure: Measure,
    trends: BTreeMap<BrokerId, Trend>,
    /// What has moved and stays where it is: none of these covers another.
    moves: BTreeMap<Bundle, Moved>,
    /// What share of the load moved when, in the last minute.
    spent: Vec<(Duration, f64)>,
    /// What was split, and whose parts are not to be split yet.
    splits: BTreeMap<Bundle, Duration>,
}

impl Measure {
    fn weight(self, load: &Load) -> f64 {
        match self {
            Measure::Units => load.units(),
            Measure::Topics => 1.0 + count(load.topics),
        }
    }
}

impl Planner {
    pub(crate) fn new(config: BalanceConfig) -> Planner {
        Planner {
            config: Arc::new(config),
            measure: Measure::Units,
            trends: BTreeMap::new(),
            moves: BTreeMap::new(),
            spent: Vec::new(),
            splits: BTreeMap::new(),
        }
    }

    /// Decides by the reports of all brokers that may own something.
    pub(crate) fn round(&mut self, now: Duration, reports: &[LoadReport]) -> Plan {
        self.forget(now);
        self.choose_measure(reports);
        let places = self.places(now, reports);
        let used: f64 = self.spent.iter().map(|(_, share)| share).sum();
        let left = (budget(&self.config) - used).max(0.0);
        let mut round = Round::new(Arc::clone(&self.config), self.measure, places, left);
        round.split_what_is_too_large();
        if round.mean > 0.0 && reports.len() > 1 {
            self.follow_trends(&round);
            self.shed(&mut round);
            self.fill(&mut round);
        }
        round.plan
    }

    /// A move was made.
    pub(crate) fn moved(&mut self, now: Duration, made: &Move) {
        self.spent.push((now, made.share));
        let moved = Moved {
            at: now,
            to: made.to,
            load: made.load,
        };
        self.moves.insert(made.bundle.clone(), moved);
    }

    /// A bundle was split.
    pub(crate) fn split(&mut self, now: Duration, bundle: &Bundle) {
        self.splits.insert(bundle.clone(), now);
    }

    fn forget(&mut self, now: Duration) {
        let age = |at| now.saturating_sub(at);
        let keep = self.config.cooldown();
        self.moves.retain(|_, moved| age(moved.at) < keep);
        self.spent.retain(|(at, _)| age(*at) < MINUTE);
        let keep = self.config.split_cooldown();
        self.splits.retain(|_, at| age(*at) < keep);
    }

    fn choose_measure(&mut self, reports: &[LoadReport]) {
        let total: Load = reports.iter().map(|report| report.total).sum();
        let measure = match total.units() < count(self.config.units_min) {
            true => Measure::Topics,
            false => Measure::Units,
        };
        if self.measure != measure {
            self.measure = measure;
            self.trends.clear();
        }
    }

    /// Where load is. A bundle that has just moved counts at its new owner with what it had: rates
    /// that were measured while its clients found their way say little.
    fn places(&self, now: Duration, reports: &[LoadReport]) -> Vec<Place> {
        let there: BTreeSet<BrokerId> = reports.iter().map(|report| report.broker).collect();
        let window = self.config.window();
        let arrives =
            |moved: &Moved| now.saturating_sub(moved.at) < window && there.contains(&moved.to);
        let mut arriving: BTreeMap<BrokerId, f64> = BTreeMap::new();
        for moved in self.moves.values().filter(|moved| arrives(moved)) {
            *arriving.entry(moved.to).or_default() += self.measure.weight(&moved.load);
        }
        let place = |report: &LoadReport| {
            let candidates = report.bundles.iter().filter_map(|reported| {
                let bundle = Bundle {
                    namespace: reported.namespace.clone(),
                    range: reported.range,
                };
                let moved = covering(&self.moves, &bundle);
                if moved.is_some_and(arrives) {
                    return None;
                }
                let age = reported.handed_over_ms.map(Duration::from_millis);
                let cools = age.is_some_and(|age| age < self.config.cooldown());
                Some(Candidate {
                    weight: self.measure.weight(&reported.load),
                    load: reported.load,
                    split_at: reported.split_at,
                    cools: cools || moved.is_some(),
                    splits: covering(&self.splits, &bundle).is_some(),
                    bundle,
                })
            });
            let arriving = arriving.get(&report.broker).copied().unwrap_or_default();
            Place::new(report.broker, arriving, candidates.collect())
        };
        reports.iter().map(place).collect()
    }

    fn follow_trends(&mut self, round: &Round) {
        let (start, stop) = (
            f64::from(self.config.start_percent) / 100.0,
            f64::from(self.config.stop_percent) / 100.0,
        );
        self.trends
            .retain(|id, _| round.places.iter().any(|place| place.id == *id));
        for place in &round.places {
            let ratio = place.weight / round.mean;
            let (over, under) = match self.measure {
                Measure::Units => (ratio > start, ratio < 2.0 - start),
                // Only a broker that has just joined gets something.
                Measure::Topics => (false, place.is_empty()),
            };
            let trend = self.trends.entry(place.id).or_default();
            trend.over = if over { trend.over + 1 } else { 0 };
            trend.under = if under { trend.under + 1 } else { 0 };
            trend.sheds = (trend.sheds || trend.over >= ROUNDS) && ratio > stop;
            trend.fills = (trend.fills || trend.under >= ROUNDS) && ratio < 2.0 - stop;
        }
    }

    /// Takes from brokers that have too much, the most loaded first.
    fn shed(&mut self, round: &mut Round) {
        let mut done = Vec::new();
        while round.may_move() {
            let is_next = |place: &Place| {
                place.weight > round.highest() && !done.contains(&place.id) && self.sheds(place.id)
            };
            let Some(donor) = round.most_loaded(is_next) else {
                return;
            };
            let id = round.places[donor].id;
            let Some(receiver) = round.least_loaded(|place| place.id != id) else {
                return;
            };
            round.waits = false;
            if round.exchange(donor, receiver) {
                continue;
            }
            done.push(id);
            let helps = round.waits
                || round.split_largest(donor, receiver)
                || round.exchange_anyhow(donor, receiver);
            if !helps && !round.waits {
                // No move helps: its trend starts again when that has changed.
                self.trends.insert(id, Trend::default());
            }
        }
    }

    fn sheds(&self, id: BrokerId) -> bool {
        self.trends.get(&id).is_some_and(|trend| trend.sheds)
    }

    /// Gives to brokers that have too little, the least loaded first.
    fn fill(&mut self, round: &mut Round) {
        let mut done = Vec::new();
        while round.may_move() {
            let fills = |id| self.trends.get(&id).is_some_and(|trend| trend.fills);
            let is_next = |place: &Place| {
                place.weight < round.lowest() && !done.contains(&place.id) && fills(place.id)
            };
            let Some(receiver) = round.least_loaded(is_next) else {
                return;
            };
            let id = round.places[receiver].id;
            round.waits = false;
            let mut donors = round.above_mean().into_iter();
            if donors.clone().any(|donor| round.exchange(donor, receiver)) {
                continue;
            }
            done.push(id);
            let helps = round.waits || donors.any(|donor| round.split_largest(donor, receiver));
            if !helps {
                self.trends.insert(id, Trend::default());
            }
        }
    }
}

/// What is known of a bundle or of the one that it is a part of, where none covers another.
fn covering<'a, T>(known: &'a BTreeMap<Bundle, T>, bundle: &Bundle) -> Option<&'a T> {
    let last = Bundle {
        namespace: bundle.namespace.clone(),
        range: BundleRange {
            first: bundle.range.first,
            last: u32::MAX,
        },
    };
    let (found, what) = known.range(..=last).next_back()?;
    found.covers(bundle).then_some(what)
}

/// The share of the whole load that may move in a minute.
fn budget(config: &BalanceConfig) -> f64 {
    f64::from(config.moved_percent_per_minute_max) / 100.0
}

#[allow(
    clippy::cast_precision_loss,
    reason = "loads are compared, and need not be exact"
)]
fn count(of: u64) -> f64 {
    of as f64
}
