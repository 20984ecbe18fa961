//! Damage in storage: what is whole is served, what is not is told, and both go on.

use std::sync::Arc;
use std::time::Duration;

use aquifer_ledger::testing::TestWorld;
use aquifer_log::error::LogError;
use aquifer_log::{Append, AppendSink, Appended};
use aquifer_metadata::keys;
use aquifer_metadata::store::MetadataStore;
use aquifer_model::entry::EntryFlags;
use aquifer_model::extensions::Extensions;
use aquifer_model::id::{EntryId, Index, LedgerId};
use aquifer_model::place::Place;
use aquifer_model::subscription::{Properties, SubscriptionType};
use aquifer_model::topic::{SubscriptionName, TopicName};
use aquifer_protocol_api::admin::Admin;
use aquifer_protocol_api::consumer::{ConsumerEvent, IndexRange, NegativeAcknowledge, Subscribe};
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::data_plane::DataPlane;
use aquifer_protocol_api::error::{ErrorKind, Outcome};
use aquifer_protocol_api::pull::{Read, ReadLimits};

use crate::cluster::{Cluster, Member};
use crate::partitions::several;
use crate::support::{
    Consumer, Harness, config, ctx, kind, name, open_log, soon, subscribe, until,
};

fn range(first: u64, last: u64) -> IndexRange {
    IndexRange {
        first: Index(first),
        last: Index(last),
    }
}

/// Ten messages, an entry each, of which 3 and 6 are damaged; nothing is in memory.
async fn damaged() -> Harness {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    for number in 0..10 {
        producer.publish(&[&format!("m{number}")]).await;
    }
    let ledger = harness.stats("orders").await.ledgers[0].ledger;
    drop(producer);
    let harness = harness.restart().await;
    corrupt(&harness, ledger, &[3, 6]);
    harness
}

fn corrupt(harness: &Harness, ledger: LedgerId, entries: &[u64]) {
    let bookies = &harness.world.bookies;
    let bookie = bookies.ids()[0];
    for entry in entries {
        bookies.corrupt(bookie, ledger, EntryId(*entry));
    }
}

/// What comes until nothing is missing: messages, and gaps.
async fn everything(consumer: &mut Consumer, count: usize) -> (Vec<u64>, Vec<IndexRange>) {
    consumer.grant(100).await;
    let (mut indexes, mut gaps) = (Vec::new(), Vec::new());
    while indexes.len() + gaps.len() < count {
        match consumer.event().await {
            ConsumerEvent::Deliveries { deliveries, .. } => {
                indexes.extend(deliveries.iter().map(|d| d.at.base_index.0));
            }
            ConsumerEvent::Gap { gap, .. } => gaps.push(gap.range),
            ConsumerEvent::Active(_) => {}
            other => panic!("expected messages or gaps, got {other:?}"),
        }
    }
    (indexes, gaps)
}

#[tokio::test]
async fn damage_is_told_in_its_place_and_everything_else_comes() {
    let harness = damaged().await;
    for kind in [
        SubscriptionType::Exclusive,
        SubscriptionType::Failover,
        SubscriptionType::Shared,
    ] {
        let request = Subscribe {
            kind,
            ..subscribe("orders", &format!("{kind:?}"))
        };
        let mut consumer = harness.try_subscribe(request).await.unwrap();
        let (indexes, gaps) = everything(&mut consumer, 10).await;
        assert_eq!(indexes, [0, 1, 2, 4, 5, 7, 8, 9]);
        assert_eq!(gaps, [range(3, 3), range(6, 6)]);
        // The damaged ones were not given up: the mark stays in front of them.
        for index in [0, 1, 2, 4, 5, 7, 8, 9] {
            consumer.acknowledge(&[index], None).await;
        }
        let stats = harness.stats("orders").await;
        let own = stats
            .subscriptions
            .iter()
            .find(|s| s.durable && s.name == format!("{kind:?}"));
        let own = own.unwrap();
        assert_eq!((own.mark_delete, own.backlog_messages), (Index(3), 2));
        assert_eq!(own.damaged_messages, 2);
    }
    let mut reader = harness.reader("orders", Place::Index(Index(2))).await;
    let (indexes, gaps) = everything(&mut reader, 8).await;
    assert_eq!(indexes, [2, 4, 5, 7, 8, 9]);
    assert_eq!(gaps.len(), 2);
}

