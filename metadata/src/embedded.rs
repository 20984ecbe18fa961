//! The store of a single process: durable, in one file, without any service beside it.
//!
//! It owns the file; the caller holds the lock of the data directory, so that no second process
//! opens it. Invariants:
//! - One thread changes the file. Transactions that wait are committed together and share the
//!   sync; each has its own revision, and none is answered before it is durable.
//! - What a read returns is durable. When the outcome of a commit is not known, reads fail until
//!   the file was opened again and the outcome is resolved.
//! - A session is lost before its keys vanish, and no key of a session survives a restart.
//! - A damaged file is an error of kind `Damaged`, never a panic, and never another value.
//!
//! Nothing here blocks the async runtime: calls into the file run on the store's thread or on
//! blocking threads.

mod engine;
mod file;
mod history;
mod options;
mod reads;
mod rows;
mod sessions;
mod shared;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aquifer_model::limits::METADATA_PAGE_KEYS_MAX;
use aquifer_runtime::clock::SharedClock;
use aquifer_runtime::disk::SharedDisk;
use aquifer_runtime::task::{TaskGroup, spawn_vital_thread};
use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::error::{MetadataError, MetadataResult};
use crate::limits;
use crate::store::{
    MetadataStore, PageToken, Revision, ScanPage, Session, Transaction, Until, Versioned, Watch,
};
use engine::Engine;
use history::History;
pub use options::EmbeddedOptions;
use reads::Snapshots;
use sessions::{EmbeddedSession, Sessions};
use shared::{Request, Shared, Work};

/// Transactions that may wait for the store's thread; later callers wait for room.
const QUEUED_MAX: usize = 1_024;

/// A metadata store in one file of this process.
#[derive(Debug)]
pub struct EmbeddedStore {
    shared: Arc<Shared>,
}

impl EmbeddedStore {
    /// Opens the file, or creates it in an existing directory. A store that was open before must
    /// have been closed by [`Self::close`]: dropping it closes the file a little later. Keys that
    /// sessions of an earlier process left behind are removed first.
    ///
    /// # Errors
    /// `Damaged` when the file is not what this store wrote; `Unavailable` when it cannot be
    /// read or written, or is open already.
    pub async fn open(
        path: PathBuf,
        options: EmbeddedOptions,
        disk: SharedDisk,
        clock: SharedClock,
        tasks: &TaskGroup,
    ) -> MetadataResult<EmbeddedStore> {
        let (requests, queue) = mpsc::channel(QUEUED_MAX);
        let opening = options.clone();
        let opened = blocking(move || {
            let file = file::StoreFile::lock(path, options, disk)?;
            let (database, revision) = file.open()?;
            Ok((file, database, revision))
        });
        let (file, database, revision) = opened.await?;
        let history = History::new(opening.history_events, opening.history_bytes, revision);
        let shared = Arc::new(Shared {
            database: RwLock::new(Some(database)),
            snapshots: Mutex::new(Snapshots::new(opening.scan_idle_max)),
            history: Arc::new(history),
            sessions: Sessions::default(),
            clock,
            requests,
            closed: CancellationToken::new(),
        });
        // The thread must not keep the queue open by a sender of its own: it holds the parts.
        let engine = Engine::new(Arc::clone(&shared), file, revision);
        let group = tasks.clone();
        // Its queue is gone with the thread: nothing that needs metadata goes on.
        let on_panic = move |why: &str| group.fail(why);
        spawn_vital_thread("aquifer-metadata", move || engine.run(queue), on_panic)
            .map_err(|error| MetadataError::Unavailable(format!("no thread: {error}")))?;
        // The task needs no handle: it ends when the store is closed.
        drop(tasks.spawn(
            "metadata-sessions",
            sessions::keep(Arc::clone(&shared), tasks.shutdown_token()),
        ));
        Ok(EmbeddedStore { shared })
    }

    /// Finishes what is queued and closes the file. Sessions are lost, watches end, and whatever
    /// is asked later is `Unavailable`.
    pub async fn close(&self) {
        // A failure means that the thread has ended already.
        let _ = self.shared.ask(Work::Close).await;
    }

    /// How many changes a watch may still resume from; for tests and metrics.
    #[must_use]
    pub fn history_len(&self) -> usize {
        self.shared.history.len()
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.shared.closed.cancel();
        // A full queue is not waited for: the thread sees the token after its next batch.
        let (reply, _) = oneshot::channel();
        let close = Request {
            work: Work::Close,
            reply,
        };
        let _ = self.shared.requests.try_send(close);
    }
}

#[async_trait]
impl MetadataStore for EmbeddedStore {
    async fn get(&self, key: &str) -> MetadataResult<Option<Versioned>> {
        let (shared, key) = (Arc::clone(&self.shared), key.to_owned());
        blocking(move || reads::get(&shared, &key)).await
    }

    async fn scan(
        &self,
        prefix: &str,
        page: Option<PageToken>,
        limit: usize,
    ) -> MetadataResult<ScanPage> {
        let (shared, prefix) = (Arc::clone(&self.shared), prefix.to_owned());
        let limit = limit.clamp(1, METADATA_PAGE_KEYS_MAX);
        blocking(move || reads::scan(&shared, &prefix, page, limit)).await
    }

    /// What the file does not tell when it is opened again, it does not tell later either: an
    /// unknown outcome is final, however long the caller would wait.
    async fn commit_until(
        &self,
        transaction: Transaction,
        _until: Until,
    ) -> MetadataResult<Revision> {
        limits::check(&transaction)?;
        self.shared.ask(Work::Commit(transaction)).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> MetadataResult<Box<dyn Watch>> {
        let watch = self
            .shared
            .history
            .watch(prefix, after, self.shared.closed.clone());
        Ok(Box::new(watch))
    }

    async fn open_session(&self, ttl: Duration) -> MetadataResult<Box<dyn Session>> {
        let state = self.shared.sessions.open(ttl, &self.shared.clock)?;
        Ok(Box::new(EmbeddedSession::new(
            Arc::clone(&self.shared),
            state,
        )))
    }
}

/// Runs work that blocks away from the async runtime.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> MetadataResult<T> + Send + 'static,
) -> MetadataResult<T> {
    tokio::task::spawn_blocking(move || file::without_panic(work))
        .await
        .unwrap_or_else(|_| {
            Err(MetadataError::Unavailable(
                "the runtime shuts down".to_owned(),
            ))
        })
}
