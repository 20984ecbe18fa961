//! Instruments of this crate; no labels that grow with topics.

use aquifer_runtime::telemetry::zero;
use opentelemetry::metrics::{Counter, Histogram, Meter};

/// Upper ends of the buckets of a recovery, in seconds.
const RECOVERY_BOUNDARIES: &[f64] = &[
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
];

/// The histograms of this crate.
pub const HISTOGRAMS: &[zero::Shape] = &[("aquifer_ledger_recovery_seconds", RECOVERY_BOUNDARIES)];

/// Counters and histograms that all ledgers of a process share.
#[derive(Debug, Clone)]
pub struct LedgerMetrics {
    /// Adds sent again because a bookie was overloaded.
    pub overload_resends: Counter<u64>,
    /// Ledgers created.
    pub ledgers_created: Counter<u64>,
    /// Ledgers deleted from bookies.
    pub ledgers_deleted: Counter<u64>,
    /// Recoveries that closed a ledger.
    pub recoveries: Counter<u64>,
    /// Seconds a recovery took.
    pub recovery_seconds: Histogram<f64>,
    /// Entries read from bookies.
    pub read_entries: Counter<u64>,
    /// Bytes read from bookies.
    pub read_bytes: Counter<u64>,
    /// Reads sent to another replica because the first took longer than usual.
    pub hedged_reads: Counter<u64>,
    /// Replies of bookies whose digest did not match.
    pub digest_failures: Counter<u64>,
}

impl LedgerMetrics {
    /// Makes the instruments.
    #[must_use]
    pub fn new(meter: &Meter) -> LedgerMetrics {
        let counter = |name: &'static str| zero::counter(meter, name);
        LedgerMetrics {
            overload_resends: counter("aquifer_ledger_overload_resends_total"),
            ledgers_created: counter("aquifer_ledger_created_total"),
            ledgers_deleted: counter("aquifer_ledger_deleted_total"),
            recoveries: counter("aquifer_ledger_recoveries_total"),
            recovery_seconds: meter
                .f64_histogram("aquifer_ledger_recovery_seconds")
                .with_boundaries(RECOVERY_BOUNDARIES.to_vec())
                .build(),
            read_entries: counter("aquifer_ledger_read_entries_total"),
            read_bytes: counter("aquifer_ledger_read_bytes_total"),
            hedged_reads: counter("aquifer_ledger_hedged_reads_total"),
            digest_failures: counter("aquifer_ledger_digest_failures_total"),
        }
    }
}
