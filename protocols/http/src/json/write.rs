//! Message → JSON. Fields without presence are always written, so that readers need no defaults;
//! those with presence are written when they are set.

use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, ReflectMessage, Value};

/// A field that is written under another name, as another text.
pub(crate) struct Renamed<'f> {
    /// The field.
    pub(crate) field: &'f FieldDescriptor,
    /// What it is called.
    pub(crate) name: &'static str,
    /// What it is.
    pub(crate) text: String,
}

/// Appends a message; of one field of its own level, another text.
pub(crate) fn write(message: &DynamicMessage, renamed: Option<&Renamed<'_>>, out: &mut String) {
    out.push('{');
    let mut first = true;
    for field in message.descriptor().fields() {
        if field.supports_presence() && !message.has_field(&field) {
            continue;
        }
        if !std::mem::take(&mut first) {
            out.push(',');
        }
        let renamed = renamed.filter(|renamed| *renamed.field == field);
        string(
            renamed.map_or(field.json_name(), |renamed| renamed.name),
            out,
        );
        out.push(':');
        match renamed {
            Some(renamed) => string(&renamed.text, out),
            None => value(&field.kind(), &message.get_field(&field), out),
        }
    }
    out.push('}');
}

fn value(kind: &Kind, value_: &Value, out: &mut String) {
    // Writing to a String does not fail.
    let _ = match value_ {
        Value::Bool(value) => write!(out, "{value}"),
        Value::I32(value) => write!(out, "{value}"),
        Value::U32(value) => write!(out, "{value}"),
        Value::I64(value) => write!(out, "\"{value}\""),
        Value::U64(value) => write!(out, "\"{value}\""),
        Value::F32(value) => return double(f64::from(*value), out),
        Value::F64(value) => return double(*value, out),
        Value::String(text) => return string(text, out),
        Value::Bytes(bytes) => write!(out, "\"{}\"", STANDARD.encode(bytes)),
        Value::EnumNumber(number) => return enumerated(kind, *number, out),
        Value::Message(message) => return write(message, None, out),
        Value::List(items) => return list(kind, items, out),
        // Descriptors with maps are refused at start.
        Value::Map(_) => out.write_str("{}"),
    };
}

fn list(kind: &Kind, items: &[Value], out: &mut String) {
    out.push('[');
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        value(kind, item, out);
    }
    out.push(']');
}

fn double(value: f64, out: &mut String) {
    match serde_json::Number::from_f64(value) {
        Some(number) => out.push_str(&number.to_string()),
        None if value.is_nan() => out.push_str("\"NaN\""),
        None if value > 0.0 => out.push_str("\"Infinity\""),
        None => out.push_str("\"-Infinity\""),
    }
}

/// The name of a value; the number of one that this build does not know.
fn enumerated(kind: &Kind, number: i32, out: &mut String) {
    let known = kind.as_enum().and_then(|names| names.get_value(number));
    match known {
        Some(known) => string(known.name(), out),
        None => out.push_str(&number.to_string()),
    }
}

fn string(text: &str, out: &mut String) {
    out.push_str(&serde_json::Value::from(text).to_string());
}

#[cfg(test)]
mod tests {
    use aquifer_proto::{DESCRIPTORS, v1};
    use prost::Message;
    use prost_reflect::DescriptorPool;
    use serde_json::{Value as Json, json};

    use super::*;

    fn written(message: &impl Message, name: &str) -> Json {
        let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
        let name = format!("aquifer.v1.{name}");
        let descriptor = pool.get_message_by_name(&name).unwrap();
        let bytes = message.encode_to_vec();
        let message = DynamicMessage::decode(descriptor, &bytes[..]).unwrap();
        let mut text = String::new();
        write(&message, None, &mut text);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn readers_need_no_defaults() {
        let found = written(&v1::PolicyView::default(), "PolicyView");
        assert_eq!(found, json!({"version": "0", "origins": []}));
        let load = v1::Load {
            messages_in_per_second: f64::NAN,
            bytes_in_per_second: 2.5,
            topics: u64::MAX,
            ..v1::Load::default()
        };
        let expected = json!({
            "messagesInPerSecond": "NaN",
            "bytesInPerSecond": 2.5,
            "messagesOutPerSecond": 0.0,
            "bytesOutPerSecond": 0.0,
            "topics": "18446744073709551615",
            "sessions": "0",
        });
        assert_eq!(written(&load, "Load"), expected);
    }

    #[test]
    fn texts_bytes_and_names_are_quoted() {
        let topic = v1::DescribeTopicResponse {
            topic: "\"\\\n\u{7}é".to_owned(),
            incarnation: vec![0, 1, 255].into(),
            key_hash: 1,
            ..v1::DescribeTopicResponse::default()
        };
        let found = written(&topic, "DescribeTopicResponse");
        assert_eq!(found["topic"], "\"\\\n\u{7}é");
        assert_eq!(found["incarnation"], "AAH/");
        assert_eq!(found["keyHash"], "KEY_HASH_MURMUR3");
        let unknown = v1::PolicyOrigin {
            policy: String::new(),
            level: 99,
            ..v1::PolicyOrigin::default()
        };
        assert_eq!(written(&unknown, "PolicyOrigin")["level"], 99);
    }
}
