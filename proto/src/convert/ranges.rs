//! The ranges of a partitioned topic, in its record and in answers to clients.

use aquifer_model::ranges::{RangesError, TopicRange, TopicRanges};

use crate::v1;

/// Ranges as they are stored and sent.
#[must_use]
pub fn wire_ranges(ranges: &TopicRanges) -> Vec<v1::TopicRange> {
    let wire = |range: &TopicRange| v1::TopicRange {
        number: range.number,
        first_hash: range.first,
        last_hash: range.last,
        parents: range.parents.clone(),
        sealed: range.sealed,
    };
    ranges.all().iter().map(wire).collect()
}

/// Ranges that were stored or sent.
///
/// # Errors
/// When they do not cover the key hashes as they must.
pub fn ranges(generation: u64, ranges: &[v1::TopicRange]) -> Result<TopicRanges, RangesError> {
    let range = |range: &v1::TopicRange| TopicRange {
        number: range.number,
        first: range.first_hash,
        last: range.last_hash,
        parents: range.parents.clone(),
        sealed: range.sealed,
    };
    TopicRanges::new(generation, ranges.iter().map(range).collect())
}
