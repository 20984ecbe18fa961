//! How a received message is printed, by `consume` and `read` alike.

use std::collections::BTreeMap;

use aquifer_client::ReceivedMessage;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

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
    publish_time: u64,
    event_time: Option<u64>,
    properties: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
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
        event_time: message.event_time_ms,
        properties: message
            .properties
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect(),
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
        let line = MessageLine {
            position: "1:2:3".to_owned(),
            index: 4,
            partition: None,
            key: None,
            key_base64: None,
            producer: "p",
            sequence_id: 5,
            publish_time: 6,
            event_time: None,
            properties: BTreeMap::from([("a", "b")]),
            payload: Some("x"),
            payload_base64: None,
        };
        assert_eq!(
            serde_json::to_string(&line).expect("it serializes"),
            r#"{"position":"1:2:3","index":4,"key":null,"producer":"p","sequence_id":5,"publish_time":6,"event_time":null,"properties":{"a":"b"},"payload":"x"}"#
        );
    }
}
