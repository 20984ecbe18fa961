//! What security costs: a server with TLS, authentication and authorization beside one without, in
//! alternating runs.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use aquifer_client::{Client, ClientTlsConfig};
use aquifer_harness::command;
use aquifer_harness::jwt::{ALIAS, Issuer};
use aquifer_harness::server::{Server, ServerOptions, binary};
use aquifer_runtime::clock::{Clock, SystemClock};

use crate::Suite;
use crate::load::Load;
use crate::row::{Bound, Row};

/// Runs of each; the median counts.
const RUNS: usize = 3;
/// Connections that are opened at once when they are counted.
const OPENING: usize = 8;
/// Connections that are open and idle when memory is compared.
const IDLE: usize = 1_000;

/// The subject of the JSON Web Token.
const SUBJECT: &str = "load";
/// Longer than the part takes.
const LIFETIME: Duration = Duration::from_secs(12 * 3_600);

/// A server that demands TLS and a token.
struct Secured {
    server: Server,
    tls: ClientTlsConfig,
    token: String,
    /// The credentials that loads show: with a token of the server, and with one of an issuer.
    arguments: Vec<String>,
    of_issuer: Vec<String>,
}

impl Secured {
    async fn start(directory: &Path) -> Result<Secured> {
        let tls = directory.join("tls");
        let mut init = Command::new(binary());
        init.args(["tls", "init", "--dir"]).arg(&tls);
        command::run(&mut init)?;
        let file = |name: &str| tls.join(name).to_string_lossy().into_owned();
        let data = directory.join("secured");
        let issuer = Issuer::create(directory)?;
        let config = directory.join("secured.toml");
        std::fs::write(&config, issuer.settings())?;
        let config = config.to_string_lossy().into_owned();
        let signed = directory.join("load.jwt");
        issuer.put_token(&signed, SUBJECT, LIFETIME)?;
        let options = ServerOptions {
            arguments: vec!["--auth".to_owned(), "--config".to_owned(), config],
            environment: vec![
                (
                    "AQUIFER_PROTOCOLS_GRPC_TLS_CERT_FILE".to_owned(),
                    file("server.pem"),
                ),
                (
                    "AQUIFER_PROTOCOLS_GRPC_TLS_KEY_FILE".to_owned(),
                    file("server.key"),
                ),
            ],
            ..ServerOptions::default()
        };
        let server = Server::start(&data, options).await?;
        let admin = data.join("admin.token");
        let shown = |token: &Path| {
            vec![
                format!("--tls-ca-file={}", file("ca.pem")),
                format!("--token-file={}", token.display()),
            ]
        };
        let arguments = shown(&admin);
        let mut grant = Command::new(binary());
        grant
            .args([
                "grant",
                "add",
                &format!("jwt:{ALIAS}:{SUBJECT}"),
                "developer",
            ])
            .args(["--tenant", "public", "--url"])
            .arg(server.url().replace("http://", "https://"))
            .args(&arguments);
        command::run(&mut grant)?;
        Ok(Secured {
            server,
            token: std::fs::read_to_string(&admin)?.trim().to_owned(),
            of_issuer: shown(&signed),
            arguments,
            tls: ClientTlsConfig {
                ca_file: Some(tls.join("ca.pem")),
                ..ClientTlsConfig::default()
            },
        })
    }

    fn url(&self) -> String {
        self.server.url().replace("http://", "https://")
    }

    fn client(&self) -> Result<Client> {
        let builder = Client::builder().url(self.url()).tls(self.tls.clone());
        Ok(builder.token(self.token.as_str()).build()?)
    }
}

impl Suite {
    /// Throughput with and without, new connections, and what an idle one costs.
    pub(crate) async fn secured(&mut self) -> Result<()> {
        let mut secured = Secured::start(&self.directory).await?;
        let result = self.measure_secured(&secured).await;
        secured.server.stop()?;
        result
    }

    async fn measure_secured(&mut self, secured: &Secured) -> Result<()> {
        let until = self.messages(2_000_000);
        let plain = self.load(until, 10_000);
        let guarded =
            |arguments: &[String]| Load::new(secured.url(), until, 10_000).credentials(arguments);
        let (own, signed) = (guarded(&secured.arguments), guarded(&secured.of_issuer));
        let mut rates = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..RUNS {
            for (load, rates) in [&plain, &own, &signed].into_iter().zip(&mut rates) {
                rates.push(load.produce().await?.complete()?.messages_per_second);
                self.removed().await;
            }
        }
        let [without, own, signed] = rates.map(|mut rates| median(&mut rates));
        for (name, with) in [("a token", own), ("a JSON Web Token", signed)] {
            let row = Row::new(
                &format!("publish with TLS, {name} and authorization"),
                100.0 * with / without,
                "% of plaintext",
                Bound::AtLeast,
                85.0,
            );
            self.rows.push(row.note(format!(
                "{with:.0} and {without:.0} msg/s, medians of {RUNS}"
            )));
        }
        self.new_connections(secured).await?;
        self.idle_connections(secured).await
    }

    /// Clients that connect, are authenticated by one call, and go.
    async fn new_connections(&mut self, secured: &Secured) -> Result<()> {
        let time = Duration::from_secs(if self.quick { 1 } else { 5 });
        let (began, opened) = (SystemClock.monotonic(), AtomicU64::new(0));
        let opening = (0..OPENING).map(|_| async {
            while SystemClock.monotonic() < began + time {
                secured.client()?.connect().await?;
                opened.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
        futures::future::try_join_all(opening).await?;
        let took = SystemClock.monotonic().saturating_sub(began);
        let row = Row::new(
            "new connections with TLS and a token",
            opened.into_inner() as f64 / took.as_secs_f64(),
            "a second",
            Bound::AtLeast,
            500.0,
        );
        self.rows.push(row.note("the client shares the machine"));
        Ok(())
    }

    /// What the server has more of when connections are open.
    async fn idle_connections(&mut self, secured: &Secured) -> Result<()> {
        let before = secured.server.resident_bytes()?;
        let mut open = Vec::new();
        for _ in 0..if self.quick { IDLE / 10 } else { IDLE } {
            let client = secured.client()?;
            client.connect().await?;
            open.push(client);
        }
        let more = secured.server.resident_bytes()?.saturating_sub(before);
        ensure!(!open.is_empty(), "connections are open");
        let row = Row::new(
            "memory of an idle connection with TLS and a token",
            more as f64 / open.len() as f64 / 1e3,
            "KB",
            Bound::AtMost,
            100.0,
        );
        self.rows
            .push(row.note(format!("{} connections", open.len())));
        Ok(())
    }
}

fn median(rates: &mut [f64]) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or(0.0)
}
