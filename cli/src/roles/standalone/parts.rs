//! The parts of a server, started from the bottom up and stopped from the top down.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aquifer_bookie::autorecovery::{self, AutorecoveryConfig};
use aquifer_bookie::{Bookie, BookieDeps};
use aquifer_broker::{Broker, BrokerDeps};
use aquifer_ledger::context::{LogContext, LogSettings, LogShared};
use aquifer_ledger::managed::cache::EntryCache;
use aquifer_ledger::metrics::LedgerMetrics;
use aquifer_ledger::placement::{BookieInfo, Bookies};
use aquifer_metadata::embedded::{EmbeddedOptions, EmbeddedStore};
use aquifer_protocol_api::broker::BrokerApi;
use aquifer_runtime::clock::{SharedClock, SystemClock};
use aquifer_runtime::disk::{RealDisk, SharedDisk};
use aquifer_runtime::rng::{SharedRng, SystemRng};
use aquifer_runtime::task::TaskGroup;
use aquifer_runtime::telemetry::Telemetry;
use futures::FutureExt;
use futures::future::{BoxFuture, select_all};

use crate::exit::CliError;
use crate::output::Output;
use crate::roles::standalone::config::StandaloneConfig;
use crate::roles::standalone::greeting::{loss_lines, print_loss};
use crate::roles::standalone::http::{self, Health};
use crate::roles::standalone::quiet;
use crate::roles::standalone::transport::InProcess;

/// The file of the metadata store in the data directory.
const METADATA_FILE: &str = "metadata.redb";
/// How long each part may take to finish what it has begun.
const DRAIN: Duration = Duration::from_secs(15);
/// The same for what only answers: peers that keep their connections open are not waited for.
const ANSWERS_DRAIN: Duration = Duration::from_secs(2);

