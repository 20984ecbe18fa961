//! REST of several brokers: each does what is asked of it, whichever broker serves the topic.

use anyhow::{Context, Result, ensure};
use aquifer_harness::cluster::Cluster;
use aquifer_harness::http::rest;
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
