//! Consumers, readers and their subscriptions: attaches clients, drives the pure state machine of
//! each subscription, reads for it, hands out what it says.
//!
//! Invariants: a subscription has at most one read aside at a time, so that a slow one costs a
//! bounded amount and delays nobody; a read that fails is tried again here, and no consumer hears of it
//! but of what is damaged; what the tail cache holds is served at once and shared by all;
//! nothing is delivered between a seek and the moment it is durable.

mod attach;
mod instances;
pub(super) mod room;
mod serve;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use aquifer_log::ReadPoint;
use aquifer_log::error::LogError;
use aquifer_model::id::{Index, TopicIncarnation};
use aquifer_model::topic::SubscriptionName;
use aquifer_protocol_api::consumer::{ConsumerEvent, ConsumerSession, Subscribe};
use aquifer_protocol_api::error::ApiError;
use aquifer_runtime::budget::{ByteBudget, BytePermit};

use self::instances::Instances;
use crate::error::BrokerError;
use crate::subscription::{
    AckOutcome, ConsumerId, NextRead, Notice, Subscription, SubscriptionSpec,
};
use crate::topic::Topic;
use crate::topic::cursors::Effect;
use crate::topic::event::{ConsumerRequest, LocatePurpose, Reply, SubscriptionId};
use crate::topic::outbox::Outbox;

/// First and longest pause after a read that storage did not answer.
const READ_RETRY_MIN: Duration = Duration::from_millis(50);
const READ_RETRY_MAX: Duration = Duration::from_secs(5);

/// The subscriptions and readers of a topic.
#[derive(Default)]
pub(super) struct Subscriptions {
    slots: BTreeMap<SubscriptionId, Slot>,
    names: HashMap<SubscriptionName, SubscriptionId>,
    /// Names that are being created, with who waits for them.
    creating: HashMap<SubscriptionName, Vec<Waiting>>,
    /// To be served in this or a later turn, in order.
    ready: VecDeque<SubscriptionId>,
    /// At the end of the log, waiting for new messages.
    at_end: BTreeSet<SubscriptionId>,
    /// When something that is held back is due, ms since the Unix epoch, and of which subscription:
    /// one entry for each that has such messages.
    due: BTreeSet<(u64, SubscriptionId)>,
    next_id: u64,
    next_consumer: u64,
    instances: Instances,
}

/// Who waits for a subscription that is being created.
enum Waiting {
    /// A consumer that is to be attached.
    Consumer(Box<Subscribe>, Reply<ConsumerSession>),
    /// An administrator.
    Admin(Reply<Index>),
}

impl Waiting {
    fn refuse(self, error: &BrokerError) {
        // Whoever went away needs no answer.
        match self {
            Waiting::Consumer(_, reply) => drop(reply.send(Err(error.clone()))),
            Waiting::Admin(reply) => drop(reply.send(Err(error.clone()))),
        }
    }
}

/// One subscription with its clients.
pub(super) struct Slot {
    pub(super) state: Subscription,
    pub(super) consumers: BTreeMap<ConsumerId, Outbox>,
    /// Where the next read continues; away while a read is aside.
    point: Option<ReadPoint>,
    /// A read is aside, for this.
    reading: Option<NextRead>,
    /// A read failed, and a timer runs until the next.
    pausing: bool,
    /// How long after the next failure.
    pause: Duration,
    /// What its deliveries take their bytes from, once there are some.
    budget: Option<ByteBudget>,
    /// Room that it has waited for.
    room: Option<BytePermit>,
    awaits_room: bool,
    /// What the last entry cost that was larger than expected.
    entry_bytes: usize,
    /// Seeks that are not durable yet, and a creation or deletion likewise: nothing is delivered.
    pub(super) held: u32,
    queued: bool,
    /// Its entry among those that are due.
    due_ms: Option<u64>,
    /// It is being deleted: nobody attaches any more.
    pub(super) deleting: bool,
    /// What it has acknowledged is not known for sure: nobody attaches before somebody has decided.
    pub(super) is_uncertain: bool,
}

