//! RocksDB itself: batches, point reads, flush.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use aquifer_model::bytes_at::u64_at;
use aquifer_model::id::{EntryId, LedgerId};
use aquifer_runtime::disk::{Disk, OpenOptions, RealDisk};
use rocksdb::{ColumnFamily, DB, FlushOptions, ReadOptions, ReadTier, WriteBatch, WriteOptions};

use crate::config::BookieConfig;
use crate::journal::commit::{Committed, CommittedRecord};
use crate::journal::record::{RecordKind, ValueHead};
use crate::journal::replay::Loss;
use crate::ledger_state::LedgerMeta;
use crate::store::rocks::{keys, notes, options};
use crate::store::{ApplyTarget, LastEntry, StoreError};

/// What the operating system says of a disk, or of a share of it, that is used up.
const NO_SPACE: [&str; 2] = ["No space left on device", "Disk quota exceeded"];

impl From<rocksdb::Error> for StoreError {
    fn from(error: rocksdb::Error) -> StoreError {
        // Damaged bytes stay damaged: another read gets the same, so it is told apart.
        match error.kind() {
            rocksdb::ErrorKind::Corruption => StoreError::Damaged(error.into_string()),
            // RocksDB's library keeps the kind to itself.
            _ if NO_SPACE.iter().any(|words| error.as_ref().contains(words)) => {
                StoreError::Full(error.into_string())
            }
            rocksdb::ErrorKind::IOError if is_unreadable(error.as_ref()) => {
                StoreError::Damaged(error.into_string())
            }
            _ => StoreError::Failed(format!("RocksDB: {error}")),
        }
    }
}

/// Whether an I/O error says that a stored place cannot be read: a bad sector, a checksum of the
/// file system, a file that is gone. Everything else, such as too few file handles, passes.
fn is_unreadable(message: &str) -> bool {
    // As RocksDB words them.
    const READING: [&str; 3] = ["While pread", "read failed", "for random read"];
    // EIO, ENOENT, EUCLEAN, EBADMSG, ENODATA.
    const GONE: [&str; 5] = [
        "Input/output error",
        "No such file or directory",
        "Structure needs cleaning",
        "Bad message",
        "No data available",
    ];
    let has = |parts: &[&str]| parts.iter().any(|part| message.contains(part));
    has(&READING) && has(&GONE)
}

/// An open database.
pub struct Db {
    pub(super) rocks: DB,
    /// Values of at least this size lie in blob files, where each is a read of its own.
    pub(super) blob_bytes_min: usize,
    /// How large blob files may get.
    pub(super) blob_file_bytes: u64,
    /// No compaction runs: one of its files is damaged.
    is_damaged: bool,
    /// Nothing begins in the background any more.
    is_cancelled: AtomicBool,
}

/// Changes that RocksDB takes as one.
pub struct Batch<'a> {
    db: &'a Db,
    batch: WriteBatch,
}

/// The directory of RocksDB below the ledger directory.
#[must_use]
pub fn directory(config: &BookieConfig) -> PathBuf {
    config.ledger_dir.join("rocksdb")
}

impl Db {
    /// Opens the database; `create` only for a new bookie.
    pub fn open(config: &BookieConfig, create: bool) -> Result<Db, StoreError> {
        Db::open_as(config, create, None)
    }

    /// Opens a database some of whose files are damaged: it serves what is whole and takes writes,
    /// and nothing is compacted.
    pub fn open_damaged(config: &BookieConfig) -> Result<Db, StoreError> {
        match Db::open_as(config, false, Some(true)) {
            // A file that cannot even be opened stops the other way.
            Err(StoreError::Damaged(_)) => Db::open_as(config, false, Some(false)),
            opened => opened,
        }
    }

    /// Opens a copy of the database in another directory, to be read.
    pub(super) fn open_copy(config: &BookieConfig, path: &Path) -> Result<Db, StoreError> {
        let mut database = options::database(config, false, supports_direct_io(path))?;
        database.set_paranoid_checks(false);
        let families = options::families(config, &options::cache(config), false);
        let rocks = DB::open_cf_descriptors_read_only(&database, path, families, false)?;
        Ok(Db {
            rocks,
            blob_bytes_min: config.blob_bytes_min,
            blob_file_bytes: config.blob_file_bytes,
            is_damaged: true,
            is_cancelled: AtomicBool::default(),
        })
    }

