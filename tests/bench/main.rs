//! The performance suite: every row of the performance contract, measured on this machine beside
//! its target and the disk calibration of the same run. `make bench` runs it.
//!
//! It measures the shipped binary from outside. Servers are `aquifer standalone` and `aquifer dev`,
//! loads are `aquifer perf`, each a process of its own; this program starts them, reads what they
//! report and what the kernel says about the server. Results go to standard output as one JSON
//! object, progress and a table to standard error.

mod cluster;
mod cost;
mod isolation;
mod latency;
mod limits;
mod load;
mod memory;
mod objects;
mod observed;
mod row;
mod server;
mod stalled_storage;
mod table;
mod throughput;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aquifer_client::Client;
use aquifer_runtime::clock::sleep;
use clap::Parser;

use load::{Calibration, Load, Until};
use row::{Machine, Results, Row};
use server::Measured;

/// How long the server may take to remove the files of a deleted topic.
const REMOVAL: Duration = Duration::from_secs(4);
/// Payload bytes of every message.
const MESSAGE_BYTES: u32 = 1024;

/// Measures the performance contract: each row beside its target.
#[derive(Debug, Parser)]
struct Args {
    /// Where the server's data goes while it is measured; a full run needs about 20 GB.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,

    /// A tenth of the load: shows that everything runs, and is not a result.
    #[arg(long)]
    quick: bool,

    /// Only parts whose name contains one of these, separated by commas.
    #[arg(long, value_name = "TEXT", value_delimiter = ',')]
    only: Vec<String>,
}

/// A run in progress.
struct Suite {
    quick: bool,
    directory: PathBuf,
    calibration: Vec<Calibration>,
    server: Measured,
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
    Limited,
    LimitedTenant,
    Isolation,
    Secured,
    ThousandTopics,
    CatchUp,
    Stalled,
    IdleMemory,
    Cluster,
    StalledStorage,
    Observed,
    Cold,
    Objects,
    PublishBesideOffload,
    ManyObjects,
    CostOfObjects,
}

/// In this order: quiet ones first, then the one that restarts the server, then those with servers
/// of their own.
const PARTS: [(Part, &str); 23] = [
    (Part::Start, "start"),
    (Part::Latency, "latency"),
    (Part::Publish, "publish"),
    (Part::Batched, "batched"),
    (Part::Tail, "tail"),
    (Part::FanOut, "fan-out"),
    (Part::SteadyRate, "rate"),
    (Part::Limited, "limit"),
    (Part::LimitedTenant, "tenant-limit"),
    (Part::Isolation, "isolation"),
    (Part::Secured, "secured"),
    (Part::ThousandTopics, "topics"),
    (Part::CatchUp, "catch-up"),
    (Part::Stalled, "stalled"),
    (Part::IdleMemory, "idle-memory"),
    (Part::Cluster, "cluster"),
    (Part::StalledStorage, "isolation-storage"),
    (Part::Observed, "observed"),
    (Part::Cold, "cold"),
    (Part::Objects, "objects"),
    (Part::PublishBesideOffload, "objects-publish"),
    (Part::ManyObjects, "objects-many"),
    (Part::CostOfObjects, "objects-cost"),
];

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let parts = selected(&args.only)?;
    let directory = Scratch::create(&args.dir)?;
    eprintln!("calibrating the disk");
    let each = Duration::from_millis(if args.quick { 300 } else { 3_000 });
    let calibration = load::calibrate(&directory.path, each).await?;
    let server = Measured::start(&directory.path.join("data")).await?;
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
        eprintln!("measuring: {name}");
        let before = suite.rows.len();
        // A row that fails is reported as such, and the others go on.
        if let Err(error) = suite.measure(part).await {
            suite.rows.push(Row::failed(name, &error));
        }
        for row in &suite.rows[before..] {
            eprintln!("  {}", table::sentence(row));
        }
    }
    suite.server.stop()?;
    let results = Results {
        machine: Machine::this()?,
        quick: args.quick,
        calibration: suite.calibration,
        rows: suite.rows,
    };
    for line in table::lines(&results) {
        eprintln!("{line}");
    }
    println!("{}", serde_json::to_string(&results)?);
    Ok(())
}

/// The parts whose name contains one of `only`; all without any.
fn selected(only: &[String]) -> Result<Vec<(Part, &'static str)>> {
    for text in only {
        if !PARTS.iter().any(|(_, name)| name.contains(text.as_str())) {
            let names = PARTS.map(|(_, name)| name).join(", ");
            bail!("--only {text}: no such part; parts are {names}");
        }
    }
    let wanted = |name: &str| only.is_empty() || only.iter().any(|text| name.contains(text));
    let parts = PARTS.into_iter().filter(|(_, name)| wanted(name));
    Ok(parts.collect())
}

