//! An accepted connection, in plain text or TLS. The handshake is completed by the first read or
//! write, so by the connection's own task: a peer that is slow at it holds up no
//! other peer, and counts as silent.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::tls::{Accepting, HANDSHAKE_MAX, PeerCertificate, RECHECK, ServerTls};
use crate::clock::sleep;

/// The certificate of a connection's peer; empty before the handshake, and for a peer without one.
pub type PeerSlot = Arc<OnceLock<PeerCertificate>>;

/// See the module.
pub struct ServerStream {
    state: State,
    local: Option<SocketAddr>,
    peer: PeerSlot,
    guard: Option<Guard>,
    /// When the handshake must be done.
    limit: Option<Alarm>,
}

type Alarm = Pin<Box<dyn Future<Output = ()> + Send>>;

enum State {
    Plain(TcpStream),
    Handshake(Box<Accepting>),
    Tls(Box<TlsStream<TcpStream>>),
    Failed,
}

/// Looks from time to time whether the peer's certificate is still accepted.
struct Guard {
    tls: Arc<ServerTls>,
    next: Alarm,
}

impl ServerStream {
    /// A connection that was accepted; with `tls` it begins with a handshake.
    pub fn new(stream: TcpStream, tls: Option<&Arc<ServerTls>>) -> ServerStream {
        let local = stream.local_addr().ok();
        let (state, guard) = match tls {
            None => (State::Plain(stream), None),
            Some(tls) => (
                State::Handshake(Box::new(tls.accept(stream))),
                Some(Guard {
                    tls: Arc::clone(tls),
                    next: Box::pin(sleep(RECHECK)),
                }),
            ),
        };
        ServerStream {
            limit: guard
                .is_some()
                .then(|| Box::pin(sleep(HANDSHAKE_MAX)) as Alarm),
            state,
            local,
            peer: PeerSlot::default(),
            guard,
        }
    }

    /// The address that the peer has connected to.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local
    }

    /// Where the peer's certificate will be.
    pub fn peer(&self) -> PeerSlot {
        Arc::clone(&self.peer)
    }

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let State::Handshake(accepting) = &mut self.state else {
            return Poll::Ready(Ok(()));
        };
        let done = match accepting.poll(context) {
            Poll::Ready(done) => done,
            // Here and not in what wraps the stream, because HTTP/2 writes before it reads.
            Poll::Pending => match &mut self.limit {
                Some(limit) => {
                    ready!(limit.as_mut().poll(context));
                    Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "no TLS handshake in time",
                    ))
                }
                None => return Poll::Pending,
            },
        };
        self.limit = None;
        match done {
            Ok(stream) => {
                let certificate = super::tls::certificate_of(&stream);
                let admits = |guard: &Guard| guard.tls.admits(certificate.as_ref());
                if !self.guard.as_ref().is_some_and(admits) {
                    self.state = State::Failed;
                    tracing::debug!("a peer's certificate does not let it in here");
                    let kind = io::ErrorKind::PermissionDenied;
                    return Poll::Ready(Err(io::Error::new(kind, "not a process of this cluster")));
                }
                if let Some(certificate) = certificate {
                    // The slot is filled here alone, and the handshake ends once.
                    let _ = self.peer.set(certificate);
                } else {
                    self.guard = None;
                }
                self.state = State::Tls(Box::new(stream));
                Poll::Ready(Ok(()))
            }
            Err(error) => {
                tracing::debug!(%error, "TLS handshake failed");
                self.state = State::Failed;
                Poll::Ready(Err(error))
            }
        }
    }

    /// An error once the peer's certificate is not accepted any more.
    fn poll_guard(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let (Some(guard), Some(peer)) = (&mut self.guard, self.peer.get()) else {
            return Poll::Pending;
        };
        while guard.next.as_mut().poll(context).is_ready() {
            if !guard.tls.still_accepts(peer) {
                let message = "the peer's certificate is not accepted any more";
                tracing::info!(name = peer.name(), message);
                self.state = State::Failed;
                return Poll::Ready(io::Error::new(io::ErrorKind::PermissionDenied, message));
            }
            guard.next = Box::pin(sleep(RECHECK));
        }
        Poll::Pending
    }

    fn with<T>(
        &mut self,
        context: &mut Context<'_>,
        plain: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
        tls: impl FnOnce(Pin<&mut TlsStream<TcpStream>>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        ready!(self.poll_ready(context))?;
        match &mut self.state {
            State::Plain(stream) => plain(Pin::new(stream), context),
            State::Tls(stream) => tls(Pin::new(stream), context),
            State::Handshake(_) | State::Failed => {
                Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
            }
        }
    }
}

impl AsyncRead for ServerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let State::Plain(stream) = &mut self.state {
            return Pin::new(stream).poll_read(context, buffer);
        }
        ready!(self.poll_ready(context))?;
        if let Poll::Ready(error) = self.poll_guard(context) {
            return Poll::Ready(Err(error));
        }
        let State::Tls(stream) = &mut self.state else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        };
        Pin::new(stream.as_mut()).poll_read(context, buffer)
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.with(
            context,
            |stream, context| stream.poll_write(context, bytes),
            |stream, context| stream.poll_write(context, bytes),
        )
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.with(
            context,
            |stream, context| stream.poll_write_vectored(context, slices),
            |stream, context| stream.poll_write_vectored(context, slices),
        )
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(
            context,
            |stream, context| stream.poll_flush(context),
            |stream, context| stream.poll_flush(context),
        )
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            State::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
            State::Handshake(_) | State::Failed => Poll::Ready(Ok(())),
        }
    }
}
