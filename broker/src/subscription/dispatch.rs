//! The inner steps of a subscription: what is refused, who has room, what of an entry goes to whom.
//!
//! Invariant of a durable subscription: what lies between the mark and `read` and is neither
//! pending nor in replay is acknowledged.

use std::ops::Range;

use aquifer_log::LogEntry;
use aquifer_model::id::Index;
use aquifer_model::limits::{
    ACK_RANGES_MAX, CONSUMERS_PER_SUBSCRIPTION_MAX, UNACKED_PER_CONSUMER_MAX,
    UNACKED_PER_SUBSCRIPTION_MAX,
};
use aquifer_model::subscription::SubscriptionType;
use aquifer_protocol_api::consumer::{Acknowledge, Delivery, IndexRange};
use aquifer_protocol_api::error::{ApiError, ErrorKind};
use aquifer_protocol_api::producer::StoredAt;

use super::cursor::RANGE_WIDTH_MAX;
use super::failover::Switch;
use super::pending::{Held, Pending};
use super::{Attach, Consumer, ConsumerId, Notice, Policy, Subscription};

/// Consumers of a Shared subscription whose credit is summed up for one read.
const READ_CONSUMERS_MAX: usize = 32;

impl Subscription {
    pub(super) fn check_attach(&self, attach: &Attach) -> Result<(), ApiError> {
        if self.durable && attach.kind == SubscriptionType::KeyShared {
            return Err(ApiError::new(
                ErrorKind::Unimplemented,
                "Key_Shared subscriptions are not built yet",
            )
            .advise("subscribe as shared, or as failover where order matters"));
        }
        if self.durable && !self.consumers.is_empty() && self.kind != attach.kind {
            return Err(ApiError::new(
                ErrorKind::FailedPrecondition,
                format!(
                    "the subscription has consumers of type {:?}, not {:?}",
                    self.kind, attach.kind
                ),
            )
            .advise("use their type, or close them first"));
        }
        if self.consumers.len() >= CONSUMERS_PER_SUBSCRIPTION_MAX {
            return Err(ApiError::new(
                ErrorKind::QuotaExceeded,
                format!("the subscription has {CONSUMERS_PER_SUBSCRIPTION_MAX} consumers already"),
            ));
        }
        if self.consumers.contains_key(&attach.consumer) {
            return Err(ApiError::new(
                ErrorKind::Internal,
                "a consumer attached twice",
            ));
        }
        Ok(())
    }

    pub(super) fn check_acknowledge(&self, ack: &Acknowledge) -> Result<(), ApiError> {
        let refuse = |kind, message: String| Err(ApiError::new(kind, message));
        if ack.individual.len() > ACK_RANGES_MAX {
            let count = ack.individual.len();
            return refuse(
                ErrorKind::TooLarge,
                format!("{count} ranges acknowledged at once, at most {ACK_RANGES_MAX} may be"),
            );
        }
        if ack.cumulative.is_some() && self.kind == SubscriptionType::Shared {
            return refuse(
                ErrorKind::InvalidArgument,
                "a Shared subscription has no order to acknowledge cumulatively".to_owned(),
            );
        }
        if let Some(bad) = ack.individual.iter().find(|range| range.first > range.last) {
            return refuse(
                ErrorKind::InvalidArgument,
                format!(
                    "acknowledged range {} to {} is reversed",
                    bad.first, bad.last
                ),
            );
        }
        let lasts = ack.individual.iter().map(|range| range.last);
        let delivered = self.read.max(self.earlier);
        if let Some(last) = lasts.chain(ack.cumulative).find(|last| last.0 >= delivered) {
            return refuse(
                ErrorKind::InvalidArgument,
                format!("message {last} was never delivered, so it cannot be acknowledged"),
            );
        }
        // Replay would refuse it.
        let is_wide = |range: &&IndexRange| range.last.0 - range.first.0 >= RANGE_WIDTH_MAX;
        match ack.individual.iter().find(is_wide) {
            Some(wide) => refuse(
                ErrorKind::TooLarge,
                format!("range {} to {} is too wide for one", wide.first, wide.last),
            ),
            None => Ok(()),
        }
    }

    /// Carries out a change of the served consumer.
    pub(super) fn switched(&mut self, switch: Option<Switch>) -> Vec<Notice> {
        let mut notices = Vec::new();
        let Some(switch) = switch else {
            return notices;
        };
        if let Some(consumer) = switch.from {
            self.release(consumer, 0);
            notices.push(Notice::Active {
                consumer,
                active: false,
            });
        }
        if let Some(consumer) = switch.to {
            notices.push(Notice::Active {
                consumer,
                active: true,
            });
        }
        notices
    }

    /// Moves what a consumer holds from `earliest` on to the replay set.
    pub(super) fn release(&mut self, consumer: ConsumerId, earliest: u64) {
        let given_up = self.pending.take_from(earliest..u64::MAX, consumer);
        self.replay.add(given_up);
    }

    /// Takes out what of `range` is held or waits; says whether that was anything, or whether some of
    /// it is yet to be read: then it was delivered before the topic was loaded.
    pub(super) fn settle(&mut self, range: Range<u64>) -> bool {
        let held = self.pending.take(range.clone());
        for (_, held) in &held {
            self.wake(held.consumer);
        }
        self.damaged.take(range.clone(), |()| true);
        let unread = range.start.max(self.read)..range.end;
        let earlier = !unread.is_empty() && !self.cursor.unacknowledged(unread).is_empty();
        self.replay.remove(range) > 0 || !held.is_empty() || earlier
    }

