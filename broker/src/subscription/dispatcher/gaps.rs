//! What storage cannot give: told to one consumer in its place of the order, held by it like a
//! delivery, and given up by an acknowledgement or on command only (I9). Everything behind it goes
//! on.

use std::ops::Range;

use aquifer_model::id::Index;
use aquifer_protocol_api::consumer::IndexRange;

use crate::subscription::cursor::Cursor;
use crate::subscription::dispatcher::Dispatcher;
use crate::subscription::mode::Choice;
use crate::subscription::pending::Held;
use crate::subscription::{ConsumerId, NextRead};

/// Ranges of damaged messages that delivery passes over; it stops in front of more.
const DAMAGED_RANGES_MAX: usize = 10_000;

impl Dispatcher {
    /// Hands out that storage cannot give what was read for `read`: `gap`, which holds `read.from`.
    /// It goes to one consumer, in its place of the order, and is held by it like a delivery; being
    /// read again is what a redelivery of it is. Answers the consumer, and which messages.
    pub(in crate::subscription) fn deliver_gap(
        &mut self,
        cursor: &mut Cursor,
        read: &NextRead,
        gap: Range<Index>,
        now_ms: u64,
    ) -> Option<(ConsumerId, IndexRange)> {
        if read.seek_epoch != cursor.seek_epoch() {
            return None;
        }
        if gap.start > read.from {
            self.trimmed(cursor, gap.start);
        }
        let window = gap.start.0..gap.end.0;
        if !self.continues_at(cursor, window.start) || !self.may_note_damage(&window) {
            return None;
        }
        let wanted = self.wanted(cursor, &window);
        let (Some((first, _)), Some((last, _))) = (wanted.first(), wanted.last()) else {
            self.advance(window.end);
            return None;
        };
        let range = IndexRange {
            first: Index(first.start),
            last: Index(last.end - 1),
        };
        if self.must_wait(first.start) {
            return None;
        }
        let consumer = match self.choose(None, now_ms) {
            Choice::Give(consumer) => consumer,
            Choice::Hold(reason) => {
                self.hold(&wanted, reason);
                self.advance(window.end);
                return None;
            }
            Choice::Stop => return None,
        };
        for (part, redeliveries) in wanted {
            self.damaged.take(part.clone(), |()| true);
            if cursor.is_durable() {
                self.replay.remove(part.clone());
                self.damaged.insert(part.clone(), ());
                let held = Held {
                    consumer,
                    redeliveries,
                    damaged: true,
                };
                self.pending.add(part, held);
            } else {
                cursor.pass(Index(part.end));
            }
        }
        if let Some(attached) = self.consumers.get_mut(&consumer) {
            attached.consume(1, 0);
        }
        self.advance(window.end);
        Some((consumer, range))
    }

    /// Passes over what was read for `read` and is for no client: `window`, which holds
    /// `read.from`. Answers what has to be acknowledged, if something is recorded.
    pub(in crate::subscription) fn pass_over(
        &mut self,
        cursor: &mut Cursor,
        read: &NextRead,
        window: Range<Index>,
    ) -> Option<Range<u64>> {
        if read.seek_epoch != cursor.seek_epoch() {
            return None;
        }
        if window.start > read.from {
            self.trimmed(cursor, window.start);
        }
        let window = window.start.0..window.end.0;
        if !self.continues_at(cursor, window.start) {
            return None;
        }
        self.take_out(cursor, window.clone());
        self.advance(window.end);
        if cursor.is_durable() {
            return Some(window);
        }
        cursor.pass(Index(window.end));
        None
    }

    /// The ranges of messages that storage could not give and no consumer has acknowledged.
    pub(in crate::subscription) fn damaged(&self) -> Vec<Range<u64>> {
        self.damaged.iter().map(|(range, ())| range).collect()
    }

    /// How many messages these are.
    pub(in crate::subscription) fn damaged_messages(&self) -> u64 {
        self.damaged.total()
    }

    /// Whether delivery has to stop in front of more damage.
    pub(in crate::subscription) fn is_full_of_damage(&self) -> bool {
        self.damaged.len() >= DAMAGED_RANGES_MAX
    }

    /// Whether there is room to note that a window is damaged; what is known to be is told again.
    fn may_note_damage(&self, window: &Range<u64>) -> bool {
        let is_known = || !self.damaged.overlap(window.clone()).is_empty();
        self.damaged.len() < DAMAGED_RANGES_MAX || is_known()
    }
}
