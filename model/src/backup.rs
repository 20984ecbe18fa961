//! What is said of backups: by the broker that captures and restores topics, and by the tool that
//! keeps the lists.

use std::fmt;

use crate::id::{BackupId, Index, LedgerId};
use crate::topic::TopicName;

/// What a backup has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum BackupScope {
    /// Everything.
    #[default]
    Cluster,
    /// A tenant.
    Tenant(String),
    /// A topic, with its partitions.
    Topic(TopicName),
}

impl BackupScope {
    /// The tenant and the topic as they are written down: at most one of them.
    #[must_use]
    pub fn texts(&self) -> (String, String) {
        match self {
            BackupScope::Cluster => (String::new(), String::new()),
            BackupScope::Tenant(tenant) => (tenant.clone(), String::new()),
            BackupScope::Topic(topic) => (String::new(), topic.to_string()),
        }
    }
}

impl fmt::Display for BackupScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BackupScope::Cluster => f.write_str("everything"),
            BackupScope::Tenant(tenant) => write!(f, "tenant {tenant}"),
            BackupScope::Topic(topic) => write!(f, "topic {topic}"),
        }
    }
}

/// A backup that has begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupBegun {
    /// Its id.
    pub id: BackupId,
    /// The cluster.
    pub cluster: String,
    /// The revision of metadata at which it began.
    pub start_revision: u64,
    /// The files with tenants, namespaces, policies, tokens and grants.
    pub lists: Vec<BackupFile>,
}

/// A backup that may be forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForgetBackup {
    /// Where the backups are.
    pub url: String,
    /// The backup; `None`: only say whose backups are there.
    pub backup: Option<BackupId>,
    /// Also one that is not finished.
    pub unfinished: bool,
}

/// Between which revisions of metadata a backup was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupRevisions {
    /// What died earlier, it does not name.
    pub start: u64,
    /// What came to be later, it does not name.
    pub end: u64,
}

/// A file of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupFile {
    /// Its name below the directory of the backup.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// CRC-64/NVME of its bytes.
    pub checksum: u64,
    /// SHA-256 of its bytes.
    pub sha256: [u8; 32],
}

/// What of a topic a backup has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BackupTotals {
    /// The first message.
    pub first: Index,
    /// The index after the last one.
    pub end: Index,
    /// Entries.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Ledgers, each in an object.
    pub ledgers: u64,
    /// The bytes of the objects.
    pub object_bytes: u64,
    /// The broker's time of the first message, in milliseconds since 1970.
    pub first_time_ms: u64,
    /// The broker's time of the last message, in milliseconds since 1970.
    pub last_time_ms: u64,
    /// The highest ledger; 0 without any.
    pub last_ledger: u64,
    /// Subscriptions.
    pub subscriptions: u64,
    /// When it was captured, in milliseconds since 1970.
    pub captured_ms: u64,
}

/// How far the capture of a topic is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TopicCapture {
    /// Where it ends.
    pub end: Index,
    /// Ledgers that are not in objects yet.
    pub ledgers_left: u64,
    /// Their bytes.
    pub bytes_left: u64,
    /// The files that were written by this request.
    pub files: Vec<BackupFile>,
    /// Subscriptions, in the first answer.
    pub subscriptions: u64,
    /// What it comes to; with it nothing is left.
    pub totals: Option<BackupTotals>,
    /// The numbers of the partitions of a partitioned topic, which are captured each by itself.
    pub partitions: Vec<u32>,
}

/// A topic that is to be brought back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreTopic {
    /// Where the backup is.
    pub url: String,
    /// The cluster that has written it.
    pub cluster: String,
    /// The backup.
    pub backup: BackupId,
    /// The topic.
    pub topic: TopicName,
    /// The name that it gets; `None`: its own. Under another name its entries are written again,
    /// into ledgers of this cluster.
    pub as_topic: Option<TopicName>,
    /// Its files.
    pub files: Vec<BackupFile>,
    /// The highest ledger of the whole backup.
    pub last_ledger: LedgerId,
    /// For how long nothing of it is deleted by policy; `None` as long as is usual.
    pub trim_after_ms: Option<u64>,
    /// Only write it down: its partitions come first.
    pub prepare: bool,
}

impl RestoreTopic {
    /// The name that the topic gets.
    #[must_use]
    pub fn target(&self) -> &TopicName {
        self.as_topic.as_ref().unwrap_or(&self.topic)
    }

    /// Whether it gets another name than it had.
    #[must_use]
    pub fn is_renamed(&self) -> bool {
        *self.target() != self.topic
    }
}

/// What became of a topic that was to be brought back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestoreOutcome {
    /// It is there.
    Restored,
    /// Another topic has the name; nothing was changed.
    Exists,
    /// It is written down, and cannot be seen yet.
    Prepared,
    /// The same backup has brought it back before; nothing was changed.
    Done,
    /// Entries were copied for a topic of another name, and more are left: ask again.
    Copying,
}

impl RestoreOutcome {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            RestoreOutcome::Restored => "restored",
            RestoreOutcome::Exists => "exists",
            RestoreOutcome::Prepared => "prepared",
            RestoreOutcome::Done => "done",
            RestoreOutcome::Copying => "copying",
        }
    }
}

/// The answer about a topic that was to be brought back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// What became of it.
    pub outcome: RestoreOutcome,
    /// What the backup has of it.
    pub totals: BackupTotals,
}

/// The tokens and grants of a backup that are to be brought back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreAccess {
    /// Where the backup is.
    pub url: String,
    /// The cluster that has written it.
    pub cluster: String,
    /// The backup.
    pub backup: BackupId,
    /// The files that have them.
    pub files: Vec<BackupFile>,
    /// Only those of this tenant.
    pub tenant: Option<String>,
}

/// What became of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RestoredAccess {
    /// Revocations of JSON Web Tokens that are back.
    pub revocations: u64,
    /// Tokens that are back.
    pub tokens: u64,
    /// Grants and roles that are back.
    pub grants: u64,
    /// Those in whose place something is here, which stays.
    pub kept: u64,
    /// Those that the caller may not give, whose tenant is missing, or that are not understood.
    pub refused: u64,
}
