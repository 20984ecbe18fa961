//! Serving: reads for a subscription what its state machine asks for, from memory at once or from
//! bookies aside, and hands out what it says.

use aquifer_log::error::LogError;
use aquifer_log::{Damage, Found, LogEntry, ReadLimits, ReadPoint};
use aquifer_model::entry::{EntryFlags, EntryHead};
use aquifer_model::format::FORMAT_NATIVE;
use aquifer_model::id::Index;
use aquifer_protocol_api::consumer::{ConsumerEvent, Delivery, Gap};
use aquifer_runtime::budget::BytePermit;
use aquifer_runtime::clock;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::error::BrokerError;
use crate::subscription::{ConsumerId, NextRead};
use crate::topic::Topic;
use crate::topic::consume::room::{fitting, held_by};
use crate::topic::consume::{READ_RETRY_MAX, READ_RETRY_MIN};
use crate::topic::event::{Event, ReadDone, SubscriptionId};
use crate::topic::outbox::messages_of;

/// Rounds of reading and delivering that one subscription gets in a turn.
const ROUNDS_PER_TURN: usize = 4;

impl Topic {
    /// Serves subscriptions that may have something to do.
    pub(in crate::topic) fn serve_ready(&mut self, max: usize) {
        for _ in 0..max {
            let Some(id) = self.subscriptions.ready.pop_front() else {
                return;
            };
            if let Some(slot) = self.subscriptions.get_mut(id) {
                slot.queued = false;
                self.serve(id);
            }
        }
    }

    /// Reads and delivers until nobody has room, the end is reached, or a read has to wait.
    fn serve(&mut self, id: SubscriptionId) {
        for _ in 0..ROUNDS_PER_TURN {
            let now_ms = self.shared.clock.wall_ms();
            let Some(slot) = self.subscriptions.slots.get_mut(&id) else {
                return;
            };
            let waited = slot.room.take();
            if slot.held > 0 || slot.reading.is_some() || slot.pausing || self.ending.is_some() {
                return;
            }
            let read = slot.state.next_read(now_ms);
            // What was due is released: the next time lies ahead.
            self.subscriptions.note_due(id);
            let Some(read) = read else {
                return;
            };
            if read.from >= self.visible_end() {
                // The outcome that moves the end is an event that comes after this one.
                self.subscriptions.at_end.insert(id);
                return;
            }
            if !self.may_deliver(id) {
                return;
            }
            let Some(room) = waited.or_else(|| self.room_for(id, &read)) else {
                return;
            };
            let Some(slot) = self.subscriptions.slots.get_mut(&id) else {
                return;
            };
            // A jump to elsewhere drops what was read ahead; one within it does not.
            let mut point = slot.point.take().unwrap_or(ReadPoint::from(read.from));
            point.index = read.from;
            let limits = limits(&read, &room);
            match self.log.read_cached(&mut point, limits) {
                Some(entries) if entries.is_empty() => {
                    slot.point = Some(point);
                    self.subscriptions.at_end.insert(id);
                    return;
                }
                Some(entries) => {
                    slot.point = Some(point);
                    self.deliver(id, &read, &entries, room);
                }
                None => {
                    slot.reading = Some(read);
                    self.read_aside(id, read, point, room);
                    return;
                }
            }
        }
        self.subscriptions.wake(id);
    }

    fn read_aside(
        &self,
        id: SubscriptionId,
        read: NextRead,
        mut point: ReadPoint,
        room: BytePermit,
    ) {
        let (log, mailbox) = (self.log.clone(), self.mailbox.clone());
        self.shared.tasks.spawn("topic-read", async move {
            let limits = limits(&read, &room);
            let result = log.read_or_skip(&mut point, limits).await;
            let done = ReadDone {
                subscription: id,
                point,
                result,
                room,
            };
            // A topic that is gone does not care.
            let _ = mailbox.send(Event::Read(Box::new(done))).await;
        });
    }

