//! Topics that are left out because they failed, and which failures end a run at once.
//!
//! A backup without some topics has a file `failed` beside its root, which says which.

use aquifer_client::{ClientError, ErrorCode, ErrorKind};
use aquifer_cold::backup;
use aquifer_cold::error::ColdError;
use aquifer_cold::store::ColdStore;
use aquifer_model::id::BackupId;
use aquifer_proto::v1;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::commands::backup::opened::id_of;
use crate::commands::object::failed;
use crate::exit::{CliError, Exit};
use crate::output::Output;

/// The file of a backup that says what it does not have.
pub(super) const FILE: &str = "failed";
/// Failures whose texts are kept; the others are counted.
const TEXTS_MAX: usize = 100;
/// Characters of one text.
const TEXT_CHARS: usize = 1_000;
/// No file of failures is longer.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Topics that failed.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Failures {
    /// All of them.
    #[serde(rename = "failed_count")]
    pub(super) count: u64,
    /// The first ones.
    pub(super) failed: Vec<Failure>,
    /// The exit code that all have in common, or the one of a mixture.
    #[serde(skip)]
    exit: Option<Exit>,
}

/// A topic that failed.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Failure {
    topic: String,
    error: String,
}

impl Failures {
    pub(super) fn add(&mut self, topic: &str, error: &CliError) {
        self.count += 1;
        if self.failed.len() < TEXTS_MAX {
            self.failed.push(Failure {
                topic: topic.to_owned(),
                error: error.to_string().chars().take(TEXT_CHARS).collect(),
            });
        }
        self.exit = match self.exit {
            Some(exit) if exit != error.exit() => Some(Exit::Failed),
            _ => Some(error.exit()),
        };
    }

    /// The text of the first one; empty without any.
    pub(super) fn first(&self) -> &str {
        let first = self.failed.first();
        first.map_or("", |failure| failure.error.as_str())
    }

    /// Prints them as text.
    pub(super) fn lines(&self, out: &Output) -> Result<(), CliError> {
        for failure in &self.failed {
            out.line(format!("failed: {}: {}", failure.topic, failure.error))?;
        }
        let more = self.count.saturating_sub(self.failed.len() as u64);
        match more {
            0 => Ok(()),
            more => out.line(format!("failed: {more} more topics")),
        }
    }

    /// How a run ends that went on without them.
    pub(super) fn result(&self, what: &str, advice: &str) -> Result<(), CliError> {
        match self.count {
            0 => Ok(()),
            count => {
                let exit = self.exit.unwrap_or(Exit::Failed);
                Err(CliError::new(exit, format!("{what}: {count} topics failed")).advise(advice))
            }
        }
    }

    /// Writes them beside the root that comes next. Without any there is no file.
    pub(super) async fn write(
        &self,
        store: &dyn ColdStore,
        root: &v1::BackupRoot,
    ) -> Result<(), CliError> {
        if self.count == 0 {
            return Ok(());
        }
        let path = backup::name_of(&root.cluster, id_of(root)?, FILE);
        let text = serde_json::to_vec(self);
        let text = text.map_err(|error| CliError::failed(format!("{path}: {error}")))?;
        let written = store.put_new(&path, Bytes::from(text)).await;
        written.map_err(failed)
    }

    /// Reads what a backup does not have.
    pub(super) async fn read(
        store: &dyn ColdStore,
        root: &v1::BackupRoot,
    ) -> Result<Failures, CliError> {
        let path = backup::name_of(&root.cluster, id_of(root)?, FILE);
        let size = match store.size(&path).await {
            Err(ColdError::NotFound(_)) => return Ok(Failures::default()),
            size => size.map_err(failed)?,
        };
        if size > FILE_BYTES_MAX {
            return Err(CliError::failed(format!("{path} is too large")));
        }
        let text = store.get(&path, 0..size).await.map_err(failed)?;
        let read = serde_json::from_slice(&text);
        read.map_err(|error| CliError::failed(format!("{path}: {error}")))
    }
}

/// A failure at a topic, by what it concerns.
#[derive(Debug)]
pub(super) enum Trouble {
    /// This topic.
    Topic(CliError),
    /// This topic, or the cluster, or a store: see [`Trouble::of_topic`].
    Unclear(CliError),
    /// Every topic.
    Every(CliError),
}

