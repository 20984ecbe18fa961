//! The connections to each broker address, made when they are first needed and made again after a
//! failure. The first one counts only after the handshake of versions and features; more are made
//! as streams need them (`channels.rs`).

mod channels;
mod secret;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use aquifer_model::limits::FRAME_BYTES_MAX;
use aquifer_proto::v1::admin_client::AdminClient;
use aquifer_proto::v1::backup_client::BackupClient;
use aquifer_proto::v1::broker_client::BrokerClient;
use aquifer_proto::v1::operator_client::OperatorClient;
use aquifer_proto::v1::pull_client::PullClient;
use aquifer_proto::v1::security_client::SecurityClient;
use aquifer_proto::{ERROR_TRAILER, PROTOCOL_VERSION, v1};
use aquifer_runtime::net::dial::{Dialer, HTTPS};
use prost::Message as _;
use tokio::sync::Mutex;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use crate::credentials::{Credentials, Shown};
use crate::error::{ClientError, Outcome, Result};

use channels::Channels;
pub(crate) use channels::{Kind, Slot as StreamSlot};
pub(crate) use secret::Secret;

/// Bytes that may be under way before the peer must say that it has read some.
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// The same for all streams of a connection: one whose consumer is slow must not stop the others.
const CONNECTION_WINDOW_BYTES: u32 = 32 * 1024 * 1024;
/// Largest HTTP/2 frame that we accept.
const HTTP2_FRAME_BYTES: u32 = 256 * 1024;
/// A dead peer is noticed after this without traffic, plus [`KEEP_ALIVE_TIMEOUT`].
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(4);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(4);
/// Longest wait for one address, so that a dead one does not use up the time of the others.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses that redirects may add to the pool.
const ADDRESSES_MAX: usize = 10_000;

/// A connection whose calls show a credential.
pub(crate) type Authorized = InterceptedService<Channel, Shown>;

/// The connections of a client.
pub(crate) struct Pool {
    bootstrap: Vec<Arc<str>>,
    /// Which of them is asked first: one that answered when others before it did not.
    preferred: AtomicUsize,
    connect_timeout: Duration,
    /// With which `https` addresses are connected to.
    tls: Arc<Secret>,
    credentials: Credentials,
    /// A broker has answered once.
    was_connected: AtomicBool,
    slots: parking_lot::Mutex<HashMap<Arc<str>, Arc<Slot>>>,
}

/// One address. Concurrent users share one attempt, and its failure: one that does not answer costs
/// them one timeout together, not one after the other.
#[derive(Default)]
struct Slot {
    live: Mutex<Live>,
    /// Attempts that have ended.
    attempts: AtomicU64,
}

#[derive(Default)]
struct Live {
    connection: Option<Connection>,
    /// How the last attempt failed, and the number of the credential that it showed.
    error: Option<(u64, ClientError)>,
}

/// A connection whose handshake is done, with the credential that its calls show.
#[derive(Clone)]
pub(crate) struct Connection {
    url: Arc<str>,
    channel: Channel,
    credential: Shown,
    timeout: Duration,
    tls: Arc<Secret>,
    channels: Arc<Channels>,
    /// Tells this connection from a later one to the same address.
    token: Arc<()>,
}

impl Pool {
    pub(crate) fn new(
        urls: &[String],
        timeout: Duration,
        tls: Secret,
        credentials: Credentials,
    ) -> Result<Pool> {
        let bootstrap = urls
            .iter()
            .map(|url| normalize(url))
            .collect::<Result<Vec<_>>>()?;
        for url in &bootstrap {
            credentials.check_address(url)?;
        }
        if bootstrap.iter().any(|url| url.starts_with(HTTPS)) {
            // Files that cannot be used are the application's error, and no broker's.
            tls.get()?;
        }
        Ok(Pool {
            tls: Arc::new(tls),
            credentials,
            bootstrap,
            preferred: AtomicUsize::new(0),
            connect_timeout: timeout.min(CONNECT_TIMEOUT),
            was_connected: AtomicBool::new(false),
            slots: parking_lot::Mutex::new(HashMap::new()),
        })
    }

