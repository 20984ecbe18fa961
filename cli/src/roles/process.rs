//! The life of a server process: it checks its configuration, takes its directory, serves until it
//! is told to end or a part of it fails, and stops in good order.

use std::path::Path;
use std::time::Duration;

use aquifer_runtime::clock::{Clock, SystemClock};
use aquifer_runtime::disk::{Disk, DiskLock, RealDisk};
use aquifer_runtime::telemetry::{Telemetry, TelemetryConfig};
use async_trait::async_trait;
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::CliError;
use crate::output::Output;
use crate::roles::server::Server;

/// The file in a data directory that a running server holds.
pub const LOCK_FILE: &str = "lock";
/// A role of a server process: its checked configuration, and how that becomes a server.
#[async_trait]
pub trait Role: Serialize + Sync {
    /// How it logs, traces and counts.
    fn telemetry(&self) -> &TelemetryConfig;

    /// The directory that it holds while it runs, if it stores anything.
    fn data_dir(&self) -> Option<&Path> {
        None
    }

    /// Fits settings to what the operating system allows.
    fn prepare(&mut self);

    /// Whether a signal may cut the start short; otherwise it takes effect when the start is over.
    fn start_may_be_cut(&self) -> bool {
        true
    }

    /// Starts every part, from the bottom up.
    ///
    /// # Errors
    /// When one does not start; what had started before ends with the process.
    async fn start(&self, telemetry: &Telemetry, out: &Output) -> Result<Server, CliError>;
}

/// The life of a server: starts it, greets, serves until it is told to end, and stops it. With
/// `check_config` it only prints its configuration. `loaded` has the role and keys of its
/// configuration that mean nothing; `began` is when the process did.
///
/// # Errors
/// When it does not start, a part failed, or a second signal cut the stop short.
pub async fn run(
    loaded: (impl Role, Vec<String>),
    check_config: bool,
    began: Duration,
    out: &Output,
) -> Result<(), CliError> {
    let (mut role, unknown) = loaded;
    if check_config {
        return print_config(&role, &unknown, out);
    }
    let mut signals = Signals::listen()?;
    let telemetry = start_telemetry(role.telemetry(), &unknown)?;
    role.prepare();
    let lock = role.data_dir().map(lock_data_dir).transpose()?;
    let start = role.start(&telemetry, out);
    let server = match role.start_may_be_cut() {
        true => signals.or_start(start).await?,
        false => start.await?,
    };
    server.health.set_serving(true);
    server
        .greeting
        .print(server.http_address, ready_ms(began), out)?;
    let ended = serve(&server, &mut signals).await;
    telemetry.shutdown();
    drop(lock);
    ended
}

/// Prints the configuration as it would be used; keys that mean nothing are errors here.
///
/// # Errors
/// Exit code 2 when there are such keys.
fn print_config(config: &impl Serialize, unknown: &[String], out: &Output) -> Result<(), CliError> {
    if !unknown.is_empty() {
        let keys = unknown.join(", ");
        return Err(CliError::usage(format!(
            "unknown configuration keys: {keys}"
        )));
    }
    if out.is_json() {
        return out.object(config);
    }
    let text = toml::to_string_pretty(config)
        .map_err(|error| CliError::failed(format!("cannot print the configuration: {error}")))?;
    out.line(text.trim_end())
}

/// Starts logs, traces and metrics, and warns of keys that mean nothing.
///
/// # Errors
/// Exit code 2 when a setting of them is wrong.
fn start_telemetry(config: &TelemetryConfig, unknown: &[String]) -> Result<Telemetry, CliError> {
    let telemetry = Telemetry::start(config).map_err(|error| CliError::usage(error.to_string()))?;
    for key in unknown {
        tracing::warn!(key, "unknown configuration key, ignored");
    }
    Ok(telemetry)
}

/// Takes a data directory for this process; creates it if need be.
///
/// # Errors
/// When another process has it, or it cannot be written.
pub fn lock_data_dir(data_dir: &Path) -> Result<DiskLock, CliError> {
    let shown = data_dir.display();
    RealDisk.create_dir_all(data_dir).map_err(|error| {
        CliError::failed(format!("cannot create the data directory {shown}: {error}"))
            .advise("give a directory that this user can write with --data-dir")
    })?;
    let locked = RealDisk.lock_exclusive(&data_dir.join(LOCK_FILE));
    locked.map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => CliError::failed(format!(
            "another server is running on the data directory {shown}"
        ))
        .advise("stop it, or give this one a directory of its own with --data-dir"),
        _ => CliError::failed(format!("cannot lock the data directory {shown}: {error}"))
            .advise("give a directory that this user can write with --data-dir"),
    })
}

/// How long ago the process began, in ms.
pub fn ready_ms(began: Duration) -> u64 {
    let took = SystemClock.monotonic().saturating_sub(began);
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}

/// Serves until the process is told to end or a part fails, then stops every part.
///
/// # Errors
/// When a part failed, or a second signal cut the stop short.
async fn serve(server: &Server, signals: &mut Signals) -> Result<(), CliError> {
    let ended = tokio::select! {
        name = signals.next() => {
            tracing::info!(signal = name, "shutting down");
            Ok(())
        }
        reason = server.failed() => {
            tracing::error!(reason, "a part of the server failed");
            Err(CliError::failed(format!("the server failed: {reason}"))
                .advise("no acknowledged message is lost by that; the log has the reason"))
        }
    };
    server.health.set_serving(false);
    tokio::select! {
        () = server.shutdown() => ended,
        name = signals.next() => Err(CliError::failed(format!(
            "{name} during shutdown: ended at once"
        ))
        .advise("no acknowledged message is lost; the next start replays the journal")),
    }
}

/// What asks a process to end.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Listens from now on: a signal during the start must end a process cleanly too.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn listen() -> Result<Signals, CliError> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| CliError::failed(format!("cannot listen for signals: {error}")))
        };
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// Waits for one.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// Waits for a start that may take long, unless the process is told to end first.
    ///
    /// # Errors
    /// Those of the start; and when a signal came.
    pub async fn or_start<T>(
        &mut self,
        start: impl Future<Output = Result<T, CliError>>,
    ) -> Result<T, CliError> {
        tokio::select! {
            started = start => started,
            name = self.next() => Err(CliError::failed(format!("{name} during the start"))),
        }
    }
}
