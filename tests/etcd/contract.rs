//! The contract of the store, as the embedded one fulfils it.

use std::sync::Arc;
use std::time::Duration;

use aquifer_harness::etcd::{Etcd, EtcdOptions};
use aquifer_metadata::contract::StoreFactory;
use aquifer_metadata::etcd::{EtcdConfig, EtcdStore};
use aquifer_metadata::store::MetadataStore;
use aquifer_runtime::clock::{ManualClock, SharedClock};
use aquifer_runtime::rng::SystemRng;
use aquifer_runtime::task::TaskGroup;
use async_trait::async_trait;
use tokio::sync::Mutex;

use crate::support::{key, put};

/// A cluster of etcd, and a process whose clock goes by hand.
struct Machine {
    members: usize,
    etcd: Mutex<Option<Etcd>>,
    clock: Arc<ManualClock>,
}

impl Machine {
    fn new(members: usize) -> Machine {
        Machine {
            members,
            etcd: Mutex::new(None),
            clock: ManualClock::new(0),
        }
    }

    async fn connect(&self, urls: Vec<String>) -> Arc<dyn MetadataStore> {
        let config = EtcdConfig::new(urls, "contract");
        let clock = Arc::clone(&self.clock) as SharedClock;
        let tasks = TaskGroup::new("test");
        let store = EtcdStore::connect(&config, clock, SystemRng::shared(), &tasks).await;
        Arc::new(store.expect("etcd serves"))
    }
}

#[async_trait]
impl StoreFactory for Machine {
    async fn create(&self) -> Arc<dyn MetadataStore> {
        let etcd = Etcd::start(EtcdOptions::members(self.members)).await;
        let etcd = etcd.expect("etcd starts");
        let urls = etcd.urls();
        *self.etcd.lock().await = Some(etcd);
        self.connect(urls).await
    }

    async fn restart(&self, store: Arc<dyn MetadataStore>) -> Arc<dyn MetadataStore> {
        drop(store);
        let mut etcd = self.etcd.lock().await;
        let etcd = etcd.as_mut().expect("created before it is restarted");
        // etcd loses power too, all of it at once.
        for member in 0..etcd.len() {
            etcd.kill(member).expect("it runs");
        }
        for member in 0..etcd.len() {
            etcd.restart(member).expect("it was killed");
        }
        etcd.healthy().await.expect("etcd starts again");
        self.connect(etcd.urls()).await
    }

    async fn pause(&self, time: Duration) {
        self.clock.advance(time);
    }

    async fn compact(&self, store: &dyn MetadataStore) {
        // The latest change is always kept.
        let latest = put(store, &key(0), "noise").await;
        let latest = latest.expect("a write without condition");
        let etcd = self.etcd.lock().await;
        let etcd = etcd.as_ref().expect("created before it is compacted");
        etcd.ctl(&["compact", &latest.0.to_string()])
            .expect("etcd compacts");
    }

    async fn forget_snapshots(&self, store: &dyn MetadataStore) {
        self.compact(store).await;
    }
}

mod one_member {
    use crate::contract::Machine;

    aquifer_metadata::metadata_contract!(Machine::new(1));
}

mod three_members {
    use crate::contract::Machine;

    aquifer_metadata::metadata_contract!(Machine::new(3));
}
