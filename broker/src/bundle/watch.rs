//! Bundles move: handed over from one broker to another, taken from one that is gone, split in two.
//!
//! A move is one compare-and-swap of the bundle's record, by any broker. It names the new owner,
//! and the old one with its epoch as the source. The source sees it, and seals the ledgers of its
//! topics one after the other, under the record's new revision (H18, H21: it may seal, and no
//! more); a topic's clients are told where to go when its own ledgers are sealed, and the new owner
//! waits for that for a moment, so that no ledger has to be fenced. When the source does nothing,
//! fencing decides (I4).
//!
//! Who may do what with a topic meanwhile:
//!
//! | owner | new sessions | publish, acknowledge | open a ledger | deliver to subscriptions |
//! |---|---|---|---|---|
//! | new, waits | wait | - | - | - |
//! | old, before its turn | refused | into ledgers that are open | no | for a moment, then by probes |
//! | old, sealing | refused | what is in flight | no | no |
//! | new, found all sealed | yes | yes | yes | yes |
//! | new, had to fence | yes | yes | yes | after the old one's lease |

use std::sync::Arc;
use std::time::Duration;

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys::{self, BundleRange, Key};
use aquifer_metadata::record;
use aquifer_metadata::store::{Expect, Guard, Operation, Transaction, Versioned};
use aquifer_model::id::BrokerId;
use aquifer_model::topic::NamespaceName;
use aquifer_proto::v1::BundleOwnerRecord;
use aquifer_runtime::clock;
use futures::future::join_all;

use crate::broker::Shared;
use crate::bundles::{Bundle, Bundles, middle};
use crate::error::BrokerError;
use crate::members::Member;
use crate::ownership::{self, Cluster, OWNED, Owned, broker_id, owned};
use crate::topic::delivery_right::Departure;
use crate::topic::event::Event;
use crate::topics::{Loading, TopicHandle, Topics};

/// Topics of all bundles that seal their ledgers at once: each is away for as long as its own
/// takes, and the new owner opens one before the next are there.
pub(crate) const SEALING_AT_ONCE: usize = 4;
/// How long a topic with clients keeps its turn at least: they come to the new owner meanwhile,
/// which has more to do for each than this one has, and would have them wait if all came at once.
const TURN_MIN: Duration = Duration::from_millis(20);
/// How long one topic may take to seal before others get their turn.
const SEAL_MAX: Duration = Duration::from_secs(10);

/// How long a topic that is being loaded is waited for.
const LOAD_MAX: Duration = Duration::from_secs(30);

/// How long it may take until others know that this broker ends.
const ANNOUNCE_MAX: Duration = Duration::from_secs(3);
/// How long everything may take before the broker ends anyway.
pub(crate) const DRAIN_MAX: Duration = Duration::from_secs(60);

/// A bundle as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BundleView {
    pub(crate) bundle: Bundle,
    /// A bundle that was never used has no owner.
    pub(crate) owner: Option<BrokerId>,
    pub(crate) epoch: u64,
    pub(crate) url: Option<String>,
}

/// Follows what metadata says about the bundles of this broker.
pub(crate) fn start(topics: &Arc<Topics>) {
    let topics = Arc::clone(topics);
    let shared = Arc::clone(topics.shared());
    let token = shared.tasks.shutdown_token();
    shared.tasks.spawn("bundle-watch", async move {
        let Some(cluster) = topics.shared().ownership.cluster() else {
            return;
        };
        let mut changes = cluster.owners.changes();
        loop {
            tokio::select! {
                () = token.wait() => return,
                changed = changes.changed() => if changed.is_err() { return },
            }
            changes.borrow_and_update();
            for owned in topics.shared().ownership.all() {
                look(&topics, cluster, owned);
            }
        }
    });
}

/// Looks whether an ownership is still what metadata says.
fn look(topics: &Arc<Topics>, cluster: &Cluster, owned: Owned) {
    let Some(now) = cluster.owners.get(&owned.guard.key) else {
        split_seen(topics, cluster, &owned);
        return;
    };
    if now.revision <= owned.revision() {
        return; // the cache may be behind what this broker wrote itself
    }
    let me = topics.shared().id;
    let record: BundleOwnerRecord = match record::decode(&now) {
        Ok(record) => record,
        Err(error) => {
            tracing::error!(bundle = %owned.bundle, %error, "the owner of a bundle is unreadable");
            return;
        }
    };
    let is_mine = broker_id(&record.broker_id) == Some(me);
    let from_me = broker_id(&record.source_id) == Some(me) && record.source_epoch == owned.epoch.0;
    let url = broker_id(&record.broker_id).and_then(|owner| cluster.members.url(owner));
    let sealing = (!is_mine && from_me).then(|| Owned {
        guard: Guard {
            key: owned.guard.key.clone(),
            expect: Expect::Revision(now.revision),
        },
        ..owned.clone()
    });
    match sealing {
        Some(_) => topics.shared().ownership.given_up(&owned),
        None => topics.shared().ownership.lost(&owned),
    }
    let departure = Arc::new(Departure {
        sealing,
        url: url.unwrap_or_default(),
    });
    // Before anything else may begin with them.
    let leaving = topics.leave(&owned.bundle, &departure);
    let shared = Arc::clone(topics.shared());
    let sealing = Arc::clone(&shared);
    shared.tasks.spawn("bundle-hand-over", async move {
        give_away(&sealing, &owned.bundle, &departure, leaving).await;
    });
}

