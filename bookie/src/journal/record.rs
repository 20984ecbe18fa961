//! The records of the journal: one per add, fence, LAC, deletion. docs/formats.md has the layout.
//!
//! A record carries no checksum of its own: the commit around it has one (`commit.rs`). The bytes
//! of an add end with exactly the value that is stored, so that the applier copies nothing.

use aquifer_model::bytes_at::{u32_at, u64_at};
use aquifer_model::entry::EntryData;
use aquifer_model::id::{CreationToken, EntryId, LEDGER_ID_MAX, LedgerId};
use aquifer_model::limits::ENTRY_BYTES_MAX;
use aquifer_model::storage::AddEntry;
use aquifer_runtime::disk::AlignedBuffer;
use thiserror::Error;

/// Bytes of a record's head.
pub const RECORD_HEAD_BYTES: usize = 40;
/// Bytes before the data of a stored entry.
pub const VALUE_HEAD_BYTES: usize = 24;

const KIND_ADD: u8 = 1;
const KIND_FENCE: u8 = 2;
const KIND_LAC: u8 = 3;
const KIND_DELETE: u8 = 4;
const KIND_RECOVERY_ADD: u8 = 5;

/// What a record does to its ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// An entry of the ledger's writer.
    Add(EntryId),
    /// An entry written back by recovery or repair.
    RecoveryAdd(EntryId),
    /// The ledger refuses normal adds.
    Fence,
    /// A LAC that no add carried.
    Lac(EntryId),
    /// The ledger is gone and leaves a tombstone.
    Delete,
}

/// The head of a stored entry, in the journal and in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValueHead {
    /// Digest over everything.
    pub digest: u32,
    /// The LAC that the entry carried.
    pub last_add_confirmed: Option<EntryId>,
    /// Bytes of the ledger up to and including the entry.
    pub ledger_length: u64,
}

/// A record as it waits for its commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The ledger.
    pub ledger: LedgerId,
    /// Its creation token.
    pub token: CreationToken,
    /// What happens to it.
    pub kind: RecordKind,
    /// With an add: head of the value, and the data.
    pub value: Option<(ValueHead, EntryData)>,
}

/// A record as it was read back; the value is a slice of the commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordRef<'a> {
    /// The ledger.
    pub ledger: LedgerId,
    /// Its creation token.
    pub token: CreationToken,
    /// What happens to it.
    pub kind: RecordKind,
    /// With an add: the value for the store, otherwise empty.
    pub value: &'a [u8],
}

/// Bytes that are not a record although the checksum around them is right.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not a journal record: {0}")]
pub struct RecordError(&'static str);

impl ValueHead {
    /// The head of the entry that an add stores.
    #[must_use]
    pub fn of(add: &AddEntry) -> ValueHead {
        ValueHead {
            digest: add.digest,
            last_add_confirmed: add.last_add_confirmed,
            ledger_length: add.ledger_length,
        }
    }

    /// The stored bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; VALUE_HEAD_BYTES] {
        let mut bytes = [0; VALUE_HEAD_BYTES];
        bytes[..4].copy_from_slice(&self.digest.to_le_bytes());
        if let Some(lac) = self.last_add_confirmed {
            bytes[4] = 1;
            bytes[8..16].copy_from_slice(&lac.0.to_le_bytes());
        }
        bytes[16..].copy_from_slice(&self.ledger_length.to_le_bytes());
        bytes
    }

    /// Splits a stored value into its head and the data; `None` when it is too short or has
    /// flags of a later version.
    #[must_use]
    pub fn split(value: &[u8]) -> Option<(ValueHead, &[u8])> {
        if value.len() < VALUE_HEAD_BYTES || value[4] > 1 || value[5..8] != [0; 3] {
            return None;
        }
        let head = ValueHead {
            digest: u32_at(value, 0),
            last_add_confirmed: (value[4] == 1).then(|| EntryId(u64_at(value, 8))),
            ledger_length: u64_at(value, 16),
        };
        Some((head, &value[VALUE_HEAD_BYTES..]))
    }
}

