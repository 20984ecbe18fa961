//! Ports for processes that are started next.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;

use tokio::net::TcpSocket;

use crate::error::NetError;
use crate::net::failed;
use crate::rng::Rng;

/// Ports above those of services and below those that operating systems give to outgoing
/// connections.
const RESERVED_PORTS: Range<u16> = 10_240..32_768;
const ATTEMPTS: usize = 64;

/// A loopback port for another process, which may listen at it and come and go as long as this
/// lives: nothing else that reserves a port is given it.
///
/// The socket is bound, and never listens. A process that binds with `SO_REUSEADDR`, as servers do,
/// may then listen at the same port; one that binds without, as [`reserve`] does, may not.
#[derive(Debug)]
pub struct Reserved {
    address: SocketAddr,
    _socket: TcpSocket,
}

impl Reserved {
    /// Where the other process is to listen.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn at(port: u16) -> Result<Reserved, NetError> {
        let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let failed = |source| failed(wanted, source);
        let socket = TcpSocket::new_v4().map_err(failed)?;
        // Without `SO_REUSEADDR`, so that this fails where anything else is bound.
        socket.bind(wanted).map_err(failed)?;
        socket.set_reuseaddr(true).map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Reserved {
            address,
            _socket: socket,
        })
    }
}

/// Reserves a free loopback port. It lies where no outgoing connection gets its port.
///
/// # Errors
/// When no port is free.
pub fn reserve(rng: &dyn Rng) -> Result<Reserved, NetError> {
    for _ in 0..ATTEMPTS {
        let below = rng.below(u64::from(RESERVED_PORTS.end - RESERVED_PORTS.start));
        let port = RESERVED_PORTS.start + u16::try_from(below).unwrap_or_default();
        match Reserved::at(port) {
            Err(NetError::InUse { .. }) => {}
            outcome => return outcome,
        }
    }
    Reserved::at(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{ListenAddress, bind};
    use crate::rng::{SeededRng, SystemRng};

    #[tokio::test]
    async fn a_reserved_port_is_for_one_process_and_none_of_outgoing_connections() {
        // Another one in each run: runs beside each other would meet at the ports of one seed.
        let seed = SystemRng.next_u64();
        let drawn = || SeededRng::new(seed);
        let first = reserve(&drawn()).unwrap();
        let at = first.address();
        assert!(RESERVED_PORTS.contains(&at.port()), "{at}");
        // The process may listen there, and again after it has ended. The same draw meets the port
        // that is taken, before, meanwhile and afterwards, and goes on.
        for _ in 0..2 {
            assert_ne!(reserve(&drawn()).unwrap().address(), at);
            let (listener, _) = bind(ListenAddress::new(at)).await.unwrap();
            assert_ne!(reserve(&drawn()).unwrap().address(), at);
            drop(listener);
        }
        drop(first);
        assert_eq!(Reserved::at(at.port()).unwrap().address(), at);
    }
}
