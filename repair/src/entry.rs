//! Repair of a single damaged entry, at once and in place: what a scrubber or a reader asks for.

use std::collections::BTreeSet;
use std::sync::Arc;

use aquifer_ledger::error::LedgerError;
use aquifer_ledger::ledger_metadata::{self, LedgerState};
use aquifer_ledger::marks::{self, Mark};
use aquifer_ledger::members::Members;
use aquifer_model::id::{BookieId, EntryId, LedgerId};

use crate::context::RepairContext;
use crate::copy::{Copier, Depth};
use crate::pace::Pace;

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryRepair {
    /// The entry is intact on the bookie.
    Repaired,
    /// It could not be repaired in place: the ledger is marked, and a worker looks after it.
    Marked(String),
    /// The ledger does not have the entry, or not on this bookie.
    Irrelevant,
}

/// Replaces a bookie's damaged copy of an entry by that of another replica, or marks the ledger.
///
/// # Errors
/// When metadata cannot be read or changed.
pub async fn repair_entry(
    ctx: &Arc<RepairContext>,
    bookie: BookieId,
    ledger: LedgerId,
    entry: EntryId,
) -> Result<EntryRepair, LedgerError> {
    let store = &*ctx.ledgers.store;
    let Some(info) = ledger_metadata::load(store, ledger).await? else {
        return Ok(EntryRepair::Irrelevant);
    };
    let beyond = match info.state {
        LedgerState::Closed(end) => Some(entry) > end.last_entry,
        LedgerState::Open | LedgerState::InRecovery => false,
    };
    let Some((members, _)) = info.duties().at(entry) else {
        return Ok(EntryRepair::Irrelevant);
    };
    let mut write_set = info.quorum.write_set(entry.0);
    if beyond || !write_set.any(|position| members[position] == bookie) {
        return Ok(EntryRepair::Irrelevant);
    }
    let members = Members::load(store).await?;
    let (none_lost, pace) = (BTreeSet::new(), Pace::new(u64::MAX));
    let copier = Copier::new(ctx, &info, &members, &none_lost, &pace);
    let only = [(entry, entry)];
    let repaired = async {
        copier.copy(&only, bookie).await?.check()?;
        copier
            .gaps(bookie, only.into_iter(), Depth::Bytes, false)
            .await
    };
    let why = match repaired.await {
        Ok(gaps) if gaps.is_empty() => {
            tracing::info!(%ledger, %entry, %bookie, "damaged entry repaired");
            return Ok(EntryRepair::Repaired);
        }
        Ok(_) => "what was written does not read back intact".to_owned(),
        Err(trouble) => trouble.to_string(),
    };
    let mark = Mark::new(
        ledger,
        &info.home,
        "a stored entry is damaged",
        ctx.ledgers.clock.wall_ms(),
    );
    marks::write(store, &mark.doubted([bookie])).await?;
    Ok(EntryRepair::Marked(why))
}

/// Marks a ledger of which a bookie's copy may be damaged, so that a worker looks after it; whether
/// the bookie has a place in it at all.
///
/// # Errors
/// When metadata cannot be read or changed.
pub async fn doubt_ledger(
    ctx: &RepairContext,
    bookie: BookieId,
    ledger: LedgerId,
    why: &str,
) -> Result<bool, LedgerError> {
    let store = &*ctx.ledgers.store;
    let Some(info) = ledger_metadata::load(store, ledger).await? else {
        return Ok(false);
    };
    if !info.duties().binds(bookie) {
        return Ok(false);
    }
    let mark = Mark::new(ledger, &info.home, why, ctx.ledgers.clock.wall_ms());
    marks::write(store, &mark.doubted([bookie])).await?;
    Ok(true)
}
