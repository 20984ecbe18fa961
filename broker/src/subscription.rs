//! One subscription or reader of a topic: a durable [`cursor::Cursor`] and the dispatcher of its
//! messages.
//!
//! A state machine without I/O, async or clocks; the topic's owner task feeds it and carries out
//! what it returns. Every message at or above the mark is in exactly one of five places:
//! acknowledged (cursor), held by a consumer (pending), waiting to be delivered again (replay),
//! passed over for a reason (held back), or not yet read. What comes in with time comes in as an
//! argument. Redeliveries come before new messages, in index order, so Exclusive and Failover see
//! partition order that restarts at the earliest message that came back (I7).
//!
//! The state moves at once, but an acknowledgement is not confirmed here: the owner makes the
//! returned [`AckDelta`] durable, in order, then calls [`Subscription::confirm`].

pub mod cursor;
pub mod mode;

mod consumer;
mod dispatcher;
mod exclusive;
mod failover;
mod held_back;
mod pending;
mod ranges;
mod replay;
mod shared;

use std::ops::Range;

use aquifer_log::LogEntry;
use aquifer_model::id::{Index, OwnerEpoch, SeekEpoch};
use aquifer_model::limits::{ACK_RANGES_MAX, REDELIVERED_RANGES_MAX};
use aquifer_model::policy::bounds::Unacked;
use aquifer_model::stats::SubscriptionStats;
use aquifer_model::subscription::{Properties, SubscriptionType};
use aquifer_proto::v1;
use aquifer_protocol_api::consumer::{
    Acknowledge, Delivery, IndexRange, NegativeAcknowledge, Redelivered,
};
use aquifer_protocol_api::error::{ApiError, ErrorKind};

pub use self::consumer::{Attach, ConsumerId, Notice};
use self::cursor::state::{CursorState, RANGE_WIDTH_MAX};
use self::cursor::{AckDelta, Commit, Cursor};
use self::dispatcher::Dispatcher;
pub use self::dispatcher::NextRead;

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
    /// What is recorded of it by name.
    pub properties: Properties,
    /// Messages that an earlier owner has delivered, with how often, as far as it has recorded
    /// that.
    pub redelivered: Vec<Redelivered>,
    /// When it was created, ms since the Unix epoch.
    pub created_ms: u64,
}

/// What became of an acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AckOutcome {
    /// To be logged; confirmed when that is durable.
    Log(AckDelta),
    /// Nothing new: to be confirmed when everything logged so far is durable, since the
    /// acknowledgement that it repeats may still be in flight.
    Unchanged,
    /// From before a seek, or of another owner's delivery: dropped (H9, H12). Where it asks for a
    /// confirmation it may have one, as what it acknowledged has become void.
    Stale,
    /// Refused; nothing changed.
    Invalid(ApiError),
}

/// One subscription or reader.
#[derive(Debug)]
pub struct Subscription {
    cursor: Cursor,
    dispatcher: Dispatcher,
}

impl Subscription {
    /// A subscription without consumers, new or recovered.
    #[must_use]
    pub fn new(spec: SubscriptionSpec) -> Subscription {
        let kind = match spec.durable {
            true => spec.kind,
            false => SubscriptionType::Exclusive,
        };
        let cursor = Cursor::new(
            spec.name,
            kind,
            spec.durable,
            spec.properties,
            spec.created_ms,
            spec.cursor,
        );
        Subscription {
            dispatcher: Dispatcher::new(&cursor, spec.delivered, &spec.redelivered),
            cursor,
        }
    }

    /// Attaches a consumer. Without other consumers its type becomes the subscription's.
    ///
    /// # Errors
    /// When another consumer holds it exclusively or shares it otherwise, a bound is reached, or
    /// the type is not built.
    pub fn attach(&mut self, attach: Attach) -> Result<Vec<Notice>, ApiError> {
        self.dispatcher.attach(&mut self.cursor, attach)
    }

    /// Detaches a consumer: what it holds is redelivered.
    pub fn detach(&mut self, consumer: ConsumerId) -> Vec<Notice> {
        self.dispatcher.detach(consumer)
    }

