//! After the last fault is healed: everything that must hold.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aquifer_client::Client;
use aquifer_harness::checker::{
    Logged, appends_in_real_time, dense, ledgers_in_one_list, nothing_invented, nothing_lost,
    nothing_twice, producers_in_order, readers_agree,
};
use aquifer_harness::log;
use aquifer_harness::server::binary;
use aquifer_metadata::etcd::EtcdStore;
use aquifer_metadata::store::{MetadataStore, Versioned};
use aquifer_metadata::{keys, record, segments};
use aquifer_proto::v1::{LedgerRecord, LedgerState, UnderReplicatedRecord};
use aquifer_runtime::clock::{Clock, SystemClock, sleep};
use aquifer_runtime::task::TaskGroup;

use crate::cluster::{BROKERS, Cluster, NAME, UNLUCKY};
use crate::consumers::publish_last;
use crate::policy;
use crate::traffic::{History, crc, payload};
use crate::workload::{TOPICS, topic};

/// How long repair may take.
const REPAIR: Duration = Duration::from_secs(300);
/// The same until each replica of each ledger was looked at and is whole: a thousand topics that
/// are handed over leave thousands of small ledgers.
const VERIFY: Duration = Duration::from_secs(1_200);
/// Bookies of a ledger, where there are enough.
const ENSEMBLE: u32 = 3;
/// How long a topic may take to load after the broker was replaced.
const LOAD: Duration = Duration::from_secs(90);

/// What the audit counted.
#[derive(Debug, Default)]
pub struct Counts {
    /// Messages in the logs.
    pub messages: u64,
    /// Ledgers, of topics and cursors.
    pub ledgers: u64,
    /// Ensemble changes that their records show.
    pub ensemble_changes: u64,
    /// Recoveries that their records show.
    pub recoveries: u64,
    /// Replicas that were compared entry by entry.
    pub replicas: u64,
    /// Messages that subscriptions got, the same one each time that it came.
    pub deliveries: u64,
    /// Deliveries to one consumer of what was acknowledged by another.
    pub late_deliveries: u64,
    /// Consumers that were opened, one after the other.
    pub consumers: u64,
    /// Until all of them were whole.
    pub repaired_after: Duration,
}

/// Checks everything.
///
/// # Errors
/// Names the property that does not hold.
pub async fn check(cluster: &mut Cluster, history: &History) -> Result<Counts> {
    // Loading a topic closes its ledger, so that all of its entries are fixed and comparable; each
    // of the two readers is served by another broker.
    cluster.replace_brokers([0])?;
    let one = read_all(cluster).await.context("reading everything")?;
    cluster.replace_brokers([1])?;
    let other = read_all(cluster)
        .await
        .context("reading everything again")?;
    let mut counts = Counts::default();
    for number in 0..TOPICS {
        let context = || topic(number);
        let log = &one[number];
        readers_agree(log, &other[number])
            .with_context(context)
            .context("P3")?;
        of_topic(log, history, number).with_context(context)?;
        counts.messages += log.len() as u64;
    }
    cluster.replace_brokers(0..BROKERS)?;
    subscriptions(cluster, history, &one).await?;
    for subscription in &history.subscriptions {
        let found = subscription.check()?;
        counts.deliveries += found.deliveries;
        counts.late_deliveries += found.late;
        counts.consumers += found.consumers;
    }
    replicas(cluster, &mut counts).await?;
    metadata(cluster, &mut counts).await?;
    for (name, log) in cluster.logs() {
        ensure!(!log.contains("panicked at"), "{name} panicked, see its log");
    }
    Ok(counts)
}

async fn read_all(cluster: &mut Cluster) -> Result<Vec<Vec<Logged>>> {
    let client = cluster.client()?;
    let mut logs = Vec::new();
    for number in 0..TOPICS {
        logs.push(read_patiently(cluster, &client, &topic(number)).await?);
    }
    Ok(logs)
}

