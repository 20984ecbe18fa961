//! The life of a server process: it checks its configuration, takes its directory, serves until it
//! is told to end or a part of it fails, and stops in good order.

use std::path::Path;
use std::time::Duration;

use aquifer_bookie::Bookie;
use aquifer_runtime::clock::{Clock, SystemClock};
use aquifer_runtime::disk::{Disk, DiskLock, RealDisk};
use aquifer_runtime::task::TaskGroup;
use aquifer_runtime::telemetry::{Telemetry, TelemetryConfig};
use async_trait::async_trait;
use futures::FutureExt;
use futures::future::{BoxFuture, select_all};
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::CliError;
use crate::output::Output;

/// The file in a data directory that a running server holds.
const LOCK_FILE: &str = "lock";
/// How long each part may take to finish what it has begun.
pub const DRAIN: Duration = Duration::from_secs(15);
/// The same for what only answers: peers that keep their connections open are not waited for.
pub const ANSWERS_DRAIN: Duration = Duration::from_secs(2);

/// The parts of a server, as its process sees them.
#[async_trait]
pub trait Parts: Sync {
    /// Says whether clients should come here.
    fn set_serving(&self, serving: bool);
    /// Waits until a part has failed for good, and says why.
    async fn failed(&self) -> String;
    /// Stops every part in good order.
    async fn shutdown(&self);
}

/// Prints the configuration as it would be used; keys that mean nothing are errors here.
///
/// # Errors
/// Exit code 2 when there are such keys.
pub fn check_config(
    config: &impl Serialize,
    unknown: &[String],
    out: &Output,
) -> Result<(), CliError> {
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
pub fn start_telemetry(
    config: &TelemetryConfig,
    unknown: &[String],
) -> Result<Telemetry, CliError> {
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

/// The life of a role between its start and its end: waits until its parts serve, greets, serves
/// until it is told to end, and stops.
///
/// # Errors
/// When it does not start, a part failed, or a second signal cut the stop short.
pub async fn live<P: Parts>(
    start: impl Future<Output = Result<P, CliError>>,
    greet: impl FnOnce(&P) -> Result<(), CliError>,
    signals: &mut Signals,
    telemetry: &Telemetry,
) -> Result<(), CliError> {
    let parts = signals.or_start(start).await?;
    parts.set_serving(true);
    greet(&parts)?;
    let ended = serve(&parts, signals).await;
    telemetry.shutdown();
    ended
}

/// Serves until the process is told to end or a part fails, then stops every part.
///
/// # Errors
/// When a part failed, or a second signal cut the stop short.
pub async fn serve(parts: &impl Parts, signals: &mut Signals) -> Result<(), CliError> {
    let ended = tokio::select! {
        name = signals.next() => {
            tracing::info!(signal = name, "shutting down");
            Ok(())
        }
        reason = parts.failed() => {
            tracing::error!(reason, "a part of the server failed");
            Err(CliError::failed(format!("the server failed: {reason}"))
                .advise("nothing that was acknowledged is lost by that; its log says what led to it"))
        }
    };
    parts.set_serving(false);
    tokio::select! {
        () = parts.shutdown() => ended,
        name = signals.next() => Err(CliError::failed(format!(
            "{name} during shutdown: ended at once"
        ))
        .advise("nothing acknowledged is lost; the next start replays the journal")),
    }
}

/// Waits until a group has ended by itself or the bookie has failed, and says why.
pub async fn first_failure(groups: &[&TaskGroup], bookie: Option<&Bookie>) -> String {
    let mut watched: Vec<BoxFuture<'_, String>> = Vec::new();
    if let Some(bookie) = bookie {
        watched.push(bookie.failed().boxed());
    }
    for group in groups {
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
