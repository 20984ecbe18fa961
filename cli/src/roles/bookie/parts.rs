//! The parts of a bookie process, started from the bottom up and stopped from the top down.

use std::net::SocketAddr;
use std::sync::Arc;

use aquifer_bookie::autorecovery;
use aquifer_bookie::registration::{self, Announcement};
use aquifer_bookie::{Bookie, service};
use aquifer_runtime::task::TaskGroup;
use aquifer_runtime::telemetry::Telemetry;
use async_trait::async_trait;

use crate::exit::CliError;
use crate::output::Output;
use crate::roles::bookie::config::BookieRoleConfig;
use crate::roles::http::{self, Health};
use crate::roles::loss::report_loss;
use crate::roles::membership::Membership;
use crate::roles::process::{self, ANSWERS_DRAIN, DRAIN};
use crate::roles::serving::{self, Storage};
use crate::roles::settings::{self, LedgerConfig};
use crate::roles::storage::{Seams, bookie_failed, open_bookie};

/// Task groups, in the order in which they stop.
struct Groups {
    announcement: TaskGroup,
    autorecovery: TaskGroup,
    transport: TaskGroup,
    bookie_api: TaskGroup,
    metadata: TaskGroup,
    http: TaskGroup,
}

impl Groups {
    fn all(&self) -> [&TaskGroup; 6] {
        [
            &self.announcement,
            &self.autorecovery,
            &self.transport,
            &self.bookie_api,
            &self.metadata,
            &self.http,
        ]
    }
}

/// A bookie that runs.
pub struct Parts {
    /// The storage.
    pub bookie: Bookie,
    /// Where the storage API listens.
    pub bookie_address: SocketAddr,
    /// What others are told to connect to.
    pub advertised: String,
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
    /// When one does not start. The storage is then closed first: RocksDB must not be in use while
    /// the process ends, or it aborts. What else had started ends with the process.
    pub async fn start(
        config: &BookieRoleConfig,
        telemetry: &Telemetry,
        out: &Output,
    ) -> Result<Parts, CliError> {
        let seams = Seams::real();
        let bookie = open_bookie(&config.bookie, &seams, telemetry).await?;
        let started = async {
            report_loss(&bookie, out)?;
            Parts::start_above(config, telemetry, &seams, bookie.clone()).await
        };
        let started = started.await;
        if started.is_err() {
            bookie.shutdown().await;
        }
        started
    }

    /// Starts what stands on storage.
    async fn start_above(
        config: &BookieRoleConfig,
        telemetry: &Telemetry,
        seams: &Seams,
        bookie: Bookie,
    ) -> Result<Parts, CliError> {
        let groups = Groups {
            announcement: TaskGroup::new("announcement"),
            autorecovery: TaskGroup::new("autorecovery"),
            transport: TaskGroup::new("transport"),
            bookie_api: TaskGroup::new("bookie-api"),
            metadata: TaskGroup::new("metadata"),
            http: TaskGroup::new("http"),
        };
        let cluster = config.cluster_settings();
        let membership = Membership::open(&cluster, seams, &groups.metadata).await?;
        registration::join(&bookie, &*membership.store, seams.clock.wall_ms())
            .await
            .map_err(|error| bookie_failed(&config.bookie, &error))?;
        let store = Arc::clone(&membership.store);
        registration::guard_new_ledgers(&bookie, store, &groups.announcement);
        let health = Health::new(telemetry.clone(), Some(bookie.clone()));
        let http_address = http::serve(config.http.listen, health.clone(), &groups.http).await?;
        let listen = config.bookie_api.listen;
        let bookie_address = service::serve(bookie.clone(), listen, &groups.bookie_api)
            .await
            .map_err(|error| CliError::failed(error.to_string()))?;
        let advertised = settings::advertised(&config.advertise, bookie_address)?;
        let announcement = Announcement {
            address: advertised.clone(),
            zone: config.zone.clone(),
        };
        let lease = &membership.lease;
        registration::announce(&bookie, announcement, lease, &groups.announcement).await;
        lease.announced().await;
        host(config, &bookie, &membership, seams, telemetry, &groups).await;
        Ok(Parts {
            bookie,
            bookie_address,
            advertised,
            http_address,
            membership,
            health,
            groups,
        })
    }
}

/// Deletions, audits and repair, which a bookie does for itself and for the cluster.
async fn host(
    config: &BookieRoleConfig,
    bookie: &Bookie,
    membership: &Membership,
    seams: &Seams,
    telemetry: &Telemetry,
    groups: &Groups,
) {
    let name = &config.cluster;
    let (transport, metadata) = (&groups.transport, &groups.metadata);
    let storage = serving::cluster_storage(name, membership, seams, transport, metadata).await;
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

#[async_trait]
impl process::Parts for Parts {
    fn set_serving(&self, serving: bool) {
        self.health.set_serving(serving);
    }

    async fn failed(&self) -> String {
        process::first_failure(&self.groups.all(), Some(&self.bookie)).await
    }

    async fn shutdown(&self) {
        let groups = &self.groups;
        groups.announcement.drain(ANSWERS_DRAIN).await;
        self.membership.withdraw().await;
        groups.autorecovery.drain(DRAIN).await;
        groups.transport.drain(ANSWERS_DRAIN).await;
        groups.bookie_api.drain(ANSWERS_DRAIN).await;
        self.bookie.shutdown().await;
        self.membership.close().await;
        groups.metadata.drain(DRAIN).await;
        groups.http.drain(ANSWERS_DRAIN).await;
    }
}
