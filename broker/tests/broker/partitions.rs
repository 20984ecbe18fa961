//! Partitioned topics whose partitions are served by several brokers: every broker answers for all
//! partitions, a request for statistics creates nothing, and a deletion leaves nothing behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aquifer_broker::{BalanceConfig, BrokerConfig};
use aquifer_metadata::keys;
use aquifer_metadata::record;
use aquifer_metadata::store::{Expect, MetadataStore};
use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_model::ranges::TopicRanges;
use aquifer_model::topic::{SubscriptionName, TopicName};
use aquifer_proto::convert::ranges::wire_ranges;
use aquifer_proto::v1::TopicRecord;
use aquifer_protocol_api::admin::{Admin, Deletion, PageRequest};
use aquifer_protocol_api::data_plane::DataPlane;
use aquifer_protocol_api::error::{ApiResult, ErrorKind, Outcome};
use aquifer_protocol_api::operator::Operator;
use futures::future::join_all;

use crate::cluster::{Cluster, Member, config};
use crate::support::{
    Harness, ctx, default_namespace, eventually, kind, name, open, soon, subscribe,
};

const PARTITIONS: u32 = 16;
const BUNDLES: u32 = 16;

/// Brokers that share the bundles evenly.
pub async fn several(count: usize) -> (Cluster, Vec<Member>) {
    let cluster = Cluster::new(BrokerConfig {
        balance: BalanceConfig {
            enabled: false,
            ..BalanceConfig::default()
        },
        ..config(BUNDLES)
    })
    .await;
    let mut members = Vec::new();
    for number in 0..count {
        members.push(cluster.join(&format!("broker-{number}")).await);
    }
    let asked = &members[0];
    let bundles = asked.broker.list_bundles(&ctx(), default_namespace()).await;
    for (number, bundle) in bundles.unwrap().into_iter().enumerate() {
        let owner = &members[number % count];
        cluster.transfer(bundle.range, asked, owner).await;
    }
    (cluster, members)
}

/// The answer of the broker that answers something else than a redirect.
async fn at_owner<T, F>(members: &[Member], ask: impl Fn(usize) -> F) -> ApiResult<T>
where
    F: Future<Output = ApiResult<T>>,
{
    for at in 0..members.len() {
        let answer = soon("an answer", ask(at)).await;
        if kind(&answer) != Some(ErrorKind::Redirect) {
            return answer;
        }
    }
    panic!("every broker names another one");
}

async fn create(members: &[Member], topic: &str, partitions: u32) {
    let context = ctx();
    let created = at_owner(members, |at| {
        members[at]
            .broker
            .create_topic(&context, name(topic), partitions)
    });
    created.await.unwrap();
}

async fn delete(members: &[Member], topic: &str, how: Deletion) -> ApiResult<()> {
    let context = ctx();
    at_owner(members, |at| {
        members[at].broker.delete_topic(&context, name(topic), how)
    })
    .await
}

/// The names of the records of topics.
async fn records(store: &Arc<dyn MetadataStore>) -> Vec<String> {
    let prefix = keys::topics_prefix(&default_namespace());
    let page = store.scan(&prefix, None, 1_000).await.unwrap();
    page.items.into_iter().map(|item| item.key).collect()
}

fn parts(topic: &str) -> Vec<String> {
    let topic = name(topic);
    let parts = (0..PARTITIONS).map(|number| topic.partition_name(number));
    parts.map(|part: TopicName| part.to_string()).collect()
}

#[tokio::test]
async fn statistics_of_all_partitions_come_from_any_broker() {
    let (cluster, members) = several(2).await;
    create(&members, "orders", PARTITIONS).await;
    cluster.publish(&members[0], &parts("orders")).await;
    for member in &members {
        let context = ctx();
        let stats = member.broker.topic_stats(&context, name("orders"));
        let stats = soon("statistics", stats).await.unwrap();
        assert_eq!(stats.partitions, PARTITIONS);
        assert_eq!(stats.end_index.0, u64::from(PARTITIONS));
        assert_eq!(stats.ledgers.len(), PARTITIONS as usize);
    }
}

