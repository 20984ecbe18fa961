//! Circles of imports between the files of one crate. Files that import each other, directly or
//! through others, are read and changed together, so that a circle is one unit, however it is cut
//! into files. A parent and its children may be such a unit; more than [`FILES_MAX`] files may not.

use std::collections::{BTreeMap, BTreeSet};

use crate::scan::SourceFile;
use crate::violation::Violation;

/// Files of a circle.
const FILES_MAX: usize = 4;

/// A module, by its path below the crate.
type Module = Vec<String>;

/// Circles with too many files.
pub fn check(sources: &[SourceFile]) -> Vec<Violation> {
    let mut found = Vec::new();
    for modules in crates(sources).values() {
        found.extend(circles(modules));
    }
    let violation = |circle: &Vec<&str>| {
        let files = circle.join(", ");
        let rule = format!("{} files import each other: {files}", circle.len());
        Violation::new(circle[0], rule)
    };
    let large = found.iter().filter(|circle| circle.len() > FILES_MAX);
    large.map(violation).collect()
}

/// The modules of each crate, by the directory that has the crate's first file.
fn crates(sources: &[SourceFile]) -> BTreeMap<&str, BTreeMap<Module, &SourceFile>> {
    let mut crates: BTreeMap<&str, BTreeMap<Module, &SourceFile>> = BTreeMap::new();
    for file in sources {
        for first in ["lib.rs", "main.rs"] {
            let directory = file.path.strip_suffix(first);
            if let Some(directory) = directory.filter(|directory| directory.ends_with('/')) {
                crates.insert(directory, BTreeMap::new());
            }
        }
    }
    for file in sources {
        // The longest directory wins, should one crate lie inside another.
        let around = crates.iter_mut().rev();
        let mut around = around.filter(|(directory, _)| file.path.starts_with(**directory));
        if let Some((directory, modules)) = around.next()
            && let Some(module) = module_of(&file.path[directory.len()..])
        {
            modules.insert(module, file);
        }
    }
    crates
}

/// The module of a file, by its path below its crate. Unit tests in files of their own and binaries
/// beside a library are left out.
fn module_of(below: &str) -> Option<Module> {
    let parts = below.strip_suffix(".rs")?.split('/');
    let mut module: Module = parts.map(str::to_owned).collect();
    if module == ["lib"] || module == ["main"] {
        module.clear();
    }
    let is_left_out = module.iter().any(|part| part == "tests" || part == "bin");
    (!is_left_out).then_some(module)
}

/// Sets of files of which each imports each, directly or through others.
fn circles<'a>(modules: &BTreeMap<Module, &'a SourceFile>) -> Vec<Vec<&'a str>> {
    let direct: BTreeMap<&Module, BTreeSet<Module>> = modules
        .iter()
        .map(|(module, file)| (module, imported(module, file, modules)))
        .collect();
    let reached: BTreeMap<&Module, BTreeSet<Module>> = modules
        .keys()
        .map(|module| (module, reach(module, &direct)))
        .collect();
    let mut found = BTreeSet::new();
    for (module, reaches) in &reached {
        let back = |other: &&Module| reached.get(other).is_some_and(|all| all.contains(*module));
        let circle: BTreeSet<&str> = reaches
            .iter()
            .filter(back)
            .map(|other| modules[other].path.as_str())
            .collect();
        if circle.len() > 1 {
            found.insert(circle.into_iter().collect::<Vec<_>>());
        }
    }
    found.into_iter().collect()
}

/// All that a module imports, directly or through others.
fn reach(from: &Module, direct: &BTreeMap<&Module, BTreeSet<Module>>) -> BTreeSet<Module> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<&Module> = vec![from];
    while let Some(module) = open.pop() {
        for next in direct.get(module).into_iter().flatten() {
            if reached.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    reached
}

/// The modules of the crate that a file names, in imports or in paths.
fn imported(
    module: &Module,
    file: &SourceFile,
    modules: &BTreeMap<Module, &SourceFile>,
) -> BTreeSet<Module> {
    // Unit tests at the end of a file may import what they like.
    let tests = ["mod tests {", "pub(crate) mod tests {"];
    let ends = tests.map(|tests| file.code.find(&format!("#[cfg(test)]\n{tests}")));
    let end = ends.into_iter().flatten().min().unwrap_or(file.code.len());
    // A visibility names a module and imports nothing of it.
    let code = file.code[..end].replace("(in crate::", "(");
    let mut paths = Vec::new();
    for statement in code.split(';') {
        let (before, tree) = import(statement);
        paths.extend(named(before));
        expand("", tree, &mut paths);
    }
    let resolved = paths
        .iter()
        .filter_map(|path| resolve(module, path, modules));
    resolved.filter(|other| other != module).collect()
}

/// What comes before the import at the end of a statement, and the import's tree; the tree is empty
/// where there is no import.
fn import(statement: &str) -> (&str, &str) {
    let mut found = (statement, "");
    let mut at = 0;
    for line in statement.split_inclusive('\n') {
        let begins = ["use ", "pub use ", "pub(crate) use ", "pub(super) use "];
        let line_begins = line.trim_start();
        if let Some(begin) = begins.iter().find(|begin| line_begins.starts_with(**begin)) {
            let tree = at + line.len() - line_begins.len() + begin.len();
            found = (&statement[..at], &statement[tree..]);
        }
        at += line.len();
    }
    found
}

/// The paths of an import's tree.
fn expand(before: &str, tree: &str, paths: &mut Vec<String>) {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        if !path.is_empty() {
            paths.push(format!("{before}{path}"));
        }
        return;
    };
    let before = format!("{before}{}", &tree[..open]);
    let inner = tree[open + 1..].trim_end();
    let inner = inner.strip_suffix('}').unwrap_or(inner);
    let (mut depth, mut start) = (0_usize, 0);
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                expand(&before, &inner[start..at], paths);
                start = at + 1;
            }
            _ => {}
        }
    }
    expand(&before, &inner[start..], paths);
}

