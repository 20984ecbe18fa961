//! Changes of a record by compare-and-swap (I6): read it, decide, write over the revision that was
//! read; from the start when another process was faster.
//!
//! Invariants:
//! - What is written was decided from the value that it replaces.
//! - A record that a newer build has written is not written over, whatever the change would do.
//! - Attempts are bounded, with a growing pause between them.
//! - An outcome that the store does not tell in time is not guessed at. The key is read again, and
//!   the caller decides on what is there. If the key is as it was, the same change is made again,
//!   and at most one of both can succeed; if it is not, the first can never be made any more, and
//!   was made only if this is what is there. So a change must recognise what it has done itself, or
//!   do no harm when it is made twice.

use std::time::Duration;

use aquifer_runtime::clock;
use bytes::Bytes;
use thiserror::Error;

use crate::error::MetadataError;
use crate::record;
use crate::store::{Expect, Guard, MetadataStore, Operation, Revision, Transaction, Versioned};

/// Attempts at a key that others change at the same time. An attempt fails only when another
/// process succeeds, so this is far more than there are processes that write to one key.
const ATTEMPTS_MAX: u32 = 64;
/// First and longest pause between attempts.
const PAUSE_FIRST: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(64);

/// What is to become of a key.
#[derive(Debug, Clone)]
pub struct Change<T> {
    write: Option<Write>,
    partition: String,
    guards: Vec<Guard>,
    others: Vec<Operation>,
    answer: T,
}

#[derive(Debug, Clone)]
enum Write {
    Put(Bytes),
    Delete,
}

impl<T> Change<T> {
    /// The key stays as it is.
    #[must_use]
    pub fn none(answer: T) -> Change<T> {
        Change {
            write: None,
            partition: String::new(),
            guards: Vec::new(),
            others: Vec::new(),
            answer,
        }
    }

    /// The key gets a value, in a transaction of this partition.
    #[must_use]
    pub fn put(partition: &str, value: Bytes, answer: T) -> Change<T> {
        Change {
            write: Some(Write::Put(value)),
            partition: partition.to_owned(),
            guards: Vec::new(),
            others: Vec::new(),
            answer,
        }
    }

    /// The key is removed, in a transaction of this partition.
    #[must_use]
    pub fn delete(partition: &str, answer: T) -> Change<T> {
        Change {
            write: Some(Write::Delete),
            ..Change::put(partition, Bytes::new(), answer)
        }
    }

    /// The same while a key that the decision depends on is as it was found. When it is not, the
    /// change is decided again; a guard of the whole update ends it then.
    #[must_use]
    pub fn guarded(mut self, guard: Guard) -> Change<T> {
        self.guards.push(guard);
        self
    }

    /// The same together with other changes. When one of their keys is not as expected, the change
    /// is decided again.
    #[must_use]
    pub fn with(mut self, others: impl IntoIterator<Item = Operation>) -> Change<T> {
        self.others.extend(others);
        self
    }
}

/// An update that came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Updated<T> {
    /// What the change answered.
    pub answer: T,
    /// When it was made; `None` when there was nothing to change.
    pub applied: Option<Revision>,
}

/// Why an update was not made, or is not known to have been.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UpdateError<E> {
    /// The change refuses what is stored now.
    #[error("{0}")]
    Refused(E),
    /// A guard does not hold; nothing was changed.
    #[error("metadata guard {key} does not hold: it is at {current:?}")]
    Guard {
        /// Its key.
        key: String,
        /// The revision of that, or `None` if it does not exist.
        current: Option<Revision>,
    },
    /// Other processes were faster each time; nothing was changed.
    #[error("{key} keeps changing: it is at {current:?}")]
    Contended {
        /// The key that was not as expected last.
        key: String,
        /// Its revision, or `None` if it does not exist.
        current: Option<Revision>,
    },
    /// The change may have been made: the store cannot tell, and cannot be read.
    #[error("the change may have been made: {0}")]
    Unknown(String),
    /// The store did not make it; nothing was changed.
    #[error(transparent)]
    Store(MetadataError),
}

