//! The store under check, and what the checks say to it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use aquifer_model::id::LedgerId;
use aquifer_model::topic::{NamespaceName, TopicName};
use aquifer_runtime::clock;
use async_trait::async_trait;
use bytes::Bytes;

use crate::error::MetadataResult;
use crate::keys;
use crate::store::{Expect, MetadataStore, Operation, Revision, Transaction, Versioned};

/// How long a check waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// The life of a store, as its tests see it.
#[async_trait]
pub trait StoreFactory: Send + Sync {
    /// A new, empty store.
    async fn create(&self) -> Arc<dyn MetadataStore>;

    /// Ends the process of a store and opens the same data in another.
    async fn restart(&self, store: Arc<dyn MetadataStore>) -> Arc<dyn MetadataStore>;

    /// Lets time pass in which no session is renewed.
    async fn pause(&self, time: Duration);

    /// Makes the store forget the history of its changes so far.
    async fn compact(&self, store: &dyn MetadataStore);

    /// Makes the store forget the snapshots of scans that have begun.
    async fn forget_snapshots(&self, store: &dyn MetadataStore);
}

pub(super) fn namespace() -> NamespaceName {
    NamespaceName::new("tenant", "space").expect("the name is valid")
}

pub(super) fn partition() -> String {
    keys::partition_of_namespace(&namespace())
}

/// The key of a topic in the namespace of these checks.
pub(super) fn topic(name: &str) -> String {
    let topic = TopicName::new(namespace(), name).expect("the names of these checks are valid");
    keys::topic(&topic)
}

pub(super) fn ledger(id: u64) -> String {
    keys::ledger(LedgerId(id))
}

pub(super) fn put(key: &str, value: &str, expect: Expect) -> Operation {
    Operation::Put {
        key: key.to_owned(),
        value: Bytes::copy_from_slice(value.as_bytes()),
        expect,
    }
}

pub(super) fn delete(key: &str, expect: Expect) -> Operation {
    Operation::Delete {
        key: key.to_owned(),
        expect,
    }
}

pub(super) fn transaction(operations: Vec<Operation>) -> Transaction {
    Transaction {
        partition: partition(),
        guards: Vec::new(),
        operations,
    }
}

pub(super) async fn commit(
    store: &dyn MetadataStore,
    operations: Vec<Operation>,
) -> MetadataResult<Revision> {
    store.commit(transaction(operations)).await
}

/// Writes a key, whatever it was.
pub(super) async fn write(store: &dyn MetadataStore, key: &str, value: &str) -> Revision {
    commit(store, vec![put(key, value, Expect::Any)])
        .await
        .expect("an unconditional write of a healthy store succeeds")
}

pub(super) async fn get(store: &dyn MetadataStore, key: &str) -> Option<Versioned> {
    store.get(key).await.expect("a healthy store answers")
}

pub(super) async fn value(store: &dyn MetadataStore, key: &str) -> Option<String> {
    get(store, key).await.map(|found| text(&found.value))
}

pub(super) fn text(value: &Bytes) -> String {
    String::from_utf8_lossy(value).into_owned()
}

/// Waits for what must come, and fails the check when it does not.
pub(super) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match clock::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => unreachable!("waited {PATIENCE:?} for {what}"),
    }
}
