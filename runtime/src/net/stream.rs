//! An accepted connection, in plain text or TLS. The handshake is completed by the first read or
//! write, so by the connection's own task: a peer that is slow at it holds up no other peer.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::clock::sleep;
use crate::net::tls::{Accepting, HANDSHAKE_MAX, PeerCertificate, RECHECK, ServerTls};

/// See the module.
pub struct ServerStream {
    state: State,
    info: TcpConnectInfo,
    guard: Option<Guard>,
    certificate: SharedCertificate,
}

/// The certificate of a connection's peer, for what is made before the handshake is done.
#[derive(Debug, Clone, Default)]
pub struct SharedCertificate(Arc<OnceLock<PeerCertificate>>);

impl SharedCertificate {
    /// The certificate; `None` before the handshake, and for a peer without one.
    #[must_use]
    pub fn get(&self) -> Option<&PeerCertificate> {
        self.0.get()
    }
}

type Alarm = Pin<Box<dyn Future<Output = ()> + Send>>;

enum State {
    Plain(TcpStream),
    Handshake(Box<Handshake>),
    Tls(Box<TlsStream<TcpStream>>),
    Failed,
}

struct Handshake {
    accepting: Accepting,
    tls: Arc<ServerTls>,
    /// When it must be done.
    limit: Alarm,
}

/// Looks from time to time whether the peer's certificate is still accepted.
struct Guard {
    tls: Arc<ServerTls>,
    peer: PeerCertificate,
    next: Alarm,
}

/// What a connection is in the end.
trait Bytes: AsyncRead + AsyncWrite {}

impl<T: AsyncRead + AsyncWrite> Bytes for T {}

impl ServerStream {
    /// A connection that was accepted; with `tls` it begins with a handshake.
    #[must_use]
    pub fn new(stream: TcpStream, tls: Option<&Arc<ServerTls>>) -> ServerStream {
        let info = TcpConnectInfo {
            local_addr: stream.local_addr().ok(),
            remote_addr: stream.peer_addr().ok(),
        };
        let state = match tls {
            None => State::Plain(stream),
            Some(tls) => State::Handshake(Box::new(Handshake {
                accepting: tls.accept(stream),
                tls: Arc::clone(tls),
                limit: Box::pin(sleep(HANDSHAKE_MAX)),
            })),
        };
        ServerStream {
            state,
            info,
            guard: None,
            certificate: SharedCertificate::default(),
        }
    }

    /// The certificate of the peer; `None` before the handshake, and for a peer without one.
    #[must_use]
    pub fn peer_certificate(&self) -> Option<&PeerCertificate> {
        self.guard.as_ref().map(|guard| &guard.peer)
    }

    /// The same for what outlives this borrow.
    #[must_use]
    pub fn shared_certificate(&self) -> SharedCertificate {
        self.certificate.clone()
    }

    /// The connection, once its handshake is done.
    fn poll_open(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<Pin<&mut (dyn Bytes + Unpin)>>> {
        if let State::Handshake(handshake) = &mut self.state {
            match ready!(handshake.poll(context)) {
                Ok((stream, guard)) => {
                    if let Some(guard) = &guard {
                        // It is set once: there is one handshake.
                        let _ = self.certificate.0.set(guard.peer.clone());
                    }
                    self.guard = guard;
                    self.state = State::Tls(stream);
                }
                Err(error) => {
                    tracing::debug!(%error, "TLS handshake failed");
                    self.state = State::Failed;
                    return Poll::Ready(Err(error));
                }
            }
        }
        Poll::Ready(match &mut self.state {
            State::Plain(stream) => Ok(Pin::new(stream)),
            State::Tls(stream) => Ok(Pin::new(&mut **stream)),
            State::Handshake(_) | State::Failed => Err(io::ErrorKind::ConnectionAborted.into()),
        })
    }

    /// An error once the peer's certificate is not accepted any more.
    fn poll_guard(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let Some(guard) = &mut self.guard else {
            return Poll::Pending;
        };
        while guard.next.as_mut().poll(context).is_ready() {
            if !guard.tls.still_accepts(&guard.peer) {
                let message = "the peer's certificate is not accepted any more";
                tracing::info!(name = guard.peer.name(), message);
                self.state = State::Failed;
                return Poll::Ready(io::Error::new(io::ErrorKind::PermissionDenied, message));
            }
            guard.next = Box::pin(sleep(RECHECK));
        }
        Poll::Pending
    }
}

type Opened = (Box<TlsStream<TcpStream>>, Option<Guard>);

impl Handshake {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Opened>> {
        let Poll::Ready(accepted) = self.accepting.poll(context) else {
            // Here and not in what wraps the stream, because HTTP/2 writes before it reads.
            ready!(self.limit.as_mut().poll(context));
            let late = io::Error::new(io::ErrorKind::TimedOut, "no TLS handshake in time");
            return Poll::Ready(Err(late));
        };
        Poll::Ready(accepted.and_then(|stream| {
            let peer = crate::net::tls::certificate_of(&stream);
            if !self.tls.admits(peer.as_ref()) {
                let kind = io::ErrorKind::PermissionDenied;
                return Err(io::Error::new(kind, "not a process of this cluster"));
            }
            let guard = peer.map(|peer| Guard {
                tls: Arc::clone(&self.tls),
                peer,
                next: Box::pin(sleep(RECHECK)),
            });
            Ok((Box::new(stream), guard))
        }))
    }
}

/// What the requests of a connection know of it.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// Its addresses.
    pub tcp: TcpConnectInfo,
    /// The certificate of its peer.
    pub certificate: SharedCertificate,
}

impl Connected for ServerStream {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        PeerInfo {
            tcp: self.info.clone(),
            certificate: self.shared_certificate(),
        }
    }
}

impl AsyncRead for ServerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // The handshake sets the guard, which wakes a read that waits.
        ready!(self.poll_open(context))?;
        if let Poll::Ready(error) = self.poll_guard(context) {
            return Poll::Ready(Err(error));
        }
        ready!(self.poll_open(context))?.poll_read(context, buffer)
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(context))?.poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(context))?.poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_open(context))?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            State::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(context),
            // Nothing of it was sent.
            State::Handshake(_) | State::Failed => Poll::Ready(Ok(())),
        }
    }
}
