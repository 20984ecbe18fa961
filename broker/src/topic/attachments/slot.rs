//! One subscription or reader with its clients: sessions, and what a session asks for.
//!
//! What an event leaves behind is noted here, and taken by the set of all subscriptions after the
//! event ([`Wants`]).

use std::collections::BTreeMap;

use aquifer_log::error::LogError;
use aquifer_model::id::{Index, SeekEpoch};
use aquifer_model::place::Place;
use aquifer_protocol_api::consumer::{
    Acknowledge, ConsumerEvent, ConsumerSession, Subscribe, Subscribed,
};
use aquifer_protocol_api::error::ApiError;
use aquifer_protocol_api::session::SessionEnd;

use crate::cursor_log;
use crate::error::BrokerError;
use crate::quota::pacing::Pacing;
use crate::subscription::cursor::AckDelta;
use crate::subscription::{AckOutcome, Attach, ConsumerId, Notice, Subscription};
use crate::topic::attachments::delivery_budget::DeliveryBudget;
use crate::topic::attachments::outbox::Outbox;
use crate::topic::attachments::port::Port;
use crate::topic::attachments::reads::Reads;
use crate::topic::context::TopicContext;
use crate::topic::cursors::{Cursors, Effect};
use crate::topic::event::{ConsumerRequest, Seeker, SubscriptionId};

/// See the module.
pub(super) struct Slot {
    pub(super) id: SubscriptionId,
    pub(super) state: Subscription,
    pub(super) consumers: BTreeMap<ConsumerId, Outbox>,
    pub(super) reads: Reads,
    pub(super) delivery_budget: DeliveryBudget,
    pub(super) pacing: Pacing,
    /// Seeks that are not durable yet, and a creation or deletion likewise: nothing is delivered.
    pub(super) held: u32,
    /// It is being deleted: no client attaches any more.
    pub(super) deleting: bool,
    /// What it has acknowledged is not known for sure: no client attaches before an operator has
    /// decided.
    pub(super) is_uncertain: bool,
    /// It is among those that are ready.
    pub(super) queued: bool,
    /// Its entry among those that are due.
    pub(super) due_ms: Option<u64>,
    wants: Wants,
    /// Sessions that ended.
    ended: Vec<ConsumerId>,
}

/// What a subscription waits for after an event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wants {
    /// To be served.
    pub(super) turn: bool,
    /// The end of the log to move.
    pub(super) new_messages: bool,
    /// The time at which something that is held back is due, if something is.
    pub(super) time: bool,
}

/// A place to which a consumer wants to move.
pub(super) struct SeekWanted {
    pub(super) request_id: u64,
    pub(super) place: Place,
}

impl Slot {
    pub(super) fn new(id: SubscriptionId, state: Subscription) -> Slot {
        Slot {
            id,
            state,
            consumers: BTreeMap::new(),
            reads: Reads::default(),
            delivery_budget: DeliveryBudget::default(),
            pacing: Pacing::default(),
            held: 0,
            deleting: false,
            is_uncertain: false,
            queued: false,
            due_ms: None,
            wants: Wants::default(),
            ended: Vec::new(),
        }
    }

    /// Asks to be served soon.
    pub(super) fn wake(&mut self) {
        self.wants.turn = true;
    }

    /// Asks to be served when there are new messages.
    pub(super) fn wait_for_messages(&mut self) {
        self.wants.new_messages = true;
    }

    /// Asks to be served when what is held back is due.
    pub(super) fn wait_for_time(&mut self) {
        self.wants.time = true;
    }

    pub(super) fn take_wants(&mut self) -> Wants {
        std::mem::take(&mut self.wants)
    }

    pub(super) fn take_ended(&mut self) -> Vec<ConsumerId> {
        std::mem::take(&mut self.ended)
    }

    /// Begins a session.
    pub(super) fn attach(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        consumer: ConsumerId,
        request: &Subscribe,
    ) -> Result<ConsumerSession, BrokerError> {
        if self.deleting {
            return Err(being_deleted());
        }
        if self.is_uncertain {
            return Err(BrokerError::Uncertain(self.state.name().to_owned()));
        }
        let kind = self.state.kind();
        // A change of the type is logged, and clients that change it to and fro fill no memory.
        if kind != request.kind && cursors.is_full() {
            return Err(BrokerError::Log(LogError::Overloaded));
        }
        let notices = self.state.attach(Attach {
            consumer,
            kind: request.kind,
            name: request.consumer.clone(),
            priority: request.priority,
        })?;
        if self.state.kind() != kind {
            let delta = cursor_log::updated(self.state.name(), self.state.update());
            cursors.log_change(delta, Effect::Recorded);
        }
        self.state.set_unacked(cx.policies.borrow().unacked);
        let budget = self.delivery_budget.budget(cx);
        let (outbox, events) = Outbox::new(cx.shared.config.consumer_queue_bytes_max, budget);
        self.consumers.insert(consumer, outbox);
        let opened = Subscribed {
            incarnation: cx.incarnation,
            owner_epoch: cx.epoch,
            seek_epoch: self.state.seek_epoch(),
            start: self.state.start(),
            end: cx.visible_end(),
        };
        self.notify(cx, &notices);
        cx.shared.metrics.consumers.add(1, &[]);
        cx.counters.session_opened();
        Ok(ConsumerSession {
            opened,
            port: Box::new(Port {
                subscription: self.id,
                consumer,
                mailbox: cx.mailbox.clone(),
                sent: 0,
            }),
            events,
            end: SessionEnd::never(),
        })
    }