#[tokio::test]
async fn a_request_for_statistics_creates_nothing() {
    let (cluster, members) = several(2).await;
    create(&members, "orders", PARTITIONS).await;
    let before = records(&cluster.store).await;
    assert!(
        before.len() < 1 + PARTITIONS as usize,
        "the other broker's are not there"
    );
    for member in &members {
        let context = ctx();
        let stats = member.broker.topic_stats(&context, name("orders"));
        assert_eq!(soon("statistics", stats).await.unwrap().end_index.0, 0);
        for part in parts("orders") {
            let stats = member.broker.topic_stats(&context, name(&part));
            let stats = soon("statistics", stats).await;
            assert!(
                matches!(kind(&stats), None | Some(ErrorKind::Redirect)),
                "{stats:?}"
            );
        }
    }
    assert_eq!(records(&cluster.store).await, before);
}

#[tokio::test]
async fn a_topic_is_deleted_while_its_clients_come_back() {
    let (cluster, members) = several(3).await;
    create(&members, "orders", PARTITIONS).await;
    cluster.publish(&members[0], &parts("orders")).await;
    let over = AtomicBool::new(false);
    let stop = || over.load(Ordering::SeqCst);
    // Producers that come back at once, as if the topic were new to them, and clients that poll its
    // statistics.
    let come_back = parts("orders").into_iter().map(async |part| {
        while !stop() {
            for member in &members {
                let context = ctx();
                let session = member.broker.open_producer(&context, open(&part, "p"));
                drop(session.await);
            }
            tokio::task::yield_now().await;
        }
    });
    let poll = members.iter().map(async |member| {
        while !stop() {
            let context = ctx();
            drop(member.broker.topic_stats(&context, name("orders")).await);
            tokio::task::yield_now().await;
        }
    });
    let deletes = async {
        let deleted = delete(&members, "orders", Deletion::Force).await;
        let left = records(&cluster.store).await;
        over.store(true, Ordering::SeqCst);
        deleted.unwrap();
        assert!(left.is_empty(), "{left:?}");
    };
    tokio::join!(join_all(come_back), join_all(poll), deletes);
    let left = records(&cluster.store).await;
    assert!(
        left.is_empty(),
        "no client brings a partition back: {left:?}"
    );
    let again = delete(&members, "orders", Deletion::Force).await;
    assert_eq!(kind(&again), Some(ErrorKind::NotFound));
}

#[tokio::test]
async fn a_topic_in_use_anywhere_keeps_all_of_its_partitions() {
    let (cluster, members) = several(3).await;
    create(&members, "orders", PARTITIONS).await;
    let all = parts("orders");
    cluster.publish(&members[0], &all).await;
    let before = records(&cluster.store).await;
    let last = all.last().unwrap();
    let (_, session) = cluster.producer(&members[0], last).await;
    let refused = delete(&members, "orders", Deletion::IfUnused).await;
    assert_eq!(kind(&refused), Some(ErrorKind::FailedPrecondition));
    assert_eq!(records(&cluster.store).await, before);
    drop(session);
    eventually("the topic to be unused", || async {
        delete(&members, "orders", Deletion::IfUnused).await.ok()
    })
    .await;
    assert!(records(&cluster.store).await.is_empty());
}

/// What a broker that ended has begun is finished by the next broker that finds it.
#[tokio::test]
async fn a_deletion_that_was_cut_off_is_finished() {
    let (cluster, members) = several(2).await;
    for topic in ["listed", "created", "looked-at"] {
        create(&members, topic, PARTITIONS).await;
        cluster.publish(&members[0], &parts(topic)).await;
        mark_deleting(&cluster.store, topic).await;
    }
    create(&members, "plain", 0).await;
    mark_deleting(&cluster.store, "plain").await;
    let context = ctx();
    let used = at_owner(&members, |at| {
        let members = &members;
        async move {
            let context = ctx();
            let session = members[at]
                .broker
                .open_producer(&context, open("plain", "late"));
            session.await.map(drop)
        }
    });
    assert_eq!(kind(&used.await), Some(ErrorKind::NotFound));
    let asked = &members[0].broker;
    let described = at_owner(&members, |at| {
        members[at]
            .broker
            .describe_topic(&context, name("looked-at"), false)
    });
    assert_eq!(kind(&described.await), Some(ErrorKind::NotFound));
    // One that is loaded still goes with the others.
    eventually("the partitions to be gone", || async {
        let session = at_owner(&members, |at| {
            let request = open(&parts("looked-at")[0], "late");
            let members = &members;
            async move {
                let context = ctx();
                let session = members[at].broker.open_producer(&context, request);
                session.await.map(drop)
            }
        });
        (kind(&session.await) == Some(ErrorKind::NotFound)).then_some(())
    })
    .await;
    create(&members, "created", 2).await;
    let page = PageRequest {
        after: None,
        limit: 100,
    };
    let listed = asked.list_topics(&context, default_namespace(), page);
    let listed = soon("a list", listed).await.unwrap();
    let listed: Vec<_> = listed.items.into_iter().map(|found| found.topic).collect();
    assert_eq!(listed, [name("created")]);
    eventually("the others to be gone", || async {
        let left = records(&cluster.store).await;
        left.iter().all(|key| key.contains("created")).then_some(())
    })
    .await;
    let stats = asked.topic_stats(&context, name("created"));
    let stats = soon("statistics", stats).await.unwrap();
    assert_eq!(
        (stats.partitions, stats.end_index.0),
        (2, 0),
        "another life"
    );
}

