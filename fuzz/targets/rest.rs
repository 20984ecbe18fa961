//! REST: any method, path, query, If-Match and body is a call whose message can be read and
//! answered, or the client's error.
#![no_main]

use std::sync::OnceLock;

use aquifer_protocol_http::problem::Problem;
use aquifer_protocol_http::transcode::{Target, Transcoder};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, IF_MATCH};
use http::Method;
use libfuzzer_sys::fuzz_target;

const METHODS: [Method; 8] = [
    Method::GET,
    Method::PUT,
    Method::POST,
    Method::PATCH,
    Method::DELETE,
    Method::HEAD,
    Method::OPTIONS,
    Method::TRACE,
];

/// One byte for the method, then lines: target, If-Match, body.
fuzz_target!(|data: &[u8]| {
    static TRANSCODER: OnceLock<Transcoder> = OnceLock::new();
    let transcoder = TRANSCODER.get_or_init(|| Transcoder::new().expect("the routes of this build"));
    let Some((method, rest)) = data.split_first() else { return };
    let mut lines = rest.splitn(3, |byte| *byte == b'\n');
    let Ok(target) = std::str::from_utf8(lines.next().unwrap_or_default()) else { return };
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let tag = lines.next().filter(|tag| !tag.is_empty());
    if let Some(Ok(tag)) = tag.map(HeaderValue::from_bytes) {
        headers.insert(IF_MATCH, tag);
    }
    let body = lines.next().unwrap_or_default();
    let method = &METHODS[usize::from(*method) % METHODS.len()];
    if let Err(problem) = answer(transcoder, method, target, &headers, body) {
        assert!(problem.status().is_client_error(), "{problem:?}");
    }
});

fn answer(
    transcoder: &Transcoder,
    method: &Method,
    target: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<(), Problem> {
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    match transcoder.find(method, path)? {
        Target::Method(place) => {
            let call = place.request(query, headers, body)?;
            // What an answer of the same fields comes to; its bytes may be no message of the
            // answer.
            let _ = call.answer(call.message());
        }
        Target::Document => drop(transcoder.document(query, !body.is_empty())?),
        Target::Options(_) => {}
    }
    Ok(())
}
