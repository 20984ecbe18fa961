//! REST of several brokers: each does what is asked of it, whichever broker serves the topic.

use anyhow::{Context, Result, ensure};
use aquifer_harness::cluster::Cluster;
use aquifer_harness::http::rest;
use aquifer_harness::wait::until;
use serde_json::{Value, json};

use crate::cluster::brokers::objects;

const N: &str = "/api/v1/tenants/public/namespaces/default";

/// Asks one broker, which must do it.
async fn done(http: &str, request: &str, body: &str) -> Result<Value> {
    let answer = rest(http, request, &[], body).await?;
    ensure!((200..300).contains(&answer.status), "{request}: {answer:?}");
    Ok(answer.body)
}

/// Everything that is done to one topic over one broker.
async fn life(cluster: &Cluster, http: &str, topic: &str) -> Result<()> {
    let t = format!("{N}/topics/{topic}");
    let s = format!("{t}/subscriptions/s");
    let place = r#"{"place": "earliest"}"#;
    done(http, &format!("PUT {t}"), "").await?;
    done(http, &format!("PUT {s}"), place).await?;
    super::run(cluster, &["produce", topic, "one", "two", "three"])?;
    let peeked = done(http, &format!("GET {s}/messages?limit=2"), "").await?;
    let unacknowledged = json!([{"first": "0", "last": "1"}]);
    ensure!(peeked["unacknowledged"] == unacknowledged, "{peeked}");
    ensure!(
        peeked["batches"][0]["body"]
            .as_str()
            .is_some_and(|body| !body.is_empty())
    );
    let range = r#"{"firstIndex": "0", "lastIndex": "0"}"#;
    done(http, &format!("POST {s}/skip"), range).await?;
    done(http, &format!("POST {s}/seek"), place).await?;
    let clear = format!("POST {s}/clear");
    let would = done(http, &clear, r#"{"dryRun": true}"#).await?;
    ensure!(would["messages"] == "3", "{would}");
    let cleared = done(http, &clear, "{}").await?;
    ensure!(cleared["messages"] == "3", "{cleared}");
    done(http, &format!("POST {t}/reset-subscriptions"), "{}").await?;
    let ended = done(http, &format!("POST {t}/terminate"), "{}").await?;
    ensure!(ended["ends"][0]["lastIndex"] == "2", "{ended}");
    let unloaded = done(http, &format!("POST {t}/unload"), "{}").await?;
    ensure!(unloaded["unloaded"] == 1, "{unloaded}");
    let stats = done(http, &format!("GET {t}/stats"), "").await?;
    ensure!(stats["terminated"] == true, "{stats}");
    ensure!(stats["ends"] == ended["ends"], "{stats}");
    let ledgers = done(http, &format!("GET {t}/ledgers"), "").await?;
    let ledgers = ledgers["ledgers"].as_array().context("ledgers")?.clone();
    let of_messages = &stats["ledgers"][0]["ledgerId"];
    ensure!(ledgers.iter().any(|one| one["ledgerId"] == *of_messages));
    let would = done(http, &format!("DELETE {t}?dryRun=true"), "").await?;
    ensure!(would["content"]["subscriptions"] == "1", "{would}");
    done(http, &format!("DELETE {s}"), "").await?;
    done(http, &format!("DELETE {t}"), "").await?;
    let gone = rest(http, &format!("GET {t}/stats"), &[], "").await?;
    ensure!(gone.status == 404, "{gone:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_broker_does_what_rest_asks() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // Topics stay where they were taken.
    let environment = [("AQUIFER_BROKER_BALANCE_ENABLED", "false")];
    let data_dir = folder.path().join("cluster");
    let mut cluster = Cluster::start_with(&data_dir, &["--brokers", "3"], &environment)?;
    let brokers = cluster.processes().iter();
    let brokers = brokers.filter(|process| process.role == "broker");
    let http: Vec<String> = brokers.map(|broker| broker.http.clone()).collect();
    ensure!(http.len() == 3);
    for (number, http) in http.iter().enumerate() {
        let http = http.trim_start_matches("http://");
        // As many names as bundles would be needed to be sure; some are of other brokers.
        for other in 0..3 {
            life(&cluster, http, &format!("rest-{number}-{other}")).await?;
        }
        let bookies = done(http, "GET /api/v1/bookies?countLedgers=true", "").await?;
        let bookies = bookies["bookies"].as_array().context("bookies")?.clone();
        let id = bookies[0]["bookie"].as_str().context("an id")?.to_owned();
        ensure!(
            bookies.iter().all(|one| one["state"] == "writable"),
            "{bookies:?}"
        );
        let shown = done(http, &format!("GET /api/v1/bookies/{id}"), "").await?;
        ensure!(shown["bookie"]["bookie"] == id.as_str(), "{shown}");
    }
    let owners = objects(&cluster, &["cluster", "bundles", "public/default"])?;
    let mut urls: Vec<&Value> = owners.iter().map(|bundle| &bundle["url"]).collect();
    urls.retain(|url| url.is_string());
    urls.sort_by_key(|url| url.to_string());
    urls.dedup();
    ensure!(
        urls.len() > 1,
        "one broker owns all that was used: {owners:?}"
    );
    let seen = objects(&cluster, &["cluster", "bookies", "--count-ledgers"])?;
    let direct = cluster.metadata()?;
    let read = objects(
        &cluster,
        &["bookie", "list", "--cluster", "dev", "--metadata", &direct],
    )?;
    let ids = |all: &[Value]| {
        all.iter()
            .map(|one| one["bookie"].clone())
            .collect::<Vec<_>>()
    };
    ensure!(ids(&seen) == ids(&read), "{seen:?} {read:?}");
    cluster.stop()?;
    cluster.check_logs()
}

/// Lines about a tenant, once there are any: what one broker answers.
async fn audit_lines(http: &str, token: &str, tenant: &str) -> Result<Vec<Value>> {
    until("lines about the tenant", async || {
        let request = format!("GET /api/v1/audit?tenant={tenant}");
        let answer = rest(http, &request, &[token], "").await?;
        if answer.status == 503 {
            // A broker is just taking the topic.
            return Ok(None);
        }
        ensure!(answer.status == 200, "{request}: {answer:?}");
        let lines = answer.body["lines"].as_array().context("lines")?;
        let parse = |line: &Value| {
            let text = line.as_str().context("a line")?;
            anyhow::Ok(serde_json::from_str::<Value>(text)?)
        };
        let lines: Vec<Value> = lines.iter().map(parse).collect::<Result<_>>()?;
        Ok((!lines.is_empty()).then_some(lines))
    })
    .await
}

/// The audit log is one topic, which one of the brokers serves. The broker that is asked decides
/// who may read (I12).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_broker_answers_the_audit_log() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let environment = [("AQUIFER_BROKER_BALANCE_ENABLED", "false")];
    let data_dir = folder.path().join("cluster");
    let arguments = ["--auth", "--brokers", "3"];
    let mut cluster = Cluster::start_with(&data_dir, &arguments, &environment)?;
    let admin = std::fs::read_to_string(data_dir.join("admin.token"))?;
    let admin = format!("authorization: Bearer {}", admin.trim());
    let brokers = cluster.processes().iter();
    let brokers = brokers.filter(|process| process.role == "broker");
    let http: Vec<String> = brokers
        .map(|broker| broker.http.trim_start_matches("http://").to_owned())
        .collect();
    ensure!(http.len() == 3);
    let made = rest(&http[0], "PUT /api/v1/tenants/acme", &[&admin], "").await?;
    ensure!(made.status == 201, "{made:?}");
    let body = r#"{"name": "app"}"#;
    let app = rest(&http[0], "POST /api/v1/tokens", &[&admin], body).await?;
    let app = app.body["secret"].as_str().context("a secret")?.to_owned();
    let app = format!("authorization: Bearer {app}");
    for http in &http {
        let lines = audit_lines(http, &admin, "acme").await?;
        ensure!(
            lines.iter().all(|line| line["tenant"] == "acme"),
            "{lines:?}"
        );
        let made = lines
            .iter()
            .filter(|line| line["request"] == "create_tenant");
        ensure!(made.count() >= 1, "{lines:?}");
        let end = "GET /api/v1/audit?from=latest&waitMs=50";
        let end = rest(http, end, &[&admin], "").await?;
        ensure!(end.status == 200, "{end:?}");
        // Another broker would do for this one what it may not do for its caller.
        let refused = rest(http, "GET /api/v1/audit?tenant=acme", &[&app], "").await?;
        ensure!(matches!(refused.status, 401 | 403), "{refused:?}");
    }
    cluster.stop()?;
    cluster.check_logs()
}
