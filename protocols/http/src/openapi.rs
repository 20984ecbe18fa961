//! The description of all paths, OpenAPI 3.1, from the same descriptors as the routes.

use std::collections::{BTreeMap, BTreeSet};

use prost_reflect::prost_types::FileDescriptorProto;
use prost_reflect::{EnumDescriptor, FieldDescriptor, FileDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

use crate::routes::Route;
use crate::template::short;
use crate::transcode::{NEXT_PAGE_TOKEN, PAGE_SIZE, PAGE_TOKEN, Transcoder};

/// Whole numbers of 64 bits are texts.
const UNSIGNED_PATTERN: &str = "^(0|[1-9][0-9]{0,19})$";
const SIGNED_PATTERN: &str = "^(0|-?[1-9][0-9]{0,18})$";
/// Of names that paths have, by what they are called; some character is no dot.
const NAME_PATTERN: &str = "^[A-Za-z0-9_.-]*[A-Za-z0-9_-][A-Za-z0-9_.-]*$";
const PATTERNS: [(&str, &str, usize); 6] = [
    ("tenant", NAME_PATTERN, 128),
    ("namespace", NAME_PATTERN, 128),
    // Of roles.
    ("name", NAME_PATTERN, 128),
    (
        "topic",
        "^[A-Za-z0-9_.:=~@+-]*[A-Za-z0-9_:=~@+-][A-Za-z0-9_.:=~@+-]*$",
        512,
    ),
    (
        "subscription",
        "^[A-Za-z0-9_.:=~@+/#-]*[A-Za-z0-9_:=~@+/#-][A-Za-z0-9_.:=~@+/#-]*$",
        512,
    ),
    ("bundle", "^[0-9a-f]{8}-[0-9a-f]{8}$", 17),
];
const PROBLEM: &str = "Problem";
const BEARER: &str = "bearer";

/// The description as text, in the same order every time.
#[must_use]
pub fn document(transcoder: &Transcoder) -> String {
    let mut writer = Writer::default();
    let mut paths: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    let mut of_method: BTreeMap<String, usize> = BTreeMap::new();
    for route in transcoder.routes() {
        let number = of_method
            .entry(route.method.full_name().to_owned())
            .or_insert(0);
        *number += 1;
        let operation = writer.operation(route, *number);
        let path = paths.entry(route.template.to_string()).or_default();
        path.insert(route.verb.as_str().to_lowercase(), operation);
    }
    let services: BTreeSet<_> = transcoder
        .routes()
        .iter()
        .map(|route| route.method.parent_service().name().to_owned())
        .collect();
    let tags: Vec<_> = services.iter().map(|name| json!({"name": name})).collect();
    writer.schemas.insert(PROBLEM.to_owned(), problem());
    let document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Aquifer",
            "description": "Administration, as docs/rest.md describes it.",
            "version": "1",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": tags,
        "paths": paths,
        // Whether a server asks for one is a matter of its configuration.
        "security": [{}, {BEARER: []}],
        "components": {
            "schemas": writer.schemas,
            "securitySchemes": {BEARER: {"type": "http", "scheme": "bearer"}},
        },
    });
    let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
    text.push('\n');
    text
}

/// Descriptors, and the schemas that were made of them.
#[derive(Default)]
struct Writer {
    schemas: Map<String, Value>,
}

impl Writer {
    fn operation(&mut self, route: &Route, number: usize) -> Value {
        let method = &route.method;
        let id = match number {
            1 => method.name().to_owned(),
            number => format!("{}{number}", method.name()),
        };
        let what = comment(&method.parent_file(), method.path());
        let status = if route.creates() { "201" } else { "200" };
        let mut operation = json!({
            "operationId": id,
            "tags": [method.parent_service().name()],
            "summary": what,
            "parameters": self.parameters(route),
            "responses": {
                status: self.success(route),
                "default": {
                    "description": "It was refused, or failed.",
                    "content": {
                        "application/problem+json": {"schema": reference(PROBLEM)},
                    },
                },
            },
        });
        if route.has_body {
            operation["requestBody"] = json!({
                "required": route.needs_body(),
                "content": {"application/json": {"schema": self.body(route)}},
            });
        }
        operation
    }

