//! Gives the blocks of files that RocksDB removed back to the file system little by little. A file
//! system that discards blocks makes all syncs wait while it frees a large file, and
//! RocksDB removes those of a deleted ledger all at once.
//!
//! Before RocksDB may remove blob files each gets a second name. Its own removal then frees
//! nothing; when only the second name is left the file is cut shorter step by step.
//!
//! Invariant: a file is cut only when RocksDB's name for it is gone and no other name is left, so
//! never one that RocksDB, or a copy by links, still has. RocksDB removes a file only after its
//! manifest, synced, does without it.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aquifer_runtime::disk::{Disk, OpenOptions, RealDisk};

/// What one step frees.
const STEP_BYTES: u64 = 8 << 20;
/// What RocksDB has removed by now is freed within about this time.
const ALL_WITHIN: Duration = Duration::from_secs(10);
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// The pause before it is looked again whether RocksDB still has a file.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// This many looks after its second name a file that RocksDB still has will stay.
const LOOKS_MAX: u32 = 20;
/// Files that have a second name at a time, each of which every look asks the file system about.
/// Of a larger store these are the oldest, and younger ones go at once.
const NAMES_MAX: usize = 512;
const BLOBS: &str = "blob";

/// Files with a second name.
#[derive(Debug)]
pub struct PacedRemoval {
    /// Where RocksDB has its names.
    store: PathBuf,
    /// Where the second names are.
    directory: PathBuf,
    /// Those that RocksDB may still have.
    named: Vec<PathBuf>,
    looks: u32,
    /// Those that only the second name keeps, with the bytes that are left of each.
    leaving: VecDeque<(PathBuf, u64)>,
    /// Between two steps, since it is known what is to be freed.
    pause: Duration,
}

impl PacedRemoval {
    /// Takes over what a process before this one left in `directory`, which is on the file system
    /// of `store`.
    #[must_use]
    pub fn new(store: PathBuf, directory: PathBuf) -> PacedRemoval {
        // A directory that is not there, or cannot be read, has nothing to take over.
        let named = RealDisk.list(&directory).unwrap_or_default();
        PacedRemoval {
            store,
            directory,
            named,
            looks: 0,
            leaving: VecDeque::new(),
            pause: PAUSE_MAX,
        }
    }

