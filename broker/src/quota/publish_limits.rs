//! Where producers wait for their limits, each in the task of its client: its stream is not read
//! any further, and receipts, other sessions and heartbeats of the connection go on.

use std::sync::Arc;
use std::time::Duration;

use aquifer_model::policy::bounds::BacklogAction;
use aquifer_runtime::clock;

use crate::context::Context;
use crate::error::BrokerError;
use crate::quota::producers::{ProducerRate, Publisher};
use crate::quota::rates::{Flow, TopicRates, Wait};
use crate::quota::{Cost, LOOK_MAX, Limit, WAIT_MAX};

/// The way of one producer into a topic.
pub(crate) struct PublishLimits {
    rates: Arc<TopicRates>,
    publisher: Publisher,
    /// What it has left of its own rate, once it has one.
    own: Option<ProducerRate>,
}

impl PublishLimits {
    /// The limits of a session that begins, or of an append.
    pub(crate) fn new(rates: Arc<TopicRates>, publisher: Publisher) -> PublishLimits {
        PublishLimits {
            rates,
            publisher,
            own: None,
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
        // Those that wait already come first.
        let rates = Arc::clone(&self.rates);
        let Ok(_turn) = rates.turn.try_acquire() else {
            return Ok(false);
        };
        let wait = self.wait_alone(now);
        if wait.inspect_err(|error| refused(shared, error))?.is_some() {
            return Ok(false);
        }
        Ok(self.try_take(cost, now).is_ok())
    }

    /// Takes it of all limits, if it may pass all that are shared; of its own it may.
    fn try_take(&self, cost: Cost, now: Duration) -> Result<(), Wait> {
        self.rates.try_take(Flow::Publish, cost, now)?;
        if let Some(own) = &self.own {
            own.take(cost);
        }
        Ok(())
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
        loop {
            self.until_alone(shared, until, waited_for).await?;
            if self.pass_shared(shared, cost, until, waited_for).await? {
                return Ok(());
            }
        }
    }

    /// Waits until this producer has to wait for what all share alone.
    async fn until_alone(
        &mut self,
        shared: &Context,
        until: Duration,
        waited_for: &mut Option<Limit>,
    ) -> Result<(), BrokerError> {
        loop {
            let now = shared.clock.monotonic();
            let Some(wait) = self.wait_alone(now)? else {
                return Ok(());
            };
            *waited_for = Some(wait.limit);
            sleep(&self.rates, wait, until.saturating_sub(now)).await?;
        }
    }

    /// Waits until it may pass what all share. Answers whether it did: its own rate may be used
    /// up meanwhile.
    async fn pass_shared(
        &mut self,
        shared: &Context,
        cost: Cost,
        until: Duration,
        waited_for: &mut Option<Limit>,
    ) -> Result<bool, BrokerError> {
        let rates = Arc::clone(&self.rates);
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
            let wait = match (self.over()?, self.wait_for_own(now)) {
                (Some(wait), _) => wait,
                // Another session or append of the same producer was first.
                (None, Some(_)) => return Ok(false),
                (None, None) => match self.try_take(cost, now) {
                    Ok(()) => return Ok(true),
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
        Ok(self.wait_for_own(now))
    }

    /// How long it has to wait for its own rate.
    fn wait_for_own(&mut self, now: Duration) -> Option<Wait> {
        let rate = self.rates.of_producers();
        if self.own.is_none() && !rate.is_unlimited() {
            self.own = Some(self.rates.of_producer(&self.publisher, now));
        }
        let time = self.own.as_ref()?.wait(rate, now);
        (!time.is_zero()).then_some(Wait {
            limit: Limit::Producer,
            time,
        })
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
