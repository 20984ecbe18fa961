//! Which session each consumer object has: a client that lost its connection without the broker
//! noticing comes back as a newer epoch of the same instance, and must not wait for itself.

use std::collections::HashMap;

use aquifer_model::id::ConsumerInstance;
use aquifer_protocol_api::consumer::Subscribe;

use crate::error::BrokerError;
use crate::subscription::ConsumerId;
use crate::topic::event::SubscriptionId;

/// The sessions of instances; at most one each.
#[derive(Default)]
pub(super) struct Instances {
    sessions: HashMap<ConsumerInstance, Session>,
    instances: HashMap<ConsumerId, ConsumerInstance>,
}

/// The session of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Session {
    epoch: u64,
    pub(super) subscription: SubscriptionId,
    pub(super) consumer: ConsumerId,
}

impl Instances {
    /// The older session of the consumer that asks, which it replaces.
    ///
    /// # Errors
    /// When the session is newer than the request.
    pub(super) fn replaced_by(&self, request: &Subscribe) -> Result<Option<Session>, BrokerError> {
        let known = request.instance.and_then(|of| self.sessions.get(&of));
        match known {
            Some(session) if session.epoch > request.epoch => Err(BrokerError::ConsumerReplaced),
            known => Ok(known.copied()),
        }
    }

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
