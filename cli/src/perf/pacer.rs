//! When each message of a constant-rate load is due. The schedule does not wait for the server:
//! a latency counts from when the message was due, so that a stall shows in every message it
//! delayed and not only in the one that met it (coordinated omission).

use std::sync::Arc;
use std::time::Duration;

use aquifer_runtime::clock::{Clock, SystemClock};
use aquifer_runtime::task::spawn_thread;
use tokio::sync::Semaphore;

use crate::exit::CliError;

/// Below this the operating system's timers are not worth a wake-up.
const SLEEP_MIN: Duration = Duration::from_micros(50);

/// A schedule: message `n` is due `n / rate` after the start.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// For a thousand messages, so that high rates do not lose their digits.
    nanos_per_thousand: u64,
}

impl Schedule {
    /// At a number of messages a second.
    ///
    /// # Errors
    /// When that is no positive number, or too small to count.
    pub fn new(rate: f64) -> Result<Schedule, CliError> {
        let usable = rate.is_finite() && rate >= 0.001;
        let nanos = usable
            .then(|| Duration::from_secs_f64(1_000.0 / rate).as_nanos())
            .and_then(|nanos| u64::try_from(nanos).ok())
            .filter(|nanos| *nanos > 0);
        match nanos {
            Some(nanos_per_thousand) => Ok(Schedule { nanos_per_thousand }),
            None => Err(CliError::usage(
                "--rate must be a number of messages a second, at least 0.001",
            )),
        }
    }

    /// When message `n` is due after the start.
    pub fn due(&self, n: u64) -> Duration {
        let nanos = u128::from(n) * u128::from(self.nanos_per_thousand) / 1_000;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// How many messages are due at a time after the start, the one at zero included.
    pub fn due_count(&self, elapsed: Duration) -> u64 {
        let count = elapsed.as_nanos() * 1_000 / u128::from(self.nanos_per_thousand);
        u64::try_from(count).unwrap_or(u64::MAX).saturating_add(1)
    }
}

/// Wakes a sender at the times of a schedule, from a thread of its own: timers of the async
/// runtime tick in milliseconds, which would drown the latencies of a fast server.
pub struct Pacer {
    schedule: Schedule,
    start: Duration,
    ticks: Arc<Semaphore>,
    taken: u64,
}

impl Pacer {
    /// Starts the schedule now. The thread ends when the pacer is dropped.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(schedule: Schedule) -> Result<Pacer, CliError> {
        let start = SystemClock.monotonic();
        let ticks = Arc::new(Semaphore::new(0));
        let weak = Arc::downgrade(&ticks);
        spawn_thread("perf-pacer", move || {
            let mut issued = 0_u64;
            while let Some(ticks) = weak.upgrade() {
                let elapsed = SystemClock.monotonic().saturating_sub(start);
                let due = schedule.due_count(elapsed);
                let more = usize::try_from(due - issued).unwrap_or(usize::MAX);
                // Permits that do not fit are dropped with the semaphore.
                ticks.add_permits(more.min(Semaphore::MAX_PERMITS - ticks.available_permits()));
                drop(ticks);
                issued = due;
                sleep(schedule.due(issued).saturating_sub(elapsed).max(SLEEP_MIN));
            }
        })
        .map_err(|error| CliError::failed(format!("cannot start a thread: {error}")))?;
        Ok(Pacer {
            schedule,
            start,
            ticks,
            taken: 0,
        })
    }

    /// Waits until the next message is due; answers when that was, on the monotonic clock. Safe
    /// to cancel.
    pub async fn next(&mut self) -> Duration {
        if let Ok(permit) = self.ticks.acquire().await {
            permit.forget();
        }
        self.take()
    }

    /// The same for a message that is due already.
    pub fn try_next(&mut self) -> Option<Duration> {
        self.ticks.try_acquire().ok()?.forget();
        Some(self.take())
    }

    fn take(&mut self) -> Duration {
        let due = self.start + self.schedule.due(self.taken);
        self.taken += 1;
        due
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "the pacing thread exists to sleep more finely than the runtime's timers do"
)]
fn sleep(duration: Duration) {
    std::thread::sleep(duration.min(Duration::from_millis(100)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_is_exact_at_any_rate() {
        for rate in [0.5, 1.0, 3.0, 1_000.0, 300_000.0, 12_345_678.0] {
            let schedule = Schedule::new(rate).expect("a rate");
            let hour = Duration::from_secs(3_600);
            let count = schedule.due_count(hour) as f64;
            let expected = rate * 3_600.0 + 1.0;
            assert!((count / expected - 1.0).abs() < 1e-3, "{rate}: {count}");
            for n in [0, 1, 7, 1_000_000] {
                assert!(schedule.due_count(schedule.due(n)) <= n + 1, "{rate} {n}");
                let later = schedule.due(n) + Duration::from_nanos(1);
                assert!(schedule.due_count(later) > n, "{rate} {n}");
            }
        }
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-9, 1e300] {
            assert!(Schedule::new(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn every_message_is_due_once_and_in_order() {
        let schedule = Schedule::new(100_000.0).expect("a rate");
        let mut pacer = Pacer::start(schedule).expect("a thread");
        let mut last = None;
        for n in 0..1_000 {
            let due = match pacer.try_next() {
                Some(due) => due,
                None => pacer.next().await,
            };
            assert_eq!(due, pacer.start + schedule.due(n));
            assert!(SystemClock.monotonic() >= due, "never early");
            assert!(last.is_none_or(|last| due > last));
            last = Some(due);
        }
    }
}
