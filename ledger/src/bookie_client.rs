//! The way to bookies of other processes: one ordered gRPC stream per bookie, and reads beside it.
//!
//! Invariants:
//! - Requests reach a bookie in the order in which they were submitted. When a stream breaks,
//!   every request without an answer, sent or not, gets `Unreachable` before a new stream carries
//!   later ones; the client id makes the bookie finish the former stream first.
//! - What waits for a bookie is bounded in requests and bytes (I13).
//!
//! It retries nothing: the caller knows what an unknown outcome means.

mod link;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aquifer_model::id::{BookieId, TenantKey};
use aquifer_model::limits::FRAME_BYTES_MAX;
use aquifer_model::storage::{
    BookieError, BookieResult, OrderedRequest, Presence, PresenceRange, ReadBatch, ReadRange,
    ReplyCallback, TailState, TailWait,
};
use aquifer_proto::convert::bookie as wire;
use aquifer_proto::v1::bookie_client::BookieClient;
use aquifer_runtime::clock::timeout;
use aquifer_runtime::net::dial::Dialer;
use aquifer_runtime::net::tls::ClientTls;
use aquifer_runtime::rng::Rng;
use aquifer_runtime::task::TaskGroup;
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};

use crate::transport::BookieTransport;
use link::Link;

const WINDOW_BYTES: u32 = 4 << 20;
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Tenants whose weights are known; those of further ones are as bookies have them.
const WEIGHTS_MAX: usize = 65_536;

/// The settings of the transport.
#[derive(Debug, Clone)]
pub struct BookieClientConfig {
    /// The cluster whose bookies these are: one of another cluster refuses. Empty for the bookie
    /// of a standalone server.
    pub cluster: String,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long a read may take.
    pub read_timeout: Duration,
    /// Most bytes of requests that wait for one bookie's answers.
    pub pending_bytes_max: usize,
    /// Most requests that wait for one bookie's answers.
    pub pending_requests_max: usize,
    /// With which bookies are talked to; without it in plain text.
    pub tls: Option<Arc<ClientTls>>,
}

impl Default for BookieClientConfig {
    fn default() -> BookieClientConfig {
        BookieClientConfig {
            cluster: String::new(),
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(30),
            pending_bytes_max: 64 << 20,
            pending_requests_max: 65_536,
            tls: None,
        }
    }
}

/// A transport over gRPC to bookies at known addresses.
pub struct GrpcTransport {
    config: BookieClientConfig,
    client_id: Bytes,
    tasks: TaskGroup,
    links: Mutex<HashMap<BookieId, Arc<Link>>>,
    /// What tenants weigh, for links that come later. Locked after `links`, where both are.
    weights: Mutex<HashMap<TenantKey, u32>>,
}

impl GrpcTransport {
    /// A transport that knows no bookie yet.
    #[must_use]
    pub fn new(config: BookieClientConfig, rng: &dyn Rng, tasks: TaskGroup) -> GrpcTransport {
        GrpcTransport {
            config,
            client_id: Bytes::copy_from_slice(&rng.id16()),
            tasks,
            links: Mutex::default(),
            weights: Mutex::default(),
        }
    }

    /// Says where a bookie is, for example `http://10.0.0.7:7651`. A bookie that moved keeps its
    /// stream to the old address until that breaks.
    ///
    /// # Errors
    /// When the address is not valid, or is for plain text where this process has TLS, or the other
    /// way round: what is stored must not travel in plain text because one bookie says so.
    pub fn set_address(&self, bookie: BookieId, url: &str) -> BookieResult<()> {
        let bad = |reason: &str| BookieError::Invalid(format!("bookie address {url}: {reason}"));
        let secret = Dialer::address(url);
        let dialer = match (&self.config.tls, &secret) {
            (Some(tls), Some(_)) => Dialer::new(Arc::clone(tls)),
            (None, None) => Dialer::plain(),
            (Some(_), None) => {
                return Err(bad(
                    "it is for plain text, and this process has `internal_tls`",
                ));
            }
            (None, Some(_)) => {
                return Err(bad("it is for TLS, and this process has no `internal_tls`"));
            }
        };
        let endpoint = Endpoint::from_shared(secret.unwrap_or_else(|| url.to_owned()))
            .map_err(|error| bad(&error.to_string()))?
            .connect_timeout(self.config.connect_timeout)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(4 * WINDOW_BYTES)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        let channel = endpoint.connect_with_connector_lazy(dialer);
        let mut links = self.links.lock();
        match links.get(&bookie) {
            Some(link) => link.set_channel(channel),
            None => {
                let link = Link::new(bookie, self.client_id.clone(), &self.config, channel);
                for (tenant, weight) in &*self.weights.lock() {
                    link.weigh(*tenant, *weight);
                }
                links.insert(bookie, Arc::new(link));
            }
        }
        Ok(())
    }

    /// Forgets a bookie. Its stream ends when everything that was submitted is answered.
    pub fn forget(&self, bookie: BookieId) {
        self.links.lock().remove(&bookie);
    }

