//! Random histories of a whole subscription against a model of single messages.

mod steps;

use std::collections::{BTreeMap, BTreeSet};

use aquifer_model::subscription::SubscriptionType::{Exclusive, Failover, Shared};
use proptest::prelude::*;
use proptest::sample::Index as Pick;

use self::steps::{Account, Step, step};
use super::*;
use crate::cursor_log;
use crate::subscription::dispatcher::places::Place;

/// A logged change, as the owner has to confirm it.
enum Logged {
    Ack(AckDelta),
    Seek(SeekEpoch, Index),
}

struct World {
    kind: SubscriptionType,
    subscription: Subscription,
    log: Vec<LogEntry>,
    end: u64,
    /// Attached consumers; ids ascend with attachment.
    consumers: BTreeMap<ConsumerId, Account>,
    consumers_ever: u64,
    reading: Option<(NextRead, Vec<LogEntry>)>,
    mark: u64,
    acknowledged: BTreeSet<u64>,
    holder: BTreeMap<u64, ConsumerId>,
    /// How often each message was delivered by this owner in this seek epoch.
    deliveries: BTreeMap<u64, u32>,
    /// How often an earlier owner had, as far as that was recorded.
    before: BTreeMap<u64, u32>,
    records: Vec<v1::CursorDelta>,
    unconfirmed: Vec<Logged>,
    owner_epoch: OwnerEpoch,
}

impl World {
    fn new(kind: SubscriptionType, start: u64) -> World {
        let spec = SubscriptionSpec {
            name: "s".to_owned(),
            kind,
            durable: true,
            cursor: CursorState::new(Index(start)),
            delivered: Index(0),
            properties: Properties::new(),
            redelivered: Vec::new(),
            created_ms: 0,
        };
        let subscription = Subscription::new(spec);
        World {
            kind,
            records: vec![cursor_log::created(subscription.record())],
            subscription,
            log: Vec::new(),
            end: 0,
            consumers: BTreeMap::new(),
            consumers_ever: 0,
            reading: None,
            mark: start,
            acknowledged: BTreeSet::new(),
            holder: BTreeMap::new(),
            deliveries: BTreeMap::new(),
            before: BTreeMap::new(),
            unconfirmed: Vec::new(),
            owner_epoch: EPOCH,
        }
    }

    fn is_acknowledged(&self, index: u64) -> bool {
        index < self.mark || self.acknowledged.contains(&index)
    }

    /// Neither acknowledged nor held: a consumer is to get it.
    fn is_open(&self, index: u64) -> bool {
        !self.is_acknowledged(index) && !self.holder.contains_key(&index)
    }

    fn first_open(&self) -> Option<u64> {
        (self.mark..self.end).find(|index| self.is_open(*index))
    }

    fn active(&self) -> Option<ConsumerId> {
        let by_order = |(id, account): &(&ConsumerId, &Account)| (account.priority, **id);
        match self.kind {
            Failover => self
                .consumers
                .iter()
                .min_by_key(by_order)
                .map(|(id, _)| *id),
            _ => self.consumers.keys().next().copied(),
        }
    }

