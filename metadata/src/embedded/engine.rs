//! The thread that changes the file. It takes what waits, applies it in order to one commit,
//! and answers when that is durable; so that many callers share a sync, and every answer,
//! refusals too, is about a state that a crash cannot take back.

use std::sync::Arc;

use redb::Database;
use tokio::sync::mpsc;

use crate::embedded::file::{StoreFile, from_redb, without_panic};
use crate::embedded::history::Change;
use crate::embedded::rows::{self, Stored, Tables};
use crate::embedded::shared::{Request, Shared, Work};
use crate::error::{MetadataError, MetadataResult};
use crate::store::{Expect, Operation, Revision};

/// Requests in one commit.
const BATCH_REQUESTS_MAX: usize = 128;

/// The state of the thread.
pub(super) struct Engine {
    shared: Arc<Shared>,
    file: StoreFile,
    /// Of the last commit.
    revision: Revision,
    /// The changes of the last commit failed in a way that nothing more can be promised.
    broken: Option<MetadataError>,
}

/// What became of a batch.
struct Applied {
    outcomes: Vec<MetadataResult<Revision>>,
    changes: Vec<Change>,
    revision: Revision,
}

/// Why a batch has no outcome.
enum Failure {
    /// Nothing of it was committed.
    Before(MetadataError),
    /// The commit itself failed: what would have become of the batch if it did not.
    During(Applied, MetadataError),
}

impl Engine {
    pub(super) fn new(shared: Arc<Shared>, file: StoreFile, revision: Revision) -> Engine {
        Engine {
            shared,
            file,
            revision,
            broken: None,
        }
    }

