//! With what the client says who it is: the credential of each call, where it comes from
//! ([`source`]), and when it is fetched again.
//!
//! Invariants:
//! - One fetch at a time. While a credential is still good, calls that do not fetch use it.
//! - What was fetched is used until it is due, or until a broker refuses it. A fetch that fails
//!   takes nothing away that is still good.
//! - A credential has a number. A refusal names the one that was refused, so that it never discards
//!   a newer one.

mod issuer;
mod source;
mod token;

use std::time::Duration;

use aquifer_runtime::clock::SharedClock;
use aquifer_runtime::rng::SharedRng;
use parking_lot::RwLock;
use tokio::sync::Mutex;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::error::{ClientError, Result};
use source::Fetched;

pub use issuer::ClientCredentials;
pub use source::TokenSource;
pub use token::Token;

/// The header that carries the credential.
const HEADER: &str = "authorization";
/// How often a source is asked again at most, and a file looked at.
const INTERVAL_MIN: Duration = Duration::from_secs(1);

/// The credentials of a client.
pub(crate) struct Credentials {
    source: Option<TokenSource>,
    allow_plaintext: bool,
    clock: SharedClock,
    rng: SharedRng,
    held: RwLock<Option<Held>>,
    /// Held by the call that fetches.
    fetching: Mutex<()>,
}

/// What was fetched last. Times are of the monotonic clock.
#[derive(Clone)]
struct Held {
    token: Token,
    shown: Shown,
    fetched_at: Duration,
    /// From then on it is fetched again before it is used.
    due_at: Option<Duration>,
    /// From then on it is useless.
    ends_at: Option<Duration>,
}

/// The credential of one call; nothing where the client has no source.
#[derive(Clone, Default)]
pub(crate) struct Shown {
    number: u64,
    header: Option<MetadataValue<Ascii>>,
}

impl Shown {
    /// Tells it from those before and after it; 0 for nothing.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

/// The one place that adds the credential to a call.
impl Interceptor for Shown {
    fn call(&mut self, mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
        if let Some(header) = &self.header {
            request.metadata_mut().insert(HEADER, header.clone());
        }
        Ok(request)
    }
}

impl Credentials {
    /// Those of a source. Nothing is fetched yet.
    pub(crate) fn new(
        source: Option<TokenSource>,
        allow_plaintext: bool,
        clock: SharedClock,
        rng: SharedRng,
    ) -> Credentials {
        Credentials {
            source,
            allow_plaintext,
            clock,
            rng,
            held: RwLock::default(),
            fetching: Mutex::default(),
        }
    }

    /// Whether an address may see the credential: not in plain text, which everything in between
    /// can read, unless that stays on this machine or is allowed.
    pub(crate) fn check_address(&self, url: &str) -> Result<()> {
        let hidden = self.source.is_none() || self.allow_plaintext;
        let Some(rest) = url.strip_prefix("http://").filter(|_| !hidden) else {
            return Ok(());
        };
        if is_loopback(rest) {
            return Ok(());
        }
        Err(ClientError::Invalid(format!(
            "a token would be sent to {url} in plain text, where others can read it; nothing was \
             sent: use https://{rest}, or allow it with allow_plaintext_credentials if the network \
             in between is trusted"
        )))
    }

    /// The credential for the next call, fetched if that is due.
    pub(crate) async fn shown(&self) -> Result<Shown> {
        let Some(source) = &self.source else {
            return Ok(Shown::default());
        };
        if let Some(held) = self.held.read().as_ref()
            && !has_come(held.due_at, self.clock.monotonic())
        {
            return Ok(held.shown.clone());
        }
        let good = self.good();
        let _fetching = match (self.fetching.try_lock(), &good) {
            (Ok(fetching), _) => fetching,
            (Err(_), Some(held)) => return Ok(held.shown.clone()),
            (Err(_), None) => self.fetching.lock().await,
        };
        // Another call may have fetched while this one waited.
        if let Some(held) = self.good()
            && !has_come(held.due_at, self.clock.monotonic())
        {
            return Ok(held.shown);
        }
        // On the heap: it holds a whole connection to an issuer, and every call waits here.
        let fetched = Box::pin(source.fetch(&self.clock)).await;
        match fetched.and_then(|fetched| self.keep(source, fetched)) {
            Ok(shown) => Ok(shown),
            Err(error) => {
                let Some(held) = self.good() else {
                    return Err(error);
                };
                tracing::warn!(%error, "token not renewed; the former one stays in use");
                let shown = held.shown.clone();
                self.postpone(held);
                Ok(shown)
            }
        }
    }

