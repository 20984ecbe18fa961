//! The performance contract (ARCHITECTURE.md names its rows), measured on this machine: a server
//! of its own in a directory of its own, every row beside its target and the disk calibration of
//! the same run. `make bench` runs it.

mod cluster;
mod load;
mod memory;
mod quiet;
mod server;
mod table;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use aquifer_client::{Client, Compression};
use aquifer_runtime::clock::sleep;
use serde::Serialize;

use crate::args::SuiteArgs;
use crate::exit::CliError;
use crate::output::Output;

use self::server::Server;
use super::disk::{self, Calibration};
use super::publish::{PublishLoad, Published};
use super::stamp::Payload;
use super::{DURABILITY, Until, round};

/// Until the files of a topic that was deleted are gone.
const REMOVAL: Duration = Duration::from_secs(4);
/// Payload bytes of every message here.
const MESSAGE_BYTES: usize = 1024;

/// Whether more is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Bound {
    AtLeast,
    AtMost,
}

/// One row of the contract.
#[derive(Debug, Clone, Serialize)]
struct Row {
    name: String,
    /// Nothing when it could not be measured; the note says why.
    measured: Option<f64>,
    unit: &'static str,
    target: f64,
    target_is: Bound,
    met: bool,
    durability: &'static str,
    note: String,
}

impl Row {
    fn new(name: &str, measured: f64, unit: &'static str, bound: Bound, target: f64) -> Row {
        let met = match bound {
            Bound::AtLeast => measured >= target,
            Bound::AtMost => measured <= target,
        };
        Row {
            name: name.to_owned(),
            measured: Some(round(measured, 2)),
            unit,
            target: round(target, 2),
            target_is: bound,
            met,
            durability: DURABILITY,
            note: String::new(),
        }
    }

    fn failed(name: &str, error: &CliError) -> Row {
        Row {
            measured: None,
            met: false,
            note: format!("not measured: {error}"),
            ..Row::new(name, 0.0, "", Bound::AtLeast, 0.0)
        }
    }

    fn note(mut self, note: impl Into<String>) -> Row {
        self.note = note.into();
        self
    }
}

/// The machine that results belong to.
#[derive(Debug, Serialize)]
struct Machine {
    cpus: usize,
    system: String,
    version: &'static str,
    /// Figures of anything but `release` say nothing.
    build: &'static str,
}

/// Everything, as JSON.
#[derive(Debug, Serialize)]
struct Results {
    machine: Machine,
    quick: bool,
    calibration: Vec<Calibration>,
    rows: Vec<Row>,
}

/// A run in progress.
struct Suite {
    quick: bool,
    directory: PathBuf,
    calibration: Vec<Calibration>,
    server: Server,
    rows: Vec<Row>,
    /// Messages a second of one producer with 10,000 outstanding and nothing else going on, once
    /// it is known: what several rows are compared with.
    alone: Option<f64>,
    topics: u64,
}

/// A part of the suite: what `--only` selects by, and the rows that it measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Start,
    Latency,
    Publish,
    Batched,
    Tail,
    FanOut,
    SteadyRate,
    ThousandTopics,
    CatchUp,
    Stalled,
    IdleMemory,
    Cluster,
    Cold,
}

/// In this order: quiet ones first, and the one that restarts the server last.
const PARTS: [(Part, &str); 13] = [
    (Part::Start, "start"),
    (Part::Latency, "latency"),
    (Part::Publish, "publish"),
    (Part::Batched, "batched"),
    (Part::Tail, "tail"),
    (Part::FanOut, "fan-out"),
    (Part::SteadyRate, "rate"),
    (Part::ThousandTopics, "topics"),
    (Part::CatchUp, "catch-up"),
    (Part::Stalled, "stalled"),
    (Part::IdleMemory, "idle-memory"),
    (Part::Cluster, "cluster"),
    (Part::Cold, "cold"),
];

/// Runs `aquifer perf suite`.
///
/// # Errors
/// When the disk cannot be calibrated or the server does not start. A row that fails is reported
/// as such, and the others go on.
pub async fn run(args: SuiteArgs, out: &Output) -> Result<(), CliError> {
    let only = args.only.as_deref().unwrap_or_default();
    let parts: Vec<_> = PARTS
        .into_iter()
        .filter(|(_, name)| name.contains(only))
        .collect();
    if parts.is_empty() {
        let names: Vec<_> = PARTS.iter().map(|(_, name)| *name).collect();
        return Err(CliError::usage(format!("--only {only:?} selects nothing"))
            .advise(format!("parts are {}", names.join(", "))));
    }
    let directory = Scratch::create(&args.dir)?;
    out.note("calibrating the disk");
    let each = Duration::from_millis(if args.quick { 300 } else { 3_000 });
    let at = directory.path.clone();
    let calibration = disk::blocking(move || disk::calibrate(&at, each)).await?;
    let server = Server::start(&directory.path.join("data")).await?;
    let mut suite = Suite {
        quick: args.quick,
        directory: directory.path.clone(),
        calibration,
        server,
        rows: Vec::new(),
        alone: None,
        topics: 0,
    };
    for (part, name) in parts {
        out.note(&format!("measuring: {name}"));
        let before = suite.rows.len();
        if let Err(error) = suite.measure(part).await {
            suite.rows.push(Row::failed(name, &error));
        }
        for row in &suite.rows[before..] {
            out.note(&format!("  {}", table::sentence(row)));
        }
    }
    suite.server.stop().await?;
    let results = Results {
        machine: machine(),
        quick: args.quick,
        calibration: suite.calibration,
        rows: suite.rows,
    };
    table::print(out, &results)
}

