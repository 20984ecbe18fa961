//! The list of ledgers: their records in order, past those that cannot be read.

use aquifer_model::id::{EntryId, LEDGER_ID_MAX, LedgerId};
use rocksdb::DBRawIterator;

use crate::ledger_state::LedgerMeta;
use crate::store::rocks::db::Db;
use crate::store::rocks::keys;
use crate::store::{LedgersPage, StoreError};

/// Records of ledgers that one call looks at.
const RECORDS_MAX: usize = 4_096;
/// Ledger numbers in one damaged stretch that are looked at one by one.
const HIDDEN_MAX: usize = 100_000;

impl Db {
    /// Ledgers after one that are not deleted, `max` at most, of a bounded number of records.
    pub fn ledgers_after(
        &self,
        after: Option<LedgerId>,
        max: usize,
    ) -> Result<LedgersPage, StoreError> {
        let first = after.map_or(0, |after| after.0.saturating_add(1));
        let (mut found, mut looked, mut count, mut more) = (Vec::new(), None, 0, false);
        self.ledgers_from(first, &mut |ledger, meta| {
            looked = Some(ledger);
            count += 1;
            if !meta.deleted {
                found.push((ledger, meta));
            }
            more = found.len() >= max || count >= RECORDS_MAX;
            !more
        })?;
        Ok(LedgersPage {
            ledgers: found,
            looked: looked.filter(|_| more),
        })
    }

    /// Calls `each` for ledger records from a number on, until it says that it has enough. Records
    /// that cannot be read are left out: their ledgers are told apart when they are asked for.
    pub(super) fn ledgers_from(
        &self,
        first: u64,
        each: &mut dyn FnMut(LedgerId, LedgerMeta) -> bool,
    ) -> Result<(), StoreError> {
        let mut iterator = self.rocks.raw_iterator_cf(self.family(keys::LEDGERS)?);
        let mut next = first;
        loop {
            iterator.seek(keys::ledger_key(LedgerId(next)));
            while let Some((key, value)) = iterator.item() {
                let ledger = keys::ledger_of(key)
                    .ok_or_else(|| StoreError::Damaged("a ledger's key".to_owned()))?;
                next = ledger.0.saturating_add(1);
                match LedgerMeta::decode(value) {
                    Ok(meta) if !each(ledger, meta) => return Ok(()),
                    Ok(_) => {}
                    Err(error) => tracing::error!(%ledger, %error, "a ledger is not listed"),
                }
                iterator.next();
            }
            match iterator.status().map_err(StoreError::from) {
                Ok(()) => return Ok(()),
                Err(error @ StoreError::Damaged(_)) => {
                    tracing::error!(first = next, %error, "some ledgers are not listed");
                }
                Err(error) => return Err(error),
            }
            match readable_behind(&mut iterator, next, &|at| keys::ledger_key(at).to_vec())? {
                Some(readable) => next = readable,
                None => return Ok(()),
            }
        }
    }

    /// The ledgers from `first` to `last` that have entries, whatever their records say.
    pub fn ledgers_with_entries(
        &self,
        first: LedgerId,
        last: LedgerId,
    ) -> Result<Vec<LedgerId>, StoreError> {
        let mut iterator = self.rocks.raw_iterator_cf(self.family(keys::ENTRIES)?);
        let key = |ledger| keys::entry_key(ledger, EntryId::FIRST).to_vec();
        let mut found = Vec::new();
        let mut next = first.0;
        while next <= last.0 {
            iterator.seek(key(LedgerId(next)));
            let ledger = iterator
                .key()
                .and_then(|key| keys::ledger_of(key.get(..8)?));
            next = match (ledger, iterator.status().map_err(StoreError::from)) {
                (Some(ledger), Ok(())) if ledger <= last => {
                    found.push(ledger);
                    ledger.0.saturating_add(1)
                }
                (_, Ok(())) => break,
                (_, Err(StoreError::Damaged(_))) => {
                    // The one that cannot be read may have entries, and so may those behind it.
                    found.push(LedgerId(next));
                    match readable_behind(&mut iterator, next, &key)? {
                        Some(readable) => {
                            let hidden = next.saturating_add(1)..readable;
                            found.extend(hidden.take(HIDDEN_MAX).map(LedgerId));
                            readable
                        }
                        None => break,
                    }
                }
                (_, Err(error)) => return Err(error),
            };
        }
        Ok(found)
    }
}

/// The first ledger number behind one that cannot be read at which reading goes on: damage covers a
/// range of keys without a gap.
fn readable_behind(
    iterator: &mut DBRawIterator<'_>,
    unreadable: u64,
    key: &dyn Fn(LedgerId) -> Vec<u8>,
) -> Result<Option<u64>, StoreError> {
    let mut is_readable = |at: u64| {
        iterator.seek(key(LedgerId(at)));
        match iterator.status().map_err(StoreError::from) {
            Ok(()) => Ok(true),
            Err(StoreError::Damaged(_)) => Ok(false),
            Err(error) => Err(error),
        }
    };
    let (mut bad, mut step) = (unreadable, 1);
    let mut good = loop {
        let at = bad.saturating_add(step).min(LEDGER_ID_MAX + 1);
        if is_readable(at)? {
            break at;
        }
        if at > LEDGER_ID_MAX {
            return Ok(None);
        }
        (bad, step) = (at, step * 2);
    };
    while good - bad > 1 {
        let middle = bad + (good - bad) / 2;
        if is_readable(middle)? {
            good = middle;
        } else {
            bad = middle;
        }
    }
    Ok(Some(good))
}
