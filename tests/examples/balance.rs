//! Measures the balance of load between brokers, on real processes of this machine (etcd, three
//! bookies and brokers that `aquifer dev` starts): topics with skewed load on three brokers, a
//! fourth that joins, and one that leaves. Prints one JSON object.
//!
//! ```text
//! cargo run --release -p aquifer-tests --example balance -- \
//!   [TOPICS [MESSAGES_PER_SECOND [PHASE_SECONDS]]]
//! ```
//!
//! Load is balanced while topics are opened, too: the first phase begins when all of them are.
//!
//! The load of a broker is what is published to the topics whose bundles it owns by the rates that
//! this program has chosen, so that what brokers measure themselves is not asked. `AQUIFER_BIN`
//! names another binary than the one of this build.

#[path = "balance/load.rs"]
mod load;
#[path = "balance/watch.rs"]
mod watch;

use std::time::Duration;

use anyhow::Result;
use aquifer_harness::cluster::Cluster;
use aquifer_harness::figures::argument;
use aquifer_runtime::clock::{Clock, SystemClock, sleep};
use serde_json::{Value, json};

use load::Load;
use watch::Watch;

const TOPICS: usize = 2_000;
const MESSAGES_PER_SECOND: f64 = 2_000.0;
const PHASE_SECONDS: u64 = 180;
const LOOK: Duration = Duration::from_secs(2);
/// What is good: the most loaded broker has at most this multiple of the mean.
const TARGET: f64 = 1.3;

fn main() -> Result<()> {
    let topics = argument(0, TOPICS)?;
    let rate = argument(1, MESSAGES_PER_SECOND)?;
    let seconds = argument(2, PHASE_SECONDS)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(measure(topics, rate, Duration::from_secs(seconds)))
}

async fn measure(topics: usize, rate: f64, phase: Duration) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut cluster = Cluster::start(&folder.path().join("cluster"), &["--brokers", "4"])?;
    // It owns nothing yet, so that nothing moves.
    cluster.terminate("broker-4")?;
    let client = cluster.client()?;
    let load = Load::start(&client, topics, rate).await?;
    eprintln!("{topics} topics are open");
    let mut watch = Watch::new(client.admin(), load.rates());
    let mut phases = Vec::new();
    phases.push(follow(&mut watch, &load, "start", phase).await?);
    cluster.start_again("broker-4")?;
    phases.push(follow(&mut watch, &load, "join", phase).await?);
    watch.leaving(&cluster.process("broker-1")?.address);
    cluster.terminate("broker-1")?;
    phases.push(follow(&mut watch, &load, "leave", phase).await?);
    let (acknowledged, failed) = load.stop().await;
    let result = json!({
        "topics": topics,
        "messages_per_second": rate,
        "phase_seconds": phase.as_secs(),
        "phases": phases,
        "topics_moved_twice_within_5_minutes": watch.moved_twice(),
        "of_those_once_because_a_broker_left": watch.moved_twice_with_a_leave(),
        "bundles_at_the_end": watch.bundles(),
        "acknowledged": acknowledged,
        "failed": failed,
    });
    println!("{result:#}");
    cluster.stop()?;
    cluster.check_logs()
}

/// Looks at the spread for a while.
async fn follow(watch: &mut Watch, load: &Load, name: &str, phase: Duration) -> Result<Value> {
    let began = SystemClock.monotonic();
    let before = watch.moves();
    let (mut spreads, mut good, mut last_bad) = (Vec::new(), None, None);
    let acknowledged = load.acknowledged();
    loop {
        let at = SystemClock.monotonic() - began;
        if at > phase {
            break;
        }
        let spread = watch.look().await?;
        let seconds = (at.as_secs_f64() * 10.0).round() / 10.0;
        if spread <= TARGET {
            good = good.or(Some(seconds));
        } else {
            last_bad = Some(seconds);
        }
        eprintln!("{name} {seconds:.0} s: {spread:.3}");
        spreads.push(json!([seconds, (spread * 1000.0).round() / 1000.0]));
        sleep(LOOK).await;
    }
    Ok(json!({
        "phase": name,
        "spread": spreads,
        "seconds_until_good": good,
        "seconds_until_it_stays_good": last_bad.map_or(Some(0.0), |bad| {
            (bad + LOOK.as_secs_f64() <= phase.as_secs_f64()).then_some(bad + LOOK.as_secs_f64())
        }),
        "bundle_moves": watch.moves() - before,
        "acknowledged": load.acknowledged() - acknowledged,
    }))
}
