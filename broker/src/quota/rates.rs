//! The rates of one topic, its own and those that it shares, and what waits for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use aquifer_model::limits::MESSAGE_BYTES_MAX;
use aquifer_model::policy::rate::Rate;
use aquifer_model::policy::{EffectivePolicies, PolicyScope};
use aquifer_model::topic::TopicName;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Semaphore, watch};

use crate::context::Context;
use crate::error::BrokerError;
use crate::quota::backlog::{Excess, OverQuota};
use crate::quota::producers::{ProducerRate, ProducerRates, Publisher};
use crate::quota::shared::SharedRates;
use crate::quota::{Cost, Limit, Limiter};

/// See the module.
pub(crate) struct TopicRates {
    pub(super) topic: TopicName,
    policies: watch::Receiver<EffectivePolicies>,
    namespace: Arc<SharedRates>,
    tenant: Arc<SharedRates>,
    publish: Mutex<Limiter>,
    dispatch: Mutex<Limiter>,
    publish_limited: AtomicBool,
    dispatch_limited: AtomicBool,
    message_bytes_max: AtomicU64,
    /// What the tenant weighs, as this topic said last.
    weight: AtomicU32,
    /// The turn of the producer that waits for what all of them share: they pass in the order in
    /// which they came, and one timer runs for all.
    pub(super) turn: Semaphore,
    /// The turn of the read that reserves tokens and uses them.
    pub(super) read_turn: Arc<Semaphore>,
    /// How many wait now, for each limit.
    waiting: [AtomicU32; Limit::ALL.len()],
    over: OverQuota,
    producers: ProducerRates,
}

/// Which way something passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Into the topic.
    Publish,
    /// Out of it.
    Dispatch,
}

/// The limiters that something passes, locked, each with its name.
struct Locked<'a>([(Limit, MutexGuard<'a, Limiter>); 3]);

impl Locked<'_> {
    /// The longest wait of all, and for which; nothing when nothing waits.
    fn wait(&mut self, now: Duration) -> Option<Wait> {
        let waits = self.0.iter_mut().map(|(limit, limiter)| Wait {
            limit: *limit,
            time: limiter.wait(now),
        });
        let longest = waits.max_by_key(|wait| wait.time)?;
        let pause = |wait: Wait| {
            let of = self.0.iter().find(|(limit, _)| *limit == wait.limit);
            let time = of.map_or(wait.time, |(_, limiter)| limiter.pause(wait.time));
            Wait { time, ..wait }
        };
        (!longest.time.is_zero()).then(|| pause(longest))
    }

    /// What may pass all of them without debt.
    fn left(&self) -> Cost {
        let left = self.0.iter().map(|(_, limiter)| limiter.left());
        left.fold(Cost::MAX, Cost::min)
    }
}

/// Something has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wait {
    pub(crate) limit: Limit,
    /// Until the next look.
    pub(crate) time: Duration,
}

impl TopicRates {
    /// The rates of a topic that is being loaded.
    pub(crate) async fn load(
        shared: &Context,
        topic: &TopicName,
        policies: watch::Receiver<EffectivePolicies>,
    ) -> Result<Arc<TopicRates>, BrokerError> {
        let table = shared.namespaces.policies();
        let namespace = topic.namespace();
        let tenant = PolicyScope::Tenant(namespace.tenant().to_owned());
        let namespace = PolicyScope::Namespace(namespace.clone());
        let rates = TopicRates {
            topic: topic.clone(),
            policies,
            namespace: shared.aggregates.of(table, namespace).await?,
            tenant: shared.aggregates.of(table, tenant).await?,
            publish: Mutex::new(Limiter::unlimited()),
            dispatch: Mutex::new(Limiter::unlimited()),
            publish_limited: AtomicBool::new(false),
            dispatch_limited: AtomicBool::new(false),
            message_bytes_max: AtomicU64::new(u64::MAX),
            weight: AtomicU32::new(0),
            turn: Semaphore::new(1),
            read_turn: Arc::new(Semaphore::new(1)),
            waiting: Default::default(),
            over: OverQuota::default(),
            producers: ProducerRates::default(),
        };
        rates.apply(shared);
        Ok(Arc::new(rates))
    }

