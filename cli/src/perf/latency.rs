//! Latency histograms: nanoseconds in, microseconds out, three significant digits.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::perf::round;

const HIGHEST: Duration = Duration::from_secs(600);

/// Latencies of one load.
#[derive(Debug, Clone)]
pub struct Latencies {
    nanos: Histogram<u64>,
}

/// The contract's percentiles, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LatencySummary {
    /// Median.
    pub p50: f64,
    /// One in a hundred is slower.
    pub p99: f64,
    /// One in a thousand is slower.
    pub p999: f64,
    /// The slowest.
    pub max: f64,
}

impl Latencies {
    /// None yet.
    pub fn new() -> Latencies {
        // It grows with what is recorded, so that a thousand of them stay small.
        Latencies {
            nanos: Histogram::new(3).expect("three digits are a valid precision"),
        }
    }

    /// One more; what is beyond ten minutes counts as ten minutes.
    pub fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.min(HIGHEST).as_nanos()).unwrap_or(u64::MAX);
        let recorded = self.nanos.record(nanos);
        assert!(recorded.is_ok(), "a histogram that grows takes everything");
    }

    /// Adds those of another part of the load.
    pub fn add(&mut self, other: &Latencies) {
        let added = self.nanos.add(&other.nanos);
        assert!(added.is_ok(), "a histogram that grows takes everything");
    }

    /// A percentile in microseconds.
    pub fn percentile_us(&self, percentile: f64) -> f64 {
        if self.nanos.is_empty() {
            return 0.0;
        }
        to_us(self.nanos.value_at_percentile(percentile))
    }

    /// What is reported.
    pub fn summary(&self) -> LatencySummary {
        LatencySummary {
            p50: self.percentile_us(50.0),
            p99: self.percentile_us(99.0),
            p999: self.percentile_us(99.9),
            max: if self.nanos.is_empty() {
                0.0
            } else {
                to_us(self.nanos.max())
            },
        }
    }
}

fn to_us(nanos: u64) -> f64 {
    round(nanos as f64 / 1e3, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_come_out_in_microseconds() {
        let mut latencies = Latencies::new();
        for us in 1..=1000 {
            latencies.record(Duration::from_micros(us));
        }
        let summary = latencies.summary();
        assert!((495.0..=505.0).contains(&summary.p50), "{summary:?}");
        assert!((985.0..=995.0).contains(&summary.p99), "{summary:?}");
        assert!((998.0..=1001.0).contains(&summary.max), "{summary:?}");
    }

    #[test]
    fn parts_add_up_and_the_absurd_is_bounded() {
        let mut one = Latencies::new();
        let mut two = Latencies::new();
        one.record(Duration::from_micros(10));
        two.record(Duration::from_secs(1_000_000));
        one.add(&two);
        assert!(one.summary().max <= 601.0 * 1e6);
        assert!(one.summary().p50 <= 10.1);
    }
}
