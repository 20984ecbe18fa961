//! What goes wrong: each fault is injected, held for a while, and healed.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use aquifer_harness::command::run;
use aquifer_harness::fault::{files, flip_bit};
use aquifer_runtime::clock::sleep;
use aquifer_runtime::rng::Rng;
use rustix::process::Signal;

use crate::cluster::{BOOKIES, BROKERS, Cluster, MEMBERS, UNLUCKY, data_dir};
use crate::net::{CLIENTS, Cut};
use crate::traffic::Traffic;

/// How long a takeover by other brokers may take.
const TAKEOVER: Duration = Duration::from_secs(90);
/// How long a broker may take to hand everything over and to end.
const DRAIN: Duration = Duration::from_secs(90);
/// How long a consumer is unheard of at least: its connections notice within 8 s.
const UNHEARD: Duration = Duration::from_secs(9);
const NAMESPACE: &str = "public/default";

/// Kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// F1: kill -9 of a bookie.
    KillBookie,
    /// F1: of two bookies at once.
    KillTwoBookies,
    /// F1: of a broker; the others take over.
    KillBroker,
    /// F1: of two brokers at once.
    KillTwoBrokers,
    /// A broker is asked to end, and hands over.
    DrainBroker,
    /// Bundles move from one broker to another.
    MoveBundles,
    /// F1: of the leader of etcd.
    KillEtcdLeader,
    /// F2: power loss of a bookie: what was not synced is gone.
    PowerLoss,
    /// F2: of all bookies at once.
    PowerLossOfAll,
    /// F4: bits flip in files of the unlucky bookie.
    FlipBits,
    /// F4: the unlucky bookie's disk is gone for good; an empty one takes its place.
    LoseVolume,
    /// F5: a disk answers every request with EIO.
    DiskError,
    /// F5: a disk is full.
    DiskFull,
    /// F7: a bookie is cut off from all others, in both directions.
    Isolate,
    /// F7: a broker is cut off from all but its clients.
    IsolateBroker,
    /// F7: one direction between a bookie and a broker.
    OneWay,
    /// F7: a broker and a bookie do not hear each other; all others hear both.
    Partial,
    /// F7: a bookie comes and goes.
    Flap,
    /// F9: a bookie is paused and goes on.
    PauseBookie,
    /// F9: a broker is paused for longer than its lease, others take over, and it goes on.
    StaleBroker,
    /// F1: kill -9 of a process that consumes.
    KillConsumer,
    /// F9: one is paused, for longer than the keepalive of its connections at times.
    PauseConsumer,
    /// F7: one is cut off from all brokers, without hearing of it.
    CutConsumer,
    /// F11: the leader of etcd is paused.
    PauseEtcdLeader,
    /// F11: a bookie does not reach etcd: its lease expires.
    LeaseExpiry,
    /// F11: etcd has no quorum for a while.
    EtcdOutage,
    /// F11: history is compacted under watches.
    Compact,
    /// All certificates are renewed, and every process looks at them.
    RotateCertificates,
    /// Every token that is in use is refused; the files of clients have others.
    ExpireTokens,
    /// More than is promised: three disks are gone for good at once. Not one of [`ALL`]; a run
    /// with it must end with a violation, which proves that loss is noticed.
    LoseThreeVolumes,
}

/// All of them.
pub const ALL: [Kind; 27] = [
    Kind::KillBookie,
    Kind::KillTwoBookies,
    Kind::KillBroker,
    Kind::KillTwoBrokers,
    Kind::DrainBroker,
    Kind::MoveBundles,
    Kind::KillEtcdLeader,
    Kind::PowerLoss,
    Kind::PowerLossOfAll,
    Kind::FlipBits,
    Kind::LoseVolume,
    Kind::DiskError,
    Kind::DiskFull,
    Kind::Isolate,
    Kind::IsolateBroker,
    Kind::OneWay,
    Kind::Partial,
    Kind::Flap,
    Kind::PauseBookie,
    Kind::StaleBroker,
    Kind::KillConsumer,
    Kind::PauseConsumer,
    Kind::CutConsumer,
    Kind::PauseEtcdLeader,
    Kind::LeaseExpiry,
    Kind::EtcdOutage,
    Kind::Compact,
];

