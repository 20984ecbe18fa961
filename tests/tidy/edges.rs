//! Crate directions: who may know whom. A new edge is the rarest and most reviewed kind of
//! change; it starts in the table below.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::scan::SourceFile;
use crate::violation::Violation;

const MODEL: &str = "aquifer-model";
const RUNTIME: &str = "aquifer-runtime";
const PROTO: &str = "aquifer-proto";
const METADATA: &str = "aquifer-metadata";
const LEDGER: &str = "aquifer-ledger";
const COLD: &str = "aquifer-cold";
const LOG: &str = "aquifer-log";
const REPAIR: &str = "aquifer-repair";
const BOOKIE: &str = "aquifer-bookie";
const BROKER: &str = "aquifer-broker";
const CLIENT: &str = "aquifer-client";
const API: &str = "aquifer-protocol-api";
const REGISTRY: &str = "aquifer-protocol-registry";

/// What each crate may depend on, bottom up. A crate that is not listed is a protocol
/// (`aquifer-protocol-*`), or one of the two that may import everything below them.
const ALLOWED: [(&str, &[&str]); 14] = [
    (MODEL, &[]),
    (RUNTIME, &[MODEL]),
    (PROTO, &[MODEL]),
    (API, &[MODEL, RUNTIME]),
    (METADATA, &[MODEL, RUNTIME, PROTO]),
    (LEDGER, &[MODEL, RUNTIME, PROTO, METADATA]),
    (CLIENT, &[MODEL, RUNTIME, PROTO]),
    (COLD, &[MODEL, RUNTIME, PROTO, METADATA]),
    (LOG, &[MODEL, RUNTIME, PROTO, METADATA, LEDGER, COLD]),
    (REPAIR, &[MODEL, RUNTIME, PROTO, METADATA, LEDGER]),
    (BOOKIE, &[MODEL, RUNTIME, PROTO, METADATA, LEDGER, REPAIR]),
    // Of ledgers the broker knows what logs show; its tests make worlds of them.
    (BROKER, &[MODEL, RUNTIME, PROTO, METADATA, LEDGER, LOG, API]),
    (REGISTRY, &[MODEL, RUNTIME, API]),
    (
        SIMULATION,
        &[MODEL, RUNTIME, PROTO, METADATA, LEDGER, LOG, REPAIR, BOOKIE],
    ),
];

/// Edges that only one file may use.
const CONFINED: [(&str, &str, &str); 2] = [
    (BOOKIE, LEDGER, "bookie/src/autorecovery.rs"),
    (BOOKIE, REPAIR, "bookie/src/autorecovery.rs"),
];

/// The composition root and the tests on top of it; nothing may depend on them.
const CLI: &str = "aquifer";
const TESTS: &str = "aquifer-tests";
const SIMULATION: &str = "aquifer-simulation";

/// A crate of the workspace.
#[derive(Debug)]
pub struct Crate {
    /// The package's name.
    pub name: String,
    /// Its directory, relative to the workspace, with `/` at the end.
    pub directory: String,
    /// The workspace's crates that it depends on, in tests and build scripts too.
    pub dependencies: Vec<String>,
}

/// The crates as cargo sees them.
pub fn workspace_crates(root: &Path) -> Vec<Crate> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(root)
        .output()
        .expect("cargo runs, since it runs this test");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    packages
        .iter()
        .map(|package| parse(package, root))
        .collect()
}

fn parse(package: &serde_json::Value, root: &Path) -> Crate {
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    let manifest = text(&package["manifest_path"]);
    let directory = Path::new(&manifest)
        .parent()
        .and_then(|directory| directory.strip_prefix(root).ok())
        .expect("members lie in the workspace");
    let dependencies = package["dependencies"].as_array().expect("a list");
    Crate {
        name: text(&package["name"]),
        directory: format!("{}/", directory.display()),
        dependencies: dependencies
            .iter()
            .filter(|dependency| !dependency["path"].is_null())
            .map(|dependency| text(&dependency["name"]))
            .collect(),
    }
}

/// Dependencies in manifests that the table does not allow.
pub fn check_manifests(crates: &[Crate]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for member in crates {
        for dependency in &member.dependencies {
            if !may_depend(&member.name, dependency) {
                violations.push(Violation::new(
                    format!("{}Cargo.toml", member.directory),
                    format!("{} must not depend on {dependency}", member.name),
                ));
            }
        }
    }
    violations
}

