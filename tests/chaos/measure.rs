//! How long publishing pauses when a bookie is lost, and how fast lost copies are replaced.

use std::collections::VecDeque;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aquifer_client::Message;
use aquifer_harness::http::metric;
use aquifer_harness::server::binary;
use aquifer_runtime::clock::{Clock, SystemClock, millis, sleep};
use aquifer_runtime::rng::SeededRng;
use serde_json::json;

use crate::cluster::{BOOKIES, BROKERS, Cluster, NAME};
use crate::fault::{self, Kind};
use crate::traffic::Traffic;

/// Bookies that are killed, one after the other.
const KILLS: u64 = 20;
/// Bookies that fall silent, one after the other.
const SILENCES: u64 = 6;
/// How long each is away: longer than any timeout that matters.
const KILLED: Duration = Duration::from_secs(4);
const SILENT: Duration = Duration::from_secs(20);
/// Until everything is as it was.
const LIMIT: Duration = Duration::from_secs(60);
const BULK_TOPIC: &str = "public/default/bulk";
const BULK_MESSAGE: usize = 16 << 10;
const BULK_WINDOW: usize = 256;
/// How long repair of the bulk may take.
const REPAIR: Duration = Duration::from_secs(300);
const COPIED: &str = "aquifer_repair_copied_bytes_total";

/// Bookies that look through everything once a minute have no rate left for copies; and it is to be
/// seen what the machine can do, not what a cluster is allowed to by default (32 MiB a second).
pub const REPAIR_CONFIG: &str = "check_cycle_ms = 0\nrepair_bytes_per_second = 268435456\n";

/// Measures, and prints one JSON object.
///
/// # Errors
/// When a client does not continue.
pub async fn run(cluster: &mut Cluster, rng: &SeededRng, rate: u64, bulk_bytes: u64) -> Result<()> {
    let traffic = Traffic::start(cluster, rate, 0)?;
    traffic
        .wait_for_progress(LIMIT, || cluster.revive())
        .await
        .context("at the start")?;
    let killed = pauses(cluster, &traffic, rng, Kind::KillBookie, KILLS, KILLED).await?;
    let silent = pauses(cluster, &traffic, rng, Kind::Isolate, SILENCES, SILENT).await?;
    traffic.finish(LIMIT).await?;
    let copies = replace_copies(cluster, bulk_bytes).await?;
    println!(
        "{}",
        json!({"bookie_killed": killed, "bookie_silent": silent, "copies_replaced": copies})
    );
    Ok(())
}

/// The longest pause of every producer around each loss of a bookie.
async fn pauses(
    cluster: &mut Cluster,
    traffic: &Traffic,
    rng: &SeededRng,
    kind: Kind,
    times: u64,
    away: Duration,
) -> Result<serde_json::Value> {
    let mut gaps = Vec::new();
    let mut hit = 0;
    for _ in 0..times {
        sleep(Duration::from_secs(2)).await;
        take_gaps(traffic);
        let mut taken = Vec::new();
        let injected = fault::inject(kind, cluster, traffic, rng, &mut taken).await?;
        fault::hold(&injected, cluster, away).await?;
        let found = take_gaps(traffic);
        hit += u64::from(found.iter().any(|gap| *gap > Duration::from_millis(100)));
        gaps.extend(found);
        fault::heal(injected, cluster).await?;
        traffic
            .wait_for_progress(LIMIT, || cluster.revive())
            .await?;
    }
    gaps.sort_unstable();
    let at = |share: usize| {
        let gap = gaps.get((gaps.len() * share / 100).min(gaps.len().saturating_sub(1)));
        gap.map_or(0, |gap| millis(*gap))
    };
    eprintln!("  {kind:?} x {times}: {gaps:?}");
    Ok(json!({
        "losses": times,
        "losses_with_a_pause_above_100_ms": hit,
        "pauses": gaps.len(),
        "pause_ms": {"p50": at(50), "p99": at(99), "max": at(100)},
    }))
}

