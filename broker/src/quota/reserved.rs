//! Tokens of a read, which costs what it finds: they are taken before it looks, and put back as far
//! as it did not use them.
//!
//! Invariants:
//! - One read of a topic at a time holds such tokens, so that only one runs into debt, with its
//!   first entry. It holds them while it reads, and never while it waits for messages.
//! - Tokens of a read that is given up are put back.

use std::sync::Arc;
use std::time::Duration;

use aquifer_runtime::clock;
use tokio::sync::OwnedSemaphorePermit;

use crate::context::Context;
use crate::quota::Cost;
use crate::quota::rates::{Flow, TopicRates};

/// See the module.
pub(crate) struct Reserved {
    rates: Arc<TopicRates>,
    taken: Cost,
    used: Cost,
    _turn: OwnedSemaphorePermit,
}

impl Reserved {
    /// Takes what the rates of a topic let pass, `bytes_max` at most, when there is something.
    /// Nothing when there was none until `until`.
    pub(crate) async fn take(
        rates: &Arc<TopicRates>,
        shared: &Context,
        bytes_max: u64,
        until: Duration,
    ) -> Option<Reserved> {
        let left = || until.saturating_sub(shared.clock.monotonic());
        let turn = Arc::clone(&rates.read_turn).acquire_owned();
        // It is never closed.
        let turn = clock::timeout(left(), turn).await.ok()?.ok()?;
        let most = Cost {
            bytes: bytes_max,
            ..Cost::MAX
        };
        loop {
            let now = shared.clock.monotonic();
            let wait = match rates.take_left(Flow::Dispatch, most, now) {
                Ok(taken) => {
                    return Some(Reserved {
                        rates: Arc::clone(rates),
                        taken,
                        used: Cost::NONE,
                        _turn: turn,
                    });
                }
                Err(wait) => wait,
            };
            shared.metrics.dispatch_waits(wait.limit);
            let left = left();
            if left.is_zero() {
                return None;
            }
            clock::sleep(wait.time.min(left)).await;
        }
    }

    /// How much that is.
    pub(crate) fn cost(&self) -> Cost {
        self.taken
    }

    /// Keeps what was used, more than was taken if need be, and puts back the rest.
    pub(crate) fn used(mut self, used: Cost) {
        self.used = used;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.rates.correct(Flow::Dispatch, self.taken, self.used);
    }
}
