//! What each producer of a topic has used of its rate, longer than its sessions live: a producer
//! that opens again, and appends without a session, go on with what is left.
//!
//! Invariants: at most [`PRODUCERS_MAX`] are remembered. One that has used nothing is forgotten
//! first, then one without a session that has to wait for the shortest time. Where sessions use
//! all of them, more producers are remembered by their own sessions alone. With its topic all are
//! forgotten.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aquifer_model::policy::rate::Rate;
use aquifer_model::topic::ProducerName;
use parking_lot::Mutex;

use crate::quota::{Cost, Limiter};

/// Producers of a topic that are remembered.
const PRODUCERS_MAX: usize = 1_024;

/// Whose rate it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Publisher {
    /// Of a producer with this name, in sessions and in appends.
    Named(ProducerName),
    /// Of appends that name no producer, of this principal.
    Caller(String),
}

/// What is left of one producer's rate; its sessions and appends share it.
#[derive(Clone)]
pub(super) struct ProducerRate(Arc<Mutex<Limiter>>);

impl ProducerRate {
    fn new() -> ProducerRate {
        ProducerRate(Arc::new(Mutex::new(Limiter::unlimited())))
    }

    /// How long until something may pass at this rate; zero when it may now.
    pub(super) fn wait(&self, rate: Rate, now: Duration) -> Duration {
        let mut limiter = self.0.lock();
        limiter.set(rate, now);
        let time = limiter.wait(now);
        match time.is_zero() {
            true => time,
            false => limiter.pause(time),
        }
    }

    /// Takes what something costs that passes.
    pub(super) fn take(&self, cost: Cost) {
        self.0.lock().take(cost);
    }

    fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct ProducerRates(Mutex<HashMap<Publisher, ProducerRate>>);

impl ProducerRates {
    /// The rate of one of them.
    pub(super) fn of(&self, publisher: &Publisher, now: Duration) -> ProducerRate {
        let mut known = self.0.lock();
        if let Some(found) = known.get(publisher) {
            return found.clone();
        }
        if known.len() >= PRODUCERS_MAX {
            known.retain(|_, rate| rate.is_in_use() || !rate.0.lock().is_unused(now));
        }
        if known.len() >= PRODUCERS_MAX {
            let free = known.iter().filter(|(_, rate)| !rate.is_in_use());
            let soonest = free.min_by_key(|(_, rate)| rate.0.lock().wait(now));
            let soonest = soonest.map(|(publisher, _)| publisher.clone());
            match soonest {
                Some(soonest) => known.remove(&soonest),
                None => return ProducerRate::new(),
            };
        }
        let rate = ProducerRate::new();
        known.insert(publisher.clone(), rate.clone());
        rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Rate = Rate {
        messages: Some(1),
        ..Rate::UNLIMITED
    };

    fn publisher(number: usize) -> Publisher {
        Publisher::Caller(number.to_string())
    }

    fn used(messages: u64) -> Cost {
        Cost { messages, bytes: 0 }
    }

    #[test]
    fn who_comes_again_goes_on_with_what_is_left() {
        let (rates, now) = (ProducerRates::default(), Duration::ZERO);
        let first = rates.of(&publisher(1), now);
        assert!(first.wait(SLOW, now).is_zero());
        first.take(used(100));
        drop(first);
        assert!(!rates.of(&publisher(1), now).wait(SLOW, now).is_zero());
        assert!(rates.of(&publisher(2), now).wait(SLOW, now).is_zero());
    }

    #[test]
    fn a_bounded_number_is_remembered_and_those_with_most_debt_longest() {
        let (rates, now) = (ProducerRates::default(), Duration::ZERO);
        let remembered = || rates.0.lock().len();
        for number in 0..PRODUCERS_MAX {
            let rate = rates.of(&publisher(number), now);
            assert!(rate.wait(SLOW, now).is_zero());
            rate.take(used(10 + number as u64));
        }
        rates.of(&publisher(PRODUCERS_MAX), now);
        assert_eq!(remembered(), PRODUCERS_MAX);
        let debt = |number| !rates.of(&publisher(number), now).wait(SLOW, now).is_zero();
        assert!(debt(1) && debt(PRODUCERS_MAX - 1));
        assert!(!debt(0), "it had the least");
        // Hours later nothing is left of it, and others need the places.
        let later = Duration::from_secs(7_200);
        rates.of(&publisher(2 * PRODUCERS_MAX), later);
        assert!(remembered() <= 2, "{}", remembered());
        let all: Vec<_> = (0..2 * PRODUCERS_MAX)
            .map(|number| rates.of(&publisher(number), later))
            .collect();
        assert_eq!(remembered(), PRODUCERS_MAX, "{}", all.len());
    }
}
