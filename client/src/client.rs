//! The entry point: settings, the pool of connections, and the builders of everything else.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aquifer_runtime::clock::{SharedClock, SystemClock};
use aquifer_runtime::net::tls::ClientTlsConfig;
use aquifer_runtime::rng::{SharedRng, SystemRng};
use aquifer_runtime::task::TaskGroup;
use tokio::sync::Semaphore;

use crate::admin::Admin;
use crate::backup::Backups;
use crate::connection::{Pool, Secret};
use crate::consumer::ConsumerBuilder;
use crate::context::Context;
use crate::credentials::{Credentials, Token, TokenSource};
use crate::error::{ClientError, Outcome, Result};
use crate::lookup::Target;
use crate::producer::ProducerBuilder;
use crate::reader::ReaderBuilder;
use crate::retry::{Backoff, Deadline};
use crate::security::Security;
use crate::topic::Topic;

/// Where a standalone broker listens unless told otherwise.
pub const DEFAULT_URL: &str = "http://127.0.0.1:7650";
/// Default deadline of an operation.
pub const DEFAULT_OPERATION_TIMEOUT: Duration = Duration::from_secs(30);
/// Default bound of what all producers of a client hold, in bytes.
pub const DEFAULT_MEMORY_LIMIT_BYTES: usize = 64 * 1024 * 1024;

/// A client of one cluster. Clones share connections and memory bounds; connections are made when
/// they are first needed and end when the last clone, producer, consumer and reader is gone.
#[derive(Clone)]
pub struct Client {
    pub(crate) context: Arc<Context>,
}

/// Builds a [`Client`].
#[derive(Clone)]
pub struct ClientBuilder {
    urls: Vec<String>,
    operation_timeout: Duration,
    memory_limit_bytes: usize,
    tls: ClientTlsConfig,
    token: Option<TokenSource>,
    allow_plaintext_credentials: bool,
    clock: SharedClock,
    rng: SharedRng,
    tasks: Option<TaskGroup>,
}

impl Client {
    /// Starts with the defaults: `http://127.0.0.1:7650`, 30 s, 64 MiB.
    #[must_use]
    pub fn builder() -> ClientBuilder {
        ClientBuilder {
            urls: Vec::new(),
            operation_timeout: DEFAULT_OPERATION_TIMEOUT,
            memory_limit_bytes: DEFAULT_MEMORY_LIMIT_BYTES,
            tls: ClientTlsConfig::default(),
            token: None,
            allow_plaintext_credentials: false,
            clock: SystemClock::shared(),
            rng: SystemRng::shared(),
            tasks: None,
        }
    }

    /// Checks now that a broker can be reached and speaks our protocol. Not needed otherwise:
    /// everything connects by itself.
    ///
    /// # Errors
    /// [`ClientError::Connect`] when no broker listens at any address, after one try of each;
    /// [`ClientError::Timeout`] when one does and says nothing for the operation timeout,
    /// [`ClientError::Unauthenticated`] when it wants another token, or any at all.
    pub async fn connect(&self) -> Result<()> {
        let deadline = Deadline::after(self.context.operation_timeout);
        let mut backoff = Backoff::new(Arc::clone(&self.context.rng));
        let mut target = Target::default();
        let mut last = None;
        loop {
            let attempt = async { target.connect(&self.context).await.map(|_| ()) };
            let error = match deadline.limit("connecting", attempt).await {
                Ok(()) => return Ok(()),
                Err(error) => error.because_of(last.take()),
            };
            let error = target.renew(&self.context, error, false).await;
            let is_passing = matches!(
                error,
                ClientError::Timeout { .. } | ClientError::Connection { .. }
            );
            if !is_passing || deadline.has_passed() {
                return Err(error.with_outcome(Outcome::NotApplied));
            }
            error.remember(&mut last);
            backoff.wait().await;
        }
    }

    /// Prepares a producer for a topic, given as `topic` or `tenant/namespace/topic`.
    #[must_use]
    pub fn producer(&self, topic: &str) -> ProducerBuilder {
        ProducerBuilder::new(Arc::clone(&self.context), topic)
    }

    /// Prepares a consumer of a durable subscription, which is created if it does not exist.
    #[must_use]
    pub fn consumer(&self, topic: &str, subscription: &str) -> ConsumerBuilder {
        ConsumerBuilder::new(Arc::clone(&self.context), topic, subscription)
    }

    /// Prepares a reader, which leaves nothing behind on the broker.
    #[must_use]
    pub fn reader(&self, topic: &str) -> ReaderBuilder {
        ReaderBuilder::new(Arc::clone(&self.context), topic)
    }

    /// A topic, or one partition of it, for single appends and reads, lookups, and positions that
    /// are committed by name. Nothing is sent before the first of them.
    ///
    /// # Errors
    /// `Invalid` for its name.
    pub fn topic(&self, topic: &str) -> Result<Topic> {
        Topic::new(Arc::clone(&self.context), topic)
    }

