//! Several brokers: topics are found from any of them, and served without a
//! noticeable gap while bundles move, split, and brokers come and go under load.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use aquifer_harness::cluster::Cluster;
use serde_json::Value;

use crate::cluster::load::Load;
use crate::cluster::{check_topic, run};

const NAMESPACE: &str = "public/default";
const BROKERS: [&str; 3] = ["broker-1", "broker-2", "broker-3"];
const TOPICS: usize = 6;
/// Receipts of all topics together between two changes.
const ENOUGH: u64 = 2_000;

fn topics() -> Vec<String> {
    (0..TOPICS)
        .map(|number| format!("{NAMESPACE}/spread-{number}"))
        .collect()
}

/// What a command prints, an object a line.
pub fn objects(cluster: &Cluster, words: &[&str]) -> Result<Vec<Value>> {
    let mut all = vec!["--output", "json"];
    all.extend(words);
    let printed = run(cluster, &all)?;
    let objects = printed.lines().map(serde_json::from_str);
    Ok(objects.collect::<Result<_, _>>()?)
}

/// The bundles that have an owner, with the URL of the owner.
fn owned(cluster: &Cluster) -> Result<Vec<(String, String)>> {
    let bundles = objects(cluster, &["cluster", "bundles", NAMESPACE])?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let owned = bundles
        .iter()
        .filter_map(|bundle| Some((text(&bundle["bundle"])?, text(&bundle["url"])?)));
    Ok(owned.collect())
}

fn brokers(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let brokers = objects(cluster, &["cluster", "brokers"])?;
    let urls = brokers
        .iter()
        .filter_map(|broker| broker["url"].as_str().map(str::to_owned));
    Ok(urls.collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bundles_move_and_brokers_come_and_go_under_load() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // What an operator moves here shall stay where it was moved to.
    let environment = [("AQUIFER_BROKER_BALANCE_ENABLED", "false")];
    let data_dir = folder.path().join("cluster");
    let mut cluster = Cluster::start_with(&data_dir, &["--brokers", "3"], &environment)?;
    ensure!(brokers(&cluster)?.len() == 3, "three brokers are announced");
    let load = Load::on(&cluster, &topics())?;
    let more = || load.wait_acknowledged(load.acknowledged() + ENOUGH);
    more().await?;
    move_all(&cluster)?;
    more().await?;
    split_one(&cluster)?;
    more().await?;
    for name in BROKERS {
        drain(&mut cluster, name)?;
        more().await?;
    }
    // One that owns something dies without a word.
    let victim = cluster.processes().iter().find(|process| {
        let owned = owned(&cluster).unwrap_or_default();
        process.role == "broker" && owned.iter().any(|(_, url)| *url == process.address)
    });
    let victim = victim.context("a bundle has an owner")?.name.clone();
    cluster.kill(&victim)?;
    more().await?;
    cluster.start_again(&victim)?;
    more().await?;
    check(&cluster, load).await?;
    cluster.stop()?;
    cluster.check_logs()
}

/// Every bundle that is owned moves to another broker.
fn move_all(cluster: &Cluster) -> Result<()> {
    let before = owned(cluster)?;
    ensure!(!before.is_empty(), "topics have owners");
    run(cluster, &["cluster", "unload", NAMESPACE])?;
    for ((bundle, old), (same, new)) in before.iter().zip(owned(cluster)?) {
        ensure!(*bundle == same && *old != new, "{bundle} stays at {old}");
    }
    Ok(())
}

fn split_one(cluster: &Cluster) -> Result<()> {
    let (bundle, owner) = owned(cluster)?
        .into_iter()
        .next()
        .context("an owned bundle")?;
    let parts = objects(cluster, &["cluster", "split", NAMESPACE, &bundle])?;
    let parts = parts[0]["bundles"].as_array().context("a list")?.clone();
    let after = owned(cluster)?;
    for part in parts {
        let is_there = after
            .iter()
            .any(|(bundle, url)| part == bundle.as_str() && *url == owner);
        ensure!(is_there, "{part} is not at {owner}: {after:?}");
    }
    Ok(())
}

/// SIGTERM: everything that it owned is elsewhere when it has ended; then it starts again.
fn drain(cluster: &mut Cluster, name: &str) -> Result<()> {
    let address = cluster.process(name)?.address.clone();
    cluster.terminate(name)?;
    let left: Vec<_> = owned(cluster)?
        .into_iter()
        .filter(|(_, url)| *url == address)
        .collect();
    ensure!(left.is_empty(), "{name} has ended and owns {left:?}");
    cluster.start_again(name)
}

async fn check(cluster: &Cluster, load: Load) -> Result<()> {
    let acknowledged = load.finish().await?;
    for (number, topic) in topics().iter().enumerate() {
        let name = format!("load-{number}");
        let sent = acknowledged
            .iter()
            .filter(|sent| sent.producer == name)
            .cloned();
        let sent: Vec<_> = sent.collect();
        check_topic(cluster, topic, &sent).await.context(name)?;
    }
    Ok(())
}
