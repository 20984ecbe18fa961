//! The bundles of a namespace: ranges of the hash space of its topics, the unit of ownership. They
//! are handed over from one broker to another, taken from one that is gone, and split in two.
//!
//! A move is one compare-and-swap of the bundle's record, by any broker (`bundle/transfer.rs`). It
//! names the new owner, and the old one with its epoch as the source. The source sees it
//! (`bundle/watch.rs`), and seals the ledgers of its topics one after the other
//! (`bundle/hand_over.rs`), under the record's new revision (H18, H21: it may seal, and no more). A
//! topic's clients are told where to go when its own ledgers are sealed, and the new owner waits
//! for that for a moment, so that no ledger has to be fenced. When the source does nothing, fencing
//! decides (I4).
//!
//! Permissions of each owner of a topic meanwhile:
//!
//! | owner | new sessions | publish, acknowledge | open a ledger | deliver to subscriptions |
//! |---|---|---|---|---|
//! | new, waits | wait | - | - | - |
//! | old, before it seals | refused | into open ledgers | no | for a moment, then by probes |
//! | old, sealing | refused | what is in flight | no | no |
//! | new, found all sealed | yes | yes | yes | yes |
//! | new, had to fence | yes | yes | yes | after the old one's lease |

pub(crate) mod drain;
pub(crate) mod ownership;
pub(crate) mod split;
pub(crate) mod transfer;
pub(crate) mod view;
pub(crate) mod watch;

mod hand_over;

use aquifer_metadata::keys::BundleRange;
use aquifer_metadata::store::Revision;
use aquifer_model::hash::{even_firsts, key_hash};
use aquifer_model::topic::{NamespaceName, TopicName};

use crate::error::BrokerError;

/// Most bundles of a namespace: a change of all of them would not fit into a transaction.
pub(crate) const BUNDLES_MAX: usize = 4096;

/// A bundle.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Bundle {
    pub(crate) namespace: NamespaceName,
    pub(crate) range: BundleRange,
}

impl Bundle {
    /// Whether a topic is in it.
    pub(crate) fn contains(&self, topic: &TopicName) -> bool {
        let range = self.range.first..=self.range.last;
        *topic.namespace() == self.namespace && range.contains(&topic_hash(topic))
    }

    /// Whether all of another one is in it.
    pub(crate) fn covers(&self, other: &Bundle) -> bool {
        self.namespace == other.namespace
            && self.range.first <= other.range.first
            && other.range.last <= self.range.last
    }
}

impl std::fmt::Display for Bundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.range)
    }
}

/// How a namespace is cut into bundles, as its record of this revision says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bundles {
    /// First hash of each, ascending; the first is 0.
    firsts: Vec<u32>,
    /// Of the namespace's record.
    pub(crate) revision: Revision,
}

impl Bundles {
    /// From what the record says; nothing means one bundle.
    pub(crate) fn new(boundaries: &[u32], revision: Revision) -> Result<Bundles, String> {
        let firsts = match boundaries {
            [] => vec![0],
            boundaries => boundaries.to_vec(),
        };
        if firsts[0] != 0 || firsts.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err("its bundle boundaries do not ascend from 0".to_owned());
        }
        if firsts.len() > BUNDLES_MAX {
            return Err(format!("it has more than {BUNDLES_MAX} bundles"));
        }
        Ok(Bundles { firsts, revision })
    }

    /// The boundaries of `count` bundles of equal size.
    pub(crate) fn even(count: u32) -> Vec<u32> {
        even_firsts(count.max(1)).collect()
    }

    /// The bundle that a topic is in.
    pub(crate) fn of(&self, topic: &TopicName) -> Bundle {
        let hash = topic_hash(topic);
        let at = self.firsts.partition_point(|first| *first <= hash) - 1;
        Bundle {
            namespace: topic.namespace().clone(),
            range: self.range(at),
        }
    }

    fn range(&self, at: usize) -> BundleRange {
        BundleRange {
            first: self.firsts[at],
            last: self.firsts.get(at + 1).map_or(u32::MAX, |next| next - 1),
        }
    }

    /// All of them, in order.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = BundleRange> + '_ {
        (0..self.firsts.len()).map(|at| self.range(at))
    }

    /// Refuses what is not one of them.
    pub(crate) fn check(&self, bundle: &Bundle) -> Result<(), BrokerError> {
        if self.ranges().any(|range| range == bundle.range) {
            return Ok(());
        }
        Err(BrokerError::NotFound {
            what: "bundle",
            name: bundle.to_string(),
            advice: "`aquifer cluster bundles` lists those that there are".to_owned(),
        })
    }

    /// The boundaries after `range` was cut in front of `at`; `None` when that is not possible.
    pub(crate) fn split(&self, range: BundleRange, at: u32) -> Option<Vec<u32>> {
        let is_one = self.ranges().any(|known| known == range);
        if !is_one || at <= range.first || at > range.last || self.firsts.len() >= BUNDLES_MAX {
            return None;
        }
        let mut firsts = self.firsts.clone();
        firsts.insert(firsts.partition_point(|first| *first < at), at);
        Some(firsts)
    }
}

/// Where a topic is in the hash space. Partitions of a topic are apart from each other.
pub(crate) fn topic_hash(topic: &TopicName) -> u32 {
    key_hash(topic.name().as_bytes())
}

/// The middle of a range.
pub(crate) fn middle(range: BundleRange) -> u32 {
    range.first + (range.last - range.first) / 2 + 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn topic(name: &str) -> TopicName {
        format!("public/default/{name}").parse().unwrap()
    }

    #[test]
    fn equal_bundles_cover_the_space() {
        for count in [1, 2, 3, 16, 1000] {
            let bundles = Bundles::new(&Bundles::even(count), Revision(1)).unwrap();
            let ranges: Vec<_> = bundles.ranges().collect();
            assert_eq!(ranges.len(), usize::try_from(count).unwrap());
            assert_eq!(
                (ranges[0].first, ranges[ranges.len() - 1].last),
                (0, u32::MAX)
            );
            assert!(
                ranges
                    .windows(2)
                    .all(|pair| pair[0].last + 1 == pair[1].first)
            );
        }
        assert!(Bundles::new(&[1], Revision(1)).is_err());
        assert!(Bundles::new(&[0, 5, 5], Revision(1)).is_err());
    }

    proptest! {
        #[test]
        fn every_topic_is_in_one_bundle_before_and_after_a_split(
            name in "[a-z]{1,20}",
            cuts in proptest::collection::vec(any::<u32>(), 0..20),
        ) {
            let mut bundles = Bundles::new(&[], Revision(1)).unwrap();
            let topic = topic(&name);
            for at in cuts {
                let range = bundles.ranges().find(|range| (range.first..=range.last).contains(&at));
                let Some(boundaries) = bundles.split(range.unwrap(), at) else { continue };
                bundles = Bundles::new(&boundaries, Revision(1)).unwrap();
                let found = bundles.of(&topic).range;
                prop_assert!((found.first..=found.last).contains(&topic_hash(&topic)));
                prop_assert_eq!(bundles.ranges().filter(|range| *range == found).count(), 1);
            }
        }
    }
}
