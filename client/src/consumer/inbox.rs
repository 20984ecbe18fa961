//! The state of a consumer or reader on one topic or partition: what has arrived, what the
//! application has taken, and what is to be told to the broker. Plain state, no I/O.
//!
//! Invariants: nothing of an older owner epoch (H9) or seek epoch (H12) is handed out; nothing
//! that arrived in an earlier session is, since the broker delivers it again; a reader's indexes
//! only rise, without gaps that the broker did not make; where the order counts, nothing is handed
//! out behind a message that was negatively acknowledged before that message itself.

mod arrivals;
mod order;
mod reader;
mod refusals;
mod role;
mod seek;
mod subscriber;

use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use aquifer_model::id::{ConsumerInstance, Index, OwnerEpoch, SeekEpoch};
use aquifer_model::place::Place;
use aquifer_model::topic::TopicName;
use aquifer_proto::v1;
use aquifer_runtime::clock::Instant;
use bytes::Bytes;

use self::arrivals::Arrivals;
use self::refusals::{Refusals, is_for_the_moment};
use self::role::Role;
use self::seek::PendingSeek;
use crate::batch::Delivered;
use crate::completion::Completion;
use crate::consumer::acks::{AckOutcome, Acknowledged, Acks, Epochs, resolved, void};
use crate::consumer::credit::Amount;
use crate::consumer::settings::Purpose;
use crate::error::{ClientError, Outcome, Result};
use crate::message::{Origin, ReceivedMessage};
use crate::wake::Wakers;

/// The shared outcome of a seek.
pub(crate) type SeekOutcome = Completion<Result<Index>>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Inbox {
    topic: Arc<TopicName>,
    partition: usize,
    role: Role,
    /// This object on its partition, so that the broker knows its sessions from a rival's.
    instance: ConsumerInstance,
    session: u64,
    is_subscribed: bool,
    is_active: bool,
    is_closing: bool,
    /// The broker has said that nothing more comes, and nothing came since.
    has_ended: bool,
    incarnation: Option<Bytes>,
    owner_epoch: OwnerEpoch,
    seek_epoch: SeekEpoch,
    arrivals: Arrivals,
    /// Why the session before ended, until one is open again; or why the broker refuses something
    /// for the moment.
    last_error: Option<ClientError>,
    seek: Option<PendingSeek>,
    last_seek_id: u64,
    refusals: Refusals,
    stream: Option<Waker>,
}

impl Inbox {
    pub(crate) fn new(
        topic: Arc<TopicName>,
        partition: usize,
        purpose: &Purpose,
        instance: ConsumerInstance,
        queue: Amount,
    ) -> Inbox {
        Inbox {
            topic,
            partition,
            role: Role::new(purpose),
            instance,
            session: 0,
            is_subscribed: false,
            is_active: false,
            is_closing: false,
            has_ended: false,
            incarnation: None,
            owner_epoch: OwnerEpoch(0),
            seek_epoch: SeekEpoch(0),
            arrivals: Arrivals::new(queue),
            last_error: None,
            seek: None,
            last_seek_id: 0,
            refusals: Refusals::default(),
            stream: None,
        }
    }

    /// A session, or an attempt to open one, has failed and another follows.
    pub(crate) fn interrupted(&mut self, error: &ClientError, wakers: &mut Wakers) {
        error.remember(&mut self.last_error);
        self.begin_session(wakers);
    }

    /// Why it is not subscribed, or refused something, at the moment.
    pub(crate) fn last_error(&self) -> Option<&ClientError> {
        self.last_error.as_ref()
    }

    /// A session begins or has ended: what has arrived is void, and the stream of the session
    /// before ends. Answers the number of the new one.
    pub(crate) fn begin_session(&mut self, wakers: &mut Wakers) -> u64 {
        self.session += 1;
        self.is_subscribed = false;
        self.is_active = false;
        self.has_ended = false;
        self.arrivals.reset();
        self.refusals = Refusals::default();
        if let Role::Subscriber(subscriber) = &mut self.role {
            subscriber.begin_session();
        }
        if let Some(seek) = &mut self.seek {
            seek.is_sent = false;
        }
        wakers.add(self.stream.take());
        self.session
    }

    /// Where the next session begins, if not where the application said first.
    pub(crate) fn resume_at(&self) -> Option<Place> {
        // A seek under way is sent again in the session: a place that the topic does not have must
        // not keep the reader from coming back.
        match &self.role {
            Role::Subscriber(_) => None,
            Role::Reader(reader) => reader.next().map(Place::Index),
        }
    }

