//! Files, behind a trait so that the journal, the stores and the node lock run on a real disk or
//! on a simulated one that crashes, tears writes and fills up.
//!
//! The contract, which both implementations keep and the tests check:
//! - What was written survives a crash only after a [`DiskFile::sync_data`] that returned `Ok`.
//!   Before that each 512-byte sector of a write may be there or not.
//! - After a failed `sync_data` the unsynced writes may be gone although they still read back;
//!   a later success says nothing about them. The caller must give up the file.
//! - A created, renamed or removed name survives only after [`Disk::sync_dir`] of its directory.
//! - [`Disk::create_dir_all`] and [`Disk::write_atomic`] are durable when they return.
//!
//! All calls block: they belong on threads of their own, not on the async runtime.

mod aligned;
mod real;
mod sim;

#[cfg(test)]
mod contract;

use std::any::Any;
use std::fmt;
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use aligned::{AlignedBuffer, BLOCK_BYTES};
pub use real::{FileNames, RealDisk};
pub use sim::{FaultKind, SECTOR_BYTES, SimDisk};

/// How to open a file. It is always opened for reading and writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpenOptions {
    /// Create the file when it does not exist.
    pub create: bool,
    /// Bypass the page cache where the file system allows it. Offsets, lengths and buffers of
    /// reads and writes must then be multiples of [`BLOCK_BYTES`] ([`AlignedBuffer`]).
    pub direct: bool,
}

/// Room on the file system of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// Size of the file system.
    pub total_bytes: u64,
    /// What an unprivileged process may still write.
    pub available_bytes: u64,
}

/// A disk that components hold and share.
pub type SharedDisk = Arc<dyn Disk>;

/// The operations on names.
pub trait Disk: Send + Sync + Debug + 'static {
    /// Opens a file for reading and writing.
    fn open(&self, path: &Path, options: OpenOptions) -> io::Result<Arc<dyn DiskFile>>;

    /// Creates a directory and its parents, durably. Fine when it exists.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// The files and directories directly in a directory, sorted, as full paths.
    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>>;

    /// Whether a file or directory has this name.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Renames a file, replacing what had the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, directory: &Path) -> io::Result<()>;

    /// Room on the file system that holds an existing path.
    fn space(&self, path: &Path) -> io::Result<DiskSpace>;

    /// The whole content of a small file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// Replaces a small file as a whole: after a crash it has the old content or the new, and the
    /// new once this returned.
    fn write_atomic(&self, path: &Path, content: &[u8]) -> io::Result<()>;

    /// Takes the exclusive lock of a file, which is created if need be. `WouldBlock` when
    /// another process, or another holder in this one, has it.
    fn lock_exclusive(&self, path: &Path) -> io::Result<DiskLock>;
}

/// The operations on an open file. Offsets are absolute, so that one handle serves many threads.
pub trait DiskFile: Send + Sync + Debug {
    /// Reads up to `buf.len()` bytes; 0 at the end of the file.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Fills `buf`; `UnexpectedEof` when the file ends before.
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.read_at(advanced(offset, filled)?, &mut buf[filled..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes all of `buf`, growing the file if need be. On an error any part may be written.
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> io::Result<()>;

    /// Makes the content, and the length, durable.
    fn sync_data(&self) -> io::Result<()>;

    /// Cuts the file, or extends it with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// The length of the file.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Whether the page cache is bypassed, so that alignment is required.
    fn is_direct(&self) -> bool;
}

/// A held lock; it is released on drop, and when the process ends.
pub struct DiskLock {
    _held: Box<dyn Any + Send + Sync>,
}

impl DiskLock {
    fn new(held: impl Any + Send + Sync) -> DiskLock {
        DiskLock {
            _held: Box::new(held),
        }
    }
}

impl fmt::Debug for DiskLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DiskLock")
    }
}

fn advanced(offset: u64, by: usize) -> io::Result<u64> {
    u64::try_from(by)
        .ok()
        .and_then(|by| offset.checked_add(by))
        .ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))
}
