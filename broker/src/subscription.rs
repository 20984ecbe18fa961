//! One subscription or reader of a topic: what is acknowledged, who gets what next, what comes
//! back.
//!
//! A state machine without I/O, async or clocks; the topic's owner task feeds it and carries out
//! what it says. Every message at or above the mark is in exactly one of four places: acknowledged
//! (cursor), held by a consumer (pending), waiting to be delivered again (replay), or not yet read.
//! Redeliveries come before new messages, in index order, so Exclusive and Failover see partition
//! order that restarts at the earliest message that came back (I7).
//!
//! The state moves at once, but an acknowledgement is not confirmed here: the owner makes the
//! returned [`AckDelta`] durable, in order, then calls [`Subscription::confirm`], and only what is
//! confirmed may be trimmed ([`Subscription::durable_mark_delete`]).

pub mod cursor;

mod consumer;
mod dispatch;
mod exclusive;
mod failover;
mod gaps;
mod pending;
mod ranges;
mod redelivery;
mod shared;

use std::collections::BTreeMap;

use aquifer_log::LogEntry;
use aquifer_model::id::{Index, OwnerEpoch, SeekEpoch};
use aquifer_model::stats::SubscriptionStats;
use aquifer_model::subscription::SubscriptionType;
use aquifer_model::topic::ConsumerName;
use aquifer_proto::v1;
use aquifer_protocol_api::consumer::{Acknowledge, Delivery, IndexRange, NegativeAcknowledge};
use aquifer_protocol_api::error::ApiError;

use self::consumer::Consumer;
use self::cursor::CursorState;
use self::exclusive::Exclusive;
use self::failover::{Failover, Switch};
use self::pending::Pending;
use self::ranges::RangeMap;
use self::redelivery::Replay;
use self::shared::Shared;

/// Most bytes that one read asks for.
const READ_BYTES_MAX: u64 = 1024 * 1024;
/// Most entries that one read asks for.
const READ_ENTRIES_MAX: u64 = 1024;

/// A consumer of a topic, unique while the topic is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConsumerId(pub u64);

/// What a subscription is made from.
#[derive(Debug, Clone)]
pub struct SubscriptionSpec {
    /// Its name; readers have one made up.
    pub name: String,
    /// How consumers share; a reader is Exclusive whatever is said here.
    pub kind: SubscriptionType,
    /// False for a reader: what is delivered counts as acknowledged, and nothing is logged.
    pub durable: bool,
    /// Where it stands.
    pub cursor: CursorState,
    /// Below this index an earlier load of the topic may have delivered.
    pub delivered: Index,
    /// When it was created, ms since the Unix epoch.
    pub created_ms: u64,
}

/// A consumer that wants to attach.
#[derive(Debug, Clone)]
pub struct Attach {
    /// Who.
    pub consumer: ConsumerId,
    /// How it expects messages to be shared.
    pub kind: SubscriptionType,
    /// For stats.
    pub name: Option<ConsumerName>,
    /// Lower is served first (Failover).
    pub priority: i32,
}

/// Something that consumers are to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// Failover: whether the consumer is the one that is served.
    Active {
        /// Whom to tell.
        consumer: ConsumerId,
        /// Whether it is served.
        active: bool,
    },
}

/// What became of an acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AckOutcome {
    /// To be logged; confirmed when that is durable.
    Log(AckDelta),
    /// Nothing new: to be confirmed when everything logged so far is durable, since the
    /// acknowledgement that it repeats may still be on its way.
    Unchanged,
    /// From before a seek, or of another owner's delivery: dropped (H9, H12). Where it asks for a
    /// confirmation it may have one, as what it acknowledged has become void.
    Stale,
    /// Refused; nothing changed.
    Invalid(ApiError),
}

/// An acknowledgement to be made durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AckDelta {
    /// The seek epoch in which it holds.
    pub seek_epoch: SeekEpoch,
    /// Everything up to here, inclusive.
    pub cumulative: Option<Index>,
    /// Single messages.
    pub individual: Vec<IndexRange>,
    /// Where the mark is after it.
    mark_delete: Index,
}

