use std::sync::Mutex;

use aquifer_proto::ERROR_TRAILER;
use aquifer_proto::v1::{ErrorDetail, ListTenantsResponse, Outcome};
use aquifer_runtime::rng::SeededRng;
use http::Method;
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use prost::Message;
use serde_json::{Value as Json, json};
use tonic::metadata::MetadataMap;
use tonic::transport::server::TcpConnectInfo;
use tonic::{Code, Status};

use super::*;

/// A service that answers everything alike and keeps what it saw.
#[derive(Clone)]
struct Stub {
    answer: Result<Bytes, Status>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

#[derive(Debug)]
struct Seen {
    path: String,
    headers: HeaderMap,
    peer: Option<TcpConnectInfo>,
    protocol: Option<Protocol>,
    message: Bytes,
}

type StubFuture =
    Pin<Box<dyn Future<Output = Result<Response<tonic::body::Body>, Infallible>> + Send>>;

impl Service<Request<tonic::body::Body>> for Stub {
    type Response = Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = StubFuture;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> StubFuture {
        let stub = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let frame = body.collect().await.unwrap().to_bytes();
            stub.seen.lock().unwrap().push(Seen {
                path: parts.uri.path().to_owned(),
                headers: parts.headers,
                peer: parts.extensions.get().cloned(),
                protocol: parts.extensions.get().copied(),
                message: frame.slice(5..),
            });
            let message = match stub.answer {
                Ok(message) => message,
                Err(status) => return Ok(status.into_http()),
            };
            let mut frame = vec![0];
            frame.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
            frame.extend_from_slice(&message);
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            let body = Full::new(Bytes::from(frame));
            let body = body.with_trailers(async move { Some(Ok(trailers)) });
            let mut response = Response::new(tonic::body::Body::new(body));
            let kind = HeaderValue::from_static("application/grpc");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            Ok(response)
        })
    }
}

fn rest(answer: Result<Bytes, Status>) -> (Rest<Stub>, Stub) {
    let stub = Stub {
        answer,
        seen: Arc::default(),
    };
    (in_front_of(&stub), stub)
}

/// Lets in callers that do not show a wrong credential.
fn in_front_of(stub: &Stub) -> Rest<Stub> {
    let admission: Admission = Arc::new(|headers, extensions, rpc| {
        assert_eq!(extensions.get::<Protocol>(), Some(&Protocol(PROTOCOL)));
        assert!(rpc.starts_with("/aquifer.v1."), "{rpc}");
        match headers
            .get("authorization")
            .is_some_and(|shown| shown == "Bearer wrong")
        {
            true => Err(failing(ErrorCode::Unauthenticated)),
            false => Ok(Principal::Anonymous),
        }
    });
    Rest::new(stub.clone(), SeededRng::shared(7), admission).unwrap()
}

/// A body that may not be read.
struct Unread;

impl Body for Unread {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        panic!("the body is read");
    }
}

#[tokio::test]
async fn nothing_of_a_body_is_read_before_its_sender_is_known() {
    let (rest, stub) = rest(Ok(Bytes::new()));
    for (method, target, status) in [
        (Method::POST, "/api/v1/tokens", StatusCode::UNAUTHORIZED),
        (Method::POST, "/api/v1/nothing", StatusCode::NOT_FOUND),
        (Method::OPTIONS, "/api/v1/tenants", StatusCode::NO_CONTENT),
        (Method::GET, "/api/v1/openapi.json", StatusCode::BAD_REQUEST),
    ] {
        let mut request = Request::new(Unread);
        *request.method_mut() = method;
        *request.uri_mut() = target.parse().unwrap();
        let wrong = HeaderValue::from_static("Bearer wrong");
        request.headers_mut().insert("authorization", wrong);
        let response = rest.clone().call(request).await.unwrap();
        assert_eq!(response.status(), status, "{target}");
    }
    assert!(stub.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_port_of_this_machine_answers_no_other_host() {
    let page = ListTenantsResponse::default();
    let (rest, stub) = rest(Ok(page.encode_to_vec().into()));
    let rest = rest.for_this_machine();
    for (host, status) in [
        ("rebound.example:7680", StatusCode::FORBIDDEN),
        ("localhost:7680", StatusCode::OK),
    ] {
        let mut asked = request(Method::GET, "/api/v1/tenants", "");
        let host = HeaderValue::from_static(host);
        asked.headers_mut().insert("host", host);
        let (head, text) = answer(&rest, asked).await;
        assert_eq!(head.status(), status, "{text}");
    }
    assert_eq!(stub.seen.lock().unwrap().len(), 1);
}

fn request(method: Method, target: &str, body: &str) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(Bytes::from(body.to_owned())));
    *request.method_mut() = method;
    *request.uri_mut() = target.parse().unwrap();
    let kind = HeaderValue::from_static("application/json");
    request.headers_mut().insert(CONTENT_TYPE, kind);
    request
}

async fn answer(rest: &Rest<Stub>, request: Request<Full<Bytes>>) -> (Response<()>, String) {
    let (parts, body) = rest.clone().call(request).await.unwrap().into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    (Response::from_parts(parts, ()), text)
}