/// What all partitions say of the subscription `s`: its backlog, if it is there.
async fn backlog(member: &Member, topic: &str) -> Option<u64> {
    let context = ctx();
    let stats = member.broker.topic_stats(&context, name(topic));
    let stats = soon("statistics", stats).await.unwrap();
    let found = stats.subscriptions.into_iter().find(|s| s.name == "s");
    found.map(|found| found.backlog_messages)
}

#[tokio::test]
async fn a_subscription_of_all_partitions_is_changed_by_any_broker() {
    let (cluster, members) = several(3).await;
    create(&members, "orders", PARTITIONS).await;
    cluster.publish(&members[0], &parts("orders")).await;
    let s = || SubscriptionName::new("s").unwrap();
    let all = u64::from(PARTITIONS);
    for member in &members {
        let (context, orders) = (ctx(), || name("orders"));
        let broker = &member.broker;
        let created = broker.create_subscription(
            &context,
            orders(),
            s(),
            Place::Earliest,
            Default::default(),
        );
        assert_eq!(soon("a subscription", created).await.unwrap().0, 0);
        let again =
            broker.create_subscription(&context, orders(), s(), Place::Latest, Default::default());
        let again = soon("a refusal", again).await;
        assert_eq!(kind(&again), Some(ErrorKind::AlreadyExists));
        assert_eq!(backlog(&members[0], "orders").await, Some(all));
        let moved = broker.seek_subscription(&context, orders(), s(), Place::Latest);
        assert_eq!(soon("a move", moved).await.unwrap().0, all);
        assert_eq!(backlog(&members[1], "orders").await, Some(0));
        let place = Place::Index(Index(0));
        let nowhere = broker.seek_subscription(&context, orders(), s(), place);
        let nowhere = soon("a refusal", nowhere).await;
        assert_eq!(kind(&nowhere), Some(ErrorKind::InvalidArgument));
        let deleted = broker.delete_subscription(&context, orders(), s(), false);
        soon("a deletion", deleted).await.unwrap();
        assert_eq!(backlog(&members[2], "orders").await, None);
        let gone = broker.delete_subscription(&context, orders(), s(), false);
        let gone = soon("a refusal", gone).await;
        assert_eq!(kind(&gone), Some(ErrorKind::NotFound));
    }
}

#[tokio::test]
async fn a_subscription_in_use_in_one_partition_stays_in_all() {
    let (cluster, members) = several(2).await;
    create(&members, "orders", PARTITIONS).await;
    cluster.publish(&members[0], &parts("orders")).await;
    let s = || SubscriptionName::new("s").unwrap();
    let context = ctx();
    let asked = &members[0].broker;
    let created = asked.create_subscription(
        &context,
        name("orders"),
        s(),
        Place::Earliest,
        Default::default(),
    );
    soon("a subscription", created).await.unwrap();
    let last = parts("orders").pop().unwrap();
    let session = at_owner(&members, |at| {
        let request = subscribe(&last, "s");
        let broker = &members[at].broker;
        async move { broker.subscribe(&ctx(), request).await }
    });
    let session = session.await.unwrap();
    let refused = asked.delete_subscription(&context, name("orders"), s(), false);
    let refused = soon("a refusal", refused).await;
    assert_eq!(kind(&refused), Some(ErrorKind::FailedPrecondition));
    let all = u64::from(PARTITIONS);
    assert_eq!(backlog(&members[0], "orders").await, Some(all));
    drop(session);
    let deleted = asked.delete_subscription(&context, name("orders"), s(), false);
    soon("a deletion", deleted).await.unwrap();
    assert_eq!(backlog(&members[0], "orders").await, None);
}

