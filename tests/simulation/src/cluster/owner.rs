//! Owners of a topic, one after another, and sometimes beside each other.

use std::sync::Arc;
use std::time::Duration;

use aquifer_log::context::LogContext;
use aquifer_log::error::LogError;
use aquifer_log::{
    Append, AppendSink, Appended, LogEntry, LogKind, LogOptions, ReadPoint, TopicLog,
    TopicRecordCell,
};
use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys;
use aquifer_metadata::store::{Expect, Guard};
use aquifer_model::entry::EntryFlags;
use aquifer_model::extensions::Extensions;
use aquifer_model::format::FORMAT_NATIVE;
use aquifer_model::id::{Index, OwnerEpoch};
use aquifer_model::policy::Rollover;
use aquifer_model::topic::TopicName;
use aquifer_runtime::clock::{sleep, timeout};
use bytes::Bytes;

use crate::cluster::context::Cluster;
use crate::cluster::follower::{Follower, LIMITS};
use crate::cluster::history::{self, History};
use crate::cluster::net::Net;
use crate::defect::Defect;

/// Virtual time in which a healed cluster must serve a topic again.
const HEALED_WITHIN: Duration = Duration::from_secs(120);
/// Ledgers that the last owner writes.
const ROUNDS_WHEN_HEALED: usize = 6;

/// How an owner ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum End {
    Closes,
    Dies,
    /// It goes on while the next one takes over.
    Stays,
    /// The same, after it stood still.
    Freezes,
    /// It hears of the next one, goes on with the ledger that is open, and closes it at last.
    HandsOver,
}

struct Sink {
    topic: u8,
    epoch: u64,
    process: u32,
    net: Arc<Net>,
    history: Arc<History>,
}

impl AppendSink for Sink {
    fn appended(&self, tag: u64, outcome: Result<Appended, LogError>) {
        if self.net.fate(self.process).0 {
            return;
        }
        self.net.note((self.topic, tag, outcome.is_ok()));
        match outcome {
            Ok(at) => {
                let copies = self.net.copies(at.ledger, at.entry);
                let (topic, epoch) = (self.topic, self.epoch);
                self.history.acknowledged(topic, epoch, tag, at, copies);
            }
            // These leave open what became of it.
            Err(
                LogError::Fenced | LogError::Limbo(_) | LogError::Damaged(_) | LogError::Closed,
            ) => {}
            Err(error) => self.history.refused(self.topic, tag, error.to_string()),
        }
    }
}

struct Owner {
    topic: u8,
    process: u32,
    context: Arc<LogContext>,
    cell: Arc<TopicRecordCell>,
    /// What shows that it is the owner.
    guard: Guard,
    log: TopicLog,
    sink: Arc<dyn AppendSink>,
    cluster: Arc<Cluster>,
}

/// Lets owners follow each other until the faults end, then checks the topic once more.
pub(super) async fn owners_of(cluster: &Arc<Cluster>, topic: u8, until: Duration) {
    let mut epoch = 0;
    let mut tags = 0..;
    while cluster.now() < until {
        epoch += 1;
        let process = cluster.process();
        let opened = Owner::open(cluster, topic, epoch, process, until).await;
        let Some(owner) = opened else {
            continue;
        };
        let first = tags.start;
        // Tags are never used twice, by whatever owner: each has its own thousand.
        tags.start += 100_000;
        owner.live(first).await;
    }
    let last = async {
        loop {
            epoch += 1;
            let process = cluster.process();
            let until = cluster.now() + HEALED_WITHIN;
            if let Some(owner) = Owner::open(cluster, topic, epoch, process, until).await {
                tags.start += 100_000;
                if owner.serve(tags.start).await.is_ok() && owner.log.close().await.is_ok() {
                    return;
                }
            }
        }
    };
    if timeout(HEALED_WITHIN, last).await.is_err() {
        let what = format!("topic {topic} is not served after everything healed");
        cluster.history.violation(what);
    }
}

