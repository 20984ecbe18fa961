//! For tests: an embedded store whose answers follow a script.

use std::collections::VecDeque;
use std::sync::Arc;

use aquifer_runtime::clock::SystemClock;
use aquifer_runtime::disk::{Disk, SimDisk};
use aquifer_runtime::task::TaskGroup;
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::embedded::{EmbeddedOptions, EmbeddedStore};
use crate::error::{MetadataError, MetadataResult};
use crate::intercept::Intercept;
use crate::store::{
    Expect, MetadataStore, PageToken, Revision, ScanPage, Transaction, Until, Versioned,
};

/// What happens at a commit or a page of a scan instead of what should.
pub(crate) enum Turn {
    /// Nothing else.
    Fine,
    /// Another process writes a key first.
    Rival(String, &'static str),
    /// A commit is made, but its answer is never known.
    MadeUnknown,
    /// A commit is not made, and that is never known.
    LostUnknown,
    /// The store is away for this read, and for this many behind it.
    Away(u32),
}

/// The store. A turn of each script is used up by each call; later ones are fine.
pub(crate) struct ScriptedStore {
    inner: EmbeddedStore,
    commits: Mutex<VecDeque<Turn>>,
    pages: Mutex<VecDeque<Turn>>,
    away: Mutex<u32>,
}

impl ScriptedStore {
    pub(crate) async fn new(tasks: &TaskGroup) -> Arc<ScriptedStore> {
        let disk = SimDisk::new();
        disk.create_dir_all("/data".as_ref()).unwrap();
        let inner = EmbeddedStore::open(
            "/data/metadata.redb".into(),
            EmbeddedOptions::default(),
            disk.shared(),
            SystemClock::shared(),
            tasks,
        );
        Arc::new(ScriptedStore {
            inner: inner.await.unwrap(),
            commits: Mutex::default(),
            pages: Mutex::default(),
            away: Mutex::new(0),
        })
    }

    /// What the next commits meet.
    pub(crate) fn commits(&self, turns: impl IntoIterator<Item = Turn>) {
        self.commits.lock().extend(turns);
    }

    /// What the next pages of scans meet.
    pub(crate) fn pages(&self, turns: impl IntoIterator<Item = Turn>) {
        self.pages.lock().extend(turns);
    }

    pub(crate) async fn write(&self, key: &str, value: &'static str) -> Revision {
        let value = Bytes::from_static(value.as_bytes());
        self.inner.put("", key, value, Expect::Any).await.unwrap()
    }

    pub(crate) async fn text(&self, key: &str) -> Option<String> {
        let found = self.inner.get(key).await.unwrap()?;
        Some(String::from_utf8_lossy(&found.value).into_owned())
    }
}

fn next(turns: &Mutex<VecDeque<Turn>>) -> Turn {
    turns.lock().pop_front().unwrap_or(Turn::Fine)
}

fn unavailable<T>() -> MetadataResult<T> {
    Err(MetadataError::Unavailable("away".to_owned()))
}

#[async_trait]
impl Intercept for ScriptedStore {
    fn inner(&self) -> &dyn MetadataStore {
        &self.inner
    }

    async fn on_get(&self, key: &str) -> MetadataResult<Option<Versioned>> {
        {
            let mut away = self.away.lock();
            if *away > 0 {
                *away -= 1;
                return unavailable();
            }
        }
        self.inner.get(key).await
    }

    async fn on_scan(
        &self,
        prefix: &str,
        page: Option<PageToken>,
        limit: usize,
    ) -> MetadataResult<ScanPage> {
        match next(&self.pages) {
            Turn::Rival(key, value) => drop(self.write(&key, value).await),
            Turn::Fine => {}
            Turn::MadeUnknown | Turn::LostUnknown | Turn::Away(_) => return unavailable(),
        }
        self.inner.scan(prefix, page, limit).await
    }

    async fn on_commit(&self, transaction: Transaction, until: Until) -> MetadataResult<Revision> {
        let unknown = || Err(MetadataError::UnknownOutcome("no answer".to_owned()));
        match next(&self.commits) {
            Turn::Fine => {}
            Turn::Rival(key, value) => drop(self.write(&key, value).await),
            Turn::MadeUnknown => {
                self.inner.commit_until(transaction, until).await?;
                return unknown();
            }
            Turn::LostUnknown => return unknown(),
            Turn::Away(reads) => {
                *self.away.lock() = reads;
                return unknown();
            }
        }
        self.inner.commit_until(transaction, until).await
    }
}
