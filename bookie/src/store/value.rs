//! The stored value of an entry: the same bytes in the journal and in the store (docs/formats.md).
//!
//! Invariant (I5): bytes become an entry only if their digest matches.

use aquifer_model::id::{EntryId, LedgerId};
use aquifer_model::storage::{AddEntry, StoredEntry};
use bytes::{BufMut, Bytes, BytesMut};

use crate::journal::record::ValueHead;
use crate::ledger_state::Stored;
use crate::store::error::StoreError;

/// Why an entry could not be returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryError {
    /// The store failed, for example at a damaged block.
    Store(StoreError),
    /// The bytes do not match their digest.
    Digest(String),
}

impl From<StoreError> for EntryError {
    fn from(error: StoreError) -> EntryError {
        EntryError::Store(error)
    }
}

/// A stored value as an entry, verified; `prefix_bytes` cuts the data after that.
pub fn verified(
    ledger: LedgerId,
    entry: EntryId,
    value: &[u8],
    prefix_bytes: Option<usize>,
) -> Result<StoredEntry, EntryError> {
    let damaged = || EntryError::Digest(format!("entry {ledger}:{entry} on this bookie"));
    let (head, data) = ValueHead::split(value).ok_or_else(damaged)?;
    let parts: [&[u8]; 1] = [data];
    let digest = aquifer_model::storage::digest(
        ledger,
        entry,
        head.last_add_confirmed,
        head.ledger_length,
        &parts,
    );
    if digest != head.digest {
        return Err(damaged());
    }
    let kept = prefix_bytes.unwrap_or(data.len()).min(data.len());
    Ok(StoredEntry {
        entry,
        last_add_confirmed: head.last_add_confirmed,
        ledger_length: head.ledger_length,
        digest,
        data: Bytes::copy_from_slice(&data[..kept]),
    })
}

/// An entry that is not applied yet, as it will be stored.
pub fn from_pending(
    ledger: LedgerId,
    add: &AddEntry,
    prefix_bytes: Option<usize>,
) -> Result<StoredEntry, EntryError> {
    if !add.is_intact(ledger) {
        let message = format!("entry {ledger}:{} in memory", add.entry);
        return Err(EntryError::Digest(message));
    }
    let kept = prefix_bytes.unwrap_or(usize::MAX).min(add.data.len());
    let head = &add.data.head[..add.data.head.len().min(kept)];
    let mut data = BytesMut::with_capacity(kept);
    data.put_slice(head);
    data.put_slice(&add.data.body[..kept - head.len()]);
    Ok(StoredEntry {
        entry: add.entry,
        last_add_confirmed: add.last_add_confirmed,
        ledger_length: add.ledger_length,
        digest: add.digest,
        data: data.freeze(),
    })
}

/// Compares a stored value with an add whose digest was checked.
pub fn compare(ledger: LedgerId, value: Option<&[u8]>, add: &AddEntry) -> Stored {
    let Some(value) = value else {
        return Stored::Absent;
    };
    let same = ValueHead::split(value).is_some_and(|(head, data)| {
        head == ValueHead::of(add)
            && data.len() == add.data.len()
            && data.starts_with(&add.data.head)
            && data.ends_with(&add.data.body)
    });
    // The same bytes in the head and in the data have the same digest: what is the same is intact.
    if same {
        Stored::Same
    } else if verified(ledger, add.entry, value, Some(0)).is_ok() {
        Stored::Other
    } else {
        Stored::Damaged
    }
}
