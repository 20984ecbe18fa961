//! `aquifer cluster`: shows brokers, bundles, bookies and ledgers, and moves bundles.

pub mod check;
mod inventory;
mod load;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use aquifer_client::admin::{Admin, BrokerInfo, BundleInfo};
use aquifer_model::load::LoadReport;
use serde_json::{Map, Value, json};

use crate::args::{ClusterCommand, ClusterToolArgs, SourceArgs};
use crate::connect::Connect;
use crate::exit::CliError;
use crate::first_token;
use crate::output::{Output, Table};
use crate::private_file::NewFile;
use crate::tool;

/// Runs the command.
///
/// # Errors
/// When the broker refuses it or cannot be reached.
pub async fn run(args: ClusterToolArgs, connect: &Connect, out: &Output) -> Result<(), CliError> {
    match args.command {
        // These ask no broker.
        ClusterCommand::InitAuth { to_file, source } => init_auth(&to_file, &source, out).await,
        ClusterCommand::Check {
            bookies,
            brokers,
            wait,
            source,
        } => {
            let expected = check::Expected { bookies, brokers };
            check::run(&expected, wait, &source, out).await
        }
        command => ask(command, connect, out).await,
    }
}

/// Runs a command that a broker carries out.
async fn ask(command: ClusterCommand, connect: &Connect, out: &Output) -> Result<(), CliError> {
    let client = connect.client()?;
    client.connect().await?;
    let admin = client.admin();
    match command {
        ClusterCommand::InitAuth { .. } | ClusterCommand::Check { .. } => Ok(()),
        ClusterCommand::Status { namespace } => status(&admin, &namespace.to_string(), out).await,
        ClusterCommand::Brokers => brokers(&admin, connect, out).await,
        ClusterCommand::Bookies { count_ledgers } => {
            inventory::bookies(&admin, count_ledgers, out).await
        }
        ClusterCommand::Ledgers { topic, ledger } => {
            inventory::ledgers(&admin, topic, ledger, out).await
        }
        ClusterCommand::Bundles { namespace } => {
            let namespace = namespace.to_string();
            let bundles = admin.list_bundles(&namespace).await?;
            let brokers = admin.list_brokers().await?;
            let reports = load::reports(connect, &brokers).await;
            show_bundles(&namespace, &bundles, &brokers, &reports, out)
        }
        ClusterCommand::Unload { namespace, bundle } => {
            let namespace = namespace.to_string();
            let bundles = match bundle {
                Some(bundle) => vec![bundle.to_string()],
                None => {
                    let all = admin.list_bundles(&namespace).await?.into_iter();
                    // A bundle without an owner does not move.
                    all.filter(|b| b.broker.is_some())
                        .map(|b| b.bundle)
                        .collect()
                }
            };
            let mut table = Table::new(["bundle", "moves to", "url"]);
            for bundle in bundles {
                transfer(&admin, &namespace, &bundle, None, &mut table, out).await?;
            }
            shown(&table, out)
        }
        ClusterCommand::Transfer {
            namespace,
            bundle,
            to,
        } => {
            let mut table = Table::new(["bundle", "moves to", "url"]);
            let (namespace, bundle) = (namespace.to_string(), bundle.to_string());
            transfer(&admin, &namespace, &bundle, Some(&to), &mut table, out).await?;
            shown(&table, out)
        }
        ClusterCommand::Split {
            namespace,
            bundle,
            at,
        } => {
            let (namespace, bundle) = (namespace.to_string(), bundle.to_string());
            let parts = admin.split_bundle(&namespace, &bundle, at).await?;
            match out.is_json() {
                true => out.object(&json!({"namespace": namespace, "bundles": parts})),
                false => out.line(format!("{bundle} is {} now", parts.join(" and "))),
            }
        }
    }
}

/// Makes the token of the administrator in metadata.
async fn init_auth(to_file: &Path, source: &SourceArgs, out: &Output) -> Result<(), CliError> {
    let cluster = tool::named_cluster(source)?.ok_or_else(|| {
        CliError::usage("no cluster is named").advise(
            "give --metadata etcd://HOST:PORT; a standalone server makes its token itself when it \
             starts with --auth",
        )
    })?;
    let file = NewFile::create(to_file)?;
    let shown = to_file.display();
    let save = |token: &str| file.fill(token).map_err(io::Error::other);
    if !first_token::make(&cluster, save).await? {
        let message = format!("cluster {} has a token of its administrator", cluster.name);
        return Err(CliError::failed(message)
            .advise("use the one that was written then; `aquifer token rotate` replaces it"));
    }
    match out.is_json() {
        true => out.object(&json!({"principal": "token:admin", "file": to_file})),
        false => out.line(format!(
            "token for token:admin, who may do everything, written to {shown} (0600)"
        )),
    }
}

async fn transfer(
    admin: &Admin,
    namespace: &str,
    bundle: &str,
    to: Option<&str>,
    table: &mut Table,
    out: &Output,
) -> Result<(), CliError> {
    let (broker, url) = admin.transfer_bundle(namespace, bundle, to).await?;
    if out.is_json() {
        let object =
            json!({"namespace": namespace, "bundle": bundle, "broker": broker, "url": url});
        return out.object(&object);
    }
    table.row([bundle.to_owned(), broker, url]);
    Ok(())
}