    fn pick(&self, pick: Pick) -> Option<ConsumerId> {
        let ids: Vec<ConsumerId> = self.consumers.keys().copied().collect();
        (!ids.is_empty()).then(|| *pick.get(&ids))
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Append(counts) => {
                for count in counts {
                    self.log.push(entry(self.end, count));
                    self.end += u64::from(count);
                }
            }
            Step::Attach { priority } => self.attach(priority),
            Step::Read => match self.reading.take() {
                Some((next, entries)) => self.deliver(&next, &entries, true),
                None => self.reading = self.begin_read(),
            },
            Step::Deliver => {
                if let Some((next, entries)) = self.begin_read() {
                    self.deliver(&next, &entries, false);
                }
            }
            Step::Seek(to) => self.seek(to.index(usize::try_from(self.end).unwrap() + 1) as u64),
            Step::Confirm(count) => self.confirm(count.index(self.unconfirmed.len() + 1)),
            Step::Restart { snapshot } => self.restart(snapshot),
            Step::Detach(pick)
            | Step::Credit { consumer: pick, .. }
            | Step::Acknowledge { consumer: pick, .. }
            | Step::Nack { consumer: pick, .. } => {
                if let Some(consumer) = self.pick(pick) {
                    self.run_of(consumer, &step);
                }
            }
        }
        self.check();
    }

    fn run_of(&mut self, consumer: ConsumerId, step: &Step) {
        match step {
            Step::Detach(_) => self.detach(consumer),
            Step::Credit {
                messages, entries, ..
            } => self.credit(consumer, *messages, *entries),
            Step::Acknowledge {
                first,
                len,
                cumulative,
                ..
            } => {
                let first = self.near(*first);
                let cumulative = *cumulative && self.kind != Shared;
                self.acknowledge(consumer, first, first + len, cumulative);
            }
            Step::Nack { first, len, .. } => {
                let first = self.near(*first);
                self.nack(consumer, first, first + len);
            }
            _ => unreachable!("not a step of a consumer"),
        }
    }

    /// An index where something may be going on.
    fn near(&self, pick: Pick) -> u64 {
        let window = usize::try_from(self.end.saturating_sub(self.mark)).unwrap() + 2;
        (self.mark + pick.index(window) as u64).saturating_sub(1)
    }

    fn attach(&mut self, priority: i32) {
        let before = self.active();
        self.consumers_ever += 1;
        let consumer = ConsumerId(self.consumers_ever);
        let attached = self.subscription.attach(Attach {
            consumer,
            kind: self.kind,
            name: None,
            priority,
        });
        if self.kind == Exclusive && before.is_some() {
            assert!(attached.is_err());
            return;
        }
        let notices = attached.expect("it may attach");
        let account = Account {
            priority,
            ..Account::default()
        };
        self.consumers.insert(consumer, account);
        self.check_notices(&notices, before, Some(consumer));
    }

    fn detach(&mut self, consumer: ConsumerId) {
        let before = self.active();
        let notices = self.subscription.detach(consumer);
        self.consumers.remove(&consumer);
        self.holder.retain(|_, holder| *holder != consumer);
        self.check_notices(&notices, before.filter(|id| *id != consumer), None);
    }

    fn check_notices(
        &mut self,
        notices: &[Notice],
        before: Option<ConsumerId>,
        new: Option<ConsumerId>,
    ) {
        if self.kind != Failover {
            assert_eq!(notices, []);
            return;
        }
        let after = self.active();
        let notice = |active| move |consumer| Notice::Active { consumer, active };
        let mut expected = Vec::new();
        if before != after {
            expected.extend(before.map(notice(false)));
            expected.extend(after.map(notice(true)));
            self.holder.retain(|_, holder| Some(*holder) != before);
        } else {
            expected.extend(new.map(notice(false)));
        }
        assert_eq!(notices, expected);
    }

    fn credit(&mut self, consumer: ConsumerId, messages: u64, entries: u64) {
        let account = self.consumers.get_mut(&consumer).expect("picked");
        account.granted.0 += messages;
        account.granted.1 += entries * BODY_BYTES as u64;
        let (messages, bytes) = account.granted;
        self.subscription.credit(consumer, messages, bytes);
    }

    fn begin_read(&mut self) -> Option<(NextRead, Vec<LogEntry>)> {
        let next = self.subscription.next_read(NOW);
        let served = match self.kind {
            Shared => self.consumers.values().any(Account::has_credit),
            _ => self
                .active()
                .is_some_and(|id| self.consumers[&id].has_credit()),
        };
        assert_eq!(
            next.is_some(),
            served,
            "read if and only if a consumer has credit"
        );
        let next = next?;
        let came_back = |index: &u64| self.is_open(*index) && self.deliveries.contains_key(index);
        let first_back = (self.mark..self.end).find(came_back);
        match first_back.or(self.first_open()) {
            Some(first) => assert_eq!(next.from.0, first, "I7: what came back is first"),
            None => assert!(next.from.0 >= self.end),
        }
        let entries = read(&self.log, &next).to_vec();
        (!entries.is_empty()).then_some((next, entries))
    }

    fn deliver(&mut self, next: &NextRead, entries: &[LogEntry], may_be_void: bool) {
        let deliveries = self.subscription.deliver(next, entries, NOW);
        assert!(
            may_be_void || !deliveries.is_empty(),
            "a fresh read brings something"
        );
        for (consumer, delivery) in deliveries {
            let got = messages(&self.log, &delivery);
            assert!(!got.is_empty());
            if self.kind != Shared {
                assert_eq!(Some(consumer), self.active());
            }
            let account = self.consumers.get_mut(&consumer).expect("it is attached");
            assert!(account.has_credit(), "at most one entry beyond the credit");
            account.used.0 += got.len() as u64;
            account.used.1 += delivery.body.len() as u64;
            for index in got {
                assert!(self.is_open(index), "I9: {index} is acknowledged or held");
                if self.kind != Shared {
                    assert_eq!(self.first_open(), Some(index), "I7");
                }
                self.holder.insert(index, consumer);
                let earlier = self.before.remove(&index).unwrap_or(0);
                let before = self.deliveries.entry(index).or_insert(earlier);
                assert_eq!(redeliveries(&delivery, index), *before, "{index}");
                *before += 1;
            }
        }
    }

    fn acknowledge(&mut self, consumer: ConsumerId, first: u64, last: u64, cumulative: bool) {
        let mut ack = if cumulative {
            acks(Some(last), &[])
        } else {
            acks(None, &[(first, last)])
        };
        ack.owner_epoch = self.owner_epoch;
        ack.seek_epoch = self.subscription.seek_epoch();
        let outcome = self
            .subscription
            .acknowledge(consumer, &ack, self.owner_epoch);
        let first = if cumulative { self.mark } else { first };
        let new = (first..=last).any(|index| !self.is_acknowledged(index));
        let delivered =
            |index: u64| self.is_acknowledged(index) || self.deliveries.contains_key(&index);
        let all_delivered = (first..=last).all(delivered);
        match outcome {
            AckOutcome::Log(delta) => {
                assert!(all_delivered && new, "I9");
                for index in first.max(self.mark)..=last {
                    self.acknowledged.insert(index);
                    self.holder.remove(&index);
                }
                while self.acknowledged.remove(&self.mark) {
                    self.mark += 1;
                }
                self.records.push(cursor_log::acknowledged("s", &delta));
                self.unconfirmed.push(Logged::Ack(delta));
            }
            AckOutcome::Unchanged => assert!(!new),
            AckOutcome::Invalid(_) => {
                // What was acknowledged before this owner came counts as delivered only once a
                // read has passed it.
                let beyond = self
                    .deliveries
                    .keys()
                    .next_back()
                    .is_none_or(|seen| last > *seen);
                assert!(!all_delivered || (self.is_acknowledged(last) && beyond));
            }
            AckOutcome::Stale => unreachable!("epochs and consumer are right"),
        }
    }

    fn nack(&mut self, consumer: ConsumerId, first: u64, last: u64) {
        let mut nack = nacks(&[(first, last)]);
        nack.owner_epoch = self.owner_epoch;
        nack.seek_epoch = self.subscription.seek_epoch();
        self.subscription
            .negative_acknowledge(consumer, &nack, self.owner_epoch);
        let mut own = self
            .holder
            .iter()
            .filter(|(_, holder)| **holder == consumer);
        let Some((&earliest, _)) = own.find(|(index, _)| (first..=last).contains(*index)) else {
            return;
        };
        let last = if self.kind == Shared { last } else { u64::MAX };
        let back = earliest..=last;
        self.holder
            .retain(|index, holder| *holder != consumer || !back.contains(index));
    }

    fn seek(&mut self, to: u64) {
        let before = self.subscription.seek_epoch();
        let epoch = self.subscription.seek(Index(to));
        assert!(epoch > before);
        self.mark = to;
        self.acknowledged.clear();
        self.holder.clear();
        self.deliveries.clear();
        self.before.clear();
        self.records.push(cursor_log::moved("s", epoch, Index(to)));
        self.unconfirmed.push(Logged::Seek(epoch, Index(to)));
    }

    fn confirm(&mut self, count: usize) {
        for logged in self.unconfirmed.drain(..count) {
            match logged {
                Logged::Ack(delta) => self.subscription.confirm(&delta),
                Logged::Seek(epoch, index) => self.subscription.confirm_seek(epoch, index),
            }
        }
    }

    /// The state that a new owner would find.
    fn durable(&self) -> cursor_log::RecoveredSubscription {
        let durable = self.records.len() - self.unconfirmed.len();
        let records = cursor_log::encode_deltas(self.records[..durable].to_vec());
        let numbered = records
            .into_iter()
            .zip(0..)
            .map(|(record, at)| (Index(at), record));
        let recovered = cursor_log::replay(numbered).expect("the log is sound");
        recovered
            .subscriptions
            .into_values()
            .next()
            .expect("it was created")
    }

    fn restart(&mut self, snapshot: bool) {
        let mut recovered = self.durable();
        self.before.clear();
        if snapshot {
            let index = |index| (Index(index), self.count(index));
            let counts = (self.mark..self.end).map(index).filter(|(_, n)| *n > 0);
            recovered.redelivered = counts
                .map(|(first, count)| Redelivered {
                    range: IndexRange { first, last: first },
                    count,
                })
                .collect();
        }
        self.records
            .truncate(self.records.len() - self.unconfirmed.len());
        self.unconfirmed.clear();
        self.mark = recovered.cursor.mark_delete().0;
        let is_acknowledged = |index: &u64| recovered.cursor.is_acknowledged(Index(*index));
        self.acknowledged = (self.mark..self.end).filter(is_acknowledged).collect();
        for part in &recovered.redelivered {
            if !self.is_acknowledged(part.range.first.0) {
                self.before.insert(part.range.first.0, part.count);
            }
        }
        self.subscription = Subscription::new(SubscriptionSpec {
            name: "s".to_owned(),
            kind: recovered.kind,
            durable: true,
            cursor: recovered.cursor,
            delivered: Index(0),
            properties: recovered.properties,
            redelivered: recovered.redelivered,
            created_ms: recovered.created_ms,
        });
        self.consumers.clear();
        self.holder.clear();
        self.deliveries.clear();
        self.reading = None;
        self.owner_epoch.0 += 1;
    }

    /// How often a message was delivered, if it is not acknowledged.
    fn count(&self, index: u64) -> u32 {
        let counts = self.deliveries.get(&index).or(self.before.get(&index));
        let count = counts.filter(|_| !self.is_acknowledged(index));
        count.copied().unwrap_or(0)
    }

    fn check_counts(&self) {
        let recorded = self.subscription.dispatcher.redelivered(usize::MAX);
        let recorded: BTreeMap<u64, u32> = recorded
            .into_iter()
            .flat_map(|Redelivered { range, count }| {
                (range.first.0..=range.last.0).map(move |index| (index, count))
            })
            .collect();
        let counts = (self.mark..self.end).map(|index| (index, self.count(index)));
        let counts: BTreeMap<u64, u32> = counts.filter(|(_, count)| *count > 0).collect();
        assert_eq!(recorded, counts);
    }

    fn check(&self) {
        self.check_counts();
        let stats = self.subscription.stats(Index(self.end));
        assert_eq!(stats.mark_delete, Index(self.mark), "I9");
        let open = (self.mark..self.end).filter(|index| !self.is_acknowledged(*index));
        assert_eq!(stats.backlog_messages, open.count() as u64);
        assert_eq!(stats.unacknowledged_messages, self.holder.len() as u64);
        for index in self.mark..self.end {
            self.check_place(index);
        }
        let durable = self.durable().cursor.mark_delete();
        assert!(
            self.subscription.durable_mark_delete() <= durable,
            "H11: trims too much"
        );
        if self.unconfirmed.is_empty() {
            assert_eq!(
                self.subscription.durable_mark_delete(),
                durable,
                "trims too little"
            );
        }
    }

    /// A message is in one of the five places, and in one only.
    fn check_place(&self, index: u64) {
        let (cursor, dispatcher) = (&self.subscription.cursor, &self.subscription.dispatcher);
        let places = dispatcher.places(cursor, index);
        let holder = self.holder.get(&index).copied();
        let expected = match (self.is_acknowledged(index), holder) {
            (true, _) => Place::Acknowledged,
            (false, Some(holder)) => Place::Pending(holder),
            (false, None) if self.deliveries.contains_key(&index) => Place::Replay,
            (false, None) => Place::Unread,
        };
        assert_eq!(places, [expected], "{index}");
    }

    /// I9: whatever happened, one consumer that acknowledges everything gets all that is open.
    fn finish(&mut self) {
        for consumer in self.consumers.keys().copied().collect::<Vec<_>>() {
            self.detach(consumer);
        }
        self.attach(0);
        let consumer = ConsumerId(self.consumers_ever);
        self.credit(consumer, 1 << 32, 1 << 32);
        while let Some((next, entries)) = self.begin_read() {
            self.deliver(&next, &entries, false);
            let held: Vec<u64> = self.holder.keys().copied().collect();
            for index in held {
                self.acknowledge(consumer, index, index, false);
            }
            self.check();
        }
        assert_eq!(self.mark, self.end.max(self.mark));
        assert_eq!(self.subscription.backlog(Index(self.end)), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// I7, I9: any history of consumers, credit, acknowledgements, seeks and owners.
    #[test]
    fn every_history_keeps_the_invariants(
        kind in prop_oneof![Just(Exclusive), Just(Failover), Just(Shared)],
        start in 0u64..4,
        steps in proptest::collection::vec(step(), 0..120),
    ) {
        let mut world = World::new(kind, start);
        for step in steps {
            world.run(step);
        }
        world.finish();
    }
}