fn take_gaps(traffic: &Traffic) -> Vec<Duration> {
    let now = traffic.now();
    traffic
        .producing
        .iter()
        .map(|pulse| pulse.take_longest_gap(now))
        .collect()
}

/// Kills a bookie for good and waits until no ledger names it.
async fn replace_copies(cluster: &mut Cluster, bulk_bytes: u64) -> Result<serde_json::Value> {
    let started = SystemClock.monotonic();
    publish_bulk(cluster, bulk_bytes).await?;
    let published = SystemClock.monotonic() - started;
    // The ledger that is open is repaired as well, once it is closed: another broker closes it.
    cluster.replace_brokers(0..BROKERS)?;
    let lost = fullest(cluster)?;
    let id = incarnation(cluster, lost)?;
    let before = copied(cluster, lost).await?;
    cluster.bookies[lost].node.kill()?;
    let killed = SystemClock.monotonic();
    let (mut first, mut last, mut bytes) = (None, killed, 0.0);
    loop {
        sleep(Duration::from_millis(200)).await;
        cluster.revive()?;
        let now = SystemClock.monotonic();
        let copied = copied(cluster, lost).await? - before;
        if copied > bytes {
            first.get_or_insert(last);
            bytes = copied;
        }
        last = now;
        if bytes > 0.0 && ledgers_of(cluster, &id)? == 0 {
            let took = now - first.unwrap_or(now);
            return Ok(json!({
                "published_bytes": bulk_bytes,
                "published_in_ms": millis(published),
                "copied_bytes": bytes,
                "copied_in_ms": millis(took),
                "bytes_per_second": bytes / took.as_secs_f64(),
                "after_the_loss_ms": millis(now - killed),
            }));
        }
        ensure!(
            now - killed < REPAIR,
            "copies are not replaced after {REPAIR:?}"
        );
    }
}

async fn publish_bulk(cluster: &Cluster, bytes: u64) -> Result<()> {
    let producer = cluster
        .client()?
        .producer(BULK_TOPIC)
        .send_timeout(None)
        .open()
        .await?;
    let mut pending = VecDeque::new();
    for number in 0..bytes / BULK_MESSAGE as u64 {
        let mut payload = vec![u8::try_from(number % 251)?; BULK_MESSAGE];
        payload[..8].copy_from_slice(&number.to_be_bytes());
        pending.push_back(producer.enqueue(Message::new(payload)).await?);
        if pending.len() >= BULK_WINDOW
            && let Some(send) = pending.pop_front()
        {
            send.await?;
        }
    }
    for send in pending {
        send.await?;
    }
    Ok(())
}

/// The bookie whose disk has the least free space.
fn fullest(cluster: &Cluster) -> Result<usize> {
    let mut found = None;
    for at in 0..BOOKIES {
        let free = cluster.bookies[at].mount.available()?;
        if found.is_none_or(|(least, _)| free < least) {
            found = Some((free, at));
        }
    }
    Ok(found.context("there are bookies")?.1)
}

/// The identity that a bookie printed when it started.
fn incarnation(cluster: &Cluster, at: usize) -> Result<String> {
    let text = cluster.bookies[at].node.text();
    let id = text
        .rsplit("\"id\":\"")
        .next()
        .and_then(|rest| rest.split('"').next());
    match id {
        Some(id) if id.len() == 32 => Ok(id.to_owned()),
        _ => bail!("a bookie prints its identity"),
    }
}

async fn copied(cluster: &Cluster, without: usize) -> Result<f64> {
    let mut sum = 0.0;
    for (at, bookie) in cluster.bookies.iter().enumerate() {
        if at != without {
            sum += metric(&cluster.address(&bookie.node, 7680), COPIED).await?;
        }
    }
    Ok(sum)
}

fn ledgers_of(cluster: &Cluster, bookie: &str) -> Result<usize> {
    let output = Command::new(binary())
        .args([
            "ledger",
            "list",
            "--output",
            "json",
            "--cluster",
            NAME,
            "--bookie",
            bookie,
        ])
        .args(["--metadata", &cluster.metadata()])
        .output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{errors}");
    Ok(String::from_utf8_lossy(&output.stdout).lines().count())
}
