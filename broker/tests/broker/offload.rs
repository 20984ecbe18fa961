//! Ledgers are offloaded when policy says so, whether their topic is used or not.

use aquifer_broker::BrokerConfig;
use aquifer_ledger::testing::TestWorld;
use aquifer_log::offload::tier::OffloadSettings;
use aquifer_log::testing::{MemoryColdStore, over_cold};
use aquifer_metadata::keys;
use aquifer_metadata::store::MetadataStore;
use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_model::policy::offload::OffloadPolicy;
use aquifer_model::policy::{
    EffectivePolicies, Level, PolicyName, PolicyScope, Retention, Rollover,
};
use aquifer_proto::v1;
use aquifer_protocol_api::admin::Admin;

use crate::support::{Harness, config, ctx, default_namespace, name, soon, until};

async fn start(world: TestWorld, cold: &MemoryColdStore, config: BrokerConfig) -> Harness {
    let logs = over_cold(world.process(), cold, OffloadSettings::default());
    Harness::over(world, config, logs).await
}

fn world() -> TestWorld {
    let mut world = TestWorld::new(1);
    world.clock = None;
    world
}

/// Everything is due at once, two entries a ledger.
fn at_once() -> EffectivePolicies {
    EffectivePolicies {
        offload: OffloadPolicy {
            age_ms: Some(1),
            lag_ms: 0,
            ..OffloadPolicy::default()
        },
        rollover: Rollover {
            entries: 2,
            ..Rollover::default()
        },
        ..EffectivePolicies::default()
    }
}

/// How far the offload of a topic is, by its record: asking the topic would load it.
async fn mark(world: &TestWorld, topic: &str) -> v1::OffloadMark {
    let stored = world.store.get(&keys::topic(&name(topic))).await.unwrap();
    let record: v1::TopicRecord = aquifer_metadata::record::decode(&stored.unwrap()).unwrap();
    record.offloaded.unwrap_or_default()
}

fn copies(world: &TestWorld) -> usize {
    let bookies = world.bookies.ids().into_iter();
    bookies
        .map(|bookie| world.bookies.ledgers(bookie).len())
        .sum()
}

#[tokio::test]
async fn a_topic_that_nothing_uses_is_offloaded_and_its_copies_go() {
    let cold = MemoryColdStore::default();
    let harness = start(world(), &cold, config()).await;
    let mut policies = at_once();
    policies.offload.enabled = false;
    harness.set_policies(policies).await;
    let mut producer = harness.producer("orders", "p").await;
    for number in 0..6 {
        producer.publish(&[&format!("m{number}")]).await;
    }
    drop(producer);
    soon("shutdown", harness.broker.shutdown()).await;
    assert!(cold.names().is_empty());
    // No client asks for the topic after this.
    let harness = start(harness.world, &cold, config()).await;
    harness.set_policies(at_once()).await;
    until("all copies to go", || async {
        mark(&harness.world, "orders").await.dropped_end == 6
    })
    .await;
    let done = mark(&harness.world, "orders").await;
    assert_eq!((done.stored_end, done.copies_since_ms), (6, 0));
    assert_eq!(cold.names().len(), 3);
    let mut reader = harness.reader("orders", Place::Earliest).await;
    let read = reader.take_payloads(6).await;
    assert_eq!(read, ["m0", "m1", "m2", "m3", "m4", "m5"]);
    assert_eq!(harness.stats("orders").await.first_index, Index(0));
}

#[tokio::test]
async fn a_loaded_topic_follows_its_policy_at_once() {
    let cold = MemoryColdStore::default();
    let quiet = BrokerConfig {
        housekeeping_ms: 3_600_000,
        ..config()
    };
    let harness = start(world(), &cold, quiet).await;
    let off = EffectivePolicies {
        rollover: at_once().rollover,
        ..EffectivePolicies::default()
    };
    harness.set_policies(off).await;
    let mut producer = harness.producer("orders", "p").await;
    for number in 0..7 {
        producer.publish(&[&format!("m{number}")]).await;
    }
    let scope = PolicyScope::Topic(name("orders"));
    let view = harness
        .broker
        .get_policies(&ctx(), scope.clone())
        .await
        .unwrap();
    let of = |name| view.origins.iter().find(|(of, _)| *of == name).unwrap().1;
    assert_eq!(of(PolicyName::Offload).level, Level::Namespace);
    assert_eq!(view.effective.offload.age_ms, None);
    assert!(cold.names().is_empty());
    harness.set_policies(at_once()).await;
    until("closed ledgers to be in objects", || async {
        cold.names().len() == 3
    })
    .await;
    assert!(
        copies(&harness.world) >= 1,
        "the open ledger is at its bookie"
    );
    let namespace = PolicyScope::Namespace(default_namespace());
    let view = harness
        .broker
        .get_policies(&ctx(), namespace)
        .await
        .unwrap();
    assert_eq!(view.effective.offload.age_ms, Some(1));
}

/// What is kept for a subscription is offloaded, what retention deletes anyway is not.
#[tokio::test]
async fn what_retention_deletes_soon_is_not_offloaded() {
    let cold = MemoryColdStore::default();
    let harness = start(world(), &cold, config()).await;
    harness
        .set_policies(EffectivePolicies {
            retention: Retention {
                time_ms: Some(60_000),
                size_bytes: Some(0),
            },
            ..at_once()
        })
        .await;
    let consumer = harness.consumer("kept", "s").await;
    for topic in ["free", "kept"] {
        let mut producer = harness.producer(topic, "p").await;
        // The last one begins a ledger, and so closes the second.
        for number in 0..5 {
            producer.publish(&[&format!("m{number}")]).await;
        }
    }
    until("the backlog to be in objects", || async {
        mark(&harness.world, "kept").await.stored_end == 4
    })
    .await;
    assert_eq!(
        mark(&harness.world, "free").await,
        v1::OffloadMark::default()
    );
    assert_eq!(cold.names().len(), 2);
    drop(consumer);
}

#[tokio::test]
async fn all_partitions_are_offloaded_by_one_request() {
    let cold = MemoryColdStore::default();
    let harness = start(world(), &cold, config()).await;
    let mut policies = at_once();
    policies.offload.age_ms = None;
    harness.set_policies(policies).await;
    let context = ctx();
    let created = harness.broker.create_topic(&context, name("orders"), 3);
    created.await.unwrap();
    for part in ["orders-partition-0", "orders-partition-2"] {
        let mut producer = harness.producer(part, "p").await;
        for number in 0..3 {
            producer.publish(&[&format!("m{number}")]).await;
        }
    }
    let offload = || {
        let before = Place::Latest;
        harness
            .broker
            .offload_topic(&context, name("orders"), before)
    };
    let begun = offload().await.unwrap();
    assert_eq!(begun.ledgers, 2, "the first ledger of each that is used");
    until("all closed ledgers to be in objects", || async {
        offload().await.unwrap().ledgers == 0
    })
    .await;
    assert_eq!(cold.names().len(), 2);
}
