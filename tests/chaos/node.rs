//! A process on a host of the network: started, killed, paused, and started again when it has
//! ended.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aquifer_runtime::clock::{Clock, SystemClock, sleep};
use rustix::process::{Pid, Signal, kill_process};

use crate::net::Network;

/// Between two starts of a process that ends by itself.
const BACK_OFF: Duration = Duration::from_secs(1);

/// A process, and how it is started.
#[derive(Debug)]
pub struct Node {
    /// What it is called.
    pub name: String,
    /// Where it is in the network.
    pub host: u8,
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
    started: Duration,
    /// Whether it ought to run: one that has ended by itself is started again.
    wanted: bool,
    /// How often it has ended by itself since it was last seen well.
    pub ended: u32,
}

impl Node {
    /// A process that is not started yet.
    pub fn new(name: &str, host: u8, program: &Path, arguments: Vec<String>, logs: &Path) -> Node {
        Node {
            name: name.to_owned(),
            host,
            program: program.to_owned(),
            arguments,
            log: logs.join(format!("{name}.log")),
            child: None,
            started: Duration::ZERO,
            wanted: false,
            ended: 0,
        }
    }

    /// Starts it, unless it runs.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn start(&mut self, network: &Network) -> Result<()> {
        self.wanted = true;
        if self.child.is_some() {
            return Ok(());
        }
        let log = File::options().create(true).append(true).open(&self.log)?;
        let child = network
            .command(self.host, &self.program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| self.name.clone())?;
        self.child = Some(child);
        self.started = SystemClock.monotonic();
        Ok(())
    }

    /// Starts it again when it ought to run and has ended. Says how it ended.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn revive(&mut self, network: &Network) -> Result<Option<String>> {
        let Some(child) = &mut self.child else {
            return Ok(None);
        };
        if SystemClock.monotonic() - self.started < BACK_OFF {
            return Ok(None);
        }
        let Some(status) = child.try_wait()? else {
            return Ok(None);
        };
        self.child = None;
        self.ended += 1;
        if self.wanted {
            self.start(network)?;
        }
        Ok(Some(format!("{} ended by itself: {status}", self.name)))
    }

    /// `kill -9`; it stays dead until it is started.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.wanted = false;
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Asks it to end; it stays away until it is started.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn terminate(&mut self) -> Result<()> {
        self.wanted = false;
        self.signal(Signal::TERM)
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// P16: when it does not.
    pub async fn wait_ended(&mut self, limit: Duration) -> Result<()> {
        let started = SystemClock.monotonic();
        while let Some(child) = &mut self.child {
            if child.try_wait()?.is_some() {
                self.child = None;
            } else {
                ensure!(
                    SystemClock.monotonic() - started < limit,
                    "P16: {} does not end within {limit:?}",
                    self.name
                );
                sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    /// Sends a signal, if it runs.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if let Some(child) = &self.child {
            let id = Pid::from_raw(i32::try_from(child.id())?).context("a process id is not 0")?;
            // It may have ended by itself.
            let _ = kill_process(id, signal);
        }
        Ok(())
    }

    /// Everything that it has said.
    pub fn text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Nothing is left to report an error to.
        let _ = self.kill();
    }
}
