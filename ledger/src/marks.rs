//! Marks of ledgers that may lack replicas (`u/ID`). A mark says why it was written, and the worker
//! that repairs the ledger removes exactly the mark that it has read. A mark that cannot be read is
//! not in the way, unless a newer build has written it: the next mark of the ledger replaces it,
//! and doubts every bookie that it may have named.

use std::collections::{BTreeMap, BTreeSet};

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::store::{
    Expect, MetadataStore, Operation, Revision, Transaction, Until, Versioned,
};
use aquifer_metadata::update::{Change, UpdateError};
use aquifer_metadata::{keys, record};
use aquifer_model::id::{BookieId, EntryId, LedgerId};
use aquifer_proto::v1;
use bytes::Bytes;

use crate::error::LedgerError;
use crate::ledger_metadata::{self, LedgerInfo};

/// A mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The ledger.
    pub ledger: LedgerId,
    /// Bookies to replace, unless they are back: then what they hold is checked.
    pub lost: BTreeSet<BookieId>,
    /// Bookies whose copies may be damaged: every byte is read.
    pub doubted: BTreeSet<BookieId>,
    /// Bookies whose copies may lack entries from this one on: only their index is asked.
    pub incomplete: BTreeMap<BookieId, EntryId>,
    /// Why.
    pub reason: String,
    /// When, by the clock of the process that wrote it.
    pub marked_ms: u64,
    /// The metadata partition of the ledger's topic.
    pub home: String,
    pub(crate) revision: Revision,
}

impl Mark {
    /// A mark that is not written yet.
    #[must_use]
    pub fn new(ledger: LedgerId, home: &str, reason: &str, marked_ms: u64) -> Mark {
        Mark {
            ledger,
            lost: BTreeSet::new(),
            doubted: BTreeSet::new(),
            incomplete: BTreeMap::new(),
            reason: reason.to_owned(),
            marked_ms,
            home: home.to_owned(),
            revision: Revision(0),
        }
    }

    /// The same with bookies to replace.
    #[must_use]
    pub fn lost(mut self, bookies: impl IntoIterator<Item = BookieId>) -> Mark {
        self.lost.extend(bookies);
        self
    }

    /// The same with bookies that may lack entries from some on.
    #[must_use]
    pub fn incomplete(mut self, bookies: impl IntoIterator<Item = (BookieId, EntryId)>) -> Mark {
        for (bookie, first) in bookies {
            self.lacks(bookie, first);
        }
        self
    }

    fn lacks(&mut self, bookie: BookieId, first: EntryId) {
        let known = self.incomplete.entry(bookie).or_insert(first);
        *known = first.min(*known);
    }

    /// The same with bookies whose bytes are to be checked.
    #[must_use]
    pub fn doubted(mut self, bookies: impl IntoIterator<Item = BookieId>) -> Mark {
        self.doubted.extend(bookies);
        self
    }

    /// The change that writes it, for a transaction that makes it necessary: a recovery that
    /// closes with unconfirmed positions writes the mark together with the end (H16). It replaces
    /// a mark that is there, whose bookies its caller has taken over with [`Mark::merge`].
    #[must_use]
    pub fn put(&self, expect: Expect) -> Operation {
        Operation::Put {
            key: keys::under_replicated(self.ledger),
            value: self.value(),
            expect,
        }
    }

    pub(crate) fn value(&self) -> Bytes {
        let ids = |set: &BTreeSet<BookieId>| -> Vec<Bytes> {
            set.iter().map(|id| Bytes::copy_from_slice(&id.0)).collect()
        };
        let incomplete = |(bookie, first): (&BookieId, &EntryId)| v1::IncompleteCopy {
            bookie: Bytes::copy_from_slice(&bookie.0),
            first_entry_id: first.0,
        };
        record::encode(v1::UnderReplicatedRecord {
            ledger_id: self.ledger.0,
            lost: ids(&self.lost),
            doubted: ids(&self.doubted),
            reason: self.reason.clone(),
            marked_ms: self.marked_ms,
            home: self.home.clone(),
            incomplete: self.incomplete.iter().map(incomplete).collect(),
        })
    }

    /// The change that removes it as it was read.
    #[must_use]
    pub fn removal(&self) -> Operation {
        Operation::Delete {
            key: keys::under_replicated(self.ledger),
            expect: Expect::Revision(self.revision),
        }
    }

    /// Whether it says anything of a bookie.
    #[must_use]
    pub fn names(&self, bookie: BookieId) -> bool {
        self.lost.contains(&bookie)
            || self.doubted.contains(&bookie)
            || self.incomplete.contains_key(&bookie)
    }

    /// Adds what an earlier mark says; whether anything of this one was missing there.
    pub fn merge(&mut self, earlier: &Mark) -> bool {
        let is_new = |(bookie, first): (&BookieId, &EntryId)| {
            earlier
                .incomplete
                .get(bookie)
                .is_none_or(|known| first < known)
        };
        let news = !self.lost.is_subset(&earlier.lost)
            || !self.doubted.is_subset(&earlier.doubted)
            || self.incomplete.iter().any(is_new);
        self.lost.extend(&earlier.lost);
        self.doubted.extend(&earlier.doubted);
        for (bookie, first) in &earlier.incomplete {
            self.lacks(*bookie, *first);
        }
        if !news {
            self.reason.clone_from(&earlier.reason);
            self.marked_ms = earlier.marked_ms;
        }
        news
    }

