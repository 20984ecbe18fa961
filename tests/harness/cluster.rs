//! A real `aquifer dev` cluster: etcd, bookies and a broker as processes of this machine.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};

use anyhow::{Context, Result, bail, ensure};
use aquifer_client::admin::Admin;
use aquifer_client::{Client, ClientTlsConfig};
use aquifer_runtime::clock::{Clock, SystemClock};
use aquifer_runtime::task::spawn_thread;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::server::{binary, pause};
use crate::wait::PATIENCE;

/// A process of a cluster, as the cluster's greeting described it.
#[derive(Debug, Clone)]
pub struct Process {
    /// `etcd`, `bookie` or `broker`.
    pub role: String,
    /// Its name, for example `bookie-2`.
    pub name: String,
    /// Its process id.
    pub pid: i32,
    /// Where it is reached.
    pub address: String,
    /// Where it answers health checks and metrics.
    pub http: String,
    /// How it is started again.
    pub command: String,
}

/// A cluster; it is killed when dropped.
#[derive(Debug)]
pub struct Cluster {
    data_dir: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    dev: Option<Child>,
    url: String,
    ca_file: Option<PathBuf>,
    processes: Vec<Process>,
    /// Processes that a test started again by itself.
    again: Vec<(String, Child)>,
}

impl Cluster {
    /// Starts a cluster on `data_dir`, with one broker unless arguments say otherwise, and waits
    /// until it serves.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start(data_dir: &Path, arguments: &[&str]) -> Result<Cluster> {
        Cluster::start_with(data_dir, arguments, &[])
    }

    /// The same with an environment, which every process gets: how roles are configured.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_with(
        data_dir: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<Cluster> {
        let environment = environment.iter();
        let mut cluster = Cluster {
            data_dir: data_dir.to_owned(),
            arguments: arguments.iter().map(ToString::to_string).collect(),
            environment: environment
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            dev: None,
            url: String::new(),
            ca_file: None,
            processes: Vec::new(),
            again: Vec::new(),
        };
        cluster.restart()?;
        Ok(cluster)
    }

    /// Starts it (again) on the same directory; its ports are others.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn restart(&mut self) -> Result<()> {
        ensure!(self.dev.is_none(), "it is running");
        let log = self.data_dir.with_extension("dev.log");
        let named = self.arguments.iter().any(|word| word == "--brokers");
        let brokers: &[&str] = if named { &[] } else { &["--brokers", "1"] };
        let mut child = Command::new(binary())
            .args(["dev", "--output", "json", "--grpc-addr", "127.0.0.1:0"])
            .args(["--data-dir".as_ref(), self.data_dir.as_os_str()])
            .args(brokers)
            .args(&self.arguments)
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::options().create(true).append(true).open(&log)?)
            .spawn()?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        self.dev = Some(child);
        let (sender, receiver) = sync_channel(1);
        spawn_thread("cluster-output", move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.try_send(line);
            }
        })?;
        let log = || fs::read_to_string(&log).unwrap_or_default();
        match receiver.recv_timeout(PATIENCE) {
            Ok(line) => self.greeted(&line),
            Err(RecvTimeoutError::Disconnected) => bail!("the cluster did not start:\n{}", log()),
            Err(RecvTimeoutError::Timeout) => {
                bail!("the cluster was not ready within {PATIENCE:?}:\n{}", log())
            }
        }
    }

    fn greeted(&mut self, line: &str) -> Result<()> {
        let greeting: Value = serde_json::from_str(line)?;
        let text = |value: &Value| value.as_str().map(str::to_owned).context("a text");
        self.url = text(&greeting["url"])?;
        self.ca_file = greeting["ca_file"].as_str().map(PathBuf::from);
        ensure!(greeting["ready_ms"].is_u64(), "{line}");
        let processes = greeting["processes"].as_array().context("a list")?;
        let parse = |process: &Value| {
            let pid = process["pid"].as_i64().context("a number")?;
            anyhow::Ok(Process {
                role: text(&process["role"])?,
                name: text(&process["name"])?,
                pid: i32::try_from(pid)?,
                address: text(&process["address"])?,
                http: text(&process["http"])?,
                command: text(&process["command"])?,
            })
        };
        self.processes = processes.iter().map(parse).collect::<Result<_>>()?;
        Ok(())
    }

    /// Where clients connect.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A client of this cluster.
    ///
    /// # Errors
    /// When the URL is refused.
    pub fn client(&self) -> Result<Client> {
        let tls = ClientTlsConfig {
            ca_file: self.ca_file.clone(),
            ..ClientTlsConfig::default()
        };
        Ok(Client::builder().url(&self.url).tls(tls).build()?)
    }

    /// The authority of its certificates, when it was started with `--tls`.
    #[must_use]
    pub fn ca_file(&self) -> Option<&Path> {
        self.ca_file.as_deref()
    }

    /// Its processes.
    #[must_use]
    pub fn processes(&self) -> &[Process] {
        &self.processes
    }

    /// A process by its name.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn process(&self, name: &str) -> Result<&Process> {
        let found = self.processes.iter().find(|process| process.name == name);
        found.with_context(|| format!("no process {name}"))
    }

    /// Sends a signal to a process.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        kill_process(pid(self.process(name)?.pid)?, signal)?;
        Ok(())
    }

    /// `kill -9`, and waits until the process is gone.
    ///
    /// # Errors
    /// When it does not run, or does not end.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        self.end(name, Signal::KILL)
    }

    /// SIGTERM, and waits until the process is gone.
    ///
    /// # Errors
    /// When it does not run, or does not end.
    pub fn terminate(&mut self, name: &str) -> Result<()> {
        self.end(name, Signal::TERM)
    }

    fn end(&mut self, name: &str, signal: Signal) -> Result<()> {
        self.signal(name, signal)?;
        // A process that the test started is the test's to wait for.
        if let Some(at) = self.again.iter().position(|(again, _)| again == name) {
            self.again.swap_remove(at).1.wait()?;
        }
        wait_gone(self.process(name)?.pid)
    }

    /// Starts a process again that was killed, with the command that the greeting named.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_again(&mut self, name: &str) -> Result<()> {
        let command = self.process(name)?.command.clone();
        let log = self.data_dir.join("logs").join(format!("{name}.log"));
        let mut child = Command::new("sh")
            .args(["-c", &format!("exec {command}")])
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::options().create(true).append(true).open(&log)?)
            .spawn()?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let id = i32::try_from(child.id())?;
        self.again.push((name.to_owned(), child));
        for process in &mut self.processes {
            if process.name == name {
                process.pid = id;
            }
        }
        let (sender, receiver) = sync_channel(1);
        spawn_thread("process-output", move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.try_send(line);
            }
        })?;
        let greeting = receiver.recv_timeout(PATIENCE);
        let greeting = greeting.with_context(|| {
            let log = self.log(name);
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(20)..].join("\n");
            format!("{name} did not start:\n{last}")
        })?;
        ensure!(greeting.contains("ready_ms"), "{greeting}");
        Ok(())
    }

    /// SIGTERM, and waits for the end of everything.
    ///
    /// # Errors
    /// When a process is left, or `aquifer dev` did not end with exit code 0.
    pub fn stop(&mut self) -> Result<()> {
        // Brokers first: they hand over what they own, which needs all the others.
        let again = std::mem::take(&mut self.again);
        let (brokers, again) = again
            .into_iter()
            .partition(|(name, _)| name.starts_with("broker"));
        self.again = again;
        end_all(brokers)?;
        let dev = self.dev.as_ref().context("it is not running")?;
        let dev = pid(i32::try_from(dev.id())?)?;
        if !self.again.is_empty() {
            // Bookies that `aquifer dev` does not know end before its etcd, or they end slowly, and
            // after its brokers.
            let brokers = self.processes.iter().filter(|p| p.role == "broker");
            for broker in brokers.filter(|broker| is_running(broker.pid)) {
                kill_process(pid(broker.pid)?, Signal::TERM)?;
                wait_gone(broker.pid)?;
            }
            end_all(std::mem::take(&mut self.again))?;
        }
        kill_process(dev, Signal::TERM)?;
        let status = self.wait_exit()?;
        ensure!(status.success(), "aquifer dev ended with {status}");
        self.check_gone()
    }

    /// `kill -9` of `aquifer dev` itself.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_dev(&mut self) -> Result<()> {
        let mut dev = self.dev.take().context("it is not running")?;
        dev.kill()?;
        dev.wait()?;
        Ok(())
    }

    /// Waits until no process of the cluster is left.
    ///
    /// # Errors
    /// When one is.
    pub fn check_gone(&self) -> Result<()> {
        self.processes
            .iter()
            .try_for_each(|process| wait_gone(process.pid).with_context(|| process.name.clone()))
    }

    fn wait_exit(&mut self) -> Result<ExitStatus> {
        let mut dev = self.dev.take().context("it is not running")?;
        let start = SystemClock.monotonic();
        loop {
            if let Some(status) = dev.try_wait()? {
                return Ok(status);
            }
            if SystemClock.monotonic() - start > PATIENCE {
                dev.kill()?;
                dev.wait()?;
                bail!("the cluster did not end within {PATIENCE:?}");
            }
            pause();
        }
    }

    /// Moves every bundle of a namespace to a broker.
    ///
    /// # Errors
    /// When the broker is not announced, or a bundle does not move.
    pub async fn give_all(&self, admin: &Admin, namespace: &str, name: &str) -> Result<()> {
        let address = &self.process(name)?.address;
        let brokers = admin.list_brokers().await?;
        let owner = brokers.iter().find(|broker| broker.url == *address);
        let owner = &owner
            .with_context(|| format!("{name} is announced"))?
            .broker;
        for bundle in admin.list_bundles(namespace).await? {
            if bundle.broker.as_ref() != Some(owner) {
                admin
                    .transfer_bundle(namespace, &bundle.bundle, Some(owner))
                    .await?;
            }
        }
        Ok(())
    }

    /// Where its metadata is, as the arguments of tools name it.
    ///
    /// # Errors
    /// When there is no etcd.
    pub fn metadata(&self) -> Result<String> {
        let etcd = &self.process("etcd")?.address;
        Ok(etcd.replace("http://", "etcd://"))
    }

    /// Runs etcdctl on its etcd and returns what it prints.
    ///
    /// # Errors
    /// When it is missing or fails.
    pub fn etcdctl(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.process("etcd")?.address))
            .args(arguments)
            .output()
            .context("etcdctl cannot be run: tools/prerequisites.sh installs it")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "etcdctl {arguments:?}: {said}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Where a process keeps its data.
    #[must_use]
    pub fn directory(&self, name: &str) -> PathBuf {
        self.data_dir.join(name)
    }

    /// Everything that a process logged.
    #[must_use]
    pub fn log(&self, name: &str) -> String {
        let log = self.data_dir.join("logs").join(format!("{name}.log"));
        fs::read_to_string(log).unwrap_or_default()
    }

    /// That no process panicked.
    ///
    /// # Errors
    /// When a log says so.
    pub fn check_logs(&self) -> Result<()> {
        for process in &self.processes {
            let log = self.log(&process.name);
            ensure!(
                !log.contains("panicked"),
                "{} panicked:\n{log}",
                process.name
            );
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The kernel ends the children of a killed `aquifer dev`.
        let again = self.again.drain(..).map(|(_, child)| child);
        for mut child in again.chain(self.dev.take()) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// SIGTERM to all of them; waits for their ends.
fn end_all(children: Vec<(String, Child)>) -> Result<()> {
    for (_, child) in &children {
        kill_process(pid(i32::try_from(child.id())?)?, Signal::TERM)?;
    }
    for (name, mut child) in children {
        let status = child.wait()?;
        ensure!(status.success(), "{name} ended with {status}");
    }
    Ok(())
}

fn pid(id: i32) -> Result<Pid> {
    Pid::from_raw(id).context("a process id is not 0")
}

fn wait_gone(id: i32) -> Result<()> {
    let start = SystemClock.monotonic();
    while is_running(id) {
        ensure!(
            SystemClock.monotonic() - start < PATIENCE,
            "process {id} is still there after {PATIENCE:?}"
        );
        pause();
    }
    Ok(())
}

/// Whether a process exists and is more than an exit status that was not waited for.
fn is_running(id: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    // The name, in parentheses, may contain anything.
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    match state {
        None | Some('X') => false,
        // Its other threads may still be ending, and hold its files and locks.
        Some('Z') => fs::read_dir(format!("/proc/{id}/task")).is_ok_and(|tasks| tasks.count() > 1),
        Some(_) => true,
    }
}
