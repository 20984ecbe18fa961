//! The balance of load between brokers. Every broker measures its own load and reports it when it
//! is asked; one of them is elected, asks all others round by round, lets the planner decide, and
//! moves bundles as an operator would (`bundle/transfer.rs`).
//!
//! Invariants:
//! - Nothing is decided by an election or a report that must not happen twice: a move is a
//!   compare-and-swap of the bundle's record as its reported owner's, so that a leader that
//!   believes in it for too long, or on old reports, does no more than one move too many (I4).
//! - No wire protocol is spoken here: the way to other brokers is given ([`Peers`]).

pub(crate) mod config;

mod planner;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aquifer_metadata::election::Election;
use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys;
use aquifer_metadata::lease::Lease;
use aquifer_metadata::store::Session;
use aquifer_model::load::{Load, LoadReport};
use aquifer_model::topic::{NamespaceName, TopicName};
use aquifer_runtime::clock;
use bytes::Bytes;

use crate::balance::planner::{Move, Planner, Split};
use crate::bundle::{Bundle, split as bundle_split, transfer};
use crate::context::Context;
use crate::error::BrokerError;
use crate::members::Member;
use crate::peers::{Peers, peer_url};
use crate::topics::Topics;
use crate::traffic::namespaces::Figures;
use crate::traffic::{Behind, Sample, age_seconds};

/// How long a broker may take to report; one that takes longer is not counted in this round.
const REPORT_MAX: Duration = Duration::from_secs(3);
/// How long it takes until an election is tried again that ended with an error.
const AGAIN: Duration = Duration::from_secs(1);

/// Begins to measure, and to balance where others can be asked.
pub(crate) fn start(topics: &Arc<Topics>, lease: Option<Lease>) {
    let shared = topics.shared();
    let token = shared.tasks.shutdown_token();
    let measured = Arc::clone(topics);
    shared.tasks.spawn("load-meter", async move {
        tokio::select! {
            () = token.wait() => {}
            () = measure(&measured) => {}
        }
    });
    let (Some(lease), Some(peers)) = (lease, shared.peers.clone()) else {
        return;
    };
    if !shared.config.balance.enabled {
        return;
    }
    let token = shared.tasks.shutdown_token();
    let balanced = Arc::clone(shared);
    shared.tasks.spawn("balance", async move {
        tokio::select! {
            () = token.wait() => {}
            () = campaign(&balanced, &lease, &peers) => {}
        }
    });
}

/// Reads the counters of all topics, period by period.
async fn measure(topics: &Arc<Topics>) {
    let shared = topics.shared();
    loop {
        let owned = shared.ownership.all();
        let topics = Arc::clone(topics);
        let observed = aside(move || {
            let shared = topics.shared();
            let (now, samples) = (shared.clock.monotonic(), topics.samples());
            let behind = behind_of(&samples);
            let bundles = owned.len();
            let loads = {
                let mut meter = shared.meter.lock();
                meter.observe(now, samples, &owned);
                meter.namespaces()
            };
            let all: Load = loads.values().copied().sum();
            shared.metrics.share.show(bundles, &all);
            show(shared, loads, &behind);
            show_furthest(&topics);
        });
        if let Err(error) = observed.await {
            tracing::error!(%error, "load cannot be measured");
        }
        clock::sleep(shared.config.balance.period()).await;
    }
}

/// How far behind the subscriptions of each namespace are.
fn behind_of(samples: &[Sample]) -> BTreeMap<NamespaceName, Behind> {
    let mut behind: BTreeMap<NamespaceName, Behind> = BTreeMap::new();
    for sample in samples {
        let of_namespace = behind.entry(sample.namespace.clone()).or_default();
        *of_namespace = of_namespace.and(&sample.behind);
    }
    behind
}

/// Shows in the metrics what topics do, of all together and of each namespace.
fn show(
    shared: &Context,
    loads: BTreeMap<NamespaceName, Load>,
    behind: &BTreeMap<NamespaceName, Behind>,
) {
    let (metrics, now_ms) = (&shared.metrics, shared.clock.wall_ms());
    let all = behind
        .values()
        .fold(Behind::default(), |all, one| all.and(one));
    metrics.backlog.record(all.messages, &[]);
    metrics.backlog_max.record(all.messages_max, &[]);
    metrics
        .backlog_age
        .record(age_seconds(all.oldest_ms, now_ms), &[]);
    metrics.unloaded.show(now_ms);
    let unloaded = metrics.unloaded.last();
    let figures = figures_of(loads, behind, unloaded.namespaces());
    metrics.namespaces.show(figures, now_ms);
}