impl<E: From<MetadataError>> UpdateError<E> {
    /// The error of the caller's own kind, for those that treat a guard as any other conflict.
    #[must_use]
    pub fn flatten(self) -> E {
        match self {
            UpdateError::Refused(error) => error,
            UpdateError::Guard { key, current } | UpdateError::Contended { key, current } => {
                MetadataError::Conflict { key, current }.into()
            }
            UpdateError::Unknown(reason) => MetadataError::UnknownOutcome(reason).into(),
            UpdateError::Store(error) => error.into(),
        }
    }
}

impl dyn MetadataStore + '_ {
    /// Changes one key, while all guards hold. `change` decides from what is stored (`None` where
    /// the key does not exist), and is asked again whenever that was changed meanwhile, so it must
    /// have no effect of its own.
    ///
    /// # Errors
    /// [`UpdateError`] says for each kind whether anything may have been changed.
    pub async fn update<T, E, F>(
        &self,
        key: &str,
        guards: &[Guard],
        mut change: impl FnMut(Option<Versioned>) -> F,
    ) -> Result<Updated<T>, UpdateError<E>>
    where
        F: Future<Output = Result<Change<T>, E>>,
    {
        let mut conflict = None;
        // Once an attempt may have been made, no failure of a later one says that nothing was
        // changed.
        let mut unknown: Option<String> = None;
        let failed = |unknown: Option<String>, error| match unknown {
            Some(reason) => UpdateError::Unknown(reason),
            None => error,
        };
        for attempt in 0..ATTEMPTS_MAX {
            if attempt > 0 {
                let pause = PAUSE_FIRST.saturating_mul(1 << (attempt - 1).min(10));
                clock::sleep(pause.min(PAUSE_MAX)).await;
            }
            let stored = match self.get(key).await {
                Ok(stored) => stored,
                Err(error) => return Err(failed(unknown, UpdateError::Store(error))),
            };
            if let Some(Err(error)) = stored.as_ref().map(record::check_known) {
                return Err(failed(unknown, UpdateError::Store(error)));
            }
            let found = stored.as_ref().map(|stored| stored.revision);
            let change = change(stored).await.map_err(UpdateError::Refused)?;
            let answer = change.answer;
            let Some(write) = change.write else {
                return Ok(Updated {
                    answer,
                    applied: None,
                });
            };
            let mut operations = vec![write.over(key, found)];
            operations.extend(change.others);
            let transaction = Transaction {
                partition: change.partition,
                guards: guards.iter().cloned().chain(change.guards).collect(),
                operations,
            };
            match self.commit(transaction).await {
                Ok(revision) => {
                    return Ok(Updated {
                        answer,
                        applied: Some(revision),
                    });
                }
                Err(MetadataError::Conflict { key, current })
                    if guards.iter().any(|guard| guard.key == key) =>
                {
                    return Err(failed(unknown, UpdateError::Guard { key, current }));
                }
                Err(MetadataError::Conflict { key, current }) => conflict = Some((key, current)),
                Err(MetadataError::UnknownOutcome(reason)) => {
                    tracing::debug!(key, reason, "the outcome of a change is not known");
                    unknown = Some(reason);
                }
                Err(error) => return Err(failed(unknown, UpdateError::Store(error))),
            }
        }
        let (key, current) = conflict.unwrap_or_else(|| (key.to_owned(), None));
        Err(failed(unknown, UpdateError::Contended { key, current }))
    }
}

impl Write {
    fn over(self, key: &str, found: Option<Revision>) -> Operation {
        let key = key.to_owned();
        match self {
            Write::Put(value) => Operation::Put {
                key,
                value,
                expect: found.map_or(Expect::Absent, Expect::Revision),
            },
            Write::Delete => Operation::Delete {
                key,
                expect: found.map_or(Expect::Absent, Expect::Revision),
            },
        }
    }
}

#[cfg(test)]
mod tests;
