//! Tenants, namespaces, topics: what exists, what is listed, what is refused with which advice.

use aquifer_broker::BrokerConfig;
use aquifer_model::policy::{Bound, NamespacePolicies, PolicyChanges, Rollover};
use aquifer_model::quorum::Quorum;
use aquifer_model::topic::NamespaceName;
use aquifer_protocol_api::admin::{Admin, Deletion, PageRequest};
use aquifer_protocol_api::error::ErrorKind;

use futures::future::join_all;

use crate::cluster::Cluster;
use crate::support::{Harness, config, ctx, default_namespace, eventually, kind, name, open, soon};

fn page(after: Option<String>, limit: usize) -> PageRequest {
    PageRequest { after, limit }
}

fn namespace(text: &str) -> NamespaceName {
    text.parse().unwrap()
}

#[tokio::test]
async fn unknown_tenants_and_namespaces_are_refused_with_advice() {
    let harness = Harness::start().await;
    let broker = &harness.broker;
    for topic in ["nobody/none/orders", "public/none/orders"] {
        let refused = harness.try_producer(open(topic, "p")).await;
        assert_eq!(kind(&refused), Some(ErrorKind::NotFound));
        assert!(!refused.err().unwrap().advice.is_empty());
    }
    let owned = harness.world.store.keys("own/");
    assert!(
        owned.is_empty(),
        "nobody owns what does not exist: {owned:?}"
    );
    let policies = NamespacePolicies::default();
    let refused = broker
        .create_namespace(&ctx(), namespace("nobody/none"), PolicyChanges::default())
        .await;
    assert_eq!(kind(&refused), Some(ErrorKind::NotFound));
    broker
        .create_tenant(&ctx(), "acme".to_owned())
        .await
        .unwrap();
    let again = broker.create_tenant(&ctx(), "acme".to_owned()).await;
    assert_eq!(kind(&again), Some(ErrorKind::AlreadyExists));
    broker
        .create_namespace(&ctx(), namespace("acme/shop"), policies.into())
        .await
        .unwrap();
    harness.producer("acme/shop/orders", "p").await;
}

#[tokio::test]
async fn a_namespace_without_policies_gets_the_configured_quorum() {
    let default_quorum = Quorum::new(3, 3, 2).unwrap();
    let config = BrokerConfig {
        default_quorum,
        ..config()
    };
    let harness = Harness::start_with(config).await;
    let broker = &harness.broker;
    broker
        .create_namespace(&ctx(), namespace("public/new"), PolicyChanges::default())
        .await
        .unwrap();
    for name in ["public/default", "public/new"] {
        let found = broker.get_namespace(&ctx(), namespace(name)).await.unwrap();
        assert_eq!(found.quorum, default_quorum, "{name}");
    }
}

