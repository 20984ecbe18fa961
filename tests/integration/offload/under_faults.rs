//! A place of objects that is away now and then, and what an audit says of places.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aquifer_model::place::Place;
use aquifer_runtime::clock;

use super::*;

const FIRST: usize = 4_000;
const LIVE: usize = 600;
/// How long the place is away, and there again.
const PHASE: Duration = Duration::from_millis(200);

fn small_ledgers() -> Policies {
    Policies {
        rollover: Some(Rollover {
            size_bytes: 64 << 10,
            ..Rollover::default()
        }),
        ..Policies::default()
    }
}

async fn produce(client: &Client, topic: &str, lines: &[Vec<u8>]) -> Result<()> {
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

/// Takes the place of objects away and brings it back, until it is told to end.
async fn toggle(cold: PathBuf, ends: &AtomicBool) -> Result<u32> {
    let away = cold.with_extension("away");
    let mut times = 0;
    while !ends.load(Ordering::Relaxed) {
        std::fs::rename(&cold, &away)?;
        clock::sleep(PHASE).await;
        std::fs::rename(&away, &cold)?;
        times += 1;
        clock::sleep(PHASE).await;
    }
    Ok(times)
}

/// Nine tenths of the topic are in objects alone, whose place is away half of the time; the rest is
/// at the bookie, and more comes while the consumer reads.
#[tokio::test]
async fn a_consumer_goes_from_objects_into_the_live_tail_without_gap_or_repetition() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data_dir = folder.path().join("data");
    let mut server = Server::start(&data_dir, options(0)).await?;
    let client = server.client()?;
    let admin = client.admin();
    admin
        .create_namespace("public/flights", small_ledgers())
        .await?;
    let lines: Vec<Vec<u8>> = flights()?
        .into_iter()
        .take(FIRST + LIVE)
        .map(|f| f.line.into_bytes())
        .collect();
    ensure!(
        lines.len() == FIRST + LIVE,
        "too few lines: {}",
        lines.len()
    );
    produce(&client, TOPIC, &lines[..FIRST]).await?;
    let (url, before) = (server.url(), (FIRST * 9 / 10).to_string());
    json(
        &url,
        &["topic", "offload", TOPIC, "--before", &before, "--wait"],
    )?;
    until("the copies of offloaded ledgers to go", || async {
        let stats = admin.topic_stats(TOPIC).await?;
        let offloaded = stats
            .ledgers
            .iter()
            .filter(|l| l.state == LedgerPlace::Offloaded);
        let is_local = offloaded.clone().any(|ledger| ledger.local);
        let offloaded = offloaded.count();
        let is_done = offloaded >= 3 && !is_local;
        Ok((is_done && offloaded < stats.ledgers.len()).then_some(()))
    })
    .await?;
    // Nothing of it is in memory.
    server.stop()?;
    server.restart()?;
    let client = server.client()?;

    let ends = AtomicBool::new(false);
    let publishing = async {
        let publisher = server.client()?;
        for part in lines[FIRST..].chunks(50) {
            produce(&publisher, TOPIC, part).await?;
            clock::sleep(PHASE).await;
        }
        anyhow::Ok(())
    };
    let consuming = async {
        let read = consume(&client, &lines).await;
        ends.store(true, Ordering::Relaxed);
        read
    };
    let toggling = toggle(data_dir.join("cold"), &ends);
    let (times, (), ()) = tokio::try_join!(toggling, publishing, consuming)?;
    ensure!(times > 0, "the place was never away");
    server.stop()?;
    check_audit(&url, &data_dir)?;
    server.check_logs()
}

/// Consumes these lines from the first message on.
async fn consume(client: &Client, lines: &[Vec<u8>]) -> Result<()> {
    let consumer = client.consumer(TOPIC, "from-the-first");
    let consumer = consumer.start(Place::Earliest).open().await?;
    for (number, line) in lines.iter().enumerate() {
        let message = consumer.receive().await?;
        ensure!(
            message.index.0 == number as u64,
            "message {number}: {message:?}"
        );
        ensure!(message.payload == line.as_slice(), "message {number}");
        consumer.ack(&message).await?;
    }
    Ok(consumer.close().await?)
}

