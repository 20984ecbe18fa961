//! Restarts every process of a cluster under load, as `deploy/rolling-restart.sh` does it, and
//! measures what clients notice: etcd, three bookies and three brokers that `aquifer dev` starts
//! and watches. Prints one JSON object; ends with an error when a publish fails, or something
//! acknowledged is lost, out of order or stored twice.
//!
//! ```text
//! cargo run --release -p aquifer-tests --example rolling -- [TOPICS [PACE_MS]]
//! ```
//!
//! Each topic has a producer that sends a message, waits for its receipt, and sends the next after
//! the pace. `AQUIFER_BIN` names another binary than the one of this build.

#[path = "failover/load.rs"]
mod load;

use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aquifer_harness::cluster::Cluster;
use aquifer_harness::figures::{argument, percentiles};
use aquifer_harness::server::binary;
use aquifer_runtime::clock::{Clock, SystemClock, sleep};
use serde_json::json;

use load::Load;

const TOPICS: usize = 100;
const PACE_MS: u64 = 50;
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/rolling-restart.sh");
/// How long every topic may take to go on.
const LIMIT: Duration = Duration::from_secs(120);
/// Until what was restarted last is over.
const QUIET: Duration = Duration::from_secs(5);

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
    let dev = ["--brokers", "3", "--supervise"];
    let mut cluster = Cluster::start(&folder.path().join("cluster"), &dev)?;
    let inventory = folder.path().join("inventory");
    std::fs::write(&inventory, lines(&cluster))?;
    let client = cluster.client()?;
    let load = Load::start(&client, topics, pace);
    load.wait_for_progress(LIMIT).await?;
    load.forget();
    let (began, acknowledged) = (SystemClock.monotonic(), load.acknowledged());
    let metadata = cluster.metadata()?;
    let restarted = tokio::task::spawn_blocking(move || restart(&inventory, &metadata));
    restarted.await??;
    load.wait_for_progress(LIMIT).await?;
    sleep(QUIET).await;
    let seconds = (SystemClock.monotonic() - began).as_secs();
    let acknowledged = load.acknowledged() - acknowledged;
    let (mut longest, mut all) = load.latencies();
    // A publish that failed would have ended its producer with an error.
    let histories = load.stop().await.context("a publish failed")?;
    load::check(&client, &histories).await?;
    let result = json!({
        "topics": topics,
        "pace_ms": u64::try_from(pace.as_millis())?,
        "processes_restarted": cluster.processes().len(),
        "seconds": seconds,
        "acknowledged": acknowledged,
        "failed": 0,
        "longest_send_of_a_topic_ms": percentiles(&mut longest),
        "send_ms": percentiles(&mut all),
    });
    println!("{result:#}");
    cluster.stop()
}

/// The inventory: bookies, then brokers, then etcd. `aquifer dev` starts again what ends.
fn lines(cluster: &Cluster) -> String {
    let mut lines = String::new();
    for role in ["bookie", "broker", "etcd"] {
        for process in cluster.processes().iter().filter(|p| p.role == role) {
            let (name, http, pid) = (&process.name, &process.http, process.pid);
            // Writing to a string does not fail.
            let _ = writeln!(lines, "{role} {name} {http} kill -TERM {pid}");
        }
    }
    lines
}

fn restart(inventory: &Path, metadata: &str) -> Result<()> {
    let status = Command::new(SCRIPT)
        .args(["--metadata", metadata, "--cluster", "dev", "--aquifer"])
        .arg(binary())
        .arg(inventory)
        .status()
        .context(SCRIPT)?;
    ensure!(status.success(), "{SCRIPT} ended with {status}");
    Ok(())
}
