//! Attaching of consumers and readers. A durable subscription is created in the cursor log before
//! anybody is told that it exists.

use aquifer_log::error::LogError;
use aquifer_model::id::Index;
use aquifer_model::limits::SUBSCRIPTIONS_PER_TOPIC_MAX;
use aquifer_model::place::Place;
use aquifer_model::subscription::SubscriptionType;
use aquifer_model::topic::SubscriptionName;
use aquifer_protocol_api::consumer::{ConsumerSession, Subscribe, Subscribed};
use aquifer_protocol_api::error::{ApiError, ErrorKind};

use crate::cursor_log::Losses;
use crate::error::BrokerError;
use crate::subscription::cursor::Properties;
use crate::subscription::cursor::state::CursorState;
use crate::subscription::{Attach, ConsumerId, Subscription, SubscriptionSpec};
use crate::topic::Topic;
use crate::topic::consume::Waiting;
use crate::topic::consumer::Port;
use crate::topic::cursors::Effect;
use crate::topic::event::{LocatePurpose, Reply, SubscriptionId};
use crate::topic::outbox::Outbox;

impl Topic {
    pub(in crate::topic) fn subscribe(
        &mut self,
        request: Box<Subscribe>,
        reply: Reply<ConsumerSession>,
    ) {
        let checked = match self.refusal() {
            Some(error) => Err(error),
            None => self.check_incarnation(request.incarnation),
        };
        if let Err(error) = checked {
            let _ = reply.send(Err(error));
            return;
        }
        let Some(name) = request.subscription.clone() else {
            self.locate(request.start, LocatePurpose::Reader(request, reply));
            return;
        };
        if let Some(id) = self.subscriptions.by_name(&name) {
            let _ = reply.send(self.attach(id, &request));
            return;
        }
        // It may be one of those that are missing.
        if self.is_nameless(&name) {
            let _ = reply.send(Err(BrokerError::Uncertain(name.to_string())));
            return;
        }
        if let Some(waiting) = self.subscriptions.creating.get_mut(&name) {
            waiting.push(Waiting::Consumer(request, reply));
            return;
        }
        if let Err(error) = self.check_subscription_count() {
            let _ = reply.send(Err(error));
            return;
        }
        if request.kind == SubscriptionType::KeyShared {
            // Refused before anything is made durable; the state machine refuses it as well.
            let error = ApiError::new(
                ErrorKind::Unimplemented,
                "Key_Shared subscriptions are not built yet",
            )
            .advise("subscribe as shared, or as failover where order matters");
            let _ = reply.send(Err(error.into()));
            return;
        }
        let mut start = request.start;
        if self.losses.is_some() && start != Place::Earliest {
            // It may have been there, and left no trace: then it has a backlog, which is not lost.
            tracing::warn!(topic = %self.name, subscription = %name, "begins at the first message, since subscriptions may be missing");
            start = Place::Earliest;
        }
        self.subscriptions
            .creating
            .insert(name.clone(), vec![Waiting::Consumer(request, reply)]);
        self.locate(start, LocatePurpose::Create(name));
    }

    /// An administrator wants a subscription to exist: only its place is recorded, and whoever
    /// consumes first decides how it is shared.
    pub(in crate::topic) fn new_subscription(
        &mut self,
        name: SubscriptionName,
        place: Place,
        reply: Reply<Index>,
    ) {
        let subscriptions = &self.subscriptions;
        let is_there =
            subscriptions.by_name(&name).is_some() || subscriptions.creating.contains_key(&name);
        let checked = match &self.ending {
            Some(ending) => Err(ending.error.clone()),
            None if is_there => Err(BrokerError::AlreadyExists {
                what: "subscription",
                name: name.to_string(),
            }),
            None if self.is_nameless(&name) => Err(BrokerError::Uncertain(name.to_string())),
            None => self.check_subscription_count(),
        };
        if let Err(error) = checked {
            let _ = reply.send(Err(error));
            return;
        }
        let waiting = vec![Waiting::Admin(reply)];
        self.subscriptions.creating.insert(name.clone(), waiting);
        self.locate(place, LocatePurpose::Create(name));
    }

    /// Whether only changes of such a subscription were found in a damaged cursor log.
    fn is_nameless(&self, name: &SubscriptionName) -> bool {
        let has_it = |losses: &Losses| losses.nameless.contains(name);
        self.losses.as_ref().is_some_and(has_it)
    }

    fn check_subscription_count(&self) -> Result<(), BrokerError> {
        let count = self.subscriptions.slots.len() + self.subscriptions.creating.len();
        match count >= SUBSCRIPTIONS_PER_TOPIC_MAX {
            true => Err(BrokerError::Quota {
                what: "the number of subscriptions of a topic",
                max: SUBSCRIPTIONS_PER_TOPIC_MAX,
            }),
            false => Ok(()),
        }
    }

