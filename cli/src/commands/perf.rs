//! `aquifer perf`: from arguments to a load of the generator in `crate::perf`, and back to the
//! contract's output.

use std::sync::Arc;
use std::time::Duration;

use aquifer_client::{Client, Place};
use aquifer_runtime::clock::{Clock, SystemClock, sleep};

use crate::args::{LoadArgs, PerfArgs, PerfCommand};
use crate::commands::produce::compression;
use crate::connect::Connect;
use crate::exit::CliError;
use crate::output::Output;
use crate::perf::publish::PublishLoad;
use crate::perf::receive::{ReceiveLoad, Received};
use crate::perf::stamp::Payload;
use crate::perf::{Report, Until, disk, duration, e2e};
use crate::roles::process::Signals;
use crate::traced::traced;

/// How long a load runs when nothing else is said.
const DEFAULT_SECONDS: f64 = 10.0;
/// Messages of the backlog that `perf consume` writes when it was given no topic.
const DEFAULT_BACKLOG: u64 = 1_000_000;
/// How long consuming goes on without a message before the rest counts as missing.
const SILENCE_MAX: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(10);

/// Runs the command. SIGTERM ends it at once: the first process of a container, which this may be,
/// has no default for that.
///
/// # Errors
/// When the load cannot run, any of its messages failed, or a signal came.
pub async fn run(args: PerfArgs, connect: &Connect, out: &Output) -> Result<(), CliError> {
    let mut signals = Signals::listen()?;
    tokio::select! {
        done = measure(args, connect, out) => done,
        name = signals.next() => {
            Err(CliError::failed(format!("{name}: the measurement was not finished")))
        }
    }
}

async fn measure(args: PerfArgs, connect: &Connect, out: &Output) -> Result<(), CliError> {
    match args.command {
        PerfCommand::Disk { dir, seconds } => disk::run(dir, seconds, out).await,
        PerfCommand::Produce(args) => {
            let to = args.load.trace.to.clone();
            let work = async {
                let mut load = Load::new(args.load, connect).await?;
                if let Some(topics) = args.topics {
                    load.spread(topics)?;
                }
                produce(&load, out).await
            };
            traced(to, "aquifer-perf", work).await
        }
        PerfCommand::Consume(args) => {
            let to = args.trace.to.clone();
            let work = async { consume(&Load::new(args, connect).await?, out).await };
            traced(to, "aquifer-perf", work).await
        }
        PerfCommand::E2e(args) => {
            let to = args.trace.to.clone();
            let work = async { end_to_end(&Load::new(args, connect).await?, out).await };
            traced(to, "aquifer-perf", work).await
        }
    }
}

/// The arguments, checked, and a connected client.
struct Load {
    args: LoadArgs,
    client: Client,
    topic: String,
    /// Every topic that is published to; one unless `--topics` says more.
    topics: Vec<String>,
    /// The topics were made up here and are deleted at the end.
    own_topic: bool,
    until: Until,
}

impl Load {
    async fn new(args: LoadArgs, connect: &Connect) -> Result<Load, CliError> {
        if args.window == 0 || args.producers == 0 || args.consumers == 0 {
            return Err(CliError::usage(
                "--window, --producers and --consumers are at least 1",
            ));
        }
        let until = match args.count {
            Some(count) => Until::Count(count),
            None => Until::Elapsed(duration(
                "--seconds",
                args.seconds.unwrap_or(DEFAULT_SECONDS),
            )?),
        };
        let client = connect.load_client()?;
        client.connect().await?;
        let own_topic = args.topic.is_none();
        let topic = match &args.topic {
            Some(topic) => topic.to_string(),
            None => format!("perf-{}-{}", SystemClock.wall_ms(), std::process::id()),
        };
        Ok(Load {
            args,
            client,
            topics: vec![topic.clone()],
            topic,
            own_topic,
            until,
        })
    }

    /// Publishes to that many topics instead of one.
    fn spread(&mut self, topics: usize) -> Result<(), CliError> {
        if topics == 0 {
            return Err(CliError::usage("--topics is at least 1"));
        }
        self.topics = (0..topics)
            .map(|number| format!("{}-{number}", self.topic))
            .collect();
        Ok(())
    }

    fn publish(&self, until: Until, stamped: bool) -> PublishLoad {
        PublishLoad {
            topics: [self.topics.as_slice()]
                .repeat(self.args.producers)
                .concat(),
            until,
            window: self.args.window,
            rate: self.args.rate,
            compression: compression(self.args.compression),
            payload: Payload::new(self.args.size),
            stamped,
            trace_one_in: self.args.trace.one_in(),
        }
    }

