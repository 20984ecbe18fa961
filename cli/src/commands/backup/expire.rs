//! `aquifer backup expire`.
//!
//! The root goes first, so that no backup is left whose objects may go; then the cluster forgets
//! it; then its files go. What a crash leaves has no root, like a backup that is being made: it is
//! removed by a run once it is so old that it cannot be one.

use std::time::Duration;

use aquifer_client::Client;
use aquifer_cold::backup::{self, Found};
use aquifer_cold::error::ColdError;
use aquifer_cold::store::ColdStore;
use aquifer_model::backup::ForgetBackup;
use aquifer_model::id::BackupId;
use aquifer_runtime::clock::{Clock, SystemClock};
use serde_json::json;

use crate::args::StoreArgs;
use crate::commands::object::{failed, open};
use crate::exit::CliError;
use crate::output::Output;

/// How old a backup without a root is when it goes: the cluster takes it for given up by then.
const UNFINISHED_MAX_MS: u64 = 7 * 24 * 60 * 60 * 1000;

pub(super) async fn run(
    url: &str,
    keep: u32,
    args: &StoreArgs,
    client: &Client,
    out: &Output,
) -> Result<(), CliError> {
    let backups = client.backups();
    let mut forget = ForgetBackup {
        url: url.to_owned(),
        backup: None,
        unfinished: false,
    };
    // Only the cluster whose place this is deletes anything in it.
    let cluster = backups.forget(&forget).await?;
    let store = open(url, args)?;
    let all = backup::list(&*store, &cluster).await.map_err(failed)?;
    let whole = all.iter().filter(|found| found.has_root).count();
    let keep = usize::try_from(keep).unwrap_or(usize::MAX);
    let mut goes = whole.saturating_sub(keep);
    let (mut deleted, mut left) = (0_usize, 0_usize);
    for found in &all {
        if found.has_root {
            if goes == 0 {
                continue;
            }
            goes -= 1;
            backup::delete_root(&*store, found).await.map_err(failed)?;
        } else if let Some(why) = stays(&*store, found).await? {
            left += 1;
            out.note(&format!("backup {} stays: {why}", found.id));
            continue;
        }
        forget.backup = Some(found.id);
        match backups.forget(&forget).await {
            Ok(_) => {
                backup::delete_parts(&*store, found).await.map_err(failed)?;
                deleted += 1;
                tell(found, out)?;
            }
            // It is being made.
            Err(error) if !found.has_root => {
                left += 1;
                out.note(&format!("backup {} stays: {error}", found.id));
            }
            Err(error) => return Err(error.into()),
        }
    }
    if out.is_json() {
        return out.object(&json!({"deleted": deleted, "kept": whole.min(keep), "running": left}));
    }
    out.line(format!(
        "deleted {deleted} backups, kept {}",
        whole.min(keep)
    ))
}

/// Why a backup stays that had no root when it was listed; None when it goes.
async fn stays(store: &dyn ColdStore, found: &Found) -> Result<Option<String>, CliError> {
    let age_ms = SystemClock.wall_ms().saturating_sub(begun_ms(found.id));
    let left_ms = UNFINISHED_MAX_MS.saturating_sub(age_ms);
    if left_ms > 0 {
        // Whole seconds, which are enough here.
        let left = Duration::from_secs(left_ms.div_ceil(1000));
        return Ok(Some(format!(
            "it is not finished, and kept for another {}",
            humantime::format_duration(left)
        )));
    }
    match backup::read_root(store, &found.cluster, found.id).await {
        Err(ColdError::NotFound(_)) => Ok(None),
        // It was finished meanwhile; a damaged root is one too.
        Ok(_) | Err(ColdError::Damaged { .. }) => Ok(Some("it has a root now".to_owned())),
        Err(error) => Err(failed(error)),
    }
}

/// When a backup began: its id says it first.
pub(super) fn begun_ms(id: BackupId) -> u64 {
    let time = id.0.iter().take(6);
    time.fold(0_u64, |time, byte| (time << 8) | u64::from(*byte))
}

fn tell(found: &Found, out: &Output) -> Result<(), CliError> {
    match out.is_json() {
        true => Ok(()),
        false => out.line(format!("backup {} of {}", found.id, found.cluster)),
    }
}
