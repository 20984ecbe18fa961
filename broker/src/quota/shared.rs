//! Rates of all topics of a namespace or a tenant together, on this broker: its share of a limit of
//! the cluster, which brokers divide between them (`dividing.rs`).

use std::collections::HashMap;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Duration;

use aquifer_model::policy::rate::Rate;
use aquifer_model::policy::{EffectivePolicies, PolicyScope};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::error::BrokerError;
use crate::policies::PolicyTable;
use crate::quota::{Cost, Limiter, division};

/// What is not in use any more is dropped when there is twice as much as after the last time, and
/// this.
const PRUNE_ABOVE: usize = 16;

/// The rates of one tenant or namespace.
pub(crate) struct SharedRates {
    policies: watch::Receiver<EffectivePolicies>,
    pub(super) publish: Mutex<Limiter>,
    pub(super) dispatch: Mutex<Limiter>,
    /// What this broker has claimed, in millionths.
    publish_share: AtomicU32,
    dispatch_share: AtomicU32,
}

impl SharedRates {
    /// What is in force for the tenant or namespace, as it changes.
    pub(crate) fn follow(&self) -> watch::Receiver<EffectivePolicies> {
        self.policies.clone()
    }

    /// Holds what is in force now; `brokers` share it. Answers whether publishing and dispatch are
    /// limited.
    pub(super) fn apply(&self, now: Duration, brokers: u64) -> (bool, bool) {
        // Read under the lock: what is set last is what was in force last.
        let mut publish = self.publish.lock();
        let rate = self.policies.borrow().aggregate_rate;
        let share = |claimed: &AtomicU32| division::of_broker(claimed.load(Relaxed), brokers);
        publish.set(rate.publish.share(share(&self.publish_share)), now);
        let mut dispatch = self.dispatch.lock();
        dispatch.set(rate.dispatch.share(share(&self.dispatch_share)), now);
        (publish.is_limited(), dispatch.is_limited())
    }

    /// The limits of the cluster.
    pub(super) fn limits(&self) -> [Rate; 2] {
        let rate = self.policies.borrow().aggregate_rate;
        [rate.publish, rate.dispatch]
    }

    /// What was used here since this was asked last.
    pub(super) fn take_use(&self) -> [(Cost, bool); 2] {
        [
            self.publish.lock().take_use(),
            self.dispatch.lock().take_use(),
        ]
    }

    /// What this broker has claimed, in millionths.
    pub(super) fn claimed(&self) -> [u32; 2] {
        [&self.publish_share, &self.dispatch_share].map(|share| share.load(Relaxed))
    }

    /// This broker has claimed something else.
    pub(super) fn claim(&self, [publish, dispatch]: [u32; 2], now: Duration, brokers: u64) {
        self.publish_share.store(publish, Relaxed);
        self.dispatch_share.store(dispatch, Relaxed);
        self.apply(now, brokers);
    }
}

/// The rates of all tenants and namespaces with topics that are loaded here.
#[derive(Default)]
pub(crate) struct Aggregates {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    known: HashMap<PolicyScope, Weak<SharedRates>>,
    after_prune: usize,
}

impl Aggregates {
    /// The rates of all that are limited and in use.
    pub(super) fn limited(&self) -> Vec<(PolicyScope, Arc<SharedRates>)> {
        let state = self.state.lock();
        let live = state.known.iter().filter_map(|(scope, rates)| {
            let rates = rates.upgrade()?;
            Some((scope.clone(), rates))
        });
        let limited = |(_, rates): &(PolicyScope, Arc<SharedRates>)| {
            rates.limits().iter().any(|rate| !rate.is_unlimited())
        };
        live.filter(limited).collect()
    }

    /// The rates of a tenant or a namespace.
    pub(crate) async fn of(
        &self,
        policies: &PolicyTable,
        scope: PolicyScope,
    ) -> Result<Arc<SharedRates>, BrokerError> {
        let known = self.state.lock().known.get(&scope).and_then(Weak::upgrade);
        if let Some(known) = known {
            return Ok(known);
        }
        let followed = policies.of_scope(&scope).await?;
        let mut state = self.state.lock();
        // Another topic may have been first.
        if let Some(known) = state.known.get(&scope).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let rates = Arc::new(SharedRates {
            policies: followed,
            publish: Mutex::new(Limiter::unlimited()),
            dispatch: Mutex::new(Limiter::unlimited()),
            publish_share: AtomicU32::new(0),
            dispatch_share: AtomicU32::new(0),
        });
        state.known.insert(scope, Arc::downgrade(&rates));
        if state.known.len() > 2 * state.after_prune + PRUNE_ABOVE {
            state.known.retain(|_, rates| rates.strong_count() > 0);
            state.after_prune = state.known.len();
        }
        Ok(rates)
    }
}
