//! Settings that several roles have: defaults, then the file, then the environment
//! (`AQUIFER_SECTION_KEY`), then the flags. Each part gets its own section.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aquifer_bookie::BookieConfig;
use aquifer_ledger::context::LedgerSettings;
use aquifer_model::quorum::Quorum;
use aquifer_runtime::clock;
use aquifer_runtime::config::{self, Secret};
use aquifer_runtime::net::ListenAddress;
use aquifer_runtime::net::tls::ServerTlsConfig;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::args::ClusterArgs;
use crate::exit::CliError;
use crate::roles::tls::InternalTls;

/// What every environment variable begins with.
const ENV_PREFIX: &str = "AQUIFER";
const LOOPBACK: [u8; 4] = [127, 0, 0, 1];
/// Where etcd listens by default.
const DEFAULT_METADATA: &str = "etcd://127.0.0.1:2379";
/// The name of a cluster that was given none.
pub const DEFAULT_CLUSTER: &str = "aquifer";

/// Loads a configuration from its file and the environment.
///
/// # Errors
/// When a file cannot be read, or a value is not allowed: exit code 2.
pub fn load<T>(file: Option<&Path>) -> Result<(T, Vec<String>), CliError>
where
    T: DeserializeOwned + Serialize + Default,
{
    let loaded =
        config::load::<T>(file, ENV_PREFIX).map_err(|error| CliError::usage(error.to_string()))?;
    Ok((loaded.config, loaded.unknown_keys))
}

/// An address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenConfig {
    /// Where it listens; port 0 takes a free one.
    pub listen: ListenAddress,
}

impl ListenConfig {
    /// A port of the loopback interface.
    pub fn on_port(port: u16) -> ListenConfig {
        ListenConfig {
            listen: ListenAddress::new((LOOPBACK, port).into()),
        }
    }
}

/// The port of health checks, metrics and, where there is a broker, REST.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpConfig {
    /// Where it listens; port 0 takes a free one.
    pub listen: ListenAddress,
    /// Its certificate; without one it speaks plain text.
    pub tls: ServerTlsConfig,
}

impl Default for HttpConfig {
    fn default() -> HttpConfig {
        HttpConfig::on_port(0)
    }
}

impl HttpConfig {
    /// A port of the loopback interface.
    pub fn on_port(port: u16) -> HttpConfig {
        HttpConfig {
            listen: ListenAddress::new((LOOPBACK, port).into()),
            tls: ServerTlsConfig::default(),
        }
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// Exit code 2.
    pub fn check(&self) -> Result<(), CliError> {
        let checked = self.tls.validate();
        checked.map_err(|wrong| CliError::usage(format!("http.tls: {wrong}")))
    }
}

/// Memory for entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CacheConfig {
    /// Bytes of recent entries, from which consumers at the tail are served.
    pub tail_bytes: usize,
    /// Bytes read ahead for consumers of a backlog.
    pub read_ahead_bytes: usize,
    /// Bytes of cached pages of the embedded metadata store.
    pub metadata_bytes: usize,
}

impl Default for CacheConfig {
    fn default() -> CacheConfig {
        CacheConfig {
            tail_bytes: 18 << 20,
            read_ahead_bytes: 32 << 20,
            metadata_bytes: 4 << 20,
        }
    }
}

/// How ledgers are written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LedgerConfig {
    /// How long the replacement of a bookie that failed is put off while the others make ack
    /// quorums, in milliseconds; 0 replaces it at once.
    pub ensemble_change_delay_ms: u64,
    /// Bytes of one ledger that are acknowledged and that a slower bookie still lacks; beyond,
    /// acknowledgements wait for it, up to a quarter of the timeout of an add.
    pub kept_bytes_per_ledger_max: u64,
    /// The same for all ledgers of the process together; beyond, the slower bookies have failed.
    pub kept_bytes_max: u64,
    /// How long a bookie that failed is passed over for new places, in milliseconds.
    pub quarantine_ms: u64,
    /// Zones that the copies of every entry must be in; 0 and 1 ask for nothing.
    pub zones_min: usize,
    /// With too few bookies for a whole ensemble, new ledgers get a smaller one, down to the ack
    /// quorum, instead of an error.
    pub shrink_ensembles: bool,
}

