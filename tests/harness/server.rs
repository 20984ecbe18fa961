//! A real `aquifer standalone` process on real files.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aquifer_client::Client;
use aquifer_runtime::clock::SystemClock;
use aquifer_runtime::config::env;
use aquifer_runtime::net::reserve::{Reserved, reserve};
use aquifer_runtime::rng::SystemRng;
use aquifer_runtime::task::spawn_thread;
use rustix::process::{Pid, Signal, kill_process};

use crate::wait::PATIENCE;

/// The binary under test: `AQUIFER_BIN`, or the one of this build.
///
/// # Panics
/// When it cannot be built: nothing can be tested then.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match env("AQUIFER_BIN") {
        Some(path) => PathBuf::from(path),
        None => build().expect("the binary under test must build"),
    })
}

/// Builds the binary in the profile and target directory of this very program: of a test, which is
/// in TARGET/PROFILE/deps, or of a tool, which is in TARGET/PROFILE.
fn build() -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    let folder = this.parent().context("a program is in a directory")?;
    let profile = match folder.ends_with("deps") {
        true => folder.parent(),
        false => Some(folder),
    };
    let profile = profile.context("a directory of programs has a parent")?;
    let mut command = Command::new(env!("CARGO"));
    command.args([
        "build",
        "--quiet",
        "--package",
        "aquifer",
        "--bin",
        "aquifer",
    ]);
    if profile.ends_with("release") {
        command.arg("--release");
    }
    let target = profile
        .parent()
        .context("a profile directory has a parent")?;
    let status = command.env("CARGO_TARGET_DIR", target).status()?;
    ensure!(status.success(), "cargo build failed");
    Ok(profile.join("aquifer"))
}

/// How to start a server.
#[derive(Debug, Clone, Default)]
pub struct ServerOptions {
    /// Further arguments of `aquifer standalone`.
    pub arguments: Vec<String>,
    /// Further environment.
    pub environment: Vec<(String, String)>,
    /// Where its logs go; beside the data directory unless said.
    pub log_dir: Option<PathBuf>,
}

/// A server process, killed when dropped.
#[derive(Debug)]
pub struct Server {
    data_dir: PathBuf,
    options: ServerOptions,
    ports: [Reserved; 3],
    child: Option<Child>,
    starts: u32,
    printed: Arc<Mutex<String>>,
}

impl Server {
    /// Starts a server on `data_dir` and waits until it serves.
    ///
    /// # Errors
    /// When it does not become ready; the error has the end of its log.
    pub async fn start(data_dir: &Path, options: ServerOptions) -> Result<Server> {
        let mut server = Server::prepare(data_dir, options)?;
        server.restart()?;
        Ok(server)
    }

    /// A server that is not started yet, with ports that stay its own.
    ///
    /// # Errors
    /// When no port is free.
    pub fn prepare(data_dir: &Path, options: ServerOptions) -> Result<Server> {
        let port = || reserve(&SystemRng);
        let ports = [port()?, port()?, port()?];
        let data_dir = data_dir.to_owned();
        let printed = Arc::default();
        Ok(Server {
            data_dir,
            options,
            ports,
            child: None,
            starts: 0,
            printed,
        })
    }