    /// What tells the broker which older session the next one replaces.
    pub(crate) fn instance(&self) -> ConsumerInstance {
        self.instance
    }

    /// The topic's life that earlier sessions knew.
    pub(crate) fn incarnation(&self) -> Option<Bytes> {
        self.incarnation.clone()
    }

    /// The broker has answered the subscription.
    pub(crate) fn subscribed(
        &mut self,
        session: u64,
        answer: &v1::Subscribed,
        wakers: &mut Wakers,
    ) {
        if session != self.session {
            return;
        }
        self.is_subscribed = true;
        self.is_active = true;
        self.last_error = None;
        self.incarnation = Some(answer.topic_incarnation.clone());
        self.take_owner_epoch(OwnerEpoch(answer.owner_epoch));
        let seek_epoch = SeekEpoch(answer.seek_epoch);
        match &mut self.role {
            Role::Reader(reader) => {
                // Each session of a reader is a subscription of its own, with epochs of its own.
                self.seek_epoch = seek_epoch;
                reader.begin(answer.start_index, answer.end_index);
            }
            Role::Subscriber(_) => self.advance_seek_epoch(seek_epoch, wakers),
        }
        let epochs = self.epochs();
        if let Role::Subscriber(subscriber) = &mut self.role {
            subscriber.acks.void_but(epochs, wakers);
        }
        wakers.add(self.stream.take());
    }

    fn take_owner_epoch(&mut self, owner_epoch: OwnerEpoch) {
        if owner_epoch > self.owner_epoch {
            self.owner_epoch = owner_epoch;
            if let Role::Subscriber(subscriber) = &mut self.role {
                subscriber.forget_order();
            }
        }
    }

    fn epochs(&self) -> Epochs {
        Epochs {
            owner: self.owner_epoch,
            seek: self.seek_epoch,
        }
    }

    /// Whether the answer comes from an owner that a later one has replaced (H9).
    pub(crate) fn is_replaced(&self, answer: &v1::Subscribed) -> bool {
        OwnerEpoch(answer.owner_epoch) < self.owner_epoch
    }

    /// Entries have arrived.
    pub(crate) fn deliver(
        &mut self,
        session: u64,
        deliveries: v1::Deliveries,
        wakers: &mut Wakers,
    ) {
        if session != self.session {
            return;
        }
        let origin = Origin {
            partition: self.partition,
            owner_epoch: OwnerEpoch(deliveries.owner_epoch),
            seek_epoch: SeekEpoch(deliveries.seek_epoch),
        };
        let is_stale = self.take_epochs(origin, wakers);
        for delivery in deliveries.deliveries {
            let bytes = delivery.body.len() as u64;
            let delivered = Delivered::parse(delivery);
            // The broker counts what it did not skip; what a reader has seen already is left out
            // on top of that.
            let messages = delivered.wanted();
            self.arrive(delivered, origin, Amount { messages, bytes }, is_stale);
        }
        self.wake_for_credit(wakers);
    }

    /// The broker tells what storage cannot give.
    pub(crate) fn gap(&mut self, session: u64, gap: v1::Gap, wakers: &mut Wakers) {
        if session != self.session {
            return;
        }
        let origin = Origin {
            partition: self.partition,
            owner_epoch: OwnerEpoch(gap.owner_epoch),
            seek_epoch: SeekEpoch(gap.seek_epoch),
        };
        let is_stale = self.take_epochs(origin, wakers);
        let cost = Amount {
            messages: 1,
            bytes: 0,
        };
        self.arrive(Delivered::missing(gap), origin, cost, is_stale);
        self.wake_for_credit(wakers);
    }

    /// Notes the epochs of what has arrived; says whether it is of an older one.
    fn take_epochs(&mut self, origin: Origin, wakers: &mut Wakers) -> bool {
        let is_stale = origin.owner_epoch < self.owner_epoch || origin.seek_epoch < self.seek_epoch;
        self.take_owner_epoch(origin.owner_epoch);
        self.advance_seek_epoch(origin.seek_epoch, wakers);
        is_stale
    }

    /// The broker says that nothing more comes.
    pub(crate) fn end_of_topic(&mut self, session: u64) {
        if session == self.session {
            self.has_ended = true;
        }
    }