impl Default for LedgerConfig {
    fn default() -> LedgerConfig {
        let ledgers = LedgerSettings::default();
        LedgerConfig {
            ensemble_change_delay_ms: clock::millis(ledgers.ensemble_change_delay),
            kept_bytes_per_ledger_max: ledgers.kept_bytes_per_ledger_max,
            kept_bytes_max: ledgers.kept_bytes_max,
            quarantine_ms: clock::millis(ledgers.quarantine),
            zones_min: ledgers.zones_min,
            shrink_ensembles: ledgers.shrink_ensembles,
        }
    }
}

impl LedgerConfig {
    /// Checks the relations that must hold, for ledgers of this quorum.
    ///
    /// # Errors
    /// Exit code 2.
    pub fn check(&self, quorum: Quorum) -> Result<(), CliError> {
        let wrong = if self.zones_min > quorum.write() {
            "ledger.zones_min is more than an entry has copies (quorum.write)"
        } else if self.kept_bytes_per_ledger_max == 0 {
            "ledger.kept_bytes_per_ledger_max must not be 0: every bookie that is not the fastest \
             would have failed"
        } else if self.kept_bytes_max < self.kept_bytes_per_ledger_max {
            "ledger.kept_bytes_max must be at least ledger.kept_bytes_per_ledger_max"
        } else {
            return Ok(());
        };
        Err(CliError::usage(wrong))
    }

    /// In the terms of the ledger crate.
    pub fn ledger_settings(&self) -> LedgerSettings {
        LedgerSettings {
            ensemble_change_delay: Duration::from_millis(self.ensemble_change_delay_ms),
            kept_bytes_per_ledger_max: self.kept_bytes_per_ledger_max,
            kept_bytes_max: self.kept_bytes_max,
            quarantine: Duration::from_millis(self.quarantine_ms),
            zones_min: self.zones_min,
            shrink_ensembles: self.shrink_ensembles,
            ..LedgerSettings::default()
        }
    }
}

/// How etcd is reached, beside its addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EtcdSettings {
    /// The user, where etcd has authentication on.
    pub user: String,
    /// Their password.
    pub password: Secret,
    /// A file with the password, instead of the password.
    pub password_file: PathBuf,
    /// Certificates that etcd's is checked against (PEM); TLS needs it.
    pub ca_file: PathBuf,
    /// The name that etcd's certificate must be for, where it is not the host of the address.
    pub server_name: String,
    /// The certificate of this process (PEM), where etcd asks for one.
    pub cert_file: PathBuf,
    /// Its key (PEM).
    pub key_file: PathBuf,
    /// A process that has not renewed its lease for this long counts as gone.
    pub lease_ms: u64,
    /// How long a start waits for a store that does not answer, in milliseconds.
    pub wait_ms: u64,
}

impl Default for EtcdSettings {
    fn default() -> EtcdSettings {
        EtcdSettings {
            user: String::new(),
            password: Secret::default(),
            password_file: PathBuf::new(),
            ca_file: PathBuf::new(),
            server_name: String::new(),
            cert_file: PathBuf::new(),
            key_file: PathBuf::new(),
            lease_ms: 6_000,
            wait_ms: 0,
        }
    }
}

/// The cluster that a process belongs to: keys that every role of a cluster has beside its own
/// sections (`cluster`, `metadata`, `allow_remote`, `etcd`, `internal_tls`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterSection {
    /// Name of the cluster.
    #[serde(rename = "cluster")]
    pub name: String,
    /// The metadata store.
    pub metadata: String,
    /// Listen on addresses that other machines can reach.
    pub allow_remote: bool,
    /// How the metadata store is reached.
    pub etcd: EtcdSettings,
    /// How its processes know each other.
    pub internal_tls: InternalTls,
}

impl Default for ClusterSection {
    fn default() -> ClusterSection {
        ClusterSection {
            name: DEFAULT_CLUSTER.to_owned(),
            metadata: DEFAULT_METADATA.to_owned(),
            allow_remote: false,
            etcd: EtcdSettings::default(),
            internal_tls: InternalTls::default(),
        }
    }
}

impl ClusterSection {
    /// Puts what flags say over it.
    pub fn apply(&mut self, args: &ClusterArgs) {
        if let Some(name) = &args.cluster {
            self.name.clone_from(name);
        }
        if let Some(metadata) = &args.metadata {
            self.metadata.clone_from(metadata);
        }
        if let Some(wait) = args.wait_for_metadata {
            self.etcd.wait_ms = clock::millis(wait);
        }
        self.allow_remote |= args.allow_remote;
    }
}

