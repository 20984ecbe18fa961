//! Room that is kept back on the disk of the ledgers, as a file that is given up when there is no
//! other: so that a disk that another process has filled still takes what subscriptions
//! acknowledge, what is deleted, and a start.
//!
//! Below the mark of free space normal adds are refused; those of cursor logs go on. When next to
//! nothing is left the file goes, and what it had lasts for a while. It is made again when there
//! is room for everything.

use std::io;
use std::path::PathBuf;

use aquifer_runtime::disk::{Disk, RealDisk};

use crate::config::BookieConfig;
use crate::journal::segment;

const NAME: &str = "RESERVE";

/// The reserve of one bookie.
#[derive(Debug)]
pub struct Reserve {
    path: PathBuf,
    directory: PathBuf,
    bytes: usize,
}

impl Reserve {
    /// The reserve that the settings ask for; 0 bytes are none.
    #[must_use]
    pub fn new(config: &BookieConfig) -> Reserve {
        Reserve {
            path: config.ledger_dir.join(NAME),
            directory: config.ledger_dir.clone(),
            bytes: config.reserve_bytes,
        }
    }

    /// Makes the file, unless it is there.
    ///
    /// # Errors
    /// When the file system refuses; nothing is left behind.
    pub fn make(&self) -> io::Result<()> {
        if self.bytes == 0 || RealDisk.exists(&self.path)? {
            return Ok(());
        }
        segment::zeroed(&RealDisk, &self.path, self.bytes, &|_| ())
            .map(drop)
            .inspect_err(|_| {
                // Best effort: what is left of it is given up with the next need.
                let _ = RealDisk.remove(&self.path);
            })
    }

    /// Gives the file up when next to nothing is free. Returns whether it did.
    pub fn give_up_if_needed(&self) -> bool {
        let gave_up = self.is_low() && RealDisk.remove(&self.path).is_ok();
        if gave_up {
            tracing::warn!(
                path = %self.path.display(),
                "the disk is full: the reserve is given up for subscriptions and deletions"
            );
        }
        gave_up
    }

    fn is_low(&self) -> bool {
        let low = u64::try_from(self.bytes / 2).unwrap_or(u64::MAX);
        let space = RealDisk.space(&self.directory);
        space.is_ok_and(|space| space.available_bytes < low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_made_once_and_stays_while_there_is_room() {
        let directory = tempfile::tempdir().unwrap();
        let config = BookieConfig {
            reserve_bytes: 1 << 20,
            ..BookieConfig::in_directory(directory.path())
        };
        std::fs::create_dir_all(&config.ledger_dir).unwrap();
        let reserve = Reserve::new(&config);
        reserve.make().unwrap();
        reserve.make().unwrap();
        assert_eq!(std::fs::metadata(&reserve.path).unwrap().len(), 1 << 20);
        assert!(!reserve.give_up_if_needed());
        assert!(reserve.path.exists());
    }

    #[test]
    fn it_goes_when_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let reserve = Reserve {
            path: directory.path().join(NAME),
            directory: directory.path().to_owned(),
            // More than any disk has.
            bytes: usize::MAX,
        };
        std::fs::write(&reserve.path, "reserve").unwrap();
        assert!(reserve.give_up_if_needed());
        assert!(!reserve.path.exists());
    }
}
