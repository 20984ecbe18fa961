//! One way of naming what lies elsewhere, and one place for time.
//!
//! Paths begin at the crate, so that a line can be searched for and moved; only a module of tests
//! takes in what lies around it, by `use super::*`. Waiting goes through `runtime/src/clock.rs`;
//! tests may use tokio's clock, which they pause.

use crate::scan::SourceFile;
use crate::violation::Violation;

// Written in two halves, so that this file passes its own check.
const PARENT: &str = concat!("use sup", "er::");
const TIME: &str = concat!("tokio::", "time");
/// The one place that may name tokio's clock.
const CLOCK: &str = "runtime/src/clock.rs";

/// The imports of one file.
pub fn check(file: &SourceFile) -> Vec<Violation> {
    let mut violations = Vec::new();
    let is_test = ["tests/", "benches/"]
        .iter()
        .any(|tests| file.path.starts_with(tests) || file.path.contains(&format!("/{tests}")))
        || file.path.ends_with("/tests.rs");
    let mut in_tests = is_test;
    for (at, line) in file.code.lines().enumerate() {
        in_tests |= line.starts_with("mod tests {");
        let place = || format!("{}:{}", file.path, at + 1);
        let parent = line.trim_start().strip_prefix(PARENT);
        if parent.is_some_and(|rest| !rest.starts_with('*')) {
            violations.push(Violation::new(place(), "begin the path at `crate::`"));
        }
        if line.contains(TIME) && !in_tests && file.path != CLOCK {
            violations.push(Violation::new(place(), format!("use {CLOCK}")));
        }
    }
    violations
}

#[test]
fn catches_paths_from_the_parent_and_time_from_elsewhere() {
    let count = |path: &str, text: &str| check(&SourceFile::new(path, text)).len();
    let parent = format!("{PARENT}thing::Thing;");
    assert_eq!(count("a/src/b/c.rs", &parent), 1);
    assert_eq!(count("a/src/b/tests.rs", &format!("    {parent}")), 1);
    assert_eq!(count("a/src/b/tests.rs", &format!("{PARENT}*;")), 0);
    assert_eq!(count("a/src/b/c.rs", "use crate::b::thing::Thing;"), 0);
    let time = format!("let now = {TIME}::Instant::now();");
    assert_eq!(count("a/src/b.rs", &time), 1);
    assert_eq!(count("a/src/b.rs", &format!("// {time}")), 0);
    let tested = format!("fn a() {{}}\n#[cfg(test)]\nmod tests {{\n    {time}\n}}");
    assert_eq!(count("a/src/b.rs", &tested), 0);
    for free in ["a/src/b/tests.rs", "a/src/tests/b.rs", "tests/b.rs", CLOCK] {
        assert_eq!(count(free, &time), 0, "{free}");
    }
}
