//! Places by their URLs, and the way to each kind.

use std::path::Path;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::{Certificate, ClientOptions, RetryConfig};

use crate::config::StoreConfig;
use crate::error::{ColdError, ColdResult};

const CONNECT_MAX: Duration = Duration::from_secs(5);

/// How long stores are waited for. With it every request ends, whatever a store does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// A request with its body.
    pub(super) request: Duration,
    /// Attempts at a request beyond the first, and the time after which no other begins.
    pub(super) retries: usize,
    pub(super) retry_time: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            request: Duration::from_secs(60),
            retries: 4,
            retry_time: Duration::from_secs(60),
        }
    }
}

/// A place by its URL, cut into what the library wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place<'a> {
    Directory(&'a str),
    Bucket {
        scheme: Scheme,
        bucket: &'a str,
        prefix: &'a str,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    S3,
    Google,
    Azure,
}

pub(super) fn place_of(url: &str) -> ColdResult<Place<'_>> {
    let wrong = |what: &str| {
        ColdError::Config(format!(
            "{url:?} {what}: give file:///DIRECTORY, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or \
             az://CONTAINER/PREFIX"
        ))
    };
    let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("is no URL"))?;
    let scheme = match scheme {
        "file" if rest.starts_with('/') => return Ok(Place::Directory(rest)),
        "s3" => Scheme::S3,
        "gs" => Scheme::Google,
        "az" => Scheme::Azure,
        _ => return Err(wrong("names no place for objects")),
    };
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() || bucket.contains('@') {
        return Err(wrong("names no bucket"));
    }
    Ok(Place::Bucket {
        scheme,
        bucket,
        prefix: prefix.trim_matches('/'),
    })
}

/// What S3 is reached with.
pub(super) fn s3(
    bucket: &str,
    config: &StoreConfig,
    patience: Patience,
) -> ColdResult<AmazonS3Builder> {
    // What the configuration says goes over the environment.
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_region(&config.region)
        .with_client_options(client(config, patience)?)
        .with_retry(retries(patience))
        // One answer for one name, and every server can do it.
        .with_disable_bulk_delete(true);
    if !config.endpoint.is_empty() {
        builder = builder.with_endpoint(&config.endpoint);
    }
    if config.allow_http {
        builder = builder.with_allow_http(true);
    }
    if !config.access_key_file.as_os_str().is_empty() {
        let key = read_secret(&config.access_key_file)?;
        let secret = read_secret(&config.secret_key_file)?;
        builder = builder
            .with_access_key_id(key)
            .with_secret_access_key(secret);
    }
    Ok(builder)
}

fn read_secret(path: &Path) -> ColdResult<String> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| ColdError::Config(format!("{}: {error}", path.display())))?;
    Ok(text.trim().to_owned())
}

/// How any of them is connected to.
pub(super) fn client(config: &StoreConfig, patience: Patience) -> ColdResult<ClientOptions> {
    let mut options = ClientOptions::new()
        .with_timeout(patience.request)
        .with_connect_timeout(CONNECT_MAX)
        .with_allow_http(config.allow_http);
    if !config.ca_file.as_os_str().is_empty() {
        let wrong =
            |error: String| ColdError::Config(format!("{}: {error}", config.ca_file.display()));
        let pem = std::fs::read(&config.ca_file).map_err(|error| wrong(error.to_string()))?;
        let found = Certificate::from_pem_bundle(&pem);
        for certificate in found.map_err(|error| wrong(error.to_string()))? {
            options = options.with_root_certificate(certificate);
        }
    }
    Ok(options)
}

/// How often a request is made.
pub(super) fn retries(patience: Patience) -> RetryConfig {
    RetryConfig {
        max_retries: patience.retries,
        retry_timeout: patience.retry_time,
        ..RetryConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_places() {
        let place = |url| place_of(url).unwrap();
        assert_eq!(place("file:///a/b"), Place::Directory("/a/b"));
        let bucket = |scheme, prefix| Place::Bucket {
            scheme,
            bucket: "b",
            prefix,
        };
        assert_eq!(place("s3://b"), bucket(Scheme::S3, ""));
        assert_eq!(place("s3://b/p/q/"), bucket(Scheme::S3, "p/q"));
        assert_eq!(place("gs://b/p"), bucket(Scheme::Google, "p"));
        assert_eq!(place("az://b/p"), bucket(Scheme::Azure, "p"));
        for url in ["", "b/p", "file://a", "s3://", "http://b/p", "s3://k:s@b/p"] {
            assert!(matches!(place_of(url), Err(ColdError::Config(_))), "{url}");
        }
    }
}