#[tokio::test]
async fn damage_is_acknowledged_skipped_and_tried_again() {
    let harness = damaged().await;
    let shared = Subscribe {
        kind: SubscriptionType::Shared,
        ..subscribe("orders", "s")
    };
    let mut consumer = harness.try_subscribe(shared.clone()).await.unwrap();
    everything(&mut consumer, 10).await;
    for index in [0, 1, 2, 4, 5, 7, 8] {
        consumer.acknowledge(&[index], None).await;
    }
    // A consumer may give up what it was told of, as it may want it to be read again.
    consumer.acknowledge(&[3], None).await;
    let again = NegativeAcknowledge {
        owner_epoch: consumer.opened.owner_epoch,
        seek_epoch: consumer.seek_epoch,
        ranges: vec![range(6, 6)],
    };
    consumer.port.negative_acknowledge(again).await.unwrap();
    let (_, gaps) = everything(&mut consumer, 1).await;
    assert_eq!(gaps, [range(6, 6)]);
    let skip = |range| {
        let broker = &harness.broker;
        async move {
            broker
                .skip_messages(&ctx(), name("orders"), "s".parse().unwrap(), range)
                .await
                .unwrap()
        }
    };
    assert_eq!(skip(None).await, [range(6, 6)]);
    assert_eq!(skip(None).await, []);
    assert_eq!(skip(Some(range(8, 100))).await, [range(9, 9)]);
    let harness = harness.restart().await;
    let stats = harness.stats("orders").await;
    assert_eq!(
        stats.subscriptions[0].mark_delete,
        Index(10),
        "single ones are remembered"
    );
}

/// Does not care what becomes of appends.
struct Ignored;

impl AppendSink for Ignored {
    fn appended(&self, _tag: u64, outcome: Result<Appended, LogError>) {
        outcome.unwrap();
    }
}

/// What a later version appends: its entries have a format that this one does not know.
async fn append_as_later_version(world: &TestWorld, flags: EntryFlags, entries: &[u32]) {
    let log = open_log(world, "orders").await;
    let sink: Arc<dyn AppendSink> = Arc::new(Ignored);
    for message_count in entries {
        let append = Append {
            format: 77,
            message_count: *message_count,
            flags,
            extensions: Extensions::default(),
            body: "no reader here knows this".into(),
            tag: 0,
            trace: None,
        };
        log.append(append, &sink).unwrap();
    }
    log.close().await.unwrap();
}

/// What a later version wrote is withheld with a reason, in its place; it can be given up like a
/// damaged entry, and is there again for a version that knows it.
#[tokio::test]
async fn entries_of_an_unknown_format_are_told_acknowledged_and_skipped() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["m0", "m1"]).await;
    drop(producer);
    soon("shutdown", harness.broker.shutdown()).await;
    append_as_later_version(&harness.world, EntryFlags::default(), &[3, 1]).await;
    let harness = Harness::in_world(harness.world, config()).await;
    // Deduplication goes on over it.
    let mut producer = harness.producer("orders", "p").await;
    assert_eq!(producer.opened.last_sequence_id, Some(1));
    let receipt = producer.publish(&["m6"]).await;
    assert_eq!(receipt.stored.unwrap().base_index, Index(6));
    for kind in [SubscriptionType::Exclusive, SubscriptionType::Shared] {
        let request = Subscribe {
            kind,
            ..subscribe("orders", &format!("{kind:?}"))
        };
        let mut consumer = harness.try_subscribe(request.clone()).await.unwrap();
        let (indexes, gaps) = everything(&mut consumer, 4).await;
        assert_eq!(indexes, [0, 6], "the bases of what can be read");
        assert_eq!(gaps, [range(2, 4), range(5, 5)]);
        // Nothing is passed over in silence (I9).
        consumer.acknowledge(&[0, 1, 6], None).await;
        let stats = harness.stats("orders").await;
        let own = stats
            .subscriptions
            .iter()
            .find(|s| s.name == format!("{kind:?}"));
        assert_eq!(own.unwrap().mark_delete, Index(2));
        assert_eq!(own.unwrap().damaged_messages, 4);
        consumer.acknowledge(&[2, 3, 4], None).await;
        let (context, own) = (ctx(), request.subscription.unwrap());
        let broker = &harness.broker;
        let skipped = broker.skip_messages(&context, name("orders"), own, None);
        assert_eq!(skipped.await.unwrap(), [range(5, 5)]);
        let stats = harness.stats("orders").await;
        let own = stats
            .subscriptions
            .iter()
            .find(|s| s.name == format!("{kind:?}"));
        assert_eq!(own.unwrap().mark_delete, Index(7));
    }
    // A reader is told too, and goes on.
    let mut reader = harness.reader("orders", Place::Index(Index(3))).await;
    let (indexes, gaps) = everything(&mut reader, 3).await;
    assert_eq!((indexes, gaps), (vec![6], vec![range(3, 4), range(5, 5)]));
}

