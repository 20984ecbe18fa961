//! REST in front of the services of administration, and these in front of a broker in memory.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

use std::sync::Arc;

use aquifer_protocol_api::conformance::FakeBroker;
use aquifer_protocol_api::error::{ErrorKind, Outcome};
use aquifer_protocol_registry::{GrpcConfig, Protocols, ProtocolsConfig, RestService};
use aquifer_runtime::clock::SystemClock;
use aquifer_runtime::rng::SeededRng;
use aquifer_runtime::task::TaskGroup;
use aquifer_runtime::telemetry::Telemetry;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tower_service::Service;

fn served() -> (RestService, FakeBroker) {
    // Whether gRPC has listeners says nothing about REST.
    let config = ProtocolsConfig {
        grpc: GrpcConfig {
            enabled: false,
            ..GrpcConfig::default()
        },
    };
    let clock = SystemClock::shared();
    let protocols = Protocols::new(&config, &clock, &Telemetry::for_tests()).unwrap();
    let broker = FakeBroker::default();
    let tasks = TaskGroup::new("test");
    let rest = protocols.rest(Arc::new(broker.clone()), SeededRng::shared(1), &tasks);
    (rest.unwrap(), broker)
}

async fn ask(rest: &RestService, verb: &str, target: &str, body: &str) -> (StatusCode, Value) {
    let request = Request::builder()
        .method(verb)
        .uri(target)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body.to_owned())))
        .unwrap();
    let response = rest.clone().call(request).await.unwrap();
    let status = response.status();
    let text = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&text).unwrap())
}

/// The paths that are described are those that are served, and each reaches a method.
#[tokio::test]
async fn every_path_reaches_its_method() {
    let (rest, broker) = served();
    let (_, document) = ask(&rest, "GET", "/api/v1/openapi.json", "").await;
    let mut called = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        let path = path
            .replace("{bundle}", "00000000-7fffffff")
            .replace(['{', '}'], "");
        for (verb, operation) in operations.as_object().unwrap() {
            let has_body = operation.get("requestBody").is_some();
            let body = if has_body { "{}" } else { "" };
            let verb = verb.to_uppercase();
            let (status, answer) = ask(&rest, &verb, &path, body).await;
            let message = answer["error"]["message"].as_str().unwrap_or_default();
            assert_ne!(message, "no such method", "{verb} {path}");
            assert_ne!(status, StatusCode::INTERNAL_SERVER_ERROR, "{answer}");
            called += 1;
        }
    }
    assert!(called > 20 && broker.calls() > 10, "{called}");
}

#[tokio::test]
async fn every_kind_of_failure_has_its_status() {
    let (rest, _) = served();
    for kind in ErrorKind::ALL {
        let expected = match kind {
            ErrorKind::InvalidArgument | ErrorKind::Checksum | ErrorKind::UnsupportedVersion => 400,
            ErrorKind::Unauthenticated => 401,
            ErrorKind::PermissionDenied => 403,
            ErrorKind::NotFound => 404,
            ErrorKind::AlreadyExists
            | ErrorKind::FailedPrecondition
            | ErrorKind::ProducerBusy
            | ErrorKind::Fenced
            | ErrorKind::Incarnation
            | ErrorKind::Terminated
            | ErrorKind::Conflict => 409,
            ErrorKind::TooLarge => 413,
            ErrorKind::QuotaExceeded | ErrorKind::Overloaded => 429,
            ErrorKind::Internal | ErrorKind::DataLoss => 500,
            ErrorKind::Unimplemented => 501,
            ErrorKind::Unavailable | ErrorKind::Redirect => 503,
            ErrorKind::Timeout => 504,
            ErrorKind::StorageFull => 507,
        };
        let topic = FakeBroker::failing_topic(kind);
        let target = format!("/api/v1/tenants/public/namespaces/default/topics/{topic}");
        for (verb, tail) in [("GET", ""), ("GET", "/stats"), ("DELETE", ""), ("PUT", "")] {
            let (status, answer) = ask(&rest, verb, &format!("{target}{tail}"), "").await;
            assert_eq!(status.as_u16(), expected, "{kind:?} {verb} {answer}");
            let outcome = match FakeBroker::outcome_of(kind) {
                Outcome::NotApplied => "NOT_APPLIED",
                Outcome::Applied => "APPLIED",
                Outcome::Unknown => "UNKNOWN",
            };
            assert_eq!(answer["error"]["outcome"], outcome, "{kind:?}");
            // A redirect without an address is no way for a client.
            if kind != ErrorKind::Redirect {
                assert_eq!(answer["error"]["message"], "as the topic's name asks");
                assert_eq!(answer["error"]["retryable"], kind.is_retryable());
            }
        }
    }
}

/// Names that could be misread anywhere further down are refused at the door.
#[tokio::test]
async fn bad_names_never_reach_the_broker() {
    let (rest, broker) = served();
    let long = "x".repeat(600);
    let parts = [
        "%00",
        "%2e%2e",
        "%2e",
        "..",
        "%2F",
        "a%2Fb",
        "a%20b",
        "%09",
        "%e2%80%ae",
        "%25",
        "a+b%3F",
        &long,
    ];
    for part in parts {
        for target in [
            format!("/api/v1/tenants/{part}"),
            format!("/api/v1/tenants/{part}/namespaces/b"),
            format!("/api/v1/tenants/a/namespaces/{part}"),
            format!("/api/v1/tenants/{part}/namespaces/b/topics/c"),
            format!("/api/v1/tenants/a/namespaces/{part}/topics/c"),
            format!("/api/v1/tenants/a/namespaces/b/topics/{part}"),
        ] {
            let (status, answer) = ask(&rest, "PUT", &target, "").await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{target} {answer}");
            assert_eq!(answer["error"]["code"], "INVALID_ARGUMENT");
        }
    }
    assert_eq!(broker.calls(), 0, "the broker never sees a bad name");
    // Slashes are allowed in names of subscriptions, and plus signs are themselves in paths.
    let target = "/api/v1/tenants/a/namespaces/b/topics/c+d/subscriptions/x%2Fy%23z";
    let (status, answer) = ask(&rest, "PUT", target, r#"{"place": "latest"}"#).await;
    assert_eq!(
        (status, answer),
        (StatusCode::CREATED, json!({"index": "0"}))
    );
}
