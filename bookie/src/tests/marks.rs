//! The mark of the journal while the next segment is zeroed.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use aquifer_runtime::disk::{Disk, DiskFile, DiskLock, DiskSpace, OpenOptions};
use parking_lot::{Condvar, Mutex};

use super::*;
use crate::tests::crash::Machine;

/// The segment after the first.
const NEXT: &str = "segment-00000002.aqj";
const MARK: &str = "synced.mark";

/// What happens on a disk on which the next segment is zeroed when a test lets it.
#[derive(Debug, Default)]
struct Seen {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// A piece of the next segment waits.
    waits: bool,
    goes_on: bool,
    /// Names of files that were synced, in order.
    synced: Vec<String>,
}

#[derive(Debug)]
struct Watched {
    inner: SharedDisk,
    seen: Arc<Seen>,
}

#[derive(Debug)]
struct WatchedFile {
    inner: Arc<dyn DiskFile>,
    name: String,
    seen: Arc<Seen>,
}

impl DiskFile for WatchedFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.inner.read_at(offset, buf)
    }

    fn write_all_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        if self.name == NEXT {
            let mut state = self.seen.state.lock();
            state.waits = true;
            while !state.goes_on {
                let waited = self.seen.changed.wait_for(&mut state, PATIENCE);
                assert!(!waited.timed_out(), "the test does not go on");
            }
        }
        self.inner.write_all_at(offset, buf)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()?;
        self.seen.state.lock().synced.push(self.name.clone());
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn is_direct(&self) -> bool {
        self.inner.is_direct()
    }
}

impl Disk for Watched {
    fn open(&self, path: &Path, options: OpenOptions) -> io::Result<Arc<dyn DiskFile>> {
        let name = path.file_name().and_then(|name| name.to_str());
        Ok(Arc::new(WatchedFile {
            inner: self.inner.open(path, options)?,
            name: name.unwrap_or_default().to_owned(),
            seen: Arc::clone(&self.seen),
        }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.inner.create_dir_all(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        self.inner.list(directory)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.inner.exists(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn sync_dir(&self, directory: &Path) -> io::Result<()> {
        self.inner.sync_dir(directory)
    }

    fn space(&self, path: &Path) -> io::Result<DiskSpace> {
        self.inner.space(path)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.inner.read(path)
    }

    fn write_atomic(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.inner.write_atomic(path, content)
    }

    fn lock_exclusive(&self, path: &Path) -> io::Result<DiskLock> {
        self.inner.lock_exclusive(path)
    }
}

/// H4: a segment takes seconds to zero. The mark of a commit meanwhile is synced before that is
/// done, or a journal that is cut off then would not be noticed.
#[test]
fn the_mark_is_synced_while_a_segment_is_zeroed() {
    let mut machine = Machine::new();
    machine.config.space_check_ms = 1;
    let seen = Arc::new(Seen::default());
    let disk = Watched {
        inner: machine.disk.shared(),
        seen: Arc::clone(&seen),
    };
    let bookie = Bookie::open(machine.config.clone(), deps(Arc::new(disk))).unwrap();
    done(ask(&bookie, add_request(1, 0, 10)));
    eventually("the next segment", || seen.state.lock().waits);
    done(ask(&bookie, add_request(1, 1, 10)));
    {
        let mut state = seen.state.lock();
        state.synced.clear();
        state.goes_on = true;
        seen.changed.notify_all();
    }
    eventually("a segment that is ready", || {
        !bookie.core.shared.segments.needs_spare()
    });
    let synced = seen.state.lock().synced.clone();
    let at = |name: &str| synced.iter().position(|synced| synced == name);
    assert!(at(NEXT).is_some());
    assert!(
        at(MARK).is_some_and(|mark| Some(mark) < at(NEXT)),
        "{synced:?}"
    );
}