    fn parameters(&mut self, route: &Route) -> Vec<Value> {
        let mut all: Vec<Value> = route.template.variables().map(path_parameter).collect();
        if route.paged.is_some() {
            all.push(query_parameter(
                PAGE_SIZE,
                "Most items of the page; 100 when it is 0 or not given, 1,000 at most.",
                json!({"type": "integer", "minimum": 0, "maximum": u32::MAX}),
            ));
            all.push(query_parameter(
                PAGE_TOKEN,
                "The nextPageToken of the page before.",
                json!({"type": "string", "pattern": "^[A-Za-z0-9_-]+$"}),
            ));
        }
        if !route.has_body {
            for field in &route.offered {
                let what = comment(&field.parent_file(), field.path());
                let schema = self.single(&field.kind());
                all.push(query_parameter(field.json_name(), &what, schema));
            }
        }
        if route.if_match.is_some() {
            all.push(json!({
                "name": "If-Match",
                "in": "header",
                "required": false,
                "description": "Only if this is the ETag of what is there; otherwise 412.",
                "schema": {"type": "string", "pattern": "^\"[^\"]*\"$"},
            }));
        }
        all
    }

    fn success(&mut self, route: &Route) -> Value {
        let output = route.method.output();
        let schema = match &route.paged {
            None => self.message(&output),
            Some(paged) => {
                let mut schema = self.object(output.fields());
                if let Some(properties) = schema["properties"].as_object_mut() {
                    properties.remove(paged.next.json_name());
                    let what = "Where the next page begins; empty at the end.";
                    let token = json!({"type": "string", "description": what});
                    properties.insert(NEXT_PAGE_TOKEN.to_owned(), token);
                }
                schema
            }
        };
        let mut success = json!({
            "description": if route.creates() { "It was created." } else { "It was done." },
            "content": {"application/json": {"schema": schema}},
        });
        if !route.etag.is_empty() {
            success["headers"] = json!({
                "ETag": {
                    "description": "The version of what is there now.",
                    "schema": {"type": "string"},
                },
            });
        }
        success
    }

    fn body(&mut self, route: &Route) -> Value {
        self.object(route.offered.iter().cloned())
    }

    /// A reference to a message.
    fn message(&mut self, message: &MessageDescriptor) -> Value {
        let name = message.name().to_owned();
        if !self.schemas.contains_key(&name) {
            // First, for messages that contain themselves.
            self.schemas.insert(name.clone(), Value::Null);
            let mut schema = self.object(message.fields());
            describe(
                &mut schema,
                &comment(&message.parent_file(), message.path()),
            );
            let exclusive: Vec<_> = message.oneofs().filter(|one| !one.is_synthetic()).collect();
            if let [one] = exclusive.as_slice() {
                let names = one.fields();
                let one: Vec<_> = names
                    .map(|f| json!({"required": [f.json_name()]}))
                    .collect();
                schema["oneOf"] = Value::Array(one);
            }
            self.schemas.insert(name.clone(), schema);
        }
        reference(&name)
    }

    fn object(&mut self, fields: impl Iterator<Item = FieldDescriptor>) -> Value {
        let mut properties = Map::new();
        for field in fields {
            let single = self.single(&field.kind());
            let mut schema = match field.is_list() {
                true => json!({"type": "array", "items": single}),
                false => single,
            };
            describe(&mut schema, &comment(&field.parent_file(), field.path()));
            properties.insert(field.json_name().to_owned(), schema);
        }
        json!({"type": "object", "properties": properties, "additionalProperties": false})
    }

    fn single(&mut self, kind: &Kind) -> Value {
        match kind {
            Kind::Bool => json!({"type": "boolean"}),
            Kind::String => json!({"type": "string"}),
            Kind::Bytes => json!({"type": "string", "contentEncoding": "base64"}),
            Kind::Double | Kind::Float => json!({"type": "number"}),
            Kind::Uint32 | Kind::Fixed32 => {
                json!({"type": "integer", "minimum": 0, "maximum": u32::MAX})
            }
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
                json!({"type": "integer", "minimum": i32::MIN, "maximum": i32::MAX})
            }
            Kind::Uint64 | Kind::Fixed64 => json!({"type": "string", "pattern": UNSIGNED_PATTERN}),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
                json!({"type": "string", "pattern": SIGNED_PATTERN})
            }
            Kind::Enum(names) => self.names(names),
            Kind::Message(message) => self.message(message),
        }
    }

    fn names(&mut self, names: &EnumDescriptor) -> Value {
        let name = names.name().to_owned();
        if !self.schemas.contains_key(&name) {
            let values: Vec<_> = names
                .values()
                .map(|value| value.name().to_owned())
                .collect();
            let mut schema = json!({"type": "string", "enum": values});
            describe(&mut schema, &comment(&names.parent_file(), names.path()));
            self.schemas.insert(name.clone(), schema);
        }
        reference(&name)
    }
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn describe(schema: &mut Value, what: &str) {
    if !what.is_empty() {
        schema["description"] = what.into();
    }
}