/// Ends the topics of a bundle that is another broker's; a few at a time, over all bundles, when
/// their ledgers are to be sealed, all at once otherwise.
async fn give_away(
    shared: &Shared,
    bundle: &Bundle,
    departure: &Arc<Departure>,
    leaving: Vec<TopicHandle>,
) {
    let is_sealing = departure.sealing.is_some();
    let end = async |handle: &TopicHandle| {
        // The semaphore is never closed.
        let turn = match is_sealing {
            true => shared.sealing.acquire().await.ok(),
            false => None,
        };
        let least = match &turn {
            Some(_) if handle.counters.now().sessions > 0 => TURN_MIN,
            Some(_) | None => Duration::ZERO,
        };
        let least = clock::sleep(least);
        handle.mailbox.urgent(Event::Moved(Arc::clone(departure)));
        if clock::timeout(SEAL_MAX, handle.wait_ended()).await.is_err() {
            tracing::warn!(%bundle, "a topic that moves does not end in time");
        }
        least.await;
        drop(turn);
    };
    join_all(leaving.iter().map(end)).await;
    let (topics, to) = (leaving.len(), &departure.url);
    tracing::info!(%bundle, topics, to, handed_over = is_sealing, "bundle moved away");
}

/// Waits for topics that are being loaded. One whose load hangs finds out by its guard.
async fn loaded(loading: Vec<Loading>) -> Vec<TopicHandle> {
    let all = loading.into_iter();
    let all = all.map(|loading| clock::timeout(LOAD_MAX, loading.loaded()));
    let all = join_all(all).await.into_iter();
    all.filter_map(|loaded| loaded.ok().flatten()).collect()
}

