//! Everything in one process, on one data directory: embedded metadata, one bookie that is called
//! in process instead of over a connection, a broker, and the protocols of the registry. Only
//! wiring is here.

pub mod config;
mod transport;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aquifer_bookie::autorecovery::{self, AutorecoveryConfig};
use aquifer_bookie::{Bookie, service};
use aquifer_ledger::placement::Bookies;
use aquifer_metadata::embedded::{EmbeddedOptions, EmbeddedStore};
use aquifer_runtime::task::TaskGroup;
use aquifer_runtime::telemetry::{Telemetry, TelemetryConfig};
use async_trait::async_trait;

use crate::args::{DEFAULT_URL, StandaloneArgs};
use crate::exit::CliError;
use crate::output::Output;
use crate::roles::auth;
use crate::roles::greeting::Greeting;
use crate::roles::health::Health;
use crate::roles::http::{self, Port};
use crate::roles::loss::report_loss;
use crate::roles::open_files;
use crate::roles::process::{self, Role};
use crate::roles::server::{Parts, Server};
use crate::roles::serving::{self, Storage};
use crate::roles::settings::LedgerConfig;
use crate::roles::standalone::config::StandaloneConfig;
use crate::roles::standalone::transport::InProcess;
use crate::roles::storage::{Seams, local_bookie, open_bookie, part_failed};

/// Runs a server until it is told to end. `began` is when the process did.
pub async fn run(args: StandaloneArgs, began: Duration, out: &Output) -> Result<(), CliError> {
    let loaded = StandaloneConfig::load(&args)?;
    process::run(loaded, args.check_config, began, out).await
}

#[async_trait]
impl Role for StandaloneConfig {
    fn telemetry(&self) -> &TelemetryConfig {
        &self.telemetry
    }

    fn data_dir(&self) -> Option<&Path> {
        Some(&self.data_dir)
    }

    fn prepare(&mut self) {
        let files = self.bookie.open_files_max.into();
        open_files::prepare(&mut self.protocols, files);
    }

    async fn start(
        &self,
        parts: &mut Parts,
        telemetry: &Telemetry,
        out: &Output,
    ) -> Result<Server, CliError> {
        let seams = Seams::real();
        let (authenticates, scraped) = (self.auth.broker.enabled, self.auth.scrape_token()?);
        let health = Health::with_clients(telemetry.clone(), authenticates, scraped);
        let port = http::open(&self.http, health, &seams, &parts.groups.http).await?;
        port.health
            .starting("opening metadata and storage, which replays the journal");
        Bookie::give_up_reserve(&self.bookie);
        // The two that read files start side by side: most of the start is waiting for the disk.
        let opening = async {
            tokio::join!(
                open_metadata(self, &seams, &parts.groups.metadata),
                open_bookie(&self.bookie, &seams, telemetry),
            )
        };
        let (store, bookie) = parts.steps().whole(opening).await;
        parts.store = store.as_ref().ok().cloned();
        parts.bookie = bookie.as_ref().ok().cloned();
        let (store, bookie) = (store?, bookie?);
        port.health.set_bookie(bookie.clone());
        report_loss(&bookie, out)?;
        start_above(self, parts, telemetry, &seams, port, (store, bookie)).await
    }
}