    pub(in crate::topic) fn read_done(&mut self, done: ReadDone) {
        let id = done.subscription;
        let Some(slot) = self.subscriptions.get_mut(id) else {
            return;
        };
        let Some(read) = slot.reading.take() else {
            return;
        };
        slot.point = Some(done.point);
        match done.result {
            Ok(found) => {
                slot.pause = READ_RETRY_MIN;
                match found {
                    Found::Entries(entries) => self.deliver(id, &read, &entries, done.room),
                    Found::Damaged(damage, reason) => self.deliver_gap(id, &read, damage, reason),
                }
                self.subscriptions.wake(id);
            }
            Err(LogError::Fenced) => self.broken(&LogError::Fenced),
            // What is damaged stays so: whoever waits for it is told, and may go on behind it.
            Err(error @ (LogError::Damaged(_) | LogError::Limbo(_))) => {
                tracing::warn!(topic = %self.name, %error, "reading for a subscription failed");
                self.shared.metrics.read_failures.add(1, &[]);
                self.fail_consumers_of(id, &BrokerError::Log(error));
                self.subscriptions.wake(id);
            }
            Err(error) => self.read_again_later(id, &error),
        }
    }

    /// Storage may answer later; consumers can do nothing about it that this could not.
    fn read_again_later(&mut self, id: SubscriptionId, error: &LogError) {
        let Some(slot) = self.subscriptions.get_mut(id) else {
            return;
        };
        let pause = slot.pause;
        if pause == READ_RETRY_MIN || pause == READ_RETRY_MAX {
            let subscription = slot.state.name();
            tracing::warn!(topic = %self.name, subscription, %error, "reading for a subscription failed, trying again");
        }
        slot.pause = (pause * 2).min(READ_RETRY_MAX);
        self.shared.metrics.read_failures.add(1, &[]);
        self.read_later(id, pause);
    }

    fn read_later(&mut self, id: SubscriptionId, pause: Duration) {
        let Some(slot) = self.subscriptions.get_mut(id) else {
            return;
        };
        slot.pausing = true;
        let pause = self.shared.rng.jitter(pause);
        let mailbox = self.mailbox.clone();
        let token = self.shared.tasks.shutdown_token();
        self.shared.tasks.spawn("read-retry", async move {
            tokio::select! {
                () = clock::sleep(pause) => {}
                () = token.wait() => {}
            }
            // A topic that is gone does not care.
            let _ = mailbox.send(Event::ReadRetry(id)).await;
        });
    }

    pub(in crate::topic) fn read_retry(&mut self, id: SubscriptionId) {
        if let Some(slot) = self.subscriptions.get_mut(id) {
            slot.pausing = false;
            self.subscriptions.wake(id);
        }
    }

    /// Tells a consumer what storage cannot give. Everything else goes on.
    fn deliver_gap(&mut self, id: SubscriptionId, read: &NextRead, damage: Damage, reason: String) {
        let (owner_epoch, now_ms) = (self.epoch(), self.shared.clock.wall_ms());
        if !self.may_deliver(id) {
            return;
        }
        let Some(slot) = self.subscriptions.slots.get_mut(&id) else {
            return;
        };
        if slot.held > 0 {
            return;
        }
        let before = slot.state.damaged_messages();
        let seek_epoch = slot.state.seek_epoch();
        let told = slot
            .state
            .deliver_gap(read, damage.from..damage.end, now_ms);
        let Some((consumer, range)) = told else {
            if slot.state.is_full_of_damage() {
                self.read_later(id, READ_RETRY_MAX);
            }
            return;
        };
        let new = slot.state.damaged_messages().saturating_sub(before);
        self.shared.metrics.damaged_messages.add(new, &[]);
        let subscription = slot.state.name();
        tracing::error!(topic = %self.name, subscription, first = %range.first, last = %range.last, ledger = %damage.ledger, entry = %damage.entry, reason, "messages cannot be delivered");
        if let Some(out) = slot.consumers.get_mut(&consumer) {
            let gap = Gap {
                range,
                ledger: damage.ledger,
                entry: damage.entry,
                reason,
            };
            out.push(ConsumerEvent::Gap {
                owner_epoch,
                seek_epoch,
                gap,
            });
            self.watch_consumer(id, consumer);
        }
    }

