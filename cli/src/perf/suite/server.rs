//! The server that the suite measures: this same binary as a child process, in a directory of its
//! own, on free ports.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use aquifer_runtime::clock::{Clock, SystemClock, sleep};
use aquifer_runtime::net::{self, ListenAddress};
use aquifer_runtime::task::spawn_thread;
use rustix::fs::{Advice, fadvise};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::exit::CliError;
use crate::perf::disk::blocking;

const READY_MAX: Duration = Duration::from_secs(60);
const STOP_MAX: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(10);
/// `/proc` counts CPU time in hundredths of a second on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// A running server; it is killed when dropped.
pub struct Server {
    child: Child,
    url: String,
    http: String,
    data_dir: PathBuf,
    /// From starting the process until it said that it is ready.
    pub start_ms: f64,
}

/// What a process uses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// CPU seconds since it started.
    pub cpu_seconds: f64,
    /// Resident now, in bytes.
    pub resident_bytes: f64,
    /// Most resident ever, or since [`Server::forget_peak`].
    pub peak_bytes: f64,
}

impl Server {
    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready; its log says why.
    pub async fn start(data_dir: &Path) -> Result<Server, CliError> {
        let [grpc, http, bookie] = [
            free_address().await?,
            free_address().await?,
            free_address().await?,
        ];
        let log = data_dir.with_extension("log");
        let url = format!("http://{grpc}");
        let directory = data_dir.to_owned();
        blocking(move || {
            let failed = |what: &str, error: &dyn std::fmt::Display| {
                CliError::failed(format!("cannot {what}: {error}"))
            };
            let program = std::env::current_exe().map_err(|e| failed("find this program", &e))?;
            let errors = File::create(&log).map_err(|e| failed("create the log", &e))?;
            let began = SystemClock.monotonic();
            let mut child = Command::new(program)
                .arg("standalone")
                .args(["--data-dir".as_ref(), directory.as_os_str()])
                .args([
                    "--grpc-addr",
                    &grpc,
                    "--http-addr",
                    &http,
                    "--bookie-addr",
                    &bookie,
                ])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(errors)
                .spawn()
                .map_err(|e| failed("start the server", &e))?;
            let stdout = child.stdout.take();
            let mut server = Server {
                child,
                url,
                http,
                data_dir: directory,
                start_ms: 0.0,
            };
            let ready = stdout
                .map(watch)
                .transpose()
                .map_err(|e| failed("start a thread", &e))?;
            if ready
                .and_then(|ready| ready.recv_timeout(READY_MAX).ok())
                .is_none()
            {
                let log = fs::read_to_string(&log).unwrap_or_default();
                return Err(CliError::failed(format!(
                    "the server did not start:\n{log}"
                )));
            }
            let took = SystemClock.monotonic().saturating_sub(began);
            server.start_ms = took.as_secs_f64() * 1e3;
            Ok(server)
        })
        .await
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn stop(&mut self) -> Result<(), CliError> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM)
                .map_err(|error| CliError::failed(format!("cannot stop the server: {error}")))?;
        }
        let deadline = SystemClock.monotonic() + STOP_MAX;
        while SystemClock.monotonic() < deadline {
            if let Ok(Some(_)) = self.child.try_wait() {
                return Ok(());
            }
            sleep(LOOK).await;
        }
        Err(CliError::timed_out("the server does not end"))
    }

    /// Stops it, drops its files from the page cache, and starts it again.
    ///
    /// # Errors
    /// When it does not stop or start.
    pub async fn restart_cold(&mut self) -> Result<(), CliError> {
        self.stop().await?;
        let directory = self.data_dir.clone();
        blocking(move || {
            forget_cached(&directory).map_err(|error| {
                CliError::failed(format!("cannot drop files from the page cache: {error}"))
            })
        })
        .await?;
        *self = Server::start(&self.data_dir.clone()).await?;
        Ok(())
    }

    /// What it uses.
    ///
    /// # Errors
    /// When it has ended.
    pub fn usage(&self) -> Result<Usage, CliError> {
        usage_of(self.child.id())
    }

    /// The sum of a metric over all its labels; 0 for a counter that has not counted yet.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn metric(&self, name: &str) -> Result<f64, CliError> {
        let text = get(&self.http, "/metrics").await.map_err(|error| {
            CliError::failed(format!("cannot read the server's metrics: {error}"))
        })?;
        Ok(sum_metric(&text, name))
    }

    /// Lets the peak of resident memory begin anew. Not every kernel can; then it stays what it
    /// was since the start.
    pub fn forget_peak(&self) {
        let _ = fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended long ago.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process uses.
///
/// # Errors
/// When it has ended.
pub fn usage_of(pid: u32) -> Result<Usage, CliError> {
    let read = |name: &str| {
        fs::read_to_string(format!("/proc/{pid}/{name}"))
            .map_err(|error| CliError::failed(format!("the server is gone: {error}")))
    };
    parse_usage(&read("stat")?, &read("status")?)
        .ok_or_else(|| CliError::failed("cannot read what the server uses"))
}

async fn free_address() -> Result<String, CliError> {
    let (listener, address) = net::bind(ListenAddress::loopback_any_port())
        .await
        .map_err(|error| CliError::failed(error.to_string()))?;
    drop(listener);
    Ok(address.to_string())
}

/// Reads what the server prints for as long as it prints, and tells when it is ready.
fn watch(stdout: ChildStdout) -> io::Result<Receiver<()>> {
    let (sender, receiver) = sync_channel(1);
    spawn_thread("server-output", move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if line.contains("ready in ") {
                // Only the first time has somebody who listens.
                let _ = sender.try_send(());
            }
        }
    })?;
    Ok(receiver)
}