    /// A reader's place is known: nothing of it is durable.
    pub(in crate::topic) fn open_reader(
        &mut self,
        start: Index,
        request: &Subscribe,
        reply: Reply<ConsumerSession>,
    ) {
        if let Some(error) = self.refusal() {
            let _ = reply.send(Err(error));
            return;
        }
        let count = self.subscriptions.slots.len();
        if count >= SUBSCRIPTIONS_PER_TOPIC_MAX {
            let _ = reply.send(Err(BrokerError::Quota {
                what: "the number of subscriptions and readers of a topic",
                max: SUBSCRIPTIONS_PER_TOPIC_MAX,
            }));
            return;
        }
        let id = self
            .subscriptions
            .insert(Subscription::new(SubscriptionSpec {
                name: format!("reader-{}", self.subscriptions.next_id + 1),
                kind: SubscriptionType::Exclusive,
                durable: false,
                cursor: CursorState::new(start),
                delivered: Index(0),
                properties: Properties::new(),
                redelivered: Vec::new(),
                created_ms: self.shared.clock.wall_ms(),
            }));
        let session = self.attach(id, request);
        if session.is_err() {
            self.subscriptions.remove(id);
        }
        let _ = reply.send(session);
    }

    /// A new subscription's place is known: it is created durably before anybody attaches.
    pub(in crate::topic) fn create_subscription(
        &mut self,
        name: SubscriptionName,
        start: Result<Index, BrokerError>,
    ) {
        let start = match start {
            Ok(start) if self.subscriptions.creating.contains_key(&name) => start,
            Ok(_) => return,
            Err(error) => {
                let waiting = self.subscriptions.creating.remove(&name);
                let waiting = waiting.unwrap_or_default().into_iter();
                waiting.for_each(|who| who.refuse(&error));
                return;
            }
        };
        let kind = self
            .subscriptions
            .creating
            .get(&name)
            .and_then(|waiting| match waiting.first()? {
                Waiting::Consumer(request, _) => Some(request.kind),
                Waiting::Admin(_) => None,
            })
            .unwrap_or(SubscriptionType::Exclusive);
        let state = Subscription::new(SubscriptionSpec {
            name: name.to_string(),
            kind,
            durable: true,
            cursor: match self.losses {
                Some(_) => CursorState::new(start).after_loss(),
                None => CursorState::new(start),
            },
            delivered: Index(0),
            properties: Properties::new(),
            redelivered: Vec::new(),
            created_ms: self.shared.clock.wall_ms(),
        });
        let delta = crate::cursor_log::created(state.record());
        let id = self.subscriptions.insert(state);
        self.subscriptions.names.insert(name.clone(), id);
        // It exists for trimming from now on; clients attach when it is durable.
        if let Some(slot) = self.subscriptions.get_mut(id) {
            slot.held += 1;
        }
        self.cursors.log_change(delta, Effect::Created(id, name));
    }

    /// The creation is durable.
    pub(in crate::topic) fn created(&mut self, id: SubscriptionId, name: &SubscriptionName) {
        let Some(slot) = self.subscriptions.get_mut(id) else {
            return;
        };
        slot.held -= 1;
        let start = slot.state.mark_delete();
        for who in self.subscriptions.creating.remove(name).unwrap_or_default() {
            match who {
                Waiting::Consumer(request, reply) if !reply.is_closed() => {
                    let _ = reply.send(self.attach(id, &request));
                }
                Waiting::Consumer(..) => {}
                Waiting::Admin(reply) => drop(reply.send(Ok(start))),
            }
        }
    }

    fn attach(
        &mut self,
        id: SubscriptionId,
        request: &Subscribe,
    ) -> Result<ConsumerSession, BrokerError> {
        for (subscription, consumer) in self.subscriptions.dead_consumers_of(id) {
            self.consumer_gone(subscription, consumer);
        }
        self.replace_own_session(request)?;
        let budget = self
            .budget_of(id)
            .unwrap_or_else(|| self.rooms.deliveries.clone());
        let end = self.visible_end();
        self.subscriptions.next_consumer += 1;
        let consumer = ConsumerId(self.subscriptions.next_consumer);
        let slot = self
            .subscriptions
            .slots
            .get_mut(&id)
            .filter(|slot| !slot.deleting)
            .ok_or_else(|| {
                BrokerError::Unloading("the subscription is being deleted".to_owned())
            })?;
        if slot.is_uncertain {
            return Err(BrokerError::Uncertain(slot.state.name().to_owned()));
        }
        let kind = slot.state.kind();
        // A change of the type is logged, and clients that change it to and fro fill no memory.
        if kind != request.kind && self.cursors.is_full() {
            return Err(BrokerError::Log(LogError::Overloaded));
        }
        let notices = slot.state.attach(Attach {
            consumer,
            kind: request.kind,
            name: request.consumer.clone(),
            priority: request.priority,
        })?;
        if slot.state.kind() != kind {
            let delta = crate::cursor_log::updated(slot.state.name(), slot.state.update());
            self.cursors.log_change(delta, Effect::Recorded);
        }
        let (outbox, events) = Outbox::new(self.shared.config.consumer_queue_bytes_max, budget);
        slot.consumers.insert(consumer, outbox);
        self.subscriptions.instances.begun(request, id, consumer);
        let opened = Subscribed {
            incarnation: self.incarnation,
            owner_epoch: self.epoch,
            seek_epoch: slot.state.seek_epoch(),
            start: slot.state.start(),
            end,
        };
        self.notify(id, &notices);
        self.shared.metrics.consumers.add(1, &[]);
        self.counters.session_opened();
        self.last_used = self.now();
        Ok(ConsumerSession {
            opened,
            port: Box::new(Port {
                subscription: id,
                consumer,
                mailbox: self.mailbox.clone(),
                sent: 0,
            }),
            events,
        })
    }
}
