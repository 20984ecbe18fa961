//! The ordered stream of one client.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use aquifer_model::id::TenantKey;
use aquifer_model::storage::{BookieResult, OrderedReply};
use aquifer_proto::{PROTOCOL_VERSION, v1};
use aquifer_runtime::clock::timeout;
use aquifer_runtime::task::{ShutdownToken, TaskGroup};
use bytes::Bytes;
use tokio::sync::mpsc::{self, OwnedPermit};
use tonic::{Status, Streaming};

use crate::Bookie;
use crate::service::access::Role;
use crate::service::clients::{Clients, is_over};
use crate::service::{Body, convert};

/// Requests of one stream without a reply. Enough for the journal to fill its commits; each is
/// also counted by its bytes in the bookie's own budgets.
const REQUESTS_MAX: usize = 4096;
/// Where one message of replies is full; recovery reads carry whole entries.
const REPLY_BYTES: usize = 512 * 1024;
/// Replies in one message.
const REPLIES_MAX: usize = 1024;
/// A new stream must say which bookie it is for within this.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest client id.
const CLIENT_ID_BYTES_MAX: usize = 64;

type Item = Result<v1::OrderedReply, Status>;

/// Serves a stream: requests are taken by a task, replies are drawn by the body.
pub(super) fn serve(
    (bookie, role): (&Bookie, Role),
    clients: &Arc<Clients>,
    inbound: Streaming<v1::OrderedFrame>,
    tasks: &TaskGroup,
) -> Body<v1::OrderedReplies> {
    let (sender, replies) = mpsc::channel(REQUESTS_MAX);
    let shutdown = tasks.shutdown_token();
    let (bookie, clients) = (bookie.clone(), Arc::clone(clients));
    tasks.spawn("bookie-ordered", async move {
        let taken = take((&bookie, role), &clients, inbound, &sender, shutdown).await;
        if let Err(status) = taken {
            // A peer that is gone does not need to hear why.
            let _ = sender.send(Err(status)).await;
        }
    });
    Box::pin(futures::stream::unfold(
        Replies {
            replies,
            carry: None,
        },
        |mut replies| async move { Some((replies.next().await?, replies)) },
    ))
}

