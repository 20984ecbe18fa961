//! The records of objects beside those of ledgers: what may exist in an object store is written
//! down before its first byte is sent, and is written down until it is certainly gone.
//!
//! ```text
//! claim:   l/ID → Claimed A       + oc/A
//! store:   l/ID → Stored A        − oc/A
//! give up: l/ID → not offloaded   − oc/A + od/A
//! drop:    l/ID → copies going    + g/ID (the intent that all bookies delete it)
//! deletion of the ledger ends: − l/ID − oc/A + od/A (+ g/C where C has copies of it: `imports`)
//! restore: + l/ID Stored A        − oc/A − od/A
//! adopt:   l/ID → Stored A        (while there is neither oc/A nor od/A)
//! ```
//!
//! Each line is one transaction. So an object that exists is named by `oc/`, by `od/`, or by the
//! record of its ledger, whatever crashes when, and no listing of a store is needed to clean up.

pub mod imports;
pub mod orphans;
pub mod replacing;
pub mod tasks;

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys::{self, Key};
use aquifer_metadata::record;
use aquifer_metadata::scan::{self, Pages};
use aquifer_metadata::store::{
    Expect, Guard, MetadataStore, Operation, Revision, Transaction, Versioned,
};
use aquifer_metadata::update::{Change, UpdateError};
use aquifer_model::id::{AttemptId, BrokerId, LedgerId};
use aquifer_proto::v1;
use bytes::Bytes;

use crate::deletion::{self, Intent};
use crate::error::LedgerError;
use crate::ledger_metadata::{self, LedgerInfo};
use crate::offload::{self, Offload, OffloadStep, StoredObject};

/// How long after the end of an attempt its object may still appear: a request that was under way
/// may be carried out late.
const LATE_MAX_MS: u64 = 60 * 60 * 1000;
/// Objects on their way in or out, at most, that one look finds.
const FOUND_MAX: usize = 100_000;

/// An object that is being written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedObject {
    /// The attempt.
    pub attempt: AttemptId,
    /// The ledger.
    pub ledger: LedgerId,
    /// The metadata partition of that.
    pub home: String,
    /// The number of the location.
    pub location: u32,
    /// Its name there.
    pub name: String,
    /// The process that writes it.
    pub worker: BrokerId,
    /// What names its upload; empty when it has none, or none yet.
    pub upload_id: String,
    /// When the attempt began, in milliseconds since 1970.
    pub started_ms: u64,
    /// How long it may take, in milliseconds.
    pub deadline_ms: u64,
    revision: Revision,
}

/// An object that is to be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DyingObject {
    /// The attempt that wrote it, or was to.
    pub attempt: AttemptId,
    /// The ledger that it was for.
    pub ledger: LedgerId,
    /// The metadata partition of that.
    pub home: String,
    /// The number of the location.
    pub location: u32,
    /// Its name there.
    pub name: String,
    /// What names its upload, if it may be unfinished.
    pub upload_id: String,
    /// Until when it may still appear, in milliseconds since 1970; 0: it was seen complete.
    pub until_ms: u64,
    /// The revision of metadata at which its attempt began: no record named it before.
    pub claimed: Revision,
    /// The revision at which it died: no record names it since.
    pub died: Revision,
    /// Another object took its place, of which there are notes beside it.
    pub replaced: bool,
}

impl PlannedObject {
    /// An object that no byte was sent of yet.
    #[must_use]
    pub fn new(
        attempt: AttemptId,
        info: &LedgerInfo,
        (location, name): (u32, String),
        worker: BrokerId,
        (started_ms, deadline_ms): (u64, u64),
    ) -> PlannedObject {
        PlannedObject {
            attempt,
            ledger: info.id,
            home: info.home.clone(),
            location,
            name,
            worker,
            upload_id: String::new(),
            started_ms,
            deadline_ms,
            revision: Revision(0),
        }
    }

    fn value(&self) -> Bytes {
        record::encode(v1::UploadRecord {
            ledger_id: self.ledger.0,
            home: self.home.clone(),
            location: self.location,
            name: self.name.clone(),
            worker: Bytes::copy_from_slice(&self.worker.0),
            upload_id: self.upload_id.clone(),
            started_ms: self.started_ms,
            deadline_ms: self.deadline_ms,
        })
    }