fn failing(code: ErrorCode) -> Status {
    let detail = ErrorDetail {
        code: code.into(),
        retryable: true,
        outcome: Outcome::Applied.into(),
        message: "what happened".to_owned(),
        advice: "what to do".to_owned(),
        redirect_url: String::new(),
    };
    let mut metadata = MetadataMap::new();
    let value = tonic::metadata::MetadataValue::from_bytes(&detail.encode_to_vec());
    metadata.insert_bin(ERROR_TRAILER, value);
    Status::with_metadata(Code::Aborted, "what happened", metadata)
}

#[tokio::test]
async fn the_service_sees_the_call_its_peer_and_few_headers() {
    let page = ListTenantsResponse {
        tenants: vec!["acme".to_owned()],
        next: String::new(),
    };
    let (rest, stub) = rest(Ok(page.encode_to_vec().into()));
    let mut asked = request(Method::GET, "/api/v1/tenants?pageSize=3", "");
    let headers = asked.headers_mut();
    headers.insert("authorization", "Bearer t".parse().unwrap());
    headers.insert("x-request-id", "mine-1".parse().unwrap());
    headers.insert("x-forwarded-for", "10.0.0.1".parse().unwrap());
    headers.insert("aquifer-principal", "root".parse().unwrap());
    let peer = TcpConnectInfo {
        local_addr: None,
        remote_addr: Some(([127, 0, 0, 1], 7).into()),
    };
    asked.extensions_mut().insert(peer);
    let (head, text) = answer(&rest, asked).await;
    assert_eq!(head.status(), StatusCode::OK);
    assert_eq!(head.headers()["x-request-id"], "mine-1");
    assert_eq!(head.headers()["cache-control"], "no-store");
    let found: Json = serde_json::from_str(&text).unwrap();
    assert_eq!(found, json!({"tenants": ["acme"], "nextPageToken": ""}));

    let seen = stub.seen.lock().unwrap();
    let seen = seen.first().unwrap();
    assert_eq!(seen.path, "/aquifer.v1.Admin/ListTenants");
    assert_eq!(&seen.message[..], [0x10, 3]);
    assert_eq!(seen.headers["authorization"], "Bearer t");
    assert_eq!(seen.headers["grpc-timeout"], "50000000u");
    for absent in ["x-forwarded-for", "aquifer-principal", "x-request-id"] {
        assert!(!seen.headers.contains_key(absent), "{absent}");
    }
    let peer = seen.peer.as_ref().and_then(TcpConnectInfo::remote_addr);
    assert_eq!(peer.map(|peer| peer.port()), Some(7));
    assert_eq!(seen.protocol, Some(Protocol("http")));
}

#[tokio::test]
async fn every_failure_has_its_status_and_its_detail() {
    for (code, status, name) in [
        (ErrorCode::InvalidArgument, 400, "INVALID_ARGUMENT"),
        (ErrorCode::UnsupportedVersion, 400, "UNSUPPORTED_VERSION"),
        (ErrorCode::Checksum, 400, "CHECKSUM"),
        (ErrorCode::Unauthenticated, 401, "UNAUTHENTICATED"),
        (ErrorCode::PermissionDenied, 403, "PERMISSION_DENIED"),
        (ErrorCode::NotFound, 404, "NOT_FOUND"),
        (ErrorCode::AlreadyExists, 409, "ALREADY_EXISTS"),
        (ErrorCode::FailedPrecondition, 409, "FAILED_PRECONDITION"),
        (ErrorCode::ProducerBusy, 409, "PRODUCER_BUSY"),
        (ErrorCode::Fenced, 409, "FENCED"),
        (ErrorCode::Incarnation, 409, "INCARNATION"),
        (ErrorCode::Terminated, 409, "TERMINATED"),
        // No version was named.
        (ErrorCode::Conflict, 409, "CONFLICT"),
        (ErrorCode::TooLarge, 413, "TOO_LARGE"),
        (ErrorCode::QuotaExceeded, 429, "QUOTA_EXCEEDED"),
        (ErrorCode::Overloaded, 429, "OVERLOADED"),
        (ErrorCode::Internal, 500, "INTERNAL"),
        (ErrorCode::DataLoss, 500, "DATA_LOSS"),
        (ErrorCode::Unimplemented, 501, "UNIMPLEMENTED"),
        (ErrorCode::Unavailable, 503, "UNAVAILABLE"),
        (ErrorCode::Redirect, 503, "REDIRECT"),
        (ErrorCode::Timeout, 504, "TIMEOUT"),
        (ErrorCode::StorageFull, 507, "STORAGE_FULL"),
    ] {
        let (rest, _) = rest(Err(failing(code)));
        let (head, text) = answer(&rest, request(Method::GET, "/api/v1/tenants", "")).await;
        assert_eq!(head.status().as_u16(), status, "{name}");
        assert_eq!(head.headers()[CONTENT_TYPE], "application/problem+json");
        let id = head.headers()["x-request-id"].to_str().unwrap();
        let expected = json!({"error": {
            "code": name,
            "message": "what happened",
            "advice": "what to do",
            "retryable": true,
            "outcome": "APPLIED",
            "requestId": id,
            "violations": [],
        }});
        assert_eq!(serde_json::from_str::<Json>(&text).unwrap(), expected);
        let bearer = head.headers().get(WWW_AUTHENTICATE);
        assert_eq!(bearer.is_some(), status == 401);
        let wait = head.headers().get(RETRY_AFTER);
        assert_eq!(wait.is_some(), [429, 503].contains(&status));
    }
    let (rest, _) = rest(Err(failing(ErrorCode::Conflict)));
    let mut change = request(Method::PATCH, "/api/v1/tenants/a/policies", "{}");
    change
        .headers_mut()
        .insert("if-match", "\"1\"".parse().unwrap());
    let (head, _) = answer(&rest, change).await;
    assert_eq!(head.status(), StatusCode::PRECONDITION_FAILED);
}