    /// Gives a consumer that may have got room its turns.
    pub(super) fn wake(&mut self, consumer: ConsumerId) {
        if let Policy::Shared(shared) = &mut self.policy
            && self.consumers.contains_key(&consumer)
        {
            shared.wake(consumer);
        }
    }

    pub(super) fn keeps_order(&self) -> bool {
        !matches!(self.policy, Policy::Shared(_))
    }

    /// Whether the cap on unacknowledged messages of a Shared subscription allows new ones.
    pub(super) fn may_dispatch_new(&self) -> bool {
        self.keeps_order()
            || self.pending.counted() + self.replay.total() < UNACKED_PER_SUBSCRIPTION_MAX
    }

    /// Messages and bytes that can be delivered now; `None` when nobody has room.
    pub(super) fn room(&self) -> Option<(u64, u64)> {
        let room = |id| room_of(self.consumers.get(&id)?, &self.pending, id);
        match &self.policy {
            Policy::Exclusive(exclusive) => room(exclusive.active()?),
            Policy::Failover(failover) => room(failover.active()?),
            Policy::Shared(shared) => shared
                .waiting()
                .filter_map(room)
                .take(READ_CONSUMERS_MAX)
                .reduce(|a, b| (a.0.saturating_add(b.0), a.1.saturating_add(b.1))),
        }
    }

    /// Who takes the next entry.
    pub(super) fn choose(&mut self) -> Option<ConsumerId> {
        let (consumers, pending) = (&self.consumers, &self.pending);
        let has_room = |id: ConsumerId| {
            let consumer = consumers.get(&id);
            consumer.is_some_and(|consumer| room_of(consumer, pending, id).is_some())
        };
        match &mut self.policy {
            Policy::Exclusive(exclusive) => exclusive.active().filter(|id| has_room(*id)),
            Policy::Failover(failover) => failover.active().filter(|id| has_room(*id)),
            Policy::Shared(shared) => shared.next(has_room),
        }
    }

    /// What of an entry is to be delivered, and how often it was: what waits in replay, and what is
    /// new and not acknowledged.
    pub(super) fn wanted(&self, window: &Range<u64>) -> Vec<(Range<u64>, u32)> {
        let mut wanted = self.replay.overlap(window.clone());
        let new = window.start.max(self.read)..window.end;
        if !new.is_empty() {
            let new = self.cursor.unacknowledged(new);
            wanted.extend(new.into_iter().map(|part| (part, 0)));
        }
        wanted
    }

    /// Whether nothing that was never delivered lies between `read` and `start`.
    pub(super) fn continues_at(&self, start: u64) -> bool {
        start <= self.read || start <= self.cursor.next_unacknowledged(Index(self.read)).0
    }

    /// Gives the wanted parts of an entry to a consumer.
    pub(super) fn hand_out(
        &mut self,
        consumer: ConsumerId,
        entry: &LogEntry,
        wanted: &[(Range<u64>, u32)],
    ) -> Delivery {
        let window = entry.head.base_index.0..entry.head.end_index().0;
        let mut skip = Vec::new();
        let (mut at, mut messages, mut redelivery_count) = (window.start, 0, 0);
        for (part, redeliveries) in wanted {
            push_range(&mut skip, at..part.start);
            at = part.end;
            messages += part.end - part.start;
            redelivery_count = redelivery_count.max(*redeliveries);
            if self.durable {
                self.replay.remove(part.clone());
                self.damaged.take(part.clone(), |()| true);
                let held = Held {
                    consumer,
                    redeliveries: *redeliveries,
                    damaged: false,
                };
                self.pending.add(part.clone(), held);
            }
        }
        push_range(&mut skip, at..window.end);
        if !self.durable {
            self.cursor.acknowledge_cumulative(Index(at - 1));
            self.durable_mark_delete = self.cursor.mark_delete();
        }
        if let Some(attached) = self.consumers.get_mut(&consumer) {
            let bytes = u64::try_from(entry.body.len()).unwrap_or(u64::MAX);
            attached.consume(messages, bytes);
        }
        self.read = self.read.max(window.end);
        Delivery {
            at: StoredAt {
                ledger: entry.ledger,
                entry: entry.entry,
                base_index: entry.head.base_index,
            },
            broker_time_ms: entry.head.broker_time_ms,
            redelivery_count,
            skip,
            message_count: entry.head.message_count,
            format: entry.head.format,
            body: entry.body.clone(),
            held: Default::default(),
        }
    }
}

fn room_of(consumer: &Consumer, pending: &Pending, id: ConsumerId) -> Option<(u64, u64)> {
    let (messages, bytes) = consumer.credit_left()?;
    let allowed = UNACKED_PER_CONSUMER_MAX.saturating_sub(pending.held_by(id));
    (allowed > 0).then_some((messages.min(allowed), bytes))
}

fn push_range(ranges: &mut Vec<IndexRange>, range: Range<u64>) {
    if !range.is_empty() {
        ranges.push(IndexRange {
            first: Index(range.start),
            last: Index(range.end - 1),
        });
    }
}
