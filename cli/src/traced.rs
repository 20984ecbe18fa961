//! Spans of a tool: of the messages that it publishes or consumes, where it was told a collector.

use aquifer_runtime::telemetry::{Telemetry, TelemetryConfig};

use crate::args::TraceToArgs;
use crate::exit::CliError;

/// Does the work of a tool while its spans are exported, and sends what is buffered at the end.
///
/// # Errors
/// Those of the work, and exit code 2 when the collector has no address.
pub async fn traced(
    to: TraceToArgs,
    name: &str,
    work: impl Future<Output = Result<(), CliError>>,
) -> Result<(), CliError> {
    if to.otlp_endpoint.is_none() {
        return work.await;
    }
    let config = TelemetryConfig {
        log_filter: "warn".to_owned(),
        otlp_endpoint: to.otlp_endpoint,
        service_name: name.to_owned(),
        ..TelemetryConfig::default()
    };
    let telemetry =
        Telemetry::start(&config).map_err(|error| CliError::usage(error.to_string()))?;
    let done = work.await;
    telemetry.shutdown();
    done
}