impl RecordKind {
    fn code(self) -> (u8, u64) {
        match self {
            RecordKind::Add(entry) => (KIND_ADD, entry.0),
            RecordKind::RecoveryAdd(entry) => (KIND_RECOVERY_ADD, entry.0),
            RecordKind::Fence => (KIND_FENCE, 0),
            RecordKind::Lac(lac) => (KIND_LAC, lac.0),
            RecordKind::Delete => (KIND_DELETE, 0),
        }
    }

    /// The entry that the record stores.
    #[must_use]
    pub fn entry(self) -> Option<EntryId> {
        match self {
            RecordKind::Add(entry) | RecordKind::RecoveryAdd(entry) => Some(entry),
            RecordKind::Fence | RecordKind::Lac(_) | RecordKind::Delete => None,
        }
    }
}

impl Record {
    /// Bytes of the encoded record.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        RECORD_HEAD_BYTES
            + self
                .value
                .as_ref()
                .map_or(0, |(_, data)| VALUE_HEAD_BYTES + data.len())
    }

    /// Appends the record.
    pub fn encode(&self, out: &mut AlignedBuffer) {
        let (code, number) = self.kind.code();
        let len = u32::try_from(self.encoded_len())
            .expect("admission bounds an entry to ENTRY_BYTES_MAX, far below 4 GiB");
        let mut head = [0; RECORD_HEAD_BYTES];
        head[..4].copy_from_slice(&len.to_le_bytes());
        head[4] = code;
        head[8..16].copy_from_slice(&self.ledger.0.to_le_bytes());
        head[16..32].copy_from_slice(&self.token.0);
        head[32..40].copy_from_slice(&number.to_le_bytes());
        out.extend_from_slice(&head);
        if let Some((value, data)) = &self.value {
            out.extend_from_slice(&value.encode());
            out.extend_from_slice(&data.head);
            out.extend_from_slice(&data.body);
        }
    }
}

