//! Attaching of consumers and readers. A durable subscription is created in the cursor log before
//! any client is told that it exists.

use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_model::subscription::{Properties, SubscriptionType};
use aquifer_model::topic::SubscriptionName;
use aquifer_protocol_api::consumer::{ConsumerSession, Subscribe};
use aquifer_protocol_api::error::{ApiError, ErrorKind};

use crate::cursor_log::{self, Losses};
use crate::error::BrokerError;
use crate::subscription::cursor::state::CursorState;
use crate::subscription::{ConsumerId, SubscriptionSpec};
use crate::topic::attachments::slot::being_deleted;
use crate::topic::attachments::{Attachments, Waiting, refuse};
use crate::topic::context::TopicContext;
use crate::topic::cursors::{Cursors, Effect};
use crate::topic::event::{LocatePurpose, Reply, SubscriptionId};

impl Attachments {
    /// Attaches a consumer or reader, at once or when its subscription is created.
    pub(in crate::topic) fn subscribe(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        request: Box<Subscribe>,
        reply: Reply<ConsumerSession>,
    ) {
        let checked = match cx.refusal() {
            Some(error) => Err(error),
            None => cx.check_incarnation(request.incarnation),
        };
        if let Err(error) = checked {
            let _ = reply.send(Err(error));
            return;
        }
        let Some(name) = request.subscription.clone() else {
            let start = request.start;
            self.locate(cx, cursors, start, LocatePurpose::Reader(request, reply));
            return;
        };
        if let Err(error) = self.check_consumer(cx, &request) {
            let _ = reply.send(Err(error));
            return;
        }
        if let Some(id) = self.subscriptions.by_name(&name) {
            let _ = reply.send(self.attach(cx, cursors, id, &request));
            return;
        }
        if let Some(waiting) = self.creating.get_mut(&name) {
            waiting.push(Waiting::Consumer(request, reply));
            return;
        }
        let checked = match cx.policies.borrow().auto_create_subscriptions {
            true => self.check_creation(cx, &name, request.kind),
            false => Err(BrokerError::no_subscription(&name)),
        };
        if let Err(error) = checked {
            let _ = reply.send(Err(error));
            return;
        }
        let mut start = request.start;
        if !self.is_whole() && start != Place::Earliest {
            // It may have been there, and left no trace: then it has a backlog, which is not lost.
            tracing::warn!(topic = %cx.name, subscription = %name, "begins at the first message, since subscriptions may be missing");
            start = Place::Earliest;
        }
        let waiting = vec![Waiting::Consumer(request, reply)];
        self.creating.insert(name.clone(), waiting);
        self.locate(cx, cursors, start, LocatePurpose::Create(name));
    }

    /// Creates a subscription for an administrator: only its place and properties are recorded, and
    /// the first consumer decides how it is shared.
    pub(in crate::topic) fn create(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        name: SubscriptionName,
        (place, properties): (Place, Properties),
        reply: Reply<Index>,
    ) {
        let exists =
            self.subscriptions.by_name(&name).is_some() || self.creating.contains_key(&name);
        let checked = match cx.life.ended() {
            Some(error) => Err(error),
            None if exists => Err(BrokerError::AlreadyExists {
                what: "subscription",
                name: name.to_string(),
            }),
            None => self.check_creation(cx, &name, SubscriptionType::Exclusive),
        };
        if let Err(error) = checked {
            let _ = reply.send(Err(error));
            return;
        }
        let waiting = vec![Waiting::Admin(properties, reply)];
        self.creating.insert(name.clone(), waiting);
        self.locate(cx, cursors, place, LocatePurpose::Create(name));
    }

    /// Refuses the creation of a subscription before anything is made durable.
    fn check_creation(
        &self,
        cx: &TopicContext,
        name: &SubscriptionName,
        kind: SubscriptionType,
    ) -> Result<(), BrokerError> {
        // Only changes of it were found in a damaged cursor log: it may be one that is missing.
        let is_nameless = |losses: &Losses| losses.nameless.contains(name);
        if self.losses.as_ref().is_some_and(is_nameless) {
            return Err(BrokerError::Uncertain(name.to_string()));
        }
        self.check_subscriptions(cx)?;
        if kind == SubscriptionType::KeyShared {
            // The state machine refuses it as well.
            let error = ApiError::new(
                ErrorKind::Unimplemented,
                "Key_Shared subscriptions are not built yet",
            );
            let advice = "subscribe as shared, or as failover where order matters";
            return Err(error.advise(advice).into());
        }
        Ok(())
    }

    /// Refuses one more subscription or reader than policy allows.
    fn check_subscriptions(&self, cx: &TopicContext) -> Result<(), BrokerError> {
        let used = self.subscriptions.len() + self.creating.len();
        let max = cx.policies.borrow().counts.subscriptions;
        let what = "subscriptions and readers";
        cx.check_count("counts.subscriptions", what, used as u64, max)
    }

