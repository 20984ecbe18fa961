//! The settings of a store in etcd, checked as a whole before anything is connected.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aquifer_runtime::config::Secret;
use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use serde::{Deserialize, Serialize};
use tonic::transport::Uri;

use crate::error::{MetadataError, MetadataResult};
use crate::limits::CLUSTER_NAME_BYTES_MAX;

/// How often a connection with open streams is probed, and how long an answer may take. etcd
/// refuses probes that come more often than every 5 s.
const PROBE_INTERVAL: Duration = Duration::from_secs(6);
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// Where etcd is and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EtcdConfig {
    /// URLs of the members, `http://HOST:PORT` or `https://HOST:PORT`.
    pub endpoints: Vec<String>,
    /// The name of this cluster: several may share one etcd.
    pub cluster: String,
    /// The user, when etcd has authentication enabled.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    /// The certificates that etcd's are checked against, in PEM; needed for `https`.
    pub ca_file: Option<PathBuf>,
    /// The certificate to show to etcd, in PEM.
    pub cert_file: Option<PathBuf>,
    /// Its key, in PEM.
    pub key_file: Option<PathBuf>,
    /// The name that etcd's certificate must be for, where it is not the host of the URL.
    pub server_name: Option<String>,
    /// How long a request may take, with everything that is tried.
    pub request_timeout_ms: u64,
    /// How long one member may take to answer before another is asked.
    pub attempt_timeout_ms: u64,
    /// What `--quota-backend-bytes` of etcd says, for versions that do not tell (before 3.6).
    pub quota_bytes: u64,
}

impl Default for EtcdConfig {
    fn default() -> EtcdConfig {
        EtcdConfig {
            endpoints: Vec::new(),
            cluster: "aquifer".to_owned(),
            user: None,
            password: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            server_name: None,
            request_timeout_ms: 10_000,
            attempt_timeout_ms: 2_000,
            // etcd's default.
            quota_bytes: 2 << 30,
        }
    }
}

fn invalid<T>(reason: impl Into<String>) -> MetadataResult<T> {
    Err(MetadataError::Invalid(reason.into()))
}

impl EtcdConfig {
    /// The settings for these members and otherwise the defaults.
    #[must_use]
    pub fn new(endpoints: Vec<String>, cluster: impl Into<String>) -> EtcdConfig {
        EtcdConfig {
            endpoints,
            cluster: cluster.into(),
            ..EtcdConfig::default()
        }
    }

    /// How long a request may take.
    #[must_use]
    pub fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }

    /// How long one member may take.
    #[must_use]
    pub fn attempt_timeout(&self) -> Duration {
        Duration::from_millis(self.attempt_timeout_ms)
    }

    /// Checks the settings against each other, without reading a file.
    ///
    /// # Errors
    /// `Invalid` with the setting and what it should be.
    pub fn check(&self) -> MetadataResult<()> {
        let Some(first) = self.endpoints.first() else {
            return invalid("etcd: no endpoint is given");
        };
        let tls = first.starts_with("https://");
        for endpoint in &self.endpoints {
            check_endpoint(endpoint)?;
            if endpoint.starts_with("https://") != tls {
                return invalid("etcd: endpoints must be all http or all https");
            }
        }
        let name_is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.cluster.is_empty()
            || self.cluster.len() > CLUSTER_NAME_BYTES_MAX
            || !self.cluster.chars().all(name_is_plain)
        {
            return invalid(format!(
                "etcd: the cluster's name {:?} must have 1 to {CLUSTER_NAME_BYTES_MAX} characters of A-Z, a-z, 0-9, '-', '_', '.'",
                self.cluster
            ));
        }
        if self.user.is_some() != self.password.is_some() {
            return invalid("etcd: give user and password, or neither");
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            return invalid("etcd: give cert_file and key_file, or neither");
        }
        if tls && self.ca_file.is_none() {
            return invalid("etcd: https needs ca_file, the certificates to check etcd's against");
        }
        if !tls && (self.ca_file.is_some() || self.cert_file.is_some()) {
            return invalid("etcd: certificates are given, but the endpoints are http");
        }
        if self.attempt_timeout_ms == 0 || self.attempt_timeout_ms > self.request_timeout_ms {
            return invalid("etcd: attempt_timeout_ms must be between 1 and request_timeout_ms");
        }
        Ok(())
    }

    /// Reads the files of TLS.
    pub(super) async fn pem_files(&self) -> MetadataResult<PemFiles> {
        let Some(ca_file) = &self.ca_file else {
            return Ok(PemFiles::default());
        };
        let ca = read_pem(ca_file, "ca_file", "CERTIFICATE").await?;
        let identity = match (&self.cert_file, &self.key_file) {
            (Some(cert_file), Some(key_file)) => Some((
                read_pem(cert_file, "cert_file", "CERTIFICATE").await?,
                read_pem(key_file, "key_file", "PRIVATE KEY").await?,
            )),
            _ => None,
        };
        Ok(PemFiles {
            ca: Some(ca),
            identity,
        })
    }

    /// The same for the client.
    pub(super) fn connect_options(&self, files: &PemFiles) -> ConnectOptions {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(self.attempt_timeout())
            .with_keep_alive(PROBE_INTERVAL, PROBE_TIMEOUT)
            // etcd takes probes of idle connections for an attack.
            .with_keep_alive_while_idle(false)
            // A member that lost its leader says so, instead of letting watches wait.
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let (Some(user), Some(password)) = (&self.user, &self.password) {
            options = options.with_user(user, password.expose());
        }
        if let Some(ca) = &files.ca {
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(ca));
            if let Some((cert, key)) = &files.identity {
                tls = tls.identity(Identity::from_pem(cert, key));
            }
            if let Some(name) = &self.server_name {
                tls = tls.domain_name(name);
            }
            options = options.with_tls(tls);
        }
        options
    }
}