    fn decode(stored: &Versioned) -> Result<PlannedObject, LedgerError> {
        let Ok(Key::Upload(attempt)) = stored.key.parse() else {
            return Err(damaged(stored, "it is no key of an upload").into());
        };
        let record: v1::UploadRecord = record::decode(stored)?;
        let worker = BrokerId::try_from(record.worker.as_ref());
        Ok(PlannedObject {
            attempt,
            ledger: LedgerId(record.ledger_id),
            home: record.home,
            location: record.location,
            name: record.name,
            worker: worker.map_err(|_| damaged(stored, "its worker is malformed"))?,
            upload_id: record.upload_id,
            started_ms: record.started_ms,
            deadline_ms: record.deadline_ms,
            revision: stored.revision,
        })
    }

    /// What it is when the attempt is given up.
    fn given_up(&self) -> DyingObject {
        let deadline = self.started_ms.saturating_add(self.deadline_ms);
        DyingObject {
            attempt: self.attempt,
            ledger: self.ledger,
            home: self.home.clone(),
            location: self.location,
            name: self.name.clone(),
            upload_id: self.upload_id.clone(),
            until_ms: deadline.saturating_add(LATE_MAX_MS),
            claimed: Revision(0),
            died: Revision(0),
            replaced: false,
        }
    }
}

impl DyingObject {
    fn of(info: &LedgerInfo, attempt: AttemptId, object: &StoredObject) -> DyingObject {
        DyingObject {
            attempt,
            ledger: info.id,
            home: info.home.clone(),
            location: object.location,
            name: object.name.clone(),
            upload_id: String::new(),
            until_ms: 0,
            claimed: object.claimed,
            // As soon as it is written.
            died: Revision(0),
            replaced: false,
        }
    }

    fn put(&self) -> Operation {
        self.put_if(Expect::Any)
    }

    fn put_if(&self, expect: Expect) -> Operation {
        let value = record::encode(v1::DyingObjectRecord {
            ledger_id: self.ledger.0,
            home: self.home.clone(),
            location: self.location,
            name: self.name.clone(),
            upload_id: self.upload_id.clone(),
            until_ms: self.until_ms,
            claimed_revision: self.claimed.0,
            replaced: self.replaced,
        });
        Operation::Put {
            key: keys::dying_object(self.attempt),
            value,
            expect,
        }
    }

    fn decode(stored: &Versioned) -> Result<DyingObject, LedgerError> {
        let Ok(Key::DyingObject(attempt)) = stored.key.parse() else {
            return Err(damaged(stored, "it is no key of an object").into());
        };
        let record: v1::DyingObjectRecord = record::decode(stored)?;
        Ok(DyingObject {
            attempt,
            ledger: LedgerId(record.ledger_id),
            home: record.home,
            location: record.location,
            name: record.name,
            upload_id: record.upload_id,
            until_ms: record.until_ms,
            claimed: Revision(record.claimed_revision),
            died: stored.revision,
            replaced: record.replaced,
        })
    }
}

fn damaged(stored: &Versioned, reason: &str) -> MetadataError {
    MetadataError::Damaged {
        key: stored.key.clone(),
        reason: reason.to_owned(),
    }
}

/// Takes a closed ledger for an attempt, and writes its object down.
///
/// # Errors
/// As for [`offload::advance`].
pub async fn claim(
    store: &dyn MetadataStore,
    planned: &PlannedObject,
) -> Result<LedgerInfo, LedgerError> {
    let put = Operation::Put {
        key: keys::upload(planned.attempt),
        value: planned.value(),
        expect: Expect::Any,
    };
    let (ledger, attempt) = (planned.ledger, planned.attempt);
    offload::advance(store, ledger, attempt, &OffloadStep::Claim, &[], &[put]).await
}

/// Notes what names the upload of an attempt, before its first part is sent.
///
/// # Errors
/// `BadRecord` when the attempt was given up.
pub async fn note_upload(
    store: &dyn MetadataStore,
    planned: &PlannedObject,
    upload_id: &str,
) -> Result<(), LedgerError> {
    let note = |stored: Option<Versioned>| {
        let gone = || LedgerError::BadRecord(planned.ledger.0, "its claim was given up".to_owned());
        let mut now = PlannedObject::decode(&stored.ok_or_else(gone)?)?;
        upload_id.clone_into(&mut now.upload_id);
        Ok(Change::put(&planned.home, now.value(), ()))
    };
    let key = keys::upload(planned.attempt);
    let noted = store.update(&key, &[], |stored| std::future::ready(note(stored)));
    noted.await.map(drop).map_err(UpdateError::flatten)
}

