//! What one consumer is sent: a bounded channel that its client drains, and behind it a short queue
//! for what does not fit at the moment.
//!
//! The owner never waits here. What bounds the queue is credit: a consumer's subscription is told
//! of no more byte credit than there is room for, in its own queue and in the budget of all
//! deliveries, whatever the client grants, so a client that grants much and reads nothing holds a
//! bounded amount (I13) and delays no other.

use std::collections::VecDeque;

use aquifer_protocol_api::consumer::{ConsumerEvent, Delivery};
use aquifer_protocol_api::error::ApiError;
use aquifer_runtime::budget::ByteBudget;
use aquifer_runtime::task::TaskGroup;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::subscription::ConsumerId;
use crate::topic::event::{Event, Mailbox, SubscriptionId};

/// Events that a consumer's channel holds.
const CHANNEL_EVENTS: usize = 64;
/// Events that may wait behind the channel; deliveries are joined, so these are confirmations that
/// a client asks for and does not read.
const QUEUED_EVENTS_MAX: usize = 2_048;
/// Credit that a consumer is told of at once: it is told of more with what it is sent.
const AHEAD_BYTES_MAX: u64 = 1 << 20;

/// What a consumer's subscription may use, by one look at what its client has taken and what the
/// budget has: with two looks, between which the client takes everything, the first would find
/// nothing left to use, and the second nothing to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Allowance {
    /// Totals, of messages and of bytes.
    pub(super) messages: u64,
    pub(super) bytes: u64,
    /// A task has to wait until the client has read on: something waits, or so much is in flight
    /// that bytes were held back. Else there are bytes left, and the next delivery looks again.
    pub(super) is_held_back: bool,
}

/// One consumer's way out.
pub(super) struct Outbox {
    sender: mpsc::Sender<ConsumerEvent>,
    /// Keeps room for the event that ends the session.
    last: Option<mpsc::OwnedPermit<ConsumerEvent>>,
    queue: VecDeque<ConsumerEvent>,
    queue_bytes: u64,
    /// Bytes of the events in the channel, oldest first.
    in_channel: VecDeque<u64>,
    in_channel_bytes: u64,
    /// A task waits for the client to catch up, and reports it.
    watched: bool,
    /// The client was told that nothing more comes, and nothing came since.
    pub(super) is_told_end: bool,
    /// Totals that the client granted.
    granted: (u64, u64),
    /// Bytes that were delivered, as credit counts them.
    used_bytes: u64,
    bytes_max: u64,
    /// What deliveries of the subscription take their bytes from.
    budget: ByteBudget,
}

impl Outbox {
    pub(super) fn new(
        bytes_max: usize,
        budget: ByteBudget,
    ) -> (Outbox, mpsc::Receiver<ConsumerEvent>) {
        let (sender, receiver) = mpsc::channel(CHANNEL_EVENTS + 1);
        let last = sender.clone().try_reserve_owned().ok();
        let outbox = Outbox {
            sender,
            last,
            queue: VecDeque::new(),
            queue_bytes: 0,
            in_channel: VecDeque::new(),
            in_channel_bytes: 0,
            watched: false,
            is_told_end: false,
            granted: (0, 0),
            used_bytes: 0,
            bytes_max: u64::try_from(bytes_max).unwrap_or(u64::MAX),
            budget,
        };
        (outbox, receiver)
    }

    /// Whether the client took its end away.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Whether the client lets too much pile up.
    pub(super) fn is_overfull(&self) -> bool {
        self.queue.len() > QUEUED_EVENTS_MAX
    }

    /// Notes what the client grants.
    pub(super) fn grant(&mut self, messages: u64, bytes: u64) {
        self.granted = (self.granted.0.max(messages), self.granted.1.max(bytes));
    }

    /// What the subscription may use of what was granted: no more bytes than fit.
    pub(super) fn allowance(&mut self) -> Allowance {
        self.look();
        let (piled, ahead) = (self.piled(), self.ahead());
        let (messages, granted) = self.granted;
        let bytes = granted.min(self.used_bytes.saturating_add(ahead));
        let stopped = piled > self.bytes_max / 2 || (piled > 0 && ahead == 0);
        Allowance {
            messages,
            bytes,
            is_held_back: !self.queue.is_empty() || (bytes < granted && stopped),
        }
    }

