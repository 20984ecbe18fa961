//! What a broker does for a ledger that is due where offloaders are to offload: it writes that
//! down.

use aquifer_ledger::ledger_metadata::{self, LedgerState};
use aquifer_ledger::objects::tasks::{self, OffloadTask};
use aquifer_ledger::offload::Offload;
use aquifer_model::id::LedgerId;
use aquifer_model::policy::offload::OffloadCompression;

use crate::context::LogContext;
use crate::error::LogError;
use crate::offload::upload::{Origin, Outcome};

/// Leaves a closed ledger to offloaders, unless it is in an object or an attempt is under way.
pub(super) async fn leave_ledger(
    ctx: &LogContext,
    origin: Origin,
    (ledger, compression): (LedgerId, OffloadCompression),
) -> Result<Outcome, LogError> {
    let store = &*ctx.ledgers.store;
    let info = ledger_metadata::load_existing(store, ledger).await?;
    match info.offload {
        Some(Offload::Stored { .. }) => return Ok(Outcome::NothingToDo),
        Some(Offload::Claimed { .. }) => return Ok(Outcome::Busy),
        None => {}
    }
    let LedgerState::Closed(end) = info.state else {
        return Err(LogError::Invalid(format!("ledger {ledger} is not closed")));
    };
    if end.last_entry.is_none() {
        return Ok(Outcome::NothingToDo);
    }
    let task = OffloadTask {
        ledger,
        home: info.home,
        topic: origin.topic,
        incarnation: origin.incarnation,
        compression,
        asked_ms: ctx.ledgers.clock.wall_ms(),
    };
    tasks::leave(store, &task).await?;
    Ok(Outcome::Left)
}
