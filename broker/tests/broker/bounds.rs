//! Bounds of backlogs and of how many of each thing there may be, changed while they are in use.

use std::sync::Arc;

use aquifer_ledger::testing::TestWorld;
use aquifer_log::testing::TestLogs;
use aquifer_metadata::keys;
use aquifer_metadata::store::MetadataStore;
use aquifer_model::place::Place;
use aquifer_model::policy::bounds::{
    BacklogAction, BacklogQuota, Counts, SubscriptionTypes, TimeToLive, Unacked,
};
use aquifer_model::policy::{Policies, PolicyName, Retention, Rollover};
use aquifer_model::subscription::SubscriptionType;
use aquifer_protocol_api::admin::Admin;
use aquifer_protocol_api::consumer::Subscribe;
use aquifer_protocol_api::error::ErrorKind;
use aquifer_runtime::clock::ManualClock;
use aquifer_runtime::task::TaskGroup;

use crate::cluster::HeldStore;
use crate::policies::{here, of_topic, set, unset};
use crate::support::{
    Harness, config, ctx, default_namespace, eventually, kind, name, open, soon, subscribe, until,
};

fn quota(bytes: u64, action: BacklogAction) -> Policies {
    Policies {
        backlog_quota: Some(BacklogQuota {
            bytes: Some(bytes),
            age_ms: None,
            action,
        }),
        ..Policies::default()
    }
}

async fn backlog(harness: &Harness, topic: &str, subscription: &str) -> u64 {
    let stats = harness.stats(topic).await;
    let found = stats.subscriptions.iter().find(|s| s.name == subscription);
    found.map_or(u64::MAX, |s| s.backlog_messages)
}

/// What is older than the policy says is acknowledged for subscriptions without and with consumers,
/// also though a consumer holds it; what comes later is delivered.
#[tokio::test]
async fn old_messages_are_acknowledged_for_all_subscriptions() {
    let harness = Harness::start().await;
    harness.consumer("orders", "away").await;
    let mut holder = harness.consumer("orders", "holder").await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["old", "older"]).await;
    assert_eq!(holder.take(2).await.len(), 2);
    let ttl = |after_ms| Policies {
        ttl: Some(TimeToLive {
            after_ms: Some(after_ms),
        }),
        ..Policies::default()
    };
    set(&harness.broker, of_topic("orders"), ttl(3_600_000)).await;
    producer.publish(&["new"]).await;
    assert_eq!(backlog(&harness, "orders", "away").await, 3);
    set(&harness.broker, of_topic("orders"), ttl(1)).await;
    for subscription in ["away", "holder"] {
        until("old messages to be acknowledged", || async {
            backlog(&harness, "orders", subscription).await == 0
        })
        .await;
    }
    unset(&harness.broker, of_topic("orders"), PolicyName::Ttl).await;
    let mut consumer = harness.consumer("orders", "away").await;
    // Those that came while it was in force may be gone, too.
    let last = eventually("a message that stays", || async {
        let mut producer = harness.try_producer(open("orders", "q")).await.ok()?;
        producer.send(&["stays"]).await;
        producer.receipt().await.ok()
    });
    last.await;
    assert_eq!(consumer.take_payloads(1).await, ["stays"]);
    // The acknowledgement is durable.
    let harness = harness.restart().await;
    assert_eq!(backlog(&harness, "orders", "holder").await, 1);
}

/// Retention takes what has expired though the only subscription never comes back; and no client is
/// there that would have loaded the topic.
#[tokio::test]
async fn what_has_expired_is_trimmed_from_topics_that_no_client_uses() {
    let harness = Harness::start().await;
    harness.consumer("orders", "away").await;
    let mut producer = harness.producer("orders", "p").await;
    let small = Policies {
        rollover: Some(Rollover {
            entries: 1,
            ..Rollover::default()
        }),
        retention: Some(Retention {
            time_ms: Some(0),
            size_bytes: Some(0),
        }),
        ..Policies::default()
    };
    set(&harness.broker, here(), small).await;
    for _ in 0..5 {
        producer.publish(&["m"]).await;
    }
    drop(producer);
    let harness = harness.restart().await;
    assert!(
        harness.stats("orders").await.first_index.0 < 3,
        "the subscription keeps them"
    );
    let ttl = Policies {
        ttl: Some(TimeToLive { after_ms: Some(1) }),
        ..Policies::default()
    };
    set(&harness.broker, here(), ttl).await;
    until("the backlog to be trimmed", || async {
        harness.stats("orders").await.first_index.0 >= 4
    })
    .await;
}