/// What everything is made with.
struct Seams {
    clock: SharedClock,
    rng: SharedRng,
    disk: SharedDisk,
}

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
    /// When one does not start; what had started before ends with the process.
    pub async fn start(
        config: &StandaloneConfig,
        telemetry: &Telemetry,
        out: &Output,
    ) -> Result<Parts, CliError> {
        let seams = Seams {
            clock: SystemClock::shared(),
            rng: SystemRng::shared(),
            disk: RealDisk::shared(),
        };
        let groups = Groups::new();
        // The two that read files start side by side: most of the start is waiting for the disk.
        let (store, bookie) = tokio::try_join!(
            open_metadata(config, &seams, &groups.metadata),
            open_bookie(config, &seams, telemetry),
        )?;
        report_loss(&bookie, out)?;
        let log = log_context(config, &seams, telemetry, &groups, &store, &bookie);
        quiet::give_back_when_quiet(log.cache.clone(), &groups.ledger);
        // Nobody else has copies, so that there is nothing to repair from: only what concerns the
        // bookie itself runs.
        let hosted = AutorecoveryConfig {
            enabled: false,
            ..AutorecoveryConfig::default()
        };
        autorecovery::start(&bookie, &log, &hosted, &groups.ledger);
        let broker = start_broker(config, &seams, telemetry, &groups, log).await?;
        let health = Health::new(telemetry.clone(), bookie.clone());
        let http_address = http::serve(config.http.listen, health.clone(), &groups.http)
            .await
            .map_err(|error| CliError::failed(error.to_string()))?;
        let bookie_address = serve_bookie(config, &bookie, &groups.bookie_api).await?;
        let url = serve_protocols(config, &seams, telemetry, &broker, &groups.protocols).await?;
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

    /// Says whether clients should come here.
    pub fn set_serving(&self, serving: bool) {
        self.health.set_serving(serving);
    }

    /// Waits until a part has failed for good, and says why.
    pub async fn failed(&self) -> String {
        let mut watched: Vec<BoxFuture<'_, String>> = vec![self.bookie.failed().boxed()];
        for group in self.groups.all() {
            let token = group.shutdown_token();
            let reason = async move {
                token.wait().await;
                let reason = group.failed().unwrap_or_else(|| "it ended".to_owned());
                format!("{}: {reason}", group.name())
            };
            watched.push(reason.boxed());
        }
        select_all(watched).await.0
    }

    /// Stops every part in good order.
    pub async fn shutdown(&self) {
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

async fn open_bookie(
    config: &StandaloneConfig,
    seams: &Seams,
    telemetry: &Telemetry,
) -> Result<Bookie, CliError> {
    let settings = config.bookie.clone();
    let deps = BookieDeps {
        disk: Arc::clone(&seams.disk),
        clock: Arc::clone(&seams.clock),
        rng: Arc::clone(&seams.rng),
        meter: telemetry.meter("aquifer_bookie"),
    };
    let opened = tokio::task::spawn_blocking(move || Bookie::open(settings, deps)).await;
    let directory = &config.bookie.data_dir;
    match opened {
        Ok(Ok(bookie)) => Ok(bookie),
        Ok(Err(error)) => Err(part_failed("the bookie", directory, &error)),
        Err(error) => Err(part_failed("the bookie", directory, &error)),
    }
}

fn part_failed(what: &str, path: &Path, error: &dyn std::error::Error) -> CliError {
    let mut message = format!("{what} in {} does not start: {error}", path.display());
    let mut source = error.source();
    while let Some(cause) = source {
        message.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    CliError::failed(message)
}

/// Prints the loss that was accepted, or warns of the one that is not.
fn report_loss(bookie: &Bookie, out: &Output) -> Result<(), CliError> {
    if let Some(loss) = bookie.accepted_loss() {
        for line in loss_lines(loss) {
            tracing::warn!(loss = line, "loss accepted");
        }
        print_loss(loss, out)?;
    }
    if let Some(loss) = bookie.status().limbo {
        for line in loss_lines(&loss) {
            tracing::error!(loss = line, "data may be lost");
        }
        out.note(
            "warning: the journal has lost synced data; every ledger is in limbo: what is there \
             is served, and nothing is said to be absent.\n\
             Restore the files, or restart with --accept-loss to give up what is missing.",
        );
    }
    Ok(())
}

fn log_context(
    config: &StandaloneConfig,
    seams: &Seams,
    telemetry: &Telemetry,
    groups: &Groups,
    store: &Arc<EmbeddedStore>,
    bookie: &Bookie,
) -> Arc<LogContext> {
    let here = BookieInfo {
        id: bookie.id(),
        zone: String::new(),
        read_only: false,
        free_bytes: 0,
        capacity_bytes: 0,
    };
    Arc::new(LogContext {
        store: store.clone(),
        transport: Arc::new(InProcess(bookie.clone())),
        bookies: Bookies::fixed(vec![here]),
        clock: Arc::clone(&seams.clock),
        rng: Arc::clone(&seams.rng),
        cache: EntryCache::new(config.cache.tail_bytes, config.cache.read_ahead_bytes),
        tasks: groups.ledger.clone(),
        metrics: LedgerMetrics::new(&telemetry.meter("aquifer_ledger")),
        settings: LogSettings::default(),
        shared: LogShared::default(),
    })
}

async fn start_broker(
    config: &StandaloneConfig,
    seams: &Seams,
    telemetry: &Telemetry,
    groups: &Groups,
    log: Arc<LogContext>,
) -> Result<Arc<Broker>, CliError> {
    let deps = BrokerDeps {
        log,
        clock: Arc::clone(&seams.clock),
        rng: Arc::clone(&seams.rng),
        meter: telemetry.meter("aquifer_broker"),
        tasks: groups.broker.clone(),
    };
    Broker::new(config.broker.clone(), deps)
        .await
        .map_err(|error| CliError::failed(format!("the broker does not start: {error}")))
}

async fn serve_bookie(
    config: &StandaloneConfig,
    bookie: &Bookie,
    tasks: &TaskGroup,
) -> Result<SocketAddr, CliError> {
    aquifer_bookie::service::serve(bookie.clone(), config.bookie_api.listen, tasks)
        .await
        .map_err(|error| CliError::failed(error.to_string()))
}

/// Serves every enabled protocol; the first one's address is what clients are told.
async fn serve_protocols(
    config: &StandaloneConfig,
    seams: &Seams,
    telemetry: &Telemetry,
    broker: &Arc<Broker>,
    tasks: &TaskGroup,
) -> Result<String, CliError> {
    let failed = |error: aquifer_protocol_api::error::ApiError| CliError::failed(error.to_string());
    let protocols = &config.protocols;
    let handlers = aquifer_protocol_registry::handlers(protocols, &seams.clock, telemetry);
    let mut url = String::new();
    for handler in handlers.map_err(failed)? {
        let api: Arc<dyn BrokerApi> = broker.clone();
        let address = handler.serve(api, tasks.clone()).await.map_err(failed)?;
        tracing::info!(protocol = handler.name(), %address, "protocol served");
        if url.is_empty() {
            url = handler.advertised().unwrap_or_default();
        }
    }
    Ok(url)
}
