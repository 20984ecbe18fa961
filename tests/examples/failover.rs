//! Measures what clients notice when a broker goes away, on real processes of this machine (etcd,
//! three bookies and three brokers that `aquifer dev` starts): one broker owns all topics and is
//! killed; another owns them and is asked to end; then every broker is restarted in turn. Prints
//! one JSON object; ends with an error when something acknowledged is lost, out of order or stored
//! twice, or when a message comes again after its acknowledgement was confirmed (I9).
//!
//! ```text
//! cargo run --release -p aquifer-tests --example failover -- [TOPICS [PACE_MS]]
//! ```
//!
//! Each topic has a producer that sends a message, waits for its receipt, and sends the next after
//! the pace, and a consumer of a shared subscription that waits for the confirmation of each of its
//! acknowledgements; while something happens, further consumers come. What a topic was away for is
//! the longest that one of its sends took. Load is not balanced
//! meanwhile, so that one broker owns everything. `AQUIFER_BIN` names another binary than the one
//! of this build.

#[path = "failover/consumers.rs"]
mod consumers;
#[path = "failover/load.rs"]
mod load;

use std::time::Duration;

use anyhow::{Result, ensure};
use aquifer_client::Client;
use aquifer_harness::cluster::Cluster;
use aquifer_harness::figures::{argument, percentiles};
use aquifer_runtime::clock::{Clock, SystemClock, sleep};
use serde_json::{Value, json};

use consumers::Consumers;
use load::Load;

const TOPICS: usize = 1_000;
const PACE_MS: u64 = 250;
const NAMESPACE: &str = "public/default";
const BROKERS: [&str; 3] = ["broker-1", "broker-2", "broker-3"];
/// How often another consumer comes while something happens.
const NEWCOMER: Duration = Duration::from_millis(25);
/// Until what a phase has changed is over.
const QUIET: Duration = Duration::from_secs(10);
/// How long every topic may take to go on.
const LIMIT: Duration = Duration::from_secs(120);

fn main() -> Result<()> {
    let topics = argument(0, TOPICS)?;
    let pace = argument(1, PACE_MS)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(measure(topics, Duration::from_millis(pace)))
}

async fn measure(topics: usize, pace: Duration) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let off = [("AQUIFER_BROKER_BALANCE_ENABLED", "false")];
    let dev = ["--brokers", "3"];
    let mut cluster = Cluster::start_with(&folder.path().join("cluster"), &dev, &off)?;
    let client = client(&cluster)?;
    let load = Load::start(&client, topics, pace);
    load.wait_for_progress(LIMIT).await?;
    let consumers = Consumers::start(&client, topics);
    let come = || consumers.newcomers(client.clone(), NEWCOMER);
    eprintln!("{topics} topics are open");

    let quiet = phase(&load, async { Ok(()) }).await?;
    owns_all(&cluster, &client, &load, "broker-1").await?;
    let killed = phase(&load, async {
        let _come = come();
        cluster.kill("broker-1")?;
        load.wait_for_progress(LIMIT).await
    })
    .await?;
    cluster.start_again("broker-1")?;
    owns_all(&cluster, &client, &load, "broker-2").await?;
    let drained = phase(&load, async {
        let _come = come();
        cluster.terminate("broker-2")
    })
    .await?;
    cluster.start_again("broker-2")?;
    let given = phase(&load, async {
        let _come = come();
        give_all(&cluster, &client, &load, "broker-3").await
    })
    .await?;
    let restarted = phase(&load, async {
        let _come = come();
        for broker in BROKERS {
            cluster.terminate(broker)?;
            cluster.start_again(broker)?;
        }
        Ok(())
    })
    .await?;

    let histories = load.stop().await?;
    let acknowledged: usize = histories.iter().map(Vec::len).sum();
    load::check(&client, &histories).await?;
    let acknowledgements = consumers.figures();
    let again = consumers.stop().await?;
    let result = json!({
        "topics": topics,
        "pace_ms": u64::try_from(pace.as_millis())?,
        "nothing_happens": quiet,
        "owner_of_all_killed": killed,
        "owner_of_all_drained": drained,
        "owner_of_all_gives_all": given,
        "rolling_restart_of_brokers": restarted,
        "acknowledgements": acknowledgements,
        "acknowledged": acknowledged,
        "lost": 0,
        "stored_twice": 0,
    });
    println!("{result:#}");
    ensure!(
        again == 0,
        "I9: {again} messages came again after their acknowledgement was confirmed"
    );
    cluster.stop()?;
    cluster.check_logs()
}

/// Gives everything to a broker, and waits until all is quiet again.
async fn owns_all(cluster: &Cluster, client: &Client, load: &Load, broker: &str) -> Result<()> {
    give_all(cluster, client, load, broker).await?;
    sleep(QUIET).await;
    Ok(())
}

/// Gives everything to a broker, and waits until every topic goes on.
async fn give_all(cluster: &Cluster, client: &Client, load: &Load, broker: &str) -> Result<()> {
    let admin = client.admin();
    cluster.give_all(&admin, NAMESPACE, broker).await?;
    load.wait_for_progress(LIMIT).await
}

/// A client that knows every broker.
fn client(cluster: &Cluster) -> Result<Client> {
    let mut urls = Vec::new();
    for broker in BROKERS {
        urls.push(cluster.process(broker)?.address.clone());
    }
    Ok(Client::builder().urls(urls).build()?)
}

/// Does something, waits until every topic has gone on and all is quiet again, and says how long
/// sends took meanwhile.
async fn phase(load: &Load, happens: impl Future<Output = Result<()>>) -> Result<Value> {
    load.forget();
    let (began, acknowledged) = (SystemClock.monotonic(), load.acknowledged());
    happens.await?;
    load.wait_for_progress(LIMIT).await?;
    sleep(QUIET).await;
    let acknowledged = load.acknowledged() - acknowledged;
    let (mut longest, mut all) = load.latencies();
    ensure!(!all.is_empty(), "nothing was sent");
    let result = json!({
        "seconds": (SystemClock.monotonic() - began).as_secs(),
        "acknowledged": acknowledged,
        "failed": 0,
        "longest_send_of_a_topic_ms": percentiles(&mut longest),
        "send_ms": percentiles(&mut all),
    });
    eprintln!("{result}");
    Ok(result)
}