/// Control entries only take indexes: no client is told of them, and none has to acknowledge them.
#[tokio::test]
async fn control_entries_are_passed_over() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["m0", "m1"]).await;
    drop(producer);
    soon("shutdown", harness.broker.shutdown()).await;
    append_as_later_version(&harness.world, EntryFlags::CONTROL, &[3, 1]).await;
    let harness = Harness::in_world(harness.world, config()).await;
    let mut producer = harness.producer("orders", "p").await;
    let receipt = producer.publish(&["m6"]).await;
    assert_eq!(receipt.stored.unwrap().base_index, Index(6));
    for kind in [SubscriptionType::Exclusive, SubscriptionType::Shared] {
        let request = Subscribe {
            kind,
            ..subscribe("orders", &format!("{kind:?}"))
        };
        let mut consumer = harness.try_subscribe(request).await.unwrap();
        assert_eq!(everything(&mut consumer, 2).await, (vec![0, 6], Vec::new()));
        consumer.acknowledge(&[0, 1, 6], None).await;
    }
    let mut reader = harness.reader("orders", Place::Index(Index(3))).await;
    assert_eq!(everything(&mut reader, 1).await, (vec![6], Vec::new()));
    let context = ctx();
    let request = Read {
        topic: name("orders"),
        incarnation: None,
        from: Index(0),
        limits: ReadLimits {
            bytes_max: 1 << 20,
            batches_max: 100,
            bytes_min: 0,
        },
        wait: Duration::ZERO,
    };
    let found = harness.broker.read(&context, request).await.unwrap();
    let bases: Vec<u64> = found.batches.iter().map(|b| b.at.base_index.0).collect();
    assert_eq!((bases, found.gap, found.next), (vec![0, 6], None, Index(7)));
    drop((producer, reader));
    // What was passed over is remembered like what was acknowledged.
    let harness = harness.restart().await;
    let stats = harness.stats("orders").await;
    let marks: Vec<Index> = stats.subscriptions.iter().map(|s| s.mark_delete).collect();
    assert_eq!(marks, [Index(7), Index(7)]);
    assert!(stats.subscriptions.iter().all(|s| s.damaged_messages == 0));
}

/// A subscription that knows of too much damage stops in front of more, and does not go on until
/// some of it is given up.
#[tokio::test]
async fn delivery_stops_in_front_of_too_much_damage_until_some_is_given_up() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    let many = vec![""; 20_002];
    producer.publish(&many).await;
    for payload in ["good", "damaged too", "behind"] {
        producer.publish(&[payload]).await;
    }
    let ledger = harness.stats("orders").await.ledgers[0].ledger;
    let shared = Subscribe {
        kind: SubscriptionType::Shared,
        ..subscribe("orders", "s")
    };
    let mut consumer = harness.try_subscribe(shared.clone()).await.unwrap();
    consumer.grant(20_002).await;
    consumer.take(20_002).await;
    // Every second message is acknowledged: what is left are more ranges than it may note.
    let odd: Vec<u64> = (0..10_001).map(|number| number * 2 + 1).collect();
    for some in odd.chunks(1_000) {
        consumer.acknowledge(some, None).await;
    }
    drop((producer, consumer));
    let harness = harness.restart().await;
    corrupt(&harness, ledger, &[0, 2]);
    let mut consumer = harness.try_subscribe(shared).await.unwrap();
    let (indexes, gaps) = everything(&mut consumer, 2).await;
    assert_eq!((indexes, gaps), (vec![20_002], vec![range(0, 20_000)]));
    consumer.acknowledge(&[20_002], None).await;
    assert!(consumer.events.is_empty(), "it is not passed over");
    consumer.acknowledge(&[0, 2], None).await;
    let (indexes, gaps) = everything(&mut consumer, 2).await;
    assert_eq!((indexes, gaps), (vec![20_004], vec![range(20_003, 20_003)]));
}

