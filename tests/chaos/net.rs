//! A network of its own for a run: a namespace per process, joined by a bridge, so that any
//! direction between any two of them can be cut without either noticing more than silence.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use aquifer_harness::command::run;

/// Where clients are: outside of every namespace.
pub const CLIENTS: u8 = 1;

/// What no longer arrives: everything from one host to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cut {
    /// The host that is not heard.
    pub from: u8,
    /// The host that does not hear.
    pub to: u8,
}

/// The network; it is taken down when dropped.
#[derive(Debug)]
pub struct Network {
    id: u32,
    hosts: Vec<u8>,
    cuts: BTreeMap<Cut, u32>,
}

/// Whether this system lets us have such a network: some containers do not.
pub fn is_possible() -> bool {
    let (bridge, space) = ("aqprobe", format!("aqprobe{}", std::process::id()));
    let made = ip(&["netns", "add", &space])
        .and_then(|()| ip(&["netns", "exec", &space, "nft", "list", "ruleset"]))
        .and_then(|()| {
            ip(&["-n", &space, "link", "add", bridge, "type", "bridge"])?;
            ip(&[
                "-n", &space, "link", "add", "aqp0", "type", "veth", "peer", "name", "aqp1",
            ])
        });
    let _ = ip(&["netns", "del", &space]);
    made.is_ok()
}

impl Network {
    /// Builds the bridge.
    ///
    /// # Errors
    /// Without the rights or the tools for it.
    pub fn new() -> Result<Network> {
        sweep();
        let network = Network {
            id: std::process::id(),
            hosts: Vec::new(),
            cuts: BTreeMap::new(),
        };
        let bridge = network.bridge();
        ip(&["link", "add", &bridge, "type", "bridge"])?;
        ip(&[
            "addr",
            "add",
            &format!("{}/24", network.address(CLIENTS)),
            "dev",
            &bridge,
        ])?;
        ip(&["link", "set", &bridge, "up"])?;
        Ok(network)
    }

    /// The address of a host.
    pub fn address(&self, host: u8) -> String {
        format!("10.{}.{}.{host}", 200 + (self.id >> 8) % 50, self.id & 255)
    }

    fn bridge(&self) -> String {
        format!("aqb{}", self.id)
    }

    fn namespace(&self, host: u8) -> String {
        format!("aq{}-{host}", self.id)
    }

    /// Adds a host with a namespace of its own.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn add(&mut self, host: u8) -> Result<()> {
        let (space, outside) = (self.namespace(host), format!("aqv{}-{host}", self.id));
        ip(&["netns", "add", &space])?;
        self.hosts.push(host);
        ip(&[
            "link", "add", &outside, "type", "veth", "peer", "name", "eth0", "netns", &space,
        ])?;
        ip(&["link", "set", &outside, "master", &self.bridge(), "up"])?;
        ip(&[
            "-n",
            &space,
            "addr",
            "add",
            &format!("{}/24", self.address(host)),
            "dev",
            "eth0",
        ])?;
        ip(&["-n", &space, "link", "set", "eth0", "up"])?;
        ip(&["-n", &space, "link", "set", "lo", "up"])
    }

    /// A command on a host; it dies with this process.
    pub fn command(&self, host: u8, program: &Path) -> Command {
        // `ip netns exec` would also give it mounts of its own, which keep file systems alive that
        // are unmounted here.
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/var/run/netns/{}", self.namespace(host)))
            .args(["setpriv", "--pdeathsig", "KILL"])
            .arg(program);
        command
    }

    /// Cuts these directions, beside those that are cut already.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn cut(&mut self, cuts: &[Cut]) -> Result<()> {
        for cut in cuts {
            *self.cuts.entry(*cut).or_default() += 1;
        }
        self.apply(cuts)
    }

    /// Mends what one [`Network::cut`] cut.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn mend(&mut self, cuts: &[Cut]) -> Result<()> {
        for cut in cuts {
            if let Some(count) = self.cuts.get_mut(cut) {
                *count -= 1;
            }
        }
        self.cuts.retain(|_, count| *count > 0);
        self.apply(cuts)
    }

    /// Writes the rules of every host that these concern.
    fn apply(&self, changed: &[Cut]) -> Result<()> {
        let mut hosts: Vec<u8> = changed.iter().map(|cut| filter_host(*cut)).collect();
        hosts.sort_unstable();
        hosts.dedup();
        hosts.into_iter().try_for_each(|host| self.rules(host))
    }

    fn rules(&self, host: u8) -> Result<()> {
        let (mut input, mut output) = (String::new(), String::new());
        for cut in self.cuts.keys().filter(|cut| filter_host(**cut) == host) {
            // Writing to a String cannot fail.
            let _ = match cut.to == host {
                true => writeln!(input, "ip saddr {} drop", self.address(cut.from)),
                false => writeln!(output, "ip daddr {} drop", self.address(cut.to)),
            };
        }
        let rules = format!(
            "table inet chaos\ndelete table inet chaos\ntable inet chaos {{\n\
             chain in {{\ntype filter hook input priority 0;\n{input}\n}}\n\
             chain out {{\ntype filter hook output priority 0;\n{output}\n}}\n}}\n"
        );
        let mut nft = Command::new("ip");
        nft.args(["netns", "exec", &self.namespace(host), "nft", "-f", "-"]);
        let mut nft = nft
            .stdin(Stdio::piped())
            .spawn()
            .context("nft cannot be run")?;
        let mut stdin = nft.stdin.take().context("stdin is piped")?;
        stdin.write_all(rules.as_bytes())?;
        drop(stdin);
        ensure!(nft.wait()?.success(), "nft refused:\n{rules}");
        Ok(())
    }
}

/// Whose filter drops it: the receiver's, but clients have none.
fn filter_host(cut: Cut) -> u8 {
    if cut.to == CLIENTS { cut.from } else { cut.to }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in &self.hosts {
            let _ = ip(&["netns", "del", &self.namespace(*host)]);
        }
        let _ = ip(&["link", "del", &self.bridge()]);
    }
}

/// Takes down what runs left behind that were killed.
fn sweep() {
    let list = |arguments: &[&str]| {
        let output = Command::new("ip").args(arguments).output();
        output
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
            .unwrap_or_default()
    };
    let is_dead = |id: &str| !id.is_empty() && !Path::new("/proc").join(id).exists();
    for line in list(&["netns", "list"]).lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let id = name
            .strip_prefix("aq")
            .and_then(|rest| rest.split_once('-'));
        if id.is_some_and(|(id, _)| is_dead(id)) {
            let _ = ip(&["netns", "del", name]);
        }
    }
    for line in list(&["-o", "link", "show", "type", "bridge"]).lines() {
        let name = line.split(": ").nth(1).unwrap_or_default();
        if name.strip_prefix("aqb").is_some_and(is_dead) {
            let _ = ip(&["link", "del", name]);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    run(Command::new("ip").args(arguments)).map(drop)
}
