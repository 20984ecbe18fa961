//! What a failure says about the request that failed.

/// What may have become of a request that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Certainly not applied: repeating it cannot duplicate anything.
    NotApplied,
    /// Certainly applied.
    Applied,
    /// Either.
    Unknown,
}
