//! What the bookie counts. Labels are bounded: results and kinds, never ledgers or topics.

use std::time::Duration;

use aquifer_model::storage::BookieError;
use aquifer_runtime::telemetry::zero;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter};

use crate::store::Pressure;

/// The instruments of a bookie.
#[derive(Debug)]
pub struct BookieMetrics {
    journal_records: Counter<u64>,
    journal_commits: Counter<u64>,
    journal_bytes: Counter<u64>,
    commit_seconds: Histogram<f64>,
    refused: Counter<u64>,
    entries_read: Counter<u64>,
    bytes_read: Counter<u64>,
    read_seconds: Histogram<f64>,
    entries_damaged: Counter<u64>,
    flush_seconds: Histogram<f64>,
    pub(crate) scrubbed_entries: Counter<u64>,
    pub(crate) scrubbed_bytes: Counter<u64>,
    pub(crate) scrub_damaged: Counter<u64>,
    pub(crate) scrub_passes: Counter<u64>,
    merged_files: Counter<u64>,
    merged_bytes: Counter<u64>,
    blob_files: Gauge<u64>,
    blob_file_mean_bytes: Gauge<u64>,
    writes_stopped: Gauge<u64>,
    writes_slowed_to: Gauge<u64>,
    compaction_debt_bytes: Gauge<u64>,
    pub(crate) in_flight_bytes: Gauge<u64>,
    pub(crate) journal_live_bytes: Gauge<u64>,
    pub(crate) store_bytes: Gauge<u64>,
    pub(crate) removing_bytes: Gauge<u64>,
    pub(crate) free_bytes: Gauge<u64>,
    pub(crate) disk_bytes: Gauge<u64>,
    pub(crate) writable: Gauge<u64>,
    pub(crate) limbo: Gauge<u64>,
}

const SECONDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.0,
];
const COMMIT_SECONDS: &str = "aquifer_bookie_journal_commit_seconds";
const READ_SECONDS: &str = "aquifer_bookie_read_seconds";
const FLUSH_SECONDS: &str = "aquifer_bookie_store_flush_seconds";
const WRITES_SLOWED_TO: &str = "aquifer_bookie_store_writes_slowed_to_bytes_per_second";
/// The histograms of this crate.
pub const HISTOGRAMS: &[zero::Shape] = &[
    (COMMIT_SECONDS, SECONDS),
    (READ_SECONDS, SECONDS),
    (FLUSH_SECONDS, SECONDS),
];
/// Why a request is refused.
const REASONS: [&str; 12] = [
    "absent",
    "fenced",
    "limbo",
    "overloaded",
    "read_only",
    "io",
    "digest",
    "conflict",
    "deleted",
    "invalid",
    "shutting_down",
    "unreachable",
];

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

