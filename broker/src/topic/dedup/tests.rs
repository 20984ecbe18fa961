use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

mod names;

fn name(number: usize) -> ProducerName {
    ProducerName::new(&format!("producer-{number}")).expect("a valid name")
}

fn range(lowest: u64, highest: u64) -> SequenceRange {
    SequenceRange { lowest, highest }
}

fn at(entry: u64) -> StoredAt {
    StoredAt {
        ledger: LedgerId(3),
        entry: EntryId(entry),
        base_index: Index(entry * 10),
    }
}

fn opener(epoch: u64) -> Opener {
    Opener {
        instance: ProducerInstance([1; 16]),
        epoch,
    }
}

fn drawn(number: u8) -> ProducerName {
    ProducerName::drawn([number; 16])
}

fn store(table: &mut DedupTable, name: &ProducerName, range: SequenceRange, entry: u64) {
    table.pushed(name, range);
    table.persisted(name, range, at(entry), entry);
}

#[derive(Debug, Clone)]
enum Step {
    /// A producer sends a batch of this many ids after leaving out others.
    Send {
        producer: usize,
        gap: u64,
        len: u64,
    },
    /// It sends ids from anywhere again, cut as it likes.
    Repeat {
        producer: usize,
        lowest: u64,
        len: u64,
    },
    /// It sends one of its batches again, as it was.
    Resend {
        producer: usize,
        batch: prop::sample::Index,
    },
    /// The oldest append in flight succeeds.
    Persist,
    /// Everything in flight fails.
    Fail,
    Snapshot,
    /// The owner dies; of what was in flight the log keeps this share, oldest first.
    Restart {
        kept: prop::sample::Index,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        8 => (0usize..3, 0u64..3, 1u64..5)
            .prop_map(|(producer, gap, len)| Step::Send { producer, gap, len }),
        4 => (0usize..3, 0u64..60, 1u64..6)
            .prop_map(|(producer, lowest, len)| Step::Repeat { producer, lowest, len }),
        4 => (0usize..3, index()).prop_map(|(producer, batch)| Step::Resend { producer, batch }),
        8 => Just(Step::Persist),
        2 => Just(Step::Fail),
        1 => Just(Step::Snapshot),
        1 => index().prop_map(|kept| Step::Restart { kept }),
    ]
}

/// A topic log with its table, as the topic's owner would drive them.
#[derive(Default)]
struct World {
    table: DedupTable,
    log: Vec<(usize, SequenceRange)>,
    in_flight: Vec<(usize, SequenceRange)>,
    /// Every stored id, and where its batch is.
    stored: BTreeMap<(usize, u64), usize>,
    next: [u64; 3],
    sent: [Vec<SequenceRange>; 3],
    snapshot: (Vec<v1::ProducerState>, usize),
}

impl World {
    fn send(&mut self, producer: usize, batch: SequenceRange) {
        let verdict = self.table.check(&name(producer), batch);
        let ids = batch.lowest..=batch.highest;
        let known = |id: u64| self.stored.get(&(producer, id)).copied();
        let whole = |entry: usize| self.log[entry] == (producer, batch);
        match verdict {
            Verdict::New => {
                assert!(
                    ids.clone().all(|id| known(id).is_none()),
                    "I8: accepted twice"
                );
                let overlaps = |(other, sent): &(usize, SequenceRange)| {
                    *other == producer
                        && sent.lowest <= batch.highest
                        && batch.lowest <= sent.highest
                };
                assert!(!self.in_flight.iter().any(overlaps), "I8: in flight twice");
                self.table.pushed(&name(producer), batch);
                self.in_flight.push((producer, batch));
            }
            Verdict::Duplicate(Some(place)) => {
                let entry = known(batch.lowest).expect("a duplicate is stored");
                assert!(whole(entry), "the answer is the original's");
                assert_eq!(place, at(entry as u64));
            }
            Verdict::Duplicate(None) => {
                // The window never overflows here, so only other cuts have no position, and ids
                // below the first that the name ever stored.
                let first = self.log.iter().find(|(other, _)| *other == producer);
                let (_, first) = first.expect("something of the name is stored");
                let below = batch.lowest <= first.highest;
                assert!(below || ids.clone().any(|id| known(id).is_some()));
                assert!(!ids.clone().filter_map(known).any(whole));
            }
            Verdict::OutOfOrder => {
                assert!(
                    ids.clone().all(|id| known(id).is_none()),
                    "nothing of it is stored"
                );
            }
            Verdict::PartialOverlap => {
                let highest = self.table.last_sequence_id(&name(producer));
                assert!(Some(batch.lowest) <= highest && highest < Some(batch.highest));
            }
            Verdict::InFlightDuplicate => {
                assert!(self.table.has_in_flight(&name(producer)));
                assert!(self.in_flight.iter().any(|(other, _)| *other == producer));
            }
        }
    }

