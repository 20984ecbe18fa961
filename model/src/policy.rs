//! Policies of a namespace; a topic inherits them.

use crate::quorum::Quorum;

/// Seven days: long enough that a first-time user's `read` after `consume` is not empty.
pub const DEFAULT_RETENTION_MS: u64 = 7 * 24 * 3600 * 1000;

/// How long what every subscription has acknowledged is still kept. A segment goes only when it
/// is beyond both bounds (reference.md B1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Keep at least this long, in ms; `None` keeps for ever.
    pub time_ms: Option<u64>,
    /// Keep at least this many of the newest bytes; `None` keeps everything.
    pub size_bytes: Option<u64>,
}

impl Retention {
    /// Whether a segment may go whose last message is of `last_time_ms`, when so many newer bytes are
    /// kept.
    #[must_use]
    pub fn lets_go(&self, last_time_ms: u64, kept_bytes: u64, now_ms: u64) -> bool {
        let (Some(time_ms), Some(size_bytes)) = (self.time_ms, self.size_bytes) else {
            return false;
        };
        last_time_ms.saturating_add(time_ms) <= now_ms && kept_bytes >= size_bytes
    }
}

impl Default for Retention {
    fn default() -> Retention {
        Retention {
            time_ms: Some(DEFAULT_RETENTION_MS),
            size_bytes: Some(0),
        }
    }
}

/// When a topic log closes its ledger and begins the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rollover {
    /// At this many bytes.
    pub size_bytes: u64,
    /// At this age in ms, if it holds anything.
    pub age_ms: u64,
    /// At this many entries.
    pub entries: u64,
}

impl Default for Rollover {
    fn default() -> Rollover {
        Rollover {
            size_bytes: 1024 * 1024 * 1024,
            age_ms: 4 * 3600 * 1000,
            entries: 1_000_000,
        }
    }
}

/// Everything a namespace says about its topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamespacePolicies {
    /// Replication of new ledgers.
    pub quorum: Quorum,
    /// What trimming keeps.
    pub retention: Retention,
    /// When ledgers are closed.
    pub rollover: Rollover,
    /// Store each (producer name, sequence id) at most once (I8).
    pub deduplication: bool,
    /// Create a topic when it is first produced to or consumed from.
    pub auto_create_topics: bool,
}

impl Default for NamespacePolicies {
    fn default() -> NamespacePolicies {
        NamespacePolicies {
            quorum: Quorum::SINGLE,
            retention: Retention::default(),
            rollover: Rollover::default(),
            deduplication: true,
            auto_create_topics: true,
        }
    }
}
