//! Documents name files and headings that exist: links of Markdown, and paths in backticks.
//! Records of decisions are left out, because they tell what was; their index is not.

use crate::violation::Violation;

/// What a document may point to.
pub struct Repository<'a> {
    /// Whether a path, relative to the workspace, is there.
    pub exists: &'a dyn Fn(&str) -> bool,
    /// The text of a document, if there is one at the path.
    pub document: &'a dyn Fn(&str) -> Option<String>,
}

/// Endings of paths in backticks that are checked.
const ENDINGS: [&str; 6] = [".rs", ".md", ".sh", ".toml", ".proto", "/"];
/// Directories at the root that such paths begin with.
const ROOTS: &str = "bookie broker cli client cold deploy docs examples fuzz ledger log metadata \
                     model proto protocols repair runtime tests tools";

/// Whether the links and paths of a document are checked.
pub fn is_checked(path: &str) -> bool {
    let is_record = path.starts_with("docs/decisions/") && !path.ends_with("/README.md");
    path.ends_with(".md") && !is_record
}

/// Links and paths that lead nowhere.
pub fn check(path: &str, text: &str, repository: &Repository<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut is_code = false;
    for (at, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
            continue;
        }
        if is_code {
            continue;
        }
        let place = || format!("{path}:{}", at + 1);
        for named in paths(line).filter(|named| !(repository.exists)(named)) {
            violations.push(Violation::new(place(), format!("`{named}` does not exist")));
        }
        for target in links(line).filter(|target| !leads_somewhere(path, text, target, repository))
        {
            violations.push(Violation::new(place(), format!("({target}) leads nowhere")));
        }
    }
    violations
}

/// Paths of the repository in backticks.
fn paths(line: &str) -> impl Iterator<Item = &str> {
    let is_path = |word: &&str| {
        let root = word.split('/').next().unwrap_or_default();
        let known = ROOTS.split_whitespace().any(|known| known == root);
        let plain = !word.contains(|c: char| c.is_whitespace() || "*{}<>$".contains(c));
        word.contains('/') && known && plain && ENDINGS.iter().any(|end| word.ends_with(end))
    };
    line.split('`').skip(1).step_by(2).filter(is_path)
}

/// The files that a document links to, as paths of the workspace.
pub fn linked<'a>(path: &'a str, text: &'a str) -> impl Iterator<Item = String> + 'a {
    let targets = text.lines().flat_map(links);
    let files = targets.filter(|target| !target.contains("://") && !target.starts_with('#'));
    files.filter_map(move |target| resolve(path, target.split('#').next()?))
}

/// Targets of links.
fn links(line: &str) -> impl Iterator<Item = &str> {
    let targets = line.split("](").skip(1);
    targets.filter_map(|rest| Some(rest.split_once(')')?.0))
}

fn leads_somewhere(path: &str, text: &str, target: &str, repository: &Repository<'_>) -> bool {
    if target.contains("://") {
        return true;
    }
    let (file, heading) = target.split_once('#').unwrap_or((target, ""));
    if file.is_empty() {
        return has_heading(text, heading);
    }
    let Some(file) = resolve(path, file) else {
        return false;
    };
    if heading.is_empty() {
        return (repository.exists)(&file);
    }
    (repository.document)(&file).is_some_and(|text| has_heading(&text, heading))
}

/// A relative target as a path of the workspace.
fn resolve(path: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in target.trim_end_matches('/').split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Whether a document has a heading with this anchor, by the rules of GitHub.
fn has_heading(text: &str, anchor: &str) -> bool {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor_of = |line: &str| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = |c: &char| c.is_alphanumeric() || *c == ' ' || *c == '-' || *c == '_';
        title
            .chars()
            .filter(kept)
            .collect::<String>()
            .replace(' ', "-")
    };
    headings.map(anchor_of).any(|found| found == anchor)
}

#[test]
fn catches_what_does_not_exist() {
    let files = ["docs/a.md", "docs/b/c.md", "log/src/read.rs", "log/src"];
    let exists = |path: &str| files.contains(&path.trim_end_matches('/'));
    let document =
        |path: &str| exists(path).then(|| "# A page\n\n## When etcd is full\n".to_owned());
    let repository = Repository {
        exists: &exists,
        document: &document,
    };
    let count = |path: &str, text: &str| check(path, text, &repository).len();
    assert_eq!(count("docs/b/c.md", "[a](../a.md) and [b](c.md)"), 0);
    assert_eq!(count("docs/a.md", "[c](b/c.md#when-etcd-is-full)"), 0);
    assert_eq!(count("docs/a.md", "[c](b/c.md#when-etcd-is-empty)"), 1);
    assert_eq!(count("docs/a.md", "[d](d.md), [x](https://a.b/c.md)"), 1);
    assert_eq!(count("docs/a.md", "# A\n[a](#a), [b](#b)"), 1);
    assert_eq!(
        count("docs/a.md", "`log/src/read.rs`, `log/src/`, `log/src/*`"),
        0
    );
    assert_eq!(count("docs/a.md", "`log/src/gone.rs`, `log/gone/`"), 2);
    assert_eq!(
        count("docs/a.md", "`/var/lib/`, `lost.rs`, `retry/later`"),
        0
    );
    assert_eq!(count("docs/a.md", "```\n`log/src/gone.rs` [a](b)\n```"), 0);
    assert!(is_checked("docs/a.md") && !is_checked("docs/decisions/a.md"));
    assert!(is_checked("docs/decisions/README.md"));
}

#[test]
fn tells_the_files_that_a_document_links_to() {
    let text = "[a](../a.md#b), [b](#b)\n[c](c/README.md) [x](https://a.b/c.md)";
    let files: Vec<String> = linked("docs/b/c.md", text).collect();
    assert_eq!(files, ["docs/a.md", "docs/b/c/README.md"]);
}