    /// Whether everything was handed out, and nothing more comes.
    pub(crate) fn is_at_end(&self) -> bool {
        self.has_ended && self.seek.is_none() && self.arrivals.is_empty()
    }

    fn arrive(&mut self, mut delivered: Delivered, origin: Origin, cost: Amount, is_stale: bool) {
        self.has_ended = false;
        if is_stale || !self.role.take_in(&mut delivered) {
            self.arrivals.refuse(cost);
        } else {
            self.arrivals.push(delivered, origin, cost);
        }
    }

    /// The next message for the application.
    pub(crate) fn take(&mut self) -> Option<Result<ReceivedMessage>> {
        self.arrivals.take(&self.topic, &mut self.role)
    }

    /// Whether [`take`](Self::take) may have something.
    pub(crate) fn has_more(&self) -> bool {
        !self.arrivals.is_empty()
    }

    /// Wakes the stream when the broker is to be told of new credit.
    pub(crate) fn wake_for_credit(&mut self, wakers: &mut Wakers) {
        if self.is_subscribed && self.arrivals.credit.is_due() {
            wakers.add(self.stream.take());
        }
    }

    /// Drops what a seek has voided.
    fn advance_seek_epoch(&mut self, seek_epoch: SeekEpoch, wakers: &mut Wakers) {
        if seek_epoch <= self.seek_epoch {
            return;
        }
        self.seek_epoch = seek_epoch;
        self.arrivals.void_before(seek_epoch, &mut self.role);
        let epochs = self.epochs();
        if let Role::Subscriber(subscriber) = &mut self.role {
            subscriber.void(epochs, wakers);
        }
    }

    /// Acknowledges something of a delivery.
    pub(crate) fn ack(
        &mut self,
        origin: Origin,
        what: Acknowledged<'_>,
        now: Instant,
        wakers: &mut Wakers,
    ) -> Arc<AckOutcome> {
        let of = Epochs {
            owner: origin.owner_epoch,
            seek: origin.seek_epoch,
        };
        let epochs = self.epochs();
        let Role::Subscriber(subscriber) = &mut self.role else {
            return resolved(Err(foreign()));
        };
        if of != epochs {
            let error = void(of, epochs, Outcome::NotApplied);
            return resolved(Err(error));
        }
        let outcome = subscriber.ack(of, what, now);
        if self.is_subscribed && subscriber.acks.is_due() {
            wakers.add(self.stream.take());
        }
        outcome
    }

    /// Asks for redelivery of everything from `index` to `last`.
    pub(crate) fn nack(
        &mut self,
        origin: Origin,
        (index, last): (u64, u64),
        now: Instant,
        wakers: &mut Wakers,
    ) {
        // What an earlier session delivered is delivered again without asking.
        if origin.seek_epoch != self.seek_epoch || !self.is_subscribed {
            return;
        }
        let Role::Subscriber(subscriber) = &mut self.role else {
            return;
        };
        if !subscriber.nack(index, last, now) {
            return;
        }
        if subscriber.order.is_some() {
            // The broker delivers everything from there on again.
            self.arrivals.void_from(index);
        }
        wakers.add(self.stream.take());
    }

    /// A redelivery that does not come would stop everything behind it: then the session begins
    /// again.
    pub(crate) fn expire_redelivery(&mut self, limit: Duration, now: Instant, wakers: &mut Wakers) {
        if let Role::Subscriber(subscriber) = &self.role
            && subscriber.is_redelivery_late(limit, now)
        {
            self.begin_session(wakers);
        }
    }

    /// Fails acknowledgements that wait longer than `limit`.
    pub(crate) fn expire_acks(
        &mut self,
        limit: Duration,
        now: Instant,
        error: &ClientError,
        wakers: &mut Wakers,
    ) {
        if let Role::Subscriber(subscriber) = &mut self.role {
            for (outcome, known) in subscriber.acks.expired(limit, now) {
                outcome.set_and(Err(error.clone().with_outcome(known)), wakers);
            }
        }
    }

    /// When the oldest acknowledgement that is not confirmed was made.
    pub(crate) fn oldest_ack(&self) -> Option<Instant> {
        self.acks().and_then(Acks::oldest)
    }

    /// The outcome of the newest acknowledgement that is not confirmed.
    pub(crate) fn newest_ack(&self) -> Option<Arc<AckOutcome>> {
        self.acks().and_then(Acks::newest)
    }