impl Suite {
    async fn measure(&mut self, part: Part) -> Result<()> {
        match part {
            Part::Start => self.start_and_size(),
            Part::Latency => self.latency().await,
            Part::Publish => self.publish_window().await,
            Part::Batched => self.publish_batched().await,
            Part::Tail => self.publish_and_tail().await,
            Part::FanOut => self.fan_out().await,
            Part::SteadyRate => self.steady_rates().await,
            Part::Limited => self.limited().await,
            Part::LimitedTenant => self.limited_tenant().await,
            Part::Isolation => self.isolation().await,
            Part::Secured => self.secured().await,
            Part::ThousandTopics => self.thousand_topics().await,
            Part::CatchUp => self.catch_up_while_publishing().await,
            Part::Stalled => self.stalled_consumer().await,
            Part::IdleMemory => self.idle_memory().await,
            Part::Cluster => self.cluster().await,
            Part::StalledStorage => self.stalled_storage().await,
            Part::Observed => self.observed().await,
            Part::Cold => self.cold_catch_up().await,
            Part::Objects => self.objects().await,
            Part::PublishBesideOffload => self.publish_beside_offload().await,
            Part::ManyObjects => self.many_objects().await,
            Part::CostOfObjects => self.cost_of_objects().await,
        }
    }

    fn client(&self) -> Result<Client> {
        self.server.client()
    }

    /// A topic that nothing else uses.
    fn topic(&mut self) -> String {
        self.topics += 1;
        format!("perf-suite-{}", self.topics)
    }

    /// Deletes topics, so that a run does not need the sum of all its parts in space, and waits
    /// until their files are gone: where the file system discards what they took, the disk is slow
    /// meanwhile, and that must not be part of the next row.
    async fn remove(&self, client: &Client, topics: &[String]) -> Result<()> {
        for topic in topics {
            client.admin().delete_topic(topic, true).await?;
        }
        self.removed().await;
        Ok(())
    }

    /// Waits until the files of topics that were just deleted are gone.
    async fn removed(&self) {
        sleep(if self.quick { REMOVAL / 10 } else { REMOVAL }).await;
    }

    fn messages(&self, full: u64) -> Until {
        Until::Count(if self.quick { full / 10 } else { full })
    }

    fn seconds(&self, full: u64) -> Until {
        Until::Elapsed(Duration::from_millis(
            full * if self.quick { 100 } else { 1_000 },
        ))
    }

    /// A load on the suite's server, on a topic that `aquifer perf` creates and deletes.
    fn load(&self, until: Until, window: usize) -> Load {
        Load::new(self.server.url(), until, window)
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

    fn calibrated(&self, block_bytes: u64) -> Option<&Calibration> {
        let mut found = self.calibration.iter();
        found.find(|calibration| calibration.block_bytes == block_bytes)
    }

    /// See the field.
    async fn alone(&mut self) -> Result<f64> {
        if let Some(alone) = self.alone {
            return Ok(alone);
        }
        let load = self.load(self.messages(3_000_000), 10_000);
        let published = load.produce().await?.complete()?;
        self.removed().await;
        self.alone = Some(published.messages_per_second);
        Ok(published.messages_per_second)
    }
}

/// A directory that goes away with the run.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn create(parent: &Path) -> Result<Scratch> {
        let path = parent.join(format!("aquifer-bench-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Scratch { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A directory that cannot be removed costs space only, and its name says whose it is.
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_has_a_name_of_its_own() {
        for (at, (part, name)) in PARTS.iter().enumerate() {
            let others = &PARTS[at + 1..];
            assert!(others.iter().all(|(other, _)| other != part), "{part:?}");
            assert!(others.iter().all(|(_, other)| other != name), "{name}");
        }
    }

    #[test]
    fn parts_are_selected_by_pieces_of_their_names() {
        let select = |only: &[&str]| {
            let only: Vec<String> = only.iter().map(ToString::to_string).collect();
            let parts = selected(&only)?;
            anyhow::Ok(parts.iter().map(|(_, name)| *name).collect::<Vec<_>>())
        };
        assert_eq!(select(&[]).expect("all").len(), PARTS.len());
        assert_eq!(select(&["start", "cold"]).expect("two"), ["start", "cold"]);
        assert_eq!(select(&["memory"]).expect("one"), ["idle-memory"]);
        assert!(select(&["start", "nothing"]).is_err());
    }
}
