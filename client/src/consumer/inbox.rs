//! The state of a consumer or reader on one topic or partition: what has arrived, what the
//! application has taken, and what is to be told to the broker. Plain state, no I/O.
//!
//! Invariants: nothing of an older owner epoch (H9) or seek epoch (H12) is handed out; nothing
//! that arrived in an earlier session is, since the broker delivers it again; a reader's indexes
//! only rise, without gaps that the broker did not make; where the order counts, nothing is handed
//! out behind a message that was negatively acknowledged before that message itself.

mod order;
mod seek;

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use aquifer_model::id::{ConsumerInstance, Index, OwnerEpoch, SeekEpoch};
use aquifer_model::limits::ACK_RANGES_MAX;
use aquifer_model::place::Place;
use aquifer_model::topic::TopicName;
use aquifer_proto::v1;
use bytes::Bytes;
use tokio::time::Instant;

use self::order::Order;
use self::seek::PendingSeek;
use super::acks::{AckOutcome, Acknowledged, Acks, Epochs, Ranges, settled, void};
use super::credit::{Amount, Credit};
use crate::batch::{Delivered, Messages};
use crate::error::{ClientError, Outcome, Result};
use crate::message::{Origin, ReceivedMessage};
use crate::settle::Settle;

/// The shared outcome of a seek.
pub(crate) type SeekOutcome = Settle<Result<Index>>;

/// One entry that has arrived.
#[derive(Debug)]
struct Entry {
    delivered: Delivered,
    origin: Origin,
    /// What it cost of the credit.
    cost: Amount,
    /// Index of its first message that is wanted.
    first: u64,
    /// Index after its last message.
    end: u64,
    /// From this index on it is delivered again.
    void_from: u64,
}

/// The entry whose messages are being handed out.
#[derive(Debug)]
struct Current {
    messages: Messages,
    origin: Origin,
    bytes: u64,
    end: u64,
    void_from: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Inbox {
    topic: Arc<TopicName>,
    partition: usize,
    /// A reader: not durable, its place is kept here.
    is_reader: bool,
    /// This object on its partition, so that the broker knows its sessions from a rival's.
    instance: ConsumerInstance,
    session: u64,
    is_subscribed: bool,
    is_active: bool,
    is_closing: bool,
    incarnation: Option<Bytes>,
    owner_epoch: OwnerEpoch,
    seek_epoch: SeekEpoch,
    entries: VecDeque<Entry>,
    current: Option<Current>,
    credit: Credit,
    acks: Acks,
    /// To be delivered again.
    nacks: Ranges,
    /// Where the order counts: which redelivery is waited for.
    order: Option<Order>,
    /// Why the session before ended, until one is open again.
    last_error: Option<ClientError>,
    seek: Option<PendingSeek>,
    last_seek_id: u64,
    /// A reader: the index after the last message that was handed out; unknown before the first
    /// session.
    next: Option<u64>,
    /// The index after the last message that has arrived.
    arrived: u64,
    /// Index after the newest message when the session began.
    end: u64,
    stream: Option<Waker>,
}

impl Inbox {
    pub(crate) fn new(
        topic: Arc<TopicName>,
        partition: usize,
        is_reader: bool,
        instance: ConsumerInstance,
        queue: Amount,
    ) -> Inbox {
        Inbox {
            topic,
            partition,
            is_reader,
            instance,
            session: 0,
            is_subscribed: false,
            is_active: false,
            is_closing: false,
            incarnation: None,
            owner_epoch: OwnerEpoch(0),
            seek_epoch: SeekEpoch(0),
            entries: VecDeque::new(),
            current: None,
            credit: Credit::new(queue),
            acks: Acks::default(),
            nacks: Ranges::default(),
            order: None,
            last_error: None,
            seek: None,
            last_seek_id: 0,
            next: None,
            arrived: 0,
            end: 0,
            stream: None,
        }
    }

    /// For a subscription whose messages come in order.
    pub(crate) fn keeping_order(mut self) -> Inbox {
        self.order = Some(Order::default());
        self
    }

    /// A session, or an attempt to open one, has failed and another follows.
    pub(crate) fn interrupted(&mut self, error: &ClientError) -> Option<Waker> {
        error.remember(&mut self.last_error);
        self.begin_session().1
    }

    /// Why it is not subscribed at the moment.
    pub(crate) fn last_error(&self) -> Option<&ClientError> {
        self.last_error.as_ref()
    }