    /// What decides on the rates, as it changes.
    pub(crate) fn follow(&self) -> Followed {
        Followed([
            self.policies.clone(),
            self.namespace.follow(),
            self.tenant.follow(),
        ])
    }

    /// Holds what is in force now. Called by the owner of the topic alone.
    pub(crate) fn apply(&self, shared: &Context) {
        let (now, brokers) = (shared.clock.monotonic(), serving(shared));
        let policies = *self.policies.borrow();
        self.publish.lock().set(policies.publish_rate, now);
        self.dispatch.lock().set(policies.dispatch_rate, now);
        let namespace = self.namespace.apply(now, brokers);
        let tenant = self.tenant.apply(now, brokers);
        let is_limited = [policies.publish_rate, policies.producer_rate]
            .iter()
            .any(|rate| !rate.is_unlimited());
        let publish = is_limited || namespace.0 || tenant.0 || self.over.is_over();
        let is_limited = [policies.dispatch_rate, policies.subscription_rate]
            .iter()
            .any(|rate| !rate.is_unlimited());
        let dispatch = is_limited || namespace.1 || tenant.1;
        self.publish_limited.store(publish, Ordering::Release);
        self.dispatch_limited.store(dispatch, Ordering::Release);
        // The bound of every message is checked where batches are parsed.
        let lower = Some(policies.message_bytes_max).filter(|max| *max < MESSAGE_BYTES_MAX as u64);
        let largest = lower.unwrap_or(u64::MAX);
        self.message_bytes_max.store(largest, Ordering::Release);
        if self.weight.swap(policies.weight, Ordering::AcqRel) != policies.weight {
            shared.weigh(self.topic.namespace().tenant(), policies.weight);
        }
    }

    /// Whether something limits what passes this way.
    pub(crate) fn is_limited(&self, flow: Flow) -> bool {
        let flag = match flow {
            Flow::Publish => &self.publish_limited,
            Flow::Dispatch => &self.dispatch_limited,
        };
        flag.load(Ordering::Acquire)
    }

    /// Whether other brokers share a limit, so that it changes as they come and go.
    pub(crate) fn is_shared(&self) -> bool {
        let rate = self.policies.borrow().aggregate_rate;
        !rate.publish.is_unlimited() || !rate.dispatch.is_unlimited()
    }

    /// The rate of each producer.
    pub(super) fn of_producers(&self) -> Rate {
        self.policies.borrow().producer_rate
    }

    /// What one of them has left of it.
    pub(super) fn of_producer(&self, publisher: &Publisher, now: Duration) -> ProducerRate {
        self.producers.of(publisher, now)
    }

    /// The rate of each subscription.
    pub(super) fn of_subscriptions(&self) -> Rate {
        self.policies.borrow().subscription_rate
    }

    /// Refuses a message that is larger than policy allows.
    pub(crate) fn check_size(&self, largest_message_bytes: u64) -> Result<(), BrokerError> {
        let max = self.message_bytes_max.load(Ordering::Acquire);
        match largest_message_bytes > max {
            true => Err(BrokerError::MessageTooLarge {
                topic: self.topic.to_string(),
                bytes: largest_message_bytes,
                max,
            }),
            false => Ok(()),
        }
    }

    /// Notes by how much the backlog exceeds its quota, or that it does not.
    pub(crate) fn set_over(&self, excess: Option<Excess>, shared: &Context) {
        if self.over.set(excess) {
            self.apply(shared);
        }
    }

    /// By how much the backlog exceeds its quota.
    pub(crate) fn over(&self) -> Option<Excess> {
        self.over.get()
    }

