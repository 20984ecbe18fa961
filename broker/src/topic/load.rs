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
use crate::cursor_log::Losses;
use crate::error::BrokerError;
use crate::subscription::SubscriptionSpec;
use crate::topic::Topic;
use crate::topic::closing::Closing;
use crate::topic::consume::Subscriptions;
use crate::topic::consume::room::Rooms;
use crate::topic::cursors::Cursors;
use crate::topic::dedup::SinceSnapshot;
use crate::topic::delivery_right::DeliveryRight;
use crate::topic::event::{Inbox, mailbox};
use crate::topic::handle::TopicHandle;
use crate::topic::publish::Publishing;
use crate::topic::record::{find_or_create, partitioned};
use crate::topic::recovery::{self, Recovered};
use crate::topic::retention::Trimming;
use crate::traffic::TopicCounters;

/// How long one step of a load may take: whoever waits tries again, and others get their turn.
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
    create: bool,
) -> Result<Loaded, BrokerError> {
    let started = shared.clock.monotonic();
    // A namespace that does not exist is owned by nobody.
    let owned = async {
        shared.namespaces.check(name.namespace()).await?;
        shared.own(name).await
    };
    let owned = step("acquiring the topic's bundle", owned).await?;
    let outcome = load_owned(shared, name, create, owned.clone()).await;
    if let Err(BrokerError::Log(LogError::Fenced)) = &outcome {
        // The next request acquires ownership anew, or learns that it cannot.
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
    create: bool,
    owned: Owned,
) -> Result<Loaded, BrokerError> {
    let (cell, policies) = read(shared, name, create, &owned).await?;
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
    let cursor_log_taken_over = cursor_log.was_taken_over();
    let cursors = Cursors::new(cursor_log, &mailbox, recovered.dedup_index, now);
    let (losses, log_begins_at) = (told(shared, name, &recovered), log.first());
    let (subscriptions, publishing) = restore(recovered, &log, &mailbox);
    let taken_over = log.was_taken_over() || cursor_log_taken_over;
    let delivery_right = delivery_right(shared, taken_over, sealed, now);
    let counters = Arc::new(TopicCounters::new(now));
    let incarnation = cell.incarnation();
    let topic = Topic {
        name: name.clone(),
        incarnation,
        epoch: owned.epoch,
        owned,
        cell,
        policies,
        mailbox: mailbox.clone(),
        publishing,
        subscriptions,
        closing: Closing::default(),
        cursors,
        log,
        trimming: Trimming::new(now),
        delivery_right,
        departure: None,
        counters: Arc::clone(&counters),
        rooms: Rooms::new(shared),
        ending: None,
        log_begins_at,
        losses,
        resets: Vec::new(),
        last_used: now,
        next_housekeeping: now + Duration::from_millis(shared.config.housekeeping_ms),
        shared: Arc::clone(shared),
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

/// What the cursor log has lost, after it was told to operators.
fn told(shared: &Context, name: &TopicName, recovered: &Recovered) -> Option<Losses> {
    let losses = recovered.losses.clone()?;
    shared.metrics.damaged_cursor_logs.add(1, &[]);
    let reason = &losses.reason;
    tracing::error!(topic = %name, reason, "the record of subscriptions is damaged: they wait for `aquifer subscription reset`, messages are served");
    Some(losses)
}

fn delivery_right(
    shared: &Context,
    taken_over: bool,
    sealed: Sealed,
    now: Duration,
) -> DeliveryRight {
    let cluster = shared.ownership.cluster().filter(|_| taken_over);
    cluster.map_or_else(DeliveryRight::default, |cluster| {
        // Who lives and holds a lease may not have heard of the move yet.
        let stalled = sealed == Sealed::NotYet;
        let lease = stalled.then(|| cluster.members.lease_time());
        DeliveryRight::after_takeover(now, lease.unwrap_or_default())
    })
}

/// Gives a step of a load its time. One that is given up is as one of a broker that died: whoever loads
/// the topic next finishes it.
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
    mailbox: &crate::topic::event::Mailbox,
) -> (Subscriptions, Publishing) {
    let mut subscriptions = Subscriptions::default();
    let losses = recovered.losses.as_ref();
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
        let is_uncertain = losses.is_some_and(|losses| !losses.certain.contains(&name));
        subscriptions.recovered(name, spec, is_uncertain);
    }
    let mut publishing = Publishing::new(mailbox, recovered.dedup, log.end());
    let (entries, bytes) = recovered.repeated;
    publishing.since_snapshot = SinceSnapshot { entries, bytes };
    (subscriptions, publishing)
}

/// Waits until the broker that handed the bundle over has sealed the topic's ledgers. One that does
/// not, in time, is fenced.
async fn wait_sealed(
    shared: &Context,
    cell: &TopicRecordCell,
    owned: &Owned,
) -> Result<Sealed, BrokerError> {
    let Some(source) = owned.source else {
        return Ok(Sealed::Nobody);
    };
    let started = shared.clock.monotonic();
    // By then everything was handed over long ago: what is open was left open by this broker.
    if started > owned.since + DRAIN_MAX {
        return Ok(Sealed::Nobody);
    }
    while shared.clock.monotonic() < started + HAND_OVER_MAX {
        if cell.is_sealed().await? {
            return Ok(Sealed::Yes);
        }
        // One that is gone seals nothing any more.
        if !shared.ownership.is_announced(source) {
            return Ok(Sealed::Nobody);
        }
        clock::sleep(HAND_OVER_TICK).await;
    }
    tracing::warn!(topic = %cell.topic(), "the former owner does not seal it: it is fenced");
    Ok(Sealed::NotYet)
}

/// What became of the wait for a former owner that hands a topic over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sealed {
    /// Nobody hands it over.
    Nobody,
    /// It has sealed the ledgers, or there was nothing to seal.
    Yes,
    /// It lives and does not do it in time.
    NotYet,
}

/// A topic's record, and its policies as they change.
async fn read(
    shared: &Arc<Context>,
    name: &TopicName,
    create: bool,
    owned: &Owned,
) -> Result<(Arc<TopicRecordCell>, watch::Receiver<EffectivePolicies>), BrokerError> {
    let both = async {
        let policies = shared.namespaces.policies().of_topic(name);
        tokio::try_join!(find_or_create(shared, name, create, owned), policies)
    };
    step("reading the topic's record and policies", both).await
}