impl Slot {
    fn new(state: Subscription) -> Slot {
        Slot {
            state,
            consumers: BTreeMap::new(),
            point: None,
            reading: None,
            pausing: false,
            pause: READ_RETRY_MIN,
            budget: None,
            room: None,
            awaits_room: false,
            entry_bytes: 0,
            held: 0,
            queued: false,
            due_ms: None,
            deleting: false,
            is_uncertain: false,
        }
    }
}

impl Subscriptions {
    /// Takes in a subscription that was recovered.
    pub(super) fn recovered(
        &mut self,
        name: SubscriptionName,
        spec: SubscriptionSpec,
        is_uncertain: bool,
    ) {
        let id = self.insert(Subscription::new(spec));
        self.names.insert(name, id);
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.is_uncertain = is_uncertain;
        }
    }

    /// All of them.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.slots.values_mut()
    }

    fn insert(&mut self, state: Subscription) -> SubscriptionId {
        self.next_id += 1;
        let id = SubscriptionId(self.next_id);
        self.slots.insert(id, Slot::new(state));
        id
    }

    pub(super) fn get(&self, id: SubscriptionId) -> Option<&Slot> {
        self.slots.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: SubscriptionId) -> Option<&mut Slot> {
        self.slots.get_mut(&id)
    }

    pub(super) fn by_name(&self, name: &SubscriptionName) -> Option<SubscriptionId> {
        self.names.get(name).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.slots.values()
    }

    pub(super) fn remove(&mut self, id: SubscriptionId) -> Option<Slot> {
        let slot = self.slots.remove(&id)?;
        self.names.retain(|_, known| *known != id);
        self.at_end.remove(&id);
        if let Some(due_ms) = slot.due_ms {
            self.due.remove(&(due_ms, id));
        }
        Some(slot)
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub(super) fn has_consumers(&self) -> bool {
        !self.creating.is_empty() || self.slots.values().any(|slot| !slot.consumers.is_empty())
    }

    /// Whether something aside will come back.
    pub(super) fn is_waiting(&self) -> bool {
        !self.creating.is_empty() || self.slots.values().any(|slot| slot.reading.is_some())
    }

    pub(super) fn dead_consumers(&self) -> Vec<(SubscriptionId, ConsumerId)> {
        let mut dead = Vec::new();
        for (id, slot) in &self.slots {
            let closed = slot.consumers.iter().filter(|(_, out)| out.is_closed());
            dead.extend(closed.map(|(consumer, _)| (*id, *consumer)));
        }
        dead
    }

    /// Has a subscription served soon.
    pub(super) fn wake(&mut self, id: SubscriptionId) {
        if let Some(slot) = self.slots.get_mut(&id)
            && !slot.queued
        {
            slot.queued = true;
            self.ready.push_back(id);
        }
    }

    /// Notes when a subscription is to be served again by time, after it was asked for a read.
    fn note_due(&mut self, id: SubscriptionId) {
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        let due_ms = slot.state.next_due_ms();
        if slot.due_ms == due_ms {
            return;
        }
        if let Some(before) = std::mem::replace(&mut slot.due_ms, due_ms) {
            self.due.remove(&(before, id));
        }
        if let Some(due_ms) = due_ms {
            self.due.insert((due_ms, id));
        }
    }

    /// When the first of them is due, ms since the Unix epoch.
    pub(super) fn next_due_ms(&self) -> Option<u64> {
        self.due.first().map(|(due_ms, _)| *due_ms)
    }

    /// Has those served that are due.
    pub(super) fn wake_due(&mut self, now_ms: u64) {
        while let Some(&(due_ms, id)) = self.due.first()
            && due_ms <= now_ms
        {
            self.due.pop_first();
            if let Some(slot) = self.slots.get_mut(&id) {
                slot.due_ms = None;
            }
            self.wake(id);
        }
    }

    /// New messages are there.
    pub(super) fn wake_at_end(&mut self) {
        for id in std::mem::take(&mut self.at_end) {
            self.wake(id);
        }
    }

    /// The log begins at `first` now.
    pub(super) fn trimmed(&mut self, first: Index) {
        for slot in self.slots.values_mut() {
            slot.state.trimmed(first);
        }
    }

    pub(super) fn refuse_waiting(&mut self, error: &BrokerError) {
        for (_, waiting) in std::mem::take(&mut self.creating) {
            waiting.into_iter().for_each(|who| who.refuse(error));
        }
    }
}

