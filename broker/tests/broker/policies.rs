//! Policies of tenants, namespaces and topics: what inherits from what, changes at once, and topics
//! in use.

use aquifer_broker::{Broker, BrokerConfig};
use aquifer_ledger::ledger_metadata;
use aquifer_ledger::testing::TestWorld;
use aquifer_model::id::TenantKey;
use aquifer_model::policy::{
    Level, Policies, PolicyName, PolicyScope, PolicyUpdate, PolicyView, Retention, Rollover,
};
use aquifer_model::quorum::Quorum;
use aquifer_protocol_api::admin::{Admin, Deletion};
use aquifer_protocol_api::error::{ApiResult, ErrorKind};
use futures::future::join_all;

use crate::cluster::Cluster;
use crate::support::{Harness, config, ctx, default_namespace, eventually, kind, name, open, soon};

pub fn here() -> PolicyScope {
    PolicyScope::Namespace(default_namespace())
}

pub fn of_topic(topic: &str) -> PolicyScope {
    PolicyScope::Topic(name(topic))
}

fn entries(entries: u64) -> Policies {
    Policies {
        rollover: Some(Rollover {
            entries,
            ..Rollover::default()
        }),
        ..Policies::default()
    }
}

fn keep_ms(ms: u64) -> Policies {
    Policies {
        retention: Some(Retention {
            time_ms: Some(ms),
            size_bytes: None,
        }),
        ..Policies::default()
    }
}

fn deduplicate(on: bool) -> Policies {
    Policies {
        deduplication: Some(on),
        ..Policies::default()
    }
}

async fn update(
    broker: &Broker,
    scope: PolicyScope,
    update: PolicyUpdate,
) -> ApiResult<PolicyView> {
    let context = ctx();
    let changed = broker.update_policies(&context, scope, update);
    soon("a change", changed).await
}

pub async fn set(broker: &Broker, scope: PolicyScope, set: Policies) -> PolicyView {
    let change = PolicyUpdate {
        set,
        ..PolicyUpdate::default()
    };
    update(broker, scope, change).await.unwrap()
}

pub async fn unset(broker: &Broker, scope: PolicyScope, name: PolicyName) -> PolicyView {
    let change = PolicyUpdate {
        unset: vec![name],
        ..PolicyUpdate::default()
    };
    update(broker, scope, change).await.unwrap()
}

async fn view(broker: &Broker, scope: PolicyScope) -> PolicyView {
    broker.get_policies(&ctx(), scope).await.unwrap()
}

fn origin(view: &PolicyView, name: PolicyName) -> Level {
    let found = view.origins.iter().find(|(of, _)| *of == name);
    found.expect("every policy has an origin").1.level
}

/// A broker whose topics have three copies where nothing says otherwise.
async fn with_three() -> (Harness, Quorum) {
    let default_quorum = Quorum::new(3, 3, 2).unwrap();
    let config = BrokerConfig {
        default_quorum,
        ..config()
    };
    (Harness::start_with(config).await, default_quorum)
}

#[tokio::test]
async fn what_nothing_says_is_as_the_broker_is_configured() {
    let (harness, quorum) = with_three().await;
    let broker = &harness.broker;
    let given = deduplicate(false);
    let created = broker
        .create_namespace(&ctx(), "public/new".parse().unwrap(), given)
        .await
        .unwrap();
    assert_eq!(created.own, given);
    let found = view(broker, here()).await;
    assert_eq!((found.own, found.version), (Policies::default(), 0));
    for view in [created, found] {
        assert_eq!(view.effective.persistence, quorum);
        assert_eq!(origin(&view, PolicyName::Persistence), Level::Default);
    }
    let nothing = update(broker, here(), PolicyUpdate::default()).await;
    assert_eq!(kind(&nothing), Some(ErrorKind::InvalidArgument));
}

/// What a change does not name stays as it is, and a change of nothing is refused: neither sets a
/// default.
#[tokio::test]
async fn a_change_leaves_the_policies_that_it_does_not_name() {
    let (harness, _) = with_three().await;
    let broker = &harness.broker;
    let quorum = Quorum::new(2, 2, 2).unwrap();
    let persistence = Policies {
        persistence: Some(quorum),
        ..Policies::default()
    };
    set(broker, here(), persistence).await;
    let changed = set(broker, here(), keep_ms(7)).await;
    let expected = Policies {
        persistence: Some(quorum),
        ..keep_ms(7)
    };
    assert_eq!(changed.own, expected);
    let nothing = update(broker, here(), PolicyUpdate::default()).await;
    assert_eq!(kind(&nothing), Some(ErrorKind::InvalidArgument));
    let found = view(broker, here()).await;
    assert_eq!((found.own, found.version), (expected, changed.version));
}

