//! Measures what many ledgers cost, on real processes of this machine (etcd, three bookies and a
//! broker that `aquifer dev` starts): how long recovery takes after a writer was killed, and what
//! closed ledgers cost bookies, etcd and an audit.
//!
//! ```text
//! cargo run --release -p aquifer-tests --example ledgers -- recovery 1000
//! cargo run --release -p aquifer-tests --example ledgers -- closed 1000000
//! ```
//!
//! `AQUIFER_BIN` names another binary than the one of this build, `AQUIFER_MEASURE_DIR` another
//! directory than the usual temporary one.

#[path = "ledgers/logs.rs"]
mod logs;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use aquifer_harness::cluster::Cluster;
use aquifer_harness::figures::percentile;
use aquifer_harness::processes;
use aquifer_log::context::LogContext;
use aquifer_repair::context::RepairContext;
use aquifer_repair::{Auditor, ReplicationConfig};
use aquifer_runtime::clock::{Clock, SystemClock};
use opentelemetry::metrics::MeterProvider;
use opentelemetry::metrics::noop::NoopMeterProvider;
use rustix::process::Signal;

use logs::Shape;

/// Topics that are opened at once, as a broker does that takes over.
const AT_ONCE: usize = 64;
/// Topics that are filled at once.
const FILLED_AT_ONCE: usize = 256;
/// Closed ledgers of one topic.
const LEDGERS_PER_TOPIC: usize = 200;
const ENTRIES: u64 = 3;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let texts: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    match texts[..] {
        ["recovery", count] => runtime.block_on(recovery(count.parse()?)),
        ["closed", count] => runtime.block_on(closed(count.parse()?)),
        // What this program starts itself with, to have a writer that can be killed.
        ["write", url, count] => runtime.block_on(write(url, count.parse()?)),
        _ => bail!("usage: ledgers recovery|closed COUNT"),
    }
}

fn start() -> Result<(Cluster, std::path::PathBuf)> {
    let directory = processes::directory()?;
    let cluster = Cluster::start(&directory, &["--bookies", "3"])?;
    Ok((cluster, directory))
}

async fn write(url: &str, topics: usize) -> Result<()> {
    let context = logs::context(url).await?;
    let logs = logs::for_all(&context, topics, AT_ONCE, |context, topic| async move {
        logs::write(&context, topic, Shape::open(ENTRIES)).await
    })
    .await?;
    println!("written");
    std::future::pending::<()>().await;
    drop(logs);
    Ok(())
}

async fn recovery(topics: usize) -> Result<()> {
    let (mut cluster, directory) = start()?;
    let url = processes::etcd(&cluster)?;
    let mut writer = Command::new(std::env::current_exe()?)
        .args(["write", &url, &topics.to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = writer.stdout.take().context("stdout is piped")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    writer.kill()?;
    writer.wait()?;
    ensure!(line.trim() == "written", "the writer failed");
    let heir = logs::context(&url).await?;
    let reopen = |context: Arc<LogContext>, topic| async move {
        let began = SystemClock.monotonic();
        logs::reopen(&context, topic, ENTRIES).await?;
        anyhow::Ok(SystemClock.monotonic() - began)
    };
    let mut alone = Vec::new();
    for topic in 0..10.min(topics) {
        alone.push(reopen(Arc::clone(&heir), topic).await?);
    }
    let began = SystemClock.monotonic();
    let rest = topics.saturating_sub(10);
    let mut each = logs::for_all(&heir, rest, AT_ONCE, |context, topic| {
        reopen(context, topic + 10)
    })
    .await?;
    let all = SystemClock.monotonic() - began;
    println!(
        "recovery of ledgers with {ENTRIES} entries, E3 Qw3 Qa2, their writer killed: alone p50 \
         {:.1?}, longest {:.1?}; {rest} more, {AT_ONCE} at once: {all:.2?} in all, p50 {:.1?}, \
         p99 {:.1?} each",
        percentile(&mut alone, 500),
        percentile(&mut alone, 1_000),
        percentile(&mut each, 500),
        percentile(&mut each, 990),
    );
    cluster.stop()?;
    Ok(std::fs::remove_dir_all(directory)?)
}

async fn closed(ledgers: usize) -> Result<()> {
    let (mut cluster, directory) = start()?;
    let url = processes::etcd(&cluster)?;
    report(&cluster, &directory, "with nothing stored")?;
    let context = logs::context(&url).await?;
    let began = SystemClock.monotonic();
    let topics = ledgers.div_ceil(LEDGERS_PER_TOPIC);
    logs::for_all(
        &context,
        topics,
        FILLED_AT_ONCE,
        |context, topic| async move {
            let shape = Shape::closed(LEDGERS_PER_TOPIC);
            logs::write(&context, topic, shape).await?.close().await?;
            anyhow::Ok(())
        },
    )
    .await?;
    let took = SystemClock.monotonic() - began;
    println!(
        "{} ledgers of one entry written and closed in {took:.0?}",
        topics * LEDGERS_PER_TOPIC
    );
    report(&cluster, &directory, "right after")?;
    processes::compact(&url)?;
    report(&cluster, &directory, "with etcd compacted")?;
    audit(&context).await?;
    for bookie in ["bookie-1", "bookie-2"] {
        let pid = cluster.process(bookie)?.pid;
        let (how, signal) = match bookie {
            "bookie-1" => ("stopped", Signal::TERM),
            _ => ("killed", Signal::KILL),
        };
        cluster.signal(bookie, signal)?;
        processes::wait_gone(pid)?;
        let began = SystemClock.monotonic();
        cluster.start_again(bookie)?;
        let took = SystemClock.monotonic() - began;
        println!("{bookie} was {how}, and serves again {took:.0?} after its start");
    }
    report(&cluster, &directory, "after two were started again")?;
    cluster.stop()?;
    Ok(std::fs::remove_dir_all(directory)?)
}

/// What processes and files take now.
fn report(cluster: &Cluster, directory: &std::path::Path, when: &str) -> Result<()> {
    let mut bookies = Vec::new();
    for process in cluster.processes() {
        if process.role != "broker" {
            let resident = processes::resident_bytes(process.pid)? >> 20;
            bookies.push(format!("{} {resident} MiB", process.name));
        }
    }
    println!(
        "{when}: resident {}; etcd's database {} MiB, a bookie's files {} MiB",
        bookies.join(", "),
        processes::size_of(&directory.join("etcd/member/snap"))? >> 20,
        processes::size_of(&directory.join("bookie-1"))? >> 20,
    );
    Ok(())
}

async fn audit(context: &Arc<LogContext>) -> Result<()> {
    let own = i32::try_from(std::process::id())?;
    let before = processes::resident_bytes(own)?;
    let meter = NoopMeterProvider::new().meter("measure");
    let repair = RepairContext::new(Arc::clone(&context.ledgers), &meter);
    let mut auditor = Auditor::new(repair, ReplicationConfig::default());
    let began = SystemClock.monotonic();
    let report = auditor.pass().await?;
    let took = SystemClock.monotonic() - began;
    let grown = processes::resident_bytes(own)?.saturating_sub(before);
    println!(
        "one audit pass, orphans included: {took:.1?}, {} MiB more resident; {report:?}",
        grown >> 20
    );
    Ok(())
}