impl Owner {
    async fn open(
        cluster: &Arc<Cluster>,
        topic: u8,
        epoch: u64,
        (process, context): (u32, Arc<LogContext>),
        until: Duration,
    ) -> Option<Owner> {
        loop {
            match Owner::try_open(cluster, topic, epoch, process, &context).await {
                Ok(owner) => return Some(owner),
                Err(error) => {
                    cluster.net.note(("open", topic, error.to_string()));
                    let fatal = matches!(error, LogError::Damaged(_));
                    if fatal {
                        let what = format!("I2: topic {topic} cannot be opened: {error}");
                        cluster.history.violation(what);
                    }
                    if fatal || cluster.now() >= until || matches!(error, LogError::Fenced) {
                        return None;
                    }
                }
            }
            sleep(cluster.between(10, 200)).await;
        }
    }

    async fn try_open(
        cluster: &Arc<Cluster>,
        topic: u8,
        epoch: u64,
        process: u32,
        context: &Arc<LogContext>,
    ) -> Result<Owner, LogError> {
        let name: TopicName = format!("public/namespace-{topic}/topic")
            .parse()
            .map_err(|error| LogError::Invalid(format!("{error:?}")))?;
        let guard = claim(context, &name, epoch).await?;
        let guards = vec![guard.clone()];
        let loaded = TopicRecordCell::load(Arc::clone(context), &name, guards.clone()).await?;
        let cell = match loaded {
            Some(cell) => cell,
            None => TopicRecordCell::create(Arc::clone(context), &name, guards).await?,
        };
        let options = LogOptions {
            quorum: cluster.shape.quorum,
            rollover: Rollover {
                entries: 5 + cluster.rng.below(60),
                ..Rollover::default()
            },
            owner_epoch: OwnerEpoch(epoch),
        };
        let (log, first, entries) = loop {
            match open_log(context, &cell, options).await {
                // A former owner that seals may have removed a ledger a moment ago.
                Err(LogError::Damaged(_)) if cell.refresh().await? => {}
                opened => break opened?,
            }
        };
        let owner = Owner {
            topic,
            process,
            context: Arc::clone(context),
            cell,
            guard,
            log,
            sink: Arc::new(Sink {
                topic,
                epoch,
                process,
                net: Arc::clone(&cluster.net),
                history: Arc::clone(&cluster.history),
            }),
            cluster: Arc::clone(cluster),
        };
        cluster.history.seen(topic, epoch, first, &entries);
        Ok(owner)
    }

    fn follower(&self) -> Follower {
        Follower::new(&self.cluster, self.topic, &self.log)
    }

    fn entry(&self, tag: u64) -> Append {
        Append {
            format: FORMAT_NATIVE,
            message_count: 1 + u32::try_from(tag % 3).unwrap_or(0),
            flags: EntryFlags::default(),
            extensions: Extensions::default(),
            body: Bytes::from(history::body(self.topic, tag)),
            tag,
            trace: None,
        }
    }

    /// What a healed cluster can do: ledgers follow each other and go again, and a reader comes
    /// along.
    async fn serve(&self, first_tag: u64) -> Result<(), LogError> {
        let mut follower = self.follower();
        follower.read_to_end().await?;
        let mut tag = first_tag;
        for _ in 0..ROUNDS_WHEN_HEALED {
            for _ in 0..4 + self.cluster.rng.below(6) {
                self.log.append(self.entry(tag), &self.sink)?;
                tag += 1;
            }
            // Closes the ledger behind everything that was appended.
            self.log.roll().await?;
            if self.cluster.chance(2) {
                follower.read_to_end().await?;
            }
            follower.trim().await?;
        }
        follower.read_to_end().await
    }

    /// Appends for a while, then ends in one way or another.
    async fn live(self, first_tag: u64) {
        let cluster = Arc::clone(&self.cluster);
        let follower = self.follower();
        let following = async move { follower.run().await };
        drop(self.context.ledgers.tasks.spawn("follower", following));
        let alone_until = cluster.now() + cluster.between(200, 6_000);
        let next_tag = self.append_until(first_tag, alone_until).await;
        let end = match cluster.rng.below(7) {
            0 => End::Closes,
            1 => End::Stays,
            2 => End::Freezes,
            3 | 4 => End::HandsOver,
            _ => End::Dies,
        };
        cluster.net.note((self.topic, end));
        match end {
            End::Closes => {
                // A log that cannot be closed is recovered by the next owner.
                let _ = timeout(Duration::from_secs(5), self.log.close()).await;
                self.die();
            }
            End::Dies => self.die(),
            End::HandsOver => {
                let until = cluster.now() + cluster.between(1_000, 8_000);
                let rest = async move {
                    self.hand_over(next_tag, until).await;
                    self.die();
                };
                drop(cluster.tasks.spawn("former owner", rest));
            }
            End::Stays | End::Freezes => {
                if end == End::Freezes {
                    let pause = cluster.between(300, 4_000);
                    cluster
                        .net
                        .freeze_process(self.process, cluster.net.micros(pause));
                }
                let stays_until = cluster.now() + cluster.between(1_000, 8_000);
                let rest = async move {
                    self.append_until(next_tag, stays_until).await;
                    self.die();
                };
                drop(cluster.tasks.spawn("former owner", rest));
            }
        }
    }

