//! The request stream of a produce session. The transport pulls: while it is busy batches fill,
//! so that back-pressure makes them larger instead of more.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use aquifer_model::format::FORMAT_NATIVE;
use aquifer_proto::v1;
use aquifer_runtime::clock::{self, Instant, Sleep};
use bytes::Bytes;
use tokio_stream::Stream;

use crate::producer::partition::Partition;
use crate::producer::queue::Next;

/// Frames that share a gRPC message stay below this together; one frame may be larger.
const MESSAGE_BYTES: usize = 256 * 1024;
/// Most frames in one gRPC message.
const MESSAGE_FRAMES: usize = 1_024;

/// Opening, then publish frames.
pub(crate) struct Frames {
    partition: Arc<Partition>,
    session: u64,
    open: Option<v1::OpenProducer>,
    /// A frame that did not fit into the message before.
    held: Option<(u64, Bytes)>,
    timer: Pin<Box<Sleep>>,
}

impl Frames {
    pub(crate) fn new(partition: Arc<Partition>, session: u64, open: v1::OpenProducer) -> Frames {
        Frames {
            partition,
            session,
            open: Some(open),
            held: None,
            timer: Box::pin(clock::sleep_until(Instant::now())),
        }
    }

    /// The next frame; `Ready(None)` at the end of the session.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<(u64, Bytes)>> {
        if let Some(held) = self.held.take() {
            return Poll::Ready(Some(held));
        }
        loop {
            let now = Instant::now();
            let session = self.session;
            let next = self
                .partition
                .change(|queue, _| queue.next(session, now, cx.waker()));
            match next {
                Next::Frame(number, bytes) => return Poll::Ready(Some((number, bytes))),
                Next::Seal(batch) => self.partition.seal(self.session, *batch),
                Next::WaitUntil(at) => {
                    self.timer.as_mut().reset(at);
                    if self.timer.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
                Next::Wait => return Poll::Pending,
                Next::End => return Poll::Ready(None),
            }
        }
    }
}

impl Stream for Frames {
    type Item = v1::ProduceRequest;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<v1::ProduceRequest>> {
        use v1::produce_request::Request;
        let this = self.get_mut();
        if let Some(open) = this.open.take() {
            return Poll::Ready(Some(v1::ProduceRequest {
                request: Some(Request::Open(open)),
            }));
        }
        let mut frames: Vec<v1::PublishFrame> = Vec::new();
        let mut bytes = 0;
        while frames.len() < MESSAGE_FRAMES {
            match this.poll_frame(cx) {
                Poll::Ready(Some((number, batch))) => {
                    if !frames.is_empty() && bytes + batch.len() > MESSAGE_BYTES {
                        this.held = Some((number, batch));
                        break;
                    }
                    bytes += batch.len();
                    frames.push(v1::PublishFrame {
                        number,
                        body: batch,
                        format: FORMAT_NATIVE.into(),
                    });
                }
                Poll::Ready(None) if frames.is_empty() => return Poll::Ready(None),
                Poll::Pending if frames.is_empty() => return Poll::Pending,
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        Poll::Ready(Some(v1::ProduceRequest {
            request: Some(Request::Publish(v1::PublishFrames { frames })),
        }))
    }
}
