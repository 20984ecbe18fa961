//! Certificates and keys in files.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::parse_x509_certificate;

use crate::net::tls::error::TlsError;

/// Larger files hold something else.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A certificate with its key.
pub(super) struct Certified {
    pub(super) key: Arc<CertifiedKey>,
    /// The second, since 1970, in which it is over.
    pub(super) expires_s: u64,
}

/// Tells whether any of the files has changed.
pub(super) fn fingerprint(files: &[&[u8]]) -> u64 {
    let mut hasher = DefaultHasher::new();
    files.hash(&mut hasher);
    hasher.finish()
}

/// The bytes of a file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |error: std::io::Error| TlsError::Read {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > FILE_BYTES_MAX {
        return Err(content(path, format!("{length} bytes are too many")));
    }
    fs::read(path).map_err(failed)
}

/// The same for a key, which no stranger may read.
pub(super) fn read_key(path: &Path) -> Result<Vec<u8>, TlsError> {
    let bytes = read(path)?;
    let mode = fs::metadata(path).map_or(0, |meta| meta.permissions().mode() & 0o777);
    if mode & 0o027 != 0 {
        let path = path.to_owned();
        return Err(TlsError::OpenKey { path, mode });
    }
    Ok(bytes)
}

/// The certificates of a file, at least one.
pub(super) fn certificates(
    path: &Path,
    bytes: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_slice_iter(bytes)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| content(path, error.to_string()))?;
    if found.is_empty() {
        return Err(content(path, "it holds no certificate in PEM".to_owned()));
    }
    Ok(found)
}

/// The authorities of a file, at least one.
pub(super) fn authorities(path: &Path, bytes: &[u8]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, bytes)? {
        roots
            .add(certificate)
            .map_err(|error| content(path, error.to_string()))?;
    }
    Ok(Arc::new(roots))
}

/// A certificate that is valid now, with the key that belongs to it.
pub(super) fn certified(
    (cert_path, cert): (&Path, &[u8]),
    (key_path, key): (&Path, &[u8]),
    now_s: u64,
) -> Result<Certified, TlsError> {
    let chain = certificates(cert_path, cert)?;
    let expires_s = expires(&chain[0]).ok_or_else(|| {
        let reason = "it holds something that is no X.509 certificate".to_owned();
        content(cert_path, reason)
    })?;
    if expires_s < now_s {
        return Err(TlsError::Expired {
            path: cert_path.to_owned(),
        });
    }
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|error| content(key_path, format!("it holds no private key in PEM: {error}")))?;
    let certified = CertifiedKey::from_der(chain, key, &provider());
    let certified = certified.map_err(|error| TlsError::Refused {
        path: cert_path.to_owned(),
        reason: error.to_string(),
    })?;
    Ok(Certified {
        key: Arc::new(certified),
        expires_s,
    })
}

/// The second, since 1970, in which a certificate is over.
fn expires(certificate: &CertificateDer<'_>) -> Option<u64> {
    let (_, parsed) = parse_x509_certificate(certificate).ok()?;
    u64::try_from(parsed.validity().not_after.timestamp()).ok()
}

pub(super) fn content(path: &Path, reason: String) -> TlsError {
    TlsError::Content {
        path: path.to_owned(),
        reason,
    }
}

/// The one provider of cryptography.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
