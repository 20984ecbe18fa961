//! Alert rules: each has histories in which it fires, is silent and resolves, a page that says what
//! to do, and metrics that the program makes. Whether the histories are right is for promtool
//! (`deploy/check.sh`).

use std::collections::BTreeSet;

use crate::scan::SourceFile;
use crate::violation::Violation;

/// Where the rules are.
pub const RULES: &str = "deploy/alerts/aquifer.yaml";
/// Where the histories are.
pub const HISTORIES: [&str; 3] = [
    "deploy/alerts/aquifer_test.yaml",
    "deploy/alerts/aquifer_days_test.yaml",
    "deploy/alerts/aquifer_resolves_test.yaml",
];

/// Keys of a rule that stand behind its expression.
const KEYS: [&str; 3] = ["for:", "labels:", "annotations:"];
/// Of the name of a histogram its series are made.
const OF_HISTOGRAMS: [&str; 3] = ["_bucket", "_sum", "_count"];
/// Sources that read metrics instead of making them.
const READERS: &str = "cli/src/commands/";

/// An alert as its file has it.
#[derive(Debug, Default)]
struct Rule<'a> {
    line: usize,
    name: &'a str,
    expression: String,
    page: &'a str,
}

/// What alert rules lack. `document` gives the text of a file of the repository.
pub fn check(
    rules: &str,
    histories: &str,
    sources: &[SourceFile],
    document: &dyn Fn(&str) -> Option<String>,
) -> Vec<Violation> {
    let (rules, made) = (parse(rules), made(sources));
    if rules.is_empty() {
        return vec![Violation::new(RULES, "there is no alert")];
    }
    let mut violations = Vec::new();
    for rule in &rules {
        let mut lacks = |what: String| {
            let place = format!("{RULES}:{}", rule.line);
            violations.push(Violation::new(place, format!("{} {what}", rule.name)));
        };
        for history in ["fires", "is silent"] {
            if !histories.contains(&format!("name: {} {history}\n", rule.name)) {
                lacks(format!("has no history in which it {history}"));
            }
        }
        if !resolves(histories, rule.name) {
            lacks("has no history in which it fires and resolves".to_owned());
        }
        let title = format!("# {}\n", rule.name);
        if !document(rule.page).is_some_and(|page| page.starts_with(&title)) {
            lacks(format!("has no page at {:?}", rule.page));
        }
        let used = names(&rule.expression);
        for metric in used.filter(|metric| !is_made(metric, &made)) {
            lacks(format!("uses {metric}, which the program does not make"));
        }
    }
    violations
}

fn parse(text: &str) -> Vec<Rule<'_>> {
    let mut rules: Vec<Rule<'_>> = Vec::new();
    let mut in_expression = false;
    let lines = text.lines().map(str::trim).enumerate();
    for (at, line) in lines.filter(|(_, line)| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix("- alert:") {
            rules.push(Rule {
                line: at + 1,
                name: name.trim(),
                ..Rule::default()
            });
        }
        let Some(rule) = rules.last_mut() else {
            continue;
        };
        if line.starts_with("expr:") {
            in_expression = true;
        }
        if KEYS.iter().any(|key| line.starts_with(key)) {
            in_expression = false;
        }
        if in_expression {
            rule.expression.push_str(line);
            rule.expression.push('\n');
        }
        if let Some(page) = line.strip_prefix("runbook_url:") {
            rule.page = page.trim();
        }
    }
    rules
}

/// Whether histories of an alert say that it fires and, below that, that it does not.
fn resolves(histories: &str, alert: &str) -> bool {
    let about = format!("alertname=\"{alert}\"");
    let said = |line: &&str| line.contains(&about) && line.contains("eval_time:");
    let said: Vec<&str> = histories.lines().filter(said).collect();
    let is_silent = |line: &&str| line.ends_with("exp_samples: []}");
    let fires = said.iter().position(|line| line.contains("value: 1}"));
    let silent = said.iter().rposition(is_silent);
    fires
        .zip(silent)
        .is_some_and(|(fires, silent)| fires < silent)
}

