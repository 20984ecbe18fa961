//! The decisions about a ledger as properties over arbitrary histories.

use aquifer_model::entry::EntryData;
use aquifer_model::id::{LedgerId, TenantKey};
use bytes::Bytes;
use proptest::prelude::*;

use super::*;

fn token(which: bool) -> CreationToken {
    CreationToken([u8::from(which); 16])
}

fn add(entry: u64, content: u8, recovery: bool) -> AddEntry {
    let data = EntryData {
        head: Bytes::from_static(b"head"),
        body: Bytes::from(vec![content]),
    };
    let mut add = AddEntry::new(LedgerId(1), EntryId(entry), None, 1, data);
    add.recovery = recovery;
    add
}

fn request(which: bool, operation: OrderedOperation) -> OrderedRequest {
    OrderedRequest {
        ledger: LedgerId(1),
        token: token(which),
        tenant: TenantKey::UNKNOWN,
        operation,
    }
}

/// The stored bytes of a ledger's record: they may never change while bookies have such records.
#[test]
fn golden_bytes_stay() {
    let meta = LedgerMeta::new(CreationToken(crate::tests::counting(0x21)));
    let fenced = LedgerMeta {
        fenced: true,
        lac: Some(EntryId(9)),
        ..meta
    };
    let deleted = LedgerMeta {
        deleted: true,
        ..meta
    };
    let golden = crate::tests::golden(include_str!("golden_v1.hex"));
    let metas = [fenced, deleted, LedgerMeta::lost()];
    assert_eq!(metas.map(|meta| meta.encode().to_vec()), *golden);
    for (meta, golden) in metas.into_iter().zip(&golden) {
        assert_eq!(LedgerMeta::decode(golden).unwrap(), meta);
    }
}

fn facts(stored: Stored) -> Facts {
    Facts {
        stored,
        limbo: false,
        must_ask: false,
    }
}

#[derive(Debug, Clone)]
enum Step {
    Add {
        token: bool,
        entry: u64,
        content: u8,
        recovery: bool,
    },
    Change {
        token: bool,
        kind: u8,
    },
    Apply,
    Abort,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (prop::bool::weighted(0.1), 0u64..6, 0u8..2, prop::bool::weighted(0.2)).prop_map(
            |(token, entry, content, recovery)| Step::Add { token, entry, content, recovery }
        ),
        1 => (prop::bool::weighted(0.1), 0u8..3)
            .prop_map(|(token, kind)| Step::Change { token, kind }),
        2 => Just(Step::Apply),
        1 => Just(Step::Abort),
    ]
}

/// What the store would hold, and what is on the way there.
#[derive(Default)]
struct World {
    stored: BTreeMap<u64, AddEntry>,
    meta: Option<LedgerMeta>,
    queue: Vec<(u64, RecordKind, Option<AddEntry>, Option<LedgerMeta>)>,
    items: u64,
}

impl World {
    fn look(&self, add: &AddEntry) -> Stored {
        match self.stored.get(&add.entry.0) {
            None => Stored::Absent,
            Some(stored) if stored.data == add.data => Stored::Same,
            Some(_) => Stored::Other,
        }
    }

    fn push(&mut self, kind: RecordKind, add: Option<AddEntry>, meta: Option<LedgerMeta>) -> u64 {
        self.items += 1;
        self.queue.push((self.items, kind, add, meta));
        self.items
    }

    fn apply(&mut self, state: &mut LedgerState) {
        if self.queue.is_empty() {
            return;
        }
        let (item, kind, add, meta) = self.queue.remove(0);
        if let Some(add) = add {
            self.stored.insert(add.entry.0, add);
        }
        if kind == RecordKind::Delete {
            self.stored.clear();
        }
        self.meta = meta.or(self.meta);
        state.applied(kind.entry(), item);
    }
}

