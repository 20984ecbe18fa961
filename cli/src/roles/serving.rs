//! The broker of a process with its way to storage and its protocols: made alike in a standalone
//! server and in one of its own.

use std::sync::Arc;

use aquifer_broker::{Broker, BrokerConfig, BrokerDeps, Peers};
use aquifer_ledger::bookie_client::{BookieClientConfig, GrpcTransport};
use aquifer_ledger::bookie_directory::BookieDirectory;
use aquifer_ledger::context::{LedgerContext, LedgerShared};
use aquifer_ledger::metrics::LedgerMetrics;
use aquifer_ledger::placement::Bookies;
use aquifer_ledger::transport::BookieTransport;
use aquifer_log::cache::EntryCache;
use aquifer_log::context::{LogContext, LogSettings, LogShared};
use aquifer_log::metrics::LogMetrics;
use aquifer_metadata::lease::Lease;
use aquifer_metadata::measured::{self, MeasuredStore};
use aquifer_metadata::store::MetadataStore;
use aquifer_model::listener::Listeners;
use aquifer_protocol_api::BrokerApi;
use aquifer_protocol_api::error::ApiError;
use aquifer_protocol_api::security::Authenticator;
use aquifer_protocol_registry::{Protocols, ProtocolsConfig, RestService};
use aquifer_repair::context::RepairContext;
use aquifer_runtime::net::ListenAddress;
use aquifer_runtime::net::tls::ServerTls;
use aquifer_runtime::task::TaskGroup;
use aquifer_runtime::telemetry::Telemetry;

use crate::exit::CliError;
use crate::roles::cold::ColdConfig;
use crate::roles::membership::Membership;
use crate::roles::quiet;
use crate::roles::settings::{CacheConfig, ClusterSection, LedgerConfig};
use crate::roles::storage::Seams;
use crate::roles::tls::Certificates;

/// The way to ledgers.
pub struct Storage {
    /// Coordination.
    pub store: Arc<dyn MetadataStore>,
    /// The way to bookies.
    pub transport: Arc<dyn BookieTransport>,
    /// Which bookies there are.
    pub bookies: Bookies,
}

/// The way to the bookies of a cluster, as far as they are announced now and later.
///
/// # Errors
/// When its certificates cannot be used.
pub async fn cluster_storage(
    cluster: &ClusterSection,
    certificates: &Certificates,
    membership: &Membership,
    seams: &Seams,
    (transport, metadata): (&TaskGroup, &TaskGroup),
) -> Result<Storage, CliError> {
    let client = BookieClientConfig {
        cluster: cluster.name.clone(),
        tls: certificates.to_bookies(&cluster.name, &cluster.internal_tls)?,
        ..BookieClientConfig::default()
    };
    let transport = Arc::new(GrpcTransport::new(client, &*seams.rng, transport.clone()));
    let directory = BookieDirectory::start(
        Arc::clone(&membership.store),
        Arc::clone(&transport),
        Arc::clone(&seams.rng),
        metadata,
    );
    directory.ready().await;
    Ok(Storage {
        store: Arc::clone(&membership.store),
        transport,
        bookies: directory.bookies(),
    })
}

/// What every log of the process shares. `cold` says in which cluster, and where its objects are.
///
/// # Errors
/// When the directory of the disk cache cannot be used: exit code 2.
pub fn log_context(
    storage: Storage,
    (cache, ledger): (&CacheConfig, &LedgerConfig),
    (cluster, cold): (&str, &ColdConfig),
    seams: &Seams,
    telemetry: &Telemetry,
    tasks: &TaskGroup,
) -> Result<Arc<LogContext>, CliError> {
    let cache = EntryCache::new(cache.tail_bytes, cache.read_ahead_bytes);
    let store = Arc::clone(&storage.store);
    let tier = Arc::new(cold.tier(cluster, store, seams, telemetry)?);
    LogMetrics::watch_tier(&telemetry.meter("aquifer_log"), &tier, &seams.clock);
    quiet::give_back_when_quiet(cache.clone(), Arc::clone(&tier), tasks);
    telemetry.show_histograms(aquifer_log::metrics::HISTOGRAMS);
    Ok(Arc::new(LogContext {
        ledgers: ledger_context(storage, ledger, seams, telemetry, tasks),
        cache,
        cold: Some(tier),
        metrics: LogMetrics::new(&telemetry.meter("aquifer_log")),
        settings: LogSettings::default(),
        shared: LogShared::default(),
    }))
}

