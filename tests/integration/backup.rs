//! Backup and restore on real servers with real data: what was saved comes back byte for byte, in
//! order, with its subscriptions, into an empty cluster and into the one that lost it (I10, H14).

mod access;
mod renamed;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use aquifer_client::{Client, Message, Place};
use aquifer_harness::data::flights;
use aquifer_harness::server::{Server, ServerOptions, aquifer};
use aquifer_harness::wait::until;
use aquifer_model::policy::{Policies, PolicyScope, PolicyUpdate, Retention, Rollover};
use serde_json::Value;

const TOPICS: [&str; 3] = [
    "public/flights/a",
    "public/flights/b",
    "public/flights/parts",
];
const MESSAGES: usize = 1_500;
const SUBSCRIPTION: &str = "billing";

fn options(store: &str) -> ServerOptions {
    let environment = [
        ("AQUIFER_BROKER_HOUSEKEEPING_MS", "200".to_owned()),
        ("AQUIFER_COLD_LAG_MS", "0".to_owned()),
    ];
    ServerOptions {
        arguments: vec!["--cold-store".to_owned(), store.to_owned()],
        environment: environment
            .map(|(name, value)| (name.to_owned(), value))
            .to_vec(),
        ..ServerOptions::default()
    }
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

/// Files below a directory, objects or all.
fn files(directory: &Path, suffix: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            match path.is_dir() {
                true => open.push(path),
                false if path.to_string_lossy().ends_with(suffix) => found.push(path),
                false => {}
            }
        }
    }
    found.sort();
    Ok(found)
}

async fn namespace(client: &Client) -> Result<()> {
    let policies = Policies {
        rollover: Some(Rollover {
            size_bytes: 64 << 10,
            ..Rollover::default()
        }),
        retention: Some(Retention {
            time_ms: Some(3_600_000),
            size_bytes: None,
        }),
        ..Policies::default()
    };
    let admin = client.admin();
    admin.create_namespace("public/flights", policies).await?;
    admin.create_topic(TOPICS[2], 3).await?;
    Ok(())
}

async fn publish(client: &Client, topic: &str, lines: &[Vec<u8>]) -> Result<()> {
    let producer = client.producer(topic).open().await?;
    let mut pending = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        // By key to partitions, each in order.
        let key = format!("key-{}", number % 50);
        let message = Message::new(line.clone()).key(key);
        pending.push(producer.enqueue(message).await?);
        if pending.len() == 100 {
            for receipt in pending.drain(..) {
                receipt.await?;
            }
        }
    }
    for receipt in pending {
        receipt.await?;
    }
    Ok(producer.close().await?)
}

type Lines = BTreeMap<(String, u64), Vec<u8>>;

/// Every message of a topic by partition and index.
async fn read_all(client: &Client, topic: &str, count: usize) -> Result<Lines> {
    let reader = client.reader(topic).open().await?;
    let mut lines = BTreeMap::new();
    for _ in 0..count {
        let message = reader.next().await?;
        let at = (message.topic.to_string(), message.index.0);
        lines.insert(at, message.payload.to_vec());
    }
    ensure!(lines.len() == count, "{topic}: {} of {count}", lines.len());
    Ok(lines)
}

/// Acknowledges the first half but every tenth, and answers what is left.
async fn acknowledge_half(client: &Client, topic: &str) -> Result<Lines> {
    let consumer = client.consumer(topic, SUBSCRIPTION).start(Place::Earliest);
    let consumer = consumer.open().await?;
    let (mut left, mut acks) = (BTreeMap::new(), Vec::new());
    for number in 0..MESSAGES {
        let message = consumer.receive().await?;
        if number < MESSAGES / 2 && number % 10 != 0 {
            acks.push(consumer.ack(&message));
        } else {
            let at = (message.topic.to_string(), message.index.0);
            left.insert(at, message.payload.to_vec());
        }
    }
    for ack in acks {
        ack.await?;
    }
    consumer.close().await?;
    Ok(left)
}

/// What a subscription has left, in order within each topic.
async fn rest(client: &Client, topic: &str, count: usize) -> Result<Lines> {
    let consumer = client.consumer(topic, SUBSCRIPTION).open().await?;
    let (mut found, mut acks) = (Lines::new(), Vec::new());
    for _ in 0..count {
        let message = consumer.receive().await?;
        let at = (message.topic.to_string(), message.index.0);
        let last = found.range(..).rev().find(|((of, _), _)| *of == at.0);
        ensure!(
            last.is_none_or(|(last, _)| *last < at),
            "{at:?} after {last:?}"
        );
        acks.push(consumer.ack(&message));
        found.insert(at, message.payload.to_vec());
    }
    for ack in acks {
        ack.await?;
    }
    consumer.close().await?;
    Ok(found)
}