    /// `damaged`: that it is, and whether RocksDB is to look at its files when it opens.
    fn open_as(
        config: &BookieConfig,
        create: bool,
        damaged: Option<bool>,
    ) -> Result<Db, StoreError> {
        let path = directory(config);
        if create {
            RealDisk
                .create_dir_all(&path)
                .map_err(|error| StoreError::Failed(error.to_string()))?;
        } else if !path.join("CURRENT").exists() {
            return Err(StoreError::Damaged(format!(
                "{} has no CURRENT file: the store is missing",
                path.display()
            )));
        }
        let direct = supports_direct_io(&path);
        let cache = options::cache(config);
        let mut database = options::database(config, create, direct)?;
        database.set_paranoid_checks(damaged.unwrap_or(true));
        let families = options::families(config, &cache, damaged.is_none());
        let rocks = DB::open_cf_descriptors(&database, &path, families)?;
        let db = Db {
            rocks,
            blob_bytes_min: config.blob_bytes_min,
            blob_file_bytes: config.blob_file_bytes,
            is_damaged: damaged.is_some(),
            is_cancelled: AtomicBool::default(),
        };
        // Every later use of the families relies on this.
        db.family(keys::ENTRIES)?;
        db.family(keys::LEDGERS)?;
        Ok(db)
    }

