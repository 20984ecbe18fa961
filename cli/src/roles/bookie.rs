//! A bookie of a cluster: the storage and its service, announced in metadata. Only wiring is here.
//!
//! It serves once the cluster's metadata knows it, and is announced once it serves. At the end it
//! is withdrawn first, so that no ledger is placed on it while it finishes what it has.

mod config;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aquifer_bookie::registration::{self, Announcement};
use aquifer_bookie::{Bookie, autorecovery, service};
use aquifer_runtime::telemetry::{Telemetry, TelemetryConfig};
use async_trait::async_trait;

use crate::args::BookieArgs;
use crate::exit::CliError;
use crate::output::Output;
use crate::roles::bookie::config::BookieRoleConfig;
use crate::roles::greeting::Greeting;
use crate::roles::health::Health;
use crate::roles::http::{self, Port};
use crate::roles::loss::report_loss;
use crate::roles::membership::{self, Membership};
use crate::roles::open_files;
use crate::roles::process::{self, Role};
use crate::roles::server::{Groups, Parts, Server};
use crate::roles::serving::{self, Storage};
use crate::roles::settings::{self, LedgerConfig};
use crate::roles::storage::{Seams, bookie_failed, open_bookie};

/// Runs a bookie until it is told to end. `began` is when the process did.
pub async fn run(args: BookieArgs, began: Duration, out: &Output) -> Result<(), CliError> {
    let loaded = BookieRoleConfig::load(&args)?;
    process::run(loaded, args.cluster.check_config, began, out).await
}

#[async_trait]
impl Role for BookieRoleConfig {
    fn telemetry(&self) -> &TelemetryConfig {
        &self.telemetry
    }

    fn data_dir(&self) -> Option<&Path> {
        Some(&self.data_dir)
    }

    fn prepare(&mut self) {
        open_files::check(self.bookie.open_files_max.into());
    }

    async fn start(
        &self,
        parts: &mut Parts,
        telemetry: &Telemetry,
        out: &Output,
    ) -> Result<Server, CliError> {
        let seams = Seams::real();
        let health = Health::scraped_with(telemetry.clone(), self.auth.scrape_token()?);
        let port = http::open(&self.http, health, &seams, &parts.groups.http).await?;
        port.health
            .starting("opening storage, which replays the journal");
        let opening = open_bookie(&self.bookie, &seams, telemetry);
        let bookie = parts.steps().whole(opening).await?;
        parts.bookie = Some(bookie.clone());
        port.health.set_bookie(bookie.clone());
        report_loss(&bookie, out)?;
        start_above(self, parts, telemetry, &seams, port, bookie).await
    }
}

/// Starts what stands on storage.
async fn start_above(
    config: &BookieRoleConfig,
    parts: &mut Parts,
    telemetry: &Telemetry,
    seams: &Seams,
    port: Port,
    bookie: Bookie,
) -> Result<Server, CliError> {
    let groups = &parts.groups;
    let (health, certificates) = (port.health, port.certificates);
    health.starting(membership::WAITING);
    let membership = Membership::open(&config.cluster, seams, telemetry, &groups.metadata);
    let membership = membership.await?;
    let membership = &*parts.membership.insert(membership);
    health.starting(membership::JOINING);
    registration::join(&bookie, &*membership.store, seams.clock.wall_ms())
        .await
        .map_err(|error| bookie_failed(&config.bookie, &error))?;
    let store = Arc::clone(&membership.store);
    registration::guard_new_ledgers(&bookie, store, &groups.announcement);
    let listen = config.bookie_api.listen;
    let tls = certificates.bookie_port(&config.cluster.name, &config.cluster.internal_tls)?;
    let secret = tls.is_some();
    let bookie_address = service::serve(bookie.clone(), listen, tls, &groups.bookie_api)
        .await
        .map_err(|error| CliError::failed(error.to_string()))?;
    let advertised = settings::advertised(&config.advertise, bookie_address, secret)?;
    let announcement = Announcement {
        address: advertised.clone(),
        zone: config.zone.clone(),
    };
    let lease = &membership.lease;
    registration::announce(&bookie, announcement, lease, &groups.announcement).await;
    lease.announced().await;
    let cluster = &config.cluster;
    let tasks = (&*groups.transport, &*groups.metadata);
    let storage =
        serving::cluster_storage(cluster, &certificates, membership, seams, tasks).await?;
    certificates.watch(telemetry, &groups.http);
    host(
        config,
        &bookie,
        (storage, membership),
        seams,
        telemetry,
        groups,
    );
    let (name, data_dir) = (&config.cluster.name, config.data_dir.display());
    let serves = format!("of cluster {name} serves {advertised}, data in {data_dir}");
    let greeting = Greeting::new("bookie", serves)
        .field("cluster", name)
        .field("id", bookie.id().to_string())
        .field("bookie", bookie_address.to_string())
        .field("advertised", advertised)
        .field("data_dir", data_dir.to_string());
    Ok(Server {
        health,
        http_url: port.url,
        greeting,
    })
}

/// Deletions, audits and repair, which a bookie does for itself and for the cluster.
fn host(
    config: &BookieRoleConfig,
    bookie: &Bookie,
    (storage, membership): (Storage, &Membership),
    seams: &Seams,
    telemetry: &Telemetry,
    groups: &Groups,
) {
    let storage = Storage {
        transport: autorecovery::transport(bookie.clone(), storage.transport),
        ..storage
    };
    let tasks = &groups.autorecovery;
    let ledger = LedgerConfig::default();
    let ledgers = serving::ledger_context(storage, &ledger, seams, telemetry, tasks);
    let ctx = serving::repair_context(ledgers, telemetry);
    let lease = Some(&membership.lease);
    autorecovery::start(bookie, &ctx, &config.autorecovery, lease, tasks);
}
