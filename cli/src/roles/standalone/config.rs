//! The configuration of `aquifer standalone`: defaults, then the file, then the environment
//! (`AQUIFER_SECTION_KEY`), then the flags. Each part gets its own section.

use std::path::PathBuf;

use aquifer_bookie::BookieConfig;
use aquifer_broker::BrokerConfig;
use aquifer_protocol_registry::ProtocolsConfig;
use aquifer_runtime::telemetry::TelemetryConfig;
use serde::{Deserialize, Serialize};

use crate::args::StandaloneArgs;
use crate::exit::CliError;
use crate::roles::auth::AuthSection;
use crate::roles::cold::{ColdConfig, OffloadBy};
use crate::roles::settings::{self, CacheConfig, HttpConfig, ListenConfig, check_loopback};
use crate::roles::tls::InternalTls;

/// The file of the metadata store in the data directory.
const METADATA_FILE: &str = "metadata.redb";
const BOOKIE_PORT: u16 = 7651;
const HTTP_PORT: u16 = 7680;

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StandaloneConfig {
    /// Where everything is stored; paths of other sections are relative to it.
    pub data_dir: PathBuf,
    /// Listen on addresses that other machines can reach.
    pub allow_remote: bool,
    /// Memory for entries.
    pub cache: CacheConfig,
    /// Objects of ledgers; in the directory `cold` of the data directory unless they go elsewhere.
    pub cold: ColdConfig,
    /// Health checks and metrics.
    pub http: HttpConfig,
    /// The bookie's storage API, which tools and later other nodes use.
    pub bookie_api: ListenConfig,
    /// How the storage API and its peers know each other.
    pub internal_tls: InternalTls,
    /// Storage.
    pub bookie: BookieConfig,
    /// Topics.
    pub broker: BrokerConfig,
    /// Wire protocols.
    pub protocols: ProtocolsConfig,
    /// What each caller may do.
    pub auth: AuthSection,
    /// Logs, traces and metrics.
    pub telemetry: TelemetryConfig,
}

