//! One round of the planner: what is where, while moves are chosen one after the other.

use std::collections::BTreeMap;
use std::sync::Arc;

use aquifer_model::id::BrokerId;
use aquifer_model::load::Load;
use aquifer_model::topic::NamespaceName;

use crate::balance::config::BalanceConfig;
use crate::balance::planner::{Measure, Move, Plan, Split, budget, count};
use crate::bundle::Bundle;

/// Most splits of a round.
const SPLITS_MAX: usize = 8;
/// A bundle that is so small a part of what a broker needs is left where it is.
const PARTS_MAX: f64 = 400.0;

/// A bundle at its owner.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) bundle: Bundle,
    pub(super) weight: f64,
    pub(super) load: Load,
    pub(super) split_at: Option<u32>,
    /// It moved a short time ago.
    pub(super) cools: bool,
    /// It is a part of one that was split a short time ago.
    pub(super) splits: bool,
}

/// A broker.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) id: BrokerId,
    pub(super) weight: f64,
    arriving: f64,
    candidates: Vec<Candidate>,
}

impl Place {
    pub(super) fn new(id: BrokerId, arriving: f64, mut candidates: Vec<Candidate>) -> Place {
        // The largest first; ties by name, so that the same reports give the same plan.
        candidates.sort_by(|a, b| {
            let by_weight = b.weight.total_cmp(&a.weight);
            by_weight.then_with(|| a.bundle.cmp(&b.bundle))
        });
        let weight = arriving + candidates.iter().map(|c| c.weight).sum::<f64>();
        Place {
            id,
            weight,
            arriving,
            candidates,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.candidates.is_empty() && self.arriving <= 0.0
    }
}

/// A round.
#[derive(Debug)]
pub(super) struct Round {
    config: Arc<BalanceConfig>,
    measure: Measure,
    pub(super) places: Vec<Place>,
    pub(super) mean: f64,
    total: f64,
    /// What may still move, as a share of the total.
    budget_left: f64,
    /// Something would have been possible but for the budget.
    pub(super) waits: bool,
    /// Owned bundles of each namespace.
    bundles: BTreeMap<NamespaceName, u64>,
    pub(super) plan: Plan,
}

impl Round {
    pub(super) fn new(
        config: Arc<BalanceConfig>,
        measure: Measure,
        places: Vec<Place>,
        budget_left: f64,
    ) -> Round {
        let total: f64 = places.iter().map(|place| place.weight).sum();
        let mean = total / count(places.len().max(1) as u64);
        let highest = places.iter().map(|place| place.weight);
        let highest = highest.fold(0.0, f64::max);
        let mut bundles = BTreeMap::new();
        for candidate in places.iter().flat_map(|place| &place.candidates) {
            *bundles
                .entry(candidate.bundle.namespace.clone())
                .or_default() += 1;
        }
        let spread = if mean > 0.0 { highest / mean } else { 1.0 };
        Round {
            config,
            measure,
            places,
            mean,
            total,
            budget_left,
            waits: false,
            bundles,
            plan: Plan {
                spread,
                ..Plan::default()
            },
        }
    }

    /// How far from the mean is as good as the mean.
    fn tolerance(&self) -> f64 {
        self.mean * (f64::from(self.config.stop_percent) / 100.0 - 1.0)
    }

    /// A broker that has more still sheds.
    pub(super) fn highest(&self) -> f64 {
        self.mean + self.tolerance()
    }

    /// A broker that has less is still filled.
    pub(super) fn lowest(&self) -> f64 {
        self.mean - self.tolerance()
    }

    pub(super) fn may_move(&self) -> bool {
        self.plan.moves.len() < self.config.moves_per_round_max as usize
    }

    pub(super) fn most_loaded(&self, of: impl Fn(&Place) -> bool) -> Option<usize> {
        let found = self.places.iter().enumerate().filter(|(_, p)| of(p));
        let found = found.max_by(|(_, a), (_, b)| a.weight.total_cmp(&b.weight));
        found.map(|(at, _)| at)
    }

    pub(super) fn least_loaded(&self, of: impl Fn(&Place) -> bool) -> Option<usize> {
        let found = self.places.iter().enumerate().filter(|(_, p)| of(p));
        let found = found.min_by(|(_, a), (_, b)| a.weight.total_cmp(&b.weight));
        found.map(|(at, _)| at)
    }

    /// Brokers that have more than the mean, the most loaded first.
    pub(super) fn above_mean(&self) -> Vec<usize> {
        let mut above: Vec<usize> = (0..self.places.len())
            .filter(|at| self.places[*at].weight > self.mean)
            .collect();
        above.sort_by(|a, b| self.places[*b].weight.total_cmp(&self.places[*a].weight));
        above
    }

