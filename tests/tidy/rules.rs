//! Rules that are cited by number are defined in one page of the repository, and nothing cites a
//! text that is not part of it.

use std::collections::BTreeSet;

use crate::violation::Violation;

/// Where numbers are defined: `| **I1** | …`.
pub const DEFINITIONS: &str = "docs/invariants.md";

/// First letters of numbers, and the highest one that could be meant: `P99` is a percentile. The
/// page defines no numbers of A, B and C: these are citations of texts outside the repository.
const FAMILIES: [(char, u32); 7] = [
    ('I', 99),
    ('H', 99),
    ('F', 31),
    ('P', 39),
    ('A', 99),
    ('B', 99),
    ('C', 99),
];

/// What names of functions may end with without citing a rule.
const TYPES: [&str; 12] = [
    "u8", "u16", "u32", "u64", "u128", "i8", "i16", "i32", "i64", "i128", "f32", "f64",
];

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
        let mut before = "";
        for word in line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '$') {
            if is_number(word) && !defined.contains(word) {
                violations.push(Violation::new(place(), undefined(word)));
            } else if before == "Reference" && (is_code(word) || word == "section") {
                let rule = format!("`Reference {word}` is not in the repository: say the rule");
                violations.push(Violation::new(place(), rule));
            }
            before = word;
        }
        for text in OUTSIDE.iter().filter(|text| line.contains(*text)) {
            let rule = format!("`{text}` is not part of the repository: say what it says");
            violations.push(Violation::new(place(), rule));
        }
    }
    violations
}

/// Names of functions that end with a number without a definition, as tests name the rule that
/// they show: `a_fence_is_final_i4`.
pub fn check_names(path: &str, code: &str, defined: &BTreeSet<String>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (at, line) in code.lines().enumerate() {
        let Some((_, rest)) = line.split_once("fn ") else {
            continue;
        };
        let name = rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let name = name.take(1).collect::<String>();
        let Some((_, last)) = name.rsplit_once('_') else {
            continue;
        };
        let number = last.to_ascii_uppercase();
        if is_code(&number) && !TYPES.contains(&last) && !defined.contains(&number) {
            let place = format!("{path}:{}", at + 1);
            violations.push(Violation::new(place, undefined(&number)));
        }
    }
    violations
}

fn undefined(number: &str) -> String {
    format!("{number} is cited and not defined in {DEFINITIONS}")
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
    let known = FAMILIES
        .iter()
        .find(|(letter, _)| word.starts_with(*letter));
    let value = word.get(1..).and_then(|digits| digits.parse::<u32>().ok());
    is_code(word) && matches!((known, value), (Some((_, most)), Some(value)) if value <= *most)
}

/// Whether a word is a capital letter with a number.
fn is_code(word: &str) -> bool {
    let rest = word.strip_prefix(|first: char| first.is_ascii_uppercase());
    rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
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
    assert_eq!(count("(A4), B2 and C15"), 3, "numbers of other texts");
    assert_eq!(count("Reference D6 and Reference section 3"), 2);
    assert_eq!(count("Reference: D6, a reference of N1, A100, AB1"), 0);
    assert_eq!(
        count(concat!("see design", ".md section 5")),
        1,
        "a text from outside"
    );
    let source = "let i = \"I7\"; // I7: order\nlet h = 1;\n/// H1\n";
    assert_eq!(check("a.rs", &comments(source), &defined).len(), 2);
    let names = |end: &str| {
        let code = format!("fn a() {{}}\n    async fn it_holds{end}() {{}}");
        check_names("a.rs", &code, &defined).len()
    };
    assert_eq!(["_i2", "_m13", "_c7"].map(names), [1; 3]);
    assert_eq!(
        ["_i1", "_h16", "_u64", "_of_1", "_i", ""].map(names),
        [0; 6]
    );
}
