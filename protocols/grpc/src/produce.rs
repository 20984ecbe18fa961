//! A producer's stream: `open`, then batches in and receipts out.
//!
//! Receipts are coalesced: whatever is ready goes into one reply. They go from the broker into the
//! body of the answer (`answers.rs`) without a stop here. A failed frame ends the stream with its
//! error (H7): the client reopens and rewinds. When the stream ends for another reason, what was
//! sent is waited for, so that the peer learns its outcome.

mod answers;

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aquifer_model::id::ProducerInstance;
use aquifer_proto::v1;
use aquifer_proto::v1::produce_request::Request as Kind;
use aquifer_proto::v1::produce_response::Response as Answer;
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::error::{ApiError, ApiResult, ErrorKind, Outcome};
use aquifer_protocol_api::producer::{OpenProducer, ProducerOpened, ProducerPort, PublishFrame};
use aquifer_protocol_api::session::SessionEnd;
use aquifer_runtime::clock::sleep;
use aquifer_runtime::inbound::Inbound;
use aquifer_runtime::task::ShutdownToken;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::Fuse;
use tonic::Streaming;
use tracing::{Instrument, Span};

use self::answers::{Answered, Over, Piece};
pub(crate) use self::answers::{Answers, answers};
use crate::convert::{body_format, id16, incarnation, invalid, optional_name, topic, version};
use crate::metrics::{Flow, Metrics};
use crate::service::Service;
use crate::stream::{self, End, empty_request};

/// For how long a session whose caller may no longer produce waits for receipts.
const LAST_RECEIPTS_MAX: Duration = Duration::from_secs(1);

/// What the peer sends, and what that holds.
pub(crate) struct Requests {
    pub(crate) messages: Streaming<v1::ProduceRequest>,
    pub(crate) bytes: Inbound,
}

type Out = stream::Out<Piece>;

/// Serves a stream to its end. Its span is entered to open it and for its last words: what is
/// between wakes too often for that.
pub(crate) async fn serve(
    service: &Service,
    ctx: &RequestContext,
    inbound: Requests,
    out: Out,
    span: Span,
) {
    let result = session(service, ctx, inbound, &out, &span).await;
    if let Some(detail) = span.in_scope(|| service.last_words("produce", result)) {
        let last = Piece::Message(answer(Answer::Error(detail)));
        stream::last_reply(&out, last, &service.config).await;
    }
}

async fn session(
    service: &Service,
    ctx: &RequestContext,
    mut inbound: Requests,
    out: &Out,
    span: &Span,
) -> Result<(), End> {
    let opening = open(service, ctx, &mut inbound, out).instrument(span.clone());
    let (port, answered, end) = opening.await?;
    let frames = AtomicU64::new(0);
    let shutdown = service.tasks.shutdown_token();
    let publishing = publish(port, inbound, &frames, shutdown, &service.metrics);
    exchange(service, publishing, answered, (&frames, end), out).await
}

/// What is left of a session that is open.
type Opened = (Box<dyn ProducerPort>, Answered, SessionEnd);

async fn open(
    service: &Service,
    ctx: &RequestContext,
    inbound: &mut Requests,
    out: &Out,
) -> Result<Opened, End> {
    let first = stream::first(&mut inbound.messages, &service.config, "open").await?;
    let Some(Kind::Open(open)) = first.request else {
        return Err(stream::missing("open"));
    };
    let open = open_producer(open)?;
    Span::current().record("topic", tracing::field::display(&open.topic));
    let session = service.broker.open_producer(ctx, open).await?;
    if let Some(room) = session.room {
        // From here on messages are read as the topic has room for them.
        inbound.bytes.read_into(room);
    }
    let opened = answer(Answer::Opened(wire_opened(session.opened)));
    stream::reply(out, Piece::Message(opened)).await?;
    let (receipts, answered) = answers::receipts(session.receipts, &service.metrics);
    stream::reply(out, Piece::Receipts(receipts)).await?;
    Ok((session.port, answered, session.end))
}

/// Reads requests and hands their batches over, until the peer, the broker or this process ends
/// it. Counts the frames that the broker took or may have taken.
async fn publish(
    mut port: Box<dyn ProducerPort>,
    mut inbound: Requests,
    handed_over: &AtomicU64,
    shutdown: ShutdownToken,
    metrics: &Metrics,
) -> (End, Box<dyn ProducerPort>) {
    // One wait for the whole stream: one for each message would have to register each time.
    let mut stopped = pin!(shutdown.wait());
    let end = loop {
        let next = tokio::select! {
            biased;
            () = &mut stopped => break End::Failed(stream::stopping()),
            next = stream::next(&mut inbound.messages) => next,
        };
        let frames = match next {
            Ok(Some(request)) => publish_frames(request),
            Ok(None) => break End::Done,
            Err(end) => break end,
        };
        let frames = match frames {
            Ok(frames) => frames,
            Err(error) => break error.into(),
        };
        let (held, message_bytes) = inbound.bytes.take();
        let bytes = frames.iter().map(|frame| frame.body.len()).sum();
        metrics.frame(Flow::ProduceIn, bytes);
        let frames = match bytes < message_bytes / 2 {
            true => apart(frames),
            false => frames,
        };
        let count = u64::try_from(frames.len()).unwrap_or(u64::MAX);
        handed_over.fetch_add(count, Ordering::Relaxed);
        if let Err(error) = port.publish(frames, held).await {
            break error.into();
        }
    };
    // The port goes back alive: dropping it would close the session before its last receipts.
    (end, port)
}