    fn lock(&self, flow: Flow) -> Locked<'_> {
        Locked(match flow {
            Flow::Publish => [
                (Limit::Publish, self.publish.lock()),
                (Limit::Namespace, self.namespace.publish.lock()),
                (Limit::Tenant, self.tenant.publish.lock()),
            ],
            Flow::Dispatch => [
                (Limit::Dispatch, self.dispatch.lock()),
                (Limit::Namespace, self.namespace.dispatch.lock()),
                (Limit::Tenant, self.tenant.dispatch.lock()),
            ],
        })
    }

    /// Takes what something costs of all limits if it may pass all of them, else of none.
    pub(super) fn try_take(&self, flow: Flow, cost: Cost, now: Duration) -> Result<(), Wait> {
        let mut locked = self.lock(flow);
        if let Some(wait) = locked.wait(now) {
            return Err(wait);
        }
        for (_, limiter) in &mut locked.0 {
            limiter.take(cost);
        }
        Ok(())
    }

    /// What may pass now; how long nothing may.
    pub(crate) fn left(&self, flow: Flow, now: Duration) -> Result<Cost, Wait> {
        let mut locked = self.lock(flow);
        if let Some(wait) = locked.wait(now) {
            return Err(wait);
        }
        Ok(locked.left())
    }

    /// Takes what may pass now, `most` of it at most, and answers how much that is; how long
    /// nothing may.
    pub(super) fn take_left(&self, flow: Flow, most: Cost, now: Duration) -> Result<Cost, Wait> {
        let mut locked = self.lock(flow);
        if let Some(wait) = locked.wait(now) {
            return Err(wait);
        }
        let taken = locked.left().min(most);
        for (_, limiter) in &mut locked.0 {
            limiter.take(taken);
        }
        Ok(taken)
    }

    /// Corrects what was taken beforehand for something that has cost `used` in the end.
    pub(super) fn correct(&self, flow: Flow, taken: Cost, used: Cost) {
        for (_, limiter) in &mut self.lock(flow).0 {
            limiter.correct(taken, used);
        }
    }

    /// Takes what something has cost that passed.
    pub(crate) fn take(&self, flow: Flow, cost: Cost) {
        for (_, limiter) in &mut self.lock(flow).0 {
            limiter.take(cost);
        }
    }

    /// Notes that something waits for a limit, for as long as the answer lives.
    pub(super) fn waits(&self, limit: Limit) -> Waiting<'_> {
        let count = &self.waiting[limit as usize];
        count.fetch_add(1, Ordering::Relaxed);
        Waiting(count)
    }

    /// For which limit producers wait now.
    pub(crate) fn producers_wait_for(&self) -> Option<Limit> {
        let waits = |limit: &Limit| self.waiting[*limit as usize].load(Ordering::Relaxed) > 0;
        Limit::ALL.into_iter().find(waits)
    }
}

/// Brokers that share limits of the cluster.
pub(super) fn serving(shared: &Context) -> u64 {
    let cluster = shared.ownership.cluster();
    let brokers = cluster.map_or(1, |cluster| cluster.members.serving().len());
    u64::try_from(brokers).unwrap_or(u64::MAX).max(1)
}

/// Something waits.
pub(super) struct Waiting<'a>(&'a AtomicU32);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The policies that decide on rates, of topic, namespace and tenant.
#[derive(Clone)]
pub(crate) struct Followed([watch::Receiver<EffectivePolicies>; 3]);

impl Followed {
    /// Whether one of them has changed since this was asked last.
    pub(crate) fn take_changed(&mut self) -> bool {
        let mut is_changed = false;
        for policies in &mut self.0 {
            // A table that is gone changes nothing any more.
            if policies.has_changed().unwrap_or(false) {
                policies.mark_unchanged();
                is_changed = true;
            }
        }
        is_changed
    }

    /// Waits until one of them changes.
    pub(crate) async fn changed(mut self) {
        let [topic, namespace, tenant] = &mut self.0;
        let changed = tokio::select! {
            changed = topic.changed() => changed,
            changed = namespace.changed() => changed,
            changed = tenant.changed() => changed,
        };
        if changed.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
