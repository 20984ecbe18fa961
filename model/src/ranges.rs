//! The ranges of a partitioned topic: which partition holds which keys (docs/glossary.md, "Range").
//!
//! Each range covers an interval of the 32-bit key hash and is stored by one partition. Ranges in
//! use cover the hash space exactly once, so every key has exactly one partition to go to. A sealed
//! range takes no more messages: its keys have moved to ranges that name it as a parent. A consumer
//! that keeps the order of keys reads a range after it has acknowledged the end of its parents.
//! Keys are routed by range and never by a remainder, so a topic can grow without moving the keys
//! of the ranges that stay.

use std::sync::Arc;

use thiserror::Error;

use crate::hash::even_firsts;
use crate::limits::PARTITIONS_MAX;

/// One range of a partitioned topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicRange {
    /// The number of its partition: N of `topic-partition-N`.
    pub number: u32,
    /// First key hash, included.
    pub first: u32,
    /// Last key hash, included; not below the first.
    pub last: u32,
    /// Numbers of the ranges whose keys it has taken over.
    pub parents: Vec<u32>,
    /// It takes no more messages.
    pub sealed: bool,
}

/// Ranges that do not cover the key hashes as they must.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RangesError {
    /// A bound or a number is out of order.
    #[error(
        "range {number} is malformed: its numbers ascend from the one before, stay below \
             {PARTITIONS_MAX}, and its last hash is not below its first"
    )]
    Malformed {
        /// Of the range.
        number: u32,
    },
    /// Two ranges in use contain a hash, or none does.
    #[error("the ranges in use do not cover the key hashes exactly once: {hash:#010x} is covered {} times", if *.twice { "two" } else { "no" })]
    Coverage {
        /// The lowest such hash.
        hash: u32,
        /// It is in two ranges, else in none.
        twice: bool,
    },
    /// A parent is not a sealed range of a lower number that shares hashes with the child.
    #[error(
        "range {number} has parent {parent}, which is no sealed range of a lower number that shares keys with it"
    )]
    Parent {
        /// Of the child.
        number: u32,
        /// Of the parent.
        parent: u32,
    },
}

/// The ranges of a topic; empty for a topic without partitions. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TopicRanges {
    generation: u64,
    /// By number.
    ranges: Arc<[TopicRange]>,
    /// Positions in `ranges` of those in use, by first hash.
    in_use: Arc<[u32]>,
}

impl TopicRanges {
    /// Checks ranges that are in order of their numbers; none at all is a topic without partitions.
    /// `generation` grows with each change of the ranges.
    ///
    /// # Errors
    /// When the ranges in use do not cover the key hashes exactly once, or a number, a bound or a
    /// parent is malformed.
    pub fn new(generation: u64, ranges: Vec<TopicRange>) -> Result<TopicRanges, RangesError> {
        let mut before = None;
        for range in &ranges {
            let ascends = before.is_none_or(|before| before < range.number);
            if !ascends || range.number >= PARTITIONS_MAX || range.last < range.first {
                return Err(RangesError::Malformed {
                    number: range.number,
                });
            }
            before = Some(range.number);
        }
        let mut in_use: Vec<u32> = (0u32..)
            .zip(&ranges)
            .filter(|(_, range)| !range.sealed)
            .map(|(at, _)| at)
            .collect();
        in_use.sort_by_key(|at| ranges[*at as usize].first);
        check_coverage(in_use.iter().map(|at| &ranges[*at as usize]), &ranges)?;
        check_parents(&ranges)?;
        Ok(TopicRanges {
            generation,
            ranges: ranges.into(),
            in_use: in_use.into(),
        })
    }

    /// The ranges of a new topic: `partitions` of equal size, at most [`PARTITIONS_MAX`]; 0 makes a
    /// topic without partitions.
    #[must_use]
    pub fn even(partitions: u32) -> TopicRanges {
        let firsts = even_firsts(partitions.min(PARTITIONS_MAX));
        let lasts = firsts.clone().skip(1).map(|next| next - 1);
        let ranges: Arc<[TopicRange]> = (0..)
            .zip(firsts.zip(lasts.chain([u32::MAX])))
            .map(|(number, (first, last))| TopicRange {
                number,
                first,
                last,
                parents: Vec::new(),
                sealed: false,
            })
            .collect();
        TopicRanges {
            generation: u64::from(partitions > 0),
            in_use: ranges.iter().map(|range| range.number).collect(),
            ranges,
        }
    }

    /// How often the ranges were changed, from 1 on; 0 for a topic without partitions.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether the topic has no partitions.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Every range, sealed ones too, by number.
    #[must_use]
    pub fn all(&self) -> &[TopicRange] {
        &self.ranges
    }

    /// The ranges that take messages, by first hash.
    pub fn in_use(&self) -> impl ExactSizeIterator<Item = &TopicRange> {
        self.in_use.iter().map(|at| &self.ranges[*at as usize])
    }

    /// How many partitions there are, those of sealed ranges included.
    #[must_use]
    pub fn partitions(&self) -> u32 {
        // The numbers ascend and stay below PARTITIONS_MAX.
        u32::try_from(self.ranges.len()).unwrap_or(PARTITIONS_MAX)
    }

    /// Whether a partition of this number belongs to the topic.
    #[must_use]
    pub fn contains(&self, number: u32) -> bool {
        let found = self
            .ranges
            .binary_search_by_key(&number, |range| range.number);
        found.is_ok()
    }

    /// Where the range of a key hash stands in [`TopicRanges::in_use`]; none for a topic without
    /// partitions.
    #[must_use]
    pub fn position_of(&self, hash: u32) -> Option<usize> {
        let last = |at: &u32| self.ranges[*at as usize].last;
        let at = self.in_use.partition_point(|at| last(at) < hash);
        (at < self.in_use.len()).then_some(at)
    }
}

/// `in_use` by first hash; `all` tells a topic without partitions.
fn check_coverage<'a>(
    in_use: impl Iterator<Item = &'a TopicRange>,
    all: &[TopicRange],
) -> Result<(), RangesError> {
    // The next hash to cover; 2^32 after the last one.
    let mut next = 0u64;
    for range in in_use {
        let first = u64::from(range.first);
        if first != next {
            let twice = first < next;
            let hash = if twice { range.first } else { cut(next) };
            return Err(RangesError::Coverage { hash, twice });
        }
        next = u64::from(range.last) + 1;
    }
    match next {
        done if done == 1 << 32 || all.is_empty() => Ok(()),
        next => Err(RangesError::Coverage {
            hash: cut(next),
            twice: false,
        }),
    }
}

/// A hash that is known to be below 2^32.
fn cut(hash: u64) -> u32 {
    u32::try_from(hash).unwrap_or(u32::MAX)
}

fn check_parents(ranges: &[TopicRange]) -> Result<(), RangesError> {
    for range in ranges {
        for parent in &range.parents {
            let found = ranges.binary_search_by_key(parent, |range| range.number);
            let is_parent = found.is_ok_and(|at| {
                let found = &ranges[at];
                found.sealed
                    && found.number < range.number
                    && found.first <= range.last
                    && range.first <= found.last
            });
            if !is_parent {
                return Err(RangesError::Parent {
                    number: range.number,
                    parent: *parent,
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