    fn link(&self, bookie: BookieId) -> BookieResult<Arc<Link>> {
        let link = self.links.lock().get(&bookie).cloned();
        link.ok_or_else(|| {
            BookieError::Unreachable(format!("the address of bookie {bookie} is not known"))
        })
    }
}

/// A client over a channel, with the bounds of this protocol.
fn client(channel: Channel) -> BookieClient<Channel> {
    BookieClient::new(channel).max_decoding_message_size(FRAME_BYTES_MAX)
}

/// A broken way as an error; the outcome of what went over it is unknown.
fn unreachable(status: &tonic::Status) -> BookieError {
    BookieError::Unreachable(format!("{}: {}", status.code(), status.message()))
}

#[async_trait]
impl BookieTransport for GrpcTransport {
    fn submit(&self, bookie: BookieId, request: OrderedRequest, reply: ReplyCallback) {
        match self.link(bookie) {
            Ok(link) => link.submit(request, reply, &self.tasks),
            Err(error) => reply(Err(error)),
        }
    }

    fn weigh(&self, tenant: TenantKey, weight: u32) {
        // With the links locked, so that a new one misses nothing.
        let links = self.links.lock();
        let mut weights = self.weights.lock();
        if weights.len() >= WEIGHTS_MAX && !weights.contains_key(&tenant) {
            return;
        }
        weights.insert(tenant, weight);
        for link in links.values() {
            link.weigh(tenant, weight);
        }
    }

    async fn read(&self, bookie: BookieId, range: ReadRange) -> BookieResult<ReadBatch> {
        let channel = self.link(bookie)?.channel();
        let request = wire::wire_read(&range, Bytes::copy_from_slice(&bookie.0));
        let read = read(client(channel), request, range);
        let finished = timeout(self.config.read_timeout, read).await;
        finished.unwrap_or(Err(BookieError::Timeout))
    }

    async fn has(&self, bookie: BookieId, range: PresenceRange) -> BookieResult<Presence> {
        let channel = self.link(bookie)?.channel();
        let request = wire::wire_has(&range, Bytes::copy_from_slice(&bookie.0));
        let has = has(client(channel), request, range);
        let finished = timeout(self.config.read_timeout, has).await;
        finished.unwrap_or(Err(BookieError::Timeout))
    }

    async fn wait(&self, bookie: BookieId, news: TailWait) -> BookieResult<TailState> {
        let channel = self.link(bookie)?.channel();
        let request = wire::wire_wait(&news, Bytes::copy_from_slice(&bookie.0));
        let limit = self.config.read_timeout.saturating_add(news.limit);
        let finished = timeout(limit, wait(client(channel), request)).await;
        finished.unwrap_or(Err(BookieError::Timeout))
    }
}

/// Asks which entries of a range there are.
async fn has(
    mut client: BookieClient<Channel>,
    request: aquifer_proto::v1::HasRequest,
    range: PresenceRange,
) -> BookieResult<Presence> {
    let answered = client.has(request).await;
    let reply = answered.map_err(|status| unreachable(&status))?;
    wire::presence(reply.into_inner(), &range)
}

/// Asks for news of a ledger's end.
async fn wait(
    mut client: BookieClient<Channel>,
    request: aquifer_proto::v1::WaitRequest,
) -> BookieResult<TailState> {
    let answered = client.wait(request).await;
    let reply = answered.map_err(|status| unreachable(&status))?;
    wire::tail_state(reply.into_inner())
}

/// Collects the parts of an answer. An error behind the first entries ends the answer before it:
/// the next read begins there and gets it.
async fn read(
    mut client: BookieClient<Channel>,
    request: aquifer_proto::v1::ReadRequest,
    range: ReadRange,
) -> BookieResult<ReadBatch> {
    let answered = client.read(request).await;
    let mut parts = answered
        .map_err(|status| unreachable(&status))?
        .into_inner();
    let mut batch = ReadBatch::default();
    loop {
        let part = match parts.message().await {
            Ok(Some(part)) => part,
            Ok(None) => break,
            Err(_) if !batch.entries.is_empty() => break,
            Err(status) => return Err(unreachable(&status)),
        };
        if let Err(error) = wire::failure(part.status(), part.message) {
            if batch.entries.is_empty() {
                return Err(error);
            }
            break;
        }
        let lac = part.last_add_confirmed.map(aquifer_model::id::EntryId);
        batch.last_add_confirmed = batch.last_add_confirmed.max(lac);
        for entry in part.entries {
            let entry = wire::stored_entry(entry);
            let count = u64::try_from(batch.entries.len()).unwrap_or(u64::MAX);
            // Anything else than the entries asked for, in order, is a confused peer.
            if Some(entry.entry.0) != range.first.0.checked_add(count) || entry.entry > range.last {
                return Err(BookieError::Io(format!(
                    "the bookie answered with entry {} out of place",
                    entry.entry
                )));
            }
            batch.entries.push(entry);
        }
    }
    if batch.entries.is_empty() {
        return Err(BookieError::Io("the bookie answered nothing".to_owned()));
    }
    Ok(batch)
}
