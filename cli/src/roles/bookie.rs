//! A bookie of a cluster: the storage and its service, announced in metadata. Only wiring is here.
//!
//! It serves once the cluster's metadata knows it, and is announced once it serves. At the end it
//! is withdrawn first, so that nobody places a ledger on it while it finishes what it has.

mod config;
mod parts;

use std::time::Duration;

use serde_json::json;

use crate::args::BookieArgs;
use crate::exit::CliError;
use crate::output::Output;
use crate::roles::bookie::config::BookieRoleConfig;
use crate::roles::bookie::parts::Parts;
use crate::roles::open_files;
use crate::roles::process::{self, Signals};

/// Runs a bookie until it is told to end. `began` is when the process did.
pub async fn run(args: BookieArgs, began: Duration, out: &Output) -> Result<(), CliError> {
    let (config, unknown) = BookieRoleConfig::load(&args)?;
    if args.cluster.check_config {
        return process::check_config(&config, &unknown, out);
    }
    let mut signals = Signals::listen()?;
    let telemetry = process::start_telemetry(&config.telemetry, &unknown)?;
    open_files::check(config.bookie.open_files_max.into());
    let lock = process::lock_data_dir(&config.data_dir)?;
    let start = Parts::start(&config, &telemetry, out);
    let greet = |parts: &Parts| greet(&config, parts, process::ready_ms(began), out);
    let ended = process::live(start, greet, &mut signals, &telemetry).await;
    drop(lock);
    ended
}

fn greet(
    config: &BookieRoleConfig,
    parts: &Parts,
    ready_ms: u64,
    out: &Output,
) -> Result<(), CliError> {
    let version = env!("CARGO_PKG_VERSION");
    let data_dir = config.data_dir.display();
    if out.is_json() {
        out.object(&json!({
            "role": "bookie",
            "version": version,
            "cluster": config.cluster,
            "id": parts.bookie.id().to_string(),
            "bookie": parts.bookie_address.to_string(),
            "advertised": parts.advertised,
            "http": format!("http://{}", parts.http_address),
            "data_dir": data_dir.to_string(),
            "pid": std::process::id(),
            "ready_ms": ready_ms,
        }))?;
    } else {
        out.line(format!(
            "aquifer bookie {version} of cluster {} serves {}, data in {data_dir}, metrics on \
             http://{}/metrics, ready in {ready_ms} ms",
            config.cluster, parts.advertised, parts.http_address
        ))?;
    }
    out.flush()
}
