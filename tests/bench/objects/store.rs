//! Where objects go: a directory, or versitygw, an S3 server, as a process of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use aquifer_cold::config::StoreConfig;
use aquifer_cold::library;
use aquifer_cold::store::ColdStore;
use aquifer_harness::server::ServerOptions;
use aquifer_harness::wait::until;
use aquifer_runtime::config::env;
use aquifer_runtime::net::reserve::{Reserved, reserve};
use aquifer_runtime::rng::SystemRng;
use tokio::net::TcpStream;

const BUCKET: &str = "bucket";
const KEY: &str = "bench";
const SECRET: &str = "bench-secret";

/// A place for objects; the process of its server ends with it.
pub struct Store {
    pub name: &'static str,
    config: StoreConfig,
    /// Its process and the port of this, if it has one.
    process: Option<(Child, Reserved)>,
}

impl Store {
    /// A directory.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn directory(directory: &Path) -> Result<Store> {
        let path = std::path::absolute(directory.join("store"))?;
        fs::create_dir_all(&path)?;
        let store = StoreConfig {
            store: format!("file://{}", path.display()),
            ..StoreConfig::default()
        };
        Ok(Store {
            name: "objects in a directory",
            config: store,
            process: None,
        })
    }

    /// An S3 server on this machine.
    ///
    /// # Errors
    /// When it is not installed, or does not start.
    pub async fn s3(directory: &Path) -> Result<Store> {
        let program = program()?;
        let directory = std::path::absolute(directory)?;
        let served = directory.join("s3");
        fs::create_dir_all(served.join(BUCKET))?;
        let (key, secret) = (directory.join("key"), directory.join("secret"));
        fs::write(&key, KEY)?;
        fs::write(&secret, SECRET)?;
        let port = reserve(&SystemRng)?;
        let address = port.address();
        let process = Command::new(&program)
            .args(["--port", &address.to_string()])
            .args(["--access", KEY, "--secret", SECRET])
            .args(["--keep-alive", "--quiet", "posix"])
            .arg(&served)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let store = Store {
            name: "objects on S3",
            config: StoreConfig {
                store: format!("s3://{BUCKET}/bench"),
                endpoint: format!("http://{address}"),
                allow_http: true,
                access_key_file: key,
                secret_key_file: secret,
                ..StoreConfig::default()
            },
            process: Some((process, port)),
        };
        until("the S3 server to listen", || async {
            Ok(TcpStream::connect(address).await.is_ok().then_some(()))
        })
        .await?;
        Ok(store)
    }

    /// Whether it is a directory.
    pub fn is_local(&self) -> bool {
        self.process.is_none()
    }

    /// The place as the library opens it.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(&self) -> Result<Arc<dyn ColdStore>> {
        Ok(library::open(&self.config.store, &self.config)?)
    }

    /// A server that puts objects here, drops copies at once, and does not compress.
    ///
    /// # Errors
    /// When a path is no text.
    pub fn options(&self) -> Result<ServerOptions> {
        let config = &self.config;
        let text = |path: &Path| path.to_str().map(str::to_owned).context("a path is a text");
        let environment = [
            ("ENDPOINT", config.endpoint.clone()),
            ("ALLOW_HTTP", config.allow_http.to_string()),
            ("ACCESS_KEY_FILE", text(&config.access_key_file)?),
            ("SECRET_KEY_FILE", text(&config.secret_key_file)?),
            ("LAG_MS", "0".to_owned()),
            ("COMPRESSION", "none".to_owned()),
        ];
        let environment = environment
            .into_iter()
            .filter(|(_, value)| !value.is_empty());
        let mut environment: Vec<(String, String)> = environment
            .map(|(name, value)| (format!("AQUIFER_COLD_{name}"), value))
            .collect();
        let often = ("AQUIFER_BROKER_HOUSEKEEPING_MS", "200");
        environment.push((often.0.to_owned(), often.1.to_owned()));
        Ok(ServerOptions {
            arguments: vec!["--cold-store".to_owned(), config.store.clone()],
            environment,
            ..ServerOptions::default()
        })
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some((process, _)) = &mut self.process {
            // It may have ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// The S3 server: `VERSITYGW`, or where `go install` puts it.
fn program() -> Result<PathBuf> {
    let installed = || {
        let go = env("GOPATH").map(PathBuf::from);
        let go = go.or_else(|| Some(PathBuf::from(env("HOME")?).join("go")));
        Some(go?.join("bin/versitygw"))
    };
    let program = env("VERSITYGW").map(PathBuf::from).or_else(installed);
    let program = program.context("neither VERSITYGW nor HOME is set")?;
    ensure!(
        program.is_file(),
        "{} is not there: go install github.com/versity/versitygw/cmd/versitygw@latest",
        program.display()
    );
    Ok(program)
}