    /// Handles a request of a session, unless it has ended. Answers the place to which the
    /// subscription is to move.
    pub(super) fn request(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        consumer: ConsumerId,
        request: ConsumerRequest,
    ) -> Option<SeekWanted> {
        let out = self.consumers.get_mut(&consumer)?;
        let mut wanted = None;
        match request {
            ConsumerRequest::Credit { messages, bytes } => {
                out.grant(messages, bytes);
            }
            // Only this request has to come again later: what else the session does goes on.
            ConsumerRequest::Acknowledge(ack) if cursors.is_full() => {
                let (request_id, error) = (ack.request_id, overloaded());
                let refused = ConsumerEvent::AcknowledgeRefused { request_id, error };
                self.tell(cx, consumer, refused);
            }
            ConsumerRequest::Seek { request_id, .. } if cursors.is_full() => {
                let error = overloaded();
                self.tell(
                    cx,
                    consumer,
                    ConsumerEvent::SeekRefused { request_id, error },
                );
            }
            ConsumerRequest::Acknowledge(ack) => self.acknowledge(cx, cursors, consumer, &ack),
            ConsumerRequest::NegativeAcknowledge(negative) => {
                self.state
                    .negative_acknowledge(consumer, &negative, cx.epoch);
            }
            ConsumerRequest::Seek { request_id, place } => {
                wanted = Some(SeekWanted { request_id, place });
            }
        }
        self.allow(cx, consumer);
        self.wake();
        wanted
    }

    fn acknowledge(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        consumer: ConsumerId,
        ack: &Acknowledge,
    ) {
        let (id, request_id) = (self.id, ack.request_id);
        let foreign = ack.owner_epoch != cx.epoch;
        let confirm = (request_id != 0).then_some((consumer, request_id));
        match self.state.acknowledge(consumer, ack, cx.epoch) {
            AckOutcome::Log(delta) if self.state.is_durable() => {
                let logged = cursor_log::acknowledged(self.state.name(), &delta);
                cursors.log_change(logged, Effect::Acknowledged { id, delta, confirm });
            }
            // What another owner delivered may come again: nothing is confirmed.
            AckOutcome::Stale if foreign => {}
            // A stale one is void by a seek, whose record may still be in flight.
            AckOutcome::Log(_) | AckOutcome::Unchanged | AckOutcome::Stale => {
                let effect = Effect::Confirm {
                    id,
                    consumer,
                    request_id,
                };
                if confirm.is_some() && cursors.after_pending(effect).is_some() {
                    self.tell(cx, consumer, ConsumerEvent::Confirmed { request_id });
                }
            }
            // Only this request is wrong: what else the session does goes on.
            AckOutcome::Invalid(error) => {
                let refused = ConsumerEvent::AcknowledgeRefused { request_id, error };
                self.tell(cx, consumer, refused);
            }
        }
    }

    /// An acknowledgement is durable: trimming may go by it, and the consumer is told if it asked.
    pub(super) fn acknowledged(
        &mut self,
        cx: &TopicContext,
        delta: &AckDelta,
        confirm: Option<(ConsumerId, u64)>,
    ) {
        self.state.confirm(delta);
        if let Some((consumer, request_id)) = confirm {
            self.tell(cx, consumer, ConsumerEvent::Confirmed { request_id });
        }
    }

    /// The subscription has moved in memory: logs that. Answers the effect of the move where
    /// nothing of it has to be durable.
    pub(super) fn record_seek(
        &mut self,
        cursors: &mut Cursors,
        epoch: SeekEpoch,
        index: Index,
        seeker: Seeker,
    ) -> Option<Effect> {
        self.held += 1;
        let effect = Effect::Sought {
            id: self.id,
            epoch,
            index,
            seeker,
        };
        if !self.state.is_durable() {
            return Some(effect);
        }
        let delta = cursor_log::moved(self.state.name(), epoch, index);
        cursors.log_change(delta, effect);
        None
    }

