//! Whether the cluster keeps what a backup names.

use aquifer_client::ErrorCode;
use aquifer_client::backup::Backups;
use aquifer_cold::backup::{self, Found};
use aquifer_model::id::BackupId;

use crate::commands::backup::Opened;
use crate::commands::object::failed;
use crate::exit::CliError;

/// Looks whether the cluster still keeps what the backup names: to end it again answers that, and
/// changes nothing. When it was forgotten before its root was there, the root goes.
pub(super) async fn check_kept(
    backups: &Backups,
    opened: &Opened,
    id: BackupId,
) -> Result<(), CliError> {
    let error = match backups.finish(id).await {
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
        cluster: opened.root.cluster.clone(),
        id,
        has_root: true,
        files: Vec::new(),
    };
    let lost = format!("the cluster has forgotten backup {id} before it was complete");
    let deleted = backup::delete_root(&*opened.store, &found).await;
    deleted.map_err(|error| {
        failed(error)
            .context(format!("{lost}, and its root cannot be deleted"))
            .advise("do not rely on this backup; make another")
    })?;
    Err(CliError::failed(format!("{lost}; its root was deleted")).advise("make another"))
}