/// A producer waits while the backlog is at its quota, and goes on when it is consumed.
#[tokio::test]
async fn producers_wait_while_a_backlog_is_at_its_quota() {
    let harness = Harness::start().await;
    set(&harness.broker, here(), quota(1_000, BacklogAction::Hold)).await;
    let mut consumer = harness.consumer("orders", "s").await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&[&"x".repeat(2_000)]).await;
    let mut published = 1;
    // It is looked at now and then: some more may pass before that.
    let held_back = async |harness: &Harness| {
        harness.stats("orders").await.held_back_by.as_deref() == Some("backlogQuota")
    };
    let (sender, mut receiver) = tokio::sync::mpsc::channel(100_000);
    let publishing = TaskGroup::new("test").spawn("beside", async move {
        loop {
            let receipt = producer.publish(&["more"]).await;
            if sender.send(receipt).await.is_err() {
                return;
            }
        }
    });
    until("the producer to wait", || held_back(&harness)).await;
    while receiver.try_recv().is_ok() {
        published += 1;
    }
    assert_eq!(consumer.take(published).await.len(), published);
    consumer.acknowledge(&[], Some(published as u64 - 1)).await;
    soon("the producer to go on", receiver.recv())
        .await
        .unwrap();
    drop(receiver);
    unset(&harness.broker, here(), PolicyName::BacklogQuota).await;
    soon("the producer to end", publishing).await.unwrap();
}

#[tokio::test]
async fn what_is_published_beyond_the_quota_is_refused() {
    let harness = Harness::start().await;
    harness.consumer("orders", "s").await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&[&"x".repeat(2_000)]).await;
    set(&harness.broker, here(), quota(1_000, BacklogAction::Refuse)).await;
    let refused = eventually("a message to be refused", || async {
        let mut producer = harness.try_producer(open("orders", "q")).await.ok()?;
        producer.send(&["more"]).await;
        producer.receipt().await.err()
    });
    let error = refused.await;
    assert_eq!(error.kind, ErrorKind::QuotaExceeded);
    assert!(error.message.contains("backlogQuota.bytes"), "{error}");
    assert!(error.message.contains("at most 1000"), "{error}");
    assert!(error.advice.contains("acknowledge"), "{error:?}");
    // Without subscriptions nothing is a backlog.
    let context = ctx();
    let deleted =
        harness
            .broker
            .delete_subscription(&context, name("orders"), "s".parse().unwrap(), true);
    deleted.await.unwrap();
    eventually("messages to be taken again", || async {
        let mut producer = harness.try_producer(open("orders", "q")).await.ok()?;
        producer.send(&["more"]).await;
        producer.receipt().await.ok()
    })
    .await;
}

/// The oldest messages of the slow subscription go, those of the fast one were gone before.
#[tokio::test]
async fn the_oldest_messages_of_the_slowest_subscription_are_evicted() {
    let harness = Harness::start().await;
    let mut fast = harness.consumer("orders", "fast").await;
    harness.consumer("orders", "slow").await;
    let mut producer = harness.producer("orders", "p").await;
    for _ in 0..100 {
        producer.publish(&[&"x".repeat(100)]).await;
    }
    fast.take(90).await;
    fast.acknowledge(&[], Some(89)).await;
    let all = harness.stats("orders").await.stored_bytes;
    set(
        &harness.broker,
        here(),
        quota(all / 2, BacklogAction::Evict),
    )
    .await;
    until("the backlog to fit", || async {
        backlog(&harness, "orders", "slow").await <= 50
    })
    .await;
    assert!(backlog(&harness, "orders", "slow").await >= 49);
    assert_eq!(backlog(&harness, "orders", "fast").await, 10);
    producer.publish(&["goes on"]).await;
}

#[tokio::test]
async fn a_backlog_that_is_too_old_stops_producers() {
    let harness = Harness::start().await;
    harness.consumer("orders", "s").await;
    harness
        .producer("orders", "p")
        .await
        .publish(&["old"])
        .await;
    let old = Policies {
        backlog_quota: Some(BacklogQuota {
            bytes: None,
            age_ms: Some(1),
            action: BacklogAction::Refuse,
        }),
        ..Policies::default()
    };
    set(&harness.broker, here(), old).await;
    let error = eventually("a message to be refused", || async {
        let mut producer = harness.try_producer(open("orders", "q")).await.ok()?;
        producer.send(&["more"]).await;
        producer.receipt().await.err()
    })
    .await;
    assert_eq!(error.kind, ErrorKind::QuotaExceeded);
    assert!(error.message.contains("backlogQuota.age"), "{error}");
}