    /// The credential for the next call.
    pub(crate) async fn credential(&self) -> Result<Shown> {
        self.credentials.shown().await
    }

    /// A broker has refused the credential of this number: whether there is another one now.
    pub(crate) async fn renew_credential(&self, refused: u64) -> Result<bool> {
        self.credentials.renew(refused).await
    }

    /// A connection to any of the addresses that the client was given. `skip` makes the attempts of
    /// one operation begin at different ones: a broker that answers may still not be able to serve.
    pub(crate) async fn any(&self, skip: usize, credential: &Shown) -> Result<Connection> {
        let count = self.bootstrap.len();
        let first = self.preferred.load(Ordering::Relaxed).wrapping_add(skip);
        let mut tried = Vec::new();
        // What says more than that no broker is there: a broker that is silent, or refuses us.
        let (mut silent, mut refused) = (None, None);
        for at in 0..count {
            let at = first.wrapping_add(at) % count;
            match self.open(Arc::clone(&self.bootstrap[at]), credential).await {
                Ok(connection) => {
                    if !tried.is_empty() {
                        self.preferred.store(at, Ordering::Relaxed);
                    }
                    return Ok(connection);
                }
                Err(ClientError::Connect { tried: reason }) => tried.push(reason),
                Err(error @ ClientError::Timeout { .. }) => silent = silent.or(Some(error)),
                // It says what is wrong with us; another one may see it differently.
                Err(other) => refused = refused.or(Some(other)),
            }
        }
        Err(refused.or(silent).unwrap_or_else(|| ClientError::Connect {
            tried: tried.join("; "),
        }))
    }

    /// A connection to the broker that a redirect named.
    pub(crate) async fn to(&self, url: &str, credential: &Shown) -> Result<Connection> {
        let url = normalize(url)?;
        self.credentials.check_address(&url)?;
        if !url.starts_with(HTTPS) && self.bootstrap.iter().any(|url| url.starts_with(HTTPS)) {
            let reason = "a redirect from TLS to plain text is not followed: let every broker \
                          advertise an https address";
            return Err(refused(&url, reason.to_owned()));
        }
        self.open(url, credential).await
    }

    /// Whether an operation that failed like this must not be tried again: no broker has ever
    /// answered, so the addresses are likely wrong. A cluster that was there before may come back.
    pub(crate) fn is_hopeless(&self, error: &ClientError) -> bool {
        matches!(error, ClientError::Connect { .. }) && !self.was_connected.load(Ordering::Relaxed)
    }

    /// Forgets a connection that failed, unless another call has replaced it already.
    pub(crate) async fn invalidate(&self, connection: &Connection) {
        let slot = self.slots.lock().get(&connection.url).map(Arc::clone);
        let Some(slot) = slot else { return };
        let mut live = slot.live.lock().await;
        if live
            .connection
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(&current.token, &connection.token))
        {
            live.connection = None;
        }
    }

    async fn open(&self, url: Arc<str>, credential: &Shown) -> Result<Connection> {
        let slot = {
            let mut slots = self.slots.lock();
            if slots.len() >= ADDRESSES_MAX {
                slots.retain(|_, slot| Arc::strong_count(slot) > 1);
            }
            Arc::clone(slots.entry(Arc::clone(&url)).or_default())
        };
        let before = slot.attempts.load(Ordering::Acquire);
        let mut live = slot.live.lock().await;
        if let Some(connection) = &live.connection {
            return Ok(Connection {
                credential: credential.clone(),
                ..connection.clone()
            });
        }
        // Another call tried while this one waited.
        if slot.attempts.load(Ordering::Acquire) != before
            && let Some((shown, error)) = &live.error
            && *shown == credential.number()
        {
            return Err(error.clone());
        }
        // Boxed: it is large and rare, and every call's future would reserve its size.
        let dialed = Box::pin(dial(&url, self.connect_timeout, &self.tls, credential)).await;
        slot.attempts.fetch_add(1, Ordering::Release);
        match dialed {
            Ok(connection) => {
                live.connection = Some(connection.clone());
                live.error = None;
                self.was_connected.store(true, Ordering::Relaxed);
                Ok(connection)
            }
            Err(error) => {
                live.error = Some((credential.number(), error.clone()));
                Err(error)
            }
        }
    }
}

