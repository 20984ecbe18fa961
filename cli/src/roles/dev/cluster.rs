//! The processes of a cluster: started in order, watched, started again when that was asked for,
//! and stopped in the opposite order.

use std::fs::{self, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use aquifer_runtime::clock::{self, Clock, SystemClock};
use aquifer_runtime::net::ListenAddress;
use aquifer_runtime::net::reserve::Reserved;
use futures::FutureExt;
use futures::future::{join_all, select_all, try_join_all};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{ChildStdout, Command};

use crate::exit::CliError;
use crate::output::Output;
use crate::roles::dev::etcd;
use crate::roles::dev::plan::{Plan, Role, Spec, free_addresses};
use crate::roles::process::Signals;

/// How long a process may take until it serves, and until it has ended.
const READY_MAX: Duration = Duration::from_secs(60);
const STOP_MAX: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);
/// First and longest pause before a process is started again, and how long it must have lived to
/// be treated as a healthy one.
const AGAIN_FIRST: Duration = Duration::from_millis(200);
const AGAIN_MAX: Duration = Duration::from_secs(10);
const HEALTHY: Duration = Duration::from_secs(30);
/// Lines of a log that an error shows.
const LOG_LINES: usize = 20;

/// The processes, in the order in which they were started.
#[derive(Debug, Default)]
pub struct Cluster {
    children: Vec<Child>,
    /// The ports of the children, also while these do not run.
    reserved: Vec<Reserved>,
}

/// A process.
#[derive(Debug)]
pub struct Child {
    /// What it is.
    pub spec: Spec,
    launcher: PathBuf,
    log: PathBuf,
    process: Option<tokio::process::Child>,
    /// Held so that what it prints has somewhere to go; it prints one line.
    printed: Option<Lines<BufReader<ChildStdout>>>,
    began: Duration,
    failures: u32,
    /// When it is to be started again.
    again_at: Option<Duration>,
}

impl Cluster {
    /// Where clients connect: the brokers, separated by commas.
    pub fn url(&self) -> String {
        let brokers = self.children.iter().filter(|c| c.spec.role == Role::Broker);
        let urls: Vec<&str> = brokers.map(|child| child.spec.address.as_str()).collect();
        urls.join(",")
    }

    /// The processes.
    pub fn children(&self) -> impl Iterator<Item = &Child> {
        self.children.iter()
    }

    /// Starts everything and waits until it serves.
    ///
    /// # Errors
    /// When a process does not become ready; its log says why.
    pub async fn start(&mut self, plan: Plan) -> Result<(), CliError> {
        let logs = plan.data_dir.join("logs");
        fs::create_dir_all(&logs).map_err(|error| {
            CliError::failed(format!("cannot create {}: {error}", logs.display()))
        })?;
        plan.certify()?;
        let (ports, reserved) = free_addresses(wanted(&plan)).await?;
        self.reserved = reserved;
        let [client, peer, others @ ..] = ports.as_slice() else {
            return Err(CliError::failed("there are too few free ports"));
        };
        let (brokers, bookies) = others.split_at(2 * usize::from(plan.brokers));
        let started = self.launch(&plan, plan.etcd(*client, *peer))?;
        self.children[started].healthy(*client).await?;
        plan.make_token(*client).await?;
        let first = self.children.len();
        for (number, ports) in (1..).zip(bookies.chunks_exact(2)) {
            self.launch(&plan, plan.bookie(number, *client, ports[0], ports[1]))?;
        }
        try_join_all(self.children[first..].iter_mut().map(Child::ready)).await?;
        let first = self.children.len();
        for (number, ports) in (1..).zip(brokers.chunks_exact(2)) {
            self.launch(&plan, plan.broker(number, *client, ports[0], ports[1]))?;
        }
        try_join_all(self.children[first..].iter_mut().map(Child::ready)).await?;
        Ok(())
    }

    fn launch(&mut self, plan: &Plan, spec: Spec) -> Result<usize, CliError> {
        let mut child = Child {
            log: plan.log(&spec.name),
            launcher: plan.aquifer.clone(),
            spec,
            process: None,
            printed: None,
            began: Duration::ZERO,
            failures: 0,
            again_at: None,
        };
        child.launch()?;
        self.children.push(child);
        Ok(self.children.len() - 1)
    }

    /// Says what dies, and starts it again if that was asked for, until the process is told to end.
    pub async fn watch(&mut self, signals: &mut Signals, supervise: bool, out: &Output) {
        loop {
            let now = SystemClock.monotonic();
            for child in &mut self.children {
                if child.again_at.is_some_and(|due| due <= now) {
                    child.launch_again(out);
                }
            }
            let next = self
                .children
                .iter()
                .filter_map(|child| child.again_at)
                .min();
            tokio::select! {
                _ = signals.next() => return,
                (index, status) = exited(&mut self.children) => {
                    self.children[index].ended(status, supervise, out);
                }
                () = until(next) => {}
            }
        }
    }

    /// Ends everything: brokers first, which still need the bookies, and etcd last. A second
    /// signal ends what is left at once.
    pub async fn stop(&mut self, signals: &mut Signals, out: &Output) {
        for role in [Role::Broker, Role::Bookie, Role::Etcd] {
            let of_role = self.children.iter_mut().filter(|c| c.spec.role == role);
            let stopped = join_all(of_role.map(|child| child.stop(out)));
            tokio::select! {
                _ = stopped => {}
                name = signals.next() => {
                    out.note(&format!("{name}: ended at once"));
                    break;
                }
            }
        }
        for child in &mut self.children {
            child.kill().await;
        }
    }
}

