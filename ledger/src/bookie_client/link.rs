//! The ordered stream to one bookie: a queue, the requests without an answer, and the task that
//! moves both over one connection after another.
//!
//! Tenants take turns in the queue. While several wait, no more is sent without an answer than the
//! bookie takes at once, so that they wait here, where a tenant with much delays no other.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aquifer_model::id::{BookieId, TenantKey};
use aquifer_model::storage::{
    BookieError, BookieResult, OrderedOperation, OrderedReply, OrderedRequest, ReplyCallback,
};
use aquifer_proto::convert::bookie as wire;
use aquifer_proto::{PROTOCOL_VERSION, v1};
use aquifer_runtime::clock::sleep;
use aquifer_runtime::fair::FairQueue;
use aquifer_runtime::task::{ShutdownToken, TaskGroup};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tonic::transport::Channel;

use crate::bookie_client::{BookieClientConfig, client, unreachable};

/// Requests share a message up to this size; one large entry may exceed it.
const FRAME_BYTES: usize = 256 * 1024;
/// Most requests of one message.
const FRAME_REQUESTS_MAX: usize = 1024;
/// How long a link waits after its stream ended without an answer; doubled each time.
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// While several tenants wait, requests and bytes without an answer: fewer than a bookie takes from
/// one stream before it stops reading.
const SHARED_REQUESTS_MAX: usize = 2_048;
const SHARED_BYTES_MAX: usize = 8 << 20;
/// What a tenant gains in its turn.
const QUANTUM: usize = 64 * 1024;
/// What a request costs beyond its data.
const REQUEST_BYTES: usize = 128;

/// The way to one bookie.
pub(super) struct Link {
    bookie: BookieId,
    client_id: Bytes,
    cluster: String,
    bytes_max: usize,
    requests_max: usize,
    state: Mutex<State>,
    wake: Notify,
}

struct State {
    channel: Channel,
    /// Not sent yet. All requests for a ledger are of one tenant, so that they keep their order.
    queue: FairQueue<TenantKey, Waiting>,
    /// What tenants weigh, and what this stream has told the bookie of it.
    weights: HashMap<TenantKey, u32>,
    told: HashMap<TenantKey, u32>,
    /// Sent, without an answer.
    sent: HashMap<u64, (ReplyCallback, usize)>,
    sent_bytes: usize,
    /// Bytes of both.
    bytes: usize,
    /// Something waits in the queue until answers come.
    is_full: bool,
    last_id: u64,
    /// Counts the streams: what belongs to an older one takes nothing more.
    stream: u64,
    /// A task serves the link.
    running: bool,
    /// Streams that ended since the last answer.
    failures: u32,
}

struct Waiting {
    request: OrderedRequest,
    reply: ReplyCallback,
    bytes: usize,
}

impl Link {
    pub(super) fn new(
        bookie: BookieId,
        client_id: Bytes,
        config: &BookieClientConfig,
        channel: Channel,
    ) -> Link {
        Link {
            bookie,
            client_id,
            cluster: config.cluster.clone(),
            bytes_max: config.pending_bytes_max,
            requests_max: config.pending_requests_max,
            state: Mutex::new(State {
                channel,
                queue: FairQueue::new(QUANTUM),
                weights: HashMap::new(),
                told: HashMap::new(),
                sent: HashMap::new(),
                sent_bytes: 0,
                bytes: 0,
                is_full: false,
                last_id: 0,
                stream: 0,
                running: false,
                failures: 0,
            }),
            wake: Notify::new(),
        }
    }

    pub(super) fn set_channel(&self, channel: Channel) {
        self.state.lock().channel = channel;
    }

    pub(super) fn channel(&self) -> Channel {
        self.state.lock().channel.clone()
    }

    /// Gives a tenant a weight, here and, with its next request, at the bookie.
    pub(super) fn weigh(&self, tenant: TenantKey, weight: u32) {
        let mut state = self.state.lock();
        state.queue.weigh(tenant, weight);
        state.weights.insert(tenant, weight);
    }

