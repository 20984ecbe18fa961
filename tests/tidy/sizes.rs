//! At most 500 code lines a file, and at most 200 lines of tests inside the file they test.
//! Functions are clippy's business (`too_many_lines`).

use crate::scan::SourceFile;
use crate::violation::Violation;

const FILE_CODE_LINES_MAX: usize = 500;
const INLINE_TEST_LINES_MAX: usize = 200;

/// The sizes of one file.
pub fn check(file: &SourceFile) -> Vec<Violation> {
    let mut violations = Vec::new();
    if file.path.ends_with("/mod.rs") {
        violations.push(Violation::new(
            &file.path,
            "name the module's file after the module: foo.rs beside foo/",
        ));
    }
    let (code, tests) = count(&file.code);
    if code > FILE_CODE_LINES_MAX {
        violations.push(Violation::new(
            &file.path,
            format!("{code} code lines; split it at {FILE_CODE_LINES_MAX}"),
        ));
    }
    if tests > INLINE_TEST_LINES_MAX {
        violations.push(Violation::new(
            &file.path,
            format!("{tests} lines of tests; move them to tests.rs at {INLINE_TEST_LINES_MAX}"),
        ));
    }
    violations
}

/// Code lines outside and inside of inline test modules, which start at `#[cfg(test)]` followed
/// by `mod … {` in the first column and end at the next closing brace there.
fn count(code: &str) -> (usize, usize) {
    let mut outside = 0;
    let mut inside = 0;
    let mut announced = false;
    let mut in_tests = false;
    for line in code.lines().filter(|line| !line.trim().is_empty()) {
        if in_tests {
            inside += 1;
            in_tests = line != "}";
            continue;
        }
        if announced && line.starts_with("mod ") && line.ends_with('{') {
            in_tests = true;
            inside += 1;
        } else {
            outside += 1;
        }
        announced = line == "#[cfg(test)]" || announced && line.starts_with("#[");
    }
    (outside, inside)
}

#[test]
fn counts_code_and_inline_tests_apart() {
    let code =
        "//! header\n\nfn a() {\n}\n\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n";
    let file = SourceFile::new("a.rs", code);
    assert_eq!(count(&file.code), (4, 3));
}

#[test]
fn catches_long_files_long_tests_and_mod_files() {
    let check_lines = |path: &str, text: String| check(&SourceFile::new(path, &text)).len();
    assert_eq!(check_lines("a/b.rs", "fn a() {}\n".repeat(500)), 0);
    assert_eq!(check_lines("a/b.rs", "fn a() {}\n".repeat(501)), 1);
    assert_eq!(check_lines("a/b.rs", "// why\n\n".repeat(501)), 0);
    assert_eq!(check_lines("a/mod.rs", String::new()), 1);
    let tests = |n: usize| {
        format!(
            "#[cfg(test)]\nmod tests {{\n{}}}\n",
            "    fn a() {}\n".repeat(n)
        )
    };
    assert_eq!(check_lines("a/b.rs", tests(150)), 0);
    assert_eq!(check_lines("a/b.rs", tests(201)), 1);
}