    /// Raises the totals that a consumer was granted since it attached.
    pub fn credit(&mut self, consumer: ConsumerId, messages_total: u64, bytes_total: u64) {
        self.dispatcher
            .credit(consumer, messages_total, bytes_total);
    }

    /// Takes an acknowledgement. Only what was delivered can be acknowledged, by any consumer:
    /// after a reconnect that is another one than it was delivered to.
    pub fn acknowledge(
        &mut self,
        consumer: ConsumerId,
        ack: &Acknowledge,
        owner_epoch: OwnerEpoch,
    ) -> AckOutcome {
        let (cursor, dispatcher) = (&mut self.cursor, &mut self.dispatcher);
        let current = ack.owner_epoch == owner_epoch && ack.seek_epoch == cursor.seek_epoch();
        if !current || !dispatcher.has(consumer) {
            return AckOutcome::Stale;
        }
        if let Err(error) = check_acknowledge(ack, cursor.kind(), dispatcher.delivered_end()) {
            return AckOutcome::Invalid(error);
        }
        let mut delta = cursor.delta();
        if let Some(last) = ack.cumulative
            && dispatcher.take_out(cursor, 0..last.0 + 1)
        {
            cursor.acknowledge_cumulative(last, &mut delta);
        }
        for range in &ack.individual {
            // Clamped, and only if a consumer holds or awaits some of it: everything else below
            // `read` is acknowledged already, so repeating costs no more than a look.
            let (first, last) = (range.first.max(cursor.mark_delete()), range.last);
            if first <= last && dispatcher.take_out(cursor, first.0..last.0 + 1) {
                cursor.acknowledge_range(IndexRange { first, last }, &mut delta);
            }
        }
        match delta.is_empty() {
            true => AckOutcome::Unchanged,
            false => AckOutcome::Log(delta),
        }
    }

    /// Notes that an acknowledgement is durable. Deltas are confirmed in the order in which they
    /// were returned.
    pub fn confirm(&mut self, delta: &AckDelta) {
        self.cursor.confirm(delta);
    }

    /// Takes the wish for redelivery of what `consumer` holds. In order-keeping types everything
    /// that it holds from the earliest of these on is redelivered, so that order restarts (I7).
    pub fn negative_acknowledge(
        &mut self,
        consumer: ConsumerId,
        negative: &NegativeAcknowledge,
        owner_epoch: OwnerEpoch,
    ) {
        let is_current =
            negative.owner_epoch == owner_epoch && negative.seek_epoch == self.seek_epoch();
        if is_current {
            self.dispatcher.negative_acknowledge(consumer, negative);
        }
    }

    /// Bounds what is delivered and not acknowledged from now on; what is above stays with its
    /// consumers.
    pub fn set_unacked(&mut self, unacked: Unacked) {
        self.dispatcher.set_unacked(unacked);
    }

    /// Moves the subscription: everything in flight is void. The owner logs the seek and calls
    /// [`Subscription::confirm_seek`]; until then trimming keeps what both places need.
    pub fn seek(&mut self, index: Index) -> SeekEpoch {
        let epoch = self.cursor.seek(index);
        self.dispatcher.restart_at(index);
        epoch
    }

    /// Commits a position, as [`Cursor::commit`](cursor::Cursor::commit) does. Forwards, no
    /// consumer holds or gets what lies before it; back, everything in flight is void. The owner
    /// logs what is answered, and confirms it.
    pub fn commit(&mut self, index: Index) -> Commit {
        let done = self.mark_delete().0..index.0;
        if !done.is_empty() {
            self.dispatcher.take_out(&self.cursor, done);
        }
        let commit = self.cursor.commit(index);
        if matches!(commit, Commit::Back(_)) {
            self.dispatcher.restart_at(index);
        }
        commit
    }

    /// Notes that a seek is durable.
    pub fn confirm_seek(&mut self, epoch: SeekEpoch, index: Index) {
        self.cursor.confirm_seek(epoch, index);
    }