/// Reads a topic; the broker may still be starting.
async fn read_patiently(
    cluster: &mut Cluster,
    client: &Client,
    topic: &str,
) -> Result<Vec<Logged>> {
    let started = SystemClock.monotonic();
    loop {
        match log::read(client, topic).await {
            Ok(log) => return Ok(log),
            Err(error) if SystemClock.monotonic() - started > LOAD => return Err(error),
            Err(_) => cluster.revive()?,
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// P9: what was acknowledged does not come again, now that other brokers have the subscriptions.
async fn subscriptions(
    cluster: &mut Cluster,
    history: &History,
    logs: &[Vec<Logged>],
) -> Result<()> {
    let client = cluster.client()?;
    for (number, log) in logs.iter().enumerate() {
        let name = topic(number);
        let published = publish_last(&client, &name);
        let published = aquifer_runtime::clock::timeout(LOAD, published).await;
        published.context("P16: nothing is published")??;
        let of_topic = history.subscriptions.iter();
        for subscription in of_topic.filter(|s| s.topic == name) {
            let drained = subscription.is_drained(&client, log.len() as u64);
            let drained = aquifer_runtime::clock::timeout(LOAD, drained).await;
            drained
                .context("P16: nothing comes")?
                .with_context(|| format!("{} of {}", subscription.name(), subscription.topic))?;
        }
    }
    Ok(())
}

fn of_topic(log: &[Logged], history: &History, number: usize) -> Result<()> {
    let produced = &history.produced[number];
    let sent: BTreeMap<&str, u64> = produced.iter().map(|p| (p.name.as_str(), p.sent)).collect();
    for producer in produced {
        nothing_lost(&producer.acknowledged, log).context("P1")?;
    }
    nothing_invented(log, |producer, number| {
        let sent = sent.get(producer).copied().unwrap_or_default();
        (number < sent).then(|| payload(producer, number))
    })
    .context("P2")?;
    let appends: Vec<_> = produced
        .iter()
        .flat_map(|p| p.appends.iter().copied())
        .collect();
    appends_in_real_time(&appends).context("P4")?;
    producers_in_order(log).context("P5")?;
    nothing_twice(log).context("P6")?;
    dense(log).context("P7")?;
    let digests: Vec<u32> = log.iter().map(|message| crc(&message.payload)).collect();
    let seen = &history.seen[number];
    let differs = seen.iter().zip(&digests).position(|(seen, is)| seen != is);
    ensure!(
        differs.is_none(),
        "P3: the tail reader saw another message at index {differs:?}"
    );
    ensure!(
        seen.len() <= digests.len(),
        "P3: the tail reader saw more than there is"
    );
    Ok(())
}

/// P3, P16 and P17: each replica of each entry has the same bytes; what repair has to do for that
/// comes to an end.
async fn replicas(cluster: &mut Cluster, counts: &mut Counts) -> Result<()> {
    let started = SystemClock.monotonic();
    loop {
        cluster.revive()?;
        let output = Command::new(binary())
            .args([
                "ledger",
                "verify",
                "--mark",
                "--output",
                "json",
                "--cluster",
                NAME,
            ])
            .args(["--rate", "500000000", "--metadata", &cluster.metadata()])
            .args(cluster.tool_arguments()?)
            .output()?;
        counts.repaired_after = SystemClock.monotonic() - started;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            let last = said.lines().last().unwrap_or_default();
            let summary: serde_json::Value = serde_json::from_str(last)?;
            counts.replicas = summary["replicas"]
                .as_u64()
                .context("a number of replicas")?;
            return Ok(());
        }
        if counts.repaired_after > VERIFY {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("P16: replicas are not whole after {VERIFY:?}:\n{said}{errors}");
        }
        sleep(Duration::from_secs(1)).await;
    }
}

/// P16: gives up the bookies whose disks were lost, as an operator would, and waits until no ledger
/// names them. The next disk may be lost only then: with an ack quorum of two, one copy of a ledger
/// may be away for good at a time (I2).
///
/// # Errors
/// When repair does not come to an end.
pub async fn losses_are_repaired(cluster: &mut Cluster) -> Result<()> {
    let tasks = TaskGroup::new("losses");
    let store = policy::metadata(cluster, &tasks).await?;
    let started = SystemClock.monotonic();
    for id in lost(cluster) {
        // It may be decommissioned already.
        let output = Command::new(binary())
            .args(["bookie", "decommission", &id, "--no-wait", "--force"])
            .args(["--cluster", NAME, "--metadata", &cluster.metadata()])
            .args(cluster.tool_arguments()?)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success() || said.contains("decommissioned"),
            "{said}"
        );
    }
    let mut named = lost_and_named(cluster, &store).await;
    while !matches!(named, Ok(None)) {
        ensure!(
            SystemClock.monotonic() - started < REPAIR,
            "P16: a lost disk is not replaced after {REPAIR:?}: {named:?}"
        );
        cluster.revive()?;
        sleep(Duration::from_millis(500)).await;
        named = lost_and_named(cluster, &store).await;
    }
    store.close().await;
    tasks.drain(Duration::from_secs(5)).await;
    Ok(())
}

/// Waits until no topic writes to a ledger with a smaller ensemble than was asked for: such ledgers
/// were opened while bookies were away, bear the loss of fewer others, and are given up soon after.
///
/// # Errors
/// H8: when one stays.
pub async fn ensembles_are_whole(cluster: &mut Cluster) -> Result<()> {
    let tasks = TaskGroup::new("audit");
    let store = policy::metadata(cluster, &tasks).await?;
    let started = SystemClock.monotonic();
    loop {
        let mut small = Vec::new();
        for item in scan(&*store, keys::LEDGERS_PREFIX).await? {
            let found: LedgerRecord = record::decode(&item)?;
            if found.state() == LedgerState::Open && found.ensemble < ENSEMBLE {
                small.push(number(&item.key).to_owned());
            }
        }
        if small.is_empty() {
            break;
        }
        ensure!(
            SystemClock.monotonic() - started < REPAIR,
            "H8: ledgers {small:?} keep their small ensembles"
        );
        cluster.revive()?;
        sleep(Duration::from_millis(500)).await;
    }
    store.close().await;
    tasks.drain(Duration::from_secs(5)).await;
    Ok(())
}

/// The bookies that are gone for good, by what they printed when they started.
fn lost(cluster: &Cluster) -> BTreeSet<String> {
    let log = cluster.bookies[UNLUCKY].node.text();
    let ids = log.split("\"id\":\"").skip(1);
    let mut ids: Vec<&str> = ids.filter_map(|rest| rest.split('"').next()).collect();
    let now = ids.pop();
    ids.retain(|id| Some(*id) != now);
    ids.into_iter().map(str::to_owned).collect()
}

/// A ledger that names a bookie which is gone for good.
async fn lost_and_named(cluster: &Cluster, store: &Arc<EtcdStore>) -> Result<Option<u64>> {
    let ids = lost(cluster);
    let deleted = scan(&**store, keys::DELETIONS_PREFIX).await?;
    let deleted: BTreeSet<&str> = deleted.iter().map(|item| number(&item.key)).collect();
    let ledgers = scan(&**store, keys::LEDGERS_PREFIX).await?;
    // The deletion of a ledger waits for a bookie that is gone until that is decommissioned.
    for item in ledgers.iter().filter(|l| !deleted.contains(number(&l.key))) {
        let found: LedgerRecord = record::decode(item)?;
        let members = found.fragments.iter().flat_map(|f| &f.bookies);
        for member in members {
            let id: String = member.iter().map(|byte| format!("{byte:02x}")).collect();
            if ids.contains(&id) {
                return Ok(Some(number(&item.key).parse()?));
            }
        }
    }
    Ok(None)
}

/// P8, P16 and P17 of metadata: every ledger of a topic exists and is in one list, no other exists,
/// and nothing is marked any more.
async fn metadata(cluster: &mut Cluster, counts: &mut Counts) -> Result<()> {
    let tasks = TaskGroup::new("audit");
    let store = policy::metadata(cluster, &tasks).await?;
    let (started, now_ms) = (SystemClock.monotonic(), SystemClock.wall_ms());
    loop {
        // Every ledger is checked once a minute, for which it is marked, too: what counts is that
        // no mark stays.
        let mut marks = scan(&*store, keys::UNDER_REPLICATED_PREFIX).await?;
        marks.retain(|item| {
            let mark = record::decode::<UnderReplicatedRecord>(item);
            !mark.is_ok_and(|mark| mark.marked_ms >= now_ms)
        });
        if marks.is_empty() {
            break;
        }
        ensure!(
            SystemClock.monotonic() - started < REPAIR,
            "P16: {} ledgers stay marked as under-replicated, first {}",
            marks.len(),
            marks[0].key
        );
        cluster.revive()?;
        sleep(Duration::from_millis(500)).await;
    }
    let deleted = scan(&*store, keys::DELETIONS_PREFIX).await?;
    let deleted: BTreeSet<&str> = deleted.iter().map(|item| number(&item.key)).collect();
    let (mut lists, mut topics) = (Vec::new(), BTreeSet::new());
    for item in scan(&*store, keys::TENANTS_PREFIX).await? {
        let Some(found) = segments::listed(&item)? else {
            continue; // a tenant or a namespace
        };
        topics.insert(found.topic);
        let ids = found.ledgers.iter().map(|ledger| ledger.0);
        lists.push((item.key.clone(), ids.collect::<Vec<_>>()));
    }
    ensure!(topics.len() >= TOPICS, "P17: only {} topics", topics.len());
    ledgers_in_one_list(&lists).context("P8")?;
    let mut listed: BTreeSet<u64> = lists
        .iter()
        .flat_map(|(_, ids)| ids.iter().copied())
        .collect();
    for item in scan(&*store, keys::LEDGERS_PREFIX).await? {
        let id: u64 = number(&item.key).parse()?;
        let found: LedgerRecord = record::decode(&item)?;
        counts.ledgers += 1;
        counts.ensemble_changes += (found.fragments.len() as u64).saturating_sub(1);
        counts.recoveries += found.recovery_epoch;
        ensure!(
            listed.remove(&id) || deleted.contains(number(&item.key)),
            "P17: ledger {id} belongs to no topic"
        );
    }
    ensure!(
        listed.is_empty(),
        "P17: topics list ledgers that do not exist: {listed:?}"
    );
    store.close().await;
    tasks.drain(Duration::from_secs(5)).await;
    Ok(())
}

fn number(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or_default()
}

async fn scan(store: &dyn MetadataStore, prefix: &str) -> Result<Vec<Versioned>> {
    let (mut found, mut page) = (Vec::new(), None);
    loop {
        let scanned = store.scan(prefix, page, 500).await?;
        found.extend(scanned.items);
        page = scanned.next;
        if page.is_none() {
            return Ok(found);
        }
    }
}
