//! What a bookie counts, shown before the first event: its instruments begin with their first one.

use aquifer_runtime::telemetry::{Telemetry, zero};

/// The meter of a bookie.
pub const METER: &str = "aquifer_bookie";
/// Upper ends of the buckets of its histograms.
const SECONDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.0,
];
const HISTOGRAMS: [zero::Shape; 2] = [
    ("aquifer_bookie_journal_commit_seconds", SECONDS),
    ("aquifer_bookie_store_flush_seconds", SECONDS),
];
const COUNTERS: [&str; 10] = [
    "aquifer_bookie_journal_records_total",
    "aquifer_bookie_journal_commits_total",
    "aquifer_bookie_journal_bytes_total",
    "aquifer_bookie_read_entries_total",
    "aquifer_bookie_read_bytes_total",
    "aquifer_bookie_damaged_entries_total",
    "aquifer_bookie_scrubbed_entries_total",
    "aquifer_bookie_scrubbed_bytes_total",
    "aquifer_bookie_scrub_damaged_entries_total",
    "aquifer_bookie_scrub_passes_total",
];
const REFUSED: &str = "aquifer_bookie_requests_refused_total";
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

/// Shows them in the meter of the bookie, where the instruments are the same.
pub fn show(telemetry: &Telemetry) {
    let meter = telemetry.meter(METER);
    for name in COUNTERS {
        drop(zero::counter(&meter, name));
    }
    drop(zero::counter_by(&meter, REFUSED, "reason", REASONS));
    telemetry.show_histograms(&HISTOGRAMS);
}