/// Starts what stands on metadata and storage.
async fn start_above(
    config: &StandaloneConfig,
    parts: &mut Parts,
    telemetry: &Telemetry,
    seams: &Seams,
    port: Port,
    (store, bookie): (Arc<EmbeddedStore>, Bookie),
) -> Result<Server, CliError> {
    let groups = &parts.groups;
    let (health, certificates) = (port.health, port.certificates);
    health.starting("starting the broker");
    // The one bookie of this process, called instead of connected to.
    let storage = Storage {
        store,
        transport: Arc::new(InProcess::new(bookie.clone(), &groups.ledger)),
        bookies: Bookies::fixed(vec![local_bookie(&bookie)]),
    };
    let ledger = LedgerConfig::default();
    let cold = (config.broker.cluster.as_str(), &config.cold);
    let memory = (&config.cache, &ledger);
    let log = serving::log_context(storage, memory, cold, seams, telemetry, &groups.ledger)?;
    // No other bookie has copies, so that there is nothing to repair from: only what concerns the
    // bookie itself runs.
    let hosted = AutorecoveryConfig::default();
    let repair = serving::repair_context(Arc::clone(&log.ledgers), telemetry);
    autorecovery::start(&bookie, &repair, &hosted, None, &groups.ledger);
    let tasks = &groups.broker;
    let auth = &config.auth;
    let admin_token = match auth.broker.enabled {
        true => auth::first_token(&*log.ledgers.store, &seams.clock, &config.data_dir).await?,
        false => None,
    };
    let broker = serving::start_broker(&config.broker, log, seams, telemetry, tasks, None).await?;
    let broker = &*parts.broker.insert(broker);
    let tasks = &groups.protocols;
    let (protocols, rest) = serving::protocols(&config.protocols, broker, seams, telemetry, tasks)?;
    let rest = serving::guarded(rest, broker, config.http.listen);
    health.set_broker(broker.clone(), rest);
    let listen = config.bookie_api.listen;
    let tls = certificates.bookie_port(&config.broker.cluster, &config.internal_tls)?;
    let served = service::serve(bookie.clone(), listen, tls, &groups.bookie_api).await;
    let bookie_address = served.map_err(|error| CliError::failed(error.to_string()))?;
    let listeners = serving::serve_protocols(&protocols, broker, &certificates, tasks).await?;
    certificates.watch(telemetry, &groups.http);
    let url = listeners.default_url().unwrap_or_default();
    let data_dir = config.data_dir.display();
    auth.warn_of_plain_text(&config.protocols.open_in_plain_text());
    let greeting = Greeting::new("standalone", format!("serves {url}, data in {data_dir}"))
        .field("bookie", bookie_address.to_string())
        .field("data_dir", data_dir.to_string())
        .next(next_commands(url, admin_token.as_deref()))
        .field("url", url);
    let greeting = match &admin_token {
        Some(path) => greeting.field("admin_token_file", path.display().to_string()),
        None => greeting,
    };
    Ok(Server {
        health,
        http_url: port.url,
        greeting,
    })
}

async fn open_metadata(
    config: &StandaloneConfig,
    seams: &Seams,
    tasks: &TaskGroup,
) -> Result<Arc<EmbeddedStore>, CliError> {
    let path = config.metadata_file();
    let options = EmbeddedOptions {
        cache_bytes: config.cache.metadata_bytes,
        ..EmbeddedOptions::default()
    };
    let (disk, clock) = (Arc::clone(&seams.disk), Arc::clone(&seams.clock));
    EmbeddedStore::open(path.clone(), options, disk, clock, tasks)
        .await
        .map(Arc::new)
        .map_err(|error| part_failed("the metadata store", &path, &error))
}

/// What to type next, with the file of a token where one is needed.
fn next_commands(url: &str, token: Option<&Path>) -> Vec<String> {
    let option = if url == DEFAULT_URL {
        String::new()
    } else {
        format!(" --url {url}")
    };
    let mut lines = Vec::new();
    if let Some(token) = token {
        lines.push(format!(
            "The token of an administrator is in {}",
            token.display()
        ));
    }
    lines.push("Next, in another terminal:".to_owned());
    if let Some(token) = token {
        lines.push(format!("  export AQUIFER_TOKEN_FILE={}", token.display()));
    }
    lines.extend([
        format!("  aquifer produce{option} hello \"first message\""),
        format!("  aquifer consume{option} hello --subscription me"),
        format!("  aquifer topic{option} stats hello"),
    ]);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_name_an_unusual_address() {
        let naming = |url: &str| {
            let lines = next_commands(url, None).into_iter();
            lines
                .filter(|line| line.contains(&format!("--url {url}")))
                .count()
        };
        assert_eq!(naming(DEFAULT_URL), 0);
        assert_eq!(naming("http://127.0.0.1:1"), 3);
    }
}
