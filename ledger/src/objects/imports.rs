//! Copies at bookies of a ledger whose own are gone, in another ledger C (`offload::imports`).
//!
//! ```text
//! begin:  l/ID → copies coming into C   + l/C, open
//! close:  l/C → closed                  (after the last entry)
//! end:    l/ID → copies imported in C   (after C was compared with the object)
//! forget: l/ID → copies gone            + g/C (the intent that all bookies delete C)
//! deletion of the ledger ends: − l/ID   + g/C
//! ```
//!
//! Each line is one transaction, so C is named by the record of the ledger that it belongs to, or
//! by its own intent, whatever crashes when.

use std::collections::BTreeMap;

use aquifer_metadata::keys;
use aquifer_metadata::store::{Expect, MetadataStore, Operation, Revision, Versioned};
use aquifer_metadata::update::{Change, UpdateError};
use aquifer_model::id::{AttemptId, BookieId, EntryId, LedgerId};

use crate::deletion::{self, Intent};
use crate::error::LedgerError;
use crate::ledger_metadata::{self, LedgerInfo, LedgerState};
use crate::marks::Mark;
use crate::offload::imports::ImportStep;
use crate::writer::machine::LedgerEnd;

fn existing(ledger: LedgerId, stored: Option<Versioned>) -> Result<LedgerInfo, LedgerError> {
    let missing = || LedgerError::BadRecord(ledger.0, "the record is missing".to_owned());
    LedgerInfo::decode(ledger, &stored.ok_or_else(missing)?)
}

/// Makes a step in the ledger's record, with whatever belongs to it. Answers the revision of the
/// change, if there was any.
async fn advance(
    store: &dyn MetadataStore,
    (ledger, attempt): (LedgerId, AttemptId),
    step: ImportStep,
    others: &[Operation],
) -> Result<Option<Revision>, LedgerError> {
    let decide = |stored: Option<Versioned>| {
        let info = existing(ledger, stored)?;
        let Some(next) = info.imported(attempt, step)? else {
            return Ok(Change::none(()));
        };
        let home = next.home.clone();
        Ok(Change::put(&home, next.value(), ()).with(others.iter().cloned()))
    };
    let key = keys::ledger(ledger);
    let made = store.update(&key, &[], |stored| std::future::ready(decide(stored)));
    let made: Result<_, UpdateError<LedgerError>> = made.await;
    Ok(made.map_err(UpdateError::flatten)?.applied)
}

/// Names the ledger that the copies go into, which is open and has no entry, and creates it.
/// Answers it as it is stored.
///
/// # Errors
/// [`LedgerError::Offload`] when the ledger is not in the object of the attempt, when that is
/// damaged, and when bookies have copies, or get some.
pub async fn begin(
    store: &dyn MetadataStore,
    ledger: LedgerId,
    attempt: AttemptId,
    copy: LedgerInfo,
) -> Result<LedgerInfo, LedgerError> {
    let step = ImportStep::Begin { into: copy.id };
    let create = [copy.put(Expect::Absent)];
    match advance(store, (ledger, attempt), step, &create).await? {
        Some(revision) => Ok(LedgerInfo { revision, ..copy }),
        // An answer was lost.
        None => ledger_metadata::load_existing(store, copy.id).await,
    }
}

/// Closes the ledger with the copies, and marks the bookies that may lack some of it (H16).
///
/// # Errors
/// When its record was changed by another process, or metadata cannot be changed.
pub async fn close(
    store: &dyn MetadataStore,
    copy: &mut LedgerInfo,
    end: LedgerEnd,
    incomplete: BTreeMap<BookieId, EntryId>,
    now_ms: u64,
) -> Result<(), LedgerError> {
    let mark = (!incomplete.is_empty()).then(|| {
        let reason = "re-imported before every copy was confirmed";
        Mark::new(copy.id, &copy.home, reason, now_ms).incomplete(incomplete)
    });
    copy.state = LedgerState::Closed(end);
    ledger_metadata::close(store, copy, &[], mark.as_ref()).await
}

/// The copies are complete, and were compared with the object.
///
/// # Errors
/// [`LedgerError::Offload`] when the re-import was given up meanwhile.
pub async fn end(
    store: &dyn MetadataStore,
    ledger: LedgerId,
    attempt: AttemptId,
    (into, since_ms): (LedgerId, u64),
) -> Result<(), LedgerError> {
    let step = ImportStep::End { into, since_ms };
    let ended = advance(store, (ledger, attempt), step, &[]).await;
    ended.map(drop)
}

/// The copies are not wanted any more, or not complete: bookies are to delete them. `false` when
/// the record does not name them.
///
/// # Errors
/// [`LedgerError::Offload`] when they are complete, and the object is damaged; when metadata cannot
/// be read or changed.
pub async fn forget(
    store: &dyn MetadataStore,
    ledger: LedgerId,
    attempt: AttemptId,
    from: LedgerId,
) -> Result<bool, LedgerError> {
    let decide = |stored: Option<Versioned>| async move {
        let Some(stored) = stored else {
            // Its own deletion has taken them along.
            return Ok(Change::none(false));
        };
        let info = LedgerInfo::decode(ledger, &stored)?;
        let Some(next) = info.imported(attempt, ImportStep::Forget { from })? else {
            return Ok(Change::none(false));
        };
        let deletion = deletion_of(store, from).await?;
        Ok(Change::put(&next.home, next.value(), true).with(deletion))
    };
    let forgotten = store.update(&keys::ledger(ledger), &[], decide).await;
    let forgotten = forgotten.map_err(UpdateError::<LedgerError>::flatten)?;
    Ok(forgotten.answer)
}

