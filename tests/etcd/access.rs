//! TLS, users and what is said when they do not fit.

use std::time::Duration;

use anyhow::Result;
use aquifer_harness::etcd::{Certificates, Etcd, EtcdOptions};
use aquifer_metadata::error::MetadataError;
use aquifer_metadata::etcd::EtcdConfig;
use aquifer_metadata::keys;
use aquifer_metadata::store::{Expect, MetadataStore};
use aquifer_model::id::BrokerId;
use aquifer_runtime::config::Secret;
use aquifer_runtime::task::TaskGroup;
use bytes::Bytes;

use crate::support::{config, connect, key, next, put, value, watch};

/// One member with TLS and authentication, on which a user may use the keys of the cluster.
struct Guarded {
    etcd: Etcd,
    folder: tempfile::TempDir,
    certificates: Certificates,
    tasks: TaskGroup,
}

impl Guarded {
    async fn start() -> Result<Guarded> {
        let folder = tempfile::tempdir()?;
        let certificates = Certificates::create(&folder.path().join("good"))?;
        let options = EtcdOptions {
            certificates: Some(certificates.clone()),
            ..EtcdOptions::members(1)
        };
        let etcd = Etcd::start(options).await?;
        etcd.ctl(&["user", "add", "root:root-password"])?;
        etcd.ctl(&["user", "grant-role", "root", "root"])?;
        etcd.ctl(&["role", "add", "aquifer"])?;
        let root = keys::root("test");
        etcd.ctl(&[
            "role",
            "grant-permission",
            "--prefix=true",
            "aquifer",
            "readwrite",
            &root,
        ])?;
        etcd.ctl(&["user", "add", "aquifer:correct"])?;
        etcd.ctl(&["user", "grant-role", "aquifer", "aquifer"])?;
        etcd.ctl(&["auth", "enable"])?;
        Ok(Guarded {
            etcd,
            folder,
            certificates,
            tasks: TaskGroup::new("test"),
        })
    }

    fn config(&self) -> EtcdConfig {
        EtcdConfig {
            user: Some("aquifer".to_owned()),
            password: Some(Secret::new("correct")),
            ca_file: Some(self.certificates.file("ca.pem")),
            cert_file: Some(self.certificates.file("client.pem")),
            key_file: Some(self.certificates.file("client.key")),
            ..config(self.etcd.urls())
        }
    }

