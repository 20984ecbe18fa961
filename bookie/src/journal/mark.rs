//! The last-synced mark: how far the journal was synced, in a file of its own, so that a journal
//! that ends early is noticed (H4).
//!
//! It is written after every sync and itself synced about once a second, so it may lag and never
//! runs ahead. Two slots, each within one sector, take turns: a torn write costs one of them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aquifer_model::bytes_at::{u32_at, u64_at};
use aquifer_model::checksum;
use aquifer_model::id::BookieId;
use aquifer_runtime::disk::{Disk, DiskFile, OpenOptions};

const MAGIC: [u8; 4] = *b"AQM1";
const SLOT_BYTES: usize = 512;
const SLOT_CONTENT_BYTES: usize = 32;
const FILE_NAME: &str = "synced.mark";

/// The open mark.
#[derive(Debug)]
pub struct Mark {
    file: Arc<dyn DiskFile>,
    bookie: BookieId,
    dirty: AtomicBool,
}

/// What the mark said at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundMark {
    /// Commits up to this one were synced; later ones may have been.
    Synced(u64),
    /// The file is missing or neither slot is intact.
    Unreadable,
}

impl Mark {
    /// Creates the mark of a new journal, durably.
    pub fn create(disk: &dyn Disk, directory: &Path, bookie: BookieId) -> io::Result<()> {
        let mut content = [0; SLOT_BYTES * 2];
        content[..SLOT_CONTENT_BYTES].copy_from_slice(&encode(0, bookie));
        disk.write_atomic(&path_in(directory), &content)
    }

    /// What the mark says.
    pub fn read(disk: &dyn Disk, directory: &Path, bookie: BookieId) -> io::Result<FoundMark> {
        match disk.read(&path_in(directory)) {
            Ok(content) => Ok(read_slots(&content, bookie)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(FoundMark::Unreadable),
            Err(error) => Err(error),
        }
    }

    /// Opens the mark for writing.
    pub fn open(disk: &dyn Disk, directory: &Path, bookie: BookieId) -> io::Result<Mark> {
        Ok(Mark {
            file: disk.open(&path_in(directory), OpenOptions::default())?,
            bookie,
            dirty: AtomicBool::new(false),
        })
    }

    /// Notes that commits up to `sequence` are synced; not durable before [`Mark::sync`].
    pub fn write(&self, sequence: u64) -> io::Result<()> {
        let slot = sequence % 2;
        let offset = slot * u64::try_from(SLOT_BYTES).map_err(io::Error::other)?;
        self.dirty.store(true, Ordering::Release);
        self.file
            .write_all_at(offset, &encode(sequence, self.bookie))
    }

    /// Makes the last write durable.
    pub fn sync(&self) -> io::Result<()> {
        if self.dirty.swap(false, Ordering::AcqRel) {
            self.file.sync_data()?;
        }
        Ok(())
    }
}

fn path_in(directory: &Path) -> PathBuf {
    directory.join(FILE_NAME)
}

fn encode(sequence: u64, bookie: BookieId) -> [u8; SLOT_CONTENT_BYTES] {
    let mut bytes = [0; SLOT_CONTENT_BYTES];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[8..16].copy_from_slice(&sequence.to_le_bytes());
    bytes[16..32].copy_from_slice(&bookie.0);
    let checksum = checksum::crc32c(&bytes[8..]);
    bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn read_slots(content: &[u8], bookie: BookieId) -> FoundMark {
    content
        .chunks(SLOT_BYTES)
        .take(2)
        .filter_map(|slot| {
            let bytes = slot.get(..SLOT_CONTENT_BYTES)?;
            let intact = bytes[..4] == MAGIC
                && u32_at(bytes, 4) == checksum::crc32c(&bytes[8..])
                && bytes[16..32] == bookie.0;
            intact.then(|| u64_at(bytes, 8))
        })
        .max()
        .map_or(FoundMark::Unreadable, FoundMark::Synced)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aquifer_runtime::disk::SimDisk;
    use aquifer_runtime::rng::SeededRng;

    use crate::tests::{counting, golden};

    const BOOKIE: BookieId = BookieId([1; 16]);

    #[test]
    fn a_crash_leaves_a_mark_that_lags_and_never_one_that_runs_ahead() {
        for seed in 0..50 {
            let (disk, rng) = (SimDisk::new(), SeededRng::new(seed));
            let directory = Path::new("/journal");
            disk.create_dir_all(directory).unwrap();
            Mark::create(&disk, directory, BOOKIE).unwrap();
            let read = || Mark::read(&disk, directory, BOOKIE).unwrap();
            assert_eq!(read(), FoundMark::Synced(0));
            let mark = Mark::open(&disk, directory, BOOKIE).unwrap();
            for sequence in 1..=10 {
                mark.write(sequence).unwrap();
                if sequence == 6 {
                    mark.sync().unwrap();
                }
            }
            disk.crash(&rng);
            let found = read();
            assert!(
                matches!(found, FoundMark::Synced(6..=10)),
                "seed {seed}: {found:?}"
            );
        }
    }

    /// The stored bytes of a slot: they may never change while bookies have such marks.
    #[test]
    fn golden_bytes_stay() {
        let golden = golden(include_str!("mark/golden_v1.hex"));
        let bookie = BookieId(counting(1));
        assert_eq!(encode(100, bookie).as_slice(), golden[0]);
        let mut content = vec![0; SLOT_BYTES * 2];
        content[SLOT_BYTES..SLOT_BYTES + SLOT_CONTENT_BYTES].copy_from_slice(&golden[0]);
        assert_eq!(read_slots(&content, bookie), FoundMark::Synced(100));
    }

    #[test]
    fn a_damaged_slot_leaves_the_other_and_two_are_unreadable() {
        let content = |first: u64, second: u64| {
            let mut content = vec![0; SLOT_BYTES * 2];
            content[..SLOT_CONTENT_BYTES].copy_from_slice(&encode(first, BOOKIE));
            content[SLOT_BYTES..SLOT_BYTES + SLOT_CONTENT_BYTES]
                .copy_from_slice(&encode(second, BOOKIE));
            content
        };
        let mut bytes = content(8, 7);
        assert_eq!(read_slots(&bytes, BOOKIE), FoundMark::Synced(8));
        bytes[9] ^= 1;
        assert_eq!(read_slots(&bytes, BOOKIE), FoundMark::Synced(7));
        bytes[SLOT_BYTES + 4] ^= 1;
        assert_eq!(read_slots(&bytes, BOOKIE), FoundMark::Unreadable);
        assert_eq!(
            read_slots(&content(8, 7), BookieId([2; 16])),
            FoundMark::Unreadable
        );
        assert_eq!(read_slots(&[], BOOKIE), FoundMark::Unreadable);
    }
}
