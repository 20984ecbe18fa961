//! The keys of RocksDB (docs/formats.md): big-endian, so that a ledger is one contiguous range.

use aquifer_model::id::{EntryId, LedgerId};

/// Entries by (ledger, entry).
pub const ENTRIES: &str = "entries";
/// Ledger records by ledger.
pub const LEDGERS: &str = "ledgers";
/// In the default family: the last commit of the journal that is in RocksDB.
pub const APPLIED: &[u8] = b"applied";
/// In the default family: the loss that keeps ledgers in limbo.
pub const LOSS: &[u8] = b"loss";
/// In the default family: the files that are damaged.
pub const DAMAGE: &[u8] = b"damage";
/// In the default family: up to where the scrubber has come.
pub const SCRUBBED: &[u8] = b"scrubbed";

/// Key of an entry.
#[must_use]
pub fn entry_key(ledger: LedgerId, entry: EntryId) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&ledger.0.to_be_bytes());
    key[8..].copy_from_slice(&entry.0.to_be_bytes());
    key
}

/// The first key after every entry of a ledger.
#[must_use]
pub fn ledger_end(ledger: LedgerId) -> [u8; 16] {
    // Ledger ids stay below 2^53, so there is always a next one.
    entry_key(LedgerId(ledger.0.saturating_add(1)), EntryId::FIRST)
}

/// Key of a ledger record.
#[must_use]
pub fn ledger_key(ledger: LedgerId) -> [u8; 8] {
    ledger.0.to_be_bytes()
}

/// The ledger of a ledger record's key.
#[must_use]
pub fn ledger_of(key: &[u8]) -> Option<LedgerId> {
    Some(LedgerId(u64::from_be_bytes(key.try_into().ok()?)))
}

/// The entry in an entry's key.
#[must_use]
pub fn entry_of(key: &[u8]) -> Option<EntryId> {
    Some(EntryId(u64::from_be_bytes(
        key.get(8..16)?.try_into().ok()?,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::golden;

    /// The stored bytes: they may never change while bookies have such stores.
    #[test]
    fn golden_bytes_stay() {
        let (ledger, entry) = (LedgerId(0x01_0203_0405), EntryId(0x0a_0b0c));
        let golden = golden(include_str!("keys/golden_v1.hex"));
        let written = [
            &entry_key(ledger, entry)[..],
            &ledger_key(ledger),
            APPLIED,
            LOSS,
            DAMAGE,
            SCRUBBED,
        ];
        assert_eq!(written.map(<[u8]>::to_vec).as_slice(), golden);
        assert_eq!(entry_of(&golden[0]), Some(entry));
        assert_eq!(ledger_of(&golden[0][..8]), Some(ledger));
        assert_eq!(ledger_of(&golden[1]), Some(ledger));
        assert_eq!((ENTRIES, LEDGERS), ("entries", "ledgers"));
    }
}
