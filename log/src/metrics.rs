//! Instruments of this crate; no labels that grow with topics.

use std::sync::Arc;

use aquifer_runtime::clock::SharedClock;
use aquifer_runtime::telemetry::zero;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter};

use crate::offload::tier::ColdTier;

/// Upper ends of the buckets of latencies, in seconds.
const LATENCY_BOUNDARIES: &[f64] = &[
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
    10.0,
];

/// The histograms of this crate.
pub const HISTOGRAMS: &[zero::Shape] = &[("aquifer_log_append_seconds", LATENCY_BOUNDARIES)];

/// What became of an attempt to write a ledger into an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttemptOutcome {
    /// It is in an object.
    Stored,
    /// It is in one already, or another attempt is under way.
    Spared,
    /// It was deleted meanwhile.
    Trimmed,
    /// It is tried again.
    Failed,
}

impl AttemptOutcome {
    const ALL: [AttemptOutcome; 4] = [
        AttemptOutcome::Stored,
        AttemptOutcome::Spared,
        AttemptOutcome::Trimmed,
        AttemptOutcome::Failed,
    ];

    fn as_str(self) -> &'static str {
        match self {
            AttemptOutcome::Stored => "stored",
            AttemptOutcome::Spared => "spared",
            AttemptOutcome::Trimmed => "trimmed",
            AttemptOutcome::Failed => "failed",
        }
    }
}

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
    /// Logs opened whose newest entry is dated far ahead of the clock.
    pub dated_ahead: Counter<u64>,
    /// Reads served by the tail cache.
    pub tail_hits: Counter<u64>,
    /// Reads that were not.
    pub tail_misses: Counter<u64>,
    /// Attempts to write ledgers into objects, by what became of them.
    offload_attempts: Counter<u64>,
    /// Bytes of ledgers that were written into objects.
    pub offloaded_bytes: Counter<u64>,
    /// Bytes of ledgers that were brought back to bookies.
    pub imported_bytes: Counter<u64>,
    /// Ledgers whose copies at bookies were let go.
    pub dropped_ledgers: Counter<u64>,
    /// Times that an object was found missing or damaged.
    bad_objects: Counter<u64>,
    /// Objects that a scrub has read, by whether they were whole.
    scrubbed_objects: Counter<u64>,
    /// Their bytes.
    scrubbed_bytes: Counter<u64>,
    /// Reads served by objects.
    pub object_reads: Counter<u64>,
    /// Those that failed.
    pub object_read_failures: Counter<u64>,
}

impl LogMetrics {
    /// Makes the instruments.
    #[must_use]
    pub fn new(meter: &Meter) -> LogMetrics {
        let counter = |name: &'static str| zero::counter(meter, name);
        LogMetrics {
            appended_entries: counter("aquifer_log_appended_entries_total"),
            appended_bytes: counter("aquifer_log_appended_bytes_total"),
            append_seconds: meter
                .f64_histogram("aquifer_log_append_seconds")
                .with_boundaries(LATENCY_BOUNDARIES.to_vec())
                .build(),
            append_failures: counter("aquifer_log_append_failures_total"),
            dated_ahead: counter("aquifer_log_dated_ahead_total"),
            tail_hits: counter("aquifer_log_tail_hits_total"),
            tail_misses: counter("aquifer_log_tail_misses_total"),
            offload_attempts: zero::counter_by(
                meter,
                "aquifer_log_offload_attempts_total",
                "outcome",
                AttemptOutcome::ALL.map(AttemptOutcome::as_str),
            ),
            offloaded_bytes: counter("aquifer_log_offloaded_bytes_total"),
            imported_bytes: counter("aquifer_log_imported_bytes_total"),
            dropped_ledgers: counter("aquifer_log_dropped_ledgers_total"),
            bad_objects: zero::counter_by(
                meter,
                "aquifer_log_bad_objects_total",
                "what",
                ["missing", "damaged"],
            ),
            scrubbed_objects: zero::counter_by(
                meter,
                "aquifer_log_scrubbed_objects_total",
                "outcome",
                ["whole", "bad"],
            ),
            scrubbed_bytes: counter("aquifer_log_scrubbed_bytes_total"),
            object_reads: counter("aquifer_log_object_reads_total"),
            object_read_failures: counter("aquifer_log_object_read_failures_total"),
        }
    }

