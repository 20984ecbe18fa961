//! Progress on standard error: nothing for what takes less than a second; then a line that is
//! rewritten on a terminal, and a new line every few seconds elsewhere.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aquifer_runtime::clock::{Clock, SystemClock, millis, sleep};
use aquifer_runtime::task::{TaskGroup, TaskHandle};

const TERMINAL_PERIOD: Duration = Duration::from_secs(1);
const LOG_PERIOD: Duration = Duration::from_secs(5);

/// A count that is shown while it grows. Dropping it ends the reports.
pub struct Progress {
    done: Arc<AtomicU64>,
    reporter: TaskHandle<()>,
    terminal: bool,
}

impl Progress {
    pub(super) fn start(unit: &'static str, total: Option<u64>, terminal: bool) -> Progress {
        let done = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&done);
        let started = SystemClock.monotonic();
        let reporter = TaskGroup::new("progress").spawn("progress", async move {
            let mut wait = Duration::from_secs(1);
            loop {
                sleep(wait).await;
                let elapsed = SystemClock.monotonic().saturating_sub(started);
                let line = report(unit, seen.load(Ordering::Relaxed), total, elapsed);
                let mut stderr = io::stderr().lock();
                // `\x1b[K` clears what a longer line before has left.
                let _ = if terminal {
                    write!(stderr, "\r{line}\x1b[K").and_then(|()| stderr.flush())
                } else {
                    writeln!(stderr, "{line}")
                };
                wait = if terminal {
                    TERMINAL_PERIOD
                } else {
                    LOG_PERIOD
                };
            }
        });
        Progress {
            done,
            reporter,
            terminal,
        }
    }

    /// Adds to the number that are done.
    pub fn add(&self, count: u64) {
        self.done.fetch_add(count, Ordering::Relaxed);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.reporter.abort();
        if self.terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

fn report(unit: &str, done: u64, total: Option<u64>, elapsed: Duration) -> String {
    let millis = millis(elapsed).max(1);
    let rate = u64::try_from(u128::from(done) * 1000 / u128::from(millis)).unwrap_or(u64::MAX);
    let share = total
        .filter(|total| *total > 0)
        .map(|total| {
            let percent = u128::from(done) * 100 / u128::from(total);
            format!(" of {} ({percent} %)", grouped(total))
        })
        .unwrap_or_default();
    format!(
        "{}{share} {unit} in {} s, {} a second",
        grouped(done),
        elapsed.as_secs(),
        grouped(rate)
    )
}

/// A number with its thousands apart.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_say_how_much_of_what_and_how_fast() {
        let two = Duration::from_millis(2_000);
        assert_eq!(
            report("messages", 10_000, None, two),
            "10,000 messages in 2 s, 5,000 a second"
        );
        assert_eq!(
            report("messages", 50, Some(200), two),
            "50 of 200 (25 %) messages in 2 s, 25 a second"
        );
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(123), "123");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert!(!report("x", u64::MAX, Some(1), Duration::ZERO).is_empty());
    }
}
