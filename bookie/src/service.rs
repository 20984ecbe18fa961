//! The storage service: the bookie over gRPC, for clients of other processes. It serves the same
//! `submit` and `read` that standalone calls directly, and decides nothing.
//!
//! One ordered stream carries a client's adds, fences, recovery reads, LACs and deletions in the
//! order sent; replies that are ready share a message. A stream has a bounded number of requests
//! without a reply: further ones wait in its HTTP/2 window (I13).

mod access;
mod clients;
mod convert;
mod inbound;
mod ordered;
mod status;
#[cfg(test)]
mod strangers;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use aquifer_model::limits::FRAME_BYTES_MAX;
use aquifer_model::storage::{BookieError, BookieResult, ReadBatch, ReadRange, TailState};
use aquifer_proto::v1;
use aquifer_proto::v1::bookie_server::BookieServer;
use aquifer_runtime::net::gathered::Gathered;
use aquifer_runtime::net::stream::ServerStream;
use aquifer_runtime::net::tls::ServerTls;
use aquifer_runtime::net::{self, ListenAddress, NetError};
use aquifer_runtime::task::TaskGroup;
use futures::{Stream, StreamExt as _};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming, async_trait};
use tower::util::MapRequestLayer;

use crate::Bookie;
use access::{Need, Role};
use clients::Clients;
use inbound::InboundBodies;

const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const HTTP2_FRAME_BYTES: u32 = 1 << 20;
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;
const STREAMS_PER_CONNECTION_MAX: u32 = 256;
const RESET_STREAMS_MAX: usize = 64;
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Entry bytes in one reply to a read, where no single entry is larger.
const READ_REPLY_BYTES: usize = 1 << 20;

type Body<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Listens and serves until `tasks` shuts down; returns the bound address. With `tls` every peer
/// must show a certificate that it accepts, and may ask what its role may.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(
    bookie: Bookie,
    listen: ListenAddress,
    tls: Option<Arc<ServerTls>>,
    tasks: &TaskGroup,
) -> Result<SocketAddr, NetError> {
    let (listener, bound) = net::bind(listen).await?;
    let service = Service {
        bookie,
        clients: Arc::default(),
        is_secret: tls.is_some(),
        tasks: tasks.clone(),
    };
    let bodies = InboundBodies::new();
    let router = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES)
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESET_STREAMS_MAX))
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .layer(MapRequestLayer::new(move |request| bodies.admit(request)))
        .add_service(BookieServer::new(service).max_decoding_message_size(FRAME_BYTES_MAX));
    let incoming = TcpIncoming::from(listener)
        .with_nodelay(Some(true))
        .with_keepalive(Some(KEEPALIVE))
        .map(move |accepted| {
            accepted.map(|stream| Gathered::new(ServerStream::new(stream, tls.as_ref())))
        });
    let shutdown = tasks.shutdown_token();
    tasks.spawn("bookie-server", async move {
        let stop = async move { shutdown.wait().await };
        let served = router.serve_with_incoming_shutdown(incoming, stop).await;
        if let Err(error) = served {
            tracing::error!(%error, "the bookie's gRPC server failed");
        }
    });
    Ok(bound)
}

struct Service {
    bookie: Bookie,
    clients: Arc<Clients>,
    /// The port asks for certificates, whose roles decide.
    is_secret: bool,
    tasks: TaskGroup,
}

#[async_trait]
impl v1::bookie_server::Bookie for Service {
    type OrderedStream = Body<v1::OrderedReplies>;

    async fn ordered(
        &self,
        request: Request<Streaming<v1::OrderedFrame>>,
    ) -> Result<Response<Self::OrderedStream>, Status> {
        let role = Role::of(&request, self.is_secret);
        // Nothing of a ledger is done for one that may not even look at it.
        role.check(Need::Read)?;
        let body = ordered::serve(
            (&self.bookie, role),
            &self.clients,
            request.into_inner(),
            &self.tasks,
        );
        Ok(Response::new(body))
    }

    type ReadStream = Body<v1::ReadReply>;

    async fn read(
        &self,
        request: Request<v1::ReadRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        Role::of(&request, self.is_secret).check(Need::Read)?;
        let request = request.into_inner();
        convert::check_bookie(&request.bookie_id, self.bookie.id())?;
        let range = convert::read_range(&request)?;
        let state = Some((self.bookie.clone(), range));
        Ok(Response::new(Box::pin(futures::stream::unfold(
            state, read_next,
        ))))
    }

    async fn has(
        &self,
        request: Request<v1::HasRequest>,
    ) -> Result<Response<v1::HasReply>, Status> {
        Role::of(&request, self.is_secret).check(Need::Read)?;
        let request = request.into_inner();
        convert::check_bookie(&request.bookie_id, self.bookie.id())?;
        let range = convert::presence_range(&request)?;
        let found = self.bookie.has(range).await;
        Ok(Response::new(convert::has_reply(found)))
    }

