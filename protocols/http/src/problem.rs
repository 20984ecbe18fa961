//! Failures, as they are answered: `application/problem+json` for every status that is no success.
//! The one place where codes become statuses of HTTP.

use aquifer_proto::ERROR_TRAILER;
use aquifer_proto::v1::{ErrorCode, ErrorDetail, Outcome};
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Response, StatusCode};
use http_body_util::Full;
use prost::Message;
use serde::Serialize;
use tonic::Status;

const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");
/// Seconds that a client is asked to wait where waiting may help.
const RETRY_SECONDS: HeaderValue = HeaderValue::from_static("1");
const BEARER: HeaderValue = HeaderValue::from_static("Bearer");
/// Wrong fields that are listed.
pub(crate) const VIOLATIONS_MAX: usize = 16;

/// Why a request fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    status: StatusCode,
    code: ErrorCode,
    retryable: bool,
    outcome: Outcome,
    message: String,
    advice: String,
    violations: Vec<Violation>,
    allow: Option<String>,
}

/// What is wrong with a field, a parameter or a header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Its name.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Violation {
    pub(crate) fn new(field: impl Into<String>, reason: impl Into<String>) -> Violation {
        Violation {
            field: field.into(),
            reason: reason.into(),
        }
    }
}

#[derive(Serialize)]
struct Envelope<'p> {
    error: Error<'p>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Error<'p> {
    code: &'p str,
    message: &'p str,
    advice: &'p str,
    retryable: bool,
    outcome: &'p str,
    request_id: &'p str,
    violations: &'p [Violation],
}

/// The status of a code. A conflict is one with the version that a request names; see
/// [`Problem::of_status`].
fn status_of(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::InvalidArgument | ErrorCode::UnsupportedVersion | ErrorCode::Checksum => {
            StatusCode::BAD_REQUEST
        }
        ErrorCode::Unauthenticated => StatusCode::UNAUTHORIZED,
        ErrorCode::PermissionDenied => StatusCode::FORBIDDEN,
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::AlreadyExists
        | ErrorCode::FailedPrecondition
        | ErrorCode::ProducerBusy
        | ErrorCode::Fenced
        | ErrorCode::Incarnation
        | ErrorCode::Terminated => StatusCode::CONFLICT,
        ErrorCode::Conflict => StatusCode::PRECONDITION_FAILED,
        ErrorCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::QuotaExceeded | ErrorCode::Overloaded => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::Unspecified | ErrorCode::Internal | ErrorCode::DataLoss => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
        ErrorCode::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        // Administration is forwarded between brokers, so that no client is sent elsewhere.
        ErrorCode::Unavailable | ErrorCode::Redirect => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::Timeout => StatusCode::GATEWAY_TIMEOUT,
        ErrorCode::StorageFull => StatusCode::INSUFFICIENT_STORAGE,
    }
}

impl Problem {
    /// A request that was not carried out.
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Problem {
        Problem {
            status: status_of(code),
            code,
            retryable: matches!(code, ErrorCode::Overloaded | ErrorCode::Unavailable),
            outcome: Outcome::NotApplied,
            message: message.into(),
            advice: String::new(),
            violations: Vec::new(),
            allow: None,
        }
    }

    /// A request that is wrong in itself.
    pub(crate) fn invalid(message: impl Into<String>) -> Problem {
        Problem::new(ErrorCode::InvalidArgument, message)
    }

    /// A request with wrong fields; there must be some.
    pub(crate) fn violated(mut violations: Vec<Violation>) -> Problem {
        violations.truncate(VIOLATIONS_MAX);
        let first = violations.first();
        let message = first.map(|first| format!("{}: {}", first.field, first.reason));
        Problem {
            violations,
            ..Problem::invalid(message.unwrap_or_default())
        }
    }

    /// A path that does not exist.
    pub(crate) fn no_such_path() -> Problem {
        Problem::new(ErrorCode::NotFound, "there is no such path")
            .advise("GET /api/v1/openapi.json lists all paths; none ends with a slash")
    }

    /// A method that a path does not have.
    pub(crate) fn no_such_method(allow: String) -> Problem {
        Problem {
            advice: format!("this path has {allow}"),
            allow: Some(allow),
            ..Problem::invalid("this path does not have the method")
        }
        .at(StatusCode::METHOD_NOT_ALLOWED)
    }

    /// The same with a status of its own.
    pub(crate) fn at(self, status: StatusCode) -> Problem {
        Problem { status, ..self }
    }

    /// The same with advice.
    pub(crate) fn advise(self, advice: impl Into<String>) -> Problem {
        Problem {
            advice: advice.into(),
            ..self
        }
    }

    /// The same for a request that was carried out.
    pub(crate) fn applied(self) -> Problem {
        Problem {
            outcome: Outcome::Applied,
            ..self
        }
    }

    /// What the service answered. `conditional`: the request named a version; without one, a
    /// conflict is between this request and others.
    pub(crate) fn of_status(status: &Status, conditional: bool) -> Problem {
        let trailer = status.metadata().get_bin(ERROR_TRAILER);
        let bytes = trailer.and_then(|trailer| trailer.to_bytes().ok());
        let detail = bytes.and_then(|bytes| ErrorDetail::decode(bytes).ok());
        let Some(detail) = detail else {
            // Every failure of ours has a detail: this one comes from a library.
            tracing::warn!(%status, "a call in process failed without a detail");
            let problem = Problem::new(ErrorCode::Internal, "the request could not be handed over");
            return Problem {
                outcome: Outcome::Unknown,
                ..problem
            };
        };
        let problem = Problem {
            retryable: detail.retryable,
            outcome: detail.outcome(),
            ..Problem::new(detail.code(), detail.message.clone())
        };
        match detail.code() {
            ErrorCode::Conflict if !conditional => problem.at(StatusCode::CONFLICT),
            _ => problem,
        }
        .advise(detail.advice)
    }

    /// The status that it is answered with.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn response(&self, request_id: &str) -> Response<Full<Bytes>> {
        let prefixed = self.code.as_str_name();
        let outcome = self.outcome.as_str_name();
        let error = Error {
            code: prefixed.strip_prefix("ERROR_CODE_").unwrap_or(prefixed),
            message: &self.message,
            advice: &self.advice,
            retryable: self.retryable,
            outcome: outcome.strip_prefix("OUTCOME_").unwrap_or(outcome),
            request_id,
            violations: &self.violations,
        };
        // Texts and lists of texts have a form in JSON.
        let body = serde_json::to_vec(&Envelope { error }).unwrap_or_default();
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, PROBLEM_JSON);
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, BEARER);
        }
        let wait = [
            StatusCode::TOO_MANY_REQUESTS,
            StatusCode::SERVICE_UNAVAILABLE,
        ];
        if wait.contains(&self.status) {
            headers.insert(RETRY_AFTER, RETRY_SECONDS);
        }
        if let Some(Ok(allow)) = self.allow.as_deref().map(HeaderValue::from_str) {
            headers.insert(ALLOW, allow);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_without_a_detail_is_internal_and_its_outcome_unknown() {
        let problem = Problem::of_status(&Status::cancelled("secret"), false);
        assert_eq!(problem.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(problem.outcome, Outcome::Unknown);
        assert!(!problem.message.contains("secret"), "{}", problem.message);
    }

    #[test]
    fn few_violations_are_listed() {
        let all = vec![Violation::new("f", "wrong"); 100];
        let problem = Problem::violated(all);
        assert_eq!(problem.violations.len(), VIOLATIONS_MAX);
        assert_eq!(problem.message, "f: wrong");
    }
}
