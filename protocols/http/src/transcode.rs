//! Requests of HTTP to messages, and messages to answers. No I/O.

mod place;

use aquifer_proto::DESCRIPTORS;
use aquifer_proto::v1::ErrorCode;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, ETAG, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use prost_reflect::{DescriptorPool, DynamicMessage};

use crate::decode;
use crate::json::{self, Renamed};
use crate::page;
use crate::problem::{Problem, Violation};
use crate::routes::{self, Route, RuleError};

pub use place::Place;

/// Where the description of all paths is.
pub const DOCUMENT_PATH: &str = "/api/v1/openapi.json";
/// The description, as [`crate::openapi::document`] makes it.
const DOCUMENT: &str = include_str!("../openapi.json");
/// Largest body of a request, in bytes.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// The parameters of pages.
pub(crate) const PAGE_SIZE: &str = "pageSize";
pub(crate) const PAGE_TOKEN: &str = "pageToken";
pub(crate) const NEXT_PAGE_TOKEN: &str = "nextPageToken";

/// Knows every path.
#[derive(Debug)]
pub struct Transcoder {
    routes: Vec<Route>,
}

/// What a request is for.
#[derive(Debug)]
pub enum Target<'t> {
    /// A method of a service.
    Method(Place<'t>),
    /// The description of all paths.
    Document,
    /// The question which methods a path has: this is the answer.
    Options(String),
}

/// A message for the service in process.
#[derive(Debug)]
pub struct Call<'t> {
    route: &'t Route,
    variables: Vec<String>,
    /// Whether it names the version that it changes.
    pub(crate) conditional: bool,
    /// The encoded request.
    pub(crate) message: Bytes,
}

impl Call<'_> {
    /// The method as gRPC calls it.
    #[must_use]
    pub fn rpc(&self) -> &PathAndQuery {
        &self.route.rpc
    }

    /// The encoded request.
    #[must_use]
    pub fn message(&self) -> &Bytes {
        &self.message
    }
}

impl Transcoder {
    /// Makes the routes of this build.
    ///
    /// # Errors
    /// When the descriptors cannot be served; a test of this crate holds that they can.
    pub fn new() -> Result<Transcoder, RuleError> {
        let pool = pool()?;
        let routes = routes::of(&pool)?;
        Ok(Transcoder { routes })
    }

    pub(crate) fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// What a request is for.
    ///
    /// # Errors
    /// When there is no such path, or it does not have the method.
    pub fn find(&self, method: &Method, path: &str) -> Result<Target<'_>, Problem> {
        let wanted = if *method == Method::HEAD {
            &Method::GET
        } else {
            method
        };
        if path == DOCUMENT_PATH {
            return match *wanted {
                Method::GET => Ok(Target::Document),
                Method::OPTIONS => Ok(Target::Options(allow([&Method::GET].into_iter()))),
                _ => Err(Problem::no_such_method(allow([&Method::GET].into_iter()))),
            };
        }
        let mut verbs = Vec::new();
        for route in &self.routes {
            let Some(raw) = route.template.matches(path) else {
                continue;
            };
            if route.verb == *wanted {
                return Place::new(route, &raw).map(Target::Method);
            }
            verbs.push(&route.verb);
        }
        match *wanted {
            _ if verbs.is_empty() => Err(Problem::no_such_path()),
            Method::OPTIONS => Ok(Target::Options(allow(verbs.into_iter()))),
            _ => Err(Problem::no_such_method(allow(verbs.into_iter()))),
        }
    }

    /// The answer to a question for the description.
    ///
    /// # Errors
    /// When the question has parameters or a body.
    pub fn document(
        &self,
        query: Option<&str>,
        has_body: bool,
    ) -> Result<Response<Full<Bytes>>, Problem> {
        if has_body {
            return Err(no_body());
        }
        if let Some((name, _)) = parameters(query)?.first() {
            return Err(Problem::violated(vec![unknown_parameter(name)]));
        }
        let body = Bytes::from_static(DOCUMENT.as_bytes());
        Ok(answer(StatusCode::OK, body))
    }
}

impl Call<'_> {
    /// What a request is answered whose call was answered with this message.
    ///
    /// # Errors
    /// When the answer is no message of the method: a mistake of this build.
    pub fn answer(&self, message: &[u8]) -> Result<Response<Full<Bytes>>, Problem> {
        let output = self.route.method.output();
        let message = DynamicMessage::decode(output, message).map_err(|error| {
            tracing::error!(%error, rpc = %self.route.rpc, "an answer in process is no message");
            Problem::new(ErrorCode::Internal, "the answer cannot be read").applied()
        })?;
        let renamed = self.route.paged.as_ref().map(|paged| {
            let next = message.get_field(&paged.next);
            let list = list(self.route, &self.variables);
            Renamed {
                field: &paged.next,
                name: NEXT_PAGE_TOKEN,
                text: page::token(list, next.as_str().unwrap_or_default()),
            }
        });
        let mut text = String::new();
        json::write(&message, renamed.as_ref(), &mut text);
        let status = match self.route.creates() {
            true => StatusCode::CREATED,
            false => StatusCode::OK,
        };
        let mut response = answer(status, text.into());
        let version = routes::get(&message, &self.route.etag);
        let tag = version.and_then(|version| version.as_u64());
        let tag = tag.map(|tag| HeaderValue::from_str(&format!("\"{tag}\"")));
        if let Some(Ok(tag)) = tag {
            response.headers_mut().insert(ETAG, tag);
        }
        Ok(response)
    }
}

/// The descriptors of this build.
fn pool() -> Result<DescriptorPool, RuleError> {
    DescriptorPool::decode(DESCRIPTORS).map_err(|error| RuleError::of_descriptors(&error))
}

fn answer(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

fn list<'l>(route: &'l Route, variables: &'l [String]) -> impl Iterator<Item = &'l str> {
    let parts = variables.iter().map(String::as_str);
    std::iter::once(route.rpc.path()).chain(parts)
}

fn parameters(query: Option<&str>) -> Result<Vec<(String, String)>, Problem> {
    let found = decode::query(query.unwrap_or_default());
    found.map_err(|reason| Problem::invalid(format!("the query cannot be read: {reason}")))
}

fn unknown_parameter(name: &str) -> Violation {
    Violation::new(name, "there is no such parameter here")
}

fn no_body() -> Problem {
    Problem::invalid("this path takes no body")
}

/// The value of `Allow` for a path with these methods.
fn allow<'m>(verbs: impl Iterator<Item = &'m Method>) -> String {
    let mut names: Vec<&str> = verbs.map(Method::as_str).collect();
    if names.contains(&"GET") {
        names.push("HEAD");
    }
    names.push("OPTIONS");
    names.join(", ")
}

#[cfg(test)]
mod tests;
