//! The cluster under test: three members of etcd, five bookies on file systems of their own, and
//! three brokers.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aquifer_client::Client;
use aquifer_harness::mount::Mount;
use rustix::process::Signal;

use crate::net::Network;
use crate::node::Node;
use crate::secured::Secured;
use crate::workload::{name_of, processes};

/// The name of the cluster.
pub const NAME: &str = "chaos";
/// Members of etcd.
pub const MEMBERS: usize = 3;
/// Brokers.
pub const BROKERS: usize = 3;
/// Bookies.
pub const BOOKIES: usize = 5;
/// The only bookie whose data is ever damaged or lost for good: with an ack quorum of two, one copy
/// may be lost of each entry, not two (I2).
pub const UNLUCKY: usize = BOOKIES - 1;
/// The size of a bookie's disk, which is a sparse file.
const DISK_BYTES: u64 = 6 << 30;

const ETCD_HOST: u8 = 11;
const BOOKIE_HOST: u8 = 21;
const BROKER_HOST: u8 = 31;
const CONSUMER_HOST: u8 = 41;

/// A bookie and its disk.
#[derive(Debug)]
pub struct Disked {
    /// The process.
    pub node: Node,
    /// The disk.
    pub mount: Mount,
}

/// The cluster.
#[derive(Debug)]
pub struct Cluster {
    /// etcd.
    pub etcd: Vec<Node>,
    /// Storage.
    pub bookies: Vec<Disked>,
    /// Brokers.
    pub brokers: Vec<Node>,
    /// Processes that consume.
    pub consumers: Vec<Node>,
    /// The network.
    pub network: Network,
    /// With TLS and authentication.
    pub secured: Option<Secured>,
    folder: PathBuf,
    /// Processes that ended by themselves, and how often.
    pub endings: BTreeMap<String, u32>,
}

impl Cluster {
    /// Starts everything on files below `folder`.
    ///
    /// # Errors
    /// When something cannot be made.
    pub fn start(
        folder: &Path,
        aquifer: &Path,
        bookie_config: &str,
        is_secured: bool,
    ) -> Result<Cluster> {
        let logs = folder.join("logs");
        fs::create_dir_all(&logs)?;
        let mut network = Network::new()?;
        let secured = match is_secured {
            true => Some(Secured::create(folder, NAME, addresses(&network))?),
            false => None,
        };
        let etcd = etcd(folder, &logs, &mut network)?;
        let settings = |role| secured.as_ref().map(|secured| secured.settings(role));
        let bookie_config = bookie_config.to_owned() + &settings("bookie").unwrap_or_default();
        let bookies = bookies(folder, &logs, aquifer, &bookie_config, &mut network)?;
        let brokers = brokers(folder, &logs, aquifer, settings("broker"), &mut network)?;
        let mut urls = Vec::new();
        for node in &brokers {
            urls.push(broker_url(&network, node, is_secured));
        }
        let consumers = consumers(folder, &logs, &urls, secured.as_ref(), &mut network)?;
        let mut cluster = Cluster {
            etcd,
            bookies,
            brokers,
            consumers,
            network,
            secured,
            folder: folder.to_owned(),
            endings: BTreeMap::new(),
        };
        for node in &mut cluster.etcd {
            node.start(&cluster.network)?;
        }
        for bookie in &mut cluster.bookies {
            bookie.node.start(&cluster.network)?;
        }
        for broker in &mut cluster.brokers {
            broker.start(&cluster.network)?;
        }
        Ok(cluster)
    }

