//! Requests that stand alone: every method parses, calls once and converts.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use aquifer_model::id::Index;
use aquifer_model::topic::SubscriptionName;
use aquifer_proto::v1;
use aquifer_protocol_api::admin::Peeked;
use aquifer_protocol_api::consumer::{Gap, Held};
use aquifer_protocol_api::error::ApiResult;
use aquifer_protocol_api::pull::{
    Append, Appended, Commit, Locate, LocatedMessage, Read, ReadBatches, ReadLimits, StoredBatch,
    TopicBounds,
};
use aquifer_runtime::inbound::Inbound;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::codegen::http;
use tonic::{Request, Response, Status, async_trait};

use crate::convert::{body_format, incarnation, name, place, topic, wire_range};
use crate::service::{Answer, Service};
use crate::stream;

/// What a read answers where the client does not say.
const READ_BYTES_DEFAULT: usize = 1 << 20;
const READ_BATCHES_DEFAULT: usize = 1024;

#[async_trait]
impl v1::pull_server::Pull for Service {
    async fn append(&self, request: Request<v1::AppendRequest>) -> Answer<v1::AppendResponse> {
        let inbound = request.extensions().get::<Inbound>().cloned();
        self.unary("append", request, |broker, ctx, r| async move {
            let topic = topic(&r.topic)?;
            let held = inbound.and_then(|inbound| inbound.take().0);
            let request = Append {
                topic,
                incarnation: incarnation(r.topic_incarnation.as_ref())?,
                format: body_format(r.format)?,
                body: r.body,
                held: held.map_or_else(Held::default, Held::from),
            };
            Ok(appended(broker.append(&ctx, request).await?))
        })
        .await
    }

    async fn read(&self, request: Request<v1::ReadTopicRequest>) -> Answer<v1::ReadTopicResponse> {
        let shutdown = self.tasks.shutdown_token();
        let read = self.unary("read", request, |broker, ctx, r| async move {
            let request = read_request(r)?;
            tokio::select! {
                // A read that waits changes nothing: its client asks the next broker.
                () = shutdown.wait() => Err(stream::stopping()),
                found = broker.read(&ctx, request) => Ok(read_answer(found?)),
            }
        });
        holding(read.await?)
    }

    async fn locate(&self, request: Request<v1::LocateRequest>) -> Answer<v1::LocateResponse> {
        self.unary("locate", request, |broker, ctx, r| async move {
            let request = Locate {
                topic: topic(&r.topic)?,
                incarnation: incarnation(r.topic_incarnation.as_ref())?,
                place: place(&r.place)?,
            };
            let found = broker.locate(&ctx, request).await?;
            let wire = |message: LocatedMessage| v1::MessagePlace {
                ledger_id: message.position.ledger.0,
                entry_id: message.position.entry.0,
                batch_index: message.position.batch_index,
                broker_time_ms: message.broker_time_ms,
            };
            Ok(v1::LocateResponse {
                index: found.index.0,
                message: found.message.map(wire),
            })
        })
        .await
    }