/// A change above does not take away what is said below, and unsetting it brings back what is said
/// above.
#[tokio::test]
async fn the_nearest_level_decides_and_unsetting_inherits_again() {
    let harness = Harness::start().await;
    let broker = &harness.broker;
    broker
        .create_topic(&ctx(), name("orders"), 2)
        .await
        .unwrap();
    let tenant = || PolicyScope::Tenant("public".to_owned());
    set(broker, of_topic("orders"), keep_ms(3)).await;
    set(broker, tenant(), keep_ms(1)).await;
    set(broker, here(), keep_ms(2)).await;
    for (expected, level) in [(3, Level::Topic), (2, Level::Namespace), (1, Level::Tenant)] {
        let found = view(broker, of_topic("orders")).await;
        assert_eq!(found.effective.retention.time_ms, Some(expected));
        assert_eq!(origin(&found, PolicyName::Retention), level);
        let scope = match level {
            Level::Topic => of_topic("orders"),
            Level::Namespace => here(),
            _ => tenant(),
        };
        unset(broker, scope, PolicyName::Retention).await;
    }
    let found = view(broker, of_topic("orders")).await;
    assert_eq!(found.effective.retention, Retention::default());
    assert!(
        harness.world.store.keys("p/").is_empty(),
        "nothing is said any more"
    );
}

#[tokio::test]
async fn policies_belong_to_what_exists() {
    let harness = Harness::start().await;
    let broker = &harness.broker;
    broker
        .create_topic(&ctx(), name("orders"), 2)
        .await
        .unwrap();
    for scope in [
        PolicyScope::Tenant("unknown".to_owned()),
        PolicyScope::Namespace("public/none".parse().unwrap()),
        of_topic("none"),
    ] {
        let change = PolicyUpdate {
            set: entries(1),
            ..PolicyUpdate::default()
        };
        let refused = update(broker, scope.clone(), change).await;
        assert_eq!(kind(&refused), Some(ErrorKind::NotFound), "{scope}");
        let refused = broker.get_policies(&ctx(), scope).await;
        assert_eq!(kind(&refused), Some(ErrorKind::NotFound));
    }
    let part = broker
        .get_policies(&ctx(), of_topic("orders-partition-1"))
        .await;
    assert_eq!(kind(&part), Some(ErrorKind::InvalidArgument));
    // Another topic of the name does not get what this one said.
    for topic in ["orders", "single"] {
        if topic == "single" {
            broker.create_topic(&ctx(), name(topic), 0).await.unwrap();
        }
        set(broker, of_topic(topic), entries(1)).await;
        broker
            .delete_topic(&ctx(), name(topic), Deletion::Force)
            .await
            .unwrap();
        assert!(harness.world.store.keys("p/").is_empty(), "{topic}");
        broker.create_topic(&ctx(), name(topic), 0).await.unwrap();
        let found = view(broker, of_topic(topic)).await;
        assert_eq!(found.effective.rollover, Rollover::default());
    }
}

#[tokio::test]
async fn changes_of_policies_at_once_are_all_made() {
    let harness = Harness::start().await;
    let there = harness.rival().await;
    for round in 1..=10 {
        let given = [keep_ms(round), entries(round), deduplicate(round % 2 == 0)];
        let brokers = [&harness.broker, &there.broker, &harness.broker];
        let changes = brokers.into_iter().zip(given);
        join_all(changes.map(|(broker, given)| set(broker, here(), given))).await;
        let now = view(&harness.broker, here()).await.effective;
        assert_eq!(now.retention.time_ms, Some(round));
        assert_eq!(now.rollover.entries, round);
        assert_eq!(now.deduplication, round % 2 == 0);
    }
}

