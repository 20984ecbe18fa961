//! What the store, its thread, its sessions and its watches share, and the work that they give to
//! the thread.

use std::sync::Arc;

use aquifer_runtime::clock::SharedClock;
use parking_lot::{Mutex, RwLock};
use redb::Database;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::embedded::file;
use crate::embedded::history::History;
use crate::embedded::reads::Snapshots;
use crate::embedded::sessions::{SessionState, Sessions};
use crate::error::{MetadataError, MetadataResult};
use crate::store::{Operation, Revision, Transaction};

/// What the store, its thread, its sessions and its watches share.
#[derive(Debug)]
pub(super) struct Shared {
    /// `None` while the file is not open: the store is closed, or a commit failed and the file
    /// could not be opened again yet. Locked before `snapshots`, never the other way round.
    pub(super) database: RwLock<Option<Database>>,
    pub(super) snapshots: Mutex<Snapshots>,
    pub(super) history: Arc<History>,
    pub(super) sessions: Sessions,
    pub(super) clock: SharedClock,
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) closed: CancellationToken,
}

/// Something to do on the store's thread.
#[derive(Debug)]
pub(super) enum Work {
    /// Change keys.
    Commit(Transaction),
    /// Change one key that goes with a session.
    SessionPut(Arc<SessionState>, Operation),
    /// Remove the keys of a session that is lost.
    EndSession(Arc<SessionState>),
    /// Close the file.
    Close,
}

/// Work, and where its outcome goes. The revision of work that changed nothing is the current.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) work: Work,
    pub(super) reply: oneshot::Sender<MetadataResult<Revision>>,
}

impl Shared {
    /// Closes the file, when no reader is in it any more.
    pub(super) fn close_file(&self) -> MetadataResult<()> {
        let mut database = self.database.write();
        self.snapshots.lock().clear();
        file::without_panic(|| {
            drop(database.take());
            Ok(())
        })
    }

    /// Hands work to the store's thread and waits for its outcome.
    pub(super) async fn ask(&self, work: Work) -> MetadataResult<Revision> {
        let (reply, answer) = oneshot::channel();
        let closed = || MetadataError::Unavailable("the store is closed".to_owned());
        self.requests
            .send(Request { work, reply })
            .await
            .map_err(|_| closed())?;
        answer.await.unwrap_or_else(|_| {
            Err(MetadataError::UnknownOutcome(
                "the store's thread ended".to_owned(),
            ))
        })
    }
}