fn counts(counts: Counts) -> Policies {
    Policies {
        counts: Some(counts),
        ..Policies::default()
    }
}

#[tokio::test]
async fn one_producer_and_one_consumer_more_than_allowed_are_refused() {
    let harness = Harness::start().await;
    let producer = harness.producer("orders", "a").await;
    let consumer = harness.consumer("orders", "a").await;
    let one = Counts {
        producers: 1,
        consumers: Some(1),
        ..Counts::default()
    };
    set(&harness.broker, here(), counts(one)).await;
    let refused = harness.try_producer(open("orders", "b")).await.map(drop);
    let error = refused.unwrap_err();
    assert_eq!(error.kind, ErrorKind::QuotaExceeded);
    let said = ["counts.producers", "orders", "has 1 producers", "at most 1"];
    assert!(
        said.iter().all(|part| error.message.contains(part)),
        "{error}"
    );
    let refused = harness
        .try_subscribe(subscribe("orders", "b"))
        .await
        .map(drop);
    assert_eq!(kind(&refused), Some(ErrorKind::QuotaExceeded));
    // Those that are there stay, and their places are free when they go.
    drop((producer, consumer));
    eventually("the place of a producer", || async {
        harness.try_producer(open("orders", "b")).await.ok()
    })
    .await;
    eventually("the place of a consumer", || async {
        harness.try_subscribe(subscribe("orders", "b")).await.ok()
    })
    .await;
}

#[tokio::test]
async fn one_subscription_more_than_allowed_is_refused() {
    let harness = Harness::start().await;
    harness.consumer("orders", "a").await;
    let one = Counts {
        subscriptions: 1,
        ..Counts::default()
    };
    set(&harness.broker, here(), counts(one)).await;
    harness.consumer("orders", "a").await;
    let refused = harness
        .try_subscribe(subscribe("orders", "b"))
        .await
        .map(drop);
    assert_eq!(kind(&refused), Some(ErrorKind::QuotaExceeded));
    let reader = Subscribe {
        subscription: None,
        start: Place::Earliest,
        ..subscribe("orders", "unused")
    };
    let refused = harness.try_subscribe(reader).await.map(drop);
    assert_eq!(kind(&refused), Some(ErrorKind::QuotaExceeded));
    unset(&harness.broker, here(), PolicyName::Counts).await;
    harness.consumer("orders", "b").await;
}

#[tokio::test]
async fn one_topic_more_than_a_namespace_may_have_is_refused() {
    let harness = Harness::start().await;
    let broker = &harness.broker;
    let four = Counts {
        topics: Some(4),
        ..Counts::default()
    };
    set(broker, here(), counts(four)).await;
    broker.create_topic(&ctx(), name("parts"), 3).await.unwrap();
    let refused = broker.create_topic(&ctx(), name("more"), 2).await;
    let error = refused.unwrap_err();
    assert_eq!(error.kind, ErrorKind::QuotaExceeded);
    let said = ["counts.topics", "public/default", "has 3", "at most 4"];
    assert!(
        said.iter().all(|part| error.message.contains(part)),
        "{error}"
    );
    harness.producer("used", "p").await;
    let refused = harness.try_producer(open("unused", "p")).await.map(drop);
    assert_eq!(kind(&refused), Some(ErrorKind::QuotaExceeded));
    // What exists is used as before.
    harness.producer("parts-partition-1", "p").await;
    let exists = broker.create_topic(&ctx(), name("used"), 0).await;
    assert_eq!(kind(&exists), Some(ErrorKind::AlreadyExists));
    unset(broker, here(), PolicyName::Counts).await;
    harness.producer("unused", "p").await;
}

