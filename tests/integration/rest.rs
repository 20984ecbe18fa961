//! REST of a real server, by a raw client, beside gRPC of the same server.

use anyhow::{Context, Result, ensure};
use aquifer_harness::http::{Answer, get, rest};
use aquifer_harness::server::{Server, ServerOptions};
use aquifer_proto::v1::admin_client::AdminClient;
use aquifer_proto::v1::operator_client::OperatorClient;
use aquifer_proto::{ERROR_TRAILER, v1};
use prost::Message;
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Response, Status};

const N: &str = "/api/v1/tenants/acme/namespaces/shop";
const T: &str = "/api/v1/tenants/acme/namespaces/shop/topics/orders";

struct Both {
    _folder: tempfile::TempDir,
    server: Server,
    http: String,
    grpc: AdminClient<Channel>,
    operator: OperatorClient<Channel>,
}

async fn start() -> Result<Both> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let server = Server::start(&data, ServerOptions::default()).await?;
    let grpc = AdminClient::connect(server.url()).await?;
    let operator = OperatorClient::connect(server.url()).await?;
    Ok(Both {
        _folder: folder,
        http: server.http(),
        grpc,
        operator,
        server,
    })
}

impl Both {
    async fn ask(&self, request: &str, body: &str) -> Result<Answer> {
        rest(&self.http, request, &[], body).await
    }

    async fn done(&self, request: &str, body: &str, status: u16) -> Result<Value> {
        let answer = self.ask(request, body).await?;
        ensure!(answer.status == status, "{request}: {answer:?}");
        ensure!(answer.header("content-type") == "application/json");
        Ok(answer.body)
    }

    /// An error is the same in both.
    async fn same_error<T: std::fmt::Debug>(
        &self,
        request: &str,
        body: &str,
        status: u16,
        answered: Result<Response<T>, Status>,
    ) -> Result<()> {
        let error = answered.err().with_context(|| request.to_owned())?;
        let trailer = error
            .metadata()
            .get_bin(ERROR_TRAILER)
            .context("a detail")?;
        let detail = v1::ErrorDetail::decode(trailer.to_bytes()?)?;
        let answer = self.ask(request, body).await?;
        ensure!(answer.status == status, "{request}: {answer:?}");
        ensure!(answer.header("content-type") == "application/problem+json");
        let found = &answer.body["error"];
        let code = format!("ERROR_CODE_{}", found["code"].as_str().context("a code")?);
        ensure!(code == detail.code().as_str_name(), "{code} {detail:?}");
        let outcome = format!("OUTCOME_{}", found["outcome"].as_str().context("one")?);
        ensure!(outcome == detail.outcome().as_str_name());
        let expected = json!([detail.message, detail.advice, detail.retryable]);
        let found_texts = json!([found["message"], found["advice"], found["retryable"]]);
        ensure!(found_texts == expected, "{found_texts} {expected}");
        ensure!(found["requestId"] == answer.header("x-request-id"));
        Ok(())
    }
}

