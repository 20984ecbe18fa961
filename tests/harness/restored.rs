//! The loss of a whole cluster, on real processes of this machine (etcd, three bookies and a
//! broker): many topics are backed up, everything but the objects is deleted, and an empty cluster
//! brings the topics back and reads them, message by message. Tells times, and the requests to the
//! store that brokers counted.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aquifer_client::{Client, Message, Place};
use aquifer_runtime::clock::{Clock, SystemClock};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::figures::rounded;
use crate::http::metric;
use crate::processes;
use crate::server::aquifer;

const NAMESPACE: &str = "public/default";
const AT_ONCE: usize = 64;

fn topic(number: usize) -> String {
    format!("{NAMESPACE}/restored-{number}")
}

fn payload(topic: usize, message: usize) -> String {
    format!(
        "message {message} of topic {topic}, {}",
        "with some text ".repeat(16)
    )
}

fn start(directory: &Path, place: &str) -> Result<Cluster> {
    let environment = [
        ("AQUIFER_COLD_STORE", place),
        ("AQUIFER_COLD_LAG_MS", "0"),
        ("AQUIFER_COLD_WORKERS_MAX", "8"),
    ];
    Cluster::start_with(directory, &[], &environment)
}

fn client(cluster: &Cluster) -> Result<Client> {
    let builder = Client::builder().url(cluster.url());
    Ok(builder
        .operation_timeout(Duration::from_secs(120))
        .build()?)
}

/// What a step took: its time and the broker's requests to stores.
async fn step(
    cluster: &Cluster,
    what: &str,
    step: impl Future<Output = Result<()>>,
) -> Result<Value> {
    let http = cluster.process("broker-1")?.http.clone();
    let requests = || metric(&http, "aquifer_cold_requests_total");
    let (before, began) = (requests().await?, SystemClock.monotonic());
    step.await.with_context(|| what.to_owned())?;
    let seconds = SystemClock.monotonic().saturating_sub(began).as_secs_f64();
    let took = json!({"seconds": rounded(seconds), "requests": requests().await? - before});
    Ok(took)
}

fn tool(cluster: &Cluster, arguments: &[&str]) -> Result<()> {
    let output = aquifer(cluster.url(), arguments)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments:?}: {said}");
    Ok(())
}

async fn publish(client: &Client, topics: usize, messages: usize) -> Result<()> {
    let all = stream::iter(0..topics).map(|number| async move {
        let producer = client.producer(&topic(number)).open().await?;
        let mut pending = Vec::new();
        for message in 0..messages {
            let message = Message::new(payload(number, message));
            pending.push(producer.enqueue(message).await?);
        }
        for receipt in pending {
            receipt.await?;
        }
        anyhow::Ok(producer.close().await?)
    });
    all.buffer_unordered(AT_ONCE).try_collect().await
}

async fn read(client: &Client, topics: usize, messages: usize) -> Result<()> {
    let all = stream::iter(0..topics).map(|number| async move {
        let name = topic(number);
        let reader = client.reader(&name).start(Place::Earliest).open().await?;
        for message in 0..messages {
            let found = reader.next().await?;
            ensure!(
                found.index.0 == message as u64 && found.payload == payload(number, message),
                "message {message} of {name} is not what it was"
            );
        }
        Ok(())
    });
    all.buffer_unordered(AT_ONCE).try_collect().await
}

/// Does it with this number of topics, each with this number of messages.
///
/// # Errors
/// When a process does not do what it is to do, or a message is not what it was.
pub async fn measure(topics: usize, messages: usize) -> Result<Value> {
    let directory = processes::directory()?;
    let place = |name: &str| format!("file://{}", directory.join(name).display());
    let (store, own) = (place("store"), place("own"));
    let old = directory.join("old");
    let mut cluster = start(&old, &store)?;
    publish(&client(&cluster)?, topics, messages).await?;
    let create = async { tool(&cluster, &["backup", "create", &store]) };
    let created = step(&cluster, "backup create", create).await?;
    cluster.stop()?;
    std::fs::remove_dir_all(&old)?;

    let mut cluster = start(&directory.join("new"), &own)?;
    let restore = async { tool(&cluster, &["backup", "restore", &store]) };
    let restored = step(&cluster, "backup restore", restore).await?;
    let client = client(&cluster)?;
    let reading = read(&client, topics, messages);
    let read = step(&cluster, "reading everything", reading).await?;
    let result = json!({
        "topics": topics,
        "messages": topics * messages,
        "backup_created": created,
        "restored": restored,
        "read": read,
    });
    cluster.stop()?;
    std::fs::remove_dir_all(directory)?;
    Ok(result)
}
