use aquifer_protocol_api::consumer::IndexRange;
use proptest::prelude::*;

use super::*;

mod losses;
mod refusals;

const NAMES: [&str; 3] = ["a", "b", "c"];

fn name(number: usize) -> SubscriptionName {
    SubscriptionName::new(NAMES[number]).expect("a valid name")
}

#[derive(Debug, Clone)]
enum Step {
    /// Creates the subscription, or deletes it if it is there.
    Toggle(usize),
    Acknowledge {
        subscription: usize,
        first: u64,
        len: u64,
        cumulative: bool,
    },
    Seek(usize, u64),
    /// Gives the subscription another type and note.
    Update(usize, usize),
    /// Begins a snapshot of what is there now; one that was not finished is abandoned.
    Snapshot,
    /// Appends the snapshot's next part.
    Part,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0usize..3).prop_map(Step::Toggle),
        8 => (0usize..3, 0u64..200_000, 0u64..30_000, any::<bool>()).prop_map(
            |(subscription, first, len, cumulative)| Step::Acknowledge {
                subscription,
                first,
                len,
                cumulative: cumulative && first % 7 == 0,
            }
        ),
        1 => (0usize..3, 0u64..100_000).prop_map(|(subscription, to)| Step::Seek(subscription, to)),
        1 => (0usize..3, 0usize..3).prop_map(|(subscription, to)| Step::Update(subscription, to)),
        2 => Just(Step::Snapshot),
        8 => Just(Step::Part),
    ]
}

type Subscriptions = BTreeMap<SubscriptionName, RecoveredSubscription>;

/// The owner of a topic: its state, its log, and the state after each record.
#[derive(Default)]
struct Owner {
    subscriptions: Subscriptions,
    log: Vec<Bytes>,
    after: Vec<Subscriptions>,
    parts: std::collections::VecDeque<Bytes>,
    snapshots: u64,
}

impl Owner {
    fn append(&mut self, record: Bytes) {
        self.log.push(record);
        self.after.push(self.subscriptions.clone());
    }

    fn change(&mut self, delta: v1::CursorDelta) {
        for record in encode_deltas(vec![delta]) {
            self.append(record);
        }
    }

    fn toggle(&mut self, number: usize) {
        if self.subscriptions.remove(&name(number)).is_some() {
            return self.change(deleted(NAMES[number]));
        }
        let cursor = CursorState::new(Index(number as u64));
        let kind = SubscriptionType::Shared;
        let state = cursor.encode(NAMES[number], kind, 5);
        let subscription = RecoveredSubscription {
            kind,
            properties: Properties::new(),
            cursor,
            redelivered: Vec::new(),
            created_ms: 5,
        };
        self.subscriptions.insert(name(number), subscription);
        self.change(created(state));
    }

    fn acknowledge(&mut self, number: usize, range: IndexRange, cumulative: bool) {
        let Some(subscription) = self.subscriptions.get_mut(&name(number)) else {
            return;
        };
        let mut wire = v1::AckDelta {
            seek_epoch: subscription.cursor.seek_epoch().0,
            ..Default::default()
        };
        if cumulative {
            subscription.cursor.acknowledge_cumulative(range.last);
            wire.cumulative = Some(range.last.0);
        } else {
            subscription.cursor.acknowledge_range(range);
            wire.individual = vec![v1::IndexRange {
                first: range.first.0,
                last: range.last.0,
            }];
        }
        self.change(v1::CursorDelta {
            subscription: NAMES[number].to_owned(),
            change: Some(v1::cursor_delta::Change::Acknowledged(wire)),
        });
    }

    fn update(&mut self, number: usize, to: usize) {
        let Some(known) = self.subscriptions.get_mut(&name(number)) else {
            return;
        };
        known.kind = [SubscriptionType::Shared, SubscriptionType::Failover][to % 2];
        known.properties.insert("note".to_owned(), to.to_string());
        let update = v1::SubscriptionUpdate {
            r#type: v1::SubscriptionType::from(known.kind).into(),
            properties: properties(known),
        };
        self.change(updated(NAMES[number], update));
    }