fn run(url: &str, arguments: &[&str]) -> Result<(Option<i32>, Value)> {
    let all: Vec<&str> = ["--output", "json"]
        .into_iter()
        .chain(arguments.iter().copied())
        .collect();
    let output = aquifer(url, &all)?;
    let text = String::from_utf8(output.stdout)?;
    let last = text.lines().last().map(serde_json::from_str);
    let told = last.transpose()?.unwrap_or_default();
    Ok((output.status.code(), told))
}

/// What audit and scrub say of a server that is stopped: all is well, until it is not.
fn check_audit(url: &str, data_dir: &Path) -> Result<()> {
    let data = data_dir.to_str().context("a path")?;
    let audit = ["object", "audit", "--young", "0s", "--data-dir", data];
    let (code, told) = run(url, &audit)?;
    ensure!(
        code == Some(0) && told["orphans"] == Value::Array(vec![]),
        "{told}"
    );
    ensure!(told["stored"] == told["objects"], "{told}");
    let scrub = ["object", "scrub", "--data-dir", data];
    let (code, told) = run(url, &scrub)?;
    ensure!(code == Some(0) && told["bad"] == 0, "{told}");

    let victim = objects(&data_dir.join("cold"))?.remove(0);
    let bytes = std::fs::read(&victim)?;
    std::fs::remove_file(&victim)?;
    let (code, told) = run(url, &audit)?;
    ensure!(code == Some(1), "{told}");
    ensure!(told["absent"][0]["bytes"] == Value::Null, "{told}");
    let mut damaged = bytes.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&victim, &damaged)?;
    let (code, told) = run(url, &audit)?;
    ensure!(code == Some(0), "a listing does not see it: {told}");
    let (code, told) = run(url, &scrub)?;
    ensure!(code == Some(1) && told["bad"] == 1, "{told}");
    Ok(std::fs::write(&victim, &bytes)?)
}

/// An object whose deletion the store has forgotten is found, and deleted once that is confirmed.
#[tokio::test]
async fn an_orphan_is_found_and_deleted() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data_dir = folder.path().join("data");
    let mut server = Server::start(&data_dir, options(0)).await?;
    let (client, url) = (server.client()?, server.url());
    let admin = client.admin();
    admin
        .create_namespace("public/flights", small_ledgers())
        .await?;
    let lines: Vec<Vec<u8>> = (0..400)
        .map(|n| vec![u8::try_from(n % 251).unwrap_or(0); 1_000])
        .collect();
    for topic in ["public/flights/kept", "public/flights/gone"] {
        produce(&client, topic, &lines).await?;
        json(&url, &["topic", "offload", topic, "--wait"])?;
    }
    let cold = data_dir.join("cold");
    let mut all = Vec::new();
    for path in objects(&cold)? {
        all.push((path.clone(), std::fs::read(&path)?));
    }
    client
        .admin()
        .delete_topic("public/flights/gone", true)
        .await?;
    let half = until("the objects to go with the topic", || async {
        let left = objects(&cold)?;
        Ok((left.len() * 2 <= all.len()).then_some(left))
    })
    .await?;
    server.stop()?;
    let (orphan, bytes) = all
        .iter()
        .find(|(path, _)| !half.contains(path))
        .context("one that is gone")?;
    std::fs::create_dir_all(orphan.parent().context("a parent")?)?;
    std::fs::write(orphan, bytes)?;

    let data = data_dir.to_str().context("a path")?;
    let (code, told) = run(&url, &["object", "audit", "--data-dir", data])?;
    ensure!(code == Some(0) && told["young"] == 1, "{told}");
    let audit = ["object", "audit", "--young", "0s", "--data-dir", data];
    let (code, told) = run(&url, &audit)?;
    let name = told["orphans"][0].as_str().context("an orphan")?;
    ensure!(code == Some(1) && orphan.ends_with(name), "{told}");
    let (code, _) = run(&url, &[&audit[..], &["--delete"]].concat())?;
    ensure!(code == Some(2), "it is to be confirmed: {code:?}");
    let (code, told) = run(&url, &[&audit[..], &["--delete", "--yes"]].concat())?;
    ensure!(code == Some(0) && told["deleting"] == 1, "{told}");
    server.restart()?;
    until("the orphan to be deleted", || async {
        Ok((!orphan.exists()).then_some(()))
    })
    .await?;
    ensure!(objects(&cold)? == half, "others stay");
    server.stop()?;
    server.check_logs()
}
