//! Metadata keys are written in `metadata/src/keys.rs` only: a reader who wants to know what is
//! stored where reads one file.

use crate::scan::SourceFile;
use crate::violation::Violation;

const HOME: &str = "metadata/src/keys.rs";

/// How the keys of the metadata store begin.
const PREFIXES: [&str; 25] = [
    "\"/aquifer/",
    "\"auth/",
    "\"t/{",
    "\"l/{",
    "\"s/{",
    "\"u/{",
    "\"g/{",
    "\"ul/{",
    "\"own/",
    "\"ids/",
    "\"brokers/",
    "\"bookies/",
    "\"cookies/",
    "\"clusters/",
    "\"leaders/",
    "\"locations/",
    "\"oc/",
    "\"backups/",
    "\"restores/",
    "\"offloads/",
    "\"offloaders/",
    "\"od/",
    "\"~/",
    "\"rt/",
    "\"ledgers/{",
];

/// Keys written elsewhere. Tests may write keys: they check what is stored.
pub fn check(file: &SourceFile) -> Vec<Violation> {
    let server = [
        "metadata/",
        "ledger/",
        "cold/",
        "log/",
        "broker/",
        "bookie/",
        "cli/",
    ]
    .iter()
    .any(|directory| file.path.starts_with(directory));
    let test = file.path.ends_with("/tests.rs") || file.path.contains("/tests/");
    if !server || test || file.path == HOME {
        return Vec::new();
    }
    let product = file.code.split("#[cfg(test)]").next().unwrap_or_default();
    let mut violations = Vec::new();
    for (number, line) in product.lines().enumerate() {
        for prefix in PREFIXES.iter().filter(|prefix| line.contains(*prefix)) {
            violations.push(Violation::new(
                format!("{}:{}", file.path, number + 1),
                format!("a metadata key ({prefix}…) outside {HOME}"),
            ));
        }
    }
    violations
}

#[test]
fn catches_keys_outside_their_home() {
    let count = |path: &str, text: &str| check(&SourceFile::new(path, text)).len();
    let key = r#"let key = format!("l/{id}");"#;
    assert_eq!(count("ledger/src/a.rs", key), 1);
    assert_eq!(count(HOME, key), 0);
    assert_eq!(count("ledger/src/a/tests.rs", key), 0);
    assert_eq!(count("ledger/src/a.rs", &format!("#[cfg(test)]\n{key}")), 0);
    assert_eq!(count("ledger/src/a.rs", r#"let name = "t/n/topic";"#), 0);
    assert_eq!(count("broker/src/a.rs", r#"scan("/aquifer/v1/")"#), 1);
}