    fn snapshot(&mut self) {
        self.snapshots += 1;
        let states = self
            .subscriptions
            .iter()
            .map(|(name, known)| record(name.as_str(), known));
        let snapshot = v1::CursorSnapshot {
            snapshot_id: self.snapshots,
            subscriptions: states.collect(),
            producers: (0..3).map(|id| producer(id, self.snapshots)).collect(),
            dedup_index: self.snapshots,
            ..Default::default()
        };
        self.parts = encode_parts(snapshot, 240).into();
        if let Some(part) = self.parts.pop_front() {
            self.append(part);
        }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Toggle(number) => self.toggle(number),
            Step::Acknowledge {
                subscription,
                first,
                len,
                cumulative,
            } => {
                let range = IndexRange {
                    first: Index(first),
                    last: Index(first + len),
                };
                self.acknowledge(subscription, range, cumulative);
            }
            Step::Seek(number, to) => {
                if let Some(known) = self.subscriptions.get_mut(&name(number)) {
                    let epoch = known.cursor.seek(Index(to));
                    self.change(moved(NAMES[number], epoch, Index(to)));
                }
            }
            Step::Update(number, to) => self.update(number, to),
            Step::Snapshot => self.snapshot(),
            Step::Part => {
                if let Some(part) = self.parts.pop_front() {
                    self.append(part);
                }
            }
        }
    }
}

fn properties(known: &RecoveredSubscription) -> Vec<v1::SubscriptionProperty> {
    let each = known.properties.iter();
    each.map(|(name, value)| v1::SubscriptionProperty {
        name: name.clone(),
        value: value.clone(),
    })
    .collect()
}

fn record(name: &str, known: &RecoveredSubscription) -> v1::SubscriptionState {
    v1::SubscriptionState {
        properties: properties(known),
        ..known.cursor.encode(name, known.kind, known.created_ms)
    }
}

fn producer(id: u64, snapshot: u64) -> v1::ProducerState {
    v1::ProducerState {
        name: format!("producer-{id}"),
        highest_sequence_id: snapshot,
        ..Default::default()
    }
}

fn records(log: &[Bytes], from: usize) -> impl Iterator<Item = (Index, Bytes)> + '_ {
    let numbered = log.iter().enumerate().skip(from);
    numbered.map(|(at, bytes)| (Index(at as u64), bytes.clone()))
}

/// Equal as sets of acknowledged messages: the same bitmap may be compressed differently.
fn same(left: &Subscriptions, right: &Subscriptions) -> bool {
    let form = |subscriptions: &Subscriptions| -> Vec<v1::SubscriptionState> {
        let each = subscriptions.iter();
        each.map(|(name, known)| record(name.as_str(), known))
            .collect()
    };
    form(left) == form(right)
}

proptest! {
    /// I9: wherever the log is cut, between any changes and parts of snapshots, it adds up to what
    /// the owner had then; and so does what is left when everything below the snapshot is trimmed.
    #[test]
    fn every_cut_replays_to_the_state_there(steps in proptest::collection::vec(step(), 0..40)) {
        let mut owner = Owner::default();
        for step in steps {
            owner.run(step);
        }
        for cut in 0..=owner.log.len() {
            let whole = replay(records(&owner.log[..cut], 0)).expect("the log is sound");
            let none = Subscriptions::new();
            let expected = cut.checked_sub(1).map_or(&none, |last| &owner.after[last]);
            prop_assert!(same(&whole.subscriptions, expected), "cut at {}", cut);
            let Some(snapshot_at) = whole.snapshot_at else {
                prop_assert!(whole.producers.is_empty());
                continue;
            };
            let id = whole.dedup_index.0;
            let producers: Vec<_> = (0..3).map(|number| producer(number, id)).collect();
            prop_assert_eq!(&whole.producers, &producers);
            let snapshot_at = usize::try_from(snapshot_at.0).expect("small");
            for from in [snapshot_at / 2, snapshot_at] {
                let rest = replay(records(&owner.log[..cut], from)).expect("the rest is sound");
                prop_assert!(same(&rest.subscriptions, expected), "{}..{}", from, cut);
                prop_assert_eq!(rest.snapshot_at, whole.snapshot_at);
                prop_assert_eq!(rest.dedup_index, whole.dedup_index);
            }
        }
    }

    #[test]
    fn damaged_records_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = replay([(Index(0), bytes)]);
    }

    #[test]
    fn flipped_bits_never_panic(
        acks in proptest::collection::vec((0u64..100_000, 0u64..500), 1..20),
        bit in any::<prop::sample::Index>(),
    ) {
        let mut cursor = CursorState::new(Index(0));
        for (first, len) in acks {
            cursor.acknowledge_range(IndexRange { first: Index(first), last: Index(first + len) });
        }
        let state = cursor.encode("s", SubscriptionType::Shared, 0);
        for record in encode_snapshot(1, vec![state], vec![producer(1, 1)], Index(3)) {
            let mut record = record.to_vec();
            let bit = bit.index(record.len() * 8);
            record[bit / 8] ^= 1 << (bit % 8);
            let _ = replay([(Index(0), record)]);
        }
    }
}