    /// Hands out entries that were read, as far as there is room for them.
    fn deliver(
        &mut self,
        id: SubscriptionId,
        read: &NextRead,
        entries: &[LogEntry],
        mut room: BytePermit,
    ) {
        let mut fits = fitting(entries, room.bytes());
        if let (0, Some(first)) = (fits, entries.first())
            && self.room_for_first(id, &mut room, first)
        {
            fits = fitting(entries, room.bytes());
        }
        let (epoch, end) = (self.epoch(), self.visible_end());
        let now_ms = self.shared.clock.wall_ms();
        // The read may have taken long, and so may this process (H9).
        let may_deliver = self.may_deliver(id);
        let Some(slot) = self.subscriptions.slots.get_mut(&id) else {
            return;
        };
        if slot.held > 0 {
            return;
        }
        if !may_deliver {
            if let Some(point) = &mut slot.point {
                point.unread(read.from, entries);
            }
            return;
        }
        if let Some((damage, reason)) = unknown_format(read.from, entries) {
            if let Some(point) = &mut slot.point {
                point.unread(damage.end, &entries[1..]);
            }
            return self.deliver_gap(id, read, damage, reason);
        }
        let fits = fits.min(deliverable(entries, end));
        if fits > 0 {
            slot.entry_bytes = 0;
        }
        let deliveries = slot.state.deliver(read, &entries[..fits], now_ms);
        let seek_epoch = slot.state.seek_epoch();
        // What exceeds the credit is wanted as soon as there is more.
        let wanted = slot.state.next_index();
        let left = entries.partition_point(|entry| entry.head.end_index() <= wanted);
        if let Some(point) = &mut slot.point {
            point.unread(wanted, &entries[left..]);
            if slot.awaits_room {
                point.release();
            }
        }
        let mut by_consumer: BTreeMap<ConsumerId, Vec<Delivery>> = BTreeMap::new();
        let (mut messages, mut bytes) = (0, 0);
        for (consumer, mut delivery) in deliveries {
            delivery.held = room.split(held_by(&delivery)).into();
            messages += messages_of(&delivery);
            bytes += delivery.body.len() as u64;
            by_consumer.entry(consumer).or_default().push(delivery);
        }
        for (consumer, deliveries) in by_consumer {
            let Some(slot) = self.subscriptions.slots.get_mut(&id) else {
                return;
            };
            let Some(out) = slot.consumers.get_mut(&consumer) else {
                continue;
            };
            out.push(ConsumerEvent::Deliveries {
                owner_epoch: epoch,
                seek_epoch,
                deliveries,
            });
            let (granted_messages, granted_bytes) = out.credit();
            slot.state.credit(consumer, granted_messages, granted_bytes);
            self.watch_consumer(id, consumer);
        }
        self.counters.delivered(messages, bytes);
        self.shared.metrics.messages_out.add(messages, &[]);
        self.shared.metrics.bytes_out.add(bytes, &[]);
    }
}

/// Whether native consumers can be given an entry. No flag is set by this version, and each changes
/// what of an entry may be delivered.
fn is_known(head: &EntryHead) -> bool {
    head.format == FORMAT_NATIVE && head.flags == EntryFlags::default()
}

/// The entries at the front that native consumers may see.
fn deliverable(entries: &[LogEntry], visible_end: Index) -> usize {
    let may_see = |e: &&LogEntry| is_known(&e.head) && e.head.end_index() <= visible_end;
    entries.iter().take_while(may_see).count()
}

/// What the first entry withholds from native consumers, when a later version wrote it.
fn unknown_format(from: Index, entries: &[LogEntry]) -> Option<(Damage, String)> {
    let entry = entries.first()?;
    let (format, flags) = (entry.head.format, entry.head.flags.0);
    if is_known(&entry.head) {
        return None;
    }
    let damage = Damage {
        from: from.max(entry.head.base_index),
        end: entry.head.end_index(),
        ledger: entry.ledger,
        entry: entry.entry,
    };
    let reason = match format {
        FORMAT_NATIVE => format!("it has flags {flags:#x}, which this version does not know"),
        _ => format!("it has format {format}, which this version does not know"),
    };
    Some((damage, reason))
}

fn limits(read: &NextRead, room: &BytePermit) -> ReadLimits {
    ReadLimits {
        bytes_max: read.bytes_max.min(room.bytes()).max(1),
        entries_max: read.entries_max.max(1),
    }
}
