//! Words that do not belong into a commit.

use crate::Violation;
use crate::scan::SourceFile;

// Written in two halves, so that this file passes its own check.
const IN_CODE: [(&str, &str); 3] = [
    (concat!("todo", "!("), "finish it"),
    (concat!("dbg", "!("), "remove it"),
    (concat!("unimpl", "emented!("), "return a typed error"),
];
const ANYWHERE: [(&str, &str); 3] = [
    (concat!("TO", "DO"), "do it, or open an issue"),
    (concat!("FIX", "ME"), "fix it, or open an issue"),
    (concat!("XX", "X"), "say what is wrong in a sentence"),
];

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