impl Connection {
    /// The data plane for one stream, whose place must be kept as long as the stream is.
    pub(crate) async fn stream(
        &self,
        kind: Kind,
    ) -> Result<(BrokerClient<Authorized>, StreamSlot)> {
        let dial = || connect(&self.url, self.timeout, &self.tls);
        let (channel, slot) = self.channels.take(kind, dial).await?;
        let client = BrokerClient::new(self.authorized(channel))
            .max_decoding_message_size(FRAME_BYTES_MAX)
            .max_encoding_message_size(FRAME_BYTES_MAX);
        Ok((client, slot))
    }

    /// The control plane over this connection.
    pub(crate) fn admin(&self) -> AdminClient<Authorized> {
        AdminClient::new(self.calls()).max_decoding_message_size(FRAME_BYTES_MAX)
    }

    /// The operation of the cluster over this connection.
    pub(crate) fn operator(&self) -> OperatorClient<Authorized> {
        OperatorClient::new(self.calls()).max_decoding_message_size(FRAME_BYTES_MAX)
    }

    /// Backups over this connection.
    pub(crate) fn backup(&self) -> BackupClient<Authorized> {
        BackupClient::new(self.calls()).max_decoding_message_size(FRAME_BYTES_MAX)
    }

    /// Tokens and grants over this connection.
    pub(crate) fn security(&self) -> SecurityClient<Authorized> {
        SecurityClient::new(self.calls()).max_decoding_message_size(FRAME_BYTES_MAX)
    }

    /// The data plane without streams, over this connection.
    pub(crate) fn pull(&self) -> PullClient<Authorized> {
        PullClient::new(self.calls())
            .max_decoding_message_size(FRAME_BYTES_MAX)
            .max_encoding_message_size(FRAME_BYTES_MAX)
    }

    fn calls(&self) -> Authorized {
        self.authorized(self.channel.clone())
    }

    fn authorized(&self, channel: Channel) -> Authorized {
        InterceptedService::new(channel, self.credential.clone())
    }
}

fn normalize(url: &str) -> Result<Arc<str>> {
    let bad = |reason: &str| ClientError::Url {
        // What stands before an `@` may be a password, and errors are logged.
        given: match url.rsplit_once('@') {
            Some((_, address)) => format!("…@{address}"),
            None => url.to_owned(),
        },
        reason: reason.to_owned(),
    };
    if url.contains('@') {
        return Err(bad("without a user or a password: brokers take tokens"));
    }
    let full = if url.contains("://") {
        url.to_owned()
    } else {
        format!("http://{url}")
    };
    let uri: tonic::codegen::http::Uri = full.parse().map_err(|_| bad("not a URL"))?;
    match uri.scheme_str() {
        Some("http" | "https") => {}
        _ => return Err(bad("the scheme must be http or https")),
    }
    if uri.host().is_none_or(str::is_empty) {
        return Err(bad("no host"));
    }
    // Schemes have no case, and every later look at one is for lower case.
    let (scheme, rest) = full.split_once("://").unwrap_or(("http", &full));
    let rest = rest.trim_end_matches('/');
    Ok(format!("{}://{rest}", scheme.to_ascii_lowercase()).into())
}

fn refused(url: &str, reason: String) -> ClientError {
    ClientError::Connect {
        tried: format!("{url}: {reason}"),
    }
}

async fn connect(url: &str, timeout: Duration, tls: &Secret) -> Result<Channel> {
    let refused = |reason| refused(url, reason);
    let secret = Dialer::address(url);
    let dialer = match secret {
        Some(_) => Dialer::new(tls.get()?),
        None => Dialer::plain(),
    };
    let endpoint = Endpoint::from_shared(secret.unwrap_or_else(|| url.to_owned()))
        .map_err(|error| refused(error.to_string()))?
        .connect_timeout(timeout)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let connected = endpoint.connect_with_connector(dialer).await;
    connected.map_err(|error| refused(source_text(&error)))
}

