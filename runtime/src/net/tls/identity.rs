//! What a peer's certificate says of it. Only names of the extension for alternative names count,
//! never the subject: matching subjects is how other servers were deceived.

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 1_024;
const INTERNAL_SCHEME: &str = "spiffe://";
const INTERNAL_DOMAIN: &str = ".aquifer";

/// The certificate that a peer has shown, after it was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// The peer's own certificate first.
    pub(super) chain: Vec<CertificateDer<'static>>,
    uris: Vec<String>,
    hosts: Vec<String>,
}

impl PeerCertificate {
    pub(super) fn of(chain: &[CertificateDer<'_>]) -> Option<PeerCertificate> {
        let (_, parsed) = parse_x509_certificate(chain.first()?).ok()?;
        let (mut uris, mut hosts) = (Vec::new(), Vec::new());
        if let Ok(Some(names)) = parsed.subject_alternative_name() {
            for name in &names.value.general_names {
                match name {
                    GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                    GeneralName::DNSName(host) => hosts.push((*host).to_owned()),
                    _ => {}
                }
            }
        }
        Some(PeerCertificate {
            chain: chain.iter().map(|part| part.clone().into_owned()).collect(),
            uris,
            hosts,
        })
    }

    /// The one name by which the peer is known: its URI, or without one its host name. `None` when
    /// it has none, several, or one that is not printable ASCII of up to 1,024 bytes.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        let names = match self.uris.is_empty() {
            true => &self.hosts,
            false => &self.uris,
        };
        let [name] = names.as_slice() else {
            return None;
        };
        let printable = name.bytes().all(|byte| byte.is_ascii_graphic());
        (printable && !name.is_empty() && name.len() <= NAME_BYTES_MAX).then_some(name)
    }

    /// The process of a cluster that this is.
    #[must_use]
    pub fn internal(&self) -> Option<InternalName> {
        let [uri] = self.uris.as_slice() else {
            return None;
        };
        uri.parse().ok()
    }
}

/// The name of a process inside a cluster: `spiffe://CLUSTER.aquifer/ROLE/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InternalName {
    /// The cluster.
    pub cluster: String,
    /// What it does: `broker`, `bookie`, `autorecovery`, `offloader` or `tool`.
    pub role: String,
    /// Which one it is.
    pub name: String,
}

impl fmt::Display for InternalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let InternalName {
            cluster,
            role,
            name,
        } = self;
        write!(
            f,
            "{INTERNAL_SCHEME}{cluster}{INTERNAL_DOMAIN}/{role}/{name}"
        )
    }
}

/// The text is not an internal name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a name of the form spiffe://CLUSTER.aquifer/ROLE/NAME")]
pub struct NotInternal;

impl FromStr for InternalName {
    type Err = NotInternal;

    fn from_str(text: &str) -> Result<InternalName, NotInternal> {
        let rest = text.strip_prefix(INTERNAL_SCHEME).ok_or(NotInternal)?;
        let mut parts = rest.split('/');
        let (host, role, name) = (parts.next(), parts.next(), parts.next());
        let (Some(host), Some(role), Some(name), None) = (host, role, name, parts.next()) else {
            return Err(NotInternal);
        };
        let cluster = host.strip_suffix(INTERNAL_DOMAIN).ok_or(NotInternal)?;
        let is_name = |part: &str| {
            let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            !part.is_empty() && part.bytes().all(legal)
        };
        if ![cluster, role, name].into_iter().all(is_name) {
            return Err(NotInternal);
        }
        Ok(InternalName {
            cluster: cluster.to_owned(),
            role: role.to_owned(),
            name: name.to_owned(),
        })
    }
}
