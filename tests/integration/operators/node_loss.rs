//! Machines are lost: all bookies of a cluster whose ledgers are in objects, and then its metadata
//! as well (I10).

use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Result, ensure};
use aquifer_client::admin::LedgerPlace;
use aquifer_client::{Client, Message, Place};
use aquifer_harness::cluster::Cluster;
use aquifer_harness::data::flights;
use aquifer_harness::restored::measure;
use aquifer_harness::server::aquifer;
use aquifer_harness::wait::{until, within};
use aquifer_model::policy::{Policies, Rollover};
use serde_json::Value;

use crate::operators::{QUICK, command, id_of};

const TOPICS: [&str; 2] = ["public/flights/plain", "public/flights/subscribed"];
const BOOKIES: [&str; 3] = ["bookie-1", "bookie-2", "bookie-3"];
const LINES: usize = 1_200;

fn start(directory: &Path, place: &str) -> Result<Cluster> {
    let settings = [
        ("AQUIFER_COLD_STORE", place),
        ("AQUIFER_COLD_LAG_MS", "0"),
        ("AQUIFER_BROKER_HOUSEKEEPING_MS", "200"),
    ];
    Cluster::start_with(directory, &[], &[&QUICK[..], &settings].concat())
}

/// Runs a tool that needs a broker, and parses what it prints.
fn json(url: &str, arguments: &[&str]) -> Result<Vec<Value>> {
    let output = aquifer(url, &[&["--output", "json"][..], arguments].concat())?;
    ensure!(output.status.success(), "{arguments:?}: {output:?}");
    let text = String::from_utf8(output.stdout)?;
    let lines = text.lines().map(serde_json::from_str);
    Ok(lines.collect::<Result<_, _>>()?)
}

/// Takes bookies out for good whose disks are gone: what only they had is given up.
async fn give_up(cluster: &Cluster, bookies: &[String]) -> Result<()> {
    let mut children = Vec::new();
    for bookie in bookies {
        let words = ["bookie", "decommission", bookie, "--force", "--accept-loss"];
        let child = command(cluster, &words)?
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        children.push(child);
    }
    within("the ends of the lost bookies", async {
        for child in children {
            let ended = tokio::task::spawn_blocking(|| child.wait_with_output());
            let ended = ended.await??;
            ensure!(ended.status.success(), "{ended:?}");
        }
        Ok(())
    })
    .await
}

async fn publish(client: &Client, topic: &str, lines: &[Vec<u8>]) -> Result<()> {
    let producer = client.producer(topic).open().await?;
    for batch in lines.chunks(100) {
        let mut pending = Vec::new();
        for line in batch {
            pending.push(producer.enqueue(Message::new(line.clone())).await?);
        }
        for receipt in pending {
            receipt.await?;
        }
    }
    Ok(producer.close().await?)
}

/// Every message of a topic with its index.
async fn read(client: &Client, topic: &str, count: usize) -> Result<Vec<(u64, Vec<u8>)>> {
    let reader = client.reader(topic).start(Place::Earliest).open().await?;
    let mut found = Vec::new();
    for _ in 0..count {
        let message = reader.next().await?;
        found.push((message.index.0, message.payload.to_vec()));
    }
    Ok(found)
}

/// Publishes, acknowledges half of a topic, makes a backup, and waits until bookies have nothing of
/// the topics. Answers what they have.
async fn save(cluster: &Cluster, store: &str) -> Result<Vec<Vec<(u64, Vec<u8>)>>> {
    let client = cluster.client()?;
    let policies = Policies {
        rollover: Some(Rollover {
            size_bytes: 64 << 10,
            ..Rollover::default()
        }),
        ..Policies::default()
    };
    let admin = client.admin();
    admin.create_namespace("public/flights", policies).await?;
    let mut saved = Vec::new();
    for topic in TOPICS {
        publish(&client, topic, &lines()?).await?;
        saved.push(read(&client, topic, LINES).await?);
    }
    let consumer = client.consumer(TOPICS[1], "billing").start(Place::Earliest);
    let consumer = consumer.open().await?;
    for _ in 0..LINES / 2 {
        let message = consumer.receive().await?;
        consumer.ack(&message).await?;
    }
    consumer.close().await?;
    // It closes the last ledgers too.
    json(cluster.url(), &["backup", "create", store])?;
    until("all copies at bookies to go", || async {
        for topic in TOPICS {
            let stats = admin.topic_stats(topic).await?;
            let mut stored = stats.ledgers.iter().filter(|ledger| ledger.entries > 0);
            if !stored.all(|ledger| ledger.state == LedgerPlace::Offloaded && !ledger.local) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .await?;
    Ok(saved)
}

fn lines() -> Result<Vec<Vec<u8>>> {
    let lines = flights()?.into_iter().take(LINES);
    Ok(lines.map(|flight| flight.line.into_bytes()).collect())
}

async fn check(client: &Client, saved: &[Vec<(u64, Vec<u8>)>]) -> Result<()> {
    for (topic, before) in TOPICS.iter().zip(saved) {
        ensure!(read(client, topic, LINES).await? == *before, "{topic}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_outlive_all_bookies_and_backups_the_metadata() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let store = format!("file://{}", folder.path().join("store").display());
    let mut cluster = start(&folder.path().join("cluster"), &store)?;
    let saved = save(&cluster, &store).await?;
    let lost = BOOKIES.map(|bookie| id_of(&cluster, bookie));
    let lost: Vec<String> = lost.into_iter().collect::<Result<_>>()?;
    cluster.stop()?;

    // The disks of all bookies are gone, metadata is not. Others take their places, which are told
    // that what only the lost ones had, logs of subscriptions, will not come back.
    for bookie in BOOKIES {
        fs::remove_dir_all(cluster.directory(bookie))?;
    }
    cluster.restart()?;
    give_up(&cluster, &lost).await?;
    let client = cluster.client()?;
    check(&client, &saved).await?;
    // And a topic goes on.
    publish(&client, TOPICS[0], &lines()?[..10]).await?;
    let now = read(&client, TOPICS[0], LINES + 10).await?;
    ensure!(now[..LINES] == saved[0] && now[LINES].0 == LINES as u64);
    cluster.check_logs()?;
    cluster.stop()?;

    // Metadata goes too.
    fs::remove_dir_all(folder.path().join("cluster"))?;
    let own = format!("file://{}", folder.path().join("own").display());
    let mut cluster = start(&folder.path().join("new"), &own)?;
    let restored = json(cluster.url(), &["backup", "restore", &store])?;
    ensure!(
        restored.len() == TOPICS.len() && restored.iter().all(|t| t["outcome"] == "restored"),
        "{restored:?}"
    );
    let client = cluster.client()?;
    check(&client, &saved).await?;
    let consumer = client.consumer(TOPICS[1], "billing").open().await?;
    let first = consumer.receive().await?;
    ensure!(first.index.0 == LINES as u64 / 2, "{}", first.index);
    consumer.close().await?;
    cluster.check_logs()?;
    cluster.stop()
}

/// The measurement of many topics (`--example restore`), with few of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_topics_come_back_into_an_empty_cluster() -> Result<()> {
    let told = measure(12, 30).await?;
    ensure!(told["topics"] == 12 && told["messages"] == 360, "{told}");
    for step in ["backup_created", "restored", "read"] {
        let of = |figure: &str| told[step][figure].as_f64().unwrap_or_default();
        ensure!(
            of("seconds") > 0.0 && of("requests") > 0.0,
            "{step}: {told}"
        );
    }
    Ok(())
}
