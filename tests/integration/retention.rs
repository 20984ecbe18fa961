//! Retention on a real server: what policy lets go goes, used or not (I10).

use anyhow::{Result, ensure};
use aquifer_client::Message;
use aquifer_harness::http::metric;
use aquifer_harness::server::{Server, ServerOptions};
use aquifer_harness::wait::until;
use aquifer_model::policy::{Policies, PolicyScope, PolicyUpdate, Retention, Rollover};

fn options() -> ServerOptions {
    let environment = [
        ("AQUIFER_BROKER_HOUSEKEEPING_MS", "200"),
        ("AQUIFER_BROKER_TOPIC_IDLE_MS", "300"),
    ];
    ServerOptions {
        environment: environment
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
        ..ServerOptions::default()
    }
}

fn retention(ms: u64) -> Policies {
    Policies {
        retention: Some(Retention {
            time_ms: Some(ms),
            size_bytes: Some(0),
        }),
        ..Policies::default()
    }
}

/// The topic is unloaded while everything in it is kept. Then no client touches it again: not even
/// the look whether its ledgers are gone loads it.
#[tokio::test]
async fn a_topic_that_nobody_uses_is_trimmed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = Server::start(&folder.path().join("data"), options()).await?;
    let client = server.client()?;
    let admin = client.admin();
    let policies = Policies {
        rollover: Some(Rollover {
            entries: 10,
            age_ms: 500,
            ..Rollover::default()
        }),
        ..retention(3_600_000)
    };
    admin.create_namespace("public/short", policies).await?;
    let producer = client.producer("public/short/topic").open().await?;
    for number in 0..25 {
        producer
            .send(Message::new(format!("event-{number}")))
            .await?;
    }
    producer.close().await?;
    let http = server.http();
    let loaded = || metric(&http, "aquifer_broker_topics_loaded");
    until("the topic to be unloaded", || async {
        Ok((loaded().await? < 0.5).then_some(()))
    })
    .await?;
    // Said at the topic, which is not loaded for it.
    let topic = PolicyScope::Topic("public/short/topic".parse()?);
    let update = PolicyUpdate {
        set: retention(1),
        ..PolicyUpdate::default()
    };
    admin.update_policies(&topic, update).await?;
    let deleted = || metric(&http, "aquifer_ledger_deleted_total");
    until("its three ledgers to be deleted", || async {
        Ok((deleted().await? > 2.5).then_some(()))
    })
    .await?;
    until("the topic to be unloaded again", || async {
        Ok((loaded().await? < 0.5).then_some(()))
    })
    .await?;
    let stats = admin.topic_stats("public/short/topic").await?;
    ensure!(stats.first_index == stats.end_index, "{stats:?}");
    server.stop()?;
    server.check_logs()
}