/// Parts stay within the bound, whatever one subscription or all producers together weigh.
#[test]
fn large_states_span_parts_within_the_bound() {
    let mut scattered = RoaringTreemap::new();
    for index in 0..700_000u64 {
        scattered.insert(1 + index * 41 + (index * index) % 37);
    }
    let mut cursor = CursorState::new(Index(0));
    cursor.merge(scattered);
    let state = cursor.encode("large", SubscriptionType::Shared, 0);
    assert!(
        state.encoded_len() > SNAPSHOT_PART_BYTES_MAX,
        "{}",
        state.encoded_len()
    );
    let window = vec![
        v1::StoredRange {
            ledger_id: 1 << 50,
            ..Default::default()
        };
        64
    ];
    let producers: Vec<_> = (0..5000)
        .map(|id| v1::ProducerState {
            window: window.clone(),
            ..producer(id, 1)
        })
        .collect();
    let small = CursorState::new(Index(4)).encode("small", SubscriptionType::Exclusive, 1);
    let parts = encode_snapshot(9, vec![state.clone(), small], producers.clone(), Index(77));
    assert!(parts.len() > 2);
    for part in &parts {
        assert!(part.len() <= SNAPSHOT_PART_BYTES_MAX, "{}", part.len());
    }
    let replayed = replay(records(&parts, 0)).expect("sound");
    let large = SubscriptionName::new("large").expect("a valid name");
    let known = &replayed.subscriptions[&large];
    assert!(
        known.cursor.encode("large", known.kind, 0) == state,
        "nothing is lost"
    );
    assert_eq!(replayed.subscriptions.len(), 2);
    assert_eq!(replayed.producers, producers);
    assert_eq!(replayed.dedup_index, Index(77));
}

#[test]
fn many_changes_are_packed_in_order() {
    let acks = |count: u64| -> Vec<v1::CursorDelta> {
        let cursor = CursorState::new(Index(0)).encode("s", SubscriptionType::Shared, 0);
        let ack = |index| v1::AckDelta {
            cumulative: Some(index),
            ..Default::default()
        };
        let change = |index| v1::CursorDelta {
            subscription: "s".to_owned(),
            change: Some(v1::cursor_delta::Change::Acknowledged(ack(index))),
        };
        std::iter::once(created(cursor))
            .chain((0..count).map(change))
            .collect()
    };
    assert_eq!(encode_deltas(vec![]), Vec::<Bytes>::new());
    assert_eq!(encode_deltas(acks(100)).len(), 1);
    let records = encode_deltas(acks(100_000));
    assert!(records.len() > 1);
    assert!(
        records
            .iter()
            .all(|record| record.len() <= SNAPSHOT_PART_BYTES_MAX)
    );
    let replayed = replay(self::records(&records, 0)).expect("sound");
    let subscription = replayed.subscriptions.values().next().expect("one");
    assert_eq!(subscription.cursor.mark_delete(), Index(100_000));
}

