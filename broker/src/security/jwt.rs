//! JSON Web Tokens of configured issuers (RFC 7519). An issuer names principals `jwt:ALIAS:SUB` and
//! groups `group:ALIAS:NAME`, so that it can name neither those of another issuer nor our roles.
//!
//! Invariants:
//! - The issuer and its key are found from what the token says, and nothing else of it counts
//!   before the signature is verified.
//! - `iss`, `sub`, `aud`, `exp` and `iat` are required; a token lives no longer than its issuer is
//!   configured for.
//! - A file of keys that cannot be used leaves the former keys in force; so does a URL, for a
//!   while.

mod keys;
mod remote;

use std::path::{Path, PathBuf};

use aquifer_runtime::clock::SharedClock;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::future::join_all;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use self::keys::Key;
use crate::error::BrokerError;
use crate::metrics::KeyFetches;

/// Longest token, and longest file of keys, in bytes.
const TOKEN_BYTES_MAX: usize = 8 << 10;
const KEYS_BYTES_MAX: u64 = 256 << 10;
/// Shortest time between two fetches that are due.
const REFRESH_MS_MIN: u64 = 30_000;
/// By how much clocks may differ, in seconds.
const LEEWAY_S: u64 = 30;
/// Groups of one token; more are not looked at.
const GROUPS_MAX: usize = 256;
/// Longest subject, and longest name of a group, in bytes.
const NAME_BYTES_MAX: usize = 512;

/// An issuer of tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JwtIssuer {
    /// Stands for it in the names of principals: letters, digits and `-_.`.
    pub alias: String,
    /// The claim `iss` of its tokens.
    pub issuer: String,
    /// Values of the claim `aud` that are meant for this cluster.
    pub audiences: Vec<String>,
    /// Its keys, as a JWK set; empty where a URL is given.
    pub jwks_file: PathBuf,
    /// Where its keys are fetched from, as a JWK set: an `https` URL; empty where a file is given.
    pub jwks_url: String,
    /// The authorities that the certificate of that server is checked against (PEM); those of the
    /// operating system where it is not set.
    pub jwks_ca_file: Option<PathBuf>,
    /// How often the keys are fetched.
    pub jwks_refresh_ms: u64,
    /// Where the claim with its groups is, as a JSON pointer, for example `/realm_access/roles`.
    pub groups_claim: String,
    /// Longest lifetime of a token, from `iat` to `exp`.
    pub lifetime_ms_max: u64,
}

impl Default for JwtIssuer {
    fn default() -> JwtIssuer {
        JwtIssuer {
            alias: String::new(),
            issuer: String::new(),
            audiences: Vec::new(),
            jwks_file: PathBuf::new(),
            jwks_url: String::new(),
            jwks_ca_file: None,
            jwks_refresh_ms: 300_000,
            groups_claim: "/groups".to_owned(),
            lifetime_ms_max: 24 * 3_600 * 1_000,
        }
    }
}

impl JwtIssuer {
    /// Checks what types cannot say.
    pub(super) fn validate(&self) -> Result<(), BrokerError> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let (has_file, has_url) = (
            !self.jwks_file.as_os_str().is_empty(),
            !self.jwks_url.is_empty(),
        );
        if has_url && let Err(reason) = remote::check(&self.jwks_url) {
            let text = format!("auth.jwt {:?}: jwks_url: {reason}", self.alias);
            return Err(BrokerError::Config(text));
        }
        let wrong = match self {
            _ if self.alias.is_empty() || !self.alias.bytes().all(legal) => "alias",
            _ if self.issuer.is_empty() => "issuer",
            _ if self.audiences.is_empty() => "audiences",
            _ if has_file == has_url => "either jwks_file or jwks_url",
            _ if self.jwks_ca_file.is_some() && !has_url => "jwks_url beside jwks_ca_file",
            _ if self.jwks_refresh_ms < REFRESH_MS_MIN => "jwks_refresh_ms (at least 30000)",
            _ if !self.groups_claim.starts_with('/') => "groups_claim",
            _ if self.lifetime_ms_max == 0 => "lifetime_ms_max",
            _ => return Ok(()),
        };
        let alias = &self.alias;
        Err(BrokerError::Config(format!(
            "auth.jwt {alias:?}: {wrong} is missing or not allowed"
        )))
    }
}

