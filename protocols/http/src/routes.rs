//! Which method of which service a path is, made at start from the descriptors.

mod options;

use std::fmt;
use std::ops::Range;

use http::Method;
use http::uri::PathAndQuery;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, MethodDescriptor, Value};
use thiserror::Error;

use crate::routes::options::Options;
use crate::template::Template;

/// Services and methods without a path, and why. Everything else has the option `google.api.http`.
const NOT_OFFERED: [(&str, &str); 4] = [
    (
        "aquifer.v1.Backup",
        "the tool that drives a backup writes its lists and its root",
    ),
    (
        "aquifer.v1.Bookie",
        "bookies serve processes of their cluster",
    ),
    (
        "aquifer.v1.Broker",
        "messages move in streams in both directions",
    ),
    (
        "aquifer.v1.Pull",
        "messages over HTTP will have paths of their own form",
    ),
];
/// What every path begins with.
pub(crate) const PREFIX: &str = "/api/v1/";

/// A descriptor that cannot be served: a mistake in a .proto file of this build.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{rpc}: {wrong}")]
pub struct RuleError {
    rpc: String,
    wrong: String,
}

impl RuleError {
    pub(crate) fn of_descriptors(error: &prost_reflect::DescriptorError) -> RuleError {
        RuleError {
            rpc: "descriptors".to_owned(),
            wrong: error.to_string(),
        }
    }
}

/// A method under one of its paths.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    /// The method as gRPC calls it.
    pub(crate) rpc: PathAndQuery,
    pub(crate) method: MethodDescriptor,
    pub(crate) verb: Method,
    pub(crate) template: Template,
    /// What the variables of the path set.
    pub(crate) sets: Vec<Set>,
    /// Whether fields come in a body; otherwise they come in the query.
    pub(crate) has_body: bool,
    /// Fields that a request may give besides those of the path.
    pub(crate) offered: Vec<FieldDescriptor>,
    pub(crate) paged: Option<Paged>,
    /// The field of the answer that is its ETag, from the outside in.
    pub(crate) etag: Vec<FieldDescriptor>,
    /// The field that If-Match sets.
    pub(crate) if_match: Option<FieldDescriptor>,
}

/// A field that variables set: several are joined with slashes.
#[derive(Debug, Clone)]
pub(crate) struct Set {
    /// From the outside in.
    pub(crate) field: Vec<FieldDescriptor>,
    pub(crate) variables: Range<usize>,
}

/// The fields of a list that comes in pages.
#[derive(Debug, Clone)]
pub(crate) struct Paged {
    pub(crate) after: FieldDescriptor,
    pub(crate) limit: FieldDescriptor,
    pub(crate) next: FieldDescriptor,
}

impl Route {
    /// Creates are answered 201.
    pub(crate) fn creates(&self) -> bool {
        self.verb == Method::PUT
    }

    /// Whether a request without a body is refused. What is created has a default for everything.
    pub(crate) fn needs_body(&self) -> bool {
        self.has_body && !self.creates()
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.template)
    }
}

/// Every route of the descriptors, in their order.
///
/// # Errors
/// When a method has no path and no reason, or a path means nothing.
pub(crate) fn of(pool: &DescriptorPool) -> Result<Vec<Route>, RuleError> {
    let options = Options::of(pool)?;
    let mut routes: Vec<Route> = Vec::new();
    for service in pool.services() {
        for method in service.methods() {
            let listed = |(name, _): &(&str, &str)| {
                *name == service.full_name() || *name == method.full_name()
            };
            let is_listed = NOT_OFFERED.iter().any(listed);
            let wrong = |wrong: String| RuleError {
                rpc: method.full_name().to_owned(),
                wrong,
            };
            let found = options.routes(&method).map_err(wrong)?;
            if is_listed == found.is_empty() {
                routes.extend(found);
                continue;
            }
            return Err(wrong(match is_listed {
                true => "it has a path and is listed as not offered".to_owned(),
                false => {
                    "give it the option google.api.http, or a reason in NOT_OFFERED".to_owned()
                }
            }));
        }
    }
    match ambiguous(&routes) {
        Some((one, other)) => Err(RuleError {
            rpc: one.method.full_name().to_owned(),
            wrong: format!("{one} and {other} share paths"),
        }),
        None => Ok(routes),
    }
}