impl Trouble {
    /// What a broker answered to a request with a backup. When it refuses the backup itself, it
    /// refuses it for every topic.
    pub(super) fn of_backup(error: ClientError, backup: BackupId) -> Trouble {
        let is_refused = error.code() == Some(ErrorCode::InvalidArgument)
            && error.to_string().contains(&format!("backup {backup} "));
        match is_refused {
            true => Trouble::Every(error.into()),
            false => error.into(),
        }
    }

    /// The failure when only the topic is concerned, so that others can follow; else an error.
    /// `probe` fails when the cluster or a store is away.
    pub(super) async fn of_topic(
        self,
        probe: impl Future<Output = Result<(), CliError>>,
    ) -> Result<CliError, CliError> {
        match self {
            Trouble::Topic(error) => Ok(error),
            Trouble::Every(error) => Err(error),
            Trouble::Unclear(error) => match probe.await {
                Ok(()) => Ok(error),
                Err(cause) => Err(cause.context(error.to_string())),
            },
        }
    }
}

impl From<ClientError> for Trouble {
    fn from(error: ClientError) -> Trouble {
        let is_own = matches!(
            error,
            ClientError::Connect { .. }
                | ClientError::Url { .. }
                | ClientError::Credential { .. }
                | ClientError::Unauthenticated(_)
                | ClientError::PermissionDenied(_)
                | ClientError::Closed { .. }
        );
        match error.kind() {
            _ if is_own => Trouble::Every(error.into()),
            ErrorKind::Timeout | ErrorKind::Unavailable | ErrorKind::Internal => {
                Trouble::Unclear(error.into())
            }
            _ => Trouble::Topic(error.into()),
        }
    }
}

impl From<Trouble> for CliError {
    fn from(trouble: Trouble) -> CliError {
        match trouble {
            Trouble::Topic(error) | Trouble::Unclear(error) | Trouble::Every(error) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use aquifer_cold::config::StoreConfig;
    use aquifer_cold::library;

    use super::*;

    fn root() -> v1::BackupRoot {
        v1::BackupRoot {
            backup_id: vec![7; 16].into(),
            cluster: "c".to_owned(),
            ..v1::BackupRoot::default()
        }
    }

    fn store() -> (tempfile::TempDir, Arc<dyn ColdStore>) {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("file://{}", directory.path().display());
        let store = library::open(&url, &StoreConfig::default());
        (directory, store.unwrap())
    }

    #[tokio::test]
    async fn a_partial_backup_says_what_it_does_not_have() {
        let (_directory, store) = store();
        let read = async || Failures::read(&*store, &root()).await;
        // A whole one has no such file.
        Failures::default().write(&*store, &root()).await.unwrap();
        let path = backup::name_of("c", BackupId([7; 16]), FILE);
        assert!(matches!(
            store.size(&path).await,
            Err(ColdError::NotFound(_))
        ));
        assert_eq!(read().await.unwrap().count, 0);

        let mut failures = Failures::default();
        for number in 0..TEXTS_MAX + 20 {
            let error = CliError::failed(format!("{number} is {}", "bad ".repeat(TEXT_CHARS)));
            failures.add(&format!("acme/shop/t{number}"), &error);
        }
        failures.write(&*store, &root()).await.unwrap();
        let found = read().await.unwrap();
        assert_eq!((found.count, found.failed.len()), (120, TEXTS_MAX));
        assert_eq!(found.failed[7].topic, "acme/shop/t7");
        assert_eq!(found.failed[7].error.chars().count(), TEXT_CHARS);
        assert!(found.first().starts_with("0 is bad"));
        let result = found.result("not whole", "look").unwrap_err();
        assert!(result.to_string().contains("120 topics failed"), "{result}");
        // It is not written over.
        assert!(failures.write(&*store, &root()).await.is_err());
    }

    #[tokio::test]
    async fn a_file_of_failures_that_is_damaged_or_too_large_is_an_error() {
        for (text, what) in [
            (Bytes::from_static(b"{"), "failed"),
            (Bytes::from(vec![b' '; (4 << 20) + 1]), "too large"),
        ] {
            let (_directory, store) = store();
            let path = backup::name_of("c", BackupId([7; 16]), FILE);
            store.put_new(&path, text).await.unwrap();
            let error = Failures::read(&*store, &root()).await.unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
        }
    }
}