impl Default for StandaloneConfig {
    fn default() -> StandaloneConfig {
        StandaloneConfig {
            data_dir: PathBuf::from("aquifer-data"),
            allow_remote: false,
            cache: CacheConfig::default(),
            cold: ColdConfig::default(),
            http: HttpConfig::on_port(HTTP_PORT),
            bookie_api: ListenConfig::on_port(BOOKIE_PORT),
            internal_tls: InternalTls::default(),
            bookie: BookieConfig::default(),
            broker: BrokerConfig::default(),
            protocols: ProtocolsConfig::default(),
            auth: AuthSection::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

impl StandaloneConfig {
    /// Loads and checks it. Keys that mean nothing are returned.
    ///
    /// # Errors
    /// When a file cannot be read, or a value is not allowed: exit code 2.
    pub fn load(args: &StandaloneArgs) -> Result<(StandaloneConfig, Vec<String>), CliError> {
        let (mut config, unknown) = settings::load::<StandaloneConfig>(args.config.as_deref())?;
        config.apply(args)?;
        config.check()?;
        Ok((config, unknown))
    }

    /// Where the embedded metadata store is.
    pub fn metadata_file(&self) -> PathBuf {
        self.data_dir.join(METADATA_FILE)
    }

    fn apply(&mut self, args: &StandaloneArgs) -> Result<(), CliError> {
        if let Some(data_dir) = &args.data_dir {
            self.data_dir.clone_from(data_dir);
        }
        if let Some(address) = args.grpc_addr {
            self.protocols.grpc.listen = address;
        }
        if let Some(address) = args.http_addr {
            self.http.listen = address;
        }
        if let Some(address) = args.bookie_addr {
            self.bookie_api.listen = address;
        }
        self.allow_remote |= args.allow_remote;
        self.auth.broker.enabled |= args.auth;
        self.broker.auth.clone_from(&self.auth.broker);
        self.bookie.accept_loss = args.accept_loss;
        settings::place_bookie(&mut self.bookie, &self.data_dir);
        self.cold.apply(args.cold_store.as_deref());
        self.cold.place_in(&self.data_dir)
    }

    /// Everything that the types of the sections cannot check themselves.
    fn check(&self) -> Result<(), CliError> {
        self.protocols.validate().map_err(CliError::usage)?;
        self.broker
            .validate()
            .map_err(|error| CliError::usage(error.to_string()))?;
        self.http.check()?;
        self.cold.check()?;
        if self.cold.offload_by == OffloadBy::Offloaders {
            return Err(CliError::usage(
                "a standalone server offloads itself: cold.offload_by is for brokers of a cluster",
            ));
        }
        self.internal_tls.check()?;
        let mut listeners = self.protocols.listeners();
        listeners.push(("http", self.http.listen));
        check_loopback(self.allow_remote || self.auth.broker.enabled, &listeners)?;
        // Storage knows nothing of tokens.
        check_loopback(self.allow_remote, &[("bookie_api", self.bookie_api.listen)])
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use aquifer_runtime::net::ListenAddress;

    use super::*;

    fn args() -> StandaloneArgs {
        StandaloneArgs {
            data_dir: None,
            grpc_addr: None,
            http_addr: None,
            bookie_addr: None,
            allow_remote: false,
            auth: false,
            accept_loss: false,
            cold_store: None,
            config: None,
            check_config: false,
        }
    }

    #[test]
    fn flags_go_over_the_file_and_paths_below_the_data_directory() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let text = "data_dir = \"from-file\"\nnonsense = 1\n\
                    [bookie]\njournal_dir = \"/fast/journal\"\n\
                    [protocols.grpc]\nconnections_max = 7\nlisten = \"127.0.0.1:1\"\n";
        file.write_all(text.as_bytes()).unwrap();
        let args = StandaloneArgs {
            data_dir: Some("from-flag".into()),
            grpc_addr: Some("127.0.0.1:2".parse().unwrap()),
            accept_loss: true,
            config: Some(file.path().to_owned()),
            ..args()
        };
        let (config, unknown) = StandaloneConfig::load(&args).unwrap();
        assert_eq!(unknown, ["nonsense"]);
        assert_eq!(config.protocols.grpc.connections_max, 7);
        assert_eq!(config.protocols.grpc.listen.to_string(), "127.0.0.1:2");
        assert!(config.bookie.accept_loss);
        let bookie = &config.bookie;
        assert_eq!(bookie.data_dir, PathBuf::from("from-flag/bookie"));
        assert_eq!(bookie.ledger_dir, PathBuf::from("from-flag/bookie/ledgers"));
        assert_eq!(bookie.journal_dir, PathBuf::from("/fast/journal"));
    }

    #[test]
    fn addresses_that_others_can_reach_need_permission() {
        let open: ListenAddress = "0.0.0.0:0".parse().unwrap();
        let change: [fn(&mut StandaloneArgs, ListenAddress); 3] = [
            |args, open| args.grpc_addr = Some(open),
            |args, open| args.http_addr = Some(open),
            |args, open| args.bookie_addr = Some(open),
        ];
        for change in change {
            let mut args = args();
            change(&mut args, open);
            let error = StandaloneConfig::load(&args).map(|_| ()).unwrap_err();
            assert!(error.advice().contains("--allow-remote"), "{error}");
            args.allow_remote = true;
            assert!(StandaloneConfig::load(&args).is_ok());
        }
    }

    #[test]
    fn authentication_opens_the_ports_of_clients_and_not_storage() {
        let open: ListenAddress = "0.0.0.0:0".parse().unwrap();
        let mut args = StandaloneArgs {
            auth: true,
            grpc_addr: Some(open),
            http_addr: Some(open),
            ..args()
        };
        let (config, _) = StandaloneConfig::load(&args).unwrap();
        assert!(config.broker.auth.enabled);
        args.bookie_addr = Some(open);
        assert!(StandaloneConfig::load(&args).is_err());
    }
}