impl Topic {
    pub(super) fn check_incarnation(
        &self,
        known: Option<TopicIncarnation>,
    ) -> Result<(), BrokerError> {
        match known {
            Some(known) if known != self.incarnation => {
                Err(BrokerError::Incarnation(self.name.to_string()))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn notify(&mut self, id: SubscriptionId, notices: &[Notice]) {
        let Some(slot) = self.subscriptions.get_mut(id) else {
            return;
        };
        for notice in notices {
            let Notice::Active { consumer, active } = notice;
            if let Some(out) = slot.consumers.get_mut(consumer) {
                out.push(ConsumerEvent::Active(*active));
            }
        }
    }

    pub(super) fn consumer_request(
        &mut self,
        id: SubscriptionId,
        consumer: ConsumerId,
        request: ConsumerRequest,
    ) {
        let epoch = self.epoch();
        let Some(slot) = self.subscriptions.get_mut(id) else {
            return;
        };
        let Some(out) = slot.consumers.get_mut(&consumer) else {
            return;
        };
        match request {
            ConsumerRequest::Credit { messages, bytes } => {
                out.grant(messages, bytes);
                let (messages, bytes) = out.credit();
                slot.state.credit(consumer, messages, bytes);
            }
            ConsumerRequest::Acknowledge(_) | ConsumerRequest::Seek { .. }
                if self.cursors.is_full() =>
            {
                self.fail_consumer(id, consumer, BrokerError::Log(LogError::Overloaded).into());
            }
            ConsumerRequest::Acknowledge(ack) => {
                let request_id = ack.request_id;
                let foreign = ack.owner_epoch != epoch;
                let outcome = slot.state.acknowledge(consumer, &ack, epoch);
                self.acknowledged(id, consumer, request_id, foreign, outcome);
            }
            ConsumerRequest::NegativeAcknowledge(negative) => {
                slot.state.negative_acknowledge(consumer, &negative, epoch);
            }
            ConsumerRequest::Seek { request_id, place } => {
                let purpose = LocatePurpose::Seek {
                    subscription: id,
                    consumer,
                    request_id,
                };
                self.locate(place, purpose);
            }
        }
        self.subscriptions.wake(id);
        self.watch_consumer(id, consumer);
    }

    fn acknowledged(
        &mut self,
        id: SubscriptionId,
        consumer: ConsumerId,
        request_id: u64,
        foreign: bool,
        outcome: AckOutcome,
    ) {
        let Some(slot) = self.subscriptions.get(id) else {
            return;
        };
        let confirm = (request_id != 0).then_some((consumer, request_id));
        match outcome {
            AckOutcome::Log(delta) if slot.state.is_durable() => {
                let logged = crate::cursor_log::acknowledged(slot.state.name(), &delta);
                self.cursors
                    .log_change(logged, Effect::Acknowledged { id, delta, confirm });
            }
            // What another owner delivered may come again: nothing is confirmed.
            AckOutcome::Stale if foreign => {}
            // A stale one is void by a seek, whose record may still be on its way.
            AckOutcome::Log(_) | AckOutcome::Unchanged | AckOutcome::Stale => {
                if let Some((consumer, request_id)) = confirm {
                    let effect = Effect::Confirm {
                        id,
                        consumer,
                        request_id,
                    };
                    if let Some(effect) = self.cursors.after_pending(effect) {
                        self.apply(effect);
                    }
                }
            }
            // Only this request is wrong: what else the session does goes on.
            AckOutcome::Invalid(error) => {
                let refused = ConsumerEvent::AcknowledgeRefused { request_id, error };
                self.tell(id, consumer, refused);
            }
        }
    }

    pub(super) fn tell(&mut self, id: SubscriptionId, consumer: ConsumerId, event: ConsumerEvent) {
        if let Some(slot) = self.subscriptions.get_mut(id)
            && let Some(out) = slot.consumers.get_mut(&consumer)
        {
            out.push(event);
            self.watch_consumer(id, consumer);
        }
    }

    /// Sees to it that a consumer that was held back gets on when its client has read on.
    fn watch_consumer(&mut self, id: SubscriptionId, consumer: ConsumerId) {
        let Some(slot) = self.subscriptions.slots.get_mut(&id) else {
            return;
        };
        let Some(out) = slot.consumers.get_mut(&consumer) else {
            return;
        };
        if out.is_overfull() {
            let error = BrokerError::SlowClient;
            self.fail_consumer(id, consumer, error.into());
            return;
        }
        if out.is_throttled() && self.ending.is_none() {
            out.watch(id, consumer, &self.mailbox, &self.shared.tasks);
        }
    }

    pub(super) fn drained(&mut self, id: SubscriptionId, consumer: ConsumerId) {
        let Some(slot) = self.subscriptions.get_mut(id) else {
            return;
        };
        let Some(out) = slot.consumers.get_mut(&consumer) else {
            return;
        };
        if out.is_closed() {
            self.consumer_gone(id, consumer);
            return;
        }
        out.drained();
        let (messages, bytes) = out.credit();
        slot.state.credit(consumer, messages, bytes);
        self.subscriptions.wake(id);
        self.watch_consumer(id, consumer);
    }

    fn fail_consumer(&mut self, id: SubscriptionId, consumer: ConsumerId, error: ApiError) {
        if let Some(slot) = self.subscriptions.get_mut(id)
            && let Some(out) = slot.consumers.get_mut(&consumer)
        {
            tracing::debug!(%error, "consumer session failed");
            out.fail(error);
            self.consumer_gone(id, consumer);
        }
    }

    pub(super) fn fail_consumers(&mut self, error: &BrokerError) {
        let ids: Vec<SubscriptionId> = self.subscriptions.slots.keys().copied().collect();
        for id in ids {
            self.fail_consumers_of(id, error);
        }
    }

    pub(super) fn fail_consumers_of(&mut self, id: SubscriptionId, error: &BrokerError) {
        let Some(slot) = self.subscriptions.get(id) else {
            return;
        };
        let consumers: Vec<ConsumerId> = slot.consumers.keys().copied().collect();
        for consumer in consumers {
            self.fail_consumer(id, consumer, error.clone().into());
        }
    }

    /// A client has closed its session: what it holds is free at once, and what it asked for is still
    /// answered.
    pub(super) fn consumer_closed(&mut self, id: SubscriptionId, consumer: ConsumerId) {
        let Some(slot) = self.subscriptions.get_mut(id) else {
            return;
        };
        if !slot.consumers.contains_key(&consumer) {
            return;
        }
        if slot.state.is_durable() {
            let notices = slot.state.detach(consumer);
            self.notify(id, &notices);
            self.subscriptions.wake(id);
        }
        let effect = Effect::Closed(id, consumer);
        if let Some(effect) = self.cursors.after_pending(effect) {
            self.apply(effect);
        }
    }

    pub(super) fn consumer_gone(&mut self, id: SubscriptionId, consumer: ConsumerId) {
        let Some(slot) = self.subscriptions.get_mut(id) else {
            return;
        };
        if slot.consumers.remove(&consumer).is_none() {
            return;
        }
        self.subscriptions.instances.ended(consumer);
        self.shared.metrics.consumers.add(-1, &[]);
        self.counters.session_closed();
        self.last_used = self.now();
        let Some(slot) = self.subscriptions.get_mut(id) else {
            return;
        };
        let notices = slot.state.detach(consumer);
        if !slot.state.is_durable() {
            self.subscriptions.remove(id);
            return;
        }
        self.notify(id, &notices);
        self.subscriptions.wake(id);
    }
}

impl Subscriptions {
    fn dead_consumers_of(&self, id: SubscriptionId) -> Vec<(SubscriptionId, ConsumerId)> {
        let Some(slot) = self.slots.get(&id) else {
            return Vec::new();
        };
        let closed = slot.consumers.iter().filter(|(_, out)| out.is_closed());
        closed.map(|(consumer, _)| (id, *consumer)).collect()
    }
}