/// Those of a run with TLS and authentication.
pub const OF_SECURITY: [Kind; 2] = [Kind::RotateCertificates, Kind::ExpireTokens];

/// What a fault keeps until it is healed.
#[derive(Debug)]
pub struct Injected {
    kind: Kind,
    bookies: Vec<usize>,
    brokers: Vec<usize>,
    consumer: Option<usize>,
    member: Option<usize>,
    cuts: Vec<Cut>,
    balloon: Option<PathBuf>,
}

impl Kind {
    /// Whether it concerns brokers.
    pub fn is_of_broker(self) -> bool {
        matches!(
            self,
            Kind::KillBroker
                | Kind::KillTwoBrokers
                | Kind::DrainBroker
                | Kind::MoveBundles
                | Kind::StaleBroker
                | Kind::IsolateBroker
        )
    }

    /// Whether it concerns etcd.
    pub fn is_of_etcd(self) -> bool {
        matches!(
            self,
            Kind::KillEtcdLeader | Kind::PauseEtcdLeader | Kind::EtcdOutage | Kind::Compact
        )
    }

    /// Whether it concerns a process that consumes.
    pub fn is_of_consumer(self) -> bool {
        matches!(
            self,
            Kind::KillConsumer | Kind::PauseConsumer | Kind::CutConsumer
        )
    }

    /// Whether it concerns certificates or tokens.
    pub fn is_of_security(self) -> bool {
        OF_SECURITY.contains(&self)
    }

    /// Whether it concerns bookies.
    pub fn is_of_bookie(self) -> bool {
        !self.is_of_broker()
            && !self.is_of_etcd()
            && !self.is_of_consumer()
            && !self.is_of_security()
    }

    /// Whether it may happen together with another.
    pub fn goes_with(self, other: Kind) -> bool {
        let heavy = |kind| matches!(kind, Kind::PowerLossOfAll | Kind::KillTwoBookies);
        let of_bookie = Kind::is_of_bookie;
        // No broker takes over while etcd is away.
        let stale = |kind| kind == Kind::StaleBroker;
        self != other
            && !(self.is_of_consumer() && other.is_of_consumer())
            && !(self.is_of_broker() && other.is_of_broker())
            && !(self.is_of_etcd() && other.is_of_etcd())
            && !(heavy(self) && of_bookie(other) || heavy(other) && of_bookie(self))
            && !(stale(self) || stale(other))
    }
}

fn both_ways(one: u8, other: u8) -> [Cut; 2] {
    [
        Cut {
            from: one,
            to: other,
        },
        Cut {
            from: other,
            to: one,
        },
    ]
}

/// Injects a fault at nodes that `taken` does not have.
///
/// # Errors
/// When a tool fails, or P16: no broker takes over from a paused one.
pub async fn inject(
    kind: Kind,
    cluster: &mut Cluster,
    traffic: &Traffic,
    rng: &dyn Rng,
    taken: &mut Vec<usize>,
) -> Result<Injected> {
    let mut injected = Injected {
        kind,
        bookies: Vec::new(),
        brokers: some_brokers(kind, rng),
        consumer: None,
        member: None,
        cuts: Vec::new(),
        balloon: None,
    };
    let count = match kind {
        Kind::KillTwoBookies => 2,
        _ if !kind.is_of_bookie() => 0,
        Kind::FlipBits | Kind::LoseVolume | Kind::PowerLossOfAll => 0,
        Kind::LoseThreeVolumes => 3,
        _ => 1,
    };
    for _ in 0..count {
        let free: Vec<usize> = (0..BOOKIES).filter(|at| !taken.contains(at)).collect();
        let at = free[usize::try_from(rng.below(free.len() as u64)).unwrap_or_default()];
        taken.push(at);
        injected.bookies.push(at);
    }
    match kind {
        Kind::FlipBits | Kind::LoseVolume => injected.bookies.push(UNLUCKY),
        Kind::PowerLossOfAll => injected.bookies.extend(0..BOOKIES),
        _ => {}
    }
    if kind.is_of_etcd() {
        of_etcd(cluster, &mut injected).await?;
    } else if kind.is_of_security() {
        of_security(cluster, kind).await?;
    } else if kind.is_of_consumer() {
        of_consumers(cluster, rng, &mut injected)?;
    } else if kind.is_of_broker() {
        of_brokers(cluster, traffic, rng, &mut injected).await?;
    } else {
        of_bookies(cluster, rng, &mut injected)?;
    }
    Ok(injected)
}