    /// Bytes in flight to the client, as far as this knows.
    fn piled(&self) -> u64 {
        self.queue_bytes + self.in_channel_bytes
    }

    /// Bytes that the client may be sent beyond what is in flight. One that has read everything
    /// may always have an entry, which waits for its turn in the budget.
    fn ahead(&self) -> u64 {
        let piled = self.piled();
        let own = self.bytes_max.saturating_sub(piled).min(AHEAD_BYTES_MAX);
        let shared = u64::try_from(self.budget.room_bytes()).unwrap_or(u64::MAX);
        own.min(shared.max(u64::from(piled == 0)))
    }

    pub(super) fn push(&mut self, event: ConsumerEvent) {
        let bytes = bytes_of(&event);
        match &event {
            ConsumerEvent::Deliveries { .. } | ConsumerEvent::Gap { .. } => {
                self.is_told_end = false
            }
            ConsumerEvent::EndOfTopic { .. } => self.is_told_end = true,
            _ => {}
        }
        self.used_bytes = self.used_bytes.saturating_add(bytes);
        self.queue_bytes += bytes;
        self.enqueue(event);
        self.flush();
    }

    fn enqueue(&mut self, event: ConsumerEvent) {
        match (self.queue.back_mut(), event) {
            (
                Some(ConsumerEvent::Deliveries {
                    owner_epoch,
                    seek_epoch,
                    deliveries,
                }),
                ConsumerEvent::Deliveries {
                    owner_epoch: owner,
                    seek_epoch: seek,
                    deliveries: more,
                },
            ) if *owner_epoch == owner && *seek_epoch == seek => deliveries.extend(more),
            (_, event) => self.queue.push_back(event),
        }
    }

    /// Moves what fits into the channel.
    pub(super) fn flush(&mut self) {
        if self.watched {
            // The watcher holds a claim on all room that becomes free; it will call again.
            return;
        }
        while let Some(event) = self.queue.pop_front() {
            let bytes = bytes_of(&event);
            match self.sender.try_send(event) {
                Ok(()) => {
                    self.queue_bytes -= bytes;
                    self.in_channel.push_back(bytes);
                    self.in_channel_bytes += bytes;
                }
                Err(TrySendError::Full(event)) => {
                    self.queue.push_front(event);
                    break;
                }
                Err(TrySendError::Closed(_)) => {
                    self.queue_bytes -= bytes;
                }
            }
        }
        self.look();
    }

    /// Updates what is in the channel from how much of it is taken.
    fn look(&mut self) {
        let reserved = usize::from(self.last.is_some());
        let taken = self
            .sender
            .max_capacity()
            .saturating_sub(self.sender.capacity())
            .saturating_sub(reserved);
        // While a watcher claims free places they look taken: then the count comes too high.
        while self.in_channel.len() > taken {
            let bytes = self.in_channel.pop_front().unwrap_or(0);
            self.in_channel_bytes -= bytes;
        }
    }

    /// Has a task wait until the client has read most of what it was sent.
    pub(super) fn watch(
        &mut self,
        subscription: SubscriptionId,
        consumer: ConsumerId,
        mailbox: &Mailbox,
        tasks: &TaskGroup,
    ) {
        if self.watched {
            return;
        }
        self.watched = true;
        let (sender, mailbox) = (self.sender.clone(), mailbox.clone());
        // One event in the channel may be all that is there, if it is large: then wait for it.
        let places = self.sender.max_capacity() - usize::from(self.last.is_some());
        let wanted = match self.in_channel.len() {
            waiting if waiting * 2 <= places => places,
            _ => places / 2,
        };
        let token = tasks.shutdown_token();
        tasks.spawn("consumer-drain", async move {
            tokio::select! {
                drained = sender.reserve_many(wanted) => drop(drained),
                () = token.wait() => {}
            }
            // A topic that has ended needs no answer.
            let _ = mailbox.send(Event::Drained(subscription, consumer)).await;
        });
    }

