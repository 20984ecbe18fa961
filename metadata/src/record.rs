//! The stored form of records: a [`v1::MetadataValue`] that names its format version first, so
//! that a reader knows whether it understands the rest before it looks at it.
//!
//! The format is described in `docs/formats.md`. Values come from disk or from another process:
//! decoding never panics, and whatever is not exactly a record of the wanted kind is `Damaged`.
//!
//! Decoding forgets fields that it does not know, and records are rewritten all the time. So a
//! record that carries a field which must not be forgotten has a higher version
//! ([`Record::version`]), each kind of record its own, and a build neither reads nor writes over a
//! record of a version that it does not know (`NewerFormat`).

use aquifer_proto::{shape, v1};
use bytes::Bytes;
use prost::Message;

use crate::error::{MetadataError, MetadataResult};
use crate::keys::Key;
use crate::store::Versioned;

/// The version of records without anything that older builds must not erase.
pub const FORMAT_VERSION: u32 = 1;

/// A message that is the value of some key.
pub trait Record: Sized {
    /// What it is called in errors.
    const NAME: &'static str;

    /// The newest version of this kind that this build reads and writes.
    const NEWEST: u32 = FORMAT_VERSION;

    /// The version that this record needs: the lowest whose builds do not erase what it carries.
    fn version(&self) -> u32 {
        FORMAT_VERSION
    }

    /// Wraps it for storage.
    fn into_value(self) -> v1::metadata_value::Value;

    /// Takes it out, if this is what the value holds.
    fn from_value(value: v1::metadata_value::Value) -> Option<Self>;
}

