//! Namespaces and tenants that are deleted: what is refused, what goes with them, and what a broker
//! finishes that another one began.

use aquifer_metadata::keys;
use aquifer_metadata::record;
use aquifer_metadata::store::{Expect, MetadataStore};
use aquifer_model::content::Removed;
use aquifer_model::policy::Policies;
use aquifer_model::topic::NamespaceName;
use aquifer_proto::v1::{NamespaceRecord, Removal as Mark};
use aquifer_protocol_api::admin::{Admin, Removal};
use aquifer_protocol_api::error::{ApiResult, ErrorKind};

use crate::support::{Harness, ctx, kind, name, soon, until};

const IF_EMPTY: Removal = Removal {
    force: false,
    dry_run: false,
};
const FORCE: Removal = Removal {
    force: true,
    dry_run: false,
};
const DRY_RUN: Removal = Removal {
    force: false,
    dry_run: true,
};

fn shop() -> NamespaceName {
    "acme/shop".parse().unwrap()
}

/// A tenant with a namespace that has a topic, and one of two partitions.
async fn fill(harness: &Harness) {
    let broker = &harness.broker;
    let tenant = broker.create_tenant(&ctx(), "acme".to_owned()).await;
    tenant.unwrap();
    let context = ctx();
    let created = broker.create_namespace(&context, shop(), Policies::default());
    created.await.unwrap();
    harness
        .producer("acme/shop/a", "p")
        .await
        .publish(&["x"])
        .await;
    broker
        .create_topic(&ctx(), name("acme/shop/b"), 2)
        .await
        .unwrap();
}

async fn delete(harness: &Harness, how: Removal) -> ApiResult<Removed> {
    let (context, broker) = (ctx(), &harness.broker);
    soon(
        "the deletion",
        broker.delete_namespace(&context, shop(), how),
    )
    .await
}

fn removed(namespaces: u64, topics: u64) -> Removed {
    Removed { namespaces, topics }
}

#[tokio::test]
async fn a_namespace_with_topics_goes_by_force_only() {
    let harness = Harness::start().await;
    fill(&harness).await;
    let broker = &harness.broker;
    assert_eq!(delete(&harness, DRY_RUN).await, Ok(removed(1, 2)));
    let refused = delete(&harness, IF_EMPTY).await;
    assert_eq!(kind(&refused), Some(ErrorKind::FailedPrecondition));
    assert!(refused.err().unwrap().advice.contains("force"));
    // It takes topics in as before.
    broker
        .create_topic(&ctx(), name("acme/shop/c"), 0)
        .await
        .unwrap();
    assert_eq!(delete(&harness, FORCE).await, Ok(removed(1, 3)));
    assert_eq!(
        kind(&delete(&harness, FORCE).await),
        Some(ErrorKind::NotFound)
    );
    assert!(harness.world.store.keys("t/acme/shop").is_empty());
    // Another of the name has nothing of it.
    let context = ctx();
    let created = broker.create_namespace(&context, shop(), Policies::default());
    created.await.unwrap();
    assert_eq!(delete(&harness, IF_EMPTY).await, Ok(removed(1, 0)));
}

#[tokio::test]
async fn a_tenant_goes_with_its_namespaces() {
    let harness = Harness::start().await;
    fill(&harness).await;
    let broker = &harness.broker;
    let delete = async |how| {
        let (context, tenant) = (ctx(), "acme".to_owned());
        soon("the deletion", broker.delete_tenant(&context, tenant, how)).await
    };
    assert_eq!(delete(DRY_RUN).await, Ok(removed(1, 2)));
    let refused = delete(IF_EMPTY).await;
    assert_eq!(kind(&refused), Some(ErrorKind::FailedPrecondition));
    assert_eq!(delete(FORCE).await, Ok(removed(1, 2)));
    assert!(harness.world.store.keys("t/acme").is_empty());
    assert_eq!(kind(&delete(FORCE).await), Some(ErrorKind::NotFound));
    broker
        .create_tenant(&ctx(), "acme".to_owned())
        .await
        .unwrap();
    assert_eq!(delete(IF_EMPTY).await, Ok(removed(0, 0)));
}

/// Its broker ended in the middle: the record is marked, and the topics are there.
#[tokio::test]
async fn another_broker_finishes_a_deletion() {
    for (mark, goes) in [(Mark::All, true), (Mark::IfEmpty, false)] {
        let harness = Harness::start().await;
        fill(&harness).await;
        let store = &harness.world.store;
        let key = keys::namespace(&shop());
        let found = store.get(&key).await.unwrap().unwrap();
        let mut marked: NamespaceRecord = record::decode(&found).unwrap();
        marked.set_removal(mark);
        let partition = keys::partition_of_namespace(&shop());
        let value = record::encode(marked);
        let expect = Expect::Revision(found.revision);
        store.put(&partition, &key, value, expect).await.unwrap();
        let rival = harness.rival().await;
        if goes {
            until("the namespace to be gone", || async {
                harness.world.store.keys("t/acme/shop").is_empty()
            })
            .await;
        } else {
            // One that was marked because it looked empty keeps what has come in.
            until("the mark to be taken back", || async {
                let found = harness.world.store.get(&keys::namespace(&shop())).await;
                let record: NamespaceRecord = record::decode(&found.unwrap().unwrap()).unwrap();
                record.removal() == Mark::Unspecified
            })
            .await;
            let stats = rival.stats("acme/shop/a").await;
            assert_eq!(stats.end_index.0, 1);
        }
    }
}