/// The record of a bundle is gone: it was split, and its parts say who owns them. They may appear
/// one after the other; until all are there, nothing happens.
fn split_seen(topics: &Arc<Topics>, cluster: &Cluster, before: &Owned) {
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
            handle
                .mailbox
                .urgent(Event::Rebound(Box::new(part.clone())));
        }
        topics.shared().tasks.spawn("bundle-split", async move {
            for handle in loaded(loading).await {
                handle
                    .mailbox
                    .urgent(Event::Rebound(Box::new(part.clone())));
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

/// Gives everything away before this broker ends.
pub(crate) async fn drain(topics: &Arc<Topics>) {
    let shared = topics.shared();
    let Some(cluster) = shared.ownership.cluster() else {
        return;
    };
    // Without metadata nothing can be moved: the next owner fences.
    let announced = clock::timeout(ANNOUNCE_MAX, cluster.members.announce_draining());
    if announced.await.is_err() {
        tracing::warn!("metadata does not answer: bundles are not handed over");
        return;
    }
    for owned in shared.ownership.all() {
        let Some(target) = cluster
            .members
            .choose(&owned.bundle.to_string(), Some(shared.id))
        else {
            tracing::info!("no other broker is there: topics end here");
            return;
        };
        match move_to(topics, &owned.bundle, &target).await {
            Ok(()) => {}
            Err(BrokerError::Metadata(
                MetadataError::Unavailable(why) | MetadataError::Full(why),
            )) => {
                tracing::warn!(why, "metadata does not answer: bundles are not handed over");
                return;
            }
            Err(error) => {
                tracing::warn!(bundle = %owned.bundle, %error, "bundle is not handed over");
            }
        }
    }
    // The watch that sees these moves ends the topics; it is over when none of them is left.
    topics.wait_empty(DRAIN_MAX).await;
}

/// Moves a bundle to a broker that is chosen, or named.
///
/// # Errors
/// When there is no such bundle or broker, or metadata does not answer.
pub(crate) async fn transfer(
    topics: &Arc<Topics>,
    bundle: &Bundle,
    target: Option<BrokerId>,
) -> Result<Member, BrokerError> {
    let shared = topics.shared();
    let cluster = shared.ownership.cluster().ok_or_else(alone)?;
    let (_, bundles) = shared.namespaces.record(&bundle.namespace).await?;
    check(&bundles, bundle)?;
    let owner = view(topics, bundle.clone()).await?.owner;
    let chosen = match target {
        Some(target) => cluster
            .members
            .all()
            .into_iter()
            .find(|member| member.id == target),
        None => cluster.members.choose(&bundle.to_string(), owner),
    };
    let chosen = chosen.ok_or_else(|| BrokerError::NotFound {
        what: "broker",
        name: target.map_or_else(|| "that could take it".to_owned(), |id| id.to_string()),
        advice: "`aquifer cluster brokers` lists those that are there".to_owned(),
    })?;
    if owner != Some(chosen.id) {
        move_to(topics, bundle, &chosen).await?;
    }
    Ok(chosen)
}

/// Moves a bundle of a certain broker to another one; `false` when it is not that one's any more.
///
/// # Errors
/// When metadata does not answer, or the record changes at the same time.
pub(crate) async fn move_from(
    topics: &Arc<Topics>,
    bundle: &Bundle,
    from: BrokerId,
    target: &Member,
) -> Result<bool, BrokerError> {
    let store = topics.shared().ownership.store();
    // Without a record, the bundle may be none any more.
    let Some(found) = store.get(&ownership::key(bundle)).await? else {
        return Ok(false);
    };
    let record: BundleOwnerRecord = record::decode(&found)?;
    if broker_id(&record.broker_id) != Some(from) {
        return Ok(false);
    }
    let expect = Expect::Revision(found.revision);
    write_move(topics, bundle, target, record, expect).await?;
    Ok(true)
}

async fn move_to(
    topics: &Arc<Topics>,
    bundle: &Bundle,
    target: &Member,
) -> Result<(), BrokerError> {
    let store = topics.shared().ownership.store();
    let (record, expect) = match &store.get(&ownership::key(bundle)).await? {
        None => (BundleOwnerRecord::default(), Expect::Absent),
        Some(found) => (record::decode(found)?, Expect::Revision(found.revision)),
    };
    write_move(topics, bundle, target, record, expect).await
}

async fn write_move(
    topics: &Arc<Topics>,
    bundle: &Bundle,
    target: &Member,
    record: BundleOwnerRecord,
    expect: Expect,
) -> Result<(), BrokerError> {
    let shared = topics.shared();
    let key = ownership::key(bundle);
    let moved = BundleOwnerRecord {
        broker_id: target.id.0.to_vec().into(),
        epoch: record.epoch + 1,
        state: OWNED.to_owned(),
        source_id: record.broker_id,
        source_epoch: record.epoch,
    };
    let partition = keys::partition_of_namespace(&bundle.namespace);
    let value = record::encode(moved);
    let store = shared.ownership.store();
    let revision = store.put(&partition, &key, value, expect).await?;
    tracing::info!(%bundle, to = %target.id, "bundle is given to another broker");
    if let Some(cluster) = shared.ownership.cluster() {
        // So that an answer about the owner that follows is the new one.
        let reached = cluster.owners.reached(revision);
        if clock::timeout(SEAL_MAX, reached).await.is_err() {
            tracing::debug!("the owners are not seen in time");
        }
    }
    Ok(())
}

/// Splits a bundle in front of a hash, or in its middle; both parts stay where they are.
///
/// # Errors
/// When there is no such bundle, or it cannot be split there.
pub(crate) async fn split(
    topics: &Arc<Topics>,
    bundle: &Bundle,
    at: Option<u32>,
) -> Result<[Bundle; 2], BrokerError> {
    let shared = topics.shared();
    let (mut record, bundles) = shared.namespaces.record(&bundle.namespace).await?;
    check(&bundles, bundle)?;
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
            state: OWNED.to_owned(),
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

/// Who owns the bundles of a namespace.
///
/// # Errors
/// When metadata does not answer.
pub(crate) async fn list(
    topics: &Arc<Topics>,
    namespace: &NamespaceName,
) -> Result<Vec<BundleView>, BrokerError> {
    let (_, bundles) = topics.shared().namespaces.record(namespace).await?;
    let mut views = Vec::new();
    for range in bundles.ranges() {
        let namespace = namespace.clone();
        views.push(view(topics, Bundle { namespace, range }).await?);
    }
    Ok(views)
}

async fn view(topics: &Arc<Topics>, bundle: Bundle) -> Result<BundleView, BrokerError> {
    let shared = topics.shared();
    let found = shared
        .ownership
        .store()
        .get(&ownership::key(&bundle))
        .await?;
    let record = match &found {
        Some(found) => record::decode::<BundleOwnerRecord>(found)?,
        None => BundleOwnerRecord::default(),
    };
    let owner = broker_id(&record.broker_id);
    let members = shared.ownership.cluster().map(|cluster| &cluster.members);
    let url = owner.and_then(|owner| members?.url(owner));
    Ok(BundleView {
        bundle,
        owner,
        epoch: record.epoch,
        url,
    })
}

fn check(bundles: &Bundles, bundle: &Bundle) -> Result<(), BrokerError> {
    if bundles.ranges().any(|range| range == bundle.range) {
        return Ok(());
    }
    Err(BrokerError::NotFound {
        what: "bundle",
        name: bundle.to_string(),
        advice: "`aquifer cluster bundles` lists those that there are".to_owned(),
    })
}

fn alone() -> BrokerError {
    BrokerError::invalid(
        "this broker is a standalone server",
        "bundles move in clusters, between brokers",
    )
}
