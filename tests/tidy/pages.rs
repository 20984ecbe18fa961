//! Each page below `docs/` is linked from an index, so that it is found: from the `README.md` of
//! its folder, or of the nearest folder above that has one. The index of decisions has a line with
//! date and title for each record.

use std::collections::{BTreeMap, BTreeSet};

use crate::links;
use crate::violation::Violation;

/// Where the pages are.
const PAGES: &str = "docs/";
/// Where the records of decisions are.
const RECORDS: &str = "docs/decisions/";
/// The page of an index.
const INDEX: &str = "README.md";

/// Pages that no index links, and records that their index calls by another title or date. `texts`
/// has paths and texts of the repository.
pub fn check(texts: &[(String, String)]) -> Vec<Violation> {
    let pages = texts.iter().filter(|(path, _)| path.starts_with(PAGES));
    let pages: BTreeMap<&str, &str> = pages
        .filter(|(path, _)| path.ends_with(".md"))
        .map(|(path, text)| (path.as_str(), text.as_str()))
        .collect();
    let mut violations = Vec::new();
    for (path, text) in &pages {
        let Some(index) = index_of(path, &pages) else {
            continue;
        };
        let linked: BTreeSet<String> = links::linked(&index, pages[index.as_str()]).collect();
        if !linked.contains(*path) {
            violations.push(Violation::new(*path, format!("link it from {index}")));
        } else if let Some(line) = line_of_record(path, text)
            && !pages[index.as_str()].contains(&line)
        {
            violations.push(Violation::new(
                &index,
                format!("`{line}` is the line of {path}"),
            ));
        }
    }
    violations
}

/// The index that has to link a page; None for the first index.
fn index_of(path: &str, pages: &BTreeMap<&str, &str>) -> Option<String> {
    let mut folder = path.rsplit_once('/')?.0;
    loop {
        let index = format!("{folder}/{INDEX}");
        if index != path && pages.contains_key(index.as_str()) {
            return Some(index);
        }
        folder = folder.rsplit_once('/')?.0;
    }
}

/// How the line of a record of a decision begins in the index.
fn line_of_record(path: &str, text: &str) -> Option<String> {
    let file = path.strip_prefix(RECORDS)?;
    let date = file.get(..10).filter(|date| date.starts_with("20"))?;
    let title = text.lines().next()?.strip_prefix("# ")?;
    Some(format!("| {date} | [{title}]({file}) |"))
}

#[test]
fn catches_pages_without_a_link_and_other_titles() {
    let count = |changed: &str, text: &str| {
        let mut pages = BTreeMap::from([
            ("README.md", ""),
            (
                "docs/README.md",
                "[a](a.md) [b](b/c.md) [d](decisions/README.md)",
            ),
            ("docs/a.md", ""),
            ("docs/b/c.md", ""),
            (
                "docs/decisions/README.md",
                "[t](template.md)\n| 2026-11-23 | [A title](2026-11-23-a.md) | topics |",
            ),
            ("docs/decisions/template.md", "# Title"),
            ("docs/decisions/2026-11-23-a.md", "# A title\n"),
            ("docs/b/picture.svg", ""),
        ]);
        pages.insert(changed, text);
        let texts = pages.into_iter();
        let texts: Vec<_> = texts.map(|(p, t)| (p.to_owned(), t.to_owned())).collect();
        check(&texts).len()
    };
    assert_eq!(count("tests/b.md", ""), 0);
    assert_eq!(count("docs/b/d.md", ""), 1, "a page that is not linked");
    assert_eq!(count("docs/README.md", "[a](a.md)"), 2);
    assert_eq!(count("docs/decisions/2026-11-23-a.md", "# Another\n"), 1);
    assert_eq!(count("docs/decisions/2026-11-23-b.md", "# B\n"), 1);
    // A folder with an index links its own pages.
    assert_eq!(
        count("docs/b/README.md", "[c](c.md)"),
        1,
        "the index itself"
    );
}
