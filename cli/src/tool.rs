//! What the operators' tools work with (`aquifer ledger`, `bookie`, `doctor`): metadata and
//! bookies, of a cluster that runs or of a standalone server that is stopped.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aquifer_bookie::{Bookie, autorecovery};
use aquifer_ledger::bookie_client::{BookieClientConfig, GrpcTransport};
use aquifer_ledger::error::LedgerError;
use aquifer_ledger::members::Members;
use aquifer_ledger::placement::{BookieInfo, Bookies};
use aquifer_metadata::embedded::{EmbeddedOptions, EmbeddedStore};
use aquifer_metadata::error::MetadataError;
use aquifer_metadata::etcd::{EtcdMember, EtcdStore};
use aquifer_metadata::store::MetadataStore;
use aquifer_repair::context::RepairContext;
use aquifer_runtime::disk::{Disk, DiskLock, RealDisk};
use aquifer_runtime::task::TaskGroup;
use aquifer_runtime::telemetry::{Telemetry, TelemetryConfig};
use serde::{Deserialize, Serialize};

use crate::args::{SourceArgs, StandaloneArgs};
use crate::exit::{CliError, Exit};
use crate::roles::membership;
use crate::roles::process::LOCK_FILE;
use crate::roles::serving::{self, Storage};
use crate::roles::settings::{self, ClusterSection, DEFAULT_CLUSTER, EtcdSettings, LedgerConfig};
use crate::roles::standalone::config::StandaloneConfig;
use crate::roles::storage::{Seams, local_bookie, open_bookie};
use crate::roles::tls::{Certificates, InternalTls};

const DRAIN: Duration = Duration::from_secs(5);

/// What a tool works with; [`ToolContext::close`] it in the end.
pub struct ToolContext {
    /// Metadata, and the way to bookies.
    pub ctx: Arc<RepairContext>,
    /// The name of the cluster, as brokers have it.
    pub cluster: String,
    opened: Opened,
}

enum Opened {
    /// The directory of a standalone server that is stopped.
    Directory {
        store: Arc<EmbeddedStore>,
        bookie: Bookie,
        _lock: DiskLock,
    },
    /// A cluster that runs.
    Etcd(Arc<EtcdStore>),
}

impl ToolContext {
    /// Opens what the arguments name.
    ///
    /// # Errors
    /// When there is nothing there, or a server runs on it.
    pub async fn open(source: &SourceArgs) -> Result<ToolContext, CliError> {
        let telemetry = telemetry()?;
        match named_cluster(source)? {
            Some(cluster) => connect(&cluster, &telemetry).await,
            None => open_directory(source, &telemetry).await,
        }
    }

    /// Metadata.
    pub fn store(&self) -> &dyn MetadataStore {
        &*self.ctx.ledgers.store
    }

    /// Whether its only bookie is part of a standalone server, which does not announce it.
    pub fn is_standalone(&self) -> bool {
        matches!(self.opened, Opened::Directory { .. })
    }

    /// What the members of etcd say; none in a standalone server.
    pub async fn etcd_members(&self) -> Vec<EtcdMember> {
        match &self.opened {
            Opened::Directory { .. } => Vec::new(),
            Opened::Etcd(store) => store.members().await,
        }
    }

    /// Finishes and flushes.
    pub async fn close(self) {
        self.ctx.ledgers.tasks.shutdown();
        match &self.opened {
            Opened::Directory { store, bookie, .. } => {
                bookie.shutdown().await;
                store.close().await;
            }
            Opened::Etcd(store) => store.close().await,
        }
        self.ctx.ledgers.tasks.drain(DRAIN).await;
    }
}

/// Logs of a tool: what is wrong, on standard error. It works once in a process.
///
/// # Errors
/// When it was started before.
pub fn telemetry() -> Result<Telemetry, CliError> {
    let logs = TelemetryConfig {
        log_filter: "warn".to_owned(),
        ..TelemetryConfig::default()
    };
    Telemetry::start(&logs).map_err(|error| CliError::failed(error.to_string()))
}

/// What the tools take from the configuration of a server of the cluster.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct ToolConfig {
    cluster: String,
    metadata: String,
    etcd: EtcdSettings,
    internal_tls: InternalTls,
}

/// The cluster that is named by flags, the file or the environment; `None` when it is a directory.
///
/// # Errors
/// When a setting is wrong.
pub fn named_cluster(source: &SourceArgs) -> Result<Option<ClusterSection>, CliError> {
    if source.data_dir.is_some() {
        return Ok(None);
    }
    // The file is a server's, most of which means nothing here.
    let (config, _) = settings::load::<ToolConfig>(source.config.as_deref())?;
    let metadata = source.metadata.clone().unwrap_or(config.metadata);
    if metadata.is_empty() {
        return Ok(None);
    }
    let name = source.cluster.clone().unwrap_or(config.cluster);
    let name = if name.is_empty() {
        DEFAULT_CLUSTER.to_owned()
    } else {
        name
    };
    let cluster = ClusterSection {
        name,
        metadata,
        etcd: config.etcd,
        internal_tls: config.internal_tls,
        ..ClusterSection::default()
    };
    membership::check(&cluster)?;
    Ok(Some(cluster))
}

