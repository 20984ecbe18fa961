//! Arguments of `aquifer plan`.

use std::time::Duration;

use aquifer_model::quorum::Quorum;
use clap::Args;

use crate::args::policy::size;
use crate::args::roles::quorum;

/// Arguments of `aquifer plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Messages published a second, on average.
    #[arg(long, value_name = "N")]
    pub messages_per_second: u64,

    /// Bytes of a message: key, properties and payload.
    #[arg(long, value_name = "BYTES", value_parser = size)]
    pub message_bytes: u64,

    /// How long messages are kept.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub retention: Duration,

    /// How long bookies keep what is in objects: with cold storage.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub hot: Option<Duration>,

    /// The busiest minutes, in percent of the average.
    #[arg(long, value_name = "PERCENT", default_value_t = 200)]
    pub peak_percent: u64,

    /// What compression leaves of messages, in percent.
    #[arg(long, value_name = "PERCENT", default_value_t = 100)]
    pub stored_percent: u64,

    /// How often each message is delivered.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub deliveries: u64,

    /// Topics, each partition counted.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub topics: u64,

    /// Bookies of a ledger, copies of an entry, copies that an acknowledgement waits for.
    #[arg(long, value_name = "E,Qw,Qa", value_parser = quorum, default_value = "3,3,2")]
    pub quorum: Quorum,

    /// Size at which a ledger is closed.
    #[arg(long, value_name = "BYTES", value_parser = size, default_value = "1GiB")]
    pub rollover_bytes: u64,

    /// Age at which a ledger is closed.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "4h")]
    pub rollover_age: Duration,

    /// The disk for ledgers of a bookie.
    #[arg(long, value_name = "BYTES", value_parser = size, default_value = "1TiB")]
    pub bookie_disk: u64,

    /// Bytes of entries that a bookie sustains in a second; measure yours.
    #[arg(long, value_name = "BYTES", value_parser = size, default_value = "100MiB")]
    pub bookie_bytes_per_second: u64,

    /// Messages that a broker sustains in a second, taken and given together; measure yours.
    #[arg(long, value_name = "N", default_value_t = 150_000)]
    pub broker_messages_per_second: u64,

    /// The network of a machine in one direction, in megabits a second.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub network_megabits: u64,
}
