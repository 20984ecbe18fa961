//! What auditing and repair share in a process.

use std::sync::Arc;

use aquifer_ledger::context::LedgerContext;
use opentelemetry::metrics::Meter;

use crate::metrics::RepairMetrics;

/// The surroundings of auditing and repair, filled in by the wiring of a process.
pub struct RepairContext {
    /// What ledgers share.
    pub ledgers: Arc<LedgerContext>,
    /// Instruments.
    pub metrics: RepairMetrics,
}

impl RepairContext {
    /// Auditing and repair of these ledgers.
    #[must_use]
    pub fn new(ledgers: Arc<LedgerContext>, meter: &Meter) -> Arc<RepairContext> {
        let metrics = RepairMetrics::new(meter);
        Arc::new(RepairContext { ledgers, metrics })
    }
}
