//! Splits of bundles: the change of the records, by any broker, and what the owner makes of it.
//! Both parts stay with the owner, which serves their topics without a pause.

use std::sync::Arc;
use std::time::Duration;

use aquifer_metadata::keys::{self, BundleRange, Key};
use aquifer_metadata::record;
use aquifer_metadata::store::{Expect, Operation, Transaction, Versioned};
use aquifer_model::id::BrokerId;
use aquifer_proto::v1::BundleOwnerRecord;
use aquifer_runtime::clock;
use futures::future::join_all;

use crate::bundle::ownership::{self, Cluster, Owned, broker_id, owned};
use crate::bundle::{Bundle, middle};
use crate::context::Context;
use crate::error::BrokerError;
use crate::topic::handle::TopicHandle;
use crate::topics::{Loading, Topics};

/// How long a topic that is being loaded is waited for.
const LOAD_MAX: Duration = Duration::from_secs(30);

/// Splits a bundle in front of a hash, or in its middle; both parts stay where they are.
///
/// # Errors
/// When there is no such bundle, or it cannot be split there.
pub(crate) async fn split(
    shared: &Context,
    bundle: &Bundle,
    at: Option<u32>,
) -> Result<[Bundle; 2], BrokerError> {
    let (mut record, bundles) = shared.namespaces.record(&bundle.namespace).await?;
    bundles.check(bundle)?;
    let at = at.unwrap_or_else(|| middle(bundle.range));
    let boundaries = bundles.split(bundle.range, at).ok_or_else(|| {
        BrokerError::invalid(
            format!("{bundle} cannot be split at {at:08x}"),
            "split in front of a hash inside the bundle, which is not its first",
        )
    })?;
    record.bundle_boundaries = boundaries;
    let key = keys::namespace(&bundle.namespace);
    let mut operations = vec![Operation::Put {
        key,
        value: record::encode(record),
        expect: Expect::Revision(bundles.revision),
    }];
    let part = |first, last| Bundle {
        namespace: bundle.namespace.clone(),
        range: BundleRange { first, last },
    };
    let parts = [
        part(bundle.range.first, at - 1),
        part(at, bundle.range.last),
    ];
    let owner_key = ownership::key(bundle);
    if let Some(found) = shared.ownership.store().get(&owner_key).await? {
        let owner: BundleOwnerRecord = record::decode(&found)?;
        let inherited = BundleOwnerRecord {
            broker_id: owner.broker_id.clone(),
            epoch: owner.epoch + 1,
            source_id: owner.broker_id,
            source_epoch: owner.epoch,
        };
        operations.push(Operation::Delete {
            key: owner_key,
            expect: Expect::Revision(found.revision),
        });
        operations.extend(parts.iter().map(|part| Operation::Put {
            key: ownership::key(part),
            value: record::encode(inherited.clone()),
            expect: Expect::Absent,
        }));
    }
    let transaction = Transaction {
        partition: keys::partition_of_namespace(&bundle.namespace),
        guards: Vec::new(),
        operations,
    };
    shared.ownership.store().commit(transaction).await?;
    shared.namespaces.forget(&bundle.namespace);
    tracing::info!(%bundle, at = format!("{at:08x}"), "bundle was split");
    Ok(parts)
}

/// Takes over what a split made of a bundle of this broker. The record of the bundle is gone, and
/// its parts have records of their own. They may appear one after the other; until all exist,
/// nothing happens.
pub(super) fn seen(topics: &Arc<Topics>, cluster: &Cluster, before: &Owned) {
    let prefix = keys::bundle_owners_prefix(&before.bundle.namespace);
    let items = cluster.owners.items();
    let parts: Vec<Owned> = items
        .iter()
        .filter(|item| item.key.starts_with(&prefix) && item.revision > before.revision())
        .filter_map(|item| part_of(before, item, topics.shared().id))
        .collect();
    let covered: u64 = parts.iter().map(|part| size(part.bundle.range)).sum();
    if covered != size(before.bundle.range) {
        return;
    }
    let ownership = &topics.shared().ownership;
    for part in &parts {
        ownership.rebound(part.clone());
    }
    ownership.given_up(before);
    for part in parts {
        let (handles, loading) = topics.of_bundle(&part.bundle);
        for handle in handles {
            handle.rebound(part.clone());
        }
        topics.shared().tasks.spawn("bundle-split", async move {
            for handle in loaded(loading).await {
                handle.rebound(part.clone());
            }
        });
    }
}

fn part_of(before: &Owned, item: &Versioned, me: BrokerId) -> Option<Owned> {
    let Ok(Key::BundleOwner(namespace, range)) = item.key.parse() else {
        return None;
    };
    let bundle = Bundle { namespace, range };
    let record: BundleOwnerRecord = record::decode(item).ok()?;
    let from_me = broker_id(&record.source_id) == Some(me) && record.source_epoch == before.epoch.0;
    (before.bundle.covers(&bundle) && from_me && broker_id(&record.broker_id) == Some(me)).then(
        || Owned {
            session: before.session,
            since: before.since,
            ..owned(&bundle, record.epoch, item.revision, None)
        },
    )
}

fn size(range: BundleRange) -> u64 {
    u64::from(range.last) - u64::from(range.first) + 1
}

/// Waits for topics that are being loaded. One whose load hangs finds out by its guard.
async fn loaded(loading: Vec<Loading>) -> Vec<TopicHandle> {
    let all = loading.into_iter();
    let all = all.map(|loading| clock::timeout(LOAD_MAX, loading.loaded()));
    let all = join_all(all).await.into_iter();
    all.filter_map(|loaded| loaded.ok().flatten()).collect()
}
