//! A consumer's or reader's stream: `subscribe`, then credit and acknowledgements in, deliveries
//! and confirmations out. Deliveries that are ready together share a reply, up to a size.

mod frames;

use std::pin::pin;

use aquifer_model::id::{ConsumerInstance, Index, OwnerEpoch, SeekEpoch};
use aquifer_model::subscription::SubscriptionType;
use aquifer_proto::v1;
use aquifer_proto::v1::consume_request::Request as Kind;
use aquifer_proto::v1::consume_response::Response as Answer;
use aquifer_protocol_api::consumer::{
    Acknowledge, ConsumerEvent, ConsumerPort, ConsumerSession, Delivery, NegativeAcknowledge,
    Redelivered, Subscribe, Subscribed,
};
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::error::{ApiError, ApiResult};
use aquifer_runtime::clock::timeout;
use aquifer_runtime::task::ShutdownToken;
use tonic::Streaming;
use tracing::{Instrument, Span};

use crate::consume::frames::Frames;
use crate::convert::{
    id16, incarnation, invalid, optional_name, place, ranges, subscription_type, topic, version,
    wire_range,
};
use crate::metrics::{Flow, Metrics};
use crate::service::Service;
use crate::status;
use crate::stream::{self, End, empty_request};

type Out = stream::Out<v1::ConsumeResponse>;

/// Serves a stream to its end. Its span is entered to open it and for its last words: what is
/// between wakes too often for that.
pub(crate) async fn serve(
    service: &Service,
    ctx: &RequestContext,
    inbound: Streaming<v1::ConsumeRequest>,
    out: Out,
    span: Span,
) {
    let result = session(service, ctx, inbound, &out, &span).await;
    if let Some(detail) = span.in_scope(|| service.last_words("consume", result)) {
        let last = answer(Answer::Error(detail));
        stream::last_reply(&out, last, &service.config).await;
    }
}

async fn open(
    service: &Service,
    ctx: &RequestContext,
    inbound: &mut Streaming<v1::ConsumeRequest>,
) -> Result<ConsumerSession, End> {
    let first = stream::first(inbound, &service.config, "subscribe").await?;
    let Some(Kind::Subscribe(request)) = first.request else {
        return Err(stream::missing("subscribe"));
    };
    let request = subscribe(request)?;
    Span::current().record("topic", tracing::field::display(&request.topic));
    Ok(service.broker.subscribe(ctx, request).await?)
}

async fn session(
    service: &Service,
    ctx: &RequestContext,
    mut inbound: Streaming<v1::ConsumeRequest>,
    out: &Out,
    span: &Span,
) -> Result<(), End> {
    let opening = open(service, ctx, &mut inbound).instrument(span.clone());
    let ConsumerSession {
        opened,
        port,
        events,
        end,
    } = opening.await?;
    stream::reply(out, answer(Answer::Subscribed(wire_subscribed(opened)))).await?;
    let mut frames = Frames::new(events);
    let shutdown = service.tasks.shutdown_token();
    // Both ways at once: a peer that does not read must not keep its acknowledgements from us.
    let mut delivering = pin!(deliver(&mut frames, out, &service.metrics));
    let must_end = pin!(end.wait());
    let end = tokio::select! {
        // What was handed out and not acknowledged goes to others.
        error = must_end => return Err(error.into()),
        end = requests(port, &mut inbound, out, shutdown, &service.metrics) => end,
        end = &mut delivering => return Err(end),
    };
    if let End::Done = end {
        // The port is dropped and the broker closes the session behind what was asked for; the
        // answers to that, and what is at hand, are still told.
        let _ = timeout(service.config.drain_timeout(), delivering).await;
    }
    Err(end)
}

