//! What every call knows about its caller.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The caller of a request. There is no default: whatever makes a context says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// No credentials were asked for. Where they are, it may do nothing.
    Anonymous,
    /// An authenticated caller.
    Named(Arc<Identity>),
}

/// A caller whose credential was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// `KIND:REST`, for example `token:acme/billing` or `cert:alice.example`.
    pub name: String,
    /// Groups that its credential names, `group:ALIAS:NAME`.
    pub groups: Vec<String>,
    /// How it was authenticated.
    pub method: AuthMethod,
    /// When its credential expires, in milliseconds since 1970.
    pub expires_ms: Option<u64>,
}

/// How a caller was authenticated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthMethod {
    /// By a token of our own.
    Token {
        /// Its id.
        id: String,
        /// SHA-256 of the secret that was shown: a rotated token has another one.
        digest: [u8; 32],
    },
    /// By a token of an issuer.
    Jwt {
        /// Its `ALIAS:JTI`, if it has an id.
        id: Option<String>,
        /// When it was issued, in milliseconds since 1970.
        issued_ms: u64,
    },
    /// By the certificate of its connection.
    Certificate,
    /// By the certificate of a broker of this cluster.
    Internal,
}

impl AuthMethod {
    /// Its name in logs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            AuthMethod::Token { .. } => "token",
            AuthMethod::Jwt { .. } => "jwt",
            AuthMethod::Certificate => "certificate",
            AuthMethod::Internal => "internal",
        }
    }
}

impl Principal {
    /// The verified caller, if there is one.
    #[must_use]
    pub fn identity(&self) -> Option<&Arc<Identity>> {
        match self {
            Principal::Anonymous => None,
            Principal::Named(identity) => Some(identity),
        }
    }

    /// Its name in logs.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Principal::Anonymous => "anonymous",
            Principal::Named(identity) => &identity.name,
        }
    }
}

/// The name of the protocol that a client spoke, in the extensions of a request that one handler
/// gives to the service of another in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protocol(pub &'static str);

/// Tells one request from others: in its answer, in logs and in the audit log. A caller may give
/// it, so that it is nothing to rely on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// The header of a request that gives it, and of every answer.
    pub const HEADER: &'static str = "x-request-id";
    /// Longest id that a caller may give.
    pub const BYTES_MAX: usize = 128;

    /// One that a caller gives: letters, digits and `-_.`, so that it can be written everywhere.
    #[must_use]
    pub fn given(text: &str) -> Option<RequestId> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let is_plain = (1..=RequestId::BYTES_MAX).contains(&text.len()) && text.bytes().all(plain);
        is_plain.then(|| RequestId(text.into()))
    }

    /// One that was drawn.
    #[must_use]
    pub fn drawn(random: [u8; 16]) -> RequestId {
        RequestId(format!("{:032x}", u128::from_be_bytes(random)).into())
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Context of one request or stream.
#[derive(Debug, Clone)]
pub struct RequestContext {
    /// The caller.
    pub principal: Principal,
    /// The protocol handler's name, for spans and metrics.
    pub protocol: &'static str,
    /// The caller's address.
    pub peer: Option<SocketAddr>,
    /// The answer is of no use after this, on the runtime clock's monotonic scale.
    pub deadline: Option<Duration>,
    /// W3C `traceparent` of the caller.
    pub traceparent: Option<String>,
    /// What it is called; `None`: it has no answer that could tell.
    pub request_id: Option<RequestId>,
    /// Whether its caller asks the broker that a redirect names. For one that cannot, the broker
    /// that is asked asks that one.
    pub follows_redirects: bool,
}

impl RequestContext {
    /// A request of a caller, about which nothing else is known.
    #[must_use]
    pub fn of(principal: Principal, protocol: &'static str) -> RequestContext {
        RequestContext {
            principal,
            protocol,
            peer: None,
            deadline: None,
            traceparent: None,
            request_id: None,
            follows_redirects: true,
        }
    }

    /// A request without credentials.
    #[must_use]
    pub fn anonymous(protocol: &'static str) -> RequestContext {
        RequestContext::of(Principal::Anonymous, protocol)
    }
}

#[test]
fn an_id_that_is_given_can_be_written_everywhere() {
    let longest = "x".repeat(RequestId::BYTES_MAX);
    for good in ["a", "A-1_b.c", &longest] {
        let id = RequestId::given(good).map(|id| id.to_string());
        assert_eq!(id.as_deref(), Some(good));
    }
    let long = "x".repeat(RequestId::BYTES_MAX + 1);
    for bad in ["", "a b", "a\n", "\u{e4}", "a/b", "{\"", &long] {
        assert_eq!(RequestId::given(bad), None, "{bad:?}");
    }
    assert_eq!(RequestId::drawn([1; 16]).as_str(), "01".repeat(16));
}