/// Old bytes are still read: these were written by the first version.
#[test]
fn the_first_versions_bytes_are_still_read() {
    let mut cursor = CursorState::new(Index(3));
    cursor.seek(Index(5));
    for (first, last) in [(7, 7), (70_000, 70_999), (1 << 33, (1 << 33) + 1)] {
        let (first, last) = (Index(first), Index(last));
        cursor.acknowledge_range(IndexRange { first, last });
    }
    let byte = |digits: &[u8]| {
        let digits = std::str::from_utf8(digits).expect("ASCII");
        u8::from_str_radix(digits, 16).expect("hexadecimal")
    };
    let golden: Vec<Vec<u8>> = include_str!("golden_v1.hex")
        .lines()
        .map(|line| line.as_bytes().chunks(2).map(byte).collect())
        .collect();
    let first = replay([(Index(0), &golden[0])]).expect("sound");
    let orders = SubscriptionName::new("orders").expect("a valid name");
    let known = &first.subscriptions[&orders];
    let form = |cursor: &CursorState| cursor.encode("", SubscriptionType::Shared, 0);
    assert_eq!(form(&known.cursor), form(&cursor));
    assert_eq!(known.kind, SubscriptionType::Shared);
    assert_eq!(known.created_ms, 1_700_000_000_000);
    let mut producer = producer(1, 41);
    producer.window = vec![v1::StoredRange {
        lowest_sequence_id: 40,
        highest_sequence_id: 41,
        ledger_id: 9,
        entry_id: 2,
        base_index: 80,
    }];
    assert_eq!(first.producers, [producer]);
    assert_eq!(first.dedup_index, Index(90));
    let whole = replay([(Index(0), &golden[0]), (Index(1), &golden[1])]).expect("sound");
    let moved = &whole.subscriptions[&orders].cursor;
    assert_eq!(
        (moved.mark_delete(), moved.seek_epoch()),
        (Index(10), SeekEpoch(2))
    );
    assert_eq!(moved.acknowledged_ranges(), 0);
}

/// Bytes with everything that a record may have, so that they cannot change unnoticed.
#[test]
fn whole_records_have_these_bytes() {
    let state = v1::SubscriptionState {
        properties: vec![v1::SubscriptionProperty {
            name: "cluster".to_owned(),
            value: "north".to_owned(),
        }],
        redelivered: vec![v1::RedeliveredRange {
            first: 3,
            last: 9,
            count: 2,
        }],
        ..CursorState::new(Index(3)).encode("orders", SubscriptionType::Shared, 7)
    };
    let producer = v1::ProducerState {
        instance: vec![7; 16].into(),
        epoch: 3,
        pinned: true,
        ..producer(1, 41)
    };
    let update = v1::SubscriptionUpdate {
        r#type: v1::SubscriptionType::Failover.into(),
        properties: Vec::new(),
    };
    let snapshot = encode_snapshot(1, vec![state], vec![producer.clone()], Index(90));
    let deltas = encode_deltas(vec![updated("orders", update)]);
    let log: Vec<Bytes> = snapshot.into_iter().chain(deltas).collect();
    let hex = |bytes: &Bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let written: Vec<String> = log.iter().map(hex).collect();
    let golden: Vec<&str> = include_str!("golden_v1.hex").lines().skip(2).collect();
    assert_eq!(written, golden);

    let first = replay(records(&log[..1], 0)).expect("sound");
    let orders = SubscriptionName::new("orders").expect("a valid name");
    let known = &first.subscriptions[&orders];
    assert_eq!(known.properties["cluster"], "north");
    assert_eq!(
        (known.redelivered.len(), known.redelivered[0].count),
        (1, 2)
    );
    assert_eq!(first.producers, [producer]);
    let whole = replay(records(&log, 0)).expect("sound");
    let known = &whole.subscriptions[&orders];
    assert_eq!(known.kind, SubscriptionType::Failover);
    assert!(known.properties.is_empty(), "an update has all properties");
}
