//! `aquifer cluster check`, which upgrades ask before they touch anything.

use anyhow::{Context, Result, ensure};
use aquifer_harness::cluster::Cluster;
use serde_json::Value;

use crate::operators::{QUICK, tool};

/// The names of the checks that failed, in the one object that the command prints.
fn failed(objects: &[Value]) -> Result<Vec<String>> {
    let [object] = objects else {
        anyhow::bail!("not one object: {objects:?}");
    };
    let checks = object["checks"].as_array().context("checks")?;
    ensure!(checks.len() == 6, "{object}");
    let failed = checks.iter().filter(|check| check["ok"] == false);
    let names = failed.filter_map(|check| check["check"].as_str());
    Ok(names.map(str::to_owned).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_whole_while_every_bookie_and_broker_is_there() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data_dir = folder.path().join("cluster");
    let arguments = ["--bookies", "3", "--brokers", "2"];
    let mut cluster = Cluster::start_with(&data_dir, &arguments, &QUICK)?;
    let check = ["cluster", "check", "--brokers", "2", "--bookies", "3"];
    let waits = [&check[..], &["--wait", "60s"]].concat();
    let whole = tool(&cluster, &waits)?.ok()?;
    ensure!(failed(&whole)?.is_empty(), "{whole:?}");

    let more = tool(&cluster, &["cluster", "check", "--brokers", "3"])?;
    ensure!(more.code == Some(1), "{more:?}");
    ensure!(failed(&more.objects)? == ["brokers"], "{more:?}");

    cluster.kill("bookie-1")?;
    let away = tool(&cluster, &check)?;
    ensure!(away.code == Some(1), "{away:?}");
    let names = failed(&away.objects)?;
    ensure!(names.contains(&"bookies".to_owned()), "{away:?}");
    ensure!(away.said.contains("not whole"), "{away:?}");

    cluster.start_again("bookie-1")?;
    let whole = tool(&cluster, &waits)?.ok()?;
    ensure!(failed(&whole)?.is_empty(), "{whole:?}");
    Ok(())
}
