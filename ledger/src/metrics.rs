//! Instruments of this crate; no labels that grow with topics.

use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter};

/// Upper ends of the buckets of latencies, in seconds.
const LATENCY_BOUNDARIES: &[f64] = &[
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
    10.0,
];

/// Counters and histograms that all logs of a process share.
#[derive(Debug, Clone)]
pub struct LedgerMetrics {
    /// Entries acknowledged.
    pub appended_entries: Counter<u64>,
    /// Bytes of acknowledged entries.
    pub appended_bytes: Counter<u64>,
    /// Seconds from an append to its acknowledgement.
    pub append_seconds: Histogram<f64>,
    /// Appends that failed.
    pub append_failures: Counter<u64>,
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
    /// Reads served by the tail cache.
    pub tail_hits: Counter<u64>,
    /// Reads that were not.
    pub tail_misses: Counter<u64>,
    /// Auditing and repair.
    pub repair: RepairMetrics,
}

/// Instruments of auditing and repair.
#[derive(Debug, Clone)]
pub struct RepairMetrics {
    /// Ledgers marked because they may lack replicas.
    pub marked_ledgers: Counter<u64>,
    /// Marked ledgers that are whole again.
    pub repaired_ledgers: Counter<u64>,
    /// Attempts that did not make a ledger whole.
    pub failed_repairs: Counter<u64>,
    /// Entries copied between bookies.
    pub copied_entries: Counter<u64>,
    /// Bytes of entries copied between bookies.
    pub copied_bytes: Counter<u64>,
    /// Positions of fragments that got another bookie.
    pub swapped_positions: Counter<u64>,
    /// Ledgers that carry a mark now.
    pub under_replicated: Gauge<u64>,
    /// What metadata takes of its quota.
    pub metadata_used_bytes: Gauge<u64>,
    /// That quota.
    pub metadata_quota_bytes: Gauge<u64>,
    /// Bookies that hold ledgers and are not registered.
    pub bookies_away: Gauge<u64>,
    /// 1 while repair is paused because too many bookies are away.
    pub paused: Gauge<u64>,
    /// Bytes a second that this process may read for repair now.
    pub rate: Gauge<u64>,
    /// Seconds that a scan of all ledger records took.
    pub scan_seconds: Histogram<f64>,
    /// Ledgers without a topic, or copies without a ledger, that are to be deleted.
    pub orphans: Counter<u64>,
}

impl RepairMetrics {
    fn new(meter: &Meter) -> RepairMetrics {
        let counter = |name: &'static str| meter.u64_counter(name).build();
        let gauge = |name: &'static str| meter.u64_gauge(name).build();
        RepairMetrics {
            marked_ledgers: counter("aquifer_repair_marked_ledgers_total"),
            repaired_ledgers: counter("aquifer_repair_repaired_ledgers_total"),
            failed_repairs: counter("aquifer_repair_failures_total"),
            copied_entries: counter("aquifer_repair_copied_entries_total"),
            copied_bytes: counter("aquifer_repair_copied_bytes_total"),
            swapped_positions: counter("aquifer_repair_swapped_positions_total"),
            under_replicated: gauge("aquifer_repair_under_replicated_ledgers"),
            metadata_used_bytes: gauge("aquifer_metadata_used_bytes"),
            metadata_quota_bytes: gauge("aquifer_metadata_quota_bytes"),
            bookies_away: gauge("aquifer_repair_bookies_away"),
            paused: gauge("aquifer_repair_paused"),
            rate: gauge("aquifer_repair_rate_bytes_per_second"),
            scan_seconds: meter.f64_histogram("aquifer_repair_scan_seconds").build(),
            orphans: counter("aquifer_repair_orphans_total"),
        }
    }
}

impl LedgerMetrics {
    /// Makes the instruments.
    #[must_use]
    pub fn new(meter: &Meter) -> LedgerMetrics {
        let counter = |name: &'static str| meter.u64_counter(name).build();
        LedgerMetrics {
            appended_entries: counter("aquifer_ledger_appended_entries_total"),
            appended_bytes: counter("aquifer_ledger_appended_bytes_total"),
            append_seconds: meter
                .f64_histogram("aquifer_ledger_append_seconds")
                .with_boundaries(LATENCY_BOUNDARIES.to_vec())
                .build(),
            append_failures: counter("aquifer_ledger_append_failures_total"),
            overload_resends: counter("aquifer_ledger_overload_resends_total"),
            ledgers_created: counter("aquifer_ledger_created_total"),
            ledgers_deleted: counter("aquifer_ledger_deleted_total"),
            recoveries: counter("aquifer_ledger_recoveries_total"),
            recovery_seconds: meter
                .f64_histogram("aquifer_ledger_recovery_seconds")
                .build(),
            read_entries: counter("aquifer_ledger_read_entries_total"),
            read_bytes: counter("aquifer_ledger_read_bytes_total"),
            hedged_reads: counter("aquifer_ledger_hedged_reads_total"),
            digest_failures: counter("aquifer_ledger_digest_failures_total"),
            tail_hits: counter("aquifer_ledger_tail_hits_total"),
            tail_misses: counter("aquifer_ledger_tail_misses_total"),
            repair: RepairMetrics::new(meter),
        }
    }
}