/// Makes a partitioned topic, and a plain one with a subscription.
async fn fill(both: &Both) -> Result<()> {
    both.done("PUT /api/v1/tenants/acme", "", 201).await?;
    let policies = r#"{"policies": {"rollover": {"sizeBytes": "1048576", "ageMs": "60000", "entries": "500"}}}"#;
    let made = both.done(&format!("PUT {N}"), policies, 201).await?;
    assert_eq!(made["policies"]["own"]["rollover"]["entries"], "500");
    both.done(&format!("PUT {T}"), r#"{"partitions": 3}"#, 201)
        .await?;
    both.done(&format!("PUT {N}/topics/plain"), "", 201).await?;
    let place = r#"{"place": "earliest"}"#;
    let plain = format!("{N}/topics/plain");
    let subscription = format!("{plain}/subscriptions/a%2Fb");
    let index = both
        .done(&format!("PUT {subscription}"), place, 201)
        .await?;
    assert_eq!(index, json!({"index": "0"}));
    for verb in ["seek", "skip"] {
        let body = if verb == "seek" { place } else { "{}" };
        both.done(&format!("POST {subscription}/{verb}"), body, 200)
            .await?;
    }
    let reset = format!("POST {plain}/reset-subscriptions");
    assert_eq!(
        both.done(&reset, "{}", 200).await?,
        json!({"subscriptions": []})
    );
    Ok(())
}

/// Topics as both describe them.
async fn same_topics(both: &mut Both) -> Result<()> {
    let plain = format!("{N}/topics/plain");
    let described = both.done(&format!("GET {T}"), "", 200).await?;
    let request = v1::DescribeTopicRequest {
        topic: "acme/shop/orders".to_owned(),
        create: false,
    };
    let by_grpc = both.grpc.describe_topic(request).await?.into_inner();
    assert_eq!(described["topic"], json!(by_grpc.topic));
    let ranges = described["ranges"].as_array().context("ranges")?;
    assert_eq!((ranges.len(), by_grpc.ranges.len()), (3, 3));
    assert_eq!(ranges[2]["lastHash"], json!(by_grpc.ranges[2].last_hash));
    assert_eq!(ranges[2]["lastHash"], json!(u32::MAX));

    let stats = both.done(&format!("GET {plain}/stats"), "", 200).await?;
    let request = v1::TopicStatsRequest {
        topic: "acme/shop/plain".to_owned(),
        brief: false,
    };
    let by_grpc = both.grpc.topic_stats(request).await?.into_inner();
    assert_eq!(
        stats["subscriptions"][0]["name"],
        json!(by_grpc.subscriptions[0].name)
    );
    assert_eq!(stats["endIndex"], json!(by_grpc.end_index.to_string()));
    let brief = both
        .done(&format!("GET {plain}/stats?brief=true"), "", 200)
        .await?;
    assert_eq!(brief["subscriptions"], json!([]));
    Ok(())
}

/// Bookies and ledgers as both show them.
async fn same_storage(both: &mut Both) -> Result<()> {
    let bookies = both
        .done("GET /api/v1/bookies?countLedgers=true", "", 200)
        .await?;
    let request = v1::ListBookiesRequest {
        count_ledgers: true,
    };
    let by_grpc = both.operator.list_bookies(request).await?.into_inner();
    let first = by_grpc.bookies.first().context("a bookie")?;
    assert_eq!(bookies["bookies"][0]["bookie"], json!(first.bookie));
    let counted = first.ledgers.context("they are counted")?.to_string();
    assert_eq!(bookies["bookies"][0]["ledgers"], json!(counted));
    let ledgers = both.done("GET /api/v1/ledgers?pageSize=1", "", 200).await?;
    let request = v1::ListLedgersRequest {
        after: String::new(),
        limit: 1,
    };
    let by_grpc = both.operator.list_ledgers(request).await?.into_inner();
    let first = by_grpc.ledgers.first().context("a ledger")?;
    let id = first.ledger_id.to_string();
    assert_eq!(ledgers["ledgers"][0]["ledgerId"], json!(id));
    assert_eq!(ledgers["ledgers"][0]["state"], json!(first.state));
    let one = both
        .done(&format!("GET /api/v1/ledgers/{id}"), "", 200)
        .await?;
    assert_eq!(one["ledger"], ledgers["ledgers"][0]);
    for (path, status) in [
        ("/api/v1/ledgers/x", 400),
        ("/api/v1/ledgers/999999999", 404),
        ("/api/v1/bookies/x", 400),
        ("/api/v1/bookies/00000000000000000000000000000000", 404),
    ] {
        let answer = both.ask(&format!("GET {path}"), "").await?;
        assert_eq!(answer.status, status, "{path}: {answer:?}");
    }
    Ok(())
}

#[tokio::test]
async fn what_is_made_by_one_is_seen_by_the_other() -> Result<()> {
    let mut both = start().await?;
    fill(&both).await?;
    same_topics(&mut both).await?;
    let tenants = both.done("GET /api/v1/tenants", "", 200).await?;
    let by_grpc = both
        .grpc
        .list_tenants(v1::ListTenantsRequest::default())
        .await?;
    assert_eq!(tenants["tenants"], json!(by_grpc.into_inner().tenants));
    let namespaces = both
        .done("GET /api/v1/tenants/acme/namespaces", "", 200)
        .await?;
    let request = v1::ListNamespacesRequest {
        tenant: "acme".to_owned(),
        ..v1::ListNamespacesRequest::default()
    };
    let by_grpc = both.grpc.list_namespaces(request).await?.into_inner();
    assert_eq!(namespaces["namespaces"], json!(by_grpc.namespaces));

    let brokers = both.done("GET /api/v1/brokers", "", 200).await?;
    let by_grpc = both
        .operator
        .list_brokers(v1::ListBrokersRequest {})
        .await?
        .into_inner();
    assert_eq!(
        brokers["brokers"][0]["broker"],
        json!(by_grpc.brokers[0].broker)
    );
    let bundles = both.done(&format!("GET {N}/bundles"), "", 200).await?;
    let request = v1::ListBundlesRequest {
        namespace: "acme/shop".to_owned(),
    };
    let by_grpc = both.operator.list_bundles(request).await?.into_inner();
    let names: Vec<_> = by_grpc
        .bundles
        .iter()
        .map(|one| one.bundle.clone())
        .collect();
    let found = bundles["bundles"].as_array().context("bundles")?;
    let found: Vec<_> = found.iter().map(|one| one["bundle"].clone()).collect();
    assert_eq!(json!(found), json!(names));
    let load = both.done("GET /api/v1/server/load", "", 200).await?;
    assert_eq!(load["broker"], brokers["brokers"][0]["broker"]);

    same_storage(&mut both).await?;
    let would = both
        .done(&format!("DELETE {T}?dryRun=true"), "", 200)
        .await?;
    assert_eq!(would["content"]["partitions"], 3);
    assert_eq!(would["content"]["inUse"], false);
    let subscription = format!("{N}/topics/plain/subscriptions/a%2Fb");
    both.done(&format!("DELETE {subscription}"), "", 200)
        .await?;
    both.done(&format!("DELETE {T}?force=true"), "", 200)
        .await?;
    let listed = both.done(&format!("GET {N}/topics"), "", 200).await?;
    assert_eq!(
        listed["topics"],
        json!([{"topic": "persistent://acme/shop/plain", "partitions": 0}])
    );
    both.server.stop()?;
    both.server.check_logs()
}

#[tokio::test]
async fn errors_are_the_same_in_both() -> Result<()> {
    let mut both = start().await?;
    both.done("PUT /api/v1/tenants/acme", "", 201).await?;
    both.done(&format!("PUT {N}"), "", 201).await?;
    let topic = || "acme/shop/orders".to_owned();
    let mut grpc = both.grpc.clone();

    let request = v1::CreateTenantRequest {
        tenant: "acme".to_owned(),
    };
    let answered = grpc.create_tenant(request).await;
    let again = "PUT /api/v1/tenants/acme";
    both.same_error(again, "", 409, answered).await?;

    let request = v1::TopicStatsRequest {
        topic: topic(),
        brief: false,
    };
    let answered = grpc.topic_stats(request).await;
    let stats = format!("GET {T}/stats");
    both.same_error(&stats, "", 404, answered).await?;

    let request = v1::SeekSubscriptionRequest {
        topic: topic(),
        subscription: "s".to_owned(),
        place: "nowhere".to_owned(),
    };
    let answered = grpc.seek_subscription(request).await;
    let seek = format!("POST {T}/subscriptions/s/seek");
    let body = r#"{"place": "nowhere"}"#;
    both.same_error(&seek, body, 400, answered).await?;

    let request = v1::SkipMessagesRequest {
        topic: topic(),
        subscription: "s".to_owned(),
        first_index: Some(1),
        last_index: None,
    };
    let answered = grpc.skip_messages(request).await;
    let skip = format!("POST {T}/subscriptions/s/skip");
    both.same_error(&skip, r#"{"firstIndex": 1}"#, 400, answered)
        .await?;

    let request = v1::CreateTopicRequest {
        topic: topic(),
        partitions: u32::MAX,
    };
    let answered = grpc.create_topic(request).await;
    let body = r#"{"partitions": 4294967295}"#;
    both.same_error(&format!("PUT {T}"), body, 400, answered)
        .await?;

    let request = v1::SplitBundleRequest {
        namespace: "acme/shop".to_owned(),
        bundle: "00000000-00000001".to_owned(),
        at: None,
    };
    let answered = both.operator.clone().split_bundle(request).await;
    let split = format!("POST {N}/bundles/00000000-00000001/split");
    both.same_error(&split, "{}", 404, answered).await?;

    let request = v1::DeleteTopicRequest {
        topic: topic(),
        force: false,
        check: false,
        dry_run: false,
    };
    let answered = grpc.delete_topic(request).await;
    both.same_error(&format!("DELETE {T}"), "", 404, answered)
        .await?;
    both.server.stop()?;
    both.server.check_logs()
}

#[tokio::test]
async fn of_two_changes_of_a_version_one_wins() -> Result<()> {
    let mut both = start().await?;
    both.done("PUT /api/v1/tenants/acme", "", 201).await?;
    both.done(&format!("PUT {N}"), "", 201).await?;
    let path = format!("{N}/policies");
    let change = |tag: &str, size: u64| {
        let tag = format!("if-match: {tag}");
        let body = format!(r#"{{"set": {{"retention": {{"sizeBytes": "{size}"}}}}}}"#);
        let (http, request) = (both.http.clone(), format!("PATCH {path}"));
        async move { rest(&http, &request, &[&tag], &body).await }
    };
    let before = both.ask(&format!("GET {path}"), "").await?;
    let tag = before.header("etag").to_owned();
    let first = change(&tag, 1).await?;
    assert_eq!(first.status, 200, "{first:?}");
    let second = change(&tag, 2).await?;
    assert_eq!(second.status, 412, "{second:?}");
    assert_eq!(second.body["error"]["code"], "CONFLICT");
    let now = both.ask(&format!("GET {path}"), "").await?;
    assert_eq!(now.header("etag"), first.header("etag"));
    assert_ne!(now.header("etag"), tag);
    assert_eq!(now.body["policies"]["own"]["retention"]["sizeBytes"], "1");
    let third = change(now.header("etag"), 2).await?;
    assert_eq!(third.status, 200, "{third:?}");
    both.server.stop()?;
    both.server.check_logs()
}

#[tokio::test]
async fn lists_come_in_pages() -> Result<()> {
    let mut both = start().await?;
    both.done("PUT /api/v1/tenants/acme", "", 201).await?;
    both.done(&format!("PUT {N}"), "", 201).await?;
    for number in 0..5 {
        both.done(&format!("PUT {N}/topics/t{number}"), "", 201)
            .await?;
    }
    let mut names = Vec::new();
    let mut token = String::new();
    loop {
        let more = match token.as_str() {
            "" => String::new(),
            token => format!("&pageToken={token}"),
        };
        let target = format!("GET {N}/topics?pageSize=2{more}");
        let page = both.done(&target, "", 200).await?;
        let topics = page["topics"].as_array().context("topics")?;
        ensure!(topics.len() <= 2);
        names.extend(topics.iter().map(|topic| topic["topic"].clone()));
        token = page["nextPageToken"]
            .as_str()
            .context("a token")?
            .to_owned();
        if token.is_empty() {
            break;
        }
    }
    let expected: Vec<_> = (0..5)
        .map(|number| format!("persistent://acme/shop/t{number}"))
        .collect();
    assert_eq!(json!(names), json!(expected));
    both.server.stop()?;
    both.server.check_logs()
}

#[tokio::test]
async fn the_port_keeps_its_other_paths_and_its_bounds() -> Result<()> {
    let mut both = start().await?;
    assert!(get(&both.http, "/healthz").await?.ends_with("ok\n"));
    assert!(get(&both.http, "/readyz").await?.contains("200 OK"));
    assert!(get(&both.http, "/metrics").await?.contains("text/plain"));
    let document = both.done("GET /api/v1/openapi.json", "", 200).await?;
    assert_eq!(document["openapi"], "3.1.0");
    for (request, body, status) in [
        ("GET /nothing", "", 404),
        ("GET /api/v1/tenants/", "", 404),
        ("PUT /api/v1/tenants", "", 405),
        ("PUT /api/v1/tenants/%00", "", 400),
        ("PUT /api/v1/tenants/%2e%2e", "", 400),
        ("PUT /api/v1/tenants/a?b=c", "", 400),
        ("GET /api/v1/tenants", "{}", 400),
    ] {
        let answer = both.ask(request, body).await?;
        ensure!(answer.status == status, "{request}: {answer:?}");
        ensure!(answer.header("content-type") == "application/problem+json");
    }
    let large = format!("{{\"partitions\":{}1}}", " ".repeat(70_000));
    let answer = both.ask(&format!("PUT {T}"), &large).await?;
    assert_eq!(answer.status, 413);
    let answer = rest(&both.http, &format!("PUT {T}"), &["content-length: 2"], "").await;
    // The body never comes: the server gives up, by an answer.
    assert_eq!(answer?.status, 408);
    let answer = rest(
        &both.http,
        "GET /api/v1/tenants",
        &["x-request-id: mine"],
        "",
    )
    .await?;
    assert_eq!(answer.header("x-request-id"), "mine");
    let head = rest(&both.http, "HEAD /api/v1/tenants", &[], "").await?;
    assert_eq!((head.status, head.body), (200, Value::Null));
    both.server.stop()?;
    both.server.check_logs()
}

#[tokio::test]
async fn with_authentication_a_request_shows_a_token() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let options = ServerOptions {
        arguments: vec!["--auth".to_owned()],
        ..ServerOptions::default()
    };
    let mut server = Server::start(&data, options).await?;
    let admin = std::fs::read_to_string(data.join("admin.token"))?;
    let token = format!("authorization: Bearer {}", admin.trim());
    let http = server.http();
    let ask = async |request: &str, headers: &[&str], body: &str| -> Result<Answer> {
        rest(&http, request, headers, body).await
    };
    for header in [
        "x-none: x",
        "authorization: Bearer aqf_x",
        "authorization: Basic YTpi",
        // What a server that trusted its neighbours might believe.
        "x-forwarded-user: token:admin",
        "aquifer-principal: token:admin",
    ] {
        let refused = ask("GET /api/v1/tenants", &[header], "").await?;
        ensure!(refused.status == 401, "{header}: {refused:?}");
        ensure!(refused.header("www-authenticate") == "Bearer");
        assert_eq!(refused.body["error"]["code"], "UNAUTHENTICATED");
    }
    let me = ask("GET /api/v1/me", &[&token], "").await?;
    assert_eq!(me.body["principal"], "token:admin", "{me:?}");
    let made = ask("PUT /api/v1/tenants/acme", &[&token], "").await?;
    assert_eq!(made.status, 201, "{made:?}");

    // One that may do nothing yet.
    let body = r#"{"name": "app"}"#;
    let app = ask("POST /api/v1/tokens", &[&token], body).await?;
    let secret = app.body["secret"].as_str().context("a secret")?.to_owned();
    let app_token = format!("authorization: Bearer {secret}");
    let refused = ask("PUT /api/v1/tenants/other", &[&app_token], "").await?;
    assert_eq!(refused.status, 403, "{refused:?}");
    let id = app.body["token"]["id"].as_str().context("an id")?;
    let revoked = ask(&format!("DELETE /api/v1/tokens/{id}"), &[&token], "").await?;
    assert_eq!(revoked.status, 200, "{revoked:?}");
    server.stop()?;
    let log = server.log();
    ensure!(!log.contains(&secret) && !log.contains(admin.trim()));
    server.check_logs()
}
