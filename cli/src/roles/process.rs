//! The life of a server process: it checks its configuration, takes its directory, serves until it
//! is told to end or a part of it fails, and stops in good order.

use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use aquifer_runtime::clock::{self, Clock, SystemClock};
use aquifer_runtime::disk::{Disk, DiskLock, RealDisk};
use aquifer_runtime::telemetry::{Telemetry, TelemetryConfig};
use async_trait::async_trait;
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::CliError;
use crate::output::Output;
use crate::roles::server::{Parts, Server, Steps};

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

    /// Starts every part, from the bottom up, and enters it into `parts` when it has started. The
    /// start may be dropped wherever it awaits, except within the steps that
    /// [`Steps::whole`](crate::roles::server::Steps::whole) runs.
    ///
    /// # Errors
    /// When one does not start. The caller stops the parts that have started.
    async fn start(
        &self,
        parts: &mut Parts,
        telemetry: &Telemetry,
        out: &Output,
    ) -> Result<Server, CliError>;
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
    let mut parts = Parts::new();
    let steps = parts.steps();
    let start = role.start(&mut parts, &telemetry, out);
    let started = start_or_cut(start, &steps, signals.next()).await;
    let ended = match started {
        Ok(server) => serve(&server, &parts, began, &mut signals, out).await,
        Err(error) => stop(&parts, &mut signals).await.and(Err(error)),
    };
    telemetry.shutdown();
    drop(lock);
    ended
}

/// Waits for a start that may take long. When the process is told to end first, the start is
/// dropped, but not within one of its whole steps.
///
/// # Errors
/// Those of the start; and when a signal came.
async fn start_or_cut<T>(
    start: impl Future<Output = Result<T, CliError>>,
    steps: &Steps,
    signal: impl Future<Output = &'static str>,
) -> Result<T, CliError> {
    let mut start = pin!(start);
    let name = tokio::select! {
        started = &mut start => return started,
        name = signal => name,
    };
    tracing::info!(signal = name, "shutting down during the start");
    tokio::select! {
        biased;
        () = steps.between() => {}
        // With nothing left to start, the signal counts all the same.
        _ = start => {}
    }
    Err(CliError::failed(format!("{name} during the start")))
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
    clock::millis(SystemClock.monotonic().saturating_sub(began))
}

/// Greets, serves until the process is told to end or a part fails, and stops every part.
///
/// # Errors
/// When it cannot greet, a part failed, or a second signal cut the stop short.
async fn serve(
    server: &Server,
    parts: &Parts,
    began: Duration,
    signals: &mut Signals,
    out: &Output,
) -> Result<(), CliError> {
    let (greeting, http) = (&server.greeting, &server.http_url);
    server.health.set_serving();
    let ended = match greeting.print(http, ready_ms(began), out) {
        Ok(()) => until_ended(parts, signals).await,
        Err(error) => Err(error),
    };
    server.health.set_stopping();
    stop(parts, signals).await.and(ended)
}

/// Waits until the process is told to end or a part fails.
///
/// # Errors
/// When a part failed.
async fn until_ended(parts: &Parts, signals: &mut Signals) -> Result<(), CliError> {
    tokio::select! {
        name = signals.next() => {
            tracing::info!(signal = name, "shutting down");
            Ok(())
        }
        reason = parts.failed() => {
            tracing::error!(reason, "a part of the server failed");
            Err(CliError::failed(format!("the server failed: {reason}"))
                .advise("no acknowledged message is lost by that; the log has the reason"))
        }
    }
}

/// Stops every part that has started, in good order.
///
/// # Errors
/// When a part did not end in time, or a second signal cut the stop short.
async fn stop(parts: &Parts, signals: &mut Signals) -> Result<(), CliError> {
    tokio::select! {
        stopped = parts.shutdown() => stopped,
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

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    /// A start that is cut short, or fails, stops what it has started.
    #[tokio::test]
    async fn an_interrupted_start_stops_the_parts_that_have_started() {
        let stopped = Arc::new(AtomicBool::new(false));
        let parts = Parts::new();
        let (steps, noted) = (parts.steps(), Arc::clone(&stopped));
        let (begun, signal) = oneshot::channel();
        let start = async {
            let shutdown = parts.groups.broker.shutdown_token();
            let task = async move {
                shutdown.wait().await;
                noted.store(true, Ordering::SeqCst);
            };
            drop(parts.groups.broker.spawn("part", task));
            begun.send("SIGTERM").unwrap();
            pending::<Result<(), CliError>>().await
        };
        let cut = start_or_cut(start, &steps, async { signal.await.unwrap() }).await;
        assert_eq!(cut.unwrap_err().to_string(), "SIGTERM during the start");
        let mut signals = Signals::listen().unwrap();
        stop(&parts, &mut signals).await.unwrap();
        assert!(stopped.load(Ordering::SeqCst));
    }

    /// What a step makes that is not cut short has been entered when the start is dropped.
    #[tokio::test]
    async fn a_whole_step_of_a_start_is_not_cut_short() {
        let parts = Parts::new();
        let (steps, cuts) = (parts.steps(), parts.steps());
        let (begun, signal) = oneshot::channel();
        let mut opened = false;
        let start = async {
            let step = async {
                begun.send("SIGINT").unwrap();
                tokio::task::yield_now().await;
                true
            };
            opened = steps.whole(step).await;
            parts.groups.broker.shutdown_token().wait().await;
            Ok(())
        };
        let cut = start_or_cut(start, &cuts, async { signal.await.unwrap() }).await;
        assert!(cut.is_err());
        assert!(opened);
    }
}
