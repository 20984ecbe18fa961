//! JSON → message.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, OneofDescriptor, Value,
};
use serde_json::{Map, Value as Json};

use crate::problem::{VIOLATIONS_MAX, Violation};

/// The largest whole number that every reader of JSON keeps exactly.
const EXACT_MAX: u64 = (1 << 53) - 1;

/// Reads messages, and notes what is wrong with them.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    violations: Vec<Violation>,
}

impl Reader {
    /// What was wrong.
    pub(crate) fn violations(self) -> Vec<Violation> {
        self.violations
    }

    /// Notes something wrong.
    pub(crate) fn wrong(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(Violation::new(field, reason));
        }
    }

    /// Reads the fields of an object, of which a message may have only some. `within` is where the
    /// object is.
    pub(crate) fn fields(
        &mut self,
        message: &mut DynamicMessage,
        object: &Map<String, Json>,
        offered: &[FieldDescriptor],
        within: &str,
    ) {
        let mut chosen: Vec<OneofDescriptor> = Vec::new();
        for (name, json) in object {
            let place = match within {
                "" => name.clone(),
                within => format!("{within}.{name}"),
            };
            let field = offered.iter().find(|field| field.json_name() == name);
            let Some(field) = field else {
                self.wrong(place, "there is no such field here");
                continue;
            };
            let oneof = field.containing_oneof().filter(|one| !one.is_synthetic());
            if let Some(oneof) = oneof {
                if chosen.contains(&oneof) {
                    self.wrong(place, "give only one of the fields that exclude each other");
                    continue;
                }
                chosen.push(oneof);
            }
            let Some(value) = self.field(field, json, &place) else {
                continue;
            };
            // The value was made for this field.
            if message.try_set_field(field, value).is_err() {
                self.wrong(place, "it has another type");
            }
        }
    }

    fn field(&mut self, field: &FieldDescriptor, json: &Json, place: &str) -> Option<Value> {
        if !field.is_list() {
            return self.value(&field.kind(), json, place);
        }
        let Json::Array(items) = json else {
            self.wrong(place, "give a list");
            return None;
        };
        let numbered = items.iter().enumerate();
        let values = numbered
            .map_while(|(at, item)| self.value(&field.kind(), item, &format!("{place}[{at}]")));
        let values: Vec<Value> = values.collect();
        // Where one is wrong, the rest is not looked at.
        (values.len() == items.len()).then_some(Value::List(values))
    }

    fn value(&mut self, kind: &Kind, json: &Json, place: &str) -> Option<Value> {
        if let Kind::Message(descriptor) = kind {
            let Json::Object(object) = json else {
                self.wrong(place, expected(kind, json));
                return None;
            };
            let before = self.violations.len();
            let mut message = DynamicMessage::new(descriptor.clone());
            let offered: Vec<_> = descriptor.fields().collect();
            self.fields(&mut message, object, &offered, place);
            return (self.violations.len() == before).then_some(Value::Message(message));
        }
        let read = scalar(kind, json);
        read.map_err(|reason| self.wrong(place, reason)).ok()
    }
}

fn scalar(kind: &Kind, json: &Json) -> Result<Value, String> {
    match (kind, json) {
        (Kind::Bool, Json::Bool(value)) => Ok(Value::Bool(*value)),
        (Kind::String, Json::String(text)) => Ok(Value::String(text.clone())),
        (Kind::Bytes, Json::String(text)) => bytes(text),
        (Kind::Enum(names), Json::String(name)) => enumerated(names, name),
        (Kind::Double, Json::Number(number)) => {
            let number = number.as_f64();
            number.map(Value::F64).ok_or_else(|| expected(kind, json))
        }
        // 64 bits are texts, and numbers as far as all readers of JSON keep these.
        (Kind::Uint64 | Kind::Fixed64, Json::String(text)) => number_of_text(kind, text),
        (Kind::Int64 | Kind::Sint64 | Kind::Sfixed64, Json::String(text)) => {
            number_of_text(kind, text)
        }
        (_, Json::Number(number)) if is_whole(kind) => {
            let is_exact = match (number.as_u64(), number.as_i64()) {
                (Some(value), _) => value <= EXACT_MAX,
                (None, Some(value)) => value.unsigned_abs() <= EXACT_MAX,
                (None, None) => return Err(expected(kind, json)),
            };
            if !is_exact {
                return Err("give numbers above 2^53 - 1 as texts".to_owned());
            }
            number_of_text(kind, &number.to_string())
        }
        _ => Err(expected(kind, json)),
    }
}