/// Shows the subscriptions that are furthest behind, where that is asked for.
fn show_furthest(topics: &Topics) {
    let shared = topics.shared();
    let (metrics, shown) = (&shared.metrics, shared.config.subscriptions_shown);
    if shown > 0 {
        let loaded = topics.furthest(shown);
        let unloaded = metrics.unloaded.last();
        let now_ms = shared.clock.wall_ms();
        let is_told = |topic: &TopicName| topics.tells_lags(topic);
        let figures = &metrics.subscriptions;
        figures.show(loaded, unloaded.furthest(), is_told, now_ms);
    }
}

/// What is known of each namespace that has loaded topics or a backlog.
fn figures_of(
    loads: BTreeMap<NamespaceName, Load>,
    behind: &BTreeMap<NamespaceName, Behind>,
    unloaded: &BTreeMap<NamespaceName, Behind>,
) -> BTreeMap<NamespaceName, Figures> {
    let mut figures: BTreeMap<NamespaceName, Figures> = BTreeMap::new();
    for (name, load) in loads {
        let of_namespace = Figures {
            load,
            behind: behind.get(&name).copied().unwrap_or_default(),
            unloaded: Behind::default(),
        };
        figures.insert(name, of_namespace);
    }
    for (name, behind) in unloaded {
        figures.entry(name.clone()).or_default().unloaded = *behind;
    }
    figures
}

/// Does what takes longer the more topics or bundles there are, where no request waits behind it.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, BrokerError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| BrokerError::Internal(error.to_string()))
}

/// The load of this broker as it was last measured.
pub(crate) async fn report(shared: &Arc<Context>) -> Result<LoadReport, BrokerError> {
    let shared = Arc::clone(shared);
    let report = aside(move || {
        let meter = shared.meter.lock();
        let (total, bundles) = meter.bundles();
        LoadReport {
            broker: shared.id,
            window_ms: clock::millis(meter.measured()),
            total,
            bundles,
        }
    });
    report.await
}

/// The hash that halves the load of a bundle, if its owner knows one.
pub(crate) async fn split_at(shared: &Context, bundle: &Bundle) -> Option<u32> {
    let owner = shared.ownership.known_elsewhere(bundle);
    let (Some(owner), Some(peers)) = (owner, &shared.peers) else {
        return shared.meter.lock().split_at(bundle);
    };
    let report = clock::timeout(REPORT_MAX, peers.report(peer_url(&owner))).await;
    let mut bundles = report.ok()?.ok()?.bundles.into_iter();
    let found = bundles.find(|b| b.namespace == bundle.namespace && b.range == bundle.range);
    found?.split_at
}

/// Leads whenever this broker is elected, until its lease ends.
async fn campaign(shared: &Arc<Context>, lease: &Lease, peers: &Arc<dyn Peers>) {
    while let Some(session) = lease.session().await {
        lead(shared, session, peers).await;
        clock::sleep(shared.rng.jitter(AGAIN)).await;
    }
}

async fn lead(shared: &Arc<Context>, session: Arc<dyn Session>, peers: &Arc<dyn Peers>) {
    let store = Arc::clone(shared.ownership.store());
    let election = Election::new(store, keys::ELECTION_BALANCER);
    let candidate = Bytes::from(shared.id.to_string());
    let leadership = match election.campaign(session, candidate).await {
        Ok(leadership) => leadership,
        Err(error) => {
            tracing::debug!(%error, "this broker cannot lead the balance, trying again");
            return;
        }
    };
    tracing::info!("this broker balances load now");
    shared.metrics.share.set_leads(true);
    tokio::select! {
        () = leadership.lost() => tracing::info!("this broker does not balance load any more"),
        () = rounds(shared, peers) => {}
    }
    shared.metrics.share.set_leads(false);
    shared.metrics.balance_spread.record(0.0, &[]);
}

async fn rounds(shared: &Arc<Context>, peers: &Arc<dyn Peers>) {
    let config = &shared.config.balance;
    let mut planner = Planner::new(config.clone());
    loop {
        clock::sleep(config.period()).await;
        if let Err(error) = round(shared, peers, &mut planner).await {
            tracing::warn!(%error, "load is not balanced in this round");
        }
    }
}

