//! Why a bookie does not start. What a running bookie answers is
//! [`aquifer_model::storage::BookieError`].

use std::io;
use std::path::PathBuf;

use aquifer_metadata::error::MetadataError;
use aquifer_model::id::BookieId;
use thiserror::Error;

/// Why a bookie did not start. Every message says what to do.
#[derive(Debug, Error)]
pub enum BookieOpenError {
    /// Settings that contradict each other.
    #[error("bookie configuration: {0}")]
    Config(String),
    /// Another process has the directory.
    #[error(
        "{} is in use by another process: stop it, or give this one a directory of its own",
        path.display()
    )]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// A directory belongs to another bookie, or lost its cookie.
    #[error(
        "{}: {what}. A directory that is missing or swapped means lost data, so the bookie does \
         not start. Mount the right directories; never copy or delete a cookie",
        path.display()
    )]
    Cookie {
        /// The cookie file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The directory belongs to another cluster, or to none.
    #[error("{}: {what}. Give it a directory of its own, or the right cluster", path.display())]
    Cluster {
        /// The cookie file.
        path: PathBuf,
        /// Whose it is.
        what: String,
    },
    /// Metadata does not know this bookie although it should.
    #[error(
        "cluster {cluster} does not know bookie {bookie} any more: its cookie is missing from \
         metadata. Either this is not the metadata that it joined (check the address and the name \
         of the cluster, restore metadata), or the bookie was taken out for good: then start it \
         with an empty directory, as another bookie"
    )]
    NotAMember {
        /// The bookie.
        bookie: BookieId,
        /// The cluster.
        cluster: String,
    },
    /// The cookie in metadata is not this bookie's.
    #[error(
        "the cookie of bookie {bookie} in the metadata of cluster {cluster} is not its own: {what}. \
         Check the address of the metadata and the name of the cluster; nothing was changed"
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
    /// RocksDB refused to open its files, or to read or write them during start.
    #[error(
        "the ledger store in {} cannot be opened: {message}. If files are damaged or missing, \
         restore them; with replicas elsewhere, start with an empty directory and let them repair",
        path.display()
    )]
    Store {
        /// The directory.
        path: PathBuf,
        /// What RocksDB said.
        message: String,
    },
    /// Bytes of a format that this build does not know.
    #[error("{}: {what}: was it written by a later version? Use that version", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}
