//! `#[must_use]` on public getters of the libraries: functions that only hand out what a value has.
//! What it takes more than this check to recognize (constructors, builders, conversions) has it as
//! well.

use crate::scan::SourceFile;
use crate::violation::Violation;

/// Where no library is.
const ELSEWHERE: [&str; 4] = ["cli/", "tests/", "fuzz/", "examples/"];
/// Calls that leave an expression a getter.
const PLAIN_CALLS: [&str; 3] = [".clone()", ".len()", ".is_empty()"];

/// Public getters without the attribute.
pub fn check(file: &SourceFile) -> Vec<Violation> {
    let is_test = file.path.contains("/tests/") || file.path.ends_with("tests.rs");
    let is_library = file.path.contains("/src/") && !is_test;
    if !is_library || ELSEWHERE.iter().any(|path| file.path.starts_with(path)) {
        return Vec::new();
    }
    let code = file.code.split("#[cfg(test)]\nmod ").next();
    let lines: Vec<&str> = code.unwrap_or_default().lines().map(str::trim).collect();
    let mut violations = Vec::new();
    for (at, three) in lines.windows(3).enumerate() {
        if three[2] == "}" && is_getter(three[0]) && hands_out(three[1]) {
            let above = lines[..at].iter().rev();
            let mut attributes = above.take_while(|line| line.is_empty() || line.starts_with("#["));
            if !attributes.any(|line| line.starts_with("#[must_use")) {
                let place = format!("{}:{}", file.path, at + 1);
                violations.push(Violation::new(place, "a getter: `#[must_use]`"));
            }
        }
    }
    violations
}

/// The head of a public function that takes `self` alone and answers a value. A `Result`, an
/// iterator and a future say themselves that they must be used.
fn is_getter(head: &str) -> bool {
    let public = ["pub fn ", "pub const fn "];
    let is_public = public.iter().any(|begin| head.starts_with(begin));
    let Some((left, right)) = head.split_once(" -> ") else {
        return false;
    };
    let by_itself = ["Result<", "impl "];
    is_public
        && (left.ends_with("(&self)") || left.ends_with("(self)"))
        && right.ends_with('{')
        && !by_itself.iter().any(|begin| right.starts_with(begin))
}

/// Whether a body only names a part of `self`.
fn hands_out(body: &str) -> bool {
    let place = body.trim_start_matches(['&', '*']);
    let call = PLAIN_CALLS
        .iter()
        .find_map(|call| place.strip_suffix(*call));
    let part = call.unwrap_or(place);
    let in_path = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    part.starts_with("self.") && part.chars().all(in_path)
}

#[test]
fn catches_getters_without_the_attribute() {
    let count = |path: &str, text: &str| check(&SourceFile::new(path, text)).len();
    let getter = |head: &str, body: &str| format!("/// Its id.\n{head} {{\n    {body}\n}}\n");
    let id = getter("pub fn id(&self) -> Id", "self.id");
    assert_eq!(count("log/src/a.rs", &id), 1);
    assert_eq!(count("log/src/a.rs", &format!("#[must_use]\n{id}")), 0);
    let reason = format!("#[must_use = \"it is new\"]\n#[inline]\n{id}");
    assert_eq!(count("log/src/a.rs", &reason), 0);
    for path in ["cli/src/a.rs", "log/src/tests.rs", "log/src/tests/a.rs"] {
        assert_eq!(count(path, &id), 0, "{path}");
    }
    let name = getter("pub const fn name(self) -> &str", "&self.inner.name");
    assert_eq!(count("log/src/a.rs", &name), 1);
    let len = getter("pub fn len(&self) -> usize", "self.items.len()");
    assert_eq!(count("log/src/a.rs", &len), 1);
    for other in [
        getter("pub fn take(&self) -> Id", "self.ids.lock().take()"),
        getter("pub fn id(&self) -> Result<Id>", "self.id.clone()"),
        getter("pub(crate) fn id(&self) -> Id", "self.id"),
        getter("pub fn next(&mut self) -> Id", "self.id"),
    ] {
        assert_eq!(count("log/src/a.rs", &other), 0, "{other}");
    }
}
