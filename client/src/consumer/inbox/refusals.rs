//! Requests that the broker refuses for the moment, because too much waits to become durable: they
//! are made again after a pause, and everything else of the session goes on.

use std::time::Duration;

use aquifer_proto::v1;
use aquifer_runtime::clock::Instant;

use crate::consumer::inbox::Inbox;
use crate::error::ClientError;
use crate::wake::Wakers;

/// Pause before a request that was refused for the moment is made again.
const PAUSE: Duration = Duration::from_millis(100);

/// Whether acknowledgements and seeks are held back.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    again_at: Option<Instant>,
}

impl Refusals {
    pub(super) fn hold_back(&mut self, now: Instant) {
        self.again_at = now.checked_add(PAUSE);
    }

    pub(super) fn is_holding_back(&self) -> bool {
        self.again_at.is_some()
    }
}

/// Whether the same request may succeed in the same session later.
pub(super) fn is_for_the_moment(error: &ClientError) -> bool {
    error.code() == Some(v1::ErrorCode::Overloaded)
}

impl Inbox {
    /// When requests that were refused for the moment are to be made again.
    pub(crate) fn again_at(&self) -> Option<Instant> {
        self.refusals.again_at
    }

    /// Makes requests that were refused for the moment again, when it is time.
    pub(crate) fn make_again(&mut self, now: Instant, wakers: &mut Wakers) {
        if self.refusals.again_at.is_some_and(|at| at <= now) {
            self.refusals = Refusals::default();
            wakers.add(self.stream.take());
        }
    }
}
