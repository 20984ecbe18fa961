//! Limits of what passes: each waits or refuses, is changed while it is in use, and is gone when it
//! is unset.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use aquifer_log::testing::TestLogs;
use aquifer_metadata::keys;
use aquifer_metadata::store::{Expect, Operation, Transaction};
use aquifer_model::id::Index;
use aquifer_model::policy::rate::{AggregateRate, Rate};
use aquifer_model::policy::{Policies, PolicyName, PolicyScope};
use aquifer_model::topic::NamespaceName;
use aquifer_protocol_api::admin::Admin;
use aquifer_protocol_api::consumer::Held;
use aquifer_protocol_api::data_plane::DataPlane;
use aquifer_protocol_api::error::{ErrorKind, Outcome};
use aquifer_protocol_api::producer::OpenProducer;
use aquifer_protocol_api::pull::{Append, Read, ReadLimits};
use aquifer_runtime::task::{TaskGroup, TaskHandle};

use crate::cluster::{self, Cluster, HeldStore};
use crate::policies::{here, of_topic, set, unset};
use crate::support::{Harness, Producer, batch, ctx, eventually, name, open, soon, until};

fn rate(messages: u64) -> Rate {
    Rate {
        messages: Some(messages),
        ..Rate::UNLIMITED
    }
}

fn publish_rate(messages: u64) -> Policies {
    Policies {
        publish_rate: Some(rate(messages)),
        ..Policies::default()
    }
}

/// Publishes beside the test, which may take long.
fn publishing(mut producer: Producer, payloads: &[&str]) -> TaskHandle<Producer> {
    let payloads: Vec<String> = payloads.iter().map(ToString::to_string).collect();
    TaskGroup::new("test").spawn("beside", async move {
        let payloads: Vec<&str> = payloads.iter().map(String::as_str).collect();
        producer.publish(&payloads).await;
        producer
    })
}

/// Waits until the topic says that producers wait for this.
async fn held_back(harness: &Harness, topic: &str, by: &str) {
    until(&format!("producers to wait for {by}"), || async {
        harness.stats(topic).await.held_back_by.as_deref() == Some(by)
    })
    .await;
}