    /// Whether it was opened although files are damaged.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.is_damaged
    }

    pub(super) fn family(&self, name: &str) -> Result<&ColumnFamily, StoreError> {
        self.rocks
            .cf_handle(name)
            .ok_or_else(|| StoreError::Damaged(format!("column family {name} is missing")))
    }

    /// The last commit that is in files, whatever is in memory. All families are flushed up to the
    /// same write, so everything up to this commit is durable (H1).
    pub fn persisted(&self) -> Result<u64, StoreError> {
        self.applied_in(ReadTier::Persisted)
    }

    fn applied_in(&self, tier: ReadTier) -> Result<u64, StoreError> {
        let mut read = ReadOptions::default();
        read.set_read_tier(tier);
        match self.rocks.get_opt(keys::APPLIED, &read)? {
            None => Ok(0),
            Some(bytes) if bytes.len() == 8 => Ok(u64_at(&bytes, 0)),
            Some(_) => Err(StoreError::Damaged("the applied commit".to_owned())),
        }
    }

    /// The stored loss. What cannot be read among damaged files is still one.
    pub fn loss(&self) -> Result<Option<Loss>, StoreError> {
        match self.rocks.get(keys::LOSS).map_err(StoreError::from) {
            Ok(stored) => Ok(stored.map(|bytes| notes::decode_loss(&bytes))),
            Err(StoreError::Damaged(_)) if self.is_damaged => Ok(Some(Loss::unknown())),
            Err(error) => Err(error),
        }
    }

    /// Stores or clears the loss durably, with up to where everything is in when that is given.
    pub fn set_loss(&self, loss: Option<&Loss>, applied: Option<u64>) -> Result<(), StoreError> {
        let mut batch = self.batch();
        match loss {
            Some(loss) => batch.batch.put(keys::LOSS, notes::encode_loss(loss)),
            None => batch.batch.delete(keys::LOSS),
        }
        if let Some(applied) = applied {
            batch.set_applied(applied);
        }
        batch.write()?;
        self.flush()
    }

    /// Up to where the scrubber had come: everything of smaller ledgers, and smaller entries of
    /// this one, was checked.
    pub fn scrubbed(&self) -> Result<Option<(LedgerId, EntryId)>, StoreError> {
        let stored = self.rocks.get(keys::SCRUBBED)?;
        // A position that cannot be read costs a pass from the beginning.
        Ok(stored
            .filter(|bytes| bytes.len() == 16)
            .map(|bytes| (LedgerId(u64_at(&bytes, 0)), EntryId(u64_at(&bytes, 8)))))
    }

    /// Notes up to where the scrubber has come. It becomes durable with a later flush.
    pub fn set_scrubbed(&self, (ledger, entry): (LedgerId, EntryId)) -> Result<(), StoreError> {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&ledger.0.to_le_bytes());
        bytes[8..].copy_from_slice(&entry.0.to_le_bytes());
        let mut batch = self.batch();
        batch.batch.put(keys::SCRUBBED, bytes);
        batch.write()
    }

    /// Starts a batch.
    pub fn batch(&self) -> Batch<'_> {
        Batch {
            db: self,
            batch: WriteBatch::default(),
        }
    }

    /// Starts a batch of about this many bytes, which then need not move while it grows.
    fn batch_for(&self, bytes: usize) -> Batch<'_> {
        Batch {
            db: self,
            batch: WriteBatch::with_capacity_bytes(bytes),
        }
    }

    /// Flushes everything and waits until it is durable.
    pub fn flush(&self) -> Result<(), StoreError> {
        let mut flush = FlushOptions::default();
        flush.set_wait(true);
        let families = [
            self.family("default")?,
            self.family(keys::LEDGERS)?,
            self.family(keys::ENTRIES)?,
        ];
        Ok(self.rocks.flush_cfs_opt(&families, &flush)?)
    }

    /// The last entry of a ledger.
    pub fn last_entry(&self, ledger: LedgerId) -> Result<Option<LastEntry>, StoreError> {
        let mut read = ReadOptions::default();
        read.set_iterate_lower_bound(keys::entry_key(ledger, EntryId::FIRST));
        read.set_iterate_upper_bound(keys::ledger_end(ledger));
        let mut iterator = self
            .rocks
            .raw_iterator_cf_opt(self.family(keys::ENTRIES)?, read);
        iterator.seek_to_last();
        let found = iterator.item().and_then(|(key, value)| {
            let head = ValueHead::split(value).map(|(head, _)| head);
            Some(LastEntry {
                entry: keys::entry_of(key)?,
                last_add_confirmed: head.and_then(|head| head.last_add_confirmed),
            })
        });
        iterator.status()?;
        Ok(found)
    }

    /// The stored value of an entry.
    pub fn entry(&self, ledger: LedgerId, entry: EntryId) -> Result<Option<Vec<u8>>, StoreError> {
        let key = keys::entry_key(ledger, entry);
        Ok(self.rocks.get_cf(self.family(keys::ENTRIES)?, key)?)
    }

    /// Cancels what runs in the background. Nothing is flushed or compacted any more.
    pub fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Release);
        self.rocks.cancel_all_background_work(false);
    }

    /// Whether that was asked for: what compactions did is then not known.
    pub(super) fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Acquire)
    }

    /// How many compactions run.
    #[cfg(test)]
    pub fn compactions(&self) -> Result<u64, StoreError> {
        let running = "rocksdb.num-running-compactions";
        Ok(self.rocks.property_int_value(running)?.unwrap_or(0))
    }

    /// Keeps files that are not needed any more, so that a test can copy a consistent state.
    #[cfg(test)]
    pub fn keep_files(&self) -> Result<(), StoreError> {
        Ok(self.rocks.disable_file_deletions()?)
    }
}

impl ApplyTarget for Db {
    fn applied(&self) -> Result<u64, StoreError> {
        self.applied_in(ReadTier::All)
    }

    fn ledger(&self, ledger: LedgerId) -> Result<Option<LedgerMeta>, StoreError> {
        let found = self
            .rocks
            .get_pinned_cf(self.family(keys::LEDGERS)?, keys::ledger_key(ledger))?;
        found
            .map(|bytes| {
                LedgerMeta::decode(&bytes)
                    .map_err(|error| StoreError::Damaged(format!("ledger {ledger}: {error}")))
            })
            .transpose()
    }

