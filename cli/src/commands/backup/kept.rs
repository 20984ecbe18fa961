//! Whether the cluster keeps what a backup names.

use aquifer_client::{ClientError, ErrorCode};
use aquifer_cold::backup::{self, Found};
use aquifer_cold::store::ColdStore;
use aquifer_model::id::BackupId;

use crate::commands::object::failed;
use crate::exit::CliError;

/// Looks whether the cluster still keeps what the backup names: to end it again answers that, and
/// changes nothing. When it was forgotten before its root was there, the root goes.
pub(super) async fn check_kept<T>(
    ended_again: Result<T, ClientError>,
    (store, cluster): (&dyn ColdStore, &str),
    id: BackupId,
) -> Result<(), CliError> {
    let error = match ended_again {
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    if error.code() != Some(ErrorCode::InvalidArgument) {
        return Err(CliError::from(error)
            .context(format!(
                "backup {id} is written, but it is not known whether the cluster keeps its objects"
            ))
            .advise("make another"));
    }
    let found = Found {
        cluster: cluster.to_owned(),
        id,
        has_root: true,
        files: Vec::new(),
    };
    let lost = format!("the cluster has forgotten backup {id} before it was complete");
    let deleted = backup::delete_root(store, &found).await;
    deleted.map_err(|error| {
        failed(error)
            .context(format!("{lost}, and its root cannot be deleted"))
            .advise("do not rely on this backup; make another")
    })?;
    Err(CliError::failed(format!("{lost}; its root was deleted")).advise("make another"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use aquifer_client::Outcome;
    use aquifer_client::error::BrokerError;
    use aquifer_cold::config::StoreConfig;
    use aquifer_cold::library;
    use aquifer_proto::v1;

    use super::*;

    const ID: BackupId = BackupId([7; 16]);

    fn answer(code: ErrorCode) -> Result<(), ClientError> {
        Err(ClientError::Broker(Box::new(BrokerError {
            code,
            retryable: false,
            outcome: Outcome::NotApplied,
            message: "no".to_owned(),
            advice: String::new(),
            redirect_url: None,
        })))
    }

    /// A directory with the root of a backup.
    async fn with_root() -> (tempfile::TempDir, Arc<dyn ColdStore>) {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("file://{}", directory.path().display());
        let store = library::open(&url, &StoreConfig::default()).unwrap();
        let root = v1::BackupRoot {
            backup_id: ID.0.to_vec().into(),
            cluster: "c".to_owned(),
            ..v1::BackupRoot::default()
        };
        backup::write_root(&*store, &root).await.unwrap();
        (directory, store)
    }

    #[tokio::test]
    async fn a_backup_that_the_cluster_has_forgotten_loses_its_root_and_no_other_does() {
        let (_directory, store) = with_root().await;
        let place = (&*store, "c");
        let is_there = async || backup::read_root(&*store, "c", ID).await.is_ok();
        check_kept(Ok(()), place, ID).await.unwrap();
        assert!(is_there().await);
        // What is not known is no reason to delete anything.
        let unknown = check_kept(answer(ErrorCode::Unavailable), place, ID).await;
        let unknown = unknown.unwrap_err().to_string();
        assert!(unknown.contains("not known"), "{unknown}");
        assert!(is_there().await);
        let lost = check_kept(answer(ErrorCode::InvalidArgument), place, ID).await;
        let lost = lost.unwrap_err().to_string();
        assert!(lost.contains("its root was deleted"), "{lost}");
        assert!(!is_there().await);
    }
}
