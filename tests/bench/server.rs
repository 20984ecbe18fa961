//! The server that is measured: `aquifer standalone` on free ports, and what the kernel and its
//! own metrics say about it.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use aquifer_client::Client;
use aquifer_harness::http;
use aquifer_harness::processes::{Usage, usage};
use aquifer_harness::server::{Server, ServerOptions, binary};
use aquifer_runtime::clock::{Clock, SystemClock};
use rustix::fs::{Advice, fadvise};

/// A running server; it is killed when dropped.
pub struct Measured {
    server: Server,
    /// From starting the process until it said that it is ready.
    pub start_ms: f64,
}

impl Measured {
    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready; the error has the end of its log.
    pub async fn start(data_dir: &Path) -> Result<Measured> {
        Measured::start_with(data_dir, ServerOptions::default()).await
    }

    /// The same with options.
    ///
    /// # Errors
    /// As [`Measured::start`].
    pub async fn start_with(data_dir: &Path, options: ServerOptions) -> Result<Measured> {
        // So that a build of the binary is not measured.
        binary();
        let server = Server::prepare(data_dir, options)?;
        let mut measured = Measured {
            server,
            start_ms: 0.0,
        };
        measured.run()?;
        Ok(measured)
    }

    fn run(&mut self) -> Result<()> {
        let began = SystemClock.monotonic();
        self.server.restart()?;
        let took = SystemClock.monotonic().saturating_sub(began);
        self.start_ms = took.as_secs_f64() * 1e3;
        Ok(())
    }

    /// Where clients connect.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Where it answers health checks and metrics.
    pub fn http(&self) -> String {
        self.server.http()
    }

    /// A client.
    ///
    /// # Errors
    /// When the URL is refused.
    pub fn client(&self) -> Result<Client> {
        self.server.client()
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Errors
    /// When it does not end cleanly.
    pub fn stop(&mut self) -> Result<()> {
        self.server.stop()
    }

    /// Stops it, drops its files from the page cache, and starts it again.
    ///
    /// # Errors
    /// When it does not stop or start.
    pub fn restart_cold(&mut self) -> Result<()> {
        self.stop()?;
        drop_cached(self.server.data_dir()).context("cannot drop files from the page cache")?;
        self.run()
    }

    /// What it uses.
    ///
    /// # Errors
    /// When it has ended.
    pub fn usage(&self) -> Result<Usage> {
        usage(self.server.id()?)
    }

    /// The sum of a metric over all its labels; 0 for a counter that has not counted yet.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        http::metric(&self.server.http(), name).await
    }

    /// Restarts the peak of resident memory from now. Not every kernel can; then it stays the peak
    /// since the start.
    pub fn forget_peak(&self) -> Result<()> {
        let _ = fs::write(format!("/proc/{}/clear_refs", self.server.id()?), "5");
        Ok(())
    }
}

fn drop_cached(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            drop_cached(&path)?;
        } else {
            let file = File::open(&path)?;
            // Dirty pages stay, so they are written first.
            file.sync_all()?;
            fadvise(&file, 0, None, Advice::DontNeed)?;
        }
    }
    Ok(())
}
