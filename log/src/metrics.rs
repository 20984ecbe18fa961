//! Instruments of this crate; no labels that grow with topics.

use opentelemetry::metrics::{Counter, Histogram, Meter};

/// Upper ends of the buckets of latencies, in seconds.
const LATENCY_BOUNDARIES: &[f64] = &[
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
    10.0,
];

/// Counters and histograms that all logs of a process share.
#[derive(Debug, Clone)]
pub struct LogMetrics {
    /// Entries acknowledged.
    pub appended_entries: Counter<u64>,
    /// Bytes of acknowledged entries.
    pub appended_bytes: Counter<u64>,
    /// Seconds from an append to its acknowledgement.
    pub append_seconds: Histogram<f64>,
    /// Appends that failed.
    pub append_failures: Counter<u64>,
    /// Reads served by the tail cache.
    pub tail_hits: Counter<u64>,
    /// Reads that were not.
    pub tail_misses: Counter<u64>,
    /// Ledgers written into objects.
    pub offloaded_ledgers: Counter<u64>,
    /// Their bytes.
    pub offloaded_bytes: Counter<u64>,
    /// Attempts at it that failed.
    pub offload_failures: Counter<u64>,
    /// Reads served by objects.
    pub object_reads: Counter<u64>,
    /// Those that failed.
    pub object_read_failures: Counter<u64>,
}

impl LogMetrics {
    /// Makes the instruments.
    #[must_use]
    pub fn new(meter: &Meter) -> LogMetrics {
        let counter = |name: &'static str| meter.u64_counter(name).build();
        LogMetrics {
            appended_entries: counter("aquifer_log_appended_entries_total"),
            appended_bytes: counter("aquifer_log_appended_bytes_total"),
            append_seconds: meter
                .f64_histogram("aquifer_log_append_seconds")
                .with_boundaries(LATENCY_BOUNDARIES.to_vec())
                .build(),
            append_failures: counter("aquifer_log_append_failures_total"),
            tail_hits: counter("aquifer_log_tail_hits_total"),
            tail_misses: counter("aquifer_log_tail_misses_total"),
            offloaded_ledgers: counter("aquifer_log_offloaded_ledgers_total"),
            offloaded_bytes: counter("aquifer_log_offloaded_bytes_total"),
            offload_failures: counter("aquifer_log_offload_failures_total"),
            object_reads: counter("aquifer_log_object_reads_total"),
            object_read_failures: counter("aquifer_log_object_read_failures_total"),
        }
    }
}
