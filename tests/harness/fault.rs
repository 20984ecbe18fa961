//! Damage to files at rest.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Files below `folder` whose name ends in `suffix`, largest first.
///
/// # Errors
/// When the folder cannot be read.
pub fn files(folder: &Path, suffix: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for item in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let item = item?;
            if item.file_type()?.is_dir() {
                folders.push(item.path());
            } else if item.file_name().to_string_lossy().ends_with(suffix) {
                found.push((item.metadata()?.len(), item.path()));
            }
        }
    }
    found.sort();
    Ok(found.into_iter().rev().map(|(_, path)| path).collect())
}

/// Flips one bit.
///
/// # Errors
/// When the file cannot be read or written there.
pub fn flip_bit(path: &Path, offset: u64) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0u8];
    file.read_exact_at(&mut byte, offset)?;
    byte[0] ^= 0x10;
    file.write_all_at(&byte, offset)?;
    file.sync_all()?;
    Ok(())
}

/// Where `needle` first occurs in a file.
///
/// # Errors
/// When the file cannot be read.
pub fn find(path: &Path, needle: &[u8]) -> Result<Option<u64>> {
    let bytes = fs::read(path)?;
    let found = bytes
        .windows(needle.len())
        .position(|window| window == needle);
    Ok(found.map(|at| at as u64))
}

/// Cuts a file to `len` bytes.
///
/// # Errors
/// When the file cannot be changed.
pub fn truncate(path: &Path, len: u64) -> Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(len)?;
    file.sync_all()?;
    Ok(())
}
