//! How a gRPC client connects with TLS. The library's own TLS cannot be reloaded and does not check
//! roles, so it is given this connector, and plain `http` addresses to connect to.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use crate::net::tls::ClientTls;

/// What addresses with TLS begin with.
pub const HTTPS: &str = "https://";
const HTTP: &str = "http://";
const DEFAULT_PORT: u16 = 443;

type Stream = TokioIo<TlsStream<TcpStream>>;
type Connecting = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

/// Connects to the host and port of an address and makes the connection secret.
#[derive(Debug, Clone)]
pub struct Dialer(Arc<ClientTls>);

impl Dialer {
    /// A connector of this client.
    pub fn new(tls: Arc<ClientTls>) -> Dialer {
        Dialer(tls)
    }

    /// The address that the library is to be given for one with TLS; `None` for plain text.
    pub fn address(url: &str) -> Option<String> {
        url.strip_prefix(HTTPS).map(|rest| format!("{HTTP}{rest}"))
    }
}

impl<U> Service<U> for Dialer
where
    U: Into<http::Uri>,
{
    type Response = Stream;
    type Error = io::Error;
    type Future = Connecting;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: U) -> Connecting {
        let (tls, uri) = (Arc::clone(&self.0), uri.into());
        Box::pin(async move {
            let host = uri.host().unwrap_or_default();
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            let port = uri.port_u16().unwrap_or(DEFAULT_PORT);
            let stream = TcpStream::connect((bare, port)).await?;
            stream.set_nodelay(true)?;
            tls.connect(stream, bare).await.map(TokioIo::new)
        })
    }
}
