//! Topic logs of a running cluster, without a broker: the library writes and recovers them.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use aquifer_ledger::bookie_client::{BookieClientConfig, GrpcTransport};
use aquifer_ledger::context::{LedgerContext, LedgerSettings, LedgerShared};
use aquifer_ledger::members::Members;
use aquifer_ledger::metrics::LedgerMetrics;
use aquifer_ledger::placement::{BookieInfo, Bookies};
use aquifer_log::cache::EntryCache;
use aquifer_log::context::{LogContext, LogSettings, LogShared};
use aquifer_log::error::LogError;
use aquifer_log::metrics::LogMetrics;
use aquifer_log::{Append, AppendSink, Appended, LogKind, LogOptions, TopicLog, TopicRecordCell};
use aquifer_metadata::etcd::{EtcdConfig, EtcdStore};
use aquifer_model::entry::EntryFlags;
use aquifer_model::extensions::Extensions;
use aquifer_model::format::FORMAT_NATIVE;
use aquifer_model::id::OwnerEpoch;
use aquifer_model::policy::Rollover;
use aquifer_model::quorum::Quorum;
use aquifer_model::topic::TopicName;
use aquifer_runtime::clock::SystemClock;
use aquifer_runtime::rng::SystemRng;
use aquifer_runtime::task::TaskGroup;
use bytes::Bytes;
use opentelemetry::metrics::MeterProvider;
use opentelemetry::metrics::noop::NoopMeterProvider;
use tokio::sync::{Semaphore, mpsc};

/// The cluster that `aquifer dev` makes.
const CLUSTER: &str = "dev";

/// What is written to a topic.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    entries: u64,
    entries_per_ledger: u64,
    payload_bytes: usize,
}

impl Shape {
    /// One ledger that stays open.
    pub fn open(entries: u64) -> Shape {
        Shape {
            entries,
            entries_per_ledger: u64::MAX,
            payload_bytes: 1_000,
        }
    }

    /// Ledgers of one entry each.
    pub fn closed(ledgers: usize) -> Shape {
        Shape {
            entries: ledgers as u64,
            entries_per_ledger: 1,
            payload_bytes: 100,
        }
    }
}

/// Reports outcomes to the task that waits for them.
struct Sink(mpsc::Sender<Result<Appended, LogError>>);

impl AppendSink for Sink {
    fn appended(&self, _tag: u64, outcome: Result<Appended, LogError>) {
        // The channel has room for every append.
        let _ = self.0.try_send(outcome);
    }
}

/// The way to the cluster whose etcd is there.
pub async fn context(etcd: &str) -> Result<Arc<LogContext>> {
    let tasks = TaskGroup::new("measure");
    let (clock, rng) = (SystemClock::shared(), SystemRng::shared());
    let config = EtcdConfig::new(vec![etcd.to_owned()], CLUSTER);
    let store = EtcdStore::connect(&config, clock.clone(), rng.clone(), &tasks).await?;
    let reach = BookieClientConfig {
        cluster: CLUSTER.to_owned(),
        ..BookieClientConfig::default()
    };
    let transport = GrpcTransport::new(reach, &*rng, tasks.clone());
    let mut known = Vec::new();
    for member in Members::load(&store).await?.iter() {
        let Some(registration) = &member.registration else {
            continue;
        };
        transport.set_address(member.id, &registration.address)?;
        known.push(BookieInfo {
            id: member.id,
            zone: registration.zone.clone(),
            read_only: registration.read_only,
            free_bytes: registration.free_bytes,
            capacity_bytes: registration.capacity_bytes,
        });
    }
    let meter = NoopMeterProvider::new().meter("measure");
    let ledgers = LedgerContext {
        store: Arc::new(store),
        transport: Arc::new(transport),
        bookies: Bookies::fixed(known),
        clock,
        rng,
        tasks,
        metrics: LedgerMetrics::new(&meter),
        settings: LedgerSettings::default(),
        shared: LedgerShared::default(),
    };
    Ok(Arc::new(LogContext {
        ledgers: Arc::new(ledgers),
        cache: EntryCache::new(1 << 20, 1 << 20),
        cold: None,
        metrics: LogMetrics::new(&meter),
        settings: LogSettings::default(),
        shared: LogShared::default(),
    }))
}

fn name(topic: usize) -> Result<TopicName> {
    let name = format!("public/default/measured-{topic}");
    name.parse().map_err(|error| anyhow!("{name}: {error:?}"))
}

fn options(epoch: u64, entries: u64) -> Result<LogOptions> {
    Ok(LogOptions {
        quorum: Quorum::new(3, 3, 2)?,
        rollover: Rollover {
            entries,
            ..Rollover::default()
        },
        owner_epoch: OwnerEpoch(epoch),
    })
}

/// Creates a topic and writes to it.
pub async fn write(context: &Arc<LogContext>, topic: usize, shape: Shape) -> Result<TopicLog> {
    let cell = TopicRecordCell::create(context.clone(), &name(topic)?, Vec::new()).await?;
    let options = options(1, shape.entries_per_ledger)?;
    let log = TopicLog::open(context.clone(), cell, LogKind::Messages, options).await?;
    let (sender, mut outcomes) = mpsc::channel(usize::try_from(shape.entries)?);
    let sink: Arc<dyn AppendSink> = Arc::new(Sink(sender));
    for tag in 0..shape.entries {
        let append = Append {
            format: FORMAT_NATIVE,
            message_count: 1,
            flags: EntryFlags::default(),
            extensions: Extensions::default(),
            body: Bytes::from(vec![7; shape.payload_bytes]),
            tag,
            trace: None,
        };
        log.append(append, &sink)?;
    }
    for _ in 0..shape.entries {
        outcomes.recv().await.context("an outcome")??;
    }
    Ok(log)
}

/// Opens a topic whose owner is gone, which recovers its last ledger.
pub async fn reopen(context: &Arc<LogContext>, topic: usize, entries: u64) -> Result<()> {
    let cell = TopicRecordCell::load(context.clone(), &name(topic)?, Vec::new()).await?;
    let cell = cell.context("the topic's record")?;
    let options = options(2, u64::MAX)?;
    let log = TopicLog::open(context.clone(), cell, LogKind::Messages, options).await?;
    ensure!(
        log.end().0 == entries,
        "topic {topic} ends at {:?}",
        log.end()
    );
    Ok(())
}

/// Does something for every topic, a bounded number at once.
pub async fn for_all<T: Send + 'static, F>(
    context: &Arc<LogContext>,
    topics: usize,
    at_once: usize,
    act: impl Fn(Arc<LogContext>, usize) -> F,
) -> Result<Vec<T>>
where
    F: Future<Output = Result<T>> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(at_once));
    let mut running = Vec::with_capacity(topics);
    for topic in 0..topics {
        let permit = Arc::clone(&room).acquire_owned().await?;
        let act = act(Arc::clone(context), topic);
        running.push(context.ledgers.tasks.spawn("topic", async move {
            let done = act.await;
            drop(permit);
            done
        }));
    }
    let mut done = Vec::with_capacity(topics);
    for task in running {
        done.push(task.await.map_err(|error| anyhow!("{error}"))??);
    }
    Ok(done)
}
