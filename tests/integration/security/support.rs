//! A server that demands tokens, its users, and tools that run beside a test.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, MutexGuard};

use anyhow::{Context, Result, bail, ensure};
use aquifer_harness::http;
use aquifer_harness::server::{Server, ServerOptions, binary};
use aquifer_harness::wait::until;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A server that demands tokens, and where the files of its users are.
pub struct Secured {
    pub server: Server,
    folder: TempDir,
}

impl Secured {
    pub async fn start() -> Result<Secured> {
        Secured::start_with("").await
    }

    /// With this file of settings.
    pub async fn start_with(config: &str) -> Result<Secured> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("aquifer.toml");
        fs::write(&path, config)?;
        let options = ServerOptions {
            arguments: vec!["--auth".to_owned(), "--config".to_owned(), text(&path)],
            environment: vec![(
                "AQUIFER_TELEMETRY_LOG_FILTER".to_owned(),
                "debug".to_owned(),
            )],
            ..ServerOptions::default()
        };
        let server = Server::start(&folder.path().join("data"), options).await?;
        Ok(Secured { server, folder })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The administrator's token, which the first start has made.
    pub fn admin(&self) -> PathBuf {
        self.server.data_dir().join("admin.token")
    }

    pub fn command(&self, token: Option<&Path>, words: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(words)
            .env("AQUIFER_URL", self.server.url())
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env_remove("AQUIFER_TOKEN_FILE")
            .stdin(Stdio::null());
        if let Some(token) = token {
            command.env("AQUIFER_TOKEN_FILE", token);
        }
        command
    }

    pub fn run(&self, token: Option<&Path>, words: &[&str]) -> Result<Output> {
        Ok(self.command(token, words).output()?)
    }

    /// What a command prints that must succeed.
    pub fn succeeded(&self, token: &Path, words: &[&str]) -> Result<String> {
        let output = self.run(Some(token), words)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{words:?}: {stderr}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What a command says that must be refused.
    pub fn refused(&self, token: Option<&Path>, words: &[&str]) -> Result<String> {
        let output = self.run(token, words)?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(5), "{words:?}: {output:?}");
        Ok(stderr)
    }

    pub fn as_admin(&self, words: &[&str]) -> Result<String> {
        self.succeeded(&self.admin(), words)
    }

    /// Makes a tenant with a namespace, and a token of it.
    pub fn tenant(&self, tenant: &str) -> Result<PathBuf> {
        self.as_admin(&["tenant", "create", tenant])?;
        self.as_admin(&["namespace", "create", &format!("{tenant}/shop")])?;
        let file = self.path(&format!("{tenant}.token"));
        let path = text(&file);
        let words = [
            "token",
            "create",
            "app",
            "--tenant",
            tenant,
            "--to-file",
            &path,
        ];
        self.as_admin(&words)?;
        Ok(file)
    }

    /// The id of a token that is in a file.
    pub fn id_of(&self, token: &Path) -> Result<String> {
        let shown = self.run(
            None,
            &["token", "inspect", &text(token), "--output", "json"],
        )?;
        ensure!(shown.status.success(), "{shown:?}");
        let shown: serde_json::Value = serde_json::from_slice(&shown.stdout)?;
        Ok(shown["id"].as_str().context("an id")?.to_owned())
    }
}

pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A tool that runs beside the test, and ends with it.
pub struct Tool {
    child: Mutex<Child>,
    pub out: PathBuf,
}

impl Drop for Tool {
    fn drop(&mut self) {
        let mut child = self.child();
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Tool {
    pub fn start(secured: &Secured, name: &str, token: &Path, words: &[&str]) -> Result<Tool> {
        let out = secured.path(name);
        let child = secured
            .command(Some(token), words)
            .stdin(Stdio::piped())
            .stdout(File::create(&out)?)
            .stderr(File::create(out.with_extension("err"))?)
            .spawn()?;
        let child = Mutex::new(child);
        Ok(Tool { child, out })
    }

    pub fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().expect("no holder panics")
    }

    /// Sends it a line, unless it has ended.
    pub fn tell(&self, line: &str) {
        if let Some(stdin) = self.child().stdin.as_mut() {
            let _ = writeln!(stdin, "{line}");
        }
    }

    pub fn said(&self) -> String {
        fs::read_to_string(self.out.with_extension("err")).unwrap_or_default()
    }

    pub fn status(&self) -> Result<Option<ExitStatus>> {
        Ok(self.child().try_wait()?)
    }

    pub async fn prints(&self, what: &str) -> Result<()> {
        until(what, async || {
            if fs::read_to_string(&self.out)?.contains(what) {
                return Ok(Some(()));
            }
            match self.status()? {
                Some(status) => bail!("it ended with {status}: {}", self.said()),
                None => Ok(None),
            }
        })
        .await
    }
}

/// The metrics, for which a server that demands tokens wants one.
pub async fn metrics(server: &Server, token: &str) -> Result<String> {
    let bare = http::get(&server.http(), "/metrics").await?;
    ensure!(bare.starts_with("HTTP/1.0 401"), "{bare}");
    let mut stream = TcpStream::connect(server.http()).await?;
    let header = format!("Host: localhost\r\nAuthorization: Bearer {token}");
    let request = format!("GET /metrics HTTP/1.0\r\n{header}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    Ok(answer)
}
