//! The services as tonic calls them: admission, contexts and spans; the work is in the modules of
//! the same names.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use aquifer_model::listener::ListenerName;
use aquifer_proto::{PROTOCOL_VERSION, v1};
use aquifer_protocol_api::BrokerApi;
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::error::{ApiError, ApiResult, ErrorKind, Outcome};
use aquifer_runtime::clock::{SharedClock, timeout};
use aquifer_runtime::inbound::Inbound;
use aquifer_runtime::task::TaskGroup;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::{Request, Response, Status, Streaming, async_trait};
use tracing::{Instrument, Span};

use crate::config::GrpcConfig;
use crate::metrics::{Metrics, Open};
use crate::stream::{self, End, Replies};
use crate::{consume, context, produce, status};

/// What both sides may rely on beyond the version; grows with what is built.
const FEATURES: [&str; 6] = [
    "deduplication",
    "failover",
    "partitions",
    "pull",
    "readers",
    "shared",
];
/// Features that a client may list.
const CLIENT_FEATURES_MAX: usize = 256;

/// The answer to a unary call.
pub(crate) type Answer<T> = Result<Response<T>, Status>;

/// Serves one broker; clones are the same service.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) broker: Arc<dyn BrokerApi>,
    pub(crate) config: Arc<GrpcConfig>,
    pub(crate) metrics: Metrics,
    pub(crate) tasks: TaskGroup,
    /// The listener that its clients come in through.
    pub(crate) listener: ListenerName,
    clock: SharedClock,
    streams: Arc<Semaphore>,
    running: Arc<watch::Sender<usize>>,
}

/// Counts a call or stream as running until it is dropped.
struct Running(Arc<watch::Sender<usize>>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running -= 1);
    }
}

/// A stream that was let in.
type Admitted = (OwnedSemaphorePermit, Open, Running);

impl Service {
    pub(crate) fn new(
        broker: Arc<dyn BrokerApi>,
        config: GrpcConfig,
        clock: SharedClock,
        metrics: Metrics,
        tasks: TaskGroup,
    ) -> Service {
        let streams = config.streams_max.min(Semaphore::MAX_PERMITS);
        Service {
            broker,
            config: Arc::new(config),
            metrics,
            tasks,
            listener: ListenerName::default(),
            clock,
            streams: Arc::new(Semaphore::new(streams)),
            running: Arc::new(watch::Sender::new(0)),
        }
    }

    /// The same service for the clients of a listener.
    pub(crate) fn at(&self, listener: ListenerName) -> Service {
        Service {
            listener,
            ..self.clone()
        }
    }

    fn begin(&self) -> Running {
        self.running.send_modify(|running| *running += 1);
        Running(Arc::clone(&self.running))
    }

    /// Waits until no call and no stream runs.
    pub(crate) async fn idle(&self) {
        let mut running = self.running.subscribe();
        // The sender lives as long as self.
        let _ = running.wait_for(|running| *running == 0).await;
    }

    /// Runs one unary call: `call` gets the broker, the context and the request.
    pub(crate) async fn unary<Q, R, F>(
        &self,
        method: &'static str,
        request: Request<Q>,
        call: impl FnOnce(Arc<dyn BrokerApi>, RequestContext, Q) -> F,
    ) -> Result<Response<R>, Status>
    where
        F: Future<Output = ApiResult<R>>,
    {
        let _running = self.begin();
        // What the request holds is held until it is answered.
        let _inbound = request.extensions().get::<Inbound>().cloned();
        let began = self.clock.monotonic();
        let longest = self.config.request_timeout();
        let ctx = context::of(&request, began, Some(longest));
        let limit = ctx.deadline.map_or(longest, |at| at.saturating_sub(began));
        let span = Self::span(method, &ctx);
        let work = call(Arc::clone(&self.broker), ctx, request.into_inner());
        let result = match timeout(limit, work.instrument(span)).await {
            Ok(result) => result,
            Err(_) => Err(late(limit)),
        };
        let took = self.clock.monotonic().saturating_sub(began);
        self.metrics.request(method, took.as_secs_f64());
        result
            .map(Response::new)
            .map_err(|error| self.refuse(method, &error))
    }

    /// The error of a call, as it is sent.
    fn refuse(&self, method: &'static str, error: &ApiError) -> Status {
        self.metrics.error(method, error.kind);
        status::status_at(error, &self.listener)
    }

    pub(crate) fn span(method: &'static str, ctx: &RequestContext) -> Span {
        let request_id = ctx.request_id.as_ref().map(tracing::field::display);
        let span = tracing::info_span!(
            "request",
            protocol = ctx.protocol,
            method,
            request_id,
            topic = tracing::field::Empty,
        );
        context::adopt(&span, ctx);
        span
    }

