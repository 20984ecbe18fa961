//! `aquifer standalone` as a process: what it says, what it refuses, how it ends.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on must fail"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn aquifer() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aquifer"));
    command.stdin(Stdio::null()).arg("standalone");
    command
}

fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = aquifer().args(arguments).output().unwrap();
    let said = [stdout, stderr].concat();
    (status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// A server that is killed when the test fails before it stops it.
struct Server {
    child: Child,
    greeting: Value,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(data_dir: &Path) -> Server {
    let any = "127.0.0.1:0";
    let mut child = aquifer()
        .args([
            "--output",
            "json",
            "--grpc-addr",
            any,
            "--http-addr",
            any,
            "--bookie-addr",
            any,
        ])
        .arg("--data-dir")
        .arg(data_dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    let greeting = serde_json::from_str(&line);
    Server {
        child,
        greeting: greeting.unwrap_or_else(|_| panic!("no greeting but {line:?}")),
    }
}

fn get(server: &Server, path: &str) -> String {
    let http = server.greeting["http"].as_str().unwrap();
    let mut socket = TcpStream::connect(http.trim_start_matches("http://")).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_server_says_that_it_is_ready_and_ends_in_order_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("not/yet/there");
    for _ in 0..2 {
        let mut server = start(&data_dir);
        assert!(server.greeting["ready_ms"].is_u64(), "{}", server.greeting);
        for (path, expected) in [
            ("/healthz", "ok"),
            ("/readyz", "ok"),
            ("/metrics", "aquifer_process_resident_bytes"),
        ] {
            let answer = get(&server, path);
            assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
            assert!(answer.contains(expected), "{path}: {answer}");
        }
        let (code, said) = run(&[
            "--data-dir",
            data_dir.to_str().unwrap(),
            "--grpc-addr",
            "127.0.0.1:0",
        ]);
        assert_eq!(code, Some(1), "{said}");
        assert!(
            said.contains("another server is running on the data directory"),
            "{said}"
        );
        let pid = Pid::from_raw(i32::try_from(server.child.id()).unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        assert!(server.child.wait().unwrap().success());
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(&folder.path().join("one"));
    let url = server.greeting["url"].as_str().unwrap();
    let taken = url.trim_start_matches("http://");
    let other = folder.path().join("two");
    let other = other.to_str().unwrap();
    let any = "127.0.0.1:0";
    let (code, said) = run(&[
        "--data-dir",
        other,
        "--grpc-addr",
        taken,
        "--http-addr",
        any,
        "--bookie-addr",
        any,
    ]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(taken) && said.contains("in use"), "{said}");
}

#[test]
fn a_configuration_is_checked_before_anything_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("aquifer.toml");
    let file_name = file.to_str().unwrap();
    let check = |text: &str, more: &[&str]| {
        std::fs::write(&file, text).unwrap();
        run(&[&["--config", file_name, "--check-config"], more].concat())
    };
    let (code, said) = check("[broker]\ncluster = \"mine\"\n", &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("cluster = \"mine\""), "{said}");
    let (code, said) = check("[broker]\ncluser = \"mine\"\n", &[]);
    assert_eq!(
        (code, said.contains("broker.cluser")),
        (Some(2), true),
        "{said}"
    );
    let (code, said) = check("[protocols.grpc]\nstreams_max = 0\n", &[]);
    assert_eq!(
        (code, said.contains("streams_max")),
        (Some(2), true),
        "{said}"
    );
    let (code, said) = check("", &["--http-addr", "0.0.0.0:0"]);
    assert_eq!(
        (code, said.contains("--allow-remote")),
        (Some(2), true),
        "{said}"
    );
    let (code, said) = run(&["--config", "not-there.toml"]);
    assert_eq!(
        (code, said.contains("not-there.toml")),
        (Some(2), true),
        "{said}"
    );
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        1,
        "only the file"
    );
}

/// Names of metrics in a text.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let words = text.split(|c: char| !is_name(c));
    let named = words.filter(|word| word.starts_with("aquifer_"));
    named.collect()
}

/// What dashboards and alerts look at and a server of one process does not have.
const OF_CLUSTERS: [&str; 8] = [
    "aquifer_metadata_quota_bytes",
    "aquifer_metadata_used_bytes",
    "aquifer_repair_bookies_away",
    "aquifer_repair_paused",
    "aquifer_repair_rate_bytes_per_second",
    "aquifer_repair_under_replicated_ledgers",
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

/// An alert on a rate would miss the first event of a series that begins with it.
#[test]
fn every_metric_of_dashboards_and_alerts_is_there_before_the_first_event() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let alerts = fs::read_to_string(deploy.join("alerts/aquifer.yaml")).unwrap();
    let rules = alerts.lines().filter(|line| !line.starts_with('#'));
    let mut texts = vec![rules.collect::<Vec<_>>().join("\n")];
    for file in fs::read_dir(deploy.join("dashboards")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|end| end == "json") {
            texts.push(fs::read_to_string(path).unwrap());
        }
    }
    let named: BTreeSet<&str> = texts.iter().flat_map(|text| metrics_in(text)).collect();
    assert!(named.len() > 70, "{named:?}");
    let folder = tempfile::tempdir().unwrap();
    let server = start(&folder.path().join("data"));
    let answer = get(&server, "/metrics");
    let there = answer.lines().filter(|line| !line.starts_with('#'));
    let there: BTreeSet<&str> = there
        .flat_map(|line| metrics_in(line).pop_first())
        .collect();
    let missing: Vec<&str> = named
        .into_iter()
        .filter(|name| !there.contains(name) && !OF_CLUSTERS.contains(name))
        .filter(|name| !MEASURED.contains(name))
        .collect();
    assert!(missing.is_empty(), "{missing:?} in {answer}");
    let types = answer.lines().filter(|line| line.starts_with("# TYPE"));
    let mut seen = BTreeSet::new();
    let twice: Vec<&str> = types.filter(|line| !seen.insert(*line)).collect();
    assert!(twice.is_empty(), "{twice:?}");
}