    /// A broker has refused the credential of this number: whether there is another one now.
    ///
    /// # Errors
    /// When none can be fetched.
    pub(crate) async fn renew(&self, refused: u64) -> Result<bool> {
        let Some(source) = &self.source else {
            return Ok(false);
        };
        let _fetching = self.fetching.lock().await;
        let held = self.held.read().clone();
        if let Some(held) = held {
            if held.shown.number != refused {
                return Ok(true);
            }
            let age = self.clock.monotonic().saturating_sub(held.fetched_at);
            if source.is_fixed() || (source.is_costly() && age < INTERVAL_MIN) {
                return Ok(false);
            }
        }
        let fetched = Box::pin(source.fetch(&self.clock)).await?;
        Ok(self.keep(source, fetched)?.number != refused)
    }

    /// What was fetched last, if it is good still.
    fn good(&self) -> Option<Held> {
        let held = self.held.read().clone()?;
        (!has_come(held.ends_at, self.clock.monotonic())).then_some(held)
    }

    fn keep(&self, source: &TokenSource, fetched: Fetched) -> Result<Shown> {
        let now = self.clock.monotonic();
        let mut held = self.held.write();
        let shown = match held.as_ref() {
            Some(held) if held.token == fetched.token => held.shown.clone(),
            before => Shown {
                number: before.map_or(0, |held| held.shown.number) + 1,
                header: Some(fetched.token.header()?),
            },
        };
        // One that ends at once is used once, so that an issuer is not asked without a pause.
        let ends_in = fetched.lifetime.map(|lifetime| lifetime.max(INTERVAL_MIN));
        let due_in = match fetched.lifetime {
            _ if source.is_fixed() => None,
            // Looked at, at little cost: what replaces it may come at any time.
            _ if !source.is_costly() => Some(INTERVAL_MIN),
            Some(lifetime) => Some(self.due_after(lifetime)),
            None => None,
        };
        *held = Some(Held {
            token: fetched.token,
            shown: shown.clone(),
            fetched_at: now,
            due_at: due_in.map(|wait| now.saturating_add(wait)),
            // Brokers judge a file's and a given token: their clocks count.
            ends_at: ends_in
                .filter(|_| source.is_costly())
                .map(|wait| now.saturating_add(wait)),
        });
        Ok(shown)
    }

    /// When one that lasts this long is fetched again: at 80 % of it, and up to a tenth earlier, so
    /// that clients that began together do not ask together.
    fn due_after(&self, lifetime: Duration) -> Duration {
        let early = self.rng.jitter(lifetime / 5);
        let latest = lifetime.saturating_sub(lifetime / 10);
        latest.saturating_sub(early).max(INTERVAL_MIN)
    }

    /// The source did not answer: the next call that is due tries again a little later.
    fn postpone(&self, mut held: Held) {
        held.due_at = Some(self.clock.monotonic() + INTERVAL_MIN);
        *self.held.write() = Some(held);
    }
}

fn has_come(at: Option<Duration>, now: Duration) -> bool {
    at.is_some_and(|at| now >= at)
}

/// Whether `HOST:PORT` never leaves this machine.
fn is_loopback(address: &str) -> bool {
    let authority = address.split('/').next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    let is_local = |ip: std::net::IpAddr| ip.is_loopback();
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(is_local)
}

#[cfg(test)]
mod tests;
