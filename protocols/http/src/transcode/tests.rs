use aquifer_proto::v1;
use aquifer_proto::v1::policy_scope::Scope;
use http::StatusCode;
use http::header::{ALLOW, CONTENT_ENCODING, HeaderMap, IF_MATCH};
use http_body_util::BodyExt;
use proptest::prelude::*;
use prost::Message;
use serde_json::{Value as Json, json};

use super::*;

const T: &str = "/api/v1/tenants/acme/namespaces/shop/topics/orders";

fn transcoder() -> Transcoder {
    Transcoder::new().unwrap()
}

fn json_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, JSON);
    headers
}

fn split(target: &str) -> (&str, Option<&str>) {
    match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    }
}

fn call<'t>(
    transcoder: &'t Transcoder,
    verb: &str,
    target: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Call<'t>, Problem> {
    let (path, query) = split(target);
    match transcoder.find(&verb.parse().unwrap(), path)? {
        Target::Method(place) => place.request(query, headers, body),
        other => panic!("{other:?}"),
    }
}

/// The method and the message that a request comes to.
fn message<M: Message + Default>(verb: &str, target: &str, body: &str) -> (String, M) {
    let transcoder = transcoder();
    let found = call(&transcoder, verb, target, &json_headers(), body.as_bytes());
    let found = found.unwrap_or_else(|problem| panic!("{verb} {target}: {problem:?}"));
    let method = found.rpc().path().to_owned();
    (method, M::decode(found.message().clone()).unwrap())
}

fn refused(verb: &str, target: &str, body: &str) -> (StatusCode, String) {
    let transcoder = transcoder();
    let found = call(&transcoder, verb, target, &json_headers(), body.as_bytes());
    match found {
        Ok(call) => panic!("{verb} {target}: {call:?}"),
        Err(problem) => (problem.status(), format!("{problem:?}")),
    }
}

fn text_of(response: Response<Full<Bytes>>) -> String {
    let mut body = response.into_body();
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let frame = std::pin::Pin::new(&mut body.frame()).poll(&mut context);
    match frame {
        std::task::Poll::Ready(Some(Ok(frame))) => {
            String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
        }
        _ => String::new(),
    }
}

