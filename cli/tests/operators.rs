//! The operators' tools against the data directory of a stopped server.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on must fail"
)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
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

/// Makes a bundle of `server.toml` and `logs` in a folder, and unpacks it; returns where.
fn bundle_of(folder: &Path, data_dir: &Path) -> PathBuf {
    let bundle = folder.join("bundle.tar.gz");
    let mut command = aquifer(&["support-bundle", "--token", "canary-of-a-flag"]);
    command.arg("--config").arg(folder.join("server.toml"));
    command.arg("--data-dir").arg(data_dir);
    command.arg("--logs").arg(folder.join("logs"));
    command.arg("--to-file").arg(&bundle);
    // Where no server listens: a bundle is made all the same.
    let output = command.args(["--http", "http://127.0.0.1:1"]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    let unpacked = folder.join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    let mut tar = Command::new("tar");
    tar.arg("-xzf").arg(&bundle).arg("-C").arg(&unpacked);
    assert!(tar.status().unwrap().success());
    unpacked
}

/// Secrets stand in settings, in files that these name, and in logs: none goes into a bundle.
#[test]
fn a_support_bundle_has_no_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    with_server(&data_dir, |url| produce(url, "t"));
    let password = folder.path().join("password");
    fs::write(&password, "canary-of-the-file\n").unwrap();
    let config = folder.path().join("server.toml");
    let text = format!(
        "# canary-of-a-comment\n[bookie]\nopen_files_max = 512\n[etcd]\nuser = \"canary-user\"\n\
         password = \"canary-of-settings\"\npassword_file = \"{}\"\n",
        password.display()
    );
    fs::write(&config, text).unwrap();
    let logs = folder.path().join("logs");
    fs::create_dir(&logs).unwrap();
    let said = "INFO start canary-of-settings\nWARN url=etcd://u:canary-of-a-url@e1:2379 x\n\
                DEBUG authorization: Bearer canary-of-a-header\nINFO canary-of-the-file was read\n\
                INFO last line\n";
    fs::write(logs.join("server.log"), said).unwrap();
    let unpacked = bundle_of(folder.path(), &data_dir);
    let read =
        |name: &str| fs::read_to_string(unpacked.join("aquifer-support").join(name)).unwrap();
    let parts = [
        "manifest.json",
        "settings.toml",
        "doctor.json",
        "cluster.json",
        "logs/server.log",
    ];
    let mut all = String::new();
    for part in parts {
        let text = read(part);
        assert!(!text.is_empty(), "{part}");
        all.push_str(&text);
    }
    for canary in [
        "settings",
        "the-file",
        "a-url",
        "a-header",
        "a-flag",
        "a-comment",
    ] {
        assert!(
            !all.contains(&format!("canary-of-{canary}")),
            "{canary} in {all}"
        );
    }
    assert!(all.contains("open_files_max = 512"), "{all}");
    assert!(all.contains("INFO last line"), "{all}");
    assert!(read("manifest.json").contains("127.0.0.1:1"), "{all}");
}
