//! Loading of a topic: its record, its logs, what they remember. Loading an idle topic writes
//! nothing but what recovering a ledger that was left open needs.

use std::sync::Arc;
use std::time::Duration;

use aquifer_log::error::LogError;
use aquifer_log::{LogKind, LogOptions, TopicLog, TopicRecordCell};
use aquifer_model::id::OwnerEpoch;
use aquifer_model::policy::EffectivePolicies;
use aquifer_model::topic::TopicName;
use aquifer_runtime::clock;
use tokio::sync::watch;

use crate::bundle::ownership::{DRAIN_MAX, Owned};
use crate::context::Context;
use crate::error::BrokerError;
use crate::quota::rates::TopicRates;
use crate::security::audit::cause::Create;
use crate::subscription::SubscriptionSpec;
use crate::topic::Topic;
use crate::topic::attachments::Attachments;
use crate::topic::backlog::Backlog;
use crate::topic::context::{Budgets, TopicContext};
use crate::topic::cursors::Cursors;
use crate::topic::dedup::SinceSnapshot;
use crate::topic::delivery_right::DeliveryRight;
use crate::topic::event::{Inbox, Mailbox, mailbox};
use crate::topic::handle::TopicHandle;
use crate::topic::lifecycle::{Lifecycle, Termination};
use crate::topic::publishing::Publishing;
use crate::topic::record::{find_or_create, partitioned};
use crate::topic::recovery::{self, Recovered};
use crate::topic::trimming::Trimming;
use crate::traffic::TopicCounters;

/// How long one step of a load may take. Then its requests try again, and other loads get their
/// turn.
const STEP_MAX: Duration = Duration::from_secs(30);
/// How long a new owner waits for the old one to seal a topic's ledgers, and how often it looks.
const HAND_OVER_MAX: Duration = Duration::from_secs(2);
const HAND_OVER_TICK: Duration = Duration::from_millis(10);

/// A topic whose task can start.
pub(crate) struct Loaded {
    pub(crate) topic: Topic,
    pub(crate) inbox: Inbox,
    pub(crate) handle: TopicHandle,
    /// To be dropped when the task has ended.
    pub(crate) ended: watch::Sender<()>,
}

/// Loads a topic.
pub(crate) async fn load(
    shared: &Arc<Context>,
    name: &TopicName,
    create: &Create,
) -> Result<Loaded, BrokerError> {
    let started = shared.clock.monotonic();
    // A namespace that does not exist has no owner.
    let owned = async {
        shared.namespaces.check(name.namespace()).await?;
        shared.own(name).await
    };
    let owned = step("acquiring the topic's bundle", owned).await?;
    let outcome = load_owned(shared, name, create, owned.clone()).await;
    if let Err(BrokerError::Log(LogError::Fenced)) = &outcome {
        // The next request acquires ownership again, or learns that it cannot.
        shared.ownership.lost(&owned);
    }
    let took = shared.clock.monotonic().saturating_sub(started);
    shared
        .metrics
        .topic_load_seconds
        .record(took.as_secs_f64(), &[]);
    outcome
}

async fn load_owned(
    shared: &Arc<Context>,
    name: &TopicName,
    create: &Create,
    owned: Owned,
) -> Result<Loaded, BrokerError> {
    let (cell, policies, rates) = read(shared, name, create, &owned).await?;
    let sealed = wait_sealed(shared, &cell, &owned).await?;
    if !cell.ranges().is_empty() {
        return Err(partitioned(name, &cell.ranges()));
    }
    let (log, cursor_log, recovered) = loop {
        let opened = open(shared, &cell, owned.epoch, &policies);
        match step("opening the topic's ledgers", opened).await {
            // A former owner that seals may have trimmed what the record named a moment ago.
            Err(BrokerError::Log(LogError::Damaged(_))) if cell.refresh().await? => {}
            opened => {
                if let Some(opened) = opened? {
                    break opened;
                }
            }
        }
    };
    let now = shared.clock.monotonic();
    let (mailbox, inbox) = mailbox();
    let (ended_sender, ended) = watch::channel(());
    let taken_over = log.was_taken_over() || cursor_log.was_taken_over();
    let (logs, epoch) = ([cursor_log.clone(), log.clone()], owned.epoch);
    let delivery_right = delivery_right(shared, owned, logs, (taken_over, sealed), now);
    let cursors = Cursors::new(cursor_log, &mailbox, recovered.dedup_index, shared);
    tell_losses(shared, name, &recovered);
    let (attachments, publishing) = restore(recovered, &log, &mailbox, now);
    let (incarnation, termination) = (cell.incarnation(), Termination::of(&cell));
    let (counters, followed) = (Arc::new(TopicCounters::new(now)), rates.follow());
    let topic = Topic {
        cell,
        followed,
        publishing,
        attachments,
        cursors,
        trimming: Trimming::new(now, log.first()),
        backlog: Backlog::new(),
        delivery_right,
        terminating: Vec::new(),
        last_used: now,
        next_housekeeping: now + Duration::from_millis(shared.config.housekeeping_ms),
        cx: TopicContext {
            shared: Arc::clone(shared),
            name: name.clone(),
            incarnation,
            epoch,
            policies,
            rates,
            mailbox: mailbox.clone(),
            log,
            counters: Arc::clone(&counters),
            budgets: Budgets::new(shared, name),
            life: Lifecycle::default(),
            termination,
        },
    };
    let handle = TopicHandle {
        id: shared.next_id(),
        incarnation,
        mailbox,
        counters,
        departure: Arc::default(),
        ended,
    };
    Ok(Loaded {
        topic,
        inbox,
        handle,
        ended: ended_sender,
    })
}

