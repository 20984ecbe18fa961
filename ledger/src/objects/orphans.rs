//! Objects that no record refers to: none should exist, and an audit by listing finds those that do
//! all the same (a store that forgot a deletion, a request that came hours late). They go the way
//! of all objects: by a record `od/`, which the reaper carries out beside the marker of the place.

use std::collections::{HashMap, HashSet};

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys;
use aquifer_metadata::scan;
use aquifer_metadata::store::{Expect, Guard, MetadataStore, Revision, Transaction};
use aquifer_model::id::{AttemptId, CreationToken, LedgerId};

use crate::error::LedgerError;
use crate::ledger_metadata::{self, LedgerInfo};
use crate::objects::{DyingObject, PlannedObject};
use crate::offload::{Offload, StoredObject};

/// Records of one kind that an audit has in memory.
const RECORDS_MAX: usize = 10_000_000;

/// An object that a listing has shown and no record names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// The attempt that wrote it.
    pub attempt: AttemptId,
    /// The ledger that it was for.
    pub ledger: LedgerId,
    /// The creation token of that, as the object says it.
    pub token: CreationToken,
    /// The metadata partition of that.
    pub home: String,
    /// The number of the location.
    pub location: u32,
    /// Its name there.
    pub name: String,
}

/// What metadata says of an object that a listing has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// A record names it.
    Named,
    /// No record names it, and its ledger is not in another object either: in metadata of a
    /// restored snapshot this may be the only copy.
    Doubtful,
    /// Nothing can need it: its ledger is gone, or is in another object.
    Orphan,
}

/// Which objects metadata names, each by its attempt.
#[derive(Debug, Default)]
pub struct Named {
    /// Those that ledgers are in, with their ledgers and lengths.
    pub stored: HashMap<AttemptId, (LedgerId, u64)>,
    /// Those that are being written, or are to be deleted.
    pub passing: HashSet<AttemptId>,
}

/// Everything that metadata names in a location. A record that cannot be read ends it: it may name
/// any object.
///
/// An object moves from `oc/` to `l/` or `od/`, and from `l/` to `od/`. They are read so that what
/// moves meanwhile is seen at least once, or is not older than this call.
///
/// # Errors
/// When a record cannot be read.
pub async fn named(store: &dyn MetadataStore, location: u32) -> Result<Named, LedgerError> {
    let mut named = Named::default();
    let (planned, _) = scan::all(store, keys::UPLOADS_PREFIX, RECORDS_MAX).await?;
    for stored in &planned {
        let planned = PlannedObject::decode(stored)?;
        named.passing.insert(planned.attempt);
    }
    let (stored, _) = scan::each(store, keys::LEDGERS_PREFIX, HashMap::new, |found, item| {
        let Ok(keys::Key::Ledger(id)) = item.key.parse() else {
            return Err(crate::objects::damaged(item, "it is no key of a ledger").into());
        };
        let info = LedgerInfo::decode(id, item)?;
        if let Some(Offload::Stored {
            attempt, object, ..
        }) = info.offload
            && object.location == location
        {
            found.insert(attempt, (id, object.size_bytes));
        }
        if found.len() > RECORDS_MAX {
            let reason = format!("there are more than {RECORDS_MAX} objects");
            return Err(LedgerError::from(MetadataError::Invalid(reason)));
        }
        Ok::<_, LedgerError>(())
    })
    .await?;
    named.stored = stored;
    let (dying, _) = scan::all(store, keys::DYING_OBJECTS_PREFIX, RECORDS_MAX).await?;
    for stored in &dying {
        let dying = DyingObject::decode(stored)?;
        named.passing.insert(dying.attempt);
    }
    Ok(named)
}

