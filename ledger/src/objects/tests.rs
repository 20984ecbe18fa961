//! The records of objects through the life of a ledger, and through failures.

use aquifer_model::id::BookieId;

use super::*;
use crate::deletion::Progress;
use crate::offload::tests::{closed, object, store_with};
use crate::offload::{Copies, OffloadError};
use crate::testing::MemoryStore;

const A: AttemptId = AttemptId([1; 16]);

fn plan(info: &LedgerInfo) -> PlannedObject {
    let place = (3, "c/data/one.aqo".to_owned());
    PlannedObject::new(A, info, place, BrokerId([5; 16]), (1_000, 500))
}

async fn claimed() -> (MemoryStore, PlannedObject) {
    let info = closed();
    let store = store_with(&info).await;
    let planned = plan(&info);
    claim(&store, &planned).await.unwrap();
    (store, planned)
}

async fn dying_in(store: &MemoryStore) -> Vec<DyingObject> {
    let (mut pages, mut found) = (Dying::new(store), Vec::new());
    while let Some(page) = pages.next().await.unwrap() {
        found.extend(page);
    }
    found
}

async fn info(store: &MemoryStore) -> Option<LedgerInfo> {
    ledger_metadata::load(store, closed().id).await.unwrap()
}

async fn acknowledge_all(store: &MemoryStore) -> Progress {
    let all = (1..=3).map(|n| BookieId([n; 16])).collect();
    deletion::acknowledge(store, closed().id, &all)
        .await
        .unwrap()
}

/// Writes the intent to delete the ledger everywhere, as a trim does.
async fn delete(store: &MemoryStore) {
    let info = info(store).await.unwrap();
    let made = store.commit(Transaction {
        partition: info.home.clone(),
        guards: Vec::new(),
        operations: vec![
            Intent::of(&info).put(Expect::Any),
            info.put(Expect::Revision(info.revision)),
        ],
    });
    made.await.unwrap();
}

#[tokio::test]
async fn an_object_is_written_down_from_its_first_byte_to_its_end() {
    let (store, planned) = claimed().await;
    note_upload(&store, &planned, "upload").await.unwrap();
    let found = super::planned(&store).await.unwrap();
    assert_eq!(
        (found[0].attempt, found[0].upload_id.as_str()),
        (A, "upload")
    );
    super::store(&store, &planned, object("one")).await.unwrap();
    assert_eq!(super::planned(&store).await.unwrap(), []);
    assert!(drop_copies(&store, planned.ledger, A).await.unwrap());
    assert!(
        !drop_copies(&store, planned.ledger, A).await.unwrap(),
        "it is being carried out"
    );
    let some = [BookieId([1; 16])].into();
    let progress = deletion::acknowledge(&store, planned.ledger, &some).await;
    assert_eq!(progress, Ok(Progress::Waiting(2)));
    assert_eq!(acknowledge_all(&store).await, Progress::Done);
    let gone = info(&store).await.unwrap();
    assert!(gone.fragments.is_empty() && gone.offload.as_ref().unwrap().copies_are_gone());
    // Deleted: no bookie is asked, and the object is to go.
    delete(&store).await;
    assert_eq!(acknowledge_all(&store).await, Progress::Done);
    assert!(info(&store).await.is_none());
    let dying = dying_in(&store).await;
    assert_eq!((dying[0].name.as_str(), dying[0].until_ms), ("one", 0));
    forget(&store, &dying[0]).await.unwrap();
    assert_eq!(store.keys("").len(), 0);
}

#[tokio::test]
async fn an_attempt_that_is_given_up_changes_nothing_later() {
    let (store, planned) = claimed().await;
    give_up(&store, A).await.unwrap();
    give_up(&store, A).await.unwrap();
    assert_eq!(info(&store).await.unwrap().offload, None);
    let dying = dying_in(&store).await;
    assert_eq!(dying[0].until_ms, 1_500 + LATE_MAX_MS);
    let late = super::store(&store, &planned, object("one")).await;
    let is_late = matches!(
        late,
        Err(LedgerError::Offload(OffloadError::Superseded { .. }))
    );
    assert!(is_late, "{late:?}");
    assert!(note_upload(&store, &planned, "upload").await.is_err());
}

/// A stray copy is being deleted while its ledger is restored.
#[tokio::test]
async fn the_end_of_a_stray_copy_leaves_a_ledger_that_came_back() {
    let store = MemoryStore::default();
    let back = closed();
    let intent = Intent::of_copy(back.id, back.token, BookieId([1; 16]), None);
    assert!(deletion::begin_copy(&store, &intent, None).await.unwrap());
    let made = store.commit(Transaction {
        partition: back.home.clone(),
        guards: Vec::new(),
        operations: vec![back.put(Expect::Absent)],
    });
    made.await.unwrap();
    assert_eq!(acknowledge_all(&store).await, Progress::Done);
    assert!(info(&store).await.is_some());
    assert!(dying_in(&store).await.is_empty());
}

#[tokio::test]
async fn a_stored_attempt_is_not_given_up() {
    let (store, planned) = claimed().await;
    super::store(&store, &planned, object("one")).await.unwrap();
    give_up(&store, A).await.unwrap();
    let offload = info(&store).await.unwrap().offload.unwrap();
    assert!(matches!(
        offload,
        Offload::Stored {
            copies: Copies::Kept,
            ..
        }
    ));
    assert_eq!(dying_in(&store).await, []);
}

