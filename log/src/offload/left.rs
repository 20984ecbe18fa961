//! What a broker does for a ledger that is due where offloaders are to offload: it writes that
//! down.

use aquifer_ledger::objects::tasks::{self, OffloadTask};
use aquifer_model::id::LedgerId;
use aquifer_model::policy::offload::OffloadCompression;

use crate::context::LogContext;
use crate::error::LogError;
use crate::offload::upload::{Origin, Outcome, unoffloaded};

/// Leaves a closed ledger to offloaders, unless it is in an object or an attempt is under way.
pub(super) async fn leave_ledger(
    ctx: &LogContext,
    origin: Origin,
    (ledger, compression): (LedgerId, OffloadCompression),
) -> Result<Outcome, LogError> {
    let info = match unoffloaded(ctx, ledger).await? {
        Ok((info, _)) => info,
        Err(outcome) => return Ok(outcome),
    };
    let task = OffloadTask {
        ledger,
        home: info.home,
        topic: origin.topic,
        incarnation: origin.incarnation,
        compression,
        asked_ms: ctx.ledgers.clock.wall_ms(),
    };
    tasks::leave(&*ctx.ledgers.store, &task).await?;
    Ok(Outcome::Left)
}