    /// Works until the store is closed.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        while let Some(first) = queue.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH_REQUESTS_MAX
                && let Ok(request) = queue.try_recv()
            {
                batch.push(request);
            }
            let closing = batch
                .iter()
                .position(|request| matches!(request.work, Work::Close));
            let after = closing.map(|at| batch.split_off(at));
            self.process(batch);
            if let Some(after) = after {
                self.close(&mut queue, after);
                return;
            }
            if self.shared.closed.is_cancelled() {
                self.close(&mut queue, Vec::new());
                return;
            }
        }
    }

    fn close(self, queue: &mut mpsc::Receiver<Request>, mut rest: Vec<Request>) {
        let Engine {
            shared,
            file,
            revision,
            ..
        } = self;
        shared.closed.cancel();
        shared.sessions.lose_all();
        queue.close();
        while let Ok(request) = queue.try_recv() {
            rest.push(request);
        }
        // Closing writes the state that makes the next start quick; a panic in there loses that.
        if let Err(error) = shared.close_file() {
            tracing::warn!(%error, "the metadata store was not closed cleanly");
        }
        // The lock goes before the answers: a caller that waited may open the store again at once.
        drop(file);
        for request in rest {
            let outcome = match request.work {
                Work::Close => Ok(revision),
                _ => Err(MetadataError::Unavailable("the store is closed".to_owned())),
            };
            let _ = request.reply.send(outcome);
        }
    }

    fn process(&mut self, batch: Vec<Request>) {
        let (works, replies): (Vec<Work>, Vec<_>) = batch
            .into_iter()
            .map(|request| (request.work, request.reply))
            .unzip();
        let outcomes = self.resolve(&works);
        for (reply, outcome) in replies.into_iter().zip(outcomes) {
            // The caller may have stopped waiting; the change stands all the same.
            let _ = reply.send(outcome);
        }
        let now = self.shared.clock.monotonic();
        self.shared.snapshots.lock().expire(now);
    }

    /// Applies works and returns an outcome for each.
    fn resolve(&mut self, works: &[Work]) -> Vec<MetadataResult<Revision>> {
        let all = |error: MetadataError| vec![Err(error); works.len()];
        if works.is_empty() {
            return Vec::new();
        }
        if let Err(error) = self.ensure_open() {
            return all(error);
        }
        match self.apply(works) {
            Ok(applied) => self.publish(applied),
            Err(Failure::Before(error)) => {
                // redb refuses to go on after an error of the disk until it is opened again.
                tracing::error!(%error, "a metadata commit failed, nothing was changed");
                self.close_file();
                if let Err(error) = self.ensure_open() {
                    tracing::warn!(%error, "the metadata store stays closed until the next commit");
                }
                all(match error {
                    damaged @ MetadataError::Damaged { .. } => damaged,
                    other => MetadataError::Unavailable(other.to_string()),
                })
            }
            Err(Failure::During(applied, error)) => self.resolve_failed(applied, &error),
        }
    }

    fn publish(&mut self, applied: Applied) -> Vec<MetadataResult<Revision>> {
        self.revision = applied.revision;
        self.shared.history.publish(applied.changes);
        applied.outcomes
    }

    /// Finds out what became of a batch whose commit failed, by opening the file again.
    fn resolve_failed(
        &mut self,
        applied: Applied,
        error: &MetadataError,
    ) -> Vec<MetadataResult<Revision>> {
        tracing::error!(%error, "a metadata commit failed");
        let before = self.revision;
        self.close_file();
        let unknown = |reason: &MetadataError| {
            // A refusal was about a state that may not exist; the others may have been made.
            let unknown = Err(MetadataError::UnknownOutcome(reason.to_string()));
            vec![unknown; applied.outcomes.len()]
        };
        match self.ensure_open() {
            Err(reason) => unknown(&reason),
            Ok(()) if self.revision == before => {
                let refused = Err(MetadataError::Unavailable(error.to_string()));
                vec![refused; applied.outcomes.len()]
            }
            // Opening has published a floor above these changes, so watches resync.
            Ok(()) => applied.outcomes,
        }
    }

    /// Opens the file again if a failure closed it. Where a sync failed that must not be done:
    /// the file would show changes that the disk never got.
    fn ensure_open(&mut self) -> MetadataResult<()> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        // Only this thread opens the file. Asking for the write lock to see that it is open would
        // let every commit wait for the scans that run.
        if self.shared.database.read().is_some() {
            return Ok(());
        }
        let mut database = self.shared.database.write();
        if self.file.sync_failed() {
            let error = MetadataError::Unavailable(
                "the disk failed to sync the metadata store: replace it or restart".to_owned(),
            );
            self.broken = Some(error.clone());
            return Err(error);
        }
        let (reopened, revision) = self.file.reopen()?;
        *database = Some(reopened);
        if revision != self.revision {
            self.revision = revision;
            self.shared.history.restart(revision);
        }
        Ok(())
    }

    fn close_file(&self) {
        if let Err(error) = self.shared.close_file() {
            tracing::debug!(%error, "the failed metadata file was not closed cleanly");
        }
    }

    fn apply(&self, works: &[Work]) -> Result<Applied, Failure> {
        let database = self.shared.database.read();
        let database = database.as_ref().ok_or_else(|| {
            Failure::Before(MetadataError::Unavailable("the file is closed".to_owned()))
        })?;
        let prepared = without_panic(|| self.prepare(database, works).map_err(from_redb));
        let (transaction, applied) = prepared.map_err(Failure::Before)?;
        if applied.changes.is_empty() {
            return Ok(applied);
        }
        let committed = without_panic(|| {
            transaction
                .commit()
                .map_err(|error| from_redb(error.into()))
        });
        match committed {
            Ok(()) => Ok(applied),
            Err(error) => Err(Failure::During(applied, error)),
        }
    }

    fn prepare(
        &self,
        database: &Database,
        works: &[Work],
    ) -> Result<(redb::WriteTransaction, Applied), redb::Error> {
        let transaction = rows::begin(database)?;
        let mut applied = Applied {
            outcomes: Vec::with_capacity(works.len()),
            changes: Vec::new(),
            revision: self.revision,
        };
        {
            let mut tables = Tables::open(&transaction)?;
            for work in works {
                let outcome = applied.work(&mut tables, work)?;
                applied.outcomes.push(outcome);
            }
            if !applied.changes.is_empty() {
                tables.set_revision(applied.revision.0)?;
            }
        }
        Ok((transaction, applied))
    }
}

