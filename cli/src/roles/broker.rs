//! A broker of a cluster: it serves the topics of the bundles that it owns, and stores nothing itself.
//! Only wiring is here.

mod config;
mod parts;
mod peers;

use std::time::Duration;

use serde_json::json;

use crate::args::BrokerArgs;
use crate::exit::CliError;
use crate::output::Output;
use crate::roles::broker::config::BrokerRoleConfig;
use crate::roles::broker::parts::Parts;
use crate::roles::open_files;
use crate::roles::process::{self, Signals};

/// Runs a broker until it is told to end. `began` is when the process did.
pub async fn run(args: BrokerArgs, began: Duration, out: &Output) -> Result<(), CliError> {
    let (mut config, unknown) = BrokerRoleConfig::load(&args)?;
    if args.cluster.check_config {
        return process::check_config(&config, &unknown, out);
    }
    let mut signals = Signals::listen()?;
    let telemetry = process::start_telemetry(&config.telemetry, &unknown)?;
    open_files::prepare(&mut config.protocols, 0);
    let start = Parts::start(&config, &telemetry);
    let greet = |parts: &Parts| greet(&config, parts, process::ready_ms(began), out);
    process::live(start, greet, &mut signals, &telemetry).await
}

fn greet(
    config: &BrokerRoleConfig,
    parts: &Parts,
    ready_ms: u64,
    out: &Output,
) -> Result<(), CliError> {
    let version = env!("CARGO_PKG_VERSION");
    if out.is_json() {
        out.object(&json!({
            "role": "broker",
            "version": version,
            "cluster": config.cluster,
            "id": parts.broker.id().to_string(),
            "url": parts.url,
            "http": format!("http://{}", parts.http_address),
            "pid": std::process::id(),
            "ready_ms": ready_ms,
        }))?;
    } else {
        out.line(format!(
            "aquifer broker {version} of cluster {} serves {}, metrics on http://{}/metrics, \
             ready in {ready_ms} ms",
            config.cluster, parts.url, parts.http_address
        ))?;
    }
    out.flush()
}
