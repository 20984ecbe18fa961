//! What dashboards and alerts look at is there in a server of one process, and in each process of a
//! cluster, that has just started: an alert on a rate would miss the first event of a series that
//! begins with it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use aquifer_harness::cluster::Cluster;
use aquifer_harness::http::get;
use aquifer_harness::server::{Server, ServerOptions, binary};
use aquifer_harness::wait::until;

use crate::cluster::signals::Role;

/// How names begin that brokers alone have.
const OF_BROKERS: [&str; 4] = [
    "aquifer_broker_",
    "aquifer_cold_",
    "aquifer_grpc_",
    "aquifer_log_",
];
/// How names begin that bookies alone have.
const OF_BOOKIES: &str = "aquifer_bookie_";
/// How names begin that processes have which repair: bookies, and `aquifer autorecovery`.
const OF_REPAIR: &str = "aquifer_repair_";
/// What a process shows that audits the cluster or repairs it, once it has looked at the cluster.
const LOOKED_AT: [&str; 6] = [
    "aquifer_metadata_quota_bytes",
    "aquifer_metadata_used_bytes",
    "aquifer_repair_bookies_away",
    "aquifer_repair_paused",
    "aquifer_repair_rate_bytes_per_second",
    "aquifer_repair_under_replicated_ledgers",
];
/// What a server of one process does not have, besides what an audit shows.
const OF_CLUSTERS: [&str; 4] = [
    "aquifer_metadata_lease_remaining_seconds",
    "aquifer_metadata_watch_restarts_total",
    "aquifer_tls_certificate_expires_seconds",
    "aquifer_tls_reloads_total",
];
/// What is shown once it was measured, as backlogs every half minute.
const MEASURED: [&str; 16] = [
    "aquifer_bookie_removing_bytes",
    "aquifer_bookie_store_bytes",
    "aquifer_broker_backlog_age_seconds_max",
    "aquifer_broker_backlog_messages",
    "aquifer_broker_backlog_messages_max",
    "aquifer_broker_balance_spread_ratio",
    "aquifer_broker_namespace_backlog_age_seconds",
    "aquifer_broker_namespace_backlog_messages",
    "aquifer_broker_namespace_delivered_bytes_per_second",
    "aquifer_broker_namespace_delivered_messages_per_second",
    "aquifer_broker_namespace_published_bytes_per_second",
    "aquifer_broker_namespace_published_messages_per_second",
    "aquifer_broker_namespace_sessions",
    "aquifer_broker_namespace_topics",
    "aquifer_broker_namespace_unloaded_backlog_age_seconds",
    "aquifer_broker_namespace_unloaded_backlog_messages",
];

/// Others that docs/operations.md names, and no dashboard or alert uses.
const FOR_PEOPLE: [&str; 6] = [
    "aquifer_bookie_store_compaction_debt_bytes",
    "aquifer_bookie_store_writes_slowed_to_bytes_per_second",
    "aquifer_bookie_store_writes_stopped",
    "aquifer_metadata_lease_remaining_seconds",
    "aquifer_metadata_watch_restarts_total",
    "aquifer_repair_oldest_mark_age_seconds",
];

/// Names of metrics in the rules of alerts and in dashboards.
fn looked_at() -> Result<BTreeSet<String>> {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let alerts = fs::read_to_string(deploy.join("alerts/aquifer.yaml"))?;
    let rules = alerts.lines().filter(|line| !line.starts_with('#'));
    let mut texts = vec![rules.collect::<Vec<_>>().join("\n")];
    for file in fs::read_dir(deploy.join("dashboards"))? {
        let path = file?.path();
        if path.extension().is_some_and(|end| end == "json") {
            texts.push(fs::read_to_string(path)?);
        }
    }
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let mut named = BTreeSet::new();
    for text in &texts {
        let words = text.split(|c: char| !is_name(c));
        let words = words.filter(|word| word.starts_with("aquifer_"));
        named.extend(words.map(str::to_owned));
    }
    ensure!(named.len() > 70, "{named:?}");
    named.extend(FOR_PEOPLE.map(str::to_owned));
    Ok(named)
}

/// Whether processes of a role have a metric.
fn is_of(role: &str, name: &str) -> bool {
    let of_brokers = OF_BROKERS.iter().any(|start| name.starts_with(start));
    match role {
        "standalone" => !OF_CLUSTERS.contains(&name),
        "broker" => !name.starts_with(OF_BOOKIES) && !name.starts_with(OF_REPAIR),
        "bookie" => !of_brokers,
        _ => !of_brokers && !name.starts_with(OF_BOOKIES),
    }
}

/// Checks that a process has all that is looked at of its role, each metric once.
async fn check(role: &str, http: &str, named: &BTreeSet<String>) -> Result<()> {
    let answer = get(http, "/metrics").await?;
    let series = answer
        .lines()
        .filter_map(|line| line.split(['{', ' ']).next());
    let there: BTreeSet<&str> = series.collect();
    let missing: Vec<&str> = named
        .iter()
        .map(String::as_str)
        .filter(|name| is_of(role, name) && !there.contains(*name))
        .filter(|name| !LOOKED_AT.contains(name) && !MEASURED.contains(name))
        .collect();
    ensure!(missing.is_empty(), "{role}: {missing:?} in {answer}");
    let types = answer.lines().filter(|line| line.starts_with("# TYPE"));
    let mut seen = BTreeSet::new();
    let twice: Vec<&str> = types.filter(|line| !seen.insert(*line)).collect();
    ensure!(twice.is_empty(), "{role}: {twice:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_has_the_metrics_of_dashboards_and_alerts_from_the_start() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data_dir = folder.path().join("data");
    let mut server = Server::start(&data_dir, ServerOptions::default()).await?;
    check("standalone", &server.http(), &looked_at()?).await?;
    server.stop()?;
    server.check_logs()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_role_has_its_metrics_of_dashboards_and_alerts_from_the_start() -> Result<()> {
    let named = looked_at()?;
    let folder = tempfile::tempdir()?;
    let data_dir = folder.path().join("cluster");
    let cold = format!("file://{}", folder.path().join("cold").display());
    let arguments = ["--tls", "--bookies", "1"];
    let environment = [("AQUIFER_COLD_STORE", cold.as_str())];
    let mut cluster = Cluster::start_with(&data_dir, &arguments, &environment)?;
    for (role, name) in [("broker", "broker-1"), ("bookie", "bookie-1")] {
        check(role, &cluster.process(name)?.http, &named).await?;
    }
    // The only one that repairs is also the one that audits.
    let bookie = cluster.process("bookie-1")?.http.clone();
    for name in LOOKED_AT {
        ensure!(named.contains(name), "{name} is not looked at any more");
        let series = format!("\n{name} ");
        until(name, || async {
            let answer = get(&bookie, "/metrics").await?;
            Ok(answer.contains(&series).then_some(()))
        })
        .await?;
    }

    let mut command = Command::new(binary());
    command
        .args(["autorecovery", "--http-addr", "127.0.0.1:0"])
        .args(["--output", "json", "--cluster", "dev", "--metadata"])
        .arg(cluster.metadata()?)
        .arg("--config")
        .arg(data_dir.join("tls/bookie.toml"));
    let repair = Role::start(&mut command, folder.path().join("autorecovery.log"))?;
    check("autorecovery", repair.http()?, &named).await?;
    repair.terminate().await?;
    cluster.stop()?;
    cluster.check_logs()
}
