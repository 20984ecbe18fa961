//! Objects that are there already: what an attempt has written whole before its process died, and
//! what metadata of a restored snapshot does not know. A ledger takes such an object instead of
//! being written again.
//!
//! Invariants:
//! - An object is taken only after every byte of it was read and checked against the ledger's
//!   record (H23), its creation token included: ids may be issued twice (H14).
//! - Nothing is deleted here. What is not taken is left to the reaper, or as it is.

use aquifer_cold::error::ColdError;
use aquifer_cold::format::Expected;
use aquifer_cold::location::Location;
use aquifer_cold::object::{parse_name, verify};
use aquifer_ledger::error::LedgerError;
use aquifer_ledger::ledger_metadata::{self, LedgerInfo, LedgerState};
use aquifer_ledger::objects::{self, PlannedObject};
use aquifer_ledger::offload::{Offload, StoredObject};
use aquifer_metadata::store::{MetadataStore, Revision};
use aquifer_model::id::AttemptId;
use aquifer_runtime::clock;

use crate::context::LogContext;
use crate::error::LogError;
use crate::offload::audit::Audit;
use crate::offload::tier::ColdTier;
use crate::offload::upload::of_store;

/// What reading an object takes of memory: two runs and what is made of them.
const VERIFY_BYTES: usize = 24 << 20;

/// Takes the object of an attempt that comes to no end any more, if it is whole. `false`: the
/// attempt is to be given up.
///
/// # Errors
/// When the store or metadata cannot be asked in time.
pub(super) async fn adopt_dead(
    ctx: &LogContext,
    tier: &ColdTier,
    planned: &PlannedObject,
) -> Result<bool, LogError> {
    let store = &*ctx.ledgers.store;
    let Some(info) = ledger_metadata::load(store, planned.ledger).await? else {
        return Ok(false);
    };
    let (attempt, ledger) = (planned.attempt, planned.ledger);
    let LedgerState::Closed(end) = info.state else {
        return Ok(false);
    };
    if info.offload != Some(Offload::Claimed { attempt }) {
        return Ok(false);
    }
    let late = || LogError::Unavailable(format!("object {} is not read in time", planned.name));
    let name = planned.name.as_str();
    let sized = async {
        let location = tier.locations.get(planned.location).await?;
        location.store.size(name).await?;
        Ok::<_, ColdError>(location)
    };
    // Most attempts have left none: that is found out soon.
    let location = match clock::timeout(tier.settings.read_max, sized).await {
        Ok(Ok(location)) => location,
        Ok(Err(ColdError::NotFound(_))) => return Ok(false),
        Ok(Err(error)) => return Err(of_store(error)),
        Err(_) => return Err(late()),
    };
    let looked = async {
        let _memory = tier.memory.acquire(VERIFY_BYTES).await;
        let times = (info.revision, ctx.ledgers.clock.wall_ms());
        whole(&location, (name, attempt), &info, times).await
    };
    let found = clock::timeout(tier.attempt_max(end.length), looked).await;
    let Some(object) = found.unwrap_or_else(|_| Err(late()))? else {
        return Ok(false);
    };
    objects::store(store, planned, object).await?;
    tracing::info!(%ledger, %attempt, "object of an attempt whose process is gone was whole, and is taken");
    Ok(true)
}

/// Has ledgers that are in no object take those of an audit that hold them whole and that no record
/// names. Answers their names.
///
/// # Errors
/// When the store or metadata cannot be asked.
pub async fn adopt_doubtful(
    metadata: &dyn MetadataStore,
    location: &Location,
    audit: &Audit,
    now_ms: u64,
) -> Result<Vec<String>, LogError> {
    let mut adopted = Vec::new();
    for name in &audit.doubtful {
        let Some(parts) = parse_name(&location.owner, name) else {
            continue;
        };
        let info = ledger_metadata::load(metadata, parts.ledger).await?;
        let Some(info) = info.filter(|info| info.offload.is_none()) else {
            continue;
        };
        // Any backup of its scope may name it, whenever it was made.
        let times = (Revision(0), now_ms);
        let found = whole(location, (name.as_str(), parts.attempt), &info, times).await?;
        let Some(object) = found else {
            continue;
        };
        match objects::adopt(metadata, parts.ledger, parts.attempt, object).await {
            Ok(()) => adopted.push(name.clone()),
            // Another attempt, or a deletion, was faster.
            Err(LedgerError::Offload(_) | LedgerError::Fenced) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(adopted)
}

/// The object of a name, if it is there and holds the ledger as it was written.
async fn whole(
    location: &Location,
    (name, attempt): (&str, AttemptId),
    info: &LedgerInfo,
    (claimed, stored_ms): (Revision, u64),
) -> Result<Option<StoredObject>, LogError> {
    let LedgerState::Closed(end) = info.state else {
        return Ok(None);
    };
    let Some(last_entry) = end.last_entry else {
        return Ok(None);
    };
    let expected = Expected {
        attempt,
        ledger: info.id,
        token: info.token,
        last_entry,
        length: end.length,
    };
    let store = &*location.store;
    let read = async {
        let size = store.size(name).await?;
        let tail = verify(store, name, size, Some(&expected), |_, _| {}).await?;
        Ok::<_, ColdError>((size, tail))
    };
    match read.await {
        Ok((size_bytes, tail)) => Ok(Some(StoredObject {
            location: location.number,
            name: name.to_owned(),
            section: 0,
            size_bytes,
            checksum: tail.trailer.body_crc64,
            stored_ms,
            index_offset: tail.trailer.index_offset,
            claimed,
            is_damaged: false,
        })),
        Err(ColdError::NotFound(_) | ColdError::Damaged { .. }) => Ok(None),
        Err(error) => Err(of_store(error)),
    }
}