/// How ledgers of a namespace are replicated that says nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QuorumSettings {
    /// Bookies that share a ledger.
    pub ensemble: u32,
    /// Copies of an entry.
    pub write: u32,
    /// Copies that an acknowledgement waits for.
    pub ack: u32,
}

impl Default for QuorumSettings {
    fn default() -> QuorumSettings {
        QuorumSettings {
            ensemble: 3,
            write: 3,
            ack: 2,
        }
    }
}

impl QuorumSettings {
    /// The quorum, checked.
    ///
    /// # Errors
    /// When it is not a quorum: exit code 2.
    pub fn quorum(&self) -> Result<Quorum, CliError> {
        Quorum::new(self.ensemble, self.write, self.ack)
            .map_err(|error| CliError::usage(error.to_string()))
    }
}

/// Puts the directories of a bookie below the data directory.
pub fn place_bookie(bookie: &mut BookieConfig, data_dir: &Path) {
    // Joining an absolute path replaces what is before it, so a journal can go elsewhere.
    for directory in [
        &mut bookie.data_dir,
        &mut bookie.journal_dir,
        &mut bookie.ledger_dir,
    ] {
        *directory = data_dir.join(&*directory);
    }
}

/// Refuses addresses that other machines can reach, because clients are not authenticated.
///
/// # Errors
/// Exit code 2.
pub fn check_loopback(
    allow_remote: bool,
    listeners: &[(&str, ListenAddress)],
) -> Result<(), CliError> {
    let open = listeners.iter().find(|(_, address)| !address.is_loopback());
    match open {
        Some((name, address)) if !allow_remote => Err(CliError::usage(format!(
            "{name} would listen on {address}, which other machines can reach, and clients are not \
             authenticated"
        ))
        .advise("listen on 127.0.0.1, or allow it with --allow-remote")),
        _ => Ok(()),
    }
}

/// The URL that others are told: what was given, or where it listens.
///
/// # Errors
/// When it listens on every address of the machine and nothing was given: clients cannot connect
/// to such an address. Exit code 2.
pub fn advertised(
    given: &str,
    bound: std::net::SocketAddr,
    secret: bool,
) -> Result<String, CliError> {
    let scheme = match secret {
        true => "https",
        false => "http",
    };
    // Everyone is told it, and clients refuse it.
    if let Some((_, address)) = given.rsplit_once('@') {
        let text = format!("…@{address} has a user or a password, which nothing here takes");
        return Err(CliError::usage(text).advise("give HOST:PORT alone"));
    }
    if let Some((said, _)) = given.split_once("://") {
        if said == scheme {
            return Ok(given.to_owned());
        }
        let text = format!("{given} does not begin with {scheme}://, which the port speaks");
        return Err(CliError::usage(text).advise("give HOST:PORT alone"));
    }
    if !given.is_empty() {
        return Ok(format!("{scheme}://{given}"));
    }
    if bound.ip().is_unspecified() {
        return Err(CliError::usage(format!(
            "it listens on {bound}, and others cannot connect to such an address"
        ))
        .advise("give the address that they connect to with --advertise"));
    }
    Ok(format!("{scheme}://{bound}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_told_an_address_that_works() {
        let at = |text: &str| text.parse().unwrap();
        let url = |given, bound, secret| advertised(given, at(bound), secret).unwrap();
        assert_eq!(url("", "127.0.0.1:7", false), "http://127.0.0.1:7");
        assert_eq!(url("", "127.0.0.1:7", true), "https://127.0.0.1:7");
        assert_eq!(
            url("b1.example:9", "0.0.0.0:7", false),
            "http://b1.example:9"
        );
        assert_eq!(url("https://b1:9", "127.0.0.1:7", true), "https://b1:9");
        assert!(advertised("https://b1:9", at("127.0.0.1:7"), false).is_err());
        assert!(advertised("http://b1:9", at("127.0.0.1:7"), true).is_err());
        let error = advertised("http://me:hunter2@b1:9", at("127.0.0.1:7"), false).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
        let error = advertised("", at("0.0.0.0:7"), false).unwrap_err();
        assert!(error.advice().contains("--advertise"), "{error}");
    }

    #[test]
    fn a_password_is_not_printed() {
        let settings = EtcdSettings {
            password: Secret::new("hunter2"),
            ..EtcdSettings::default()
        };
        assert!(!toml::to_string(&settings).unwrap().contains("hunter2"));
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}
