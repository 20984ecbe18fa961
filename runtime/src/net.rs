//! Listening sockets. Addresses are explicit IP addresses: what a node listens on must not depend
//! on a name server. Every failure says which address it was and what to do.

pub mod bearer;
pub mod dial;
pub mod fetch;
pub mod gathered;
pub mod http;
pub mod reserve;
pub mod stream;
pub mod tls;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

pub use crate::error::NetError;

/// An address to listen on; port 0 lets the operating system choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ListenAddress(SocketAddr);

impl ListenAddress {
    /// An address from its parts.
    #[must_use]
    pub fn new(address: SocketAddr) -> ListenAddress {
        ListenAddress(address)
    }

    /// Any free port on the loopback interface.
    #[must_use]
    pub fn loopback_any_port() -> ListenAddress {
        ListenAddress(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0))
    }

    /// The address as the operating system takes it.
    #[must_use]
    pub fn socket_addr(&self) -> SocketAddr {
        self.0
    }

    /// Whether only this machine can reach it.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.0.ip().is_loopback()
    }
}

impl FromStr for ListenAddress {
    type Err = NetError;

    fn from_str(given: &str) -> Result<ListenAddress, NetError> {
        let bad = || NetError::BadAddress {
            given: given.to_owned(),
        };
        // `localhost` needs no name server, and people write it.
        if let Some(port) = given.strip_prefix("localhost:") {
            let port = port.parse::<u16>().map_err(|_| bad())?;
            return Ok(ListenAddress(SocketAddr::new(
                IpAddr::V4(Ipv4Addr::LOCALHOST),
                port,
            )));
        }
        given.parse().map(ListenAddress).map_err(|_| bad())
    }
}

impl TryFrom<String> for ListenAddress {
    type Error = NetError;

    fn try_from(given: String) -> Result<ListenAddress, NetError> {
        given.parse()
    }
}

impl From<ListenAddress> for String {
    fn from(address: ListenAddress) -> String {
        address.to_string()
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Listens on an address. Returns the listener and the address it really has, which differs from
/// the requested one when that has port 0.
#[allow(
    clippy::disallowed_methods,
    reason = "the one place that opens listening sockets"
)]
pub async fn bind(address: ListenAddress) -> Result<(TcpListener, SocketAddr), NetError> {
    let wanted = address.0;
    let failed = |source| failed(wanted, source);
    let listener = TcpListener::bind(wanted).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Why a socket cannot have an address.
fn failed(address: SocketAddr, source: io::Error) -> NetError {
    match source.kind() {
        io::ErrorKind::AddrInUse => NetError::InUse { address },
        io::ErrorKind::AddrNotAvailable => NetError::NotLocal { address },
        io::ErrorKind::PermissionDenied => NetError::Denied { address },
        _ => NetError::Io { address, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse_or_say_what_to_give() {
        let parse = |given: &str| given.parse::<ListenAddress>();
        assert!(parse("127.0.0.1:7650").unwrap().is_loopback());
        assert!(parse("localhost:1").unwrap().is_loopback());
        assert!(parse("[::1]:7650").unwrap().is_loopback());
        assert!(!parse("0.0.0.0:7650").unwrap().is_loopback());
        for bad in [
            "",
            "7650",
            ":7650",
            "127.0.0.1",
            "host.example:1",
            "127.0.0.1:70000",
        ] {
            let message = parse(bad).unwrap_err().to_string();
            assert!(message.contains("127.0.0.1:7650"), "{message}");
        }
    }

    #[tokio::test]
    async fn port_zero_gets_a_port_and_a_second_bind_is_refused_by_name() {
        let (listener, bound) = bind(ListenAddress::loopback_any_port()).await.unwrap();
        assert_ne!(bound.port(), 0);
        let error = bind(ListenAddress::new(bound)).await.unwrap_err();
        assert!(matches!(error, NetError::InUse { address } if address == bound));
        assert!(error.to_string().contains(&bound.to_string()));
        drop(listener);
    }

    #[tokio::test]
    async fn an_address_of_another_machine_is_refused() {
        // 192.0.2.0/24 is reserved for documentation: no interface has it.
        let foreign = "192.0.2.1:0".parse().unwrap();
        let error = bind(foreign).await.unwrap_err();
        assert!(matches!(error, NetError::NotLocal { .. }), "{error:?}");
    }
}