    /// A move is durable: all consumers are told, the one that asked with its request.
    pub(super) fn sought(
        &mut self,
        cx: &TopicContext,
        epoch: SeekEpoch,
        index: Index,
        requested: Option<(ConsumerId, u64)>,
    ) {
        self.held -= 1;
        self.state.confirm_seek(epoch, index);
        let consumers: Vec<ConsumerId> = self.consumers.keys().copied().collect();
        for consumer in consumers {
            let request_id = match requested {
                Some((seeker, request_id)) if seeker == consumer => request_id,
                Some(_) | None => 0,
            };
            let done = ConsumerEvent::SeekDone {
                request_id,
                seek_epoch: epoch,
                index,
            };
            self.tell(cx, consumer, done);
        }
        self.wake();
    }

    fn notify(&mut self, cx: &TopicContext, notices: &[Notice]) {
        for notice in notices {
            let Notice::Active { consumer, active } = notice;
            if let Some(out) = self.consumers.get_mut(consumer) {
                out.push(ConsumerEvent::Active(*active));
                // One that has too much already ends with its next event: ending it here could
                // notify the next one, and so on.
                if !out.is_overfull() {
                    self.allow(cx, *consumer);
                }
            }
        }
    }

    pub(super) fn tell(&mut self, cx: &TopicContext, consumer: ConsumerId, event: ConsumerEvent) {
        if let Some(out) = self.consumers.get_mut(&consumer) {
            out.push(event);
            self.allow(cx, consumer);
        }
    }

    /// Tells the subscription what a consumer may be sent, and makes sure that one that is held
    /// back continues when its client has read on.
    pub(super) fn allow(&mut self, cx: &TopicContext, consumer: ConsumerId) {
        let Some(out) = self.consumers.get_mut(&consumer) else {
            return;
        };
        if out.is_overfull() {
            self.fail(cx, consumer, BrokerError::SlowClient.into());
            return;
        }
        let allowed = out.allowance();
        if allowed.is_held_back && !cx.life.is_ending() {
            out.watch(self.id, consumer, &cx.mailbox, &cx.shared.tasks);
        }
        self.state.credit(consumer, allowed.messages, allowed.bytes);
    }

    /// A client has taken much of what was queued for it.
    pub(super) fn drained(&mut self, cx: &TopicContext, consumer: ConsumerId) {
        let Some(out) = self.consumers.get_mut(&consumer) else {
            return;
        };
        if out.is_closed() {
            self.gone(cx, consumer);
            return;
        }
        out.drained();
        self.allow(cx, consumer);
        self.wake();
    }

    /// Ends a session with an error.
    pub(super) fn fail(&mut self, cx: &TopicContext, consumer: ConsumerId, error: ApiError) {
        if let Some(out) = self.consumers.get_mut(&consumer) {
            tracing::debug!(%error, "consumer session failed");
            out.fail(error);
            self.gone(cx, consumer);
        }
    }

    /// Ends all sessions with an error.
    pub(super) fn fail_all(&mut self, cx: &TopicContext, error: &BrokerError) {
        let consumers: Vec<ConsumerId> = self.consumers.keys().copied().collect();
        for consumer in consumers {
            self.fail(cx, consumer, error.clone().into());
        }
    }

    /// Ends the sessions whose clients dropped their ends without closing them.
    pub(super) fn drop_dead(&mut self, cx: &TopicContext) {
        let closed = self.consumers.iter().filter(|(_, out)| out.is_closed());
        let dead: Vec<ConsumerId> = closed.map(|(consumer, _)| *consumer).collect();
        for consumer in dead {
            self.gone(cx, consumer);
        }
    }

    /// A client has closed its session: what it holds is free at once, and what it asked for is
    /// still answered.
    pub(super) fn closed(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        consumer: ConsumerId,
    ) {
        if !self.consumers.contains_key(&consumer) {
            return;
        }
        if self.state.is_durable() {
            let notices = self.state.detach(consumer);
            self.notify(cx, &notices);
            self.wake();
        }
        if cursors
            .after_pending(Effect::Closed(self.id, consumer))
            .is_some()
        {
            self.gone(cx, consumer);
        }
    }

    /// A session is over.
    pub(super) fn gone(&mut self, cx: &TopicContext, consumer: ConsumerId) {
        if self.consumers.remove(&consumer).is_none() {
            return;
        }
        cx.shared.metrics.consumers.add(-1, &[]);
        cx.counters.session_closed();
        self.ended.push(consumer);
        let notices = self.state.detach(consumer);
        self.notify(cx, &notices);
        self.wake();
    }
}

/// Too much waits for the cursor log: the same request may succeed later.
fn overloaded() -> ApiError {
    BrokerError::Log(LogError::Overloaded).into()
}

pub(super) fn being_deleted() -> BrokerError {
    BrokerError::Unloading("the subscription is being deleted".to_owned())
}
