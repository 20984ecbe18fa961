//! Failures on the wire: the one place where kinds become codes (I12: nothing but the kind and
//! its message leaves the broker).

use aquifer_model::listener::ListenerName;
use aquifer_proto::{ERROR_TRAILER, v1};
use aquifer_protocol_api::error::{ApiError, ErrorKind, Outcome};
use prost::Message;
use tonic::codegen::http::Response;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

/// Longest text of an error on the wire: trailers beyond a client's header bound would hide the
/// error itself.
const TEXT_BYTES_MAX: usize = 1024;

/// The code of a kind, ours and gRPC's.
pub(crate) fn codes(kind: ErrorKind) -> (v1::ErrorCode, Code) {
    use v1::ErrorCode as Wire;
    match kind {
        ErrorKind::InvalidArgument => (Wire::InvalidArgument, Code::InvalidArgument),
        ErrorKind::NotFound => (Wire::NotFound, Code::NotFound),
        ErrorKind::AlreadyExists => (Wire::AlreadyExists, Code::AlreadyExists),
        ErrorKind::FailedPrecondition => (Wire::FailedPrecondition, Code::FailedPrecondition),
        ErrorKind::Conflict => (Wire::Conflict, Code::Aborted),
        ErrorKind::PermissionDenied => (Wire::PermissionDenied, Code::PermissionDenied),
        ErrorKind::Unauthenticated => (Wire::Unauthenticated, Code::Unauthenticated),
        ErrorKind::QuotaExceeded => (Wire::QuotaExceeded, Code::ResourceExhausted),
        ErrorKind::TooLarge => (Wire::TooLarge, Code::OutOfRange),
        ErrorKind::Checksum => (Wire::Checksum, Code::InvalidArgument),
        ErrorKind::Overloaded => (Wire::Overloaded, Code::ResourceExhausted),
        ErrorKind::StorageFull => (Wire::StorageFull, Code::ResourceExhausted),
        ErrorKind::Unavailable => (Wire::Unavailable, Code::Unavailable),
        ErrorKind::Redirect => (Wire::Redirect, Code::Unavailable),
        ErrorKind::Fenced => (Wire::Fenced, Code::Aborted),
        ErrorKind::ProducerBusy => (Wire::ProducerBusy, Code::FailedPrecondition),
        ErrorKind::Incarnation => (Wire::Incarnation, Code::FailedPrecondition),
        ErrorKind::Terminated => (Wire::Terminated, Code::FailedPrecondition),
        ErrorKind::DataLoss => (Wire::DataLoss, Code::DataLoss),
        ErrorKind::Timeout => (Wire::Timeout, Code::DeadlineExceeded),
        ErrorKind::UnsupportedVersion => (Wire::UnsupportedVersion, Code::FailedPrecondition),
        ErrorKind::Unimplemented => (Wire::Unimplemented, Code::Unimplemented),
        ErrorKind::Internal => (Wire::Internal, Code::Internal),
    }
}

/// An error as a message of a stream, for a client that came in through this listener: a redirect
/// names the same one of the other broker. One that it does not have is no way for the client, and
/// neither is any other: they belong to networks that it may not reach.
pub(crate) fn detail_at(error: &ApiError, listener: &ListenerName) -> v1::ErrorDetail {
    let Some(at) = &error.redirect else {
        return detail(error);
    };
    match at.url(listener) {
        Some(url) => v1::ErrorDetail {
            redirect_url: url.to_owned(),
            ..detail(error)
        },
        None => detail(&no_listener(error, listener)),
    }
}

fn no_listener(error: &ApiError, listener: &ListenerName) -> ApiError {
    let text = format!("{error}, which has no listener {listener}");
    let lacking = ApiError::new(ErrorKind::Unavailable, text).outcome(error.outcome);
    lacking.advise(format!(
        "let every broker have it: --listener {listener}=ADDRESS:PORT --advertise {listener}=URL"
    ))
}

/// An error as a message of a stream, without a redirect.
pub(crate) fn detail(error: &ApiError) -> v1::ErrorDetail {
    let outcome = match error.outcome {
        Outcome::NotApplied => v1::Outcome::NotApplied,
        Outcome::Applied => v1::Outcome::Applied,
        Outcome::Unknown => v1::Outcome::Unknown,
    };
    v1::ErrorDetail {
        code: codes(error.kind).0.into(),
        retryable: error.kind.is_retryable(),
        outcome: outcome.into(),
        message: shortened(&error.message),
        advice: shortened(&error.advice),
        redirect_url: String::new(),
    }
}

/// An error as the status of a unary call, with the detail in its trailer, for a client that came
/// in through this listener.
pub(crate) fn status_at(error: &ApiError, listener: &ListenerName) -> Status {
    with_detail(error.kind, detail_at(error, listener))
}

/// The same for an error without a redirect.
pub(crate) fn status(error: &ApiError) -> Status {
    with_detail(error.kind, detail(error))
}

