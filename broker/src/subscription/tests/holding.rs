//! Messages that are held back: random histories of a mode that decides by row, against a model of
//! single messages, and the bound of what may be held.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aquifer_model::batch::{self, BatchFields, MessageRow};
use aquifer_model::limits::{DELIVERY_RANGES_MAX, UNACKED_PER_SUBSCRIPTION_MAX};
use parking_lot::Mutex;
use proptest::prelude::*;
use proptest::sample::Index as Pick;

use super::*;
use crate::subscription::dispatcher::places::Place;
use crate::subscription::mode::{Attached, Choice, HoldReason, Mode};

const SLOTS: u32 = 4;

/// Slots whose messages are held back until they are open again.
type Closed = Arc<Mutex<BTreeSet<u32>>>;

/// A slot of hashes belongs to one consumer; a message waits until it is due, its slot is open, and
/// that consumer has room. Slot and time stand in the row, as hash and event time.
#[derive(Debug)]
struct ByRow {
    closed: Closed,
    consumers: Vec<ConsumerId>,
    /// Slots of which something was held back.
    waiting: BTreeSet<u32>,
}

impl ByRow {
    fn owner(&self, slot: u32) -> Option<ConsumerId> {
        let count = self.consumers.len();
        (count > 0).then(|| self.consumers[slot as usize % count])
    }

    fn may_take(&self, slot: u32, attached: &Attached<'_>) -> Option<ConsumerId> {
        let owner = self.owner(slot)?;
        let is_open = !self.closed.lock().contains(&slot);
        (is_open && attached.room(owner).is_some()).then_some(owner)
    }
}

impl Mode for ByRow {
    fn keeps_order(&self) -> bool {
        false
    }

    fn reads_rows(&self) -> bool {
        true
    }

    fn attach(&mut self, consumer: ConsumerId, _priority: i32) -> Result<Vec<Notice>, ApiError> {
        self.consumers.push(consumer);
        Ok(Vec::new())
    }

    fn detach(&mut self, consumer: ConsumerId) -> Vec<Notice> {
        self.consumers.retain(|other| *other != consumer);
        Vec::new()
    }

    fn room(&self, attached: &Attached<'_>) -> Option<(u64, u64)> {
        self.consumers.iter().find_map(|id| attached.room(*id))
    }

    fn choose(&mut self, row: Option<&MessageRow>, attached: &Attached<'_>, now_ms: u64) -> Choice {
        if self.room(attached).is_none() {
            return Choice::Stop;
        }
        let row = row.expect("the entries of this test have rows");
        if row.event_time_ms > now_ms {
            return Choice::Hold(HoldReason::NotDue(row.event_time_ms));
        }
        match self.may_take(row.key_hash, attached) {
            Some(owner) => Choice::Give(owner),
            None => {
                self.waiting.insert(row.key_hash);
                Choice::Hold(HoldReason::KeyHash(row.key_hash))
            }
        }
    }

    fn ended(&mut self, attached: &Attached<'_>) -> Option<HoldReason> {
        let mut waiting = self.waiting.iter().copied();
        let slot = waiting.find(|slot| self.may_take(*slot, attached).is_some())?;
        self.waiting.remove(&slot);
        Some(HoldReason::KeyHash(slot))
    }
}

fn row(slot: u32, due_ms: u64) -> MessageRow {
    MessageRow {
        key_hash: slot,
        event_time_ms: due_ms,
        ..MessageRow::default()
    }
}

fn entry_of(first: u64, rows: &[MessageRow]) -> LogEntry {
    let body = batch::encode(&BatchFields::default(), rows, b"").expect("it is within bounds");
    LogEntry {
        body,
        ..entry(first, u32::try_from(rows.len()).unwrap())
    }
}

fn by_row(closed: &Closed) -> Subscription {
    let mut subscription = subscription(SubscriptionType::Shared);
    subscription.dispatcher.set_mode(Box::new(ByRow {
        closed: Arc::clone(closed),
        consumers: Vec::new(),
        waiting: BTreeSet::new(),
    }));
    subscription
}

