//! Tokens from an issuer, for the client's own id and secret: OAuth2 client credentials, RFC 6749
//! section 4.4. One request for each token, over a connection of its own.

use std::path::PathBuf;
use std::time::Duration;

use aquifer_runtime::clock::{self, SharedClock};
use aquifer_runtime::net::fetch;
use aquifer_runtime::net::tls::{ClientTls, ClientTlsConfig};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Request, StatusCode, Uri};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::credentials::is_loopback;
use crate::credentials::source::{FETCH_MAX, Fetched, TEXT_BYTES_MAX, refused, secret_of};
use crate::credentials::token::Token;
use crate::error::{ClientError, Result};

/// Longest part of an issuer's explanation that is shown.
const EXPLANATION_CHARS_MAX: usize = 300;

/// An issuer of tokens and the client's account there.
#[derive(Debug, Clone)]
pub struct ClientCredentials {
    /// Where it issues tokens: an `https` URL, the `token_endpoint` of its metadata.
    pub token_url: String,
    /// The client's id.
    pub client_id: String,
    /// The file with the client's secret, which others must not be able to read. It is read for
    /// every token.
    pub secret_file: PathBuf,
    /// What the token is to allow, as the issuer names it.
    pub scope: Option<String>,
    /// For whom the token is: what brokers have as their `audiences`.
    pub audience: Option<String>,
    /// The authorities that the issuer's certificate is checked against (PEM); those of the
    /// operating system where it is not set.
    pub ca_file: Option<PathBuf>,
}

/// What an issuer answers, as far as it matters.
#[derive(Deserialize)]
struct Answer {
    access_token: Option<String>,
    expires_in: Option<u64>,
    error: Option<String>,
    error_description: Option<String>,
}

impl ClientCredentials {
    /// Asks for a token.
    pub(super) async fn fetch(&self, clock: &SharedClock) -> Result<Fetched> {
        let uri = self.uri()?;
        let request = self.request(&uri).await?;
        let exchange = self.exchange(&uri, request, clock);
        let (status, body) = match clock::timeout(FETCH_MAX, exchange).await {
            Ok(answer) => answer?,
            Err(_) => return Err(self.failed(&format!("no answer within {FETCH_MAX:?}"), true)),
        };
        let answer = serde_json::from_slice::<Answer>(&body).ok();
        match answer {
            Some(Answer {
                access_token: Some(token),
                expires_in,
                ..
            }) if status == StatusCode::OK => Ok(Fetched {
                token: Token::from(token),
                lifetime: expires_in.map(Duration::from_secs),
            }),
            answer => Err(self.no_token(status, answer)),
        }
    }

    fn uri(&self) -> Result<Uri> {
        let wrong = |reason: &str| refused(format!("{} {reason}", self.token_url));
        let uri: Uri = self.token_url.parse().map_err(|_| wrong("is no URL"))?;
        let authority = uri.authority().ok_or_else(|| wrong("names no host"))?;
        match uri.scheme_str() {
            Some("https") => Ok(uri),
            // The secret stays on this machine.
            Some("http") if is_loopback(authority.as_str()) => Ok(uri),
            _ => Err(wrong("is no https URL, and the secret is not sent to it")),
        }
    }

    async fn request(&self, uri: &Uri) -> Result<Request<Full<Bytes>>> {
        let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let secret = secret_of("client secret file", &self.secret_file).await?;
        let (id, secret) = (encoded(&self.client_id), encoded(secret.trim()));
        let basic = Zeroizing::new(format!(
            "Basic {}",
            STANDARD.encode(format!("{id}:{secret}"))
        ));
        let unusable = |_| refused("the client's id or secret fits in no header".to_owned());
        let mut basic = HeaderValue::from_str(&basic).map_err(unusable)?;
        basic.set_sensitive(true);
        let mut form = "grant_type=client_credentials".to_owned();
        for (name, value) in [("scope", &self.scope), ("audience", &self.audience)] {
            if let Some(value) = value {
                form.push_str(&format!("&{name}={}", encoded(value)));
            }
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let host = uri.authority().map_or("", |authority| authority.as_str());
        let request = Request::post(path)
            .header(HOST, host)
            .header(AUTHORIZATION, basic)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json")
            .body(Full::new(Bytes::from(form)));
        request.map_err(|error| refused(format!("{}: {error}", self.token_url)))
    }

    async fn exchange(
        &self,
        uri: &Uri,
        request: Request<Full<Bytes>>,
        clock: &SharedClock,
    ) -> Result<(StatusCode, Bytes)> {
        let tls = match uri.scheme_str() {
            Some("https") => {
                let files = ClientTlsConfig {
                    ca_file: self.ca_file.clone(),
                    ..ClientTlsConfig::default()
                };
                let tls = ClientTls::http1(&files, clock.clone());
                Some(tls.map_err(|error| self.failed(&error.to_string(), false))?)
            }
            _ => None,
        };
        let most = usize::try_from(TEXT_BYTES_MAX).unwrap_or(usize::MAX);
        // The address is that of the program's own settings.
        let answer = fetch::exchange(uri, request, tls.as_ref(), |_| true, most).await;
        answer.map_err(|error| self.failed(&error.to_string(), true))
    }

    fn no_token(&self, status: StatusCode, answer: Option<Answer>) -> ClientError {
        let retryable = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
        if status.is_redirection() {
            let reason = format!("it answers {status}, and redirects are not followed");
            return self.failed(&reason, false);
        }
        let said = answer.map(|answer| {
            let parts = [answer.error, answer.error_description];
            parts.into_iter().flatten().collect::<Vec<_>>().join(": ")
        });
        let said: String = said.unwrap_or_default();
        let said = said.escape_default().take(EXPLANATION_CHARS_MAX);
        let said: String = said.collect();
        self.failed(&format!("{status} {said}"), retryable)
    }

    fn failed(&self, reason: &str, retryable: bool) -> ClientError {
        ClientError::Credential {
            reason: format!("{} issues none: {}", self.token_url, reason.trim()),
            retryable,
        }
    }
}

#[cfg(test)]
mod tests;
