//! What measurements share: arguments with defaults, and percentiles of what they saw.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, anyhow};
use serde_json::{Value, json};

/// The argument of this process at a place, counted from 0, or its default.
///
/// # Errors
/// When it is there and cannot be read.
pub fn argument<T: FromStr>(at: usize, default: T) -> Result<T>
where
    T::Err: Display,
{
    match std::env::args().nth(at + 1) {
        Some(text) => text
            .parse()
            .map_err(|error| anyhow!("argument {text}: {error}")),
        None => Ok(default),
    }
}

/// The value that this many of a thousand do not exceed; zero without values.
pub fn percentile(of: &mut [Duration], per_mille: usize) -> Duration {
    of.sort_unstable();
    let at = (of.len() * per_mille / 1_000).min(of.len().saturating_sub(1));
    of.get(at).copied().unwrap_or_default()
}

/// The usual percentiles in milliseconds, to a hundredth.
pub fn percentiles(of: &mut [Duration]) -> Value {
    let mut at = |per_mille| rounded(percentile(of, per_mille).as_secs_f64() * 1_000.0);
    let (p50, p99, p999, max) = (at(500), at(990), at(999), at(1_000));
    json!({"count": of.len(), "p50": p50, "p99": p99, "p999": p999, "max": max})
}

/// To a hundredth.
#[must_use]
pub fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_there_is() {
        let mut all: Vec<Duration> = (1..=200).rev().map(Duration::from_millis).collect();
        let found = percentiles(&mut all);
        let expected =
            json!({"count": 200, "p50": 101.0, "p99": 199.0, "p999": 200.0, "max": 200.0});
        assert_eq!(found, expected);
        assert_eq!(percentile(&mut [], 500), Duration::ZERO);
    }
}
