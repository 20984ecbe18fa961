//! When to try again: exponential backoff with jitter, and deadlines on tokio's clock.

use std::time::Duration;

use aquifer_runtime::clock::{self, Instant};
use aquifer_runtime::rng::SharedRng;

use crate::error::{ClientError, Outcome, Result};

const FIRST_DELAY: Duration = Duration::from_millis(10);
const LARGEST_DELAY: Duration = Duration::from_secs(2);

/// Growing waits between attempts, so that clients of a failed broker do not come back in step.
pub(crate) struct Backoff {
    rng: SharedRng,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(rng: SharedRng) -> Backoff {
        Backoff {
            rng,
            next: FIRST_DELAY,
        }
    }

    /// Back to the first delay: something succeeded.
    pub(crate) fn reset(&mut self) {
        self.next = FIRST_DELAY;
    }

    /// A session has ended: only one that was good for a while counts as a success, so that one
    /// that fails whenever it is opened is not opened a hundred times a second.
    pub(crate) fn session_lasted(&mut self, lasted: Duration) {
        if lasted >= LARGEST_DELAY {
            self.reset();
        }
    }

    /// The wait before the next attempt.
    pub(crate) fn delay(&mut self) -> Duration {
        let delay = self.rng.jitter(self.next);
        self.next = (self.next * 2).min(LARGEST_DELAY);
        delay
    }

    /// Waits before the next attempt.
    pub(crate) async fn wait(&mut self) {
        clock::sleep(self.delay()).await;
    }
}

/// The end of an operation's time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    at: Instant,
    limit: Duration,
}

impl Deadline {
    /// `limit` from now.
    pub(crate) fn after(limit: Duration) -> Deadline {
        let now = Instant::now();
        // Limits beyond what the clock can express mean "never": thirty years will do.
        let at = now
            .checked_add(limit)
            .unwrap_or_else(|| now + Duration::from_secs(30 * 365 * 24 * 3600));
        Deadline { at, limit }
    }

    pub(crate) fn at(self) -> Instant {
        self.at
    }

    pub(crate) fn has_passed(self) -> bool {
        Instant::now() >= self.at
    }

    /// The error that says so.
    pub(crate) fn error(self, what: &'static str, outcome: Outcome) -> ClientError {
        ClientError::Timeout {
            what,
            after: self.limit,
            outcome,
            last: None,
        }
    }

    /// Runs a future until the deadline.
    pub(crate) async fn limit<F, T>(self, what: &'static str, future: F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        match clock::timeout_at(self.at, future).await {
            Ok(result) => result,
            Err(_) => Err(self.error(what, Outcome::Unknown)),
        }
    }
}

#[cfg(test)]
mod tests {
    use aquifer_runtime::rng::SeededRng;

    use super::*;

    #[test]
    fn delays_grow_to_a_bound_and_start_again_after_success() {
        let mut backoff = Backoff::new(SeededRng::shared(1));
        let delays: Vec<Duration> = (0..20).map(|_| backoff.delay()).collect();
        assert!(delays[0] >= FIRST_DELAY / 2 && delays[0] <= FIRST_DELAY);
        assert!(delays.iter().all(|delay| *delay <= LARGEST_DELAY));
        assert!(delays[19] >= LARGEST_DELAY / 2);
        backoff.reset();
        assert!(backoff.delay() <= FIRST_DELAY);
    }

    #[test]
    fn sessions_that_end_at_once_are_opened_ever_more_slowly() {
        let mut backoff = Backoff::new(SeededRng::shared(1));
        for _ in 0..20 {
            backoff.delay();
            backoff.session_lasted(Duration::from_millis(100));
        }
        assert!(backoff.delay() >= LARGEST_DELAY / 2);
        backoff.session_lasted(LARGEST_DELAY);
        assert!(backoff.delay() <= FIRST_DELAY);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_ends_what_takes_longer() {
        let deadline = Deadline::after(Duration::from_secs(1));
        let never = std::future::pending::<Result<()>>();
        let error = deadline.limit("waiting", never).await.unwrap_err();
        assert_eq!(error.outcome(), Outcome::Unknown);
        assert!(deadline.has_passed());
        assert!(!Deadline::after(Duration::MAX).has_passed());
    }
}
