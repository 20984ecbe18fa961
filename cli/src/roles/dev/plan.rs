//! Which processes a cluster consists of, with their ports, directories and commands.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use aquifer_runtime::net::reserve::{Reserved, reserve};
use aquifer_runtime::net::{self, ListenAddress, NetError};
use aquifer_runtime::rng::SystemRng;
use serde_json::json;

use crate::args::DevArgs;
use crate::certificates::{self, Request};
use crate::exit::CliError;
use crate::first_token;
use crate::private_file;
use crate::roles::dev::etcd;
use crate::roles::settings::ClusterSection;

/// The name of every cluster of this kind.
pub const CLUSTER: &str = "dev";

/// What a cluster shall be.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where everything is stored.
    pub data_dir: PathBuf,
    /// How many bookies.
    pub bookies: u16,
    /// How many brokers.
    pub brokers: u16,
    /// Where the first broker listens.
    pub grpc_addr: ListenAddress,
    /// This program.
    pub aquifer: PathBuf,
    /// etcd.
    pub etcd: PathBuf,
    /// Whether clients, brokers and bookies use TLS.
    pub tls: bool,
    /// Whether callers must show tokens.
    pub auth: bool,
}

/// What a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Coordination.
    Etcd,
    /// Storage.
    Bookie,
    /// Topics.
    Broker,
}

impl Role {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Role::Etcd => "etcd",
            Role::Bookie => "bookie",
            Role::Broker => "broker",
        }
    }
}

/// A process to run.
#[derive(Debug, Clone)]
pub struct Spec {
    /// What it is.
    pub role: Role,
    /// What it is called.
    pub name: String,
    /// Where it is reached.
    pub address: String,
    /// Where it answers health checks and metrics.
    pub http: SocketAddr,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
}

impl Plan {
    /// Checks what was asked for.
    ///
    /// # Errors
    /// When it is not possible: exit code 2, or 1 when etcd is missing.
    pub fn new(args: &DevArgs) -> Result<Plan, CliError> {
        if args.bookies == 0 || args.brokers == 0 {
            return Err(CliError::usage("a cluster needs a bookie and a broker"));
        }
        let failed = |error| CliError::failed(format!("cannot find this program: {error}"));
        let absolute = std::path::absolute(&args.data_dir)
            .map_err(|error| CliError::usage(format!("--data-dir: {error}")))?;
        Ok(Plan {
            data_dir: absolute,
            bookies: args.bookies,
            brokers: args.brokers,
            grpc_addr: args.grpc_addr,
            aquifer: std::env::current_exe().map_err(failed)?,
            etcd: etcd::find()?,
            // Brokers know each other by their certificates.
            tls: args.tls || args.auth,
            auth: args.auth,
        })
    }

    /// Where a process logs.
    pub fn log(&self, name: &str) -> PathBuf {
        self.data_dir.join("logs").join(format!("{name}.log"))
    }

    /// etcd, on these two addresses.
    pub fn etcd(&self, client: SocketAddr, peer: SocketAddr) -> Spec {
        Spec {
            role: Role::Etcd,
            name: "etcd".to_owned(),
            address: format!("http://{client}"),
            http: client,
            program: self.etcd.clone(),
            arguments: etcd::arguments(&self.data_dir.join("etcd"), client, peer),
        }
    }

    /// A bookie, numbered from 1.
    pub fn bookie(&self, number: u16, etcd: SocketAddr, api: SocketAddr, http: SocketAddr) -> Spec {
        let name = format!("bookie-{number}");
        let data_dir = self.data_dir.join(&name);
        let mut arguments = self.role("bookie", etcd, http);
        arguments.extend(["--data-dir".to_owned(), text(&data_dir)]);
        arguments.extend(["--bookie-addr".to_owned(), api.to_string()]);
        Spec {
            role: Role::Bookie,
            name,
            address: api.to_string(),
            http,
            program: self.aquifer.clone(),
            arguments,
        }
    }

    /// A broker, numbered from 1.
    pub fn broker(
        &self,
        number: u16,
        etcd: SocketAddr,
        grpc: SocketAddr,
        http: SocketAddr,
    ) -> Spec {
        let mut arguments = self.role("broker", etcd, http);
        arguments.extend(["--grpc-addr".to_owned(), grpc.to_string()]);
        arguments.extend(["--quorum".to_owned(), self.quorum().to_owned()]);
        if self.auth {
            arguments.push("--auth".to_owned());
        }
        Spec {
            role: Role::Broker,
            name: format!("broker-{number}"),
            address: match self.tls {
                true => format!("https://{grpc}"),
                false => format!("http://{grpc}"),
            },
            http,
            program: self.aquifer.clone(),
            arguments,
        }
    }

    fn role(&self, role: &str, etcd: SocketAddr, http: SocketAddr) -> Vec<String> {
        let metadata = format!("etcd://{etcd}");
        let http = http.to_string();
        let mut arguments = [
            role,
            "--output",
            "json",
            "--cluster",
            CLUSTER,
            "--metadata",
            &metadata,
            "--http-addr",
            &http,
        ]
        .map(str::to_owned)
        .to_vec();
        if self.tls {
            arguments.extend(["--config".to_owned(), text(&self.settings(role))]);
        }
        arguments
    }

    /// The authority that clients believe, with TLS.
    pub fn ca_file(&self) -> Option<PathBuf> {
        self.tls.then(|| self.data_dir.join("tls").join("ca.pem"))
    }