    /// The administrative operations.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin::new(Arc::clone(&self.context))
    }

    /// Backups of topics.
    #[must_use]
    pub fn backups(&self) -> Backups {
        Backups::new(Arc::clone(&self.context))
    }

    /// Tokens, grants, and what the client itself is allowed.
    #[must_use]
    pub fn security(&self) -> Security {
        Security::new(Arc::clone(&self.context))
    }
}

impl ClientBuilder {
    /// Adds the address of a broker, `http://HOST:PORT` or `https://HOST:PORT`, or several
    /// separated by commas. Any broker of the cluster will do; with several, the next is tried when
    /// one does not answer.
    #[must_use]
    pub fn url(mut self, url: impl AsRef<str>) -> ClientBuilder {
        let parts = url.as_ref().split(',').map(str::trim);
        self.urls
            .extend(parts.filter(|part| !part.is_empty()).map(str::to_owned));
        self
    }

    /// Adds several addresses.
    #[must_use]
    pub fn urls<I: IntoIterator<Item = S>, S: AsRef<str>>(self, urls: I) -> ClientBuilder {
        urls.into_iter().fold(self, |builder, url| builder.url(url))
    }

    /// How long opening, acknowledging, seeking and administrative calls may take, retries
    /// included. Default 30 s.
    #[must_use]
    pub fn operation_timeout(mut self, timeout: Duration) -> ClientBuilder {
        self.operation_timeout = timeout;
        self
    }

    /// Bytes that all producers of this client together may hold unacknowledged. Default 64 MiB.
    #[must_use]
    pub fn memory_limit_bytes(mut self, bytes: usize) -> ClientBuilder {
        self.memory_limit_bytes = bytes;
        self
    }

    /// Which authorities brokers at `https` addresses are checked against, and the certificate that
    /// is shown to them. By default the authorities of the operating system, and none. Files are
    /// looked at again for every new connection.
    #[must_use]
    pub fn tls(mut self, files: ClientTlsConfig) -> ClientBuilder {
        self.tls = files;
        self
    }

    /// The token that every call shows. One that ends or is revoked ends producers and consumers
    /// with it: [`token_file`](Self::token_file) and [`token_source`](Self::token_source) go on
    /// with another.
    #[must_use]
    pub fn token(self, token: impl Into<Token>) -> ClientBuilder {
        self.token_source(TokenSource::Value(token.into()))
    }

    /// The file with the token that every call shows. It is looked at again when it may have
    /// changed, so that a token that replaces another is used without a restart.
    #[must_use]
    pub fn token_file(self, path: impl Into<PathBuf>) -> ClientBuilder {
        self.token_source(TokenSource::File(path.into()))
    }

    /// Where the token that every call shows comes from. It is fetched when the first call needs
    /// it, before it ends, and when a broker refuses it; producers and consumers go on meanwhile.
    #[must_use]
    pub fn token_source(mut self, source: TokenSource) -> ClientBuilder {
        self.token = Some(source);
        self
    }

    /// Sends the token to `http` addresses beyond this machine too, where everything in between can
    /// read it. Default no: such an address is refused before anything is sent.
    #[must_use]
    pub fn allow_plaintext_credentials(mut self, allow: bool) -> ClientBuilder {
        self.allow_plaintext_credentials = allow;
        self
    }

    /// Another clock, for simulations.
    #[must_use]
    pub fn clock(mut self, clock: SharedClock) -> ClientBuilder {
        self.clock = clock;
        self
    }

    /// Another source of randomness, for simulations.
    #[must_use]
    pub fn rng(mut self, rng: SharedRng) -> ClientBuilder {
        self.rng = rng;
        self
    }

    /// The group that the client's tasks belong to, where the process has one.
    #[must_use]
    pub fn tasks(mut self, tasks: TaskGroup) -> ClientBuilder {
        self.tasks = Some(tasks);
        self
    }

    /// The client. Nothing is connected yet.
    ///
    /// # Errors
    /// [`ClientError::Url`] when an address is no URL, [`ClientError::Invalid`] when a bound is
    /// zero, a file for TLS cannot be used, or a token would be sent in plain text.
    pub fn build(mut self) -> Result<Client> {
        if self.memory_limit_bytes == 0 || self.operation_timeout.is_zero() {
            return Err(ClientError::Invalid(
                "memory limit and operation timeout must be above zero".to_owned(),
            ));
        }
        if self.urls.is_empty() {
            self.urls.push(DEFAULT_URL.to_owned());
        }
        let memory_limit_bytes = self.memory_limit_bytes.min(Semaphore::MAX_PERMITS);
        let credentials = Credentials::new(
            self.token,
            self.allow_plaintext_credentials,
            Arc::clone(&self.clock),
            Arc::clone(&self.rng),
        );
        Ok(Client {
            context: Arc::new(Context {
                pool: Pool::new(
                    &self.urls,
                    self.operation_timeout,
                    Secret::new(self.tls, Arc::clone(&self.clock)),
                    credentials,
                )?,
                operation_timeout: self.operation_timeout,
                memory: Arc::new(Semaphore::new(memory_limit_bytes)),
                memory_limit_bytes,
                clock: self.clock,
                rng: self.rng,
                tasks: self.tasks.unwrap_or_else(|| TaskGroup::new("client")),
            }),
        })
    }
}
