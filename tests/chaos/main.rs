//! Real processes under faults: three members of etcd, five bookies, three brokers, producers,
//! readers and consumers, which are processes, too; a seed decides what goes wrong, and afterwards
//! everything that was promised is checked.
//!
//! Needs root, for namespaces, file systems and the power cut of one.

mod audit;
mod cluster;
mod consumers;
mod consuming;
mod crowd;
mod fault;
mod measure;
mod net;
mod node;
mod policy;
mod secured;
mod traffic;
mod workload;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aquifer_harness::mount::is_privileged;
use aquifer_harness::server::binary;
use aquifer_runtime::clock::sleep;
use aquifer_runtime::rng::{Rng, SeededRng, SystemRng};
use clap::Parser;
use rustix::process::Signal;
use serde_json::json;

use cluster::Cluster;
use fault::Kind;
use traffic::Traffic;

/// How long a broker is paused in the long outage: past its lease.
const PAUSED: Duration = Duration::from_secs(10);

/// Real processes under faults, and the checkers of what must hold.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    part: Option<Part>,
    /// How long faults go on, without the long outage and the audit.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// In the middle, etcd is away for this time, while a bookie is killed and comes back, and a
    /// broker is paused for longer than its lease.
    #[arg(long, default_value_t = 0)]
    outage_seconds: u64,
    /// Decides what happens when; drawn when not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Messages per second of all producers together.
    #[arg(long, default_value_t = 600)]
    rate: u64,
    /// Longest time that a fault is held, in milliseconds.
    #[arg(long, default_value_t = 8_000)]
    hold_ms: u64,
    /// How soon every client must continue after a fault was healed.
    #[arg(long, default_value_t = 60)]
    heal_seconds: u64,
    /// Only these faults, separated by commas, by their names (`KillBookie`); the run goes on until
    /// each has come. `LoseThreeVolumes` destroys more than is promised to survive: a run with it
    /// must find a violation.
    #[arg(long, value_delimiter = ',')]
    faults: Vec<String>,
    /// Where files go; a temporary folder otherwise. It is kept when something was violated.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Ends with an error when fewer messages were acknowledged.
    #[arg(long, default_value_t = 1_000)]
    acknowledged_min: u64,
    /// More topics, each with a slow producer and a consumer that acknowledges, while new
    /// consumers come and go: what is confirmed must not come again when brokers hand them over.
    #[arg(long, default_value_t = 0)]
    crowd: usize,
    /// With TLS between all processes but etcd, authentication and tokens that are good for
    /// seconds; certificates are renewed and tokens refused as two more faults.
    #[arg(long, conflicts_with = "measure")]
    secured: bool,
    /// Instead: measure how long publishing pauses when a bookie is lost, and how fast this many
    /// bytes get their lost copies back.
    #[arg(long, value_name = "BYTES")]
    measure: Option<u64>,
}