#[tokio::test]
async fn lists_come_in_pages_and_miss_nothing() {
    let harness = Harness::start().await;
    let broker = &harness.broker;
    let tenants = ["a", "a-b", "a.b", "ab", "b"];
    for tenant in tenants {
        broker
            .create_tenant(&ctx(), tenant.to_owned())
            .await
            .unwrap();
        for local in ["one", "two"] {
            let namespace = NamespaceName::new(tenant, local).unwrap();
            broker
                .create_namespace(&ctx(), namespace.clone(), PolicyChanges::default())
                .await
                .unwrap();
            for topic in ["x", "y", "z"] {
                let topic = format!("{namespace}/{topic}");
                broker.create_topic(&ctx(), name(&topic), 0).await.unwrap();
            }
        }
    }
    let mut listed = Vec::new();
    let mut after = None;
    loop {
        let page = broker.list_tenants(&ctx(), page(after, 2)).await.unwrap();
        listed.extend(page.items);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    listed.sort();
    assert_eq!(listed, ["a", "a-b", "a.b", "ab", "b", "public"]);
    let first = broker
        .list_namespaces(&ctx(), "a".to_owned(), page(None, 1))
        .await
        .unwrap();
    assert_eq!(first.items, [namespace("a/one")]);
    let second = broker
        .list_namespaces(&ctx(), "a".to_owned(), page(first.next, 5))
        .await
        .unwrap();
    assert_eq!(second.items, [namespace("a/two")]);
    assert_eq!(second.next, None);
    let topics = broker
        .list_topics(&ctx(), namespace("a/two"), page(None, 2))
        .await
        .unwrap();
    assert_eq!(topics.items.len(), 2);
    let rest = broker
        .list_topics(&ctx(), namespace("a/two"), page(topics.next, 2))
        .await
        .unwrap();
    assert_eq!(rest.items[0].topic, name("a/two/z"));
    assert_eq!(rest.next, None);
}

#[tokio::test]
async fn policies_can_be_changed_and_forbid_creation() {
    let harness = Harness::start().await;
    let broker = &harness.broker;
    let strict = NamespacePolicies {
        auto_create_topics: false,
        ..NamespacePolicies::default()
    };
    harness.set_policies(strict).await;
    let read = broker.get_namespace(&ctx(), default_namespace()).await;
    assert_eq!(read.unwrap(), strict);
    let refused = harness.try_producer(open("orders", "p")).await;
    assert_eq!(kind(&refused), Some(ErrorKind::NotFound));
    let described = broker.describe_topic(&ctx(), name("orders"), true).await;
    assert_eq!(kind(&described), Some(ErrorKind::NotFound));
    broker
        .create_topic(&ctx(), name("orders"), 0)
        .await
        .unwrap();
    harness.producer("orders", "p").await;
}

#[tokio::test]
async fn changes_of_policies_at_once_are_all_made() {
    let harness = Harness::start().await;
    let there = harness.rival().await;
    for round in 1..=10 {
        let given = [
            PolicyChanges {
                retention_ms: Some(Bound::Limit(round)),
                ..PolicyChanges::default()
            },
            PolicyChanges {
                rollover_entries: Some(round),
                ..PolicyChanges::default()
            },
            PolicyChanges {
                rollover_ms: Some(round),
                ..PolicyChanges::default()
            },
        ];
        let brokers = [&harness.broker, &there.broker, &harness.broker];
        let changed = brokers.into_iter().zip(given).map(async |(broker, given)| {
            let context = ctx();
            let changed = broker.update_namespace(&context, default_namespace(), given);
            changed.await.unwrap();
        });
        join_all(changed).await;
        let context = ctx();
        let now = harness.broker.get_namespace(&context, default_namespace());
        let now = now.await.unwrap();
        let Rollover {
            entries, age_ms, ..
        } = now.rollover;
        assert_eq!(
            (now.retention.time_ms, entries, age_ms),
            (Some(round), round, round)
        );
        // Nobody gave these.
        let standard = NamespacePolicies::default();
        assert_eq!(now.retention.size_bytes, standard.retention.size_bytes);
    }
}

#[tokio::test]
async fn a_change_of_no_policy_is_refused_and_changes_nothing() {
    let default_quorum = Quorum::new(3, 3, 2).unwrap();
    let config = BrokerConfig {
        default_quorum,
        ..config()
    };
    let harness = Harness::start_with(config).await;
    let broker = &harness.broker;
    let nothing = PolicyChanges::default();
    let refused = broker
        .update_namespace(&ctx(), default_namespace(), nothing)
        .await;
    assert_eq!(kind(&refused), Some(ErrorKind::InvalidArgument));
    let found = broker.get_namespace(&ctx(), default_namespace()).await;
    assert_eq!(found.unwrap().quorum, default_quorum);
    // What a namespace is created with is there at once, on top of the defaults.
    let given = PolicyChanges {
        deduplication: Some(false),
        ..PolicyChanges::default()
    };
    let created = broker
        .create_namespace(&ctx(), namespace("public/new"), given)
        .await
        .unwrap();
    assert_eq!(
        (created.quorum, created.deduplication),
        (default_quorum, false)
    );
}

#[tokio::test]
async fn policies_reach_a_topic_in_use() {
    let cluster = Cluster::new(crate::cluster::config(1)).await;
    let member = cluster.join("a").await;
    let topics = ["orders".to_owned()];
    cluster.publish(&member, &topics).await;
    let given = PolicyChanges {
        rollover_entries: Some(1),
        ..PolicyChanges::default()
    };
    let context = ctx();
    let changed = member
        .broker
        .update_namespace(&context, default_namespace(), given);
    soon("a change", changed).await.unwrap();
    eventually("a ledger for each entry", || async {
        cluster.publish(&member, &topics).await;
        let stats = member.broker.topic_stats(&ctx(), name("orders")).await;
        (stats.unwrap().ledgers.len() > 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_partitioned_topic_is_served_by_its_partitions() {
    let harness = Harness::start().await;
    let broker = &harness.broker;
    let orders = || name("orders");
    broker.create_topic(&ctx(), orders(), 3).await.unwrap();
    let again = broker.create_topic(&ctx(), orders(), 3).await;
    assert_eq!(kind(&again), Some(ErrorKind::AlreadyExists));
    let described = broker
        .describe_topic(&ctx(), orders(), false)
        .await
        .unwrap();
    assert_eq!(described.partitions, 3);
    let whole = harness.try_producer(open("orders", "p")).await;
    assert_eq!(kind(&whole), Some(ErrorKind::InvalidArgument));
    assert!(whole.err().unwrap().advice.contains("orders-partition-0"));
    for partition in 0..3 {
        let topic = format!("orders-partition-{partition}");
        harness
            .producer(&topic, "p")
            .await
            .publish(&["a", "b"])
            .await;
    }
    let beyond = harness.try_producer(open("orders-partition-3", "p")).await;
    assert_eq!(kind(&beyond), Some(ErrorKind::NotFound));
    let orphan = harness.try_producer(open("stock-partition-0", "p")).await;
    assert_eq!(kind(&orphan), Some(ErrorKind::NotFound));
    let stats = harness.stats("orders").await;
    assert_eq!(
        (stats.partitions, stats.messages_in, stats.end_index.0),
        (3, 6, 6)
    );
    let listed = broker
        .list_topics(&ctx(), default_namespace(), page(None, 10))
        .await
        .unwrap();
    assert_eq!(listed.items.len(), 1);
    broker
        .delete_topic(&ctx(), orders(), Deletion::Force)
        .await
        .unwrap();
    let gone = broker.describe_topic(&ctx(), orders(), false).await;
    assert_eq!(kind(&gone), Some(ErrorKind::NotFound));
    let gone = harness.try_producer(open("orders-partition-0", "p")).await;
    assert_eq!(kind(&gone), Some(ErrorKind::NotFound));
    assert!(harness.world.store.keys("t/public/default/t/").is_empty());
}
