//! Time. Wall time is for timestamps that people read and for expiry that spans restarts;
//! monotonic time is for durations. Waiting goes through [`sleep`], [`timeout`] and those that take
//! an [`Instant`], which follow tokio's clock, so that a paused runtime runs in virtual time.
//!
//! Nothing outside this module may ask the operating system for the time.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use tokio::time::error::Elapsed;
pub use tokio::time::{Instant, Sleep};

/// A source of time.
pub trait Clock: Send + Sync + Debug + 'static {
    /// Milliseconds since the Unix epoch. It may jump in both directions.
    fn wall_ms(&self) -> u64;

    /// Time since an origin that is fixed for the life of the process. It never goes back.
    fn monotonic(&self) -> Duration;
}

/// A clock that components hold and share.
pub type SharedClock = Arc<dyn Clock>;

/// The clock of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl SystemClock {
    /// The system clock, ready to hand to a component.
    #[must_use]
    pub fn shared() -> SharedClock {
        Arc::new(SystemClock)
    }
}

static ORIGIN: OnceLock<std::time::Instant> = OnceLock::new();

#[allow(
    clippy::disallowed_methods,
    reason = "the one place that reads the clocks of the operating system"
)]
impl Clock for SystemClock {
    fn wall_ms(&self) -> u64 {
        // A clock before 1970 is a broken machine; zero keeps every comparison well defined.
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        millis(since)
    }

    fn monotonic(&self) -> Duration {
        let origin = *ORIGIN.get_or_init(std::time::Instant::now);
        std::time::Instant::now().saturating_duration_since(origin)
    }
}

/// A clock that moves only when a test or a simulation moves it.
#[derive(Debug, Default)]
pub struct ManualClock {
    wall_ms: AtomicU64,
    monotonic_nanos: AtomicU64,
}

impl ManualClock {
    /// A clock that shows `wall_ms` and a monotonic time of zero.
    #[must_use]
    pub fn new(wall_ms: u64) -> Arc<ManualClock> {
        Arc::new(ManualClock {
            wall_ms: AtomicU64::new(wall_ms),
            monotonic_nanos: AtomicU64::new(0),
        })
    }

    /// Sets the wall clock, forwards or backwards; monotonic time does not move.
    pub fn set_wall_ms(&self, wall_ms: u64) {
        self.wall_ms.store(wall_ms, Ordering::SeqCst);
    }

    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.monotonic_nanos.fetch_add(nanos, Ordering::SeqCst);
        self.wall_ms.fetch_add(millis(by), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn wall_ms(&self) -> u64 {
        self.wall_ms.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_nanos(self.monotonic_nanos.load(Ordering::SeqCst))
    }
}

/// Whole milliseconds of a duration; the highest number for one that has more.
#[must_use]
pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Waits for a duration of tokio's clock.
pub async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// Waits until a moment of tokio's clock; the wait can be set to another one.
pub fn sleep_until(at: Instant) -> Sleep {
    tokio::time::sleep_until(at)
}

/// A wait whose end moves. A new [`sleep`] for each wait takes the lock of the timers of all tasks;
/// putting off the end of one that runs takes none.
#[derive(Debug)]
pub struct Alarm {
    sleep: Pin<Box<tokio::time::Sleep>>,
    /// The end that it is set to, on the clock of its user.
    at: Option<Duration>,
}

/// Longest wait of an alarm. It goes off early then.
const ALARM_MAX: Duration = Duration::from_secs(24 * 3_600);

impl Alarm {
    /// An alarm that is not set: a wait for it ends at once. Must be made on a runtime.
    #[must_use]
    pub fn unset() -> Alarm {
        Alarm {
            sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
            at: None,
        }
    }

    /// Sets its end to `at` on a clock that shows `now`. An alarm with that end already stays as it
    /// is, whatever the clock shows.
    pub fn set(&mut self, at: Duration, now: Duration) {
        if self.at != Some(at) {
            self.at = Some(at);
            let left = at.saturating_sub(now).min(ALARM_MAX);
            self.sleep.as_mut().reset(Instant::now() + left);
        }
    }

    /// Waits until it goes off; it must be set again after that. A wait that is dropped changes
    /// nothing.
    pub async fn wait(&mut self) {
        self.sleep.as_mut().await;
        self.at = None;
    }
}

/// Runs a future, and drops it when it takes longer than `limit`.
pub async fn timeout<F: Future>(limit: Duration, future: F) -> Result<F::Output, Elapsed> {
    tokio::time::timeout(limit, future).await
}

/// Runs a future, and drops it when it is not done at a moment of tokio's clock.
pub async fn timeout_at<F: Future>(at: Instant, future: F) -> Result<F::Output, Elapsed> {
    tokio::time::timeout_at(at, future).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_never_goes_back() {
        let clock = SystemClock::shared();
        let mut last = clock.monotonic();
        for _ in 0..1000 {
            let now = clock.monotonic();
            assert!(now >= last);
            last = now;
        }
        assert!(clock.wall_ms() > 1_600_000_000_000, "wall time is in ms");
    }

    #[tokio::test(start_paused = true)]
    async fn an_alarm_goes_off_when_it_was_last_set_to() {
        let begin = Instant::now();
        let second = Duration::from_secs(1);
        let mut alarm = Alarm::unset();
        alarm.set(second * 10, Duration::ZERO);
        // The alarm may be awaited beside something else that comes first.
        assert!(timeout(second, alarm.wait()).await.is_err());
        alarm.set(second * 10, second);
        assert!(timeout(second, alarm.wait()).await.is_err());
        alarm.set(second * 4, second * 2);
        alarm.wait().await;
        assert_eq!(begin.elapsed().as_secs(), 4);
        alarm.set(second * 4, second * 4);
        alarm.wait().await;
        alarm.set(second * 9, second * 4);
        alarm.wait().await;
        assert_eq!(begin.elapsed().as_secs(), 9);
        // A clock that stands still: the same end again is another wait, not one that is over.
        alarm.set(second * 9, second * 7);
        alarm.wait().await;
        assert_eq!(begin.elapsed().as_secs(), 11);
        alarm.set(Duration::MAX, second);
        assert!(timeout(second, alarm.wait()).await.is_err());
    }

    #[test]
    fn a_manual_clock_moves_only_by_hand() {
        let clock = ManualClock::new(5_000);
        clock.advance(Duration::from_millis(1_500));
        assert_eq!(clock.wall_ms(), 6_500);
        assert_eq!(clock.monotonic(), Duration::from_millis(1_500));
        clock.set_wall_ms(10);
        assert_eq!(clock.wall_ms(), 10);
        assert_eq!(clock.monotonic(), Duration::from_millis(1_500));
    }

    #[tokio::test(start_paused = true)]
    async fn sleep_and_timeout_follow_virtual_time() {
        let hour = Duration::from_secs(3600);
        let started = Instant::now();
        sleep(hour).await;
        assert_eq!(started.elapsed(), hour);
        assert!(timeout(hour, std::future::pending::<()>()).await.is_err());
        assert_eq!(timeout(hour, async { 7 }).await.ok(), Some(7));
    }
}