    pub(crate) fn attempted(&self, outcome: AttemptOutcome) {
        self.offload_attempts
            .add(1, &[KeyValue::new("outcome", outcome.as_str())]);
    }

    /// An object is `missing` or `damaged`.
    pub(crate) fn found_bad_object(&self, what: &str) {
        self.bad_objects
            .add(1, &[KeyValue::new("what", what.to_owned())]);
    }

    /// A scrub has read an object.
    pub(crate) fn scrubbed(&self, bytes: u64, is_whole: bool) {
        let outcome = if is_whole { "whole" } else { "bad" };
        self.scrubbed_objects
            .add(1, &[KeyValue::new("outcome", outcome)]);
        self.scrubbed_bytes.add(bytes, &[]);
    }

    /// Shows what is behind policy, what of objects is under way, and how full caches serve.
    pub fn watch_tier(meter: &Meter, tier: &Arc<ColdTier>, clock: &SharedClock) {
        LogMetrics::watch_gauges(meter, tier, clock);
        LogMetrics::watch_counters(meter, tier);
    }

    fn watch_gauges(meter: &Meter, tier: &Arc<ColdTier>, clock: &SharedClock) {
        type Figure = fn(&ColdTier, u64) -> u64;
        let gauges: [(&'static str, Figure); 10] = [
            ("aquifer_log_pressed_bookies", |tier, _| {
                tier.pressure.bookies().len() as u64
            }),
            ("aquifer_log_offload_lag_ledgers", |tier, _| {
                tier.figures.behind().ledgers
            }),
            ("aquifer_log_offload_lag_bytes", |tier, _| {
                tier.figures.behind().bytes
            }),
            (
                "aquifer_log_offload_lag_seconds",
                |tier, now_ms| match tier.figures.behind().since_ms {
                    0 => 0,
                    since_ms => now_ms.saturating_sub(since_ms) / 1000,
                },
            ),
            ("aquifer_log_offload_late_ledgers", |tier, _| {
                tier.figures.behind().late
            }),
            ("aquifer_log_object_disk_bytes", |tier, _| {
                tier.cache.disk_figures().bytes
            }),
            ("aquifer_log_objects_in_flight", |tier, _| {
                tier.figures.under_way().0
            }),
            ("aquifer_log_objects_dying", |tier, _| {
                tier.figures.under_way().1
            }),
            ("aquifer_log_offload_tasks", |tier, _| {
                tier.figures.tasks().0
            }),
            (
                "aquifer_log_offload_tasks_age_seconds",
                |tier, now_ms| match tier.figures.tasks().1 {
                    0 => 0,
                    since_ms => now_ms.saturating_sub(since_ms) / 1000,
                },
            ),
        ];
        for (name, figure) in gauges {
            let (tier, clock) = (Arc::clone(tier), Arc::clone(clock));
            meter
                .u64_observable_gauge(name)
                .with_callback(move |observer| {
                    observer.observe(figure(&tier, clock.wall_ms()), &[]);
                })
                .build();
        }
    }

    fn watch_counters(meter: &Meter, tier: &Arc<ColdTier>) {
        type Figure = fn(&ColdTier) -> u64;
        let counters: [(&'static str, Figure); 7] = [
            ("aquifer_log_object_hedged_reads_total", |tier| {
                tier.cache.hedged()
            }),
            ("aquifer_log_object_cache_hits_total", |tier| {
                tier.cache.lookups().0
            }),
            ("aquifer_log_object_cache_misses_total", |tier| {
                tier.cache.lookups().1
            }),
            ("aquifer_log_object_disk_hits_total", |tier| {
                tier.cache.disk_figures().hits
            }),
            ("aquifer_log_object_disk_misses_total", |tier| {
                tier.cache.disk_figures().misses
            }),
            ("aquifer_log_object_disk_damaged_total", |tier| {
                tier.cache.disk_figures().damaged
            }),
            ("aquifer_log_object_disk_skipped_total", |tier| {
                tier.cache.disk_figures().skipped
            }),
        ];
        for (name, figure) in counters {
            let tier = Arc::clone(tier);
            meter
                .u64_observable_counter(name)
                .with_callback(move |observer| observer.observe(figure(&tier), &[]))
                .build();
        }
    }
}
