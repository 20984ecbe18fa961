//! The settings of a bookie, and the relations between them that must hold.

use std::path::PathBuf;

use aquifer_model::limits::ENTRY_BYTES_MAX;
use serde::{Deserialize, Serialize};

use crate::error::BookieOpenError;

const MIB: usize = 1024 * 1024;
/// What a commit holds beyond the data of its largest entry: heads and padding.
const COMMIT_OVERHEAD_BYTES: usize = 64 * 1024;
/// The format counts the bytes of a commit with 32 bits; this leaves room.
const COMMIT_BYTES_MAX: usize = 1024 * MIB;

/// Longest name of a cluster.
const CLUSTER_BYTES_MAX: usize = 64;

/// The settings of a bookie. Directories are created when they do not exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BookieConfig {
    /// The cluster that it is a bookie of; `None` inside a standalone server.
    #[serde(skip)]
    pub cluster: Option<String>,
    /// Maximum free space that it announces, in bytes, where that is less than the disk has.
    #[serde(skip)]
    pub capacity_bytes: Option<u64>,
    /// Identity and lock.
    pub data_dir: PathBuf,
    /// Journal segments and the mark; best on a disk of its own.
    pub journal_dir: PathBuf,
    /// RocksDB.
    pub ledger_dir: PathBuf,
    /// Size of the first segment of a new journal, in bytes: small, because start waits for it.
    pub journal_first_segment_bytes: usize,
    /// Size of every later segment, in bytes; these are zeroed in the background.
    pub journal_segment_bytes: usize,
    /// Most segments of the journal.
    pub journal_segments_max: usize,
    /// Room in the journal that only fences, recovery and deletions may use, in bytes.
    pub journal_reserve_bytes: usize,
    /// Most bytes of one group commit, unless a single entry is larger.
    pub commit_bytes_max: usize,
    /// Most bytes of normal adds between their arrival and RocksDB.
    pub bytes_in_flight_max: usize,
    /// The same for fences, recovery and deletions.
    pub control_bytes_in_flight_max: usize,
    /// Most bytes of answers to reads that are being prepared.
    pub read_bytes_in_flight_max: usize,
    /// Threads that read RocksDB.
    pub read_threads: usize,
    /// Size of a RocksDB memtable; there are at most four.
    pub memtable_bytes: usize,
    /// RocksDB's block cache.
    pub block_cache_bytes: usize,
    /// Entries of at least this size go to blob files. Below it, a compaction that rewrites the
    /// value costs less than the extra read per value that a blob needs; above it, the topics of
    /// a busy bookie interleave and compaction would rewrite every payload several times.
    pub blob_bytes_min: usize,
    /// How large blob files may get, in bytes. Flushes make smaller ones, which are merged.
    pub blob_file_bytes: u64,
    /// Small blob files are merged while there are more blob files than this and two for each
    /// `blob_file_bytes` that they hold.
    pub blob_files_max: u64,
    /// Bytes that merging writes in a second, on average; 0: nothing is merged.
    pub merge_bytes_per_second: u64,
    /// Files that RocksDB keeps open.
    pub open_files_max: u32,
    /// Ledgers whose state is kept in memory.
    pub ledgers_cached_max: usize,
    /// Below this much free space normal adds are refused.
    pub read_only_below_free_bytes: u64,
    /// Above this much free space they are accepted again.
    pub writable_above_free_bytes: u64,
    /// Space that is kept back, as a file, for cursors, deletions and a start on a disk that
    /// other processes have filled, in bytes; 0: none.
    pub reserve_bytes: usize,
    /// How often free space is looked at, in milliseconds.
    pub space_check_ms: u64,
    /// After this many quiet milliseconds what is in memory is flushed and freed.
    pub quiet_flush_ms: u64,
    /// Bytes of stored entries that the scrubber checks in a second; 0: it does not run.
    pub scrub_bytes_per_second: u64,
    /// From the end of one pass of the scrubber to the beginning of the next, in milliseconds.
    pub scrub_pause_ms: u64,
    /// End a limbo at start: what was lost is given up for good.
    #[serde(skip)]
    pub accept_loss: bool,
}

