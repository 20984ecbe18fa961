//! The store's contract. `contract.rs` tests it for every implementation.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::MetadataResult;

/// A point in the store's history; every committed change has a larger one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub u64);

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Bytes,
    /// When the value was written.
    pub revision: Revision,
}

/// What a key must be for a change to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Anything.
    Any,
    /// It must not exist.
    Absent,
    /// It must have been written last at this revision.
    Revision(Revision),
}

/// One change of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Writes a value.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Bytes,
        /// What the key must be.
        expect: Expect,
    },
    /// Removes a key; without effect if it does not exist and `expect` allows that.
    Delete {
        /// The key.
        key: String,
        /// What the key must be.
        expect: Expect,
    },
}

impl Operation {
    /// The key that it changes.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Operation::Put { key, .. } | Operation::Delete { key, .. } => key,
        }
    }

    /// What the key must be.
    #[must_use]
    pub fn expect(&self) -> Expect {
        match self {
            Operation::Put { expect, .. } | Operation::Delete { expect, .. } => *expect,
        }
    }
}

/// A key that must be as expected but is not changed: how a caller pins its ownership epoch
/// without this crate or `ledger` knowing of brokers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// The key.
    pub key: String,
    /// What it must be.
    pub expect: Expect,
}

/// Changes that happen together or not at all. All keys belong to one partition
/// (`keys::partition_of`), so that the store may be sharded by it one day; ledger keys and
/// intents go with the partition of the topic that owns them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transaction {
    /// The partition, `tenant/namespace`, or empty for cluster-wide keys.
    pub partition: String,
    /// Keys that must be as expected.
    pub guards: Vec<Guard>,
    /// The changes, each key at most once.
    pub operations: Vec<Operation>,
}

/// A page of a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanPage {
    /// Keys in order.
    pub items: Vec<Versioned>,
    /// Pass to the following call; `None` at the end.
    pub next: Option<PageToken>,
    /// The revision of the snapshot; a watch from here misses nothing.
    pub revision: Revision,
}

/// Where a scan continues: after this key, in the snapshot of this revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageToken {
    /// The last key of the page before.
    pub after: String,
    /// The snapshot's revision. Where a store cannot serve it any more the scan fails with
    /// `Unavailable` and is begun again: pages of different states are never mixed.
    pub revision: Revision,
}

/// What a watch reports, in order of revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// A value was written.
    Put(Versioned),
    /// A key was removed.
    Delete {
        /// The key.
        key: String,
        /// When.
        revision: Revision,
    },
    /// Events were missed (history compacted): scan again, then go on from that scan's revision
    /// with a new watch. This is the last event.
    Resync,
}

/// A stream of changes under a prefix.
#[async_trait]
pub trait Watch: Send {
    /// The next event; waits for it. `None` when the store is closed.
    async fn next(&mut self) -> Option<WatchEvent>;
}

/// A lease with the keys that vanish with it. One per process.
#[async_trait]
pub trait Session: Send + Sync {
    /// Writes a key that vanishes when the session expires or is closed.
    async fn put(&self, key: &str, value: Bytes, expect: Expect) -> MetadataResult<Revision>;
    /// How long the session is certainly alive, counted from when the last successful renewal was
    /// sent; zero once it may have expired.
    fn remaining(&self) -> Duration;
    /// Waits until the session is lost.
    async fn lost(&self);
    /// Ends the session and removes its keys.
    async fn close(&self) -> MetadataResult<()>;
}

/// For how long a commit asks for its outcome once an answer was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// For as long as any request takes at most.
    Deadline,
    /// Until the store has told it, however long the store is away: for callers that cannot go on
    /// without it. What was certainly not applied still fails at the deadline of a request.
    Known,
}

/// How much of its room a store uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// What is stored, history included.
    pub used_bytes: u64,
    /// With more than this the store takes no change at all.
    pub quota_bytes: u64,
    /// Whether it takes none now.
    pub refuses: bool,
}

/// What there is room for. Everything that removes keys, or is needed to read what is stored, has
/// room until the store itself takes no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FreeSpace {
    /// Whatever comes.
    Enough,
    /// Nothing that can wait, or that can be done without; and why.
    Low(String),
    /// Nothing new at all; and why.
    Full(String),
}

/// With this share of the quota used, nothing new is begun that can wait.
const LOW_PERCENT: u64 = 80;
/// With this share of it used, nothing new is begun.
const FULL_PERCENT: u64 = 90;

impl Usage {
    /// What there is room for.
    #[must_use]
    pub fn free_space(&self) -> FreeSpace {
        const MIB: u64 = 1 << 20;
        let percent = self.used_bytes.saturating_mul(100) / self.quota_bytes.max(1);
        let text = || {
            format!(
                "{} of {} MiB are used: compact and defragment etcd, or raise its quota \
                 (--quota-backend-bytes)",
                self.used_bytes / MIB,
                self.quota_bytes / MIB
            )
        };
        match percent {
            _ if self.refuses => FreeSpace::Full(text()),
            0..LOW_PERCENT => FreeSpace::Enough,
            LOW_PERCENT..FULL_PERCENT => FreeSpace::Low(text()),
            _ => FreeSpace::Full(text()),
        }
    }
}

/// A versioned key-value store. Implementations: `embedded`, `etcd`.
#[async_trait]
pub trait MetadataStore: Send + Sync + 'static {
    /// Reads a key, linearizably.
    async fn get(&self, key: &str) -> MetadataResult<Option<Versioned>>;

    /// Reads the keys that begin with `prefix`, in order, `limit` at most, all pages at the
    /// revision of the first.
    async fn scan(
        &self,
        prefix: &str,
        page: Option<PageToken>,
        limit: usize,
    ) -> MetadataResult<ScanPage>;

    /// Makes all changes, durably, or none.
    ///
    /// # Errors
    /// `Conflict` names the first key that was not as expected. `UnknownOutcome` means that the
    /// caller must read back before it goes on; with [`Until::Known`] it says that the store itself
    /// can never tell any more.
    async fn commit_until(
        &self,
        transaction: Transaction,
        until: Until,
    ) -> MetadataResult<Revision>;

    /// [`MetadataStore::commit_until`] the deadline of a request.
    async fn commit(&self, transaction: Transaction) -> MetadataResult<Revision> {
        self.commit_until(transaction, Until::Deadline).await
    }

    /// How much of its room it uses, as of a moment ago; `None` where there is no bound, or none is
    /// known.
    fn usage(&self) -> Option<Usage> {
        None
    }

    /// Watches the keys that begin with `prefix` for changes after `after`.
    async fn watch(&self, prefix: &str, after: Revision) -> MetadataResult<Box<dyn Watch>>;

    /// Opens a session that lives until it is not renewed for `ttl`; the store renews it.
    async fn open_session(&self, ttl: Duration) -> MetadataResult<Box<dyn Session>>;

    /// Writes one key.
    async fn put(
        &self,
        partition: &str,
        key: &str,
        value: Bytes,
        expect: Expect,
    ) -> MetadataResult<Revision> {
        let operation = Operation::Put {
            key: key.to_owned(),
            value,
            expect,
        };
        self.commit(Transaction {
            partition: partition.to_owned(),
            guards: Vec::new(),
            operations: vec![operation],
        })
        .await
    }
}