/// The issuers with their keys.
#[derive(Default)]
pub(super) struct Issuers(Vec<Issuer>);

struct Issuer {
    config: JwtIssuer,
    keys: RwLock<Loaded>,
    /// Told when a token names a key that is not known.
    wanted: Notify,
}

#[derive(Default)]
struct Loaded {
    text: String,
    keys: Vec<Key>,
    /// When they were fetched last.
    fetched_ms: Option<u64>,
}

/// What a verified token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verified {
    pub(super) principal: String,
    pub(super) groups: Vec<String>,
    /// Its `ALIAS:JTI`, if it has an id that can be written.
    pub(super) id: Option<String>,
    pub(super) issued_ms: u64,
    pub(super) expires_ms: u64,
}

/// A member that comes twice is an error of the parser.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Audience,
    exp: u64,
    iat: u64,
    nbf: Option<u64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Issuers {
    /// Those of the configuration, with their keys.
    ///
    /// # Errors
    /// When a file cannot be used. A URL is not asked: an issuer that is away is no reason not to
    /// start.
    pub(super) fn load(config: &[JwtIssuer], clock: &SharedClock) -> Result<Issuers, BrokerError> {
        let mut issuers = Vec::new();
        for config in config {
            config.validate()?;
            let issuer = Issuer {
                config: config.clone(),
                keys: RwLock::default(),
                wanted: Notify::new(),
            };
            let (path, alias) = (config.jwks_file.display(), &config.alias);
            issuer.reload().map_err(|error| {
                BrokerError::Config(format!("auth.jwt.jwks_file {path}: {error}"))
            })?;
            remote::tls(config, clock).map_err(|error| {
                BrokerError::Config(format!("auth.jwt {alias:?}: jwks_ca_file: {error}"))
            })?;
            issuers.push(issuer);
        }
        Ok(Issuers(issuers))
    }

    /// How long a token of an issuer may live.
    pub(super) fn lifetime_ms_max(&self, alias: &str) -> Option<u64> {
        let issuer = self.0.iter().find(|issuer| issuer.config.alias == alias);
        issuer.map(|issuer| issuer.config.lifetime_ms_max)
    }

    /// Whether tokens of any issuer are accepted.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads the keys again.
    pub(super) fn reload(&self) {
        for issuer in &self.0 {
            if let Err(error) = issuer.reload() {
                let path = issuer.config.jwks_file.display();
                tracing::warn!(%path, error, "the keys of an issuer cannot be read again");
            }
        }
    }

    /// Fetches the keys of those that have a URL, until the task is dropped.
    pub(super) async fn follow(&self, broker: u8, clock: &SharedClock, metrics: &KeyFetches) {
        let remote = self.0.iter().filter(|issuer| issuer.is_remote());
        let follows = remote.map(|issuer| {
            let pace = remote::Pace::of(&issuer.config, broker);
            issuer.follow(pace, clock, metrics)
        });
        join_all(follows).await;
        // Where none has one.
        std::future::pending().await
    }

    /// What a token says, if an issuer has signed it and it counts now.
    pub(super) fn verify(&self, token: &str, now_ms: u64) -> Option<Verified> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let (message, signed) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
        let header: Header = serde_json::from_slice(&decode(header)?).ok()?;
        if header.crit.is_some() {
            return None;
        }
        let bytes = decode(claims)?;
        let claims: Claims = serde_json::from_slice(&bytes).ok()?;
        let mut issuers = self.0.iter();
        let issuer = issuers.find(|issuer| issuer.config.issuer == claims.iss)?;
        if !issuer.are_current(now_ms)
            || !issuer.has_signed(&header, message.as_bytes(), &decode(signed)?)
        {
            return None;
        }
        let all: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
        issuer.accept(&claims, &all, now_ms / 1_000)
    }
}

