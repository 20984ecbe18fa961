//! Where the key of a message comes from: one for all, a CSV column, or a JSON pointer.

use bytes::Bytes;
use serde_json::Value;

use crate::exit::CliError;

/// A source of keys.
#[derive(Debug, Clone)]
pub enum KeySource {
    /// No keys.
    None,
    /// The same key for all.
    Fixed(Bytes),
    /// A column of CSV lines; the first line names the columns.
    Column {
        /// The column's name.
        name: String,
        /// Its place, once the header was seen.
        place: Option<usize>,
    },
    /// A place in JSON lines.
    Pointer(String),
}

/// The key of a line.
#[derive(Debug, PartialEq, Eq)]
pub enum Keyed {
    /// The line names columns and is no message.
    Header,
    /// This key.
    Key(Bytes),
    /// Keys are not wanted.
    NotAsked,
    /// The line has none.
    Missing,
}

impl KeySource {
    /// From the arguments, of which at most one is given.
    pub fn new(
        key: Option<String>,
        column: Option<String>,
        pointer: Option<String>,
    ) -> Result<KeySource, CliError> {
        if let Some(key) = key {
            return Ok(KeySource::Fixed(Bytes::from(key)));
        }
        if let Some(name) = column {
            return Ok(KeySource::Column { name, place: None });
        }
        match pointer {
            None => Ok(KeySource::None),
            Some(pointer) if pointer.starts_with('/') => Ok(KeySource::Pointer(pointer)),
            Some(pointer) => Err(CliError::usage(format!(
                "--key-pointer {pointer:?} does not begin with a slash"
            ))
            .advise("a JSON pointer names a place like /user/id or /items/0")),
        }
    }

    /// The key of a line, or why it cannot have one.
    pub fn key_of(&mut self, line: &[u8]) -> Result<Keyed, String> {
        match self {
            KeySource::None => Ok(Keyed::NotAsked),
            KeySource::Fixed(key) => Ok(Keyed::Key(key.clone())),
            KeySource::Pointer(pointer) => json_key(line, pointer),
            KeySource::Column { name, place } => {
                let record = csv_record(line)?;
                let Some(at) = *place else {
                    let found = record.iter().position(|column| column == name.as_bytes());
                    *place = Some(found.ok_or_else(|| no_column(name, &record))?);
                    return Ok(Keyed::Header);
                };
                Ok(match record.get(at) {
                    Some(key) if !key.is_empty() => Keyed::Key(Bytes::copy_from_slice(key)),
                    _ => Keyed::Missing,
                })
            }
        }
    }
}

fn no_column(name: &str, header: &csv::ByteRecord) -> String {
    let columns: Vec<_> = header.iter().map(String::from_utf8_lossy).collect();
    format!(
        "the header has no column {name:?}; it has {}",
        columns.join(", ")
    )
}

fn csv_record(line: &[u8]) -> Result<csv::ByteRecord, String> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .buffer_capacity(line.len().clamp(1, 8 * 1024))
        .from_reader(line);
    let mut record = csv::ByteRecord::new();
    match reader.read_byte_record(&mut record) {
        Ok(_) => Ok(record),
        Err(error) => Err(format!("not CSV: {error}")),
    }
}

fn json_key(line: &[u8], pointer: &str) -> Result<Keyed, String> {
    let value: Value =
        serde_json::from_slice(line).map_err(|error| format!("not JSON: {error}"))?;
    Ok(match value.pointer(pointer) {
        None | Some(Value::Null) => Keyed::Missing,
        Some(Value::String(text)) => Keyed::Key(Bytes::from(text.clone())),
        Some(other) => Keyed::Key(Bytes::from(other.to_string())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Result<Keyed, String> {
        Ok(Keyed::Key(Bytes::from(text.to_owned())))
    }

    #[test]
    fn a_column_is_found_by_the_header() {
        let mut keys = KeySource::new(None, Some("tail".into()), None).expect("valid");
        assert_eq!(keys.key_of(b"year,tail,\"from, to\""), Ok(Keyed::Header));
        assert_eq!(keys.key_of(b"2013,N14228,\"EWR, IAH\""), key("N14228"));
        assert_eq!(keys.key_of(b"2013,\"N1,4\",x\r"), key("N1,4"));
        assert_eq!(keys.key_of(b"2013,,x"), Ok(Keyed::Missing));
        assert_eq!(keys.key_of(b"2013"), Ok(Keyed::Missing));
        assert_eq!(
            keys.key_of(b"2013,\xff,x"),
            Ok(Keyed::Key(Bytes::from_static(b"\xff")))
        );
    }

    #[test]
    fn an_unknown_column_lists_the_known_ones() {
        let mut keys = KeySource::new(None, Some("tail".into()), None).expect("valid");
        let reason = keys.key_of(b"year,month").unwrap_err();
        assert_eq!(
            reason,
            "the header has no column \"tail\"; it has year, month"
        );
    }

    #[test]
    fn a_pointer_finds_texts_and_numbers() {
        let mut keys = KeySource::new(None, None, Some("/a/b".into())).expect("valid");
        assert_eq!(keys.key_of(br#"{"a":{"b":"us"}}"#), key("us"));
        assert_eq!(keys.key_of(br#"{"a":{"b":12}}"#), key("12"));
        assert_eq!(keys.key_of(br#"{"a":{"b":null}}"#), Ok(Keyed::Missing));
        assert_eq!(keys.key_of(br#"{"a":{}}"#), Ok(Keyed::Missing));
        assert!(keys.key_of(b"{").unwrap_err().starts_with("not JSON"));
        assert!(KeySource::new(None, None, Some("a".into())).is_err());
    }

    #[test]
    fn without_a_source_nothing_is_parsed() {
        let mut keys = KeySource::new(None, None, None).expect("valid");
        assert_eq!(keys.key_of(b"{"), Ok(Keyed::NotAsked));
        let mut keys = KeySource::new(Some("k".into()), None, None).expect("valid");
        assert_eq!(keys.key_of(b"{"), key("k"));
    }
}