/// Names of metrics in an expression.
fn names(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !is_of_name(c));
    words.filter(|word| word.starts_with("aquifer_"))
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'
}

/// Names of instruments in the program: literals of sources that are not tests.
fn made(sources: &[SourceFile]) -> BTreeSet<&str> {
    let is_program = |file: &&SourceFile| {
        let path = &file.path;
        path.contains("/src/")
            && !path.contains("/tests/")
            && !path.ends_with("/tests.rs")
            && !path.starts_with(READERS)
    };
    let mut made = BTreeSet::new();
    for file in sources.iter().filter(is_program) {
        let tests = file.code.find("#[cfg(test)]\nmod tests {");
        let code = &file.code[..tests.unwrap_or(file.code.len())];
        let literals = code.split('"');
        made.extend(
            literals.filter(|text| text.starts_with("aquifer_") && text.chars().all(is_of_name)),
        );
    }
    made
}

fn is_made(metric: &str, made: &BTreeSet<&str>) -> bool {
    let is_series = |end: &&str| {
        let name = metric.strip_suffix(*end);
        name.is_some_and(|name| made.contains(name))
    };
    made.contains(metric) || OF_HISTOGRAMS.iter().any(is_series)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: &str = "groups:\n  - rules:\n      # aquifer_in_a_comment\n      - alert: AquiferOne\n        \
                        expr: |\n          rate(aquifer_a_seconds_bucket[5m]) > 0\n            or \
                        aquifer_b == 1\n        for: 5m\n        annotations:\n          summary: \
                        \"aquifer_c\"\n          runbook_url: pages/one.md\n";
    const HISTORY: &str = "  - name: AquiferOne fires\n  - name: AquiferOne is silent\n      - {expr: \
                           'count(ALERTS{alertname=\"AquiferOne\"})', eval_time: 9m, exp_samples: \
                           [{labels: '{}', value: 1}]}\n      - {expr: \
                           'count(ALERTS{alertname=\"AquiferOne\"})', eval_time: 19m, exp_samples: \
                           []}\n";
    const CODE: &str = "fn f() { seconds(\"aquifer_a_seconds\"); gauge(\"aquifer_b\"); }\n";

    fn found(rule: &str, history: &str, path: &str, page: &str) -> Vec<String> {
        let sources = [SourceFile::new(path, CODE)];
        let document = |at: &str| (at == "pages/one.md").then(|| page.to_owned());
        let found = check(rule, history, &sources, &document);
        found.into_iter().map(|violation| violation.rule).collect()
    }

    #[test]
    fn a_rule_with_everything_passes() {
        let page = "# AquiferOne\n\ntext";
        assert_eq!(found(RULE, HISTORY, "broker/src/a.rs", page), [""; 0]);
    }

    #[test]
    fn what_is_missing_is_said() {
        let page = "# AquiferOne\n";
        let path = "broker/src/a.rs";
        let lacks = |rule: &str, history: &str, path: &str, page: &str, said: &str| {
            let found = found(rule, history, path, page);
            assert!(found.len() == 1 && found[0].contains(said), "{found:?}");
        };
        lacks("groups: []\n", HISTORY, path, page, "there is no alert");
        lacks(RULE, HISTORY, path, "# AquiferTwo\n", "pages/one.md");
        let loud = HISTORY.replace("is silent", "is quiet");
        lacks(RULE, &loud, path, page, "is silent");
        let stays = HISTORY.replace("[]}", "[{labels: '{}', value: 1}]}");
        lacks(RULE, &stays, path, page, "resolves");
        let (fires, silent) = ("[{labels: '{}', value: 1}]}", "[]}");
        let begins = HISTORY.replace(fires, "@").replace(silent, fires);
        let begins = begins.replace('@', silent);
        lacks(RULE, &begins, path, page, "resolves");
        let other = RULE.replace("aquifer_b ", "aquifer_d ");
        lacks(&other, HISTORY, path, page, "aquifer_d");
        // A name in a test, or in what reads metrics, makes no metric.
        for path in ["broker/src/a/tests.rs", "cli/src/commands/a.rs"] {
            assert_eq!(found(RULE, HISTORY, path, page).len(), 2, "{path}");
        }
    }
}