#[derive(Debug, Clone)]
enum Step {
    /// Messages of one entry: slot, and how long after the beginning it is due.
    Append(Vec<(u32, u64)>),
    Attach,
    Detach(Pick),
    Credit(Pick, u64),
    Deliver,
    Acknowledge(Pick, u64),
    Nack(Pick, Pick, u64),
    Seek(Pick),
    Wait(u64),
    /// Closes a slot, or opens it.
    Toggle(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let pick = any::<Pick>;
    let due = prop_oneof![4 => Just(0), 1 => 0u64..60];
    prop_oneof![
        6 => proptest::collection::vec((0..SLOTS, due), 1..6).prop_map(Step::Append),
        3 => Just(Step::Attach),
        1 => pick().prop_map(Step::Detach),
        6 => (pick(), 0u64..12).prop_map(|(consumer, count)| Step::Credit(consumer, count)),
        14 => Just(Step::Deliver),
        6 => (pick(), 0u64..4).prop_map(|(first, len)| Step::Acknowledge(first, len)),
        3 => (pick(), pick(), 0u64..4).prop_map(|(id, first, len)| Step::Nack(id, first, len)),
        1 => pick().prop_map(Step::Seek),
        3 => (0u64..20).prop_map(Step::Wait),
        2 => (0..SLOTS).prop_map(Step::Toggle),
    ]
}

struct World {
    subscription: Subscription,
    closed: Closed,
    log: Vec<LogEntry>,
    rows: Vec<MessageRow>,
    now_ms: u64,
    consumers: Vec<ConsumerId>,
    consumers_ever: u64,
    granted: BTreeMap<ConsumerId, u64>,
    acknowledged: BTreeSet<u64>,
    holder: BTreeMap<u64, ConsumerId>,
}

impl World {
    fn new() -> World {
        let closed = Closed::default();
        World {
            subscription: by_row(&closed),
            closed,
            log: Vec::new(),
            rows: Vec::new(),
            now_ms: NOW,
            consumers: Vec::new(),
            consumers_ever: 0,
            granted: BTreeMap::new(),
            acknowledged: BTreeSet::new(),
            holder: BTreeMap::new(),
        }
    }

    fn end(&self) -> u64 {
        self.rows.len() as u64
    }

    fn places(&self, index: u64) -> Vec<Place> {
        let (cursor, dispatcher) = (&self.subscription.cursor, &self.subscription.dispatcher);
        dispatcher.places(cursor, index)
    }

    fn waiting(&self) -> usize {
        let waits = |index: &u64| {
            let places = self.places(*index);
            places.contains(&Place::Replay) || places.contains(&Place::Unread)
        };
        (0..self.end()).filter(waits).count()
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Append(messages) => {
                let rows: Vec<MessageRow> = messages
                    .into_iter()
                    .map(|(slot, after)| row(slot, NOW + after))
                    .collect();
                self.log.push(entry_of(self.end(), &rows));
                self.rows.extend(rows);
            }
            Step::Attach => {
                self.consumers_ever += 1;
                let id = ConsumerId(self.consumers_ever);
                assert_eq!(attach(&mut self.subscription, id, 0), []);
                self.consumers.push(id);
            }
            Step::Wait(ms) => self.now_ms += ms,
            Step::Toggle(slot) => {
                let mut closed = self.closed.lock();
                if !closed.remove(&slot) {
                    closed.insert(slot);
                }
            }
            Step::Deliver => self.deliver(),
            Step::Seek(to) => {
                let to = to.index(self.rows.len() + 1) as u64;
                self.subscription.seek(Index(to));
                self.acknowledged = (0..to).collect();
                self.holder.clear();
            }
            Step::Acknowledge(first, len) => {
                let first = first.index(self.rows.len() + 1) as u64;
                self.acknowledge(first, first + len);
            }
            Step::Detach(pick) | Step::Credit(pick, _) | Step::Nack(pick, _, _) => {
                if !self.consumers.is_empty() {
                    let consumer = *pick.get(&self.consumers);
                    self.run_of(consumer, &step);
                }
            }
        }
        self.check();
    }

    fn run_of(&mut self, consumer: ConsumerId, step: &Step) {
        match step {
            Step::Detach(_) => {
                self.subscription.detach(consumer);
                self.consumers.retain(|other| *other != consumer);
                self.holder.retain(|_, holder| *holder != consumer);
            }
            Step::Credit(_, messages) => {
                let granted = self.granted.entry(consumer).or_default();
                *granted += messages;
                self.subscription.credit(consumer, *granted, u64::MAX);
            }
            Step::Nack(_, first, len) => {
                let first = first.index(self.rows.len() + 1) as u64;
                let mut nack = nacks(&[(first, first + len)]);
                nack.seek_epoch = self.subscription.seek_epoch();
                self.subscription
                    .negative_acknowledge(consumer, &nack, EPOCH);
                let range = first..=first + len;
                self.holder
                    .retain(|index, holder| *holder != consumer || !range.contains(index));
            }
            _ => unreachable!("not a step of a consumer"),
        }
    }