#[tokio::test]
async fn what_is_refused_here_never_reaches_the_service() {
    let (rest, stub) = rest(Ok(Bytes::new()));
    let large = format!("{{\"partitions\": {}1}}", " ".repeat(BODY_BYTES_MAX));
    let topic = "/api/v1/tenants/a/namespaces/b/topics/c";
    for (method, target, body, status) in [
        (Method::GET, "/api/v1/nothing", "", 404),
        (Method::GET, "/api/v1/tenants/", "", 404),
        (Method::DELETE, "/api/v1/tenants", "", 405),
        (Method::PUT, topic, "{", 400),
        (Method::PUT, topic, large.as_str(), 413),
        (Method::GET, "/api/v1/tenants", "{}", 400),
        (Method::GET, "/api/v1/openapi.json?x=1", "", 400),
    ] {
        let (head, text) = answer(&rest, request(method, target, body)).await;
        assert_eq!(head.status().as_u16(), status, "{target}: {text}");
        assert_eq!(head.headers()[CONTENT_TYPE], "application/problem+json");
        let found: Json = serde_json::from_str(&text).unwrap();
        let id = head.headers()["x-request-id"].to_str().unwrap();
        assert_eq!(found["error"]["requestId"], id);
        assert_eq!(found["error"]["outcome"], "NOT_APPLIED");
    }
    let mut odd = request(Method::GET, "/api/v1/tenants", "");
    let headers = odd.headers_mut();
    headers.append("authorization", "Bearer a".parse().unwrap());
    headers.append("authorization", "Bearer b".parse().unwrap());
    headers.insert("x-request-id", "a b\"c".parse().unwrap());
    let (head, _) = answer(&rest, odd).await;
    assert_eq!(head.status(), StatusCode::BAD_REQUEST);
    assert_eq!(head.headers()["x-request-id"].len(), 32, "one of our own");
    assert!(stub.seen.lock().unwrap().is_empty());

    let (head, text) = answer(&rest, request(Method::OPTIONS, topic, "")).await;
    assert_eq!((head.status().as_u16(), &*text), (204, ""));
    assert_eq!(
        head.headers()["allow"],
        "PUT, GET, DELETE, PATCH, HEAD, OPTIONS"
    );
    let (head, text) = answer(&rest, request(Method::GET, "/api/v1/openapi.json", "")).await;
    assert_eq!(head.status(), StatusCode::OK);
    let document: Json = serde_json::from_str(&text).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
}

/// A body that never ends, and one that breaks off.
struct Endless(bool);

impl Body for Endless {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, std::io::Error>>> {
        match self.0 {
            true => Poll::Pending,
            false => Poll::Ready(Some(Err(std::io::ErrorKind::UnexpectedEof.into()))),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_comes_in_time_or_not_at_all() {
    let (rest, stub) = rest(Ok(Bytes::new()));
    for (never_ends, status) in [(true, 408), (false, 400)] {
        let asked = request(Method::PUT, "/api/v1/tenants/a", "");
        let asked = asked.map(|_| Endless(never_ends));
        let response = rest.clone().call(asked).await.unwrap();
        assert_eq!(response.status().as_u16(), status);
    }
    assert!(stub.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn large_answers_are_counted_until_they_are_sent() {
    let page = ListTenantsResponse {
        tenants: vec!["x".repeat(100); 100_000],
        next: String::new(),
    };
    let (rest, _) = rest(Ok(page.encode_to_vec().into()));
    let mut waiting = Vec::new();
    let refused = loop {
        let asked = request(Method::GET, "/api/v1/tenants", "");
        let response = rest.clone().call(asked).await.unwrap();
        match response.status() {
            StatusCode::OK => waiting.push(response),
            status => break status,
        }
    };
    assert_eq!(refused, StatusCode::TOO_MANY_REQUESTS);
    assert!((1..16).contains(&waiting.len()), "{}", waiting.len());
    let whole = waiting.pop().unwrap().into_body().collect().await.unwrap();
    assert!(whole.to_bytes().len() > 100 * 100_000);
    let asked = request(Method::GET, "/api/v1/tenants", "");
    let response = rest.clone().call(asked).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK, "there is room again");
}