fn forget_cached(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            forget_cached(&path)?;
        } else {
            let file = File::open(&path)?;
            // Dirty pages stay, so they are written first.
            file.sync_all()?;
            fadvise(&file, 0, None, Advice::DontNeed)?;
        }
    }
    Ok(())
}

/// The body of an HTTP answer; one request a connection keeps this as simple as it looks.
async fn get(address: &str, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => Ok(body.to_owned()),
        _ => Err(io::Error::other("an answer other than 200")),
    }
}

fn sum_metric(text: &str, name: &str) -> f64 {
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let ends = rest.starts_with('{') || rest.starts_with(' ');
        let number = rest.rsplit(' ').next().filter(|_| ends)?;
        number.parse::<f64>().ok()
    };
    text.lines().filter_map(value).sum()
}

fn parse_usage(stat: &str, status: &str) -> Option<Usage> {
    // The name of the process is in parentheses and may contain anything, so count from its end.
    let after_name: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| after_name.get(at)?.parse::<f64>().ok();
    let kib = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        line.split_whitespace().next()?.parse::<f64>().ok()
    };
    Some(Usage {
        cpu_seconds: (ticks(11)? + ticks(12)?) / TICKS_PER_SECOND,
        resident_bytes: kib("VmRSS:")? * 1024.0,
        peak_bytes: kib("VmHWM:")? * 1024.0,
    })
}

#[test]
fn metrics_are_summed_over_their_labels() {
    let text =
        "# TYPE a_total counter\na_total{x=\"1\"} 2\na_total{x=\"2\"} 3.5\na_total_more 9\nb 4\n";
    assert_eq!(sum_metric(text, "a_total"), 5.5);
    assert_eq!(sum_metric(text, "b"), 4.0);
    assert_eq!(sum_metric(text, "absent"), 0.0);
}

#[test]
fn usage_is_read_from_proc() {
    let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 1 0 9 0 0";
    let status = "Name:\ta\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n";
    assert_eq!(
        parse_usage(stat, status),
        Some(Usage {
            cpu_seconds: 3.0,
            resident_bytes: 1_048_576.0,
            peak_bytes: 2_097_152.0,
        })
    );
    assert_eq!(parse_usage("7 (a) S", status), None);
    assert_eq!(parse_usage(stat, ""), None);
}