    /// A session begins or has ended: what has arrived is void, and the stream of the session
    /// before ends. Answers the number of the new one.
    pub(crate) fn begin_session(&mut self) -> (u64, Option<Waker>) {
        self.session += 1;
        self.is_subscribed = false;
        self.is_active = false;
        self.entries.clear();
        self.current = None;
        self.credit.reset();
        self.acks.rewind();
        // Everything unacknowledged is delivered again anyway.
        self.nacks = Ranges::default();
        if let Some(order) = &mut self.order {
            order.begin_session();
            self.arrived = 0;
        }
        if let Some(seek) = &mut self.seek {
            seek.is_sent = false;
        }
        (self.session, self.stream.take())
    }

    /// Where the next session begins, if not where the application said first.
    pub(crate) fn resume_at(&self) -> Option<Place> {
        // A seek under way is sent again in the session: a place that the topic does not have must
        // not keep the reader from coming back.
        let next = self.next.filter(|_| self.is_reader)?;
        Some(Place::Index(Index(next)))
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
    pub(crate) fn subscribed(&mut self, session: u64, answer: &v1::Subscribed) -> Option<Waker> {
        if session != self.session {
            return None;
        }
        self.is_subscribed = true;
        self.is_active = true;
        self.last_error = None;
        self.incarnation = Some(answer.topic_incarnation.clone());
        self.take_owner_epoch(OwnerEpoch(answer.owner_epoch));
        self.end = answer.end_index;
        if self.is_reader {
            // Each session of a reader is a subscription of its own, with epochs of its own.
            self.seek_epoch = SeekEpoch(answer.seek_epoch);
            let start = answer.start_index;
            // What was trimmed meanwhile cannot be read; what was read is not repeated.
            let next = self.next.map_or(start, |next| next.max(start));
            self.next = Some(next);
            self.arrived = next;
        } else {
            self.advance_seek_epoch(SeekEpoch(answer.seek_epoch));
            self.acks.void_but(self.epochs());
        }
        self.stream.take()
    }

    fn take_owner_epoch(&mut self, owner_epoch: OwnerEpoch) {
        if owner_epoch > self.owner_epoch {
            self.owner_epoch = owner_epoch;
            self.forget_order();
        }
    }

    /// What was acknowledged and nacked before counts no more.
    fn forget_order(&mut self) {
        if let Some(order) = &mut self.order {
            *order = Order::default();
            self.arrived = 0;
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
    pub(crate) fn deliver(&mut self, session: u64, deliveries: v1::Deliveries) -> Option<Waker> {
        if session != self.session {
            return None;
        }
        let origin = Origin {
            partition: self.partition,
            owner_epoch: OwnerEpoch(deliveries.owner_epoch),
            seek_epoch: SeekEpoch(deliveries.seek_epoch),
        };
        let is_stale = self.take_epochs(origin);
        for delivery in deliveries.deliveries {
            let bytes = delivery.body.len() as u64;
            let delivered = Delivered::parse(delivery);
            // The broker counts what it did not skip; what a reader has seen already is left out
            // on top of that.
            let messages = delivered.wanted();
            self.arrive(delivered, origin, Amount { messages, bytes }, is_stale);
        }
        self.wake_for_credit()
    }

    /// The broker tells what storage cannot give.
    pub(crate) fn gap(&mut self, session: u64, gap: v1::Gap) -> Option<Waker> {
        if session != self.session {
            return None;
        }
        let origin = Origin {
            partition: self.partition,
            owner_epoch: OwnerEpoch(gap.owner_epoch),
            seek_epoch: SeekEpoch(gap.seek_epoch),
        };
        let is_stale = self.take_epochs(origin);
        let cost = Amount {
            messages: 1,
            bytes: 0,
        };
        self.arrive(Delivered::missing(gap), origin, cost, is_stale);
        self.wake_for_credit()
    }

    /// Notes the epochs of what has arrived; says whether it is of an older one.
    fn take_epochs(&mut self, origin: Origin) -> bool {
        let is_stale = origin.owner_epoch < self.owner_epoch || origin.seek_epoch < self.seek_epoch;
        self.take_owner_epoch(origin.owner_epoch);
        self.advance_seek_epoch(origin.seek_epoch);
        is_stale
    }

    fn arrive(&mut self, mut delivered: Delivered, origin: Origin, cost: Amount, is_stale: bool) {
        if is_stale {
            self.credit.consume(cost.messages, cost.bytes);
            return;
        }
        let end = delivered.end();
        if self.is_reader {
            delivered.skip_below(self.arrived);
        }
        let first = delivered.first_wanted();
        self.arrived = match &mut self.order {
            // The order goes back where something is delivered again.
            Some(_) => end,
            None => self.arrived.max(end),
        };
        let order = self.order.as_mut();
        if order.is_some_and(|order| order.is_void(first)) {
            // Sent before the broker knew of the nack: it comes again, behind that message.
            self.credit.consume(cost.messages, cost.bytes);
            return;
        }
        self.entries.push_back(Entry {
            delivered,
            origin,
            cost,
            first,
            end,
            void_from: u64::MAX,
        });
    }

    /// The next message for the application.
    pub(crate) fn take(&mut self) -> Option<Result<ReceivedMessage>> {
        loop {
            if let Some(current) = &mut self.current {
                let taken = current.messages.next();
                let left = current.messages.left();
                match taken {
                    Some((index, _)) if index >= current.void_from => {
                        self.finish_current(left + 1);
                    }
                    Some((index, taken)) => {
                        self.credit.consume(1, 0);
                        self.next = Some(index + 1);
                        if left == 0 {
                            self.finish_current(0);
                        }
                        return Some(taken);
                    }
                    None => self.finish_current(left),
                }
            }
            let entry = self.entries.pop_front()?;
            if entry.first >= entry.void_from {
                self.credit.consume(entry.cost.messages, entry.cost.bytes);
                continue;
            }
            let wanted = entry.delivered.wanted();
            if wanted == 0 && self.is_reader {
                // It has seen all of it.
                self.credit.consume(entry.cost.messages, entry.cost.bytes);
                self.next = Some(entry.end);
                continue;
            }
            match entry.delivered.open(&self.topic, entry.origin) {
                Ok(messages) => {
                    // Messages that only we leave out are not handed out one by one.
                    let skipped = entry.cost.messages.saturating_sub(wanted);
                    self.credit.consume(skipped, 0);
                    self.current = Some(Current {
                        messages,
                        origin: entry.origin,
                        bytes: entry.cost.bytes,
                        end: entry.end,
                        void_from: entry.void_from,
                    });
                }
                Err(error) => {
                    self.credit.consume(entry.cost.messages, entry.cost.bytes);
                    self.next = Some(entry.end);
                    return Some(Err(error));
                }
            }
        }
    }

    /// The current entry is done with; `left` of its messages are not handed out.
    fn finish_current(&mut self, left: u64) {
        if let Some(current) = self.current.take() {
            self.credit.consume(left, current.bytes);
            self.next = Some(current.end);
        }
    }

    /// Whether [`take`](Self::take) may have something.
    pub(crate) fn has_more(&self) -> bool {
        self.current.is_some() || !self.entries.is_empty()
    }

    /// The stream's waker, when the broker is to be told of new credit.
    pub(crate) fn wake_for_credit(&mut self) -> Option<Waker> {
        let due = self.is_subscribed && self.credit.is_due();
        due.then(|| self.stream.take()).flatten()
    }

    /// Drops what a seek has voided.
    fn advance_seek_epoch(&mut self, seek_epoch: SeekEpoch) {
        if seek_epoch <= self.seek_epoch {
            return;
        }
        self.seek_epoch = seek_epoch;
        let stale = |origin: &Origin| origin.seek_epoch < seek_epoch;
        if self.current.as_ref().is_some_and(|c| stale(&c.origin)) {
            let left = self.current.as_ref().map_or(0, |c| c.messages.left());
            self.finish_current(left);
        }
        let credit = &mut self.credit;
        self.entries.retain(|entry| {
            let is_stale = stale(&entry.origin);
            if is_stale {
                credit.consume(entry.cost.messages, entry.cost.bytes);
            }
            !is_stale
        });
        self.nacks = Ranges::default();
        self.forget_order();
        self.acks.void_but(self.epochs());
    }

    /// Acknowledges something of a delivery.
    pub(crate) fn ack(
        &mut self,
        origin: Origin,
        what: Acknowledged<'_>,
        now: Instant,
    ) -> (Arc<AckOutcome>, Option<Waker>) {
        let of = Epochs {
            owner: origin.owner_epoch,
            seek: origin.seek_epoch,
        };
        if of != self.epochs() {
            let error = void(of, self.epochs(), Outcome::NotApplied);
            return (settled(Err(error)), None);
        }
        let outcome = self.acks.add(of, what, now);
        if let Some(order) = &mut self.order {
            order.acknowledged(what);
        }
        let wake = self.is_subscribed && self.acks.is_due();
        (outcome, wake.then(|| self.stream.take()).flatten())
    }

    /// Asks for redelivery of everything from `index` to `last`.
    pub(crate) fn nack(
        &mut self,
        origin: Origin,
        (index, last): (u64, u64),
        now: Instant,
    ) -> Option<Waker> {
        // What an earlier session delivered is delivered again without asking.
        if origin.seek_epoch != self.seek_epoch || !self.is_subscribed {
            return None;
        }
        if let Some(order) = &mut self.order {
            if index >= self.arrived || !order.nack(index, now) {
                return None;
            }
            // The broker delivers everything from there on again.
            for entry in &mut self.entries {
                entry.void_from = entry.void_from.min(index);
            }
            if let Some(current) = &mut self.current {
                current.void_from = current.void_from.min(index);
            }
        }
        self.nacks.insert(index, last);
        self.stream.take()
    }

    /// A redelivery that does not come would stop everything behind it: then the session begins
    /// anew.
    pub(crate) fn expire_redelivery(&mut self, limit: Duration, now: Instant) -> Option<Waker> {
        let expired = |order: &Order| order.waits_longer_than(limit, now);
        if !self.order.as_ref().is_some_and(expired) {
            return None;
        }
        self.begin_session().1
    }

    pub(crate) fn confirmed(&mut self, session: u64, answer: v1::Confirmed) -> Option<Waker> {
        if session != self.session {
            return None;
        }
        if let Some(outcome) = self.acks.confirmed(answer.request_id) {
            outcome.set(answer.error.map_or(Ok(()), |detail| Err(detail.into())));
        }
        self.acks.is_due().then(|| self.stream.take()).flatten()
    }

    pub(crate) fn acks(&mut self) -> &mut Acks {
        &mut self.acks
    }

    pub(crate) fn set_active(&mut self, session: u64, active: bool) {
        if session == self.session {
            self.is_active = active;
        }
    }

    pub(crate) fn is_active(&self) -> bool {
        self.is_subscribed && self.is_active
    }

    /// A reader: the index of the next message that it hands out, and the end that is known.
    pub(crate) fn progress(&self) -> (u64, u64) {
        (self.next.unwrap_or(0), self.end)
    }

    /// A reader: what the topic holds now. What was trimmed before it arrived is passed over.
    pub(crate) fn set_bounds(&mut self, first: u64, end: u64) {
        self.end = self.end.max(end);
        if !self.has_more() {
            self.next = self.next.map(|next| next.max(first));
        }
    }

    pub(crate) fn topic(&self) -> &Arc<TopicName> {
        &self.topic
    }

    pub(crate) fn close(&mut self) -> Option<Waker> {
        self.is_closing = true;
        self.stream.take()
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.is_closing
    }

    /// Fails everything that waits for the broker.
    pub(crate) fn fail(&mut self, error: &ClientError) -> Option<Waker> {
        for outcome in self.acks.take_all() {
            outcome.set(Err(error.clone()));
        }
        if let Some(seek) = self.seek.take() {
            seek.outcome.set(Err(error.clone()));
        }
        self.begin_session().1
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
        let (owner_epoch, seek_epoch) = (self.owner_epoch, self.seek_epoch);
        if let Some(ack) = self.acks.next() {
            return Some(Some(Request::Acknowledge(ack)));
        }
        if self.nacks.len() > 0 {
            let rest = self.nacks.split_off(ACK_RANGES_MAX);
            let mut ranges = std::mem::replace(&mut self.nacks, rest).to_wire();
            if self.order.is_some() {
                // All that is void here, since the message itself may be acknowledged meanwhile.
                ranges.truncate(1);
                self.nacks = Ranges::default();
                for range in &mut ranges {
                    range.last = range.last.max(self.arrived.saturating_sub(1));
                }
            }
            return Some(Some(Request::NegativeAcknowledge(
                v1::NegativeAcknowledge {
                    owner_epoch: owner_epoch.0,
                    seek_epoch: seek_epoch.0,
                    ranges,
                },
            )));
        }
        if let Some(seek) = self.seek.as_mut().filter(|seek| !seek.is_sent) {
            seek.is_sent = true;
            return Some(Some(Request::Seek(v1::Seek {
                request_id: seek.request_id,
                place: seek.place.to_string(),
            })));
        }
        if let Some(total) = self.credit.grant() {
            return Some(Some(Request::Credit(v1::Credit {
                messages_total: total.messages,
                bytes_total: total.bytes,
            })));
        }
        self.stream = Some(waker.clone());
        Some(None)
    }
}

#[cfg(test)]
mod tests;
