//! The body of the answer to a producer's stream: what its handler says, and receipts as the broker
//! has them. A receipt passes the handler by: waking that for each would cost more than the rest of
//! its way. The handler is told how many were taken, and how they ended.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use aquifer_proto::v1;
use aquifer_proto::v1::produce_response::Response as Answer;
use aquifer_protocol_api::error::{ApiError, ApiResult};
use aquifer_protocol_api::producer::Receipt;
use futures::Stream;
use tokio::sync::{Notify, mpsc, oneshot};
use tonic::Status;

use crate::metrics::{Flow, Metrics};
use crate::produce::answer;
use crate::stream::{self, Out, Replies};

/// Receipts in one reply.
const RECEIPTS_PER_REPLY_MAX: usize = 4096;

/// What the handler puts into the answer.
pub(crate) enum Piece {
    /// A message of its own.
    Message(v1::ProduceResponse),
    /// From here on receipts, which come before what the handler says later.
    Receipts(Receipts),
}

/// The body of the answer.
pub(crate) struct Answers {
    pieces: Replies<Piece>,
    receipts: Option<Receipts>,
}

/// The receipts of a producer, until an error or their end.
pub(crate) struct Receipts {
    receiver: mpsc::Receiver<ApiResult<Receipt>>,
    ready: Vec<ApiResult<Receipt>>,
    taken: Arc<Taken>,
    over: Option<oneshot::Sender<Over>>,
    metrics: Metrics,
}

/// Receipts that the body has taken.
#[derive(Default)]
pub(super) struct Taken {
    count: AtomicU64,
    more: Notify,
}

/// What the handler knows of the receipts.
pub(super) struct Answered {
    pub(super) taken: Arc<Taken>,
    /// How they ended; nothing when the peer takes no more.
    pub(super) over: oneshot::Receiver<Over>,
}

/// How the receipts of a producer ended.
pub(super) enum Over {
    /// The session ends with this.
    Failed(ApiError),
    /// The broker closed the session without a word.
    Closed,
}

/// A bounded way to the peer, and the body that drains it.
pub(crate) fn answers() -> (Out<Piece>, Answers) {
    let (out, pieces) = stream::replies();
    let receipts = None;
    (out, Answers { pieces, receipts })
}

/// The receipts of a session for the body, and what the handler keeps.
pub(super) fn receipts(
    receiver: mpsc::Receiver<ApiResult<Receipt>>,
    metrics: &Metrics,
) -> (Receipts, Answered) {
    let (told, over) = oneshot::channel();
    let taken = Arc::<Taken>::default();
    let receipts = Receipts {
        receiver,
        ready: Vec::new(),
        taken: Arc::clone(&taken),
        over: Some(told),
        metrics: metrics.clone(),
    };
    (receipts, Answered { taken, over })
}

impl Taken {
    /// How many.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Waits until there may be more than at the last look.
    pub(super) async fn more(&self) {
        self.more.notified().await;
    }
}

impl Receipts {
    /// Everything that is ready, as one message; `None` at the end.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<v1::ProduceResponse>> {
        let max = RECEIPTS_PER_REPLY_MAX;
        let count = ready!(self.receiver.poll_recv_many(context, &mut self.ready, max));
        if count == 0 {
            self.tell(Over::Closed);
            return Poll::Ready(None);
        }
        let mut receipts = Vec::with_capacity(count);
        let mut failure = None;
        for outcome in self.ready.drain(..) {
            match outcome {
                Ok(receipt) => receipts.push(wire_receipt(receipt)),
                // The last item.
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        if let Some(error) = failure {
            self.tell(Over::Failed(error));
        }
        if receipts.is_empty() {
            return Poll::Ready(None);
        }
        self.metrics.frame(Flow::ProduceOut, 0);
        let count = u64::try_from(receipts.len()).unwrap_or(u64::MAX);
        self.taken.count.fetch_add(count, Ordering::AcqRel);
        self.taken.more.notify_one();
        let receipts = v1::Receipts { receipts };
        Poll::Ready(Some(answer(Answer::Receipts(receipts))))
    }

    fn tell(&mut self, over: Over) {
        if let Some(told) = self.over.take() {
            // A handler that has ended needs no reason.
            let _ = told.send(over);
        }
    }
}

impl Stream for Answers {
    type Item = Result<v1::ProduceResponse, Status>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<v1::ProduceResponse, Status>>> {
        loop {
            if let Some(receipts) = &mut self.receipts {
                match receipts.poll(context) {
                    Poll::Ready(Some(message)) => return Poll::Ready(Some(Ok(message))),
                    Poll::Ready(None) => self.receipts = None,
                    Poll::Pending => {}
                }
            }
            match ready!(Pin::new(&mut self.pieces).poll_next(context)) {
                Some(Ok(Piece::Message(message))) => {
                    // Behind receipts it is the last word.
                    self.receipts = None;
                    return Poll::Ready(Some(Ok(message)));
                }
                Some(Ok(Piece::Receipts(receipts))) => self.receipts = Some(receipts),
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                None => return Poll::Ready(None),
            }
        }
    }
}

fn wire_receipt(receipt: Receipt) -> v1::Receipt {
    let at = receipt.stored;
    v1::Receipt {
        frame_number: receipt.frame_number,
        ledger_id: at.map_or(0, |at| at.ledger.0),
        entry_id: at.map_or(0, |at| at.entry.0),
        base_index: at.map_or(0, |at| at.base_index.0),
        duplicate: receipt.duplicate,
        position_unknown: at.is_none(),
    }
}

#[cfg(test)]
mod tests {
    use aquifer_protocol_api::error::ErrorKind;
    use aquifer_runtime::telemetry::Telemetry;
    use futures::{FutureExt, StreamExt};