impl AckDelta {
    /// As it is logged.
    #[must_use]
    pub fn to_wire(&self) -> v1::AckDelta {
        v1::AckDelta {
            seek_epoch: self.seek_epoch.0,
            cumulative: self.cumulative.map(|index| index.0),
            individual: self
                .individual
                .iter()
                .map(|range| v1::IndexRange {
                    first: range.first.0,
                    last: range.last.0,
                })
                .collect(),
        }
    }
}

/// What to read from the topic log. Whether there is anything at `from` the log knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextRead {
    /// The message to begin with; its whole entry is wanted.
    pub from: Index,
    /// Most bytes, but at least one entry.
    pub bytes_max: usize,
    /// Most entries.
    pub entries_max: usize,
    /// A read of an older seek epoch is void.
    seek_epoch: SeekEpoch,
}

#[derive(Debug, Clone)]
enum Policy {
    Exclusive(Exclusive),
    Failover(Failover),
    Shared(Shared),
}

/// One subscription or reader.
#[derive(Debug, Clone)]
pub struct Subscription {
    name: String,
    kind: SubscriptionType,
    durable: bool,
    created_ms: u64,
    cursor: CursorState,
    durable_mark_delete: Index,
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

impl Subscription {
    /// A subscription without consumers, new or recovered.
    #[must_use]
    pub fn new(spec: SubscriptionSpec) -> Subscription {
        let kind = if spec.durable {
            spec.kind
        } else {
            SubscriptionType::Exclusive
        };
        let mark_delete = spec.cursor.mark_delete();
        Subscription {
            name: spec.name,
            kind,
            durable: spec.durable,
            created_ms: spec.created_ms,
            cursor: spec.cursor,
            durable_mark_delete: mark_delete,
            read: mark_delete.0,
            earlier: spec.delivered.0,
            pending: Pending::default(),
            replay: Replay::default(),
            damaged: RangeMap::default(),
            policy: policy_of(kind),
            consumers: BTreeMap::new(),
        }
    }