/// What auditing and repair of these ledgers share.
pub fn repair_context(ledgers: Arc<LedgerContext>, telemetry: &Telemetry) -> Arc<RepairContext> {
    telemetry.show_histograms(aquifer_repair::metrics::HISTOGRAMS);
    RepairContext::new(ledgers, &telemetry.meter("aquifer_repair"))
}

/// What every ledger of the process shares.
pub fn ledger_context(
    storage: Storage,
    ledger: &LedgerConfig,
    seams: &Seams,
    telemetry: &Telemetry,
    tasks: &TaskGroup,
) -> Arc<LedgerContext> {
    telemetry.show_histograms(aquifer_ledger::metrics::HISTOGRAMS);
    telemetry.show_histograms(measured::HISTOGRAMS);
    let (clock, meter) = (
        Arc::clone(&seams.clock),
        telemetry.meter("aquifer_metadata"),
    );
    Arc::new(LedgerContext {
        store: Arc::new(MeasuredStore::new(storage.store, clock, &meter)),
        transport: storage.transport,
        bookies: storage.bookies,
        clock: Arc::clone(&seams.clock),
        rng: Arc::clone(&seams.rng),
        tasks: tasks.clone(),
        metrics: LedgerMetrics::new(&telemetry.meter("aquifer_ledger")),
        settings: ledger.ledger_settings(),
        shared: LedgerShared::default(),
    })
}

/// What a broker needs to be one of a cluster: its lease, the way to the others, and what their
/// certificates are, where they have some.
pub type InCluster = (Lease, Arc<dyn Peers>, Option<Arc<ServerTls>>);

/// Starts the broker, in a cluster or alone.
///
/// # Errors
/// When it does not start.
pub async fn start_broker(
    config: &BrokerConfig,
    log: Arc<LogContext>,
    seams: &Seams,
    telemetry: &Telemetry,
    tasks: &TaskGroup,
    cluster: Option<InCluster>,
) -> Result<Arc<Broker>, CliError> {
    let (lease, peers, brokers) = match cluster {
        Some((lease, peers, brokers)) => (Some(lease), Some(peers), brokers),
        None => (None, None, None),
    };
    telemetry.show_histograms(aquifer_broker::HISTOGRAMS);
    let deps = BrokerDeps {
        lease,
        peers,
        brokers,
        log,
        clock: Arc::clone(&seams.clock),
        rng: Arc::clone(&seams.rng),
        meter: telemetry.meter("aquifer_broker"),
        tasks: tasks.clone(),
    };
    Broker::new(config.clone(), deps)
        .await
        .map_err(|error| CliError::failed(format!("the broker does not start: {error}")))
}

/// The protocols of a broker, and REST for its HTTP port.
///
/// # Errors
/// When their configuration cannot be used.
pub fn protocols(
    config: &ProtocolsConfig,
    broker: &Arc<Broker>,
    seams: &Seams,
    telemetry: &Telemetry,
    tasks: &TaskGroup,
) -> Result<(Protocols, RestService), CliError> {
    let protocols = Protocols::new(config, &seams.clock, telemetry).map_err(protocol_failed)?;
    let rest = protocols.rest(broker.clone(), Arc::clone(&seams.rng), tasks);
    Ok((protocols, rest.map_err(protocol_failed)?))
}

/// REST of a port that only this machine reaches: where callers are not authenticated, pages that a
/// browser of this machine shows must not reach it by names of their own.
pub fn guarded(rest: RestService, broker: &Arc<Broker>, listen: ListenAddress) -> RestService {
    match listen.is_loopback() && !broker.authenticates() {
        true => rest.for_this_machine(),
        false => rest,
    }
}

fn protocol_failed(error: ApiError) -> CliError {
    CliError::failed(error.to_string())
}

/// Serves every enabled protocol; the first one's addresses are what clients are told.
///
/// # Errors
/// When an address cannot be listened on.
pub async fn serve_protocols(
    protocols: &Protocols,
    broker: &Arc<Broker>,
    certificates: &Certificates,
    tasks: &TaskGroup,
) -> Result<Listeners, CliError> {
    let mut listeners = Listeners::default();
    for handler in protocols.handlers() {
        certificates.add(handler.reloads());
        let api: Arc<dyn BrokerApi> = broker.clone();
        let served = handler.serve(api, tasks.clone()).await;
        let address = served.map_err(protocol_failed)?;
        tracing::info!(protocol = handler.name(), %address, "protocol served");
        if listeners.is_empty() {
            listeners = handler.advertised();
        }
    }
    Ok(listeners)
}