    fn acks(&self) -> Option<&Acks> {
        match &self.role {
            Role::Subscriber(subscriber) => Some(&subscriber.acks),
            Role::Reader(_) => None,
        }
    }

    /// The broker has made an acknowledgement durable, or refused it.
    pub(crate) fn confirmed(
        &mut self,
        session: u64,
        answer: v1::Confirmed,
        now: Instant,
        wakers: &mut Wakers,
    ) {
        let Role::Subscriber(subscriber) = &mut self.role else {
            return;
        };
        if session != self.session {
            return;
        }
        let refusal: Option<ClientError> = answer.error.map(Into::into);
        if let Some(error) = refusal.as_ref().filter(|error| is_for_the_moment(error)) {
            subscriber.acks.put_back(answer.request_id);
            self.refusals.hold_back(now);
            error.remember(&mut self.last_error);
            return;
        }
        if let Some(outcome) = subscriber.acks.confirmed(answer.request_id) {
            self.last_error = None;
            outcome.set_and(refusal.map_or(Ok(()), Err), wakers);
        }
        if subscriber.acks.is_due() {
            wakers.add(self.stream.take());
        }
    }

    pub(crate) fn set_active(&mut self, session: u64, active: bool) {
        if session == self.session {
            self.is_active = active;
        }
    }

    pub(crate) fn is_active(&self) -> bool {
        self.is_subscribed && self.is_active
    }

    /// A reader: whether a message below the end that is known was not handed out.
    pub(crate) fn is_behind(&self) -> bool {
        match &self.role {
            Role::Subscriber(_) => false,
            Role::Reader(reader) => reader.is_behind(),
        }
    }

    /// A reader: what the topic holds now. What was trimmed before it arrived is passed over.
    pub(crate) fn set_bounds(&mut self, first: u64, end: u64) {
        let is_empty = !self.has_more();
        if let Role::Reader(reader) = &mut self.role {
            reader.set_end(end);
            if is_empty {
                reader.trimmed_below(first);
            }
        }
    }

    pub(crate) fn topic(&self) -> &Arc<TopicName> {
        &self.topic
    }

    pub(crate) fn close(&mut self, wakers: &mut Wakers) {
        self.is_closing = true;
        wakers.add(self.stream.take());
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.is_closing
    }

    /// Fails everything that waits for the broker.
    pub(crate) fn fail(&mut self, error: &ClientError, wakers: &mut Wakers) {
        if let Role::Subscriber(subscriber) = &mut self.role {
            for outcome in subscriber.acks.take_all() {
                outcome.set_and(Err(error.clone()), wakers);
            }
        }
        if let Some(seek) = self.seek.take() {
            seek.outcome.set_and(Err(error.clone()), wakers);
        }
        self.begin_session(wakers);
    }

    /// The next request for the stream of `session`: `None` ends it, `Some(None)` waits until
    /// woken.
    #[allow(
        clippy::option_option,
        reason = "a poll: end, nothing yet, or a request"
    )]
    pub(crate) fn next_request(
        &mut self,
        session: u64,
        waker: &Waker,
    ) -> Option<Option<v1::consume_request::Request>> {
        use v1::consume_request::Request;
        if session != self.session || (self.is_subscribed && self.is_closing) {
            return None;
        }
        if !self.is_subscribed {
            self.stream = Some(waker.clone());
            return Some(None);
        }
        let (epochs, is_holding_back) = (self.epochs(), self.refusals.is_holding_back());
        if let Role::Subscriber(subscriber) = &mut self.role
            && let Some(request) = subscriber.next_request(epochs, is_holding_back)
        {
            return Some(Some(request));
        }
        let wanted = |seek: &&mut PendingSeek| !seek.is_sent && !is_holding_back;
        if let Some(seek) = self.seek.as_mut().filter(wanted) {
            seek.is_sent = true;
            return Some(Some(Request::Seek(v1::Seek {
                request_id: seek.request_id,
                place: seek.place.to_string(),
            })));
        }
        if let Some(total) = self.arrivals.credit.grant() {
            return Some(Some(Request::Credit(v1::Credit {
                messages_total: total.messages,
                bytes_total: total.bytes,
            })));
        }
        self.stream = Some(waker.clone());
        Some(None)
    }
}

/// An acknowledgement of what this object did not deliver.
pub(crate) fn foreign() -> ClientError {
    ClientError::Invalid("the message came from another consumer: acknowledge it there".to_owned())
}

#[cfg(test)]
mod tests;
