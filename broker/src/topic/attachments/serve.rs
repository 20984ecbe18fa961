//! Serving: reads for a subscription what its state machine asks for, from memory at once or from
//! bookies beside the task, and hands out what it says.
//!
//! Invariants: a subscription has at most one read aside at a time, so that a slow one costs a
//! bounded amount and delays no other; a read that fails is tried again here, and consumers are
//! told only of what is damaged; nothing is delivered between a seek and the moment it is durable.

use std::collections::BTreeMap;
use std::time::Duration;

use aquifer_log::error::LogError;
use aquifer_log::{Damage, Found, LogEntry, ReadLimits, ReadPoint};
use aquifer_model::entry::{EntryFlags, EntryHead};
use aquifer_model::format::FORMAT_NATIVE;
use aquifer_model::id::Index;
use aquifer_protocol_api::consumer::{ConsumerEvent, Delivery, Gap};
use aquifer_runtime::budget::BytePermit;
use aquifer_runtime::clock;

use crate::cursor_log;
use crate::error::BrokerError;
use crate::quota::Cost;
use crate::quota::pacing::affordable;
use crate::quota::rates::{Flow, Wait};
use crate::subscription::{ConsumerId, NextRead};
use crate::topic::attachments::delivery_budget::{fitting, held_by};
use crate::topic::attachments::outbox::messages_of;
use crate::topic::attachments::reads::RETRY_MAX;
use crate::topic::attachments::slot::Slot;
use crate::topic::context::TopicContext;
use crate::topic::cursors::{Cursors, Effect};
use crate::topic::delivery_right::DeliveryRight;
use crate::topic::event::{Event, ReadDone};

/// Rounds of reading and delivering that one subscription gets in a turn.
const ROUNDS_PER_TURN: usize = 4;

impl Slot {
    /// Reads and delivers until no consumer has room, the end is reached, or a read has to wait.
    pub(super) fn serve(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        right: &mut DeliveryRight,
    ) {
        for _ in 0..ROUNDS_PER_TURN {
            let waited = self.delivery_budget.take_waited();
            if self.held > 0 || self.is_blocked() || cx.life.is_ending() {
                return;
            }
            let read = self.state.next_read(cx.wall_ms());
            // What was due is released: the next time lies ahead.
            self.wait_for_time();
            let Some(read) = read else {
                return;
            };
            if read.from >= cx.visible_end() {
                // The outcome that moves the end is an event that comes after this one.
                self.wait_for_messages();
                self.tell_end(cx);
                return;
            }
            if !self.may_be_served(cx, right) || self.affords(cx).is_none() {
                return;
            }
            let Some(room) = waited.or_else(|| self.take_for(cx, &read)) else {
                return;
            };
            // A jump to elsewhere drops what was read ahead; one within it does not.
            let point = self.reads.point.take();
            let mut point = point.unwrap_or(ReadPoint::from(read.from));
            point.index = read.from;
            match cx.log.read_cached(&mut point, limits(&read, &room)) {
                Some(entries) if entries.is_empty() => {
                    self.reads.point = Some(point);
                    self.wait_for_messages();
                    return;
                }
                Some(entries) => {
                    self.reads.point = Some(point);
                    if let Some(newest) = entries.last() {
                        let age = cx.wall_ms().saturating_sub(newest.head.broker_time_ms);
                        let age = Duration::from_millis(age).as_secs_f64();
                        cx.shared.metrics.dispatch_seconds.record(age, &[]);
                    }
                    self.deliver(cx, cursors, right, &read, &entries, room);
                }
                None => {
                    self.reads.aside = Some(read);
                    self.read_aside(cx, read, point, room);
                    return;
                }
            }
        }
        self.wake();
    }

