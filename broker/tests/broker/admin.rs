//! Tenants, namespaces, topics: what exists, what is listed, what is refused with which advice.

use aquifer_model::policy::Policies;
use aquifer_model::ranges::TopicRanges;
use aquifer_model::topic::NamespaceName;
use aquifer_protocol_api::admin::{Admin, Deletion, PageRequest};
use aquifer_protocol_api::error::ErrorKind;

use crate::support::{Harness, ctx, default_namespace, kind, name, open};

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
    for topic in ["unknown/none/orders", "public/none/orders"] {
        let refused = harness.try_producer(open(topic, "p")).await;
        assert_eq!(kind(&refused), Some(ErrorKind::NotFound));
        assert!(!refused.err().unwrap().advice.is_empty());
    }
    let owned = harness.world.store.keys("own/");
    assert!(
        owned.is_empty(),
        "no broker owns what does not exist: {owned:?}"
    );
    let refused = broker
        .create_namespace(&ctx(), namespace("unknown/none"), Policies::default())
        .await;
    assert_eq!(kind(&refused), Some(ErrorKind::NotFound));
    broker
        .create_tenant(&ctx(), "acme".to_owned())
        .await
        .unwrap();
    let again = broker.create_tenant(&ctx(), "acme".to_owned()).await;
    assert_eq!(kind(&again), Some(ErrorKind::AlreadyExists));
    broker
        .create_namespace(&ctx(), namespace("acme/shop"), Policies::default())
        .await
        .unwrap();
    harness.producer("acme/shop/orders", "p").await;
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
                .create_namespace(&ctx(), namespace.clone(), Policies::default())
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
    assert_eq!(described.ranges, TopicRanges::even(3));
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
