//! H9: a broker that was paused for longer than its lease delivers nothing that was acknowledged at
//! the broker which took over, although it cannot ask metadata whether that happened.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aquifer_client::{Client, Message, SubscriptionType};
use aquifer_harness::cluster::Cluster;
use aquifer_harness::wait::within;
use aquifer_harness::wire::RawConsumer;
use aquifer_proto::PROTOCOL_VERSION;
use aquifer_proto::v1;
use aquifer_proto::v1::consume_response::Response;
use rustix::process::Signal;

const NAMESPACE: &str = "public/default";
const TOPIC: &str = "public/default/paused";
const SUBSCRIPTION: &str = "s";
const MESSAGES: u64 = 200;
/// What the paused broker has delivered before.
const BEFORE: u64 = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_owner_delivers_nothing_that_was_acknowledged_elsewhere_h9() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let environment = [
        ("AQUIFER_BROKER_BALANCE_ENABLED", "false"),
        ("AQUIFER_ETCD_LEASE_MS", "3000"),
    ];
    let data_dir = folder.path().join("cluster");
    let mut cluster = Cluster::start_with(&data_dir, &["--brokers", "2"], &environment)?;
    let client = cluster.client()?;
    let producer = client.producer(TOPIC).open().await?;
    for number in 0..MESSAGES {
        producer.send(Message::new(number.to_string())).await?;
    }
    let bundles = client.admin().list_bundles(NAMESPACE).await?;
    let owner = bundles.into_iter().find_map(|bundle| bundle.url);
    let owner = owner.context("the topic has an owner")?;
    let brokers = || cluster.processes().iter().filter(|p| p.role == "broker");
    let paused = brokers().find(|broker| broker.address == owner);
    let paused = paused.context("the owner is a broker")?.name.clone();
    let other = brokers().find(|broker| broker.address != owner);
    let other = other.context("there are two")?.address.clone();

    // A consumer that knows only the first owner, and no epochs.
    let mut stale = RawConsumer::open(&owner, subscribe()).await?;
    stale.grant(BEFORE).await?;
    let mut seen = 0;
    while seen < BEFORE {
        match stale.next().await?.context("the stream is open")? {
            Response::Deliveries(some) => seen += some.deliveries.len() as u64,
            Response::Error(error) => bail!("{error:?}"),
            _ => {}
        }
    }
    cluster.signal(&paused, Signal::STOP)?;
    consume_all(&other).await?;

    cluster.signal("etcd", Signal::STOP)?;
    stale.grant(MESSAGES).await?;
    cluster.signal(&paused, Signal::CONT)?;
    // It asks the bookies of its ledgers, which are fenced, and gives up.
    loop {
        match stale.next().await? {
            Some(Response::Deliveries(some)) => {
                let index = some.deliveries.first().map(|delivery| delivery.base_index);
                bail!("I9: index {index:?} is delivered, which was acknowledged at the next owner");
            }
            Some(Response::Error(_)) => break,
            Some(_) => {}
            None => bail!("the stream ended without a word"),
        }
    }
    cluster.signal("etcd", Signal::CONT)?;
    cluster.stop()
}

fn subscribe() -> v1::Subscribe {
    v1::Subscribe {
        version: PROTOCOL_VERSION,
        topic: TOPIC.to_owned(),
        subscription: SUBSCRIPTION.to_owned(),
        r#type: v1::SubscriptionType::Shared.into(),
        start: "earliest".to_owned(),
        ..v1::Subscribe::default()
    }
}

/// Consumes and acknowledges everything at a broker, which has to take over for that.
async fn consume_all(broker: &str) -> Result<()> {
    let client = Client::builder()
        .url(broker)
        .operation_timeout(Duration::from_secs(60))
        .build()?;
    let consumer = client
        .consumer(TOPIC, SUBSCRIPTION)
        .kind(SubscriptionType::Shared)
        .open()
        .await?;
    let mut indexes = BTreeSet::new();
    while indexes.len() < usize::try_from(MESSAGES)? {
        let message = within("a message", async { Ok(consumer.receive().await?) }).await?;
        ensure!(indexes.insert(message.index.0), "{} twice", message.index.0);
        consumer.ack(&message).await?;
    }
    Ok(())
}
