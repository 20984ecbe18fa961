//! Reads Rust sources and takes comments out of them, so that checks see code only.

use std::fs;
use std::path::{Path, PathBuf};

/// A Rust source file of the workspace.
#[derive(Debug)]
pub struct SourceFile {
    /// Path relative to the workspace, with `/`.
    pub path: String,
    /// The file as it is.
    pub text: String,
    /// The same number of lines, without comments.
    pub code: String,
}

impl SourceFile {
    /// A file from its text.
    pub fn new(path: &str, text: &str) -> SourceFile {
        SourceFile {
            path: path.to_owned(),
            text: text.to_owned(),
            code: without_comments(text),
        }
    }
}

/// Every Rust source of the workspace, sorted by path; generated code is left out.
pub fn workspace_sources(root: &Path) -> Vec<SourceFile> {
    read_all(root, &["rs"])
        .iter()
        .map(|(path, text)| SourceFile::new(path, text))
        .filter(|file| !file.text.contains(concat!("@", "generated")))
        .collect()
}

/// Path and text of every file that people write: sources, documents, scripts, settings.
pub fn workspace_texts(root: &Path) -> Vec<(String, String)> {
    read_all(root, &["rs", "md", "sh", "toml", "proto", "yaml", "yml"])
}

fn read_all(root: &Path, extensions: &[&str]) -> Vec<(String, String)> {
    let mut paths = Vec::new();
    collect(root, &mut paths);
    paths.retain(|path| {
        let extension = path.extension().unwrap_or_default();
        extensions.iter().any(|wanted| extension == *wanted)
    });
    paths.sort();
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path).expect("a source file is readable UTF-8");
        let relative = path
            .strip_prefix(root)
            .expect("the walk started at the root");
        (relative.to_string_lossy().replace('\\', "/"), text)
    };
    paths.iter().map(read).collect()
}

fn collect(directory: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("the workspace is readable") {
        let path = entry.expect("the workspace is readable").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') || name == "target" {
            continue;
        }
        if path.is_dir() {
            collect(&path, paths);
        } else {
            paths.push(path);
        }
    }
}

/// The text with comments replaced by nothing; line breaks stay, so that line numbers do.
pub fn without_comments(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let taken = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            let length = block_comment_length(rest);
            code.extend(rest[..length].chars().filter(|c| *c == '\n'));
            length
        } else {
            let length = literal_length(rest, code.chars().last()).unwrap_or(first.len_utf8());
            code.push_str(&rest[..length]);
            length
        };
        rest = &rest[taken..];
    }
    code
}

fn block_comment_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut depth = 0_usize;
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

/// The length of the string or character literal at the start of `text`, if there is one.
fn literal_length(text: &str, before: Option<char>) -> Option<usize> {
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if text.starts_with('"') {
        return Some(quoted_length(text, 1));
    }
    if text.starts_with('r') && !in_word || text.starts_with('r') && before == Some('b') {
        let hashes = text[1..].bytes().take_while(|byte| *byte == b'#').count();
        if text[1 + hashes..].starts_with('"') {
            let close = format!("\"{}", "#".repeat(hashes));
            let body = 2 + hashes;
            let end = text[body..].find(&close).map(|at| body + at + close.len());
            return Some(end.unwrap_or(text.len()));
        }
        return None;
    }
    if let Some(after) = text.strip_prefix('\'') {
        // 'a' and '\n' are characters; 'a without a closing quote is a lifetime.
        let mut characters = after.char_indices();
        let (_, first) = characters.next()?;
        if first == '\\' {
            let escaped = characters.next()?.1.len_utf8();
            let close = after[1 + escaped..].find('\'')?;
            return Some(1 + 1 + escaped + close + 1);
        }
        let (at, second) = characters.next()?;
        return (second == '\'').then_some(1 + at + 1);
    }
    None
}

fn quoted_length(text: &str, start: usize) -> usize {
    let bytes = text.as_bytes();
    let mut at = start;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

#[test]
fn comments_go_and_literals_stay() {
    let check = |text: &str, code: &str| assert_eq!(without_comments(text), code, "{text}");
    check("let a = 1; // one\nlet b;", "let a = 1; \nlet b;");
    check("/* a /* b */ c */let d;", "let d;");
    check("/* a\n b */\nlet d;", "\n\nlet d;");
    check(r#"let s = "// no";"#, r#"let s = "// no";"#);
    check(r#"let s = "\" // no"; // yes"#, r#"let s = "\" // no"; "#);
    check(
        r##"let s = r#"" // no"#; // yes"##,
        r##"let s = r#"" // no"#; "##,
    );
    check("let c = '\"'; // yes", "let c = '\"'; ");
    check(r"let c = '\''; // yes", r"let c = '\''; ");
    check("fn f<'a>(s: &'a str) {} // yes", "fn f<'a>(s: &'a str) {} ");
}
