//! Measures what many topics cost, on real processes of this machine (etcd, three bookies and three
//! brokers that `aquifer dev` starts): how fast they are created and loaded, what an idle one takes
//! of memory and of etcd, how long lookups take under load, and how soon all are served again when
//! the broker that served all of them is killed. Prints one JSON object.
//!
//! ```text
//! cargo run --release -p aquifer-tests --example topics -- [TOPICS [ACTIVE [MESSAGES_PER_SECOND]]]
//! ```
//!
//! The active topics have a producer and a consumer each, the others none. `AQUIFER_BIN` names
//! another binary than the one of this build, `AQUIFER_MEASURE_DIR` another directory than the
//! usual temporary one.

#[path = "topics/load.rs"]
mod load;

use std::time::Duration;

use anyhow::{Context, Result};
use aquifer_client::Client;
use aquifer_client::admin::Admin;
use aquifer_harness::cluster::Cluster;
use aquifer_harness::figures::{argument, percentiles, rounded};
use aquifer_harness::processes;
use aquifer_runtime::clock::{Clock, SystemClock, sleep};
use aquifer_runtime::rng::{Rng, SystemRng};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

use load::Load;

const TOPICS: usize = 100_000;
const ACTIVE: usize = 200;
const MESSAGES_PER_SECOND: f64 = 2_000.0;
const NAMESPACE: &str = "public/default";
const BROKERS: [&str; 3] = ["broker-1", "broker-2", "broker-3"];
/// Requests that wait for their answers.
const AT_ONCE: usize = 256;
/// How long nothing happens, or only load, while writes are counted.
const WATCHED: Duration = Duration::from_secs(30);
const LOOKUPS_PER_SECOND: u32 = 200;
/// A topic without clients is unloaded after this time; until then it is measured.
const IDLE_MS: &str = "300000";

fn main() -> Result<()> {
    let topics = argument(0, TOPICS)?;
    let active = argument(1, ACTIVE)?;
    let rate = argument(2, MESSAGES_PER_SECOND)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(measure(topics, active, rate))
}

/// The name of a topic.
fn topic(number: usize) -> String {
    format!("{NAMESPACE}/topics-{number}")
}

async fn measure(topics: usize, active: usize, rate: f64) -> Result<()> {
    let directory = processes::directory()?;
    let settings = [
        ("AQUIFER_BROKER_BALANCE_ENABLED", "false"),
        ("AQUIFER_BROKER_TOPIC_IDLE_MS", IDLE_MS),
    ];
    let dev = ["--brokers", "3"];
    let mut cluster = Cluster::start_with(&directory.join("cluster"), &dev, &settings)?;
    let etcd = processes::etcd(&cluster)?;
    let client = client(&cluster)?;
    let admin = client.admin();
    let nothing = sizes(&cluster, &etcd)?;

    let created = each(topics, |number| {
        let admin = admin.clone();
        async move { Ok(admin.create_topic(&topic(number), 0).await?) }
    })
    .await
    .context("creating topics")?;
    processes::compact(&etcd)?;
    let after_creation = sizes(&cluster, &etcd)?;
    eprintln!("created: {created} {after_creation}");

    cluster.give_all(&admin, NAMESPACE, "broker-1").await?;
    let loaded = load_all(&admin, topics).await.context("loading topics")?;
    let after_loading = sizes(&cluster, &etcd)?;
    eprintln!("loaded: {loaded} {after_loading}");

    let idle_writes = writes_per_second(&etcd, sleep(WATCHED)).await?;
    let load = Load::start(&client, active.min(topics), rate).await?;
    let (mut lookups, mut failed) = (Vec::new(), 0);
    let began = load.counts();
    let watched = async { (lookups, failed) = look_up(&admin, topics).await };
    let load_writes = writes_per_second(&etcd, watched).await?;
    let counted = load.counts().since(began);
    eprintln!("under load: {load_writes} writes/s, {counted:?}");

    cluster.kill("broker-1")?;
    let served = load_all(&admin, topics)
        .await
        .context("after the owner of all was killed")?;
    load.wait_for_progress().await?;
    eprintln!("served again: {served}");
    let after_failover = sizes(&cluster, &etcd)?;
    load.stop().await?;
    let result = json!({
        "topics": topics,
        "active": active,
        "with_nothing_stored": nothing,
        "created": created,
        "after_creation": after_creation,
        "loaded_by_one_broker": loaded,
        "after_loading": after_loading,
        "etcd_writes_per_second_idle": idle_writes,
        "etcd_writes_per_second_under_load": load_writes,
        "load_per_second": {
            "published": counted.published / WATCHED.as_secs(),
            "acknowledged_by_consumers": counted.acknowledged / WATCHED.as_secs(),
        },
        "lookup_ms_under_load": percentiles(&mut lookups),
        "lookups_failed": failed,
        "served_after_owner_of_all_was_killed": served,
        "after_failover": after_failover,
    });
    println!("{result:#}");
    cluster.stop()?;
    Ok(std::fs::remove_dir_all(directory)?)
}

