//! What every call knows about its caller.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Who calls. There is no default: whatever makes a context says it.
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
    Jwt,
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
            AuthMethod::Jwt => "jwt",
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

/// Context of one request or stream.
#[derive(Debug, Clone)]
pub struct RequestContext {
    /// Who calls.
    pub principal: Principal,
    /// The protocol handler's name, for spans and metrics.
    pub protocol: &'static str,
    /// The caller's address.
    pub peer: Option<SocketAddr>,
    /// The answer is of no use after this, on the runtime clock's monotonic scale.
    pub deadline: Option<Duration>,
    /// W3C `traceparent` of the caller.
    pub traceparent: Option<String>,
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
        }
    }

    /// A request without credentials.
    #[must_use]
    pub fn anonymous(protocol: &'static str) -> RequestContext {
        RequestContext::of(Principal::Anonymous, protocol)
    }
}
