//! The load generator behind `aquifer perf`: it drives a server through the SDK like any other
//! application and reports what came of it. It contains no behaviour of the messaging system.

pub mod disk;
pub mod e2e;
pub mod latency;
mod pacer;
pub mod publish;
pub mod receive;
pub mod stamp;

use std::time::Duration;

use serde::Serialize;

use crate::exit::CliError;
use crate::output::Output;

use self::latency::{Latencies, LatencySummary};

/// What an acknowledgement of a server means, in every result.
pub const DURABILITY: &str = "synced: acknowledged after fdatasync of the journal";

/// When a load ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// After this many messages.
    Count(u64),
    /// After this time.
    Elapsed(Duration),
}

/// The contract's object.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Messages that were acknowledged, or received.
    pub messages: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// From the first to the last.
    pub seconds: f64,
    /// Per second.
    pub messages_per_second: f64,
    /// Per second.
    pub bytes_per_second: f64,
    /// Messages that failed, or did not arrive.
    pub errors: u64,
    /// Latencies in microseconds.
    pub latency_us: LatencySummary,
    /// What an acknowledgement stands for.
    pub durability: &'static str,
}

impl Report {
    /// From what was counted.
    pub fn new(counted: &Counted, bytes_each: usize, latencies: &Latencies) -> Report {
        let bytes_each = u64::try_from(bytes_each).unwrap_or(u64::MAX);
        let bytes = counted.messages.saturating_mul(bytes_each);
        let seconds = counted.elapsed.as_secs_f64();
        Report {
            messages: counted.messages,
            bytes,
            seconds: round(seconds, 6),
            messages_per_second: round(per_second(counted.messages, seconds), 1),
            bytes_per_second: round(per_second(bytes, seconds), 1),
            errors: counted.errors,
            latency_us: latencies.summary(),
            durability: DURABILITY,
        }
    }

    /// Prints it.
    ///
    /// # Errors
    /// When standard output is closed or full.
    pub fn print(&self, out: &Output, what: &str) -> Result<(), CliError> {
        if out.is_json() {
            return out.object(self);
        }
        out.line(format!(
            "{what}: {} messages in {:.2} s: {:.0} messages/s, {:.1} MB/s, {} errors",
            self.messages,
            self.seconds,
            self.messages_per_second,
            self.bytes_per_second / 1e6,
            self.errors
        ))?;
        let latency = &self.latency_us;
        out.line(format!(
            "  latency µs: p50 {:.0}, p99 {:.0}, p99.9 {:.0}, max {:.0} ({})",
            latency.p50, latency.p99, latency.p999, latency.max, self.durability
        ))
    }
}

/// What came of a load.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counted {
    /// Messages that came through.
    pub messages: u64,
    /// Messages that did not.
    pub errors: u64,
    /// How long it took.
    pub elapsed: Duration,
}

impl Counted {
    /// Adds what another part of the same load did at the same time.
    pub fn join(&mut self, other: &Counted) {
        self.messages += other.messages;
        self.errors += other.errors;
        self.elapsed = self.elapsed.max(other.elapsed);
    }
}

fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 {
        count as f64 / seconds
    } else {
        0.0
    }
}

/// A duration given in seconds on the command line.
///
/// # Errors
/// When it is no positive number, or beyond a year.
pub fn duration(flag: &str, seconds: f64) -> Result<Duration, CliError> {
    let year = 366.0 * 24.0 * 3_600.0;
    if seconds.is_finite() && seconds > 0.0 && seconds <= year {
        return Ok(Duration::from_secs_f64(seconds));
    }
    Err(CliError::usage(format!(
        "{flag} is a number of seconds above zero"
    )))
}

/// Rounded for people and files; more digits would only pretend.
pub fn round(number: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (number * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_the_contracts_fields_and_no_others() {
        let mut latencies = Latencies::new();
        latencies.record(Duration::from_micros(100));
        let counted = Counted {
            messages: 10,
            errors: 1,
            elapsed: Duration::from_secs(2),
        };
        let report = Report::new(&counted, 1024, &latencies);
        let object = serde_json::to_value(&report).expect("it serializes");
        let mut fields: Vec<_> = object.as_object().expect("an object").keys().collect();
        fields.sort();
        assert_eq!(
            fields,
            [
                "bytes",
                "bytes_per_second",
                "durability",
                "errors",
                "latency_us",
                "messages",
                "messages_per_second",
                "seconds",
            ]
        );
        assert_eq!(object["bytes"], 10_240);
        assert_eq!(object["messages_per_second"], 5.0);
        let mut fields: Vec<_> = object["latency_us"]
            .as_object()
            .expect("an object")
            .keys()
            .collect();
        fields.sort();
        assert_eq!(fields, ["max", "p50", "p99", "p999"]);
    }

    #[test]
    fn nothing_in_no_time_is_no_division_by_zero() {
        let report = Report::new(&Counted::default(), 1, &Latencies::new());
        assert_eq!(report.messages_per_second, 0.0);
        assert_eq!(report.latency_us.max, 0.0);
    }
}
