//! Real etcd processes on loopback ports and files of their own: one member or several, with TLS
//! and users where wanted; they can be killed, paused and started again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use aquifer_runtime::net::reserve::{Reserved, reserve};
use aquifer_runtime::rng::SystemRng;
use rustix::process::{Pid, Signal, kill_process};

use crate::command::{missing, run};
use crate::http;
use crate::wait::until;

/// Certificates for the members and their clients, in one folder.
#[derive(Debug, Clone)]
pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Makes an authority, and certificates of it for 127.0.0.1 and for a client.
    ///
    /// # Errors
    /// When openssl is missing or fails.
    pub fn create(folder: &Path) -> Result<Certificates> {
        fs::create_dir_all(folder)?;
        let made = Certificates {
            folder: folder.to_owned(),
        };
        made.openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 \
             -keyout ca.key -out ca.pem -subj /CN=test-authority \
             -addext basicConstraints=critical,CA:TRUE -addext keyUsage=keyCertSign",
        )?;
        for name in ["server", "client"] {
            fs::write(
                folder.join("extensions"),
                "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n",
            )?;
            made.openssl(&format!(
                "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
                 -keyout {name}.key -out {name}.csr -subj /CN={name}"
            ))?;
            made.openssl(&format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial \
                 -days 30 -out {name}.pem -extfile extensions"
            ))?;
        }
        Ok(made)
    }

    fn openssl(&self, arguments: &str) -> Result<()> {
        let mut command = Command::new("openssl");
        command.args(arguments.split_whitespace());
        run(command.current_dir(&self.folder)).map(|_| ())
    }

    /// A file of the folder: `ca.pem`, `client.pem`, `client.key`, `server.pem`, `server.key`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// How to start a cluster.
#[derive(Debug, Clone)]
pub struct EtcdOptions {
    /// How many members.
    pub members: usize,
    /// TLS, with certificates of clients required.
    pub certificates: Option<Certificates>,
    /// Further arguments for each member.
    pub arguments: Vec<String>,
}

impl EtcdOptions {
    /// Without TLS.
    pub fn members(members: usize) -> EtcdOptions {
        EtcdOptions {
            members,
            certificates: None,
            arguments: Vec::new(),
        }
    }
}

/// A cluster of etcd. Dropping it kills the members and removes their files.
#[derive(Debug)]
pub struct Etcd {
    folder: tempfile::TempDir,
    options: EtcdOptions,
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    client: Reserved,
    peer: Reserved,
    metrics: Reserved,
    process: Option<Child>,
}

impl Etcd {
    /// Starts a cluster and waits until it serves.
    ///
    /// # Errors
    /// When etcd is missing or does not start.
    pub async fn start(options: EtcdOptions) -> Result<Etcd> {
        let mut members = Vec::with_capacity(options.members);
        for _ in 0..options.members {
            members.push(Member {
                client: reserve(&SystemRng)?,
                peer: reserve(&SystemRng)?,
                metrics: reserve(&SystemRng)?,
                process: None,
            });
        }
        let mut etcd = Etcd {
            folder: tempfile::tempdir()?,
            members,
            options,
        };
        for number in 0..etcd.len() {
            etcd.spawn(number)?;
        }
        etcd.healthy().await?;
        Ok(etcd)
    }

