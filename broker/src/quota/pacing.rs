//! How one subscription is held to its rates: nothing is read for it while it has no tokens,
//! whatever credit its consumers have given, and one timer wakes it.

use std::time::Duration;

use aquifer_log::LogEntry;

use crate::quota::rates::{Flow, TopicRates, Wait};
use crate::quota::{Cost, Limit, Limiter};

/// See the module.
pub(crate) struct Pacing {
    own: Limiter,
    /// A timer runs; for this limit.
    waits_for: Option<Limit>,
}

impl Default for Pacing {
    fn default() -> Pacing {
        Pacing {
            own: Limiter::unlimited(),
            waits_for: None,
        }
    }
}

impl Pacing {
    /// The limit for which it waits.
    pub(crate) fn waits_for(&self) -> Option<Limit> {
        self.waits_for
    }

    /// Waits from now on.
    pub(crate) fn wait(&mut self, limit: Limit) {
        self.waits_for = Some(limit);
    }

    /// The wait is over.
    pub(crate) fn woken(&mut self) {
        self.waits_for = None;
    }

    /// What may be delivered now; how long nothing may.
    pub(crate) fn left(&mut self, rates: &TopicRates, now: Duration) -> Result<Cost, Wait> {
        self.own.set(rates.of_subscriptions(), now);
        let time = self.own.wait(now);
        if !time.is_zero() {
            return Err(Wait {
                limit: Limit::Subscription,
                time: self.own.pause(time),
            });
        }
        Ok(self.own.left().min(rates.left(Flow::Dispatch, now)?))
    }

    /// Takes what was delivered.
    pub(crate) fn take(&mut self, rates: &TopicRates, cost: Cost) {
        self.own.take(cost);
        rates.take(Flow::Dispatch, cost);
    }
}

/// The entries at the front that may be delivered: all that there are tokens for, and the first
/// one in any case, for which there may be debt.
pub(crate) fn affordable(entries: &[LogEntry], left: Cost) -> usize {
    let (mut messages, mut bytes) = (0u64, 0u64);
    let fits = |entry: &&LogEntry| {
        messages = messages.saturating_add(u64::from(entry.head.message_count));
        bytes = bytes.saturating_add(entry.body.len() as u64);
        messages <= left.messages && bytes <= left.bytes
    };
    entries
        .iter()
        .take_while(fits)
        .count()
        .max(1)
        .min(entries.len())
}
