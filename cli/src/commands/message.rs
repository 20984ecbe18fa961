//! How a received message is printed, and one that cannot be read reported, by `consume` and `read`
//! alike.

use aquifer_client::{Damaged, ReceivedMessage};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::json;

use crate::args::OnDamageArg;
use crate::exit::CliError;
use crate::output::Output;

/// The contract's object. Times are milliseconds since 1970; bytes that are not UTF-8 go into the
/// `_base64` twin of their field.
#[derive(Debug, Serialize)]
struct MessageLine<'a> {
    position: String,
    index: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<u32>,
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    producer: &'a str,
    sequence_id: u64,
    /// By the producer's clock.
    publish_time: u64,
    /// By the broker's, which seeks go by.
    broker_time: u64,
    event_time: Option<u64>,
    properties: Properties<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

/// The properties as an object. Where a name comes several times its value is a list, so that none
/// is lost.
#[derive(Debug)]
struct Properties<'a>(&'a [(String, String)]);

impl Serialize for Properties<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut values: Vec<(&str, Vec<&str>)> = Vec::new();
        for (name, value) in self.0 {
            match values.iter_mut().find(|(known, _)| known == name) {
                Some((_, all)) => all.push(value),
                None => values.push((name, vec![value])),
            }
        }
        let mut map = serializer.serialize_map(Some(values.len()))?;
        for (name, all) in values {
            match all.as_slice() {
                [value] => map.serialize_entry(name, value)?,
                several => map.serialize_entry(name, several)?,
            }
        }
        map.end()
    }
}

/// What cannot be read of a topic, as a command meets it.
pub struct Damage<'a> {
    out: &'a Output,
    on_damage: OnDamageArg,
    messages: u64,
    /// Of some of them it is not known how many they are.
    at_most: bool,
}

impl<'a> Damage<'a> {
    /// Nothing yet.
    pub fn new(out: &'a Output, on_damage: OnDamageArg) -> Damage<'a> {
        Damage {
            out,
            on_damage,
            messages: 0,
            at_most: false,
        }
    }

    /// Messages cannot be read.
    ///
    /// # Errors
    /// When the command is to end there.
    pub fn met(&mut self, damaged: &Damaged) -> Result<(), CliError> {
        if self.on_damage == OnDamageArg::Stop {
            let advice = "skip them with --on-damage skip; `aquifer doctor` shows what is \
                          damaged in storage";
            return Err(CliError::failed(damaged.to_string()).advise(advice));
        }
        self.messages = self.messages.saturating_add(damaged.messages());
        self.at_most |= damaged.at_most;
        let note = match self.out.is_json() {
            false => format!("{damaged}; skipped"),
            true => json!({"damaged": {
                "topic": damaged.topic.to_string(),
                "partition": damaged.topic.partition(),
                "first_index": damaged.first_index.0,
                "last_index": damaged.last_index.0,
                "messages": damaged.messages(),
                "at_most": damaged.at_most,
                "ledger": damaged.ledger,
                "entry": damaged.entry,
                "reason": damaged.reason,
            }})
            .to_string(),
        };
        self.out.note(&note);
        Ok(())
    }

    /// The command has done what it could.
    ///
    /// # Errors
    /// When messages were passed over.
    pub fn end(&self) -> Result<(), CliError> {
        if self.messages == 0 {
            return Ok(());
        }
        let up_to = match self.at_most {
            true => "up to ",
            false => "",
        };
        let text = format!(
            "{up_to}{} messages could not be read and were passed over",
            self.messages
        );
        Err(CliError::failed(text).advise("standard error names them"))
    }
}

/// Prints a message: its payload for people, everything about it for programs.
pub fn print(out: &Output, message: &ReceivedMessage) -> Result<(), CliError> {
    if !out.is_json() {
        return out.line(&message.payload);
    }
    let (key, key_base64) = message.key.as_deref().map_or((None, None), text_or_base64);
    let (payload, payload_base64) = text_or_base64(&message.payload);
    out.object(&MessageLine {
        position: message.position.to_string(),
        index: message.index.0,
        partition: message.topic.partition(),
        key,
        key_base64,
        producer: &message.producer_name,
        sequence_id: message.sequence_id,
        publish_time: message.publish_time_ms,
        broker_time: message.broker_time_ms,
        event_time: message.event_time_ms,
        properties: Properties(&message.properties),
        payload,
        payload_base64,
    })
}

fn text_or_base64(bytes: &[u8]) -> (Option<&str>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(STANDARD.encode(bytes))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_text_become_base64() {
        assert_eq!(text_or_base64("häuser".as_bytes()), (Some("häuser"), None));
        assert_eq!(text_or_base64(b""), (Some(""), None));
        assert_eq!(text_or_base64(b"\xff\xfe"), (None, Some("//4=".to_owned())));
    }

    #[test]
    fn the_object_has_the_contracts_fields() {
        let property = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let properties = [property("z", "1"), property("a", "b"), property("z", "2")];
        let line = MessageLine {
            position: "1:2:3".to_owned(),
            index: 4,
            partition: None,
            key: None,
            key_base64: None,
            producer: "p",
            sequence_id: 5,
            publish_time: 6,
            broker_time: 7,
            event_time: None,
            properties: Properties(&properties),
            payload: Some("x"),
            payload_base64: None,
        };
        assert_eq!(
            serde_json::to_string(&line).expect("it serializes"),
            r#"{"position":"1:2:3","index":4,"key":null,"producer":"p","sequence_id":5,"publish_time":6,"broker_time":7,"event_time":null,"properties":{"z":["1","2"],"a":"b"},"payload":"x"}"#
        );
    }
}
