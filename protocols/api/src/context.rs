//! What every call knows about its caller.

use std::net::SocketAddr;
use std::time::Duration;

/// Who calls. Authentication fills it; until then every client on a loopback
/// listener is anonymous.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Principal {
    /// No credentials were asked for.
    #[default]
    Anonymous,
    /// An authenticated name.
    Named(String),
}

/// Context of one request or stream.
#[derive(Debug, Clone, Default)]
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