impl Applied {
    /// Applies one work to the open commit. The outer error ends the batch.
    fn work(
        &mut self,
        tables: &mut Tables<'_>,
        work: &Work,
    ) -> Result<MetadataResult<Revision>, redb::Error> {
        match work {
            Work::Commit(transaction) => {
                let guards = transaction
                    .guards
                    .iter()
                    .map(|guard| (guard.key.as_str(), guard.expect));
                let operations = transaction
                    .operations
                    .iter()
                    .map(|operation| (operation.key(), operation.expect()));
                for (key, expect) in guards.chain(operations) {
                    if let Err(error) = check(tables, key, expect)? {
                        return Ok(Err(error));
                    }
                }
                self.change(tables, &transaction.operations, 0)
            }
            Work::SessionPut(session, operation) => {
                if session.is_lost() {
                    return Ok(Err(MetadataError::SessionExpired));
                }
                if let Err(error) = check(tables, operation.key(), operation.expect())? {
                    return Ok(Err(error));
                }
                self.change(tables, std::slice::from_ref(operation), session.id())
            }
            Work::EndSession(session) => {
                let operations: Vec<Operation> = tables
                    .ephemeral_keys(Some(session.id()))?
                    .into_iter()
                    .map(|(_, key)| Operation::Delete {
                        key,
                        expect: Expect::Any,
                    })
                    .collect();
                self.change(tables, &operations, 0)
            }
            // Closing is not part of a batch.
            Work::Close => Ok(Ok(self.revision)),
        }
    }

    /// Makes changes whose conditions hold, at the next revision.
    fn change(
        &mut self,
        tables: &mut Tables<'_>,
        operations: &[Operation],
        session: u64,
    ) -> Result<MetadataResult<Revision>, redb::Error> {
        let next = Revision(self.revision.0 + 1);
        let changes_before = self.changes.len();
        for operation in operations {
            let key = operation.key();
            // A value that is damaged may be replaced or removed: that is how it is repaired.
            let old = tables.get(key)?.unwrap_or(None);
            if let Some(old) = &old {
                tables.detach(old.session, key)?;
            }
            let value = match operation {
                Operation::Put { value, .. } => {
                    let stored = Stored {
                        created: old.map_or(next.0, |old| old.created),
                        modified: next.0,
                        session,
                        value: value.clone(),
                    };
                    tables.put(key, &stored)?;
                    Some(value.clone())
                }
                Operation::Delete { .. } => {
                    if !tables.delete(key)? {
                        continue;
                    }
                    None
                }
            };
            self.changes.push(Change {
                revision: next,
                key: key.to_owned(),
                value,
            });
        }
        if self.changes.len() > changes_before {
            self.revision = next;
        }
        Ok(Ok(self.revision))
    }
}

/// Checks what a key has to be.
fn check(
    tables: &Tables<'_>,
    key: &str,
    expect: Expect,
) -> Result<MetadataResult<()>, redb::Error> {
    if expect == Expect::Any {
        return Ok(Ok(()));
    }
    let current = match tables.get(key)? {
        Ok(stored) => stored.map(|stored| Revision(stored.modified)),
        Err(error) => return Ok(Err(error)),
    };
    let as_expected = match expect {
        Expect::Any => true,
        Expect::Absent => current.is_none(),
        Expect::Revision(revision) => current == Some(revision),
    };
    Ok(if as_expected {
        Ok(())
    } else {
        Err(MetadataError::Conflict {
            key: key.to_owned(),
            current,
        })
    })
}