async fn dial(
    url: &Arc<str>,
    timeout: Duration,
    tls: &Arc<Secret>,
    credential: &Shown,
) -> Result<Connection> {
    let refused = |reason| refused(url, reason);
    let channel = connect(url, timeout, tls).await?;
    let request = v1::HandshakeRequest {
        version_min: PROTOCOL_VERSION,
        version_max: PROTOCOL_VERSION,
        features: Vec::new(),
        client: concat!("aquifer-rust/", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    let authorized = InterceptedService::new(channel.clone(), credential.clone());
    let mut client = BrokerClient::new(authorized);
    let handshake = async { Ok(client.handshake(request).await) };
    // A process takes connections and says nothing: paused, or stuck, but not absent.
    let answer = crate::retry::Deadline::after(timeout)
        .limit("the handshake", handshake)
        .await
        .map_err(|error| error.with_outcome(Outcome::NotApplied))?;
    let response = match answer {
        Ok(response) => response.into_inner(),
        Err(status) => match from_status("handshake", &status) {
            error @ (ClientError::Broker(_)
            | ClientError::Unauthenticated(_)
            | ClientError::PermissionDenied(_)) => return Err(error),
            other => return Err(refused(hint(url, other.to_string()))),
        },
    };
    if response.version != PROTOCOL_VERSION {
        return Err(ClientError::Protocol(format!(
            "asked for protocol version {PROTOCOL_VERSION}, it answered {}",
            response.version
        )));
    }
    Ok(Connection {
        url: Arc::clone(url),
        channels: Arc::new(Channels::new(
            channel.clone(),
            response.streams_per_connection_max,
        )),
        channel,
        credential: credential.clone(),
        timeout,
        tls: Arc::clone(tls),
        token: Arc::new(()),
    })
}

/// Adds what is likely wrong. The alert of a port with TLS begins with bytes that HTTP/2 takes for
/// the length of a frame, which is too large; where the port closes before the alert is read, only
/// the end of the connection is seen.
fn hint(url: &str, reason: String) -> String {
    const SIGNS: [&str; 3] = ["frame with invalid size", "broken pipe", "connection reset"];
    match url.strip_prefix("http://") {
        Some(rest) if SIGNS.iter().any(|sign| reason.contains(sign)) => {
            format!("it may speak TLS, try https://{rest} ({reason})")
        }
        _ => reason,
    }
}

/// What a failed call means: the broker's own words where it left some, the transport's otherwise.
pub(crate) fn from_status(what: &'static str, status: &tonic::Status) -> ClientError {
    let detail = status
        .metadata()
        .get_bin(ERROR_TRAILER)
        .and_then(|value| value.to_bytes().ok())
        .and_then(|bytes| v1::ErrorDetail::decode(bytes).ok());
    if let Some(detail) = detail.or_else(|| refusal(status)) {
        return detail.into();
    }
    let reason = match std::error::Error::source(status) {
        Some(source) => format!("{}: {}", status.message(), source_text(source)),
        None => format!("{} ({:?})", status.message(), status.code()),
    };
    ClientError::Connection {
        what,
        reason,
        outcome: Outcome::Unknown,
    }
}

/// A refusal in the transport's own words, as of something in front of the brokers.
fn refusal(status: &tonic::Status) -> Option<v1::ErrorDetail> {
    let code = match status.code() {
        tonic::Code::Unauthenticated => v1::ErrorCode::Unauthenticated,
        tonic::Code::PermissionDenied => v1::ErrorCode::PermissionDenied,
        _ => return None,
    };
    Some(v1::ErrorDetail {
        code: code.into(),
        message: status.message().to_owned(),
        outcome: v1::Outcome::NotApplied.into(),
        ..v1::ErrorDetail::default()
    })
}

fn source_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use aquifer_runtime::clock::SystemClock;
    use aquifer_runtime::net::{ListenAddress, bind};
    use aquifer_runtime::rng::SystemRng;

    use super::*;

    fn pool(urls: &[String], timeout: Duration) -> Pool {
        let clock = SystemClock::shared();
        let credentials = Credentials::new(None, false, Arc::clone(&clock), SystemRng::shared());
        let tls = Secret::new(Default::default(), clock);
        Pool::new(urls, timeout, tls, credentials).unwrap()
    }

    async fn any(pool: &Pool, skip: usize) -> Result<Connection> {
        pool.any(skip, &Shown::default()).await
    }

    #[test]
    fn addresses_are_checked_and_completed() {
        let text = |url: &str| normalize(url).map(|url| url.to_string());
        assert_eq!(text("localhost:7650").unwrap(), "http://localhost:7650");
        assert_eq!(text("http://[::1]:1/").unwrap(), "http://[::1]:1");
        assert_eq!(text("https://x:1").unwrap(), "https://x:1");
        assert_eq!(text("HTTPS://x:1").unwrap(), "https://x:1");
        for bad in ["", "http://", "ftp://x:1", "http://a b"] {
            assert!(text(bad).is_err(), "{bad}");
        }
        // A password, which nothing here takes, is not repeated.
        let said = text("http://me:hunter2@x:1").unwrap_err().to_string();
        assert!(said.contains("…@x:1") && said.contains("tokens"), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }

    #[test]
    fn a_port_that_may_speak_tls_is_told_of() {
        let told = |url, reason: &str| hint(url, reason.to_owned()).contains("https://b:1");
        for sign in [
            "connection error: frame with invalid size",
            "stream closed because of a broken pipe",
            "connection reset by peer",
        ] {
            assert!(told("http://b:1", sign), "{sign}");
            assert!(!told("https://b:1", sign), "{sign}");
        }
        assert!(!told("http://b:1", "connection refused"));
    }

    #[tokio::test]
    async fn every_address_that_failed_is_named() {
        // Port 1 on loopback: nothing listens there.
        let urls = ["127.0.0.1:1".to_owned(), "http://127.0.0.1:1".to_owned()];
        let pool = pool(&urls, Duration::from_secs(5));
        let error = any(&pool, 0).await.map(|_| ()).unwrap_err().to_string();
        assert_eq!(error.matches("http://127.0.0.1:1").count(), 2, "{error}");
    }

    /// A broker that is paused takes connections and says nothing.
    #[tokio::test]
    async fn an_address_that_does_not_answer_costs_all_who_wait_one_timeout_together() {
        let any_port = ListenAddress::loopback_any_port();
        let (silent, address) = bind(any_port).await.unwrap();
        let pool = pool(&[address.to_string()], Duration::from_millis(300));
        let attempts = AtomicU64::new(0);
        let accept = async {
            let mut open = Vec::new();
            loop {
                open.push(silent.accept().await.unwrap());
                attempts.fetch_add(1, Ordering::Relaxed);
            }
        };
        let all = futures::future::join_all((0..50).map(|_| any(&pool, 0)));
        let all = tokio::select! {
            all = all => all,
            () = accept => unreachable!("it goes on"),
        };
        assert!(all.iter().all(Result::is_err));
        assert_eq!(attempts.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn one_that_answers_is_asked_first_from_then_on() {
        let urls = ["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()];
        let pool = pool(&urls, Duration::from_secs(5));
        let first = |text: &str| text.find("127.0.0.1:1") < text.find("127.0.0.1:2");
        let error = async |skip| any(&pool, skip).await.map(|_| ()).unwrap_err().to_string();
        assert!(first(&error(0).await));
        assert!(!first(&error(1).await), "an attempt may begin elsewhere");
        pool.preferred.store(1, Ordering::Relaxed);
        assert!(!first(&error(0).await));
    }

    #[test]
    fn the_brokers_own_words_win_over_the_transports() {
        let detail = v1::ErrorDetail {
            code: v1::ErrorCode::NotFound.into(),
            message: "no such topic".to_owned(),
            ..v1::ErrorDetail::default()
        };
        let mut status = tonic::Status::not_found("x");
        let value = tonic::metadata::MetadataValue::from_bytes(&detail.encode_to_vec());
        status.metadata_mut().insert_bin(ERROR_TRAILER, value);
        let error = from_status("test", &status);
        assert_eq!(error.code(), Some(v1::ErrorCode::NotFound));
        let plain = from_status("test", &tonic::Status::unavailable("gone"));
        assert!(plain.is_retryable());
        assert_eq!(plain.outcome(), Outcome::Unknown);
    }
}
