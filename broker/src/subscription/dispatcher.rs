//! The dispatcher of a subscription: which consumer gets which message next, and what comes back.
//!
//! It holds what is lost with the topic's owner: consumers with their credit, what they hold, what
//! is to be delivered again. The cursor is lent to it by the subscription.
//!
//! Invariant of a durable subscription: what lies between the mark and `read` and is neither
//! pending nor in replay is acknowledged.

mod deliver;
mod gaps;

use std::collections::BTreeMap;
use std::ops::Range;

use aquifer_model::id::Index;
use aquifer_model::limits::{
    CONSUMERS_PER_SUBSCRIPTION_MAX, UNACKED_PER_CONSUMER_MAX, UNACKED_PER_SUBSCRIPTION_MAX,
};
use aquifer_model::subscription::SubscriptionType;
use aquifer_protocol_api::consumer::NegativeAcknowledge;
use aquifer_protocol_api::error::{ApiError, ErrorKind};

use super::consumer::Consumer;
use super::cursor::Cursor;
use super::exclusive::Exclusive;
use super::failover::{Failover, Switch};
use super::pending::Pending;
use super::ranges::RangeMap;
use super::replay::Replay;
use super::shared::Shared;
use super::{Attach, ConsumerId, NextRead, Notice};

/// Most bytes that one read asks for.
const READ_BYTES_MAX: u64 = 1024 * 1024;
/// Most entries that one read asks for.
const READ_ENTRIES_MAX: u64 = 1024;
/// Consumers of a Shared subscription whose credit is summed up for one read.
const READ_CONSUMERS_MAX: usize = 32;

#[derive(Debug)]
enum Policy {
    Exclusive(Exclusive),
    Failover(Failover),
    Shared(Shared),
}

/// Consumers of one subscription, and the messages between the log and them.
#[derive(Debug)]
pub(super) struct Dispatcher {
    /// The first message that was never delivered in this seek epoch by this object.
    read: u64,
    /// What lies below may have been delivered before the topic was loaded, by the same owner.
    earlier: u64,
    pending: Pending,
    replay: Replay,
    /// Of all these, what storage could not give when it was read last.
    damaged: RangeMap<()>,
    policy: Policy,
    consumers: BTreeMap<ConsumerId, Consumer>,
}

impl Dispatcher {
    /// A dispatcher without consumers. An earlier load of the topic may have delivered what is below
    /// `delivered`.
    pub(super) fn new(cursor: &Cursor, delivered: Index) -> Dispatcher {
        Dispatcher {
            read: cursor.mark_delete().0,
            earlier: delivered.0,
            pending: Pending::default(),
            replay: Replay::default(),
            damaged: RangeMap::default(),
            policy: policy_of(cursor.kind()),
            consumers: BTreeMap::new(),
        }
    }

    /// Attaches a consumer. Without other consumers its type becomes the subscription's.
    pub(super) fn attach(
        &mut self,
        cursor: &mut Cursor,
        attach: Attach,
    ) -> Result<Vec<Notice>, ApiError> {
        self.check_attach(cursor, &attach)?;
        let consumer = attach.consumer;
        if self.consumers.is_empty() && cursor.is_durable() && cursor.kind() != attach.kind {
            cursor.set_kind(attach.kind);
            self.policy = policy_of(attach.kind);
        }
        let mut notices = Vec::new();
        match &mut self.policy {
            Policy::Exclusive(exclusive) => exclusive.attach(consumer)?,
            Policy::Shared(_) => {}
            Policy::Failover(failover) => {
                let switch = failover.attach(consumer, attach.priority);
                notices = self.switched(switch);
                if switch.is_none() {
                    notices.push(Notice::Active {
                        consumer,
                        active: false,
                    });
                }
            }
        }
        self.consumers.insert(consumer, Consumer::new(attach.name));
        Ok(notices)
    }

