//! Arguments of tools whose messages can be traced.

use clap::Args;

/// Where spans of a tool go.
#[derive(Debug, Clone, Args)]
pub struct TraceToArgs {
    /// An OTLP collector over gRPC that spans of traced messages go to, for example
    /// http://127.0.0.1:4317.
    #[arg(long, value_name = "URL")]
    pub otlp_endpoint: Option<String>,
}

/// Which messages of a tool are traced, and where their spans go.
#[derive(Debug, Clone, Args)]
pub struct TraceArgs {
    /// Where spans go.
    #[command(flatten)]
    pub to: TraceToArgs,

    /// Begin a trace for one of N messages.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        requires = "otlp_endpoint"
    )]
    pub trace_one_in: u64,
}

impl TraceArgs {
    /// A trace is begun for one of this many messages; 0: for no message.
    pub fn one_in(&self) -> u64 {
        self.to
            .otlp_endpoint
            .as_ref()
            .map_or(0, |_| self.trace_one_in)
    }
}