/// The data of the tests, which takes a while to parse.
fn lines() -> Result<Vec<Vec<u8>>> {
    static LINES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    if let Some(lines) = LINES.get() {
        return Ok(lines.clone());
    }
    let lines = flights()?.into_iter().take(MESSAGES);
    let lines = lines.map(|flight| flight.line.into_bytes()).collect();
    Ok(LINES.get_or_init(|| lines).clone())
}

/// What was there, and what its subscriptions had left.
type Saved = BTreeMap<&'static str, (Lines, Lines)>;

/// Publishes, acknowledges half, and makes a backup.
async fn save(server: &Server, place: &str) -> Result<Saved> {
    let client = server.client()?;
    namespace(&client).await?;
    let mut saved = BTreeMap::new();
    for topic in TOPICS {
        publish(&client, topic, &lines()?).await?;
        let left = acknowledge_half(&client, topic).await?;
        saved.insert(topic, (read_all(&client, topic, MESSAGES).await?, left));
    }
    let made = json(&server.url(), &["backup", "create", place])?;
    ensure!(made[0]["topics"] == 5, "{made:?}");
    Ok(saved)
}

/// What a restore into an empty cluster says that it would do.
fn check_dry_run(shown: &[Value]) -> Result<()> {
    let outcome = |what: &str, name: &str| {
        let found = shown.iter().find(|row| row[what] == name);
        found.map_or(Value::Null, |row| row["outcome"].clone())
    };
    for (what, name, expected) in [
        ("tenant", "public", "exists"),
        ("namespace", "public/default", "exists"),
        ("namespace", "public/flights", "would be created"),
        ("policies", "namespace public/flights", "would be set"),
    ] {
        ensure!(outcome(what, name) == expected, "{what} {name}: {shown:?}");
    }
    let topics: Vec<&Value> = shown.iter().filter(|row| !row["topic"].is_null()).collect();
    let would = |topic: &&Value| topic["outcome"] == "would be restored";
    ensure!(topics.len() == 6 && topics.iter().all(would), "{shown:?}");
    let total = shown.last().context("nothing is shown")?;
    let total = &total["total"];
    ensure!(total["topics"] == 3, "{total}");
    for (what, least) in [("messages", TOPICS.len() * MESSAGES), ("subscriptions", 5)] {
        let of = |row: &Value| row[what].as_u64().unwrap_or_default();
        let all: u64 = topics.iter().map(|topic| of(topic)).sum();
        ensure!(of(total) == all && all >= least as u64, "{what}: {total}");
    }
    ensure!(total["copied_bytes"] == 0, "{total}");
    Ok(())
}

/// Brings everything back, once and again.
fn restore(url: &str, place: &str) -> Result<()> {
    let all = |told: &[Value], wanted: &str| {
        let mut outcomes = told.iter().map(|topic| &topic["outcome"]);
        outcomes.all(|outcome| outcome == wanted)
    };
    let shown = json(url, &["backup", "restore", place, "--dry-run"])?;
    check_dry_run(&shown)?;
    let restored = json(url, &["backup", "restore", place])?;
    ensure!(
        restored.len() == 6 && all(&restored, "restored"),
        "{restored:?}"
    );
    let again = json(url, &["backup", "restore", place])?;
    ensure!(all(&again, "done"), "{again:?}");
    Ok(())
}

