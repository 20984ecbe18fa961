//! Offload on a real server with real data: ledgers go into objects, their copies go, and nothing
//! that a reader sees changes (I10, H22, H23).

mod back;
mod under_faults;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use aquifer_client::admin::LedgerPlace;
use aquifer_client::{Client, Message};
use aquifer_harness::data::flights;
use aquifer_harness::http::metric;
use aquifer_harness::server::{Server, ServerOptions, aquifer};
use aquifer_harness::wait::until;
use aquifer_model::policy::{Policies, Rollover};
use serde_json::Value;

const TOPIC: &str = "public/flights/events";
const MESSAGES: usize = 6_000;

fn options(lag_ms: u64) -> ServerOptions {
    let environment = [
        ("AQUIFER_BROKER_HOUSEKEEPING_MS", "200".to_owned()),
        ("AQUIFER_COLD_LAG_MS", lag_ms.to_string()),
    ];
    ServerOptions {
        environment: environment
            .map(|(name, value)| (name.to_owned(), value))
            .to_vec(),
        ..ServerOptions::default()
    }
}

/// Every line of the topic, in order.
async fn read_all(client: &Client) -> Result<Vec<Vec<u8>>> {
    let reader = client.reader(TOPIC).open().await?;
    let mut lines = Vec::new();
    while lines.len() < MESSAGES {
        lines.push(reader.next().await?.payload.to_vec());
    }
    Ok(lines)
}

/// The objects below a directory.
fn objects(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            match path.is_dir() {
                true => open.push(path),
                false if path.extension().is_some_and(|e| e == "aqo") => found.push(path),
                false => {}
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Runs a tool and parses what it prints, a JSON object a line.
fn json(url: &str, arguments: &[&str]) -> Result<Vec<Value>> {
    let all: Vec<&str> = ["--output", "json"]
        .into_iter()
        .chain(arguments.iter().copied())
        .collect();
    let output = aquifer(url, &all)?;
    ensure!(output.status.success(), "{arguments:?}: {output:?}");
    let text = String::from_utf8(output.stdout)?;
    text.lines()
        .map(|line| Ok(serde_json::from_str(line)?))
        .collect()
}

#[tokio::test]
async fn offloaded_ledgers_are_read_byte_for_byte_and_deleted_with_their_topic() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data_dir = folder.path().join("data");
    let mut server = Server::start(&data_dir, options(0)).await?;
    let client = server.client()?;
    let admin = client.admin();
    let policies = Policies {
        rollover: Some(Rollover {
            size_bytes: 128 << 10,
            ..Rollover::default()
        }),
        ..Policies::default()
    };
    admin.create_namespace("public/flights", policies).await?;
    let lines: Vec<Vec<u8>> = flights()?
        .into_iter()
        .take(MESSAGES)
        .map(|f| f.line.into_bytes())
        .collect();
    let producer = client.producer(TOPIC).open().await?;
    let mut pending = Vec::new();
    for line in &lines {
        pending.push(producer.enqueue(Message::new(line.clone())).await?);
        if pending.len() == 100 {
            for receipt in pending.drain(..) {
                receipt.await?;
            }
        }
    }
    producer.close().await?;
    ensure!(read_all(&client).await? == lines, "before");

    let url = server.url();
    let told = json(&url, &["topic", "offload", TOPIC, "--wait"])?;
    let ledgers = told[0]["ledgers"].as_u64().context("ledgers")?;
    ensure!(ledgers >= 3, "{told:?}");
    let cold = data_dir.join("cold");
    ensure!(
        objects(&cold)?.len() as u64 == ledgers,
        "{:?}",
        objects(&cold)?
    );
    check_tools(&url, &cold, &lines)?;

    // Their copies at the bookie go, and everything is read from objects.
    until("the copies of all offloaded ledgers to go", || async {
        let stats = admin.topic_stats(TOPIC).await?;
        let ledgers_now = stats.ledgers.iter();
        let offloaded = ledgers_now.filter(|l| l.state == LedgerPlace::Offloaded);
        let local = offloaded.clone().filter(|ledger| ledger.local).count();
        Ok((offloaded.count() as u64 == ledgers && local == 0).then_some(()))
    })
    .await?;
    ensure!(read_all(&client).await? == lines, "from objects");
    server.stop()?;
    server.restart()?;
    let client = server.client()?;
    ensure!(read_all(&client).await? == lines, "after a restart");
    for index in [1, 777, 2_500, MESSAGES as u64 - 1] {
        let found = json(
            &url,
            &["read", TOPIC, "--from", &index.to_string(), "--count", "1"],
        )?;
        let payload = found[0]["payload"].as_str().context("a payload")?;
        let wanted = &lines[usize::try_from(index)?];
        ensure!(payload.as_bytes() == wanted.as_slice(), "index {index}");
    }

    client.admin().delete_topic(TOPIC, true).await?;
    until("the objects to go with the topic", || async {
        Ok(objects(&cold)?.is_empty().then_some(()))
    })
    .await?;
    server.stop()?;
    server.check_logs()
}

/// What the tools say of the objects, without the server.
fn check_tools(url: &str, cold: &Path, lines: &[Vec<u8>]) -> Result<()> {
    let place = format!("file://{}", cold.display());
    let listed = json(url, &["object", "list", &place])?;
    ensure!(listed.len() == objects(cold)?.len(), "{listed:?}");
    let mut printed = Vec::new();
    for object in objects(cold)? {
        let object = format!("file://{}", object.display());
        let inspected = json(url, &["object", "inspect", &object])?;
        let topic = inspected[0]["topic"].as_str().context("a topic")?;
        ensure!(topic.ends_with(TOPIC), "{topic}");
        let verified = json(url, &["object", "verify", &object])?;
        ensure!(verified[0]["whole"] == true, "{verified:?}");
        for message in json(url, &["object", "cat", &object])? {
            let index = message["index"].as_u64().context("an index")?;
            let payload = message["payload"].as_str().context("a payload")?;
            printed.push((index, payload.as_bytes().to_vec()));
        }
    }
    printed.sort();
    for (at, (index, payload)) in printed.iter().enumerate() {
        ensure!(
            *index == at as u64 && *payload == lines[at],
            "message {index}"
        );
    }
    ensure!(printed.len() > lines.len() / 2, "{}", printed.len());
    // One flipped bit is found.
    let victim = objects(cold)?.remove(0);
    let mut bytes = std::fs::read(&victim)?;
    let copy = cold.parent().context("a parent")?.join("copy.aqo");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&copy, bytes)?;
    let damaged = format!("file://{}", copy.display());
    let output = aquifer(url, &["object", "verify", &damaged])?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    Ok(std::fs::remove_file(copy)?)
}

