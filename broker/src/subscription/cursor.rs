//! A cursor: the durable position of a subscription by name. It holds what is acknowledged, the
//! seek epoch, and how far both are durable.
//!
//! It knows nothing of consumers and of what was delivered. A subscription adds a dispatcher to it;
//! a caller that only commits positions needs the cursor alone.
//!
//! Invariants (I9): the state moves at once, and every change returns what is to be logged. The
//! owner logs these in order and confirms each when it is durable. Only what is confirmed may be
//! trimmed ([`Cursor::durable_mark_delete`]). The mark moves back by a seek only.

pub mod state;

use std::ops::Range;

use aquifer_model::id::{Index, SeekEpoch};
use aquifer_model::subscription::{Properties, SubscriptionType};
use aquifer_proto::convert::subscription::wire_properties;
use aquifer_proto::v1;
use aquifer_protocol_api::consumer::IndexRange;

use self::state::CursorState;

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
    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cumulative.is_none() && self.individual.is_empty()
    }

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

/// What the commit of a position changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Commit {
    /// The cursor was there already.
    Unchanged,
    /// It moved forwards: an acknowledgement of everything before the position.
    Forward(AckDelta),
    /// It moved back: a seek, with its epoch.
    Back(SeekEpoch),
}

/// A durable position by name.
#[derive(Debug)]
pub struct Cursor {
    name: String,
    kind: SubscriptionType,
    durable: bool,
    properties: Properties,
    created_ms: u64,
    state: CursorState,
    durable_mark_delete: Index,
}

impl Cursor {
    /// A cursor that stands at `state`, all of which is durable. One that is not `durable` itself
    /// leaves nothing behind, and its changes count at once.
    #[must_use]
    pub fn new(
        name: String,
        kind: SubscriptionType,
        durable: bool,
        properties: Properties,
        created_ms: u64,
        state: CursorState,
    ) -> Cursor {
        Cursor {
            durable_mark_delete: state.mark_delete(),
            name,
            kind,
            durable,
            properties,
            created_ms,
            state,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The recorded type of its subscription.
    #[must_use]
    pub fn kind(&self) -> SubscriptionType {
        self.kind
    }

    /// What its creator has recorded of it.
    #[must_use]
    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// Sets the type of its subscription. The owner logs [`Cursor::update`].
    pub(super) fn set_kind(&mut self, kind: SubscriptionType) {
        self.kind = kind;
    }

    /// The record of its type and properties.
    #[must_use]
    pub fn update(&self) -> v1::SubscriptionUpdate {
        v1::SubscriptionUpdate {
            r#type: v1::SubscriptionType::from(self.kind).into(),
            properties: wire_properties(&self.properties),
        }
    }

    /// Whether it is recorded in the cursor log.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.durable
    }

    /// The first index that is not acknowledged, durably or not.
    #[must_use]
    pub fn mark_delete(&self) -> Index {
        self.state.mark_delete()
    }

    /// The first index that is not durably acknowledged: the limit of trimming.
    #[must_use]
    pub fn durable_mark_delete(&self) -> Index {
        self.durable_mark_delete
    }

    /// How often it was moved by a seek.
    #[must_use]
    pub fn seek_epoch(&self) -> SeekEpoch {
        self.state.seek_epoch()
    }

    /// The first index at or after `from` that is not acknowledged.
    #[must_use]
    pub fn next_unacknowledged(&self, from: Index) -> Index {
        self.state.next_unacknowledged(from)
    }

    /// The parts of `window` that are not acknowledged, in order.
    #[must_use]
    pub fn unacknowledged(&self, window: Range<u64>) -> Vec<Range<u64>> {
        self.state.unacknowledged(window)
    }

    /// Messages below `end` that are not acknowledged.
    #[must_use]
    pub fn backlog(&self, end: Index) -> u64 {
        self.state.backlog(end)
    }

    /// Islands of acknowledged messages above the mark.
    #[must_use]
    pub fn acknowledged_ranges(&self) -> u64 {
        self.state.acknowledged_ranges()
    }

    /// An acknowledgement of nothing, to be filled.
    #[must_use]
    pub fn delta(&self) -> AckDelta {
        AckDelta {
            seek_epoch: self.seek_epoch(),
            cumulative: None,
            individual: Vec::new(),
            mark_delete: self.mark_delete(),
        }
    }

    /// Acknowledges everything up to and including `last`, and adds it to `delta`. The caller has
    /// checked that the messages exist.
    pub fn acknowledge_cumulative(&mut self, last: Index, delta: &mut AckDelta) {
        self.state.acknowledge_cumulative(last);
        delta.cumulative = delta.cumulative.max(Some(last));
        delta.mark_delete = self.mark_delete();
    }

    /// Acknowledges a range, and adds it to `delta`. The caller has checked that the messages
    /// exist.
    pub fn acknowledge_range(&mut self, range: IndexRange, delta: &mut AckDelta) {
        self.state.acknowledge_range(range);
        delta.individual.push(range);
        delta.mark_delete = self.mark_delete();
    }

    /// Notes that an acknowledgement is durable. Deltas are confirmed in the order in which they
    /// were returned.
    pub fn confirm(&mut self, delta: &AckDelta) {
        if delta.seek_epoch == self.seek_epoch() {
            self.durable_mark_delete = self.durable_mark_delete.max(delta.mark_delete);
        }
    }

    /// Commits a position: everything before `index` is done with, `index` is the next message.
    /// Forwards that is an acknowledgement, back it is a seek, and the owner logs and confirms it
    /// as such. The caller has checked that `index` is not beyond the end.
    pub fn commit(&mut self, index: Index) -> Commit {
        let mark = self.mark_delete();
        if index < mark {
            return Commit::Back(self.seek(index));
        }
        if index == mark {
            return Commit::Unchanged;
        }
        let mut delta = self.delta();
        self.acknowledge_cumulative(Index(index.0 - 1), &mut delta);
        Commit::Forward(delta)
    }

    /// Moves the cursor, in either direction; acknowledgements from before are void (H12). Until
    /// [`Cursor::confirm_seek`] trimming keeps what both places need.
    pub fn seek(&mut self, index: Index) -> SeekEpoch {
        let epoch = self.state.seek(index);
        self.durable_mark_delete = match self.durable {
            true => self.durable_mark_delete.min(index),
            false => index,
        };
        epoch
    }

    /// Notes that a seek is durable.
    pub fn confirm_seek(&mut self, epoch: SeekEpoch, index: Index) {
        if epoch == self.seek_epoch() {
            self.durable_mark_delete = self.durable_mark_delete.max(index);
        }
    }

    /// Puts the mark to `first` if it is below, without a record: what lies before it needs none,
    /// since it was trimmed, or since the cursor is not durable.
    pub fn pass(&mut self, first: Index) {
        if first > self.mark_delete() {
            self.state.acknowledge_cumulative(Index(first.0 - 1));
            self.durable_mark_delete = self.durable_mark_delete.max(first);
            if !self.durable {
                self.durable_mark_delete = self.mark_delete();
            }
        }
    }

    /// Raises the seek epoch above any that a consumer may know from before the record was damaged.
    pub fn after_loss(&mut self) {
        self.state.raise_after_loss();
    }

    /// What is to be stored of it. May be ahead of what is durable: a snapshot goes to the log
    /// behind every delta that it includes.
    #[must_use]
    pub fn record(&self) -> v1::SubscriptionState {
        v1::SubscriptionState {
            properties: wire_properties(&self.properties),
            ..self.state.encode(&self.name, self.kind, self.created_ms)
        }
    }
}

#[cfg(test)]
mod tests;
