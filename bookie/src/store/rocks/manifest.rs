//! One change to RocksDB's manifest that RocksDB itself offers in a tool only: a table file is not
//! part of the database any more. The database must be closed.
//!
//! A manifest is a log of records in blocks of 32 KiB; a record is a list of tagged fields.

use std::path::{Path, PathBuf};

use aquifer_model::checksum::{crc32c, crc32c_append};
use aquifer_runtime::disk::{Disk, RealDisk};

use crate::store::StoreError;
use crate::store::rocks::keys;

const BLOCK_BYTES: usize = 32 * 1024;
const HEAD_BYTES: usize = 7;
const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;
const DELETED_FILE: u64 = 6;
const COLUMN_FAMILY: u64 = 200;

/// A table file, as the manifest knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its column family.
    pub family: String,
    /// Its level.
    pub level: u64,
    /// Its number.
    pub number: u64,
}

/// Takes table files out of the closed database in `directory`, durably and as one change. When
/// RocksDB does not take it, [`Undo`] takes it back.
pub fn remove(directory: &Path, files: &[Place]) -> Result<Undo, StoreError> {
    let manifest = current(directory)?;
    let before = RealDisk.read(&manifest).map_err(disk_error)?;
    let mut bytes = before.clone();
    for place in files {
        append(&mut bytes, &edit(place)?)?;
    }
    RealDisk
        .write_atomic(&manifest, &bytes)
        .map_err(disk_error)?;
    Ok(Undo { manifest, before })
}

/// The manifest as it was.
pub struct Undo {
    manifest: PathBuf,
    before: Vec<u8>,
}

impl Undo {
    /// Takes the change back.
    pub fn run(self) -> Result<(), StoreError> {
        RealDisk
            .write_atomic(&self.manifest, &self.before)
            .map_err(disk_error)
    }
}

fn disk_error(error: std::io::Error) -> StoreError {
    StoreError::Failed(format!("manifest: {error}"))
}

fn current(directory: &Path) -> Result<PathBuf, StoreError> {
    let path = directory.join("CURRENT");
    let name = RealDisk
        .read(&path)
        .map_err(|error| StoreError::Failed(format!("{}: {error}", path.display())))?;
    let name = String::from_utf8_lossy(&name).trim().to_owned();
    if !name.starts_with("MANIFEST-") {
        return Err(StoreError::Damaged("CURRENT names no manifest".to_owned()));
    }
    Ok(directory.join(name))
}

/// The record that takes one file out.
fn edit(place: &Place) -> Result<Vec<u8>, StoreError> {
    // In the order in which a new database is given its families.
    let family = match place.family.as_str() {
        "default" => 0,
        keys::LEDGERS => 1,
        keys::ENTRIES => 2,
        other => {
            let what = format!("a file of an unknown family {other}");
            return Err(StoreError::Damaged(what));
        }
    };
    let mut edit = Vec::new();
    let fields = [
        DELETED_FILE,
        place.level,
        place.number,
        COLUMN_FAMILY,
        family,
    ];
    fields
        .into_iter()
        .for_each(|field| varint(&mut edit, field));
    Ok(edit)
}

fn varint(bytes: &mut Vec<u8>, mut value: u64) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return;
        }
        bytes.push(low | 0x80);
    }
}

/// Adds a record to a log, in fragments where a block ends.
fn append(log: &mut Vec<u8>, record: &[u8]) -> Result<(), StoreError> {
    let mut rest = record;
    let mut is_first = true;
    loop {
        let room = BLOCK_BYTES - log.len() % BLOCK_BYTES;
        if room < HEAD_BYTES {
            log.resize(log.len() + room, 0);
            continue;
        }
        let (part, behind) = rest.split_at(rest.len().min(room - HEAD_BYTES));
        let kind = match (is_first, behind.is_empty()) {
            (true, true) => FULL,
            (true, false) => FIRST,
            (false, false) => MIDDLE,
            (false, true) => LAST,
        };
        let len = u16::try_from(part.len());
        let len = len.map_err(|_| StoreError::Damaged("a record of the manifest".to_owned()))?;
        let checksum = masked(crc32c_append(crc32c(&[kind]), part));
        log.extend_from_slice(&checksum.to_le_bytes());
        log.extend_from_slice(&len.to_le_bytes());
        log.push(kind);
        log.extend_from_slice(part);
        if behind.is_empty() {
            return Ok(());
        }
        rest = behind;
        is_first = false;
    }
}

/// A checksum as RocksDB stores it: one of bytes that contain checksums would be weak.
pub(super) fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_at_the_end_of_a_block_is_cut() {
        let record = [9; 20];
        let mut log = vec![1; BLOCK_BYTES - 10];
        append(&mut log, &record).unwrap();
        let added = &log[BLOCK_BYTES - 10..];
        assert_eq!((added[6], added[10 + 6]), (FIRST, LAST));
        assert_eq!(added.len(), 10 + 7 + 17);
        let mut log = vec![1; BLOCK_BYTES - 3];
        append(&mut log, &record).unwrap();
        let added = &log[BLOCK_BYTES - 3..];
        assert_eq!((&added[..3], added[3 + 6]), (&[0; 3][..], FULL));
    }

    #[test]
    fn numbers_are_as_rocksdb_writes_them() {
        let mut bytes = Vec::new();
        for value in [0, 1, 127, 128, 300] {
            varint(&mut bytes, value);
        }
        assert_eq!(bytes, [0, 1, 0x7f, 0x80, 1, 0xac, 2]);
    }
}
