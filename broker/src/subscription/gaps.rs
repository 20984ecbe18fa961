//! What storage cannot give: told to one consumer in its place of the order, held by it like a delivery,
//! and given up by an acknowledgement or on command only (I9). Everything behind it goes on.

use std::ops::Range;

use aquifer_model::id::Index;
use aquifer_model::limits::ACK_RANGES_MAX;
use aquifer_protocol_api::consumer::IndexRange;

use super::cursor::RANGE_WIDTH_MAX;
use super::pending::Held;
use super::{AckDelta, ConsumerId, NextRead, Subscription};

/// Ranges of damaged messages that delivery passes over; it stops in front of more.
const DAMAGED_RANGES_MAX: usize = 10_000;

impl Subscription {
    /// Hands out that storage cannot give what was read for `read`: `gap`, which holds `read.from`.
    /// It goes to one consumer, in its place of the order, and is held by it like a delivery; being
    /// read again is what a redelivery of it is. Answers to whom, and which messages.
    pub fn deliver_gap(
        &mut self,
        read: &NextRead,
        gap: Range<Index>,
    ) -> Option<(ConsumerId, IndexRange)> {
        if read.seek_epoch != self.cursor.seek_epoch() {
            return None;
        }
        if gap.start > read.from {
            self.trimmed(gap.start);
        }
        let window = gap.start.0..gap.end.0;
        if !self.continues_at(window.start) || !self.may_note_damage(&window) {
            return None;
        }
        let wanted = self.wanted(&window);
        let (Some((first, _)), Some((last, _))) = (wanted.first(), wanted.last()) else {
            self.read = self.read.max(window.end);
            return None;
        };
        let range = IndexRange {
            first: Index(first.start),
            last: Index(last.end - 1),
        };
        let earlier = self.replay.first().filter(|r| r.start < first.start);
        if self.keeps_order() && earlier.is_some() {
            return None;
        }
        let consumer = self.choose()?;
        for (part, redeliveries) in wanted {
            self.damaged.take(part.clone(), |()| true);
            if self.durable {
                self.replay.remove(part.clone());
                self.damaged.insert(part.clone(), ());
                let held = Held {
                    consumer,
                    redeliveries,
                    damaged: true,
                };
                self.pending.add(part, held);
            } else {
                self.cursor.acknowledge_cumulative(Index(part.end - 1));
                self.durable_mark_delete = self.cursor.mark_delete();
            }
        }
        if let Some(attached) = self.consumers.get_mut(&consumer) {
            attached.consume(1, 0);
        }
        self.read = self.read.max(window.end);
        Some((consumer, range))
    }

    /// Gives messages up as if they had been acknowledged: those of `range`, or what storage could
    /// not give, as much of it as one acknowledgement may have. The log ends at `end`.
    pub fn skip(&mut self, range: Option<IndexRange>, end: Index) -> AckDelta {
        let damaged = match range {
            Some(range) => {
                let first = range.first.0.max(self.cursor.mark_delete().0);
                let end = range.last.0.saturating_add(1).min(end.0);
                Vec::from_iter([(first..end.min(first.saturating_add(RANGE_WIDTH_MAX)), ())])
            }
            None => self.damaged.overlap(0..u64::MAX),
        };
        let mut individual = Vec::new();
        for (range, ()) in damaged.into_iter().take(ACK_RANGES_MAX) {
            if self.cursor.unacknowledged(range.clone()).is_empty() {
                continue;
            }
            self.settle(range.clone());
            let range = IndexRange {
                first: Index(range.start),
                last: Index(range.end - 1),
            };
            self.cursor.acknowledge_range(range);
            individual.push(range);
        }
        AckDelta {
            seek_epoch: self.cursor.seek_epoch(),
            cumulative: None,
            individual,
            mark_delete: self.cursor.mark_delete(),
        }
    }

    /// Whether there is room to note that a window is damaged; what is known to be is told again.
    fn may_note_damage(&self, window: &Range<u64>) -> bool {
        let is_known = || !self.damaged.overlap(window.clone()).is_empty();
        self.damaged.len() < DAMAGED_RANGES_MAX || is_known()
    }

    /// Whether delivery has to stop in front of more damage.
    #[must_use]
    pub fn is_full_of_damage(&self) -> bool {
        self.damaged.len() >= DAMAGED_RANGES_MAX
    }

    /// Raises the seek epoch above any that a consumer may know from before the record was damaged.
    pub fn after_loss(&mut self) {
        self.cursor = self.cursor.clone().after_loss();
    }

    /// Messages that storage could not give and nobody has acknowledged.
    #[must_use]
    pub fn damaged_messages(&self) -> u64 {
        self.damaged.total()
    }
}