async fn of_etcd(cluster: &mut Cluster, injected: &mut Injected) -> Result<()> {
    match injected.kind {
        Kind::EtcdOutage => cluster
            .etcd
            .iter_mut()
            .try_for_each(crate::node::Node::kill),
        Kind::Compact => {
            // A member that has just come back may not answer yet.
            if let Err(error) = compact(cluster) {
                eprintln!("    metadata is not compacted now: {error:#}");
            }
            Ok(())
        }
        Kind::PauseEtcdLeader => {
            let leader = leader(cluster).await?;
            injected.member = Some(leader);
            cluster.etcd[leader].signal(Signal::STOP)
        }
        _ => {
            let leader = leader(cluster).await?;
            injected.member = Some(leader);
            cluster.etcd[leader].kill()
        }
    }
}

async fn of_security(cluster: &Cluster, kind: Kind) -> Result<()> {
    let Some(secured) = &cluster.secured else {
        return Ok(());
    };
    if kind == Kind::RotateCertificates {
        secured.renew_certificates()?;
        return cluster.reload_certificates();
    }
    // The fault beside this one may prevent it.
    if let Err(error) = secured.expire(&cluster.client()?).await {
        eprintln!("    tokens are not refused now: {error:#}");
    }
    Ok(())
}

/// Brokers that a fault concerns, the first of which a bookie may be cut off from.
fn some_brokers(kind: Kind, rng: &dyn Rng) -> Vec<usize> {
    let first = index(rng, BROKERS);
    match kind {
        Kind::KillTwoBrokers => vec![first, (first + 1) % BROKERS],
        _ => vec![first],
    }
}

async fn of_brokers(
    cluster: &mut Cluster,
    traffic: &Traffic,
    rng: &dyn Rng,
    injected: &mut Injected,
) -> Result<()> {
    let first = injected.brokers[0];
    match injected.kind {
        Kind::KillBroker | Kind::KillTwoBrokers => {
            for at in &injected.brokers {
                cluster.brokers[*at].kill()?;
            }
        }
        Kind::DrainBroker => cluster.brokers[first].terminate()?,
        Kind::MoveBundles => move_bundles(cluster, rng).await,
        Kind::StaleBroker => {
            cluster.brokers[first].signal(Signal::STOP)?;
            let progress = traffic
                .wait_for_progress(TAKEOVER, || cluster.revive())
                .await;
            // It believes that it owns what it owned, and may try whatever it had begun.
            cluster.brokers[first].signal(Signal::CONT)?;
            progress.context("taking over from a paused broker")?;
        }
        _ => {
            let broker = cluster.brokers[first].host;
            let etcd = cluster.etcd.iter().map(|node| node.host);
            let others = etcd.chain(cluster.bookies.iter().map(|bookie| bookie.node.host));
            let peers = (0..BROKERS).filter(|at| *at != first);
            let others = others.chain(peers.map(|at| cluster.brokers[at].host));
            injected.cuts = others.flat_map(|host| both_ways(broker, host)).collect();
            cluster.network.cut(&injected.cuts)?;
        }
    }
    Ok(())
}

/// Moves about half of the bundles that have an owner. Another fault may prevent it.
async fn move_bundles(cluster: &Cluster, rng: &dyn Rng) {
    let moved = async {
        let admin = cluster.client()?.admin().clone();
        for bundle in admin.list_bundles(NAMESPACE).await? {
            if bundle.broker.is_some() && rng.below(2) == 0 {
                admin
                    .transfer_bundle(NAMESPACE, &bundle.bundle, None)
                    .await?;
            }
        }
        anyhow::Ok(())
    };
    if let Err(error) = moved.await {
        eprintln!("    bundles do not move now: {error:#}");
    }
}