/// Batches are slices of the message that they came in. Where most of that is something else,
/// they get memory of their own, so that what keeps a batch keeps no more than that.
fn apart(frames: Vec<PublishFrame>) -> Vec<PublishFrame> {
    let apart = |frame: PublishFrame| PublishFrame {
        body: Bytes::copy_from_slice(&frame.body),
        ..frame
    };
    frames.into_iter().map(apart).collect()
}

/// Publishes while the body of the answer takes receipts. After publishing has ended, or must end,
/// waits for the receipts of what was handed over, for a while.
async fn exchange(
    service: &Service,
    publishing: impl Future<Output = (End, Box<dyn ProducerPort>)>,
    Answered { taken, mut over }: Answered,
    (handed_over, must_end): (&AtomicU64, SessionEnd),
    out: &Out,
) -> Result<(), End> {
    let mut publishing = pin!(publishing.fuse());
    let mut must_end = pin!(must_end.wait().fuse());
    let mut drained = pin!(Fuse::terminated());
    let shutdown = service.tasks.shutdown_token();
    // A peer that takes no receipts keeps its publishing from seeing this. It does not hold up the
    // end of the process.
    let mut given_up = pin!(async {
        shutdown.wait().await;
        sleep(service.config.drain_timeout()).await;
    });
    let mut gone = pin!(out.closed());
    let mut ended: Option<Ended> = None;
    loop {
        if ended.is_some() && taken.count() >= handed_over.load(Ordering::Relaxed) {
            break;
        }
        tokio::select! {
            biased;
            () = &mut gone => return Err(End::Gone),
            over = &mut over => return Err(match over {
                Ok(Over::Failed(error)) => error.into(),
                Ok(Over::Closed) => closed_early(ended),
                Err(_) => End::Gone,
            }),
            // Nothing more is taken: what publishes is not asked any more, and stays, because the
            // port in it is needed for the last receipts.
            error = &mut must_end, if ended.is_none() => {
                ended = Some((error.into(), None));
                drained.set(sleep(service.config.drain_timeout().min(LAST_RECEIPTS_MAX)).fuse());
            }
            (end, port) = &mut publishing, if ended.is_none() => {
                if let End::Gone = end {
                    return Err(End::Gone);
                }
                ended = Some((end, Some(port)));
                drained.set(sleep(service.config.drain_timeout()).fuse());
            }
            () = taken.more(), if ended.is_some() => {}
            () = &mut drained => break,
            () = &mut given_up, if ended.is_none() => return Err(End::Gone),
        }
    }
    match ended {
        Some((end, _)) => Err(end),
        None => Ok(()),
    }
}

/// Why publishing ended, and what keeps the session open until its last receipts.
type Ended = (End, Option<Box<dyn ProducerPort>>);

/// The broker closed the session without saying why in a receipt.
fn closed_early(ended: Option<Ended>) -> End {
    match ended {
        Some((End::Failed(error), _)) => End::Failed(error),
        _ => ApiError::new(ErrorKind::Unavailable, "the broker closed this producer")
            .outcome(Outcome::Unknown)
            .advise("reopen the producer and send again what is not acknowledged")
            .into(),
    }
}

pub(crate) fn open_producer(open: v1::OpenProducer) -> ApiResult<OpenProducer> {
    version(open.version)?;
    Ok(OpenProducer {
        topic: topic(&open.topic)?,
        name: optional_name(&open.producer_name)?,
        instance: id16::<ProducerInstance>("the producer instance", &open.instance)?,
        epoch: open.epoch,
        take_over: open.take_over,
        incarnation: incarnation(open.topic_incarnation.as_ref())?,
    })
}

pub(crate) fn publish_frames(request: v1::ProduceRequest) -> ApiResult<Vec<PublishFrame>> {
    match request.request {
        Some(Kind::Publish(publish)) => {
            let frames = publish.frames.into_iter().map(publish_frame);
            frames.collect()
        }
        Some(Kind::Open(_)) => Err(invalid("this stream's producer is open already")),
        None => Err(empty_request()),
    }
}

fn publish_frame(frame: v1::PublishFrame) -> ApiResult<PublishFrame> {
    Ok(PublishFrame {
        number: frame.number,
        format: body_format(frame.format)?,
        body: frame.body,
    })
}

fn wire_opened(opened: ProducerOpened) -> v1::ProducerOpened {
    v1::ProducerOpened {
        producer_name: opened.name.as_str().to_owned(),
        last_sequence_id: opened.last_sequence_id,
        topic_incarnation: opened.incarnation.0.to_vec().into(),
        owner_epoch: opened.owner_epoch.0,
        batch_bytes_max: opened.batch_bytes_max,
        deduplication: opened.deduplication,
        last_index: opened.last_index.map(|index| index.0),
    }
}

fn answer(response: Answer) -> v1::ProduceResponse {
    v1::ProduceResponse {
        response: Some(response),
    }
}