/// The changes that say that a ledger with copies is to be deleted everywhere. They hold only for
/// the record as it is read here: a bookie that takes the place of another meanwhile is not missed.
pub(crate) async fn deletion_of(
    store: &dyn MetadataStore,
    copy: LedgerId,
) -> Result<Vec<Operation>, LedgerError> {
    let Some(info) = ledger_metadata::load(store, copy).await? else {
        return Ok(Vec::new());
    };
    let mut intent = Intent::of(&info);
    let earlier = deletion::load(store, copy).await?;
    let expect = match &earlier {
        None => Expect::Absent,
        Some(earlier) => {
            intent.add_bookies_of(earlier);
            earlier.expect()
        }
    };
    let as_it_is = Expect::Revision(info.revision);
    Ok(vec![info.put(as_it_is), intent.put(expect)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::tests::{closed, object, store_with};
    use crate::offload::{self, Copies, Offload, OffloadStep};

    const A: AttemptId = AttemptId([1; 16]);
    const B: AttemptId = AttemptId([2; 16]);
    const COPY: LedgerId = LedgerId(9);
    const OTHER: LedgerId = LedgerId(10);

    fn gone() -> LedgerInfo {
        let steps = [
            OffloadStep::Claim,
            OffloadStep::Store(object("one")),
            OffloadStep::DropCopies,
            OffloadStep::CopiesGone,
        ];
        steps.iter().fold(closed(), |info, step| {
            info.offloaded(A, step).unwrap().unwrap()
        })
    }

    fn copy(id: LedgerId) -> LedgerInfo {
        LedgerInfo {
            id,
            state: LedgerState::Open,
            ..closed()
        }
    }

    fn is_refused<T>(result: &Result<T, LedgerError>) -> bool {
        matches!(result, Err(LedgerError::Offload(_)))
    }

    async fn copies(store: &dyn MetadataStore) -> Copies {
        let info = ledger_metadata::load_existing(store, closed().id).await;
        let info = info.unwrap();
        assert!(info.fragments.is_empty() && info.duties().bookies().is_empty());
        info.offload.as_ref().and_then(Offload::copies).unwrap()
    }

    #[tokio::test]
    async fn a_re_import_goes_its_way_and_each_step_may_be_repeated() {
        let (store, id) = (store_with(&gone()).await, gone().id);
        // The answer is lost, and nothing can tell: the second try finds it done.
        store.forget_outcomes(1);
        let begun = begin(&store, id, A, copy(COPY)).await.unwrap();
        let again = begin(&store, id, A, copy(COPY)).await.unwrap();
        assert_eq!(begun.revision, again.revision);
        assert_eq!(copies(&store).await, Copies::Coming { into: COPY });
        store.forget_outcomes(1);
        for _ in 0..2 {
            end(&store, id, A, (COPY, 77)).await.unwrap();
        }
        let imported = Copies::Imported {
            into: COPY,
            since_ms: 77,
        };
        assert_eq!(copies(&store).await, imported);
        store.forget_outcomes(1);
        forget(&store, id, A, COPY).await.unwrap();
        assert_eq!(copies(&store).await, Copies::Gone);
        let intent = deletion::load(&store, COPY).await.unwrap().unwrap();
        assert!(closed().bookies().iter().all(|b| intent.names(*b)));
        assert!(!forget(&store, id, A, COPY).await.unwrap());
    }

    #[tokio::test]
    async fn what_was_given_up_changes_nothing_later() {
        let (store, id) = (store_with(&gone()).await, gone().id);
        assert!(is_refused(&begin(&store, id, B, copy(COPY)).await));
        assert!(is_refused(&end(&store, id, A, (COPY, 1)).await));
        begin(&store, id, A, copy(COPY)).await.unwrap();
        assert!(is_refused(&begin(&store, id, A, copy(OTHER)).await));
        assert!(is_refused(&end(&store, id, A, (OTHER, 1)).await));
        assert!(is_refused(&end(&store, id, B, (COPY, 1)).await));
        assert!(!forget(&store, id, A, OTHER).await.unwrap());
        assert!(forget(&store, id, A, COPY).await.unwrap());
        assert!(is_refused(&end(&store, id, A, (COPY, 1)).await));
        begin(&store, id, A, copy(OTHER)).await.unwrap();
        assert!(is_refused(&end(&store, id, A, (COPY, 1)).await));
        assert_eq!(copies(&store).await, Copies::Coming { into: OTHER });
    }

    #[tokio::test]
    async fn complete_copies_stay_beside_a_damaged_object() {
        let (store, id) = (store_with(&gone()).await, gone().id);
        begin(&store, id, A, copy(COPY)).await.unwrap();
        end(&store, id, A, (COPY, 77)).await.unwrap();
        let mark = async |is_damaged| {
            let step = OffloadStep::Mark { is_damaged };
            offload::advance(&store, id, A, &step, &[], &[]).await
        };
        mark(true).await.unwrap();
        assert!(is_refused(&forget(&store, id, A, COPY).await));
        assert_eq!(copies(&store).await.other_ledger(), Some(COPY));
        mark(false).await.unwrap();
        assert!(forget(&store, id, A, COPY).await.unwrap());
    }

    #[tokio::test]
    async fn no_copies_are_made_of_a_damaged_object_or_beside_others() {
        let damaged = OffloadStep::Mark { is_damaged: true };
        let marked = gone().offloaded(A, &damaged).unwrap().unwrap();
        let store = store_with(&marked).await;
        assert!(is_refused(&begin(&store, marked.id, A, copy(COPY)).await));
        let store = store_with(&closed()).await;
        assert!(is_refused(&begin(&store, marked.id, A, copy(COPY)).await));
        let none = ledger_metadata::load(&store, COPY).await.unwrap();
        assert!(none.is_none(), "no ledger without its name");
    }
}