#[tokio::test]
async fn what_is_done_in_part_is_said_and_completed() {
    let (cluster, members) = several(2).await;
    create(&members, "orders", PARTITIONS).await;
    cluster.publish(&members[0], &parts("orders")).await;
    let s = || SubscriptionName::new("s").unwrap();
    let context = ctx();
    let asked = &members[0].broker;
    let away = cluster
        .peers
        .brokers
        .lock()
        .remove(&members[1].url)
        .unwrap();
    let created = asked.create_subscription(
        &context,
        name("orders"),
        s(),
        Place::Earliest,
        Default::default(),
    );
    let error = soon("a failure", created).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert_eq!(error.outcome, Outcome::Unknown);
    assert!(
        error.message.contains("is created in partitions"),
        "{error}"
    );
    assert!(error.advice.contains("repeat"), "{}", error.advice);
    cluster
        .peers
        .brokers
        .lock()
        .insert(members[1].url.clone(), away);
    let created = asked.create_subscription(
        &context,
        name("orders"),
        s(),
        Place::Earliest,
        Default::default(),
    );
    soon("a subscription", created).await.unwrap();
    let all = u64::from(PARTITIONS);
    assert_eq!(backlog(&members[1], "orders").await, Some(all));
}

async fn mark_deleting(store: &Arc<dyn MetadataStore>, topic: &str) {
    let key = keys::topic(&name(topic));
    let found = store.get(&key).await.unwrap().unwrap();
    let mut marked: TopicRecord = record::decode(&found).unwrap();
    marked.deleting = true;
    let partition = keys::partition_of_topic(&name(topic));
    let expect = Expect::Revision(found.revision);
    let value = record::encode(marked);
    store.put(&partition, &key, value, expect).await.unwrap();
}

#[tokio::test]
async fn a_partition_is_not_deleted_alone() {
    let (cluster, members) = several(2).await;
    create(&members, "orders", PARTITIONS).await;
    cluster.publish(&members[0], &parts("orders")).await;
    let before = records(&cluster.store).await;
    for how in [Deletion::IfUnused, Deletion::Force] {
        let refused = delete(&members, "orders-partition-1", how)
            .await
            .unwrap_err();
        assert_eq!(refused.kind, ErrorKind::InvalidArgument, "{refused}");
        assert!(refused.advice.contains("orders"), "{}", refused.advice);
    }
    assert_eq!(records(&cluster.store).await, before);
}

#[tokio::test]
async fn the_suffix_of_partitions_counts_for_the_length_of_a_name() {
    let harness = Harness::start().await;
    let broker = &harness.broker;
    let long = "x".repeat(505);
    let refused = broker.create_topic(&ctx(), name(&long), 2).await;
    assert_eq!(kind(&refused), Some(ErrorKind::InvalidArgument));
    let described = broker.describe_topic(&ctx(), name(&long), false).await;
    assert_eq!(
        kind(&described),
        Some(ErrorKind::NotFound),
        "nothing was created"
    );
    broker.create_topic(&ctx(), name(&long), 0).await.unwrap();
    // One that an earlier version has created can be deleted.
    let key = keys::topic(&name(&long));
    let found = harness.world.store.get(&key).await.unwrap().unwrap();
    let mut partitioned: TopicRecord = record::decode(&found).unwrap();
    partitioned.ranges = wire_ranges(&TopicRanges::even(2));
    partitioned.range_generation = 1;
    let value = record::encode(partitioned);
    let partition = keys::partition_of_topic(&name(&long));
    let expect = Expect::Revision(found.revision);
    let store = &harness.world.store;
    store.put(&partition, &key, value, expect).await.unwrap();
    let context = ctx();
    let deleted = broker.delete_topic(&context, name(&long), Deletion::Force);
    soon("a deletion", deleted).await.unwrap();
    assert!(harness.world.store.keys("t/public/default/t/").is_empty());
}
