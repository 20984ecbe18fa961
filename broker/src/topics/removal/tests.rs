use aquifer_ledger::testing::TestWorld;
use aquifer_log::testing::TestLogs;
use aquifer_metadata::record;
use aquifer_model::policy::Policies;
use aquifer_proto::v1::{GrantRecord, TokenRecord};
use aquifer_runtime::rng::SystemRng;
use aquifer_runtime::task::TaskGroup;
use aquifer_runtime::telemetry::Telemetry;
use bytes::Bytes;

use super::*;
use crate::config::BrokerConfig;
use crate::context::{BrokerDeps, Context};
use crate::policies;

fn shop() -> NamespaceName {
    "acme/shop".parse().unwrap()
}

/// Topics of a broker that sweeps nothing, with the tenant `acme` and its namespace `shop`.
async fn topics() -> (Arc<Topics>, TestWorld) {
    let mut world = TestWorld::new(1);
    world.clock = None;
    let log = world.logs();
    let deps = BrokerDeps {
        clock: Arc::clone(&log.ledgers.clock),
        log,
        rng: SystemRng::shared(),
        meter: Telemetry::for_tests().meter("broker"),
        tasks: TaskGroup::new("broker"),
        lease: None,
        peers: None,
        brokers: None,
    };
    let shared = Context::start(BrokerConfig::default(), deps).await.unwrap();
    let namespaces = &shared.namespaces;
    namespaces.create_tenant("acme").await.unwrap();
    let created = namespaces.create(&shop(), Policies::default()).await;
    created.unwrap();
    (Topics::new(shared), world)
}

async fn put(topics: &Topics, partition: &str, key: &str, value: Bytes) {
    let store = topics.shared.namespaces.store();
    let put = store.put(partition, key, value, Expect::Any).await;
    put.unwrap();
}

/// The record at a key, as it is now.
async fn now(topics: &Topics, key: String) -> Guard {
    let found = topics.shared.namespaces.store().get(&key).await.unwrap();
    Guard {
        key,
        expect: Expect::Revision(found.unwrap().revision),
    }
}

/// The sweep saw a mark, and by the time that it looks again the name was created again.
#[tokio::test]
async fn a_deletion_that_goes_on_leaves_what_was_created_since() {
    let (topics, _world) = topics().await;
    let namespaces = &topics.shared.namespaces;
    for scope in [
        RemovalScope::Namespace(shop()),
        RemovalScope::Tenant("acme".to_owned()),
    ] {
        topics.resume_removal(scope);
        let running = topics.removals.answers();
        assert_eq!(running.len(), 1);
        for answer in running {
            answer.wait().await.unwrap();
        }
        let (record, _) = namespaces.read(&shop()).await.unwrap();
        assert_eq!(record.removal(), Removal::Unspecified);
        namespaces.check_tenant("acme").await.unwrap();
    }
}

#[tokio::test]
async fn grants_to_tokens_of_a_tenant_go_with_it_wherever_they_are() {
    let (topics, world) = topics().await;
    let given = |principal: &str| {
        record::encode(GrantRecord {
            principal: principal.to_owned(),
            ..GrantRecord::default()
        })
    };
    let cluster = keys::CLUSTER_PARTITION;
    let kept = keys::grant(Some("beta"), "3");
    for (key, principal) in [
        (keys::grant(None, "1"), "token:acme/billing"),
        (keys::grant(Some("beta"), "2"), "token:acme/billing"),
        (kept.clone(), "token:acme-2/billing"),
    ] {
        put(&topics, cluster, &key, given(principal)).await;
    }
    let tenant = now(&topics, keys::tenant("acme")).await;
    assert!(topics.forget_tenant("acme", &tenant).await.unwrap());
    assert_eq!(world.store.keys("auth/grants/"), [kept]);
}

/// Another broker has finished the deletion, and the name was created again.
#[tokio::test]
async fn a_deletion_that_comes_too_late_deletes_nothing() {
    let (topics, world) = topics().await;
    let grant = |principal: &str, tenant: &str, namespace: &str| {
        record::encode(GrantRecord {
            principal: principal.to_owned(),
            tenant: tenant.to_owned(),
            namespace: namespace.to_owned(),
            ..GrantRecord::default()
        })
    };
    let cluster = keys::CLUSTER_PARTITION;
    let (own, other) = (
        keys::grant(Some("acme"), "1"),
        keys::grant(Some("acme"), "2"),
    );
    put(&topics, cluster, &own, grant("cert:a", "acme", "shop")).await;
    put(&topics, cluster, &other, grant("cert:a", "acme", "yard")).await;
    let token = record::encode(TokenRecord {
        name: "billing".to_owned(),
        tenant: "acme".to_owned(),
        ..TokenRecord::default()
    });
    put(&topics, cluster, &keys::token("3"), token).await;
    let of_topic = PolicyScope::Topic("acme/shop/a".parse().unwrap());
    let of_topic = keys::policies(&of_topic);
    let partition = keys::partition_of_namespace(&shop());
    let value = policies::record_of(Policies::default());
    put(&topics, &partition, &of_topic, value).await;

    let namespace = now(&topics, keys::namespace(&shop())).await;
    let tenant = now(&topics, keys::tenant("acme")).await;
    let all = || {
        let mut of_access = world.store.keys("auth/");
        // Each broker writes it, whatever tenants there are.
        of_access.retain(|key| !key.starts_with("auth/keys/"));
        (of_access, world.store.keys("p/"))
    };
    let before = all();
    assert_eq!((before.0.len(), before.1.len()), (3, 1));
    let late = |record: &Guard| Guard {
        key: record.key.clone(),
        expect: Expect::Revision(Revision(0)),
    };
    let forgotten = topics.forget_namespace(&shop(), &late(&namespace)).await;
    assert!(!forgotten.unwrap());
    let forgotten = topics.forget_tenant("acme", &late(&tenant)).await;
    assert!(!forgotten.unwrap());
    assert_eq!(all(), before);

    let forgotten = topics.forget_namespace(&shop(), &namespace).await;
    assert!(forgotten.unwrap());
    assert_eq!(all(), (vec![other, keys::token("3")], Vec::new()));
    assert!(topics.forget_tenant("acme", &tenant).await.unwrap());
    // So that a backup does not bring them back.
    assert_eq!(all(), (vec![keys::forgotten(Some("acme"))], Vec::new()));
}