/// The ledgers of a topic's cursor log, oldest first.
async fn cursor_ledgers(world: &TestWorld) -> Vec<LedgerId> {
    cursor_ledgers_of(&world.store, &name("orders")).await
}

async fn cursor_ledgers_of(store: &dyn MetadataStore, topic: &TopicName) -> Vec<LedgerId> {
    let stored = store.get(&keys::topic(topic)).await.unwrap();
    let record: aquifer_proto::v1::TopicRecord =
        aquifer_metadata::record::decode(&stored.unwrap()).unwrap();
    let ids = record.cursor_segments.iter().map(|s| LedgerId(s.ledger_id));
    ids.collect()
}

/// Two subscriptions with acknowledgements. The record of the first is damaged, and the creation of
/// the second.
async fn damaged_cursors() -> Harness {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    for number in 0..6 {
        producer.publish(&[&format!("m{number}")]).await;
    }
    let mut one = harness.consumer("orders", "one").await;
    one.take(6).await;
    one.acknowledge(&[], Some(1)).await;
    one.acknowledge(&[], Some(3)).await;
    let mut two = harness.consumer("orders", "two").await;
    two.take(2).await;
    two.acknowledge(&[], Some(0)).await;
    drop((producer, one, two));
    let harness = harness.restart().await;
    let ledger = cursor_ledgers(&harness.world).await[0];
    // Records: creation of one, its two acknowledgements, creation of two, its acknowledgement.
    corrupt(&harness, ledger, &[2, 3]);
    harness
}

#[tokio::test]
async fn a_damaged_cursor_log_leaves_messages_readable_and_writable() {
    let harness = damaged_cursors().await;
    let lost = cursor_ledgers(&harness.world).await[0];
    let mut producer = harness.producer("orders", "p").await;
    assert_eq!(producer.opened.last_sequence_id, Some(5));
    producer.publish(&["m6"]).await;
    let mut reader = harness.reader("orders", Place::Earliest).await;
    assert_eq!(reader.take_payloads(7).await.len(), 7);
    // It may be one of which nothing is left: then its backlog must come.
    let latest = Subscribe {
        start: Place::Latest,
        ..subscribe("orders", "new")
    };
    let mut new = harness.try_subscribe(latest).await.unwrap();
    new.grant(100).await;
    assert_eq!(new.take_payloads(7).await.len(), 7);
    new.acknowledge(&[], Some(4)).await;
    drop((producer, reader, new));
    // What came behind the damage is certain, also to the next owner.
    let harness = harness.restart().await;
    let mut new = harness.consumer("orders", "new").await;
    assert_eq!(new.take(1).await, [(5, "m5".to_owned())]);
    for waiting in ["one", "two"] {
        let refused = harness.try_subscribe(subscribe("orders", waiting)).await;
        assert_eq!(kind(&refused), Some(ErrorKind::DataLoss), "{waiting}");
    }
    let reset = || async {
        let broker = &harness.broker;
        broker
            .reset_subscriptions(&ctx(), name("orders"))
            .await
            .unwrap()
    };
    let account = reset().await;
    let told: Vec<_> = account
        .iter()
        .map(|r| (&*r.name, r.mark_delete.0, r.repeated_messages, r.name_only))
        .collect();
    assert_eq!(told, [("one", 2, 5, false), ("two", 0, 7, true)]);
    assert_eq!(reset().await, []);
    let mut one = harness.consumer("orders", "one").await;
    assert_eq!(one.take(1).await, [(2, "m2".to_owned())]);
    let mut two = harness.consumer("orders", "two").await;
    assert_eq!(two.take(1).await, [(0, "m0".to_owned())]);
    assert!(two.opened.seek_epoch.0 > 1 << 31, "above any of before");
    drop((one, two, new));
    // What was accepted is whole from then on.
    let harness = harness.restart().await;
    assert_eq!(reset_of(&harness).await, 0);
    let mut new = harness.consumer("orders", "new").await;
    assert_eq!(new.take(1).await, [(5, "m5".to_owned())]);
    until("the damaged ledger to be deleted", || async {
        !cursor_ledgers(&harness.world).await.contains(&lost)
    })
    .await;
}