fn of_consumers(cluster: &mut Cluster, rng: &dyn Rng, injected: &mut Injected) -> Result<()> {
    let at = index(rng, cluster.consumers.len());
    injected.consumer = Some(at);
    match injected.kind {
        Kind::KillConsumer => cluster.consumers[at].kill(),
        Kind::PauseConsumer => cluster.consumers[at].signal(Signal::STOP),
        _ => {
            let own = cluster.consumers[at].host;
            let brokers = cluster.brokers.iter().map(|node| node.host);
            injected.cuts = brokers.flat_map(|host| both_ways(own, host)).collect();
            cluster.network.cut(&injected.cuts)
        }
    }
}

fn of_bookies(cluster: &mut Cluster, rng: &dyn Rng, injected: &mut Injected) -> Result<()> {
    let first = injected.bookies[0];
    match injected.kind {
        Kind::PowerLoss | Kind::PowerLossOfAll => {
            for at in &injected.bookies {
                cluster.bookies[*at].mount.cut_power()?;
            }
            for at in &injected.bookies {
                cluster.bookies[*at].node.kill()?;
            }
        }
        Kind::DiskError => cluster.bookies[first].mount.cut_power()?,
        Kind::DiskFull => injected.balloon = Some(fill(cluster, first)?),
        Kind::FlipBits => {
            cluster.bookies[first].node.kill()?;
            flip(cluster, rng)?;
        }
        Kind::LoseVolume | Kind::LoseThreeVolumes => {
            for at in &injected.bookies {
                cluster.lose_volume(*at)?;
            }
        }
        Kind::PauseBookie => cluster.bookies[first].node.signal(Signal::STOP)?,
        Kind::Isolate | Kind::Flap | Kind::OneWay | Kind::Partial | Kind::LeaseExpiry => {
            injected.cuts = cuts(cluster, injected, first, rng);
            cluster.network.cut(&injected.cuts)?;
        }
        _ => {
            for at in &injected.bookies {
                cluster.bookies[*at].node.kill()?;
            }
        }
    }
    Ok(())
}

fn cuts(cluster: &Cluster, injected: &Injected, bookie: usize, rng: &dyn Rng) -> Vec<Cut> {
    let kind = injected.kind;
    let host = |at: usize| cluster.bookies[at].node.host;
    let (own, broker) = (host(bookie), cluster.brokers[injected.brokers[0]].host);
    let etcd = cluster.etcd.iter().map(|node| node.host);
    match kind {
        Kind::OneWay if rng.below(2) == 0 => vec![Cut {
            from: own,
            to: broker,
        }],
        Kind::OneWay => vec![Cut {
            from: broker,
            to: own,
        }],
        Kind::Partial => both_ways(own, broker).to_vec(),
        Kind::LeaseExpiry => etcd.flat_map(|host| both_ways(own, host)).collect(),
        _ => {
            let peers = (0..BOOKIES).filter(|at| *at != bookie).map(host);
            let brokers = cluster.brokers.iter().map(|node| node.host);
            let all = etcd.chain(peers).chain(brokers).chain([CLIENTS]);
            all.flat_map(|host| both_ways(own, host)).collect()
        }
    }
}

/// Holds a fault.
///
/// # Errors
/// When a tool fails.
pub async fn hold(injected: &Injected, cluster: &mut Cluster, time: Duration) -> Result<()> {
    let time = match injected.kind {
        Kind::PauseConsumer | Kind::CutConsumer => time + UNHEARD,
        _ => time,
    };
    if injected.kind != Kind::Flap {
        sleep(time).await;
        return Ok(());
    }
    const CHANGES: u32 = 6;
    for change in 0..CHANGES {
        sleep(time / CHANGES).await;
        // An odd number of changes is left to what heals it: it ends cut, as it began.
        match change % 2 {
            0 => cluster.network.mend(&injected.cuts)?,
            _ => cluster.network.cut(&injected.cuts)?,
        }
    }
    Ok(())
}

