//! A cluster of real processes on this machine: etcd, bookies, a broker. What is acknowledged is
//! there after a bookie or the broker is killed under load, and after everything was restarted.

mod balance;
mod brokers;
mod delivery_right;
mod identity;
mod listeners;
pub mod load;
mod rest;
mod shared_etcd;
pub mod signals;
mod start;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use aquifer_harness::checker::{
    Acknowledged, dense, nothing_lost, nothing_twice, producers_in_order,
};
use aquifer_harness::cluster::Cluster;
use aquifer_harness::log;
use aquifer_harness::server::aquifer;
use aquifer_harness::wait::{until, within};

use load::{Load, TOPIC};

/// Receipts that a load must have before, during and after a fault to say anything.
pub const ENOUGH: u64 = 2_000;

fn start(folder: &Path, arguments: &[&str]) -> Result<Cluster> {
    Cluster::start(&folder.join("cluster"), arguments)
}

fn run(cluster: &Cluster, words: &[&str]) -> Result<String> {
    let output = aquifer(cluster.url(), words)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{words:?}: {said}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Ends the load, and checks what is there.
pub async fn check(cluster: &Cluster, load: Load) -> Result<()> {
    let acknowledged = load.finish().await?;
    check_topic(cluster, TOPIC, &acknowledged).await?;
    eprintln!("{} acknowledged messages are there", acknowledged.len());
    Ok(())
}

/// Checks what is in a topic against what was acknowledged (I1, I7, I8).
async fn check_topic(cluster: &Cluster, topic: &str, acknowledged: &[Acknowledged]) -> Result<()> {
    let client = cluster.client()?;
    let log = within("reading the log", log::read(&client, topic)).await?;
    nothing_lost(acknowledged, &log)?;
    nothing_twice(&log)?;
    producers_in_order(&log)?;
    dense(&log)?;
    ensure!(
        log.len() == acknowledged.len(),
        "{} in the log of {topic}",
        log.len()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_serves_the_command_line_and_keeps_its_data_over_a_restart() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut cluster = start(folder.path(), &[])?;
    let roles = cluster.processes().iter().map(|p| p.role.as_str());
    let roles: Vec<&str> = roles.collect();
    ensure!(
        roles == ["etcd", "bookie", "bookie", "bookie", "broker"],
        "{roles:?}"
    );
    ensure!(cluster.process("broker-1")?.address == cluster.url());
    run(&cluster, &["produce", "greetings", "one", "two", "three"])?;
    let all = "one\ntwo\nthree\n";
    ensure!(run(&cluster, &["read", "greetings"])? == all);
    let consume = [
        "consume",
        "greetings",
        "--subscription",
        "s",
        "--count",
        "2",
    ];
    ensure!(run(&cluster, &consume)? == "one\ntwo\n");
    cluster.stop()?;
    cluster.check_logs()?;

    cluster.restart()?;
    ensure!(run(&cluster, &["read", "greetings"])? == all);
    let rest = ["consume", "greetings", "--subscription", "s"];
    ensure!(
        run(&cluster, &rest)? == "three\n",
        "the subscription goes on"
    );
    run(&cluster, &["produce", "greetings", "four"])?;
    ensure!(run(&cluster, &["read", "greetings"])?.ends_with("three\nfour\n"));
    cluster.stop()?;
    cluster.check_logs()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishing_goes_on_when_a_bookie_is_killed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut cluster = start(folder.path(), &["--bookies", "4"])?;
    let load = Load::start(&cluster)?;
    load.wait_acknowledged(ENOUGH).await?;
    // Of three bookies of four, at least one ledger has each: this one is in use.
    for victim in ["bookie-1", "bookie-2"] {
        let before = load.acknowledged();
        cluster.kill(victim)?;
        load.wait_acknowledged(before + ENOUGH).await?;
        eprintln!("{victim} killed after {before} receipts");
        cluster.start_again(victim)?;
        load.wait_acknowledged(load.acknowledged() + ENOUGH).await?;
    }
    check(&cluster, load).await?;
    cluster.stop()?;
    cluster.check_logs()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_broker_is_killed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut cluster = start(folder.path(), &[])?;
    let load = Load::start(&cluster)?;
    for _ in 0..3 {
        load.wait_acknowledged(load.acknowledged() + ENOUGH).await?;
        cluster.kill("broker-1")?;
        cluster.start_again("broker-1")?;
    }
    load.wait_acknowledged(load.acknowledged() + ENOUGH).await?;
    check(&cluster, load).await?;
    cluster.stop()?;
    cluster.check_logs()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_dies_stays_dead_unless_it_is_supervised() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut cluster = start(folder.path(), &["--bookies", "1", "--supervise"])?;
    run(&cluster, &["produce", "greetings", "one"])?;
    cluster.kill("broker-1")?;
    cluster.kill("bookie-1")?;
    // The same command succeeds again by itself, with the data there.
    until("the cluster to heal", || async {
        let output = aquifer(cluster.url(), &["read", "greetings", "--timeout", "5s"])?;
        Ok((output.stdout == b"one\n").then_some(()))
    })
    .await?;
    cluster.stop()?;

    let mut cluster = start(folder.path(), &["--bookies", "1"])?;
    cluster.kill("bookie-1")?;
    let dev_log = folder.path().join("cluster.dev.log");
    until("the cluster to say so", || async {
        let said = std::fs::read_to_string(&dev_log)?;
        Ok(said
            .contains("bookie-1 ended (signal: 9 (SIGKILL)): it stays down")
            .then_some(()))
    })
    .await?;
    cluster.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_process_outlives_a_killed_cluster_and_its_data_is_there() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut cluster = start(folder.path(), &[])?;
    run(&cluster, &["produce", "greetings", "one"])?;
    cluster.kill_dev()?;
    cluster.check_gone()?;
    cluster.restart()?;
    ensure!(run(&cluster, &["read", "greetings"])? == "one\n");
    cluster.stop().context("after it was killed")
}