/// The object of an attempt is complete and verified: the ledger names it from now on.
///
/// # Errors
/// As for [`offload::advance`]: the claim may have been given up.
pub async fn store(
    store: &dyn MetadataStore,
    planned: &PlannedObject,
    object: StoredObject,
) -> Result<LedgerInfo, LedgerError> {
    let done = Operation::Delete {
        key: keys::upload(planned.attempt),
        expect: Expect::Any,
    };
    let (ledger, attempt) = (planned.ledger, planned.attempt);
    let step = OffloadStep::Store(object);
    offload::advance(store, ledger, attempt, &step, &[], &[done]).await
}

/// An object that is there, complete and verified, and that no record names, is the one of its
/// ledger from now on. It is never claimed: an attempt that is given up takes its object along.
///
/// # Errors
/// As for [`offload::advance`]: `Fenced` when a record names the object by now.
pub async fn adopt(
    store: &dyn MetadataStore,
    ledger: LedgerId,
    attempt: AttemptId,
    object: StoredObject,
) -> Result<(), LedgerError> {
    let guards = [keys::upload(attempt), keys::dying_object(attempt)].map(|key| Guard {
        key,
        expect: Expect::Absent,
    });
    let step = OffloadStep::Adopt(object);
    let adopted = offload::advance(store, ledger, attempt, &step, &guards, &[]).await;
    adopted.map(drop)
}

/// Gives an attempt up: its ledger may be claimed by another, and what is there of its object is
/// to be deleted. An attempt that has come to its end is left alone.
///
/// # Errors
/// When metadata cannot be changed.
pub async fn give_up(store: &dyn MetadataStore, attempt: AttemptId) -> Result<(), LedgerError> {
    let decide = |stored: Option<Versioned>| async move {
        let Some(stored) = stored else {
            return Ok(Change::none(()));
        };
        let planned = PlannedObject::decode(&stored)?;
        let mut others = vec![planned.given_up().put()];
        if let Some(info) = ledger_metadata::load(store, planned.ledger).await?
            && info.offload == Some(Offload::Claimed { attempt })
        {
            let expect = Expect::Revision(info.revision);
            if let Some(next) = info.offloaded(attempt, &OffloadStep::GiveUp)? {
                others.push(next.put(expect));
            }
        }
        Ok(Change::delete(&planned.home, ()).with(others))
    };
    let given_up = store.update(&keys::upload(attempt), &[], decide).await;
    given_up
        .map(drop)
        .map_err(UpdateError::<LedgerError>::flatten)
}

/// Lets the copies of a stored ledger go: its record and the intent that every bookie deletes it
/// change together. `false` when another intent is being carried out first.
///
/// # Errors
/// As for [`offload::advance`].
pub async fn drop_copies(
    store: &dyn MetadataStore,
    ledger: LedgerId,
    attempt: AttemptId,
) -> Result<bool, LedgerError> {
    if deletion::load(store, ledger).await?.is_some() {
        return Ok(false);
    }
    let decide = |stored: Option<Versioned>| {
        let missing = || LedgerError::BadRecord(ledger.0, "the record is missing".to_owned());
        let info = LedgerInfo::decode(ledger, &stored.ok_or_else(missing)?)?;
        let Some(next) = info.offloaded(attempt, &OffloadStep::DropCopies)? else {
            return Ok(Change::none(()));
        };
        let intent = Intent::of_copies(&next).put(Expect::Absent);
        let home = next.home.clone();
        Ok(Change::put(&home, next.value(), ()).with([intent]))
    };
    let key = keys::ledger(ledger);
    let dropped = store.update(&key, &[], |stored| std::future::ready(decide(stored)));
    let dropped: Result<_, UpdateError<LedgerError>> = dropped.await;
    dropped.map_err(UpdateError::flatten)?;
    Ok(true)
}