/// Of a storm of creations one counts, and the others wait for its count; none passes the bound
/// beside it.
#[tokio::test]
async fn creations_at_once_count_once_and_keep_the_bound() {
    let mut world = TestWorld::new(1);
    // Time stands still, so that one count is enough for all.
    world.clock = Some(ManualClock::new(1_700_000_000_000));
    let inner: Arc<dyn MetadataStore> = Arc::new(world.store.clone());
    let store = HeldStore::over(&inner);
    let transport = Arc::new(world.bookies.clone());
    let log = world.logs_with(Arc::clone(&store) as _, transport, TestWorld::settings());
    let harness = Harness::over(world, config(), log).await;
    let five = Counts {
        topics: Some(5),
        ..Counts::default()
    };
    set(&harness.broker, here(), counts(five)).await;
    let context = ctx();
    let creations = (0..20).map(|number| {
        let topic = name(&format!("t{number}"));
        harness.broker.create_topic(&context, topic, 0)
    });
    let created = soon("creations", futures::future::join_all(creations)).await;
    let refused = created.iter().filter(|created| created.is_err());
    assert!(
        refused
            .clone()
            .all(|refused| kind(refused) == Some(ErrorKind::QuotaExceeded)),
        "{created:?}"
    );
    assert_eq!(refused.count(), 15);
    let topics = keys::topics_prefix(&default_namespace());
    assert_eq!(store.scans(&topics), 1);
}

#[tokio::test]
async fn only_allowed_types_subscribe() {
    let harness = Harness::start().await;
    let types = SubscriptionTypes::NONE.with(SubscriptionType::Shared);
    let only = Policies {
        subscription_types: Some(types),
        ..Policies::default()
    };
    let exclusive = harness.consumer("orders", "before").await;
    set(&harness.broker, here(), only).await;
    let refused = harness
        .try_subscribe(subscribe("orders", "s"))
        .await
        .map(drop);
    let error = refused.unwrap_err();
    assert_eq!(error.kind, ErrorKind::FailedPrecondition);
    assert!(error.message.contains("subscriptionTypes"), "{error}");
    let shared = Subscribe {
        kind: SubscriptionType::Shared,
        ..subscribe("orders", "s")
    };
    harness.try_subscribe(shared).await.unwrap();
    harness.reader("orders", Place::Earliest).await;
    // Clients that were there before go on.
    let mut exclusive = exclusive;
    harness.producer("orders", "p").await.publish(&["m"]).await;
    assert_eq!(exclusive.take_payloads(1).await, ["m"]);
}

#[tokio::test]
async fn subscriptions_are_created_by_use_only_where_policy_lets_them() {
    let harness = Harness::start().await;
    harness.producer("orders", "p").await.publish(&["m"]).await;
    let explicit = Policies {
        auto_create_subscriptions: Some(false),
        ..Policies::default()
    };
    set(&harness.broker, of_topic("orders"), explicit).await;
    let refused = harness
        .try_subscribe(subscribe("orders", "s"))
        .await
        .map(drop);
    assert_eq!(kind(&refused), Some(ErrorKind::NotFound));
    let context = ctx();
    let created = harness.broker.create_subscription(
        &context,
        name("orders"),
        "s".parse().unwrap(),
        Place::Earliest,
        Default::default(),
    );
    created.await.unwrap();
    assert_eq!(
        harness.consumer("orders", "s").await.take_payloads(1).await,
        ["m"]
    );
    unset(
        &harness.broker,
        of_topic("orders"),
        PolicyName::AutoCreateSubscriptions,
    )
    .await;
    harness.consumer("orders", "other").await;
}

/// A raised bound shows although nothing else happens.
#[tokio::test]
async fn no_more_is_delivered_than_may_be_unacknowledged() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    for _ in 0..5 {
        producer.publish(&["m"]).await;
    }
    let unacked = |consumer| Policies {
        unacked: Some(Unacked {
            consumer,
            subscription: 4,
        }),
        ..Policies::default()
    };
    set(&harness.broker, here(), unacked(2)).await;
    let mut consumer = harness.consumer("orders", "s").await;
    consumer.grant(100).await;
    let held = async |harness: &Harness| {
        let stats = harness.stats("orders").await;
        stats.subscriptions[0].unacknowledged_messages
    };
    until("two to be delivered", || async {
        held(&harness).await == 2
    })
    .await;
    set(&harness.broker, here(), unacked(3)).await;
    until("three to be delivered", || async {
        held(&harness).await == 3
    })
    .await;
    set(&harness.broker, here(), unacked(100)).await;
    until("four to be delivered", || async {
        held(&harness).await == 4
    })
    .await;
    unset(&harness.broker, here(), PolicyName::Unacked).await;
    until("all to be delivered", || async {
        held(&harness).await == 5
    })
    .await;
}
