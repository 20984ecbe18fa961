//! Offload of a cluster's ledgers in a process of its own: it writes into objects what brokers
//! leave to it (`cold.offload_by = "offloaders"`). It stores nothing itself, owns no topic, and
//! serves only health checks. Only wiring is here.

mod config;

use std::sync::Arc;
use std::time::Duration;

use aquifer_ledger::objects::tasks;
use aquifer_log::offload::offloader;
use aquifer_metadata::keys;
use aquifer_runtime::telemetry::{Telemetry, TelemetryConfig};
use async_trait::async_trait;

use crate::args::OffloaderArgs;
use crate::exit::CliError;
use crate::output::Output;
use crate::roles::greeting::Greeting;
use crate::roles::health::Health;
use crate::roles::http;
use crate::roles::membership::{self, Membership};
use crate::roles::offloader::config::OffloaderRoleConfig;
use crate::roles::open_files;
use crate::roles::process::{self, Role};
use crate::roles::server::{Parts, Server};
use crate::roles::serving;
use crate::roles::settings::{CacheConfig, LedgerConfig};
use crate::roles::storage::Seams;

/// Offloads until it is told to end. `began` is when the process did.
pub async fn run(args: OffloaderArgs, began: Duration, out: &Output) -> Result<(), CliError> {
    let loaded = OffloaderRoleConfig::load(&args)?;
    process::run(loaded, args.cluster.check_config, began, out).await
}

#[async_trait]
impl Role for OffloaderRoleConfig {
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
        let name = &self.cluster.name;
        health.starting(membership::JOINING);
        let ways = (&*groups.transport, &*groups.metadata);
        let storage =
            serving::cluster_storage(&self.cluster, &certificates, membership, &seams, ways)
                .await?;
        certificates.watch(telemetry, &groups.http);
        let (cache, ledger) = (CacheConfig::default(), LedgerConfig::default());
        let (memory, cold) = ((&cache, &ledger), (name.as_str(), &self.cold));
        let log = serving::log_context(storage, memory, cold, &seams, telemetry, &groups.ledger)?;
        let tier = log.cold.as_ref();
        let worker = tier.map(|tier| tier.worker());
        let worker = worker.ok_or_else(|| CliError::usage("cold.store is not set"))?;
        // Before its first claim: the reaper of a process that does not know it would give that up.
        let said = tasks::announcement(env!("CARGO_PKG_VERSION"));
        membership.lease.set(&keys::offloader(worker), said);
        membership.lease.announced().await;
        let tasks = &groups.offload;
        let (ctx, ends) = (Arc::clone(&log), tasks.shutdown_token());
        tasks.spawn("offload", async move {
            offloader::work(&ctx, &ends).await;
        });
        let (ctx, ends) = (Arc::clone(&log), tasks.shutdown_token());
        tasks.spawn("object-reaper", async move {
            offloader::clean_up(&ctx, &ends).await;
        });
        health.set_lease(membership.lease.clone());
        let greeting = Greeting::new("offloader", format!("offloads for cluster {name}"))
            .field("cluster", name)
            .field("id", worker.to_string());
        Ok(Server {
            health,
            http_url: port.url,
            greeting,
        })
    }
}