fn with_detail(kind: ErrorKind, detail: v1::ErrorDetail) -> Status {
    let mut metadata = MetadataMap::new();
    let bytes = detail.encode_to_vec();
    metadata.insert_bin(ERROR_TRAILER, MetadataValue::from_bytes(&bytes));
    // A redirect without an address has the code of its detail: they are the same for gRPC.
    Status::with_metadata(codes(kind).1, detail.message, metadata)
}

/// An error that was put into a status here, such as a refusal to read more of a request.
fn of_ours(status: &Status) -> Option<ApiError> {
    let trailer = status.metadata().get_bin(ERROR_TRAILER)?;
    let detail = v1::ErrorDetail::decode(trailer.to_bytes().ok()?).ok()?;
    let code = detail.code();
    let kind = ErrorKind::ALL
        .into_iter()
        .find(|kind| codes(*kind).0 == code)?;
    Some(ApiError::new(kind, detail.message).advise(detail.advice))
}

/// What went wrong while a request message was received, if the peer is still there to be told.
pub(crate) fn receive_error(status: &Status) -> Option<ApiError> {
    if let Some(error) = of_ours(status) {
        return Some(error);
    }
    match status.code() {
        Code::OutOfRange | Code::ResourceExhausted => Some(
            ApiError::new(ErrorKind::TooLarge, status.message())
                .advise("send smaller messages or batches"),
        ),
        // The codec reports bytes that are no message, and compression that we do not speak, so.
        Code::Internal | Code::InvalidArgument | Code::Unimplemented => Some(ApiError::new(
            ErrorKind::InvalidArgument,
            format!("malformed request: {}", status.message()),
        )),
        // Everything else comes from a connection or stream that is gone.
        _ => None,
    }
}

/// Gives a failure that tonic itself answered, before any handler ran, the detail that all our
/// failures have: a request that cannot be decoded, one that is too large, an unknown method.
pub(crate) fn complete<B>(mut response: Response<B>) -> Response<B> {
    let Some(status) = Status::from_header_map(response.headers()) else {
        return response;
    };
    if status.code() != Code::Ok && status.metadata().get_bin(ERROR_TRAILER).is_none() {
        let mut metadata = MetadataMap::from_headers(std::mem::take(response.headers_mut()));
        let bytes = detail(&undetailed(&status)).encode_to_vec();
        metadata.insert_bin(ERROR_TRAILER, MetadataValue::from_bytes(&bytes));
        *response.headers_mut() = metadata.into_headers();
    }
    response
}

/// What a status of tonic means.
fn undetailed(status: &Status) -> ApiError {
    if status.code() == Code::Unimplemented {
        return ApiError::new(ErrorKind::Unimplemented, "no such method")
            .advise("client and broker may be of different versions");
    }
    receive_error(status).unwrap_or_else(|| ApiError::new(ErrorKind::Internal, status.message()))
}

pub(crate) fn shortened(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}

#[cfg(test)]
mod tests {
    use aquifer_model::listener::{Listener, Listeners};

    use super::*;

    #[test]
    fn a_unary_error_carries_its_detail_in_the_trailer() {
        let error = ApiError::new(ErrorKind::Overloaded, "too much")
            .advise("retry later")
            .outcome(Outcome::Unknown);
        let status = status(&error);
        assert_eq!(status.code(), Code::ResourceExhausted);
        let trailer = status.metadata().get_bin(ERROR_TRAILER).unwrap();
        let bytes = trailer.to_bytes().unwrap();
        let found = v1::ErrorDetail::decode(bytes).unwrap();
        assert_eq!(found, detail(&error));
        assert!(found.retryable);
        assert_eq!(found.code(), v1::ErrorCode::Overloaded);
        assert_eq!(found.outcome(), v1::Outcome::Unknown);
    }

    #[test]
    fn a_redirect_is_to_the_listener_that_the_client_came_in_through() {
        let name = |text: &str| text.parse::<ListenerName>().unwrap();
        let listener = |text: &str| Listener {
            name: name(text),
            url: format!("http://{text}"),
        };
        let both = vec![listener("default"), listener("outside")];
        let mut error = ApiError::new(ErrorKind::Redirect, "it is served by another broker");
        error.redirect = Some(Listeners::new(both).unwrap());
        for known in ["default", "outside"] {
            let found = detail_at(&error, &name(known));
            assert_eq!(found.code(), v1::ErrorCode::Redirect);
            assert_eq!(found.redirect_url, format!("http://{known}"));
        }
        let found = detail_at(&error, &name("edge"));
        assert_eq!(found.code(), v1::ErrorCode::Unavailable);
        assert!(found.retryable && found.redirect_url.is_empty());
        assert!(
            found.message.contains("no listener edge"),
            "{}",
            found.message
        );
        assert!(
            found.advice.contains("--advertise edge="),
            "{}",
            found.advice
        );
        let status = status_at(&error, &name("edge"));
        assert_eq!(status.code(), Code::Unavailable);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let error = ApiError::new(ErrorKind::Internal, "ä".repeat(TEXT_BYTES_MAX));
        assert!(detail(&error).message.len() <= TEXT_BYTES_MAX);
        let odd = format!("x{}", "ä".repeat(TEXT_BYTES_MAX));
        assert_eq!(shortened(&odd).len(), TEXT_BYTES_MAX - 1);
    }
}