    /// Refuses a consumer of a type that policy does not allow, and one more than it does; those
    /// that are there stay.
    fn check_consumer(
        &mut self,
        cx: &TopicContext,
        request: &Subscribe,
    ) -> Result<(), BrokerError> {
        let (types, max) = {
            let policies = cx.policies.borrow();
            (policies.subscription_types, policies.counts.consumers)
        };
        // Readers share nothing.
        if request.subscription.is_some() && !types.has(request.kind) {
            return Err(BrokerError::SubscriptionType {
                topic: cx.name.to_string(),
                kind: request.kind,
            });
        }
        let Some(max) = max else {
            return Ok(());
        };
        self.drop_dead(cx);
        let consumers = self.subscriptions.iter().map(|slot| slot.consumers.len());
        let consumers = consumers.sum::<usize>() as u64;
        // One that comes back takes its own place.
        let is_back = matches!(self.instances.replaced_by(request), Ok(Some(_)));
        let used = consumers.saturating_sub(u64::from(is_back));
        cx.check_count("counts.consumers", "consumers and readers", used, max)
    }

    /// A reader's place is known: nothing of it is durable.
    pub(super) fn open_reader(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        start: Index,
        request: &Subscribe,
        reply: Reply<ConsumerSession>,
    ) {
        if let Some(error) = cx.refusal() {
            let _ = reply.send(Err(error));
            return;
        }
        let checked = self.check_subscriptions(cx);
        if let Err(error) = checked.and_then(|()| self.check_consumer(cx, request)) {
            let _ = reply.send(Err(error));
            return;
        }
        let spec = SubscriptionSpec {
            name: self.subscriptions.next_reader(),
            kind: SubscriptionType::Exclusive,
            durable: false,
            cursor: CursorState::new(start),
            delivered: Index(0),
            properties: Properties::new(),
            redelivered: Vec::new(),
            created_ms: cx.wall_ms(),
        };
        let id = self.subscriptions.insert(None, spec).id;
        let session = self.attach(cx, cursors, id, request);
        if session.is_err() {
            self.subscriptions.remove(id);
        }
        let _ = reply.send(session);
    }

    /// A new subscription's place is known: it is created durably before any client attaches.
    pub(super) fn create_at(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        name: SubscriptionName,
        start: Result<Index, BrokerError>,
    ) {
        let start = match start {
            Ok(start) => start,
            Err(error) => {
                let waiting = self.creating.remove(&name);
                return refuse(waiting.unwrap_or_default(), &error);
            }
        };
        let Some(waiting) = self.creating.get(&name) else {
            return;
        };
        let (kind, properties) = match waiting.first() {
            Some(Waiting::Consumer(request, _)) => (request.kind, Properties::new()),
            Some(Waiting::Admin(properties, _)) => {
                (SubscriptionType::Exclusive, properties.clone())
            }
            None => (SubscriptionType::Exclusive, Properties::new()),
        };
        let spec = SubscriptionSpec {
            name: name.to_string(),
            kind,
            durable: true,
            cursor: match self.losses {
                Some(_) => CursorState::new(start).after_loss(),
                None => CursorState::new(start),
            },
            delivered: Index(0),
            properties,
            redelivered: Vec::new(),
            created_ms: cx.wall_ms(),
        };
        let slot = self.subscriptions.insert(Some(name.clone()), spec);
        // It exists for trimming from now on; clients attach when it is durable.
        slot.held += 1;
        let delta = cursor_log::created(slot.state.record());
        cursors.log_change(delta, Effect::Created(slot.id, name));
    }

    /// The creation is durable.
    pub(super) fn created(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        id: SubscriptionId,
        name: &SubscriptionName,
    ) {
        let start = self.with(cx, id, |slot| {
            slot.held -= 1;
            slot.state.mark_delete()
        });
        let Some(start) = start else {
            return;
        };
        for request in self.creating.remove(name).unwrap_or_default() {
            match request {
                Waiting::Consumer(request, reply) if !reply.is_closed() => {
                    let _ = reply.send(self.attach(cx, cursors, id, &request));
                }
                Waiting::Consumer(..) => {}
                Waiting::Admin(_, reply) => drop(reply.send(Ok(start))),
            }
        }
    }

    fn attach(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        id: SubscriptionId,
        request: &Subscribe,
    ) -> Result<ConsumerSession, BrokerError> {
        self.with(cx, id, |slot| slot.drop_dead(cx));
        if let Some(older) = self.instances.replaced_by(request)? {
            let error = BrokerError::ConsumerReplaced.into();
            self.with(cx, older.subscription, |slot| {
                slot.fail(cx, older.consumer, error);
            });
        }
        self.next_consumer += 1;
        let consumer = ConsumerId(self.next_consumer);
        let session = self
            .with(cx, id, |slot| slot.attach(cx, cursors, consumer, request))
            .unwrap_or_else(|| Err(being_deleted()))?;
        self.instances.begun(request, id, consumer);
        self.last_used = cx.now();
        Ok(session)
    }
}