    /// Starts again what has ended by itself, as an orchestrator would: without waiting for it.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn revive(&mut self) -> Result<()> {
        let bookies = self.bookies.iter_mut().map(|bookie| &mut bookie.node);
        let nodes = self.etcd.iter_mut().chain(bookies).chain(&mut self.brokers);
        for consumer in &mut self.consumers {
            // Only a violation ends it: what is to be tried again it tries again.
            if let Some(how) = consumer.revive(&self.network)? {
                bail!("{how}: {}", consumer.text());
            }
        }
        for node in nodes {
            if let Some(how) = node.revive(&self.network)? {
                eprintln!("    {how}");
                *self.endings.entry(how).or_default() += 1;
            }
        }
        Ok(())
    }

    /// Starts the processes that consume.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn start_consumers(&mut self) -> Result<()> {
        let mut all = self.consumers.iter_mut();
        all.try_for_each(|node| node.start(&self.network))
    }

    /// Ends them.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill_consumers(&mut self) -> Result<()> {
        self.consumers.iter_mut().try_for_each(Node::kill)
    }

    /// Where the files of this run are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Gives a bookie an empty disk: it is another bookie now, at the address of the lost one.
    ///
    /// # Errors
    /// When its files cannot be removed.
    pub fn lose_volume(&mut self, at: usize) -> Result<()> {
        let bookie = &mut self.bookies[at];
        bookie.node.kill()?;
        fs::remove_dir_all(data_dir(&bookie.mount))?;
        bookie.node.ended = 0;
        bookie.node.start(&self.network)
    }

    /// Kills all brokers, and starts some of them.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn replace_brokers(&mut self, with: impl IntoIterator<Item = usize>) -> Result<()> {
        self.brokers.iter_mut().try_for_each(Node::kill)?;
        for at in with {
            self.brokers[at].start(&self.network)?;
        }
        Ok(())
    }

    /// A client that knows all brokers.
    ///
    /// # Errors
    /// When its settings are refused.
    pub fn client(&self) -> Result<Client> {
        let urls = self.broker_urls();
        match &self.secured {
            Some(secured) => secured.client(&urls),
            None => Ok(Client::builder().urls(urls).build()?),
        }
    }

    /// The URLs of the brokers.
    pub fn broker_urls(&self) -> Vec<String> {
        let is_secured = self.secured.is_some();
        let url = |node| broker_url(&self.network, node, is_secured);
        self.brokers.iter().map(url).collect()
    }

    /// What tools that reach bookies are told besides others.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn tool_arguments(&self) -> Result<Vec<String>> {
        let Some(secured) = &self.secured else {
            return Ok(Vec::new());
        };
        let file = secured.tool_settings()?.display().to_string();
        Ok(vec!["--config".to_owned(), file])
    }

    /// Has every process look at its certificates.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn reload_certificates(&self) -> Result<()> {
        let bookies = self.bookies.iter().map(|bookie| &bookie.node);
        let mut all = bookies.chain(&self.brokers);
        all.try_for_each(|node| node.signal(Signal::HUP))
    }

    /// The URLs of etcd's members.
    pub fn etcd_urls(&self) -> Vec<String> {
        self.etcd.iter().map(|node| self.url(node, 2379)).collect()
    }

    /// The same, as `--metadata` takes it.
    pub fn metadata(&self) -> String {
        metadata(&self.network)
    }

    fn url(&self, node: &Node, port: u16) -> String {
        format!("http://{}:{port}", self.network.address(node.host))
    }

    /// Where an address of the cluster answers HTTP.
    pub fn address(&self, node: &Node, port: u16) -> String {
        format!("{}:{port}", self.network.address(node.host))
    }

    /// Everything that all processes have logged, one after the other, by name.
    pub fn logs(&self) -> Vec<(String, String)> {
        let bookies = self.bookies.iter().map(|bookie| &bookie.node);
        let nodes = self.etcd.iter().chain(bookies).chain(&self.brokers);
        nodes.map(|node| (node.name.clone(), node.text())).collect()
    }
}

fn broker_url(network: &Network, node: &Node, is_secured: bool) -> String {
    let scheme = if is_secured { "https" } else { "http" };
    format!("{scheme}://{}:7650", network.address(node.host))
}

/// Where bookies and brokers are.
fn addresses(network: &Network) -> Vec<String> {
    let hosts = (BOOKIE_HOST..).take(BOOKIES);
    let hosts = hosts.chain((BROKER_HOST..).take(BROKERS));
    hosts.map(|host| network.address(host)).collect()
}

/// Where a bookie stores.
pub fn data_dir(mount: &Mount) -> PathBuf {
    mount.path().join("data")
}

fn metadata(network: &Network) -> String {
    let members: Vec<String> = (ETCD_HOST..)
        .take(MEMBERS)
        .map(|host| format!("{}:2379", network.address(host)))
        .collect();
    format!("etcd://{}", members.join(","))
}

fn etcd(folder: &Path, logs: &Path, network: &mut Network) -> Result<Vec<Node>> {
    let hosts = || (ETCD_HOST..).take(MEMBERS);
    let cluster: Vec<String> = hosts()
        .map(|host| format!("e{host}=http://{}:2380", network.address(host)))
        .collect();
    let program = which("etcd")?;
    let mut nodes = Vec::new();
    for host in hosts() {
        network.add(host)?;
        let url = |port: u16| format!("http://{}:{port}", network.address(host));
        let name = format!("e{host}");
        let data = folder.join(&name).display().to_string();
        let arguments = [
            ("--name", name.as_str()),
            ("--data-dir", &data),
            ("--listen-client-urls", &url(2379)),
            ("--advertise-client-urls", &url(2379)),
            ("--listen-peer-urls", &url(2380)),
            ("--initial-advertise-peer-urls", &url(2380)),
            ("--initial-cluster", &cluster.join(",")),
            ("--initial-cluster-token", NAME),
            ("--heartbeat-interval", "100"),
            ("--election-timeout", "1000"),
            ("--logger", "zap"),
            ("--log-outputs", "stderr"),
        ];
        let arguments = arguments.iter().flat_map(|(name, value)| [name, value]);
        let arguments = arguments.map(ToString::to_string).collect();
        nodes.push(Node::new(&name, host, &program, arguments, logs));
    }
    Ok(nodes)
}

