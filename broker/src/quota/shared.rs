//! Rates of all topics of a namespace or a tenant together, on this broker.
//!
//! A limit of the cluster is divided: each of the brokers that serve has an equal part of it.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use aquifer_model::policy::{EffectivePolicies, PolicyScope};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::error::BrokerError;
use crate::policies::PolicyTable;
use crate::quota::Limiter;

/// What is not in use any more is dropped when there is twice as much as after the last time, and
/// this.
const PRUNE_ABOVE: usize = 16;

/// The rates of one tenant or namespace.
pub(crate) struct SharedRates {
    policies: watch::Receiver<EffectivePolicies>,
    pub(super) publish: Mutex<Limiter>,
    pub(super) dispatch: Mutex<Limiter>,
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
        publish.set(rate.publish.share(brokers), now);
        let mut dispatch = self.dispatch.lock();
        dispatch.set(rate.dispatch.share(brokers), now);
        (publish.is_limited(), dispatch.is_limited())
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
        });
        state.known.insert(scope, Arc::downgrade(&rates));
        if state.known.len() > 2 * state.after_prune + PRUNE_ABOVE {
            state.known.retain(|_, rates| rates.strong_count() > 0);
            state.after_prune = state.known.len();
        }
        Ok(rates)
    }
}
