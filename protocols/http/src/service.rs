//! The HTTP service: reads requests within bounds, hands their messages to the service in this
//! process, and answers.
//!
//! The caller is found out before anything of a body is read.
//!
//! What is known of the connection travels in the extensions of the request, which no client can
//! write. Of the headers only those in [`PASSED_ON`] go on.

mod local;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use aquifer_proto::v1::ErrorCode;
use aquifer_protocol_api::context::{Principal, Protocol, RequestId};
use aquifer_runtime::budget::{ByteBudget, BytePermit};
use aquifer_runtime::clock::timeout;
use aquifer_runtime::rng::SharedRng;
use bytes::{Buf, BufMut, Bytes};
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_LENGTH, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS,
};
use http::request::Parts;
use http::{Extensions, HeaderMap, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{Ascii, MetadataValue};
use tower_service::Service;
use tracing::Instrument;

use crate::problem::{Problem, Violation};
use crate::routes::RuleError;
use crate::transcode::{BODY_BYTES_MAX, Target, Transcoder};

/// The name of this protocol, in contexts and spans.
const PROTOCOL: &str = "http";
/// A body must be complete within this.
const BODY_MAX: Duration = Duration::from_secs(10);
/// Longest call: shorter than the silence that ends a connection.
const CALL_MAX: Duration = Duration::from_secs(50);
/// Largest answer of the service, in bytes: what statistics may have, with room.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Answers above [`SMALL_ANSWER_BYTES`] that wait for slow clients, in bytes.
const ANSWERS_BYTES_MAX: usize = 64 << 20;
const SMALL_ANSWER_BYTES: usize = 64 * 1024;
/// Headers that the service sees.
const PASSED_ON: [&str; 2] = ["authorization", "traceparent"];
const REQUEST_ID: HeaderName = HeaderName::from_static(RequestId::HEADER);
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const NO_SNIFF: HeaderValue = HeaderValue::from_static("nosniff");

/// Finds out who makes a request with these headers, from what its extensions tell of the
/// connection, for a method of this name.
pub type Admission =
    Arc<dyn Fn(&HeaderMap, &Extensions, &str) -> Result<Principal, tonic::Status> + Send + Sync>;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Answer = Response<Full<Bytes>>;
/// An answer to come.
type Answering = Pin<Box<dyn Future<Output = Result<Answer, Infallible>> + Send>>;

/// Serves every path below `/api/v1/` out of a gRPC service; clones are the same.
#[derive(Debug, Clone)]
pub struct Rest<S> {
    service: S,
    shared: Arc<Shared>,
    /// Only what was meant for this machine is answered.
    is_local: bool,
}

struct Shared {
    admission: Admission,
    transcoder: Transcoder,
    rng: SharedRng,
    answers: ByteBudget,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl<S> Rest<S> {
    /// In front of a service that has the methods of the descriptors.
    ///
    /// # Errors
    /// When the descriptors cannot be served: a mistake of this build.
    pub fn new(service: S, rng: SharedRng, admission: Admission) -> Result<Rest<S>, RuleError> {
        let shared = Shared {
            admission,
            transcoder: Transcoder::new()?,
            rng,
            answers: ByteBudget::new(ANSWERS_BYTES_MAX),
        };
        Ok(Rest {
            service,
            shared: Arc::new(shared),
            is_local: false,
        })
    }

    /// The same for a port of this machine whose callers are not authenticated: what names another
    /// host, or comes from a page of one, is refused.
    #[must_use]
    pub fn for_this_machine(self) -> Rest<S> {
        Rest {
            is_local: true,
            ..self
        }
    }
}

impl<S, R, B> Service<Request<B>> for Rest<S>
where
    S: Service<Request<tonic::body::Body>, Response = Response<R>>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Answering {
        let rest = self.clone();
        Box::pin(async move { Ok(rest.serve(request).await) })
    }
}

impl<S, R> Rest<S>
where
    S: Service<Request<tonic::body::Body>, Response = Response<R>>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    async fn serve<B>(self, request: Request<B>) -> Answer
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let (mut parts, body) = request.into_parts();
        let id = self.request_id(&parts.headers);
        parts.extensions.insert(id.clone());
        let span = tracing::info_span!(
            "rest",
            protocol = PROTOCOL,
            method = %parts.method,
            path = parts.uri.path(),
            request_id = %id,
        );
        let answered = self.answer(parts, body).instrument(span).await;
        let mut response = answered.unwrap_or_else(|problem| problem.response(id.as_str()));
        let headers = response.headers_mut();
        if let Ok(id) = HeaderValue::from_str(id.as_str()) {
            headers.insert(REQUEST_ID, id);
        }
        headers.insert(CACHE_CONTROL, NO_STORE);
        headers.insert(X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
        response
    }

    /// The id that a client gave, if it can be written everywhere; else one of our own.
    fn request_id(&self, headers: &HeaderMap) -> RequestId {
        let given = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
        let given = given.and_then(RequestId::given);
        given.unwrap_or_else(|| RequestId::drawn(self.shared.rng.id16()))
    }

    async fn answer<B>(&self, mut parts: Parts, body: B) -> Result<Answer, Problem>
    where
        B: Body,
        B::Error: Into<BoxError>,
    {
        if self.is_local {
            local::check(&parts)?;
        }
        let transcoder = &self.shared.transcoder;
        let place = match transcoder.find(&parts.method, parts.uri.path())? {
            Target::Options(allow) => return Ok(options(&allow)),
            Target::Document => {
                return transcoder.document(parts.uri.query(), !body.is_end_stream());
            }
            Target::Method(place) => place,
        };
        parts.extensions.insert(Protocol(PROTOCOL));
        let rpc = place.route().rpc.path();
        let admitted = (self.shared.admission)(&parts.headers, &parts.extensions, rpc);
        let principal = admitted.map_err(|status| Problem::of_status(&status, false))?;
        parts.extensions.insert(principal);
        let body = read(&parts.headers, body).await?;
        tracing::debug!(route = %place.route(), "request");
        let call = place.request(parts.uri.query(), &parts.headers, &body)?;
        let mut request = tonic::Request::new(call.message().clone());
        for name in PASSED_ON {
            let mut values = parts.headers.get_all(name).iter();
            let value = values.next().map(|value| value.as_bytes());
            if values.next().is_some() {
                let twice = Violation::new(name, "it is given twice");
                return Err(Problem::violated(vec![twice]));
            }
            // A value that is no text is no credential and no trace.
            if let Some(Ok(value)) = value.map(MetadataValue::<Ascii>::try_from) {
                request.metadata_mut().insert(name, value);
            }
        }
        *request.extensions_mut() = parts.extensions;
        request.set_timeout(CALL_MAX);
        let mut grpc = Grpc::new(self.service.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
        grpc.ready()
            .await
            .map_err(|error| not_ready(error.into()))?;
        let answered = grpc.unary(request, call.rpc().clone(), Raw).await;
        let message = answered.map_err(|status| Problem::of_status(&status, call.conditional))?;
        self.counted(call.answer(message.get_ref())?)
    }

    /// An answer whose bytes are counted until they are sent, if it is large.
    fn counted(&self, answer: Answer) -> Result<Answer, Problem> {
        let bytes = answer.body().size_hint().lower();
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        if bytes <= SMALL_ANSWER_BYTES {
            return Ok(answer);
        }
        let Some(permit) = self.shared.answers.try_acquire(bytes) else {
            let text = "too many large answers wait for their clients";
            let problem = Problem::new(ErrorCode::Overloaded, text).applied();
            return Err(problem.advise("retry later, and read answers at once"));
        };
        Ok(answer.map(|body| {
            // A body of one piece is its piece.
            let mut body = body;
            let piece = take(&mut body);
            Full::new(Bytes::from_owner(Counted {
                bytes: piece,
                _permit: permit,
            }))
        }))
    }
}

fn not_ready(error: BoxError) -> Problem {
    tracing::warn!(%error, "the service in process takes no calls");
    Problem::new(ErrorCode::Unavailable, "administration takes no calls now")
}

/// The one piece of a body.
fn take(body: &mut Full<Bytes>) -> Bytes {
    let mut context = Context::from_waker(std::task::Waker::noop());
    match Pin::new(body).poll_frame(&mut context) {
        Poll::Ready(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        _ => Bytes::new(),
    }
}

/// Bytes that count until they are dropped.
struct Counted {
    bytes: Bytes,
    _permit: BytePermit,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn options(allow: &str) -> Answer {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    if let Ok(allow) = HeaderValue::from_str(allow) {
        response.headers_mut().insert(ALLOW, allow);
    }
    response
}

/// The body of a request, if it is small and comes in time.
async fn read<B>(headers: &HeaderMap, body: B) -> Result<Bytes, Problem>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    let too_large = || {
        let text = format!("the body has more than {BODY_BYTES_MAX} bytes");
        Problem::new(ErrorCode::TooLarge, text).advise("send less at once")
    };
    let announced = headers.get(CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > BODY_BYTES_MAX) {
        return Err(too_large());
    }
    let read = timeout(BODY_MAX, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    match read {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(Problem::invalid("the body ends before it is complete")),
        Err(_) => {
            let text = format!("the body was not complete within {} s", BODY_MAX.as_secs());
            let late = Problem::new(ErrorCode::Timeout, text).at(StatusCode::REQUEST_TIMEOUT);
            Err(late.advise("send the body at once"))
        }
    }
}

/// Messages as the bytes that they are.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = tonic::Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), tonic::Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = tonic::Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, tonic::Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

#[cfg(test)]
mod tests;