/// Ends a fault: what is dead starts again, what is cut is mended.
///
/// # Errors
/// When a tool fails.
pub async fn heal(injected: Injected, cluster: &mut Cluster) -> Result<()> {
    if !injected.cuts.is_empty() {
        cluster.network.mend(&injected.cuts)?;
    }
    if let Some(balloon) = injected.balloon {
        std::fs::remove_file(&balloon)?;
        // A power cut soon after would bring it back.
        let folder = balloon.parent().context("a balloon is in a folder")?;
        std::fs::File::open(folder)?.sync_all()?;
    }
    match injected.kind {
        Kind::EtcdOutage => {
            for at in 0..MEMBERS {
                cluster.etcd[at].start(&cluster.network)?;
            }
        }
        Kind::DrainBroker => {
            cluster.brokers[injected.brokers[0]]
                .wait_ended(DRAIN)
                .await?
        }
        Kind::PauseBookie => {
            for at in &injected.bookies {
                cluster.bookies[*at].node.signal(Signal::CONT)?;
            }
        }
        Kind::PowerLoss | Kind::PowerLossOfAll | Kind::DiskError => {
            for at in &injected.bookies {
                let bookie = &mut cluster.bookies[*at];
                bookie.node.kill()?;
                bookie.mount.power_up()?;
            }
        }
        _ => {}
    }
    if let Some(member) = injected.member {
        cluster.etcd[member].signal(Signal::CONT)?;
        cluster.etcd[member].start(&cluster.network)?;
    }
    if let Some(at) = injected.consumer {
        cluster.consumers[at].signal(Signal::CONT)?;
        cluster.consumers[at].start(&cluster.network)?;
    }
    for at in injected.bookies {
        cluster.bookies[at].node.start(&cluster.network)?;
    }
    for at in injected.brokers {
        cluster.brokers[at].start(&cluster.network)?;
    }
    Ok(())
}

/// Fills a bookie's disk to the last block.
fn fill(cluster: &Cluster, at: usize) -> Result<PathBuf> {
    let mount = &cluster.bookies[at].mount;
    let balloon = mount.path().join("balloon");
    let bytes = mount.available()?.saturating_sub(1 << 20).to_string();
    run(Command::new("fallocate").args(["-l", &bytes]).arg(&balloon))?;
    Ok(balloon)
}

/// Flips a bit in up to four files of the unlucky bookie, where there is something: much of a
/// journal is zeros that are never read.
fn flip(cluster: &Cluster, rng: &dyn Rng) -> Result<()> {
    let folder = data_dir(&cluster.bookies[UNLUCKY].mount);
    if !folder.exists() {
        // The fault beside this one took the disk a moment ago.
        return Ok(());
    }
    let mut candidates = Vec::new();
    for suffix in [".sst", ".blob", ".aqj"] {
        candidates.extend(files(&folder, suffix)?);
    }
    for _ in 0..4 {
        let Some(path) = candidates.get(index(rng, candidates.len())) else {
            return Ok(());
        };
        let bytes = std::fs::read(path)?;
        let used: Vec<usize> = (0..64).map(|_| index(rng, bytes.len())).collect();
        let used = used
            .into_iter()
            .find(|at| bytes.get(*at).is_some_and(|byte| *byte != 0));
        if let Some(at) = used {
            flip_bit(path, at as u64)?;
            eprintln!("    flipped a bit in {} at {at}", path.display());
        }
    }
    Ok(())
}

fn index(rng: &dyn Rng, count: usize) -> usize {
    usize::try_from(rng.below((count as u64).max(1))).unwrap_or_default()
}

/// Which member leads; without one, the first that runs.
async fn leader(cluster: &Cluster) -> Result<usize> {
    for _ in 0..50 {
        for (at, node) in cluster.etcd.iter().enumerate() {
            let endpoint = cluster.address(node, 2379);
            let status = etcdctl(&endpoint, &["endpoint", "status", "--write-out", "json"]);
            let status: serde_json::Value = match status.map(|text| serde_json::from_str(&text)) {
                Ok(Ok(status)) => status,
                _ => continue,
            };
            let status = &status[0]["Status"];
            if status["leader"].is_u64() && status["leader"] == status["header"]["member_id"] {
                return Ok(at);
            }
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(0)
}

fn compact(cluster: &Cluster) -> Result<()> {
    let endpoint = cluster.address(&cluster.etcd[0], 2379);
    let status = etcdctl(&endpoint, &["endpoint", "status", "--write-out", "json"])?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    let revision = status[0]["Status"]["header"]["revision"]
        .as_u64()
        .context("a revision")?;
    etcdctl(&endpoint, &["compact", &revision.to_string()]).map(|_| ())
}

fn etcdctl(endpoint: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("etcdctl");
    command
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", endpoint, "--command-timeout", "2s"])
        .args(arguments);
    run(&mut command)
}