/// A process that the run starts.
#[derive(Debug, clap::Subcommand)]
enum Part {
    /// Consumes a subscription of every topic until it is killed.
    #[command(hide = true)]
    Consume(consuming::Consuming),
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(Part::Consume(consuming)) = &args.part {
        let ended = consuming::run(consuming).await;
        eprintln!("ended: {ended:?}");
        return ExitCode::FAILURE;
    }
    if !is_privileged() || !net::is_possible() {
        eprintln!("skipped: power cuts and partitions need root, loop devices and namespaces");
        return ExitCode::SUCCESS;
    }
    match run(&args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("violated: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> Result<()> {
    let seed = args
        .seed
        .unwrap_or_else(|| SystemRng::shared().next_u64() >> 16);
    eprintln!("seed {seed}");
    let mut folder = tempfile::tempdir()?;
    // Kept unless everything went well.
    folder.disable_cleanup(true);
    let path = args
        .folder
        .clone()
        .unwrap_or_else(|| folder.path().to_owned());
    std::fs::create_dir_all(&path)?;
    let is_empty = std::fs::read_dir(&path)?.next().is_none();
    ensure!(
        is_empty,
        "{} is not empty: every run has its own",
        path.display()
    );
    let repair = match args.measure {
        Some(_) => measure::REPAIR_CONFIG,
        None => cluster::CHECKS,
    };
    let config = cluster::BOOKIE_CONFIG.to_owned() + repair;
    let mut run = Run {
        rng: SeededRng::new(seed),
        remaining: Vec::new(),
        kinds: kinds(&args.faults, args.secured)?,
        cluster: Cluster::start(&path, binary(), &config, args.secured)?,
        counts: BTreeMap::new(),
        slowest_heal: Duration::ZERO,
        replaced: 0,
    };
    let result = match args.measure {
        Some(bytes) => measure::run(&mut run.cluster, &run.rng, args.rate, bytes).await,
        None => run.through(args, seed).await,
    };
    drop(run);
    match &result {
        Ok(()) => folder.disable_cleanup(false),
        Err(_) => eprintln!("the logs are in {}", path.join("logs").display()),
    }
    result
}

fn kinds(names: &[String], is_secured: bool) -> Result<Vec<Kind>> {
    let mut all = fault::ALL.to_vec();
    if is_secured {
        all.extend(fault::OF_SECURITY);
    }
    if names.is_empty() {
        return Ok(all);
    }
    let find = |name: &String| {
        let mut known = all.iter().copied().chain([Kind::LoseThreeVolumes]);
        let found = known.find(|kind| format!("{kind:?}").eq_ignore_ascii_case(name));
        found.with_context(|| format!("{name} is no fault; there are {all:?}"))
    };
    names.iter().map(find).collect()
}

struct Run {
    rng: SeededRng,
    kinds: Vec<Kind>,
    /// Faults that have not come in this round: each comes as often as the others.
    remaining: Vec<Kind>,
    cluster: Cluster,
    counts: BTreeMap<String, u64>,
    slowest_heal: Duration,
    /// Bookies that damage kept from starting, and that were given up.
    replaced: u64,
}

impl Run {
    /// Gives the clients of a cluster with authentication what they may do.
    async fn admit_clients(&mut self) -> Result<()> {
        let urls = self.cluster.broker_urls();
        if let Some(secured) = self.cluster.secured.take() {
            let admitted = secured.admit(&urls, || self.cluster.revive()).await;
            self.cluster.secured = Some(secured);
            admitted?;
        }
        Ok(())
    }

    async fn through(&mut self, args: &Args, seed: u64) -> Result<()> {
        let limit = Duration::from_secs(args.heal_seconds);
        policy::set(&mut self.cluster).await?;
        self.admit_clients().await?;
        let traffic = Traffic::start(&mut self.cluster, args.rate, args.crowd)?;
        self.recover(&traffic, Duration::from_secs(120))
            .await
            .context("at the start")?;
        let started = traffic.now();
        let length = Duration::from_secs(args.seconds);
        let mut outage_left = args.outage_seconds > 0;
        let mut acknowledged_in_outage = 0;
        let mut outage = Duration::ZERO;
        while traffic.now() - started < length + outage || outage_left || self.misses(args) {
            if outage_left && traffic.now() - started >= length / 2 {
                outage_left = false;
                let began = traffic.now();
                acknowledged_in_outage = self.long_outage(args, &traffic).await?;
                outage = traffic.now() - began;
                self.recover(&traffic, limit)
                    .await
                    .context("after the long outage")?;
            }
            self.round(args, &traffic, limit).await?;
        }
        let seconds = (traffic.now() - started).as_secs();
        eprintln!("{} acknowledged; auditing", traffic.acknowledged());
        self.recover(&traffic, limit).await?;
        let acknowledged = traffic.acknowledged();
        let history = traffic.finish(Duration::from_secs(120)).await?;
        self.cluster.kill_consumers()?;
        let counts = audit::check(&mut self.cluster, &history).await?;
        let report = json!({
            "seed": seed,
            "seconds": seconds,
            "secured": args.secured,
            "acknowledged": acknowledged,
            "acknowledged_in_long_outage": acknowledged_in_outage,
            "messages": counts.messages,
            "faults": self.counts.values().sum::<u64>(),
            "faults_by_kind": self.counts,
            "deliveries": counts.deliveries,
            "late_deliveries": counts.late_deliveries,
            "consumers": counts.consumers,
            "crowd": history.crowd.map(crowd::CrowdCounts::to_json),
            "ledgers": counts.ledgers,
            "ensemble_changes": counts.ensemble_changes,
            "recoveries": counts.recoveries,
            "replicas_compared": counts.replicas,
            "repaired_after_ms": u64::try_from(counts.repaired_after.as_millis())?,
            "slowest_heal_ms": u64::try_from(self.slowest_heal.as_millis())?,
            "bookies_replaced": self.replaced,
            "ended_by_themselves": self.cluster.endings,
            "violations": 0,
        });
        println!("{report}");
        ensure!(
            counts.ensemble_changes > 0 && counts.recoveries > 0,
            "void: no ensemble change, or no recovery"
        );
        ensure!(
            acknowledged >= args.acknowledged_min,
            "void: {acknowledged} acknowledged"
        );
        Ok(())
    }

    /// One or two faults at once, held and healed; then every client must continue.
    async fn round(&mut self, args: &Args, traffic: &Traffic, limit: Duration) -> Result<()> {
        let mut kinds = vec![self.draw()];
        if self.rng.below(3) == 0 {
            let second = self.draw();
            match kinds[0].goes_with(second) {
                true => kinds.push(second),
                false => self.remaining.push(second),
            }
        }
        // Those that need a certain bookie choose before those that take any.
        kinds.sort_by_key(|kind| !matches!(kind, Kind::FlipBits | Kind::LoseVolume));
        eprintln!("  {kinds:?}, {} acknowledged", traffic.acknowledged());
        let mut taken = Vec::new();
        if matches!(kinds[0], Kind::FlipBits | Kind::LoseVolume) {
            taken.push(cluster::UNLUCKY);
            audit::losses_are_repaired(&mut self.cluster).await?;
        }
        let mut injected = Vec::new();
        for kind in kinds {
            *self.counts.entry(format!("{kind:?}")).or_default() += 1;
            let rng = &self.rng;
            let made = fault::inject(kind, &mut self.cluster, traffic, rng, &mut taken).await?;
            injected.push(made);
        }
        for fault in &injected {
            let time = Duration::from_millis(200 + self.rng.below(args.hold_ms.max(1)));
            fault::hold(fault, &mut self.cluster, time).await?;
        }
        for fault in injected {
            fault::heal(fault, &mut self.cluster).await?;
        }
        self.recover(traffic, limit).await
    }

    /// Whether a fault that was asked for by its name has not come yet.
    fn misses(&self, args: &Args) -> bool {
        let has_come = |kind: &Kind| self.counts.contains_key(&format!("{kind:?}"));
        !args.faults.is_empty() && !self.kinds.iter().all(has_come)
    }

    fn draw(&mut self) -> Kind {
        if self.remaining.is_empty() {
            self.remaining.clone_from(&self.kinds);
        }
        let at = self.rng.below(self.remaining.len() as u64);
        self.remaining
            .swap_remove(usize::try_from(at).unwrap_or_default())
    }

    /// Waits until every client continues. A bookie that damage keeps from starting is given up
    /// after a few attempts, as an operator would: another one takes its place.
    async fn recover(&mut self, traffic: &Traffic, limit: Duration) -> Result<()> {
        const ATTEMPTS: u32 = 5;
        let cluster = &mut self.cluster;
        let replaced = &mut self.replaced;
        let took = traffic.wait_for_progress(limit, || {
            cluster.revive()?;
            if cluster.bookies[cluster::UNLUCKY].node.ended >= ATTEMPTS {
                *replaced += 1;
                cluster.lose_volume(cluster::UNLUCKY)?;
            }
            Ok(())
        });
        self.slowest_heal = self.slowest_heal.max(took.await?);
        Ok(())
    }

    /// H8: open topics keep serving while etcd is away, a bookie dies, and a broker is paused. Says
    /// how many messages were acknowledged meanwhile.
    async fn long_outage(&mut self, args: &Args, traffic: &Traffic) -> Result<u64> {
        audit::ensembles_are_whole(&mut self.cluster).await?;
        let limit = Duration::from_secs(args.heal_seconds);
        self.recover(traffic, limit).await?;
        eprintln!("  etcd is away for {} s", args.outage_seconds);
        let (mut taken, rng) = (Vec::new(), &self.rng);
        let kind = Kind::EtcdOutage;
        let outage = fault::inject(kind, &mut self.cluster, traffic, rng, &mut taken).await?;
        let before = traffic.acknowledged();
        let progress = traffic.wait_for_progress(limit, || Ok(()));
        progress.await.context("H8: etcd is away")?;
        let third = Duration::from_secs(args.outage_seconds) / 3;
        sleep(third).await;
        let bookie = usize::try_from(self.rng.below(cluster::BOOKIES as u64))?;
        self.cluster.bookies[bookie].node.kill()?;
        let at_kill = traffic.acknowledged();
        let progress = traffic.wait_for_progress(limit, || Ok(()));
        progress.await.context("H8: etcd and a bookie are away")?;
        let broker = usize::try_from(self.rng.below(cluster::BROKERS as u64))?;
        self.cluster.brokers[broker].signal(Signal::STOP)?;
        sleep(PAUSED).await;
        self.cluster.brokers[broker].signal(Signal::CONT)?;
        let progress = traffic.wait_for_progress(limit, || Ok(()));
        progress.await.context("H8: a broker was paused")?;
        sleep(third).await;
        let after_kill = traffic.acknowledged();
        self.cluster.bookies[bookie]
            .node
            .start(&self.cluster.network)?;
        sleep(third).await;
        let acknowledged = traffic.acknowledged() - before;
        eprintln!(
            "  {acknowledged} acknowledged meanwhile, {} with a bookie dead",
            after_kill - at_kill
        );
        let progress = traffic.wait_for_progress(limit, || Ok(()));
        progress
            .await
            .context("H8: etcd is away, the bookie is back")?;
        fault::heal(outage, &mut self.cluster).await?;
        *self.counts.entry("LongEtcdOutage".to_owned()).or_default() += 1;
        Ok(acknowledged)
    }
}