/// A client that knows every broker.
fn client(cluster: &Cluster) -> Result<Client> {
    let mut urls = Vec::new();
    for broker in BROKERS {
        urls.push(cluster.process(broker)?.address.clone());
    }
    let builder = Client::builder().urls(urls);
    Ok(builder
        .operation_timeout(Duration::from_secs(300))
        .build()?)
}

/// Asks every topic for its state, which loads it.
async fn load_all(admin: &Admin, topics: usize) -> Result<Value> {
    each(topics, |number| {
        let admin = admin.clone();
        async move {
            admin.topic_stats(&topic(number)).await?;
            Ok(())
        }
    })
    .await
}

/// Does something for each topic, many at once; says how long all took, and each from the
/// beginning.
async fn each<F>(topics: usize, act: impl Fn(usize) -> F) -> Result<Value>
where
    F: Future<Output = Result<()>>,
{
    let began = SystemClock.monotonic();
    let timed = |number| {
        let acting = act(number);
        async move {
            acting.await?;
            anyhow::Ok(SystemClock.monotonic() - began)
        }
    };
    let all = stream::iter((0..topics).map(timed)).buffer_unordered(AT_ONCE);
    let done: Vec<Duration> = all.try_collect().await?;
    let took = (SystemClock.monotonic() - began).as_secs_f64();
    Ok(json!({
        "seconds": rounded(took),
        "per_second": rounded(f64::from(u32::try_from(topics)?) / took),
        "first_after_seconds": done.first().map(|first| rounded(first.as_secs_f64())),
    }))
}

/// Looks topics up at random, at this rate; says how long each took, and how many failed.
async fn look_up(admin: &Admin, topics: usize) -> (Vec<Duration>, usize) {
    let began = SystemClock.monotonic();
    let pause = Duration::from_secs(1) / LOOKUPS_PER_SECOND;
    let count = LOOKUPS_PER_SECOND * u32::try_from(WATCHED.as_secs()).unwrap_or(u32::MAX);
    let one = |at: u32| {
        let number = SystemRng.below(topics as u64);
        let name = topic(usize::try_from(number).unwrap_or_default());
        async move {
            let due = began + pause * at;
            sleep(due.saturating_sub(SystemClock.monotonic())).await;
            let began = SystemClock.monotonic();
            let found = admin.describe_topic(&name).await;
            found.is_ok().then(|| SystemClock.monotonic() - began)
        }
    };
    let all = stream::iter((0..count).map(one)).buffer_unordered(AT_ONCE);
    let all: Vec<Option<Duration>> = all.collect().await;
    let failed = all.iter().filter(|took| took.is_none()).count();
    (all.into_iter().flatten().collect(), failed)
}

/// Transactions per second that etcd makes while something goes on.
async fn writes_per_second(etcd: &str, meanwhile: impl Future<Output = ()>) -> Result<f64> {
    let before = processes::etcd_status(etcd)?.revision;
    let began = SystemClock.monotonic();
    meanwhile.await;
    let took = (SystemClock.monotonic() - began).as_secs_f64();
    let writes = processes::etcd_status(etcd)?.revision - before;
    Ok(rounded(f64::from(u32::try_from(writes)?) / took))
}

/// Memory of brokers, in MiB and by name, and what etcd stores.
fn sizes(cluster: &Cluster, etcd: &str) -> Result<Value> {
    let mut sizes = serde_json::Map::new();
    for broker in BROKERS {
        let pid = cluster.process(broker)?.pid;
        // One that was killed takes nothing.
        if let Ok(bytes) = processes::resident_bytes(pid) {
            sizes.insert(format!("{broker}_mib"), (bytes >> 20).into());
        }
    }
    let status = processes::etcd_status(etcd)?;
    sizes.insert("etcd_mib".to_owned(), (status.bytes >> 20).into());
    sizes.insert("etcd_revision".to_owned(), status.revision.into());
    Ok(sizes.into())
}
