//! Load is balanced by itself: a broker that joins gets its share of what is published, and
//! clients notice no more than a redirect.

use anyhow::{Context, Result, ensure};
use aquifer_harness::cluster::Cluster;
use aquifer_harness::wait::until;
use serde_json::Value;

use crate::cluster::brokers::objects;
use crate::cluster::check_topic;
use crate::cluster::load::Load;

const TOPICS: usize = 8;
/// Receipts of all topics together that say that load goes on.
const ENOUGH: u64 = 2_000;
/// Rounds that do not take long, and moves without a budget.
const ENVIRONMENT: [(&str, &str); 4] = [
    ("AQUIFER_BROKER_BALANCE_PERIOD_MS", "500"),
    ("AQUIFER_BROKER_BALANCE_WINDOW_MS", "3000"),
    ("AQUIFER_BROKER_BALANCE_SPLIT_COOLDOWN_MS", "2000"),
    ("AQUIFER_BROKER_BALANCE_MOVED_PERCENT_PER_MINUTE_MAX", "100"),
];

fn topics() -> Vec<String> {
    (0..TOPICS)
        .map(|number| format!("public/default/hot-{number}"))
        .collect()
}

/// The load of each broker that is announced, in units, by its URL.
fn loads(cluster: &Cluster) -> Result<Vec<(String, f64)>> {
    let brokers = objects(cluster, &["cluster", "brokers"])?;
    let load = |broker: &Value| {
        let url = broker["url"].as_str().context("a URL")?.to_owned();
        anyhow::Ok((url, broker["load"]["units"].as_f64().unwrap_or_default()))
    };
    brokers.iter().map(load).collect()
}

/// Bundles that the broker at a URL owns.
fn owned_by(cluster: &Cluster, url: &str) -> Result<usize> {
    let bundles = objects(cluster, &["cluster", "bundles"])?;
    Ok(bundles.iter().filter(|bundle| bundle["url"] == url).count())
}

/// Waits until the broker at a URL has a good part of the load of both.
async fn has_its_share(cluster: &Cluster, url: &str) -> Result<()> {
    until("the load to be shared", || async {
        let loads = loads(cluster)?;
        let total: f64 = loads.iter().map(|(_, load)| load).sum();
        let found = loads.iter().find(|(at, _)| at == url);
        let share = found.map_or(0.0, |(_, load)| load / total.max(1.0));
        Ok((share >= 0.3).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_broker_sheds_to_one_that_joins() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data_dir = folder.path().join("cluster");
    let mut cluster = Cluster::start_with(&data_dir, &["--brokers", "2"], &ENVIRONMENT)?;
    let newcomer = cluster.process("broker-2")?.address.clone();
    cluster.terminate("broker-2")?;
    let load = Load::on(&cluster, &topics())?;
    load.wait_acknowledged(ENOUGH).await?;
    ensure!(owned_by(&cluster, &newcomer)? == 0, "it is not there");
    cluster.start_again("broker-2")?;
    has_its_share(&cluster, &newcomer).await?;
    ensure!(owned_by(&cluster, &newcomer)? > 0, "load without a bundle");
    load.wait_acknowledged(load.acknowledged() + ENOUGH).await?;
    // The broker that leads dies without a word: the other takes what it owned, and leads.
    let first = cluster.process("broker-1")?.address.clone();
    cluster.kill("broker-1")?;
    until("another to lead", || async {
        let leads = cluster
            .log("broker-2")
            .contains("this broker balances load now");
        Ok(leads.then_some(()))
    })
    .await?;
    load.wait_acknowledged(load.acknowledged() + ENOUGH).await?;
    cluster.start_again("broker-1")?;
    has_its_share(&cluster, &first).await?;
    load.wait_acknowledged(load.acknowledged() + ENOUGH).await?;
    let acknowledged = load.finish().await?;
    for (number, topic) in topics().iter().enumerate() {
        let name = format!("load-{number}");
        let sent = acknowledged.iter().filter(|sent| sent.producer == name);
        let sent: Vec<_> = sent.cloned().collect();
        check_topic(&cluster, topic, &sent).await.context(name)?;
    }
    cluster.stop()?;
    cluster.check_logs()
}
