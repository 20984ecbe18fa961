//! The parts of a server, started from the bottom up and stopped from the top down.

use std::net::SocketAddr;
use std::sync::Arc;

use aquifer_bookie::Bookie;
use aquifer_bookie::autorecovery::{self, AutorecoveryConfig};
use aquifer_broker::Broker;
use aquifer_ledger::placement::{BookieInfo, Bookies};
use aquifer_metadata::embedded::{EmbeddedOptions, EmbeddedStore};
use aquifer_runtime::task::TaskGroup;
use aquifer_runtime::telemetry::Telemetry;
use async_trait::async_trait;

use crate::exit::CliError;
use crate::output::Output;
use crate::roles::http::{self, Health};
use crate::roles::loss::report_loss;
use crate::roles::process::{self, ANSWERS_DRAIN, DRAIN};
use crate::roles::serving::{self, Storage};
use crate::roles::settings::LedgerConfig;
use crate::roles::standalone::config::StandaloneConfig;
use crate::roles::standalone::transport::InProcess;
use crate::roles::storage::{Seams, open_bookie, part_failed};

/// The file of the metadata store in the data directory.
const METADATA_FILE: &str = "metadata.redb";

/// Task groups, in the order in which they stop.
struct Groups {
    protocols: TaskGroup,
    broker: TaskGroup,
    bookie_api: TaskGroup,
    ledger: TaskGroup,
    metadata: TaskGroup,
    http: TaskGroup,
}

impl Groups {
    fn new() -> Groups {
        Groups {
            protocols: TaskGroup::new("protocols"),
            broker: TaskGroup::new("broker"),
            bookie_api: TaskGroup::new("bookie-api"),
            ledger: TaskGroup::new("ledger"),
            metadata: TaskGroup::new("metadata"),
            http: TaskGroup::new("http"),
        }
    }

    fn all(&self) -> [&TaskGroup; 6] {
        [
            &self.protocols,
            &self.broker,
            &self.bookie_api,
            &self.ledger,
            &self.metadata,
            &self.http,
        ]
    }
}

/// A server that runs.
pub struct Parts {
    /// Where clients connect.
    pub url: String,
    /// Where the bookie's storage API listens.
    pub bookie_address: SocketAddr,
    /// Where health checks and metrics are.
    pub http_address: SocketAddr,
    store: Arc<EmbeddedStore>,
    bookie: Bookie,
    broker: Arc<Broker>,
    health: Health,
    groups: Groups,
}

impl Parts {
    /// Starts every part.
    ///
    /// # Errors
    /// When one does not start. The bookie is then closed first: RocksDB must not be in use while
    /// the process ends, or it aborts. What else had started ends with the process.
    pub async fn start(
        config: &StandaloneConfig,
        telemetry: &Telemetry,
        out: &Output,
    ) -> Result<Parts, CliError> {
        let seams = Seams::real();
        let groups = Groups::new();
        Bookie::make_room(&config.bookie);
        // The two that read files start side by side: most of the start is waiting for the disk.
        let (store, bookie) = tokio::try_join!(
            open_metadata(config, &seams, &groups.metadata),
            open_bookie(&config.bookie, &seams, telemetry),
        )?;
        let started = async {
            report_loss(&bookie, out)?;
            Parts::start_above(config, telemetry, &seams, groups, store, bookie.clone()).await
        };
        let started = started.await;
        if started.is_err() {
            bookie.shutdown().await;
        }
        started
    }

    /// Starts what stands on metadata and storage.
    async fn start_above(
        config: &StandaloneConfig,
        telemetry: &Telemetry,
        seams: &Seams,
        groups: Groups,
        store: Arc<EmbeddedStore>,
        bookie: Bookie,
    ) -> Result<Parts, CliError> {
        let storage = storage(&store, &bookie, &groups.ledger);
        let (cache, ledger) = (&config.cache, LedgerConfig::default());
        let log = serving::log_context(storage, cache, &ledger, seams, telemetry, &groups.ledger);
        // Nobody else has copies, so that there is nothing to repair from: only what concerns the
        // bookie itself runs.
        let hosted = AutorecoveryConfig::default();
        let repair = serving::repair_context(Arc::clone(&log.ledgers), telemetry);
        autorecovery::start(&bookie, &repair, &hosted, None, &groups.ledger);
        let broker =
            serving::start_broker(&config.broker, log, seams, telemetry, &groups.broker, None)
                .await?;
        let health = Health::new(telemetry.clone(), Some(bookie.clone()));
        let http_address = http::serve(config.http.listen, health.clone(), &groups.http).await?;
        let bookie_address = aquifer_bookie::service::serve(
            bookie.clone(),
            config.bookie_api.listen,
            &groups.bookie_api,
        )
        .await
        .map_err(|error| CliError::failed(error.to_string()))?;
        let tasks = &groups.protocols;
        let url =
            serving::serve_protocols(&config.protocols, &broker, seams, telemetry, tasks).await?;
        Ok(Parts {
            url,
            bookie_address,
            http_address,
            store,
            bookie,
            broker,
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
        process::first_failure(&self.groups.all(), Some(&self.bookie)).await
    }

    async fn shutdown(&self) {
        let groups = &self.groups;
        groups.protocols.drain(DRAIN).await;
        groups.bookie_api.drain(ANSWERS_DRAIN).await;
        self.broker.shutdown().await;
        groups.broker.drain(DRAIN).await;
        groups.ledger.drain(DRAIN).await;
        self.bookie.shutdown().await;
        self.store.close().await;
        groups.metadata.drain(DRAIN).await;
        groups.http.drain(ANSWERS_DRAIN).await;
    }
}

async fn open_metadata(
    config: &StandaloneConfig,
    seams: &Seams,
    tasks: &TaskGroup,
) -> Result<Arc<EmbeddedStore>, CliError> {
    let path = config.data_dir.join(METADATA_FILE);
    let options = EmbeddedOptions {
        cache_bytes: config.cache.metadata_bytes,
        ..EmbeddedOptions::default()
    };
    let (disk, clock) = (Arc::clone(&seams.disk), Arc::clone(&seams.clock));
    EmbeddedStore::open(path.clone(), options, disk, clock, tasks)
        .await
        .map(Arc::new)
        .map_err(|error| part_failed("the metadata store", &path, &error))
}

/// The one bookie of this process, called instead of connected to.
fn storage(store: &Arc<EmbeddedStore>, bookie: &Bookie, tasks: &TaskGroup) -> Storage {
    let here = BookieInfo {
        id: bookie.id(),
        zone: String::new(),
        read_only: false,
        free_bytes: 0,
        capacity_bytes: 0,
    };
    Storage {
        store: store.clone(),
        transport: Arc::new(InProcess::new(bookie.clone(), tasks)),
        bookies: Bookies::fixed(vec![here]),
    }
}