    async fn wait(
        &self,
        request: Request<v1::WaitRequest>,
    ) -> Result<Response<v1::WaitReply>, Status> {
        Role::of(&request, self.is_secret).check(Need::Read)?;
        let request = request.into_inner();
        convert::check_bookie(&request.bookie_id, self.bookie.id())?;
        let wait = convert::tail_wait(&request)?;
        let shutdown = self.tasks.shutdown_token();
        let found = tokio::select! {
            biased;
            () = shutdown.wait() => Err(BookieError::ShuttingDown),
            found = self.bookie.wait(wait) => found,
        };
        Ok(Response::new(wait_reply(found)))
    }
}

fn wait_reply(found: BookieResult<TailState>) -> v1::WaitReply {
    match found {
        Ok(tail) => v1::WaitReply {
            status: v1::BookieStatus::Ok.into(),
            message: String::new(),
            last_add_confirmed: tail.last_add_confirmed.map(|entry| entry.0),
            fenced: tail.fenced,
        },
        Err(error) => v1::WaitReply {
            status: status::code(&error).into(),
            message: status::detail(&error),
            ..v1::WaitReply::default()
        },
    }
}

/// Reads the next part of a range: a peer that does not read causes no reads.
async fn read_next(
    state: Option<(Bookie, ReadRange)>,
) -> Option<(Result<v1::ReadReply, Status>, Option<(Bookie, ReadRange)>)> {
    let (bookie, range) = state?;
    let part = ReadRange {
        bytes_max: range.bytes_max.min(READ_REPLY_BYTES),
        ..range
    };
    let found = bookie.read(part).await;
    let rest = found
        .as_ref()
        .ok()
        .and_then(|batch| rest_of(range, batch))
        .map(|rest| (bookie, rest));
    Some((Ok(read_reply(found)), rest))
}

/// What remains of a range after this part of it; `None` when it is done or a bound is reached.
fn rest_of(range: ReadRange, found: &ReadBatch) -> Option<ReadRange> {
    let last = found.entries.last()?;
    let bytes: usize = found.entries.iter().map(|entry| entry.data.len()).sum();
    let rest = ReadRange {
        first: last.entry.next(),
        bytes_max: range.bytes_max.saturating_sub(bytes),
        entries_max: range.entries_max.saturating_sub(found.entries.len()),
        ..range
    };
    let more = last.entry < range.last && rest.bytes_max > 0 && rest.entries_max > 0;
    more.then_some(rest)
}

fn read_reply(found: BookieResult<ReadBatch>) -> v1::ReadReply {
    match found {
        Ok(batch) => v1::ReadReply {
            status: v1::BookieStatus::Ok.into(),
            message: String::new(),
            entries: batch.entries.into_iter().map(convert::wire_entry).collect(),
            last_add_confirmed: batch.last_add_confirmed.map(|entry| entry.0),
        },
        Err(error) => failed_read(&error),
    }
}

fn failed_read(error: &BookieError) -> v1::ReadReply {
    v1::ReadReply {
        status: status::code(error).into(),
        message: status::detail(error),
        ..v1::ReadReply::default()
    }
}

#[cfg(test)]
mod tests {
    use aquifer_model::id::{EntryId, LedgerId};
    use aquifer_model::storage::StoredEntry;
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_range_is_read_in_parts_until_its_end_or_a_bound() {
        let range = ReadRange {
            ledger: LedgerId(1),
            token: None,
            first: EntryId(0),
            last: EntryId(9),
            bytes_max: 100,
            entries_max: 8,
            prefix_bytes: None,
        };
        let batch = |entries: std::ops::RangeInclusive<u64>, bytes: usize| ReadBatch {
            entries: entries
                .map(|entry| StoredEntry {
                    entry: EntryId(entry),
                    last_add_confirmed: None,
                    ledger_length: 0,
                    digest: 0,
                    data: Bytes::from(vec![0; bytes]),
                })
                .collect(),
            last_add_confirmed: None,
        };
        let rest = rest_of(range, &batch(0..=3, 10)).unwrap();
        assert_eq!(
            (rest.first, rest.bytes_max, rest.entries_max),
            (EntryId(4), 60, 4)
        );
        assert_eq!(
            rest_of(range, &batch(0..=9, 1)),
            None,
            "the last entry is there"
        );
        assert_eq!(rest_of(range, &batch(0..=7, 1)), None, "enough entries");
        assert_eq!(rest_of(range, &batch(0..=1, 50)), None, "enough bytes");
        assert_eq!(rest_of(range, &ReadBatch::default()), None);
    }
}
