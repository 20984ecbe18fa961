//! `aquifer bookie`, `aquifer broker` and `aquifer dev` before they serve: what they check, and
//! what they refuse with which exit code.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

use std::process::{Command, Stdio};

use serde_json::Value;

fn run(words: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_aquifer"))
        .args(words)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn the_configuration_is_layered_and_hides_secrets() {
    let environment = [
        ("AQUIFER_METADATA", "etcd://from-environment:1"),
        ("AQUIFER_ETCD_USER", "me"),
        ("AQUIFER_ETCD_PASSWORD", "hunter2"),
    ];
    for role in ["bookie", "broker", "autorecovery", "offloader"] {
        let words = [role, "--check-config", "--output", "json", "--cluster", "c"];
        let (code, printed, said) = run(&words, &environment);
        assert_eq!(code, Some(0), "{said}");
        assert!(!printed.contains("hunter2"), "{printed}");
        let config: Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(config["metadata"], "etcd://from-environment:1");
        assert_eq!(config["cluster"], "c");
        assert_eq!(config["etcd"]["user"], "me");
    }
    let (_, printed, _) = run(&["broker", "--check-config", "--output", "json"], &[]);
    let config: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(config["quorum"]["ensemble"], 3);
    let typo = [("AQUIFER_ETCD_PASWORD", "x")];
    let (code, _, said) = run(&["bookie", "--check-config"], &typo);
    assert_eq!(code, Some(2));
    assert!(said.contains("AQUIFER_ETCD_PASWORD"), "{said}");
}

#[test]
fn what_cannot_work_is_refused_with_the_contracts_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().display().to_string();
    let (code, _, said) = run(&["dev", "--brokers", "0", "--data-dir", &data_dir], &[]);
    assert_eq!(code, Some(2));
    assert!(said.contains("a bookie and a broker"), "{said}");
    let nowhere = [("PATH", "/nowhere")];
    let (code, _, said) = run(&["dev", "--data-dir", &data_dir], &nowhere);
    assert_eq!(code, Some(1));
    assert!(said.contains("etcd-server"), "{said}");
    let open = [
        "bookie",
        "--data-dir",
        &data_dir,
        "--bookie-addr",
        "0.0.0.0:0",
    ];
    let (code, _, said) = run(&open, &[]);
    assert_eq!(code, Some(2));
    assert!(said.contains("--allow-remote"), "{said}");
    // Nothing listens on port 1.
    let lonely = [
        "bookie",
        "--data-dir",
        &data_dir,
        "--metadata",
        "etcd://127.0.0.1:1",
        "--bookie-addr",
        "127.0.0.1:0",
        "--http-addr",
        "127.0.0.1:0",
    ];
    let (code, _, said) = run(&lonely, &[]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("etcd cannot be reached"), "{said}");
}
