//! Keeps secrets out of what is handed to others. What looks like a secret is one: too much is left
//! out rather than too little.
//!
//! Invariant: a value of a setting that is secret, and what is in a file that such a setting names,
//! is in no text that went through [`Redactor::text`], wherever else it stands.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use toml::{Table, Value};

/// What stands in place of a secret.
const REDACTED: &str = "<redacted>";
/// Words in the names of secrets.
const SECRET_WORDS: [&str; 8] = [
    "password",
    "passwd",
    "secret",
    "token",
    "credential",
    "authorization",
    "passphrase",
    "signature",
];
/// Endings of names of secrets, where a word alone would say too little.
const SECRET_ENDS: [&str; 4] = ["access_key", "account_key", "private_key", "api_key"];
/// What tokens of Aquifer begin with.
const TOKEN_PREFIX: &str = "aqf_";
/// What tokens of issuers (JWT) begin with: `{"` in base64.
const JWT_PREFIX: &str = "eyJ";
/// Shorter values are everywhere by chance.
const SECRET_BYTES_MIN: usize = 4;
/// Most bytes of a file with a secret.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Takes secrets out of texts.
#[derive(Debug, Default)]
pub struct Redactor {
    /// Longest first, so that none that begins like another leaves its end.
    known: BTreeSet<(Reverse<usize>, String)>,
}

impl Redactor {
    /// Takes the secrets out of settings, and remembers them.
    pub fn settings(&mut self, table: &mut Table) {
        for (key, value) in table.iter_mut() {
            if is_secret(key) {
                self.learn_all(value);
                *value = Value::String(REDACTED.to_owned());
                continue;
            }
            match value {
                Value::String(path) if names_secret_file(key) => self.learn_file(Path::new(path)),
                Value::Table(inner) => self.settings(inner),
                Value::Array(all) => {
                    for one in all {
                        if let Value::Table(inner) = one {
                            self.settings(inner);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// Remembers a secret.
    pub fn learn(&mut self, secret: &str) {
        for line in secret.lines().map(str::trim) {
            if line.len() >= SECRET_BYTES_MIN && !line.starts_with("-----") {
                self.known.insert((Reverse(line.len()), line.to_owned()));
            }
        }
    }

    fn learn_all(&mut self, value: &Value) {
        match value {
            Value::String(text) => self.learn(text),
            Value::Array(all) => all.iter().for_each(|one| self.learn_all(one)),
            Value::Table(table) => table.values().for_each(|one| self.learn_all(one)),
            _ => {}
        }
    }

    /// Remembers what is in a file with a secret. One that cannot be read has nothing to hide here.
    pub fn learn_file(&mut self, path: &Path) {
        let mut bytes = Vec::new();
        let read = File::open(path).map(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes));
        if matches!(read, Ok(Ok(_))) {
            self.learn(&String::from_utf8_lossy(&bytes));
        }
    }

    /// The text without secrets.
    pub fn text(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut in_key = false;
        for line in text.split_inclusive('\n') {
            let begins = line.contains("-----BEGIN") && line.contains("PRIVATE KEY");
            if begins || in_key {
                in_key = !line.contains("-----END");
                if begins {
                    out.push_str(REDACTED);
                    out.push('\n');
                }
                continue;
            }
            out.push_str(&self.line(line));
        }
        out
    }

    fn line(&self, line: &str) -> String {
        let mut line = line.to_owned();
        for (_, secret) in &self.known {
            if line.contains(secret.as_str()) {
                line = line.replace(secret.as_str(), REDACTED);
            }
        }
        let line = without_users(&line);
        without_values(&line)
    }
}

/// Whether a setting, a header or a field of this name is a secret.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('-', "_");
    if name.ends_with("_file") || name.ends_with("_path") {
        return false;
    }
    let has_word = SECRET_WORDS.iter().any(|word| name.contains(word));
    has_word || name == "sig" || SECRET_ENDS.iter().any(|end| name.ends_with(end))
}

/// Whether a setting names a file with a secret.
fn names_secret_file(name: &str) -> bool {
    let stem = name.strip_suffix("_file").unwrap_or_default();
    is_secret(stem) || stem == "key" || stem.ends_with("_key")
}

/// Takes users and passwords out of addresses, `scheme://USER:PASSWORD@host`.
fn without_users(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        // A password may have any character that needs no escape in a log.
        let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>');
        let end = after.find(ends).unwrap_or(after.len());
        let (host, behind) = after.split_at(end);
        match host.rsplit_once('@') {
            Some((_, host)) => {
                out.push_str(REDACTED);
                out.push('@');
                out.push_str(host);
            }
            None => out.push_str(host),
        }
        rest = behind;
    }
    out.push_str(rest);
    out
}

/// Takes tokens, and what stands behind the name of a secret, out of a line.
fn without_values(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(begin) = rest.find(is_word) {
        let (before, from) = rest.split_at(begin);
        out.push_str(before);
        let end = from.find(|c| !is_word(c)).unwrap_or(from.len());
        let (word, behind) = from.split_at(end);
        rest = behind;
        if word.contains(TOKEN_PREFIX) {
            out.push_str(REDACTED);
            continue;
        }
        if word.starts_with(JWT_PREFIX) && behind.starts_with('.') {
            out.push_str(REDACTED);
            rest = behind.trim_start_matches(|c| is_word(c) || c == '.');
            continue;
        }
        out.push_str(word);
        if is_secret(word) || word.eq_ignore_ascii_case("bearer") {
            rest = skip_value(word, behind, &mut out);
        }
    }
    out.push_str(rest);
    out
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-')
}

/// Behind the name of a secret: what separates it from its value is kept, and the value is not.
fn skip_value<'a>(name: &str, behind: &'a str, out: &mut String) -> &'a str {
    let is_between = |c: char| matches!(c, '=' | ':' | ' ' | '"' | '\'' | '\\');
    let begin = behind.find(|c| !is_between(c)).unwrap_or(behind.len());
    let (between, value) = behind.split_at(begin);
    let assigns = between.contains(['=', ':']) || name.eq_ignore_ascii_case("bearer");
    if !assigns || value.trim().is_empty() {
        return behind;
    }
    out.push_str(between);
    // A scheme as `Bearer` or `Basic` is followed by what is secret.
    let end = match between.chars().last() {
        Some(quote @ ('"' | '\'')) => end_of_quoted(value, quote, between.ends_with("\\\"")),
        // Where a value without quotes ends cannot be told: it may have any character.
        _ => value.find('\n').unwrap_or(value.len()),
    };
    out.push_str(REDACTED);
    &value[end..]
}

/// Where a quoted value ends. In a text that is quoted itself (`nested`) the quote has a backslash
/// of its own; one with more of them is part of the value.
fn end_of_quoted(value: &str, quote: char, nested: bool) -> usize {
    let mut backslashes = 0;
    for (at, c) in value.char_indices() {
        match c {
            '\n' => return at,
            '\\' => backslashes += 1,
            c if c == quote && nested && backslashes <= 1 => return at - backslashes,
            c if c == quote && !nested && backslashes % 2 == 0 => return at,
            _ => backslashes = 0,
        }
    }
    value.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_lose_their_secrets_and_texts_what_these_were() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        std::fs::write(&file, "from-the-file\n").unwrap();
        let text = format!(
            "metadata = \"etcd://e1:2379\"\n[etcd]\nuser = \"me\"\npassword = \"hunter2\"\n\
             password_file = \"{}\"\n[[list]]\nname = \"x\"\naccess_key = \"AKIA\"\n",
            file.display()
        );
        let mut table: Table = text.parse().unwrap();
        let mut redactor = Redactor::default();
        redactor.settings(&mut table);
        let shown = table.to_string();
        assert!(shown.contains("etcd://e1:2379") && shown.contains("user = \"me\""));
        for secret in ["hunter2", "AKIA"] {
            assert!(!shown.contains(secret), "{shown}");
        }
        let text = redactor.text("a hunter2 b AKIA c from-the-file d\n");
        assert_eq!(text, "a <redacted> b <redacted> c <redacted> d\n");
    }

