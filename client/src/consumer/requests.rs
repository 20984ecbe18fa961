//! The request stream of a consume session: the transport pulls what the inbox has to tell.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use aquifer_proto::v1;
use aquifer_proto::v1::consume_request::Request;
use tokio_stream::Stream;

use crate::consumer::receiver::Receiver;

/// Subscribing, then acknowledgements, seeks and credit.
pub(crate) struct Requests {
    receiver: Arc<Receiver>,
    partition: usize,
    session: u64,
    subscribe: Option<v1::Subscribe>,
}

impl Requests {
    pub(crate) fn new(
        receiver: Arc<Receiver>,
        partition: usize,
        session: u64,
        subscribe: v1::Subscribe,
    ) -> Requests {
        Requests {
            receiver,
            partition,
            session,
            subscribe: Some(subscribe),
        }
    }
}

impl Stream for Requests {
    type Item = v1::ConsumeRequest;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<v1::ConsumeRequest>> {
        let this = self.get_mut();
        let request = match this.subscribe.take() {
            Some(subscribe) => Request::Subscribe(subscribe),
            None => {
                let next = this.receiver.change(this.partition, |inbox, _| {
                    inbox.next_request(this.session, cx.waker())
                });
                match next {
                    None => return Poll::Ready(None),
                    Some(None) => return Poll::Pending,
                    Some(Some(request)) => request,
                }
            }
        };
        Poll::Ready(Some(v1::ConsumeRequest {
            request: Some(request),
        }))
    }
}