/// What the files of TLS contain; nothing without TLS.
#[derive(Default, PartialEq, Eq)]
pub(super) struct PemFiles {
    ca: Option<String>,
    /// The certificate, and its key.
    identity: Option<(String, String)>,
}

fn check_endpoint(endpoint: &str) -> MetadataResult<()> {
    let uri: Option<Uri> = endpoint.parse().ok();
    let usable = uri.is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.port_u16().is_some()
            && uri.path() == "/"
            && uri.query().is_none()
    });
    if usable {
        return Ok(());
    }
    invalid(format!(
        "etcd: {endpoint:?} is not an endpoint such as http://127.0.0.1:2379"
    ))
}

/// Reads a file of PEM. The TLS library takes one without the wanted part for an empty one, and
/// fails much later.
async fn read_pem(path: &Path, setting: &str, part: &str) -> MetadataResult<String> {
    let place = format!("etcd: {setting} {}", path.display());
    let text = match tokio::fs::read_to_string(path).await {
        Ok(text) => text,
        Err(error) => return invalid(format!("{place}: {error}")),
    };
    let has_part = text
        .lines()
        .any(|line| line.starts_with("-----BEGIN ") && line.contains(part));
    if !has_part {
        return invalid(format!("{place}: there is no {part} in PEM in it"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(endpoints: &[&str]) -> EtcdConfig {
        EtcdConfig::new(endpoints.iter().map(ToString::to_string).collect(), "test")
    }

    #[test]
    fn settings_that_do_not_fit_say_which() {
        let check = |config: EtcdConfig, part: &str| {
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        assert_eq!(config(&["http://127.0.0.1:2379"]).check(), Ok(()));
        check(config(&[]), "no endpoint");
        for bad in [
            "",
            "127.0.0.1:2379",
            "http://a",
            "ftp://a:1",
            "http://a:1/x",
        ] {
            check(config(&[bad]), "is not an endpoint");
        }
        check(config(&["http://a:1", "https://a:1"]), "all http");
        check(config(&["https://a:1"]), "ca_file");
        let with = |change: fn(&mut EtcdConfig)| {
            let mut config = config(&["http://a:1"]);
            change(&mut config);
            config
        };
        check(with(|c| c.cluster = "a/b".to_owned()), "name");
        check(with(|c| c.cluster = "x".repeat(65)), "name");
        check(with(|c| c.user = Some("u".to_owned())), "password");
        check(with(|c| c.cert_file = Some("c".into())), "key_file");
        check(with(|c| c.ca_file = Some("c".into())), "http");
        check(with(|c| c.attempt_timeout_ms = 0), "attempt_timeout_ms");
    }

    #[test]
    fn a_password_is_not_shown() {
        let mut config = config(&["http://a:1"]);
        config.password = Some(Secret::new("hunter2"));
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[tokio::test]
    async fn a_missing_file_is_named() {
        let mut config = config(&["https://a:1"]);
        config.ca_file = Some("/no/such/ca.pem".into());
        let error = config.pem_files().await.err().unwrap().to_string();
        assert!(error.contains("ca_file /no/such/ca.pem"), "{error}");
    }
}