fn path_parameter(variable: &str) -> Value {
    let name = short(variable);
    let known = PATTERNS.iter().find(|(known, _, _)| *known == name);
    let schema = match known {
        Some((_, pattern, max)) => {
            json!({"type": "string", "pattern": pattern, "minLength": 1, "maxLength": max})
        }
        None => json!({"type": "string", "minLength": 1, "maxLength": 1024}),
    };
    json!({"name": name, "in": "path", "required": true, "schema": schema})
}

fn query_parameter(name: &str, what: &str, schema: Value) -> Value {
    let mut parameter = json!({"name": name, "in": "query", "required": false, "schema": schema});
    describe(&mut parameter, what);
    parameter
}

fn problem() -> Value {
    let text = json!({"type": "string"});
    let violation = json!({
        "type": "object",
        "properties": {"field": text, "reason": text},
        "required": ["field", "reason"],
        "additionalProperties": false,
    });
    let error = json!({
        "type": "object",
        "properties": {
            "code": {"type": "string", "description": "A name of ErrorCode, without its prefix."},
            "message": {"type": "string", "description": "What happened."},
            "advice": {"type": "string", "description": "What to do about it."},
            "retryable": {
                "type": "boolean",
                "description": "Whether the same request may succeed later, unchanged.",
            },
            "outcome": {"type": "string", "enum": ["UNKNOWN", "NOT_APPLIED", "APPLIED"]},
            "requestId": text,
            "violations": {"type": "array", "items": violation},
        },
        "required": [
            "code", "message", "advice", "retryable", "outcome", "requestId", "violations",
        ],
        "additionalProperties": false,
    });
    json!({
        "type": "object",
        "properties": {"error": error},
        "required": ["error"],
        "additionalProperties": false,
    })
}

/// What a .proto file says of something: above it, or behind it in its line.
fn comment(file: &FileDescriptor, path: &[i32]) -> String {
    let proto: &FileDescriptorProto = file.file_descriptor_proto();
    let locations = proto
        .source_code_info
        .iter()
        .flat_map(|info| &info.location);
    let mut here = locations.filter(|location| location.path == path);
    let Some(location) = here.next() else {
        return String::new();
    };
    let above = location.leading_comments();
    let text = match above {
        "" => location.trailing_comments(),
        above => above,
    };
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.join(" ").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_that_is_served_is_that_of_the_descriptors() {
        let made = document(&Transcoder::new().unwrap());
        if made == include_str!("../openapi.json") {
            return;
        }
        let path = std::env::temp_dir().join("aquifer-openapi.json");
        std::fs::write(&path, made).unwrap();
        let path = path.display();
        panic!("protocols/http/openapi.json is out of date: mv {path} protocols/http/openapi.json");
    }

    #[test]
    fn every_reference_has_a_schema_and_every_path_its_parameters() {
        let text = document(&Transcoder::new().unwrap());
        let document: Value = serde_json::from_str(&text).unwrap();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        assert!(schemas.values().all(|schema| !schema.is_null()));
        for rest in text.split("#/components/schemas/").skip(1) {
            let name = rest.split('"').next().unwrap();
            assert!(schemas.contains_key(name), "{name}");
        }
        for (path, operations) in document["paths"].as_object().unwrap() {
            for operation in operations.as_object().unwrap().values() {
                let parameters = operation["parameters"].as_array().unwrap();
                let of_path = parameters.iter().filter(|one| one["in"] == "path");
                assert_eq!(of_path.count(), path.matches('{').count(), "{path}");
                let summary = operation["summary"].as_str().unwrap();
                assert!(!summary.is_empty(), "{path} has no comment");
            }
        }
    }
}
