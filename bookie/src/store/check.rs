//! The scrubber's look at stored entries. It ends at nothing: where the store cannot be read it goes
//! on behind, by key, so that one bad block or sector hides neither what follows nor itself.

use aquifer_model::id::{EntryId, LedgerId};
use rocksdb::ReadOptions;

use crate::store::db::{Db, StoreError};
use crate::store::entries::verified;
use crate::store::keys;

/// Entries behind one that cannot be read that are looked up one by one; behind these the steps
/// double, so that a damaged index of a whole file does not cost a look for each number.
const ONE_BY_ONE_MAX: u64 = 10_000;

/// What a look at stored entries found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checked {
    /// Entries that are intact.
    pub entries: u64,
    /// Bytes of everything that was read.
    pub bytes: usize,
    /// Entries that are not, or that cannot be read.
    pub damaged: Vec<EntryId>,
    /// Where to go on; `None` at the end of the ledger.
    pub next: Option<Place>,
}

/// A place in a ledger from which a look goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The entry.
    pub entry: EntryId,
    /// Numbers before it at which nothing could be read, in a row.
    unreadable: u64,
}

impl Place {
    /// The beginning of a look.
    #[must_use]
    pub fn at(entry: EntryId) -> Place {
        Place {
            entry,
            unreadable: 0,
        }
    }

    /// Behind a number at which nothing can be read; `None` when there are no more.
    fn behind(self) -> Option<Place> {
        let step = self.unreadable.saturating_sub(ONE_BY_ONE_MAX).max(1);
        Some(Place {
            entry: EntryId(self.entry.0.checked_add(step)?),
            unreadable: self.unreadable + step,
        })
    }
}

/// Checks the digests of stored entries from a place on, about `bytes_max` of them, and one entry
/// where the store cannot be read: which entries a damaged block holds is not known, so each number
/// that cannot be looked up is named.
pub fn check(
    db: &Db,
    ledger: LedgerId,
    from: Place,
    bytes_max: usize,
) -> Result<Checked, StoreError> {
    let mut checked = Checked::default();
    checked.next = step(db, ledger, from, bytes_max, &mut |entry, value| {
        checked.bytes += value.map_or(0, <[u8]>::len);
        match value.map(|value| verified(ledger, entry, value, Some(0))) {
            Some(Ok(_)) => checked.entries += 1,
            Some(Err(_)) | None => checked.damaged.push(entry),
        }
    })?;
    Ok(checked)
}

/// Shows what is stored of a ledger from a place on, about `bytes_max` of it: the value of each
/// entry, or nothing where it cannot be read. Returns where to go on.
pub fn step(
    db: &Db,
    ledger: LedgerId,
    from: Place,
    bytes_max: usize,
    show: &mut dyn FnMut(EntryId, Option<&[u8]>),
) -> Result<Option<Place>, StoreError> {
    let mut read = ReadOptions::default();
    read.set_iterate_upper_bound(keys::ledger_end(ledger));
    read.fill_cache(false);
    let family = db.family(keys::ENTRIES)?;
    let mut iterator = db.rocks.raw_iterator_cf_opt(family, read);
    iterator.seek(keys::entry_key(ledger, from.entry));
    let (mut next, mut bytes) = (from, 0);
    while let Some((key, value)) = iterator.item() {
        let entry = keys::entry_of(key)
            .ok_or_else(|| StoreError::Damaged("the key of an entry".to_owned()))?;
        show(entry, Some(value));
        bytes += value.len();
        next = Place::at(entry.next());
        if bytes >= bytes_max {
            return Ok(Some(next));
        }
        iterator.next();
    }
    match iterator.status().map_err(StoreError::from) {
        Ok(()) => return Ok(None),
        Err(StoreError::Damaged(_)) => {}
        Err(error) => return Err(error),
    }
    // Repair writes an entry anew beside its damaged block, and there only its number finds it.
    match db.entry(ledger, next.entry) {
        Ok(Some(value)) => show(next.entry, Some(&value)),
        // Nothing of that number: proven.
        Ok(None) => {}
        Err(StoreError::Damaged(_)) => show(next.entry, None),
        Err(error) => return Err(error),
    }
    Ok(next.behind())
}
