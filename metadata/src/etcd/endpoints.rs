//! The members of etcd, and which of them is asked. All requests go to one member until it fails;
//! then the next one is asked, and watches that hang on the failed one are told to move. Each
//! member has a connection of its own, made on demand. A connection keeps the certificates that it
//! was made with, so that after a failure their files are read again.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aquifer_runtime::clock;
use aquifer_runtime::rng::SharedRng;
use etcd_client::{Client, ConnectOptions, Error};
use parking_lot::Mutex;
use tokio::sync::{OnceCell, watch};

use crate::error::{MetadataError, MetadataResult};
use crate::etcd::config::{EtcdConfig, PemFiles};
use crate::etcd::errors::{Failure, before_sending, classify};

/// First and longest wait after every member was asked once in vain.
const PAUSE_FIRST: Duration = Duration::from_millis(25);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A future in a box.
type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The members.
pub(super) struct Endpoints {
    list: Vec<Arc<Endpoint>>,
    current: AtomicUsize,
    config: EtcdConfig,
    access: Mutex<Access>,
    rng: SharedRng,
    request_timeout: Duration,
    attempt_timeout: Duration,
}

/// What connections are made with.
struct Access {
    options: Arc<ConnectOptions>,
    /// What the options were made of.
    files: PemFiles,
    /// Whether other files were read at the start.
    is_renewed: bool,
}

/// A member.
pub(super) struct Endpoint {
    url: String,
    client: Mutex<Arc<OnceCell<Client>>>,
    /// How often it failed.
    failures: watch::Sender<u64>,
}

impl std::fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The options hold the password.
        f.write_str("Endpoints")
    }
}

impl Endpoints {
    pub(super) async fn new(config: &EtcdConfig, rng: SharedRng) -> MetadataResult<Endpoints> {
        config.check()?;
        let files = config.pem_files().await?;
        let access = Access {
            options: Arc::new(config.connect_options(&files)),
            files,
            is_renewed: false,
        };
        let endpoint = |url: &String| {
            Arc::new(Endpoint {
                url: url.clone(),
                client: Mutex::default(),
                failures: watch::Sender::new(0),
            })
        };
        let list: Vec<_> = config.endpoints.iter().map(endpoint).collect();
        let members = u64::try_from(list.len()).unwrap_or(1);
        // Processes begin at different members, so that one does not get all the load.
        let first = usize::try_from(rng.below(members)).unwrap_or(0);
        Ok(Endpoints {
            list,
            current: AtomicUsize::new(first),
            config: config.clone(),
            access: Mutex::new(access),
            rng,
            request_timeout: config.request_timeout(),
            attempt_timeout: config.attempt_timeout(),
        })
    }

    pub(super) fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    pub(super) fn attempt_timeout(&self) -> Duration {
        self.attempt_timeout
    }

    /// The member to ask, and its number.
    fn current(&self) -> (usize, Arc<Endpoint>) {
        let index = self.current.load(Ordering::SeqCst) % self.list.len();
        (index, Arc::clone(&self.list[index]))
    }

    /// Asks the next member from now on, unless another request has moved on already.
    fn leave(&self, index: usize) {
        let next = (index + 1) % self.list.len();
        let moved = self
            .current
            .compare_exchange(index, next, Ordering::SeqCst, Ordering::SeqCst);
        if moved.is_ok() {
            self.list[index].failures.send_modify(|count| *count += 1);
        }
    }

