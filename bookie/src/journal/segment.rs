//! A segment: a file of zeroed or recycled blocks with a head block in front of its commits.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aquifer_model::bytes_at::{u32_at, u64_at};
use aquifer_model::checksum;
use aquifer_model::id::BookieId;
use aquifer_runtime::disk::{AlignedBuffer, BLOCK_BYTES, Disk, DiskFile, OpenOptions};

use crate::journal::commit::SegmentUse;

const MAGIC: [u8; 8] = *b"AQJSEG1\0";
const HEAD_BYTES: usize = 56;
const FILE_PREFIX: &str = "segment-";
const FILE_SUFFIX: &str = ".aqj";
/// Where the first commit of a segment is.
pub const FIRST_COMMIT_OFFSET: u64 = 4096;
/// Zeros are written in pieces of this size: a commit waits for one at most.
const ZERO_BYTES: usize = 256 * 1024;

/// What the head block of a segment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHead {
    /// This use of the segment.
    pub segment: SegmentUse,
    /// The first commit of this use.
    pub first_sequence: u64,
    /// Whose journal it is.
    pub bookie: BookieId,
}

/// The head block as it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundHead {
    /// Never used.
    Fresh,
    /// Used.
    Used(SegmentHead),
    /// Neither zeros nor a head: damaged, or the first write of a use was torn.
    Bad,
}

impl SegmentHead {
    /// The head block.
    #[must_use]
    pub fn encode(&self) -> AlignedBuffer {
        let mut bytes = [0; HEAD_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[16..24].copy_from_slice(&self.segment.generation.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.segment.salt.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.first_sequence.to_le_bytes());
        bytes[40..56].copy_from_slice(&self.bookie.0);
        let checksum = checksum::crc32c(&bytes[16..]);
        bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
        let mut block = AlignedBuffer::with_capacity(BLOCK_BYTES);
        block.extend_from_slice(&bytes);
        block.pad_to_block();
        block
    }

    /// Reads a head block.
    #[must_use]
    pub fn decode(block: &[u8]) -> FoundHead {
        if block.len() < HEAD_BYTES {
            return FoundHead::Bad;
        }
        if block[..HEAD_BYTES].iter().all(|byte| *byte == 0) {
            return FoundHead::Fresh;
        }
        let intact = block[..8] == MAGIC
            && block[12..16] == [0; 4]
            && u32_at(block, 8) == checksum::crc32c(&block[16..HEAD_BYTES]);
        match BookieId::try_from(&block[40..56]) {
            Ok(bookie) if intact => FoundHead::Used(SegmentHead {
                segment: SegmentUse {
                    generation: u64_at(block, 16),
                    salt: u64_at(block, 24),
                },
                first_sequence: u64_at(block, 32),
                bookie,
            }),
            _ => FoundHead::Bad,
        }
    }
}

/// A segment's file.
#[derive(Debug)]
pub struct SegmentFile {
    /// Its name.
    pub path: PathBuf,
    /// Its number, unique within the journal.
    pub number: u64,
    /// Its size.
    pub bytes: u64,
    /// The file, for aligned writes.
    pub file: Arc<dyn DiskFile>,
}

impl SegmentFile {
    /// Opens an existing segment.
    pub fn open(disk: &dyn Disk, path: &Path, number: u64) -> io::Result<SegmentFile> {
        let options = OpenOptions {
            create: false,
            direct: true,
        };
        let file = disk.open(path, options)?;
        Ok(SegmentFile {
            path: path.to_owned(),
            number,
            bytes: file.len()?,
            file,
        })
    }

    /// Creates a zeroed segment, durably. `pause` is called between two pieces of it, with the
    /// bytes so far. On an error nothing is left behind.
    pub fn create(
        disk: &dyn Disk,
        directory: &Path,
        (number, bytes): (u64, usize),
        pause: &dyn Fn(usize),
    ) -> io::Result<SegmentFile> {
        let path = directory.join(format!("{FILE_PREFIX}{number:08}{FILE_SUFFIX}"));
        let created = zeroed(disk, &path, bytes, pause);
        match created {
            Ok(file) => {
                disk.sync_dir(directory)?;
                Ok(SegmentFile {
                    path,
                    number,
                    bytes: file.len()?,
                    file,
                })
            }
            Err(error) => {
                // Best effort: a partial segment is fresh or short, and both are harmless.
                let _ = disk.remove(&path);
                Err(error)
            }
        }
    }

    /// The number in a segment's file name; `None` for other files.
    #[must_use]
    pub fn number_of(path: &Path) -> Option<u64> {
        let name = path.file_name()?.to_str()?;
        name.strip_prefix(FILE_PREFIX)?
            .strip_suffix(FILE_SUFFIX)?
            .parse()
            .ok()
    }

    /// Begins a use: writes the head block and syncs it.
    pub fn activate(&self, head: &SegmentHead) -> io::Result<()> {
        self.file.write_all_at(0, head.encode().as_slice())?;
        self.file.sync_data()
    }
}

/// Creates a file of zeros, written and synced. `pause` is called between two pieces of it.
pub(crate) fn zeroed(
    disk: &dyn Disk,
    path: &Path,
    bytes: usize,
    pause: &dyn Fn(usize),
) -> io::Result<Arc<dyn DiskFile>> {
    let options = OpenOptions {
        create: true,
        direct: true,
    };
    let file = disk.open(path, options)?;
    let blocks_bytes = bytes / BLOCK_BYTES * BLOCK_BYTES;
    let mut zeros = AlignedBuffer::with_capacity(ZERO_BYTES.min(blocks_bytes));
    zeros.resize(ZERO_BYTES.min(blocks_bytes));
    let mut at = 0;
    while at < blocks_bytes {
        let piece = ZERO_BYTES.min(blocks_bytes - at);
        let offset = u64::try_from(at).map_err(io::Error::other)?;
        file.write_all_at(offset, &zeros.as_slice()[..piece])?;
        at += piece;
        if at < blocks_bytes {
            pause(at);
        }
    }
    file.sync_data()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{counting, golden};
    use proptest::prelude::*;

    fn head() -> SegmentHead {
        SegmentHead {
            segment: SegmentUse {
                generation: 3,
                salt: 4,
            },
            first_sequence: 100,
            bookie: BookieId([5; 16]),
        }
    }

    #[test]
    fn heads_round_trip_and_every_flipped_bit_is_noticed() {
        let block = head().encode();
        assert_eq!(
            SegmentHead::decode(block.as_slice()),
            FoundHead::Used(head())
        );
        for bit in 0..HEAD_BYTES * 8 {
            let mut bad = block.as_slice().to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHead::decode(&bad), FoundHead::Bad, "bit {bit}");
        }
        assert_eq!(SegmentHead::decode(&[0; 4096]), FoundHead::Fresh);
    }

    /// The stored bytes: they may never change while bookies have such journals.
    #[test]
    fn golden_bytes_stay() {
        let head = SegmentHead {
            segment: SegmentUse {
                generation: 3,
                salt: 0x0102_0304_0506_0708,
            },
            first_sequence: 100,
            bookie: BookieId(counting(1)),
        };
        let golden = golden(include_str!("segment/golden_v1.hex"));
        let block = head.encode();
        let (content, rest) = block.as_slice().split_at(HEAD_BYTES);
        assert_eq!(content, golden[0]);
        assert_eq!(rest, [0; BLOCK_BYTES - HEAD_BYTES]);
        assert_eq!(SegmentHead::decode(&golden[0]), FoundHead::Used(head));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = SegmentHead::decode(&bytes);
        }
    }
}
