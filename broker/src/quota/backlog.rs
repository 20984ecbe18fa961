//! The quota of a topic's backlog: whether it is exceeded, for those who publish.

use std::sync::atomic::{AtomicBool, Ordering};

use aquifer_model::policy::bounds::BacklogAction;
use parking_lot::Mutex;

use crate::error::BrokerError;

/// By how much a backlog exceeds its quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Excess {
    pub(crate) what: Measure,
    pub(crate) used: u64,
    pub(crate) max: u64,
    pub(crate) action: BacklogAction,
}

/// What of a backlog is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    /// Stored bytes.
    Bytes,
    /// Age of the first message in ms.
    AgeMs,
}

/// Why old messages are looked for.
pub(crate) enum Search {
    /// They are acknowledged by this policy.
    Expire(&'static str),
    /// Producers are stopped when a subscription has them.
    Stop(Excess),
}

impl Excess {
    /// What a producer is told whose message is refused.
    pub(crate) fn refusal(&self, topic: &str) -> BrokerError {
        let (limit, backlog) = match self.what {
            Measure::Bytes => (
                "backlogQuota.bytes",
                format!("{} bytes of at most {}", self.used, self.max),
            ),
            Measure::AgeMs => (
                "backlogQuota.age",
                format!("messages that are older than {} ms", self.max),
            ),
        };
        BrokerError::BacklogQuota {
            limit,
            topic: topic.to_owned(),
            backlog,
        }
    }
}

/// What the owner of a topic has found, for those who publish.
#[derive(Debug, Default)]
pub(super) struct OverQuota {
    is_over: AtomicBool,
    excess: Mutex<Option<Excess>>,
}

impl OverQuota {
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    pub(super) fn get(&self) -> Option<Excess> {
        match self.is_over() {
            true => *self.excess.lock(),
            false => None,
        }
    }

    /// Answers whether it is exceeded now and was not before, or the other way round.
    pub(super) fn set(&self, excess: Option<Excess>) -> bool {
        *self.excess.lock() = excess;
        let before = self.is_over.swap(excess.is_some(), Ordering::AcqRel);
        before != excess.is_some()
    }
}