/// Paths in code, which may begin at the crate, at the module around or at one of its children.
fn named(code: &str) -> impl Iterator<Item = String> {
    let in_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let words = code.split(move |c: char| !in_path(c));
    words.filter(|word| word.contains("::")).map(str::to_owned)
}

/// The module that a path leads to: the longest part of it that is a file.
fn resolve(module: &Module, path: &str, modules: &BTreeMap<Module, &SourceFile>) -> Option<Module> {
    let mut parts = path.split("::").map(str::trim).peekable();
    let mut full: Module = match *parts.peek()? {
        "crate" => Vec::new(),
        "self" | "super" => module.clone(),
        child => {
            // A path may begin at a child of the module; else it leads to another crate. Without
            // anything behind the child it is no path: `self.child::<T>()`.
            let mut own = module.clone();
            own.push(child.to_owned());
            let (_, rest) = path.split_once("::")?;
            if rest.is_empty() || !modules.contains_key(&own) {
                return None;
            }
            module.clone()
        }
    };
    while let Some(first) = parts.next_if(|part| ["crate", "self", "super"].contains(part)) {
        if first == "super" {
            full.pop()?;
        }
    }
    // What only tests use is no edge, and their modules are left out.
    if parts.peek() == Some(&"tests") {
        return None;
    }
    full.extend(parts.map(str::to_owned));
    while !modules.contains_key(&full) {
        full.pop()?;
    }
    Some(full)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The circles of a crate of these files.
    fn found(files: &[(&str, &str)]) -> Vec<Vec<String>> {
        let files: Vec<SourceFile> = [("lib", "")]
            .iter()
            .chain(files)
            .map(|(name, text)| SourceFile::new(&format!("x/src/{name}.rs"), text))
            .collect();
        let named = circles(&crates(&files)["x/src/"]).into_iter();
        let short = |path: &str| path["x/src/".len()..path.len() - 3].to_owned();
        named
            .map(|circle| circle.into_iter().map(short).collect())
            .collect()
    }

    #[test]
    fn finds_circles_through_imports_and_paths() {
        let a = "use crate::b::{C, deep::D};";
        assert_eq!(
            found(&[("a", a), ("b", "fn f(x: crate::a::X) {}")]),
            [["a", "b"]]
        );
        assert_eq!(
            found(&[("a", a), ("b", "use crate::c::C;"), ("c", "")]),
            [[""; 0]; 0]
        );
        let through = [
            ("a", a),
            ("b", "use crate::c::C;"),
            ("c", "use super::a::A;"),
        ];
        assert_eq!(found(&through), [["a", "b", "c"]]);
        let child = [("a", "mod b;\nuse self::b::B;"), ("a/b", "use super::A;")];
        assert_eq!(found(&child), [["a", "a/b"]]);
        let declared = [("a", "mod b;"), ("a/b", "use crate::a::A;")];
        assert_eq!(found(&declared), [[""; 0]; 0], "a declaration is no import");
        let tested = [
            ("a", a),
            ("b", "#[cfg(test)]\nmod tests {\n use crate::a::A;\n}"),
        ];
        assert_eq!(found(&tested), [[""; 0]; 0]);
        let foreign = [("a", "use other::b::B;"), ("b", "use crate::a::A;")];
        assert_eq!(found(&foreign), [[""; 0]; 0]);
    }

    #[test]
    fn finds_circles_through_paths_that_begin_at_a_child() {
        let child = |code: &str| found(&[("a", code), ("a/b", "use crate::a::A;"), ("b", "")]);
        assert_eq!(child("mod b;\nfn f() { b::g(); }"), [["a", "a/b"]]);
        assert_eq!(child("mod b;\nstruct A(Vec<b::B>);"), [["a", "a/b"]]);
        assert_eq!(child("mod b;\nfn f() { x.b::<T>(); }"), [[""; 0]; 0]);
        assert_eq!(child("mod b;\nfn f() { other::b::g(); }"), [[""; 0]; 0]);
        let deep = [
            ("a", "mod b;\nfn f() { b::c::g(); }"),
            ("a/b", "pub mod c;"),
            ("a/b/c", "use crate::a::A;"),
        ];
        assert_eq!(found(&deep), [["a", "a/b/c"]]);
    }

    #[test]
    fn large_circles_are_violations() {
        let ring = |folder: &str, first: &str, count: usize| {
            let file = |at: usize| {
                let text = format!("use crate::m{}::X;", (at + 1) % count);
                SourceFile::new(&format!("{folder}/m{at}.rs"), &text)
            };
            let root = SourceFile::new(&format!("{folder}/{first}"), "");
            let files: Vec<SourceFile> = (0..count).map(file).chain([root]).collect();
            check(&files).len()
        };
        assert_eq!(ring("x/src", "lib.rs", FILES_MAX), 0);
        assert_eq!(ring("x/src", "lib.rs", FILES_MAX + 1), 1);
        assert_eq!(ring("tests/x", "main.rs", FILES_MAX), 0);
        assert_eq!(ring("tests/x", "main.rs", FILES_MAX + 1), 1);
        assert_eq!(ring("x/examples", "no_main.rs", FILES_MAX + 1), 0);
    }
}