/// Two routes of which a request could be either, or whose paths overlap without being alike.
fn ambiguous(routes: &[Route]) -> Option<(&Route, &Route)> {
    let numbered = routes.iter().enumerate();
    let mut pairs = numbered.flat_map(|(at, one)| {
        let others = routes.get(at + 1..).unwrap_or_default();
        others.iter().map(move |other| (one, other))
    });
    pairs.find(|(one, other)| {
        let (a, b) = (&one.template, &other.template);
        match a.is_like(b) {
            true => one.verb == other.verb || a.to_string() != b.to_string(),
            false => a.overlaps(b),
        }
    })
}

/// Sets a field inside a message.
pub(crate) fn set(message: &mut DynamicMessage, field: &[FieldDescriptor], value: Value) {
    let Some((outer, inner)) = field.split_first() else {
        return;
    };
    if inner.is_empty() {
        message.set_field(outer, value);
    } else if let Some(within) = message.get_field_mut(outer).as_message_mut() {
        set(within, inner, value);
    }
}

/// A field inside a message, if it is set there.
pub(crate) fn get(message: &DynamicMessage, field: &[FieldDescriptor]) -> Option<Value> {
    let (outer, inner) = field.split_first()?;
    let value = message.get_field(outer);
    if inner.is_empty() {
        return Some(value.into_owned());
    }
    let is_set = message.has_field(outer);
    value
        .as_message()
        .filter(|_| is_set)
        .and_then(|within| get(within, inner))
}

#[cfg(test)]
mod tests {
    use aquifer_proto::DESCRIPTORS;

    use super::*;

    fn routes() -> Vec<Route> {
        of(&DescriptorPool::decode(DESCRIPTORS).unwrap()).unwrap()
    }

    #[test]
    fn every_method_has_a_path_or_a_reason() {
        let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
        let routes = routes();
        for service in pool.services() {
            for method in service.methods() {
                let has_path = {
                    let named = |route: &Route| route.method.full_name() == method.full_name();
                    routes.iter().any(named)
                };
                let mut listed = NOT_OFFERED.iter();
                let listed = listed.any(|(name, why)| {
                    let is_it = [service.full_name(), method.full_name()].contains(name);
                    is_it && !why.is_empty()
                });
                assert_ne!(has_path, listed, "{}", method.full_name());
            }
        }
    }

    #[test]
    fn parts_of_names_are_joined_and_fields_are_not() {
        let routes = routes();
        let sets = |rpc: &str, number: usize| -> Vec<(String, Range<usize>)> {
            let mut of_rpc = routes.iter().filter(|route| route.method.name() == rpc);
            let route = of_rpc.nth(number).unwrap();
            let named = |set: &Set| {
                let names: Vec<_> = set
                    .field
                    .iter()
                    .map(|field| field.name().to_owned())
                    .collect();
                (names.join("."), set.variables.clone())
            };
            route.sets.iter().map(named).collect()
        };
        let set = |name: &str, variables| (name.to_owned(), variables);
        assert_eq!(sets("ListNamespaces", 0), [set("tenant", 0..1)]);
        assert_eq!(sets("CreateNamespace", 0), [set("namespace", 0..2)]);
        assert_eq!(
            sets("SeekSubscription", 0),
            [set("topic", 0..3), set("subscription", 3..4)]
        );
        assert_eq!(sets("GetPolicies", 0), [set("scope.tenant", 0..1)]);
        assert_eq!(sets("GetPolicies", 2), [set("scope.topic", 0..3)]);
    }

    #[test]
    fn shared_paths_are_found() {
        let mut routes = routes();
        assert!(ambiguous(&routes).is_none());
        let with = |text: &str, routes: &mut Vec<Route>| {
            let mut more = routes[0].clone();
            more.template = Template::parse(text).unwrap();
            routes.push(more);
            let found = ambiguous(routes).is_some();
            routes.pop();
            found
        };
        assert_eq!(routes[0].verb, Method::PUT);
        assert!(with("/api/v1/tenants/{other}", &mut routes));
        assert!(with("/api/v1/tenants/literal", &mut routes));
        assert!(!with("/api/v1/tenants/{other}/literal", &mut routes));
    }
}