/// The object that a ledger is in now, if it is in one.
///
/// # Errors
/// When its record cannot be read.
pub async fn stored_now(
    store: &dyn MetadataStore,
    ledger: LedgerId,
) -> Result<Option<(AttemptId, StoredObject)>, LedgerError> {
    let info = ledger_metadata::load(store, ledger).await?;
    Ok(match info.and_then(|info| info.offload) {
        Some(Offload::Stored {
            attempt, object, ..
        }) => Some((attempt, object)),
        _ => None,
    })
}

/// Whether a record names the object of an attempt after all; each is read on its own.
///
/// # Errors
/// When one cannot be read.
pub async fn is_named(
    store: &dyn MetadataStore,
    attempt: AttemptId,
    ledger: LedgerId,
) -> Result<bool, LedgerError> {
    if is_passing(store, attempt).await? {
        return Ok(true);
    }
    let info = ledger_metadata::load(store, ledger).await?;
    let offload = info.and_then(|info| info.offload);
    Ok(offload.is_some_and(|offload| offload.attempt() == attempt))
}

/// Whether an object is being written, or is to be deleted.
async fn is_passing(store: &dyn MetadataStore, attempt: AttemptId) -> Result<bool, LedgerError> {
    for key in [keys::upload(attempt), keys::dying_object(attempt)] {
        if store.get(&key).await?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What metadata says of an object; each record is read on its own.
///
/// # Errors
/// When one cannot be read.
pub async fn standing(store: &dyn MetadataStore, orphan: &Orphan) -> Result<Standing, LedgerError> {
    Ok(judged(store, orphan).await?.0)
}

/// The same, with what must stay as it is for it to stay true.
async fn judged(
    store: &dyn MetadataStore,
    orphan: &Orphan,
) -> Result<(Standing, Vec<Guard>), LedgerError> {
    let attempt = orphan.attempt;
    if is_passing(store, attempt).await? {
        return Ok((Standing::Named, Vec::new()));
    }
    let info = ledger_metadata::load(store, orphan.ledger).await?;
    let expect = info
        .as_ref()
        .map_or(Expect::Absent, |info| Expect::Revision(info.revision));
    let guards = vec![
        Guard {
            key: keys::ledger(orphan.ledger),
            expect,
        },
        Guard {
            key: keys::upload(attempt),
            expect: Expect::Absent,
        },
    ];
    let standing = info.map_or(Standing::Orphan, |info| standing_beside(&info, orphan));
    Ok((standing, guards))
}

/// What the record of the ledger that an object was for says of it.
fn standing_beside(info: &LedgerInfo, orphan: &Orphan) -> Standing {
    match &info.offload {
        Some(offload) if offload.attempt() == orphan.attempt => Standing::Named,
        // The id was issued twice: this is another ledger (H14).
        _ if info.token != orphan.token => Standing::Orphan,
        Some(Offload::Stored { .. }) => Standing::Orphan,
        Some(Offload::Claimed { .. }) | None => Standing::Doubtful,
    }
}

/// Writes down that an orphan is to be deleted. `false`: it is not one by now, or its ledger has
/// changed this moment; then it is left alone.
///
/// # Errors
/// When metadata cannot be read or changed.
pub async fn condemn(store: &dyn MetadataStore, orphan: &Orphan) -> Result<bool, LedgerError> {
    let (standing, guards) = judged(store, orphan).await?;
    if standing != Standing::Orphan {
        return Ok(false);
    }
    let dying = DyingObject {
        attempt: orphan.attempt,
        ledger: orphan.ledger,
        home: orphan.home.clone(),
        location: orphan.location,
        name: orphan.name.clone(),
        upload_id: String::new(),
        // It was seen complete. Backups of its scope keep it, whenever they were made.
        until_ms: 0,
        claimed: Revision(0),
        died: Revision(0),
        replaced: false,
    };
    let transaction = Transaction {
        partition: orphan.home.clone(),
        guards,
        operations: vec![dying.put_if(Expect::Absent)],
    };
    match store.commit(transaction).await {
        Ok(_) => Ok(true),
        Err(MetadataError::Conflict { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
