//! Duties of random ledgers against a model that asks entry by entry.

use aquifer_metadata::store::Revision;
use aquifer_model::id::{AttemptId, CreationToken, LedgerId};
use proptest::prelude::*;

use super::*;
use crate::offload::{Copies, Offload, StoredObject};
use crate::writer::machine::LedgerEnd;

const BOOKIES: u8 = 7;
const ENTRIES: u64 = 40;

pub(crate) fn stored(copies: Copies) -> Offload {
    Offload::Stored {
        attempt: AttemptId([7; 16]),
        object: StoredObject {
            location: 1,
            name: "data/a/b/07/5-07.aqo".to_owned(),
            section: 0,
            size_bytes: 1_000,
            checksum: 99,
            stored_ms: 5,
            index_offset: 900,
            claimed: aquifer_metadata::store::Revision(1),
            is_damaged: false,
        },
        copies,
    }
}

fn offloads() -> impl Strategy<Value = Option<Offload>> {
    prop_oneof![
        Just(None),
        Just(Some(Offload::Claimed {
            attempt: AttemptId([7; 16])
        })),
        Just(Some(stored(Copies::Kept))),
        Just(Some(stored(Copies::Going))),
        Just(Some(stored(Copies::Gone))),
    ]
}

fn quorums() -> impl Strategy<Value = Quorum> {
    let shapes = [(3, 3, 2), (5, 3, 2), (4, 2, 2), (1, 1, 1)];
    prop::sample::select(shapes.to_vec())
        .prop_map(|(e, w, a)| Quorum::new(e, w, a).expect("a good shape"))
}

fn members(ensemble: usize) -> impl Strategy<Value = Vec<BookieId>> {
    Just((0..BOOKIES).map(|n| BookieId([n; 16])).collect::<Vec<_>>())
        .prop_shuffle()
        .prop_map(move |all| all[..ensemble].to_vec())
}

fn ledgers() -> impl Strategy<Value = LedgerInfo> {
    let ends = prop::option::of(prop::option::of(0..ENTRIES));
    (quorums(), ends, offloads()).prop_flat_map(|(quorum, end, offload)| {
        let ensemble = quorum.ensemble();
        let others = prop::collection::btree_map(1..ENTRIES, members(ensemble), 0..4);
        (members(ensemble), others).prop_map(move |(first, others)| {
            let mut fragments = BTreeMap::from([(EntryId::FIRST, first)]);
            let others = others.into_iter().map(|(at, who)| (EntryId(at), who));
            fragments.extend(others);
            let gone = offload == Some(stored(Copies::Gone));
            LedgerInfo {
                id: LedgerId(5),
                token: CreationToken([1; 16]),
                quorum,
                state: match end {
                    None => LedgerState::Open,
                    Some(last) => LedgerState::Closed(LedgerEnd {
                        last_entry: last.map(EntryId),
                        length: 10,
                    }),
                },
                // Only what is closed is offloaded.
                offload: end.and(offload.clone()),
                fragments: if gone && end.is_some() {
                    BTreeMap::new()
                } else {
                    fragments
                },
                home: String::new(),
                recovery_epoch: 0,
                created_ms: 0,
                revision: Revision(1),
            }
        })
    })
}

/// Whether a bookie must hold an entry, found the long way.
fn must_hold(info: &LedgerInfo, bookie: BookieId, entry: u64) -> bool {
    let dropped = matches!(
        info.offload,
        Some(Offload::Stored {
            copies: Copies::Going | Copies::Gone,
            ..
        })
    );
    let end = match info.state {
        LedgerState::Closed(end) => end.last_entry,
        // Where the writer is now is not known: the fragments before its last are fixed.
        _ => info
            .fragments
            .keys()
            .last()
            .and_then(|first| first.0.checked_sub(1))
            .map(EntryId),
    };
    if dropped || Some(EntryId(entry)) > end {
        return false;
    }
    let mut holder = None;
    for (first, members) in &info.fragments {
        if first.0 <= entry {
            holder = Some(members);
        }
    }
    let Some(members) = holder else { return false };
    (0..info.quorum.write()).any(|offset| {
        let position = (usize::try_from(entry).unwrap() + offset) % info.quorum.ensemble();
        members[position] == bookie
    })
}

proptest! {
    #[test]
    fn duties_are_what_the_model_says(info in ledgers()) {
        let duties = info.duties();
        for bookie in (0..BOOKIES).map(|n| BookieId([n; 16])) {
            let ranges: Vec<_> = duties.of(bookie).collect();
            let held: Vec<u64> = ranges.iter().flat_map(|(from, to)| from.0..=to.0).collect();
            prop_assert!(held.is_sorted_by(|a, b| a < b), "in order, and each once: {ranges:?}");
            let model = (0..ENTRIES + 5).filter(|entry| must_hold(&info, bookie, *entry));
            prop_assert_eq!(held, model.collect::<Vec<_>>());
            prop_assert_eq!(duties.binds(bookie), duties.bookies().contains(&bookie));
        }
        let owed = info.offload.as_ref().is_none_or(Offload::keeps_copies);
        prop_assert_eq!(duties.fragments().count(), if owed { info.fragments.len() } else { 0 });
        for entry in (0..ENTRIES).map(EntryId) {
            match duties.at(entry) {
                None => prop_assert!(!owed),
                Some((members, last)) => {
                    prop_assert!(owed && last.is_none_or(|last| last >= entry));
                    prop_assert_eq!(members.len(), info.quorum.ensemble());
                }
            }
        }
    }

    /// The ranges of a position are exactly the entries whose write sets contain it.
    #[test]
    fn ranges_cover_what_a_position_stores(
        quorum in quorums(),
        position in 0_usize..5,
        first in 0_u64..20,
        count in 0_u64..40,
    ) {
        prop_assume!(position < quorum.ensemble());
        let last = first + count;
        let expected: BTreeSet<u64> = (first..=last)
            .filter(|entry| quorum.write_set(*entry).any(|p| p == position))
            .collect();
        let mut found = Vec::new();
        for (from, to) in ranges(quorum, position, EntryId(first), EntryId(last)) {
            prop_assert!(from <= to);
            found.extend(from.0..=to.0);
        }
        prop_assert!(found.is_sorted());
        prop_assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected);
    }
}
