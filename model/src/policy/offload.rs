//! When closed ledgers go into objects, and how long bookies keep copies of them.

use crate::policy::Retention;

/// What retention deletes within this time is not offloaded any more, nor what it deletes within
/// the lag.
const SOON_MS: u64 = 3_600_000;
/// A ledger is late when it is not offloaded at this many times its age or its bytes.
const LATE_FACTOR: u64 = 4;
/// Ages below this count as this much for that: an attempt takes its time.
const LATE_AGE_MS_MIN: u64 = 60_000;

/// Whether blocks of objects are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum OffloadCompression {
    /// None is.
    #[default]
    None,
    /// Where it saves something.
    Auto,
}

impl OffloadCompression {
    /// Every value.
    pub const ALL: [OffloadCompression; 2] = [OffloadCompression::None, OffloadCompression::Auto];

    /// Its name for people and scripts.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            OffloadCompression::None => "none",
            OffloadCompression::Auto => "auto",
        }
    }
}

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffloadPolicy {
    /// Whether ledgers are offloaded without a command.
    pub enabled: bool,
    /// A closed ledger is due when its last entry is older, in ms; `None`: not by age.
    pub age_ms: Option<u64>,
    /// A closed ledger is due when the topic has more newer bytes; `None`: not by size.
    pub bytes: Option<u64>,
    /// How long copies at bookies stay after the object was verified, in ms.
    pub lag_ms: u64,
    /// Whether blocks are compressed.
    pub compression: OffloadCompression,
}

impl Default for OffloadPolicy {
    fn default() -> OffloadPolicy {
        OffloadPolicy {
            enabled: true,
            age_ms: None,
            bytes: None,
            lag_ms: 3_600_000,
            compression: OffloadCompression::None,
        }
    }
}

impl OffloadPolicy {
    /// Whether any ledger becomes due without a command.
    #[must_use]
    pub const fn is_active(&self) -> bool {
        self.enabled && (self.age_ms.is_some() || self.bytes.is_some())
    }

    /// Whether a closed ledger is due whose last entry is of `last_time_ms`, when the topic has
    /// this many newer bytes.
    #[must_use]
    pub fn is_due(&self, last_time_ms: u64, newer_bytes: u64, now_ms: u64) -> bool {
        let is_old = |age_ms| last_time_ms.saturating_add(age_ms) <= now_ms;
        let is_behind = |bytes| newer_bytes > bytes;
        self.enabled && (self.age_ms.is_some_and(is_old) || self.bytes.is_some_and(is_behind))
    }

    /// Whether it was to be offloaded long ago.
    #[must_use]
    pub fn is_late(&self, last_time_ms: u64, newer_bytes: u64, now_ms: u64) -> bool {
        let late = OffloadPolicy {
            age_ms: self
                .age_ms
                .map(|ms| ms.max(LATE_AGE_MS_MIN).saturating_mul(LATE_FACTOR)),
            bytes: self.bytes.map(|bytes| bytes.saturating_mul(LATE_FACTOR)),
            ..*self
        };
        late.is_due(last_time_ms, newer_bytes, now_ms)
    }

    /// Whether retention deletes it so soon that an object of it is not worth writing.
    #[must_use]
    pub fn goes_soon(
        &self,
        retention: &Retention,
        last_time_ms: u64,
        newer_bytes: u64,
        now_ms: u64,
    ) -> bool {
        let then = now_ms.saturating_add(self.lag_ms.max(SOON_MS));
        retention.lets_go(last_time_ms, newer_bytes, then)
    }

    /// Whether the lag is over of an object that was verified at `stored_ms`.
    #[must_use]
    pub fn lag_is_over(&self, stored_ms: u64, now_ms: u64) -> bool {
        stored_ms.saturating_add(self.lag_ms) <= now_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    #[test]
    fn age_and_bytes_are_each_a_reason() {
        let policy = OffloadPolicy {
            age_ms: Some(HOUR),
            bytes: Some(1000),
            ..OffloadPolicy::default()
        };
        assert!(!policy.is_due(10, 1000, HOUR + 9));
        assert!(policy.is_due(10, 0, HOUR + 10));
        assert!(policy.is_due(10, 1001, 10));
        assert!(!policy.is_late(10, 4000, 4 * HOUR + 9));
        assert!(policy.is_late(10, 4001, 10) && policy.is_late(10, 0, 4 * HOUR + 10));
        let off = OffloadPolicy {
            enabled: false,
            ..policy
        };
        assert!(!off.is_due(0, u64::MAX, u64::MAX) && !off.is_active());
        let never = OffloadPolicy::default();
        assert!(!never.is_due(0, u64::MAX, u64::MAX) && !never.is_active());
    }

    #[test]
    fn what_retention_deletes_soon_is_not_worth_an_object() {
        let retention = Retention {
            time_ms: Some(24 * HOUR),
            size_bytes: Some(0),
        };
        let goes_soon = |lag_ms, now_ms| {
            let policy = OffloadPolicy {
                lag_ms,
                ..OffloadPolicy::default()
            };
            policy.goes_soon(&retention, 0, 0, now_ms)
        };
        assert!(!goes_soon(0, 23 * HOUR - 1) && goes_soon(0, 23 * HOUR));
        assert!(!goes_soon(5 * HOUR, 19 * HOUR - 1) && goes_soon(5 * HOUR, 19 * HOUR));
    }
}