    fn deliver(&mut self) {
        let next = self.subscription.next_read(self.now_ms);
        self.check_held();
        let Some(next) = next else {
            return;
        };
        let entries = read(&self.log, &next).to_vec();
        if entries.is_empty() {
            return;
        }
        let before = self.waiting();
        for (consumer, delivery) in self.subscription.deliver(&next, &entries, self.now_ms) {
            for index in messages(&self.log, &delivery) {
                let (slot, due) = self.row(index);
                assert!(due <= self.now_ms, "{index} is not due");
                assert!(!self.closed.lock().contains(&slot), "{index} is held back");
                assert!(!self.acknowledged.contains(&index), "I9");
                assert_eq!(self.holder.insert(index, consumer), None, "I9");
            }
        }
        assert!(self.waiting() < before, "a read brings something to an end");
    }

    fn row(&self, index: u64) -> (u32, u64) {
        let row = self.rows[usize::try_from(index).unwrap()];
        (row.key_hash, row.event_time_ms)
    }

    /// After what may be released is released: what is still held back has a reason, and the next
    /// wake-up is the time of the first that ends by itself.
    fn check_held(&self) {
        let mut next_due = None;
        for index in 0..self.end() {
            let (slot, due) = self.row(index);
            match self.places(index)[..] {
                [Place::HeldBack(HoldReason::NotDue(at))] => {
                    assert!(at == due && due > self.now_ms, "{index} is due");
                    next_due = next_due.or(Some(at)).map(|next: u64| next.min(at));
                }
                [Place::HeldBack(HoldReason::KeyHash(held_for))] => {
                    assert_eq!(held_for, slot);
                    let owner = self.consumers[slot as usize % self.consumers.len()];
                    let consumers = &self.subscription.dispatcher;
                    let is_closed = self.closed.lock().contains(&slot);
                    assert!(is_closed || !consumers.has_room(owner), "{index} may go");
                }
                _ => {}
            }
        }
        assert_eq!(self.subscription.next_due_ms(), next_due);
    }

    fn acknowledge(&mut self, first: u64, last: u64) {
        let Some(&consumer) = self.consumers.first() else {
            return;
        };
        let mut ack = acks(None, &[(first, last)]);
        ack.seek_epoch = self.subscription.seek_epoch();
        match self.subscription.acknowledge(consumer, &ack, EPOCH) {
            AckOutcome::Log(_) => {
                self.acknowledged.extend(first..=last);
                self.holder
                    .retain(|index, _| *index < first || *index > last);
            }
            AckOutcome::Unchanged => {
                assert!((first..=last).all(|index| self.acknowledged.contains(&index)));
            }
            AckOutcome::Invalid(_) => {}
            AckOutcome::Stale => unreachable!("epochs and consumer are right"),
        }
    }

    fn check(&self) {
        for index in self.subscription.mark_delete().0..self.end() {
            let places = self.places(index);
            let holder = self.holder.get(&index).copied();
            assert_eq!(places.len(), 1, "{index} is in one place: {places:?}");
            let is_acknowledged = self.acknowledged.contains(&index);
            assert_eq!(places[0] == Place::Acknowledged, is_acknowledged, "{index}");
            let pending = holder.map(Place::Pending);
            assert_eq!(matches!(places[0], Place::Pending(_)), pending.is_some());
            assert!(pending.is_none_or(|pending| pending == places[0]));
            assert!(
                !self.consumers.is_empty() || !matches!(places[0], Place::HeldBack(_)),
                "nothing is held back without consumers"
            );
        }
    }