    async fn bounds(&self, request: Request<v1::BoundsRequest>) -> Answer<v1::BoundsResponse> {
        self.unary("bounds", request, |broker, ctx, r| async move {
            let found = broker.bounds(&ctx, topic(&r.topic)?).await?;
            Ok(v1::BoundsResponse {
                bounds: Some(wire_bounds(found)),
            })
        })
        .await
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Answer<v1::CommitResponse> {
        self.unary("commit", request, |broker, ctx, r| async move {
            let request = Commit {
                topic: topic(&r.topic)?,
                incarnation: incarnation(r.topic_incarnation.as_ref())?,
                subscription: name(&r.subscription)?,
                index: Index(r.index),
                create: r.create,
            };
            let index = broker.commit(&ctx, request).await?;
            Ok(v1::CommitResponse { index: index.0 })
        })
        .await
    }

    async fn committed(
        &self,
        request: Request<v1::CommittedRequest>,
    ) -> Answer<v1::CommittedResponse> {
        self.unary("committed", request, |broker, ctx, r| async move {
            let subscription: SubscriptionName = name(&r.subscription)?;
            let index = broker
                .committed(&ctx, topic(&r.topic)?, subscription)
                .await?;
            Ok(v1::CommittedResponse {
                index: index.map(|index| index.0),
            })
        })
        .await
    }
}

pub(crate) fn read_request(r: v1::ReadTopicRequest) -> ApiResult<Read> {
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let or = |given: usize, default: usize| if given == 0 { default } else { given };
    Ok(Read {
        topic: topic(&r.topic)?,
        incarnation: incarnation(r.topic_incarnation.as_ref())?,
        from: Index(r.from_index),
        limits: ReadLimits {
            bytes_max: or(size(r.bytes_max), READ_BYTES_DEFAULT),
            batches_max: or(size(r.batches_max.into()), READ_BATCHES_DEFAULT),
            bytes_min: size(r.bytes_min),
        },
        wait: Duration::from_millis(r.wait_ms),
    })
}

/// Has an answer keep what it holds of budgets until it is sent.
pub(crate) fn holding<T>(answer: Response<(T, Vec<Held>)>) -> Answer<T> {
    let (metadata, (answer, held), extensions) = answer.into_parts();
    let mut response = Response::from_parts(metadata, answer, extensions);
    response.extensions_mut().insert(Holding {
        _held: Arc::new(held),
    });
    Ok(response)
}

fn wire_batches(found: Vec<StoredBatch>) -> (Vec<v1::StoredBatch>, Vec<Held>) {
    let wire = |mut batch: StoredBatch| {
        let held = batch.held.take();
        let batch = v1::StoredBatch {
            ledger_id: batch.at.ledger.0,
            entry_id: batch.at.entry.0,
            base_index: batch.at.base_index.0,
            message_count: batch.message_count,
            broker_time_ms: batch.broker_time_ms,
            format: batch.format.into(),
            body: batch.body,
        };
        (batch, held)
    };
    found.into_iter().map(wire).unzip()
}

fn missing(gap: Gap) -> v1::MissingRange {
    v1::MissingRange {
        range: Some(wire_range(gap.range)),
        ledger_id: gap.ledger.0,
        entry_id: gap.entry.0,
        reason: gap.reason,
        at_most: gap.at_most,
    }
}

/// The next messages of a subscription, and what they hold of budgets.
pub(crate) fn peek_answer(found: Peeked) -> (v1::PeekMessagesResponse, Vec<Held>) {
    let (batches, held) = wire_batches(found.batches);
    let answer = v1::PeekMessagesResponse {
        unacknowledged: found.unacknowledged.into_iter().map(wire_range).collect(),
        batches,
        gaps: found.gaps.into_iter().map(missing).collect(),
    };
    (answer, held)
}

fn read_answer(found: ReadBatches) -> (v1::ReadTopicResponse, Vec<Held>) {
    let (batches, held) = wire_batches(found.batches);
    let answer = v1::ReadTopicResponse {
        bounds: Some(wire_bounds(found.bounds)),
        batches,
        gap: found.gap.map(missing),
        next_index: found.next.0,
    };
    (answer, held)
}

fn appended(found: Appended) -> v1::AppendResponse {
    let at = found.stored;
    v1::AppendResponse {
        topic_incarnation: found.incarnation.0.to_vec().into(),
        ledger_id: at.map_or(0, |at| at.ledger.0),
        entry_id: at.map_or(0, |at| at.entry.0),
        base_index: at.map_or(0, |at| at.base_index.0),
        message_count: found.message_count,
        broker_time_ms: found.broker_time_ms,
        duplicate: found.duplicate,
        position_unknown: at.is_none(),
    }
}

fn wire_bounds(bounds: TopicBounds) -> v1::TopicBounds {
    v1::TopicBounds {
        topic_incarnation: bounds.incarnation.0.to_vec().into(),
        first_index: bounds.first.0,
        visible_end_index: bounds.visible_end.0,
        end_index: bounds.end.0,
    }
}

/// What an answer holds of the broker's budgets while it passes the layers of the server.
#[derive(Clone)]
struct Holding {
    _held: Arc<Vec<Held>>,
}

/// An answer's body, which keeps what the answer holds until its peer has taken so much that the
/// next frame is asked for, or until it is dropped.
struct HoldingBody {
    inner: Body,
    holding: Option<Holding>,
    is_handed_over: bool,
}

/// Has the body of an answer keep what the answer holds.
pub(crate) fn keep_held(mut response: http::Response<Body>) -> http::Response<Body> {
    let Some(holding) = response.extensions_mut().remove::<Holding>() else {
        return response;
    };
    response.map(|inner| {
        Body::new(HoldingBody {
            inner,
            holding: Some(holding),
            is_handed_over: false,
        })
    })
}

impl http_body::Body for HoldingBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.is_handed_over {
            self.holding = None;
        }
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.is_handed_over |= frame.is_data();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
