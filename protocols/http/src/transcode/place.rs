//! What a request to a path comes to: its body, its query, its path and If-Match become one
//! message.

use aquifer_proto::v1::ErrorCode;
use http::StatusCode;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, IF_MATCH};
use prost::Message;
use prost_reflect::{DynamicMessage, Value};
use serde_json::{Map, Value as Json};

use crate::decode;
use crate::json::{self, Reader};
use crate::page;
use crate::problem::{Problem, Violation};
use crate::routes::{self, Paged, Route};
use crate::template::short;
use crate::transcode::{Call, PAGE_SIZE, PAGE_TOKEN, list, no_body, parameters};

/// A path, with what it has in place of its variables.
#[derive(Debug)]
pub struct Place<'t> {
    route: &'t Route,
    variables: Vec<String>,
}

impl<'t> Place<'t> {
    /// A path of a route, with what it has, still encoded, in place of the variables.
    pub(super) fn new(route: &'t Route, raw: &[&str]) -> Result<Place<'t>, Problem> {
        let variables = variables(route, raw)?;
        Ok(Place { route, variables })
    }

    /// The path as it is called in logs.
    pub(crate) fn route(&self) -> &Route {
        self.route
    }

    /// The message that a request comes to.
    ///
    /// # Errors
    /// When it is not what the path takes.
    pub fn request(
        self,
        query: Option<&str>,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Call<'t>, Problem> {
        let route = self.route;
        let mut reader = Reader::default();
        let mut message = DynamicMessage::new(route.method.input());
        if let Some(object) = self.body(headers, body)? {
            let mut offered = route.offered.clone();
            // What the path says too may be repeated.
            let repeated = route
                .sets
                .iter()
                .filter_map(|set| set.field.first().cloned());
            offered.extend(repeated);
            reader.fields(&mut message, &object, &offered, "");
        }
        self.parameters(query, &mut message, &mut reader)?;
        self.path(&mut message, &mut reader);
        let has_version = self.if_match(headers, &mut message, &mut reader);
        let violations = reader.violations();
        if !violations.is_empty() {
            return Err(Problem::violated(violations));
        }
        // After what is wrong in itself: to read it again does not help there.
        if !has_version {
            let text = "it never had this version";
            return Err(Problem::new(ErrorCode::Conflict, text)
                .advise("read it again, and repeat the change on what it is now"));
        }
        let names_version = |field| message.has_field(field);
        Ok(Call {
            conditional: route.if_match.as_ref().is_some_and(names_version),
            message: message.encode_to_vec().into(),
            variables: self.variables,
            route,
        })
    }

    fn body(&self, headers: &HeaderMap, body: &[u8]) -> Result<Option<Map<String, Json>>, Problem> {
        if body.is_empty() {
            return match self.route.needs_body() {
                true => Err(
                    Problem::invalid("this path needs a body: an object in JSON")
                        .advise("give at least {}"),
                ),
                false => Ok(None),
            };
        }
        if !self.route.has_body {
            return Err(no_body());
        }
        if !is_json(headers) {
            return Err(Problem::invalid("the body is not called JSON")
                .advise("send content-type: application/json, and no content-encoding")
                .at(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        }
        match json::parse(body) {
            Ok(Json::Object(object)) => Ok(Some(object)),
            Ok(_) => Err(Problem::invalid("the body is no object")),
            Err(error) => Err(Problem::invalid(format!("the body is no JSON: {error}"))),
        }
    }

    fn parameters(
        &self,
        query: Option<&str>,
        message: &mut DynamicMessage,
        reader: &mut Reader,
    ) -> Result<(), Problem> {
        let mut seen: Vec<String> = Vec::new();
        for (name, text) in parameters(query)? {
            if seen.contains(&name) {
                reader.wrong(name, "it is given twice");
                continue;
            }
            if let Err(reason) = self.parameter(&name, &text, message) {
                reader.wrong(name.clone(), reason);
            }
            seen.push(name);
        }
        Ok(())
    }

    fn parameter(
        &self,
        name: &str,
        text: &str,
        message: &mut DynamicMessage,
    ) -> Result<(), String> {
        let paged = self.route.paged.as_ref();
        let (field, value) = match (name, paged) {
            (PAGE_SIZE, Some(Paged { limit, .. })) => {
                (limit, json::from_text(&limit.kind(), text)?)
            }
            (PAGE_TOKEN, Some(Paged { after, .. })) => {
                let next = page::open(self.list(), text);
                let next = next.ok_or("it is not the nextPageToken of a page of this list")?;
                (after, Value::String(next))
            }
            _ => {
                let offered = match self.route.has_body {
                    true => &[],
                    false => self.route.offered.as_slice(),
                };
                let field = offered.iter().find(|field| field.json_name() == name);
                let field = field.ok_or("there is no such parameter here")?;
                (field, json::from_text(&field.kind(), text)?)
            }
        };
        let set = message.try_set_field(field, value);
        set.map_err(|_| "it has another type".to_owned())
    }

    /// What a token of a page belongs to.
    fn list(&self) -> impl Iterator<Item = &str> {
        list(self.route, &self.variables)
    }

    /// Sets what the variables say, which goes over a body that says the same.
    fn path(&self, message: &mut DynamicMessage, reader: &mut Reader) {
        let mut said = DynamicMessage::new(self.route.method.input());
        for set in &self.route.sets {
            let parts = self.variables.get(set.variables.clone());
            let text = parts.unwrap_or_default().join("/");
            routes::set(&mut said, &set.field, Value::String(text));
        }
        for set in &self.route.sets {
            let Some(field) = set.field.first() else {
                continue;
            };
            let value = said.get_field(field).into_owned();
            if message.has_field(field) && *message.get_field(field) != value {
                reader.wrong(field.json_name(), "the path says something else");
            }
            message.set_field(field, value);
        }
    }

    /// Whether If-Match, if it is given, can be a version of what is there.
    fn if_match(
        &self,
        headers: &HeaderMap,
        message: &mut DynamicMessage,
        reader: &mut Reader,
    ) -> bool {
        const NAME: &str = "If-Match";
        let mut given = headers.get_all(IF_MATCH).iter();
        let Some(value) = given.next() else {
            return true;
        };
        let Some(field) = &self.route.if_match else {
            reader.wrong(NAME, "what this path changes has no versions");
            return true;
        };
        let text = value.to_str().ok().filter(|_| given.next().is_none());
        let tag = text.and_then(|text| text.strip_prefix('"')?.strip_suffix('"'));
        let Some(tag) = tag.filter(|tag| !tag.contains('"')) else {
            reader.wrong(NAME, "give one ETag as it was answered, with its quotes");
            return true;
        };
        // Not one of ours: it is no version that there is.
        let Ok(version @ Value::U64(_)) = json::from_text(&field.kind(), tag) else {
            return false;
        };
        if message.has_field(field) && *message.get_field(field) != version {
            reader.wrong(field.json_name(), "If-Match says something else");
        }
        message.set_field(field, version);
        true
    }
}

/// What a path has in place of its variables. A slash is part of no name but the last one of a path
/// that is not joined to others.
fn variables(route: &Route, raw: &[&str]) -> Result<Vec<String>, Problem> {
    let mut violations = Vec::new();
    let mut found = Vec::new();
    for ((at, raw), name) in raw.iter().enumerate().zip(route.template.variables()) {
        let mut sets = route.sets.iter();
        let joined = sets.any(|set| set.variables.contains(&at) && set.variables.len() > 1);
        match decode::segment(raw) {
            Ok(text) if joined && text.contains('/') => {
                violations.push(Violation::new(short(name), "no slash is allowed in it"));
            }
            Ok(text) => found.push(text),
            Err(reason) => violations.push(Violation::new(short(name), reason)),
        }
    }
    match violations.is_empty() {
        true => Ok(found),
        false => Err(Problem::violated(violations)),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(given), None) = (types.next(), types.next()) else {
        return false;
    };
    let given = given.to_str().unwrap_or_default();
    let (kind, parameters) = given.split_once(';').unwrap_or((given, ""));
    let parameters = parameters.trim();
    let is_utf8 = ["", "charset=utf-8", "charset=\"utf-8\""]
        .iter()
        .any(|known| parameters.eq_ignore_ascii_case(known));
    let is_plain = !headers.contains_key(CONTENT_ENCODING);
    kind.trim().eq_ignore_ascii_case("application/json") && is_utf8 && is_plain
}