    /// I9: with every reason over, one consumer gets all that is open.
    fn finish(&mut self) {
        self.closed.lock().clear();
        self.now_ms = NOW + 1_000;
        for consumer in std::mem::take(&mut self.consumers) {
            self.subscription.detach(consumer);
        }
        self.holder.clear();
        self.run(Step::Attach);
        self.subscription
            .credit(ConsumerId(self.consumers_ever), u64::MAX, u64::MAX);
        while self.subscription.mark_delete().0 < self.end() {
            self.deliver();
            let held: Vec<u64> = self.holder.keys().copied().collect();
            held.into_iter()
                .for_each(|index| self.acknowledge(index, index));
            self.check();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Holding, release by time and by event, acknowledgements of what is held back, seeks, and
    /// consumers that leave work.
    #[test]
    fn every_history_keeps_each_message_in_one_place(
        steps in proptest::collection::vec(step(), 0..120),
    ) {
        let mut world = World::new();
        for step in steps {
            world.run(step);
        }
        world.finish();
    }
}

/// I13: what is held back counts like what is delivered, and reading stops at the same cap.
#[test]
fn reading_stops_when_too_much_is_held_back() {
    let closed = Closed::default();
    closed.lock().extend(0..SLOTS);
    let mut s = by_row(&closed);
    attach(&mut s, A, 0);
    s.credit(A, u64::MAX, u64::MAX);
    let batch = 1_000;
    // No two neighbours are alike: as many ranges as messages.
    let rows: Vec<MessageRow> = (0..batch).map(|at| row(at % SLOTS, 0)).collect();
    let first = |number| number * u64::from(batch);
    let log: Vec<LogEntry> = (0..300).map(|n| entry_of(first(n), &rows)).collect();
    assert_eq!(drain(&mut s, &log), []);
    let held = s.dispatcher.counted();
    assert!(held >= UNACKED_PER_SUBSCRIPTION_MAX, "{held}");
    assert!(held < UNACKED_PER_SUBSCRIPTION_MAX + u64::from(batch));
    assert_eq!(s.next_read(NOW), None);
    // One slot that opens is read again, and makes no room for new ones before it is acknowledged.
    closed.lock().remove(&1);
    let got = drain(&mut s, &log);
    let count: usize = got.iter().map(|(_, messages, _)| messages.len()).sum();
    assert_eq!(count as u64, held / u64::from(SLOTS));
    assert_eq!(s.dispatcher.counted(), held);
    let (_, mut some, _) = got.into_iter().next().expect("it got some");
    some.truncate(ACK_RANGES_MAX);
    let ranges: Vec<(u64, u64)> = some.iter().map(|index| (*index, *index)).collect();
    assert!(is_log(&s.acknowledge(A, &acks(None, &ranges), EPOCH)));
    assert!(s.next_read(NOW).is_some());
}

/// What was never delivered can be acknowledged once it was passed over: nothing of it is
/// delivered.
#[test]
fn a_message_that_is_held_back_can_be_acknowledged() {
    let closed = Closed::default();
    let mut s = by_row(&closed);
    attach(&mut s, A, 0);
    s.credit(A, 100, 10_000);
    let log = [entry_of(0, &[row(0, NOW + 5), row(0, 0), row(0, NOW + 5)])];
    assert_eq!(drain(&mut s, &log), [(A, vec![1], 0)]);
    assert_eq!(s.start(), Index(0), "a consumer that attaches may get it");
    assert_eq!(s.next_index(), Index(3));
    assert!(is_log(&s.acknowledge(A, &acks(None, &[(0, 0)]), EPOCH)));
    assert_eq!(s.mark_delete(), Index(1));
    assert_eq!(s.next_due_ms(), Some(NOW + 5));
    let read = s.next_read(NOW + 5).expect("it is due");
    assert_eq!(read.from, Index(2));
    let (_, delivery) = s.deliver(&read, &log, NOW + 5).remove(0);
    assert_eq!(
        (messages(&log, &delivery), delivery.redelivered.as_slice()),
        (vec![2], [].as_slice())
    );
}

/// What of an entry is scattered over more ranges than a delivery may have comes in several.
#[test]
fn a_delivery_has_so_many_ranges_at_most() {
    let (mut s, max) = (
        subscription(SubscriptionType::Shared),
        DELIVERY_RANGES_MAX as u64,
    );
    let log = [entry(0, 60_000)];
    attach(&mut s, A, 0);
    s.credit(A, u64::MAX, u64::MAX);
    assert_eq!(drain(&mut s, &log).len(), 1);
    let every_other: Vec<(u64, u64)> = (0..30_000).map(|at| (2 * at, 2 * at)).collect();
    for some in every_other.chunks(ACK_RANGES_MAX) {
        assert!(is_log(&s.acknowledge(A, &acks(None, some), EPOCH)));
    }
    s.detach(A);
    attach(&mut s, B, 0);
    s.credit(B, u64::MAX, u64::MAX);
    let got = drain(&mut s, &log);
    let counts: Vec<u64> = got.iter().map(|(_, some, _)| some.len() as u64).collect();
    assert_eq!(counts, [max, 30_000 - max]);
    assert!(
        got.iter()
            .all(|(consumer, _, count)| (*consumer, *count) == (B, 1))
    );
}
