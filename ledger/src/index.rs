//! Which ledgers each bookie must hold something of: found by scanning all ledger records, never
//! stored.
//!
//! A million ledgers on three bookies each take a few megabytes: ids are kept as compressed
//! bitmaps, and ids are nearly dense.

use std::collections::BTreeMap;

use aquifer_metadata::store::{MetadataStore, Revision, Versioned};
use aquifer_metadata::{keys, scan};
use aquifer_model::id::{BookieId, LedgerId};
use roaring::RoaringTreemap;

use crate::error::LedgerError;
use crate::ledger_metadata::{LedgerInfo, LedgerState};

/// Damaged records that are remembered.
const DAMAGED_LISTED_MAX: usize = 100;

/// Ledgers by bookie, as of one revision.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LedgerIndex {
    by_bookie: BTreeMap<BookieId, RoaringTreemap>,
    all: RoaringTreemap,
    not_closed: u64,
    damaged: Vec<String>,
    revision: Revision,
}

impl LedgerIndex {
    /// Reads every ledger record.
    ///
    /// # Errors
    /// When the scan does not come to its end. Records that are damaged do not end it: they make
    /// [`LedgerIndex::is_complete`] false.
    pub async fn scan(store: &dyn MetadataStore) -> Result<LedgerIndex, LedgerError> {
        let take = |index: &mut LedgerIndex, item: &Versioned| {
            index.take(item);
            Ok::<(), LedgerError>(())
        };
        let prefix = keys::LEDGERS_PREFIX;
        let (mut index, revision) = scan::each(store, prefix, LedgerIndex::default, take).await?;
        index.revision = revision;
        Ok(index)
    }

    fn take(&mut self, item: &Versioned) {
        let info = match item.key.parse() {
            Ok(keys::Key::Ledger(id)) => LedgerInfo::decode(id, item),
            _ => Err(LedgerError::BadRecord(
                0,
                "its key is no ledger's".to_owned(),
            )),
        };
        match info {
            Ok(info) => self.add(&info),
            Err(error) => {
                tracing::error!(key = item.key, %error, "a ledger record is unreadable");
                if self.damaged.len() < DAMAGED_LISTED_MAX {
                    self.damaged.push(format!("{}: {error}", item.key));
                }
            }
        }
    }

    pub(crate) fn add(&mut self, info: &LedgerInfo) {
        self.all.insert(info.id.0);
        self.not_closed += u64::from(!matches!(info.state, LedgerState::Closed(_)));
        for bookie in info.duties().bookies() {
            self.by_bookie.entry(bookie).or_default().insert(info.id.0);
        }
    }

    /// Whether every record could be read: only then is the absence of a ledger a fact.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.damaged.is_empty()
    }

    /// Records that could not be read, the first of them.
    #[must_use]
    pub fn damaged(&self) -> &[String] {
        &self.damaged
    }

    /// When the records were as they are shown here.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// How many ledgers there are.
    #[must_use]
    pub fn ledgers(&self) -> u64 {
        self.all.len()
    }

    /// How many of them are open or being recovered.
    #[must_use]
    pub fn not_closed(&self) -> u64 {
        self.not_closed
    }

    /// Whether a ledger has a record.
    #[must_use]
    pub fn contains(&self, ledger: LedgerId) -> bool {
        self.all.contains(ledger.0)
    }

    /// Whether the bookie must hold entries of the ledger.
    #[must_use]
    pub fn names(&self, ledger: LedgerId, bookie: BookieId) -> bool {
        let ledgers = self.by_bookie.get(&bookie);
        ledgers.is_some_and(|ledgers| ledgers.contains(ledger.0))
    }

    /// Bookies that hold something.
    pub fn bookies(&self) -> impl Iterator<Item = BookieId> + '_ {
        self.by_bookie.keys().copied()
    }

    /// How many ledgers name a bookie.
    #[must_use]
    pub fn count_of(&self, bookie: BookieId) -> u64 {
        self.by_bookie.get(&bookie).map_or(0, RoaringTreemap::len)
    }

    /// The ledgers that name a bookie, in order.
    pub fn ledgers_of(&self, bookie: BookieId) -> impl Iterator<Item = LedgerId> + '_ {
        let ledgers = self.by_bookie.get(&bookie);
        ledgers.into_iter().flatten().map(LedgerId)
    }

    /// The first `count` ledgers from an id on.
    #[must_use]
    pub fn page(&self, from: LedgerId, count: usize) -> Vec<LedgerId> {
        let mut ledgers = self.all.iter();
        ledgers.advance_to(from.0);
        ledgers.take(count).map(LedgerId).collect()
    }

    /// An index of ledgers without bookies.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn of_ids(ids: impl IntoIterator<Item = u64>) -> LedgerIndex {
        LedgerIndex {
            all: ids.into_iter().collect(),
            ..LedgerIndex::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use aquifer_model::id::CreationToken;
    use aquifer_model::id::EntryId;
    use aquifer_model::quorum::Quorum;

    use super::*;
    use crate::writer::machine::LedgerEnd;

    fn info(id: u64, bookies: [u8; 3]) -> LedgerInfo {
        LedgerInfo {
            id: LedgerId(id),
            token: CreationToken([1; 16]),
            quorum: Quorum::new(3, 3, 2).unwrap(),
            state: LedgerState::Closed(LedgerEnd::default()),
            fragments: BTreeMap::from([(
                EntryId::FIRST,
                bookies.map(|n| BookieId([n; 16])).to_vec(),
            )]),
            home: String::new(),
            recovery_epoch: 0,
            created_ms: 0,
            offload: None,
            revision: Revision(1),
        }
    }

    #[test]
    fn a_million_ledgers_fit_into_a_few_megabytes() {
        let mut index = LedgerIndex::default();
        for id in 1..=1_000_000_u64 {
            let first = u8::try_from(id % 5).unwrap();
            index.add(&info(id, [first, (first + 1) % 5, (first + 2) % 5]));
        }
        assert_eq!(index.ledgers(), 1_000_000);
        let total: u64 = index.bookies().map(|bookie| index.count_of(bookie)).sum();
        assert_eq!(total, 3_000_000);
        let bitmaps = index.by_bookie.values().chain([&index.all]);
        let bytes: usize = bitmaps.map(RoaringTreemap::serialized_size).sum();
        assert!(bytes < 4 << 20, "{bytes} bytes");
    }

    #[test]
    fn a_ledger_is_found_at_each_of_its_bookies() {
        let mut index = LedgerIndex::default();
        index.add(&info(7, [1, 2, 3]));
        index.add(&info(9, [3, 4, 5]));
        let of = |n: u8| -> BTreeSet<u64> {
            let ledgers = index.ledgers_of(BookieId([n; 16]));
            ledgers.map(|ledger| ledger.0).collect()
        };
        assert_eq!(of(3), BTreeSet::from([7, 9]));
        assert_eq!(of(1), BTreeSet::from([7]));
        assert_eq!(of(6), BTreeSet::new());
        assert!(index.names(LedgerId(9), BookieId([4; 16])));
        assert!(!index.names(LedgerId(7), BookieId([4; 16])));
    }
}
