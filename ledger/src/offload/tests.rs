//! The steps of an attempt, alone and against others, and their stored form.

use aquifer_metadata::record;
use aquifer_metadata::store::{Expect, Transaction};
use aquifer_model::id::{BookieId, CreationToken, EntryId};
use aquifer_model::quorum::Quorum;

use super::*;
use crate::ledger_metadata;
use crate::testing::MemoryStore;
use crate::writer::machine::LedgerEnd;

const ID: LedgerId = LedgerId(5);
const A: AttemptId = AttemptId([1; 16]);
const B: AttemptId = AttemptId([2; 16]);

pub(crate) fn object(name: &str) -> StoredObject {
    StoredObject {
        location: 3,
        name: name.to_owned(),
        section: 2,
        size_bytes: 17 << 20,
        checksum: 0xfeed_beef,
        stored_ms: 1_000,
        index_offset: 900,
        claimed: aquifer_metadata::store::Revision(1),
        is_damaged: false,
    }
}

pub(crate) fn closed() -> LedgerInfo {
    LedgerInfo {
        id: ID,
        token: CreationToken([1; 16]),
        quorum: Quorum::new(3, 3, 2).unwrap(),
        state: LedgerState::Closed(LedgerEnd {
            last_entry: Some(EntryId(9)),
            length: 100,
        }),
        fragments: BTreeMap::from([(EntryId::FIRST, (1..=3).map(|n| BookieId([n; 16])).collect())]),
        home: "public/default".to_owned(),
        recovery_epoch: 0,
        created_ms: 0,
        offload: None,
        revision: aquifer_metadata::store::Revision(0),
    }
}

pub(crate) async fn store_with(info: &LedgerInfo) -> MemoryStore {
    let store = MemoryStore::default();
    let made = store.commit(Transaction {
        partition: info.home.clone(),
        operations: vec![info.put(Expect::Absent)],
        ..Transaction::default()
    });
    made.await.unwrap();
    store
}

async fn step(
    store: &MemoryStore,
    attempt: AttemptId,
    step: OffloadStep,
) -> Result<LedgerInfo, LedgerError> {
    advance(store, ID, attempt, &step, &[], &[]).await
}

fn is_superseded(result: &Result<LedgerInfo, LedgerError>) -> bool {
    matches!(
        result,
        Err(LedgerError::Offload(OffloadError::Superseded { .. }))
    )
}

#[tokio::test]
async fn an_attempt_goes_its_way_and_each_step_may_be_repeated() {
    let store = store_with(&closed()).await;
    let steps = [
        OffloadStep::Claim,
        OffloadStep::Store(object("one")),
        OffloadStep::DropCopies,
        OffloadStep::CopiesGone,
    ];
    let owed = [true, true, false, false];
    for (next, owed) in steps.into_iter().zip(owed) {
        // The answer is lost, and nothing can tell: the second try finds it done.
        store.forget_outcomes(1);
        let made = step(&store, A, next.clone()).await.unwrap();
        assert_eq!(
            step(&store, A, next.clone()).await.unwrap().revision,
            made.revision
        );
        let read = ledger_metadata::load_existing(&store, ID).await.unwrap();
        assert_eq!(read.offload, made.offload, "{next:?}");
        assert_eq!(!read.duties().bookies().is_empty(), owed, "{next:?}");
        assert_eq!(read.state, closed().state, "its end never changes (I3)");
    }
    let gone = ledger_metadata::load_existing(&store, ID).await.unwrap();
    assert!(gone.fragments.is_empty() && gone.bookies().is_empty());
}

#[tokio::test]
async fn another_attempt_changes_nothing() {
    let store = store_with(&closed()).await;
    step(&store, A, OffloadStep::Claim).await.unwrap();
    for late in [
        OffloadStep::Claim,
        OffloadStep::Store(object("late")),
        OffloadStep::GiveUp,
        OffloadStep::DropCopies,
        OffloadStep::CopiesGone,
    ] {
        let before = ledger_metadata::load_existing(&store, ID).await.unwrap();
        let refused = step(&store, B, late.clone()).await;
        // To give up what another has is nothing to do.
        assert!(
            is_superseded(&refused) || late == OffloadStep::GiveUp,
            "{late:?}: {refused:?}"
        );
        let after = ledger_metadata::load_existing(&store, ID).await.unwrap();
        assert_eq!(
            (after.revision, after.offload),
            (before.revision, before.offload)
        );
    }
    // A is given up, and B claims it: what A finishes later counts for no attempt.
    step(&store, A, OffloadStep::GiveUp).await.unwrap();
    step(&store, B, OffloadStep::Claim).await.unwrap();
    assert!(is_superseded(
        &step(&store, A, OffloadStep::Store(object("one"))).await
    ));
    step(&store, B, OffloadStep::Store(object("two")))
        .await
        .unwrap();
    assert!(is_superseded(
        &step(&store, A, OffloadStep::DropCopies).await
    ));
    assert!(is_superseded(
        &step(&store, B, OffloadStep::Store(object("other"))).await
    ));
    assert!(
        is_superseded(&step(&store, B, OffloadStep::CopiesGone).await),
        "not before they go"
    );
}