async fn brokers(admin: &Admin, connect: &Connect, out: &Output) -> Result<(), CliError> {
    let own = ["broker", "url", "version", "state", "loaded bundles"];
    let mut table = Table::new(own.into_iter().chain(load::COLUMNS));
    let brokers = admin.list_brokers().await?;
    let reports = load::reports(connect, &brokers).await;
    for broker in brokers {
        let report = reports.get(&broker.broker);
        let load = report.map(|report| &report.total);
        let bundles = report.map(|report| report.bundles.len());
        if out.is_json() {
            let listeners = broker.listeners.into_iter();
            let listeners = listeners.map(|(name, url)| (name, Value::String(url)));
            let listeners: Map<String, Value> = listeners.collect();
            out.object(&json!({
                "broker": broker.broker,
                "url": broker.url,
                "listeners": listeners,
                "version": broker.version,
                "draining": broker.draining,
                "loaded_bundles": bundles,
                "load": load::object(load),
            }))?;
            continue;
        }
        let state = if broker.draining {
            "draining"
        } else {
            "serving"
        };
        let bundles = bundles.map_or_else(|| "-".to_owned(), |count| count.to_string());
        let at = shown_listeners(&broker);
        let own = [broker.broker, at, broker.version, state.to_owned(), bundles];
        table.row(own.into_iter().chain(load::cells(load)));
    }
    shown(&table, out)
}

fn show_bundles(
    namespace: &str,
    bundles: &[BundleInfo],
    brokers: &[BrokerInfo],
    reports: &BTreeMap<String, LoadReport>,
    out: &Output,
) -> Result<(), CliError> {
    let own = ["bundle", "broker", "url", "epoch"];
    let mut table = Table::new(own.into_iter().chain(load::COLUMNS));
    let load_of = |bundle: &BundleInfo| {
        let report = reports.get(bundle.broker.as_ref()?)?;
        let mut all = report.bundles.iter();
        let found = all.find(|reported| {
            reported.namespace.to_string() == namespace
                && reported.range.to_string() == bundle.bundle
        });
        found.map(|reported| &reported.load)
    };
    for bundle in bundles {
        let load = load_of(bundle);
        if out.is_json() {
            out.object(&json!({
                "bundle": bundle.bundle,
                "broker": bundle.broker,
                "url": bundle.url,
                "epoch": bundle.epoch,
                "load": load::object(load),
            }))?;
            continue;
        }
        let url = match &bundle.broker {
            None => "-".to_owned(),
            Some(_) if is_orphaned(bundle, brokers) => "gone".to_owned(),
            Some(_) => shown_url(bundle.url.clone().unwrap_or_default()),
        };
        let own = [
            bundle.bundle.clone(),
            bundle.broker.clone().unwrap_or_else(|| "none".to_owned()),
            url,
            bundle.epoch.to_string(),
        ];
        table.row(own.into_iter().chain(load::cells(load)));
    }
    shown(&table, out)
}

async fn status(admin: &Admin, namespace: &str, out: &Output) -> Result<(), CliError> {
    let brokers = admin.list_brokers().await?;
    let bundles = admin.list_bundles(namespace).await?;
    let mut owned: BTreeMap<&str, u64> = BTreeMap::new();
    let (mut unowned, mut orphaned) = (0u64, 0u64);
    for bundle in &bundles {
        match &bundle.broker {
            Some(_) if is_orphaned(bundle, &brokers) => orphaned += 1,
            Some(broker) => *owned.entry(broker).or_default() += 1,
            None => unowned += 1,
        }
    }
    let count = |id: &str| owned.get(id).copied().unwrap_or_default();
    if out.is_json() {
        let brokers: Vec<Value> = brokers
            .iter()
            .map(|broker| {
                json!({
                    "broker": broker.broker,
                    "url": broker.url,
                    "draining": broker.draining,
                    "bundles": count(&broker.broker),
                })
            })
            .collect();
        return out.object(&json!({
            "namespace": namespace,
            "brokers": brokers,
            "bundles": bundles.len(),
            "never_used": unowned,
            "owner_gone": orphaned,
        }));
    }
    out.line(format!(
        "{namespace}: {} bundles, {unowned} never used, {orphaned} whose broker is gone",
        bundles.len()
    ))?;
    let mut table = Table::new(["broker", "url", "bundles"]);
    for broker in &brokers {
        let bundles = count(&broker.broker).to_string();
        table.row([
            broker.broker.clone(),
            shown_url(broker.url.clone()),
            bundles,
        ]);
    }
    shown(&table, out)
}

/// Whether the owner of a bundle is gone. That of a standalone server has no address, and is there.
fn is_orphaned(bundle: &BundleInfo, brokers: &[BrokerInfo]) -> bool {
    let is_owner = |known: &BrokerInfo| Some(&known.broker) == bundle.broker.as_ref();
    bundle.url.is_none() && !brokers.iter().any(is_owner)
}

/// The addresses of a broker: that of the listener which was asked, and the others by name.
fn shown_listeners(broker: &BrokerInfo) -> String {
    let others = broker
        .listeners
        .iter()
        .filter(|(_, url)| *url != broker.url)
        .map(|(name, url)| format!("{name}={url}"));
    let own = (!broker.url.is_empty()).then(|| broker.url.clone());
    let all: Vec<String> = own.into_iter().chain(others).collect();
    shown_url(all.join(" "))
}

/// A standalone server is where it was asked, and has no other address.
fn shown_url(url: String) -> String {
    match url.is_empty() {
        true => "standalone".to_owned(),
        false => url,
    }
}

fn shown(table: &Table, out: &Output) -> Result<(), CliError> {
    match out.is_json() {
        true => Ok(()),
        false => out.table(table),
    }
}