    pub(super) fn submit(
        self: &Arc<Self>,
        request: OrderedRequest,
        reply: ReplyCallback,
        tasks: &TaskGroup,
    ) {
        let bytes = REQUEST_BYTES
            + match &request.operation {
                OrderedOperation::Add(add) => add.data.len(),
                _ => 0,
            };
        let mut state = self.state.lock();
        let requests = state.queue.len() + state.sent.len();
        // A single request always fits, however large.
        if requests >= self.requests_max || (requests > 0 && state.bytes + bytes > self.bytes_max) {
            drop(state);
            reply(Err(BookieError::Overloaded));
            return;
        }
        let waiting = Waiting {
            request,
            reply,
            bytes,
        };
        state.bytes += bytes;
        let tenant = waiting.request.tenant;
        state.queue.push(tenant, bytes, waiting);
        let start = !std::mem::replace(&mut state.running, true);
        drop(state);
        if start {
            let link = Arc::clone(self);
            let shutdown = tasks.shutdown_token();
            tasks.spawn("bookie-link", async move { link.run(shutdown).await });
        } else {
            self.wake.notify_one();
        }
    }

    /// Serves one stream after another while there are requests. Everything that a broken one
    /// leaves behind is answered before the next begins.
    async fn run(self: Arc<Self>, shutdown: ShutdownToken) {
        loop {
            let (stream, channel, failures) = self.begin();
            let exchange = async {
                if failures > 0 {
                    sleep(RETRY_MAX.min(RETRY_FIRST * (1 << failures.min(10)))).await;
                }
                self.exchange(stream, channel).await
            };
            let error = tokio::select! {
                () = shutdown.wait() => {
                    BookieError::Unreachable("this process is stopping".to_owned())
                }
                error = exchange => error,
            };
            let abandoned = self.abandon();
            tracing::debug!(
                bookie = %self.bookie, %error, requests = abandoned.len(),
                "the stream to a bookie ended"
            );
            for reply in abandoned {
                reply(Err(error.clone()));
            }
            let mut state = self.state.lock();
            if state.queue.is_empty() {
                state.running = false;
                return;
            }
        }
    }

    /// Begins the next stream, whose bookie knows nothing of the ones before.
    fn begin(&self) -> (u64, Channel, u32) {
        let mut state = self.state.lock();
        state.stream += 1;
        state.last_id = 0;
        state.told.clear();
        (state.stream, state.channel.clone(), state.failures)
    }

    /// Runs the stream; returns why it ended.
    async fn exchange(self: &Arc<Self>, stream: u64, channel: Channel) -> BookieError {
        let frames =
            futures::stream::unfold((Arc::clone(self), true), move |(link, first)| async move {
                let frame = if first {
                    Some(link.first_frame())
                } else {
                    link.next_frame(stream).await
                };
                frame.map(|frame| (frame, (link, false)))
            });
        let mut replies = match client(channel).ordered(frames).await {
            Ok(replies) => replies.into_inner(),
            Err(status) => return unreachable(&status),
        };
        loop {
            match replies.message().await {
                Ok(Some(frame)) => {
                    for reply in frame.replies {
                        self.answered(reply);
                    }
                }
                Ok(None) => return BookieError::Unreachable("the stream ended".to_owned()),
                Err(status) => return unreachable(&status),
            }
        }
    }

    fn first_frame(&self) -> v1::OrderedFrame {
        v1::OrderedFrame {
            open: Some(v1::OpenBookie {
                version: PROTOCOL_VERSION,
                bookie_id: Bytes::copy_from_slice(&self.bookie.0),
                cluster: self.cluster.clone(),
                client_id: self.client_id.clone(),
            }),
            requests: Vec::new(),
        }
    }

    /// Waits for requests and takes those of the next message; `None` when the stream is over.
    async fn next_frame(&self, stream: u64) -> Option<v1::OrderedFrame> {
        loop {
            let woken = self.wake.notified();
            {
                let mut state = self.state.lock();
                if state.stream != stream {
                    return None;
                }
                let frame = state.take_frame();
                if !frame.requests.is_empty() {
                    return Some(frame);
                }
            }
            woken.await;
        }
    }

    fn answered(&self, reply: v1::OrderedReply) {
        let answered = {
            let mut state = self.state.lock();
            state.failures = 0;
            let answered = state.sent.remove(&reply.request_id);
            if let Some((_, bytes)) = &answered {
                state.bytes -= bytes;
                state.sent_bytes -= bytes;
            }
            if state.is_full {
                self.wake.notify_one();
            }
            answered
        };
        let outcome: BookieResult<OrderedReply> = wire::outcome(reply);
        match answered {
            Some((callback, _)) => callback(outcome),
            None => tracing::warn!(bookie = %self.bookie, "a reply without a request"),
        }
    }