impl Issuer {
    fn is_remote(&self) -> bool {
        !self.config.jwks_url.is_empty()
    }

    /// Reads its file again, if it has one.
    fn reload(&self) -> Result<(), String> {
        if self.is_remote() {
            return Ok(());
        }
        let text = read(&self.config.jwks_file)?;
        if self.keys.read().text == text {
            return Ok(());
        }
        let keys = keys::parse(&text)?;
        self.put(text, keys, None);
        Ok(())
    }

    fn put(&self, text: String, keys: Vec<Key>, fetched_ms: Option<u64>) {
        *self.keys.write() = Loaded {
            text,
            keys,
            fetched_ms,
        };
    }

    /// Whether its keys count: those of a URL for as long as that may be away.
    fn are_current(&self, now_ms: u64) -> bool {
        if !self.is_remote() {
            return true;
        }
        let fetched_ms = self.keys.read().fetched_ms;
        let end_ms = fetched_ms.map(|at| at.saturating_add(remote::KEPT_MS));
        let are_current = end_ms.is_some_and(|end| now_ms < end);
        if !are_current {
            self.wanted.notify_one();
        }
        are_current
    }

    fn has_signed(&self, header: &Header, message: &[u8], signed: &[u8]) -> bool {
        let loaded = self.keys.read();
        let is_known = |wanted: &String| {
            let mut ids = loaded.keys.iter().filter_map(|key| key.id.as_ref());
            ids.any(|id| id == wanted)
        };
        if self.is_remote() && !header.kid.as_ref().is_none_or(is_known) {
            self.wanted.notify_one();
            return false;
        }
        let mut meant = loaded
            .keys
            .iter()
            .filter(|key| match (&header.kid, &key.id) {
                (Some(wanted), Some(id)) => wanted == id,
                (Some(_), None) => false,
                (None, _) => true,
            });
        meant.any(|key| key.verifies(&header.alg, message, signed))
    }

    fn accept(&self, claims: &Claims, all: &serde_json::Value, now_s: u64) -> Option<Verified> {
        let config = &self.config;
        let is_meant = |audience: &String| config.audiences.contains(audience);
        let for_us = match &claims.aud {
            Audience::One(audience) => is_meant(audience),
            Audience::Several(audiences) => audiences.iter().any(is_meant),
        };
        let lifetime_s = claims.exp.checked_sub(claims.iat)?;
        let latest_s = now_s.saturating_add(LEEWAY_S);
        let in_time = lifetime_s <= config.lifetime_ms_max / 1_000
            && claims.iat <= latest_s
            && claims.nbf.is_none_or(|from| from <= latest_s)
            && now_s < claims.exp.saturating_add(LEEWAY_S);
        if !for_us || !in_time || !is_name(&claims.sub) {
            return None;
        }
        let alias = &config.alias;
        let groups = match all.pointer(&config.groups_claim) {
            Some(serde_json::Value::Array(groups)) => groups.as_slice(),
            _ => &[],
        };
        let groups = groups.iter().take(GROUPS_MAX).filter_map(|group| {
            let name = group.as_str().filter(|name| is_name(name))?;
            Some(format!("group:{alias}:{name}"))
        });
        let id = all.get("jti").and_then(serde_json::Value::as_str);
        let id = id.filter(|id| is_name(id));
        Some(Verified {
            principal: format!("jwt:{alias}:{}", claims.sub),
            groups: groups.collect(),
            id: id.map(|id| format!("{alias}:{id}")),
            issued_ms: claims.iat.saturating_mul(1_000),
            expires_ms: claims.exp.saturating_mul(1_000),
        })
    }
}

fn is_name(text: &str) -> bool {
    let legal = text.bytes().all(|byte| byte.is_ascii_graphic());
    legal && !text.is_empty() && text.len() <= NAME_BYTES_MAX
}

fn read(path: &Path) -> Result<String, String> {
    let size = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if size.len() > KEYS_BYTES_MAX {
        return Err(format!("it has more than {KEYS_BYTES_MAX} bytes"));
    }
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