    fn apply(&self, commits: &[Committed], applied: u64) -> Result<(), StoreError> {
        let bytes = commits.iter().map(|commit| commit.block.bytes().len());
        let mut batch = self.batch_for(bytes.sum());
        for commit in commits {
            for record in &commit.records {
                batch.put_record(record, commit.value(record))?;
            }
        }
        batch.set_applied(applied);
        batch.write()
    }
}

impl Batch<'_> {
    /// Stores what a record of a commit says.
    fn put_record(&mut self, record: &CommittedRecord, value: &[u8]) -> Result<(), StoreError> {
        match record.kind {
            RecordKind::Add(entry) | RecordKind::RecoveryAdd(entry) => {
                self.put_entry(record.ledger, entry, value)?;
            }
            RecordKind::Delete => self.delete_entries(record.ledger)?,
            RecordKind::Fence | RecordKind::Lac(_) => {}
        }
        match &record.meta {
            Some(meta) => self.put_meta(record.ledger, meta),
            None => Ok(()),
        }
    }

    /// Stores an entry.
    pub fn put_entry(
        &mut self,
        ledger: LedgerId,
        entry: EntryId,
        value: &[u8],
    ) -> Result<(), StoreError> {
        let family = self.db.family(keys::ENTRIES)?;
        self.batch
            .put_cf(family, keys::entry_key(ledger, entry), value);
        Ok(())
    }

    /// Stores a ledger's record.
    pub fn put_meta(&mut self, ledger: LedgerId, meta: &LedgerMeta) -> Result<(), StoreError> {
        let family = self.db.family(keys::LEDGERS)?;
        self.batch
            .put_cf(family, keys::ledger_key(ledger), meta.encode());
        Ok(())
    }

    /// Deletes all entries of a ledger.
    pub fn delete_entries(&mut self, ledger: LedgerId) -> Result<(), StoreError> {
        let family = self.db.family(keys::ENTRIES)?;
        self.batch.delete_range_cf(
            family,
            keys::entry_key(ledger, EntryId::FIRST),
            keys::ledger_end(ledger),
        );
        Ok(())
    }

    /// Stores something that the database says about itself.
    pub(super) fn put_position(&mut self, key: &[u8], value: &[u8]) {
        self.batch.put(key, value);
    }

    /// Stores which files are damaged, or that none is any more.
    pub fn set_damage(&mut self, damage: Option<&[u8]>) {
        match damage {
            Some(damage) => self.batch.put(keys::DAMAGE, damage),
            None => self.batch.delete(keys::DAMAGE),
        }
    }

    /// Notes that everything up to this commit is in.
    pub fn set_applied(&mut self, sequence: u64) {
        self.batch.put(keys::APPLIED, sequence.to_le_bytes());
    }

    /// Writes the batch, without RocksDB's own log: the journal is the log.
    pub fn write(self) -> Result<(), StoreError> {
        let mut write = WriteOptions::default();
        write.disable_wal(true);
        Ok(self.db.rocks.write_opt(self.batch, &write)?)
    }
}

/// Whether the file system takes direct I/O (some overlays and older tmpfs do not).
fn supports_direct_io(directory: &Path) -> bool {
    let probe = directory.join(".direct-io-probe");
    let options = OpenOptions {
        create: true,
        direct: true,
    };
    let direct = RealDisk
        .open(&probe, options)
        .is_ok_and(|file| file.is_direct());
    // Best effort: an empty probe file does no harm.
    let _ = RealDisk.remove(&probe);
    direct
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_cannot_be_read_is_told_from_errors_that_pass() {
        let unreadable = [
            "IO error: While pread offset 4096 len 5: /x/000012.sst: Input/output error",
            "IO error: While pread offset 0 len 9: /x/000012.blob: Structure needs cleaning",
            "IO error: No such file or directory: While open a file for random read: \
             /x/000012.blob: No such file or directory",
        ];
        assert!(unreadable.into_iter().all(is_unreadable));
        let others = [
            "IO error: While open a file for random read: /x/000012.blob: Too many open files",
            "IO error: No space left on device: While appending to file: /x/000013.sst: No space \
             left on device",
            "IO error: While fdatasync: /x/000013.sst: Input/output error",
        ];
        assert!(!others.into_iter().any(is_unreadable));
    }
}
