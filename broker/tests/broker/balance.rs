//! Brokers of a cluster that share load: a broker that joins gets its share, and bundles are split.

use std::collections::BTreeMap;

use aquifer_model::bundle::BundleRange;
use aquifer_protocol_api::data_plane::DataPlane;
use aquifer_protocol_api::error::ErrorKind;
use aquifer_protocol_api::operator::Operator;

use crate::cluster::{Cluster, Member, config};
use crate::support::{Consumer, ctx, default_namespace, eventually, soon, subscribe};

const BUNDLES: u32 = 16;
const TOPICS: usize = 60;

fn topics() -> Vec<String> {
    (0..TOPICS)
        .map(|number| format!("topic-{number}"))
        .collect()
}

/// How many bundles each of them owns, as metadata says.
async fn owned(asked: &Member, members: &[&Member]) -> Vec<usize> {
    let bundles = asked.broker.list_bundles(&ctx(), default_namespace()).await;
    let bundles = bundles.unwrap();
    let count = |member: &&Member| {
        let owners = bundles.iter().filter_map(|bundle| bundle.broker);
        owners.filter(|owner| *owner == member.broker.id()).count()
    };
    members.iter().map(count).collect()
}

/// Waits until a broker has about its share of the bundles.
async fn gets_its_share(newcomer: &Member, members: &[&Member]) {
    let share = BUNDLES as usize / members.len();
    eventually("a share", || async {
        let owned = owned(newcomer, members).await;
        let has = *owned.last().unwrap();
        assert_eq!(owned.iter().sum::<usize>(), BUNDLES as usize, "{owned:?}");
        (has + 1 >= share).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_broker_that_joins_gets_its_share_from_the_leader() {
    let cluster = Cluster::new(config(BUNDLES)).await;
    let first = cluster.join("a").await;
    let topics = topics();
    cluster.publish(&first, &topics).await;
    assert_eq!(owned(&first, &[&first]).await, [BUNDLES as usize]);
    let second = cluster.join("b").await;
    gets_its_share(&second, &[&first, &second]).await;
    // The broker that led is gone, and so is what it owned; another leads.
    soon("the end", first.broker.hand_over()).await;
    soon("the end", first.lease.close()).await;
    soon("the end", first.broker.shutdown()).await;
    assert_eq!(owned(&second, &[&second]).await, [BUNDLES as usize]);
    cluster.publish(&second, &topics).await;
    // What was handed over a moment ago stays for now.
    let third = cluster.join("c").await;
    assert_eq!(owned(&third, &[&third]).await, [0]);
    for topic in &topics {
        let (url, session) = cluster.producer(&third, topic).await;
        assert_eq!(session.opened.last_sequence_id, Some(1), "{topic}");
        assert_eq!(url, second.url);
    }
}

#[tokio::test]
async fn a_broker_that_does_not_answer_is_left_alone() {
    let cluster = Cluster::new(config(BUNDLES)).await;
    let first = cluster.join("a").await;
    cluster.publish(&first, &topics()).await;
    let second = cluster.join("b").await;
    cluster.peers.brokers.lock().remove(&second.url);
    let third = cluster.join("c").await;
    // By then the leader has seen both brokers, with and without a report, more than once.
    gets_its_share(&third, &[&first, &third]).await;
    assert_eq!(owned(&first, &[&second]).await, [0]);
}

#[tokio::test]
async fn a_split_without_a_hash_halves_the_load_at_any_broker() {
    let cluster = Cluster::new(config(1)).await;
    let (first, second) = (cluster.join("a").await, cluster.join("b").await);
    let topics: Vec<String> = topics().into_iter().take(2).collect();
    cluster.publish(&first, &topics).await;
    let members = [&first, &second];
    let measured = || async {
        let mut loaded = BTreeMap::new();
        for member in members {
            let report = member.broker.load_report(&ctx()).await.unwrap();
            for bundle in report.bundles {
                loaded.insert(bundle.range, bundle.load.topics);
            }
        }
        loaded
    };
    let whole = eventually("both topics to be measured", || async {
        let loaded = measured().await;
        let whole = loaded.iter().find(|(_, topics)| **topics == 2);
        whole.map(|(range, _)| *range)
    })
    .await;
    // Whose the bundle is decides a hash; the other one has to ask.
    let is_first = owned(&first, &[&first]).await == [1];
    let other = if is_first { &second } else { &first };
    let context = ctx();
    let split = other
        .broker
        .split_bundle(&context, default_namespace(), whole, None);
    soon("a split", split).await.unwrap();
    eventually("the parts to be measured", || async {
        let loaded: Vec<u64> = measured().await.into_values().collect();
        (loaded == [1, 1]).then_some(())
    })
    .await;
    let again = first
        .broker
        .split_bundle(&context, default_namespace(), whole, None);
    assert_eq!(again.await.unwrap_err().kind, ErrorKind::NotFound);
}

/// Sessions go on over a split, and what they were given before it counts when it is acknowledged.
#[tokio::test]
async fn acknowledgements_count_over_a_split_i9() {
    let cluster = Cluster::new(config(1)).await;
    let member = cluster.join("a").await;
    let topics = topics()[..1].to_vec();
    cluster.publish(&member, &topics).await;
    let context = ctx();
    let session = member
        .broker
        .subscribe(&context, subscribe(&topics[0], "s"));
    let mut consumer = Consumer::new(soon("a consumer", session).await.unwrap());
    let before = consumer.take(1).await[0].0;
    let whole = BundleRange {
        first: 0,
        last: u32::MAX,
    };
    let half = Some(1 << 31);
    let split = member
        .broker
        .split_bundle(&context, default_namespace(), whole, half);
    soon("a split", split).await.unwrap();
    // The owner knows of it once it publishes under the new record.
    cluster.publish(&member, &topics).await;
    let after = consumer.take(1).await[0].0;
    soon("a receipt", consumer.acknowledge(&[before], None)).await;
    soon("a receipt", consumer.acknowledge(&[after], None)).await;
}
