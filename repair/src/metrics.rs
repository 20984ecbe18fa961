//! Instruments of auditing and repair; no labels that grow with ledgers.

use aquifer_runtime::telemetry::zero;
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter};

/// Upper ends of the buckets of a scan, in seconds.
const SCAN_BOUNDARIES: &[f64] = &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0];

/// The histograms of this crate.
pub const HISTOGRAMS: &[zero::Shape] = &[("aquifer_repair_scan_seconds", SCAN_BOUNDARIES)];

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
    /// 1 at the process that audits, 0 at others.
    pub is_auditor: Gauge<u64>,
    /// Ledgers that carry a mark now.
    pub under_replicated: Gauge<u64>,
    /// Seconds since the oldest of these marks was written; 0 when there are no marks.
    pub oldest_mark_seconds: Gauge<u64>,
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
    /// Makes the instruments.
    #[must_use]
    pub fn new(meter: &Meter) -> RepairMetrics {
        let counter = |name: &'static str| zero::counter(meter, name);
        let gauge = |name: &'static str| meter.u64_gauge(name).build();
        RepairMetrics {
            is_auditor: zero::gauge(meter, "aquifer_repair_is_auditor"),
            marked_ledgers: counter("aquifer_repair_marked_ledgers_total"),
            repaired_ledgers: counter("aquifer_repair_repaired_ledgers_total"),
            failed_repairs: counter("aquifer_repair_failures_total"),
            copied_entries: counter("aquifer_repair_copied_entries_total"),
            copied_bytes: counter("aquifer_repair_copied_bytes_total"),
            swapped_positions: counter("aquifer_repair_swapped_positions_total"),
            under_replicated: gauge("aquifer_repair_under_replicated_ledgers"),
            oldest_mark_seconds: zero::gauge(meter, "aquifer_repair_oldest_mark_age_seconds"),
            metadata_used_bytes: gauge("aquifer_metadata_used_bytes"),
            metadata_quota_bytes: gauge("aquifer_metadata_quota_bytes"),
            bookies_away: gauge("aquifer_repair_bookies_away"),
            paused: gauge("aquifer_repair_paused"),
            rate: gauge("aquifer_repair_rate_bytes_per_second"),
            scan_seconds: meter
                .f64_histogram("aquifer_repair_scan_seconds")
                .with_boundaries(SCAN_BOUNDARIES.to_vec())
                .build(),
            orphans: counter("aquifer_repair_orphans_total"),
        }
    }

    /// Takes back what an auditor said of the cluster. Another one says it now, or none: what
    /// this process showed last would stay for as long as it runs.
    pub(crate) fn audits_no_more(&self) {
        let told = [
            &self.is_auditor,
            &self.under_replicated,
            &self.oldest_mark_seconds,
            &self.bookies_away,
            &self.paused,
            &self.metadata_used_bytes,
        ];
        for gauge in told {
            gauge.record(0, &[]);
        }
    }
}
