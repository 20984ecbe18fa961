//! Limits of what passes: rates of topics, producers and subscriptions, of namespaces and tenants
//! as a whole, and the quota of a backlog.
//!
//! What is over a rate waits; nothing is refused before it has waited for [`WAIT_MAX`]. Producers
//! wait in the tasks of their clients (`publish_limits.rs`), so that nothing else of their
//! connections waits with them, and subscriptions leave credit unused (`pacing.rs`).
//!
//! Invariants:
//! - The owner of a topic alone changes its rates, when policies change (`rates.rs`); all others
//!   look at one flag first, so that a topic without limits pays for a load of it.
//! - What takes time to find takes its tokens first, and puts back what it did not use
//!   (`reserved.rs`): requests at once never take the same tokens.
//! - Limiters are locked in the order topic, namespace, tenant, for as long as numbers are
//!   compared, and never while anything waits.

pub(crate) mod backlog;
pub(crate) mod dividing;
mod division;
pub(crate) mod pacing;
pub(crate) mod producers;
pub(crate) mod publish_limits;
pub(crate) mod rates;
pub(crate) mod reserved;
pub(crate) mod shared;
pub(crate) mod topics;

use std::fmt;
use std::time::Duration;

use aquifer_model::policy::rate::Rate;
use aquifer_runtime::bucket::Bucket;

/// Longest that something waits for a limit before it is refused.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(10);
/// Shortest wait: what passes after it is many messages, not one, so that timers cost little.
const WAIT_MIN: Duration = Duration::from_millis(5);
/// Longest wait until the next look: a changed limit shows within this time.
const LOOK_MAX: Duration = Duration::from_millis(500);

/// What something takes of a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cost {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

impl Cost {
    /// Of nothing.
    pub(crate) const NONE: Cost = Cost {
        messages: 0,
        bytes: 0,
    };
    /// More than anything costs.
    pub(crate) const MAX: Cost = Cost {
        messages: u64::MAX,
        bytes: u64::MAX,
    };

    /// The lower of both, each.
    pub(crate) fn min(self, other: Cost) -> Cost {
        Cost {
            messages: self.messages.min(other.messages),
            bytes: self.bytes.min(other.bytes),
        }
    }
}

/// A limit for which something waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    /// Of one producer.
    Producer,
    /// Of what a topic takes in.
    Publish,
    /// Of what a topic gives.
    Dispatch,
    /// Of one subscription.
    Subscription,
    /// Of all topics of a namespace.
    Namespace,
    /// Of all topics of a tenant.
    Tenant,
    /// The backlog of the topic.
    Backlog,
}

impl Limit {
    /// Every limit; each is its own number.
    pub(crate) const ALL: [Limit; 7] = [
        Limit::Producer,
        Limit::Publish,
        Limit::Dispatch,
        Limit::Subscription,
        Limit::Namespace,
        Limit::Tenant,
        Limit::Backlog,
    ];

    /// Its name for people, scripts and metrics: the policy, and whose it is.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Limit::Producer => "producerRate",
            Limit::Publish => "publishRate",
            Limit::Dispatch => "dispatchRate",
            Limit::Subscription => "subscriptionRate",
            Limit::Namespace => "aggregateRate of the namespace",
            Limit::Tenant => "aggregateRate of the tenant",
            Limit::Backlog => "backlogQuota",
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A rate with what is left of it.
#[derive(Debug)]
pub(crate) struct Limiter {
    rate: Rate,
    messages: Option<Bucket>,
    bytes: Option<Bucket>,
    /// What it has let pass, and whether something had to wait, since this was asked last.
    passed: Cost,
    has_waited: bool,
}

impl Limiter {
    /// One that limits nothing.
    pub(crate) const fn unlimited() -> Limiter {
        Limiter {
            rate: Rate::UNLIMITED,
            messages: None,
            bytes: None,
            passed: Cost::NONE,
            has_waited: false,
        }
    }

    /// Holds a rate from now on. What was used of the former one counts.
    pub(crate) fn set(&mut self, rate: Rate, now: Duration) {
        if self.rate == rate {
            return;
        }
        self.rate = rate;
        let burst = Duration::from_millis(rate.burst_ms);
        for (bucket, rate) in [
            (&mut self.messages, rate.messages),
            (&mut self.bytes, rate.bytes),
        ] {
            match (bucket.as_mut(), rate) {
                (Some(bucket), Some(rate)) => bucket.change(rate, burst, now),
                (_, rate) => *bucket = rate.map(|rate| Bucket::new(rate, burst, now)),
            }
        }
    }

    /// Whether it limits something.
    pub(crate) fn is_limited(&self) -> bool {
        !self.rate.is_unlimited()
    }

    /// How long until something may pass.
    pub(crate) fn wait(&mut self, now: Duration) -> Duration {
        let wait = |bucket: &mut Option<Bucket>| {
            bucket
                .as_mut()
                .map_or(Duration::ZERO, |bucket| bucket.wait(now))
        };
        let wait = wait(&mut self.messages).max(wait(&mut self.bytes));
        self.has_waited |= !wait.is_zero();
        wait
    }

    /// What has passed, and whether something had to wait, since this was asked last.
    pub(crate) fn take_use(&mut self) -> (Cost, bool) {
        let passed = std::mem::replace(&mut self.passed, Cost::NONE);
        (passed, std::mem::take(&mut self.has_waited))
    }

    /// Whether nothing of its rate is used: another one with the same rate is the same.
    pub(crate) fn is_unused(&mut self, now: Duration) -> bool {
        let buckets = [&mut self.messages, &mut self.bytes];
        let mut buckets = buckets.into_iter().flatten();
        buckets.all(|bucket| bucket.is_full(now))
    }

    /// Takes what something costs that passes.
    pub(crate) fn take(&mut self, cost: Cost) {
        self.passed.messages = self.passed.messages.saturating_add(cost.messages);
        self.passed.bytes = self.passed.bytes.saturating_add(cost.bytes);
        if let Some(bucket) = &mut self.messages {
            bucket.take(cost.messages);
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.take(cost.bytes);
        }
    }

    /// Corrects what was taken beforehand for something that has cost `used` in the end.
    pub(crate) fn correct(&mut self, taken: Cost, used: Cost) {
        let correct =
            |passed: u64, taken: u64, used: u64| passed.saturating_add(used).saturating_sub(taken);
        self.passed.messages = correct(self.passed.messages, taken.messages, used.messages);
        self.passed.bytes = correct(self.passed.bytes, taken.bytes, used.bytes);
        for (bucket, taken, used) in [
            (&mut self.messages, taken.messages, used.messages),
            (&mut self.bytes, taken.bytes, used.bytes),
        ] {
            if let Some(bucket) = bucket {
                bucket.take(used.saturating_sub(taken));
                bucket.put_back(taken.saturating_sub(used));
            }
        }
    }

    /// What may pass now without debt.
    pub(crate) fn left(&self) -> Cost {
        let left = |bucket: &Option<Bucket>| bucket.as_ref().map_or(u64::MAX, Bucket::tokens);
        Cost {
            messages: left(&self.messages),
            bytes: left(&self.bytes),
        }
    }

    /// A wait long enough that several messages pass after it, where the burst has room for what
    /// comes meanwhile.
    pub(crate) fn pause(&self, wait: Duration) -> Duration {
        let room = Duration::from_millis(self.rate.burst_ms) / 2;
        wait.max(WAIT_MIN.min(room)).min(LOOK_MAX)
    }
}

#[cfg(test)]
mod tests;
