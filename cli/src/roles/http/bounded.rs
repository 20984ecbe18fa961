//! Connections of the HTTP port: few at once, and none that is slow or silent for long. A
//! request for health or metrics takes a moment, so a connection that takes longer is closed: it
//! costs a file descriptor that storage may need.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use aquifer_runtime::clock::sleep;
use aquifer_runtime::net::stream::ServerStream;
use aquifer_runtime::net::tls::ServerTls;
use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections at once; more are closed as they come. A request of HTTP/1 holds at most about
/// 400 KiB of headers, so these hold 26 MiB at most.
pub const CONNECTIONS_MAX: usize = 64;
/// Longest time without a byte from the peer: for its request, and between two requests.
const SILENCE: Duration = Duration::from_secs(30);
/// Longest life of a connection, so that one byte now and then does not keep it.
const LIFE: Duration = Duration::from_secs(600);
/// How long to wait when the process has no file descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts a bounded number of bounded connections.
pub struct Bounded {
    listener: TcpListener,
    tls: Option<Arc<ServerTls>>,
    slots: Arc<Semaphore>,
    silence: Duration,
}

impl Bounded {
    pub fn new(listener: TcpListener, tls: Option<Arc<ServerTls>>) -> Bounded {
        Bounded {
            listener,
            tls,
            slots: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            silence: SILENCE,
        }
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection for health and metrics");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            match Arc::clone(&self.slots).try_acquire_owned() {
                Ok(slot) => {
                    let stream = ServerStream::new(stream, self.tls.as_ref());
                    return (Connection::new(stream, self.silence, slot), peer);
                }
                Err(_) => tracing::debug!(%peer, "HTTP connection refused: too many"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

type Alarm = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A connection that fails when its peer is silent or slow for too long.
pub struct Connection {
    stream: ServerStream,
    silence: Duration,
    quiet: Alarm,
    end: Alarm,
    _slot: OwnedSemaphorePermit,
}

impl Connection {
    fn new(stream: ServerStream, silence: Duration, slot: OwnedSemaphorePermit) -> Connection {
        Connection {
            stream,
            silence,
            quiet: Box::pin(sleep(silence)),
            end: Box::pin(sleep(LIFE)),
            _slot: slot,
        }
    }

    /// Either way must make progress in time.
    fn progress<T>(
        &mut self,
        context: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut ServerStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let late = |what| Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, what)));
        if self.end.as_mut().poll(context).is_ready() {
            return late("the connection was open for too long");
        }
        match poll(Pin::new(&mut self.stream), context) {
            Poll::Ready(done) => {
                self.quiet = Box::pin(sleep(self.silence));
                Poll::Ready(done)
            }
            Poll::Pending if self.quiet.as_mut().poll(context).is_ready() => {
                late("the peer was silent for too long")
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.progress(context, |stream, context| stream.poll_read(context, buffer))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.progress(context, |stream, context| stream.poll_write(context, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use aquifer_runtime::clock::timeout;
    use aquifer_runtime::net::{ListenAddress, bind};
    use axum::Router;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    const HANG: Duration = Duration::from_secs(30);

    async fn connect(address: SocketAddr) -> TcpStream {
        TcpStream::connect(address).await.unwrap()
    }

    /// What the server says until it closes the connection.
    async fn to_the_end(stream: &mut TcpStream) -> String {
        let mut text = Vec::new();
        // A connection that is closed with bytes unread is reset.
        let _ = timeout(HANG, stream.read_to_end(&mut text)).await.unwrap();
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn silent_connections_are_closed_and_too_many_are_refused() {
        let (listener, address) = bind(ListenAddress::loopback_any_port()).await.unwrap();
        let mut bounded = Bounded::new(listener, None);
        bounded.silence = Duration::from_millis(300);
        let router = Router::new().route("/", get(|| async { "here" }));
        let serve = axum::serve(bounded, router).into_future();
        let clients = async {
            let mut silent = Vec::new();
            for _ in 0..CONNECTIONS_MAX + 8 {
                silent.push(connect(address).await);
            }
            // Those beyond the bound are closed at once, the others when their time is over.
            for stream in &mut silent {
                assert_eq!(to_the_end(stream).await, "");
            }
            let mut stream = connect(address).await;
            let request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
            stream.write_all(request).await.unwrap();
            assert!(to_the_end(&mut stream).await.ends_with("here"));
        };
        tokio::select! {
            served = serve => served.unwrap(),
            () = clients => {}
        }
    }
}
