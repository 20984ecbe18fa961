//! What docs/settings.md names exists in the configuration of a server.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

/// Adds the paths of all keys.
fn keys(of: &Value, path: &str, found: &mut BTreeSet<String>) {
    for (key, value) in of.as_object().into_iter().flatten() {
        let path = format!("{path}{key}");
        keys(value, &format!("{path}."), found);
        found.insert(path);
    }
}

/// What stands in backticks and looks like a key.
fn named(page: &str) -> BTreeSet<&str> {
    let is_key = |word: &&str| {
        let plain = |c: char| c.is_ascii_lowercase() || c == '_' || c == '.';
        word.chars().all(plain) && !word.starts_with("aquifer_")
    };
    let words = page
        .lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2));
    words.filter(is_key).collect()
}

#[test]
fn settings_in_the_reference_exist() {
    let mut known = BTreeSet::new();
    for role in [
        "standalone",
        "bookie",
        "broker",
        "autorecovery",
        "offloader",
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_aquifer"))
            .args([role, "--check-config", "--output", "json"])
            .output()
            .unwrap();
        let config: Value = serde_json::from_slice(&output.stdout).unwrap();
        keys(&config, "", &mut known);
    }
    let page = include_str!("../../docs/settings.md");
    let named = named(page);
    assert!(named.len() > 50, "{named:?}");
    let unknown: Vec<_> = named.iter().filter(|key| !known.contains(**key)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}