    /// Admits a stream, or says that there are too many.
    fn admit(&self, kind: &'static str) -> Result<Admitted, Status> {
        let slot = Arc::clone(&self.streams).try_acquire_owned();
        let slot = slot.map_err(|_| {
            let error = ApiError::new(ErrorKind::Overloaded, "this broker serves too many streams");
            self.refuse(kind, &error.advise("retry later, or close streams"))
        })?;
        Ok((slot, self.metrics.stream(kind), self.begin()))
    }

    /// How a stream ended, as its last message if there is to be one.
    pub(crate) fn last_words(
        &self,
        kind: &'static str,
        result: Result<(), End>,
    ) -> Option<v1::ErrorDetail> {
        match result {
            Ok(()) | Err(End::Done | End::Gone) => None,
            Err(End::Failed(error)) => {
                self.metrics.error(kind, error.kind);
                tracing::debug!(kind = ?error.kind, %error, "stream failed");
                Some(status::detail_at(&error, &self.listener))
            }
        }
    }
}

fn late(limit: Duration) -> ApiError {
    let message = format!("no answer within {} ms", limit.as_millis());
    // The call goes on where it had begun: what it changes may still happen.
    ApiError::new(ErrorKind::Timeout, message).outcome(Outcome::Unknown)
}

/// Agrees on a version and on features.
fn shake_hands(
    broker: &dyn BrokerApi,
    request: &v1::HandshakeRequest,
    streams_per_connection_max: u32,
) -> ApiResult<v1::HandshakeResponse> {
    if !(request.version_min..=request.version_max).contains(&PROTOCOL_VERSION) {
        let v1::HandshakeRequest {
            version_min,
            version_max,
            ..
        } = request;
        let message = format!("unsupported protocol versions {version_min} to {version_max}");
        return Err(ApiError::new(ErrorKind::UnsupportedVersion, message)
            .advise(format!("this broker speaks version {PROTOCOL_VERSION}")));
    }
    if request.features.len() > CLIENT_FEATURES_MAX {
        let message = format!("at most {CLIENT_FEATURES_MAX} features can be listed");
        return Err(ApiError::new(ErrorKind::InvalidArgument, message));
    }
    let common = FEATURES
        .iter()
        .filter(|feature| request.features.iter().any(|asked| asked == *feature));
    let identity = broker.identity();
    Ok(v1::HandshakeResponse {
        version: PROTOCOL_VERSION,
        features: common.map(|feature| (*feature).to_owned()).collect(),
        cluster: identity.cluster,
        broker_id: identity.broker.0.to_vec().into(),
        message_bytes_max: identity.message_bytes_max,
        batch_bytes_max: identity.batch_bytes_max,
        streams_per_connection_max,
    })
}

#[async_trait]
impl v1::broker_server::Broker for Service {
    async fn handshake(
        &self,
        request: Request<v1::HandshakeRequest>,
    ) -> Result<Response<v1::HandshakeResponse>, Status> {
        let streams = self.config.streams_per_connection_max;
        self.unary("handshake", request, |broker, _, request| async move {
            tracing::debug!(client = %request.client.escape_default(), "handshake");
            shake_hands(&*broker, &request, streams)
        })
        .await
    }

    type ProduceStream = produce::Answers;

    async fn produce(
        &self,
        request: Request<Streaming<v1::ProduceRequest>>,
    ) -> Result<Response<Self::ProduceStream>, Status> {
        let admitted = self.admit("produce")?;
        let ctx = context::of(&request, self.clock.monotonic(), None);
        let span = Self::span("produce", &ctx);
        let (out, body) = produce::answers();
        let service = self.clone();
        let bytes = request.extensions().get::<Inbound>().cloned();
        let bytes = bytes.ok_or_else(|| Status::internal("the request came past the gate"))?;
        let inbound = produce::Requests {
            messages: request.into_inner(),
            bytes,
        };
        let work = async move {
            produce::serve(&service, &ctx, inbound, out, span).await;
            drop(admitted);
        };
        self.tasks.spawn("grpc-produce", work);
        Ok(Response::new(body))
    }

    type ConsumeStream = Replies<v1::ConsumeResponse>;

    async fn consume(
        &self,
        request: Request<Streaming<v1::ConsumeRequest>>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        let admitted = self.admit("consume")?;
        let ctx = context::of(&request, self.clock.monotonic(), None);
        let span = Self::span("consume", &ctx);
        let (out, body) = stream::replies();
        let service = self.clone();
        let inbound = request.into_inner();
        let work = async move {
            consume::serve(&service, &ctx, inbound, out, span).await;
            drop(admitted);
        };
        self.tasks.spawn("grpc-consume", work);
        Ok(Response::new(body))
    }
}
