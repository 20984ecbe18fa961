//! The contract of [`MetadataStore`], run on every implementation: what callers rely on and no
//! more. An implementation gives a [`StoreFactory`] and invokes [`metadata_contract!`] in a test
//! target.
//!
//! The checks need real time only where an implementation has no other: waiting is always for an
//! event, with a generous limit.
//!
//! [`metadata_contract!`]: crate::metadata_contract

mod elections;
mod sessions;
mod transactions;
mod watches;

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

pub use elections::{
    a_leader_that_lost_its_session_is_followed, a_leader_that_resigns_is_followed,
};
pub use sessions::{
    a_closed_session_takes_its_keys_along, a_paused_session_is_lost_and_takes_its_keys_along,
    a_put_outside_makes_a_key_stay, no_key_of_a_session_survives_its_process,
};
pub use transactions::{
    a_scan_survives_a_snapshot_that_is_lost, acknowledged_changes_survive, all_or_nothing,
    concurrent_updates_lose_nothing, conditions, guards_pin_without_changing, limits,
    names_and_whole_scans, pages_of_a_scan_show_one_state, partitions_are_kept_apart,
    prefixes_are_exact,
};
pub use watches::{
    a_watch_from_a_scan_misses_nothing, a_watch_resumes_without_gaps,
    a_watch_that_lost_history_says_so, watches_see_their_prefix_only,
};

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

/// Makes a test of each check. The argument is an expression for a new factory.
#[macro_export]
macro_rules! metadata_contract {
    ($factory:expr) => {
        $crate::metadata_contract!($factory =>
            conditions,
            all_or_nothing,
            guards_pin_without_changing,
            concurrent_updates_lose_nothing,
            partitions_are_kept_apart,
            limits,
            prefixes_are_exact,
            pages_of_a_scan_show_one_state,
            a_scan_survives_a_snapshot_that_is_lost,
            names_and_whole_scans,
            acknowledged_changes_survive,
            a_watch_from_a_scan_misses_nothing,
            a_watch_resumes_without_gaps,
            watches_see_their_prefix_only,
            a_watch_that_lost_history_says_so,
            a_closed_session_takes_its_keys_along,
            a_paused_session_is_lost_and_takes_its_keys_along,
            a_put_outside_makes_a_key_stay,
            no_key_of_a_session_survives_its_process,
            a_leader_that_resigns_is_followed,
            a_leader_that_lost_its_session_is_followed,
        );
    };
    ($factory:expr => $($check:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $check() {
            $crate::contract::$check(&$factory).await;
        }
    )*};
}

fn namespace() -> NamespaceName {
    NamespaceName::new("tenant", "space").expect("the name is valid")
}

fn partition() -> String {
    keys::partition_of_namespace(&namespace())
}

/// The key of a topic in the namespace of these checks.
fn topic(name: &str) -> String {
    let topic = TopicName::new(namespace(), name).expect("the names of these checks are valid");
    keys::topic(&topic)
}

fn ledger(id: u64) -> String {
    keys::ledger(LedgerId(id))
}

fn put(key: &str, value: &str, expect: Expect) -> Operation {
    Operation::Put {
        key: key.to_owned(),
        value: Bytes::copy_from_slice(value.as_bytes()),
        expect,
    }
}

fn delete(key: &str, expect: Expect) -> Operation {
    Operation::Delete {
        key: key.to_owned(),
        expect,
    }
}

fn transaction(operations: Vec<Operation>) -> Transaction {
    Transaction {
        partition: partition(),
        guards: Vec::new(),
        operations,
    }
}

async fn commit(store: &dyn MetadataStore, operations: Vec<Operation>) -> MetadataResult<Revision> {
    store.commit(transaction(operations)).await
}

/// Writes a key, whatever it was.
async fn write(store: &dyn MetadataStore, key: &str, value: &str) -> Revision {
    commit(store, vec![put(key, value, Expect::Any)])
        .await
        .expect("an unconditional write of a healthy store succeeds")
}

async fn get(store: &dyn MetadataStore, key: &str) -> Option<Versioned> {
    store.get(key).await.expect("a healthy store answers")
}

async fn value(store: &dyn MetadataStore, key: &str) -> Option<String> {
    get(store, key).await.map(|found| text(&found.value))
}

fn text(value: &Bytes) -> String {
    String::from_utf8_lossy(value).into_owned()
}

/// Waits for what must come, and fails the check when it does not.
async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match clock::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => unreachable!("waited {PATIENCE:?} for {what}"),
    }
}
