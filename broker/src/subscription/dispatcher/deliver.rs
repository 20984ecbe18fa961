//! Handing out what was read: which messages of an entry are wanted, and which consumer gets them.

use std::ops::Range;

use aquifer_log::LogEntry;
use aquifer_model::id::Index;
use aquifer_protocol_api::consumer::{Delivery, IndexRange};
use aquifer_protocol_api::producer::StoredAt;

use super::Dispatcher;
use crate::subscription::cursor::Cursor;
use crate::subscription::pending::Held;
use crate::subscription::{ConsumerId, NextRead};

impl Dispatcher {
    /// Hands out what was read for `read`: consecutive entries from the one that contains
    /// `read.from` on. What is acknowledged or held meanwhile is skipped, and what exceeds the
    /// credit left untouched, to be read again.
    pub(in crate::subscription) fn deliver(
        &mut self,
        cursor: &mut Cursor,
        read: &NextRead,
        entries: &[LogEntry],
    ) -> Vec<(ConsumerId, Delivery)> {
        let mut deliveries = Vec::new();
        if read.seek_epoch != cursor.seek_epoch() {
            return deliveries;
        }
        if let Some(first) = entries.first()
            && first.head.base_index > read.from
        {
            // The log answers from its beginning on: what was asked for has been trimmed.
            self.trimmed(cursor, first.head.base_index);
        }
        for entry in entries {
            let window = entry.head.base_index.0..entry.head.end_index().0;
            if !self.continues_at(cursor, window.start) {
                break;
            }
            let wanted = self.wanted(cursor, &window);
            let Some((first, _)) = wanted.first() else {
                self.read = self.read.max(window.end);
                continue;
            };
            if self.must_wait(first.start) {
                break;
            }
            if wanted.iter().any(|(part, _)| part.start >= self.read) && !self.may_dispatch_new() {
                break;
            }
            let Some(consumer) = self.choose() else {
                break;
            };
            deliveries.push((consumer, self.hand_out(cursor, consumer, entry, &wanted)));
        }
        deliveries
    }

    /// Whether order demands that something before `first` is delivered first (I7).
    pub(super) fn must_wait(&self, first: u64) -> bool {
        let earlier = self.replay.first().filter(|range| range.start < first);
        self.keeps_order() && earlier.is_some()
    }

    /// What of an entry is to be delivered, and how often it was: what waits in replay, and what is
    /// new and not acknowledged.
    pub(super) fn wanted(&self, cursor: &Cursor, window: &Range<u64>) -> Vec<(Range<u64>, u32)> {
        let mut wanted = self.replay.overlap(window.clone());
        let new = window.start.max(self.read)..window.end;
        if !new.is_empty() {
            let new = cursor.unacknowledged(new);
            wanted.extend(new.into_iter().map(|part| (part, 0)));
        }
        wanted
    }

    /// Whether nothing that was never delivered lies between `read` and `start`.
    pub(super) fn continues_at(&self, cursor: &Cursor, start: u64) -> bool {
        start <= self.read || start <= cursor.next_unacknowledged(Index(self.read)).0
    }

    /// Gives the wanted parts of an entry to a consumer.
    fn hand_out(
        &mut self,
        cursor: &mut Cursor,
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
            if cursor.is_durable() {
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
        if !cursor.is_durable() {
            cursor.pass(Index(at));
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

fn push_range(ranges: &mut Vec<IndexRange>, range: Range<u64>) {
    if !range.is_empty() {
        ranges.push(IndexRange {
            first: Index(range.start),
            last: Index(range.end - 1),
        });
    }
}
