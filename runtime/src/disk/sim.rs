//! A disk in memory that fails like a real one: it loses what was not synced, tears writes at
//! sector boundaries, lies after a failed sync, fills up and flips bits.
//!
//! It is stricter than most file systems where the contract of the parent module allows it: a
//! crash forgets every change of a directory that was not followed by `sync_dir`, even when the
//! file itself was synced. Directories themselves are durable when created.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::disk::real::{parent_of, temporary_of};
use crate::disk::{Disk, DiskFile, DiskLock, DiskSpace, OpenOptions, SharedDisk, advanced};
use crate::rng::Rng;

/// What a crash tears: a sector is written as a whole or not at all.
pub const SECTOR_BYTES: usize = 512;

/// A fault to inject into a coming operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// A read fails.
    ReadError,
    /// A write fails; a prefix of it may have been written.
    WriteError,
    /// A sync fails and the unsynced writes of the file are lost, although they still read back
    /// and the next sync succeeds, as Linux behaves.
    SyncError,
    /// A write or extension finds the disk full.
    NoSpace,
}

/// A simulated disk; clones share it.
#[derive(Debug, Clone, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

type Inode = Arc<Mutex<FileState>>;

#[derive(Debug)]
struct State {
    /// What names mean now.
    names: BTreeMap<PathBuf, Inode>,
    /// What names would mean after a crash.
    durable_names: BTreeMap<PathBuf, Inode>,
    directories: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
    /// Faults with the number of matching operations that still succeed before them.
    faults: Vec<(FaultKind, u64)>,
    space_bytes: u64,
    /// Handles of an earlier life of the machine are dead.
    life: u64,
}

#[derive(Debug, Default)]
struct FileState {
    /// What reads return.
    current: Vec<u8>,
    /// What a crash cannot take away.
    synced: Vec<u8>,
    /// What happened since, in order.
    unsynced: Vec<Change>,
}

#[derive(Debug)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    SetLen(usize),
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    inode: Inode,
    life: u64,
    direct: bool,
}

struct HeldLock {
    disk: SimDisk,
    path: PathBuf,
    life: u64,
}

impl Default for State {
    fn default() -> State {
        State {
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            directories: BTreeSet::from([PathBuf::from("/"), PathBuf::from(".")]),
            locks: BTreeSet::new(),
            faults: Vec::new(),
            space_bytes: u64::MAX,
            life: 0,
        }
    }
}

impl SimDisk {
    /// An empty disk without limits or faults.
    #[must_use]
    pub fn new() -> SimDisk {
        SimDisk::default()
    }

    /// This disk, ready to hand to a component.
    #[must_use]
    pub fn shared(&self) -> SharedDisk {
        Arc::new(self.clone())
    }

    /// The machine loses power. Each unsynced write is kept, dropped or torn at sector
    /// granularity; unsynced names are forgotten; locks are released; open handles are dead.
    pub fn crash(&self, rng: &dyn Rng) {
        let mut state = self.state.lock();
        state.life += 1;
        state.names = state.durable_names.clone();
        state.locks.clear();
        state.faults.clear();
        for inode in state.names.values() {
            inode.lock().crash(rng);
        }
    }

    /// Makes an operation of this kind fail, after `after_n` more of them have succeeded.
    pub fn fail_next(&self, kind: FaultKind, after_n: u64) {
        self.state.lock().faults.push((kind, after_n));
    }

    /// Sets the size of the disk; files may already use more.
    pub fn set_space_bytes(&self, bytes: u64) {
        self.state.lock().space_bytes = bytes;
    }

    /// Flips one bit of a file at rest, now and after crashes.
    pub fn flip_bit(&self, path: &Path, offset: u64, bit: u8) -> io::Result<()> {
        let inode = self.state.lock().inode(path)?;
        let mut file = inode.lock();
        let offset = index(offset)?;
        let mask = 1 << (bit % 8);
        let byte = file
            .current
            .get_mut(offset)
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        *byte ^= mask;
        if let Some(byte) = file.synced.get_mut(offset) {
            *byte ^= mask;
        }
        Ok(())
    }
}

