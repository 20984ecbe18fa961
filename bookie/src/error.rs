//! Why a bookie does not start. What a running bookie answers is
//! [`aquifer_model::storage::BookieError`].

use std::io;
use std::path::PathBuf;

use aquifer_metadata::error::MetadataError;
use aquifer_model::id::BookieId;
use thiserror::Error;

/// Why a bookie did not start; [`BookieOpenError::advice`] says what to do.
#[derive(Debug, Error)]
pub enum BookieOpenError {
    /// Settings that contradict each other.
    #[error("bookie configuration: {0}")]
    Config(String),
    /// Another process has the directory.
    #[error("{} is in use by another process", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// A directory belongs to another bookie, or lost its cookie.
    #[error(
        "{}: {what}. A directory that is missing or swapped means lost data, so the bookie does \
         not start",
        path.display()
    )]
    Cookie {
        /// The cookie file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The directory belongs to another cluster, or to none.
    #[error("{}: {what}", path.display())]
    Cluster {
        /// The cookie file.
        path: PathBuf,
        /// Whose it is.
        what: String,
    },
    /// Metadata does not know this bookie although it should.
    #[error(
        "cluster {cluster} does not know bookie {bookie} any more: its cookie is missing from \
         metadata"
    )]
    NotAMember {
        /// The bookie.
        bookie: BookieId,
        /// The cluster.
        cluster: String,
    },
    /// The cookie in metadata is not this bookie's.
    #[error(
        "the cookie of bookie {bookie} in the metadata of cluster {cluster} is not its own: {what}"
    )]
    ForeignMember {
        /// The bookie.
        bookie: BookieId,
        /// The cluster.
        cluster: String,
        /// What is wrong with it.
        what: String,
    },
    /// Metadata could not be asked.
    #[error("metadata: {0}")]
    Metadata(#[from] MetadataError),
    /// A file operation failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// There is no room to start in. Nothing is damaged.
    #[error("{}: the disk is full, and a start needs some free space: {message}", path.display())]
    Full {
        /// The directory.
        path: PathBuf,
        /// What the operating system or RocksDB said.
        message: String,
    },
    /// RocksDB refused to open its files, or to read or write them during start.
    #[error("the ledger store in {} cannot be opened: {message}", path.display())]
    Store {
        /// The directory.
        path: PathBuf,
        /// What RocksDB said.
        message: String,
    },
    /// Bytes of a format that this build does not know.
    #[error("{}: {what}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

impl BookieOpenError {
    /// What an operator can do about it. Only in a cluster have others copies: elsewhere no
    /// operator is told to begin with an empty directory.
    #[must_use]
    pub fn advice(&self, in_cluster: bool) -> &'static str {
        match self {
            BookieOpenError::Config(_) => {
                "correct the configuration; --check-config shows what it comes to"
            }
            BookieOpenError::Locked { .. } => {
                "stop that process, or give this one a directory of its own"
            }
            BookieOpenError::Cookie { .. } if in_cluster => {
                "mount the right directories; never copy or delete a cookie. If a disk is lost for \
                 good, start the bookie with an empty directory: it is then a new bookie, and \
                 repair restores its copies from others; decommission the old id"
            }
            BookieOpenError::Cookie { .. } => {
                "mount the right directories; never copy or delete a cookie"
            }
            BookieOpenError::Cluster { .. } => {
                "give it a directory of its own, or the right cluster"
            }
            BookieOpenError::NotAMember { .. } => {
                "either this is not the metadata that it joined: check the address and the name of \
                 the cluster, or restore metadata; or the bookie was taken out for good: then start \
                 it with an empty directory, as another bookie"
            }
            BookieOpenError::ForeignMember { .. } => {
                "check the address of the metadata and the name of the cluster; nothing was changed"
            }
            BookieOpenError::Metadata(_) => "see whether the metadata store answers; try again",
            BookieOpenError::Io { .. } => {
                "see whether the disk is mounted, has free space, and lets this process write there"
            }
            BookieOpenError::Full { .. } => {
                "nothing is damaged or lost: free some 64 MiB on that file system (logs, files of \
                 other programs, never files of this directory) or enlarge it, and start again; \
                 then delete topics to free space"
            }
            BookieOpenError::Store { .. } if in_cluster => {
                "restore its files; or start the bookie with an empty directory: it is then a new \
                 bookie, and repair restores its copies from others; decommission the old id"
            }
            BookieOpenError::Store { .. } => {
                "restore its files from a backup of the whole data directory. If a single file is \
                 missing and there is no backup, --accept-loss continues without it"
            }
            BookieOpenError::Format { .. } => {
                "if a later version wrote it, use that version; if it is damaged, restore it"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Data that no other bookie has is not given up on a tool's advice.
    #[test]
    fn only_a_cluster_is_told_to_begin_with_an_empty_directory() {
        let path = || PathBuf::from("x");
        let damaged = [
            BookieOpenError::Store {
                path: path(),
                message: "bad".to_owned(),
            },
            BookieOpenError::Cookie {
                path: path(),
                what: "bad".to_owned(),
            },
        ];
        for error in damaged {
            assert!(error.advice(true).contains("empty directory"), "{error}");
            assert!(!error.advice(false).contains("empty"), "{error}");
            assert!(!error.advice(false).is_empty(), "{error}");
        }
    }
}
