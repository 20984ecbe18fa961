//! Offload in processes of its own: brokers leave it to them, and one that dies is replaced (H22).

use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use aquifer_client::{Client, Message, Place};
use aquifer_harness::cluster::Cluster;
use aquifer_harness::command::first_line;
use aquifer_harness::http::{get, metric};
use aquifer_harness::wait::{until, within};
use aquifer_model::policy::{Policies, Rollover};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::operators::{QUICK, command};

const TOPIC: &str = "public/cold/lines";
const LINES: usize = 400;

/// A process that offloads, with the address of its health checks.
struct Offloader {
    child: Child,
    http: String,
}

impl Offloader {
    fn start(cluster: &Cluster, store: &str) -> Result<Offloader> {
        let words = [
            "offloader",
            "--http-addr",
            "127.0.0.1:0",
            "--cold-store",
            store,
        ];
        let mut child = command(cluster, &words)?.stdout(Stdio::piped()).spawn()?;
        let greeting: Value = serde_json::from_str(&first_line(&mut child)?)?;
        ensure!(greeting["role"] == "offloader", "{greeting}");
        let http = greeting["http"].as_str().context("an address")?;
        let http = http.trim_start_matches("http://").to_owned();
        Ok(Offloader { child, http })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        Ok(kill_process(pid.context("a process id is not 0")?, signal)?)
    }
}

fn objects(directory: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        count += match path.is_dir() {
            true => objects(&path)?,
            false => usize::from(path.extension().is_some_and(|suffix| suffix == "aqo")),
        };
    }
    Ok(count)
}

fn line(number: usize) -> String {
    format!("line {number}, {}", "with some text ".repeat(20))
}

async fn publish(client: &Client, lines: std::ops::Range<usize>) -> Result<()> {
    let producer = client.producer(TOPIC).open().await?;
    for number in lines {
        producer.send(Message::new(line(number))).await?;
    }
    Ok(producer.close().await?)
}

fn keys(cluster: &Cluster, prefix: &str) -> Result<usize> {
    let prefix = format!("/aquifer/v1/dev/{prefix}");
    let found = cluster.etcdctl(&["get", "--prefix", "--keys-only", &prefix])?;
    Ok(found.lines().filter(|line| !line.trim().is_empty()).count())
}

/// Asks for the offload of everything that is closed until nothing is left.
async fn offload(client: &Client) -> Result<()> {
    let admin = client.admin();
    within("everything to be offloaded", async {
        until("nothing to be left", || async {
            let (ledgers, _) = admin.offload_topic(TOPIC, Place::Latest).await?;
            Ok((ledgers == 0).then_some(()))
        })
        .await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offloaders_do_what_brokers_leave_and_replace_each_other() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let directory = folder.path().join("store");
    std::fs::create_dir(&directory)?;
    let store = format!("file://{}", directory.display());
    let settings = [
        ("AQUIFER_COLD_STORE", store.as_str()),
        ("AQUIFER_COLD_OFFLOAD_BY", "offloaders"),
        ("AQUIFER_COLD_LAG_MS", "0"),
        ("AQUIFER_BROKER_HOUSEKEEPING_MS", "200"),
    ];
    let data_dir = folder.path().join("cluster");
    let mut cluster = Cluster::start_with(&data_dir, &[], &[&QUICK[..], &settings].concat())?;
    let client = cluster.client()?;
    let policies = Policies {
        rollover: Some(Rollover {
            size_bytes: 16 << 10,
            ..Rollover::default()
        }),
        ..Policies::default()
    };
    let admin = client.admin();
    admin.create_namespace("public/cold", policies).await?;
    publish(&client, 0..LINES / 2).await?;
    until("the broker to leave its ledgers", || async {
        let (ledgers, _) = admin.offload_topic(TOPIC, Place::Latest).await?;
        let tasks = keys(&cluster, "offloads/")?;
        Ok((ledgers > 0 && tasks as u64 >= ledgers).then_some(()))
    })
    .await?;
    ensure!(objects(&directory)? == 0, "the broker has offloaded itself");

    let first = Offloader::start(&cluster, &store)?;
    offload(&client).await?;
    until("the tasks to end", || async {
        Ok((keys(&cluster, "offloads/")? == 0).then_some(()))
    })
    .await?;
    ensure!(keys(&cluster, "offloaders/")? == 1);
    let stored = metric(&first.http, "aquifer_log_offload_attempts_total").await?;
    ensure!(stored > 0.0 && objects(&directory)? > 0, "{stored}");
    let ready = get(&first.http, "/readyz").await?;
    ensure!(
        ready
            .lines()
            .next()
            .is_some_and(|line| line.contains(" 200 ")),
        "{ready}"
    );
    // One is killed, another takes its place.
    first.signal(Signal::KILL)?;
    let mut first = first.child;
    first.wait()?;
    let second = Offloader::start(&cluster, &store)?;
    publish(&client, LINES / 2..LINES).await?;
    offload(&client).await?;
    let reader = client.reader(TOPIC).start(Place::Earliest).open().await?;
    for number in 0..LINES {
        let message = reader.next().await?;
        ensure!(message.payload == line(number), "line {number}");
    }
    // It leaves in good order.
    second.signal(Signal::TERM)?;
    let mut second = second.child;
    let status = second.wait()?;
    ensure!(status.success(), "{status}");
    until("its announcements to go", || async {
        Ok((keys(&cluster, "offloaders/")? == 0).then_some(()))
    })
    .await?;
    cluster.check_logs()?;
    cluster.stop()
}