impl State {
    fn inode(&self, path: &Path) -> io::Result<Inode> {
        self.names
            .get(path)
            .cloned()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn require_directory(&self, path: &Path) -> io::Result<()> {
        if self.directories.contains(path) {
            Ok(())
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    /// Counts an operation against the faults, and tells whether it has to fail.
    fn strikes(&mut self, kind: FaultKind) -> bool {
        let mut struck = None;
        for (at, (fault, remaining)) in self.faults.iter_mut().enumerate() {
            if *fault == kind {
                match remaining.checked_sub(1) {
                    Some(left) => *remaining = left,
                    None => struck = struck.or(Some(at)),
                }
            }
        }
        struck.map(|at| self.faults.remove(at)).is_some()
    }

    fn used_bytes(&self) -> u64 {
        self.names
            .values()
            .map(|inode| u64::try_from(inode.lock().current.len()).unwrap_or(u64::MAX))
            .fold(0, u64::saturating_add)
    }

    /// Fails when a file may not grow from one length to another.
    fn check_room(&mut self, from: usize, to: usize) -> io::Result<()> {
        if self.strikes(FaultKind::NoSpace) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let growth = u64::try_from(to.saturating_sub(from)).unwrap_or(u64::MAX);
        // Adding up all files is only worth it on a disk that has a limit.
        if self.space_bytes == u64::MAX || growth == 0 {
            return Ok(());
        }
        if self.used_bytes().saturating_add(growth) > self.space_bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, options: OpenOptions) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        if !state.names.contains_key(path) {
            state.require_directory(parent_of(path))?;
            if !options.create {
                return Err(io::ErrorKind::NotFound.into());
            }
            if state.directories.contains(path) {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            state.names.insert(path.to_owned(), Inode::default());
        }
        Ok(Arc::new(SimFile {
            disk: self.clone(),
            inode: state.inode(path)?,
            life: state.life,
            direct: options.direct,
        }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        for ancestor in path.ancestors().filter(|path| !path.as_os_str().is_empty()) {
            if state.names.contains_key(ancestor) {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            state.directories.insert(ancestor.to_owned());
        }
        Ok(())
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        let state = self.state.lock();
        state.require_directory(directory)?;
        let mut paths: Vec<PathBuf> = state
            .names
            .keys()
            .chain(&state.directories)
            .filter(|path| path.parent() == Some(directory))
            .cloned()
            .collect();
        paths.sort();
        Ok(paths)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let state = self.state.lock();
        Ok(state.names.contains_key(path) || state.directories.contains(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        let inode = state.inode(from)?;
        state.require_directory(parent_of(to))?;
        if state.directories.contains(to) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        state.names.remove(from);
        state.names.insert(to.to_owned(), inode);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let removed = self.state.lock().names.remove(path);
        removed
            .map(|_| ())
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, directory: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.require_directory(directory)?;
        if state.strikes(FaultKind::SyncError) {
            return Err(io::Error::other("injected sync error"));
        }
        let State {
            names,
            durable_names,
            ..
        } = &mut *state;
        durable_names.retain(|path, _| parent_of(path) != directory);
        for (path, inode) in names.iter() {
            if parent_of(path) == directory {
                durable_names.insert(path.clone(), Arc::clone(inode));
            }
        }
        Ok(())
    }

    fn space(&self, path: &Path) -> io::Result<DiskSpace> {
        let state = self.state.lock();
        if !state.names.contains_key(path) {
            state.require_directory(path)?;
        }
        Ok(DiskSpace {
            total_bytes: state.space_bytes,
            available_bytes: state.space_bytes.saturating_sub(state.used_bytes()),
        })
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut state = self.state.lock();
        let inode = state.inode(path)?;
        if state.strikes(FaultKind::ReadError) {
            return Err(io::Error::other("injected read error"));
        }
        let content = inode.lock().current.clone();
        Ok(content)
    }

    fn write_atomic(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let temporary = temporary_of(path)?;
        let create = OpenOptions {
            create: true,
            direct: false,
        };
        let file = self.open(&temporary, create)?;
        file.set_len(0)?;
        file.write_all_at(0, content)?;
        file.sync_data()?;
        self.rename(&temporary, path)?;
        self.sync_dir(parent_of(path))
    }

    fn lock_exclusive(&self, path: &Path) -> io::Result<DiskLock> {
        let create = OpenOptions {
            create: true,
            direct: false,
        };
        self.open(path, create)?;
        let mut state = self.state.lock();
        if !state.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(DiskLock::new(HeldLock {
            disk: self.clone(),
            path: path.to_owned(),
            life: state.life,
        }))
    }
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        let mut state = self.disk.state.lock();
        // A lock from before a crash must not release the one of its successor.
        if state.life == self.life {
            state.locks.remove(&self.path);
        }
    }
}

impl SimFile {
    /// Runs an operation on the file. The order of locks is always disk, then file.
    fn run<T>(&self, operation: impl FnOnce(&mut State, &Inode) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.state.lock();
        if state.life != self.life {
            return Err(io::Error::other("the machine of this handle has crashed"));
        }
        operation(&mut state, &self.inode)
    }

    /// Real direct I/O refuses what is not aligned; so does this, so that tests notice.
    fn check_aligned(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let block = crate::disk::BLOCK_BYTES;
        let aligned = !self.direct
            || (index(offset)?.is_multiple_of(block)
                && buf.len().is_multiple_of(block)
                && buf.as_ptr().align_offset(block) == 0);
        if aligned {
            Ok(())
        } else {
            Err(io::ErrorKind::InvalidInput.into())
        }
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.check_aligned(offset, buf)?;
        self.run(|state, inode| {
            if state.strikes(FaultKind::ReadError) {
                return Err(io::Error::other("injected read error"));
            }
            let file = inode.lock();
            let start = index(offset)?.min(file.current.len());
            let count = buf.len().min(file.current.len() - start);
            buf[..count].copy_from_slice(&file.current[start..start + count]);
            Ok(count)
        })
    }

    fn write_all_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.check_aligned(offset, buf)?;
        self.run(|state, inode| {
            let end = index(advanced(offset, buf.len())?)?;
            let from = inode.lock().current.len();
            state.check_room(from, end)?;
            let failing = state.strikes(FaultKind::WriteError);
            let written = if failing {
                buf.len() / 2 / SECTOR_BYTES * SECTOR_BYTES
            } else {
                buf.len()
            };
            if written > 0 {
                inode.lock().change(Change::Write {
                    offset: index(offset)?,
                    bytes: buf[..written].to_vec(),
                });
            }
            if failing {
                return Err(io::Error::other("injected write error"));
            }
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.run(|state, inode| {
            let mut file = inode.lock();
            let unsynced = std::mem::take(&mut file.unsynced);
            if state.strikes(FaultKind::SyncError) {
                // The changes stay readable and are lost all the same.
                return Err(io::Error::other("injected sync error"));
            }
            for change in &unsynced {
                change.apply(&mut file.synced);
            }
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.run(|state, inode| {
            let len = index(len)?;
            let from = inode.lock().current.len();
            state.check_room(from, len)?;
            inode.lock().change(Change::SetLen(len));
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.run(|_, inode| u64::try_from(inode.lock().current.len()).map_err(io::Error::other))
    }

    fn is_direct(&self) -> bool {
        self.direct
    }
}

impl FileState {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.current);
        self.unsynced.push(change);
    }

    fn crash(&mut self, rng: &dyn Rng) {
        for change in std::mem::take(&mut self.unsynced) {
            match rng.below(3) {
                0 => {}
                1 => change.apply(&mut self.synced),
                _ => change.apply_torn(&mut self.synced, rng),
            }
        }
        self.current = self.synced.clone();
    }
}

impl Change {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Change::SetLen(len) => image.resize(*len, 0),
            Change::Write { offset, bytes } => write_into(image, *offset, bytes),
        }
    }

    /// Applies a random subset of the sectors that the change touches. A change of length is
    /// one update of metadata and happens as a whole.
    fn apply_torn(&self, image: &mut Vec<u8>, rng: &dyn Rng) {
        let Change::Write { offset, bytes } = self else {
            return self.apply(image);
        };
        let mut at = 0;
        while at < bytes.len() {
            let position = offset + at;
            let room = SECTOR_BYTES - position % SECTOR_BYTES;
            let end = bytes.len().min(at + room);
            if rng.below(2) == 0 {
                write_into(image, position, &bytes[at..end]);
            }
            at = end;
        }
    }
}

fn write_into(image: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if image.len() < end {
        image.resize(end, 0);
    }
    image[offset..end].copy_from_slice(bytes);
}

fn index(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge.into())
}