    async fn refused(&self, config: &EtcdConfig) -> MetadataError {
        match connect(config, &self.tasks).await {
            Ok(_) => unreachable!("it is not allowed"),
            Err(error) => error,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_works_with_tls_and_a_user() -> Result<()> {
    let mut guarded = Guarded::start().await?;
    let store = connect(&guarded.config(), &guarded.tasks).await?;
    let store = store.as_ref();
    let start = put(store, &key(1), "1").await?;
    let mut events = watch(store, start).await?;
    let session = store.open_session(Duration::from_secs(30)).await?;
    let broker = keys::broker(BrokerId([1; 16]));
    session.put(&broker, Bytes::new(), Expect::Absent).await?;
    put(store, &key(1), "2").await?;
    assert_eq!(next(events.as_mut()).await.1.as_deref(), Some("2"));
    // After a restart etcd knows no login any more: requests and watches log in again.
    guarded.etcd.kill(0)?;
    guarded.etcd.restart(0)?;
    guarded.etcd.healthy().await?;
    put(store, &key(1), "3").await?;
    assert_eq!(next(events.as_mut()).await.1.as_deref(), Some("3"));
    assert_eq!(value(store, &key(1)).await?.as_deref(), Some("3"));
    session.close().await?;
    assert_eq!(store.get(&broker).await?, None);
    store.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_read_again_when_they_are_renewed() -> Result<()> {
    let mut guarded = Guarded::start().await?;
    let store = connect(&guarded.config(), &guarded.tasks).await?;
    let store = store.as_ref();
    let start = put(store, &key(1), "1").await?;
    let mut events = watch(store, start).await?;
    // Another authority, so that nothing of before is good for anything: in the same files.
    guarded.etcd.kill(0)?;
    Certificates::create(&guarded.folder.path().join("good"))?;
    guarded.etcd.restart(0)?;
    guarded.etcd.healthy().await?;
    put(store, &key(1), "2").await?;
    assert_eq!(next(events.as_mut()).await.1.as_deref(), Some("2"));
    assert_eq!(value(store, &key(1)).await?.as_deref(), Some("2"));
    store.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_is_said_clearly() -> Result<()> {
    let guarded = Guarded::start().await?;
    let short = EtcdConfig {
        request_timeout_ms: 1_500,
        ..guarded.config()
    };
    let invalid = |error: MetadataError, part: &str| {
        let fits = matches!(&error, MetadataError::Invalid(text) if text.contains(part));
        assert!(fits, "{error:?} does not say {part:?}");
    };
    let denied = |error: MetadataError, part: &str| {
        let fits = matches!(&error, MetadataError::Denied(text) if text.contains(part));
        assert!(fits, "{error:?} does not say {part:?}");
    };
    let wrong_password = EtcdConfig {
        password: Some(Secret::new("wrong")),
        ..short.clone()
    };
    denied(
        guarded.refused(&wrong_password).await,
        "wrong user or password",
    );
    let no_user = EtcdConfig {
        user: None,
        password: None,
        ..short.clone()
    };
    denied(guarded.refused(&no_user).await, "allowed");
    let other_cluster = EtcdConfig {
        cluster: "other".to_owned(),
        ..short.clone()
    };
    denied(guarded.refused(&other_cluster).await, "allowed");

    let unavailable = |error: MetadataError, part: &str| {
        let fits = matches!(&error, MetadataError::Unavailable(text) if text.contains(part));
        assert!(fits, "{error:?} does not say {part:?}");
    };
    let foreign = Certificates::create(&guarded.folder.path().join("foreign"))?;
    let wrong_ca = EtcdConfig {
        ca_file: Some(foreign.file("ca.pem")),
        ..short.clone()
    };
    unavailable(guarded.refused(&wrong_ca).await, "certificate");
    let wrong_name = EtcdConfig {
        server_name: Some("etcd.example".to_owned()),
        ..short.clone()
    };
    unavailable(guarded.refused(&wrong_name).await, "certificate");
    let wrong_client = EtcdConfig {
        cert_file: Some(foreign.file("client.pem")),
        key_file: Some(foreign.file("client.key")),
        ..short.clone()
    };
    unavailable(guarded.refused(&wrong_client).await, "etcd");
    let no_certificate = guarded.folder.path().join("no.pem");
    std::fs::write(&no_certificate, "not a certificate")?;
    let unusable = EtcdConfig {
        ca_file: Some(no_certificate),
        ..short
    };
    invalid(guarded.refused(&unusable).await, "no CERTIFICATE");
    let damaged_ca = guarded.folder.path().join("damaged.pem");
    let begin = "-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----\n";
    std::fs::write(&damaged_ca, begin)?;
    let damaged = EtcdConfig {
        ca_file: Some(damaged_ca),
        ..unusable
    };
    invalid(guarded.refused(&damaged).await, "TLS settings");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_for_an_etcd_without_users_is_refused() -> Result<()> {
    let etcd = Etcd::start(EtcdOptions::members(1)).await?;
    let tasks = TaskGroup::new("test");
    let config = EtcdConfig {
        user: Some("operator".to_owned()),
        password: Some(Secret::new("something")),
        ..config(etcd.urls())
    };
    let refused = connect(&config, &tasks).await.map(|_| ());
    assert!(
        matches!(&refused, Err(MetadataError::Denied(text)) if text.contains("authentication off")),
        "{refused:?}"
    );
    Ok(())
}