macro_rules! records {
    ($(
        $message:ident = $variant:ident / $name:literal $(: $newest:ident by $version:ident)?
    ),* $(,)?) => {$(
        impl Record for v1::$message {
            const NAME: &'static str = $name;
            $(
                const NEWEST: u32 = $newest;

                fn version(&self) -> u32 {
                    $version(self)
                }
            )?

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
    TenantRecord = Tenant / "tenant": TENANT_REMOVAL by tenant_version,
    NamespaceRecord = Namespace / "namespace": NAMESPACE_REMOVAL by namespace_version,
    PolicyRecord = Policies / "policies",
    RateSharesRecord = RateShares / "rate shares",
    SegmentPageRecord = SegmentPage / "segment page",
    IdRangeRecord = IdRange / "id range",
    DeletionIntent = Deletion / "deletion intent",
    BookieRecord = Bookie / "bookie",
    BrokerRecord = Broker / "broker",
    CookieRecord = Cookie / "cookie",
    BundleOwnerRecord = BundleOwner / "bundle owner",
    UnderReplicatedRecord = UnderReplicated / "under-replicated ledger",
    LockRecord = Lock / "lock",
    TokenRecord = Token / "token",
    GrantRecord = Grant / "grant": GRANT_OF_ROLE by grant_version,
    RoleRecord = Role / "role",
    RevocationRecord = Revocation / "revocation",
    ClusterKeyRecord = ClusterKey / "cluster key",
    ForgottenRecord = Forgotten / "forgotten tenant": FORGOTTEN_TOKENS by forgotten_version,
    AuditEndsRecord = AuditEnds / "ends of the audit log",
    LocationRecord = Location / "location",
    UploadRecord = Upload / "upload",
    DyingObjectRecord = DyingObject / "dying object",
    BackupRecord = Backup / "backup",
    OffloadTaskRecord = OffloadTask / "offload task",
    OffloaderRecord = Offloader / "offloader",
}

/// The version of a tenant's record that is marked for its deletion.
const TENANT_REMOVAL: u32 = 2;
/// The version of a namespace's record that is marked for its deletion.
const NAMESPACE_REMOVAL: u32 = 2;

/// The version of a grant whose actions stand in the record of a role.
const GRANT_OF_ROLE: u32 = 2;

fn grant_version(record: &v1::GrantRecord) -> u32 {
    match &record.role_of {
        None => FORMAT_VERSION,
        Some(_) => GRANT_OF_ROLE,
    }
}

/// The version of a note that names tokens: older builds would bring them back.
const FORGOTTEN_TOKENS: u32 = 2;

fn forgotten_version(record: &v1::ForgottenRecord) -> u32 {
    match record.tokens.is_empty() {
        true => FORMAT_VERSION,
        false => FORGOTTEN_TOKENS,
    }
}

fn tenant_version(record: &v1::TenantRecord) -> u32 {
    match record.removal() {
        v1::Removal::Unspecified => FORMAT_VERSION,
        v1::Removal::IfEmpty | v1::Removal::All => TENANT_REMOVAL,
    }
}

fn namespace_version(record: &v1::NamespaceRecord) -> u32 {
    match record.removal() {
        v1::Removal::Unspecified => FORMAT_VERSION,
        v1::Removal::IfEmpty | v1::Removal::All => NAMESPACE_REMOVAL,
    }
}

/// The version of a ledger's record that says where its bytes are in an object store.
const LEDGER_WITH_OFFLOAD: u32 = 2;
/// That of one whose object is known to be damaged: older builds would drop its copies.
const LEDGER_DAMAGED_OBJECT: u32 = 3;
/// That of one whose copies are in another ledger: older builds would forget that.
const LEDGER_IMPORTED: u32 = 4;

impl Record for v1::LedgerRecord {
    const NAME: &'static str = "ledger";
    const NEWEST: u32 = LEDGER_IMPORTED;

    fn version(&self) -> u32 {
        let Some(offload) = &self.offload else {
            return FORMAT_VERSION;
        };
        match &offload.object {
            _ if offload.copy_ledger_id > 0 => LEDGER_IMPORTED,
            Some(object) if object.damaged => LEDGER_DAMAGED_OBJECT,
            _ => LEDGER_WITH_OFFLOAD,
        }
    }

    fn into_value(self) -> v1::metadata_value::Value {
        v1::metadata_value::Value::Ledger(self)
    }

    fn from_value(value: v1::metadata_value::Value) -> Option<v1::LedgerRecord> {
        match value {
            v1::metadata_value::Value::Ledger(record) => Some(record),
            _ => None,
        }
    }
}

/// The version of a topic's record that says that nothing of it is deleted by policy yet.
const TOPIC_RESTORED: u32 = 2;
/// The version of a topic's record that says that the topic takes no more messages.
const TOPIC_TERMINATED: u32 = 3;

impl Record for v1::TopicRecord {
    const NAME: &'static str = "topic";
    const NEWEST: u32 = TOPIC_TERMINATED;

    fn version(&self) -> u32 {
        match self.restored {
            _ if self.terminated => TOPIC_TERMINATED,
            Some(_) => TOPIC_RESTORED,
            None => FORMAT_VERSION,
        }
    }

    fn into_value(self) -> v1::metadata_value::Value {
        v1::metadata_value::Value::Topic(self)
    }

    fn from_value(value: v1::metadata_value::Value) -> Option<v1::TopicRecord> {
        match value {
            v1::metadata_value::Value::Topic(record) => Some(record),
            _ => None,
        }
    }
}

/// The name and the newest version of the records at a key; `None` where other values are.
fn kind_at(key: &str) -> Option<(&'static str, u32)> {
    fn of<R: Record>() -> Option<(&'static str, u32)> {
        Some((R::NAME, R::NEWEST))
    }
    match key.parse().ok()? {
        Key::Tenant(_) => of::<v1::TenantRecord>(),
        Key::Namespace(_) => of::<v1::NamespaceRecord>(),
        Key::Policies(_) => of::<v1::PolicyRecord>(),
        Key::RateShares(_) => of::<v1::RateSharesRecord>(),
        Key::Topic(_) | Key::Restoring(_) => of::<v1::TopicRecord>(),
        Key::SegmentPage(..) => of::<v1::SegmentPageRecord>(),
        Key::Ledger(_) => of::<v1::LedgerRecord>(),
        Key::IdRange(_) => of::<v1::IdRangeRecord>(),
        Key::Deletion(_) => of::<v1::DeletionIntent>(),
        Key::Bookie(_) => of::<v1::BookieRecord>(),
        Key::Broker(_) => of::<v1::BrokerRecord>(),
        Key::Cookie(_) => of::<v1::CookieRecord>(),
        Key::BundleOwner(..) => of::<v1::BundleOwnerRecord>(),
        Key::UnderReplicated(_) => of::<v1::UnderReplicatedRecord>(),
        Key::RepairLock(_) => of::<v1::LockRecord>(),
        Key::Token(_) => of::<v1::TokenRecord>(),
        Key::Grant(..) => of::<v1::GrantRecord>(),
        Key::Role(..) => of::<v1::RoleRecord>(),
        Key::Revocation(_) => of::<v1::RevocationRecord>(),
        Key::ClusterKey(_) => of::<v1::ClusterKeyRecord>(),
        Key::Forgotten(_) => of::<v1::ForgottenRecord>(),
        Key::AuditEnds => of::<v1::AuditEndsRecord>(),
        Key::Location(_) => of::<v1::LocationRecord>(),
        Key::Upload(_) => of::<v1::UploadRecord>(),
        Key::DyingObject(_) => of::<v1::DyingObjectRecord>(),
        Key::Backup(_) => of::<v1::BackupRecord>(),
        Key::OffloadTask(_) => of::<v1::OffloadTaskRecord>(),
        Key::Offloader(_) => of::<v1::OffloaderRecord>(),
        Key::RepairWorker(_) | Key::Schema(..) | Key::Cluster(_) | Key::Leader(_) => None,
    }
}

/// What comes first in every value, and is understood whatever the rest is.
#[derive(Clone, PartialEq, prost::Message)]
struct Versioning {
    #[prost(uint32, tag = "1")]
    format_version: u32,
}

/// Refuses a value that a newer build has written: to write over it would erase what this build
/// does not know. Damage is not judged here.
///
/// # Errors
/// `NewerFormat`.
pub fn check_known(stored: &Versioned) -> MetadataResult<()> {
    let Some((kind, newest)) = kind_at(&stored.key) else {
        return Ok(());
    };
    check_version(&stored.key, &stored.value, kind, newest)
}

fn check_version(key: &str, bytes: &[u8], kind: &'static str, newest: u32) -> MetadataResult<()> {
    match Versioning::decode(bytes) {
        Ok(value) if value.format_version > newest => Err(MetadataError::NewerFormat {
            key: key.to_owned(),
            kind,
            found: value.format_version,
            newest,
        }),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The bytes to store for a record.
#[must_use]
pub fn encode<R: Record>(record: R) -> Bytes {
    let value = v1::MetadataValue {
        format_version: record.version(),
        value: Some(record.into_value()),
    };
    value.encode_to_vec().into()
}

/// The record in a stored value.
///
/// # Errors
/// `Damaged`, with the key, when the bytes are not a record of this kind; `NewerFormat` when a
/// newer build has written it.
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
    check_version(key, bytes, R::NAME, R::NEWEST)?;
    // A store that several may write to: what a value costs is known before it is decoded.
    shape::check::<v1::MetadataValue>(bytes).map_err(|error| damaged(error.to_string()))?;
    let value = v1::MetadataValue::decode(bytes)
        .map_err(|error| damaged(format!("not a metadata value: {error}")))?;
    if value.format_version == 0 {
        return Err(damaged("it has no format version".to_owned()));
    }
    value
        .value
        .and_then(R::from_value)
        .ok_or_else(|| damaged(format!("it holds no {} record", R::NAME)))
}

#[cfg(test)]
mod tests;
