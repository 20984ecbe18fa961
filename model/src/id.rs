//! Newtypes for every identifier, so that two of them cannot be swapped by accident.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Largest ledger id: ids stay below 2^53 so that JSON and JavaScript keep them exact.
pub const LEDGER_ID_MAX: u64 = (1 << 53) - 1;

/// A ledger: an append-only sequence of entries with one writer. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LedgerId(pub u64);

/// The number of an entry within its ledger, dense from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EntryId(pub u64);

impl EntryId {
    /// First entry of every ledger.
    pub const FIRST: EntryId = EntryId(0);

    /// The entry after this one.
    #[must_use]
    pub fn next(self) -> EntryId {
        EntryId(self.0 + 1)
    }
}

/// The offset of a message in its partition: dense from 0, one per message (not per entry).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Index(pub u64);

impl Index {
    /// The index `count` messages further on.
    #[must_use]
    pub fn plus(self, count: u64) -> Index {
        Index(self.0 + count)
    }
}

/// Counts the owners of a bundle: a higher epoch has taken over from every lower one (I4).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct OwnerEpoch(pub u64);

/// Stands for a tenant where only shares are decided: a hash of its name. Two tenants with the same
/// key share a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TenantKey(pub u32);

impl TenantKey {
    /// Of requests that name no tenant: all of them are one.
    pub const UNKNOWN: TenantKey = TenantKey(0);

    /// The key of a tenant.
    #[must_use]
    pub fn of(tenant: &str) -> TenantKey {
        TenantKey(crate::checksum::crc32c(tenant.as_bytes()))
    }

    /// The key of the tenant of a namespace, or of what is in one, by a name that begins with it.
    #[must_use]
    pub fn of_home(home: &str) -> TenantKey {
        TenantKey::of(home.split('/').next().unwrap_or_default())
    }
}

/// Counts the seeks of a subscription; acknowledgements of an older one are dropped (H12).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct SeekEpoch(pub u64);

macro_rules! display_number {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
display_number!(LedgerId, EntryId, Index, OwnerEpoch, SeekEpoch);

/// A text that is not 32 hexadecimal digits where an id was expected.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{what} must be 32 hexadecimal digits, got {got} characters that are not")]
pub struct ParseIdError {
    what: &'static str,
    got: usize,
}

macro_rules! random_id {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                parse_hex16(text)
                    .map($name)
                    .ok_or(ParseIdError { what: stringify!($name), got: text.len() })
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = ParseIdError;

            fn try_from(bytes: &[u8]) -> Result<Self, ParseIdError> {
                bytes
                    .try_into()
                    .map($name)
                    .map_err(|_| ParseIdError { what: stringify!($name), got: bytes.len() })
            }
        }
    )*};
}

random_id! {
    /// The random incarnation of a bookie's storage: a wiped disk is another bookie (I5).
    BookieId,
    /// A broker process; random per start, so that a restart never inherits an epoch.
    BrokerId,
    /// Drawn when a ledger is created; bookies refuse another token for the same id (H14).
    CreationToken,
    /// One life of a topic name: deleting and creating again gives another incarnation.
    TopicIncarnation,
    /// One producer object of an application; tells a reconnect from a rival of the same name.
    ProducerInstance,
    /// One consumer object of an application on one topic or partition; tells a reconnect from a
    /// rival.
    ConsumerInstance,
    /// One attempt to write one object: never used again (H22).
    AttemptId,
    /// A bucket or directory of objects; its marker and its record repeat it.
    LocationId,
    /// A backup: the time, and what is random.
    BackupId,
}

fn parse_hex16(text: &str) -> Option<[u8; 16]> {
    if text.len() != 32 || !text.is_ascii() {
        return None;
    }
    let mut id = [0u8; 16];
    for (i, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(i * 2..i * 2 + 2)?, 16).ok()?;
    }
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_round_trip_as_text() {
        let id = BookieId([7, 0, 255, 16, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(id.to_string().parse::<BookieId>(), Ok(id));
        for bad in [
            "",
            "07",
            "zz000000000000000000000000000000",
            "é7000000000000000000000000000",
        ] {
            assert!(bad.parse::<BookieId>().is_err(), "{bad}");
        }
    }
}
