//! The operators' tools against the data directory of a stopped server.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on must fail"
)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn aquifer(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aquifer"));
    command.stdin(Stdio::null()).args(arguments);
    command
}

/// Runs a server on the directory while `use_it` works with its address.
fn with_server(data_dir: &Path, use_it: impl FnOnce(&str)) {
    let any = "127.0.0.1:0";
    let mut child = aquifer(&["standalone", "--output", "json"])
        .args(["--grpc-addr", any, "--http-addr", any, "--bookie-addr", any])
        .arg("--data-dir")
        .arg(data_dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    let greeting: Value = serde_json::from_str(&line).unwrap();
    use_it(greeting["url"].as_str().unwrap());
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
}

/// Runs a tool; returns its exit code, its JSON lines, and what it said beside them.
fn tool(data_dir: &Path, arguments: &[&str]) -> (Option<i32>, Vec<Value>, String) {
    let output = aquifer(arguments)
        .args(["--output", "json", "--data-dir"])
        .arg(data_dir)
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let objects = stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), objects, said)
}

fn produce(url: &str, topic: &str) {
    let produced = aquifer(&["produce", topic, "one", "two", "three", "--url", url]);
    let output = { produced }.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn ledgers_are_shown_checked_and_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let (code, _, said) = tool(&data_dir, &["ledger", "list"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("not a data directory"), "{said}");
    with_server(&data_dir, |url| {
        produce(url, "kept");
        produce(url, "gone");
        let (code, _, said) = tool(&data_dir, &["ledger", "list"]);
        assert_eq!(code, Some(5), "a server runs: {said}");
    });
    let (code, ledgers, said) = tool(&data_dir, &["ledger", "list"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(ledgers.len(), 2, "{ledgers:?}");
    let first = ledgers[0]["ledger"].to_string();
    let (code, shown, said) = tool(&data_dir, &["ledger", "inspect", &first]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(shown[0]["topic"], "persistent://public/default/kept");
    assert_eq!(shown[0]["state"], "closed");
    let (code, checked, said) = tool(&data_dir, &["ledger", "verify"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(checked[0]["replicas"], 2);
    let (code, found, said) = tool(&data_dir, &["doctor"]);
    assert_eq!(code, Some(0), "{said} {found:?}");
    let (code, bookies, said) = tool(&data_dir, &["bookie", "list"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(bookies[0]["ledgers"], 2);
    // What a topic needs is not deleted by mistake.
    let second = ledgers[1]["ledger"].to_string();
    let (code, _, said) = tool(&data_dir, &["ledger", "delete", &second]);
    assert_eq!(code, Some(5), "{said}");
    let (code, deleted, said) = tool(&data_dir, &["ledger", "delete", &second, "--force"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(deleted[0]["bookies_waiting"], 0);
    let (_, ledgers, _) = tool(&data_dir, &["ledger", "list"]);
    assert_eq!(ledgers.len(), 1);
    let (code, _, said) = tool(&data_dir, &["ledger", "inspect", &second]);
    assert_eq!(code, Some(1), "{said}");
}

#[test]
fn a_bookie_without_a_place_for_its_ledgers_is_not_retired() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    with_server(&data_dir, |url| produce(url, "t"));
    let (_, bookies, _) = tool(&data_dir, &["bookie", "list"]);
    let bookie = bookies[0]["bookie"].as_str().unwrap().to_owned();
    let (code, _, said) = tool(&data_dir, &["bookie", "cookie", &bookie]);
    assert_eq!(code, Some(1), "a standalone server has none: {said}");
    let decommission = ["bookie", "decommission", &bookie, "--no-wait"];
    let (code, _, said) = tool(&data_dir, &decommission);
    assert_eq!(code, Some(5), "there is no other bookie: {said}");
    let (code, state, said) = tool(&data_dir, &[&decommission[..], &["--force"]].concat());
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(state[0]["state"], "draining");
    assert_eq!(state[0]["ledgers"], 1);
    let (code, state, said) = tool(&data_dir, &["bookie", "decommission", &bookie, "--undo"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(state[0]["state"], "in use again");
    // It is not known anywhere.
    let stranger = "000102030405060708090a0b0c0d0e0f";
    for arguments in [
        &["bookie", "decommission", stranger][..],
        &["bookie", "decommission", stranger, "--undo"],
    ] {
        let (code, _, said) = tool(&data_dir, arguments);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("advice"), "{said}");
    }
}