    fn persist(&mut self, replaying: bool) {
        let (producer, batch) = self.in_flight.remove(0);
        let entry = self.log.len();
        self.log.push((producer, batch));
        for id in batch.lowest..=batch.highest {
            let before = self.stored.insert((producer, id), entry);
            assert_eq!(
                before, None,
                "I8: id {id} of producer {producer} is stored twice"
            );
        }
        if !replaying {
            let time = entry as u64;
            self.table.persisted(&name(producer), batch, at(time), time);
        }
    }

    fn restart(&mut self, kept: prop::sample::Index) {
        let kept = kept.index(self.in_flight.len() + 1);
        for _ in 0..kept {
            self.persist(true);
        }
        self.in_flight.clear();
        let (states, from) = &self.snapshot;
        self.table = DedupTable::restore(states).expect("a snapshot is valid");
        for (entry, (producer, batch)) in self.log.iter().enumerate().skip(*from) {
            let time = entry as u64;
            self.table
                .replayed(&name(*producer), None, *batch, at(time), time);
        }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Send { producer, gap, len } => {
                let lowest = self.next[producer] + gap;
                let batch = range(lowest, lowest + len - 1);
                self.next[producer] = lowest + len;
                self.sent[producer].push(batch);
                self.send(producer, batch);
            }
            Step::Repeat {
                producer,
                lowest,
                len,
            } => {
                self.send(producer, range(lowest, lowest + len - 1));
            }
            Step::Resend { producer, batch } => {
                if !self.sent[producer].is_empty() {
                    let batch = *batch.get(&self.sent[producer]);
                    self.send(producer, batch);
                }
            }
            Step::Persist if self.in_flight.is_empty() => {}
            Step::Persist => self.persist(false),
            Step::Fail => {
                self.in_flight.clear();
                self.table.reset_pushed();
            }
            Step::Snapshot => self.snapshot = (self.table.snapshot(), self.log.len()),
            Step::Restart { kept } => self.restart(kept),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// I8: no (producer, sequence id) is stored twice, whatever order of pushes, outcomes,
    /// failures, snapshots and restarts.
    #[test]
    fn nothing_is_accepted_twice(steps in proptest::collection::vec(step(), 0..60)) {
        let mut world = World::default();
        for step in steps {
            world.run(step);
            let batches = |producer: &Producer| producer.window.len();
            let table = &world.table;
            prop_assert_eq!(table.batches(), table.producers.values().map(batches).sum::<usize>());
        }
    }
}

/// H7: what failed is not a duplicate when it is sent again.
#[test]
fn a_failed_append_is_new_again() {
    let (mut table, producer) = (DedupTable::default(), name(0));
    store(&mut table, &producer, range(0, 4), 0);
    table.pushed(&producer, range(5, 9));
    table.pushed(&producer, range(10, 12));
    assert_eq!(
        table.check(&producer, range(5, 9)),
        Verdict::InFlightDuplicate
    );
    assert!(table.has_in_flight(&producer));
    table.reset_pushed();
    assert!(!table.has_in_flight(&producer));
    assert_eq!(table.check(&producer, range(5, 9)), Verdict::New);
    assert_eq!(table.last_sequence_id(&producer), Some(4));
}

#[test]
fn every_kind_of_repetition_has_its_verdict() {
    let (mut table, producer) = (DedupTable::default(), name(0));
    store(&mut table, &producer, range(10, 19), 0);
    store(&mut table, &producer, range(30, 39), 1);
    table.pushed(&producer, range(40, 49));
    for (batch, verdict) in [
        (range(10, 19), Verdict::Duplicate(Some(at(0)))),
        (range(30, 39), Verdict::Duplicate(Some(at(1)))),
        (range(12, 14), Verdict::Duplicate(None)),
        (range(0, 9), Verdict::Duplicate(None)),
        (range(20, 29), Verdict::OutOfOrder),
        (range(35, 44), Verdict::PartialOverlap),
        (range(40, 49), Verdict::InFlightDuplicate),
        (range(45, 55), Verdict::InFlightDuplicate),
        (range(50, 50), Verdict::New),
        (range(51, 50), Verdict::OutOfOrder),
    ] {
        assert_eq!(table.check(&producer, batch), verdict, "{batch:?}");
    }
    assert_eq!(table.check(&name(1), range(0, 0)), Verdict::New);
}

#[test]
fn positions_are_remembered_for_the_window_only() {
    let (mut table, producer) = (DedupTable::default(), name(0));
    let batches = DEDUP_WINDOW_MAX as u64 + 1;
    for number in 0..batches {
        store(&mut table, &producer, range(number, number), number);
    }
    let restored = DedupTable::restore(&table.snapshot()).expect("a snapshot is valid");
    for table in [&table, &restored] {
        let first = table.check(&producer, range(0, 0));
        assert_eq!(first, Verdict::Duplicate(None));
        let second = table.check(&producer, range(1, 1));
        assert_eq!(second, Verdict::Duplicate(Some(at(1))));
    }
}

#[test]
fn the_longest_idle_name_is_forgotten_and_a_used_one_never() {
    let mut table = DedupTable::with_capacity_max(3, 0);
    for number in 0..3 {
        table
            .connect(&name(number), opener(0))
            .expect("there is room");
        store(&mut table, &name(number), range(0, 0), 0);
    }
    assert!(
        table.connect(&name(3), opener(0)).is_err(),
        "every name is in use"
    );
    // 1 is idle first, then 0; 1 comes back and leaves again, so 0 is the longest idle.
    table.disconnect(&name(1));
    table.disconnect(&name(0));
    table.connect(&name(1), opener(0)).expect("known");
    table.disconnect(&name(1));
    table
        .connect(&name(3), opener(0))
        .expect("0 can be forgotten");
    assert_eq!(table.len(), 3);
    assert_eq!(table.last_sequence_id(&name(0)), None);
    assert_eq!(table.last_sequence_id(&name(1)), Some(0));
    assert_eq!(table.last_sequence_id(&name(2)), Some(0));
    // A closed producer with an append in flight is in use, too.
    table.pushed(&name(1), range(1, 1));
    assert!(table.connect(&name(4), opener(0)).is_err());
    table.persisted(&name(1), range(1, 1), at(1), 1);
    table
        .connect(&name(4), opener(0))
        .expect("1 can be forgotten");
}

#[test]
fn restoring_too_many_keeps_the_latest() {
    let mut table = DedupTable::default();
    for number in 0..5 {
        store(&mut table, &name(number), range(7, 7), number as u64);
    }
    let states = table.snapshot();
    let restored = DedupTable::with_capacity_max(2, 0)
        .restored(&states)
        .expect("valid");
    let kept: Vec<usize> = (0..5)
        .filter(|number| restored.last_sequence_id(&name(*number)).is_some())
        .collect();
    assert_eq!(kept, [3, 4]);
    let bad = v1::ProducerState::default();
    assert!(
        DedupTable::restore(&[bad]).is_err(),
        "a name cannot be empty"
    );
}

/// H20: a producer that had a name before another is not let in again; the last one is, whatever
/// was restored in between.
#[test]
fn the_last_opener_of_a_name_is_remembered_h20() {
    let (mut table, producer) = (DedupTable::default(), name(0));
    let other = Opener {
        instance: ProducerInstance([2; 16]),
        epoch: 0,
    };
    assert!(
        table.admits(&producer, opener(0), true),
        "no producer had it"
    );
    table.connect(&producer, opener(3)).expect("there is room");
    store(&mut table, &producer, range(0, 0), 0);
    assert!(table.admits(&producer, opener(3), true));
    assert!(
        !table.admits(&producer, opener(2), true),
        "an older session"
    );
    assert!(!table.admits(&producer, other, true));
    assert!(table.admits(&producer, other, false), "a new one may");
    let restored = DedupTable::restore(&table.snapshot()).expect("a snapshot is valid");
    assert!(!restored.admits(&producer, opener(2), true));
    assert!(!restored.admits(&producer, other, true));
    let mut replayed = restored;
    let stored = Some(other.instance);
    replayed.replayed(&producer, stored, range(1, 1), at(1), 1);
    assert!(!replayed.admits(&producer, opener(4), true));
    assert!(replayed.admits(&producer, other, true));
}

/// Names that no client chose come in any number, and no chosen one is forgotten for them.
#[test]
fn drawn_names_push_out_no_others() {
    let mut table = DedupTable::with_capacity_max(2, 3);
    for number in 0..2 {
        store(&mut table, &name(number), range(0, 7), 0);
    }
    for number in 0..100 {
        table.connect(&drawn(number), opener(0)).expect("always");
        store(&mut table, &drawn(number), range(0, 0), 0);
        table.disconnect(&drawn(number));
    }
    assert_eq!(table.last_sequence_id(&name(0)), Some(7));
    assert_eq!(table.last_sequence_id(&name(1)), Some(7));
    assert_eq!(table.len(), 2 + 3);
    assert_eq!(table.last_sequence_id(&drawn(96)), None);
    assert_eq!(table.last_sequence_id(&drawn(97)), Some(0));
    // Nor do chosen ones push out a drawn one in its grace.
    table
        .connect(&name(2), opener(0))
        .expect("0 can be forgotten");
    assert_eq!(table.last_sequence_id(&name(0)), None);
    assert_eq!(table.len(), 2 + 3);
    assert_eq!(
        table.batches(),
        1 + 3,
        "those of what is forgotten do not count"
    );
}

#[test]
fn a_drawn_name_is_forgotten_a_grace_after_its_producer() {
    let mut table = DedupTable::default();
    let start = Duration::from_secs(1_000_000);
    table.forget_drawn(start);
    for number in 0..2 {
        table.connect(&drawn(number), opener(0)).expect("always");
        store(&mut table, &drawn(number), range(0, 0), 0);
    }
    store(&mut table, &name(0), range(0, 0), 0);
    table.disconnect(&drawn(0));
    table.forget_drawn(start + DRAWN_GRACE - Duration::from_secs(1));
    table.forget_drawn(start + DRAWN_GRACE);
    assert_eq!(table.len(), 3, "its grace is not over for certain");
    table.forget_drawn(start + 2 * DRAWN_GRACE - Duration::from_secs(1));
    assert_eq!(table.len(), 3);
    table.forget_drawn(start + 2 * DRAWN_GRACE);
    assert_eq!(table.last_sequence_id(&drawn(0)), None);
    assert_eq!(table.last_sequence_id(&drawn(1)), Some(0), "connected");
    table.forget_drawn(start + 9 * DRAWN_GRACE);
    assert_eq!(table.last_sequence_id(&name(0)), Some(0), "chosen");
}

/// A name that its record pins is not forgotten for others, and stays pinned.
#[test]
fn a_pinned_name_is_never_forgotten() {
    let pinned = v1::ProducerState {
        name: name(0).to_string(),
        highest_sequence_id: 7,
        pinned: true,
        ..Default::default()
    };
    let table = DedupTable::with_capacity_max(2, 0);
    let mut table = table.restored(&[pinned]).expect("a snapshot is valid");
    for number in 1..6 {
        store(&mut table, &name(number), range(0, 0), 0);
    }
    assert_eq!(table.len(), 2);
    assert_eq!(table.last_sequence_id(&name(0)), Some(7));
    assert_eq!(table.last_sequence_id(&name(5)), Some(0));
    let is_pinned = |state: &v1::ProducerState| state.pinned;
    assert_eq!(table.snapshot().iter().filter(|s| is_pinned(s)).count(), 1);
}
