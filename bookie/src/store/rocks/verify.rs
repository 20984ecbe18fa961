//! Whether every value in a blob file can be read and has its checksum: what a compaction that
//! moves values would meet. One that it cannot read stops all writes (H17), so it is looked for
//! before values are moved that nothing forces to move.
//!
//! Numbers are little-endian. A file is a head of 30 bytes, records, and a foot of 32. A record is
//! the lengths of key and value and an expiration (8 bytes each), a checksum of these, one of key
//! and value, and then both.

use std::io;
use std::path::Path;

use aquifer_model::bytes_at::{u32_at, u64_at};
use aquifer_model::checksum;
use aquifer_runtime::disk::{Disk, OpenOptions, RealDisk};

const HEAD_BYTES: u64 = 30;
const FOOT_BYTES: u64 = 32;
const RECORD_HEAD_BYTES: usize = 32;
/// Bytes of the head of a record that its first checksum is of.
const CHECKED_BYTES: usize = 24;

/// Reads a blob file and checks everything in it.
///
/// # Errors
/// When a part cannot be read, or is not what was written.
pub fn blob_file(path: &Path) -> io::Result<()> {
    let file = RealDisk.open(path, OpenOptions::default())?;
    let end = file.len()?.saturating_sub(FOOT_BYTES);
    let mut at = HEAD_BYTES;
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

/// A checksum as RocksDB stores it: one of bytes that contain checksums would be weak.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

fn damaged(at: u64) -> io::Error {
    let what = format!("a wrong checksum or length at byte {at}");
    io::Error::new(io::ErrorKind::InvalidData, what)
}