#[test]
fn segments_are_joined_to_names() {
    let (method, found): (_, v1::CreateTopicRequest) = message("PUT", T, r#"{"partitions": 3}"#);
    assert_eq!(method, "/aquifer.v1.Admin/CreateTopic");
    assert_eq!((&*found.topic, found.partitions), ("acme/shop/orders", 3));

    let (_, found): (_, v1::ListNamespacesRequest) =
        message("GET", "/api/v1/tenants/acme/namespaces?pageSize=7", "");
    assert_eq!((&*found.tenant, found.limit), ("acme", 7));

    let target = format!("{T}/subscriptions/a%2Fb%23c/seek");
    let (_, found): (_, v1::SeekSubscriptionRequest) =
        message("POST", &target, r#"{"place": "earliest"}"#);
    let expected = ("acme/shop/orders", "a/b#c", "earliest");
    assert_eq!(
        (&*found.topic, &*found.subscription, &*found.place),
        expected
    );

    let policies = |path: &str| {
        let target = format!("/api/v1/tenants/{path}/policies");
        let (_, found): (_, v1::GetPoliciesRequest) = message("GET", &target, "");
        found.scope.unwrap().scope.unwrap()
    };
    assert_eq!(policies("a"), Scope::Tenant("a".to_owned()));
    assert_eq!(
        policies("a/namespaces/b"),
        Scope::Namespace("a/b".to_owned())
    );
    assert_eq!(
        policies("a/namespaces/b/topics/c"),
        Scope::Topic("a/b/c".to_owned())
    );

    let target = format!("{T}?force=false&dryRun=true");
    let (_, found): (_, v1::DeleteTopicRequest) = message("DELETE", &target, "");
    assert!(found.dry_run && !found.force);
}

#[test]
fn what_a_path_says_may_be_repeated_and_not_contradicted() {
    let (_, found): (_, v1::CreateTopicRequest) =
        message("PUT", T, r#"{"topic": "acme/shop/orders"}"#);
    assert_eq!(found.topic, "acme/shop/orders");
    for body in [
        r#"{"topic": "orders"}"#,
        r#"{"topic": "other/shop/orders"}"#,
    ] {
        let (status, said) = refused("PUT", T, body);
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(said.contains("something else"), "{said}");
    }
    let target = "/api/v1/tenants/acme/policies";
    let (status, _) = refused("PATCH", target, r#"{"scope": {"namespace": "acme/x"}}"#);
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[test]
fn what_is_not_exactly_right_is_refused() {
    let reset = format!("{T}/reset-subscriptions");
    let long = format!("{T}?force=true&force=true");
    for (verb, target, body, hint) in [
        (
            "PUT",
            T,
            r#"{"partitions": 3, "partitions": 3}"#,
            "given twice",
        ),
        ("PUT", T, r#"{"partitons": 3}"#, "no such field"),
        ("PUT", T, r#"{"partitions": 3} {}"#, "no JSON"),
        ("PUT", T, r#"{"partitions": 3"#, "no JSON"),
        ("PUT", T, r#"[3]"#, "no object"),
        ("PUT", T, r#"{"partitions": null}"#, "leave it out"),
        ("PUT", "/api/v1/tenants/acme?x=1", "", "no such parameter"),
        ("PUT", "/api/v1/tenants/acme", "{}", "no body"),
        ("DELETE", T, "{}", "no body"),
        ("DELETE", &long, "", "given twice"),
        ("GET", "/api/v1/tenants?pageSize=-1", "", "0 to"),
        ("GET", "/api/v1/tenants?pageSize=1e3", "", "0 to"),
        ("GET", "/api/v1/tenants?pageToken=", "", "nextPageToken"),
        ("GET", "/api/v1/tenants?pageToken=acme", "", "nextPageToken"),
        ("GET", "/api/v1/tenants?limit=1", "", "no such parameter"),
        ("GET", "/api/v1/tenants?after=a", "", "no such parameter"),
        (
            "GET",
            "/api/v1/tenants?page_size=1",
            "",
            "no such parameter",
        ),
        ("GET", "/api/v1/tenants?pageSize=%zz", "", "percent"),
        ("POST", &reset, "", "needs a body"),
        ("GET", &format!("{T}?create=true"), "", "no such parameter"),
        ("PUT", &format!("{T}?partitions=1"), "", "no such parameter"),
        ("GET", "/api/v1/tenants/%ff/policies", "", "UTF-8"),
        ("GET", "/api/v1/tenants/%2/policies", "", "percent"),
        ("PUT", "/api/v1/tenants/a%2Fb/namespaces/c", "", "no slash"),
        ("PUT", "/api/v1/tenants/a/namespaces/b%2Fc", "", "no slash"),
    ] {
        let (status, said) = refused(verb, target, body);
        assert_eq!(status, StatusCode::BAD_REQUEST, "{verb} {target} {said}");
        assert!(said.contains(hint), "{verb} {target} {body}: {said}");
    }
}

#[test]
fn a_body_is_called_json() {
    let transcoder = transcoder();
    let status = |headers: &HeaderMap| {
        let found = call(&transcoder, "PUT", T, headers, b"{}");
        found.err().map(|problem| problem.status())
    };
    let typed = |text: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, text.parse().unwrap());
        headers
    };
    for good in [
        "application/json",
        "Application/JSON; charset=UTF-8",
        "application/json;charset=\"utf-8\"",
    ] {
        assert_eq!(status(&typed(good)), None, "{good}");
    }
    let refused = Some(StatusCode::UNSUPPORTED_MEDIA_TYPE);
    for bad in [
        "text/plain",
        "application/json; charset=latin1",
        "application/x-www-form-urlencoded",
        "application/jsonx",
        "",
    ] {
        assert_eq!(status(&typed(bad)), refused, "{bad}");
    }
    assert_eq!(status(&HeaderMap::new()), refused);
    let mut twice = json_headers();
    twice.append(CONTENT_TYPE, JSON);
    assert_eq!(status(&twice), refused);
    let mut packed = json_headers();
    packed.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    assert_eq!(status(&packed), refused);
}

#[test]
fn paths_and_methods_that_do_not_exist_are_told_apart() {
    let transcoder = transcoder();
    let status = |verb: &str, path: &str| {
        let found = transcoder.find(&verb.parse().unwrap(), path);
        found.map(|_| StatusCode::OK).map_err(|problem| {
            let allow = problem.response("id").headers().get(ALLOW).cloned();
            (problem.status(), allow)
        })
    };
    for path in [
        "/",
        "/api/v1",
        "/api/v1/",
        "/api/v1/tenants/",
        "/api/v1/tenants//policies",
        "/api/v1/Tenants",
        "/api/v1/tenants/a/namespaces/b/topics/c/",
        "/api/v2/tenants",
        "*",
        "",
    ] {
        assert_eq!(
            status("GET", path),
            Err((StatusCode::NOT_FOUND, None)),
            "{path}"
        );
    }
    let allow = |text: &str| {
        let allow = Some(text.parse().unwrap());
        Err((StatusCode::METHOD_NOT_ALLOWED, allow))
    };
    assert_eq!(
        status("DELETE", "/api/v1/tenants"),
        allow("GET, HEAD, OPTIONS")
    );
    assert_eq!(
        status("TRACE", T),
        allow("PUT, GET, DELETE, PATCH, HEAD, OPTIONS")
    );
    assert_eq!(status("POST", DOCUMENT_PATH), allow("GET, HEAD, OPTIONS"));
    assert_eq!(status("HEAD", T), Ok(StatusCode::OK));
    assert_eq!(status("OPTIONS", T), Ok(StatusCode::OK));
    assert_eq!(status("GET", DOCUMENT_PATH), Ok(StatusCode::OK));
}

#[test]
fn pages_are_opaque_and_of_their_list() {
    let transcoder = transcoder();
    let target = "/api/v1/tenants/acme/namespaces/shop/topics";
    let none = HeaderMap::new();
    let first = call(&transcoder, "GET", target, &none, b"").unwrap();
    let page = v1::ListTopicsResponse {
        topics: Vec::new(),
        next: "acme/shop/orders".to_owned(),
    };
    let response = first.answer(&page.encode_to_vec()).unwrap();
    let found: Json = serde_json::from_str(&text_of(response)).unwrap();
    let token = found["nextPageToken"].as_str().unwrap().to_owned();
    assert!(!token.contains("orders") && found.get("next").is_none());

    let next = format!("{target}?pageToken={token}&pageSize=2");
    let second = call(&transcoder, "GET", &next, &none, b"").unwrap();
    let second = v1::ListTopicsRequest::decode(second.message().clone()).unwrap();
    assert_eq!((&*second.after, second.limit), ("acme/shop/orders", 2));

    let of_another = format!("/api/v1/tenants/acme/namespaces/other/topics?pageToken={token}");
    let refused = call(&transcoder, "GET", &of_another, &none, b"").unwrap_err();
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);

    let last = v1::ListTopicsResponse::default();
    let response = first.answer(&last.encode_to_vec()).unwrap();
    let found: Json = serde_json::from_str(&text_of(response)).unwrap();
    assert_eq!(found, json!({"topics": [], "nextPageToken": ""}));
}

#[test]
fn versions_are_etags() {
    let transcoder = transcoder();
    let target = format!("{T}/policies");
    let change = |tag: &str, body: &str| {
        let mut headers = json_headers();
        headers.insert(IF_MATCH, tag.parse().unwrap());
        let found = call(&transcoder, "PATCH", &target, &headers, body.as_bytes());
        found.map(|call| {
            let message = v1::UpdatePoliciesRequest::decode(call.message().clone());
            (message.unwrap().version, call.conditional)
        })
    };
    assert_eq!(change("\"17\"", "{}"), Ok((Some(17), true)));
    assert_eq!(
        change("\"17\"", r#"{"version": "17"}"#),
        Ok((Some(17), true))
    );
    let status = |tag: &str, body: &str| change(tag, body).unwrap_err().status();
    assert_eq!(
        status("\"17\"", r#"{"version": "18"}"#),
        StatusCode::BAD_REQUEST
    );
    for bad in ["17", "*", "W/\"17\"", "\"17\", \"18\"", "\"", ""] {
        assert_eq!(status(bad, "{}"), StatusCode::BAD_REQUEST, "{bad}");
    }
    // Well formed, and no version that there ever was.
    for other in [
        "\"x\"",
        "\"017\"",
        "\"-1\"",
        "\"99999999999999999999\"",
        "\"\"",
    ] {
        assert_eq!(
            status(other, "{}"),
            StatusCode::PRECONDITION_FAILED,
            "{other}"
        );
    }
    assert_eq!(
        status("\"x\"", r#"{"more": 1}"#),
        StatusCode::BAD_REQUEST,
        "it would stay wrong"
    );
    let without = call(&transcoder, "PATCH", &target, &json_headers(), b"{}").unwrap();
    assert!(!without.conditional);

    let mut headers = HeaderMap::new();
    headers.insert(IF_MATCH, HeaderValue::from_static("\"1\""));
    let refused = call(&transcoder, "DELETE", T, &headers, b"").unwrap_err();
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST, "not ignored");

    let view = v1::PolicyView {
        version: 42,
        ..v1::PolicyView::default()
    };
    let answer = v1::UpdatePoliciesResponse {
        policies: Some(view),
    };
    let response = without.answer(&answer.encode_to_vec()).unwrap();
    assert_eq!(response.headers()[ETAG], "\"42\"");
    let bare = v1::UpdatePoliciesResponse::default().encode_to_vec();
    assert!(!without.answer(&bare).unwrap().headers().contains_key(ETAG));
}

#[test]
fn creates_are_answered_201() {
    let transcoder = transcoder();
    let none = HeaderMap::new();
    let created = call(&transcoder, "PUT", T, &none, b"").unwrap();
    let response = created.answer(&[]).unwrap();
    assert_eq!(response.status(), StatusCode::CREATED);
    assert_eq!(text_of(response), "{}");
    let broken = created.answer(&[0xff]).unwrap_err();
    assert_eq!(broken.status(), StatusCode::INTERNAL_SERVER_ERROR);
}

/// Paths near real ones, and any others.
fn paths() -> impl Strategy<Value = String> {
    let segment = prop_oneof![
        Just("api".to_owned()),
        Just("v1".to_owned()),
        Just("tenants".to_owned()),
        Just("namespaces".to_owned()),
        Just("topics".to_owned()),
        Just("policies".to_owned()),
        Just("subscriptions".to_owned()),
        Just("seek".to_owned()),
        Just("skip".to_owned()),
        "[a-z%2F.:~+]{0,12}",
        "(%[0-9a-f]{2}){0,4}",
        "\\PC{0,8}",
    ];
    let tail = prop::collection::vec(segment, 0..10);
    (any::<bool>(), tail).prop_map(|(real, tail)| {
        let start = if real { "/api/v1/tenants/" } else { "/" };
        format!("{start}{}", tail.join("/"))
    })
}

fn bodies() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        Just("\"scope\"".to_owned()),
        Just("\"set\"".to_owned()),
        Just("\"place\"".to_owned()),
        Just("\"partitions\"".to_owned()),
        Just("\"retention\"".to_owned()),
        Just("\"timeMs\"".to_owned()),
        "[{}\\[\\],:0-9.eE\"-]{0,4}",
        "\"\\PC{0,6}\"",
    ];
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..64),
        prop::collection::vec(word, 0..24).prop_map(|words| words.concat().into_bytes()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever comes is a call or a client's error, and a call's message can be read.
    #[test]
    fn nothing_that_comes_is_our_failure(
        verb in prop_oneof!["GET|PUT|POST|PATCH|DELETE|HEAD|OPTIONS", "[A-Z]{1,8}"],
        path in paths(),
        query in prop::option::of("(pageSize|pageToken|force|brief|\\PC{0,4})?[=&%+0-9a-z]{0,12}"),
        body in bodies(),
        tag in prop::option::of("[\"W/*0-9]{0,6}"),
    ) {
        let transcoder = transcoder();
        let mut headers = json_headers();
        if let Some(tag) = tag {
            headers.insert(IF_MATCH, tag.parse().unwrap());
        }
        let found = transcoder.find(&verb.parse().unwrap(), &path);
        let answered = found.and_then(|target| match target {
            Target::Method(place) => place.request(query.as_deref(), &headers, &body).map(Some),
            Target::Document => transcoder.document(query.as_deref(), !body.is_empty()).map(|_| None),
            Target::Options(_) => Ok(None),
        });
        match answered {
            Ok(Some(call)) => prop_assert!(call.answer(&[]).is_ok()),
            Ok(None) => {}
            Err(problem) => prop_assert!(problem.status().is_client_error(), "{problem:?}"),
        }
    }
}
