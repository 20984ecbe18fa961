//! A cluster with TLS everywhere but at etcd, and with authentication: certificates that are
//! renewed under faults, and clients whose tokens are good for seconds.
//!
//! Tokens are those of an issuer of JSON Web Tokens. A task renews the files that clients read all
//! the time, so that every session that lasts outlives its token; [`Secured::expire`] ends all of
//! them at once.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aquifer_client::security::{Allows, GrantScope, NewGrant};
use aquifer_client::{Client, ClientTlsConfig, ErrorKind};
use aquifer_harness::command;
use aquifer_harness::jwt::{ALIAS, Issuer};
use aquifer_harness::server::binary;
use aquifer_runtime::clock::{Clock, SystemClock, sleep};
use aquifer_runtime::task::TaskGroup;

/// Whose token this program shows: a super-user.
const ADMIN: &str = "admin";
/// Whose token the processes show that consume: it has a grant.
const CONSUMER: &str = "consumer";
/// How long a token is good; brokers allow 30 seconds more.
const LIFETIME: Duration = Duration::from_secs(10);
/// How often a file gets another one.
const RENEWED: Duration = Duration::from_secs(3);
/// How soon every broker must have taken in the grant.
const GRANTED: Duration = Duration::from_secs(120);

/// The files with the tokens of clients.
struct Tokens {
    issuer: Issuer,
    folder: PathBuf,
    /// Held by the one that writes: an older token must not come behind a newer one.
    writing: Mutex<()>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

impl Tokens {
    fn file(&self, subject: &str) -> PathBuf {
        self.folder.join(format!("{subject}.jwt"))
    }

    /// Gives each file another token.
    fn renew(&self) -> Result<()> {
        let _writing = self.writing.lock().expect("no holder panics");
        for subject in [ADMIN, CONSUMER] {
            let file = self.file(subject);
            self.issuer.put_token(&file, subject, LIFETIME)?;
        }
        Ok(())
    }
}

/// See the module.
#[derive(Debug)]
pub struct Secured {
    folder: PathBuf,
    /// The name of the cluster, and where its processes are.
    cluster: String,
    hosts: Vec<String>,
    tokens: Arc<Tokens>,
    _tasks: TaskGroup,
}

impl Secured {
    /// Makes certificates for a cluster on these hosts, and tokens. Within a runtime.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn create(folder: &Path, cluster: &str, hosts: Vec<String>) -> Result<Secured> {
        let folder = folder.join("secured");
        fs::create_dir_all(&folder)?;
        let tokens = Arc::new(Tokens {
            issuer: Issuer::create(&folder)?,
            folder: folder.clone(),
            writing: Mutex::default(),
        });
        let tasks = TaskGroup::new("tokens");
        let secured = Secured {
            folder,
            cluster: cluster.to_owned(),
            hosts,
            tokens: Arc::clone(&tokens),
            _tasks: tasks.clone(),
        };
        secured.certify(&[])?;
        tokens.renew()?;
        tasks.spawn("tokens", async move {
            loop {
                sleep(RENEWED).await;
                if let Err(error) = tokens.renew() {
                    eprintln!("    tokens are not renewed: {error:#}");
                }
            }
        });
        Ok(secured)
    }

    fn certify(&self, more: &[&str]) -> Result<()> {
        let mut init = Command::new(binary());
        init.args(["tls", "init", "--cluster", &self.cluster, "--dir"])
            .arg(self.folder.join("tls"))
            .args(more);
        for host in &self.hosts {
            init.args(["--host", host]);
        }
        command::run(&mut init).map(drop)
    }