/// Hands requests over, one after the other.
async fn requests(
    mut port: Box<dyn ConsumerPort>,
    inbound: &mut Streaming<v1::ConsumeRequest>,
    out: &Out,
    shutdown: ShutdownToken,
    metrics: &Metrics,
) -> End {
    // One wait for the whole stream: one for each request would have to register each time.
    let mut stopped = pin!(shutdown.wait());
    loop {
        let next = tokio::select! {
            biased;
            () = &mut stopped => return End::Failed(stream::stopping()),
            next = stream::next(inbound) => next,
        };
        let request = match next {
            Ok(Some(request)) => request,
            Ok(None) => return End::Done,
            Err(end) => return end,
        };
        metrics.frame(Flow::ConsumeIn, 0);
        let request = match consumer_request(request) {
            Ok(request) => request,
            Err(Refusal::Session(error)) => return error.into(),
            Err(Refusal::Request(refused)) => {
                if let Err(end) = stream::reply(out, answer(*refused)).await {
                    return end;
                }
                continue;
            }
        };
        if let Err(error) = apply(&mut *port, request).await {
            return error.into();
        }
    }
}

async fn apply(port: &mut dyn ConsumerPort, request: ConsumerRequest) -> ApiResult<()> {
    match request {
        ConsumerRequest::Credit { messages, bytes } => port.credit(messages, bytes).await,
        ConsumerRequest::Acknowledge(acknowledge) => port.acknowledge(acknowledge).await,
        ConsumerRequest::Negative(negative) => port.negative_acknowledge(negative).await,
        ConsumerRequest::Seek { request_id, to } => port.seek(request_id, to).await,
    }
}

/// Sends what the broker has, until it has no more or the peer is gone.
async fn deliver(frames: &mut Frames, out: &Out, metrics: &Metrics) -> End {
    while let Some(event) = frames.next().await {
        let mut holding = Vec::new();
        let response = match event {
            ConsumerEvent::Deliveries {
                owner_epoch,
                seek_epoch,
                mut deliveries,
            } => {
                let held = deliveries.iter_mut().map(|delivery| delivery.held.take());
                holding = held.collect();
                let bytes = deliveries.iter().map(|delivery| delivery.body.len()).sum();
                metrics.frame(Flow::ConsumeOut, bytes);
                Answer::Deliveries(v1::Deliveries {
                    owner_epoch: owner_epoch.0,
                    seek_epoch: seek_epoch.0,
                    deliveries: deliveries.into_iter().map(wire_delivery).collect(),
                })
            }
            ConsumerEvent::Gap {
                owner_epoch,
                seek_epoch,
                gap,
            } => Answer::Gap(v1::Gap {
                owner_epoch: owner_epoch.0,
                seek_epoch: seek_epoch.0,
                first_index: gap.range.first.0,
                last_index: gap.range.last.0,
                ledger_id: gap.ledger.0,
                entry_id: gap.entry.0,
                reason: status::shortened(&gap.reason),
                at_most: gap.at_most,
            }),
            ConsumerEvent::Confirmed { request_id } => Answer::Confirmed(v1::Confirmed {
                request_id,
                error: None,
            }),
            ConsumerEvent::AcknowledgeRefused { request_id, error } => {
                acknowledge_refused(request_id, &error)
            }
            ConsumerEvent::SeekRefused { request_id, error } => seek_refused(request_id, &error),
            ConsumerEvent::SeekDone {
                request_id,
                seek_epoch,
                index,
            } => Answer::SeekDone(v1::SeekDone {
                request_id,
                seek_epoch: seek_epoch.0,
                index: index.0,
                error: None,
            }),
            ConsumerEvent::Active(active) => Answer::Active(v1::Active { active }),
            ConsumerEvent::EndOfTopic { end } => {
                Answer::EndOfTopic(v1::EndOfTopic { end_index: end.0 })
            }
            ConsumerEvent::Failed(error) => return error.into(),
        };
        if let Err(end) = stream::reply_holding(out, answer(response), holding).await {
            return end;
        }
    }
    End::Done
}

/// What a consumer asks for after `subscribe`.
#[derive(Debug)]
pub(crate) enum ConsumerRequest {
    Credit {
        messages: u64,
        bytes: u64,
    },
    Acknowledge(Acknowledge),
    Negative(NegativeAcknowledge),
    Seek {
        request_id: u64,
        to: aquifer_model::place::Place,
    },
}

/// Why a request goes no further.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// What it asks for is wrong: this is its answer, and the session goes on.
    Request(Box<Answer>),
    /// The peer does not speak the protocol: nothing that it says can be relied on.
    Session(ApiError),
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Refusal {
        Refusal::Session(error)
    }
}

