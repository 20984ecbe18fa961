//! The configuration of `aquifer autorecovery`.

use aquifer_repair::ReplicationConfig;
use aquifer_runtime::clock;
use aquifer_runtime::telemetry::TelemetryConfig;
use serde::{Deserialize, Serialize};

use crate::args::AutorecoveryArgs;
use crate::exit::CliError;
use crate::roles::auth::MetricsSection;
use crate::roles::membership;
use crate::roles::settings::{self, ClusterSection, HttpConfig, check_loopback};

/// Neither the broker's nor a bookie's, so that all run on one machine.
const HTTP_PORT: u16 = 7682;

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AutorecoveryRoleConfig {
    /// The cluster that it belongs to.
    #[serde(flatten)]
    pub cluster: ClusterSection,
    /// Health checks and metrics.
    pub http: HttpConfig,
    /// Which callers may read metrics.
    pub auth: MetricsSection,
    /// Repair; a bookie has the same settings in the same places.
    pub autorecovery: RepairSection,
    /// Logs, traces and metrics.
    pub telemetry: TelemetryConfig,
}

/// The section of repair.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RepairSection {
    /// Auditing and repair.
    pub replication: ReplicationConfig,
}

impl Default for AutorecoveryRoleConfig {
    fn default() -> AutorecoveryRoleConfig {
        AutorecoveryRoleConfig {
            cluster: ClusterSection::default(),
            http: HttpConfig::on_port(HTTP_PORT),
            auth: MetricsSection::default(),
            autorecovery: RepairSection::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

impl AutorecoveryRoleConfig {
    /// Loads and checks it. Keys that mean nothing are returned.
    ///
    /// # Errors
    /// When a file cannot be read, or a value is not allowed: exit code 2.
    pub fn load(
        args: &AutorecoveryArgs,
    ) -> Result<(AutorecoveryRoleConfig, Vec<String>), CliError> {
        let file = args.cluster.config.as_deref();
        let (mut config, unknown) = settings::load::<AutorecoveryRoleConfig>(file)?;
        config.apply(args);
        check_loopback(config.cluster.allow_remote, &[("http", config.http.listen)])?;
        membership::check(&config.cluster)?;
        config.http.check()?;
        let replication = &config.autorecovery.replication;
        replication.check().map_err(CliError::usage)?;
        Ok((config, unknown))
    }

    fn apply(&mut self, args: &AutorecoveryArgs) {
        self.cluster.apply(&args.cluster);
        if let Some(address) = args.http_addr {
            self.http.listen = address;
        }
        if let Some(rate) = args.repair_rate {
            self.autorecovery.replication.repair_bytes_per_second = rate;
        }
        if let Some(after) = args.lost_after {
            self.autorecovery.replication.lost_after_ms = clock::millis(after);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::args::ClusterArgs;

    #[test]
    fn flags_go_over_defaults_and_what_cannot_work_is_refused() {
        let args = |rate| AutorecoveryArgs {
            repair_rate: Some(rate),
            lost_after: Some(Duration::from_secs(7)),
            cluster: ClusterArgs {
                cluster: Some("c".to_owned()),
                ..ClusterArgs::default()
            },
            ..AutorecoveryArgs::default()
        };
        let (config, unknown) = AutorecoveryRoleConfig::load(&args(5)).unwrap();
        assert!(unknown.is_empty(), "{unknown:?}");
        let replication = &config.autorecovery.replication;
        assert_eq!(replication.repair_bytes_per_second, 5);
        assert_eq!(replication.lost_after_ms, 7_000);
        assert_eq!(config.cluster.name, "c");
        let error = AutorecoveryRoleConfig::load(&args(0))
            .map(|_| ())
            .unwrap_err();
        assert!(
            error.to_string().contains("repair_bytes_per_second"),
            "{error}"
        );
    }
}
