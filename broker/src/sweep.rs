//! Retention and offload of topics that are not loaded: data is deleted when policy says so, and
//! goes into objects, whether its topic is used or not.
//!
//! A walk over the records of all topics, a page at a time and at a bounded rate, finds those whose
//! first ledger has had its time. Such a topic is loaded for a visit, by the owner of its bundle,
//! trims itself as any loaded one does, and goes again. What it left behind because a subscription
//! needs it is remembered, so that a backlog costs no load at each round. Nothing is written for a
//! topic that has nothing to trim, but once where its record does not say how far behind its
//! subscriptions are. A deletion that was left unfinished is continued.
//!
//! What is to be offloaded it finds on the same records (`offload/planner.rs`), and how far behind
//! subscriptions are (`topic/at_rest.rs`), so that one walk serves all.
//!
//! It knows of no owner but by asking: a bundle without an owner gets one as for any other request.

use std::sync::Arc;
use std::time::Duration;

use aquifer_log::first_due_on_record;
use aquifer_metadata::keys::{self, Key};
use aquifer_metadata::store::Versioned;
use aquifer_metadata::{record, scan};
use aquifer_model::policy::{EffectivePolicies, Retention};
use aquifer_model::topic::{NamespaceName, TopicName};
use aquifer_proto::v1::{NamespaceRecord, Removal, TenantRecord, TopicRecord};
use aquifer_runtime::clock;
use futures::StreamExt;

use crate::bundle::Bundles;
use crate::error::BrokerError;
use crate::namespace::bundles_of;
use crate::namespace::listing::{behind, parse};
use crate::offload::planner::Planner;
use crate::security::audit::cause::Create;
use crate::topic::at_rest;
use crate::topic::event::Event;
use crate::topics::Topics;
use crate::topics::removal::RemovalScope;
use crate::traffic::unloaded::Found;

/// Records read at once, and the pause between two such reads: 1,280 topics a second at most.
const PAGE_RECORDS: usize = 32;
const PAGE_PAUSE: Duration = Duration::from_millis(25);
/// Between two rounds passes this many times what the round took, and one housekeeping at least: a
/// walk over many topics is no steady load.
const ROUND_PAUSE_FACTOR: u32 = 4;
/// Topics visited at once.
const VISITS_AT_ONCE: usize = 4;
/// How long a visit may take; the next round comes again.
const VISIT_MAX: Duration = Duration::from_secs(60);

/// Starts to walk.
pub(crate) fn start(topics: &Arc<Topics>) {
    let topics = Arc::clone(topics);
    let shared = Arc::clone(topics.shared());
    let token = shared.tasks.shutdown_token();
    shared.tasks.spawn("retention-sweep", async move {
        tokio::select! {
            () = rounds(&topics) => {}
            () = token.wait() => {}
        }
    });
}

async fn rounds(topics: &Arc<Topics>) {
    let shared = topics.shared();
    let planner = Planner::start(topics);
    let pause_min = Duration::from_millis(shared.config.housekeeping_ms);
    let mut pause = pause_min;
    loop {
        clock::sleep(shared.rng.jitter(pause)).await;
        let started = shared.clock.monotonic();
        if let Err(error) = round(topics, planner.as_deref()).await {
            tracing::warn!(%error, "retention of topics that are not loaded is looked at later");
        }
        let took = shared.clock.monotonic().saturating_sub(started);
        pause = pause_min.max(took * ROUND_PAUSE_FACTOR);
    }
}

/// The namespace whose topics are being read.
struct Current {
    name: NamespaceName,
    bundles: Bundles,
    policies: EffectivePolicies,
    /// Some of its topics say something themselves.
    has_topic_policies: bool,
}

/// One walk over all topics.
struct Walk {
    current: Option<Current>,
    /// This broker speaks for topics of bundles without an owner.
    is_first: bool,
    /// Backlogs that it has seen.
    unloaded: Found,
}

async fn round(topics: &Arc<Topics>, planner: Option<&Planner>) -> Result<(), BrokerError> {
    if let Some(planner) = planner {
        planner.round_begins();
    }
    let unloaded = walk(topics, planner).await?;
    let shared = topics.shared();
    shared
        .metrics
        .unloaded
        .set(unloaded, shared.clock.wall_ms());
    if let Some(planner) = planner {
        planner.round_ends();
    }
    Ok(())
}

async fn walk(topics: &Arc<Topics>, planner: Option<&Planner>) -> Result<Found, BrokerError> {
    let shared = topics.shared();
    let store = shared.namespaces.store().as_ref();
    let mut walk = Walk {
        current: None,
        is_first: shared.ownership.is_first(),
        unloaded: Found::keeping(shared.config.subscriptions_shown),
    };
    let mut after: Option<String> = None;
    loop {
        let page = scan::page_behind(store, keys::TENANTS_PREFIX, after.as_deref(), PAGE_RECORDS);
        let page = page.await?;
        let Some(last) = page.items.last() else {
            return Ok(walk.unloaded);
        };
        after = Some(match parse(last) {
            // A topic with many ledgers has many pages, and nothing is looked for in them.
            Ok(Key::SegmentPage(topic, ..)) => behind(&keys::segment_pages_prefix(&topic)),
            _ => last.key.clone(),
        });
        let mut due = Vec::new();
        for versioned in &page.items {
            match look(topics, planner, &mut walk, versioned).await {
                Ok(Some(topic)) => due.push(topic),
                Ok(None) => {}
                // One record that cannot be read is no reason to leave out all behind it.
                Err(error) if error.is_retryable() => {
                    tracing::debug!(key = versioned.key, %error, "no look at retention");
                }
                Err(error) => {
                    tracing::warn!(key = versioned.key, %error, "retention cannot be applied");
                }
            }
        }
        futures::stream::iter(due)
            .for_each_concurrent(VISITS_AT_ONCE, |topic| visit(topics, topic))
            .await;
        if page.next.is_none() {
            return Ok(walk.unloaded);
        }
        clock::sleep(PAGE_PAUSE).await;
    }
}

