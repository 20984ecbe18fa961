//! How long recoveries take: three bookies on real disks, reached over gRPC on the loopback
//! interface, and metadata in memory. Writers of many topics vanish; their successors open them.
//!
//! ```text
//! cargo run -p aquifer-simulation --example recovery -- 1000
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use aquifer_bookie::{Bookie, BookieConfig, BookieDeps, service};
use aquifer_ledger::bookie_client::{BookieClientConfig, GrpcTransport};
use aquifer_ledger::context::{LogContext, LogSettings, LogShared};
use aquifer_ledger::error::LogError;
use aquifer_ledger::managed::cache::EntryCache;
use aquifer_ledger::managed::{
    Append, AppendSink, Appended, LogKind, LogOptions, TopicLog, TopicRecordCell,
};
use aquifer_ledger::metrics::LedgerMetrics;
use aquifer_ledger::placement::{BookieInfo, Bookies};
use aquifer_ledger::testing::MemoryStore;
use aquifer_model::entry::FORMAT_NATIVE;
use aquifer_model::id::OwnerEpoch;
use aquifer_model::policy::Rollover;
use aquifer_model::quorum::Quorum;
use aquifer_model::topic::TopicName;
use aquifer_runtime::clock::{Clock, SystemClock};
use aquifer_runtime::disk::RealDisk;
use aquifer_runtime::net::ListenAddress;
use aquifer_runtime::rng::{Rng, SystemRng};
use aquifer_runtime::task::TaskGroup;
use bytes::Bytes;
use opentelemetry::metrics::MeterProvider;
use opentelemetry::metrics::noop::NoopMeterProvider;
use tokio::sync::{Semaphore, mpsc};

const ENTRIES: u64 = 3;
/// Topics that are opened at once, as a broker does that takes over.
const AT_ONCE: usize = 64;

struct Sink(mpsc::Sender<Result<Appended, LogError>>);

impl AppendSink for Sink {
    fn appended(&self, _tag: u64, outcome: Result<Appended, LogError>) {
        // The channel has room for every append.
        let _ = self.0.try_send(outcome);
    }
}

fn main() -> anyhow::Result<()> {
    let topics = std::env::args().nth(1).map_or(Ok(1_000), |n| n.parse())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(measure(topics))
}

async fn bookie(directory: &Path, tasks: &TaskGroup) -> anyhow::Result<(Bookie, String)> {
    let config = BookieConfig {
        read_only_below_free_bytes: 0,
        writable_above_free_bytes: 1,
        ..BookieConfig::in_directory(directory)
    };
    let deps = BookieDeps {
        disk: RealDisk::shared(),
        clock: SystemClock::shared(),
        rng: SystemRng::shared(),
        meter: NoopMeterProvider::new().meter("bookie"),
    };
    let bookie = Bookie::open(config, deps)?;
    let listen = ListenAddress::loopback_any_port();
    let bound = service::serve(bookie.clone(), listen, tasks).await?;
    Ok((bookie, format!("http://{bound}")))
}

fn process(
    store: &MemoryStore,
    bookies: &[(Bookie, String)],
    tasks: &TaskGroup,
) -> anyhow::Result<Arc<LogContext>> {
    let config = BookieClientConfig::default();
    let transport = GrpcTransport::new(config, &SystemRng, tasks.clone());
    let mut known = Vec::new();
    for (bookie, url) in bookies {
        transport.set_address(bookie.id(), url)?;
        known.push(BookieInfo {
            id: bookie.id(),
            zone: String::new(),
            read_only: false,
            free_bytes: 0,
            capacity_bytes: 0,
        });
    }
    Ok(Arc::new(LogContext {
        store: Arc::new(store.clone()),
        transport: Arc::new(transport),
        bookies: Bookies::fixed(known),
        clock: SystemClock::shared(),
        rng: SystemRng::shared(),
        cache: EntryCache::new(1 << 20, 1 << 20),
        tasks: tasks.clone(),
        metrics: LedgerMetrics::new(&NoopMeterProvider::new().meter("ledger")),
        settings: LogSettings::default(),
        shared: LogShared::default(),
    }))
}