    /// Splits bundles that are beyond the limits, wherever they are.
    pub(super) fn split_what_is_too_large(&mut self) {
        let config = Arc::clone(&self.config);
        let too_large = |load: &Load| {
            let limits = [
                ("topics", count(load.topics), config.split_topics_max),
                ("sessions", count(load.sessions), config.split_sessions_max),
                (
                    "messages",
                    load.messages_per_second(),
                    config.split_messages_per_second_max,
                ),
                (
                    "bytes",
                    load.bytes_per_second(),
                    config.split_bytes_per_second_max,
                ),
            ];
            let over = limits.into_iter().find(|(_, is, max)| *is > count(*max));
            over.map(|(what, _, _)| what)
        };
        for place in 0..self.places.len() {
            let mut at = 0;
            while let Some(candidate) = self.places[place].candidates.get(at) {
                match too_large(&candidate.load) {
                    Some(why) if self.split(place, at, why) => {}
                    _ => at += 1,
                }
            }
        }
    }

    /// Splits the largest bundle of a broker that is too large to move from there to another.
    pub(super) fn split_largest(&mut self, from: usize, to: usize) -> bool {
        let most = self.need(from, to) + self.tolerance();
        if self.measure == Measure::Topics {
            return false;
        }
        // Parts of one that cools could not move either.
        let too_large = |c: &Candidate| !c.cools && c.weight > most;
        (0..self.places[from].candidates.len()).any(|at| {
            too_large(&self.places[from].candidates[at]) && self.split(from, at, "does not fit")
        })
    }

    fn split(&mut self, place: usize, at: usize, why: &'static str) -> bool {
        let candidates = &mut self.places[place].candidates;
        let bundles = self
            .bundles
            .entry(candidates[at].bundle.namespace.clone())
            .or_default();
        let is_free = !candidates[at].splits
            && *bundles < self.config.split_bundles_max
            && self.plan.splits.len() < SPLITS_MAX;
        match candidates[at].split_at {
            Some(hash) if is_free => {
                *bundles += 1;
                // It is out of the way, and its weight stays where it is.
                let bundle = candidates.remove(at).bundle;
                self.plan.splits.push(Split {
                    bundle,
                    at: hash,
                    why,
                });
                true
            }
            _ => false,
        }
    }

    /// What one should give to the other, as far as both would come to the mean.
    fn need(&self, from: usize, to: usize) -> f64 {
        let more = self.places[from].weight - self.mean;
        more.min(self.mean - self.places[to].weight)
    }

    /// Moves the largest bundle that leaves both on their sides of the mean, or close to it.
    pub(super) fn exchange(&mut self, from: usize, to: usize) -> bool {
        let need = self.need(from, to);
        if need <= 0.0 {
            return false;
        }
        let fits = (need / PARTS_MAX)..=(need + self.tolerance());
        let fitting = |c: &Candidate| !c.cools && c.weight > 0.0 && fits.contains(&c.weight);
        self.pick(from, to, fitting)
    }

    /// Moves the smallest bundle that makes things better, although its new owner gets too much.
    pub(super) fn exchange_anyhow(&mut self, from: usize, to: usize) -> bool {
        let least = self.need(from, to) + self.tolerance();
        let gap = self.places[from].weight - self.places[to].weight;
        let most = gap - self.tolerance();
        let candidates = self.places[from].candidates.iter().rev();
        let found = candidates
            .filter(|c| !c.cools && c.weight > least && c.weight < most)
            .map(|c| c.bundle.clone())
            .next();
        found.is_some_and(|bundle| self.pick(from, to, |c| c.bundle == bundle))
    }

    /// Moves the largest of these for which the budget is enough, if there is one.
    fn pick(&mut self, from: usize, to: usize, of: impl Fn(&Candidate) -> bool) -> bool {
        let share = |c: &Candidate| c.weight / self.total;
        let whole = budget(&self.config);
        let candidates = &self.places[from].candidates;
        // One that no budget is enough for is not waited for.
        let found = |left: f64| candidates.iter().position(|c| of(c) && share(c) <= left);
        let Some(at) = found(self.budget_left) else {
            self.waits |= found(whole).is_some();
            return false;
        };
        let candidate = self.places[from].candidates.remove(at);
        let share = candidate.weight / self.total;
        self.budget_left -= share;
        self.places[from].weight -= candidate.weight;
        self.places[to].weight += candidate.weight;
        self.places[to].arriving += candidate.weight;
        self.plan.moves.push(Move {
            bundle: candidate.bundle,
            from: self.places[from].id,
            to: self.places[to].id,
            load: candidate.load,
            share,
        });
        true
    }
}