fn machine() -> Machine {
    let system = fs::read_to_string("/proc/version").unwrap_or_default();
    let cpus = std::thread::available_parallelism();
    Machine {
        cpus: cpus.map_or(1, std::num::NonZeroUsize::get),
        // `Linux version 6.1.0`: the rest is about who compiled it.
        system: system.split(' ').take(3).collect::<Vec<_>>().join(" "),
        version: env!("CARGO_PKG_VERSION"),
        build: if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        },
    }
}

impl Suite {
    async fn measure(&mut self, part: Part) -> Result<(), CliError> {
        match part {
            Part::Start => self.start_and_size(),
            Part::Latency => self.latency().await,
            Part::Publish => self.publish_window().await,
            Part::Batched => self.publish_batched().await,
            Part::Tail => self.publish_and_tail().await,
            Part::FanOut => self.fan_out().await,
            Part::SteadyRate => self.steady_rates().await,
            Part::ThousandTopics => self.thousand_topics().await,
            Part::CatchUp => self.catch_up_while_publishing().await,
            Part::Stalled => self.stalled_consumer().await,
            Part::IdleMemory => self.idle_memory().await,
            Part::Cluster => self.cluster().await,
            Part::Cold => self.cold_catch_up().await,
        }
    }

    fn client(&self) -> Result<Client, CliError> {
        let builder = Client::builder()
            .url(self.server.url())
            .memory_limit_bytes(256 * 1024 * 1024);
        Ok(builder.build()?)
    }

    /// A topic that nothing else uses.
    fn topic(&mut self) -> String {
        self.topics += 1;
        format!("perf-suite-{}", self.topics)
    }

    /// Deletes topics, so that a run does not need the sum of all its parts in space, and waits until
    /// their files are gone: where the file system discards what they took, the disk is slow
    /// meanwhile, and what is measured next is not that.
    async fn remove(&self, client: &Client, topics: &[String]) -> Result<(), CliError> {
        for topic in topics {
            client.admin().delete_topic(topic, true).await?;
        }
        sleep(REMOVAL).await;
        Ok(())
    }

    fn messages(&self, full: u64) -> Until {
        Until::Count(self.count(full))
    }

    fn count(&self, full: u64) -> u64 {
        if self.quick { full / 10 } else { full }
    }

    fn seconds(&self, full: u64) -> Duration {
        Duration::from_millis(full * if self.quick { 100 } else { 1_000 })
    }

    fn load(&self, topic: &str, until: Until, window: usize) -> PublishLoad {
        PublishLoad {
            topics: vec![topic.to_owned()],
            until,
            window,
            rate: None,
            compression: Compression::None,
            batching: None,
            payload: Payload::new(MESSAGE_BYTES),
            stamped: false,
            stop: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Bytes a second of synced 1 MiB writes, in this run.
    fn disk_bytes_per_second(&self) -> f64 {
        self.calibrated(1024 * 1024)
            .map_or(0.0, |found| found.report.bytes_per_second)
    }

    /// Milliseconds of a synced 4 KiB write at the median, in this run.
    fn disk_sync_ms(&self) -> f64 {
        self.calibrated(4 * 1024)
            .map_or(0.0, |found| found.report.latency_us.p50 / 1e3)
    }

    fn calibrated(&self, block_bytes: usize) -> Option<&Calibration> {
        let mut found = self.calibration.iter();
        found.find(|calibration| calibration.block_bytes == block_bytes)
    }

    /// See the field.
    async fn alone(&mut self) -> Result<f64, CliError> {
        if let Some(alone) = self.alone {
            return Ok(alone);
        }
        let client = self.client()?;
        let topic = self.topic();
        let load = self.load(&topic, self.messages(3_000_000), 10_000);
        let published = complete(load.run(&client, |_| ()).await?)?;
        self.remove(&client, &[topic]).await?;
        let rate = per_second(&published);
        self.alone = Some(rate);
        Ok(rate)
    }
}

/// Refuses a result with failures: it would look better than it is.
fn complete(published: Published) -> Result<Published, CliError> {
    match published.counted.errors {
        0 => Ok(published),
        errors => Err(CliError::failed(format!("{errors} messages failed"))),
    }
}

fn per_second(published: &Published) -> f64 {
    super::per_second(
        published.counted.messages,
        published.counted.elapsed.as_secs_f64(),
    )
}

/// A directory that goes away with the run.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn create(parent: &std::path::Path) -> Result<Scratch, CliError> {
        let path = parent.join(format!("aquifer-perf-{}", std::process::id()));
        fs::create_dir_all(&path).map_err(|error| {
            CliError::failed(format!("cannot create {}: {error}", path.display()))
        })?;
        Ok(Scratch { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left behind is only space, and its name says what it is.
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_met_on_the_right_side_of_its_target() {
        assert!(Row::new("a", 5.0, "x", Bound::AtLeast, 5.0).met);
        assert!(!Row::new("a", 4.9, "x", Bound::AtLeast, 5.0).met);
        assert!(Row::new("a", 5.0, "x", Bound::AtMost, 5.0).met);
        assert!(!Row::new("a", 5.1, "x", Bound::AtMost, 5.0).met);
        let failed = Row::failed("a", &CliError::failed("no disk"));
        assert!(!failed.met && failed.measured.is_none());
        let object = serde_json::to_value(&failed).expect("it serializes");
        for field in ["name", "measured", "target", "met", "durability"] {
            assert!(object.get(field).is_some(), "{field}");
        }
    }

    #[test]
    fn every_part_has_a_name_of_its_own() {
        for (at, (part, name)) in PARTS.iter().enumerate() {
            let others = &PARTS[at + 1..];
            assert!(others.iter().all(|(other, _)| other != part), "{part:?}");
            assert!(others.iter().all(|(_, other)| other != name), "{name}");
        }
    }
}
