//! Policies of the namespace that chaos runs in: ledgers end often, so that a rollover meets every
//! fault.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use aquifer_metadata::etcd::{EtcdConfig, EtcdStore};
use aquifer_metadata::store::{Expect, MetadataStore};
use aquifer_metadata::{keys, record};
use aquifer_model::policy::{Policies, PolicyScope, Rollover};
use aquifer_model::topic::NamespaceName;
use aquifer_proto::v1::PolicyRecord;
use aquifer_runtime::clock::{Clock, SystemClock, sleep};
use aquifer_runtime::rng::SystemRng;
use aquifer_runtime::task::TaskGroup;

use crate::cluster::{Cluster, NAME};

/// Entries of a ledger: some seconds of what a run publishes.
const ROLLOVER_ENTRIES: u64 = 4_000;
/// How long the first broker may take to create its namespace.
const START: Duration = Duration::from_secs(120);

/// Opens the metadata of the cluster. The store lives as long as the group's tasks.
pub async fn metadata(cluster: &Cluster, tasks: &TaskGroup) -> Result<Arc<EtcdStore>> {
    let config = EtcdConfig {
        // After an outage its members take seconds to start; what is wrong then is not this.
        request_timeout_ms: 120_000,
        ..EtcdConfig::new(cluster.etcd_urls(), NAME)
    };
    let (clock, rng) = (SystemClock::shared(), SystemRng::shared());
    Ok(Arc::new(
        EtcdStore::connect(&config, clock, rng, tasks).await?,
    ))
}

/// Sets how soon ledgers end.
pub async fn set(cluster: &mut Cluster) -> Result<()> {
    let tasks = TaskGroup::new("policy");
    let store = metadata(cluster, &tasks).await?;
    let namespace: NamespaceName = "public/default".parse()?;
    let (key, partition) = (
        keys::namespace(&namespace),
        keys::partition_of_namespace(&namespace),
    );
    let started = SystemClock.monotonic();
    loop {
        cluster.revive()?;
        if store.get(&key).await?.is_some() {
            let policies = Policies {
                rollover: Some(Rollover {
                    entries: ROLLOVER_ENTRIES,
                    ..Rollover::default()
                }),
                ..Policies::default()
            };
            let value = record::encode(PolicyRecord {
                policies: Some(policies.into()),
            });
            let key = keys::policies(&PolicyScope::Namespace(namespace));
            store.put(&partition, &key, value, Expect::Any).await?;
            break;
        }
        let waited = SystemClock.monotonic() - started;
        ensure!(waited < START, "no broker creates its namespace");
        sleep(Duration::from_millis(100)).await;
    }
    store.close().await;
    tasks.drain(Duration::from_secs(5)).await;
    Ok(())
}
