//! What certificates say, for people.

use std::net::IpAddr;
use std::path::Path;

use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use crate::net::tls::error::TlsError;
use crate::net::tls::pem;

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Its subject, for people: only alternative names count as names.
    pub subject: String,
    /// The subject of the authority that signed it.
    pub issuer: String,
    /// Its alternative names: URIs, host names, addresses.
    pub names: Vec<String>,
    /// Whether it may sign others.
    pub is_authority: bool,
    /// The first second, since 1970, in which it is valid.
    pub begins_s: u64,
    /// The last one.
    pub expires_s: u64,
}

/// The certificates of a file, in their order.
///
/// # Errors
/// When the file cannot be read or holds none.
pub fn describe(path: &Path) -> Result<Vec<CertificateInfo>, TlsError> {
    let bytes = pem::read(path)?;
    let mut described = Vec::new();
    for certificate in pem::certificates(path, &bytes)? {
        let Ok((_, parsed)) = parse_x509_certificate(&certificate) else {
            let reason = "it holds something that is no X.509 certificate".to_owned();
            return Err(pem::content(path, reason));
        };
        let alternative = parsed.subject_alternative_name().ok().flatten();
        let names = alternative.map_or(Vec::new(), |names| {
            let names = names.value.general_names.iter();
            names.filter_map(name).collect()
        });
        let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
        described.push(CertificateInfo {
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            names,
            is_authority: parsed.is_ca(),
            begins_s: seconds(parsed.validity().not_before.timestamp()),
            expires_s: seconds(parsed.validity().not_after.timestamp()),
        });
    }
    Ok(described)
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        GeneralName::DNSName(host) => Some((*host).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(IpAddr::from),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(IpAddr::from),
        }
        .map(|address| address.to_string()),
        _ => None,
    }
}