    /// Where clients connect.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.ports[0].address())
    }

    /// Where health and metrics are.
    #[must_use]
    pub fn http(&self) -> String {
        self.ports[2].address().to_string()
    }

    /// Where the bookie's storage service is.
    #[must_use]
    pub fn bookie(&self) -> String {
        self.ports[1].address().to_string()
    }

    /// The data directory.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// A client of this server.
    ///
    /// # Errors
    /// When the URL is refused.
    pub fn client(&self) -> Result<Client> {
        Ok(Client::builder().url(self.url()).build()?)
    }

    fn log_path(&self, start: u32) -> PathBuf {
        let name = self
            .data_dir
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        let name = format!("{name}.log.{start}");
        match &self.options.log_dir {
            Some(folder) => folder.join(name),
            None => self.data_dir.with_file_name(name),
        }
    }

    /// Starts it (again) on the same directory and ports.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn restart(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "it is running");
        self.starts += 1;
        let log = self.log_path(self.starts);
        let address = |port: &Reserved| port.address().to_string();
        let [grpc, bookie, http] = self.ports.each_ref().map(address);
        let mut child = Command::new(binary())
            .arg("standalone")
            .args(["--data-dir".as_ref(), self.data_dir.as_os_str()])
            .args([
                "--grpc-addr",
                &grpc,
                "--bookie-addr",
                &bookie,
                "--http-addr",
                &http,
            ])
            .args(&self.options.arguments)
            .envs(self.options.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            .spawn()?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        self.child = Some(child);
        if self.collect_until_ready(stdout)? {
            return Ok(());
        }
        let status = self.wait_exit()?;
        bail!(
            "server ended ({status}) before it was ready:\n{}",
            self.log_tail()
        );
    }

    /// Collects what the server prints, in the background for as long as it runs, because a full
    /// pipe would stop it. Says whether it became ready.
    fn collect_until_ready(&mut self, stdout: ChildStdout) -> Result<bool> {
        let printed = Arc::new(Mutex::new(String::new()));
        self.printed = Arc::clone(&printed);
        let (sender, receiver) = sync_channel(1);
        spawn_thread("server-output", move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let mut printed = printed.lock().expect("no holder panics");
                printed.push_str(&line);
                printed.push('\n');
                if line.contains(" ready in ") {
                    let _ = sender.try_send(());
                }
            }
        })?;
        match receiver.recv_timeout(PATIENCE) {
            Ok(()) => Ok(true),
            Err(RecvTimeoutError::Disconnected) => Ok(false),
            Err(RecvTimeoutError::Timeout) => {
                self.kill()?;
                bail!(
                    "server was not ready within {PATIENCE:?}:\n{}",
                    self.log_tail()
                )
            }
        }
    }

    /// What it has printed since it was started last.
    #[must_use]
    pub fn printed(&self) -> String {
        self.printed.lock().expect("no holder panics").clone()
    }

    /// Gives further starts one more argument.
    pub fn add_argument(&mut self, argument: &str) {
        self.options.arguments.push(argument.to_owned());
    }

    /// Waits for the process to end by itself; returns its exit status.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn wait_exit(&mut self) -> Result<std::process::ExitStatus> {
        let mut child = self.child.take().context("it is not running")?;
        let clock = SystemClock::shared();
        let start = clock.monotonic();
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if clock.monotonic() - start > PATIENCE {
                child.kill()?;
                bail!("server did not end:\n{}", self.log_tail());
            }
            pause();
        }
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("it is not running")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// SIGTERM, and waits for a clean end.
    ///
    /// # Errors
    /// When it does not end with exit code 0.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let status = self.wait_exit()?;
        ensure!(
            status.success(),
            "server ended with {status}:\n{}",
            self.log_tail()
        );
        Ok(())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it is not running.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid()?, signal)?;
        Ok(())
    }

    /// Resident memory in bytes.
    ///
    /// # Errors
    /// When it is not running.
    pub fn resident_bytes(&self) -> Result<u64> {
        self.memory("VmRSS:")
    }

    /// The most resident memory since the process began, in bytes.
    ///
    /// # Errors
    /// When it is not running.
    pub fn peak_resident_bytes(&self) -> Result<u64> {
        self.memory("VmHWM:")
    }

    fn memory(&self, what: &str) -> Result<u64> {
        let pid = self.pid()?.as_raw_nonzero();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status
            .lines()
            .find(|line| line.starts_with(what))
            .context("the kernel does not say")?;
        let kib: u64 = line
            .split_whitespace()
            .nth(1)
            .context("a number")?
            .parse()?;
        Ok(kib * 1024)
    }

    /// Its process id.
    ///
    /// # Errors
    /// When it is not running.
    pub fn id(&self) -> Result<i32> {
        Ok(self.pid()?.as_raw_nonzero().get())
    }

    fn pid(&self) -> Result<Pid> {
        let child = self.child.as_ref().context("it is not running")?;
        Pid::from_raw(i32::try_from(child.id())?).context("a process id is not 0")
    }

    /// Everything that it logged since it was started last.
    #[must_use]
    pub fn log(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = File::open(self.log_path(self.starts)) {
            let _ = file.read_to_string(&mut text);
        }
        text
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// That no run of it panicked.
    ///
    /// # Errors
    /// When a log says so.
    pub fn check_logs(&self) -> Result<()> {
        for start in 1..=self.starts {
            let log = fs::read_to_string(self.log_path(start)).unwrap_or_default();
            ensure!(
                !log.contains("panicked at"),
                "start {start} panicked:\n{log}"
            );
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs the command-line tool and returns what it said.
///
/// # Errors
/// When it cannot be started.
pub fn aquifer<I: AsRef<std::ffi::OsStr>>(url: &str, arguments: &[I]) -> Result<Output> {
    let output = Command::new(binary())
        .args(arguments)
        .env("AQUIFER_URL", url)
        .stdin(Stdio::null())
        .output()?;
    Ok(output)
}

#[allow(
    clippy::disallowed_methods,
    reason = "polls a child process from synchronous code"
)]
pub(crate) fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}
