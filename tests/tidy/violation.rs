//! What a check finds.

/// One broken rule: where, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// A file, and where it matters a line.
    pub place: String,
    /// What is broken, and what to do.
    pub rule: String,
}

impl Violation {
    /// A violation from its two texts.
    pub fn new(place: impl Into<String>, rule: impl Into<String>) -> Violation {
        Violation {
            place: place.into(),
            rule: rule.into(),
        }
    }
}