/// Tells operators what the cursor log has lost.
fn tell_losses(shared: &Context, name: &TopicName, recovered: &Recovered) {
    let Some(losses) = &recovered.losses else {
        return;
    };
    shared.metrics.damaged_cursor_logs.add(1, &[]);
    let reason = &losses.reason;
    tracing::error!(topic = %name, reason, "the record of subscriptions is damaged: they wait for `aquifer subscription reset`, messages are served");
}

fn delivery_right(
    shared: &Context,
    owned: Owned,
    logs: [TopicLog; 2],
    (taken_over, sealed): (bool, Sealed),
    now: Duration,
) -> DeliveryRight {
    let right = DeliveryRight::new(owned, logs);
    match shared.ownership.cluster().filter(|_| taken_over) {
        None => right,
        // A former owner that lives and holds a lease may not have heard of the move yet.
        Some(cluster) if sealed == Sealed::NotYet => {
            right.after_takeover(now, cluster.members.lease_time())
        }
        Some(_) => right.after_takeover(now, Duration::ZERO),
    }
}

/// Bounds the time of a step of a load. An abandoned load leaves the same state as a broker crash;
/// the next load completes it.
async fn step<T>(
    what: &'static str,
    step: impl Future<Output = Result<T, BrokerError>>,
) -> Result<T, BrokerError> {
    let done = clock::timeout(STEP_MAX, step).await;
    done.unwrap_or(Err(BrokerError::Deadline(what)))
}

/// Opens the logs of a topic, and reads what they remember.
async fn open(
    shared: &Context,
    cell: &Arc<TopicRecordCell>,
    owner_epoch: OwnerEpoch,
    policies: &watch::Receiver<EffectivePolicies>,
) -> Result<Option<(TopicLog, TopicLog, Recovered)>, BrokerError> {
    let options = {
        let now = policies.borrow();
        LogOptions {
            quorum: now.persistence,
            rollover: now.rollover,
            owner_epoch,
        }
    };
    let open = |kind| TopicLog::open(Arc::clone(&shared.log), Arc::clone(cell), kind, options);
    let (log, cursor_log) = tokio::try_join!(open(LogKind::Messages), open(LogKind::Cursors))?;
    for log in [&log, &cursor_log] {
        log.follow(policies.clone());
    }
    let recovered = recovery::recover(cell, &log, &cursor_log).await?;
    Ok(recovered.map(|recovered| (log, cursor_log, recovered)))
}

fn restore(
    recovered: Recovered,
    log: &TopicLog,
    mailbox: &Mailbox,
    now: Duration,
) -> (Attachments, Publishing) {
    let mut attachments = Attachments::new(recovered.losses, now);
    for (name, known) in recovered.subscriptions {
        let spec = SubscriptionSpec {
            name: name.to_string(),
            kind: known.kind,
            durable: true,
            cursor: known.cursor,
            delivered: log.end(),
            properties: known.properties,
            redelivered: known.redelivered,
            created_ms: known.created_ms,
        };
        attachments.recovered(name, spec);
    }
    let (entries, bytes) = recovered.repeated;
    let since = SinceSnapshot { entries, bytes };
    let publishing = Publishing::new(mailbox, recovered.dedup, log.end(), since, now);
    (attachments, publishing)
}

/// Waits until the broker that handed the bundle over has sealed the topic's ledgers. One that does
/// not, in time, is fenced.
async fn wait_sealed(
    shared: &Context,
    cell: &TopicRecordCell,
    owned: &Owned,
) -> Result<Sealed, BrokerError> {
    let Some(source) = owned.source else {
        return Ok(Sealed::NoSource);
    };
    let started = shared.clock.monotonic();
    // By then everything was handed over long ago: what is open was left open by this broker.
    if started > owned.since + DRAIN_MAX {
        return Ok(Sealed::NoSource);
    }
    while shared.clock.monotonic() < started + HAND_OVER_MAX {
        if cell.is_sealed().await? {
            return Ok(Sealed::Yes);
        }
        // One that is gone seals nothing any more.
        if !shared.ownership.is_announced(source) {
            return Ok(Sealed::NoSource);
        }
        clock::sleep(HAND_OVER_TICK).await;
    }
    tracing::warn!(topic = %cell.topic(), "the former owner does not seal it: it is fenced");
    Ok(Sealed::NotYet)
}

/// What became of the wait for a former owner that hands a topic over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sealed {
    /// No other broker hands it over.
    NoSource,
    /// It has sealed the ledgers, or there was nothing to seal.
    Yes,
    /// It lives and does not do it in time.
    NotYet,
}

/// What a topic is loaded from: its record, its policies as they change, and its limits.
type Read = (
    Arc<TopicRecordCell>,
    watch::Receiver<EffectivePolicies>,
    Arc<TopicRates>,
);

/// A topic's record, its policies as they change, and its limits.
async fn read(
    shared: &Arc<Context>,
    name: &TopicName,
    create: &Create,
    owned: &Owned,
) -> Result<Read, BrokerError> {
    let all = async {
        let policies = shared.namespaces.policies().of_topic(name);
        let both = tokio::try_join!(find_or_create(shared, name, create, owned), policies);
        let (cell, policies) = both?;
        let rates = TopicRates::load(shared, name, policies.clone()).await?;
        Ok((cell, policies, rates))
    };
    step("reading the topic's record and policies", all).await
}