/// A rate of nothing stops a topic and no other, and consuming goes on; when it is raised, what
/// waited is stored.
#[tokio::test]
async fn what_is_over_the_rate_of_a_topic_waits_and_passes_when_it_is_raised() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    let published = Arc::new(AtomicUsize::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let (count, stopped) = (Arc::clone(&published), Arc::clone(&stop));
    let publishing = TaskGroup::new("test").spawn("beside", async move {
        while !stopped.load(Ordering::SeqCst) {
            producer.publish(&["m"]).await;
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    let more_than = async |before: usize| {
        until("messages to be stored", || async {
            published.load(Ordering::SeqCst) > before
        })
        .await;
    };
    more_than(0).await;
    set(&harness.broker, of_topic("orders"), publish_rate(0)).await;
    held_back(&harness, "orders", "publishRate").await;
    let before = published.load(Ordering::SeqCst);
    harness
        .producer("other", "p")
        .await
        .publish(&["free"])
        .await;
    let mut consumer = harness.consumer("orders", "s").await;
    assert_eq!(consumer.take(before).await.len(), before);
    consumer.acknowledge(&[], Some(before as u64 - 1)).await;
    assert_eq!(published.load(Ordering::SeqCst), before, "nothing passes");
    set(&harness.broker, of_topic("orders"), publish_rate(1_000)).await;
    more_than(before).await;
    unset(&harness.broker, of_topic("orders"), PolicyName::PublishRate).await;
    until("nothing to be held back", || async {
        harness.stats("orders").await.held_back_by.is_none()
    })
    .await;
    stop.store(true, Ordering::SeqCst);
    soon("the producer", publishing).await.unwrap();
}

/// The first batch is paid for after it has passed; what follows takes the time that the rate says,
/// and nothing fails.
#[tokio::test]
async fn a_rate_is_held_without_a_failure() {
    let harness = Harness::start().await;
    set(&harness.broker, here(), publish_rate(50)).await;
    let mut producer = harness.producer("orders", "p").await;
    let clock = Arc::clone(&harness.world.logs().ledgers.clock);
    let began = clock.monotonic();
    for _ in 0..10 {
        producer.publish(&["x"; 10]).await;
    }
    // A hundred messages: 50 are the burst, and the last batch leaves its debt.
    let least = Duration::from_millis((100 - 50 - 10) * 1_000 / 50);
    let took = clock.monotonic() - began;
    assert!(took >= least, "{took:?}");
}

#[tokio::test]
async fn what_waits_too_long_is_refused_and_not_stored() {
    let harness = Harness::start().await;
    set(&harness.broker, here(), publish_rate(0)).await;
    let mut producer = harness.producer("orders", "p").await;
    let first = batch("p", 0, &["never"]);
    let sent = producer.send_batch(first);
    soon("the wait to end", sent).await.unwrap();
    let error = producer.error().await;
    assert_eq!(error.kind, ErrorKind::Overloaded);
    assert_eq!(error.outcome, Outcome::NotApplied);
    assert!(error.message.contains("publishRate"), "{error}");
    unset(&harness.broker, here(), PolicyName::PublishRate).await;
    // It comes again, as an SDK sends it again.
    let mut again = harness.producer("orders", "p").await;
    assert_eq!(again.opened.last_sequence_id, None);
    let receipt = again.publish(&["at last"]).await;
    assert_eq!(receipt.stored.map(|at| at.base_index.0), Some(0));
}

/// The batch of one producer is its own debt.
#[tokio::test]
async fn producers_have_rates_of_their_own() {
    let harness = Harness::start().await;
    let slow = Policies {
        producer_rate: Some(rate(1)),
        ..Policies::default()
    };
    set(&harness.broker, here(), slow).await;
    let mut greedy = harness.producer("orders", "greedy").await;
    greedy.publish(&["x"; 1_000]).await;
    let waiting = publishing(greedy, &["more"]);
    held_back(&harness, "orders", "producerRate").await;
    harness
        .producer("orders", "modest")
        .await
        .publish(&["y"])
        .await;
    unset(&harness.broker, here(), PolicyName::ProducerRate).await;
    soon("the message that waited", waiting).await.unwrap();
}

/// A session that ends gives back nothing of what its producer has used.
#[tokio::test]
async fn a_producer_that_opens_again_has_no_other_rate() {
    let harness = Harness::start().await;
    let slow = Policies {
        producer_rate: Some(rate(1)),
        ..Policies::default()
    };
    set(&harness.broker, here(), slow).await;
    let mut greedy = harness.producer("orders", "greedy").await;
    greedy.publish(&["x"; 1_000]).await;
    drop(greedy);
    let again = OpenProducer {
        epoch: 1,
        ..open("orders", "greedy")
    };
    let again = eventually("the name to be free", || async {
        harness.try_producer(again.clone()).await.ok()
    });
    let waiting = publishing(again.await, &["more"]);
    held_back(&harness, "orders", "producerRate").await;
    unset(&harness.broker, here(), PolicyName::ProducerRate).await;
    soon("the message that waited", waiting).await.unwrap();
}

/// An append that names a producer counts for it.
#[tokio::test]
async fn appends_of_one_producer_have_its_rate() {
    let harness = Harness::start().await;
    let slow = Policies {
        producer_rate: Some(rate(1)),
        ..Policies::default()
    };
    set(&harness.broker, here(), slow).await;
    let append = |producer, lowest| Append {
        topic: name("orders"),
        incarnation: None,
        format: aquifer_model::format::FORMAT_NATIVE,
        body: batch(producer, lowest, &["x"; 1_000]),
        held: Held::default(),
    };
    let first = harness.broker.append(&ctx(), append("greedy", 0)).await;
    assert!(first.is_ok(), "{first:?}");
    let broker = Arc::clone(&harness.broker);
    let second = append("greedy", 1_000);
    let waiting =
        TaskGroup::new("test").spawn("beside", async move { broker.append(&ctx(), second).await });
    held_back(&harness, "orders", "producerRate").await;
    let other = harness.broker.append(&ctx(), append("modest", 0)).await;
    assert!(other.is_ok(), "{other:?}");
    unset(&harness.broker, here(), PolicyName::ProducerRate).await;
    let second = soon("the append that waited", waiting).await.unwrap();
    assert!(second.is_ok(), "{second:?}");
}

/// What one namespace uses of its tenant's rate others of the tenant have not.
#[tokio::test]
async fn a_tenant_has_a_rate_for_all_its_topics() {
    let harness = Harness::start().await;
    let broker = &harness.broker;
    broker
        .create_tenant(&ctx(), "acme".to_owned())
        .await
        .unwrap();
    let context = ctx();
    for namespace in ["acme/one", "acme/two"] {
        let namespace = namespace.parse().unwrap();
        let created = broker.create_namespace(&context, namespace, Policies::default());
        created.await.unwrap();
    }
    let tenant = || PolicyScope::Tenant("acme".to_owned());
    set(broker, tenant(), aggregate(1)).await;
    harness
        .producer("acme/one/t", "p")
        .await
        .publish(&["x"; 1_000])
        .await;
    let other = harness.producer("acme/two/t", "p").await;
    let waiting = publishing(other, &["y"]);
    held_back(&harness, "acme/two/t", "aggregateRate of the tenant").await;
    harness.producer("free", "p").await.publish(&["z"]).await;
    unset(broker, tenant(), PolicyName::AggregateRate).await;
    soon("the message that waited", waiting).await.unwrap();
}

fn aggregate(messages: u64) -> Policies {
    Policies {
        aggregate_rate: Some(AggregateRate {
            publish: rate(messages),
            ..AggregateRate::default()
        }),
        ..Policies::default()
    }
}

/// A broker whose claim another one has removed, since it was not announced for a while, claims its
/// share again.
#[tokio::test]
async fn a_share_whose_record_is_gone_is_claimed_again() {
    let cluster = Cluster::new(cluster::config(4)).await;
    let member = cluster.join("alone").await;
    set(&member.broker, here(), aggregate(1_000)).await;
    let (_url, _session) = cluster.producer(&member, "orders").await;
    let key = keys::rate_shares(&here());
    let record = || async { cluster.store.get(&key).await.unwrap() };
    let first = eventually("a claim", record).await;
    let deleted = cluster.store.commit(Transaction {
        partition: keys::partition_of_policies(&here()),
        guards: Vec::new(),
        operations: vec![Operation::Delete {
            key: key.clone(),
            expect: Expect::Any,
        }],
    });
    deleted.await.unwrap();
    let again = eventually("another claim", record).await;
    assert!(again.revision > first.revision, "{again:?}");
}

/// What takes long to be written does not hold back what is written of other tenants and
/// namespaces.
#[tokio::test]
async fn shares_of_several_rates_are_claimed_at_once() {
    const LATER: usize = 3;
    let cluster = Cluster::new(cluster::config(4)).await;
    let held = HeldStore::over(&cluster.store);
    let member = cluster.join_over("alone", Arc::clone(&held) as _).await;
    let mut sessions = Vec::new();
    // All others are in use when the first is written.
    held.hold(Some("rates/public/first"));
    let later = (0..LATER).map(|number| format!("later-{number}"));
    for (number, namespace) in std::iter::once("first".to_owned()).chain(later).enumerate() {
        let namespace: NamespaceName = format!("public/{namespace}").parse().unwrap();
        let key = keys::rate_shares(&PolicyScope::Namespace(namespace.clone()));
        assert_eq!(key, format!("rates/{namespace}"));
        let context = ctx();
        let created = member
            .broker
            .create_namespace(&context, namespace.clone(), aggregate(1_000));
        created.await.unwrap();
        sessions.push(cluster.producer(&member, &format!("{namespace}/t")).await);
        if number == 0 {
            held.holds(1).await;
        }
    }
    held.hold(Some("rates/public/later"));
    held.holds(1 + LATER).await;
    held.hold(None);
}

/// Requests that stand alone wait like sessions.
#[tokio::test]
async fn appends_without_a_session_have_the_same_rate() {
    let harness = Harness::start().await;
    set(
        &harness.broker,
        of_topic_that_exists(&harness).await,
        publish_rate(1),
    )
    .await;
    let append = |lowest| Append {
        topic: name("orders"),
        incarnation: None,
        format: aquifer_model::format::FORMAT_NATIVE,
        body: batch("alone", lowest, &["x"; 100]),
        held: Held::default(),
    };
    let first = harness.broker.append(&ctx(), append(0)).await;
    assert!(first.is_ok(), "{first:?}");
    let broker = Arc::clone(&harness.broker);
    let second = append(100);
    let waiting =
        TaskGroup::new("test").spawn("beside", async move { broker.append(&ctx(), second).await });
    held_back(&harness, "orders", "publishRate").await;
    unset(&harness.broker, of_topic("orders"), PolicyName::PublishRate).await;
    let second = soon("the append that waited", waiting).await.unwrap();
    assert!(second.is_ok(), "{second:?}");
}

async fn of_topic_that_exists(harness: &Harness) -> PolicyScope {
    harness
        .broker
        .create_topic(&ctx(), name("orders"), 0)
        .await
        .unwrap();
    of_topic("orders")
}

/// Credit is there, and is not used before the rate allows it.
#[tokio::test]
async fn deliveries_wait_for_the_rate_of_their_topic() {
    let harness = Harness::start().await;
    let none = Policies {
        dispatch_rate: Some(rate(0)),
        ..Policies::default()
    };
    set(&harness.broker, here(), none).await;
    harness
        .producer("orders", "p")
        .await
        .publish(&["a", "b"])
        .await;
    let mut consumer = harness.consumer("orders", "s").await;
    consumer.grant(10).await;
    until("the subscription to wait", || async {
        let stats = harness.stats("orders").await;
        let held_back = stats.subscriptions[0].held_back_by.as_deref();
        held_back == Some("dispatchRate")
    })
    .await;
    assert!(consumer.events.is_empty());
    unset(&harness.broker, here(), PolicyName::DispatchRate).await;
    assert_eq!(consumer.take_payloads(2).await, ["a", "b"]);
}

fn read(wait: Duration) -> Read {
    Read {
        topic: name("orders"),
        incarnation: None,
        from: Index(0),
        limits: ReadLimits {
            bytes_max: 1 << 20,
            batches_max: 10,
            bytes_min: 1,
        },
        wait,
    }
}

/// Reads take the tokens that there are once, however many come at once, and leave the debt of one
/// entry at most.
#[tokio::test]
async fn reads_at_once_do_not_overdraw_the_rate() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    for _ in 0..10 {
        producer.publish(&["x"; 1_000]).await;
    }
    drop(producer);
    // Nothing is in memory any more: reads take time.
    let harness = harness.restart().await;
    let few = Policies {
        dispatch_rate: Some(rate(2_500)),
        ..Policies::default()
    };
    set(&harness.broker, here(), few).await;
    let context = ctx();
    let reads = (0..8).map(|_| harness.broker.read(&context, read(Duration::ZERO)));
    let found = soon("the reads", futures::future::join_all(reads)).await;
    let found: Vec<usize> = found
        .into_iter()
        .map(|found| found.unwrap().batches.len())
        .collect();
    // What the first one leaves of its 2,500 tokens lets one more entry pass.
    let all: usize = found.iter().sum();
    assert!((2..=3).contains(&all), "{found:?}");
    assert!(found.iter().all(|batches| *batches <= 2), "{found:?}");
}

/// A read that waits for messages takes no tokens from one that finds some.
#[tokio::test]
async fn a_read_that_waits_holds_no_tokens() {
    let harness = Harness::start().await;
    let few = Policies {
        dispatch_rate: Some(rate(10)),
        ..Policies::default()
    };
    set(&harness.broker, here(), few).await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["a"]).await;
    let broker = Arc::clone(&harness.broker);
    let behind = Read {
        from: Index(1),
        ..read(Duration::from_secs(30))
    };
    let waiting =
        TaskGroup::new("test").spawn("beside", async move { broker.read(&ctx(), behind).await });
    eventually("one read beside one that waits", || async {
        let found = harness.broker.read(&ctx(), read(Duration::ZERO)).await;
        (found.unwrap().batches.len() == 1).then_some(())
    })
    .await;
    producer.publish(&["b"]).await;
    let found = soon("the read that waited", waiting).await.unwrap();
    assert_eq!(found.unwrap().batches.len(), 1);
}

/// A read that stands alone finds nothing while the rate allows nothing.
#[tokio::test]
async fn reads_without_a_session_have_the_same_rate() {
    let harness = Harness::start().await;
    let slow = Policies {
        dispatch_rate: Some(rate(1)),
        ..Policies::default()
    };
    set(&harness.broker, here(), slow).await;
    harness
        .producer("orders", "p")
        .await
        .publish(&["x"; 1_000])
        .await;
    let first = harness
        .broker
        .read(&ctx(), read(Duration::ZERO))
        .await
        .unwrap();
    assert_eq!(first.batches.len(), 1, "and leaves its debt");
    let again = harness
        .broker
        .read(&ctx(), read(Duration::ZERO))
        .await
        .unwrap();
    assert_eq!((again.batches.len(), again.next), (0, Index(0)));
    unset(&harness.broker, here(), PolicyName::DispatchRate).await;
    let context = ctx();
    let again = harness.broker.read(&context, read(Duration::from_secs(20)));
    assert_eq!(soon("a read", again).await.unwrap().batches.len(), 1);
}

/// A large entry passes, and its debt holds back what follows, of this subscription alone.
#[tokio::test]
async fn a_subscription_has_a_rate_of_its_own() {
    let harness = Harness::start().await;
    let slow = Policies {
        subscription_rate: Some(rate(1)),
        ..Policies::default()
    };
    set(&harness.broker, here(), slow).await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["x"; 1_000]).await;
    producer.publish(&["last"]).await;
    for subscription in ["one", "other"] {
        let mut consumer = harness.consumer("orders", subscription).await;
        consumer.grant(2_000).await;
        assert_eq!(consumer.take(1_000).await.len(), 1_000);
        until("the subscription to wait", || async {
            let stats = harness.stats("orders").await;
            let mine = stats.subscriptions.iter().find(|s| s.name == subscription);
            mine.and_then(|s| s.held_back_by.as_deref()) == Some("subscriptionRate")
        })
        .await;
        assert!(consumer.events.is_empty());
        if subscription == "other" {
            unset(&harness.broker, here(), PolicyName::SubscriptionRate).await;
            assert_eq!(consumer.take_payloads(1).await, ["last"]);
        }
    }
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_until_the_bound_is_raised() {
    let harness = Harness::start().await;
    let small = Policies {
        message_bytes_max: Some(100),
        ..Policies::default()
    };
    set(&harness.broker, here(), small).await;
    let large = "x".repeat(200);
    let mut producer = harness.producer("orders", "p").await;
    // Many small messages in one batch are not one large message.
    producer.publish(&["fits"; 100]).await;
    producer.send(&[&large]).await;
    let error = producer.error().await;
    assert_eq!(error.kind, ErrorKind::TooLarge);
    assert!(error.message.contains("at most 100"), "{error}");
    unset(&harness.broker, here(), PolicyName::MessageBytesMax).await;
    let again = open("orders", "p");
    eventually("a large message to be taken", || async {
        let mut producer = harness.try_producer(again.clone()).await.ok()?;
        producer.send(&[&large]).await;
        producer.receipt().await.ok()
    })
    .await;
}