    /// Ends the stream and takes what has no answer, in order of submission for each ledger.
    fn abandon(&self) -> Vec<ReplyCallback> {
        let mut state = self.state.lock();
        state.stream += 1;
        state.bytes = 0;
        state.sent_bytes = 0;
        state.failures += 1;
        let mut sent: Vec<(u64, ReplyCallback)> = state
            .sent
            .drain()
            .map(|(id, (reply, _))| (id, reply))
            .collect();
        sent.sort_by_key(|(id, _)| *id);
        let queued = std::iter::from_fn(|| state.queue.pop()).map(|waiting| waiting.reply);
        let queued: Vec<ReplyCallback> = queued.collect();
        drop(state);
        // A body that still waits learns that it is over.
        self.wake.notify_waiters();
        sent.into_iter()
            .map(|(_, reply)| reply)
            .chain(queued)
            .collect()
    }
}

impl State {
    fn take_frame(&mut self) -> v1::OrderedFrame {
        let mut frame = v1::OrderedFrame::default();
        let mut left = FRAME_BYTES;
        while frame.requests.len() < FRAME_REQUESTS_MAX {
            self.is_full = self.has_enough_in_flight();
            // One alone may be larger than a message should be.
            let bytes_max = match frame.requests.is_empty() {
                true => usize::MAX,
                false => left,
            };
            if self.is_full {
                break;
            }
            let Some(waiting) = self.queue.pop_within(bytes_max) else {
                break;
            };
            left = left.saturating_sub(waiting.bytes);
            self.last_id += 1;
            self.sent_bytes += waiting.bytes;
            self.sent
                .insert(self.last_id, (waiting.reply, waiting.bytes));
            let weight = self.news_of(waiting.request.tenant);
            frame.requests.push(v1::OrderedRequest {
                weight,
                ..wire::wire_request(self.last_id, waiting.request)
            });
        }
        frame
    }

    /// What a tenant weighs, if the bookie does not know; otherwise 0.
    fn news_of(&mut self, tenant: TenantKey) -> u32 {
        match self.weights.get(&tenant).copied() {
            Some(weight) if self.told.insert(tenant, weight) != Some(weight) => weight,
            _ => 0,
        }
    }

    /// Whether what waits does so until answers come.
    fn has_enough_in_flight(&self) -> bool {
        let enough = self.sent.len() >= SHARED_REQUESTS_MAX || self.sent_bytes >= SHARED_BYTES_MAX;
        enough && self.queue.flows() > 1
    }
}

#[cfg(test)]
mod tests {
    use aquifer_model::id::{CreationToken, LedgerId};
    use tonic::transport::Endpoint;

    use super::*;

    /// The weights that go with this many requests of a tenant.
    fn told(link: &Link, tenant: TenantKey, requests: usize) -> Vec<u32> {
        let mut state = link.state.lock();
        for _ in 0..requests {
            let request = OrderedRequest {
                ledger: LedgerId(1),
                token: CreationToken([1; 16]),
                tenant,
                operation: OrderedOperation::Fence,
            };
            let waiting = Waiting {
                request,
                reply: Box::new(|_| ()),
                bytes: 1,
            };
            state.queue.push(tenant, 1, waiting);
        }
        let frame = state.take_frame();
        frame
            .requests
            .iter()
            .map(|request| request.weight)
            .collect()
    }

    #[tokio::test]
    async fn a_bookie_is_told_weights_that_it_does_not_know() {
        let channel = Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        let config = BookieClientConfig::default();
        let link = Link::new(BookieId([1; 16]), Bytes::new(), &config, channel);
        let (heavy, other) = (TenantKey(7), TenantKey(8));
        assert_eq!(told(&link, heavy, 1), [0], "nothing is known of it");
        link.weigh(heavy, 3);
        assert_eq!(told(&link, heavy, 2), [3, 0]);
        assert_eq!(told(&link, other, 1), [0]);
        link.weigh(heavy, 3);
        assert_eq!(told(&link, heavy, 1), [0]);
        link.weigh(heavy, 1);
        assert_eq!(told(&link, heavy, 1), [1]);
        link.begin();
        assert_eq!(
            told(&link, heavy, 2),
            [1, 0],
            "the bookie may be another process"
        );
    }
}