    fn expected(&self) -> Option<u64> {
        match self.until {
            Until::Count(count) => Some(count),
            Until::Elapsed(_) => None,
        }
    }

    /// Removes what only this run needed, then fails if messages did.
    async fn end(&self, errors: u64) -> Result<(), CliError> {
        if self.own_topic {
            for topic in &self.topics {
                self.client.admin().delete_topic(topic, true).await?;
            }
        }
        if errors > 0 {
            return Err(CliError::failed(format!("{errors} messages failed")));
        }
        Ok(())
    }
}

async fn produce(load: &Load, out: &Output) -> Result<(), CliError> {
    let progress = Arc::new(out.progress("messages", load.expected()));
    let shown = Arc::clone(&progress);
    let published = load
        .publish(load.until, false)
        .run(&load.client, move |count| shown.add(count))
        .await?;
    drop(progress);
    Report::new(&published.counted, load.args.size, &published.latencies).print(out, "produce")?;
    load.end(published.counted.errors).await
}

async fn end_to_end(load: &Load, out: &Output) -> Result<(), CliError> {
    let progress = Arc::new(out.progress("messages received", None));
    let shown = Arc::clone(&progress);
    let publish = load.publish(load.until, true);
    let consumers = load.args.consumers;
    let done = e2e::run(
        &load.client,
        &publish,
        &load.topic,
        consumers,
        move |count| {
            shown.add(count);
        },
    )
    .await?;
    drop(progress);
    let size = load.args.size.max(crate::perf::stamp::STAMP_BYTES);
    let report = done.report(size);
    if out.is_json() {
        out.object(&report)?;
    } else {
        report.received.print(out, "e2e")?;
    }
    load.end(done.all.counted.errors).await
}

async fn consume(load: &Load, out: &Output) -> Result<(), CliError> {
    if load.own_topic {
        let count = load.args.count.unwrap_or(DEFAULT_BACKLOG);
        out.note(&format!("publishing a backlog of {count} messages first"));
        let publish = PublishLoad {
            window: load.args.window.max(10_000),
            rate: None,
            ..load.publish(Until::Count(count), false)
        };
        let published = publish.run(&load.client, |_| ()).await?;
        if published.counted.errors > 0 {
            return load.end(published.counted.errors).await;
        }
    }
    let stats = load.client.admin().topic_stats(&load.topic).await?;
    let backlog = stats.end_index.0.saturating_sub(stats.first_index.0);
    // Without --seconds, or with a topic of its own, the backlog is the load.
    let limit = match (load.own_topic, load.args.seconds) {
        (false, Some(seconds)) => Some(duration("--seconds", seconds)?),
        _ => None,
    };
    let wanted = match (limit, load.args.count) {
        (Some(_), _) => u64::MAX,
        (None, Some(count)) => count,
        (None, None) => backlog,
    };
    let received = receive(load, wanted, limit, out).await?;
    let missing = match limit {
        Some(_) => 0,
        None => wanted.saturating_sub(received.counted.messages),
    };
    let mut counted = received.counted;
    let missing = missing.max(counted.errors);
    counted.errors = missing;
    let size = usize::try_from(received.bytes / counted.messages.max(1)).unwrap_or(usize::MAX);
    Report::new(&counted, size, &received.latencies).print(out, "consume")?;
    load.end(missing).await
}

async fn receive(
    load: &Load,
    wanted: u64,
    limit: Option<Duration>,
    out: &Output,
) -> Result<Received, CliError> {
    let progress = Arc::new(out.progress("messages", (wanted < u64::MAX).then_some(wanted)));
    let shown = Arc::clone(&progress);
    let receive = ReceiveLoad {
        topic: load.topic.clone(),
        payload: None,
    };
    let start = SystemClock.monotonic();
    let receiving = receive
        .start(
            &load.client,
            load.args.consumers,
            true,
            Place::Earliest,
            move |count| shown.add(count),
        )
        .await?;
    receiving.end_after(wanted);
    let mut last = (start, 0);
    while !receiving.is_finished() {
        let now = SystemClock.monotonic();
        if receiving.total() > last.1 {
            last = (now, receiving.total());
        }
        let silent = now.saturating_sub(last.0) > SILENCE_MAX;
        let over = limit.is_some_and(|limit| now.saturating_sub(start) > limit);
        if over || (limit.is_none() && silent) {
            receiving.stop();
        }
        sleep(LOOK).await;
    }
    let parts = receiving.finish().await?;
    Ok(Received::all(&parts))
}
