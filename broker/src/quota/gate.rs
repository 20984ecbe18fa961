//! Where producers wait for their limits, each in the task of its client: its stream is not read
//! any further, and receipts, other sessions and heartbeats of the connection go on.

use std::sync::Arc;
use std::time::Duration;

use aquifer_model::policy::bounds::BacklogAction;
use aquifer_runtime::clock;

use crate::context::Context;
use crate::error::BrokerError;
use crate::quota::rates::{Flow, TopicRates, Wait};
use crate::quota::{Cost, LOOK_MAX, Limit, Limiter, WAIT_MAX};

/// The way of one producer into a topic.
pub(crate) struct Gate {
    rates: Arc<TopicRates>,
    own: Limiter,
}

impl Gate {
    /// The gate of a session that begins.
    pub(crate) fn new(rates: Arc<TopicRates>) -> Gate {
        Gate {
            rates,
            own: Limiter::unlimited(),
        }
    }

    /// Refuses what has a larger message than policy allows.
    ///
    /// # Errors
    /// When it has one.
    pub(crate) fn check(&self, largest_message_bytes: u32) -> Result<(), BrokerError> {
        self.rates.check_size(largest_message_bytes.into())
    }

    /// Whether something may have to wait.
    pub(crate) fn is_limited(&self) -> bool {
        self.rates.is_limited(Flow::Publish)
    }

    /// Lets something pass that has to wait for nothing. Answers whether it did.
    ///
    /// # Errors
    /// When the backlog of the topic is at its quota.
    pub(crate) fn try_pass(&mut self, shared: &Context, cost: Cost) -> Result<bool, BrokerError> {
        let now = shared.clock.monotonic();
        let wait = self.wait_alone(now);
        if wait.inspect_err(|error| refused(shared, error))?.is_some() {
            return Ok(false);
        }
        // Those that wait already come first.
        let Ok(_turn) = self.rates.turn.try_acquire() else {
            return Ok(false);
        };
        let passed = self.rates.try_take(Flow::Publish, cost, now).is_ok();
        if passed {
            self.own.take(cost);
        }
        Ok(passed)
    }

    /// Waits until something may pass.
    ///
    /// # Errors
    /// When it has waited for [`WAIT_MAX`], or the backlog of the topic is at its quota.
    pub(crate) async fn pass(&mut self, shared: &Context, cost: Cost) -> Result<(), BrokerError> {
        let began = shared.clock.monotonic();
        let until = began + WAIT_MAX;
        let mut waited_for = None;
        let passed = self.pass_until(shared, cost, until, &mut waited_for).await;
        if let Some(limit) = waited_for {
            let waited = shared.clock.monotonic().saturating_sub(began);
            shared.metrics.published_late(limit, cost, waited);
        }
        passed.inspect_err(|error| refused(shared, error))
    }

    async fn pass_until(
        &mut self,
        shared: &Context,
        cost: Cost,
        until: Duration,
        waited_for: &mut Option<Limit>,
    ) -> Result<(), BrokerError> {
        let rates = Arc::clone(&self.rates);
        loop {
            let now = shared.clock.monotonic();
            let Some(wait) = self.wait_alone(now)? else {
                break;
            };
            *waited_for = Some(wait.limit);
            sleep(&rates, wait, until.saturating_sub(now)).await?;
        }
        // From here on it holds up the other producers of the topic, which wait for the same.
        let left = until.saturating_sub(shared.clock.monotonic());
        if rates.turn.available_permits() == 0 {
            waited_for.get_or_insert(Limit::Publish);
        }
        let queued = {
            let _waiting = rates.waits(waited_for.unwrap_or(Limit::Publish));
            clock::timeout(left, rates.turn.acquire()).await
        };
        let Ok(Ok(_turn)) = queued else {
            return Err(throttled(&rates, waited_for.unwrap_or(Limit::Publish)));
        };
        loop {
            let now = shared.clock.monotonic();
            let wait = match self.over()? {
                Some(wait) => wait,
                None => match rates.try_take(Flow::Publish, cost, now) {
                    Ok(()) => {
                        self.own.take(cost);
                        return Ok(());
                    }
                    Err(wait) => wait,
                },
            };
            *waited_for = Some(wait.limit);
            sleep(&rates, wait, until.saturating_sub(now)).await?;
        }
    }

    /// What this producer waits for whatever the others do.
    fn wait_alone(&mut self, now: Duration) -> Result<Option<Wait>, BrokerError> {
        if let Some(wait) = self.over()? {
            return Ok(Some(wait));
        }
        self.own.set(self.rates.of_producers(), now);
        let time = self.own.wait(now);
        Ok((!time.is_zero()).then(|| Wait {
            limit: Limit::Producer,
            time: self.own.pause(time),
        }))
    }

    /// Whether the backlog is over its quota.
    fn over(&self) -> Result<Option<Wait>, BrokerError> {
        let Some(excess) = self.rates.over() else {
            return Ok(None);
        };
        match excess.action {
            BacklogAction::Hold => Ok(Some(Wait {
                limit: Limit::Backlog,
                time: LOOK_MAX / 4,
            })),
            BacklogAction::Refuse => Err(excess.refusal(&self.rates.topic.to_string())),
            BacklogAction::Evict => Ok(None),
        }
    }
}

/// Counts what a limit refuses.
fn refused(shared: &Context, error: &BrokerError) {
    if let BrokerError::Throttled { limit, .. } | BrokerError::BacklogQuota { limit, .. } = error {
        shared.metrics.refused(limit);
    }
}

async fn sleep(rates: &TopicRates, wait: Wait, left: Duration) -> Result<(), BrokerError> {
    if left.is_zero() {
        return Err(throttled(rates, wait.limit));
    }
    let _waiting = rates.waits(wait.limit);
    clock::sleep(wait.time.min(left)).await;
    Ok(())
}

fn throttled(rates: &TopicRates, limit: Limit) -> BrokerError {
    BrokerError::Throttled {
        limit: limit.as_str(),
        topic: rates.topic.to_string(),
    }
}
