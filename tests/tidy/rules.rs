//! Rules that are cited by number are defined in one page of the repository, and nothing cites a
//! text that is not part of it.

use std::collections::BTreeSet;

use crate::Violation;

/// Where numbers are defined: `| **I1** | …`.
pub const DEFINITIONS: &str = "docs/invariants.md";

/// First letters of numbers, and the highest one that could be meant: `P99` is a percentile.
const FAMILIES: [(char, u32); 4] = [('I', 99), ('H', 99), ('F', 31), ('P', 39)];

/// Texts that are not part of the repository. Written in two halves, so that this file passes its
/// own check.
const OUTSIDE: [&str; 4] = [
    concat!("design", ".md"),
    concat!("reference", ".md"),
    concat!("reliability", ".md"),
    concat!("platform", ".md"),
];

/// The numbers that a page defines.
pub fn defined(page: &str) -> BTreeSet<String> {
    let cell = |line: &str| {
        let rest = line.strip_prefix("| **")?;
        let (number, _) = rest.split_once("** |")?;
        is_number(number).then(|| number.to_owned())
    };
    page.lines().filter_map(cell).collect()
}

/// Numbers that a text cites in sentences and comments without a definition, and texts outside the
/// repository. `prose` has the lines of `text` that people read: all of a document, the comments of
/// a source.
pub fn check(path: &str, prose: &str, defined: &BTreeSet<String>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (at, line) in prose.lines().enumerate() {
        let place = || format!("{path}:{}", at + 1);
        let words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '$');
        for word in words.filter(|word| is_number(word) && !defined.contains(*word)) {
            let rule = format!("{word} is cited and not defined in {DEFINITIONS}");
            violations.push(Violation::new(place(), rule));
        }
        for text in OUTSIDE.iter().filter(|text| line.contains(*text)) {
            let rule = format!("`{text}` is not part of the repository: say what it says");
            violations.push(Violation::new(place(), rule));
        }
    }
    violations
}

/// The comments of a source, line by line.
pub fn comments(text: &str) -> String {
    let comment = |line: &str| match line.find("//") {
        Some(at) => line[at..].to_owned(),
        None => String::new(),
    };
    let lines: Vec<String> = text.lines().map(comment).collect();
    lines.join("\n")
}

fn is_number(word: &str) -> bool {
    let mut letters = word.chars();
    let family = letters.next();
    let digits = letters.as_str();
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let known = FAMILIES.iter().find(|(letter, _)| Some(*letter) == family);
    let value = digits.parse::<u32>().ok();
    plain && matches!((known, value), (Some((_, most)), Some(value)) if value <= *most)
}

#[test]
fn catches_numbers_without_a_definition_and_texts_from_outside() {
    let page = "| **I1** | a rule |\n| **H16** | I2 | another |\n| I3 | no definition |";
    let defined = defined(page);
    assert_eq!(
        defined.iter().map(String::as_str).collect::<Vec<_>>(),
        ["H16", "I1"]
    );
    let count = |text: &str| check("a.md", text, &defined).len();
    assert_eq!(count("kept by (I1, H16)"), 0);
    assert_eq!(count("kept by I2 and H1"), 2);
    assert_eq!(count("p99 and P99, u32, F64, HTTP2, I_1, E3 Qw3 Qa2"), 0);
    assert_eq!(
        count(concat!("see design", ".md section 5")),
        1,
        "a text from outside"
    );
    let source = "let i = \"I7\"; // I7: order\nlet h = 1;\n/// H1\n";
    assert_eq!(check("a.rs", &comments(source), &defined).len(), 2);
}
