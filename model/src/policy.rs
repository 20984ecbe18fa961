//! Policies of a namespace; a topic inherits them.

use crate::quorum::Quorum;

/// Seven days: long enough that a first-time user's `read` after `consume` is not empty.
pub const DEFAULT_RETENTION_MS: u64 = 7 * 24 * 3600 * 1000;

/// How long what every subscription has acknowledged is still kept. A segment goes only when it
/// is beyond both bounds.
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

/// How much of something is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// All of it.
    Unbounded,
    /// So many bytes, or milliseconds.
    Limit(u64),
}

impl Bound {
    /// The limit, if there is one.
    #[must_use]
    pub fn limit(self) -> Option<u64> {
        match self {
            Bound::Unbounded => None,
            Bound::Limit(limit) => Some(limit),
        }
    }
}

impl From<Option<u64>> for Bound {
    fn from(limit: Option<u64>) -> Bound {
        limit.map_or(Bound::Unbounded, Bound::Limit)
    }
}

/// What is to change of a namespace's policies: what is absent stays. Whoever changes a policy sends
/// this and never all of them, so that of two changes at once none is lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PolicyChanges {
    /// Replication of new ledgers.
    pub quorum: Option<Quorum>,
    /// Least time that is kept, in ms.
    pub retention_ms: Option<Bound>,
    /// Newest bytes that are kept.
    pub retention_bytes: Option<Bound>,
    /// Bytes at which a ledger is closed.
    pub rollover_bytes: Option<u64>,
    /// Age in ms at which a ledger is closed.
    pub rollover_ms: Option<u64>,
    /// Entries at which a ledger is closed.
    pub rollover_entries: Option<u64>,
    /// Whether what a producer sends again is stored once.
    pub deduplication: Option<bool>,
    /// Whether topics are created when they are first used.
    pub auto_create_topics: Option<bool>,
}

impl PolicyChanges {
    /// The policies with the changes made.
    #[must_use]
    pub fn apply(&self, to: NamespacePolicies) -> NamespacePolicies {
        NamespacePolicies {
            quorum: self.quorum.unwrap_or(to.quorum),
            retention: Retention {
                time_ms: self.retention_ms.map_or(to.retention.time_ms, Bound::limit),
                size_bytes: self
                    .retention_bytes
                    .map_or(to.retention.size_bytes, Bound::limit),
            },
            rollover: Rollover {
                size_bytes: self.rollover_bytes.unwrap_or(to.rollover.size_bytes),
                age_ms: self.rollover_ms.unwrap_or(to.rollover.age_ms),
                entries: self.rollover_entries.unwrap_or(to.rollover.entries),
            },
            deduplication: self.deduplication.unwrap_or(to.deduplication),
            auto_create_topics: self.auto_create_topics.unwrap_or(to.auto_create_topics),
        }
    }

    /// Whether nothing is to change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == PolicyChanges::default()
    }
}

/// All of them are to be so.
impl From<NamespacePolicies> for PolicyChanges {
    fn from(policies: NamespacePolicies) -> PolicyChanges {
        PolicyChanges {
            quorum: Some(policies.quorum),
            retention_ms: Some(policies.retention.time_ms.into()),
            retention_bytes: Some(policies.retention.size_bytes.into()),
            rollover_bytes: Some(policies.rollover.size_bytes),
            rollover_ms: Some(policies.rollover.age_ms),
            rollover_entries: Some(policies.rollover.entries),
            deduplication: Some(policies.deduplication),
            auto_create_topics: Some(policies.auto_create_topics),
        }
    }
}