    /// The administrator's token, where callers must show tokens.
    pub fn token_file(&self) -> Option<PathBuf> {
        self.auth.then(|| self.data_dir.join("admin.token"))
    }

    /// Makes the administrator's token, unless the cluster has one.
    ///
    /// # Errors
    /// When etcd does not answer, or the file cannot be written.
    pub async fn make_token(&self, etcd: SocketAddr) -> Result<(), CliError> {
        let Some(path) = self.token_file() else {
            return Ok(());
        };
        let cluster = ClusterSection {
            name: CLUSTER.to_owned(),
            metadata: format!("etcd://{etcd}"),
            ..ClusterSection::default()
        };
        let save = |token: &str| private_file::replace(&path, &format!("{token}\n"));
        first_token::make(&cluster, save).await.map(|_| ())
    }

    /// The file with the TLS settings of a role.
    fn settings(&self, role: &str) -> PathBuf {
        self.data_dir.join("tls").join(format!("{role}.toml"))
    }

    /// Makes certificates that are not there yet, and the settings that name them.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn certify(&self) -> Result<(), CliError> {
        if !self.tls {
            return Ok(());
        }
        let dir = self.data_dir.join("tls");
        certificates::make(&Request {
            dir: dir.clone(),
            cluster: CLUSTER.to_owned(),
            days: 365,
            ..Request::default()
        })?;
        let file = |name: &str| text(&dir.join(name));
        for role in ["broker", "bookie"] {
            let mut settings = json!({
                "internal_tls": {
                    "cert_file": file(&format!("{role}.pem")),
                    "key_file": file(&format!("{role}.key")),
                    "ca_file": file("ca.pem"),
                },
            });
            if role == "broker" {
                settings["protocols"] = json!({"grpc": {"tls": {
                    "cert_file": file("server.pem"),
                    "key_file": file("server.key"),
                    "client_ca_file": file("ca.pem"),
                    "client_certificates": "optional",
                }}});
            }
            let failed = |error: &dyn std::fmt::Display| {
                CliError::failed(format!("cannot write the settings of TLS: {error}"))
            };
            let written = toml::to_string(&settings).map_err(|error| failed(&error))?;
            std::fs::write(self.settings(role), written).map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    /// What the bookies allow, up to the default of clusters.
    fn quorum(&self) -> &'static str {
        match self.bookies {
            0 | 1 => "1,1,1",
            2 => "2,2,1",
            _ => "3,3,2",
        }
    }
}

impl Spec {
    /// The command, for a shell, which starts the process again after it was killed.
    pub fn command(&self) -> String {
        let program = self.program.to_string_lossy();
        let words = std::iter::once(&*program).chain(self.arguments.iter().map(String::as_str));
        words.map(quoted).collect::<Vec<_>>().join(" ")
    }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Addresses for processes that are started next, and what keeps them for these processes.
///
/// # Errors
/// When there are none, or the wanted address is taken.
pub async fn free_addresses(
    wanted: Vec<ListenAddress>,
) -> Result<(Vec<SocketAddr>, Vec<Reserved>), CliError> {
    let taken = |error: NetError| CliError::failed(error.to_string());
    let any = ListenAddress::loopback_any_port();
    // Those that were asked for are held until the others are drawn, which are then not the same.
    let mut held = Vec::new();
    for address in wanted.iter().filter(|address| **address != any) {
        held.push(net::bind(*address).await.map_err(taken)?);
    }
    let mut named = held.iter().map(|(_, address)| *address);
    let mut addresses = Vec::with_capacity(wanted.len());
    let mut reserved = Vec::with_capacity(wanted.len());
    for address in wanted {
        if address == any {
            let port = reserve(&SystemRng).map_err(taken)?;
            addresses.push(port.address());
            reserved.push(port);
        } else {
            addresses.extend(named.next());
        }
    }
    Ok((addresses, reserved))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(bookies: u16) -> Plan {
        Plan {
            data_dir: "/tmp/a cluster".into(),
            bookies,
            brokers: 1,
            grpc_addr: ListenAddress::loopback_any_port(),
            aquifer: "/bin/aquifer".into(),
            etcd: "/bin/etcd".into(),
            tls: false,
            auth: false,
        }
    }

    #[test]
    fn a_command_can_be_typed() {
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let command = plan(3).bookie(2, at(1), at(2), at(3)).command();
        assert!(command.starts_with("/bin/aquifer bookie "), "{command}");
        assert!(
            command.contains("--metadata etcd://127.0.0.1:1 "),
            "{command}"
        );
        assert!(command.contains("'/tmp/a cluster/bookie-2'"), "{command}");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn few_bookies_make_a_small_quorum() {
        for (bookies, quorum) in [(1, "1,1,1"), (2, "2,2,1"), (3, "3,3,2"), (7, "3,3,2")] {
            assert_eq!(plan(bookies).quorum(), quorum);
        }
    }

    #[tokio::test]
    async fn ports_are_distinct_and_a_taken_one_is_named() {
        let any = ListenAddress::loopback_any_port();
        let (found, _reserved) = free_addresses(vec![any; 3]).await.unwrap();
        let distinct: std::collections::BTreeSet<_> = found.iter().collect();
        assert_eq!(distinct.len(), 3);
        let (held, address) = net::bind(any).await.unwrap();
        let taken = free_addresses(vec![ListenAddress::new(address)]).await;
        assert!(
            taken
                .unwrap_err()
                .to_string()
                .contains(&address.to_string())
        );
        drop(held);
    }
}