#[tokio::test]
async fn an_empty_cluster_gets_everything_back() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let store = folder.path().join("store");
    let place = format!("file://{}", store.display());
    let data_dir = folder.path().join("data");
    let mut server = Server::start(&data_dir, options(&place)).await?;
    let saved = save(&server, &place).await?;
    let objects = files(&store, ".aqo")?;
    ensure!(objects.len() > TOPICS.len(), "{objects:?}");
    server.stop()?;
    server.check_logs()?;
    // The cluster is gone, its objects are not.
    std::fs::remove_dir_all(&data_dir)?;
    check_tools(&server.url(), &place, &store)?;
    let own = format!("file://{}", folder.path().join("own").display());
    let mut server = Server::start(&folder.path().join("new"), options(&own)).await?;
    restore(&server.url(), &place)?;
    let client = server.client()?;
    for (topic, (before, left)) in &saved {
        let now = read_all(&client, topic, MESSAGES).await?;
        ensure!(now == *before, "{topic} is not what it was");
        let now = rest(&client, topic, left.len()).await?;
        ensure!(
            now == *left,
            "{topic}: the subscription is not where it was"
        );
    }
    // It goes on behind its end, also after a restart.
    let more: Vec<Vec<u8>> = vec![b"one".to_vec(), b"two".to_vec()];
    publish(&client, TOPICS[0], &more).await?;
    server.stop()?;
    server.restart()?;
    let client = server.client()?;
    let now = read_all(&client, TOPICS[0], MESSAGES + 2).await?;
    let now: Vec<Vec<u8>> = now.into_values().collect();
    let before: Vec<Vec<u8>> = saved[TOPICS[0]].0.values().cloned().collect();
    ensure!(now[..MESSAGES] == before && now[MESSAGES..] == more);
    // What is deleted here stays there.
    client.admin().delete_topic(TOPICS[1], true).await?;
    until("the topic to be gone", || async {
        let found = client.admin().topic_stats(TOPICS[1]).await;
        Ok(found.is_err().then_some(()))
    })
    .await?;
    ensure!(
        files(&store, ".aqo")? == objects,
        "objects of another cluster"
    );
    server.stop()?;
    server.check_logs()
}

/// What the tools say of the backup without a cluster.
fn check_tools(url: &str, place: &str, store: &Path) -> Result<()> {
    let listed = json(url, &["backup", "list", place])?;
    ensure!(
        listed.len() == 1 && listed[0]["state"] == "whole",
        "{listed:?}"
    );
    let shown = json(url, &["backup", "show", place])?;
    let topics = shown[0]["topics"].as_array().context("topics")?;
    ensure!(topics.len() == 6, "{topics:?}");
    for arguments in [vec!["verify", place], vec!["verify", place, "--deep"]] {
        let all: Vec<&str> = ["backup"].into_iter().chain(arguments).collect();
        let verified = json(url, &all)?;
        ensure!(verified[0]["whole"] == true, "{verified:?}");
    }
    // A flipped bit and a lost object are found.
    let victim = files(store, ".aqo")?.remove(0);
    let bytes = std::fs::read(&victim)?;
    let mut damaged = bytes.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&victim, damaged)?;
    let code =
        |arguments: &[&str]| -> Result<Option<i32>> { Ok(aquifer(url, arguments)?.status.code()) };
    ensure!(code(&["backup", "verify", place, "--deep"])? == Some(1));
    std::fs::remove_file(&victim)?;
    ensure!(code(&["backup", "verify", place])? == Some(1));
    std::fs::write(&victim, bytes)?;
    ensure!(code(&["backup", "verify", place, "--deep"])? == Some(0));
    Ok(())
}

#[tokio::test]
async fn what_a_backup_keeps_survives_the_deletion_of_its_topic() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let store = folder.path().join("store");
    let place = format!("file://{}", store.display());
    let mut server = Server::start(&folder.path().join("data"), options(&place)).await?;
    let client = server.client()?;
    let admin = client.admin();
    namespace(&client).await?;
    publish(&client, TOPICS[0], &lines()?).await?;
    publish(&client, TOPICS[1], &lines()?).await?;
    let before = read_all(&client, TOPICS[0], MESSAGES).await?;
    let left = acknowledge_half(&client, TOPICS[0]).await?;
    let url = server.url();
    let ends = admin.terminate_topic(TOPICS[0]).await?;
    json(&url, &["backup", "create", &place])?;
    let objects = files(&store, ".aqo")?;
    admin.delete_topic(TOPICS[0], true).await?;
    // The ledgers go, and what asks for their ids says so until then.
    until("the topic to be restored", || async {
        let told = json(&url, &["backup", "restore", &place, "--topic", TOPICS[0]]);
        let told = told.unwrap_or_default();
        let is_done = told
            .first()
            .is_some_and(|topic| topic["outcome"] == "restored");
        Ok(is_done.then_some(()))
    })
    .await?;
    ensure!(
        files(&store, ".aqo")? == objects,
        "objects that a backup names"
    );
    ensure!(read_all(&client, TOPICS[0], MESSAGES).await? == before);
    ensure!(rest(&client, TOPICS[0], left.len()).await? == left);
    // It ends where it ended.
    let stats = admin.topic_stats(TOPICS[0]).await?;
    ensure!(stats.is_terminated() && stats.ends == ends, "{stats:?}");
    let refused = client.producer(TOPICS[0]).open().await;
    ensure!(refused.is_err(), "a terminated topic takes no more");
    let told = json(&url, &["backup", "restore", &place, "--topic", TOPICS[1]])?;
    ensure!(told[0]["outcome"] == "exists", "{told:?}");

    // A backup of another namespace alone lets the first go.
    publish(&client, "public/default/other", &lines()?).await?;
    admin.delete_topic(TOPICS[0], true).await?;
    json(
        &url,
        &[
            "backup",
            "create",
            &place,
            "--topic",
            "public/default/other",
        ],
    )?;
    let kept = files(&store, ".aqo")?;
    ensure!(
        objects.iter().all(|object| kept.contains(object)),
        "the first backup is there"
    );
    let expired = json(&url, &["backup", "expire", &place, "--keep", "1"])?;
    ensure!(expired[0]["deleted"] == 1, "{expired:?}");
    until("the objects of the expired backup to go", || async {
        Ok((files(&store, ".aqo")?.len() < kept.len()).then_some(()))
    })
    .await?;
    let verified = json(&url, &["backup", "verify", &place, "--deep"])?;
    ensure!(verified[0]["whole"] == true, "{verified:?}");
    ensure!(read_all(&client, TOPICS[1], MESSAGES).await?.len() == MESSAGES);
    server.stop()?;
    server.check_logs()
}