/// Imports of a source file that the table does not allow.
pub fn check_source(file: &SourceFile, crates: &[Crate]) -> Vec<Violation> {
    // A workspace of its own on top of everything, like the tests.
    if file.path.starts_with("fuzz/") {
        return Vec::new();
    }
    // The longest directory wins, should one member lie inside another.
    let owner = crates
        .iter()
        .filter(|member| file.path.starts_with(&member.directory))
        .max_by_key(|member| member.directory.len());
    let Some(owner) = owner else {
        return vec![Violation::new(&file.path, "belongs to no crate")];
    };
    let mut violations = Vec::new();
    for (used, line) in imported(&file.code) {
        if used == owner.name || !crates.iter().any(|member| member.name == used) {
            continue;
        }
        let confined = CONFINED
            .iter()
            .any(|(from, to, home)| *from == owner.name && *to == used && *home != file.path);
        if confined || !may_depend(&owner.name, &used) {
            violations.push(Violation::new(
                format!("{}:{line}", file.path),
                format!("must not import {used}"),
            ));
        }
    }
    violations
}

fn may_depend(from: &str, to: &str) -> bool {
    if to == CLI || to == TESTS || to == SIMULATION {
        return false;
    }
    if from == CLI || from == TESTS {
        return true;
    }
    if from == REGISTRY && to.starts_with("aquifer-protocol-") {
        return true;
    }
    match ALLOWED.iter().find(|(name, _)| *name == from) {
        Some((_, allowed)) => allowed.contains(&to),
        None => from.starts_with("aquifer-protocol-") && [MODEL, RUNTIME, API, PROTO].contains(&to),
    }
}

/// The packages that code names in a path or an import, each with the first line that does.
/// Metric names begin like packages do, so the word alone is not enough.
fn imported(code: &str) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for (number, line) in code.lines().enumerate() {
        for (at, _) in line.match_indices("aquifer_") {
            let word = line[at..]
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .next();
            let word = word.unwrap_or_default();
            let after = &line[at + word.len()..];
            if after.starts_with("::") || line[..at].trim_end().ends_with("use") {
                found.entry(word.replace('_', "-")).or_insert(number + 1);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, directory: &str, dependencies: &[&str]) -> Crate {
        Crate {
            name: name.to_owned(),
            directory: format!("{directory}/"),
            dependencies: dependencies.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn catches_manifests_that_point_up() {
        let check = |name: &str, dependency: &str| {
            check_manifests(&[member(name, "x", &[dependency])]).len()
        };
        assert_eq!(check(LEDGER, METADATA), 0);
        assert_eq!(check(LEDGER, BOOKIE), 1);
        assert_eq!(check(BOOKIE, BROKER), 1);
        assert_eq!(check(BROKER, BOOKIE), 1);
        assert_eq!(check(CLIENT, BROKER), 1);
        assert_eq!(check(CLIENT, METADATA), 1);
        assert_eq!(check("aquifer-protocol-grpc", PROTO), 0);
        assert_eq!(check("aquifer-protocol-kafka", BROKER), 1);
        assert_eq!(check(REGISTRY, "aquifer-protocol-grpc"), 0);
        assert_eq!(check(BROKER, REGISTRY), 1);
        assert_eq!(check(CLI, BROKER), 0);
        assert_eq!(check(BROKER, CLI), 1);
        assert_eq!(check(CLI, TESTS), 1);
        assert_eq!(check("aquifer-unlisted", MODEL), 1);
    }

    #[test]
    fn catches_imports_that_point_up_or_leave_their_file() {
        let crates = [
            member(MODEL, "model", &[]),
            member(LEDGER, "ledger", &[]),
            member(BOOKIE, "bookie", &[]),
            member(BROKER, "broker", &[]),
        ];
        let check = |path: &str, text: &str| check_source(&SourceFile::new(path, text), &crates);
        assert_eq!(check("ledger/src/a.rs", "use aquifer_model::id;"), []);
        assert_eq!(check("ledger/src/a.rs", "// aquifer_bookie::Bookie"), []);
        assert_eq!(
            check("ledger/src/a.rs", "\"aquifer_bookie_adds_total\""),
            []
        );
        assert_eq!(
            check("ledger/src/a.rs", "use aquifer_bookie::Bookie;").len(),
            1
        );
        assert_eq!(
            check("broker/src/a.rs", "fn f(b: aquifer_bookie::Bookie) {}").len(),
            1
        );
        assert_eq!(
            check("bookie/src/gc.rs", "use aquifer_ledger::Reader;").len(),
            1
        );
        assert_eq!(
            check("bookie/src/autorecovery.rs", "use aquifer_ledger::Reader;"),
            []
        );
        assert_eq!(check("stray/src/a.rs", "").len(), 1);
    }
}
