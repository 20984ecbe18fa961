//! How gRPC clients connect. Connections are read and written in large pieces
//! ([`Gathered`]). With TLS it is this connector that makes them secret: the library's own TLS
//! cannot be reloaded and does not check roles, so the library is given plain `http` addresses.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use tower_service::Service;

use crate::net::gathered::Gathered;
use crate::net::tls::ClientTls;

/// What addresses with TLS begin with.
pub const HTTPS: &str = "https://";
const HTTP: &str = "http://";
const DEFAULT_PORT: u16 = 443;

type Failure = Box<dyn Error + Send + Sync>;
type Stream = TokioIo<Gathered<Either<TcpStream, TlsStream<TcpStream>>>>;
type Connecting = Pin<Box<dyn Future<Output = Result<Stream, Failure>> + Send>>;

/// Connects to the host and port of an address, and makes the connection secret where it is to be.
#[derive(Debug, Clone)]
pub struct Dialer {
    tls: Option<Arc<ClientTls>>,
    plain: HttpConnector,
}

impl Dialer {
    /// A connector that makes connections secret.
    #[must_use]
    pub fn new(tls: Arc<ClientTls>) -> Dialer {
        Dialer {
            tls: Some(tls),
            ..Dialer::plain()
        }
    }

    /// A connector for plain text.
    #[must_use]
    pub fn plain() -> Dialer {
        let mut plain = HttpConnector::new();
        plain.enforce_http(false);
        // Without this, small messages wait for the peer's delayed acknowledgement.
        plain.set_nodelay(true);
        Dialer { tls: None, plain }
    }

    /// The address that the library is to be given for one with TLS; `None` for plain text.
    #[must_use]
    pub fn address(url: &str) -> Option<String> {
        url.strip_prefix(HTTPS).map(|rest| format!("{HTTP}{rest}"))
    }
}

impl<U> Service<U> for Dialer
where
    U: Into<http::Uri>,
{
    type Response = Stream;
    type Error = Failure;
    type Future = Connecting;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.plain.poll_ready(context).map_err(Failure::from)
    }

    fn call(&mut self, uri: U) -> Connecting {
        let uri = uri.into();
        let Some(tls) = self.tls.clone() else {
            let connecting = self.plain.call(uri);
            return Box::pin(async move {
                let stream = Either::Left(connecting.await?.into_inner());
                Ok(TokioIo::new(Gathered::new(stream)))
            });
        };
        Box::pin(async move {
            let host = uri.host().unwrap_or_default();
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            let port = uri.port_u16().unwrap_or(DEFAULT_PORT);
            let stream = TcpStream::connect((bare, port)).await?;
            stream.set_nodelay(true)?;
            let stream = Either::Right(tls.connect(stream, bare).await?);
            Ok(TokioIo::new(Gathered::new(stream)))
        })
    }
}
