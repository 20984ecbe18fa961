//! What administrators do to topics and subscriptions over the command line.

use anyhow::{Context, Result, ensure};
use aquifer_client::{ErrorCode, Message};
use aquifer_harness::server::{Server, ServerOptions, aquifer};
use serde_json::Value;

async fn server() -> Result<(tempfile::TempDir, Server)> {
    let folder = tempfile::tempdir()?;
    let server = Server::start(&folder.path().join("data"), ServerOptions::default()).await?;
    Ok((folder, server))
}

/// What a command said and how it ended.
struct Said {
    code: Option<i32>,
    objects: Vec<Value>,
    stderr: String,
}

fn say(server: &Server, line: &str) -> Result<Said> {
    let line = format!("--output json {line}");
    let words: Vec<&str> = line.split(' ').collect();
    let output = aquifer(&server.url(), &words)?;
    let printed = String::from_utf8(output.stdout)?;
    let objects = printed
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()));
    Ok(Said {
        code: output.status.code(),
        objects: objects.collect::<Result<_>>()?,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// The objects of a command that must succeed.
fn run(server: &Server, line: &str) -> Result<Vec<Value>> {
    let said = say(server, line)?;
    ensure!(
        said.code == Some(0),
        "{line}: {:?}: {}",
        said.code,
        said.stderr
    );
    Ok(said.objects)
}

fn field(objects: &[Value], name: &str) -> Vec<Value> {
    objects.iter().map(|object| object[name].clone()).collect()
}

#[tokio::test]
async fn a_backlog_is_looked_at_and_given_up() -> Result<()> {
    let (_folder, mut server) = server().await?;
    run(&server, "subscription create t s --from earliest")?;
    run(&server, "produce t a b c d")?;
    run(&server, "consume t --subscription s --count 1")?;
    let peeked = run(&server, "subscription peek t s --count 2")?;
    assert_eq!(field(&peeked, "payload"), ["b", "c"]);
    let peeked = run(&server, "subscription peek t s")?;
    assert_eq!(field(&peeked, "index"), [1, 2, 3]);

    let shown = run(&server, "subscription show t s")?.remove(0);
    assert_eq!(shown["name"], "s");
    assert_eq!(shown["mark_delete_index"], 1);
    assert_eq!(shown["backlog_messages"], 3);
    let oldest = &shown["oldest_unacknowledged"];
    assert_eq!(oldest["index"], 1);
    ensure!(
        oldest["broker_time"].is_u64() && oldest["position"].is_string(),
        "{oldest}"
    );
    let absent = say(&server, "subscription show t none")?;
    ensure!(absent.code == Some(1) && absent.stderr.contains("no subscription none"));

    let kept = run(&server, "subscription expire t s --older-than 1h")?;
    assert_eq!(field(&kept, "messages"), [0]);
    let would = run(&server, "subscription clear t s --dry-run")?;
    assert_eq!(field(&would, "messages"), [3]);
    let listed = run(&server, "subscription list t")?;
    assert_eq!(field(&listed, "backlog_messages"), [3]);
    let cleared = run(&server, "subscription clear t s")?;
    assert_eq!(field(&cleared, "messages"), [3]);
    assert_eq!(run(&server, "subscription peek t s")?.len(), 0);
    let listed = run(&server, "subscription list t")?;
    assert_eq!(field(&listed, "backlog_messages"), [0]);
    let shown = run(&server, "subscription show t s")?;
    assert_eq!(field(&shown, "oldest_unacknowledged"), [Value::Null]);

    run(&server, "topic create parted --partitions 2")?;
    run(&server, "subscription create parted s --from earliest")?;
    run(&server, "produce parted a b c d --key k")?;
    let shown = run(&server, "subscription show parted s")?.remove(0);
    assert_eq!(shown["backlog_messages"], 4);
    let parts = shown["partitions"].as_array().context("a list")?;
    assert_eq!(field(parts, "partition"), [0, 1]);
    let waits = |part: &&Value| part["backlog_messages"] == 4;
    let waiting: Vec<&Value> = parts.iter().filter(waits).collect();
    ensure!(waiting.len() == 1, "one key is in one partition: {shown}");
    let oldest = &waiting[0]["oldest_unacknowledged"];
    assert_eq!(oldest["index"], 0);
    assert_eq!(*oldest, shown["oldest_unacknowledged"]);
    let peeked = run(&server, "subscription peek parted s --count 3")?;
    assert_eq!(field(&peeked, "payload"), ["a", "b", "c"]);
    let expired = run(&server, "subscription expire parted s --older-than 0s")?;
    // The last message may have the millisecond in which it is asked.
    ensure!(expired[0]["messages"].as_u64() <= Some(4), "{expired:?}");

    let absent = say(&server, "subscription clear t none")?;
    assert_eq!(absent.code, Some(1), "{}", absent.stderr);
    server.stop()?;
    server.check_logs()
}

#[tokio::test]
async fn a_topic_is_unloaded_under_its_clients() -> Result<()> {
    let (_folder, mut server) = server().await?;
    let client = server.client()?;
    let producer = client.producer("t").open().await?;
    let consumer = client.consumer("t", "s").open().await?;
    for number in 0..20u32 {
        producer.send(Message::new(number.to_string())).await?;
        if number % 5 == 0 {
            let unloaded = run(&server, "topic unload t")?;
            ensure!(unloaded[0]["unloaded"].as_u64() <= Some(1), "{unloaded:?}");
        }
    }
    let mut indexes = std::collections::BTreeSet::new();
    while indexes.len() < 20 {
        let message = consumer.receive().await?;
        indexes.insert(message.index.0);
        // One that comes back is delivered again.
        let _ = consumer.ack(&message).await;
    }
    assert_eq!(
        indexes.into_iter().collect::<Vec<_>>(),
        (0..20).collect::<Vec<_>>()
    );
    server.stop()?;
    server.check_logs()
}

#[tokio::test]
async fn a_terminated_topic_ends_for_good() -> Result<()> {
    let (_folder, mut server) = server().await?;
    run(&server, "subscription create t s --from earliest")?;
    run(&server, "produce t a b c")?;
    let client = server.client()?;
    let producer = client.producer("t").open().await?;
    let ends = run(&server, "topic terminate t")?;
    assert_eq!(field(&ends, "last_index"), [2]);
    let refused = producer.send(Message::new("d")).await;
    let refused = refused.err().context("it takes no more")?;
    assert_eq!(refused.code(), Some(ErrorCode::Terminated), "{refused}");
    let refused = say(&server, "produce t d")?;
    assert_eq!(refused.code, Some(5), "{}", refused.stderr);
    ensure!(refused.stderr.contains("terminated"), "{}", refused.stderr);

    let stats = run(&server, "topic stats t")?;
    assert_eq!(field(&stats, "terminated"), [true]);
    assert_eq!(stats[0]["ends"][0]["last_index"], 2);

    // Both end by themselves although they would wait for more.
    let consumed = run(&server, "consume t --subscription s --follow")?;
    assert_eq!(field(&consumed, "payload"), ["a", "b", "c"]);
    let read = run(&server, "read t --follow")?;
    assert_eq!(field(&read, "payload"), ["a", "b", "c"]);

    server.kill()?;
    server.restart()?;
    let refused = say(&server, "produce t d")?;
    assert_eq!(refused.code, Some(5), "{}", refused.stderr);
    assert_eq!(
        run(&server, "topic terminate t")?,
        ends,
        "it may be repeated"
    );
    assert_eq!(run(&server, "read t --follow")?.len(), 3);
    server.stop()?;
    server.check_logs()
}

#[tokio::test]
async fn namespaces_and_tenants_are_deleted() -> Result<()> {
    let (_folder, mut server) = server().await?;
    run(&server, "tenant create acme")?;
    run(&server, "namespace create acme/shop")?;
    run(&server, "topic create acme/shop/b --partitions 2")?;
    run(&server, "produce acme/shop/a one two")?;
    let would = run(&server, "topic delete acme/shop/a --dry-run")?;
    assert_eq!(field(&would, "messages"), [2]);
    assert_eq!(field(&would, "deleted"), [false]);
    assert_eq!(field(&would, "in_use"), [false]);
    let would = run(&server, "namespace delete acme/shop --dry-run")?;
    assert_eq!(field(&would, "topics"), [2]);
    let refused = say(&server, "namespace delete acme/shop")?;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    ensure!(refused.stderr.contains("has topics"), "{}", refused.stderr);
    assert_eq!(
        run(&server, "topic list acme/shop")?.len(),
        2,
        "all are there"
    );

    let gone = run(&server, "namespace delete acme/shop --force")?;
    assert_eq!(field(&gone, "topics"), [2]);
    let absent = say(&server, "produce acme/shop/a three")?;
    ensure!(
        absent.stderr.contains("does not exist"),
        "{}",
        absent.stderr
    );
    run(&server, "namespace create acme/shop")?;
    assert_eq!(run(&server, "topic list acme/shop")?.len(), 0);
    let refused = say(&server, "tenant delete acme")?;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    let gone = run(&server, "tenant delete acme --force")?;
    assert_eq!(field(&gone, "namespaces"), [1]);
    let tenants = run(&server, "tenant list")?;
    assert_eq!(field(&tenants, "tenant"), ["public"]);
    server.stop()?;
    server.check_logs()
}