    /// Bytes that are still to be freed.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.leaving.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Gives blob files up to a number second names, the oldest first, before RocksDB is asked to
    /// remove some.
    ///
    /// # Errors
    /// When the file system refuses, for example because it has no second names. RocksDB's
    /// removals then free at once whatever got none.
    pub fn keep(&mut self, youngest: u64) -> io::Result<()> {
        RealDisk.create_dir_all(&self.directory)?;
        self.looks = 0;
        let stored = RealDisk.list(&self.store)?;
        let numbered = stored.iter().filter_map(|path| Some((number(path)?, path)));
        let mut blobs: Vec<(u64, &PathBuf)> = numbered.filter(|(n, _)| *n <= youngest).collect();
        blobs.sort_unstable();
        for (_, path) in blobs {
            if self.named.len() >= NAMES_MAX {
                break;
            }
            let Some(name) = path.file_name() else {
                continue;
            };
            let second = self.directory.join(name);
            match RealDisk.link(path, &second) {
                Ok(()) => self.named.push(second),
                // RocksDB has just removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.adopt(second),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// RocksDB may be about to remove more.
    pub fn look_on(&mut self) {
        self.looks = 0;
    }

    /// A file has a second name already; it may be one that an error made us forget.
    fn adopt(&mut self, second: PathBuf) {
        if !self.named.contains(&second) && self.leaving.iter().all(|(path, _)| *path != second) {
            self.named.push(second);
        }
    }

    /// Frees a little, or with `at_once` everything. Returns how long to wait until the next
    /// step, `None` when nothing is left to do.
    ///
    /// # Errors
    /// When the file system refuses; the next step tries again.
    pub fn step(&mut self, at_once: bool) -> io::Result<Option<Duration>> {
        if at_once {
            self.look(true)?;
            while self.free(u64::MAX)? {}
        } else if self.leaving.is_empty() {
            self.look(self.looks >= LOOKS_MAX)?;
        } else {
            self.free(STEP_BYTES)?;
        }
        Ok(self.pause())
    }

    /// Frees this many bytes of the first file that leaves; says whether there was one.
    fn free(&mut self, bytes: u64) -> io::Result<bool> {
        let Some((path, left)) = self.leaving.front_mut() else {
            return Ok(false);
        };
        if *left > bytes {
            cut(path, *left - bytes)?;
            *left -= bytes;
        } else {
            remove(path)?;
            self.leaving.pop_front();
        }
        Ok(true)
    }

    fn pause(&self) -> Option<Duration> {
        match (self.named.is_empty(), self.leaving.is_empty()) {
            (true, true) => None,
            (false, true) => Some(LOOK_AGAIN),
            (_, false) => Some(self.pause),
        }
    }

    /// Looks which files RocksDB has removed. With `last` the others lose their second name.
    fn look(&mut self, last: bool) -> io::Result<()> {
        self.looks = self.looks.saturating_add(1);
        let (mut stay, mut failed) = (Vec::new(), None);
        for path in std::mem::take(&mut self.named) {
            match self.look_at(&path, last) {
                Ok(Whose::Leaving(bytes)) => self.leaving.push_back((path, bytes)),
                Ok(Whose::Stored) => stay.push(path),
                Ok(Whose::Nobodys) => {}
                Err(error) => {
                    failed.get_or_insert(error);
                    stay.push(path);
                }
            }
        }
        self.named = stay;
        let steps = u32::try_from(self.bytes().div_ceil(STEP_BYTES)).unwrap_or(u32::MAX);
        let pause = ALL_WITHIN.checked_div(steps);
        self.pause = pause.unwrap_or(PAUSE_MAX).min(PAUSE_MAX);
        failed.map_or(Ok(()), Err)
    }

    fn look_at(&self, path: &Path, last: bool) -> io::Result<Whose> {
        let names = match RealDisk.names(path) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Whose::Nobodys),
            Err(error) => return Err(error),
        };
        let is_stored = match path.file_name() {
            Some(name) => RealDisk.exists(&self.store.join(name))?,
            None => true,
        };
        if names.count == 1 && !is_stored {
            return Ok(Whose::Leaving(names.bytes));
        }
        if last {
            remove(path)?;
            return Ok(Whose::Nobodys);
        }
        Ok(Whose::Stored)
    }
}

/// What has a file.
enum Whose {
    /// Only the second name, and this many bytes.
    Leaving(u64),
    /// RocksDB, or a copy by links.
    Stored,
    /// There is no second name any more.
    Nobodys,
}

/// The number of a blob file; they grow with time.
fn number(path: &Path) -> Option<u64> {
    let is_blob = path.extension().is_some_and(|extension| extension == BLOBS);
    path.file_stem()
        .filter(|_| is_blob)
        .and_then(|stem| stem.to_str()?.parse().ok())
}

fn cut(path: &Path, bytes: u64) -> io::Result<()> {
    let file = RealDisk.open(path, OpenOptions::default())?;
    file.set_len(bytes)
}

fn remove(path: &Path) -> io::Result<()> {
    match RealDisk.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    struct Place {
        directory: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Place {
            let directory = tempfile::tempdir().unwrap();
            fs::create_dir(directory.path().join("store")).unwrap();
            Place { directory }
        }

        fn removal(&self) -> PacedRemoval {
            let path = self.directory.path();
            PacedRemoval::new(path.join("store"), path.join("removed"))
        }

        fn stored(&self, name: &str) -> PathBuf {
            self.directory.path().join("store").join(name)
        }

        fn second(&self, name: &str) -> PathBuf {
            self.directory.path().join("removed").join(name)
        }

        fn write(&self, name: &str, bytes: u64) {
            let file = fs::File::create(self.stored(name)).unwrap();
            file.set_len(bytes).unwrap();
        }
    }

    fn len(path: &Path) -> u64 {
        fs::metadata(path).unwrap().len()
    }

    #[test]
    fn a_removed_file_gets_shorter_and_then_goes() {
        let place = Place::new();
        place.write("1.blob", 3 * STEP_BYTES - 1);
        place.write("2.blob", STEP_BYTES);
        place.write("3.sst", STEP_BYTES);
        let mut removal = place.removal();
        removal.keep(u64::MAX).unwrap();
        fs::remove_file(place.stored("1.blob")).unwrap();
        assert!(removal.step(false).unwrap().is_some());
        assert_eq!(removal.bytes(), 3 * STEP_BYTES - 1);
        assert!(removal.step(false).unwrap().is_some());
        assert_eq!(len(&place.second("1.blob")), 2 * STEP_BYTES - 1);
        removal.step(false).unwrap();
        removal.step(false).unwrap();
        assert!(!place.second("1.blob").exists());
        assert_eq!(removal.bytes(), 0);
        // What RocksDB keeps is whole, and loses its second name in the end.
        let mut steps = 0;
        while removal.step(false).unwrap().is_some() {
            steps += 1;
            assert!(steps < 100, "it never ends");
        }
        assert_eq!(len(&place.stored("2.blob")), STEP_BYTES);
        assert!(!place.second("2.blob").exists());
        assert_eq!(len(&place.stored("3.sst")), STEP_BYTES);
        assert_eq!(removal.pause(), None);
    }

    /// A copy by links (a backup) is a name like any other.
    #[test]
    fn a_file_that_somebody_else_links_is_not_cut() {
        let place = Place::new();
        place.write("1.blob", 4 * STEP_BYTES);
        let backup = place.directory.path().join("backup");
        fs::hard_link(place.stored("1.blob"), &backup).unwrap();
        let mut removal = place.removal();
        removal.keep(u64::MAX).unwrap();
        fs::remove_file(place.stored("1.blob")).unwrap();
        while removal.step(false).unwrap().is_some() {}
        assert_eq!(len(&backup), 4 * STEP_BYTES);
        assert!(!place.second("1.blob").exists());
    }

    #[test]
    fn what_a_process_left_is_taken_over_and_a_full_disk_hurries() {
        let place = Place::new();
        place.write("1.blob", 4 * STEP_BYTES);
        place.write("2.blob", 4 * STEP_BYTES);
        place.removal().keep(u64::MAX).unwrap();
        fs::remove_file(place.stored("1.blob")).unwrap();
        let mut removal = place.removal();
        assert_eq!(removal.step(true).unwrap(), None);
        assert!(!place.second("1.blob").exists());
        assert!(!place.second("2.blob").exists());
        assert_eq!(len(&place.stored("2.blob")), 4 * STEP_BYTES);
    }

    /// A large store costs no more than a small one, and what will go has its name first.
    #[test]
    fn the_oldest_files_get_second_names_up_to_a_bound() {
        let place = Place::new();
        for number in 1..=u64::try_from(NAMES_MAX).unwrap() + 10 {
            place.write(&format!("{number:06}.blob"), 1);
        }
        let mut removal = place.removal();
        removal.keep(3).unwrap();
        let names = ["000001.blob", "000002.blob", "000003.blob"];
        assert_eq!(removal.named, names.map(|name| place.second(name)));
        removal.keep(u64::MAX).unwrap();
        assert_eq!(removal.named.len(), NAMES_MAX);
        assert!(place.second("000512.blob").exists());
        assert!(!place.second("000513.blob").exists());
    }

    #[test]
    fn the_more_there_is_the_shorter_the_pauses() {
        let place = Place::new();
        place.write("1.blob", STEP_BYTES);
        let mut removal = place.removal();
        assert_eq!(removal.pause(), None);
        removal.keep(u64::MAX).unwrap();
        assert_eq!(removal.pause(), Some(LOOK_AGAIN));
        fs::remove_file(place.stored("1.blob")).unwrap();
        assert_eq!(removal.step(false).unwrap(), Some(PAUSE_MAX));
        assert_eq!(removal.step(false).unwrap(), None);
        place.write("2.blob", 1_000 * STEP_BYTES);
        removal.keep(u64::MAX).unwrap();
        fs::remove_file(place.stored("2.blob")).unwrap();
        assert_eq!(removal.step(false).unwrap(), Some(ALL_WITHIN / 1_000));
        assert_eq!(removal.step(false).unwrap(), Some(ALL_WITHIN / 1_000));
    }

    /// An error costs nothing but time: what could not be cut is cut later, and names that were
    /// forgotten are found again.
    #[test]
    fn an_error_forgets_no_file() {
        let place = Place::new();
        place.write("1.blob", 2 * STEP_BYTES);
        place.write("2.blob", STEP_BYTES);
        let mut removal = place.removal();
        removal.keep(u64::MAX).unwrap();
        fs::remove_file(place.stored("1.blob")).unwrap();
        // A directory in the place of a file cannot be cut.
        let aside = place.directory.path().join("aside");
        removal.step(false).unwrap();
        fs::rename(place.second("1.blob"), &aside).unwrap();
        fs::create_dir(place.second("1.blob")).unwrap();
        removal.step(false).unwrap_err();
        assert_eq!(removal.bytes(), 2 * STEP_BYTES);
        fs::remove_dir(place.second("1.blob")).unwrap();
        fs::rename(&aside, place.second("1.blob")).unwrap();
        removal.step(false).unwrap();
        assert_eq!(len(&place.second("1.blob")), STEP_BYTES);
        // Another process, or an error, left a second name that this one does not know.
        removal.named.clear();
        removal.keep(u64::MAX).unwrap();
        assert_eq!(removal.named, [place.second("2.blob")]);
        removal.keep(u64::MAX).unwrap();
        assert_eq!(removal.named.len(), 1);
    }
}