async fn reset_of(harness: &Harness) -> usize {
    let broker = &harness.broker;
    let reset = broker.reset_subscriptions(&ctx(), name("orders")).await;
    reset.unwrap().len()
}

/// A topic in partitions, in each of which the record of a subscription is damaged.
async fn damage_partitions(cluster: &Cluster, asked: &Member, partitions: u32) {
    let (broker, context) = (&asked.broker, anywhere());
    let created = broker.create_topic(&context, name("orders"), partitions);
    soon("a topic", created).await.unwrap();
    let named = |name: &str| SubscriptionName::new(name).unwrap();
    let subscribe = async |subscription: &str| {
        let (orders, properties) = (name("orders"), Properties::new());
        let (subscription, place) = (named(subscription), Place::Earliest);
        let created = broker.create_subscription(&context, orders, subscription, place, properties);
        soon("a subscription", created).await.unwrap();
    };
    subscribe("s").await;
    let parts = (0..partitions).map(|number| name("orders").partition_name(number));
    let parts: Vec<TopicName> = parts.collect();
    let texts: Vec<String> = parts.iter().map(ToString::to_string).collect();
    cluster.publish(asked, &texts).await;
    let moved = broker.seek_subscription(&context, name("orders"), named("s"), Place::Latest);
    soon("a move", moved).await.unwrap();
    // Its creation stands behind the record of the move.
    subscribe("t").await;
    let unloaded = broker.unload_topic(&context, name("orders"));
    soon("the topic to end", unloaded).await.unwrap();
    let bookies = &cluster.world.bookies;
    for part in &parts {
        let ledger = cursor_ledgers_of(&*cluster.store, part).await[0];
        bookies.corrupt(bookies.ids()[0], ledger, EntryId(1));
    }
}

/// From where a subscription goes on is told once. It is told in the error, too, when the owner of
/// other partitions is away.
#[tokio::test]
async fn a_reset_that_fails_in_part_tells_what_is_reset() {
    const PARTITIONS: u32 = 12;
    let (cluster, members) = several(2).await;
    damage_partitions(&cluster, &members[0], PARTITIONS).await;
    let reset = async || {
        let (broker, context) = (&members[0].broker, anywhere());
        let reset = broker.reset_subscriptions(&context, name("orders"));
        soon("an answer", reset).await
    };
    let away = members[1].url.clone();
    let reached = cluster.peers.brokers.lock().remove(&away).unwrap();
    let failed = reset().await.unwrap_err();
    cluster.peers.brokers.lock().insert(away, reached);
    let kinds = (failed.kind, failed.outcome);
    assert_eq!(kinds, (ErrorKind::Unavailable, Outcome::Unknown));
    let later = reset().await.unwrap();
    let later: Vec<_> = later.iter().map(|one| one.topic.partition()).collect();
    for number in 0..PARTITIONS {
        let text = format!("s in partition {number} goes on from index 0");
        let is_told = failed.message.contains(&text);
        let is_later = later.contains(&Some(number));
        assert!(is_told != is_later, "{number}: {failed}, then {later:?}");
    }
    assert!(!later.is_empty(), "both serve some: {failed}");
    assert_eq!(reset().await, Ok(Vec::new()));
}

/// A caller that knows nothing of brokers.
fn anywhere() -> RequestContext {
    RequestContext {
        follows_redirects: false,
        ..ctx()
    }
}