    /// How many members there are.
    #[allow(
        clippy::len_without_is_empty,
        reason = "a cluster without members does not exist"
    )]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// The URLs of all members, for clients.
    pub fn urls(&self) -> Vec<String> {
        (0..self.len()).map(|number| self.url(number)).collect()
    }

    /// The URL of a member.
    pub fn url(&self, number: usize) -> String {
        let scheme = self.scheme();
        format!("{scheme}://{}", self.members[number].client.address())
    }

    /// Where a member listens for clients.
    pub fn address(&self, number: usize) -> String {
        self.members[number].client.address().to_string()
    }

    fn scheme(&self) -> &'static str {
        match self.options.certificates {
            Some(_) => "https",
            None => "http",
        }
    }

    fn spawn(&mut self, number: usize) -> Result<()> {
        let peer = |member: &Member| format!("http://{}", member.peer.address());
        let cluster: Vec<String> = self
            .members
            .iter()
            .enumerate()
            .map(|(number, member)| format!("m{number}={}", peer(member)))
            .collect();
        let member = &self.members[number];
        let log = self.folder.path().join(format!("m{number}.log"));
        let log = File::options().append(true).create(true).open(log)?;
        let mut command = Command::new("etcd");
        command
            .args(["--name", &format!("m{number}")])
            .arg("--data-dir")
            .arg(self.folder.path().join(format!("m{number}")))
            .args(["--listen-client-urls", &self.url(number)])
            .args(["--advertise-client-urls", &self.url(number)])
            .args(["--listen-peer-urls", &peer(member)])
            .args(["--initial-advertise-peer-urls", &peer(member)])
            .args(["--initial-cluster", &cluster.join(",")])
            .args(["--initial-cluster-token", &cluster.concat()])
            .args([
                "--listen-metrics-urls",
                &format!("http://{}", member.metrics.address()),
            ])
            // Half of the defaults: leaders are replaced, and leases end, sooner.
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .args(["--logger", "zap", "--log-outputs", "stderr"])
            .args(&self.options.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(certificates) = &self.options.certificates {
            command
                .arg("--client-cert-auth")
                .args([Path::new("--trusted-ca-file"), &certificates.file("ca.pem")])
                .args([Path::new("--cert-file"), &certificates.file("server.pem")])
                .args([Path::new("--key-file"), &certificates.file("server.key")]);
        }
        let process = command.spawn().map_err(missing("etcd"))?;
        self.members[number].process = Some(process);
        Ok(())
    }

    /// Waits until every member that runs serves reads.
    ///
    /// # Errors
    /// When one ends, or none of this happens in time.
    pub async fn healthy(&mut self) -> Result<()> {
        for number in 0..self.len() {
            let member = &mut self.members[number];
            let Some(process) = &mut member.process else {
                continue;
            };
            let metrics = member.metrics.address().to_string();
            let healthy = until("a healthy member of etcd", || {
                let (ended, metrics) = (process.try_wait(), &metrics);
                async move {
                    if let Some(status) = ended? {
                        bail!("etcd has ended with {status}");
                    }
                    let answer = http::get(metrics, "/health").await.unwrap_or_default();
                    Ok(answer.contains("\"health\":\"true\"").then_some(()))
                }
            });
            let healthy = healthy.await;
            healthy.with_context(|| self.log(number))?;
        }
        Ok(())
    }

    /// Which member leads, once one does.
    ///
    /// # Errors
    /// When none does for a long time.
    pub async fn leader(&self) -> Result<usize> {
        until("a leader of etcd", || async {
            for (number, member) in self.members.iter().enumerate() {
                let metrics = member.metrics().await.unwrap_or_default();
                if metrics
                    .lines()
                    .any(|line| line == "etcd_server_is_leader 1")
                {
                    return Ok(Some(number));
                }
            }
            Ok(None)
        })
        .await
    }

    /// How many proposals a member has applied, those without effect too.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn applied(&self, number: usize) -> Result<u64> {
        let metrics = self.members[number].metrics().await?;
        let mut lines = metrics.lines();
        let applied =
            lines.find_map(|line| line.strip_prefix("etcd_server_proposals_applied_total "));
        Ok(applied.context("etcd counts proposals")?.parse()?)
    }

    /// Kills a member, as `kill -9` does.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self, number: usize) -> Result<()> {
        let process = self.members[number].process.take();
        let mut process = process.context("this member does not run")?;
        process.kill()?;
        process.wait()?;
        Ok(())
    }

    /// Starts a member that was killed, on its files.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart(&mut self, number: usize) -> Result<()> {
        ensure!(self.members[number].process.is_none(), "this member runs");
        self.spawn(number)
    }

    /// Stops a member without ending it; its connections stay.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self, number: usize) -> Result<()> {
        self.signal(number, Signal::STOP)
    }

    /// Lets a paused member go on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&self, number: usize) -> Result<()> {
        self.signal(number, Signal::CONT)
    }

    fn signal(&self, number: usize, signal: Signal) -> Result<()> {
        let process = self.members[number].process.as_ref();
        let process = process.context("this member does not run")?;
        let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("a child has a process id")?, signal)?;
        Ok(())
    }

    /// Runs etcdctl against all members and returns what it prints.
    ///
    /// # Errors
    /// When it is missing or fails.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.urls().join(",")));
        if let Some(certificates) = &self.options.certificates {
            let option =
                |name: &str, file: &str| format!("--{name}={}", certificates.file(file).display());
            command
                .arg(option("cacert", "ca.pem"))
                .arg(option("cert", "client.pem"))
                .arg(option("key", "client.key"));
        }
        run(command.args(arguments))
    }

    /// The last lines that a member has logged.
    pub fn log(&self, number: usize) -> String {
        let path = self.folder.path().join(format!("m{number}.log"));
        let text = fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for number in 0..self.len() {
            // It may have been killed before.
            let _ = self.kill(number);
        }
    }
}

impl Member {
    async fn metrics(&self) -> Result<String> {
        http::get(&self.metrics.address().to_string(), "/metrics").await
    }
}