/// The age alone is a reason, and copies stay as long as their lag.
#[tokio::test]
async fn old_ledgers_are_offloaded_by_themselves() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut options = options(3_600_000);
    let after = ("AQUIFER_COLD_OFFLOAD_AFTER_MS".to_owned(), "1".to_owned());
    options.environment.push(after);
    let mut server = Server::start(&folder.path().join("data"), options).await?;
    let client = server.client()?;
    let admin = client.admin();
    let policies = Policies {
        rollover: Some(Rollover {
            entries: 5,
            ..Rollover::default()
        }),
        ..Policies::default()
    };
    admin.create_namespace("public/old", policies).await?;
    let producer = client.producer("public/old/topic").open().await?;
    for number in 0..25 {
        producer
            .send(Message::new(format!("event-{number}")))
            .await?;
    }
    until("closed ledgers to be offloaded", || async {
        let stats = admin.topic_stats("public/old/topic").await?;
        let offloaded = stats
            .ledgers
            .iter()
            .filter(|l| l.state == LedgerPlace::Offloaded && l.local);
        Ok((offloaded.count() >= 4).then_some(()))
    })
    .await?;
    producer.close().await?;
    server.stop()?;
    server.check_logs()
}

/// A namespace's policy is enough: no client uses the topic, and no broker has it loaded, since
/// the one that served it was killed.
#[tokio::test]
async fn a_topic_that_nothing_uses_is_offloaded_by_the_policy_of_its_namespace() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data_dir = folder.path().join("data");
    let mut server = Server::start(&data_dir, options(3_600_000)).await?;
    let client = server.client()?;
    let policies = Policies {
        rollover: Some(Rollover {
            entries: 5,
            ..Rollover::default()
        }),
        ..Policies::default()
    };
    client
        .admin()
        .create_namespace("public/quiet", policies)
        .await?;
    let topic = "public/quiet/topic";
    let producer = client.producer(topic).open().await?;
    for number in 0..23 {
        producer
            .send(Message::new(format!("event-{number}")))
            .await?;
    }
    drop((producer, client));
    server.kill()?;
    server.restart()?;
    let (url, http, cold) = (server.url(), server.http(), data_dir.join("cold"));
    let words = "namespace policy set public/quiet offload.age=1s offload.lag=0s";
    let words: Vec<&str> = words.split(' ').collect();
    json(&url, &words)?;
    let shown = json(&url, &["topic", "policy", "get", topic, "--effective"])?;
    let shown = serde_json::to_string(&shown)?;
    ensure!(shown.contains(r#""age":"1s""#), "{shown}");

    // The last ledger was left open: it is closed, and goes with the others.
    let dropped = || metric(&http, "aquifer_log_dropped_ledgers_total");
    until("all copies at the bookie to go", || async {
        Ok((dropped().await? >= 5.0).then_some(()))
    })
    .await?;
    ensure!(objects(&cold)?.len() == 5, "{:?}", objects(&cold)?);
    ensure!(metric(&http, "aquifer_broker_offload_visits_total").await? >= 1.0);
    ensure!(metric(&http, "aquifer_cold_requests_total").await? >= 5.0);
    until("the topic to be unloaded again", || async {
        let loaded = metric(&http, "aquifer_broker_topics_loaded").await?;
        Ok((loaded == 0.0).then_some(()))
    })
    .await?;
    let client = server.client()?;
    let reader = client.reader(topic).open().await?;
    for number in 0..23 {
        let read = reader.next().await?.payload;
        ensure!(read == format!("event-{number}").as_bytes(), "{read:?}");
    }
    let stats = client.admin().topic_stats(topic).await?;
    ensure!(
        stats
            .ledgers
            .iter()
            .all(|l| l.state == LedgerPlace::Offloaded && !l.local),
        "{stats:?}"
    );
    server.stop()?;
    server.check_logs()
}
