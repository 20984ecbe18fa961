//! Limits on a real server, as operators set them: a rate over a measured time, a backlog at its
//! quota, and expiry.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aquifer_client::{ErrorCode, Message};
use aquifer_harness::http::metric;
use aquifer_harness::server::{Server, ServerOptions, aquifer};
use aquifer_harness::wait::until;
use aquifer_runtime::task::TaskGroup;
use serde_json::Value;

fn options() -> ServerOptions {
    let environment = [("AQUIFER_BROKER_HOUSEKEEPING_MS", "200")];
    ServerOptions {
        environment: environment
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
        ..ServerOptions::default()
    }
}

/// Runs a command that prints one JSON object.
fn done(url: &str, line: &str) -> Result<Value> {
    let words: Vec<&str> = ["--output", "json"]
        .into_iter()
        .chain(line.split(' '))
        .collect();
    let output = aquifer(url, &words)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{line}: {said}");
    serde_json::from_slice(&output.stdout).with_context(|| line.to_owned())
}

/// The load generator sends as fast as it may and has no errors. What is acknowledged in the time
/// that it measures is what the rate and its burst allow, within a tenth.
#[tokio::test]
async fn a_rate_is_held_over_a_measured_time() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = Server::start(&folder.path().join("data"), options()).await?;
    let url = server.url();
    let rate = 2_000.0;
    let set =
        "namespace policy set public/default publishRate.messages=2000 publishRate.burst=200ms";
    done(&url, set)?;
    let load = "perf produce --topic limited --size 100 --seconds 6";
    let report = tokio::task::spawn_blocking({
        let url = url.clone();
        move || done(&url, load)
    })
    .await??;
    let number = |name: &str| {
        report[name]
            .as_f64()
            .with_context(|| format!("{name}: {report}"))
    };
    ensure!(number("errors")? == 0.0, "{report}");
    let allowed = rate * number("seconds")? + rate / 5.0;
    let share = number("messages")? / allowed;
    ensure!((0.9..=1.1).contains(&share), "{share}: {report}");
    let waits = metric(&server.http(), "aquifer_broker_throttled_waits_total").await?;
    ensure!(waits > 0.0, "{waits}");

    // Without the policy the same load is many times as much.
    done(&url, "namespace policy unset public/default publishRate")?;
    let load = "perf produce --topic limited --size 100 --seconds 2";
    let report = tokio::task::spawn_blocking(move || done(&url, load)).await??;
    let unlimited = report["messages_per_second"].as_f64().context("a rate")?;
    ensure!(unlimited > 2.0 * rate, "{report}");
    server.stop()?;
    server.check_logs()
}

/// A producer that waits for its rate is shown as waiting, and does not hold up a consumer of the
/// same client.
#[tokio::test]
async fn a_producer_that_waits_holds_up_nothing_else() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = Server::start(&folder.path().join("data"), options()).await?;
    let url = server.url();
    let client = server.client()?;
    let slow = client.producer("slow").open().await?;
    slow.send(Message::new("first")).await?;
    done(&url, "topic policy set slow publishRate.messages=0")?;
    let tasks = TaskGroup::new("test");
    let waiting = async move {
        // Whatever passes before the rate is in force, one of them waits.
        for _ in 0..1_000_000 {
            slow.send(Message::new("waits")).await?;
        }
        anyhow::Ok(())
    };
    drop(tasks.spawn("waiting", waiting));
    until("the producer to wait", || async {
        let stats = client.admin().topic_stats("slow").await?;
        Ok((stats.held_back_by.as_deref() == Some("publishRate")).then_some(()))
    })
    .await?;
    let free = client.producer("free").open().await?;
    let consumer = client.consumer("free", "s").open().await?;
    for number in 0..100 {
        let text = format!("m{number}");
        free.send(Message::new(text.clone())).await?;
        let message = consumer.receive().await?;
        ensure!(message.payload == text.as_bytes(), "{message:?}");
        consumer.ack(&message).await?;
    }
    tasks.drain(Duration::ZERO).await;
    server.stop()?;
    server.check_logs()
}

#[tokio::test]
async fn a_backlog_at_its_quota_is_refused_until_it_is_consumed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = Server::start(&folder.path().join("data"), options()).await?;
    let url = server.url();
    let client = server.client()?;
    let consumer = client.consumer("orders", "billing").open().await?;
    let set = "topic policy set orders backlogQuota.bytes=100KiB backlogQuota.action=refuse";
    done(&url, set)?;
    let producer = client.producer("orders").open().await?;
    let mut sent = 0;
    let refused = loop {
        match producer.send(Message::new(vec![b'x'; 10_000])).await {
            Ok(_) => sent += 1,
            Err(error) => break error,
        }
    };
    ensure!(sent >= 9, "{sent} messages before {refused}");
    ensure!(
        refused.code() == Some(ErrorCode::QuotaExceeded),
        "{refused:?}"
    );
    ensure!(
        refused.to_string().contains("backlogQuota.bytes"),
        "{refused}"
    );
    while sent > 0 {
        let message = consumer.receive().await?;
        consumer.ack(&message).await?;
        sent -= 1;
    }
    until("messages to be taken again", || async {
        let producer = client.producer("orders").open().await?;
        Ok(producer.send(Message::new("again")).await.ok().map(|_| ()))
    })
    .await?;
    let refusals = metric(&server.http(), "aquifer_broker_quota_refusals_total").await?;
    ensure!(refusals > 0.0, "{refusals}");
    server.stop()?;
    server.check_logs()
}

/// A subscription whose consumer never comes back keeps nothing for longer than the policy says.
#[tokio::test]
async fn what_nothing_consumes_expires() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = Server::start(&folder.path().join("data"), options()).await?;
    let url = server.url();
    let client = server.client()?;
    client
        .consumer("orders", "gone")
        .open()
        .await?
        .close()
        .await?;
    let producer = client.producer("orders").open().await?;
    for number in 0..20 {
        producer.send(Message::new(format!("m{number}"))).await?;
    }
    let backlog = || async {
        let stats = client.admin().topic_stats("orders").await?;
        let found = stats.subscriptions.iter().find(|s| s.name == "gone");
        let found = found.context("the subscription")?;
        anyhow::Ok(found.backlog_messages)
    };
    ensure!(backlog().await? == 20);
    done(&url, "tenant policy set public ttl=100ms")?;
    until("the messages to expire", || async {
        Ok((backlog().await? == 0).then_some(()))
    })
    .await?;
    let expired = metric(&server.http(), "aquifer_broker_expired_messages_total").await?;
    ensure!(expired >= 20.0, "{expired}");
    producer.close().await?;
    server.stop()?;
    server.check_logs()
}