/// Asks all brokers, decides, and moves.
async fn round(
    shared: &Arc<Context>,
    peers: &Arc<dyn Peers>,
    planner: &mut Planner,
) -> Result<(), BrokerError> {
    let Some(cluster) = shared.ownership.cluster() else {
        return Ok(());
    };
    let members = cluster.members.serving();
    let found = ask(shared, peers, &members).await;
    let (known, now) = (found.len(), shared.clock.monotonic());
    let mut planning = std::mem::replace(planner, Planner::new(shared.config.balance.clone()));
    let planned = aside(move || {
        let plan = planning.round(now, &found);
        (planning, plan)
    });
    let (planned, plan) = planned.await?;
    *planner = planned;
    shared.metrics.balance_spread.record(plan.spread, &[]);
    tracing::debug!(
        spread = plan.spread,
        brokers = members.len(),
        reports = known,
        "loads were compared"
    );
    for split in &plan.splits {
        // Whatever comes of it, it is not tried again at once.
        planner.split(shared.clock.monotonic(), &split.bundle);
        make_split(shared, split).await?;
    }
    for wanted in &plan.moves {
        let target = members.iter().find(|member| member.id == wanted.to);
        let Some(target) = target else { continue };
        if make_move(shared, wanted, target, plan.spread).await? {
            planner.moved(shared.clock.monotonic(), wanted);
        }
    }
    Ok(())
}

/// The reports of all that answer in time and know what they say.
async fn ask(shared: &Arc<Context>, peers: &Arc<dyn Peers>, members: &[Member]) -> Vec<LoadReport> {
    let mut asked = Vec::new();
    for member in members {
        let (shared, peers) = (Arc::clone(shared), Arc::clone(peers));
        let (id, url) = (member.id, peer_url(&member.listeners).to_owned());
        let tasks = shared.tasks.clone();
        asked.push(tasks.spawn("load-report", async move {
            if id == shared.id {
                return report(&shared).await.ok();
            }
            match clock::timeout(REPORT_MAX, peers.report(&url)).await {
                // Another one than expected is its successor at the same address.
                Ok(Ok(report)) => (report.broker == id).then_some(report),
                Ok(Err(error)) => {
                    tracing::debug!(url, %error, "a broker does not report its load");
                    None
                }
                Err(_) => {
                    tracing::debug!(url, "a broker does not report its load in time");
                    None
                }
            }
        }));
    }
    let mut found = Vec::new();
    for answer in asked {
        found.extend(answer.await.ok().flatten());
    }
    // A broker that owns something and has not measured it yet would seem idle.
    found.retain(|report| report.window_ms > 0 || report.bundles.is_empty());
    found
}

async fn make_move(
    shared: &Context,
    wanted: &Move,
    target: &Member,
    spread: f64,
) -> Result<bool, BrokerError> {
    let bundle = &wanted.bundle;
    match transfer::transfer_from(shared, bundle, wanted.from, target).await {
        Ok(true) => {
            shared.metrics.balance_moves.add(1, &[]);
            tracing::info!(
                %bundle, from = %wanted.from, to = %wanted.to, units = wanted.load.units(),
                topics = wanted.load.topics, share = wanted.share, spread,
                "bundle moves to balance load"
            );
            Ok(true)
        }
        Ok(false) | Err(BrokerError::Metadata(MetadataError::Conflict { .. })) => {
            tracing::debug!(%bundle, "a bundle that was to move has another owner by now");
            Ok(false)
        }
        // It may have moved: for the planner it has.
        Err(BrokerError::Metadata(MetadataError::UnknownOutcome(why))) => {
            tracing::warn!(%bundle, why, "a bundle may have moved to balance load");
            Ok(true)
        }
        Err(error) => Err(error),
    }
}

async fn make_split(shared: &Context, split: &Split) -> Result<(), BrokerError> {
    let bundle = &split.bundle;
    match bundle_split::split(shared, bundle, Some(split.at)).await {
        Ok(_) => {
            shared.metrics.balance_splits.add(1, &[]);
            let at = format!("{:08x}", split.at);
            tracing::info!(%bundle, at, why = split.why, "bundle is split to balance load");
            Ok(())
        }
        Err(
            error @ BrokerError::Metadata(MetadataError::Unavailable(_) | MetadataError::Full(_)),
        ) => Err(error),
        Err(error) => {
            tracing::info!(%bundle, %error, "a bundle was not split to balance load");
            Ok(())
        }
    }
}
