//! TLS for every port and every connection of this process: which certificates it shows, which it
//! accepts, and how both change while it runs.
//!
//! Invariants:
//! - TLS 1.2 at least; cryptography comes from `ring` alone.
//! - A reload takes effect as a whole or not at all: files that cannot be used leave the former
//!   certificates in service, and say why ([`TlsError`]).
//! - No session is resumed: a resumed one shows no certificate, so that one which has expired, or
//!   whose authority was removed, would still enter.
//! - A peer whose certificate is not accepted any more (expired, authority removed) loses its open
//!   connections within [`RECHECK`].
//! - A client checks chain, host and, inside a cluster, the role of its peer before it sends a
//!   byte.

mod client;
mod config;
mod describe;
mod error;
mod identity;
mod pem;
mod reload;
mod server;

use std::time::Duration;

pub use self::client::{ClientTls, ClientTlsConfig};
pub use self::config::{ClientCertificates, ServerTlsConfig};
pub use self::describe::{CertificateInfo, describe};
pub use self::error::TlsError;
pub use self::identity::{InternalName, PeerCertificate};
pub use self::reload::{Reloaded, Reloads, reload_when_changed};
pub(in crate::net) use self::server::certificate_of;
pub use self::server::{Accepting, ServerTls};

/// How long a peer may take for its handshake.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// How often the certificates of peers with open connections are checked again.
pub const RECHECK: Duration = Duration::from_secs(30);

/// Makes ring what libraries take that bring no cryptography along: called once, first of all. What
/// is here names it itself.
pub fn install_provider() {
    // Only a second call fails, and changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

#[cfg(test)]
mod tests;
