//! An object that is damaged or missing, of a ledger that bookies still have, is replaced by
//! another one that is written from their copies.
//!
//! ```text
//! mark:    l/ID → Stored A, A damaged     (copies do not go from then on, I10)
//! begin:   + oc/B, while l/ID → Stored A, copies kept
//! replace: l/ID → Stored B, copies kept   − oc/B + od/A
//! give up: − oc/B + od/B                  (as for every attempt; the ledger is not touched)
//! ```
//!
//! Backups that name A find B by a note in the store, which is written before the ledger names B,
//! and keep B as they keep A: B counts as old as A.
//!
//! The ledger names A until B was read back, so nothing changes for readers meanwhile. A commit
//! needs `oc/B` as it was read: of an attempt that the reaper has given up nothing becomes known.

use aquifer_metadata::keys;
use aquifer_metadata::store::{Expect, Guard, MetadataStore, Operation, Transaction, Versioned};
use aquifer_metadata::update::{Change, UpdateError};
use aquifer_model::id::{AttemptId, LedgerId};

use crate::error::LedgerError;
use crate::ledger_metadata::{self, LedgerInfo};
use crate::objects::{DyingObject, PlannedObject};
use crate::offload::{self, Offload, OffloadStep, StoredObject};

/// Writes down what a scrub has seen of the object of an attempt: the copies of a ledger whose
/// object is damaged stay. `false` when the ledger is gone, or not in that object any more.
///
/// # Errors
/// When metadata cannot be read or changed.
pub async fn mark(
    store: &dyn MetadataStore,
    ledger: LedgerId,
    attempt: AttemptId,
    is_damaged: bool,
) -> Result<bool, LedgerError> {
    let step = OffloadStep::Mark { is_damaged };
    match offload::advance(store, ledger, attempt, &step, &[], &[]).await {
        Ok(_) => Ok(true),
        Err(LedgerError::Offload(_)) => Ok(false),
        Err(error) => match ledger_metadata::load(store, ledger).await? {
            None => Ok(false),
            Some(_) => Err(error),
        },
    }
}

/// Writes down the object that is to replace that of another attempt.
///
/// # Errors
/// [`LedgerError::Offload`] when the ledger is not in that object, or bookies have it no more.
pub async fn begin(
    store: &dyn MetadataStore,
    planned: &PlannedObject,
    damaged: AttemptId,
) -> Result<LedgerInfo, LedgerError> {
    let info = ledger_metadata::load_existing(store, planned.ledger).await?;
    if !info.is_kept_by(damaged) {
        return Err(info
            .superseded(planned.attempt, "replace the object of")
            .into());
    }
    let put = Operation::Put {
        key: keys::upload(planned.attempt),
        value: planned.value(),
        expect: Expect::Absent,
    };
    let transaction = Transaction {
        partition: info.home.clone(),
        guards: vec![Guard {
            key: keys::ledger(info.id),
            expect: Expect::Revision(info.revision),
        }],
        operations: vec![put],
    };
    store.commit(transaction).await?;
    Ok(info)
}

/// The other object is complete and verified: the ledger names it from now on, and the damaged one
/// is to be deleted.
///
/// # Errors
/// [`LedgerError::Offload`] when the ledger was changed meanwhile, or the attempt was given up.
pub async fn replace(
    store: &dyn MetadataStore,
    planned: &PlannedObject,
    damaged: AttemptId,
    object: StoredObject,
) -> Result<(), LedgerError> {
    let decide = |stored: Option<Versioned>| {
        let object = object.clone();
        async move {
            let (ledger, attempt) = (planned.ledger, planned.attempt);
            let missing = || LedgerError::BadRecord(ledger.0, "the record is missing".to_owned());
            let info = LedgerInfo::decode(ledger, &stored.ok_or_else(missing)?)?;
            let mut object = object;
            if let Some(Offload::Stored { object: old, .. }) = &info.offload {
                // A backup that names the damaged object keeps this one too.
                object.claimed = object.claimed.min(old.claimed);
            }
            let step = OffloadStep::Replace { damaged, object };
            let Some(next) = info.offloaded(attempt, &step)? else {
                return Ok(Change::none(()));
            };
            let Some(Offload::Stored { object: old, .. }) = &info.offload else {
                return Err(info.superseded(attempt, "replace the object of").into());
            };
            let condemned = DyingObject {
                replaced: true,
                ..DyingObject::of(&info, damaged, old)
            };
            let condemned = condemned.put();
            let key = keys::upload(attempt);
            let Some(claim) = store.get(&key).await? else {
                let given_up = "the attempt to replace its object was given up".to_owned();
                return Err(LedgerError::BadRecord(ledger.0, given_up));
            };
            let expect = Expect::Revision(claim.revision);
            let done = Operation::Delete { key, expect };
            let home = next.home.clone();
            Ok(Change::put(&home, next.value(), ()).with([done, condemned]))
        }
    };
    let key = keys::ledger(planned.ledger);
    let replaced = store.update(&key, &[], decide);
    let replaced: Result<_, UpdateError<LedgerError>> = replaced.await;
    replaced.map(drop).map_err(UpdateError::flatten)
}
