//! Connections as they are accepted: how many, and how long each may be silent. HTTP/2 keepalive
//! makes live peers answer, so silence beyond it means a peer that is gone, or one that never
//! meant to speak.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use aquifer_runtime::budget::ByteBudget;
use aquifer_runtime::clock::{SharedClock, sleep};
use aquifer_runtime::net::gathered::Gathered;
use aquifer_runtime::net::stream::ServerStream;
use aquifer_runtime::net::tls::ServerTls;
use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::server::Connected;

use crate::config::GrpcConfig;
use crate::inbound::{Gate, Peer};
use crate::metrics::{Metrics, Open};

/// How long to wait when the process has no file descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// As many connections at once as the configuration allows, over all listeners.
pub(crate) fn slots(config: &GrpcConfig) -> Arc<Semaphore> {
    let connections = config.connections_max.min(Semaphore::MAX_PERMITS);
    Arc::new(Semaphore::new(connections))
}

/// Accepts connections while there are slots for them.
pub(crate) fn accept(
    (listener, tls): (TcpListener, Option<Arc<ServerTls>>),
    config: &GrpcConfig,
    slots: Arc<Semaphore>,
    gate: Gate,
    clock: SharedClock,
    metrics: Metrics,
) -> impl Stream<Item = io::Result<Gathered<Connection>>> + Send + use<> {
    let deadlines = Deadlines {
        first_byte: config.handshake_timeout(),
        silence: config.idle_timeout(),
    };
    let acceptor = (listener, tls, slots, gate, clock, metrics);
    futures::stream::unfold(
        acceptor,
        move |(listener, tls, slots, gate, clock, metrics)| async move {
            let connection = loop {
                let (stream, peer) = match listener.accept().await {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                };
                let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                    metrics.connection_refused();
                    tracing::debug!(%peer, "connection refused: too many");
                    continue;
                };
                // Without this, small receipts wait for the peer's delayed acknowledgement.
                if stream.set_nodelay(true).is_ok() {
                    let open = metrics.connection();
                    let share = (gate.connection(), slot, open);
                    let stream = ServerStream::new(stream, tls.as_ref());
                    let connection = Connection::new(stream, deadlines, clock.clone(), share);
                    break Gathered::new(connection);
                }
            };
            Some((Ok(connection), (listener, tls, slots, gate, clock, metrics)))
        },
    )
}

#[derive(Debug, Clone, Copy)]
struct Deadlines {
    first_byte: Duration,
    silence: Duration,
}

/// A connection that fails when its peer is silent for too long.
pub(crate) struct Connection {
    stream: ServerStream,
    clock: SharedClock,
    silence: Duration,
    /// When the peer must have been heard; moved by every read.
    deadline: Duration,
    /// Wakes at, or before, the deadline: it is re-armed only when it fires, not on every read.
    alarm: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// What its requests may hold while they are read.
    room: ByteBudget,
    _counted: (OwnedSemaphorePermit, Open),
}

impl Connection {
    fn new(
        stream: ServerStream,
        deadlines: Deadlines,
        clock: SharedClock,
        (room, slot, open): (ByteBudget, OwnedSemaphorePermit, Open),
    ) -> Connection {
        Connection {
            stream,
            deadline: clock.monotonic() + deadlines.first_byte,
            clock,
            silence: deadlines.silence,
            alarm: Box::pin(sleep(deadlines.first_byte)),
            room,
            _counted: (slot, open),
        }
    }

    fn poll_silence(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        while self.alarm.as_mut().poll(context).is_ready() {
            let left = self.deadline.saturating_sub(self.clock.monotonic());
            if left.is_zero() {
                let message = "the peer was silent for too long";
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            self.alarm = Box::pin(sleep(left));
        }
        Poll::Pending
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Ready(read) => {
                self.deadline = self.clock.monotonic() + self.silence;
                Poll::Ready(read)
            }
            Poll::Pending => self.poll_silence(context).map(Err),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        let known = self.stream.connect_info();
        Peer {
            tcp: known.tcp,
            room: self.room.clone(),
            certificate: known.certificate,
        }
    }
}
