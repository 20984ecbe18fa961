//! The stored form of records: a [`v1::MetadataValue`] that names its format version first, so
//! that a reader knows whether it understands the rest before it looks at it.
//!
//! The format is described in `docs/formats.md`. Values come from disk or from another process:
//! decoding never panics, and whatever is not exactly a record of the wanted kind is `Damaged`.

use aquifer_proto::{shape, v1};
use bytes::Bytes;
use prost::Message;

use crate::error::{MetadataError, MetadataResult};
use crate::store::Versioned;

/// The version that this build writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;

/// A message that is the value of some key.
pub trait Record: Sized {
    /// What it is called in errors.
    const NAME: &'static str;

    /// Wraps it for storage.
    fn into_value(self) -> v1::metadata_value::Value;

    /// Takes it out, if this is what the value holds.
    fn from_value(value: v1::metadata_value::Value) -> Option<Self>;
}

macro_rules! records {
    ($($message:ident = $variant:ident / $name:literal),* $(,)?) => {$(
        impl Record for v1::$message {
            const NAME: &'static str = $name;

            fn into_value(self) -> v1::metadata_value::Value {
                v1::metadata_value::Value::$variant(self)
            }

            fn from_value(value: v1::metadata_value::Value) -> Option<Self> {
                match value {
                    v1::metadata_value::Value::$variant(record) => Some(record),
                    _ => None,
                }
            }
        }
    )*};
}

records! {
    TenantRecord = Tenant / "tenant",
    NamespaceRecord = Namespace / "namespace",
    PolicyRecord = Policies / "policies",
    TopicRecord = Topic / "topic",
    LedgerRecord = Ledger / "ledger",
    IdRangeRecord = IdRange / "id range",
    DeletionIntent = Deletion / "deletion intent",
    BookieRecord = Bookie / "bookie",
    BrokerRecord = Broker / "broker",
    CookieRecord = Cookie / "cookie",
    BundleOwnerRecord = BundleOwner / "bundle owner",
    UnderReplicatedRecord = UnderReplicated / "under-replicated ledger",
    LockRecord = Lock / "lock",
}

/// The bytes to store for a record.
pub fn encode<R: Record>(record: R) -> Bytes {
    let value = v1::MetadataValue {
        format_version: FORMAT_VERSION,
        value: Some(record.into_value()),
    };
    value.encode_to_vec().into()
}

/// The record in a stored value.
///
/// # Errors
/// `Damaged`, with the key, when the bytes are not a record of this kind and a known version.
pub fn decode<R: Record>(versioned: &Versioned) -> MetadataResult<R> {
    decode_bytes(&versioned.key, &versioned.value)
}

/// [`decode`] for bytes and the key they were found at.
///
/// # Errors
/// As [`decode`].
pub fn decode_bytes<R: Record>(key: &str, bytes: &[u8]) -> MetadataResult<R> {
    let damaged = |reason: String| MetadataError::Damaged {
        key: key.to_owned(),
        reason,
    };
    // A store that several may write to: what a value costs is known before it is decoded.
    shape::check::<v1::MetadataValue>(bytes).map_err(|error| damaged(error.to_string()))?;
    let value = v1::MetadataValue::decode(bytes)
        .map_err(|error| damaged(format!("not a metadata value: {error}")))?;
    match value.format_version {
        FORMAT_VERSION => {}
        newer if newer > FORMAT_VERSION => {
            return Err(damaged(format!(
                "format version {newer} is newer than this build, which reads {FORMAT_VERSION}"
            )));
        }
        _ => return Err(damaged("it has no format version".to_owned())),
    }
    value
        .value
        .and_then(R::from_value)
        .ok_or_else(|| damaged(format!("it holds no {} record", R::NAME)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode_topic(bytes: &[u8]) -> MetadataResult<v1::TopicRecord> {
        decode_bytes("t/a/b/t/x", bytes)
    }

    proptest! {
        #[test]
        fn records_round_trip(
            incarnation in any::<[u8; 16]>(),
            generation in any::<u64>(),
            segments in prop::collection::vec((any::<u64>(), any::<u64>(), any::<bool>()), 0..5),
        ) {
            let record = v1::TopicRecord {
                incarnation: incarnation.to_vec().into(),
                range_generation: generation,
                segments: segments
                    .into_iter()
                    .map(|(ledger_id, first_index, sealed)| v1::SegmentRecord {
                        ledger_id,
                        first_index,
                        sealed,
                        ..v1::SegmentRecord::default()
                    })
                    .collect(),
                ..v1::TopicRecord::default()
            };
            prop_assert_eq!(decode_topic(&encode(record.clone())), Ok(record));
        }

        #[test]
        fn garbage_is_damaged_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            match decode_topic(&bytes) {
                Ok(_) | Err(MetadataError::Damaged { .. }) => {}
                Err(other) => prop_assert!(false, "{other:?}"),
            }
        }
    }

    #[test]
    fn the_kind_and_the_version_are_checked() {
        let ledger = encode(v1::LedgerRecord::default());
        let reason = |bytes: &[u8]| decode_topic(bytes).unwrap_err().to_string();
        assert!(reason(&ledger).contains("no topic record"));
        assert!(reason(&[]).contains("no format version"));
        let newer = v1::MetadataValue {
            format_version: FORMAT_VERSION + 1,
            value: None,
        };
        assert!(reason(&newer.encode_to_vec()).contains("newer"));
        assert!(reason(&ledger[..ledger.len() - 1]).contains("t/a/b/t/x"));
    }

    /// Stored bytes outlive the code that wrote them: this value was written by version 1.
    #[test]
    fn version_1_is_still_read() {
        let stored = [0x08, 0x01, 0x32, 0x03, 0x08, 0xd2, 0x09];
        let record: v1::IdRangeRecord = decode_bytes("ids/ledger", &stored).unwrap();
        assert_eq!(record.next, 1234);
        assert_eq!(encode(record), stored.as_slice());
    }
}