    /// Reads a stored mark.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn decode(stored: &Versioned) -> Result<Mark, LedgerError> {
        let mark: v1::UnderReplicatedRecord = record::decode(stored)?;
        let id = |bytes: &Bytes| {
            BookieId::try_from(&bytes[..]).map_err(|_| {
                let what = "its under-replication mark has a malformed bookie id";
                LedgerError::BadRecord(mark.ledger_id, what.to_owned())
            })
        };
        let ids = |list: &[Bytes]| -> Result<BTreeSet<BookieId>, LedgerError> {
            list.iter().map(id).collect()
        };
        let incomplete = mark.incomplete.iter();
        let incomplete =
            incomplete.map(|copy| Ok((id(&copy.bookie)?, EntryId(copy.first_entry_id))));
        let incomplete: Result<BTreeMap<BookieId, EntryId>, LedgerError> = incomplete.collect();
        Ok(Mark {
            ledger: LedgerId(mark.ledger_id),
            lost: ids(&mark.lost)?,
            doubted: ids(&mark.doubted)?,
            incomplete: incomplete?,
            reason: mark.reason.clone(),
            marked_ms: mark.marked_ms,
            home: mark.home.clone(),
            revision: stored.revision,
        })
    }
}

/// The change that writes a mark together with what an earlier one says.
pub async fn put_merged(store: &dyn MetadataStore, mark: &Mark) -> Result<Operation, LedgerError> {
    let stored = store.get(&keys::under_replicated(mark.ledger)).await?;
    let revision = stored.as_ref().map(|stored| stored.revision);
    let merged = merged(store, mark, stored.as_ref()).await?;
    Ok(merged.put(revision.map_or(Expect::Absent, Expect::Revision)))
}

/// A mark together with what the stored one says.
pub(crate) async fn merged(
    store: &dyn MetadataStore,
    mark: &Mark,
    stored: Option<&Versioned>,
) -> Result<Mark, LedgerError> {
    let mut merged = mark.clone();
    if let Some(stored) = stored {
        merge_stored(store, &mut merged, stored).await?;
    }
    Ok(merged)
}

/// Adds what the stored mark of the same ledger says; whether anything of this one was missing
/// there. What an unreadable one said may have been about any bookie of the ledger.
async fn merge_stored(
    store: &dyn MetadataStore,
    mark: &mut Mark,
    stored: &Versioned,
) -> Result<bool, LedgerError> {
    match Mark::decode(stored) {
        Ok(earlier) => Ok(mark.merge(&earlier)),
        Err(error @ LedgerError::Metadata(MetadataError::NewerFormat { .. })) => Err(error),
        Err(error) => {
            tracing::error!(key = stored.key, %error, "an unreadable mark is replaced");
            let info = ledger_metadata::load(store, mark.ledger).await?;
            let bookies = info.iter().flat_map(LedgerInfo::bookies);
            mark.doubted.extend(bookies);
            Ok(true)
        }
    }
}

/// Reads the mark of a ledger.
pub async fn load(
    store: &dyn MetadataStore,
    ledger: LedgerId,
) -> Result<Option<Mark>, LedgerError> {
    let stored = store.get(&keys::under_replicated(ledger)).await?;
    stored.map(|stored| Mark::decode(&stored)).transpose()
}

/// The bookies that the mark of a ledger calls lost. One that cannot be read names none.
pub async fn lost_of(
    store: &dyn MetadataStore,
    ledger: LedgerId,
) -> Result<BTreeSet<BookieId>, LedgerError> {
    let stored = store.get(&keys::under_replicated(ledger)).await?;
    let mark = stored.and_then(|stored| Mark::decode(&stored).ok());
    Ok(mark.map(|mark| mark.lost).unwrap_or_default())
}

/// Writes a mark, together with what an earlier one says. Returns whether it said anything new.
///
/// # Errors
/// When metadata does not do it.
pub async fn write(store: &dyn MetadataStore, mark: &Mark) -> Result<bool, LedgerError> {
    let write = |stored: Option<Versioned>| async move {
        let mut mark = mark.clone();
        if let Some(stored) = stored
            && !merge_stored(store, &mut mark, &stored).await?
        {
            return Ok(Change::none(()));
        }
        Ok(Change::put(&mark.home, mark.value(), ()))
    };
    let key = keys::under_replicated(mark.ledger);
    let updated = store.update(&key, &[], write).await;
    let updated = updated.map_err(UpdateError::<LedgerError>::flatten)?;
    Ok(updated.applied.is_some())
}

/// Removes a mark as it was read; `false` when another was written since.
pub async fn clear(store: &dyn MetadataStore, mark: &Mark) -> Result<bool, LedgerError> {
    let transaction = Transaction {
        partition: mark.home.clone(),
        guards: Vec::new(),
        operations: vec![mark.removal()],
    };
    match store.commit_until(transaction, Until::Known).await {
        Ok(_) => Ok(true),
        // Gone, or another: either way this one is not there any more.
        Err(MetadataError::Conflict { current, .. }) => Ok(current.is_none()),
        Err(error) => Err(error.into()),
    }
}