proptest! {
    /// I4, H14, H15: whatever happens, an entry never changes its bytes, a fence and a tombstone
    /// hold, a foreign token changes nothing, and forgetting an idle ledger forgets nothing.
    #[test]
    fn decisions_keep_the_invariants(steps in prop::collection::vec(any_step(), 1..60)) {
        let mut world = World::default();
        let mut state = LedgerState::default();
        let (mut fenced, mut deleted, mut first) = (false, false, None);
        let mut admitted: BTreeMap<u64, u8> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Add { token: which, entry, content, recovery } => {
                    let add = add(entry, content, recovery);
                    let asked = request(which, OrderedOperation::Add(add.clone()));
                    let mut answer = state.decide(&asked, facts(Stored::NotLooked));
                    if let Decision::Look(of) = &answer {
                        prop_assert_eq!(of, &add);
                        answer = state.decide(&asked, facts(world.look(&add)));
                    }
                    if first.is_some_and(|first| first != which) {
                        prop_assert_eq!(answer, Decision::Refuse(BookieError::Token));
                        continue;
                    }
                    match answer {
                        Decision::Journal(kind, meta) => {
                            prop_assert_eq!(kind.entry(), Some(EntryId(entry)));
                            prop_assert_eq!(kind == RecordKind::RecoveryAdd(EntryId(entry)), recovery);
                            prop_assert!(!deleted && (!fenced || recovery));
                            prop_assert!(admitted.get(&entry).is_none_or(|c| *c == content));
                            admitted.insert(entry, content);
                            first = Some(which);
                            let item = world.push(RecordKind::Add(EntryId(entry)), Some(add.clone()), meta);
                            state.added(token(which), add, item);
                        }
                        Decision::Known => prop_assert_eq!(admitted.get(&entry), Some(&content)),
                        Decision::Refuse(BookieError::Fenced) => prop_assert!(fenced && !recovery),
                        Decision::Refuse(BookieError::Deleted) => prop_assert!(deleted),
                        Decision::Refuse(BookieError::Conflict) => {
                            prop_assert_ne!(admitted.get(&entry), Some(&content));
                        }
                        other => prop_assert!(false, "unexpected {other:?}"),
                    }
                }
                Step::Change { token: which, kind } => {
                    let (kind, operation) = match kind {
                        0 => (RecordKind::Fence, OrderedOperation::Fence),
                        1 => (RecordKind::Lac(EntryId(3)), OrderedOperation::WriteLac(EntryId(3))),
                        _ => (RecordKind::Delete, OrderedOperation::Delete),
                    };
                    match state.decide(&request(which, operation), facts(Stored::NotLooked)) {
                        Decision::Journal(journaled, Some(meta)) => {
                            prop_assert_eq!(journaled, kind);
                            first = Some(which);
                            fenced |= kind == RecordKind::Fence;
                            deleted |= kind == RecordKind::Delete;
                            world.push(kind, None, Some(meta));
                            state.changed(meta);
                        }
                        Decision::Known => prop_assert_eq!(first, Some(which)),
                        Decision::Refuse(BookieError::Token) => prop_assert_ne!(first, Some(which)),
                        Decision::Refuse(BookieError::Deleted) => prop_assert!(deleted),
                        other => prop_assert!(false, "unexpected {other:?}"),
                    }
                }
                Step::Apply => world.apply(&mut state),
                Step::Abort => {
                    // Only adds at the end of the queue are ever taken back.
                    if matches!(world.queue.last(), Some((_, RecordKind::Add(_), ..)))
                        && let Some((item, kind, Some(add), _)) = world.queue.pop()
                    {
                        state.aborted(kind.entry(), item);
                        admitted.remove(&add.entry.0);
                    }
                }
            }
            if state.is_idle() && world.meta.is_some() {
                prop_assert!(world.queue.is_empty());
                let highest = world.stored.keys().next_back().map(|entry| EntryId(*entry));
                let reloaded = LedgerState::stored(world.meta, End::Known(highest), None);
                if let (Some(now), Some(then)) = (state.meta(), reloaded.meta()) {
                    prop_assert_eq!(now, then);
                }
            }
        }
    }

    #[test]
    fn ledger_records_round_trip(
        fenced in any::<bool>(), deleted in any::<bool>(), lac in any::<Option<u64>>(), which in any::<[u8; 16]>(),
    ) {
        let meta = LedgerMeta { token: CreationToken(which), fenced, deleted, lac: lac.map(EntryId) };
        prop_assert_eq!(LedgerMeta::decode(&meta.encode()), Ok(meta));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..50)) {
        let _ = LedgerMeta::decode(&bytes);
    }
}
