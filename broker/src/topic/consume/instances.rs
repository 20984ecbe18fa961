//! Which session each consumer object has: a client that lost its connection without the broker
//! noticing comes back as a newer epoch of the same instance, and must not wait for itself.

use std::collections::HashMap;

use aquifer_model::id::ConsumerInstance;
use aquifer_protocol_api::consumer::Subscribe;

use crate::error::BrokerError;
use crate::subscription::ConsumerId;
use crate::topic::Topic;
use crate::topic::event::SubscriptionId;

/// The sessions of instances; at most one each.
#[derive(Default)]
pub(super) struct Instances {
    sessions: HashMap<ConsumerInstance, Session>,
    instances: HashMap<ConsumerId, ConsumerInstance>,
}

#[derive(Clone, Copy)]
struct Session {
    epoch: u64,
    subscription: SubscriptionId,
    consumer: ConsumerId,
}

impl Instances {
    /// A session begins; the one before of its instance is over.
    pub(super) fn begun(
        &mut self,
        request: &Subscribe,
        subscription: SubscriptionId,
        consumer: ConsumerId,
    ) {
        let Some(instance) = request.instance else {
            return;
        };
        let session = Session {
            epoch: request.epoch,
            subscription,
            consumer,
        };
        if let Some(before) = self.sessions.insert(instance, session) {
            self.instances.remove(&before.consumer);
        }
        self.instances.insert(consumer, instance);
    }

    /// A session is over.
    pub(super) fn ended(&mut self, consumer: ConsumerId) {
        if let Some(instance) = self.instances.remove(&consumer) {
            self.sessions.remove(&instance);
        }
    }
}

impl Topic {
    /// Ends the older session of the consumer that asks, if it has one.
    pub(super) fn replace_own_session(&mut self, request: &Subscribe) -> Result<(), BrokerError> {
        let sessions = &self.subscriptions.instances.sessions;
        let known = request
            .instance
            .and_then(|instance| sessions.get(&instance).copied());
        let Some(session) = known else {
            return Ok(());
        };
        if session.epoch > request.epoch {
            return Err(BrokerError::ConsumerReplaced);
        }
        let error = BrokerError::ConsumerReplaced;
        self.fail_consumer(session.subscription, session.consumer, error.into());
        Ok(())
    }
}
