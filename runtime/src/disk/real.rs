//! The disk of the operating system, through std and a few safe system calls.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

use crate::disk::{Disk, DiskFile, DiskLock, DiskSpace, OpenOptions, SharedDisk};

/// The real disk.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl RealDisk {
    /// The real disk, ready to hand to a component.
    #[must_use]
    pub fn shared() -> SharedDisk {
        Arc::new(RealDisk)
    }

    /// Gives a file a second name on the same file system. `AlreadyExists` when there is a file of
    /// that name.
    pub fn link(&self, file: &Path, name: &Path) -> io::Result<()> {
        std::fs::hard_link(file, name)
    }

    /// How many names a file has, and its size.
    pub fn names(&self, path: &Path) -> io::Result<FileNames> {
        let metadata = std::fs::symlink_metadata(path)?;
        Ok(FileNames {
            count: metadata.nlink(),
            bytes: metadata.len(),
        })
    }
}

/// What keeps a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileNames {
    /// Its names in all directories of the file system.
    pub count: u64,
    /// Its size in bytes.
    pub bytes: u64,
}

#[derive(Debug)]
struct RealFile {
    file: File,
    direct: bool,
}

impl Disk for RealDisk {
    fn open(&self, path: &Path, options: OpenOptions) -> io::Result<Arc<dyn DiskFile>> {
        let mut std_options = File::options();
        std_options.read(true).write(true).create(options.create);
        if options.direct {
            let flag = i32::try_from(OFlags::DIRECT.bits()).map_err(io::Error::other)?;
            match std_options.clone().custom_flags(flag).open(path) {
                Ok(file) => return Ok(Arc::new(RealFile { file, direct: true })),
                // File systems without direct I/O (tmpfs before Linux 6.6, some overlays) say so
                // with EINVAL; the file then works through the page cache.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                Err(error) => return Err(error),
            }
        }
        let file = std_options.open(path)?;
        Ok(Arc::new(RealFile {
            file,
            direct: false,
        }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        // Missing ancestors are created from the top, and each parent is synced, because a
        // directory that vanishes in a crash takes synced files with it.
        let missing: Vec<&Path> = path
            .ancestors()
            .take_while(|ancestor| !ancestor.as_os_str().is_empty() && !ancestor.exists())
            .collect();
        if missing.is_empty() && !path.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        for directory in missing.into_iter().rev() {
            match std::fs::create_dir(directory) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
            self.sync_dir(parent_of(directory))?;
        }
        Ok(())
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        let mut paths = std::fs::read_dir(directory)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        Ok(paths)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_dir(&self, directory: &Path) -> io::Result<()> {
        File::open(directory)?.sync_all()
    }

    fn space(&self, path: &Path) -> io::Result<DiskSpace> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(DiskSpace {
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            available_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(path)
    }

    fn write_atomic(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let temporary = temporary_of(path)?;
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&temporary)?;
        file.write_all_at(content, 0)?;
        file.sync_all()?;
        drop(file);
        std::fs::rename(&temporary, path)?;
        self.sync_dir(parent_of(path))
    }

    fn lock_exclusive(&self, path: &Path) -> io::Result<DiskLock> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(DiskLock::new(file)),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl DiskFile for RealFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn write_all_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn is_direct(&self) -> bool {
        self.direct
    }
}

/// The directory that holds a path; `.` for a bare name.
pub(super) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The name under which the new content of a file is prepared: beside it, and hidden.
pub(super) fn temporary_of(path: &Path) -> io::Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(".tmp");
    Ok(path.with_file_name(temporary))
}
