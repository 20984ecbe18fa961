use std::sync::Arc;

use aquifer_metadata::embedded::{EmbeddedOptions, EmbeddedStore};
use aquifer_metadata::keys;
use aquifer_metadata::store::MetadataStore;
use aquifer_model::limits::METADATA_OPERATIONS_MAX;
use aquifer_model::policy::EffectivePolicies;
use aquifer_model::topic::NamespaceName;
use aquifer_protocol_api::admin::PageRequest;
use aquifer_runtime::clock::SystemClock;
use aquifer_runtime::disk::{Disk, SimDisk};
use aquifer_runtime::task::TaskGroup;
use bytes::Bytes;

use super::*;
use crate::namespace::listing::{KEYS_READ_MAX, Listed, Lister, look_tenant};

async fn store(tasks: &TaskGroup) -> Arc<dyn MetadataStore> {
    let disk = SimDisk::new();
    disk.create_dir_all("/data".as_ref()).unwrap();
    let store = EmbeddedStore::open(
        "/data/metadata.redb".into(),
        EmbeddedOptions::default(),
        disk.shared(),
        SystemClock::shared(),
        tasks,
    );
    Arc::new(store.await.unwrap())
}

/// A record that is older than what the store remembers (after a restart every one is) is read
/// once, not over and over.
#[tokio::test]
async fn an_old_record_costs_one_resync() {
    let tasks = TaskGroup::new("test");
    let disk = SimDisk::new();
    disk.create_dir_all("/data".as_ref()).unwrap();
    let options = EmbeddedOptions {
        history_events: 1,
        ..EmbeddedOptions::default()
    };
    let path = "/data/metadata.redb".into();
    let clock = SystemClock::shared();
    let store = EmbeddedStore::open(path, options, disk.shared(), clock, &tasks).await;
    let store: Arc<dyn MetadataStore> = Arc::new(store.unwrap());
    let namespaces = Namespaces::new(
        Arc::clone(&store),
        tasks.clone(),
        4,
        EffectivePolicies::default(),
    );
    namespaces.ensure_default().await.unwrap();
    let namespace: NamespaceName = "public/default".parse().unwrap();
    let (_, mut after) = namespaces.read(&namespace).await.unwrap();
    for tenant in ["a", "b", "c"] {
        namespaces.create_tenant(tenant).await.unwrap();
    }
    let newest = store.get(&keys::tenant("c")).await.unwrap().unwrap();
    let (sender, receiver) = watch::channel(Bundles::new(&[], Revision(0)).unwrap());
    let watcher = Watcher {
        store,
        namespace,
        cached: Arc::default(),
        sender,
    };
    assert!(watcher.follow(&mut after).await.unwrap());
    assert!(after >= newest.revision, "the next watch begins after it");
    // Without a change to report it ends only because no receiver is left.
    drop(receiver);
    assert!(!watcher.follow(&mut after).await.unwrap());
}

/// A topic was created in it before the tenant's mark was seen: it must go with its namespace.
#[tokio::test]
async fn a_creation_that_is_undone_leaves_its_namespace_to_a_deletion() {
    let tasks = TaskGroup::new("test");
    let store = store(&tasks).await;
    let namespaces = Namespaces::new(store, tasks.clone(), 4, EffectivePolicies::default());
    namespaces.create_tenant("acme").await.unwrap();
    let namespace: NamespaceName = "acme/shop".parse().unwrap();
    let created = namespaces.create(&namespace, Policies::default()).await;
    namespaces.undo(&namespace, created.unwrap()).await;
    let (record, _) = namespaces.read(&namespace).await.unwrap();
    assert_eq!(record.removal(), Removal::All);
    assert_eq!(record.bundle_boundaries.len(), 4);
    assert!(namespaces.taking_topics(&namespace).await.is_err());
}

#[tokio::test]
async fn lists_jump_over_what_lies_between_and_go_on_by_name() {
    let tasks = TaskGroup::new("test");
    let store = store(&tasks).await;
    let namespaces = Namespaces::new(
        Arc::clone(&store),
        tasks.clone(),
        4,
        EffectivePolicies::default(),
    );
    for tenant in ["a", "a-b", "ab", "b"] {
        namespaces.create_tenant(tenant).await.unwrap();
        for local in ["x", "y", "z"] {
            let namespace = NamespaceName::new(tenant, local).unwrap();
            let policies = Policies::default();
            namespaces.create(&namespace, policies).await.unwrap();
        }
    }
    let lister = Lister {
        store: store.as_ref(),
        prefix: keys::TENANTS_PREFIX.to_owned(),
    };
    let mut listed = Vec::new();
    let mut request = PageRequest {
        after: None,
        limit: 1,
    };
    loop {
        let after = request.after.as_deref().map(keys::tenant);
        let page = lister.page(&request, after, look_tenant).await.unwrap();
        listed.extend(page.items);
        // A change between two pages makes the former snapshot unusable, and matters not.
        let noise = format!("noise-{}", listed.len());
        namespaces.create_tenant(&noise).await.unwrap();
        request.after = page.next;
        if request.after.is_none() || listed.len() > 20 {
            break;
        }
    }
    let before_noise: Vec<&String> = listed.iter().filter(|t| !t.starts_with("noise")).collect();
    assert_eq!(before_noise, ["a", "a-b", "ab", "b"]);
}

/// However few names are shown, a page of a caller ends after a bounded number of keys, and the
/// list goes on behind them (I13).
#[tokio::test]
async fn a_page_that_shows_little_ends_and_the_list_goes_on() {
    let tasks = TaskGroup::new("test");
    let store = store(&tasks).await;
    let names: Vec<String> = (0..KEYS_READ_MAX + 2_500)
        .map(|number| format!("t{number:06}"))
        .collect();
    for some in names.chunks(METADATA_OPERATIONS_MAX) {
        let put = |name: &String| Operation::Put {
            key: keys::tenant(name),
            value: Bytes::from_static(b"a record"),
            expect: Expect::Any,
        };
        let transaction = Transaction {
            partition: keys::CLUSTER_PARTITION.to_owned(),
            guards: Vec::new(),
            operations: some.iter().map(put).collect(),
        };
        store.commit(transaction).await.unwrap();
    }
    let last = names.last().unwrap();
    let lister = Lister {
        store: store.as_ref(),
        prefix: keys::TENANTS_PREFIX.to_owned(),
    };
    let look = |found: &Versioned| -> Result<Listed<String>, BrokerError> {
        Ok(match look_tenant(found)? {
            Listed::Item(tenant, name) if tenant != *last => Listed::Hidden(name),
            listed => listed,
        })
    };
    let request = PageRequest {
        after: None,
        limit: 1,
    };
    let page = lister.page_for_caller(&request, None, look).await.unwrap();
    assert!(page.items.is_empty(), "{:?}", page.items);
    let next = page.next.unwrap();
    assert!(next < *last, "{next}");
    let after = Some(keys::tenant(&next));
    let page = lister.page_for_caller(&request, after, look).await.unwrap();
    assert_eq!((page.items, page.next), (vec![last.clone()], None));
    // What a broker lists for itself is whole: an empty page would say that nothing is there.
    let page = lister.page(&request, None, look).await.unwrap();
    assert_eq!(page.items, std::slice::from_ref(last));
}
