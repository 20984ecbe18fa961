//! Words that do not belong into a commit, words that hide who does what, and the width of
//! comments.
//!
//! Texts are plain technical English: a subject that acts, nouns before pronouns, machines that are
//! not persons. The list below has words that such a sentence does not need. Directories that are
//! free of them stay so; elsewhere only what users read in a message is checked.

use crate::scan::SourceFile;
use crate::violation::Violation;

// Written in two halves, so that this file passes its own check.
const IN_CODE: [(&str, &str); 5] = [
    (concat!("todo", "!("), "finish it"),
    (concat!("dbg", "!("), "remove it"),
    (concat!("unimpl", "emented!("), "return a typed error"),
    // One way of two: types are called by their names.
    (concat!("-> Se", "lf"), "name the type"),
    (concat!("Se", "lf {"), "name the type"),
];
const ANYWHERE: [(&str, &str); 3] = [
    (concat!("TO", "DO"), "do it, or open an issue"),
    (concat!("FIX", "ME"), "fix it, or open an issue"),
    (concat!("XX", "X"), "say what is wrong in a sentence"),
];

/// What a sentence says better in another way. Whole words, in any case.
const UNCLEAR: [(&str, &str); 22] = [
    (concat!("so ", "many"), "say how many, or `this many`"),
    (
        concat!("on its ", "way"),
        "say `in flight`, or what happens to it",
    ),
    (concat!("an", "ew"), "say `again`"),
    (
        concat!("no", "body"),
        "name what does not: no client, no bookie",
    ),
    (
        concat!("some", "body"),
        "name it: another client, a process",
    ),
    (concat!("any", "body"), "name it: a client, any broker"),
    (concat!("who", "ever"), "name it: the broker that"),
    (concat!("who", "mever"), "name it"),
    (
        concat!("is ", "none"),
        "say `is not a …`, or `there is no …`",
    ),
    (concat!("for so ", "long"), "say `for this time`"),
    (concat!("of ", "now"), "say `current`"),
    // Words of this code base alone, which a newcomer would have to learn.
    (concat!("ten", "ure"), "say `delivery right`"),
    (concat!("h", "ub"), "say what it does: a receiver"),
    (concat!("be", "ll"), "say `wakeup`"),
    (concat!("doo", "med"), "say `what is being deleted`"),
    (concat!("th", "in"), "say `incomplete`: a copy, a ledger"),
    (concat!("some", "one"), "name it: another client, a process"),
    (
        concat!("every", "body"),
        "name it: every client, all bookies",
    ),
    (
        concat!("set", "tle"),
        "say `complete`, `resolve`, or what is awaited",
    ),
    (concat!("set", "tles"), "say `completes`, or `resolves`"),
    (concat!("set", "tled"), "say `completed`, or `resolved`"),
    (concat!("set", "tling"), "say `completing`, or `resolving`"),
];

/// Directories and files without unclear words and with comments of at most [`COMMENT_WIDTH`].
const PLAIN: [&str; 22] = [
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "README.md",
    "bookie/",
    "broker/",
    "cli/",
    "client/",
    "cold/",
    "deploy/",
    "docs/",
    "examples/",
    "fuzz/",
    "ledger/",
    "log/",
    "metadata/",
    "model/",
    "proto/",
    "protocols/",
    "repair/",
    "runtime/",
    "tests/",
    "tools/",
];
/// Records tell what was thought at their time.
const RECORDS: &str = "docs/decisions/";
/// Columns of a line of comment, as of code.
const COMMENT_WIDTH: usize = 100;

/// Places that exist on one machine only.
const PATHS: [(&str, &str); 3] = [
    (concat!("/ro", "ot/"), "a path of one machine"),
    (concat!("/ho", "me/"), "a path of one machine"),
    (concat!("/wo", "rk/"), "a path of one machine"),
];

/// Paths of one machine in any file that people write.
pub fn check_paths(path: &str, text: &str) -> Vec<Violation> {
    find(path, text, &PATHS)
}

/// The banned words in one file.
pub fn check(file: &SourceFile) -> Vec<Violation> {
    let in_code = find(&file.path, &file.code, &IN_CODE);
    let anywhere = find(&file.path, &file.text, &ANYWHERE);
    in_code.into_iter().chain(anywhere).collect()
}

