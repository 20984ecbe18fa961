//! The configuration of `aquifer offloader`.

use std::path::PathBuf;

use aquifer_runtime::telemetry::TelemetryConfig;
use serde::{Deserialize, Serialize};

use crate::args::OffloaderArgs;
use crate::exit::CliError;
use crate::roles::auth::MetricsSection;
use crate::roles::cold::ColdConfig;
use crate::roles::membership;
use crate::roles::settings::{self, ClusterSection, HttpConfig, check_loopback};

/// None of the other roles', so that all run on one machine.
const HTTP_PORT: u16 = 7683;

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OffloaderRoleConfig {
    /// The cluster that it belongs to.
    #[serde(flatten)]
    pub cluster: ClusterSection,
    /// Objects of ledgers; a broker has the same settings in the same places.
    pub cold: ColdConfig,
    /// Health checks and metrics.
    pub http: HttpConfig,
    /// Which callers may read metrics.
    pub auth: MetricsSection,
    /// Logs, traces and metrics.
    pub telemetry: TelemetryConfig,
}

impl Default for OffloaderRoleConfig {
    fn default() -> OffloaderRoleConfig {
        OffloaderRoleConfig {
            cluster: ClusterSection::default(),
            cold: ColdConfig::default(),
            http: HttpConfig::on_port(HTTP_PORT),
            auth: MetricsSection::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

impl OffloaderRoleConfig {
    /// Loads and checks it. Keys that mean nothing are returned.
    ///
    /// # Errors
    /// When a file cannot be read, or a value is not allowed: exit code 2.
    pub fn load(args: &OffloaderArgs) -> Result<(OffloaderRoleConfig, Vec<String>), CliError> {
        let file = args.cluster.config.as_deref();
        let (mut config, unknown) = settings::load::<OffloaderRoleConfig>(file)?;
        config.apply(args);
        check_loopback(config.cluster.allow_remote, &[("http", config.http.listen)])?;
        membership::check(&config.cluster)?;
        config.http.check()?;
        config.cold.check()?;
        // A configuration is looked at without a place too.
        if config.cold.place.store.is_empty() && !args.cluster.check_config {
            return Err(CliError::usage("an offloader needs the place of objects")
                .advise("give the --cold-store of the brokers, or set cold.store"));
        }
        Ok((config, unknown))
    }

    fn apply(&mut self, args: &OffloaderArgs) {
        self.cluster.apply(&args.cluster);
        if let Some(address) = args.http_addr {
            self.http.listen = address;
        }
        self.cold.apply(args.cold_store.as_deref());
        // It reads objects to check them, never twice. A broker beside it may have the directory.
        self.cold.disk_cache_dir = PathBuf::new();
        if let Some(workers) = args.workers {
            self.cold.workers_max = workers;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::ClusterArgs;

    #[test]
    fn flags_go_over_defaults_and_a_place_is_needed() {
        let args = |store: Option<&str>| OffloaderArgs {
            cold_store: store.map(str::to_owned),
            workers: Some(5),
            cluster: ClusterArgs {
                cluster: Some("c".to_owned()),
                ..ClusterArgs::default()
            },
            ..OffloaderArgs::default()
        };
        let (config, unknown) = OffloaderRoleConfig::load(&args(Some("s3://b/p"))).unwrap();
        assert!(unknown.is_empty(), "{unknown:?}");
        assert_eq!(config.cold.workers_max, 5);
        assert_eq!(config.cold.place.store, "s3://b/p");
        assert_eq!(config.cluster.name, "c");
        let mut of_broker = OffloaderRoleConfig::default();
        of_broker.cold.disk_cache_dir = PathBuf::from("blocks");
        of_broker.apply(&args(None));
        assert_eq!(of_broker.cold.disk_cache_dir, PathBuf::new());
        let error = OffloaderRoleConfig::load(&args(None)).map(|_| ());
        let error = error.unwrap_err();
        assert!(error.to_string().contains("place of objects"), "{error}");
    }
}
