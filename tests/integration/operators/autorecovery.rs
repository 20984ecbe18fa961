//! Repair in a process of its own, instead of in bookies.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use aquifer_harness::cluster::Cluster;
use aquifer_harness::command::first_line;
use aquifer_harness::server::aquifer;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::operators::{QUICK, fullest, tool, wait_for_doctor, wait_unnamed, wait_whole};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_of_its_own_repairs_what_bookies_leave_to_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data_dir = folder.path().join("cluster");
    let mut environment = vec![("AQUIFER_AUTORECOVERY_ENABLED", "false")];
    environment.extend(QUICK);
    let mut cluster = Cluster::start_with(&data_dir, &["--bookies", "4"], &environment)?;
    let produced = aquifer(cluster.url(), &["produce", "t", "one", "two"])?;
    ensure!(produced.status.success(), "{produced:?}");
    wait_for_doctor(&cluster, 0, "0 processes repair ledgers, and none audits").await?;
    let strict = tool(&cluster, &["doctor", "--strict"])?;
    ensure!(strict.code == Some(1), "a warning counts: {strict:?}");

    let words = [
        "autorecovery",
        "--http-addr",
        "127.0.0.1:0",
        "--lost-after",
        "1s",
    ];
    let mut command = crate::operators::command(&cluster, &words)?;
    command.envs(QUICK);
    let mut repair = command.stdout(Stdio::piped()).spawn()?;
    let greeting: Value = serde_json::from_str(&first_line(&mut repair)?)?;
    let name = greeting["id"].as_str().context("a text")?.to_owned();
    wait_for_doctor(
        &cluster,
        0,
        &format!("1 processes repair ledgers, {name} audits"),
    )
    .await?;
    let strict = tool(&cluster, &["doctor", "--strict"])?;
    let found = strict.objects.iter();
    let warned: Vec<&Value> = found.filter(|finding| finding["level"] != "ok").collect();
    // How full the disks of this machine are is not what is tested.
    let only_disks = warned.iter().all(|finding| is_of_disks(finding));
    ensure!(only_disks, "nothing is missing: {warned:?}");
    ensure!(
        strict.code == Some(i32::from(!warned.is_empty())),
        "{strict:?}"
    );

    let (process, victim) = fullest(&cluster)?;
    cluster.kill(&process)?;
    wait_unnamed(&cluster, &victim).await?;
    wait_whole(&cluster).await?;
    let read = aquifer(cluster.url(), &["read", "t"])?;
    ensure!(read.stdout == b"one\ntwo\n", "{read:?}");

    // It leaves at once and in good order, with its locks and its office.
    let pid = Pid::from_raw(i32::try_from(repair.id())?).context("a process id is not 0")?;
    kill_process(pid, Signal::TERM)?;
    let status = repair.wait()?;
    ensure!(status.success(), "{status}");
    let left = cluster.etcdctl(&["get", "--prefix", "--keys-only", "/aquifer/v1/dev/workers/"])?;
    ensure!(left.trim().is_empty(), "{left}");
    let left = cluster.etcdctl(&[
        "get",
        "--prefix",
        "--keys-only",
        "/aquifer/v1/dev/leaders/auditor",
    ])?;
    ensure!(left.trim().is_empty(), "{left}");
    cluster.check_logs()
}

fn is_of_disks(finding: &Value) -> bool {
    let message = finding["message"].as_str().unwrap_or_default();
    finding["level"] == "warning" && message.contains(" MiB free, ")
}