fn acknowledge_refused(request_id: u64, error: &ApiError) -> Answer {
    Answer::Confirmed(v1::Confirmed {
        request_id,
        error: Some(status::detail(error)),
    })
}

fn seek_refused(request_id: u64, error: &ApiError) -> Answer {
    Answer::SeekDone(v1::SeekDone {
        request_id,
        error: Some(status::detail(error)),
        ..v1::SeekDone::default()
    })
}

pub(crate) fn consumer_request(request: v1::ConsumeRequest) -> Result<ConsumerRequest, Refusal> {
    match request.request {
        Some(Kind::Credit(credit)) => Ok(ConsumerRequest::Credit {
            messages: credit.messages_total,
            bytes: credit.bytes_total,
        }),
        Some(Kind::Acknowledge(acknowledge)) => Ok(ConsumerRequest::Acknowledge(Acknowledge {
            request_id: acknowledge.request_id,
            owner_epoch: OwnerEpoch(acknowledge.owner_epoch),
            seek_epoch: SeekEpoch(acknowledge.seek_epoch),
            cumulative: acknowledge.cumulative.map(Index),
            individual: ranges(&acknowledge.individual).map_err(|error| {
                Refusal::Request(Box::new(acknowledge_refused(
                    acknowledge.request_id,
                    &error,
                )))
            })?,
        })),
        Some(Kind::NegativeAcknowledge(negative)) => {
            Ok(ConsumerRequest::Negative(NegativeAcknowledge {
                owner_epoch: OwnerEpoch(negative.owner_epoch),
                seek_epoch: SeekEpoch(negative.seek_epoch),
                // Nothing is owed to a wish; its sender is told all the same.
                ranges: ranges(&negative.ranges)
                    .map_err(|error| Refusal::Request(Box::new(acknowledge_refused(0, &error))))?,
            }))
        }
        Some(Kind::Seek(seek)) => Ok(ConsumerRequest::Seek {
            request_id: seek.request_id,
            to: place(&seek.place).map_err(|error| {
                Refusal::Request(Box::new(seek_refused(seek.request_id, &error)))
            })?,
        }),
        Some(Kind::Subscribe(_)) => Err(invalid("this stream is subscribed already").into()),
        None => Err(empty_request().into()),
    }
}

pub(crate) fn subscribe(request: v1::Subscribe) -> ApiResult<Subscribe> {
    version(request.version)?;
    let subscription = optional_name(&request.subscription)?;
    let kind = match subscription {
        // A reader shares nothing with others.
        None => SubscriptionType::Exclusive,
        Some(_) => subscription_type(request.r#type)?,
    };
    Ok(Subscribe {
        topic: topic(&request.topic)?,
        subscription,
        kind,
        consumer: optional_name(&request.consumer_name)?,
        start: place(&request.start)?,
        incarnation: incarnation(request.topic_incarnation.as_ref())?,
        priority: request.priority,
        instance: match request.instance.is_empty() {
            true => None,
            false => Some(id16::<ConsumerInstance>("the instance", &request.instance)?),
        },
        epoch: request.epoch,
    })
}

fn wire_subscribed(opened: Subscribed) -> v1::Subscribed {
    v1::Subscribed {
        topic_incarnation: opened.incarnation.0.to_vec().into(),
        owner_epoch: opened.owner_epoch.0,
        seek_epoch: opened.seek_epoch.0,
        start_index: opened.start.0,
        end_index: opened.end.0,
    }
}

fn wire_delivery(delivery: Delivery) -> v1::Delivery {
    v1::Delivery {
        ledger_id: delivery.at.ledger.0,
        entry_id: delivery.at.entry.0,
        base_index: delivery.at.base_index.0,
        broker_time_ms: delivery.broker_time_ms,
        redelivered: delivery
            .redelivered
            .into_iter()
            .map(|Redelivered { range, count }| v1::RedeliveredRange {
                first: range.first.0,
                last: range.last.0,
                count,
            })
            .collect(),
        skip: delivery.skip.into_iter().map(wire_range).collect(),
        message_count: delivery.message_count,
        body: delivery.body,
        format: delivery.format.into(),
    }
}

fn answer(response: Answer) -> v1::ConsumeResponse {
    v1::ConsumeResponse {
        response: Some(response),
    }
}
