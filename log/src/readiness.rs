//! Whether metadata is ready for a rollover: it answers, and has room for another ledger. If it is
//! not ready, the limits of a ledger are soft (H8): the current ledger goes on.
//!
//! A change of unknown outcome would be worse than no change, since nothing may be acknowledged
//! until its outcome is known (I4). So metadata is read before the rollover begins: the first log
//! that finds it unavailable waits up to [`REACH_MAX`]; the other logs of the process do not wait.

use std::sync::Arc;
use std::time::Duration;

use aquifer_metadata::store::FreeSpace;
use aquifer_model::limits::METADATA_REQUEST_BYTES_MAX;
use aquifer_runtime::clock;

use crate::error::LogError;
use crate::state::{LogInner, Phase, State};

/// How long metadata may take to answer a read before it counts as unavailable.
const REACH_MAX: Duration = Duration::from_secs(1);

/// Bytes of a topic's record up to which it takes ledgers: what else is in the same change has to
/// fit into one request, too. Only segments of the cursor log can be that many; those of messages
/// are in pages.
const RECORD_BYTES_MAX: usize = METADATA_REQUEST_BYTES_MAX - (64 << 10);
/// The part of it that is kept for ledgers after failovers.
const RECORD_BYTES_KEPT: usize = 448 << 10;

impl LogInner {
    /// Asks for a rollover, unless metadata is known to be unavailable.
    pub(crate) fn begin_rollover(&self, state: &mut State, now: Duration) {
        // A log that is handed over ends soon, and opens no other ledger.
        if self.cell.is_handed_over() {
            self.put_off_rollover(state, now);
        } else if self.ctx.shared.metadata_is_away() {
            self.put_off_rollover(state, now);
            self.look_for_metadata();
        } else {
            state.phase = Phase::RollingOver;
        }
    }

    /// Starts no rollover during the longest pause between retries.
    pub(crate) fn put_off_rollover(&self, state: &mut State, now: Duration) {
        let pause = self.ctx.ledgers.settings.retry_backoff_max;
        state.roll_at = Some(now + self.ctx.ledgers.rng.jitter(pause));
    }

    /// Whether metadata has room for another ledger of the log. Some is kept for logs that have no
    /// ledger to go on with: they are what a failover leaves.
    pub(crate) fn find_room(&self, may_wait: bool) -> Result<(), LogError> {
        let full = |why| Err(LogError::StorageFull(format!("metadata is full: {why}")));
        match self
            .ctx
            .ledgers
            .store
            .usage()
            .map(|usage| usage.free_space())
        {
            Some(FreeSpace::Full(why)) => return full(why),
            Some(FreeSpace::Low(why)) if may_wait => return full(why),
            Some(FreeSpace::Enough | FreeSpace::Low(_)) | None => {}
        }
        let (bytes, ledgers) = self.cell.size();
        let bound = match may_wait {
            true => RECORD_BYTES_MAX - RECORD_BYTES_KEPT,
            false => RECORD_BYTES_MAX,
        };
        if bytes > bound {
            return full(format!(
                "the record of the topic has {bytes} bytes and lists {ledgers} ledgers; it takes \
                 others again when its cursor log is trimmed"
            ));
        }
        Ok(())
    }

    /// Whether metadata answers soon. That this is not the owner any more is an answer: the change
    /// will show it.
    pub(crate) async fn reach_metadata(&self) -> Result<(), LogError> {
        let late = || LogError::Unavailable("metadata does not answer in time".to_owned());
        let answer = clock::timeout(REACH_MAX, self.cell.check_owner()).await;
        let answer = match answer.unwrap_or_else(|_| Err(late())) {
            Ok(()) | Err(LogError::Fenced) => Ok(()),
            Err(error) => Err(error),
        };
        self.ctx.shared.found_metadata(answer.is_ok());
        answer
    }

    /// Looks in the background, for all logs of the process, whether metadata is back.
    fn look_for_metadata(&self) {
        let Some(me) = self.me.upgrade() else {
            return;
        };
        if !self.ctx.shared.begin_to_look() {
            return; // another task is looking
        }
        let ctx = Arc::clone(&self.ctx);
        self.spawn("metadata-probe", async move {
            if me.reach_metadata().await.is_ok() {
                tracing::info!("metadata answers again");
            }
            ctx.shared.end_to_look();
        });
    }
}
