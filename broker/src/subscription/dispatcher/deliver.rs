//! Handing out what was read: which messages of an entry are wanted, and what the mode does with
//! each: a consumer gets it, or it is held back.

use std::collections::BTreeMap;
use std::ops::Range;

use aquifer_log::LogEntry;
use aquifer_model::batch::{Batch, MessageRow};
use aquifer_model::format;
use aquifer_model::id::Index;
use aquifer_model::limits::DELIVERY_RANGES_MAX;
use aquifer_protocol_api::consumer::{Delivery, IndexRange, Redelivered};
use aquifer_protocol_api::producer::StoredAt;

use crate::subscription::cursor::Cursor;
use crate::subscription::dispatcher::Dispatcher;
use crate::subscription::mode::{Attached, Choice, HoldReason};
use crate::subscription::pending::Held;
use crate::subscription::{ConsumerId, NextRead};

/// Messages of an entry, with how often they were delivered before.
type Parts = Vec<(Range<u64>, u32)>;

impl Dispatcher {
    /// Hands out what was read for `read`: consecutive entries from the one that contains
    /// `read.from` on. What is acknowledged or held meanwhile is skipped, and what exceeds the
    /// credit left untouched, to be read again.
    pub(in crate::subscription) fn deliver(
        &mut self,
        cursor: &mut Cursor,
        read: &NextRead,
        entries: &[LogEntry],
        now_ms: u64,
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
            let mut wanted = self.wanted(cursor, &window);
            let mut is_cut = wanted.len() > DELIVERY_RANGES_MAX;
            wanted.truncate(DELIVERY_RANGES_MAX);
            let Some((first, _)) = wanted.first() else {
                self.advance(window.end);
                continue;
            };
            if self.must_wait(first.start) {
                break;
            }
            let is_new = |(part, _): &(Range<u64>, u32)| part.end > self.read;
            if wanted.iter().any(is_new) && !self.may_dispatch_new() {
                // What comes again is delivered all the same: an entry may have both.
                wanted.retain(|part| !is_new(part));
                if wanted.is_empty() {
                    break;
                }
                is_cut = true;
            }
            let end = match wanted.last().filter(|_| is_cut) {
                Some((last, _)) => last.end,
                None => window.end,
            };
            let decided = self.assign(cursor, entry, &wanted, now_ms, &mut deliveries);
            self.advance(decided.unwrap_or(end));
            if decided.is_some() || is_cut {
                break;
            }
        }
        deliveries
    }

    /// Gives the wanted messages of an entry to consumers, or holds them back. Answers with the
    /// first for which there was no consumer: it and those behind it stay where they are.
    fn assign(
        &mut self,
        cursor: &mut Cursor,
        entry: &LogEntry,
        wanted: &[(Range<u64>, u32)],
        now_ms: u64,
        deliveries: &mut Vec<(ConsumerId, Delivery)>,
    ) -> Option<u64> {
        // What cannot be taken apart is decided as a whole.
        let rows = match self.mode.reads_rows() {
            true => format::native(entry.head.format, &entry.body).ok(),
            false => None,
        };
        let Some(rows) = rows else {
            let choice = self.choose(None, now_ms);
            if choice == Choice::Stop {
                return wanted.first().map(|(part, _)| part.start);
            }
            deliveries.extend(self.carry_out(cursor, choice, entry, wanted));
            return None;
        };
        let (decided, stopped_at) = self.decide(entry, &rows, wanted, now_ms);
        for (choice, parts) in decided {
            deliveries.extend(self.carry_out(cursor, choice, entry, &parts));
        }
        stopped_at
    }

    /// Decides on every wanted message by its row, up to the first for which there is no consumer;
    /// answers with the messages by choice, and with that one. Room is what it was before the
    /// entry: a consumer that has some may exceed it with the messages of one entry.
    fn decide(
        &mut self,
        entry: &LogEntry,
        rows: &Batch,
        wanted: &[(Range<u64>, u32)],
        now_ms: u64,
    ) -> (BTreeMap<Choice, Parts>, Option<u64>) {
        let mut decided: BTreeMap<Choice, Parts> = BTreeMap::new();
        for (part, redeliveries) in wanted {
            for index in part.clone() {
                let number = u32::try_from(index - entry.head.base_index.0).ok();
                let row = number.and_then(|number| rows.row(number));
                let choice = self.choose(row.as_ref(), now_ms);
                if choice == Choice::Stop {
                    return (decided, Some(index));
                }
                let parts = decided.entry(choice).or_default();
                match parts.last_mut() {
                    Some((last, count)) if last.end == index && count == redeliveries => {
                        last.end += 1;
                    }
                    _ => parts.push((index..index + 1, *redeliveries)),
                }
            }
        }
        (decided, None)
    }

    /// Asks the mode.
    pub(super) fn choose(&mut self, row: Option<&MessageRow>, now_ms: u64) -> Choice {
        let attached = Attached {
            consumers: &self.consumers,
            pending: &self.pending,
            held_max: self.unacked.consumer,
        };
        self.mode.choose(row, &attached, now_ms)
    }

    /// Does with messages of an entry what the mode has chosen.
    fn carry_out(
        &mut self,
        cursor: &mut Cursor,
        choice: Choice,
        entry: &LogEntry,
        parts: &[(Range<u64>, u32)],
    ) -> Option<(ConsumerId, Delivery)> {
        match choice {
            Choice::Give(consumer) => {
                Some((consumer, self.hand_out(cursor, consumer, entry, parts)))
            }
            Choice::Hold(reason) => {
                self.hold(parts, reason);
                None
            }
            Choice::Stop => None,
        }
    }

    /// Holds messages back.
    pub(super) fn hold(&mut self, parts: &[(Range<u64>, u32)], reason: HoldReason) {
        for (part, redeliveries) in parts {
            self.replay.remove(part.clone());
            self.held_back.add(part.clone(), reason, *redeliveries);
        }
    }

    /// Whether order demands that something before `first` is delivered first (I7).
    pub(super) fn must_wait(&self, first: u64) -> bool {
        let earlier = self.replay.first().filter(|range| range.start < first);
        self.mode.keeps_order() && earlier.is_some()
    }

    /// What of an entry is to be decided on, and how often it was delivered: what waits in replay,
    /// and what is new and not acknowledged.
    pub(super) fn wanted(&self, cursor: &Cursor, window: &Range<u64>) -> Vec<(Range<u64>, u32)> {
        let mut wanted = self.replay.overlap(window.clone());
        let new = window.start.max(self.read)..window.end;
        if !new.is_empty() {
            let new = cursor.unacknowledged(new);
            for part in new {
                self.count_new(part, &mut wanted);
            }
        }
        wanted
    }

    /// Adds messages that this owner has not read yet, with what an earlier one has recorded of
    /// them.
    fn count_new(&self, part: Range<u64>, wanted: &mut Vec<(Range<u64>, u32)>) {
        let mut at = part.start;
        for (counted, count) in self.before.overlap(part.clone()) {
            if at < counted.start {
                wanted.push((at..counted.start, 0));
            }
            at = counted.end;
            wanted.push((counted, count));
        }
        if at < part.end {
            wanted.push((at..part.end, 0));
        }
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
        let mut redelivered = Vec::new();
        let (mut at, mut messages) = (window.start, 0);
        for (part, redeliveries) in wanted {
            push_range(&mut skip, at..part.start);
            at = part.end;
            messages += part.end - part.start;
            if *redeliveries > 0 {
                redelivered.push(Redelivered {
                    range: inclusive(part),
                    count: *redeliveries,
                });
            }
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
        Delivery {
            at: StoredAt {
                ledger: entry.ledger,
                entry: entry.entry,
                base_index: entry.head.base_index,
            },
            broker_time_ms: entry.head.broker_time_ms,
            redelivered,
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
        ranges.push(inclusive(&range));
    }
}

pub(super) fn inclusive(range: &Range<u64>) -> IndexRange {
    IndexRange {
        first: Index(range.start),
        last: Index(range.end - 1),
    }
}
