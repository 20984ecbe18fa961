//! SIGTERM under load: a broker, and bookies that store what is published, end in order with exit
//! code 0 each time, and everything that was acknowledged is there afterwards.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use aquifer_harness::cluster::Cluster;
use aquifer_harness::command::first_line;
use aquifer_harness::http;
use aquifer_harness::wait::until;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::cluster::load::Load;
use crate::cluster::{ENOUGH, check, start};

/// How often a process is ended under load.
const ROUNDS: usize = 5;
/// One more than a ledger has, so that another one takes the place of the one that ends.
const BOOKIES: [&str; 4] = ["bookie-1", "bookie-2", "bookie-3", "bookie-4"];
const WRITTEN: &str = "aquifer_bookie_journal_records_total";

/// A process that a test has started by itself, and whose exit code it sees; killed when dropped.
pub struct Role {
    child: Child,
    log: PathBuf,
    greeting: Value,
}

impl Role {
    /// Starts a process that greets in JSON, and waits until it does. Its log is appended to.
    pub fn start(command: &mut Command, log: PathBuf) -> Result<Role> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::options().create(true).append(true).open(&log)?)
            .spawn()?;
        let mut role = Role {
            child,
            log,
            greeting: Value::Null,
        };
        let line = first_line(&mut role.child)?;
        let greeting: serde_json::Result<Value> = serde_json::from_str(&line);
        role.greeting = greeting.with_context(|| format!("{line:?} of\n{}", role.said()))?;
        Ok(role)
    }

    /// A text of its greeting.
    pub fn field(&self, name: &str) -> Result<&str> {
        let text = self.greeting[name].as_str();
        text.with_context(|| format!("no {name} in {}", self.greeting))
    }

    /// Where it answers health checks and metrics.
    pub fn http(&self) -> Result<&str> {
        Ok(self.field("http")?.trim_start_matches("http://"))
    }

    /// SIGTERM, and waits for the end, which must be in order.
    pub async fn terminate(mut self) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill_process(pid.context("a process id is not 0")?, Signal::TERM)?;
        let status = until("the end of a process", || {
            let ended = self.child.try_wait();
            async move { Ok(ended?) }
        })
        .await?;
        ensure!(
            status.code() == Some(0),
            "it ended with {status}:\n{}",
            self.said()
        );
        Ok(())
    }

    /// The end of its log.
    fn said(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a process of the cluster again, on its data and ports.
fn again(cluster: &Cluster, name: &str) -> Result<Role> {
    let command = &cluster.process(name)?.command;
    let log = cluster.directory("logs").join(format!("{name}.log"));
    Role::start(
        Command::new("sh").args(["-c", &format!("exec {command}")]),
        log,
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_ends_a_loaded_broker_with_exit_code_0_each_time() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut cluster = start(folder.path(), &[])?;
    cluster.terminate("broker-1")?;
    let mut broker = again(&cluster, "broker-1")?;
    let load = Load::start(&cluster)?;
    for round in 1..=ROUNDS {
        load.wait_acknowledged(load.acknowledged() + ENOUGH).await?;
        let ended = broker.terminate().await;
        ended.with_context(|| format!("round {round}"))?;
        broker = again(&cluster, "broker-1")?;
    }
    load.wait_acknowledged(load.acknowledged() + ENOUGH).await?;
    check(&cluster, load).await?;
    broker.terminate().await?;
    cluster.stop()?;
    cluster.check_logs()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_ends_loaded_bookies_with_exit_code_0_each_time() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut cluster = start(folder.path(), &["--bookies", "4"])?;
    let mut bookies = BTreeMap::new();
    for name in BOOKIES {
        cluster.terminate(name)?;
        bookies.insert(name, again(&cluster, name)?);
    }
    let load = Load::start(&cluster)?;
    for round in 1..=ROUNDS {
        let name = busiest(&bookies, &load).await?;
        let bookie = bookies.remove(name).context("it runs")?;
        let ended = bookie.terminate().await;
        ended.with_context(|| format!("{name} in round {round}"))?;
        // The load goes on without it.
        load.wait_acknowledged(load.acknowledged() + ENOUGH).await?;
        bookies.insert(name, again(&cluster, name)?);
    }
    load.wait_acknowledged(load.acknowledged() + ENOUGH).await?;
    check(&cluster, load).await?;
    // Brokers end before bookies do, which end before etcd does.
    cluster.terminate("broker-1")?;
    for (name, bookie) in bookies {
        let ended = bookie.terminate().await;
        ended.with_context(|| format!("{name} at the end"))?;
    }
    cluster.stop()?;
    cluster.check_logs()
}

/// The bookie whose journal grows most while messages are stored: it is under load.
async fn busiest(bookies: &BTreeMap<&'static str, Role>, load: &Load) -> Result<&'static str> {
    let before = written(bookies).await?;
    load.wait_acknowledged(load.acknowledged() + ENOUGH).await?;
    let after = written(bookies).await?;
    let growth = before.iter().zip(&after);
    let growth = growth.map(|((name, before), (_, after))| (*name, after - before));
    let most = growth.max_by(|(_, one), (_, other)| one.total_cmp(other));
    let (name, records) = most.context("there are bookies")?;
    ensure!(records > 0.0, "no journal grows: {before:?}, {after:?}");
    Ok(name)
}

/// How many records each bookie has written since it was started, in order of their names.
async fn written(bookies: &BTreeMap<&'static str, Role>) -> Result<Vec<(&'static str, f64)>> {
    let mut all = Vec::new();
    for (name, bookie) in bookies {
        all.push((*name, http::metric(bookie.http()?, WRITTEN).await?));
    }
    Ok(all)
}