fn options(epoch: u64) -> anyhow::Result<LogOptions> {
    Ok(LogOptions {
        quorum: Quorum::new(3, 3, 2)?,
        rollover: Rollover::default(),
        owner_epoch: OwnerEpoch(epoch),
    })
}

fn name(topic: usize) -> anyhow::Result<TopicName> {
    let name = format!("public/default/topic-{topic}");
    name.parse().map_err(|error| anyhow!("{name}: {error:?}"))
}

async fn write(context: &Arc<LogContext>, topic: usize) -> anyhow::Result<TopicLog> {
    let cell = TopicRecordCell::create(context.clone(), &name(topic)?, 0, Vec::new()).await?;
    let log = TopicLog::open(context.clone(), cell, LogKind::Messages, options(1)?).await?;
    let (sender, mut outcomes) = mpsc::channel(usize::try_from(ENTRIES)?);
    let sink: Arc<dyn AppendSink> = Arc::new(Sink(sender));
    for tag in 0..ENTRIES {
        let append = Append {
            format: FORMAT_NATIVE,
            message_count: 1,
            body: Bytes::from(vec![7; 1_000]),
            tag,
        };
        log.append(append, &sink)?;
    }
    for _ in 0..ENTRIES {
        outcomes.recv().await.context("an outcome")??;
    }
    Ok(log)
}

async fn reopen(context: &Arc<LogContext>, topic: usize) -> anyhow::Result<Duration> {
    let started = SystemClock.monotonic();
    let cell = TopicRecordCell::load(context.clone(), &name(topic)?, Vec::new()).await?;
    let cell = cell.context("the topic's record")?;
    let log = TopicLog::open(context.clone(), cell, LogKind::Messages, options(2)?).await?;
    anyhow::ensure!(
        log.end().0 == ENTRIES,
        "topic {topic} ends at {:?}",
        log.end()
    );
    Ok(SystemClock.monotonic() - started)
}

/// Does something for every topic, a bounded number at once.
async fn for_all<T: Send + 'static, F>(
    topics: usize,
    tasks: &TaskGroup,
    act: impl Fn(usize) -> F,
) -> anyhow::Result<Vec<T>>
where
    F: Future<Output = anyhow::Result<T>> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut running = Vec::with_capacity(topics);
    for topic in 0..topics {
        let permit = Arc::clone(&room).acquire_owned().await?;
        let act = act(topic);
        running.push(tasks.spawn("topic", async move {
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

async fn measure(topics: usize) -> anyhow::Result<()> {
    let directory = std::env::temp_dir().join(format!("aquifer-{:x}", SystemRng.next_u64()));
    let tasks = TaskGroup::new("measure");
    let mut bookies = Vec::new();
    for number in 0..3 {
        bookies.push(bookie(&directory.join(format!("bookie-{number}")), &tasks).await?);
    }
    let store = MemoryStore::default();
    let writer = process(&store, &bookies, &tasks)?;
    let logs = for_all(topics, &tasks, |topic| {
        let writer = Arc::clone(&writer);
        async move { write(&writer, topic).await }
    })
    .await?;
    // The writers stay, as if they were cut off: recovery must fence them.
    let heir = process(&store, &bookies, &tasks)?;
    let alone = reopen(&heir, 0).await?;
    let started = SystemClock.monotonic();
    let mut each = for_all(topics - 1, &tasks, |topic| {
        let heir = Arc::clone(&heir);
        async move { reopen(&heir, topic + 1).await }
    })
    .await?;
    let all = SystemClock.monotonic() - started;
    each.sort_unstable();
    let at = |percent: usize| {
        each.get(each.len() * percent / 100)
            .copied()
            .unwrap_or_default()
    };
    println!(
        "{topics} ledgers of {ENTRIES} entries, E3 Qw3 Qa2: one alone {alone:?}; the others, \
         {AT_ONCE} at once, {all:?} in all, p50 {:?}, p99 {:?} each",
        at(50),
        at(99)
    );
    drop(logs);
    tasks.drain(Duration::from_secs(5)).await;
    for (bookie, _) in &bookies {
        bookie.shutdown().await;
    }
    std::fs::remove_dir_all(&directory)?;
    Ok(())
}