    /// Asks one member once. What failed before anything was sent is never `Unknown`.
    pub(super) async fn attempt<T, F, Fut>(&self, limit: Duration, ask: F) -> Result<T, Failure>
    where
        F: FnOnce(Client) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        self.attempt_at(limit, ask).await.map(|(result, _)| result)
    }

    /// The same, and returns the member too.
    pub(super) async fn attempt_at<T, F, Fut>(
        &self,
        limit: Duration,
        ask: F,
    ) -> Result<(T, Arc<Endpoint>), Failure>
    where
        F: FnOnce(Client) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let (index, endpoint) = self.current();
        let asked = self.ask(&endpoint, limit, ask).await;
        if let Err(Failure::Refused(_) | Failure::Unknown(_)) = &asked {
            self.leave(index);
            self.renewing().await;
        }
        Ok((asked?, endpoint))
    }

    /// In a box, as connecting is.
    fn renewing(&self) -> Boxed<'_, ()> {
        Box::pin(self.renew())
    }

    /// Makes all connections again, on demand, where the files of TLS are others than they were.
    async fn renew(&self) {
        let files = match self.config.pem_files().await {
            Ok(files) => files,
            Err(error) => {
                tracing::warn!(%error, "certificates for etcd cannot be read again");
                return;
            }
        };
        {
            let mut access = self.access.lock();
            if access.files == files {
                return;
            }
            *access = Access {
                options: Arc::new(self.config.connect_options(&files)),
                files,
                is_renewed: true,
            };
        }
        tracing::info!("certificates for etcd are read again");
        for endpoint in &self.list {
            *endpoint.client.lock() = Arc::default();
        }
    }

    /// Asks every member once, one after the other, and says by its address what each answered.
    pub(super) async fn each<T, F, Fut>(&self, ask: F) -> Vec<(String, Result<T, Failure>)>
    where
        F: Fn(Client) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let mut answers = Vec::with_capacity(self.list.len());
        for endpoint in &self.list {
            let answer = self.ask(endpoint, self.attempt_timeout, &ask).await;
            answers.push((endpoint.url.clone(), answer));
        }
        answers
    }

    async fn ask<T, F, Fut>(
        &self,
        endpoint: &Endpoint,
        limit: Duration,
        ask: F,
    ) -> Result<T, Failure>
    where
        F: FnOnce(Client) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let late = |what: &str| format!("etcd at {} did not {what} in {limit:?}", endpoint.url);
        let client = clock::timeout(limit, endpoint.connect(&self.access))
            .await
            .unwrap_or_else(|_| Err(Failure::Refused(late("log in"))))?;
        let asked = clock::timeout(limit, boxed(ask, client.clone())).await;
        let failure = match asked {
            Ok(Ok(result)) => return Ok(result),
            Ok(Err(error)) => at(&endpoint.url, classify(&error)),
            Err(_) => Failure::Unknown(late("answer")),
        };
        if let Failure::Login(reason) = failure {
            return match clock::timeout(limit, client.refresh_token()).await {
                Ok(Err(error)) => Err(at(&endpoint.url, before_sending(&error))),
                Ok(Ok(())) => Err(Failure::Login(reason)),
                Err(_) => Err(Failure::Refused(late("log in"))),
            };
        }
        Err(failure)
    }

    /// Asks until there is an answer, for requests that may be repeated.
    ///
    /// # Errors
    /// `Final`, `NoLease` or `AnswerTooLarge`; at the deadline `Final` with `Unavailable`.
    pub(super) async fn call<T, F, Fut>(&self, what: &str, ask: F) -> Result<T, Failure>
    where
        F: Fn(Client) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let mut last = "it did not answer".to_owned();
        let answered = async {
            let mut tries = 0;
            loop {
                match self.attempt(self.attempt_timeout, &ask).await {
                    Err(
                        Failure::Refused(reason)
                        | Failure::Unknown(reason)
                        | Failure::Login(reason),
                    ) => last = reason,
                    other => return other,
                }
                self.pause(&mut tries).await;
            }
        };
        match clock::timeout(self.request_timeout, answered).await {
            Ok(result) => result,
            Err(_) => Err(Failure::Final(MetadataError::Unavailable(format!(
                "{what}: no result in {:?}: {last}",
                self.request_timeout
            )))),
        }
    }

    /// Waits before a member is asked again; not at all while there are members left to ask.
    pub(super) async fn pause(&self, tries: &mut u32) {
        *tries += 1;
        let members = u32::try_from(self.list.len()).unwrap_or(u32::MAX);
        if !tries.is_multiple_of(members) {
            return;
        }
        let rounds = (*tries / members).min(16);
        let pause = PAUSE_FIRST.saturating_mul(1 << (rounds - 1).min(15));
        clock::sleep(self.rng.jitter(pause.min(PAUSE_MAX))).await;
    }
}

impl Endpoint {
    /// The client of this member. Without a user this does not connect yet.
    async fn connect(&self, access: &Mutex<Access>) -> Result<Client, Failure> {
        let client = Arc::clone(&self.client.lock());
        if let Some(client) = client.get() {
            return Ok(client.clone());
        }
        // Behind the cell: one that is taken before a renewal is given up by it, and none that
        // comes after it is filled with what was before.
        let (options, is_renewed) = {
            let access = access.lock();
            (Arc::clone(&access.options), access.is_renewed)
        };
        let connecting = client.get_or_try_init(|| self.connecting(options));
        let client = connecting.await.cloned();
        client.map_err(|error| match before_sending(&error) {
            // Files that are read while a process writes them do not fit together: once more.
            Failure::Final(error @ MetadataError::Invalid(_)) if is_renewed => {
                at(&self.url, Failure::Refused(error.to_string()))
            }
            failure => at(&self.url, failure),
        })
    }

    /// In a box, made here: the future of connecting is large, and would be part of every
    /// request's, or at least of its stack.
    fn connecting(&self, options: Arc<ConnectOptions>) -> Boxed<'_, Result<Client, Error>> {
        Box::pin(
            async move { Client::connect([self.url.as_str()], Some((*options).clone())).await },
        )
    }

    /// Changes when a request to this member has failed.
    pub(super) fn failures(&self) -> watch::Receiver<u64> {
        self.failures.subscribe()
    }
}

/// A request in a box: its future is large, and would be part of those of all callers.
fn boxed<Fut>(ask: impl FnOnce(Client) -> Fut, client: Client) -> Pin<Box<Fut>> {
    Box::pin(ask(client))
}

/// Says where it happened.
fn at(url: &str, failure: Failure) -> Failure {
    let place = |reason: String| format!("{url}: {reason}");
    match failure {
        Failure::Refused(reason) => Failure::Refused(place(reason)),
        Failure::Unknown(reason) => Failure::Unknown(place(reason)),
        other => other,
    }
}
