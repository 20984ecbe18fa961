//! A bookie that lost its journal is in limbo, gets back from others what it lost, and serves
//! again.

use std::fs;

use anyhow::{Context, Result, ensure};
use aquifer_harness::cluster::Cluster;
use aquifer_harness::fault::files;
use aquifer_harness::wait::until;

use crate::cluster::load::Load;
use crate::cluster::{ENOUGH, check};
use crate::operators::{QUICK, fullest, tool, wait_for_doctor, wait_for_state, wait_whole};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bookie_that_lost_its_journal_is_restored_and_serves_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data_dir = folder.path().join("cluster");
    let mut cluster = Cluster::start_with(&data_dir, &["--bookies", "4"], &QUICK)?;
    let load = Load::start(&cluster)?;
    load.wait_acknowledged(ENOUGH).await?;
    let (name, victim) = fullest(&cluster)?;
    cluster.kill(&name)?;
    // Every segment of the journal is gone, and with it what was not in RocksDB yet.
    let segments = files(&cluster.directory(&name), ".aqj")?;
    ensure!(!segments.is_empty(), "there was a journal");
    for segment in segments {
        fs::remove_file(segment)?;
    }
    cluster.start_again(&name)?;
    let log = |cluster: &Cluster| cluster.log(&name);
    let said = log(&cluster);
    ensure!(
        said.contains("journal lost synced data"),
        "it notices: {said}"
    );
    until("the end of limbo", || async {
        Ok(log(&cluster)
            .contains("limbo ends: everything")
            .then_some(()))
    })
    .await
    .with_context(|| log(&cluster))?;
    wait_for_state(&cluster, &victim, "writable").await?;
    load.wait_acknowledged(load.acknowledged() + ENOUGH).await?;
    check(&cluster, load).await?;
    // What it lost is there again; nothing waits any more.
    wait_whole(&cluster).await?;
    wait_for_doctor(&cluster, 0, "4 bookies are announced").await?;
    let cookie = tool(&cluster, &["bookie", "cookie", &victim])?.ok()?;
    ensure!(cookie[0]["limbo_since_ms"] == 0, "{cookie:?}");
    // It does not come back with the next start.
    cluster.kill(&name)?;
    let before = log(&cluster).matches("limbo").count();
    cluster.start_again(&name)?;
    wait_for_state(&cluster, &victim, "writable").await?;
    ensure!(
        log(&cluster).matches("limbo").count() == before,
        "no limbo again"
    );
    cluster.stop()?;
    cluster.check_logs()
}