    /// Tells the consumers of a topic that takes no more messages when nothing more comes: with
    /// anything that is not acknowledged, it may come again.
    fn tell_end(&mut self, cx: &TopicContext) {
        let end = cx.visible_end();
        if !cx.is_complete() || self.state.backlog(end) > 0 {
            return;
        }
        let untold = self.consumers.iter().filter(|(_, out)| !out.is_told_end);
        let untold: Vec<ConsumerId> = untold.map(|(consumer, _)| *consumer).collect();
        for consumer in untold {
            self.tell(cx, consumer, ConsumerEvent::EndOfTopic { end });
        }
    }

    fn is_blocked(&self) -> bool {
        self.reads.is_blocked() || self.pacing.waits_for().is_some()
    }

    /// What rates allow to be delivered now; `None` when the subscription has to wait for that,
    /// and is woken.
    fn affords(&mut self, cx: &TopicContext) -> Option<Cost> {
        if !cx.rates.is_limited(Flow::Dispatch) {
            return Some(Cost::MAX);
        }
        match self.pacing.left(&cx.rates, cx.now()) {
            Ok(left) => Some(left),
            Err(wait) => {
                self.wait_for_tokens(cx, wait);
                None
            }
        }
    }

    fn wait_for_tokens(&mut self, cx: &TopicContext, wait: Wait) {
        if self.pacing.waits_for().is_some() {
            return;
        }
        self.pacing.wait(wait.limit);
        cx.shared.metrics.dispatch_waits(wait.limit);
        let (id, mailbox) = (self.id, cx.mailbox.clone());
        let token = cx.shared.tasks.shutdown_token();
        cx.shared.tasks.spawn("dispatch-rate", async move {
            tokio::select! {
                () = clock::sleep(wait.time) => {}
                () = token.wait() => {}
            }
            // A topic that has ended needs no answer.
            let _ = mailbox.send(Event::Tokens(id)).await;
        });
    }

    /// The subscription has waited for its rates.
    pub(super) fn tokens_came(&mut self) {
        self.pacing.woken();
        self.wake();
    }

    /// Bytes for a read. While it has to wait, other subscriptions have a use for what this one has
    /// read ahead.
    fn take_for(&mut self, cx: &TopicContext, read: &NextRead) -> Option<BytePermit> {
        let room = self.delivery_budget.acquire(cx, self.id, read);
        if room.is_none() {
            self.reads.release();
        }
        room
    }

    fn take_for_first(
        &mut self,
        cx: &TopicContext,
        room: &mut BytePermit,
        first: &LogEntry,
    ) -> bool {
        let has_room = self.delivery_budget.enlarge(cx, self.id, room, first);
        if !has_room {
            self.reads.release();
        }
        has_room
    }

    /// Whether something may be delivered here. If not, the subscription is woken when it may.
    fn may_be_served(&self, cx: &TopicContext, right: &mut DeliveryRight) -> bool {
        // Readers leave no acknowledgements behind and need no right.
        !self.state.is_durable() || right.may_deliver(cx, self.id)
    }

    fn read_aside(
        &self,
        cx: &TopicContext,
        read: NextRead,
        mut point: ReadPoint,
        room: BytePermit,
    ) {
        let (log, mailbox, subscription) = (cx.log.clone(), cx.mailbox.clone(), self.id);
        cx.shared.tasks.spawn("topic-read", async move {
            let limits = limits(&read, &room);
            let result = log.read_or_skip(&mut point, limits).await;
            let done = ReadDone {
                subscription,
                point,
                result,
                room,
            };
            // A topic that has ended needs no answer.
            let _ = mailbox.send(Event::Read(Box::new(done))).await;
        });
    }

