//! What a run tells.

/// What a seed did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Entries acknowledged.
    pub acknowledged: u64,
    /// Recoveries that began.
    pub recoveries: u64,
    /// Ensemble changes.
    pub changes: u64,
    /// Ledgers closed.
    pub closed: u64,
    /// Faults.
    pub faults: u64,
    /// Trims that began.
    pub trims: u64,
    /// Entries that were read by readers which keep their place.
    pub followed: u64,
    /// Ledgers that were incomplete when they were closed, and repaired at the end.
    pub repaired: u64,
    /// Events of bookies and network.
    pub events: u64,
    /// Hash over all events and outcomes.
    pub trace: u64,
    /// Invariants that did not hold.
    pub violations: Vec<String>,
}
