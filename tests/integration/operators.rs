//! What operators do with a cluster of real processes: look at it, repair it, take bookies out, and
//! what the tools say when something is wrong.

mod access;
mod autorecovery;
mod decommission;
mod garbage;
mod ledgers;
mod limbo;
mod node_loss;
mod offloader;
mod whole;

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use aquifer_harness::cluster::Cluster;
use aquifer_harness::server::binary;
use aquifer_harness::wait::until;
use serde_json::Value;

/// Everything that repair waits for is short: this is about what happens, not about when.
const QUICK: [(&str, &str); 4] = [
    (
        "AQUIFER_AUTORECOVERY_REPLICATION_OPEN_LEDGER_GRACE_MS",
        "1000",
    ),
    ("AQUIFER_AUTORECOVERY_REPLICATION_POLL_MS", "500"),
    ("AQUIFER_AUTORECOVERY_REPLICATION_AUDIT_MS", "500"),
    ("AQUIFER_ETCD_LEASE_MS", "4000"),
];

/// What a tool did.
#[derive(Debug)]
struct Answer {
    code: Option<i32>,
    objects: Vec<Value>,
    said: String,
}

impl Answer {
    /// What it printed, if it succeeded.
    fn ok(self) -> Result<Vec<Value>> {
        ensure!(self.code == Some(0), "{:?}: {}", self.code, self.said);
        Ok(self.objects)
    }
}

/// The command of a tool on a cluster.
fn command(cluster: &Cluster, words: &[&str]) -> Result<Command> {
    let mut command = Command::new(binary());
    command
        .args(words)
        .args(["--output", "json", "--cluster", "dev", "--metadata"])
        .arg(cluster.metadata()?)
        .stdin(Stdio::null());
    Ok(command)
}

/// Runs a tool.
fn run(mut command: Command) -> Result<Answer> {
    let output = command.output()?;
    let printed = String::from_utf8(output.stdout)?;
    let objects = printed.lines().map(|line| {
        serde_json::from_str(line).with_context(|| format!("{command:?} printed {line}"))
    });
    Ok(Answer {
        code: output.status.code(),
        objects: objects.collect::<Result<_>>()?,
        said: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs a tool on a cluster.
fn tool(cluster: &Cluster, words: &[&str]) -> Result<Answer> {
    run(command(cluster, words)?)
}

/// The identity of a bookie by the name of its process.
fn id_of(cluster: &Cluster, name: &str) -> Result<String> {
    // Not by its address, which another may have had a moment ago.
    let cookie = fs::read_to_string(cluster.directory(name).join("bookie/COOKIE"))?;
    let id = cookie.lines().find_map(|line| line.strip_prefix("id "));
    Ok(id.context("a cookie has an id")?.to_owned())
}

/// Name and identity of the bookie that holds most ledgers: this one is in use.
fn fullest(cluster: &Cluster) -> Result<(String, String)> {
    let bookies = tool(cluster, &["bookie", "list"])?.ok()?;
    let found = bookies
        .iter()
        .max_by_key(|bookie| bookie["ledgers"].as_u64());
    let id = found.and_then(|bookie| bookie["bookie"].as_str());
    let id = id.with_context(|| format!("an identity in {bookies:?}"))?;
    Ok((name_of(cluster, id)?, id.to_owned()))
}

/// The name of a bookie's process.
fn name_of(cluster: &Cluster, id: &str) -> Result<String> {
    let names = cluster.processes().iter().map(|process| &process.name);
    let mut bookies = names.filter(|name| name.starts_with("bookie"));
    let found = bookies.find(|name| id_of(cluster, name).is_ok_and(|found| found == id));
    Ok(found
        .with_context(|| format!("no process is {id}"))?
        .clone())
}

/// What `aquifer bookie list` says of a bookie.
fn state_of(cluster: &Cluster, id: &str) -> Result<String> {
    let bookies = tool(cluster, &["bookie", "list"])?.ok()?;
    let found = bookies.iter().find(|bookie| bookie["bookie"] == *id);
    let found = found.with_context(|| format!("{id} in {bookies:?}"))?;
    Ok(found["state"].as_str().context("a text")?.to_owned())
}

async fn wait_for_state(cluster: &Cluster, id: &str, state: &str) -> Result<()> {
    until(state, || async {
        Ok((state_of(cluster, id)? == state).then_some(()))
    })
    .await
}

/// Waits until the doctor ends with a code and has said something.
async fn wait_for_doctor(cluster: &Cluster, code: i32, said: &str) -> Result<()> {
    let waited = until("what the doctor says", || async {
        let answer = tool(cluster, &["doctor"])?;
        let all: Vec<String> = answer.objects.iter().map(Value::to_string).collect();
        Ok((answer.code == Some(code) && all.join("\n").contains(said)).then_some(()))
    });
    waited.await.with_context(|| format!("{code}: {said}"))
}

/// Waits until no ledger names a bookie.
async fn wait_unnamed(cluster: &Cluster, id: &str) -> Result<()> {
    let waited = until("no ledger to name the bookie", || async {
        let named = tool(cluster, &["ledger", "list", "--bookie", id])?.ok()?;
        Ok(named.is_empty().then_some(()))
    });
    waited.await.with_context(|| repair_log(cluster))
}

/// Waits until every replica of every fragment that is not written any more is whole. What an ack
/// quorum has left incomplete is marked when it is found, for the repair workers.
async fn wait_whole(cluster: &Cluster) -> Result<()> {
    let verify = ["ledger", "verify", "--mark"];
    let waited = until("whole replicas", || async {
        Ok((tool(cluster, &verify)?.code == Some(0)).then_some(()))
    });
    let waited = waited.await;
    waited.with_context(|| format!("{:?}\n{}", tool(cluster, &verify), repair_log(cluster)))
}

/// What bookies have logged about repair, for a test that waited in vain.
fn repair_log(cluster: &Cluster) -> String {
    let mut lines = Vec::new();
    for process in cluster.processes() {
        let log = cluster.log(&process.name);
        let said = log.lines().filter(|line| {
            let parts = ["WARN", "ERROR", "replication", "recover"];
            parts.iter().any(|part| line.contains(part))
        });
        let said: Vec<&str> = said.collect();
        lines.push(format!("== {}", process.name));
        let last = &said[said.len().saturating_sub(30)..];
        lines.extend(last.iter().map(ToString::to_string));
    }
    lines.join("\n")
}