/// Connects to a cluster, and to the bookies that are registered there now.
///
/// # Errors
/// When metadata cannot be read, or no bookie has ever joined the cluster.
pub async fn connect(
    cluster: &ClusterSection,
    telemetry: &Telemetry,
) -> Result<ToolContext, CliError> {
    let (seams, tasks) = (Seams::real(), TaskGroup::new("tool"));
    let etcd = membership::connect(cluster, &seams, &tasks).await?;
    let reach = BookieClientConfig {
        cluster: cluster.name.clone(),
        tls: Certificates::new(Arc::clone(&seams.clock))
            .to_bookies(&cluster.name, &cluster.internal_tls)?,
        ..BookieClientConfig::default()
    };
    let transport = GrpcTransport::new(reach, &*seams.rng, tasks.clone());
    let members = Members::load(&*etcd).await;
    let members = members.map_err(|error| failed(&error))?;
    if members.iter().next().is_none() && members.damaged().is_empty() {
        etcd.close().await;
        let message = format!(
            "no bookie has ever joined a cluster named {} there",
            cluster.name
        );
        return Err(
            CliError::failed(message).advise("name the cluster with --cluster or AQUIFER_CLUSTER")
        );
    }
    let mut known = Vec::new();
    for member in members.iter() {
        let Some(registration) = &member.registration else {
            continue;
        };
        if let Err(error) = transport.set_address(member.id, &registration.address) {
            tracing::warn!(bookie = %member.id, %error, "bookie has no usable address");
            continue;
        }
        known.push(BookieInfo {
            id: member.id,
            zone: registration.zone.clone(),
            read_only: registration.read_only || member.is_leaving(),
            free_bytes: registration.free_bytes,
            capacity_bytes: registration.capacity_bytes,
        });
    }
    let storage = Storage {
        store: etcd.clone(),
        transport: Arc::new(transport),
        bookies: Bookies::fixed(known),
    };
    let ctx = context(telemetry, &seams, &tasks, storage);
    Ok(ToolContext {
        ctx,
        cluster: cluster.name.clone(),
        opened: Opened::Etcd(etcd),
    })
}

/// Opens the data directory of a standalone server.
async fn open_directory(
    source: &SourceArgs,
    telemetry: &Telemetry,
) -> Result<ToolContext, CliError> {
    let args = StandaloneArgs {
        data_dir: source.data_dir.clone(),
        config: source.config.clone(),
        grpc_addr: None,
        http_addr: None,
        bookie_addr: None,
        allow_remote: true,
        auth: false,
        accept_loss: false,
        cold_store: None,
        check_config: false,
    };
    let (config, _) = StandaloneConfig::load(&args)?;
    let metadata = config.metadata_file();
    if !metadata.exists() {
        let shown = config.data_dir.display();
        return Err(CliError::failed(format!("{shown} is not a data directory"))
            .advise("give it with --data-dir, or name a cluster with --metadata"));
    }
    let lock = lock(&config.data_dir)?;
    let (seams, tasks) = (Seams::real(), TaskGroup::new("tool"));
    let (clock, disk) = (Arc::clone(&seams.clock), Arc::clone(&seams.disk));
    let options = EmbeddedOptions::default();
    let opened = EmbeddedStore::open(metadata, options, disk, clock, &tasks).await;
    let store = Arc::new(opened.map_err(|error| failed(&error.into()))?);
    let mut settings = config.bookie;
    settings.scrub_bytes_per_second = 0;
    settings.merge_bytes_per_second = 0;
    let bookie = open_bookie(&settings, &seams, telemetry).await?;
    let reach = BookieClientConfig::default();
    let others = GrpcTransport::new(reach, &*seams.rng, tasks.clone());
    let transport = autorecovery::transport(bookie.clone(), Arc::new(others));
    let storage = Storage {
        store: store.clone(),
        transport,
        bookies: Bookies::fixed(vec![local_bookie(&bookie)]),
    };
    let ctx = context(telemetry, &seams, &tasks, storage);
    Ok(ToolContext {
        ctx,
        cluster: config.broker.cluster,
        opened: Opened::Directory {
            store,
            bookie,
            _lock: lock,
        },
    })
}

/// What the tools share, made as in a server.
fn context(
    telemetry: &Telemetry,
    seams: &Seams,
    tasks: &TaskGroup,
    storage: Storage,
) -> Arc<RepairContext> {
    let ledger = LedgerConfig::default();
    let ledgers = serving::ledger_context(storage, &ledger, seams, telemetry, tasks);
    serving::repair_context(ledgers, telemetry)
}

fn lock(data_dir: &Path) -> Result<DiskLock, CliError> {
    let shown = data_dir.display();
    let locked = RealDisk.lock_exclusive(&data_dir.join(LOCK_FILE));
    locked.map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => {
            let message = format!("a server is running on the data directory {shown}");
            CliError::new(Exit::Refused, message).advise("stop it first")
        }
        _ => CliError::failed(format!("cannot lock the data directory {shown}: {error}")),
    })
}

/// A failure of storage, with its exit code.
pub fn failed(error: &LedgerError) -> CliError {
    let exit = match error {
        LedgerError::Metadata(MetadataError::Unavailable(_)) => Exit::CannotConnect,
        LedgerError::Metadata(MetadataError::UnknownOutcome(_)) => Exit::TimedOut,
        LedgerError::Metadata(MetadataError::Denied(_)) | LedgerError::Fenced => Exit::Refused,
        _ => Exit::Failed,
    };
    CliError::new(exit, error.to_string())
}