async fn take(
    (bookie, role): (&Bookie, Role),
    clients: &Arc<Clients>,
    mut inbound: Streaming<v1::OrderedFrame>,
    sender: &mpsc::Sender<Item>,
    shutdown: ShutdownToken,
) -> Result<(), Status> {
    let first = timeout(OPEN_TIMEOUT, inbound.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no `open` in time"))??;
    let Some(mut frame) = first else {
        return Ok(());
    };
    let client_id = open(bookie, frame.open.take())?;
    let mut turn = clients.enter(client_id).await;
    let mut expected = 1;
    // One wait for the whole stream: one for each frame would have to register each time.
    let mut stopped = pin!(shutdown.wait());
    loop {
        for request in frame.requests {
            let request_id = request.request_id;
            if request_id != expected {
                return Err(Status::invalid_argument(format!(
                    "request {request_id} where {expected} was expected: ids have no gaps"
                )));
            }
            expected += 1;
            let slot = tokio::select! {
                biased;
                () = is_over(&mut turn) => return Err(replaced()),
                slot = sender.clone().reserve_owned() => slot,
            };
            let Ok(slot) = slot else {
                return Ok(());
            };
            submit(bookie, role, request, slot);
        }
        let next = tokio::select! {
            biased;
            () = &mut stopped => return Err(Status::unavailable("the bookie is shutting down")),
            () = is_over(&mut turn) => return Err(replaced()),
            next = inbound.message() => next?,
        };
        frame = match next {
            Some(v1::OrderedFrame { open: Some(_), .. }) => {
                return Err(Status::invalid_argument(
                    "`open` belongs to the first frame only",
                ));
            }
            Some(frame) => frame,
            None => return Ok(()),
        };
    }
}

fn replaced() -> Status {
    Status::aborted("a newer stream of this client has taken over")
}

fn open(bookie: &Bookie, open: Option<v1::OpenBookie>) -> Result<Bytes, Status> {
    let Some(open) = open else {
        return Err(Status::invalid_argument("the first frame must have `open`"));
    };
    if open.version != PROTOCOL_VERSION {
        return Err(Status::failed_precondition(format!(
            "unsupported protocol version {}: this bookie supports {PROTOCOL_VERSION}",
            open.version
        )));
    }
    if open.client_id.len() > CLIENT_ID_BYTES_MAX {
        return Err(Status::invalid_argument("the client id is too long"));
    }
    convert::check_cluster(&open.cluster, bookie.cluster())?;
    convert::check_bookie(&open.bookie_id, bookie.id())?;
    Ok(open.client_id)
}

/// Hands a request over. Its slot in the channel is reserved, so that the reply never blocks the
/// thread that it comes from.
fn submit(bookie: &Bookie, role: Role, request: v1::OrderedRequest, slot: OwnedPermit<Item>) {
    let request_id = request.request_id;
    let (tenant, weight) = (TenantKey(request.tenant), request.weight);
    let answer = move |outcome: BookieResult<OrderedReply>| {
        slot.send(Ok(convert::reply(request_id, outcome)));
    };
    let request = convert::request(request);
    let allowed = request.and_then(|request| {
        role.check_ordered(&request.operation)?;
        Ok(request)
    });
    match allowed {
        Ok(request) => {
            if weight > 0 {
                bookie.weigh(tenant, weight);
            }
            bookie.submit(request, Box::new(answer));
        }
        Err(error) => answer(Err(error)),
    }
}

/// Replies in the shape in which they are sent.
struct Replies {
    replies: mpsc::Receiver<Item>,
    /// What did not fit, or the error that ends the stream.
    carry: Option<Item>,
}

impl Replies {
    /// Everything that is ready, up to a size; waits for the first.
    async fn next(&mut self) -> Option<Result<v1::OrderedReplies, Status>> {
        let first = match self.carry.take() {
            Some(item) => item,
            None => self.replies.recv().await?,
        };
        let first = match first {
            Ok(reply) => reply,
            Err(status) => return Some(Err(status)),
        };
        let mut bytes = size_of(&first);
        let mut replies = vec![first];
        while replies.len() < REPLIES_MAX {
            match self.replies.try_recv() {
                Ok(Ok(reply)) if bytes + size_of(&reply) <= REPLY_BYTES => {
                    bytes += size_of(&reply);
                    replies.push(reply);
                }
                Ok(item) => {
                    self.carry = Some(item);
                    break;
                }
                Err(_) => break,
            }
        }
        Some(Ok(v1::OrderedReplies { replies }))
    }
}

fn size_of(reply: &v1::OrderedReply) -> usize {
    reply.entry.as_ref().map_or(0, |entry| entry.data.len()) + reply.message.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(request_id: u64, bytes: usize) -> Item {
        Ok(v1::OrderedReply {
            request_id,
            entry: Some(v1::StoredEntry {
                data: vec![0; bytes].into(),
                ..v1::StoredEntry::default()
            }),
            ..v1::OrderedReply::default()
        })
    }

    #[tokio::test]
    async fn ready_replies_share_a_message_up_to_a_size_and_errors_come_last() {
        let (sender, replies) = mpsc::channel(16);
        let items = [
            reply(1, 10),
            reply(2, 10),
            reply(3, REPLY_BYTES),
            reply(4, 10),
            Err(Status::unavailable("end")),
        ];
        for item in items {
            sender.try_send(item).unwrap();
        }
        drop(sender);
        let mut replies = Replies {
            replies,
            carry: None,
        };
        let mut messages = Vec::new();
        while let Some(message) = replies.next().await {
            let ids = message.map(|m| m.replies.iter().map(|r| r.request_id).collect::<Vec<_>>());
            messages.push(ids.map_err(|status| status.message().to_owned()));
        }
        let expected = [
            Ok(vec![1, 2]),
            Ok(vec![3]),
            Ok(vec![4]),
            Err("end".to_owned()),
        ];
        assert_eq!(messages, expected);
    }
}
