//! What a consumer tells the broker of a subscription on one topic or partition: what is
//! acknowledged, and what is to be delivered again. Plain state, no I/O.

use std::sync::Arc;
use std::time::Duration;

use aquifer_model::limits::ACK_RANGES_MAX;
use aquifer_proto::v1;
use aquifer_proto::v1::consume_request::Request;
use aquifer_runtime::clock::Instant;

use crate::batch::Delivered;
use crate::consumer::acks::{AckOutcome, Acknowledged, Acks, Epochs, Ranges};
use crate::consumer::inbox::order::Order;
use crate::wake::Wakers;

/// See the module.
#[derive(Debug)]
pub(super) struct SubscriberState {
    pub(super) acks: Acks,
    /// To be delivered again.
    nacks: Ranges,
    /// Where messages come in order: which redelivery is waited for.
    pub(super) order: Option<Order>,
}

impl SubscriberState {
    pub(super) fn new(keeps_order: bool) -> SubscriberState {
        SubscriberState {
            acks: Acks::default(),
            nacks: Ranges::default(),
            order: keeps_order.then(Order::default),
        }
    }

    /// A session begins: everything unacknowledged is delivered again without asking.
    pub(super) fn begin_session(&mut self) {
        self.acks.rewind();
        self.nacks = Ranges::default();
        if let Some(order) = &mut self.order {
            order.begin_session();
        }
    }

    /// What was acknowledged and nacked before counts no more for the order.
    pub(super) fn forget_order(&mut self) {
        if let Some(order) = &mut self.order {
            *order = Order::default();
        }
    }

    /// A seek has voided what was delivered under other epochs.
    pub(super) fn void(&mut self, epochs: Epochs, wakers: &mut Wakers) {
        self.nacks = Ranges::default();
        self.forget_order();
        self.acks.void_but(epochs, wakers);
    }

    /// A seek has led here.
    pub(super) fn moved_to(&mut self, index: u64) {
        if let Some(order) = &mut self.order {
            order.moved_to(index);
        }
    }

    /// An entry has arrived. False when it is void, and comes again.
    pub(super) fn take_in(&mut self, delivered: &Delivered) -> bool {
        match &mut self.order {
            Some(order) => !order.is_void(delivered.first_wanted(), delivered.end()),
            None => true,
        }
    }

    pub(super) fn ack(
        &mut self,
        of: Epochs,
        what: Acknowledged<'_>,
        now: Instant,
    ) -> Arc<AckOutcome> {
        let outcome = self.acks.add(of, what, now);
        if let Some(order) = &mut self.order {
            order.acknowledged(what);
        }
        outcome
    }

    /// Asks for redelivery of everything from `index` to `last`. False when that is not needed.
    pub(super) fn nack(&mut self, index: u64, last: u64, now: Instant) -> bool {
        if let Some(order) = &mut self.order
            && !order.nack(index, now)
        {
            return false;
        }
        self.nacks.insert(index, last);
        true
    }

    /// Whether a redelivery is waited for longer than `limit`.
    pub(super) fn is_redelivery_late(&self, limit: Duration, now: Instant) -> bool {
        let order = self.order.as_ref();
        order.is_some_and(|order| order.waits_longer_than(limit, now))
    }

    /// The next acknowledgement, unless they are held back, or else the next negative one.
    pub(super) fn next_request(&mut self, epochs: Epochs, holds_back: bool) -> Option<Request> {
        if !holds_back && let Some(ack) = self.acks.next() {
            return Some(Request::Acknowledge(ack));
        }
        if self.nacks.len() == 0 {
            return None;
        }
        let rest = self.nacks.split_off(ACK_RANGES_MAX);
        let mut ranges = std::mem::replace(&mut self.nacks, rest).to_wire();
        if let Some(order) = &self.order {
            // All that is void here, since the message itself may be acknowledged meanwhile.
            ranges.truncate(1);
            self.nacks = Ranges::default();
            for range in &mut ranges {
                range.last = range.last.max(order.arrived().saturating_sub(1));
            }
        }
        Some(Request::NegativeAcknowledge(v1::NegativeAcknowledge {
            owner_epoch: epochs.owner.0,
            seek_epoch: epochs.seek.0,
            ranges,
        }))
    }
}
