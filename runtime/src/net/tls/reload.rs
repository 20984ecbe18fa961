//! Certificates that are renewed while the process runs: files are looked at every ten seconds, and
//! at once on SIGHUP.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;
use tokio::signal::unix::{SignalKind, signal};

use crate::clock::sleep;
use crate::net::tls::error::TlsError;
use crate::task::TaskGroup;

const POLL: Duration = Duration::from_secs(10);

/// What a look at the files has led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reloaded {
    /// They are as before.
    Unchanged,
    /// New connections use their new contents.
    Changed,
}

/// Something that is made of certificate files.
pub trait Reloads: Send + Sync + 'static {
    /// Which one it is, for messages and metrics: a port, or `client`.
    fn what(&self) -> &str;

    /// The second, since 1970, in which the certificate that it shows is over.
    fn expires_s(&self) -> Option<u64>;

    /// Looks at the files and uses them if they have changed.
    ///
    /// # Errors
    /// When the new files cannot be used; the former contents stay in use.
    fn reload(&self) -> Result<Reloaded, TlsError>;
}

/// Reloads everything of a process when its files change, until `tasks` shuts down. Metrics say
/// when each certificate is over and how reloads went.
pub fn reload_when_changed(list: Vec<Arc<dyn Reloads>>, meter: &Meter, tasks: &TaskGroup) {
    if list.is_empty() {
        return;
    }
    let reloads = meter
        .u64_counter("aquifer_tls_reloads_total")
        .with_description("Reloads of certificate files, by port and result")
        .build();
    for one in &list {
        for result in ["ok", "failed"] {
            let port = KeyValue::new("port", one.what().to_owned());
            reloads.add(0, &[port, KeyValue::new("result", result)]);
        }
    }
    let watched = list.clone();
    meter
        .u64_observable_gauge("aquifer_tls_certificate_expires_seconds")
        .with_description("Unix time, in seconds, at which the certificate of a port expires")
        .with_callback(move |observer| {
            for one in &watched {
                if let Some(expires) = one.expires_s() {
                    let port = KeyValue::new("port", one.what().to_owned());
                    observer.observe(expires, &[port]);
                }
            }
        })
        .build();
    let shutdown = tasks.shutdown_token();
    tasks.spawn("tls-reload", async move {
        let mut failing = vec![None; list.len()];
        let mut hangup = signal(SignalKind::hangup()).ok();
        loop {
            let asked = async {
                match &mut hangup {
                    Some(hangup) => hangup.recv().await.unwrap_or_default(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.wait() => return,
                () = sleep(POLL) => {}
                () = asked => {}
            }
            for (one, failed) in list.iter().zip(&mut failing) {
                let port = KeyValue::new("port", one.what().to_owned());
                match one.reload() {
                    Ok(Reloaded::Unchanged) => *failed = None,
                    Ok(Reloaded::Changed) => {
                        *failed = None;
                        tracing::info!(port = one.what(), "certificates reloaded");
                        reloads.add(1, &[port, KeyValue::new("result", "ok")]);
                    }
                    Err(error) => {
                        let error = error.to_string();
                        // Once for each reason, not every ten seconds.
                        if failed.as_ref() != Some(&error) {
                            tracing::warn!(
                                port = one.what(),
                                error,
                                "certificates not reloaded; the former ones stay in use"
                            );
                            reloads.add(1, &[port, KeyValue::new("result", "failed")]);
                            *failed = Some(error);
                        }
                    }
                }
            }
        }
    });
}