    /// Gives messages up as if they had been acknowledged: those of `range`, or what storage could
    /// not give, as much of it as one acknowledgement may have. Visible messages end at `end`.
    pub fn skip(&mut self, range: Option<IndexRange>, end: Index) -> AckDelta {
        let (cursor, dispatcher) = (&mut self.cursor, &mut self.dispatcher);
        let skipped: Vec<Range<u64>> = match range {
            Some(range) => {
                let first = range.first.0.max(cursor.mark_delete().0);
                let end = range.last.0.saturating_add(1).min(end.0);
                let skipped = first..end.min(first.saturating_add(RANGE_WIDTH_MAX));
                std::iter::once(skipped).collect()
            }
            None => dispatcher.damaged(),
        };
        let mut delta = cursor.delta();
        for range in skipped.into_iter().take(ACK_RANGES_MAX) {
            if cursor.unacknowledged(range.clone()).is_empty() {
                continue;
            }
            dispatcher.take_out(cursor, range.clone());
            let range = IndexRange {
                first: Index(range.start),
                last: Index(range.end - 1),
            };
            cursor.acknowledge_range(range, &mut delta);
        }
        delta
    }

    /// Passes over what was read for `read` and is for no client, as if it had been acknowledged:
    /// `window`, which holds `read.from`.
    pub fn pass_over(&mut self, read: &NextRead, window: Range<Index>) -> AckDelta {
        let (cursor, dispatcher) = (&mut self.cursor, &mut self.dispatcher);
        let passed = dispatcher.pass_over(cursor, read, window);
        let mut delta = cursor.delta();
        let passed = passed.filter(|range| !cursor.unacknowledged(range.clone()).is_empty());
        if let Some(range) = passed {
            let range = IndexRange {
                first: Index(range.start),
                last: Index(range.end - 1),
            };
            cursor.acknowledge_range(range, &mut delta);
        }
        delta
    }

    /// Notes that the log begins at `first` now: what was below it can no longer be delivered.
    pub fn trimmed(&mut self, first: Index) {
        self.dispatcher.trimmed(&mut self.cursor, first);
    }

    /// Raises the seek epoch above any that a consumer may know from before the record was damaged.
    pub fn after_loss(&mut self) {
        self.cursor.after_loss();
    }

    /// What to read next; `None` when no consumer has room. Replay comes before new messages, and
    /// with it what is held back no longer at this time, ms since the Unix epoch.
    #[must_use]
    pub fn next_read(&mut self, now_ms: u64) -> Option<NextRead> {
        self.dispatcher.next_read(&self.cursor, now_ms)
    }

    /// When to ask for the next read though nothing else has happened: something that is held back
    /// is due then, in ms since the Unix epoch.
    #[must_use]
    pub fn next_due_ms(&self) -> Option<u64> {
        self.dispatcher.next_due_ms()
    }

    /// Hands out what was read for `read`: consecutive entries from the one that contains
    /// `read.from` on. What is acknowledged or held meanwhile is skipped, what the mode holds back
    /// is passed over, and what exceeds the credit left untouched, to be read again.
    pub fn deliver(
        &mut self,
        read: &NextRead,
        entries: &[LogEntry],
        now_ms: u64,
    ) -> Vec<(ConsumerId, Delivery)> {
        self.dispatcher
            .deliver(&mut self.cursor, read, entries, now_ms)
    }

    /// Hands out that storage cannot give what was read for `read`: `gap`, which holds `read.from`.
    /// It goes to one consumer, in its place of the order, and is held by it like a delivery; being
    /// read again is what a redelivery of it is. Answers the consumer, and which messages.
    pub fn deliver_gap(
        &mut self,
        read: &NextRead,
        gap: Range<Index>,
        now_ms: u64,
    ) -> Option<(ConsumerId, IndexRange)> {
        self.dispatcher
            .deliver_gap(&mut self.cursor, read, gap, now_ms)
    }

    /// The first index that is not acknowledged, durably or not.
    #[must_use]
    pub fn mark_delete(&self) -> Index {
        self.cursor.mark_delete()
    }

    /// The first index that is not durably acknowledged: the limit of trimming.
    #[must_use]
    pub fn durable_mark_delete(&self) -> Index {
        self.cursor.durable_mark_delete()
    }