impl<'a> RecordRef<'a> {
    /// Reads the record at the beginning of `bytes`; returns it and the rest.
    ///
    /// # Errors
    /// When the bytes are not a record of this version.
    pub fn decode(bytes: &'a [u8]) -> Result<(RecordRef<'a>, &'a [u8]), RecordError> {
        if bytes.len() < RECORD_HEAD_BYTES {
            return Err(RecordError("shorter than its head"));
        }
        let len = usize::try_from(u32_at(bytes, 0)).unwrap_or(usize::MAX);
        if len < RECORD_HEAD_BYTES || len > bytes.len() {
            return Err(RecordError("its length does not fit"));
        }
        if bytes[5..8] != [0; 3] {
            return Err(RecordError("reserved bytes are set"));
        }
        let ledger = LedgerId(u64_at(bytes, 8));
        if ledger.0 > LEDGER_ID_MAX {
            return Err(RecordError("the ledger id is too large"));
        }
        let number = EntryId(u64_at(bytes, 32));
        let kind = match bytes[4] {
            KIND_ADD => RecordKind::Add(number),
            KIND_RECOVERY_ADD => RecordKind::RecoveryAdd(number),
            KIND_FENCE => RecordKind::Fence,
            KIND_LAC => RecordKind::Lac(number),
            KIND_DELETE => RecordKind::Delete,
            _ => return Err(RecordError("unknown kind")),
        };
        let value = &bytes[RECORD_HEAD_BYTES..len];
        let fits = match kind.entry() {
            Some(_) => {
                value.len() <= VALUE_HEAD_BYTES + ENTRY_BYTES_MAX
                    && ValueHead::split(value).is_some()
            }
            None => value.is_empty(),
        };
        if !fits {
            return Err(RecordError("its value does not fit its kind"));
        }
        let token = CreationToken::try_from(&bytes[16..32])
            .map_err(|_| RecordError("its token is not 16 bytes"))?;
        let record = RecordRef {
            ledger,
            token,
            kind,
            value,
        };
        Ok((record, &bytes[len..]))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::tests::{counting, golden};
    use bytes::Bytes;
    use proptest::prelude::*;

    pub(crate) fn any_record() -> impl Strategy<Value = Record> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..600);
        (
            0..=LEDGER_ID_MAX,
            any::<[u8; 16]>(),
            0u8..5,
            any::<u64>(),
            (any::<u32>(), any::<Option<u64>>(), any::<u64>()),
            (bytes(), bytes()),
        )
            .prop_map(|(ledger, token, kind, number, value, (head, body))| {
                let number = EntryId(number);
                let kind = match kind {
                    0 => RecordKind::Add(number),
                    1 => RecordKind::RecoveryAdd(number),
                    2 => RecordKind::Fence,
                    3 => RecordKind::Lac(number),
                    _ => RecordKind::Delete,
                };
                let (digest, lac, ledger_length) = value;
                let head_of_value = ValueHead {
                    digest,
                    last_add_confirmed: lac.map(EntryId),
                    ledger_length,
                };
                let data = EntryData {
                    head: Bytes::from(head),
                    body: Bytes::from(body),
                };
                Record {
                    ledger: LedgerId(ledger),
                    token: CreationToken(token),
                    kind,
                    value: kind.entry().map(|_| (head_of_value, data)),
                }
            })
    }

    /// A record of each kind.
    pub(crate) fn golden_records() -> Vec<Record> {
        let record = |kind, value| Record {
            ledger: LedgerId(7),
            token: CreationToken(counting(0x21)),
            kind,
            value,
        };
        let first = ValueHead {
            digest: 0x1122_3344,
            last_add_confirmed: Some(EntryId(4)),
            ledger_length: 600,
        };
        let second = ValueHead {
            digest: 0x5566_7788,
            last_add_confirmed: None,
            ledger_length: 700,
        };
        let data = |head: &'static [u8]| EntryData {
            head: Bytes::from_static(head),
            body: Bytes::from_static(b"body"),
        };
        vec![
            record(RecordKind::Add(EntryId(5)), Some((first, data(b"head")))),
            record(RecordKind::Fence, None),
            record(RecordKind::Lac(EntryId(9)), None),
            record(RecordKind::Delete, None),
            record(
                RecordKind::RecoveryAdd(EntryId(6)),
                Some((second, data(b""))),
            ),
        ]
    }

    /// That what was read is what was written.
    pub(crate) fn assert_same(read: RecordRef<'_>, record: &Record) {
        assert_eq!(
            (read.ledger, read.token, read.kind),
            (record.ledger, record.token, record.kind)
        );
        match &record.value {
            None => assert!(read.value.is_empty()),
            Some((head, data)) => {
                let (read_head, read_data) = ValueHead::split(read.value).unwrap();
                assert_eq!(read_head, *head);
                assert_eq!(read_data, [&data.head[..], &data.body[..]].concat());
            }
        }
    }

    /// The stored bytes, those of values in the store too: they may never change while bookies have
    /// such records.
    #[test]
    fn golden_bytes_stay() {
        let golden = golden(include_str!("record/golden_v1.hex"));
        let records = golden_records();
        assert_eq!(records.len(), golden.len());
        for (record, golden) in records.iter().zip(&golden) {
            let mut buffer = AlignedBuffer::with_capacity(0);
            record.encode(&mut buffer);
            assert_eq!(buffer.as_slice(), golden);
            let (read, rest) = RecordRef::decode(golden).unwrap();
            assert!(rest.is_empty());
            assert_same(read, record);
            if let Some((head, _)) = &record.value {
                assert!(read.value.starts_with(&head.encode()));
            }
        }
    }

    proptest! {
        #[test]
        fn records_round_trip(records in prop::collection::vec(any_record(), 1..5)) {
            let mut buffer = AlignedBuffer::with_capacity(0);
            let mut len = 0;
            for record in &records {
                record.encode(&mut buffer);
                len += record.encoded_len();
                prop_assert_eq!(buffer.len(), len);
            }
            let mut rest = buffer.as_slice();
            for record in &records {
                let (read, more) = RecordRef::decode(rest).unwrap();
                assert_same(read, record);
                rest = more;
            }
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = RecordRef::decode(&bytes);
            let _ = ValueHead::split(&bytes);
        }

        #[test]
        fn damaged_records_never_panic(
            record in any_record(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut buffer = AlignedBuffer::with_capacity(0);
            record.encode(&mut buffer);
            let at = at.index(buffer.len());
            buffer.as_mut_slice()[at] = byte;
            let _ = RecordRef::decode(buffer.as_slice());
        }
    }
}