    /// Attaches a consumer. Nobody being attached, the first one decides how messages are shared.
    ///
    /// # Errors
    /// When somebody holds it exclusively, shares it otherwise, a bound is reached, or the type is
    /// not built.
    pub fn attach(&mut self, attach: Attach) -> Result<Vec<Notice>, ApiError> {
        self.check_attach(&attach)?;
        let consumer = attach.consumer;
        if self.consumers.is_empty() && self.durable && self.kind != attach.kind {
            self.kind = attach.kind;
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

    /// Detaches a consumer: what it holds is redelivered.
    pub fn detach(&mut self, consumer: ConsumerId) -> Vec<Notice> {
        if self.consumers.remove(&consumer).is_none() {
            return Vec::new();
        }
        self.release(consumer, 0);
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
    pub fn credit(&mut self, consumer: ConsumerId, messages_total: u64, bytes_total: u64) {
        if let Some(attached) = self.consumers.get_mut(&consumer) {
            attached.grant(messages_total, bytes_total);
            self.wake(consumer);
        }
    }

    /// Takes an acknowledgement. Only what was delivered can be acknowledged, by whomever: after a
    /// reconnect that is another consumer than it was delivered to.
    pub fn acknowledge(
        &mut self,
        consumer: ConsumerId,
        ack: &Acknowledge,
        owner_epoch: OwnerEpoch,
    ) -> AckOutcome {
        let current = ack.owner_epoch == owner_epoch && ack.seek_epoch == self.cursor.seek_epoch();
        if !current || !self.consumers.contains_key(&consumer) {
            return AckOutcome::Stale;
        }
        if let Err(error) = self.check_acknowledge(ack) {
            return AckOutcome::Invalid(error);
        }
        let mut delta = AckDelta {
            seek_epoch: self.cursor.seek_epoch(),
            cumulative: None,
            individual: Vec::new(),
            mark_delete: self.cursor.mark_delete(),
        };
        if let Some(last) = ack.cumulative
            && self.settle(0..last.0 + 1)
        {
            self.cursor.acknowledge_cumulative(last);
            delta.cumulative = Some(last);
        }
        for range in &ack.individual {
            // Clamped, and only if a consumer holds or awaits some of it: everything else below
            // `read` is acknowledged already, so repeating costs no more than a look.
            let first = range.first.max(self.cursor.mark_delete());
            let last = range.last;
            if first <= last && self.settle(first.0..last.0 + 1) {
                self.cursor.acknowledge_range(IndexRange { first, last });
                delta.individual.push(IndexRange { first, last });
            }
        }
        if delta.cumulative.is_none() && delta.individual.is_empty() {
            return AckOutcome::Unchanged;
        }
        delta.mark_delete = self.cursor.mark_delete();
        AckOutcome::Log(delta)
    }

    /// Notes that an acknowledgement is durable. Deltas are confirmed in the order in which they
    /// were returned.
    pub fn confirm(&mut self, delta: &AckDelta) {
        if delta.seek_epoch == self.cursor.seek_epoch() {
            self.durable_mark_delete = self.durable_mark_delete.max(delta.mark_delete);
        }
    }

    /// Takes the wish for redelivery of what `consumer` holds. In order-keeping types everything
    /// that it holds from the earliest of these on is redelivered, so that order restarts (I7).
    pub fn negative_acknowledge(
        &mut self,
        consumer: ConsumerId,
        negative: &NegativeAcknowledge,
        owner_epoch: OwnerEpoch,
    ) {
        if negative.owner_epoch != owner_epoch || negative.seek_epoch != self.cursor.seek_epoch() {
            return;
        }
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
                self.release(consumer, earliest);
            }
        }
        self.wake(consumer);
    }

    /// Moves the subscription: everything in flight is void. The owner logs the seek and calls
    /// [`Subscription::confirm_seek`]; until then trimming keeps what both places need.
    pub fn seek(&mut self, index: Index) -> SeekEpoch {
        let epoch = self.cursor.seek(index);
        self.durable_mark_delete = if self.durable {
            self.durable_mark_delete.min(index)
        } else {
            index
        };
        self.read = index.0;
        self.earlier = 0;
        self.pending.clear();
        self.replay.clear();
        self.damaged.clear();
        let everybody: Vec<ConsumerId> = self.consumers.keys().copied().collect();
        for consumer in everybody {
            self.wake(consumer);
        }
        epoch
    }

    /// Notes that a seek is durable.
    pub fn confirm_seek(&mut self, epoch: SeekEpoch, index: Index) {
        if epoch == self.cursor.seek_epoch() {
            self.durable_mark_delete = self.durable_mark_delete.max(index);
        }
    }

    /// Notes that the log begins at `first` now: what was below it can no longer be delivered.
    pub fn trimmed(&mut self, first: Index) {
        if first > self.cursor.mark_delete() {
            self.settle(0..first.0);
            self.cursor.acknowledge_cumulative(Index(first.0 - 1));
            self.durable_mark_delete = self.durable_mark_delete.max(first);
        }
        self.read = self.read.max(first.0);
    }

    /// What to read next; `None` when nobody has room. Replay comes before new messages.
    #[must_use]
    pub fn next_read(&self) -> Option<NextRead> {
        let (messages, bytes) = self.room()?;
        let (from, messages) = match self.replay.first() {
            Some(range) => (range.start, messages.min(range.end - range.start)),
            None if self.may_dispatch_new() => (
                self.cursor.next_unacknowledged(Index(self.read)).0,
                messages,
            ),
            None => return None,
        };
        let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Some(NextRead {
            from: Index(from),
            bytes_max: size(bytes.min(READ_BYTES_MAX)),
            entries_max: size(messages.min(READ_ENTRIES_MAX)),
            seek_epoch: self.cursor.seek_epoch(),
        })
    }

    /// Hands out what was read for `read`: consecutive entries from the one that contains
    /// `read.from` on. What is acknowledged or held meanwhile is skipped, and what exceeds the
    /// credit left untouched, to be read again.
    pub fn deliver(
        &mut self,
        read: &NextRead,
        entries: &[LogEntry],
    ) -> Vec<(ConsumerId, Delivery)> {
        let mut deliveries = Vec::new();
        if read.seek_epoch != self.cursor.seek_epoch() {
            return deliveries;
        }
        if let Some(first) = entries.first()
            && first.head.base_index > read.from
        {
            // The log answers from its beginning on: what was asked for has been trimmed.
            self.trimmed(first.head.base_index);
        }
        for entry in entries {
            let window = entry.head.base_index.0..entry.head.end_index().0;
            if !self.continues_at(window.start) {
                break;
            }
            let wanted = self.wanted(&window);
            let Some((first, _)) = wanted.first() else {
                self.read = self.read.max(window.end);
                continue;
            };
            let earlier = self
                .replay
                .first()
                .filter(|range| range.start < first.start);
            if self.keeps_order() && earlier.is_some() {
                break;
            }
            if wanted.iter().any(|(part, _)| part.start >= self.read) && !self.may_dispatch_new() {
                break;
            }
            let Some(consumer) = self.choose() else {
                break;
            };
            deliveries.push((consumer, self.hand_out(consumer, entry, &wanted)));
        }
        deliveries
    }

    /// The first index that is not acknowledged, durably or not.
    #[must_use]
    pub fn mark_delete(&self) -> Index {
        self.cursor.mark_delete()
    }

    /// The first index that is not durably acknowledged: what trimming may go by.
    #[must_use]
    pub fn durable_mark_delete(&self) -> Index {
        self.durable_mark_delete
    }

    /// The seek epoch that deliveries carry.
    #[must_use]
    pub fn seek_epoch(&self) -> SeekEpoch {
        self.cursor.seek_epoch()
    }

    /// Where delivery continues for a consumer that attaches now.
    #[must_use]
    pub fn start(&self) -> Index {
        let new = self.cursor.next_unacknowledged(Index(self.read));
        match self.replay.first() {
            Some(range) => new.min(Index(range.start)),
            None => new,
        }
    }

    /// How consumers share.
    #[must_use]
    pub fn kind(&self) -> SubscriptionType {
        self.kind
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it outlives its consumers.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.durable
    }

    /// Who is attached.
    pub fn consumers(&self) -> impl ExactSizeIterator<Item = ConsumerId> + '_ {
        self.consumers.keys().copied()
    }

    /// Messages below `end` that are not acknowledged.
    #[must_use]
    pub fn backlog(&self, end: Index) -> u64 {
        self.cursor.backlog(end)
    }

    /// What it looks like from outside, the log ending at `end`.
    #[must_use]
    pub fn stats(&self, end: Index) -> SubscriptionStats {
        let name = |consumer: &Consumer| {
            let name = consumer.name.as_ref();
            name.map_or_else(String::new, ToString::to_string)
        };
        SubscriptionStats {
            name: self.name.clone(),
            kind: self.kind,
            mark_delete: self.cursor.mark_delete(),
            backlog_messages: self.backlog(end),
            unacknowledged_messages: self.pending.total(),
            damaged_messages: self.damaged.total(),
            consumers: self.consumers.values().map(name).collect(),
            durable: self.durable,
            acknowledged_ranges: self.cursor.acknowledged_ranges(),
        }
    }

    /// What is to be stored of it. May be ahead of what is durable: a snapshot goes to the log
    /// behind every delta that it includes.
    #[must_use]
    pub fn state(&self) -> v1::SubscriptionState {
        self.cursor.encode(&self.name, self.kind, self.created_ms)
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

#[cfg(test)]
mod tests;