    /// The seek epoch that deliveries carry.
    #[must_use]
    pub fn seek_epoch(&self) -> SeekEpoch {
        self.cursor.seek_epoch()
    }

    /// The first message that no consumer may have yet, for one that attaches now.
    #[must_use]
    pub fn start(&self) -> Index {
        self.dispatcher.start(&self.cursor)
    }

    /// Where delivery continues.
    #[must_use]
    pub fn next_index(&self) -> Index {
        self.dispatcher.next_index(&self.cursor)
    }

    /// How consumers share.
    #[must_use]
    pub fn kind(&self) -> SubscriptionType {
        self.cursor.kind()
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.cursor.name()
    }

    /// Whether it outlives its consumers.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.cursor.is_durable()
    }

    /// Messages below `end` that are not acknowledged.
    #[must_use]
    pub fn backlog(&self, end: Index) -> u64 {
        self.cursor.backlog(end)
    }

    /// The first index at or after `from` that is not acknowledged.
    #[must_use]
    pub fn next_unacknowledged(&self, from: Index) -> Index {
        self.cursor.next_unacknowledged(from)
    }

    /// The parts of `window` that are not acknowledged, in order.
    #[must_use]
    pub fn unacknowledged(&self, window: Range<u64>) -> Vec<Range<u64>> {
        self.cursor.unacknowledged(window)
    }

    /// Messages that storage could not give and no consumer has acknowledged.
    #[must_use]
    pub fn damaged_messages(&self) -> u64 {
        self.dispatcher.damaged_messages()
    }

    /// Whether delivery has to stop in front of more damage.
    #[must_use]
    pub fn is_full_of_damage(&self) -> bool {
        self.dispatcher.is_full_of_damage()
    }

    /// What it looks like from outside, visible messages ending at `end`.
    #[must_use]
    pub fn stats(&self, end: Index) -> SubscriptionStats {
        SubscriptionStats {
            name: self.name().to_owned(),
            kind: self.kind(),
            mark_delete: self.mark_delete(),
            backlog_messages: self.backlog(end),
            unacknowledged_messages: self.dispatcher.unacknowledged_messages(),
            damaged_messages: self.damaged_messages(),
            held_back_by: None,
            consumers: self.dispatcher.consumer_names(),
            durable: self.is_durable(),
            acknowledged_ranges: self.cursor.acknowledged_ranges(),
            properties: self.cursor.properties().clone(),
        }
    }

    /// What is to be stored of it. May be ahead of what is durable: a snapshot goes to the log
    /// behind every delta that it includes.
    #[must_use]
    pub fn record(&self) -> v1::SubscriptionState {
        let redelivered = self.dispatcher.redelivered(REDELIVERED_RANGES_MAX);
        let range = |Redelivered { range, count }| v1::RedeliveredRange {
            first: range.first.0,
            last: range.last.0,
            count,
        };
        v1::SubscriptionState {
            redelivered: redelivered.into_iter().map(range).collect(),
            ..self.cursor.record()
        }
    }

    /// The record of its type and properties, when one of them has changed.
    #[must_use]
    pub fn update(&self) -> v1::SubscriptionUpdate {
        self.cursor.update()
    }

    /// Whether some message comes again and again: worth a record before the topic ends.
    #[must_use]
    pub fn has_redelivered(&self) -> bool {
        self.dispatcher.has_redelivered()
    }
}

/// Whether an acknowledgement may be: nothing at or above `delivered_end` was ever delivered.
fn check_acknowledge(
    ack: &Acknowledge,
    kind: SubscriptionType,
    delivered_end: Index,
) -> Result<(), ApiError> {
    let refuse = |kind, message: String| Err(ApiError::new(kind, message));
    if ack.individual.len() > ACK_RANGES_MAX {
        let count = ack.individual.len();
        return refuse(
            ErrorKind::TooLarge,
            format!("{count} ranges acknowledged at once, at most {ACK_RANGES_MAX} may be"),
        );
    }
    if ack.cumulative.is_some() && kind == SubscriptionType::Shared {
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
    let mut lasts = lasts.chain(ack.cumulative);
    if let Some(last) = lasts.find(|last| *last >= delivered_end) {
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

#[cfg(test)]
mod tests;
