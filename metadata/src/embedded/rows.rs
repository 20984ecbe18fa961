//! The tables of the file and the form of a row (`docs/formats.md`). A row carries a checksum of
//! its own, because redb verifies pages only when it repairs or checks a file, and a value that
//! changed at rest must not be taken for metadata.

use aquifer_model::checksum;
use bytes::Bytes;
use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, Table, TableDefinition,
    WriteTransaction,
};

use crate::error::{MetadataError, MetadataResult};
use crate::store::{Revision, Versioned};

/// The version of the tables; another one is refused.
const FORMAT_VERSION: u64 = 1;
const META_FORMAT: &str = "format_version";
const META_REVISION: &str = "revision";

/// Created at, modified at, session or 0, checksum, value.
type Row<'a> = (u64, u64, u64, u32, &'a [u8]);

const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
const ENTRIES: TableDefinition<'static, &str, Row<'static>> = TableDefinition::new("entries");
/// Which keys go with a session.
const EPHEMERAL: TableDefinition<'static, (u64, &str), ()> = TableDefinition::new("ephemeral");

/// A stored value with what belongs to it.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) created: u64,
    pub(super) modified: u64,
    pub(super) session: u64,
    pub(super) value: Bytes,
}

fn checksum(key: &str, created: u64, modified: u64, session: u64, value: &[u8]) -> u32 {
    let mut sum = checksum::crc32c(key.as_bytes());
    for number in [created, modified, session] {
        sum = checksum::crc32c_append(sum, &number.to_le_bytes());
    }
    checksum::crc32c_append(sum, value)
}

fn decode(key: &str, row: Row<'_>) -> MetadataResult<Stored> {
    let (created, modified, session, sum, value) = row;
    if checksum(key, created, modified, session, value) != sum {
        return Err(MetadataError::Damaged {
            key: key.to_owned(),
            reason: "its checksum is wrong".to_owned(),
        });
    }
    Ok(Stored {
        created,
        modified,
        session,
        value: Bytes::copy_from_slice(value),
    })
}

/// The tables, open for a write transaction.
pub(super) struct Tables<'txn> {
    meta: Table<'txn, &'static str, u64>,
    entries: Table<'txn, &'static str, Row<'static>>,
    ephemeral: Table<'txn, (u64, &'static str), ()>,
}

