//! Reads outside of the ordered stream, and entries that are lost without a word.

use aquifer_model::id::{EntryId, LedgerId};
use aquifer_model::storage::{
    BookieError, BookieResult, Presence, PresenceRange, ReadBatch, ReadRange,
};

use crate::bookie::SimBookie;

impl<T: Clone> SimBookie<T> {
    /// Reads what is synced.
    ///
    /// # Errors
    /// As a bookie does.
    pub fn read(&self, range: ReadRange) -> BookieResult<ReadBatch> {
        let negative = |error| match self.limbo {
            true => Err(BookieError::Limbo),
            false => Err(error),
        };
        let Some(meta) = self.store.metas.get(&range.ledger) else {
            return negative(BookieError::NoSuchLedger);
        };
        if range.token.is_some_and(|token| token != meta.token) {
            return Err(BookieError::Token);
        }
        if meta.deleted {
            return Err(BookieError::Deleted);
        }
        let mut batch = ReadBatch {
            entries: Vec::new(),
            last_add_confirmed: self.store.load(range.ledger).lac(),
        };
        let (mut bytes, mut next) = (0, range.first);
        if self.rotten.contains(&(range.ledger, next)) {
            return Err(BookieError::Digest("it is damaged".to_owned()));
        }
        while next <= range.last
            && !self.rotten.contains(&(range.ledger, next))
            && batch.entries.len() < range.entries_max
            && let Some(entry) = self.store.entries.get(&(range.ledger, next))
        {
            bytes += entry.data.len();
            if bytes > range.bytes_max && !batch.entries.is_empty() {
                break;
            }
            let mut entry = entry.clone();
            if let Some(prefix) = range.prefix_bytes {
                entry.data = entry.data.slice(..prefix.min(entry.data.len()));
            }
            batch.entries.push(entry);
            next = next.next();
        }
        match batch.entries.is_empty() {
            true => negative(BookieError::NoSuchEntry),
            false => Ok(batch),
        }
    }

    /// Says which entries are applied.
    ///
    /// # Errors
    /// As a bookie does.
    pub fn present(&self, range: PresenceRange) -> BookieResult<Presence> {
        let mut presence = Presence::nothing_until(range.last);
        let Some(meta) = self.store.metas.get(&range.ledger) else {
            return Ok(presence);
        };
        if range.token.is_some_and(|token| token != meta.token) {
            return Err(BookieError::Token);
        }
        if meta.deleted {
            return Err(BookieError::Deleted);
        }
        let keys = (range.ledger, range.first)..=(range.ledger, range.last);
        for ((_, entry), _) in self.store.entries.range(keys) {
            presence.add(*entry);
        }
        Ok(presence)
    }

    /// Whether there is an entry that can be damaged.
    #[must_use]
    pub fn may_rot(&self, ledger: LedgerId) -> bool {
        let newest = self.newest(ledger);
        newest.is_some_and(|entry| !self.rotten.contains(&(ledger, entry)))
    }

    /// Damages the newest entry of a ledger on the disk.
    pub fn rot(&mut self, ledger: LedgerId) {
        let newest = self.newest(ledger);
        self.rotten.extend(newest.map(|entry| (ledger, entry)));
    }

    fn newest(&self, ledger: LedgerId) -> Option<EntryId> {
        let keys = (ledger, EntryId::FIRST)..=(ledger, EntryId(u64::MAX));
        let newest = self.store.entries.range(keys).next_back();
        newest.map(|((_, entry), _)| *entry)
    }

    /// Loses an entry that nothing else tells of, as a bad block does.
    pub fn lose_entry(&mut self, ledger: LedgerId, entry: EntryId) {
        self.canonicalize();
        self.store.entries.remove(&(ledger, entry));
        self.disk.flushed.entries.remove(&(ledger, entry));
    }
}