impl Default for BookieConfig {
    fn default() -> BookieConfig {
        BookieConfig {
            cluster: None,
            capacity_bytes: None,
            data_dir: PathBuf::from("bookie"),
            journal_dir: PathBuf::from("bookie/journal"),
            ledger_dir: PathBuf::from("bookie/ledgers"),
            journal_first_segment_bytes: 8 * MIB,
            journal_segment_bytes: 64 * MIB,
            journal_segments_max: 6,
            journal_reserve_bytes: MIB,
            commit_bytes_max: 4 * MIB,
            bytes_in_flight_max: 16 * MIB,
            control_bytes_in_flight_max: 8 * MIB,
            read_bytes_in_flight_max: 32 * MIB,
            read_threads: 2,
            memtable_bytes: 12 * MIB,
            block_cache_bytes: 8 * MIB,
            blob_bytes_min: 4 * 1024,
            blob_file_bytes: 128 << 20,
            blob_files_max: 1_024,
            merge_bytes_per_second: 32 << 20,
            open_files_max: 256,
            ledgers_cached_max: 16 * 1024,
            read_only_below_free_bytes: 256 << 20,
            writable_above_free_bytes: 512 << 20,
            reserve_bytes: 32 * MIB,
            space_check_ms: 1_000,
            quiet_flush_ms: 2_000,
            scrub_bytes_per_second: 4 << 20,
            scrub_pause_ms: 86_400_000,
            accept_loss: false,
        }
    }
}

impl BookieConfig {
    /// The defaults with everything below one directory.
    #[must_use]
    pub fn in_directory(data_dir: impl Into<PathBuf>) -> BookieConfig {
        let data_dir = data_dir.into();
        BookieConfig {
            journal_dir: data_dir.join("journal"),
            ledger_dir: data_dir.join("ledgers"),
            data_dir,
            ..BookieConfig::default()
        }
    }

    /// How many blob files that hold this many bytes in all are left as they are.
    pub(crate) fn blob_files_left(&self, bytes: u64) -> u64 {
        let by_bytes = bytes / self.blob_file_bytes.max(1);
        self.blob_files_max
            .saturating_add(by_bytes.saturating_mul(2))
    }

    /// Checks the relations between the settings.
    pub(crate) fn validate(&self) -> Result<(), BookieOpenError> {
        if let Some(cluster) = &self.cluster {
            check_cluster(cluster)?;
        }
        let largest_commit = self
            .commit_bytes_max
            .max(ENTRY_BYTES_MAX)
            .saturating_add(COMMIT_OVERHEAD_BYTES);
        let smallest_segment = self
            .journal_segment_bytes
            .min(self.journal_first_segment_bytes);
        let rules = [
            (
                smallest_segment >= largest_commit.saturating_add(self.journal_reserve_bytes),
                "a journal segment must hold the largest commit and the reserve: \
                 raise journal_first_segment_bytes and journal_segment_bytes",
            ),
            (
                self.commit_bytes_max <= COMMIT_BYTES_MAX,
                "commit_bytes_max must be at most 1 GiB: lower it",
            ),
            (
                self.journal_segments_max >= 2,
                "journal_segments_max must be at least 2",
            ),
            (
                self.read_only_below_free_bytes < self.writable_above_free_bytes,
                "read_only_below_free_bytes must be less than writable_above_free_bytes",
            ),
            (
                self.read_threads > 0 && self.ledgers_cached_max > 0 && self.space_check_ms > 0,
                "read_threads, ledgers_cached_max and space_check_ms must not be 0",
            ),
            (
                self.bytes_in_flight_max >= 64 * 1024
                    && self.control_bytes_in_flight_max >= 64 * 1024
                    && self.read_bytes_in_flight_max >= 64 * 1024
                    && self.commit_bytes_max >= 4096
                    && self.memtable_bytes >= 64 * 1024,
                "byte budgets of a bookie must be at least 64 KiB, commit_bytes_max 4 KiB",
            ),
            (
                self.blob_file_bytes >= 64 * 1024,
                "blob_file_bytes must be at least 64 KiB",
            ),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, rule)) => Err(BookieOpenError::Config((*rule).to_owned())),
            None => Ok(()),
        }
    }
}

/// Checks the name of a cluster: it becomes part of keys, cookies and messages.
///
/// # Errors
/// When it is empty, too long, or has other characters than letters, digits, `-`, `_` and `.`.
pub fn check_cluster(name: &str) -> Result<(), BookieOpenError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > CLUSTER_BYTES_MAX || !name.chars().all(fits) {
        return Err(BookieOpenError::Config(format!(
            "{name:?} is no name of a cluster: give 1 to {CLUSTER_BYTES_MAX} letters, digits, '-', \
             '_' or '.'"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_has_a_plain_name() {
        for good in ["a", "eu-1", "A_b.c"] {
            assert!(check_cluster(good).is_ok(), "{good}");
        }
        for bad in ["", "a/b", "a b", "a\nstate complete", &"x".repeat(65)] {
            assert!(check_cluster(bad).is_err(), "{bad}");
        }
    }
}
