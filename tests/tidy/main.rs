//! Rules that the compiler and clippy cannot check: crate directions, imports and circles of
//! them, file sizes, banned words, cited rules, `#[must_use]`, where metadata keys are written, the
//! documents that must be there, their indexes, and what belongs to an alert. Every checker is a
//! pure function from text to violations, with tests that it catches what it is for.

mod alerts;
mod circles;
mod documents;
mod edges;
mod faults;
mod imports;
mod keys;
mod links;
mod must_use;
mod pages;
mod rules;
mod scan;
mod sizes;
mod violation;
mod words;

use std::path::Path;

use scan::SourceFile;
use violation::Violation;

/// The workspace's directory.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests package lies one level below the workspace")
}

fn assert_none(violations: &[Violation]) {
    let listed: Vec<String> = violations
        .iter()
        .map(|violation| format!("{}: {}", violation.place, violation.rule))
        .collect();
    assert!(listed.is_empty(), "\n{}\n", listed.join("\n"));
}

fn check_sources(check: impl Fn(&SourceFile) -> Vec<Violation>) {
    let sources = scan::workspace_sources(root());
    assert!(sources.len() > 50, "the scan found the workspace's sources");
    assert_none(&sources.iter().flat_map(check).collect::<Vec<_>>());
}

#[test]
fn manifests_follow_the_crate_directions() {
    let crates = edges::workspace_crates(root());
    assert!(crates.len() >= 13, "cargo metadata lists the workspace");
    assert_none(&edges::check_manifests(&crates));
}

#[test]
fn sources_follow_the_crate_directions() {
    let crates = edges::workspace_crates(root());
    check_sources(|file| edges::check_source(file, &crates));
}

#[test]
fn files_do_not_import_in_large_circles() {
    assert_none(&circles::check(&scan::workspace_sources(root())));
}

#[test]
fn paths_begin_at_the_crate_and_time_has_one_place() {
    check_sources(imports::check);
}

#[test]
fn files_stay_within_their_size() {
    check_sources(sizes::check);
}

#[test]
fn no_banned_words() {
    check_sources(words::check);
}

#[test]
fn texts_are_clear() {
    let texts = scan::workspace_texts(root());
    let check = |(path, text): &(String, String)| match path.ends_with(".rs") {
        true => words::check_clear(path, text, &scan::without_comments(text)),
        false => words::check_clear(path, text, text),
    };
    assert_none(&texts.iter().flat_map(check).collect::<Vec<_>>());
    check_sources(words::check_width);
}

#[test]
fn no_paths_of_one_machine() {
    let texts = scan::workspace_texts(root());
    let check = |(path, text): &(String, String)| words::check_paths(path, text);
    assert_none(&texts.iter().flat_map(check).collect::<Vec<_>>());
}

#[test]
fn getters_must_be_used() {
    check_sources(must_use::check);
}

#[test]
fn metadata_keys_are_written_in_one_file() {
    check_sources(keys::check);
}

#[test]
fn cited_rules_are_defined() {
    let page = std::fs::read_to_string(root().join(rules::DEFINITIONS));
    let defined = rules::defined(&page.expect("the page of rules is readable"));
    let check = |(path, text): &(String, String)| match path.ends_with(".rs") {
        true => rules::check(path, &rules::comments(text), &defined),
        false => rules::check(path, text, &defined),
    };
    let texts = scan::workspace_texts(root());
    assert_none(&texts.iter().flat_map(check).collect::<Vec<_>>());
    check_sources(|file| rules::check_names(&file.path, &file.code, &defined));
}

#[test]
fn documents_name_what_exists() {
    let texts = scan::workspace_texts(root());
    let repository = links::Repository {
        exists: &|path| root().join(path).exists(),
        document: &|path| std::fs::read_to_string(root().join(path)).ok(),
    };
    let documents = texts.iter().filter(|(path, _)| links::is_checked(path));
    let check = |(path, text): &(String, String)| links::check(path, text, &repository);
    assert_none(&documents.flat_map(check).collect::<Vec<_>>());
}

#[test]
fn pages_are_in_an_index() {
    assert_none(&pages::check(&scan::workspace_texts(root())));
}

#[test]
fn alerts_have_histories_pages_and_metrics() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).ok();
    let rules = read(alerts::RULES).expect("the alert rules are readable");
    let histories = alerts::HISTORIES.map(|path| read(path).expect("histories are readable"));
    let sources = scan::workspace_sources(root());
    assert_none(&alerts::check(&rules, &histories.concat(), &sources, &read));
}

#[test]
fn the_table_of_faults_names_tests() {
    let texts = scan::workspace_texts(root());
    let page = std::fs::read_to_string(root().join(faults::PAGE));
    let page = page.expect("the page of cold storage is readable");
    let is_test = |name: &str| {
        let begin = format!("fn {name}(");
        let mut sources = texts.iter().filter(|(path, _)| path.ends_with(".rs"));
        sources.any(|(_, text)| text.contains(&begin))
    };
    assert_none(&faults::check(&page, &is_test));
}

#[test]
fn documents_are_there_and_short() {
    assert_none(&documents::check(root()));
}
