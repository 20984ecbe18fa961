//! Connections of HTTP/1: few at once, and none that is slow or silent for long, because each costs
//! a file descriptor that storage may need. What is served over them is the caller's.
//!
//! Probes have places of their own ([`places`]): whatever others do, an orchestrator learns that
//! the process works.
//!
//! A request's head must be complete within [`HEAD_MAX`], which also bounds the time between two
//! requests. Its body is the service's to bound.

mod places;

use std::convert::Infallible;
use std::error::Error;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tonic::transport::server::Connected;
use tower_service::Service;

use self::places::{Place, Places};
use crate::clock::sleep;
use crate::net::stream::{PeerInfo, ServerStream};
use crate::net::tls::ServerTls;
use crate::task::{ShutdownToken, TaskGroup};

/// Connections that are open at once, at most.
pub const CONNECTIONS_MAX: usize = places::OPEN_MAX;
/// A head must come within this, from the end of the request before.
const HEAD_MAX: Duration = Duration::from_secs(10);
/// The same for a connection that is served probes alone.
const PROBE_HEAD_MAX: Duration = Duration::from_secs(5);
/// What a connection holds of heads and bodies that come and go.
const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// Longest time in which neither side sends a byte: longer than an answer may take.
const SILENCE: Duration = Duration::from_secs(60);
/// Longest life of a connection, so that one byte now and then does not keep it.
const LIFE: Duration = Duration::from_secs(600);
/// How long to wait when the process has no file descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy)]
struct Deadlines {
    head: Duration,
    silence: Duration,
}

/// Serves until `tasks` shuts down, in plain text without `tls`. Requests for a path in `probes`
/// are answered when there are too many connections for others too; others are answered 503 then.
/// Requests carry what is known of
/// their connection in their extensions: the parts of [`PeerInfo`], each by itself.
pub fn serve<S, B>(
    listener: TcpListener,
    tls: Option<Arc<ServerTls>>,
    probes: &'static [&'static str],
    service: S,
    tasks: &TaskGroup,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
    B: Body + From<&'static str> + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let deadlines = Deadlines {
        head: HEAD_MAX,
        silence: SILENCE,
    };
    serve_within(deadlines, (listener, tls), probes, service, tasks);
}

fn serve_within<S, B>(
    deadlines: Deadlines,
    (listener, tls): (TcpListener, Option<Arc<ServerTls>>),
    probes: &'static [&'static str],
    service: S,
    tasks: &TaskGroup,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
    B: Body + From<&'static str> + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let shutdown = tasks.shutdown_token();
    let group = tasks.clone();
    let places = Places::new();
    tasks.spawn("http", async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.wait() => break,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an HTTP connection");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let place = tokio::select! {
                place = places.enter(peer.ip()) => place,
                () = shutdown.wait() => break,
            };
            let stream = ServerStream::new(stream, tls.as_ref());
            let known = stream.connect_info();
            let connection = Connection::new(stream, deadlines.silence, Arc::clone(&place));
            let (service, token) = (service.clone(), group.shutdown_token());
            let serving = drive(
                connection,
                (place, probes),
                known,
                deadlines.head,
                service,
                token,
            );
            group.spawn("http-connection", serving);
        }
    });
}

/// Serves one connection to its end, or until another needs its place; after a shutdown, the
/// request at hand.
async fn drive<S, B>(
    connection: Connection,
    (place, probes): (Arc<Place>, &'static [&'static str]),
    known: PeerInfo,
    head: Duration,
    service: S,
    shutdown: ShutdownToken,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
    B: Body + From<&'static str> + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let is_for_probes = place.is_for_probes();
    let answering = Arc::clone(&place);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(known.tcp.clone());
        request.extensions_mut().insert(known.certificate.clone());
        let mut service = service.clone();
        let busy = answering.answers();
        async move {
            let _busy = busy;
            if is_for_probes && !probes.contains(&request.uri().path()) {
                return Ok(too_many());
            }
            poll_fn(|context| service.poll_ready(context)).await?;
            service.call(request).await
        }
    });
    let head = match is_for_probes {
        true => head.min(PROBE_HEAD_MAX),
        false => head,
    };
    let mut builder = Builder::new();
    // Without a timer the limit of heads would not be kept.
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .keep_alive(!is_for_probes)
        .max_buf_size(BUFFER_BYTES_MAX);
    let mut serving = pin!(builder.serve_connection(TokioIo::new(connection), service));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = shutdown.wait() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
        () = place.ended() => {
            tracing::debug!("HTTP connection ended: another needs its place");
            return;
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "HTTP connection ended");
    }
}

fn too_many<B: From<&'static str>>() -> Response<B> {
    let mut response = Response::new(B::from("too many connections: try again later\n"));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response
}

type Alarm = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A connection that fails when its peer is silent or slow for too long.
struct Connection {
    stream: ServerStream,
    silence: Duration,
    quiet: Alarm,
    end: Alarm,
    place: Arc<Place>,
}

impl Connection {
    fn new(stream: ServerStream, silence: Duration, place: Arc<Place>) -> Connection {
        Connection {
            stream,
            silence,
            quiet: Box::pin(sleep(silence)),
            end: Box::pin(sleep(LIFE)),
            place,
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
        let sent = self.progress(context, |stream, context| stream.poll_write(context, bytes));
        if matches!(sent, Poll::Ready(Ok(_))) {
            self.place.sent();
        }
        sent
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