fn kept_for(time_ms: u64) -> Policies {
    Policies {
        retention: Some(Retention {
            time_ms: Some(time_ms),
            size_bytes: None,
        }),
        ..Policies::default()
    }
}

async fn set_policies(client: &Client, scope: &PolicyScope, set: Policies) -> Result<()> {
    let update = PolicyUpdate {
        set,
        ..PolicyUpdate::default()
    };
    client.admin().update_policies(scope, update).await?;
    Ok(())
}

/// Policies come back where the tenant or the namespace is there: because each cluster has it, or
/// because a restore was interrupted between it and its policies (I10).
#[tokio::test]
async fn policies_come_back_to_tenants_and_namespaces_that_are_there() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let place = format!("file://{}", folder.path().join("store").display());
    let mut old = Server::start(&folder.path().join("old"), options(&place)).await?;
    let client = old.client()?;
    let tenant = |name: &str| PolicyScope::Tenant(name.to_owned());
    let default = PolicyScope::Namespace("public/default".parse()?);
    let admin = client.admin();
    admin.create_tenant("acme").await?;
    admin
        .create_namespace("acme/shop", kept_for(4_000_000))
        .await?;
    for topic in ["public/default/orders", "acme/shop/orders"] {
        publish(&client, topic, &[b"one".to_vec()]).await?;
    }
    let scopes = [
        (tenant("public"), kept_for(1_000_000)),
        (default.clone(), kept_for(2_000_000)),
        (tenant("acme"), kept_for(3_000_000)),
    ];
    for (scope, policies) in &scopes {
        set_policies(&client, scope, *policies).await?;
    }
    json(&old.url(), &["backup", "create", &place])?;
    old.stop()?;
    old.check_logs()?;

    let own = format!("file://{}", folder.path().join("own").display());
    let mut new = Server::start(&folder.path().join("new"), options(&own)).await?;
    let client = new.client()?;
    // What a restore leaves that is interrupted behind its first request.
    client.admin().create_tenant("acme").await?;
    let restored = json(&new.url(), &["backup", "restore", &place])?;
    ensure!(
        restored.len() == 2 && restored.iter().all(|row| row["outcome"] == "restored"),
        "{restored:?}"
    );
    let shop = PolicyScope::Namespace("acme/shop".parse()?);
    for (scope, policies) in scopes.iter().chain([&(shop, kept_for(4_000_000))]) {
        let found = client.admin().get_policies(scope).await?.own;
        ensure!(found == *policies, "{scope}: {found:?}");
    }
    // Others that were set since stay, and are named.
    set_policies(&client, &default, kept_for(5_000_000)).await?;
    let again = json(&new.url(), &["backup", "restore", &place])?;
    let kept: Vec<&Value> = again
        .iter()
        .filter(|row| row["outcome"] == "kept")
        .collect();
    ensure!(
        kept.len() == 1 && kept[0]["policies"] == "namespace public/default",
        "{again:?}"
    );
    let found = client.admin().get_policies(&default).await?.own;
    ensure!(found == kept_for(5_000_000), "{found:?}");
    new.stop()?;
    new.check_logs()
}
