//! Whether every value in a blob file can be read and has its checksum: what a compaction that
//! moves values would meet. One that it cannot read stops all writes (H17), so it is looked for
//! before values are moved that nothing forces to move.
//!
//! Numbers are little-endian. A file is a head of 30 bytes, records, and a foot of 32. The head is
//! a magic number and a version (4 bytes each), the number of the family (4), flags and compression
//! (1 each), and two expirations (8 each); the foot is the magic number, how many records there are
//! (8), two expirations, and a checksum of these. A record is the lengths of key and value and an
//! expiration (8 bytes each), a checksum of these, one of key and value, and then both. Nothing
//! expires and nothing is compressed, so these are zeros. RocksDB reads no value of a file whose
//! head or foot it does not accept.

use std::io;
use std::path::Path;

use aquifer_model::bytes_at::{u32_at, u64_at};
use aquifer_model::checksum;
use aquifer_runtime::disk::{Disk, DiskFile, OpenOptions, RealDisk};

use crate::store::rocks::manifest::masked;

const MAGIC: u32 = 2_395_959;
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 30;
const FOOT_BYTES: usize = 32;
/// Where zeros begin in the head and in the foot.
const HEAD_ZEROS_AT: usize = 12;
const FOOT_ZEROS_AT: usize = 12;
/// Bytes of the foot that its checksum is of.
const FOOT_CHECKED_BYTES: usize = 28;
const RECORD_HEAD_BYTES: usize = 32;
/// Bytes of the head of a record that its first checksum is of.
const CHECKED_BYTES: usize = 24;

/// Reads a blob file whose records are of this many bytes in all, and checks everything in it. The
/// number of the family in the head has no checksum and is not checked.
///
/// # Errors
/// When a part cannot be read, or is not what was written.
pub fn blob_file(path: &Path, record_bytes: u64) -> io::Result<()> {
    let file = RealDisk.open(path, OpenOptions::default())?;
    let mut at = HEAD_BYTES as u64;
    let end = at.saturating_add(record_bytes);
    if file.len()? != end.saturating_add(FOOT_BYTES as u64) {
        let what = format!("it is not as long as {record_bytes} bytes of records need");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    check_head_and_foot(&*file, end)?;
    let mut bytes = Vec::new();
    while at < end {
        let mut head = [0; RECORD_HEAD_BYTES];
        file.read_exact_at(at, &mut head)?;
        if masked(checksum::crc32c(&head[..CHECKED_BYTES])) != u32_at(&head, CHECKED_BYTES) {
            return Err(damaged(at));
        }
        at += RECORD_HEAD_BYTES as u64;
        let len = u64_at(&head, 0).saturating_add(u64_at(&head, 8));
        if len > end.saturating_sub(at) {
            return Err(damaged(at));
        }
        bytes.resize(usize::try_from(len).map_err(io::Error::other)?, 0);
        file.read_exact_at(at, &mut bytes)?;
        if masked(checksum::crc32c(&bytes)) != u32_at(&head, CHECKED_BYTES + 4) {
            return Err(damaged(at));
        }
        at += len;
    }
    Ok(())
}

/// Checks what RocksDB reads when it opens a file; the foot begins at `end`.
fn check_head_and_foot(file: &dyn DiskFile, end: u64) -> io::Result<()> {
    let (mut head, mut foot) = ([0; HEAD_BYTES], [0; FOOT_BYTES]);
    file.read_exact_at(0, &mut head)?;
    let is_head = u32_at(&head, 0) == MAGIC && u32_at(&head, 4) == VERSION;
    if !is_head || !are_zeros(&head[HEAD_ZEROS_AT..]) {
        return Err(damaged(0));
    }
    file.read_exact_at(end, &mut foot)?;
    let (checked, crc) = foot.split_at(FOOT_CHECKED_BYTES);
    let is_foot =
        u32_at(checked, 0) == MAGIC && masked(checksum::crc32c(checked)) == u32_at(crc, 0);
    if !is_foot || !are_zeros(&checked[FOOT_ZEROS_AT..]) {
        return Err(damaged(end));
    }
    Ok(())
}

fn are_zeros(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

fn damaged(at: u64) -> io::Error {
    let what = format!("a wrong checksum or length at byte {at}");
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the head has the number of the family.
    const FAMILY: std::ops::Range<usize> = 8..12;

    /// A file as RocksDB writes it, with these values.
    fn file_of(values: &[&[u8]]) -> Vec<u8> {
        let crc = |bytes: &[u8]| masked(checksum::crc32c(bytes)).to_le_bytes();
        let start = |number: u32| [MAGIC.to_le_bytes(), number.to_le_bytes()].concat();
        let mut file = start(VERSION);
        file.extend(2_u32.to_le_bytes());
        file.resize(HEAD_BYTES, 0);
        for value in values {
            let lengths = [3, value.len() as u64, 0].map(u64::to_le_bytes).concat();
            let content = [&b"key"[..], *value].concat();
            let (of_lengths, of_content) = (crc(&lengths), crc(&content));
            file.extend([&lengths[..], &of_lengths[..], &of_content[..], &content[..]].concat());
        }
        let count = u32::try_from(values.len()).unwrap();
        let mut foot = start(count);
        foot.resize(FOOT_CHECKED_BYTES, 0);
        let of_foot = crc(&foot);
        file.extend(foot);
        file.extend(of_foot);
        file
    }

    /// RocksDB would stop at each of these.
    #[test]
    fn every_flipped_bit_and_every_other_length_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("000007.blob");
        let is_whole = |file: &[u8], record_bytes: usize| {
            std::fs::write(&path, file).unwrap();
            blob_file(&path, record_bytes as u64).is_ok()
        };
        let file = file_of(&[b"value", b"", b"another"]);
        let records = file.len() - HEAD_BYTES - FOOT_BYTES;
        assert!(is_whole(&file, records));
        assert!(is_whole(&file_of(&[]), 0));
        for at in (0..file.len()).filter(|at| !FAMILY.contains(at)) {
            for bit in 0..8 {
                let mut flipped = file.clone();
                flipped[at] ^= 1 << bit;
                assert!(!is_whole(&flipped, records), "bit {bit} of byte {at}");
            }
        }
        for len in 0..file.len() {
            assert!(!is_whole(&file[..len], records), "{len} bytes are left");
        }
        // What is whole and shorter is not what was written.
        assert!(!is_whole(&file_of(&[b"value"]), records));
    }
}