    fn check_attach(&self, cursor: &Cursor, attach: &Attach) -> Result<(), ApiError> {
        if cursor.is_durable() && attach.kind == SubscriptionType::KeyShared {
            return Err(ApiError::new(
                ErrorKind::Unimplemented,
                "Key_Shared subscriptions are not built yet",
            )
            .advise("subscribe as shared, or as failover where order matters"));
        }
        if cursor.is_durable() && !self.consumers.is_empty() && cursor.kind() != attach.kind {
            return Err(ApiError::new(
                ErrorKind::FailedPrecondition,
                format!(
                    "the subscription has consumers of type {:?}, not {:?}",
                    cursor.kind(),
                    attach.kind
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

    /// Detaches a consumer: what it holds is redelivered.
    pub(super) fn detach(&mut self, consumer: ConsumerId) -> Vec<Notice> {
        if self.consumers.remove(&consumer).is_none() {
            return Vec::new();
        }
        self.give_up(consumer, 0);
        match &mut self.policy {
            Policy::Exclusive(exclusive) => {
                exclusive.detach(consumer);
                Vec::new()
            }
            Policy::Shared(shared) => {
                shared.detach(consumer);
                Vec::new()
            }
            Policy::Failover(failover) => {
                let switch = failover.detach(consumer).map(|switch| Switch {
                    from: None,
                    to: switch.to,
                });
                self.switched(switch)
            }
        }
    }

    /// Raises the totals that a consumer was granted since it attached.
    pub(super) fn credit(&mut self, consumer: ConsumerId, messages_total: u64, bytes_total: u64) {
        if let Some(attached) = self.consumers.get_mut(&consumer) {
            attached.grant(messages_total, bytes_total);
            self.wake(consumer);
        }
    }

    /// Takes messages back that `consumer` holds. In order-keeping types everything that it holds
    /// from the earliest of these on comes back, so that order restarts (I7).
    pub(super) fn negative_acknowledge(
        &mut self,
        consumer: ConsumerId,
        negative: &NegativeAcknowledge,
    ) {
        for range in &negative.ranges {
            let wanted = range.first.0..range.last.0.saturating_add(1);
            if wanted.is_empty() {
                continue;
            }
            let given_up = self.pending.take_from(wanted, consumer);
            let earliest = given_up.first().map(|(part, _)| part.start);
            self.replay.add(given_up);
            if let Some(earliest) = earliest
                && self.keeps_order()
            {
                self.give_up(consumer, earliest);
            }
        }
        self.wake(consumer);
    }

    /// The cursor was moved to `index`: everything in flight is void.
    pub(super) fn restart_at(&mut self, index: Index) {
        self.read = index.0;
        self.earlier = 0;
        self.pending.clear();
        self.replay.clear();
        self.damaged.clear();
        let everybody: Vec<ConsumerId> = self.consumers.keys().copied().collect();
        for consumer in everybody {
            self.wake(consumer);
        }
    }

    /// Notes that the log begins at `first` now.
    pub(super) fn trimmed(&mut self, cursor: &mut Cursor, first: Index) {
        if first > cursor.mark_delete() {
            self.settle(cursor, 0..first.0);
            cursor.pass(first);
        }
        self.read = self.read.max(first.0);
    }

    /// Takes out what of `range` a consumer holds or waits for one, as it is acknowledged. Says
    /// whether that was anything, or whether some of it is yet to be read: then it was delivered
    /// before the topic was loaded. All else below `read` is acknowledged already.
    pub(super) fn settle(&mut self, cursor: &Cursor, range: Range<u64>) -> bool {
        let held = self.pending.take(range.clone());
        for (_, held) in &held {
            self.wake(held.consumer);
        }
        self.damaged.take(range.clone(), |()| true);
        let unread = range.start.max(self.read)..range.end;
        let earlier = !unread.is_empty() && !cursor.unacknowledged(unread).is_empty();
        self.replay.remove(range) > 0 || !held.is_empty() || earlier
    }

    /// What to read next; `None` when no consumer has room. Replay comes before new messages.
    pub(super) fn next_read(&self, cursor: &Cursor) -> Option<NextRead> {
        let (messages, bytes) = self.room()?;
        let (from, messages) = match self.replay.first() {
            Some(range) => (range.start, messages.min(range.end - range.start)),
            None if self.may_dispatch_new() => {
                (cursor.next_unacknowledged(Index(self.read)).0, messages)
            }
            None => return None,
        };
        let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Some(NextRead {
            from: Index(from),
            bytes_max: size(bytes.min(READ_BYTES_MAX)),
            entries_max: size(messages.min(READ_ENTRIES_MAX)),
            seek_epoch: cursor.seek_epoch(),
        })
    }

    /// Where delivery continues for a consumer that attaches now.
    pub(super) fn start(&self, cursor: &Cursor) -> Index {
        let new = cursor.next_unacknowledged(Index(self.read));
        match self.replay.first() {
            Some(range) => new.min(Index(range.start)),
            None => new,
        }
    }

    /// Nothing at or above this index can have been delivered.
    pub(super) fn delivered_end(&self) -> Index {
        Index(self.read.max(self.earlier))
    }

    /// Whether a consumer is attached.
    pub(super) fn has(&self, consumer: ConsumerId) -> bool {
        self.consumers.contains_key(&consumer)
    }

    /// Names of the attached consumers.
    pub(super) fn consumer_names(&self) -> Vec<String> {
        let name = |consumer: &Consumer| {
            let name = consumer.name.as_ref();
            name.map_or_else(String::new, ToString::to_string)
        };
        self.consumers.values().map(name).collect()
    }

    /// Messages that consumers hold.
    pub(super) fn unacknowledged_messages(&self) -> u64 {
        self.pending.total()
    }

    /// Carries out a change of the served consumer.
    fn switched(&mut self, switch: Option<Switch>) -> Vec<Notice> {
        let mut notices = Vec::new();
        let Some(switch) = switch else {
            return notices;
        };
        if let Some(consumer) = switch.from {
            self.give_up(consumer, 0);
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
    fn give_up(&mut self, consumer: ConsumerId, earliest: u64) {
        let given_up = self.pending.take_from(earliest..u64::MAX, consumer);
        self.replay.add(given_up);
    }

    /// Gives a consumer that may have got room its turns.
    fn wake(&mut self, consumer: ConsumerId) {
        if let Policy::Shared(shared) = &mut self.policy
            && self.consumers.contains_key(&consumer)
        {
            shared.wake(consumer);
        }
    }

    fn keeps_order(&self) -> bool {
        !matches!(self.policy, Policy::Shared(_))
    }

    /// Whether the cap on unacknowledged messages of a Shared subscription allows new ones.
    fn may_dispatch_new(&self) -> bool {
        self.keeps_order()
            || self.pending.counted() + self.replay.total() < UNACKED_PER_SUBSCRIPTION_MAX
    }

    /// Messages and bytes that can be delivered now; `None` when no consumer has room.
    fn room(&self) -> Option<(u64, u64)> {
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
    fn choose(&mut self) -> Option<ConsumerId> {
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
}

fn policy_of(kind: SubscriptionType) -> Policy {
    match kind {
        SubscriptionType::Exclusive => Policy::Exclusive(Exclusive::default()),
        SubscriptionType::Failover => Policy::Failover(Failover::default()),
        // Nobody can attach as Key_Shared yet; a stored one waits for a consumer of another type.
        SubscriptionType::Shared | SubscriptionType::KeyShared => Policy::Shared(Shared::default()),
    }
}

fn room_of(consumer: &Consumer, pending: &Pending, id: ConsumerId) -> Option<(u64, u64)> {
    let (messages, bytes) = consumer.credit_left()?;
    let allowed = UNACKED_PER_CONSUMER_MAX.saturating_sub(pending.held_by(id));
    (allowed > 0).then_some((messages.min(allowed), bytes))
}
