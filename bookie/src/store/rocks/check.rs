//! The scrubber's look at stored entries. It ends at nothing: where the store cannot be read it
//! goes on behind, by key, so that one bad block or sector hides neither what follows nor itself.
//!
//! A block that has the end of a ledger, and the beginning of the next, hides where that end is:
//! every number behind fails to be looked up. RocksDB keeps no key between the two that could tell,
//! so such numbers are told apart from those that may well be entries.

use aquifer_model::id::{EntryId, LedgerId};
use rocksdb::ReadOptions;

use crate::store::rocks::db::Db;
use crate::store::rocks::keys;
use crate::store::value::verified;
use crate::store::{CheckPlace, Checked, StoreError};

/// Entries behind one that cannot be read that are looked up one by one; behind these the steps
/// double, so that a damaged index of a whole file does not cost a look for each number.
const ONE_BY_ONE_MAX: u64 = 10_000;

/// What is shown of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown<'a> {
    /// The entry, as it is stored.
    Value(&'a [u8]),
    /// It cannot be read: there is an entry, or was one near it.
    Unreadable,
    /// It cannot be looked up, nor can too many others behind it: where the ledger ends is hidden.
    Hidden,
}

/// Checks the digests of stored entries from a place on, about `bytes_max` of them, and one entry
/// where the store cannot be read: which entries a damaged block holds is not known, so each number
/// that cannot be looked up is named, but for those behind the last that is known of a ledger.
pub fn check(
    db: &Db,
    ledger: LedgerId,
    from: CheckPlace,
    bytes_max: usize,
) -> Result<Checked, StoreError> {
    let mut checked = Checked::default();
    checked.next = step(
        db,
        ledger,
        from,
        bytes_max,
        &mut |entry, shown| match shown {
            Shown::Value(value) => {
                checked.bytes += value.len();
                match verified(ledger, entry, value, Some(0)) {
                    Ok(_) => checked.entries += 1,
                    Err(_) => checked.damaged.push(entry),
                }
            }
            Shown::Unreadable => checked.damaged.push(entry),
            Shown::Hidden => checked.hidden = Some(entry),
        },
    )?;
    Ok(checked)
}

/// Shows what is stored of a ledger from a place on, about `bytes_max` of it: the value of each
/// entry, or that it cannot be read. Returns where to go on.
pub fn step(
    db: &Db,
    ledger: LedgerId,
    from: CheckPlace,
    bytes_max: usize,
    show: &mut dyn FnMut(EntryId, Shown<'_>),
) -> Result<Option<CheckPlace>, StoreError> {
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
        show(entry, Shown::Value(value));
        bytes += value.len();
        next = CheckPlace::at(entry.next());
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
    // Repair rewrites an entry beside its damaged block, and there only its number finds it.
    match db.entry(ledger, next.entry) {
        Ok(Some(value)) => show(next.entry, Shown::Value(&value)),
        // Nothing of that number: proven.
        Ok(None) => {}
        Err(StoreError::Damaged(_)) => {
            let hides = match next.hides {
                Some(hides) => hides,
                None => hides_end(db, ledger, next.entry)?,
            };
            next.hides = Some(hides);
            let shown = if hides {
                Shown::Hidden
            } else {
                Shown::Unreadable
            };
            show(next.entry, shown);
        }
        Err(error) => return Err(error),
    }
    Ok(behind(next))
}

/// Behind a number at which nothing can be read; `None` when there are no more.
fn behind(place: CheckPlace) -> Option<CheckPlace> {
    let step = place.unreadable.saturating_sub(ONE_BY_ONE_MAX).max(1);
    Some(CheckPlace {
        entry: EntryId(place.entry.0.checked_add(step)?),
        unreadable: place.unreadable + step,
        ..place
    })
}

/// Whether the damage that begins at a number is of enough numbers that it hides where the ledger
/// ends. It covers a range of keys without a gap, so one of them tells; and of a file that ends
/// before that one RocksDB says so without reading it.
pub fn hides_end(db: &Db, ledger: LedgerId, first: EntryId) -> Result<bool, StoreError> {
    let far = EntryId(first.0.saturating_add(ONE_BY_ONE_MAX));
    match db.entry(ledger, far) {
        Ok(_) => Ok(false),
        Err(StoreError::Damaged(_)) => Ok(true),
        Err(error) => Err(error),
    }
}
