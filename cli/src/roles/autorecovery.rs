//! Repair of a cluster's ledgers in a process of its own, beside or instead of what bookies host:
//! a repair worker, and the auditor whenever no other process is it. It stores nothing and serves
//! nobody but health checks. Only wiring is here.

mod config;
mod parts;

use std::time::Duration;

use serde_json::json;

use crate::args::AutorecoveryArgs;
use crate::exit::CliError;
use crate::output::Output;
use crate::roles::autorecovery::config::AutorecoveryRoleConfig;
use crate::roles::autorecovery::parts::Parts;
use crate::roles::open_files;
use crate::roles::process::{self, Signals};

/// Repairs until it is told to end. `began` is when the process did.
pub async fn run(args: AutorecoveryArgs, began: Duration, out: &Output) -> Result<(), CliError> {
    let (config, unknown) = AutorecoveryRoleConfig::load(&args)?;
    if args.cluster.check_config {
        return process::check_config(&config, &unknown, out);
    }
    let mut signals = Signals::listen()?;
    let telemetry = process::start_telemetry(&config.telemetry, &unknown)?;
    open_files::check(0);
    let start = Parts::start(&config, &telemetry);
    let greet = |parts: &Parts| greet(&config, parts, process::ready_ms(began), out);
    process::live(start, greet, &mut signals, &telemetry).await
}

fn greet(
    config: &AutorecoveryRoleConfig,
    parts: &Parts,
    ready_ms: u64,
    out: &Output,
) -> Result<(), CliError> {
    let version = env!("CARGO_PKG_VERSION");
    if out.is_json() {
        out.object(&json!({
            "role": "autorecovery",
            "version": version,
            "cluster": config.cluster,
            "id": parts.id,
            "http": format!("http://{}", parts.http_address),
            "pid": std::process::id(),
            "ready_ms": ready_ms,
        }))?;
    } else {
        out.line(format!(
            "aquifer autorecovery {version} repairs cluster {}, metrics on http://{}/metrics, \
             ready in {ready_ms} ms",
            config.cluster, parts.http_address
        ))?;
    }
    out.flush()
}
