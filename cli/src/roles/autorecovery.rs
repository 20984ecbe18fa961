//! Repair of a cluster's ledgers in a process of its own, beside or instead of what bookies host:
//! a repair worker, and the auditor whenever no other process is it. It stores nothing and serves
//! only health checks. Only wiring is here.

mod config;

use std::sync::Arc;
use std::time::Duration;

use aquifer_runtime::telemetry::{Telemetry, TelemetryConfig};
use async_trait::async_trait;

use crate::args::AutorecoveryArgs;
use crate::exit::CliError;
use crate::output::Output;
use crate::roles::autorecovery::config::AutorecoveryRoleConfig;
use crate::roles::greeting::Greeting;
use crate::roles::health::Health;
use crate::roles::http;
use crate::roles::membership::{self, Membership};
use crate::roles::open_files;
use crate::roles::process::{self, Role};
use crate::roles::server::{Parts, Server};
use crate::roles::serving;
use crate::roles::settings::LedgerConfig;
use crate::roles::storage::Seams;

/// Repairs until it is told to end. `began` is when the process did.
pub async fn run(args: AutorecoveryArgs, began: Duration, out: &Output) -> Result<(), CliError> {
    let loaded = AutorecoveryRoleConfig::load(&args)?;
    process::run(loaded, args.cluster.check_config, began, out).await
}

#[async_trait]
impl Role for AutorecoveryRoleConfig {
    fn telemetry(&self) -> &TelemetryConfig {
        &self.telemetry
    }

    fn prepare(&mut self) {
        open_files::check(0);
    }

    async fn start(
        &self,
        parts: &mut Parts,
        telemetry: &Telemetry,
        _out: &Output,
    ) -> Result<Server, CliError> {
        let (seams, groups) = (Seams::real(), &parts.groups);
        let health = Health::scraped_with(telemetry.clone(), self.auth.scrape_token()?);
        let port = http::open(&self.http, health, &seams, &groups.http).await?;
        let (health, certificates) = (port.health, port.certificates);
        health.starting(membership::WAITING);
        let membership = Membership::open(&self.cluster, &seams, telemetry, &groups.metadata);
        let membership = membership.await?;
        let membership = &*parts.membership.insert(membership);
        health.starting(membership::JOINING);
        let (name, tasks) = (&self.cluster.name, &groups.autorecovery);
        let ways = (&*groups.transport, &*groups.metadata);
        let storage =
            serving::cluster_storage(&self.cluster, &certificates, membership, &seams, ways)
                .await?;
        certificates.watch(telemetry, &groups.http);
        let ledger = LedgerConfig::default();
        let ledgers = serving::ledger_context(storage, &ledger, &seams, telemetry, tasks);
        let ctx = serving::repair_context(ledgers, telemetry);
        // Random for each start, so that none is mistaken for the one before.
        let id = format!("autorecovery-{:016x}", seams.rng.next_u64());
        let run = aquifer_repair::run(
            Arc::clone(&ctx),
            self.autorecovery.replication.clone(),
            id.clone(),
            membership.lease.clone(),
            tasks.shutdown_token(),
        );
        tasks.spawn("replication", run);
        let greeting = Greeting::new("autorecovery", format!("repairs cluster {name}"))
            .field("cluster", name)
            .field("id", id);
        Ok(Server {
            health,
            http_url: port.url,
            greeting,
        })
    }
}