    /// A read aside is done. Answers the failure after which the topic cannot continue.
    pub(super) fn read_done(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        right: &mut DeliveryRight,
        done: ReadDone,
    ) -> Option<LogError> {
        let read = self.reads.aside.take()?;
        self.reads.point = Some(done.point);
        match done.result {
            Ok(found) => {
                self.reads.succeeded();
                match found {
                    Found::Entries(entries) => {
                        self.deliver(cx, cursors, right, &read, &entries, done.room);
                    }
                    Found::Damaged(damage, reason) => {
                        self.deliver_gap(cx, right, &read, damage, reason);
                    }
                }
                self.wake();
            }
            Err(LogError::Fenced) => return Some(LogError::Fenced),
            // What is damaged stays so: consumers that wait for it are told, and may go on behind
            // it.
            Err(error @ (LogError::Damaged(_) | LogError::Limbo(_))) => {
                tracing::warn!(topic = %cx.name, %error, "reading for a subscription failed");
                cx.shared.metrics.read_failures.add(1, &[]);
                self.fail_all(cx, &BrokerError::Log(error));
                self.wake();
            }
            // Storage may answer later; consumers can do nothing about it that this could not.
            Err(error) => {
                let (pause, is_told) = self.reads.failed();
                if is_told {
                    let subscription = self.state.name();
                    tracing::warn!(topic = %cx.name, subscription, %error, "reading for a subscription failed, trying again");
                }
                cx.shared.metrics.read_failures.add(1, &[]);
                self.read_later(cx, pause);
            }
        }
        None
    }

    fn read_later(&mut self, cx: &TopicContext, pause: Duration) {
        self.reads.pausing = true;
        let (id, pause) = (self.id, cx.shared.rng.jitter(pause));
        let mailbox = cx.mailbox.clone();
        let token = cx.shared.tasks.shutdown_token();
        cx.shared.tasks.spawn("read-retry", async move {
            tokio::select! {
                () = clock::sleep(pause) => {}
                () = token.wait() => {}
            }
            // A topic that has ended needs no answer.
            let _ = mailbox.send(Event::ReadRetry(id)).await;
        });
    }

    /// The pause after a failed read is over.
    pub(super) fn read_retry(&mut self) {
        self.reads.pausing = false;
        self.wake();
    }

    /// Tells a consumer what storage cannot give. Everything else goes on.
    fn deliver_gap(
        &mut self,
        cx: &TopicContext,
        right: &mut DeliveryRight,
        read: &NextRead,
        damage: Damage,
        reason: String,
    ) {
        if !self.may_be_served(cx, right) || self.held > 0 {
            return;
        }
        let before = self.state.damaged_messages();
        let seek_epoch = self.state.seek_epoch();
        let told = self
            .state
            .deliver_gap(read, damage.from..damage.end, cx.wall_ms());
        let Some((consumer, range)) = told else {
            if self.state.is_full_of_damage() {
                self.read_later(cx, RETRY_MAX);
            }
            return;
        };
        let new = self.state.damaged_messages().saturating_sub(before);
        cx.shared.metrics.damaged_messages.add(new, &[]);
        let subscription = self.state.name();
        tracing::error!(topic = %cx.name, subscription, first = %range.first, last = %range.last, ledger = %damage.ledger, entry = %damage.entry, at_most = damage.at_most, reason, "messages cannot be delivered");
        let gap = Gap {
            range,
            ledger: damage.ledger,
            entry: damage.entry,
            at_most: damage.at_most,
            reason,
        };
        let told = ConsumerEvent::Gap {
            owner_epoch: cx.epoch,
            seek_epoch,
            gap,
        };
        self.tell(cx, consumer, told);
    }

    /// Passes over an entry that only takes its indexes, and is for no client. What is recorded of
    /// that must not fill memory: it waits while the cursor log is behind.
    fn pass_over(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        read: &NextRead,
        entries: &[LogEntry],
    ) {
        let Some(entry) = entries.first() else {
            return;
        };
        if self.state.is_durable() && cursors.is_full() {
            self.reads.unread(read.from, entries);
            return self.read_later(cx, RETRY_MAX);
        }
        let (from, end) = (read.from.max(entry.head.base_index), entry.head.end_index());
        let delta = self.state.pass_over(read, from..end);
        self.reads.unread(end, &entries[1..]);
        if !delta.individual.is_empty() {
            let logged = cursor_log::acknowledged(self.state.name(), &delta);
            cursors.log_change(logged, Effect::Passed(self.id, delta));
        }
    }

