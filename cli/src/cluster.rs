//! The way of the operators' tools to metadata and bookies, as one log context.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aquifer_bookie::{Bookie, BookieDeps, autorecovery};
use aquifer_ledger::bookie_client::{BookieClientConfig, GrpcTransport};
use aquifer_ledger::context::{LogContext, LogSettings, LogShared};
use aquifer_ledger::error::LedgerError;
use aquifer_ledger::managed::cache::EntryCache;
use aquifer_ledger::metrics::LedgerMetrics;
use aquifer_ledger::placement::{BookieInfo, Bookies};
use aquifer_metadata::embedded::{EmbeddedOptions, EmbeddedStore};
use aquifer_metadata::error::MetadataError;
use aquifer_metadata::store::MetadataStore;
use aquifer_runtime::clock::SystemClock;
use aquifer_runtime::disk::{Disk, DiskLock, RealDisk};
use aquifer_runtime::rng::SystemRng;
use aquifer_runtime::task::TaskGroup;
use aquifer_runtime::telemetry::{Telemetry, TelemetryConfig};

use crate::args::{SourceArgs, StandaloneArgs};
use crate::exit::{CliError, Exit};
use crate::roles::standalone::config::StandaloneConfig;

const CACHE_BYTES: usize = 1 << 20;
const DRAIN: Duration = Duration::from_secs(5);

/// What a tool works with; [`Cluster::close`] it in the end.
pub struct Cluster {
    /// Metadata, and the way to bookies.
    pub ctx: Arc<LogContext>,
    store: Arc<EmbeddedStore>,
    bookie: Bookie,
    _lock: DiskLock,
}

impl Cluster {
    /// Opens what the arguments name.
    ///
    /// # Errors
    /// When there is nothing there, or a server runs on it.
    pub async fn open(source: &SourceArgs) -> Result<Cluster, CliError> {
        let args = StandaloneArgs {
            data_dir: Some(source.data_dir.clone()),
            config: source.config.clone(),
            grpc_addr: None,
            http_addr: None,
            bookie_addr: None,
            allow_remote: true,
            accept_loss: false,
            check_config: false,
        };
        let (config, _) = StandaloneConfig::load(&args)?;
        let metadata = config.data_dir.join("metadata.redb");
        if !metadata.exists() {
            let shown = config.data_dir.display();
            return Err(CliError::failed(format!("{shown} is no data directory"))
                .advise("say where it is with --data-dir"));
        }
        let lock = lock(&config.data_dir)?;
        let logs = TelemetryConfig {
            log_filter: "warn".to_owned(),
            ..TelemetryConfig::default()
        };
        let telemetry =
            Telemetry::start(&logs).map_err(|error| CliError::failed(error.to_string()))?;
        let tasks = TaskGroup::new("tool");
        let (clock, disk) = (SystemClock::shared(), RealDisk::shared());
        let options = EmbeddedOptions::default();
        let opened = EmbeddedStore::open(metadata, options, disk, clock, &tasks).await;
        let store = Arc::new(opened.map_err(|error| failed(&error.into()))?);
        let mut settings = config.bookie;
        settings.scrub_bytes_per_second = 0;
        let deps = BookieDeps {
            disk: RealDisk::shared(),
            clock: SystemClock::shared(),
            rng: SystemRng::shared(),
            meter: telemetry.meter("aquifer_bookie"),
        };
        let opened = tokio::task::spawn_blocking(move || Bookie::open(settings, deps)).await;
        let bookie = opened
            .map_err(|error| CliError::failed(error.to_string()))?
            .map_err(|error| CliError::failed(format!("the bookie does not start: {error}")))?;
        let ctx = context(&telemetry, tasks, store.clone(), &bookie);
        Ok(Cluster {
            ctx,
            store,
            bookie,
            _lock: lock,
        })
    }

    /// Metadata.
    pub fn store(&self) -> &dyn MetadataStore {
        &*self.ctx.store
    }

    /// Whether its only bookie is part of a standalone server, which announces it to nobody.
    pub fn is_standalone(&self) -> bool {
        true
    }

    /// Finishes and flushes.
    pub async fn close(self) {
        self.ctx.tasks.drain(DRAIN).await;
        self.bookie.shutdown().await;
        self.store.close().await;
    }
}

fn context(
    telemetry: &Telemetry,
    tasks: TaskGroup,
    store: Arc<dyn MetadataStore>,
    bookie: &Bookie,
) -> Arc<LogContext> {
    let rng = SystemRng::shared();
    let others = GrpcTransport::new(BookieClientConfig::default(), &*rng, tasks.clone());
    let here = BookieInfo {
        id: bookie.id(),
        zone: String::new(),
        read_only: false,
    };
    Arc::new(LogContext {
        store,
        transport: autorecovery::transport(bookie.clone(), Arc::new(others)),
        bookies: Bookies::fixed(vec![here]),
        clock: SystemClock::shared(),
        rng,
        cache: EntryCache::new(CACHE_BYTES, CACHE_BYTES),
        tasks,
        metrics: LedgerMetrics::new(&telemetry.meter("aquifer_ledger")),
        settings: LogSettings::default(),
        shared: LogShared::default(),
    })
}

fn lock(data_dir: &Path) -> Result<DiskLock, CliError> {
    let shown = data_dir.display();
    let locked = RealDisk.lock_exclusive(&data_dir.join("lock"));
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
        LedgerError::Fenced => Exit::Refused,
        _ => Exit::Failed,
    };
    CliError::new(exit, error.to_string())
}