/// Everything that waits for hours in production happens within seconds here.
pub const BOOKIE_CONFIG: &str = "
[etcd]
lease_ms = 3000
[bookie]
journal_segment_bytes = 16777216
memtable_bytes = 4194304
read_only_below_free_bytes = 67108864
writable_above_free_bytes = 134217728
quiet_flush_ms = 2000
scrub_bytes_per_second = 33554432
scrub_pause_ms = 5000
[autorecovery]
deletions_poll_ms = 2000
local_audit_ms = 60000
[autorecovery.replication]
lost_after_ms = 12000
open_ledger_grace_ms = 5000
poll_ms = 1000
audit_ms = 1000
scan_ms = 20000
orphan_audit_ms = 60000
orphan_age_ms = 120000
";
/// And every ledger is checked once a minute.
pub const CHECKS: &str = "check_cycle_ms = 60000\n";

fn role(
    network: &mut Network,
    folder: &Path,
    host: u8,
    name: &str,
    config: &str,
) -> Result<Vec<String>> {
    network.add(host)?;
    let file = folder.join(format!("{name}.toml"));
    fs::write(&file, config)?;
    let file = file.display().to_string();
    let http = format!("{}:7680", network.address(host));
    let metadata = metadata(network);
    let arguments = [
        "--output",
        "json",
        "--cluster",
        NAME,
        "--metadata",
        &metadata,
        "--http-addr",
        &http,
        "--config",
        &file,
        "--allow-remote",
    ];
    Ok(arguments.map(ToOwned::to_owned).to_vec())
}

fn bookies(
    folder: &Path,
    logs: &Path,
    aquifer: &Path,
    config: &str,
    network: &mut Network,
) -> Result<Vec<Disked>> {
    let mut bookies = Vec::new();
    for (number, host) in (BOOKIE_HOST..).take(BOOKIES).enumerate() {
        let name = format!("bookie-{}", number + 1);
        let own = folder.join(&name);
        fs::create_dir_all(&own)?;
        let mount = Mount::ext4(&own, DISK_BYTES)?;
        let mut arguments = vec!["bookie".to_owned()];
        arguments.extend(role(network, folder, host, &name, config)?);
        arguments.extend([
            "--bookie-addr".to_owned(),
            format!("{}:7651", network.address(host)),
        ]);
        arguments.extend([
            "--data-dir".to_owned(),
            data_dir(&mount).display().to_string(),
        ]);
        let node = Node::new(&name, host, aquifer, arguments, logs);
        bookies.push(Disked { node, mount });
    }
    Ok(bookies)
}

fn brokers(
    folder: &Path,
    logs: &Path,
    aquifer: &Path,
    secured: Option<String>,
    network: &mut Network,
) -> Result<Vec<Node>> {
    let auth = secured.is_some().then(|| "--auth".to_owned());
    let config = "[etcd]\nlease_ms = 3000\n".to_owned() + &secured.unwrap_or_default();
    let mut brokers = Vec::new();
    for (number, host) in (BROKER_HOST..).take(BROKERS).enumerate() {
        let name = format!("broker-{}", number + 1);
        let mut arguments = vec!["broker".to_owned()];
        arguments.extend(role(network, folder, host, &name, &config)?);
        arguments.extend(auth.clone());
        arguments.extend([
            "--grpc-addr".to_owned(),
            format!("{}:7650", network.address(host)),
        ]);
        brokers.push(Node::new(&name, host, aquifer, arguments, logs));
    }
    Ok(brokers)
}

fn consumers(
    folder: &Path,
    logs: &Path,
    urls: &[String],
    secured: Option<&Secured>,
    network: &mut Network,
) -> Result<Vec<Node>> {
    let program = std::env::current_exe()?;
    let shown = secured.map(|secured| {
        let file = |path: PathBuf| path.display().to_string();
        [
            "--ca-file".to_owned(),
            file(secured.ca_file()),
            "--token-file".to_owned(),
            file(secured.consumer_token()),
        ]
    });
    let mut nodes = Vec::new();
    for (host, (kind, name)) in (CONSUMER_HOST..).zip(processes()) {
        network.add(host)?;
        let arguments = [
            ("--urls", urls.join(",")),
            ("--kind", name_of(kind.into())),
            ("--name", name.clone()),
            ("--folder", folder.display().to_string()),
        ];
        let arguments = arguments.into_iter().flat_map(|(k, v)| [k.to_owned(), v]);
        let arguments = std::iter::once("consume".to_owned()).chain(arguments);
        let arguments = arguments.chain(shown.iter().flatten().cloned());
        nodes.push(Node::new(&name, host, &program, arguments.collect(), logs));
    }
    Ok(nodes)
}

fn which(program: &str) -> Result<PathBuf> {
    let path = aquifer_runtime::config::env("PATH").unwrap_or_default();
    let mut found = path
        .split(':')
        .map(|folder| Path::new(folder).join(program));
    let found = found.find(|candidate| File::open(candidate).is_ok());
    found.with_context(|| format!("{program} is missing: tools/prerequisites.sh installs it"))
}