    use super::*;

    type Broker = mpsc::Sender<ApiResult<Receipt>>;

    /// An open producer: the broker's end, the handler's, and the body.
    async fn opened() -> (Broker, Out<Piece>, Answered, Answers) {
        let metrics = Metrics::new(&Telemetry::for_tests().meter("test"));
        let (broker, receiver) = mpsc::channel(16);
        let (out, mut body) = answers();
        let (receipts, answered) = receipts(receiver, &metrics);
        let opened = Answer::Opened(v1::ProducerOpened::default());
        for piece in [Piece::Message(answer(opened)), Piece::Receipts(receipts)] {
            assert!(stream::reply(&out, piece).await.is_ok());
        }
        let first = body.next().now_or_never().flatten().unwrap().unwrap();
        assert!(matches!(first.response, Some(Answer::Opened(_))));
        (broker, out, answered, body)
    }

    fn receipt(frame_number: u64) -> ApiResult<Receipt> {
        Ok(Receipt {
            frame_number,
            stored: None,
            duplicate: true,
        })
    }

    fn last_word() -> Piece {
        Piece::Message(answer(Answer::Error(v1::ErrorDetail::default())))
    }

    /// The numbers of the receipts that are next, or nothing when it is something else.
    fn numbers(body: &mut Answers) -> Vec<u64> {
        match body.next().now_or_never().flatten() {
            Some(Ok(v1::ProduceResponse {
                response: Some(Answer::Receipts(receipts)),
            })) => {
                let receipts = receipts.receipts.iter();
                receipts.map(|receipt| receipt.frame_number).collect()
            }
            _ => Vec::new(),
        }
    }

    #[tokio::test]
    async fn receipts_that_are_ready_together_share_a_message_and_are_counted() {
        let (broker, _out, answered, mut body) = opened().await;
        assert!(body.next().now_or_never().is_none(), "nothing yet");
        for number in 1..=3 {
            broker.send(receipt(number)).await.unwrap();
        }
        assert_eq!(numbers(&mut body), [1, 2, 3]);
        assert_eq!(answered.taken.count(), 3);
        assert!(answered.taken.more().now_or_never().is_some());
    }

    /// H7: what the session ends with comes behind the receipts before it, and nothing behind that.
    #[tokio::test]
    async fn the_last_word_is_the_last() {
        let (broker, out, answered, mut body) = opened().await;
        let failed = ApiError::new(ErrorKind::Unavailable, "no");
        broker.send(receipt(1)).await.unwrap();
        broker.send(Err(failed.clone())).await.unwrap();
        assert_eq!(numbers(&mut body), [1]);
        let over = answered.over.now_or_never().unwrap();
        assert!(matches!(over, Ok(Over::Failed(error)) if error == failed));
        broker.send(receipt(2)).await.unwrap();
        assert!(stream::reply(&out, last_word()).await.is_ok());
        drop(out);
        assert_eq!(numbers(&mut body), [2], "it came before the last word");
        assert!(numbers(&mut body).is_empty(), "the last word");
        assert!(broker.is_closed());
        assert!(body.next().now_or_never().flatten().is_none());
    }

    #[tokio::test]
    async fn the_handler_learns_how_receipts_end() {
        let (broker, _out, answered, mut body) = opened().await;
        drop(broker);
        assert!(body.next().now_or_never().is_none());
        let over = answered.over.now_or_never().unwrap();
        assert!(matches!(over, Ok(Over::Closed)));
        let (_broker, out, answered, body) = opened().await;
        drop(body);
        assert!(out.is_closed());
        assert!(answered.over.now_or_never().unwrap().is_err());
    }
}