    /// Hands out entries that were read, as far as there is room for them.
    fn deliver(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        right: &mut DeliveryRight,
        read: &NextRead,
        entries: &[LogEntry],
        mut room: BytePermit,
    ) {
        let mut fits = fitting(entries, room.bytes());
        if let (0, Some(first)) = (fits, entries.first())
            && self.take_for_first(cx, &mut room, first)
        {
            fits = fitting(entries, room.bytes());
        }
        // The read may have taken long, and so may this process (H9).
        let may_deliver = self.may_be_served(cx, right);
        if self.held > 0 {
            return;
        }
        if !may_deliver {
            self.reads.unread(read.from, entries);
            return;
        }
        if is_passed_over(entries, cx.visible_end()) {
            return self.pass_over(cx, cursors, read, entries);
        }
        if let Some((damage, reason)) = unknown_format(read.from, entries) {
            self.reads.unread(damage.end, &entries[1..]);
            return self.deliver_gap(cx, right, read, damage, reason);
        }
        let fits = fits.min(deliverable(entries, cx.visible_end()));
        // Others may have used what was there before the read.
        let Some(left) = self.affords(cx) else {
            return self.reads.unread(read.from, entries);
        };
        let fits = fits.min(affordable(entries, left));
        if fits > 0 {
            self.delivery_budget.fitted();
        }
        let deliveries = self.state.deliver(read, &entries[..fits], cx.wall_ms());
        // What exceeds the credit is wanted as soon as there is more.
        let wanted = self.state.next_index();
        let left = entries.partition_point(|entry| entry.head.end_index() <= wanted);
        self.reads.unread(wanted, &entries[left..]);
        if self.delivery_budget.is_awaited() {
            self.reads.release();
        }
        self.send(cx, deliveries, room);
    }

    /// Sends deliveries to their consumers; each takes its part of the room with it.
    fn send(
        &mut self,
        cx: &TopicContext,
        deliveries: Vec<(ConsumerId, Delivery)>,
        mut room: BytePermit,
    ) {
        let seek_epoch = self.state.seek_epoch();
        let mut by_consumer: BTreeMap<ConsumerId, Vec<Delivery>> = BTreeMap::new();
        let (mut messages, mut bytes) = (0, 0);
        for (consumer, mut delivery) in deliveries {
            delivery.held = room.split(held_by(&delivery)).into();
            messages += messages_of(&delivery);
            bytes += delivery.body.len() as u64;
            by_consumer.entry(consumer).or_default().push(delivery);
        }
        for (consumer, deliveries) in by_consumer {
            let Some(out) = self.consumers.get_mut(&consumer) else {
                continue;
            };
            out.push(ConsumerEvent::Deliveries {
                owner_epoch: cx.epoch,
                seek_epoch,
                deliveries,
            });
            self.allow(cx, consumer);
        }
        if cx.rates.is_limited(Flow::Dispatch) {
            self.pacing.take(&cx.rates, Cost { messages, bytes });
        }
        cx.counters.delivered(messages, bytes);
        cx.shared.metrics.messages_out.add(messages, &[]);
        cx.shared.metrics.bytes_out.add(bytes, &[]);
    }
}

/// Whether the first entry is visible and for no client.
fn is_passed_over(entries: &[LogEntry], visible_end: Index) -> bool {
    let first = entries.first();
    first.is_some_and(|e| e.head.flags.is_control() && e.head.end_index() <= visible_end)
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
    // A control entry that is not visible yet waits like any other.
    if is_known(&entry.head) || entry.head.flags.is_control() {
        return None;
    }
    let damage = Damage {
        from: from.max(entry.head.base_index),
        end: entry.head.end_index(),
        ledger: entry.ledger,
        entry: entry.entry,
        at_most: false,
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