/// What goes with the end of a ledger's record: its object is to be deleted.
pub(crate) async fn condemned(
    store: &dyn MetadataStore,
    info: &LedgerInfo,
) -> Result<Vec<Operation>, LedgerError> {
    Ok(match &info.offload {
        None => Vec::new(),
        Some(Offload::Stored {
            attempt,
            object,
            copies,
        }) => {
            let mut operations = vec![DyingObject::of(info, *attempt, object).put()];
            if let Some(copy) = copies.other_ledger() {
                operations.extend(imports::deletion_of(store, copy).await?);
            }
            operations
        }
        Some(Offload::Claimed { attempt }) => {
            let key = keys::upload(*attempt);
            let Some(stored) = store.get(&key).await? else {
                return Ok(Vec::new());
            };
            let planned = PlannedObject::decode(&stored)?;
            let expect = Expect::Revision(planned.revision);
            let forget = Operation::Delete { key, expect };
            vec![forget, planned.given_up().put()]
        }
    })
}

/// What goes with the record of a ledger that a backup brings back: its object is neither to be
/// deleted any more nor that of an attempt that may still be given up, and nothing of both has
/// changed since. `None`: the attempt was given up before a ledger named its object, which may go
/// at any moment.
///
/// # Errors
/// When metadata cannot be read.
pub async fn taken_back(
    store: &dyn MetadataStore,
    attempt: AttemptId,
) -> Result<Option<[Operation; 2]>, LedgerError> {
    // In the order in which one becomes the other.
    let claim = store.get(&keys::upload(attempt)).await?;
    let condemned = store.get(&keys::dying_object(attempt)).await?;
    if let Some(stored) = &condemned
        && DyingObject::decode(stored)?.until_ms > 0
    {
        return Ok(None);
    }
    let as_read = |stored: Option<Versioned>| match stored {
        Some(stored) => Expect::Revision(stored.revision),
        None => Expect::Absent,
    };
    Ok(Some([
        Operation::Delete {
            key: keys::upload(attempt),
            expect: as_read(claim),
        },
        Operation::Delete {
            key: keys::dying_object(attempt),
            expect: as_read(condemned),
        },
    ]))
}

/// The objects that are being written.
///
/// # Errors
/// When they cannot be read, or are too many.
pub async fn planned(store: &dyn MetadataStore) -> Result<Vec<PlannedObject>, LedgerError> {
    let (found, _) = scan::all(store, keys::UPLOADS_PREFIX, FOUND_MAX).await?;
    found.iter().map(PlannedObject::decode).collect()
}

/// The objects that are to be deleted, page by page: those that backups keep may be many.
pub struct Dying<'a>(Pages<'a>);

impl<'a> Dying<'a> {
    /// Begins before the first.
    #[must_use]
    pub fn new(store: &'a dyn MetadataStore) -> Dying<'a> {
        Dying(Pages::new(store, keys::DYING_OBJECTS_PREFIX))
    }

    /// The next page; `None` behind the last. A record that cannot be read is told and left as it
    /// is: it keeps no other from being deleted.
    ///
    /// # Errors
    /// When the page cannot be read.
    pub async fn next(&mut self) -> Result<Option<Vec<DyingObject>>, LedgerError> {
        let Some(page) = self.0.next().await? else {
            return Ok(None);
        };
        let decode = |stored: &Versioned| match DyingObject::decode(stored) {
            Ok(dying) => Some(dying),
            Err(error) => {
                tracing::warn!(key = stored.key, %error, "object is not deleted: its record cannot be read");
                None
            }
        };
        Ok(Some(page.iter().filter_map(decode).collect()))
    }
}

/// Whether an object is still to be deleted: what a backup restores is no longer.
///
/// # Errors
/// When that cannot be read.
pub async fn is_dying(
    store: &dyn MetadataStore,
    object: &DyingObject,
) -> Result<bool, LedgerError> {
    let found = store.get(&keys::dying_object(object.attempt)).await?;
    Ok(found.is_some())
}

/// Forgets an object that is certainly gone.
///
/// # Errors
/// When metadata cannot be changed.
pub async fn forget(store: &dyn MetadataStore, gone: &DyingObject) -> Result<(), LedgerError> {
    let key = keys::dying_object(gone.attempt);
    let transaction = Transaction {
        partition: gone.home.clone(),
        guards: Vec::new(),
        operations: vec![Operation::Delete {
            key,
            expect: Expect::Any,
        }],
    };
    store.commit(transaction).await?;
    Ok(())
}

#[cfg(test)]
mod tests;
