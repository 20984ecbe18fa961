//! Finds out who calls, from the headers and the connection of a request alone: nothing of its body
//! is read before, nor by anything behind this.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use aquifer_protocol_api::BrokerApi;
use aquifer_protocol_api::context::{Principal, Protocol, RequestId};
use aquifer_protocol_api::error::ApiResult;
use aquifer_protocol_api::security::{Authenticator, Shown};
use aquifer_runtime::net::bearer::bearer;
use aquifer_runtime::net::stream::SharedCertificate;
use aquifer_runtime::net::tls::PeerCertificate;
use futures::future::{Either, Ready, ready};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Extensions, HeaderMap, Request, Response};
use tonic::transport::server::TcpConnectInfo;
use tower::Service;
use tower::layer::layer_fn;

use crate::inbound::Peer;
use crate::{context, status};

/// The principal of a request with these headers over such a connection. What serves requests of
/// this protocol by another way puts the answer into the request's extensions, as the server here
/// does: a request without it is anonymous, and may do nothing where callers are authenticated.
///
/// # Errors
/// `Unauthenticated` for whatever is no credential that counts.
pub fn principal<A: Authenticator + ?Sized>(
    authenticator: &A,
    headers: &HeaderMap,
    certificate: Option<&PeerCertificate>,
    peer: Option<SocketAddr>,
    (protocol, request, request_id): (&'static str, &str, Option<&RequestId>),
) -> ApiResult<Principal> {
    if !authenticator.authenticates() {
        return Ok(Principal::Anonymous);
    }
    authenticator.authenticate(&Shown {
        bearer: bearer(headers),
        certificate,
        peer,
        protocol,
        request,
        request_id,
    })
}

/// The principal of a request of this protocol, by what its extensions tell of the connection, for
/// a method of this path. What serves such requests by another way asks this before it reads a
/// body, and puts the answer into the extensions of the request.
///
/// # Errors
/// The answer to a request whose caller is not known.
pub fn caller<A: Authenticator + ?Sized>(
    authenticator: &A,
    headers: &HeaderMap,
    extensions: &Extensions,
    path: &str,
) -> Result<Principal, Status> {
    found(authenticator, headers, extensions, path).map_err(|error| status::status(&error))
}

fn found<A: Authenticator + ?Sized>(
    authenticator: &A,
    headers: &HeaderMap,
    extensions: &Extensions,
    path: &str,
) -> ApiResult<Principal> {
    let connection = extensions.get::<Peer>();
    // Another protocol of this process tells the same of its connections in parts.
    let certificate = connection.map(|peer| &peer.certificate);
    let certificate = certificate.or_else(|| extensions.get::<SharedCertificate>());
    let certificate = certificate.and_then(SharedCertificate::get);
    let tcp = connection.map(|peer| &peer.tcp);
    let tcp = tcp.or_else(|| extensions.get::<TcpConnectInfo>());
    let address = tcp.and_then(TcpConnectInfo::remote_addr);
    let protocol = extensions.get::<Protocol>();
    let protocol = protocol.map_or(context::PROTOCOL, |Protocol(name)| name);
    let what = (protocol, named(path), extensions.get::<RequestId>());
    principal(authenticator, headers, certificate, address, what)
}

/// What is recorded in place of a path that is no method: callers make up as many as they like.
const UNKNOWN: &str = "unknown";

/// The name of a method in records.
fn named(path: &str) -> &str {
    let method = path.strip_prefix("/aquifer.v1.").unwrap_or_default();
    match aquifer_proto::METHODS.binary_search(&method) {
        Ok(_) => path,
        Err(_) => UNKNOWN,
    }
}

/// That of the service behind this, or a refusal.
type Answer<F, E> = Either<F, Ready<Result<Response<Body>, E>>>;

/// Puts [`Authenticate`] in front of a service.
pub(crate) fn layer<S>(
    broker: &Arc<dyn BrokerApi>,
) -> impl tower::Layer<S, Service = Authenticate<S>> + Clone + use<S> {
    let broker = Arc::clone(broker);
    layer_fn(move |inner| Authenticate {
        inner,
        broker: Arc::clone(&broker),
    })
}

/// Refuses requests whose caller is not known, and tells those behind it who calls.
#[derive(Clone)]
pub(crate) struct Authenticate<S> {
    pub(crate) inner: S,
    pub(crate) broker: Arc<dyn BrokerApi>,
}

impl<S> Service<Request<Body>> for Authenticate<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Future, S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Answer<S::Future, S::Error> {
        let extensions = request.extensions();
        // Another protocol of this process may know already who calls: no client writes extensions.
        if !self.broker.authenticates() || extensions.get::<Principal>().is_some() {
            return Either::Left(self.inner.call(request));
        }
        let path = request.uri().path();
        match found(&*self.broker, request.headers(), extensions, path) {
            Ok(principal) => {
                request.extensions_mut().insert(principal);
                Either::Left(self.inner.call(request))
            }
            Err(error) => Either::Right(ready(Ok(status::status(&error).into_http()))),
        }
    }
}
