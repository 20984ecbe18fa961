//! The documents that a newcomer looks for are there, and the map of the code stays short.

use std::fs;
use std::path::Path;

use crate::violation::Violation;

const REQUIRED: [&str; 12] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "docs/glossary.md",
    "docs/invariants.md",
    "docs/formats.md",
    "docs/operations.md",
    "docs/README.md",
    "docs/first-steps.md",
    "docs/cli.md",
    "docs/settings.md",
];
const ARCHITECTURE_LINES_MAX: usize = 400;

/// What is missing or too long.
pub fn check(root: &Path) -> Vec<Violation> {
    let mut violations: Vec<Violation> = REQUIRED
        .iter()
        .filter(|name| !root.join(name).is_file())
        .map(|name| Violation::new(*name, "write it"))
        .collect();
    if let Ok(text) = fs::read_to_string(root.join("ARCHITECTURE.md")) {
        violations.extend(check_architecture(&text));
    }
    violations
}

fn check_architecture(text: &str) -> Option<Violation> {
    let lines = text.lines().count();
    (lines >= ARCHITECTURE_LINES_MAX).then(|| {
        Violation::new(
            "ARCHITECTURE.md",
            format!("{lines} lines; short stays true: below {ARCHITECTURE_LINES_MAX}"),
        )
    })
}

#[test]
fn catches_missing_and_long_documents() {
    let empty = tempfile::tempdir().expect("a temporary directory");
    assert_eq!(check(empty.path()).len(), REQUIRED.len());
    assert_eq!(check_architecture(&"line\n".repeat(399)), None);
    assert!(check_architecture(&"line\n".repeat(400)).is_some());
}
