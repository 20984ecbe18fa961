//! Everything in one process, on one data directory: embedded metadata, one bookie that is called
//! instead of connected to, a broker, and the protocols of the registry. Only wiring is here.
//!
//! Parts start from the bottom up and stop from the top down, so that whatever a part still has to
//! finish finds what it stands on. Each part has a task group of its own; a group that ends by
//! itself has lost a task to a panic, and then the process ends too: it must not go on
//! acknowledging.

pub mod config;
mod greeting;
mod http;
mod parts;
mod quiet;
mod transport;

use std::time::Duration;

use aquifer_runtime::clock::{Clock, SystemClock};
use aquifer_runtime::disk::{Disk, DiskLock, RealDisk};
use aquifer_runtime::telemetry::Telemetry;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::StandaloneArgs;
use crate::exit::CliError;
use crate::output::Output;
use crate::roles::standalone::config::StandaloneConfig;
use crate::roles::standalone::greeting::Greeting;
use crate::roles::standalone::parts::Parts;

/// The file in the data directory that a running server holds.
const LOCK_FILE: &str = "lock";

/// Runs a server until it is told to end. `began` is when the process did.
pub async fn run(args: StandaloneArgs, began: Duration, out: &Output) -> Result<(), CliError> {
    let (config, unknown) = StandaloneConfig::load(&args)?;
    if args.check_config {
        return check_config(&config, &unknown, out);
    }
    // Before anything else: a signal during the start must end it cleanly too.
    let mut signals = Signals::listen()?;
    let telemetry =
        Telemetry::start(&config.telemetry).map_err(|error| CliError::usage(error.to_string()))?;
    for key in &unknown {
        tracing::warn!(key, "unknown configuration key, ignored");
    }
    let lock = lock_data_dir(&config)?;
    let parts = Parts::start(&config, &telemetry, out).await?;
    let took = SystemClock.monotonic().saturating_sub(began);
    let greeting = Greeting {
        url: parts.url.clone(),
        bookie: parts.bookie_address,
        http: parts.http_address,
        data_dir: config.data_dir.clone(),
        ready_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
    };
    parts.set_serving(true);
    greeting.print(out)?;
    let ended = tokio::select! {
        name = signals.next() => {
            tracing::info!(signal = name, "shutting down");
            Ok(())
        }
        reason = parts.failed() => {
            tracing::error!(reason, "a part of the server failed");
            Err(CliError::failed(format!("the server failed: {reason}"))
                .advise("what was acknowledged is on disk; start it again to see what is there"))
        }
    };
    parts.set_serving(false);
    tokio::select! {
        () = parts.shutdown() => {}
        name = signals.next() => {
            return Err(CliError::failed(format!("{name} during shutdown: ended at once"))
                .advise("nothing acknowledged is lost; the next start replays the journal"));
        }
    }
    telemetry.shutdown();
    drop(lock);
    ended
}

/// Prints the configuration as it would be used; keys that mean nothing are errors here.
fn check_config(
    config: &StandaloneConfig,
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

/// Takes the data directory for this process.
fn lock_data_dir(config: &StandaloneConfig) -> Result<DiskLock, CliError> {
    let data_dir = &config.data_dir;
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

/// What asks a server to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Signals, CliError> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| CliError::failed(format!("cannot listen for signals: {error}")))
        };
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