/// A value from the text of a query's parameter.
///
/// # Errors
/// What it must be instead.
pub(crate) fn from_text(kind: &Kind, text: &str) -> Result<Value, String> {
    match kind {
        Kind::Bool => match text {
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            _ => Err("give true or false".to_owned()),
        },
        Kind::String => Ok(Value::String(text.to_owned())),
        Kind::Enum(names) => enumerated(names, text),
        Kind::Bytes => bytes(text),
        kind if is_whole(kind) => number_of_text(kind, text),
        _ => Err("it cannot be given in a query".to_owned()),
    }
}

fn is_whole(kind: &Kind) -> bool {
    matches!(
        kind,
        Kind::Int32
            | Kind::Sint32
            | Kind::Sfixed32
            | Kind::Int64
            | Kind::Sint64
            | Kind::Sfixed64
            | Kind::Uint32
            | Kind::Fixed32
            | Kind::Uint64
            | Kind::Fixed64
    )
}

/// One text for each number: no sign of its own, no leading zero, no exponent.
fn number_of_text(kind: &Kind, text: &str) -> Result<Value, String> {
    fn read<T: std::str::FromStr + ToString>(text: &str) -> Option<T> {
        let number = text.parse::<T>().ok()?;
        (number.to_string() == text).then_some(number)
    }
    let read = match kind {
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => read(text).map(Value::I32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => read(text).map(Value::I64),
        Kind::Uint32 | Kind::Fixed32 => read(text).map(Value::U32),
        Kind::Uint64 | Kind::Fixed64 => read(text).map(Value::U64),
        _ => None,
    };
    read.ok_or_else(|| wanted(kind).to_owned())
}

fn bytes(text: &str) -> Result<Value, String> {
    let decoded = STANDARD.decode(text);
    decoded
        .map(|bytes| Value::Bytes(bytes.into()))
        .map_err(|_| wanted(&Kind::Bytes).to_owned())
}

fn enumerated(names: &EnumDescriptor, name: &str) -> Result<Value, String> {
    let found = names.get_value_by_name(name);
    found
        .map(|value| Value::EnumNumber(value.number()))
        .ok_or_else(|| {
            let names: Vec<_> = names
                .values()
                .map(|value| value.name().to_owned())
                .collect();
            format!("give one of {}", names.join(", "))
        })
}

fn expected(kind: &Kind, json: &Json) -> String {
    match json {
        Json::Null => "leave it out instead of giving null".to_owned(),
        _ => wanted(kind).to_owned(),
    }
}

fn wanted(kind: &Kind) -> &'static str {
    match kind {
        Kind::Bool => "give true or false",
        Kind::String => "give a text",
        Kind::Bytes => "give bytes as base64 with padding",
        Kind::Enum(_) => "give the name of a value as a text",
        Kind::Message(_) => "give an object",
        Kind::Float | Kind::Double => "give a number",
        Kind::Uint32 | Kind::Fixed32 => "give a whole number from 0 to 4294967295",
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => "give a whole number of 32 bits",
        Kind::Uint64 | Kind::Fixed64 => {
            "give a whole number from 0 to 18446744073709551615, as a text of its digits"
        }
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
            "give a whole number of 64 bits, as a text of its digits"
        }
    }
}

/// Whether the fields of a message, and of those inside it, have a form here. Descriptors that have
/// others are refused at start.
pub(crate) fn lacks_form(field: &FieldDescriptor) -> Option<&'static str> {
    match field.kind() {
        _ if field.is_map() => Some("maps have no form in JSON here yet"),
        Kind::Float => Some("use double"),
        Kind::Message(message) if message.package_name() == "google.protobuf" => {
            Some("messages of google.protobuf have no form in JSON here yet")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
