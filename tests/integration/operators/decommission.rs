//! A bookie is taken out under load, and one that is gone with its disk is replaced.

use std::fs;
use std::process::Stdio;

use anyhow::{Result, ensure};
use aquifer_harness::cluster::Cluster;
use aquifer_harness::server::aquifer;
use aquifer_harness::wait::{until, within};

use crate::cluster::load::Load;
use crate::cluster::{ENOUGH, check};
use crate::operators::{
    QUICK, fullest, id_of, state_of, tool, wait_for_doctor, wait_for_state, wait_unnamed,
    wait_whole,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bookie_is_decommissioned_under_load() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data_dir = folder.path().join("cluster");
    let mut cluster = Cluster::start_with(&data_dir, &["--bookies", "4"], &QUICK)?;
    let load = Load::start(&cluster)?;
    load.wait_acknowledged(ENOUGH).await?;
    let (name, leaving) = fullest(&cluster)?;
    let (name, leaving) = (&*name, &*leaving);
    let mut command = crate::operators::command(&cluster, &["bookie", "decommission", leaving])?;
    let command = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let ended = within("the decommission", async {
        Ok(tokio::task::spawn_blocking(|| command.wait_with_output()).await??)
    });
    let ended = ended.await?;
    ensure!(ended.status.success(), "{ended:?}");
    ensure!(
        String::from_utf8_lossy(&ended.stdout).contains("decommissioned"),
        "{ended:?}"
    );
    let progress = String::from_utf8_lossy(&ended.stderr);
    ensure!(
        progress.contains("ledgers moved"),
        "progress is shown: {progress}"
    );
    ensure!(
        tool(&cluster, &["ledger", "list", "--bookie", leaving])?
            .ok()?
            .is_empty()
    );
    ensure!(state_of(&cluster, leaving)? == "decommissioned");
    // It ends by itself, and never serves again.
    until("the end of the bookie", || async {
        Ok(cluster
            .log(name)
            .contains("it never serves again")
            .then_some(()))
    })
    .await?;
    load.wait_acknowledged(load.acknowledged() + ENOUGH).await?;
    check(&cluster, load).await?;
    wait_whole(&cluster).await?;
    ensure!(
        tool(&cluster, &["ledger", "list", "--bookie", leaving])?
            .ok()?
            .is_empty()
    );
    let error = cluster
        .start_again(name)
        .map(|()| "it started")
        .unwrap_err();
    ensure!(cluster.log(name).contains("decommissioned"), "{error}");
    Ok(())
}

/// A decommission that could never end is not begun by accident, nor one of an unknown id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bookie_whose_ledgers_have_nowhere_to_go_is_not_decommissioned_by_accident() -> Result<()>
{
    let folder = tempfile::tempdir()?;
    let mut cluster = Cluster::start_with(&folder.path().join("cluster"), &[], &QUICK)?;
    let produced = aquifer(cluster.url(), &["produce", "kept", "one"])?;
    ensure!(produced.status.success(), "{produced:?}");
    let bookie = id_of(&cluster, "bookie-1")?;
    let refused = tool(&cluster, &["bookie", "decommission", &bookie])?;
    ensure!(refused.code == Some(5), "{refused:?}");
    for part in ["nowhere to go", "start another bookie"] {
        ensure!(refused.said.contains(part), "{refused:?}");
    }
    ensure!(state_of(&cluster, &bookie)? == "writable");

    let unknown = "00".repeat(16);
    for words in [
        &["bookie", "decommission", &unknown][..],
        &["bookie", "decommission", &unknown, "--undo"],
        &["bookie", "cookie", &unknown],
    ] {
        let refused = tool(&cluster, words)?;
        ensure!(refused.code == Some(1), "{refused:?}");
        ensure!(refused.said.contains("aquifer bookie list"), "{refused:?}");
    }
    ensure!(tool(&cluster, &["bookie", "list"])?.ok()?.len() == 3);

    let begun = ["bookie", "decommission", &bookie, "--force", "--no-wait"];
    tool(&cluster, &begun)?.ok()?;
    wait_for_state(&cluster, &bookie, "draining").await?;
    wait_for_doctor(&cluster, 1, "cannot be repaired").await?;
    tool(&cluster, &["bookie", "decommission", &bookie, "--undo"])?.ok()?;
    wait_for_state(&cluster, &bookie, "writable").await?;
    cluster.stop()?;
    cluster.check_logs()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_volume_is_repaired_away_and_the_new_one_joins() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data_dir = folder.path().join("cluster");
    let lost_after = ("AQUIFER_AUTORECOVERY_REPLICATION_LOST_AFTER_MS", "1000");
    let settings = [&QUICK[..], &[lost_after]].concat();
    let mut cluster = Cluster::start_with(&data_dir, &["--bookies", "4"], &settings)?;
    let load = Load::start(&cluster)?;
    load.wait_acknowledged(ENOUGH).await?;
    let (name, old) = fullest(&cluster)?;
    cluster.kill(&name)?;
    fs::rename(cluster.directory(&name), folder.path().join("broken-disk"))?;
    cluster.start_again(&name)?;
    let new = id_of(&cluster, &name)?;
    ensure!(new != old, "another storage is another bookie");
    wait_for_state(&cluster, &new, "writable").await?;
    wait_unnamed(&cluster, &old).await?;
    load.wait_acknowledged(load.acknowledged() + ENOUGH).await?;
    check(&cluster, load).await?;
    wait_whole(&cluster).await?;
    cluster.stop()?;
    cluster.check_logs()
}
