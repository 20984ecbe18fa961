//! The ranges of a partitioned topic and its key hash, in its record and in answers to clients.

use aquifer_model::hash::KeyHash;
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

/// A key hash as it is stored and sent.
#[must_use]
pub fn wire_key_hash(hash: KeyHash) -> v1::KeyHash {
    match hash {
        KeyHash::Murmur3 => v1::KeyHash::Murmur3,
    }
}

/// A key hash that was stored or sent; `None` for one that this version does not know.
#[must_use]
pub fn key_hash(hash: v1::KeyHash) -> Option<KeyHash> {
    match hash {
        v1::KeyHash::Unspecified => None,
        v1::KeyHash::Murmur3 => Some(KeyHash::Murmur3),
    }
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