#[tokio::test]
async fn a_ledger_that_is_deleted_takes_its_object_along_whatever_its_step() {
    for stored in [false, true] {
        let (store, planned) = claimed().await;
        delete(&store).await;
        // The worker goes on after the intent was written.
        if stored {
            super::store(&store, &planned, object("one")).await.unwrap();
            assert!(!drop_copies(&store, planned.ledger, A).await.unwrap());
        }
        assert_eq!(acknowledge_all(&store).await, Progress::Done);
        assert_eq!(store.keys("l/").len() + store.keys("oc/").len(), 0);
        let dying = dying_in(&store).await;
        assert_eq!((dying.len(), dying[0].until_ms == 0), (1, stored));
        let late = super::store(&store, &planned, object("one")).await;
        assert!(late.is_err(), "the ledger is gone");
    }
}

#[tokio::test]
async fn a_deletion_that_overtakes_a_drop_asks_every_bookie() {
    let (store, planned) = claimed().await;
    super::store(&store, &planned, object("one")).await.unwrap();
    drop_copies(&store, planned.ledger, A).await.unwrap();
    delete(&store).await;
    let some = [BookieId([1; 16])].into();
    let progress = deletion::acknowledge(&store, planned.ledger, &some).await;
    assert_eq!(progress, Ok(Progress::Waiting(2)));
    assert_eq!(acknowledge_all(&store).await, Progress::Done);
    assert!(info(&store).await.is_none());
    assert_eq!(dying_in(&store).await.len(), 1);
}

#[tokio::test]
async fn an_intent_for_one_copy_ends_no_others() {
    let (store, planned) = claimed().await;
    let stored = super::store(&store, &planned, object("one")).await.unwrap();
    let one = Intent::of_copy(stored.id, stored.token, BookieId([9; 16]), Some(&stored));
    deletion::begin_copy(&store, &one, Some(&stored))
        .await
        .unwrap();
    assert!(!drop_copies(&store, planned.ledger, A).await.unwrap());
    let nine = [BookieId([9; 16])].into();
    let ended = deletion::acknowledge(&store, stored.id, &nine).await;
    assert_eq!(ended, Ok(Progress::Done));
    assert!(info(&store).await.unwrap().offload.unwrap().keeps_copies());
    assert!(drop_copies(&store, planned.ledger, A).await.unwrap());
}

const B: AttemptId = AttemptId([2; 16]);

/// A ledger in the object `one` of attempt A, and the attempt B that is to replace it.
async fn stored_and_replacing() -> (MemoryStore, PlannedObject) {
    let (store, planned) = claimed().await;
    super::store(&store, &planned, object("one")).await.unwrap();
    let other = PlannedObject {
        attempt: B,
        name: "c/data/two.aqo".to_owned(),
        ..planned
    };
    replacing::begin(&store, &other, A).await.unwrap();
    (store, other)
}

async fn attempt_of(store: &MemoryStore) -> AttemptId {
    info(store).await.unwrap().offload.unwrap().attempt()
}

#[tokio::test]
async fn a_damaged_object_is_named_until_another_takes_its_place() {
    let (store, other) = stored_and_replacing().await;
    assert_eq!(super::planned(&store).await.unwrap()[0].attempt, B);
    assert_eq!(attempt_of(&store).await, A);
    for _ in 0..2 {
        let done = replacing::replace(&store, &other, A, object("two")).await;
        done.unwrap();
        assert_eq!(attempt_of(&store).await, B);
        assert_eq!(super::planned(&store).await.unwrap(), []);
        let dying = dying_in(&store).await;
        assert_eq!((dying.len(), dying[0].name.as_str()), (1, "one"));
    }
    // It may be damaged in its turn, and the first never comes back.
    assert!(replacing::begin(&store, &other, A).await.is_err());
    assert!(drop_copies(&store, other.ledger, B).await.unwrap());
    assert!(replacing::begin(&store, &other, B).await.is_err());
}

#[tokio::test]
async fn a_replacement_that_was_given_up_is_never_named() {
    let (store, other) = stored_and_replacing().await;
    give_up(&store, B).await.unwrap();
    let late = replacing::replace(&store, &other, A, object("two")).await;
    assert!(late.is_err(), "{late:?}");
    assert_eq!(attempt_of(&store).await, A);
    assert_eq!(dying_in(&store).await[0].attempt, B);
    // Nor is one whose ledger's copies are going, or which is deleted.
    let (store, other) = stored_and_replacing().await;
    assert!(drop_copies(&store, other.ledger, A).await.unwrap());
    let late = replacing::replace(&store, &other, A, object("two")).await;
    assert!(late.is_err(), "{late:?}");
    assert_eq!(attempt_of(&store).await, A);
}

#[tokio::test]
async fn what_a_record_names_is_no_orphan() {
    let (store, planned) = claimed().await;
    let orphan = |attempt| orphans::Orphan {
        attempt,
        ledger: planned.ledger,
        token: closed().token,
        home: planned.home.clone(),
        location: 3,
        name: "c/data/one.aqo".to_owned(),
    };
    assert!(!orphans::condemn(&store, &orphan(A)).await.unwrap());
    super::store(&store, &planned, object("one")).await.unwrap();
    assert!(!orphans::condemn(&store, &orphan(A)).await.unwrap());
    assert!(orphans::condemn(&store, &orphan(B)).await.unwrap());
    assert!(!orphans::condemn(&store, &orphan(B)).await.unwrap());
    assert_eq!(dying_in(&store).await[0].attempt, B);
    assert_eq!(attempt_of(&store).await, A);
    // What the reaper has deleted, and a store has again, is one again.
    forget(&store, &dying_in(&store).await[0]).await.unwrap();
    assert!(orphans::condemn(&store, &orphan(B)).await.unwrap());
}