/// Of changes that name the version on which they were decided, one is made.
#[tokio::test]
async fn a_change_of_another_version_conflicts() {
    let harness = Harness::start().await;
    let there = harness.rival().await;
    let mut version = view(&harness.broker, here()).await.version;
    for round in 1..=10 {
        let change = |given: u64| PolicyUpdate {
            set: entries(given),
            version: Some(version),
            ..PolicyUpdate::default()
        };
        let (one, other) = tokio::join!(
            update(&harness.broker, here(), change(10 * round)),
            update(&there.broker, here(), change(10 * round + 1)),
        );
        let made: Vec<&PolicyView> = [&one, &other].into_iter().flatten().collect();
        assert_eq!(made.len(), 1, "{one:?} {other:?}");
        let refused = if one.is_ok() { &other } else { &one };
        assert_eq!(kind(refused), Some(ErrorKind::Conflict));
        let found = view(&harness.broker, here()).await;
        assert_eq!(found.own, made[0].own);
        version = found.version;
    }
}

#[tokio::test]
async fn a_namespace_may_forbid_to_create_topics_by_use() {
    let harness = Harness::start().await;
    let broker = &harness.broker;
    let strict = Policies {
        auto_create_topics: Some(false),
        ..Policies::default()
    };
    set(broker, here(), strict).await;
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

/// Said at a topic and at its namespace, by this broker and by another: a topic in use follows.
#[tokio::test]
async fn policies_reach_a_topic_in_use() {
    for scope in [
        here(),
        of_topic("orders"),
        PolicyScope::Tenant("public".to_owned()),
    ] {
        let cluster = Cluster::new(crate::cluster::config(1)).await;
        let member = cluster.join("a").await;
        let topics = ["orders".to_owned()];
        cluster.publish(&member, &topics).await;
        let other = cluster.join("b").await;
        set(&other.broker, scope, entries(1)).await;
        eventually("a ledger for each entry", || async {
            cluster.publish(&member, &topics).await;
            let stats = member.broker.topic_stats(&ctx(), name("orders")).await;
            (stats.unwrap().ledgers.len() > 2).then_some(())
        })
        .await;
    }
}

/// Quorum included: the ledger after the change has it, and no publish fails.
#[tokio::test]
async fn a_loaded_topic_follows_a_changed_quorum() {
    let mut world = TestWorld::new(3);
    world.clock = None;
    let harness = Harness::in_world(world, config()).await;
    let other = harness.rival().await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["m"]).await;
    let newest = async || {
        let ledgers = harness.stats("orders").await.ledgers;
        let newest = ledgers.last().expect("it has a ledger").ledger;
        let info = ledger_metadata::load_existing(&harness.world.store, newest).await;
        info.unwrap().quorum
    };
    for (copies, scope) in [(2, here()), (3, of_topic("orders"))] {
        let quorum = Quorum::new(copies, copies, 2).unwrap();
        assert_ne!(newest().await, quorum);
        let persistence = Policies {
            persistence: Some(quorum),
            ..Policies::default()
        };
        set(&other.broker, scope, persistence).await;
        soon("the topic to follow", async {
            while newest().await != quorum {
                producer.publish(&["m"]).await;
            }
        })
        .await;
    }
}

/// Bookies learn what a tenant weighs from its topics, also when it changes while they are loaded.
#[tokio::test]
async fn the_weight_of_a_tenant_reaches_bookies_as_it_changes() {
    let harness = Harness::start().await;
    let broker = &harness.broker;
    let tenant = PolicyScope::Tenant(default_namespace().tenant().to_owned());
    let key = TenantKey::of(default_namespace().tenant());
    let weighs = |weight: u32| {
        let bookies = harness.world.bookies.clone();
        eventually("another weight", move || {
            let found = bookies.weight_of(key);
            async move { (found == Some(weight)).then_some(()) }
        })
    };
    let weight = |weight| Policies {
        weight: Some(weight),
        ..Policies::default()
    };
    let mut producer = harness.producer("orders", "p").await;
    weighs(1).await;
    set(broker, tenant.clone(), weight(3)).await;
    weighs(3).await;
    set(broker, tenant.clone(), weight(7)).await;
    weighs(7).await;
    producer.publish(&["it goes on"]).await;
    unset(broker, tenant, PolicyName::Weight).await;
    weighs(1).await;

    let refused = PolicyUpdate {
        set: weight(2),
        ..PolicyUpdate::default()
    };
    let refused = update(broker, here(), refused).await;
    assert_eq!(kind(&refused), Some(ErrorKind::InvalidArgument));
}