impl<'txn> Tables<'txn> {
    pub(super) fn open(transaction: &'txn WriteTransaction) -> Result<Tables<'txn>, redb::Error> {
        Ok(Tables {
            meta: transaction.open_table(META)?,
            entries: transaction.open_table(ENTRIES)?,
            ephemeral: transaction.open_table(EPHEMERAL)?,
        })
    }

    pub(super) fn get(&self, key: &str) -> Result<MetadataResult<Option<Stored>>, redb::Error> {
        let row = self.entries.get(key)?;
        Ok(row.map(|row| decode(key, row.value())).transpose())
    }

    pub(super) fn put(&mut self, key: &str, stored: &Stored) -> Result<(), redb::Error> {
        let Stored {
            created,
            modified,
            session,
            value,
        } = stored;
        let sum = checksum(key, *created, *modified, *session, value);
        let row = (*created, *modified, *session, sum, value.as_ref());
        self.entries.insert(key, row)?;
        if *session != 0 {
            self.ephemeral.insert((*session, key), ())?;
        }
        Ok(())
    }

    /// Removes a key, and tells whether it was there.
    pub(super) fn delete(&mut self, key: &str) -> Result<bool, redb::Error> {
        Ok(self.entries.remove(key)?.is_some())
    }

    /// Takes a key out of the list of a session.
    pub(super) fn detach(&mut self, session: u64, key: &str) -> Result<(), redb::Error> {
        if session != 0 {
            self.ephemeral.remove((session, key))?;
        }
        Ok(())
    }

    /// The keys of a session, or of all of them.
    pub(super) fn ephemeral_keys(
        &self,
        session: Option<u64>,
    ) -> Result<Vec<(u64, String)>, redb::Error> {
        let first = session.unwrap_or(0);
        let last = session.unwrap_or(u64::MAX);
        let mut keys = Vec::new();
        for row in self.ephemeral.range((first, "")..)? {
            let (key, _) = row?;
            let (session, key) = key.value();
            if session > last {
                break;
            }
            keys.push((session, key.to_owned()));
        }
        Ok(keys)
    }

    pub(super) fn set_revision(&mut self, revision: u64) -> Result<(), redb::Error> {
        self.meta.insert(META_REVISION, revision)?;
        Ok(())
    }
}

/// Begins a durable change. Two-phase commits cost a second sync, and are why opening after a
/// crash needs no repair and cannot mistake a damaged last commit for a torn one.
pub(super) fn begin(database: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    Ok(transaction)
}

/// Writes the tables of an empty store.
pub(super) fn create(database: &Database) -> Result<(), redb::Error> {
    let transaction = begin(database)?;
    {
        let mut tables = Tables::open(&transaction)?;
        tables.meta.insert(META_FORMAT, FORMAT_VERSION)?;
        tables.set_revision(0)?;
    }
    transaction.commit()?;
    Ok(())
}

/// Checks that the tables are those of this version.
pub(super) fn check(database: &Database) -> Result<MetadataResult<()>, redb::Error> {
    let transaction = database.begin_read()?;
    let version = transaction.open_table(META)?.get(META_FORMAT)?;
    let version = version.map_or(0, |version| version.value());
    if version == FORMAT_VERSION {
        return Ok(Ok(()));
    }
    Ok(Err(MetadataError::Damaged {
        key: "the store's file".to_owned(),
        reason: format!("format version {version}; this build reads {FORMAT_VERSION}"),
    }))
}

/// The revision of the last commit.
pub(super) fn revision(database: &Database) -> Result<Revision, redb::Error> {
    revision_of(&database.begin_read()?)
}

/// Removes the keys of all sessions, which ended with their process.
pub(super) fn drop_ephemeral(database: &Database) -> Result<Revision, redb::Error> {
    let Revision(mut current) = revision(database)?;
    let transaction = begin(database)?;
    {
        let mut tables = Tables::open(&transaction)?;
        let left = tables.ephemeral_keys(None)?;
        if left.is_empty() {
            return Ok(Revision(current));
        }
        for (session, key) in left {
            tables.delete(&key)?;
            tables.detach(session, &key)?;
        }
        current += 1;
        tables.set_revision(current)?;
    }
    transaction.commit()?;
    Ok(Revision(current))
}

/// The revision that a read transaction sees.
pub(super) fn revision_of(transaction: &ReadTransaction) -> Result<Revision, redb::Error> {
    let revision = transaction.open_table(META)?.get(META_REVISION)?;
    Ok(Revision(revision.map_or(0, |revision| revision.value())))
}

/// Reads one key.
pub(super) fn get(
    transaction: &ReadTransaction,
    key: &str,
) -> Result<MetadataResult<Option<Versioned>>, redb::Error> {
    let row = transaction.open_table(ENTRIES)?.get(key)?;
    Ok(row
        .map(|row| decode(key, row.value()).map(|stored| versioned(key, stored)))
        .transpose())
}

/// Reads the keys that begin with `prefix` and come after `after`, until one of the limits, and
/// tells whether there are more. At least one key is read however large it is.
pub(super) fn range(
    transaction: &ReadTransaction,
    prefix: &str,
    after: Option<&str>,
    keys_max: usize,
    bytes_max: usize,
) -> Result<MetadataResult<(Vec<Versioned>, bool)>, redb::Error> {
    let mut items = Vec::new();
    let mut bytes = 0;
    let from = after.map_or(prefix, |after| after.max(prefix));
    for row in transaction.open_table(ENTRIES)?.range(from..)? {
        let (key, row) = row?;
        let key = key.value();
        if Some(key) == after {
            continue;
        }
        if !key.starts_with(prefix) {
            break;
        }
        if items.len() >= keys_max || bytes >= bytes_max {
            return Ok(Ok((items, true)));
        }
        match decode(key, row.value()) {
            Ok(stored) => {
                bytes += key.len() + stored.value.len();
                items.push(versioned(key, stored));
            }
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok((items, false)))
}

fn versioned(key: &str, stored: Stored) -> Versioned {
    Versioned {
        key: key.to_owned(),
        value: stored.value,
        revision: Revision(stored.modified),
    }
}
