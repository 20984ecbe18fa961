//! Why certificates cannot be used, and what to do.

use std::path::PathBuf;

/// Why certificates cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read.
    #[error("cannot read {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        reason: String,
    },
    /// A file holds nothing of what it must hold.
    #[error("{} is not usable: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Others may read a key.
    #[error(
        "{} can be read by other users (mode {mode:o}): run `chmod 600` on it, or `chmod 640` when a group must read it",
        path.display()
    )]
    OpenKey {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A certificate is over.
    #[error("the certificate in {} expired: make or request a new one", path.display())]
    Expired {
        /// The file.
        path: PathBuf,
    },
    /// Certificate and key do not belong together, or the library refuses them.
    #[error("the certificate in {} cannot be used: {reason}", path.display())]
    Refused {
        /// The certificate.
        path: PathBuf,
        /// What the TLS library said.
        reason: String,
    },
}