    /// The watcher has come back.
    pub(super) fn drained(&mut self) {
        self.watched = false;
        self.flush();
    }

    /// Ends the session.
    pub(super) fn fail(&mut self, error: ApiError) {
        self.queue.clear();
        if let Some(last) = self.last.take() {
            last.send(ConsumerEvent::Failed(error));
        }
    }
}

/// Bytes as credit counts them: those of the batches.
fn bytes_of(event: &ConsumerEvent) -> u64 {
    match event {
        ConsumerEvent::Deliveries { deliveries, .. } => {
            deliveries.iter().map(|d| d.body.len() as u64).sum()
        }
        ConsumerEvent::Gap { .. }
        | ConsumerEvent::Confirmed { .. }
        | ConsumerEvent::AcknowledgeRefused { .. }
        | ConsumerEvent::SeekRefused { .. }
        | ConsumerEvent::SeekDone { .. }
        | ConsumerEvent::Active(_)
        | ConsumerEvent::EndOfTopic { .. }
        | ConsumerEvent::Failed(_) => 0,
    }
}

/// Messages of a delivery that are for the consumer.
pub(super) fn messages_of(delivery: &Delivery) -> u64 {
    let skipped: u64 = delivery
        .skip
        .iter()
        .map(|range| range.last.0 + 1 - range.first.0)
        .sum();
    u64::from(delivery.message_count).saturating_sub(skipped)
}

#[cfg(test)]
mod tests {
    use aquifer_model::format::FORMAT_NATIVE;
    use aquifer_model::id::{EntryId, Index, LedgerId, OwnerEpoch, SeekEpoch};
    use aquifer_protocol_api::consumer::Held;
    use aquifer_protocol_api::producer::StoredAt;
    use proptest::prelude::*;

    use super::*;

    const WHOLE: usize = 4_096;
    const QUEUE: usize = 2_048;

    #[derive(Debug, Clone)]
    enum Step {
        Grant(u64),
        Send(usize),
        Read,
        OthersTake(usize),
        OthersGiveBack,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (1..4_000_u64).prop_map(Step::Grant),
            (1..1_500_usize).prop_map(Step::Send),
            Just(Step::Read),
            (1..WHOLE).prop_map(Step::OthersTake),
            Just(Step::OthersGiveBack),
        ];
        prop::collection::vec(step, 1..60)
    }

    fn deliveries(bytes: usize) -> ConsumerEvent {
        let delivery = Delivery {
            at: StoredAt {
                ledger: LedgerId(1),
                entry: EntryId(0),
                base_index: Index(0),
            },
            broker_time_ms: 0,
            redelivered: Vec::new(),
            skip: Vec::new(),
            message_count: 1,
            format: FORMAT_NATIVE,
            body: vec![0; bytes].into(),
            held: Held::default(),
        };
        ConsumerEvent::Deliveries {
            owner_epoch: OwnerEpoch(1),
            seek_epoch: SeekEpoch(0),
            deliveries: vec![delivery],
        }
    }

    proptest! {
        /// A client that grants more than it was sent may be sent more, or is waited for: else
        /// nothing would happen any more. That both are said by one look is not seen here.
        #[test]
        fn who_may_be_sent_nothing_is_waited_for(steps in steps()) {
            let whole = ByteBudget::new(WHOLE);
            let (mut out, mut events) = Outbox::new(QUEUE, whole.child(usize::MAX));
            let (mut granted, mut sent, mut others) = (0, 0, Vec::new());
            for step in steps {
                match step {
                    Step::Grant(bytes) => {
                        granted += bytes;
                        out.grant(u64::MAX, granted);
                    }
                    Step::Send(bytes) => {
                        sent += bytes as u64;
                        out.push(deliveries(bytes));
                    }
                    Step::Read => drop(events.try_recv()),
                    Step::OthersTake(bytes) => others.extend(whole.try_acquire(bytes)),
                    Step::OthersGiveBack => others.clear(),
                }
                let allowed = out.allowance();
                prop_assert!(allowed.bytes <= granted);
                if granted > sent {
                    prop_assert!(allowed.bytes > sent || allowed.is_held_back, "{allowed:?}");
                }
            }
        }
    }
}
