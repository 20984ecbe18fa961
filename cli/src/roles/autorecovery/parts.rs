//! The parts of a repair process, started from the bottom up and stopped from the top down.

use std::net::SocketAddr;
use std::sync::Arc;

use aquifer_repair;
use aquifer_runtime::task::TaskGroup;
use aquifer_runtime::telemetry::Telemetry;
use async_trait::async_trait;

use crate::exit::CliError;
use crate::roles::autorecovery::config::AutorecoveryRoleConfig;
use crate::roles::http::{self, Health};
use crate::roles::membership::Membership;
use crate::roles::process::{self, ANSWERS_DRAIN, DRAIN};
use crate::roles::serving;
use crate::roles::settings::LedgerConfig;
use crate::roles::storage::Seams;

/// Task groups, in the order in which they stop.
struct Groups {
    repair: TaskGroup,
    transport: TaskGroup,
    metadata: TaskGroup,
    http: TaskGroup,
}

impl Groups {
    fn all(&self) -> [&TaskGroup; 4] {
        [&self.repair, &self.transport, &self.metadata, &self.http]
    }
}

/// Repair that runs.
pub struct Parts {
    /// What it is called in locks.
    pub id: String,
    /// Where health checks and metrics are.
    pub http_address: SocketAddr,
    membership: Membership,
    health: Health,
    groups: Groups,
}

impl Parts {
    /// Starts every part.
    ///
    /// # Errors
    /// When one does not start; what had started before ends with the process.
    pub async fn start(
        config: &AutorecoveryRoleConfig,
        telemetry: &Telemetry,
    ) -> Result<Parts, CliError> {
        let seams = Seams::real();
        let groups = Groups {
            repair: TaskGroup::new("repair"),
            transport: TaskGroup::new("transport"),
            metadata: TaskGroup::new("metadata"),
            http: TaskGroup::new("http"),
        };
        let cluster = config.cluster_settings();
        let membership = Membership::open(&cluster, &seams, &groups.metadata).await?;
        let health = Health::new(telemetry.clone(), None);
        let http_address = http::serve(config.http.listen, health.clone(), &groups.http).await?;
        let (name, tasks) = (&config.cluster, &groups.repair);
        let (transport, metadata) = (&groups.transport, &groups.metadata);
        let storage =
            serving::cluster_storage(name, &membership, &seams, transport, metadata).await;
        let ledger = LedgerConfig::default();
        let ledgers = serving::ledger_context(storage, &ledger, &seams, telemetry, tasks);
        let ctx = serving::repair_context(ledgers, telemetry);
        // Random for each start, so that none is mistaken for the one before.
        let id = format!("autorecovery-{:016x}", seams.rng.next_u64());
        let run = aquifer_repair::run(
            Arc::clone(&ctx),
            config.autorecovery.replication.clone(),
            id.clone(),
            membership.lease.clone(),
            tasks.shutdown_token(),
        );
        tasks.spawn("replication", run);
        Ok(Parts {
            id,
            http_address,
            membership,
            health,
            groups,
        })
    }
}

#[async_trait]
impl process::Parts for Parts {
    fn set_serving(&self, serving: bool) {
        self.health.set_serving(serving);
    }

    async fn failed(&self) -> String {
        process::first_failure(&self.groups.all(), None).await
    }

    async fn shutdown(&self) {
        let groups = &self.groups;
        // Its locks go with its lease: others take up at once what it leaves half done.
        self.membership.withdraw().await;
        groups.repair.drain(DRAIN).await;
        groups.transport.drain(ANSWERS_DRAIN).await;
        self.membership.close().await;
        groups.metadata.drain(DRAIN).await;
        groups.http.drain(ANSWERS_DRAIN).await;
    }
}
