//! Backups, in their files and in requests.

use aquifer_model::backup::{BackupFile, BackupScope, BackupTotals, RestoreOutcome};
use aquifer_model::id::Index;
use bytes::Bytes;

use crate::v1;

impl From<&BackupFile> for v1::BackupFile {
    fn from(file: &BackupFile) -> v1::BackupFile {
        v1::BackupFile {
            name: file.name.clone(),
            bytes: file.bytes,
            checksum: file.checksum,
            sha256: Bytes::copy_from_slice(&file.sha256),
        }
    }
}

impl TryFrom<v1::BackupFile> for BackupFile {
    type Error = String;

    fn try_from(file: v1::BackupFile) -> Result<BackupFile, String> {
        let sha256 = <[u8; 32]>::try_from(file.sha256.as_ref());
        // The name is put behind a directory.
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if file.name.is_empty() || file.name.len() > 64 || !file.name.bytes().all(legal) {
            return Err(format!("{:?} is no name of a file of a backup", file.name));
        }
        Ok(BackupFile {
            name: file.name,
            bytes: file.bytes,
            checksum: file.checksum,
            sha256: sha256.map_err(|_| "a SHA-256 has 32 bytes".to_owned())?,
        })
    }
}

/// Files that were stored or sent.
///
/// # Errors
/// When one of them cannot be.
pub fn files(files: Vec<v1::BackupFile>) -> Result<Vec<BackupFile>, String> {
    files.into_iter().map(BackupFile::try_from).collect()
}

impl From<BackupTotals> for v1::BackupTotals {
    fn from(totals: BackupTotals) -> v1::BackupTotals {
        v1::BackupTotals {
            first_index: totals.first.0,
            end_index: totals.end.0,
            entries: totals.entries,
            bytes: totals.bytes,
            ledgers: totals.ledgers,
            object_bytes: totals.object_bytes,
            first_time_ms: totals.first_time_ms,
            last_time_ms: totals.last_time_ms,
            last_ledger_id: totals.last_ledger,
            subscriptions: totals.subscriptions,
            captured_ms: totals.captured_ms,
        }
    }
}

impl From<v1::BackupTotals> for BackupTotals {
    fn from(totals: v1::BackupTotals) -> BackupTotals {
        BackupTotals {
            first: Index(totals.first_index),
            end: Index(totals.end_index),
            entries: totals.entries,
            bytes: totals.bytes,
            ledgers: totals.ledgers,
            object_bytes: totals.object_bytes,
            first_time_ms: totals.first_time_ms,
            last_time_ms: totals.last_time_ms,
            last_ledger: totals.last_ledger_id,
            subscriptions: totals.subscriptions,
            captured_ms: totals.captured_ms,
        }
    }
}

impl From<RestoreOutcome> for v1::RestoreOutcome {
    fn from(outcome: RestoreOutcome) -> v1::RestoreOutcome {
        match outcome {
            RestoreOutcome::Restored => v1::RestoreOutcome::Restored,
            RestoreOutcome::Exists => v1::RestoreOutcome::Exists,
            RestoreOutcome::Prepared => v1::RestoreOutcome::Prepared,
            RestoreOutcome::Done => v1::RestoreOutcome::Done,
            RestoreOutcome::Copying => v1::RestoreOutcome::Copying,
        }
    }
}

/// An outcome that was sent; `None` when this build does not know it.
#[must_use]
pub fn outcome(wire: v1::RestoreOutcome) -> Option<RestoreOutcome> {
    Some(match wire {
        v1::RestoreOutcome::Restored => RestoreOutcome::Restored,
        v1::RestoreOutcome::Exists => RestoreOutcome::Exists,
        v1::RestoreOutcome::Prepared => RestoreOutcome::Prepared,
        v1::RestoreOutcome::Done => RestoreOutcome::Done,
        v1::RestoreOutcome::Copying => RestoreOutcome::Copying,
        v1::RestoreOutcome::Unspecified => return None,
    })
}

/// The scope that was stored or sent as the names of a tenant and of a topic.
///
/// # Errors
/// When both are given, or the topic's name is not valid.
pub fn scope(tenant: &str, topic: &str) -> Result<BackupScope, String> {
    match (tenant, topic) {
        ("", "") => Ok(BackupScope::Cluster),
        (tenant, "") => Ok(BackupScope::Tenant(tenant.to_owned())),
        ("", topic) => topic
            .parse()
            .map(BackupScope::Topic)
            .map_err(|error| format!("the topic {topic:?}: {error}")),
        _ => Err("a backup is of a tenant or of a topic, not of both".to_owned()),
    }
}
