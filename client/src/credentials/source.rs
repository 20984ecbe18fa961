//! Where tokens come from.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use aquifer_runtime::clock::{self, SharedClock};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use zeroize::Zeroizing;

use crate::credentials::issuer::ClientCredentials;
use crate::credentials::token::Token;
use crate::error::{ClientError, Result};

/// Longer files and outputs hold something else.
pub(super) const TEXT_BYTES_MAX: u64 = 64 * 1024;
/// How long a command or an issuer may take.
pub(super) const FETCH_MAX: Duration = Duration::from_secs(10);

/// Where a client has its token from.
#[derive(Debug, Clone)]
pub enum TokenSource {
    /// It is given, and stays the same.
    Value(Token),
    /// It is in a file, which others must not be able to read. The file is looked at again at most
    /// once a second, so that a token that replaces another is used without a restart.
    File(PathBuf),
    /// A program prints it to its standard output. The program runs when the first call needs a
    /// token, when a broker refuses the last one, and, if it prints JSON Web Tokens, before the
    /// last one ends.
    Command {
        /// The program.
        program: PathBuf,
        /// Its arguments, which other users of the machine can see: never secrets.
        arguments: Vec<String>,
    },
    /// An issuer gives it for the client's own id and secret (OAuth2 client credentials).
    ClientCredentials(ClientCredentials),
}

/// A token that was fetched.
pub(super) struct Fetched {
    pub(super) token: Token,
    /// For how long it is good; `None` where that is not known.
    pub(super) lifetime: Option<Duration>,
}

impl TokenSource {
    /// Whether it never gives another one.
    pub(super) fn is_fixed(&self) -> bool {
        matches!(self, TokenSource::Value(_))
    }

    /// Whether asking it is not cheap enough to be done every second.
    pub(super) fn is_costly(&self) -> bool {
        match self {
            TokenSource::Value(_) | TokenSource::File(_) => false,
            TokenSource::Command { .. } | TokenSource::ClientCredentials(_) => true,
        }
    }

    /// Asks it for a token.
    pub(super) async fn fetch(&self, clock: &SharedClock) -> Result<Fetched> {
        let token = match self {
            TokenSource::Value(token) => token.clone(),
            TokenSource::File(path) => Token::new(secret_of("token file", path).await?.as_str()),
            TokenSource::Command { program, arguments } => printed(program, arguments).await?,
            TokenSource::ClientCredentials(issuer) => return issuer.fetch(clock).await,
        };
        Ok(Fetched {
            lifetime: lifetime(&token, clock.wall_ms()),
            token,
        })
    }
}

impl From<Token> for TokenSource {
    fn from(token: Token) -> TokenSource {
        TokenSource::Value(token)
    }
}

/// What a file holds that others must not be able to read.
pub(super) async fn secret_of(what: &str, path: &Path) -> Result<Zeroizing<String>> {
    let shown = path.display();
    let unusable = |reason: String| refused(format!("{what} {shown} {reason}"));
    let unreadable = |error: io::Error| unusable(format!("cannot be read: {error}"));
    let mut file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    let mode = file.metadata().await.map_err(unreadable)?;
    let mode = mode.permissions().mode() & 0o777;
    if mode & 0o027 != 0 {
        return Err(unusable(format!(
            "can be read by other users (mode {mode:o}): run `chmod 600` on it, or `chmod 640` \
             when a group must read it"
        )));
    }
    let mut text = Zeroizing::new(String::new());
    let read = (&mut file)
        .take(TEXT_BYTES_MAX)
        .read_to_string(&mut text)
        .await;
    read.map_err(unreadable)?;
    let is_empty = text.trim().is_empty();
    match is_empty {
        true => Err(unusable("is empty".to_owned())),
        false => Ok(text),
    }
}

/// What a program prints.
async fn printed(program: &Path, arguments: &[String]) -> Result<Token> {
    let shown = program.display();
    let failed = |reason: String| ClientError::Credential {
        reason: format!("{shown} {reason}"),
        retryable: true,
    };
    let run = async {
        let mut child = tokio::process::Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| refused(format!("{shown} cannot be run: {error}")))?;
        let mut text = Zeroizing::new(String::new());
        if let Some(stdout) = child.stdout.take() {
            let read = stdout.take(TEXT_BYTES_MAX).read_to_string(&mut text).await;
            read.map_err(|error| failed(format!("prints no text: {error}")))?;
        }
        let status = child.wait().await;
        let status = status.map_err(|error| failed(format!("cannot be waited for: {error}")))?;
        match status.success() {
            true if text.trim().is_empty() => Err(failed("printed no token".to_owned())),
            true => Ok(Token::new(text.as_str())),
            false => Err(failed(format!("ended with {status} instead of a token"))),
        }
    };
    match clock::timeout(FETCH_MAX, run).await {
        Ok(token) => token,
        Err(_) => Err(failed(format!("printed no token within {FETCH_MAX:?}"))),
    }
}

/// What a JSON Web Token says of its end. It is not verified: brokers do that.
fn lifetime(token: &Token, now_ms: u64) -> Option<Duration> {
    #[derive(Deserialize)]
    struct Claims {
        exp: u64,
    }
    let mut parts = token.expose().split('.');
    let (_, claims, _) = (parts.next()?, parts.next()?, parts.next()?);
    let claims = Zeroizing::new(URL_SAFE_NO_PAD.decode(claims).ok()?);
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    let ends_ms = claims.exp.checked_mul(1_000)?;
    Some(Duration::from_millis(ends_ms.saturating_sub(now_ms)))
}

/// No token, and trying again does not help.
pub(super) fn refused(reason: String) -> ClientError {
    ClientError::Credential {
        reason,
        retryable: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_say_when_they_end_are_believed_in_that() {
        let jwt = |claims: &str| {
            let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
            Token::new(format!("{}.{}.{}", part("{}"), part(claims), part("x")))
        };
        let lasts = |token: &Token| lifetime(token, 1_000_000);
        let lasting = jwt(r#"{"exp": 1600, "sub": "x"}"#);
        assert_eq!(lasts(&lasting), Some(Duration::from_secs(600)));
        assert_eq!(lasts(&jwt(r#"{"exp": 1}"#)), Some(Duration::ZERO));
        for unknown in [
            jwt("{}"),
            jwt(r#"{"exp": 18446744073709551615}"#),
            jwt("["),
            Token::new("aqf_abc_def"),
            Token::new("a.b.c"),
        ] {
            assert_eq!(lasts(&unknown), None);
        }
    }
}