    /// Makes all certificates again. Processes find them by themselves.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn renew_certificates(&self) -> Result<()> {
        self.certify(&["--renew"])
    }

    /// Refuses every token that is in use; the files of clients have others.
    ///
    /// # Errors
    /// When no broker does it.
    pub async fn expire(&self, client: &Client) -> Result<()> {
        // Claims have whole seconds: what the files get from the next one on is good. A client that
        // found one from before would be refused for good.
        let now_ms = SystemClock.wall_ms();
        let next_ms = (now_ms / 1_000 + 1) * 1_000;
        while SystemClock.wall_ms() < next_ms {
            sleep(Duration::from_millis(next_ms - now_ms)).await;
        }
        self.tokens.renew()?;
        for subject in [ADMIN, CONSUMER] {
            let principal = format!("jwt:{ALIAS}:{subject}");
            let security = client.security();
            let revoked = security.revoke_principal(&principal, Some(next_ms - 1));
            revoked.await?;
        }
        Ok(())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join("tls").join(name)
    }

    /// The authority that clients believe.
    pub fn ca_file(&self) -> PathBuf {
        self.file("ca.pem")
    }

    /// The token of the processes that consume.
    pub fn consumer_token(&self) -> PathBuf {
        self.tokens.file(CONSUMER)
    }

    /// What a process of a role has in its settings besides others.
    pub fn settings(&self, role: &str) -> String {
        let file = |name: &str| self.file(name).display().to_string();
        let internal = format!(
            "[internal_tls]\ncert_file = \"{}\"\nkey_file = \"{}\"\nca_file = \"{}\"\n",
            file(&format!("{role}.pem")),
            file(&format!("{role}.key")),
            file("ca.pem"),
        );
        if role != "broker" {
            return internal;
        }
        format!(
            "{internal}[protocols.grpc.tls]\ncert_file = \"{}\"\nkey_file = \"{}\"\n\
             client_ca_file = \"{}\"\nclient_certificates = \"optional\"\n\
             [auth]\nsuper_users = [\"jwt:{ALIAS}:{ADMIN}\"]\n{}",
            file("server.pem"),
            file("server.key"),
            file("ca.pem"),
            self.tokens.issuer.settings(),
        )
    }

    /// Writes the settings of tools that reach bookies; says where.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn tool_settings(&self) -> Result<PathBuf> {
        let file = self.folder.join("tool.toml");
        fs::write(&file, self.settings("tool"))?;
        Ok(file)
    }

    /// A client that shows the token of a file.
    fn client_with(&self, urls: &[String], token: PathBuf) -> Result<Client> {
        let tls = ClientTlsConfig {
            ca_file: Some(self.ca_file()),
            ..ClientTlsConfig::default()
        };
        let builder = Client::builder().urls(urls).tls(tls).token_file(token);
        Ok(builder.build()?)
    }

    /// A client that may do everything.
    ///
    /// # Errors
    /// When its settings are refused.
    pub fn client(&self, urls: &[String]) -> Result<Client> {
        self.client_with(urls, self.tokens.file(ADMIN))
    }

    /// Lets the processes that consume do so, and waits until every broker knows.
    ///
    /// # Errors
    /// When a broker does not.
    pub async fn admit(
        &self,
        urls: &[String],
        mut meanwhile: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let (clock, admin) = (SystemClock, self.client(urls)?);
        let started = clock.monotonic();
        let is_late = || clock.monotonic() - started > GRANTED;
        loop {
            meanwhile()?;
            let grant = NewGrant {
                principal: format!("jwt:{ALIAS}:{CONSUMER}"),
                allows: Allows::Role("developer".to_owned()),
                scope: GrantScope::Tenant("public".to_owned()),
                subscriptions: None,
                lifetime: None,
            };
            match admin.security().add_grant(grant).await {
                Ok(_) => break,
                Err(error) if is_late() => return Err(error).context("granting"),
                Err(_) => sleep(Duration::from_millis(200)).await,
            }
        }
        for url in urls {
            let client = self.client_with(std::slice::from_ref(url), self.consumer_token())?;
            loop {
                meanwhile()?;
                // What does not exist is told apart from what is not allowed with a grant only.
                let stats = client.admin().topic_stats("public/default/none").await;
                if stats.is_err_and(|error| error.kind() == ErrorKind::NotFound) {
                    break;
                }
                ensure!(!is_late(), "{url} does not know of the grant");
                sleep(Duration::from_millis(200)).await;
            }
        }
        Ok(())
    }
}
