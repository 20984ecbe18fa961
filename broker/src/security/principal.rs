//! Names of principals: `KIND:REST`. The kinds are told apart here alone, so that a name which one
//! source of identities gives is never that of another.

use std::sync::Arc;

use aquifer_model::id::BrokerId;
use aquifer_protocol_api::context::{AuthMethod, Identity, Principal};

/// Longest name, in bytes.
pub(crate) const PRINCIPAL_BYTES_MAX: usize = 1_024;

/// What a name may begin with.
const KINDS: [&str; 5] = ["token", "cert", "jwt", "group", "internal"];

/// The principal of a token.
pub(crate) fn of_token(tenant: Option<&str>, name: &str) -> String {
    match tenant {
        Some(tenant) => format!("token:{tenant}/{name}"),
        None => format!("token:{name}"),
    }
}

/// The tenant of the token that a principal is, if it is one of a tenant.
pub(crate) fn tenant_of(name: &str) -> Option<&str> {
    let token = name.strip_prefix("token:")?;
    token.split_once('/').map(|(tenant, _)| tenant)
}

/// The principal of a client's certificate.
pub(crate) fn of_certificate(name: &str) -> String {
    format!("cert:{name}")
}

/// The principal of a broker of this cluster.
pub(crate) fn of_broker(name: &str) -> String {
    format!("internal:broker/{name}")
}

/// As whom a broker calls itself.
pub(crate) fn own(broker: BrokerId) -> Principal {
    Principal::Named(Arc::new(Identity {
        name: of_broker(&broker.to_string()),
        groups: Vec::new(),
        method: AuthMethod::Internal,
        expires_ms: None,
    }))
}

/// Whether a name may be that of a principal; says why not.
pub(crate) fn check(name: &str) -> Result<(), &'static str> {
    if name.len() > PRINCIPAL_BYTES_MAX {
        return Err("a principal has at most 1,024 bytes");
    }
    if !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("a principal is printable ASCII without spaces");
    }
    match name.split_once(':') {
        Some((kind, rest)) if KINDS.contains(&kind) && !rest.is_empty() => Ok(()),
        _ => Err("a principal is KIND:NAME, where KIND is token, cert, jwt or group"),
    }
}

/// Whether grants may be given to it: brokers need none.
pub(crate) fn check_grantee(name: &str) -> Result<(), &'static str> {
    check(name)?;
    match name.starts_with("internal:") {
        true => Err("processes of the cluster need no grants"),
        false => Ok(()),
    }
}

#[test]
fn principals_are_of_a_kind() {
    for good in [
        "token:a",
        "token:acme/b",
        "cert:spiffe://x/alice",
        "group:sso:ops",
    ] {
        assert_eq!(check_grantee(good), Ok(()), "{good}");
    }
    let long = format!("token:{}", "x".repeat(PRINCIPAL_BYTES_MAX));
    for bad in [
        "",
        "alice",
        "user:alice",
        "token:",
        "token:a b",
        "cert:ä",
        "token:\n",
        &long,
    ] {
        assert!(check(bad).is_err(), "{bad:.40}");
    }
    assert!(check("internal:broker/b1").is_ok() && check_grantee("internal:broker/b1").is_err());
}