/// The topic of a record if it is to be visited. A namespace comes before its topics.
async fn look(
    topics: &Arc<Topics>,
    planner: Option<&Planner>,
    walk: &mut Walk,
    versioned: &Versioned,
) -> Result<Option<TopicName>, BrokerError> {
    let shared = topics.shared();
    let topic = match parse(versioned)? {
        Key::Namespace(name) => {
            walk.current = None;
            walk.current = look_into(topics, name, versioned).await?;
            return Ok(None);
        }
        Key::Tenant(name) => {
            resume_tenant(topics, name, versioned)?;
            return Ok(None);
        }
        Key::Topic(topic) => topic,
        _ => return Ok(None),
    };
    let current = walk.current.as_ref();
    let Some(namespace) = current.filter(|c| c.name == *topic.namespace()) else {
        return Ok(None);
    };
    // What is loaded looks after itself, here or at another broker.
    if topics.is_there(&topic) {
        return Ok(None);
    }
    let bundle = namespace.bundles.of(&topic);
    if shared.ownership.known_elsewhere(&bundle).is_some() {
        return Ok(None);
    }
    let record: TopicRecord = record::decode(versioned)?;
    if record.deleting {
        topics.resume_deletion(&topic);
        return Ok(None);
    }
    if shared.ownership.speaks_for(&bundle, walk.is_first) {
        note_backlog(&mut walk.unloaded, &topic, &record);
    }
    let store = shared.namespaces.store().as_ref();
    let policies = match namespace.has_topic_policies {
        true => {
            shared
                .namespaces
                .policies()
                .of_unused(&topic, namespace.policies)
                .await?
        }
        false => namespace.policies,
    };
    if let Some(planner) = planner {
        planner.look(&topic, versioned, &record, &policies).await;
    }
    let (retention, now_ms) = (policies.retention, shared.clock.wall_ms());
    let due = first_due_on_record(store, &topic, &record, retention, now_ms).await?;
    let Some(end) = due else {
        return Ok(None);
    };
    if !topics.rests().keeps(&topic, versioned.revision, end) {
        return Ok(Some(topic));
    }
    // A subscription needs it, unless it is so old that it is acknowledged for all of them.
    let Some(ttl_ms) = policies.ttl.after_ms else {
        return Ok(None);
    };
    let expired = Retention {
        time_ms: Some(ttl_ms),
        size_bytes: Some(0),
    };
    let expired = first_due_on_record(store, &topic, &record, expired, now_ms).await?;
    Ok(expired.map(|_| topic))
}

/// Counts how far behind the subscriptions of a topic are that is not loaded.
fn note_backlog(unloaded: &mut Found, topic: &TopicName, record: &TopicRecord) {
    // A partitioned topic stores nothing itself.
    if !record.ranges.is_empty() {
        return;
    }
    let behind = at_rest::behind(record);
    if behind.is_some() {
        for lag in at_rest::lags(record) {
            unloaded.add_lag(topic, lag);
        }
    }
    unloaded.add(topic.namespace(), behind);
}

/// A namespace whose topics follow. One that is being deleted has none to look at.
async fn look_into(
    topics: &Arc<Topics>,
    name: NamespaceName,
    versioned: &Versioned,
) -> Result<Option<Current>, BrokerError> {
    let record: NamespaceRecord = record::decode(versioned)?;
    if record.removal() != Removal::Unspecified {
        topics.resume_removal(RemovalScope::Namespace(name));
        return Ok(None);
    }
    let policies = topics.shared().namespaces.policies();
    Ok(Some(Current {
        policies: policies.of_namespace(&name).await?,
        has_topic_policies: policies.has_topics(&name).await?,
        bundles: bundles_of(&name, &record, versioned.revision)?,
        name,
    }))
}

/// Goes on with the deletion of a tenant that was begun.
fn resume_tenant(
    topics: &Arc<Topics>,
    name: String,
    versioned: &Versioned,
) -> Result<(), BrokerError> {
    let record: TenantRecord = record::decode(versioned)?;
    if record.removal() != Removal::Unspecified {
        topics.resume_removal(RemovalScope::Tenant(name));
    }
    Ok(())
}

async fn visit(topics: &Arc<Topics>, topic: TopicName) {
    let visited = topics.ask(&topic, &Create::Never, Event::Trim);
    match clock::timeout(VISIT_MAX, visited).await {
        // Another owner looks after it, or it is gone.
        Ok(Ok(()) | Err(BrokerError::Elsewhere { .. } | BrokerError::NotFound { .. })) => {}
        Ok(Err(error)) if error.is_retryable() => {
            tracing::debug!(%topic, %error, "topic was not trimmed");
        }
        Ok(Err(error)) => tracing::warn!(%topic, %error, "topic cannot be trimmed"),
        Err(_) => tracing::debug!(%topic, "topic was not trimmed in time"),
    }
}