    /// Goes on until it hears of the next owner, and for a while after that; then it hands over.
    async fn hand_over(&self, first_tag: u64, until: Duration) {
        let mut tag = first_tag;
        while !self.cell.is_handed_over() && self.cluster.now() < until {
            let found = self.context.ledgers.store.get(&self.guard.key).await;
            if let Ok(Some(found)) = found
                && Expect::Revision(found.revision) != self.guard.expect
            {
                let now = Guard {
                    expect: Expect::Revision(found.revision),
                    ..self.guard.clone()
                };
                match self.cluster.defect {
                    Some(Defect::OpensAfterHandOver) => {
                        self.cell.set_guards(vec![now]);
                        break;
                    }
                    _ => self.cell.hand_over(vec![now]),
                }
            }
            let soon = self.cluster.now() + self.cluster.between(1, 50);
            tag = self.append_until(tag, soon).await;
        }
        self.append_until(tag, until).await;
        // What cannot be closed is recovered by the next owner.
        drop(timeout(Duration::from_secs(5), self.log.close()).await);
    }

    fn die(&self) {
        if let Some(panic) = self.context.ledgers.tasks.failed() {
            self.cluster.history.violation(panic);
        }
        self.cluster.net.kill_process(self.process);
        self.context.ledgers.tasks.shutdown();
    }

    async fn append_until(&self, mut tag: u64, until: Duration) -> u64 {
        while self.cluster.now() < until {
            for _ in 0..=self.cluster.rng.below(4) {
                match self.log.append(self.entry(tag), &self.sink) {
                    Ok(_) => {}
                    Err(error) if error.is_retryable() => self.log.resume(),
                    Err(_) => return tag + 1,
                }
                tag += 1;
            }
            sleep(self.cluster.between(1, 60)).await;
            if self.cluster.chance(40) {
                // A tail that it reads itself must be what it has acknowledged.
                drop(timeout(Duration::from_secs(2), read_all(&self.log)).await);
            }
        }
        tag
    }
}

/// Opens the log, and reads what is there from its first index on.
async fn open_log(
    context: &Arc<LogContext>,
    cell: &Arc<TopicRecordCell>,
    options: LogOptions,
) -> Result<(TopicLog, Index, Vec<LogEntry>), LogError> {
    let (ctx, kind) = (Arc::clone(context), LogKind::Messages);
    let log = TopicLog::open(ctx, Arc::clone(cell), kind, options).await?;
    let first = log.first();
    let entries = read_all(&log).await?;
    Ok((log, first, entries))
}

async fn read_all(log: &TopicLog) -> Result<Vec<LogEntry>, LogError> {
    let mut at = ReadPoint::from(log.first());
    let mut all = Vec::new();
    loop {
        let found = log.read(&mut at, LIMITS).await?;
        if found.is_empty() {
            return Ok(all);
        }
        all.extend(found);
    }
}

/// Takes the topic over: from now on, guards of former owners do not hold.
async fn claim(context: &LogContext, name: &TopicName, epoch: u64) -> Result<Guard, LogError> {
    let key = keys::namespace(name.namespace());
    let partition = keys::partition_of_topic(name);
    let value = Bytes::from(epoch.to_string());
    let written = context
        .ledgers
        .store
        .put(&partition, &key, value.clone(), Expect::Any)
        .await;
    let revision = match written {
        Ok(revision) => revision,
        Err(MetadataError::UnknownOutcome(_)) => match context.ledgers.store.get(&key).await? {
            Some(found) if found.value == value => found.revision,
            _ => return Err(LogError::Unavailable("the claim is not known".to_owned())),
        },
        Err(error) => return Err(error.into()),
    };
    Ok(Guard {
        key,
        expect: Expect::Revision(revision),
    })
}
