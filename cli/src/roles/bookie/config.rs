//! The configuration of `aquifer bookie`.

use std::path::PathBuf;

use aquifer_bookie::BookieConfig;
use aquifer_bookie::autorecovery::AutorecoveryConfig;
use aquifer_runtime::telemetry::TelemetryConfig;
use serde::{Deserialize, Serialize};

use crate::args::BookieArgs;
use crate::exit::CliError;
use crate::roles::auth::MetricsSection;
use crate::roles::membership;
use crate::roles::settings::{self, ClusterSection, HttpConfig, ListenConfig, check_loopback};

const BOOKIE_PORT: u16 = 7651;
/// Not the broker's, so that both run on one machine.
const HTTP_PORT: u16 = 7681;

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BookieRoleConfig {
    /// Where everything is stored; paths of other sections are relative to it.
    pub data_dir: PathBuf,
    /// What others are told to connect to; empty: where it listens.
    pub advertise: String,
    /// Its failure domain; empty where unknown.
    pub zone: String,
    /// Maximum free space that it announces, in bytes; 0: what the disk has.
    pub capacity_bytes: u64,
    /// The cluster that it belongs to.
    #[serde(flatten)]
    pub cluster: ClusterSection,
    /// Health checks and metrics.
    pub http: HttpConfig,
    /// Which callers may read metrics.
    pub auth: MetricsSection,
    /// The storage API.
    pub bookie_api: ListenConfig,
    /// Storage.
    pub bookie: BookieConfig,
    /// Repair of the cluster's ledgers.
    pub autorecovery: AutorecoveryConfig,
    /// Logs, traces and metrics.
    pub telemetry: TelemetryConfig,
}

impl Default for BookieRoleConfig {
    fn default() -> BookieRoleConfig {
        BookieRoleConfig {
            data_dir: PathBuf::from("aquifer-bookie"),
            advertise: String::new(),
            zone: String::new(),
            capacity_bytes: 0,
            cluster: ClusterSection::default(),
            http: HttpConfig::on_port(HTTP_PORT),
            auth: MetricsSection::default(),
            bookie_api: ListenConfig::on_port(BOOKIE_PORT),
            bookie: BookieConfig::default(),
            autorecovery: AutorecoveryConfig::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

impl BookieRoleConfig {
    /// Loads and checks it. Keys that mean nothing are returned.
    ///
    /// # Errors
    /// When a file cannot be read, or a value is not allowed: exit code 2.
    pub fn load(args: &BookieArgs) -> Result<(BookieRoleConfig, Vec<String>), CliError> {
        let file = args.cluster.config.as_deref();
        let (mut config, unknown) = settings::load::<BookieRoleConfig>(file)?;
        config.apply(args);
        let listeners = [
            ("http", config.http.listen),
            ("bookie_api", config.bookie_api.listen),
        ];
        check_loopback(config.cluster.allow_remote, &listeners)?;
        membership::check(&config.cluster)?;
        config.http.check()?;
        let replication = &config.autorecovery.replication;
        replication.check().map_err(CliError::usage)?;
        Ok((config, unknown))
    }

    fn apply(&mut self, args: &BookieArgs) {
        self.cluster.apply(&args.cluster);
        let texts = [
            (&mut self.advertise, &args.advertise),
            (&mut self.zone, &args.zone),
        ];
        for (setting, given) in texts {
            if let Some(given) = given {
                setting.clone_from(given);
            }
        }
        if let Some(data_dir) = &args.data_dir {
            self.data_dir.clone_from(data_dir);
        }
        if let Some(address) = args.bookie_addr {
            self.bookie_api.listen = address;
        }
        if let Some(address) = args.http_addr {
            self.http.listen = address;
        }
        if let Some(capacity) = args.capacity {
            self.capacity_bytes = capacity;
        }
        self.bookie.accept_loss = args.accept_loss;
        self.autorecovery.enabled &= !args.no_autorecovery;
        self.bookie.cluster = Some(self.cluster.name.clone());
        self.bookie.capacity_bytes = (self.capacity_bytes > 0).then_some(self.capacity_bytes);
        settings::place_bookie(&mut self.bookie, &self.data_dir);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::args::ClusterArgs;

    #[test]
    fn flags_go_over_the_file_and_what_is_wrong_is_refused() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let text = "cluster = \"from-file\"\nzone = \"z\"\nmetadata = \"etcd://a:1\"\n\
                    [etcd]\nuser = \"u\"\npassword = \"hunter2\"\n";
        file.write_all(text.as_bytes()).unwrap();
        let args = |cluster: &str| BookieArgs {
            data_dir: Some("d".into()),
            capacity: Some(7),
            accept_loss: true,
            no_autorecovery: true,
            cluster: ClusterArgs {
                cluster: Some(cluster.to_owned()),
                config: Some(file.path().to_owned()),
                ..ClusterArgs::default()
            },
            ..BookieArgs::default()
        };
        let (config, unknown) = BookieRoleConfig::load(&args("from-flag")).unwrap();
        assert!(unknown.is_empty(), "{unknown:?}");
        assert_eq!((&*config.cluster.name, &*config.zone), ("from-flag", "z"));
        let bookie = &config.bookie;
        assert_eq!(bookie.cluster.as_deref(), Some("from-flag"));
        assert_eq!((bookie.capacity_bytes, bookie.accept_loss), (Some(7), true));
        assert!(!config.autorecovery.enabled);
        assert_eq!(bookie.data_dir, PathBuf::from("d/bookie"));
        assert_eq!(config.cluster.etcd.password.expose(), "hunter2");
        assert!(BookieRoleConfig::load(&args("no/name")).is_err());
        let mut open = args("c");
        open.bookie_addr = Some("0.0.0.0:0".parse().unwrap());
        let error = BookieRoleConfig::load(&open).map(|_| ()).unwrap_err();
        assert!(error.advice().contains("--allow-remote"), "{error}");
    }
}