/// Unclear words: in all of a text where texts are plain, else in literals of sources outside
/// tests.
pub fn check_clear(path: &str, text: &str, code: &str) -> Vec<Violation> {
    let is_plain = PLAIN.iter().any(|plain| path.starts_with(plain));
    let is_test = path.contains("/tests/") || path.ends_with("tests.rs");
    if path.starts_with(RECORDS) || (!is_plain && (is_test || !path.ends_with(".rs"))) {
        return Vec::new();
    }
    let literals = |line: &str| {
        // What a test says when it fails is for its author.
        let is_check = line.contains("assert") || line.contains(".expect(");
        let parts = line.split('"').skip(1).step_by(2);
        parts.filter(|_| !is_check).collect::<Vec<_>>().join(" ")
    };
    let mut violations = Vec::new();
    for (at, (line, code)) in text.lines().zip(code.lines()).enumerate() {
        let shown = match is_plain {
            true => line.to_lowercase(),
            false => literals(code).to_lowercase(),
        };
        for (word, advice) in UNCLEAR.iter().filter(|(word, _)| has_word(&shown, word)) {
            let place = format!("{path}:{}", at + 1);
            violations.push(Violation::new(place, format!("`{word}`: {advice}")));
        }
    }
    violations
}

fn has_word(line: &str, word: &str) -> bool {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(in_word) && !after.is_some_and(in_word)
    })
}

/// Comments that are wider than code may be; rustfmt does not wrap them.
pub fn check_width(file: &SourceFile) -> Vec<Violation> {
    if !PLAIN.iter().any(|plain| file.path.starts_with(plain)) {
        return Vec::new();
    }
    let is_wide =
        |line: &str| line.trim_start().starts_with("//") && line.chars().count() > COMMENT_WIDTH;
    let lines = file.text.lines().enumerate();
    let wide = lines.filter(|(_, line)| is_wide(line));
    let violation = |(at, _)| {
        let rule = format!("wrap the comment at {COMMENT_WIDTH} columns");
        Violation::new(format!("{}:{}", file.path, at + 1), rule)
    };
    wide.map(violation).collect()
}

fn find(path: &str, text: &str, words: &[(&str, &str)]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for (word, advice) in words {
            if line.contains(word) {
                violations.push(Violation::new(
                    format!("{path}:{}", number + 1),
                    format!("`{word}`: {advice}"),
                ));
            }
        }
    }
    violations
}

#[test]
fn catches_banned_words_and_leaves_the_rest() {
    let count = |text: &str| check(&SourceFile::new("a.rs", text)).len();
    for (word, _) in IN_CODE {
        assert_eq!(count(&format!("fn a() {{ {word}) }}")), 1, "{word}");
        assert_eq!(count(&format!("// never write {word})")), 0, "{word}");
    }
    for (word, _) in ANYWHERE {
        assert_eq!(count(&format!("// {word}: later")), 1, "{word}");
    }
    for (path, _) in PATHS {
        assert_eq!(
            check_paths("a.md", &format!("see {path}a")).len(),
            1,
            "{path}"
        );
    }
    assert_eq!(count("fn a() { assert!(true, \"done\"); }"), 0);
}

#[test]
fn catches_unclear_words_where_texts_are_plain() {
    let count = |path: &str, text: &str| check_clear(path, text, text).len();
    for (word, _) in UNCLEAR {
        assert_eq!(
            count("docs/a.md", &format!("It says {word}, twice.")),
            1,
            "{word}"
        );
        assert_eq!(count("docs/a.md", &word.to_uppercase()), 1, "{word}");
        assert_eq!(count("docs/decisions/a.md", word), 0, "{word}");
        assert_eq!(count("other/src/a.rs", &format!("// {word}")), 0, "{word}");
        assert_eq!(
            count("other/src/a.rs", &format!("f(\"{word}\")")),
            1,
            "{word}"
        );
        assert_eq!(
            count("other/src/a/tests.rs", &format!("f(\"{word}\")")),
            0,
            "{word}"
        );
    }
    assert_eq!(
        count(
            "cli/src/a.rs",
            "if it.is_none() { renew(); } // a known office"
        ),
        0
    );
}

#[test]
fn catches_wide_comments() {
    let count = |path: &str, text: &str| check_width(&SourceFile::new(path, text)).len();
    let wide = format!("    // {}", "é".repeat(COMMENT_WIDTH - 6));
    assert_eq!(count("cli/src/a.rs", &wide), 1);
    assert_eq!(count("cli/src/a.rs", &wide[..wide.len() - 2]), 0);
    assert_eq!(count("other/src/a.rs", &wide), 0);
}