/// The addresses of all processes: etcd's two, and two for each broker and each bookie.
fn wanted(plan: &Plan) -> Vec<ListenAddress> {
    let any = ListenAddress::loopback_any_port();
    let mut wanted = vec![any, any, plan.grpc_addr, any];
    let more = usize::from(plan.brokers.saturating_sub(1)) + usize::from(plan.bookies);
    wanted.resize(wanted.len() + 2 * more, any);
    wanted
}

/// Waits until one of the processes has ended; for ever when none runs.
async fn exited(children: &mut [Child]) -> (usize, io::Result<ExitStatus>) {
    let running = children
        .iter_mut()
        .enumerate()
        .filter_map(|(index, child)| {
            let process = child.process.as_mut()?;
            Some(async move { (index, process.wait().await) }.boxed())
        });
    let running: Vec<_> = running.collect();
    if running.is_empty() {
        return std::future::pending().await;
    }
    select_all(running).await.0
}

async fn until(due: Option<Duration>) {
    match due {
        Some(due) => clock::sleep(due.saturating_sub(SystemClock.monotonic())).await,
        None => std::future::pending().await,
    }
}

impl Child {
    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().and_then(tokio::process::Child::id)
    }

    /// Starts the process. It dies with the thread that calls this, which must be the main one.
    fn launch(&mut self) -> Result<(), CliError> {
        let failed = |what: &str, error: io::Error| CliError::failed(format!("{what}: {error}"));
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.map_err(|error| failed(&self.log.display().to_string(), error))?;
        let mut command = Command::new(&self.launcher);
        command
            .arg("dev-child")
            .arg(std::process::id().to_string())
            .arg("--")
            .arg(&self.spec.program)
            .args(&self.spec.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            // Ctrl-C is for this process, which then ends the others in order.
            .process_group(0)
            .kill_on_drop(true);
        let started = command.spawn();
        let mut process = started.map_err(|error| failed(&self.spec.name, error))?;
        let stdout = process.stdout.take();
        self.printed = stdout.map(|stdout| BufReader::new(stdout).lines());
        self.process = Some(process);
        self.began = SystemClock.monotonic();
        self.again_at = None;
        Ok(())
    }

    fn launch_again(&mut self, out: &Output) {
        match self.launch() {
            Ok(()) => {
                let pid = self.pid().unwrap_or_default();
                out.note(&format!("{} started again, pid {pid}", self.spec.name));
            }
            Err(error) => {
                out.note(&format!("{}: {error}", self.spec.name));
                self.plan_again();
            }
        }
    }

    fn plan_again(&mut self) -> Duration {
        let pause = AGAIN_MAX.min(AGAIN_FIRST * (1 << self.failures.min(10)));
        self.failures += 1;
        self.again_at = Some(SystemClock.monotonic() + pause);
        pause
    }

    /// Waits until it says that it serves.
    async fn ready(&mut self) -> Result<(), CliError> {
        let Some(printed) = self.printed.as_mut() else {
            return Err(CliError::failed(format!(
                "{} prints nowhere",
                self.spec.name
            )));
        };
        let greeted = async {
            while let Ok(Some(line)) = printed.next_line().await {
                let greeting: Option<Value> = serde_json::from_str(&line).ok();
                if greeting.is_some_and(|greeting| greeting.get("ready_ms").is_some()) {
                    return true;
                }
            }
            false
        };
        match clock::timeout(READY_MAX, greeted).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.not_ready("ended before it served")),
            Err(_) => Err(self.not_ready("did not serve in time")),
        }
    }

    /// Waits until etcd answers at this address.
    async fn healthy(&mut self, client: SocketAddr) -> Result<(), CliError> {
        let Some(process) = self.process.as_mut() else {
            return Err(CliError::failed("etcd does not run"));
        };
        let answers = async {
            while !etcd::is_healthy(client).await {
                clock::sleep(LOOK).await;
            }
        };
        let ended = tokio::select! {
            answered = clock::timeout(READY_MAX, answers) => answered.err().map(|_| "did not serve in time"),
            _ = process.wait() => Some("ended before it served"),
        };
        ended.map_or(Ok(()), |how| Err(self.not_ready(how)))
    }

    fn not_ready(&self, how: &str) -> CliError {
        let log = self.log.display();
        CliError::failed(format!("{} {how}:\n{}", self.spec.name, tail(&self.log)))
            .advise(format!("the whole log is {log}"))
    }

    fn ended(&mut self, status: io::Result<ExitStatus>, supervise: bool, out: &Output) {
        let how = match status {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        self.process = None;
        self.printed = None;
        let lived = SystemClock.monotonic().saturating_sub(self.began);
        if lived > HEALTHY {
            self.failures = 0;
        }
        let name = &self.spec.name;
        if supervise {
            let name = name.clone();
            let pause = self.plan_again().as_millis();
            out.note(&format!(
                "{name} ended ({how}): starting it again in {pause} ms"
            ));
        } else {
            out.note(&format!("{name} ended ({how}): it stays down"));
        }
    }

    /// Asks the process to end, waits until it has, and does not wait for ever.
    async fn stop(&mut self, out: &Output) {
        let pid = self.pid().and_then(|pid| i32::try_from(pid).ok());
        let Some(pid) = pid.and_then(Pid::from_raw) else {
            return;
        };
        // It may have ended by itself a moment ago.
        let _ = kill_process(pid, Signal::TERM);
        if let Some(process) = self.process.as_mut()
            && clock::timeout(STOP_MAX, process.wait()).await.is_err()
        {
            out.note(&format!("{} did not end in time: killed", self.spec.name));
            self.kill().await;
        }
    }

    async fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // An error means that it has ended already.
            let _ = process.kill().await;
        }
    }
}

/// The end of a log.
fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}
