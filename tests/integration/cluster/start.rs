//! Processes that start before etcd does, as they do where everything starts at once.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Result, ensure};
use aquifer_harness::etcd::{Etcd, EtcdOptions};
use aquifer_harness::http::get;
use aquifer_harness::server::binary;
use aquifer_harness::wait::until;
use aquifer_runtime::net::reserve::reserve;
use aquifer_runtime::rng::SystemRng;

/// A child that does not outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Waits until a file has a text.
async fn says(file: &Path, what: &str) -> Result<()> {
    until(what, || async {
        Ok(fs::read_to_string(file)?.contains(what).then_some(()))
    })
    .await
}

/// A process waits for etcd as long as it was told to, and serves once etcd answers. Its HTTP port
/// is open meanwhile: the process works, and says what it waits for.
#[tokio::test]
async fn a_bookie_waits_for_an_etcd_that_starts_later() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut etcd = Etcd::start(EtcdOptions::members(1)).await?;
    etcd.kill(0)?;
    let port = reserve(&SystemRng)?;
    let http = port.address().to_string();
    let (out, log) = (folder.path().join("out"), folder.path().join("log"));
    let child = Command::new(binary())
        .args(["bookie", "--wait-for-metadata", "2m"])
        .args(["--bookie-addr", "127.0.0.1:0", "--http-addr", &http])
        .arg("--metadata")
        .arg(format!("etcd://{}", etcd.address(0)))
        .arg("--data-dir")
        .arg(folder.path().join("data"))
        .stdin(Stdio::null())
        .stdout(File::create(&out)?)
        .stderr(File::create(&log)?)
        .spawn()?;
    let _child = Killed(child);
    says(&log, "waiting for the metadata store").await?;
    let works = get(&http, "/healthz").await?;
    ensure!(works.contains("200 OK"), "{works}");
    let waiting = "starting: waiting for the metadata store";
    ensure!(works.contains(waiting), "{works}");
    let ready = get(&http, "/readyz").await?;
    ensure!(
        ready.contains(" 503 ") && ready.contains(waiting),
        "{ready}"
    );
    let scraped = get(&http, "/metrics").await?;
    ensure!(scraped.contains("aquifer_process_open_fds"), "{scraped}");
    etcd.restart(0)?;
    says(&out, "ready in").await?;
    until("the bookie is ready", || async {
        Ok(get(&http, "/readyz")
            .await?
            .contains("200 OK")
            .then_some(()))
    })
    .await
}