    #[test]
    fn what_looks_like_a_secret_is_taken_out() {
        let redactor = Redactor::default();
        for (line, secret) in [
            ("password=hunter2\n", "hunter2"),
            ("{\"password\":\"hunter2\",\"a\":1}\n", "hunter2"),
            ("Authorization: Basic aHVudGVyMg==\n", "aHVudGVyMg"),
            ("header Bearer abc.def.ghi seen\n", "abc.def.ghi"),
            ("got aqf_0123456789abcdef_xyz here\n", "0123456789abcdef"),
            ("connects to etcds://me:hunter2@e1:2379/x\n", "hunter2"),
            ("AWS_SECRET_ACCESS_KEY=abcd/efg+h\n", "efg"),
            ("client-secret: 'two words'\n", "words"),
            ("password=ab,cdef\n", "cdef"),
            ("{\"password\":\"ab\\\"cdef\",\"a\":1}\n", "cdef"),
            (
                "\"{\\\"password\\\":\\\"abcdef\\\",\\\"a\\\":1}\"\n",
                "abcdef",
            ),
            ("account_key=hunter2\n", "hunter2"),
            ("GET /o?sig=hunter2 HTTP/1.1\n", "hunter2"),
            (
                "shown eyJhbGciOiJub25l.eyJzdWIiOiJtZSJ9.c2ln here\n",
                "c2ln",
            ),
        ] {
            let text = redactor.text(line);
            assert!(!text.contains(secret), "{line} {text}");
            assert!(text.contains(REDACTED), "{line} {text}");
        }
        // What is behind a quoted value is kept.
        let text = redactor.text("{\"password\":\"x\\\\\",\"a\":1}\n");
        assert_eq!(text, "{\"password\":\"<redacted>\",\"a\":1}\n");
        let mut both = Redactor::default();
        both.learn("hunter");
        both.learn("hunter27");
        assert_eq!(both.text("a hunter27 b\n"), "a <redacted> b\n");
        let key = "a\n-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\nb\n";
        assert_eq!(redactor.text(key), "a\n<redacted>\nb\n");
    }

    #[test]
    fn what_is_no_secret_stays() {
        let redactor = Redactor::default();
        for line in [
            "INFO topic loaded, url=http://b1:7650/x topic=persistent://public/default/t\n",
            "the token of scrapers is missing or wrong\n",
            "aquifer_grpc_requests_total{code=\"OK\"} 3\n",
            "password_file = /etc/aquifer/password\n",
        ] {
            assert_eq!(redactor.text(line), line);
        }
    }
}