/// Copies of a ledger stay while its object is marked; another object, or a clean reading, ends it.
#[tokio::test]
async fn copies_do_not_go_while_the_object_is_marked() {
    let store = store_with(&closed()).await;
    let mark = |is_damaged| OffloadStep::Mark { is_damaged };
    step(&store, A, OffloadStep::Claim).await.unwrap();
    assert!(is_superseded(&step(&store, A, mark(true)).await));
    let one = OffloadStep::Store(object("one"));
    step(&store, A, one).await.unwrap();
    assert!(is_superseded(&step(&store, B, mark(true)).await));
    let marked = step(&store, A, mark(true)).await.unwrap();
    let again = step(&store, A, mark(true)).await.unwrap();
    assert_eq!(again.revision, marked.revision);
    assert!(is_superseded(
        &step(&store, A, OffloadStep::DropCopies).await
    ));
    // Read whole, and found damaged once more.
    let info = ledger_metadata::load_existing(&store, ID).await.unwrap();
    let clean = info.offloaded(A, &mark(false)).unwrap().unwrap();
    let dropped = clean.offloaded(A, &OffloadStep::DropCopies);
    assert!(dropped.unwrap().is_some());
    let other = OffloadStep::Replace {
        damaged: A,
        object: object("two"),
    };
    step(&store, B, other).await.unwrap();
    step(&store, B, OffloadStep::DropCopies).await.unwrap();
}

#[tokio::test]
async fn an_open_ledger_is_not_offloaded_and_a_deleted_one_is_missed() {
    let open = LedgerInfo {
        state: LedgerState::Open,
        ..closed()
    };
    let store = store_with(&open).await;
    let refused = step(&store, A, OffloadStep::Claim).await;
    assert_eq!(
        refused.err(),
        Some(LedgerError::Offload(OffloadError::NotClosed(5)))
    );
    let gone = step(&MemoryStore::default(), A, OffloadStep::Claim).await;
    assert!(matches!(gone, Err(LedgerError::BadRecord(5, _))));
}

/// A repair that swaps a bookie and a drop of the copies meet in one record: the later one reads
/// again what the other has made of it (I6).
#[tokio::test]
async fn a_repair_that_read_before_the_drop_does_not_write_after_it() {
    let store = store_with(&closed()).await;
    step(&store, A, OffloadStep::Claim).await.unwrap();
    step(&store, A, OffloadStep::Store(object("one")))
        .await
        .unwrap();
    let mut repaired = ledger_metadata::load_existing(&store, ID).await.unwrap();
    repaired
        .fragments
        .insert(EntryId::FIRST, (2..=4).map(|n| BookieId([n; 16])).collect());
    step(&store, A, OffloadStep::DropCopies).await.unwrap();
    let late = ledger_metadata::replace(&store, &mut repaired, &[]).await;
    assert!(matches!(late, Err(LedgerError::Metadata(_))), "{late:?}");
}

#[test]
fn records_that_contradict_themselves_are_refused() {
    type Spoil = fn(&mut v1::LedgerRecord);
    let gone = || {
        let mut info = closed();
        for next in [
            OffloadStep::Claim,
            OffloadStep::Store(object("one")),
            OffloadStep::DropCopies,
            OffloadStep::CopiesGone,
        ] {
            info = info.offloaded(A, &next).unwrap().unwrap();
        }
        info
    };
    let stored = |record: v1::LedgerRecord| Versioned {
        key: keys::ledger(ID),
        value: record::encode(record),
        revision: aquifer_metadata::store::Revision(3),
    };
    let good = stored(gone().to_record());
    let read = LedgerInfo::decode(ID, &good).unwrap();
    assert_eq!(read.offload, gone().offload);
    let cases: [(Spoil, &str); 7] = [
        (|r| r.offload = None, "entry 0"),
        (|r| r.state = v1::LedgerState::Open.into(), "not closed"),
        (
            |r| offload(r).attempt = Bytes::from_static(b"short"),
            "attempt",
        ),
        (|r| offload(r).object = None, "without an object"),
        (|r| offload(r).copies = 0, "no state"),
        (
            |r| offload(r).copies = v1::BookieCopies::Kept.into(),
            "entry 0",
        ),
        (
            |r| {
                if let Some(object) = &mut offload(r).object {
                    object.name.clear();
                }
            },
            "no name",
        ),
    ];
    fn offload(record: &mut v1::LedgerRecord) -> &mut v1::OffloadRecord {
        record.offload.as_mut().unwrap()
    }
    for (spoil, what) in cases {
        let mut bad = gone().to_record();
        spoil(&mut bad);
        let error = LedgerInfo::decode(ID, &stored(bad)).unwrap_err();
        assert!(error.to_string().contains(what), "{error} names {what}");
    }
    let mut named = gone().to_record();
    named.fragments = closed().to_record().fragments;
    let error = LedgerInfo::decode(ID, &stored(named)).unwrap_err();
    assert!(error.to_string().contains("gone"), "{error}");
}
