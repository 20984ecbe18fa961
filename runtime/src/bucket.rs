//! Token buckets with debt: what bounds a rate.
//!
//! A bucket gathers tokens at its rate, up to its burst. What wants to pass waits until there are
//! some, and then takes as many as it is large, more than there are if need be: the bucket is in
//! debt until its rate has paid that. So a batch larger than the burst passes, and is paid for
//! afterwards. Over any time W at most `rate * W + burst` and one batch pass.
//!
//! A bucket is advanced when it is looked at; it has no timer, and counts fractions of tokens.

use std::time::Duration;

/// Parts of a token: one nanosecond at one token a second.
const PARTS: i128 = 1_000_000_000;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// Tokens in a second.
    rate: u64,
    /// Most that gather.
    burst: i128,
    /// Parts of tokens; below 0: debt.
    parts: i128,
    /// As of when, on the monotonic clock.
    at: Duration,
}

impl Bucket {
    /// A full bucket of `rate` tokens a second, which gathers what comes in the time of `burst`.
    #[must_use]
    pub fn new(rate: u64, burst: Duration, now: Duration) -> Bucket {
        let burst = burst_of(rate, burst);
        Bucket {
            rate,
            burst,
            parts: burst,
            at: now,
        }
    }

    /// Changes the rate from now on. Tokens stay as far as the new burst has room for them, and so
    /// does debt.
    pub fn change(&mut self, rate: u64, burst: Duration, now: Duration) {
        self.advance(now);
        self.rate = rate;
        self.burst = burst_of(rate, burst);
        self.parts = self.parts.min(self.burst);
    }

    /// How long until something may pass: zero when it may now. A clock that goes back changes
    /// nothing.
    pub fn wait(&mut self, now: Duration) -> Duration {
        self.advance(now);
        if self.parts > 0 {
            return Duration::ZERO;
        }
        if self.rate == 0 {
            return Duration::MAX;
        }
        let rate = i128::from(self.rate);
        // Up, to where there is more than nothing.
        let nanos = (-self.parts) / rate + 1;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Whole tokens that are there, as of when it was last looked at.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        u64::try_from(self.parts.max(0) / PARTS).unwrap_or(u64::MAX)
    }

    /// Takes as many as something is large that may pass.
    pub fn take(&mut self, tokens: u64) {
        self.parts = self.parts.saturating_sub(i128::from(tokens) * PARTS);
    }

    /// Puts tokens back that were taken and not used, as far as the burst has room for them.
    pub fn put_back(&mut self, tokens: u64) {
        let parts = i128::from(tokens) * PARTS;
        self.parts = self.parts.saturating_add(parts).min(self.burst);
    }

    /// Whether nothing more gathers: one that is made now is the same.
    pub fn is_full(&mut self, now: Duration) -> bool {
        self.advance(now);
        self.parts >= self.burst
    }

    fn advance(&mut self, now: Duration) {
        let Some(passed) = now.checked_sub(self.at) else {
            return;
        };
        self.at = now;
        let nanos = i128::try_from(passed.as_nanos()).unwrap_or(i128::MAX);
        let came = i128::from(self.rate).saturating_mul(nanos);
        self.parts = self.parts.saturating_add(came).min(self.burst);
    }
}

/// What a rate gives in a time, in parts of tokens; a whole token at least, or nothing would ever
/// pass.
fn burst_of(rate: u64, burst: Duration) -> i128 {
    let nanos = i128::try_from(burst.as_nanos()).unwrap_or(i128::MAX);
    let burst = i128::from(rate).saturating_mul(nanos);
    match rate {
        0 => 0,
        _ => burst.max(PARTS),
    }
}

#[cfg(test)]
mod tests;
