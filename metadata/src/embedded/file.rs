//! The file: creation that a crash cannot leave half done, opening with verification, and the
//! translation of everything that can go wrong.

use std::fmt;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aquifer_runtime::disk::{DiskFile, DiskLock, OpenOptions, SharedDisk};
use redb::{Builder, Database, StorageBackend};

use crate::embedded::options::EmbeddedOptions;
use crate::embedded::rows;
use crate::error::{MetadataError, MetadataResult};
use crate::store::Revision;

/// Where the store is and how it is opened.
#[derive(Debug)]
pub(super) struct StoreFile {
    path: PathBuf,
    options: EmbeddedOptions,
    disk: SharedDisk,
    /// Set for good when a sync failed: what the file then reads back may not be on the disk.
    sync_failed: Arc<AtomicBool>,
    /// Held until the store's thread has closed the file: a store that is opened again too early
    /// must not write beside the old one.
    _lock: DiskLock,
}

impl StoreFile {
    /// Takes the lock of a store.
    pub(super) fn lock(
        path: PathBuf,
        options: EmbeddedOptions,
        disk: SharedDisk,
    ) -> MetadataResult<StoreFile> {
        let lock = disk
            .lock_exclusive(&path.with_extension("lock"))
            .map_err(|error| {
                let reason = match error.kind() {
                    io::ErrorKind::WouldBlock => "it is open already: close it first".to_owned(),
                    _ => error.to_string(),
                };
                MetadataError::Unavailable(format!("{}: {reason}", path.display()))
            })?;
        Ok(StoreFile {
            path,
            options,
            disk,
            sync_failed: Arc::new(AtomicBool::new(false)),
            _lock: lock,
        })
    }

    /// Whether the file can no longer be trusted to hold what it shows.
    pub(super) fn sync_failed(&self) -> bool {
        self.sync_failed.load(Ordering::SeqCst)
    }

    /// Opens the file, creating it first if need be, and removes what sessions left behind.
    pub(super) fn open(&self) -> MetadataResult<(Database, Revision)> {
        let unavailable = |error: io::Error| self.unavailable(&error);
        if !self.disk.exists(&self.path).map_err(unavailable)? {
            self.create()?;
        }
        let database = self.open_existing()?;
        let revision = without_panic(|| rows::drop_ephemeral(&database).map_err(from_redb))?;
        Ok((database, revision))
    }

    /// Opens the file again after a failed commit; sessions keep their keys.
    pub(super) fn reopen(&self) -> MetadataResult<(Database, Revision)> {
        let database = self.open_existing()?;
        let revision = without_panic(|| rows::revision(&database).map_err(from_redb))?;
        Ok((database, revision))
    }

    /// Prepares an empty store under another name, so that the real name never shows half of one.
    fn create(&self) -> MetadataResult<()> {
        let unavailable = |error: io::Error| self.unavailable(&error);
        let preparing = self.path.with_extension("new");
        if self.disk.exists(&preparing).map_err(unavailable)? {
            self.disk.remove(&preparing).map_err(unavailable)?;
        }
        let database = self.open_database(&preparing, true)?;
        without_panic(|| rows::create(&database).map_err(from_redb))?;
        drop(database);
        self.disk
            .rename(&preparing, &self.path)
            .map_err(unavailable)?;
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        self.disk.sync_dir(directory).map_err(unavailable)
    }

    fn open_existing(&self) -> MetadataResult<Database> {
        let database = self.open_database(&self.path, false)?;
        without_panic(|| rows::check(&database).map_err(from_redb)?)?;
        Ok(database)
    }

    fn open_database(&self, path: &Path, create: bool) -> MetadataResult<Database> {
        let unavailable = |error: io::Error| self.unavailable(&error);
        let options = OpenOptions {
            create,
            direct: false,
        };
        let file = self.disk.open(path, options).map_err(unavailable)?;
        let len = file.len().map_err(unavailable)?;
        if len == 0 && !create {
            return Err(MetadataError::Damaged {
                key: path.display().to_string(),
                reason: "the file is empty".to_owned(),
            });
        }
        let backend = Backend {
            file,
            sync_failed: Arc::clone(&self.sync_failed),
        };
        let mut builder = Builder::new();
        builder
            .set_cache_size(self.options.cache_bytes)
            .set_check_integrity_on_open(len > 0 && len <= self.options.verify_bytes_max);
        without_panic(|| {
            builder
                .create_with_backend(backend)
                .map_err(|error| from_redb(error.into()))
        })
    }

    fn unavailable(&self, error: &io::Error) -> MetadataError {
        MetadataError::Unavailable(format!("{}: {error}", self.path.display()))
    }
}

/// redb's view of a file of the runtime's disk.
struct Backend {
    file: Arc<dyn DiskFile>,
    sync_failed: Arc<AtomicBool>,
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.fmt(f)
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let synced = self.file.sync_data();
        if synced.is_err() {
            self.sync_failed.store(true, Ordering::SeqCst);
        }
        synced
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(offset, data)
    }
}

/// What an error of redb means to a caller whose change was not committed.
pub(super) fn from_redb(error: redb::Error) -> MetadataError {
    let damaged = |reason: String| MetadataError::Damaged {
        key: "the store's file".to_owned(),
        reason,
    };
    match error {
        redb::Error::Corrupted(reason) => damaged(reason),
        redb::Error::UpgradeRequired(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TypeDefinitionChanged { .. }
        | redb::Error::TableDoesNotExist(_)
        | redb::Error::TableIsMultimap(_) => damaged(error.to_string()),
        redb::Error::Io(error)
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            damaged(error.to_string())
        }
        other => MetadataError::Unavailable(other.to_string()),
    }
}

/// Runs work on the file. redb trusts its pages and may panic on damaged ones; here that is an
/// error like any other. The state of the database after a panic is not used again.
pub(super) fn without_panic<T>(work: impl FnOnce() -> MetadataResult<T>) -> MetadataResult<T> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(MetadataError::Damaged {
            key: "the store's file".to_owned(),
            reason: "its pages contradict each other".to_owned(),
        })
    })
}