impl BookieMetrics {
    /// Creates the instruments.
    #[must_use]
    pub fn new(meter: &Meter) -> BookieMetrics {
        let counter = |name: &'static str| zero::counter(meter, name);
        let gauge = |name: &'static str| meter.u64_gauge(name).build();
        let seconds = |name: &'static str| {
            let histogram = meter.f64_histogram(name);
            histogram.with_boundaries(SECONDS.to_vec()).build()
        };
        let refused = "aquifer_bookie_requests_refused_total";
        BookieMetrics {
            journal_records: counter("aquifer_bookie_journal_records_total"),
            journal_commits: counter("aquifer_bookie_journal_commits_total"),
            journal_bytes: counter("aquifer_bookie_journal_bytes_total"),
            commit_seconds: seconds(COMMIT_SECONDS),
            refused: zero::counter_by(meter, refused, "reason", REASONS),
            entries_read: counter("aquifer_bookie_read_entries_total"),
            bytes_read: counter("aquifer_bookie_read_bytes_total"),
            read_seconds: seconds(READ_SECONDS),
            entries_damaged: counter("aquifer_bookie_damaged_entries_total"),
            flush_seconds: seconds(FLUSH_SECONDS),
            scrubbed_entries: counter("aquifer_bookie_scrubbed_entries_total"),
            scrubbed_bytes: counter("aquifer_bookie_scrubbed_bytes_total"),
            scrub_damaged: counter("aquifer_bookie_scrub_damaged_entries_total"),
            scrub_passes: counter("aquifer_bookie_scrub_passes_total"),
            merged_files: counter("aquifer_bookie_blob_merged_files_total"),
            merged_bytes: counter("aquifer_bookie_blob_merged_bytes_total"),
            blob_files: gauge("aquifer_bookie_blob_files"),
            blob_file_mean_bytes: gauge("aquifer_bookie_blob_file_mean_bytes"),
            writes_stopped: zero::gauge(meter, "aquifer_bookie_store_writes_stopped"),
            writes_slowed_to: zero::gauge(meter, WRITES_SLOWED_TO),
            compaction_debt_bytes: zero::gauge(meter, "aquifer_bookie_store_compaction_debt_bytes"),
            in_flight_bytes: gauge("aquifer_bookie_in_flight_bytes"),
            journal_live_bytes: gauge("aquifer_bookie_journal_live_bytes"),
            store_bytes: gauge("aquifer_bookie_store_bytes"),
            removing_bytes: gauge("aquifer_bookie_removing_bytes"),
            free_bytes: gauge("aquifer_bookie_disk_free_bytes"),
            disk_bytes: gauge("aquifer_bookie_disk_total_bytes"),
            writable: gauge("aquifer_bookie_writable"),
            limbo: gauge("aquifer_bookie_limbo"),
        }
    }

    /// A commit was synced.
    pub fn committed(&self, records: usize, bytes: usize, took: Duration) {
        self.journal_records.add(count(records), &[]);
        self.journal_commits.add(1, &[]);
        self.journal_bytes.add(count(bytes), &[]);
        self.commit_seconds.record(took.as_secs_f64(), &[]);
    }

    /// The store was flushed.
    pub fn flushed(&self, took: Duration) {
        self.flush_seconds.record(took.as_secs_f64(), &[]);
    }

    /// Small blob files were merged.
    pub fn merged(&self, files: usize, bytes: u64) {
        self.merged_files.add(count(files), &[]);
        self.merged_bytes.add(bytes, &[]);
    }

    /// The blob files were counted.
    pub fn blob_files(&self, files: u64, bytes: u64) {
        self.blob_files.record(files, &[]);
        let mean = bytes.checked_div(files).unwrap_or(0);
        self.blob_file_mean_bytes.record(mean, &[]);
    }

    /// It was looked at how far the store holds up writes.
    pub fn pressure(&self, pressure: Pressure) {
        let is_stopped = u64::from(pressure.is_stopped);
        self.writes_stopped.record(is_stopped, &[]);
        self.writes_slowed_to.record(pressure.slowed_to, &[]);
        self.compaction_debt_bytes.record(pressure.debt_bytes, &[]);
    }

    /// Entries were read.
    pub fn read(&self, entries: usize, bytes: usize, took: Duration) {
        self.read_seconds.record(took.as_secs_f64(), &[]);
        self.entries_read.add(count(entries), &[]);
        self.bytes_read.add(count(bytes), &[]);
    }

    /// An entry could not be read, or its digest is wrong.
    pub fn damaged(&self) {
        self.entries_damaged.add(1, &[]);
    }

    /// A request was refused.
    pub fn refused(&self, error: &BookieError) {
        let reason = match error {
            BookieError::NoSuchLedger | BookieError::NoSuchEntry => "absent",
            BookieError::Fenced => "fenced",
            BookieError::Limbo => "limbo",
            BookieError::Overloaded => "overloaded",
            BookieError::ReadOnly(_) => "read_only",
            BookieError::Io(_) => "io",
            BookieError::Digest(_) | BookieError::EndHidden(_) => "digest",
            BookieError::Token | BookieError::Conflict => "conflict",
            BookieError::Deleted => "deleted",
            BookieError::Invalid(_) => "invalid",
            BookieError::ShuttingDown => "shutting_down",
            BookieError::Unreachable(_) | BookieError::Timeout => "unreachable",
        };
        self.refused.add(1, &[KeyValue::new("reason", reason)]);
    }
}
