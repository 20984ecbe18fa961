//! Rates: how many messages and bytes may pass in a second.

/// How much may have gathered unused where a rate does not say it: what passes in a second.
pub const DEFAULT_BURST_MS: u64 = 1_000;

/// Most messages and bytes in a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Messages in a second; `None`: unlimited.
    pub messages: Option<u64>,
    /// Bytes of bodies in a second; `None`: unlimited.
    pub bytes: Option<u64>,
    /// What may gather while nothing passes, as the time in which the rate gives it, in ms.
    pub burst_ms: u64,
}

impl Rate {
    /// No limit.
    pub const UNLIMITED: Rate = Rate {
        messages: None,
        bytes: None,
        burst_ms: DEFAULT_BURST_MS,
    };

    /// Whether nothing is limited.
    #[must_use]
    pub const fn is_unlimited(&self) -> bool {
        self.messages.is_none() && self.bytes.is_none()
    }

    /// The lower of two limits, for messages and bytes each.
    #[must_use]
    pub fn lowest(self, other: Rate) -> Rate {
        let burst_ms = match (self.is_unlimited(), other.is_unlimited()) {
            (true, false) => other.burst_ms,
            (false, true) => self.burst_ms,
            _ => self.burst_ms.min(other.burst_ms),
        };
        Rate {
            messages: lowest(self.messages, other.messages),
            bytes: lowest(self.bytes, other.bytes),
            burst_ms,
        }
    }

    /// Millionths of it. Something is left of what is not 0.
    #[must_use]
    pub fn share(self, millionths: u32) -> Rate {
        let share = |limit: u64| match limit {
            0 => 0,
            limit => {
                let part = u128::from(limit) * u128::from(millionths) / 1_000_000;
                u64::try_from(part).unwrap_or(u64::MAX).max(1)
            }
        };
        Rate {
            messages: self.messages.map(share),
            bytes: self.bytes.map(share),
            burst_ms: self.burst_ms,
        }
    }
}

impl Default for Rate {
    fn default() -> Rate {
        Rate::UNLIMITED
    }
}

/// Most that may pass in a second through all topics of a tenant or a namespace together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AggregateRate {
    /// Published.
    pub publish: Rate,
    /// Delivered.
    pub dispatch: Rate,
}

impl AggregateRate {
    /// The lower of two limits, each number for itself.
    #[must_use]
    pub fn lowest(self, other: AggregateRate) -> AggregateRate {
        AggregateRate {
            publish: self.publish.lowest(other.publish),
            dispatch: self.dispatch.lowest(other.dispatch),
        }
    }
}

/// The lower of two bounds; `None` does not bound.
#[must_use]
pub(super) fn lowest(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_little_is_not_nothing() {
        let rate = Rate {
            messages: Some(2),
            bytes: Some(0),
            ..Rate::UNLIMITED
        };
        let share = rate.share(333_333);
        assert_eq!((share.messages, share.bytes), (Some(1), Some(0)));
        assert_eq!(rate.share(1_000_000), rate);
        assert_eq!(Rate::UNLIMITED.share(3), Rate::UNLIMITED);
    }

    #[test]
    fn the_lower_limit_has_its_own_burst() {
        let rate = Rate {
            messages: Some(2),
            bytes: None,
            burst_ms: 5_000,
        };
        assert_eq!(rate.lowest(Rate::UNLIMITED), rate);
        assert_eq!(Rate::UNLIMITED.lowest(rate), rate);
    }
}
