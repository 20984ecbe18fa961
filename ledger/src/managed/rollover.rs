//! A rollover needs metadata, and what asks for it may come while metadata is away. Limits are soft
//! then (H8): the current ledger goes on.
//!
//! A change of unknown outcome would be worse than none, since nothing may be acknowledged until it is
//! known (I4). So metadata is read before the rollover begins: the first log that finds it away waits
//! for that, and for a moment only; the others of the process do not wait at all.

use std::sync::Arc;
use std::time::Duration;

use aquifer_runtime::clock;

use crate::error::LogError;
use crate::managed::state::{LogInner, Phase, State};

/// How long metadata may take to answer a read before it counts as away.
const REACH_MAX: Duration = Duration::from_secs(1);

impl LogInner {
    /// The current ledger is to make room for another.
    pub(crate) fn begin_rollover(&self, state: &mut State, now: Duration) {
        if self.ctx.shared.metadata_is_away() {
            self.put_off_rollover(state, now);
            self.look_for_metadata();
        } else {
            state.phase = Phase::Turning;
        }
    }

    /// No rollover for a while.
    pub(crate) fn put_off_rollover(&self, state: &mut State, now: Duration) {
        let pause = self.ctx.settings.retry_backoff_max;
        state.roll_at = Some(now + self.ctx.rng.jitter(pause));
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
            return; // somebody does
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
