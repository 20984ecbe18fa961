//! The table of faults of cold storage names tests that exist: a row without one promises what is
//! not checked.

use crate::violation::Violation;

/// The page that has the table.
pub const PAGE: &str = "docs/operations/cold-storage.md";
const HEADING: &str = "## Faults";

/// Tests of the table that no source defines, and rows without a test.
pub fn check(page: &str, is_test: &dyn Fn(&str) -> bool) -> Vec<Violation> {
    let mut violations = Vec::new();
    let table = page.lines().skip_while(|line| *line != HEADING).skip(1);
    let table = table.take_while(|line| !line.starts_with("## "));
    // The first two lines are the head.
    for row in table.filter(|line| line.starts_with('|')).skip(2) {
        let tests = row.trim_end_matches('|').rsplit('|').next();
        let tests = tests.unwrap_or_default();
        let words: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        if words.is_empty() {
            let fault = row.split('|').nth(1).unwrap_or_default().trim();
            let place = format!("{PAGE}: {fault}");
            violations.push(Violation::new(place, "the row names no test"));
        }
        for name in words.iter().filter(|word| !word.contains(['/', '.'])) {
            if !is_test(name) {
                violations.push(Violation::new(PAGE, format!("no test is called `{name}`")));
            }
        }
    }
    violations
}

#[test]
fn catches_rows_without_tests() {
    let page = "# A\n## Faults\n\n| fault | tests |\n|---|---|\n| one | `a_test` in `log/a.rs` |\n\
                | two | `gone` |\n| three | by hand |\n## More\n| four | x |\n";
    let found = check(page, &|name| name == "a_test");
    let rules: Vec<&str> = found
        .iter()
        .map(|violation| violation.rule.as_str())
        .collect();
    assert_eq!(rules, ["no test is called `gone`", "the row names no test"]);
    assert_eq!(found[1].place, format!("{PAGE}: three"));
}
