//! Keys of an issuer that are fetched from a URL.
//!
//! Invariants:
//! - No caller waits for a fetch, and callers with unknown keys cause at most one in [`BETWEEN`].
//! - The last keys that were fetched go on while the URL does not answer, for [`KEPT_MS`].
//! - Nothing but what the configuration names is connected to: no redirect is followed, and a name
//!   that stands for an address of this machine or of its network segment is refused.

use std::time::Duration;

use aquifer_runtime::clock::{self, SharedClock};
use aquifer_runtime::net::fetch::{exchange, is_local, is_routed};
use aquifer_runtime::net::tls::{ClientTls, ClientTlsConfig};
use http::header::{ACCEPT, HOST};
use http::{Request, StatusCode, Uri};

use crate::metrics::KeyFetches;
use crate::security::jwt::{Issuer, JwtIssuer, KEYS_BYTES_MAX, keys};

/// Shortest time between two fetches.
pub(super) const BETWEEN: Duration = Duration::from_secs(30);
/// For how long keys go on that cannot be fetched again, in milliseconds.
pub(super) const KEPT_MS: u64 = 24 * 3_600 * 1_000;
/// Longest time of a fetch.
const FETCH_MAX: Duration = Duration::from_secs(5);
/// Parts of the refresh interval by which brokers differ, so that they do not fetch together.
const SPREAD: u32 = 10;

/// How often keys are fetched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    pub(super) refresh: Duration,
    pub(super) between: Duration,
}

impl Pace {
    /// That of an issuer, of the brokers whose ids begin with this byte.
    pub(super) fn of(config: &JwtIssuer, byte: u8) -> Pace {
        let refresh = Duration::from_millis(config.jwks_refresh_ms);
        let part = refresh / SPREAD * u32::from(byte) / 256;
        Pace {
            refresh: refresh.saturating_sub(part).max(BETWEEN),
            between: BETWEEN,
        }
    }
}

/// Checks a URL of keys; says what is wrong.
pub(super) fn check(url: &str) -> Result<Uri, &'static str> {
    let uri: Uri = url.parse().map_err(|_| "it is no URL")?;
    let authority = uri.authority().ok_or("it names no host")?;
    if authority.as_str().contains('@') {
        return Err("it has a user or a password, which settings show");
    }
    match uri.scheme_str() {
        Some("https") => Ok(uri),
        Some("http") if is_local(&uri) => Ok(uri),
        _ => Err("it is no https URL"),
    }
}

/// What believes the server of the keys, if that has to be secret.
///
/// # Errors
/// When authorities cannot be read.
pub(super) fn tls(config: &JwtIssuer, clock: &SharedClock) -> Result<Option<ClientTls>, String> {
    if !config.jwks_url.starts_with("https:") {
        return Ok(None);
    }
    let files = ClientTlsConfig {
        ca_file: config.jwks_ca_file.clone(),
        ..ClientTlsConfig::default()
    };
    let tls = ClientTls::http1(&files, clock.clone());
    tls.map(Some).map_err(|error| error.to_string())
}

impl Issuer {
    /// Fetches the keys again and again, until the task is dropped.
    pub(super) async fn follow(&self, pace: Pace, clock: &SharedClock, metrics: &KeyFetches) {
        let (alias, url) = (self.config.alias.as_str(), self.config.jwks_url.as_str());
        let mut is_failing = false;
        loop {
            let fetched = self.fetch(clock).await;
            metrics.count(alias, fetched.is_ok());
            let failed = fetched.is_err();
            match fetched {
                Ok(()) if is_failing => tracing::info!(alias, url, "keys of an issuer again"),
                Err(error) if !is_failing => {
                    tracing::warn!(alias, url, error, "keys of an issuer cannot be fetched");
                }
                Ok(()) => {}
                Err(error) => tracing::debug!(alias, url, error, "keys cannot be fetched yet"),
            }
            is_failing = failed;
            clock::sleep(pace.between).await;
            if failed {
                continue;
            }
            tokio::select! {
                () = clock::sleep(pace.refresh.saturating_sub(pace.between)) => {}
                () = self.wanted.notified() => {}
            }
        }
    }

    async fn fetch(&self, clock: &SharedClock) -> Result<(), String> {
        let uri = check(&self.config.jwks_url).map_err(str::to_owned)?;
        let (config, clock_of_tls) = (self.config.clone(), clock.clone());
        // It reads files.
        let tls = tokio::task::spawn_blocking(move || tls(&config, &clock_of_tls)).await;
        let tls = tls.map_err(|error| error.to_string())??;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let host = uri.authority().map_or("", |authority| authority.as_str());
        let request = Request::get(path)
            .header(HOST, host)
            .header(ACCEPT, "application/jwk-set+json, application/json")
            .body(String::new())
            .map_err(|error| error.to_string())?;
        let local = is_local(&uri);
        let most = usize::try_from(KEYS_BYTES_MAX).unwrap_or(usize::MAX);
        let may_reach = |ip: std::net::IpAddr| is_routed(ip) || local && ip.is_loopback();
        let answer = exchange(&uri, request, tls.as_ref(), may_reach, most);
        let answer = clock::timeout(FETCH_MAX, answer).await;
        let answer = answer.map_err(|_| format!("no answer within {FETCH_MAX:?}"))?;
        let (status, body) = answer.map_err(|error| error.to_string())?;
        if status != StatusCode::OK {
            return Err(format!(
                "it answers {status}, and redirects are not followed"
            ));
        }
        let text = std::str::from_utf8(&body).map_err(|_| "it is no text".to_owned())?;
        let now = clock.wall_ms();
        if self.keys.read().text == text {
            self.keys.write().fetched_ms = Some(now);
            return Ok(());
        }
        // A secret of a MAC that is fetched is a secret of everyone who can fetch it.
        let mut found = keys::parse(text)?;
        found.retain(|key| !key.is_secret());
        if found.is_empty() {
            return Err("it has no public key that verifies tokens".to_owned());
        }
        self.put(text.to_owned(), found, Some(now));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
