//! Traces: what servers do for a request or a message reaches a collector, under one trace.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use aquifer_harness::cluster::Cluster;
use aquifer_harness::collector::{Collector, one};
use aquifer_harness::server::{Server, ServerOptions, aquifer};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_spans_of_a_publish_reach_a_collector_under_one_trace() -> Result<()> {
    let mut collector = Collector::start().await?;
    let folder = tempfile::tempdir()?;
    let endpoint = collector.endpoint.clone();
    let options = ServerOptions {
        environment: vec![("AQUIFER_TELEMETRY_OTLP_ENDPOINT".to_owned(), endpoint)],
        ..ServerOptions::default()
    };
    let mut server = Server::start(&folder.path().join("data"), options).await?;
    let published = aquifer(&server.url(), &["produce", "traced", "a message"])?;
    ensure!(published.status.success(), "{published:?}");
    // What is batched is sent by then.
    server.stop()?;

    let trace = collector
        .trace_with(&[("request", 1), ("open_producer", 1)])
        .await?;
    let (root, inner) = (one(&trace, "request")?, one(&trace, "open_producer")?);
    ensure!(root.service == "aquifer", "{root:?}");
    ensure!(
        inner.span.parent_span_id == root.span.span_id,
        "{inner:?} in {root:?}"
    );
    ensure!(root.span.end_time_unix_nano >= root.span.start_time_unix_nano);
    collector.end().await;
    Ok(())
}

/// The processes are a producer, a broker, three bookies and a consumer. Servers begin no traces
/// here, so that each trace is of a message, and one message is sampled of two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_one_trace_from_its_producer_to_its_consumer() -> Result<()> {
    let mut collector = Collector::start().await?;
    let folder = tempfile::tempdir()?;
    let endpoint = collector.endpoint.clone();
    let environment = [
        ("AQUIFER_TELEMETRY_OTLP_ENDPOINT", endpoint.as_str()),
        ("AQUIFER_TELEMETRY_TRACE_ONE_IN", "0"),
        // What is logged decides nothing about these spans.
        ("AQUIFER_TELEMETRY_LOG_FILTER", "warn"),
    ];
    let mut cluster = Cluster::start_with(&folder.path().join("data"), &[], &environment)?;
    let to = ["--otlp-endpoint", endpoint.as_str()];
    let produce = ["produce", "traced", "first", "second"];
    let produce = [&produce[..], &to, &["--trace-one-in", "2"]].concat();
    let published = aquifer(cluster.url(), &produce)?;
    ensure!(published.status.success(), "{published:?}");
    let consume = [&["consume", "traced", "-s", "s"][..], &to].concat();
    let consumed = aquifer(cluster.url(), &consume)?;
    ensure!(consumed.status.success(), "{consumed:?}");
    cluster.stop()?;

    // Two bookies have it when it is acknowledged; the third may be later.
    let wanted = [
        ("publish", 1),
        ("store", 1),
        ("add_entry", 2),
        ("commit", 2),
        ("process", 1),
    ];
    let trace = collector.trace_with(&wanted).await?;
    ensure!(collector.traces().len() == 1, "{:?}", collector.traces());
    let [publish, store, process] = ["publish", "store", "process"].map(|name| one(&trace, name));
    let (publish, store, process) = (publish?, store?, process?);
    ensure!(publish.span.parent_span_id.is_empty(), "{publish:?}");
    ensure!(store.span.parent_span_id == publish.span.span_id);
    ensure!(process.span.parent_span_id == publish.span.span_id);
    ensure!(publish.service == "aquifer-produce" && process.service == "aquifer-consume");
    let mut processes = BTreeSet::from([publish.process, store.process, process.process]);
    for add in trace.iter().filter(|seen| seen.span.name == "add_entry") {
        ensure!(add.span.parent_span_id == store.span.span_id, "{add:?}");
        let commit = trace.iter().find(|seen| {
            seen.span.name == "commit" && seen.span.parent_span_id == add.span.span_id
        });
        // A span is exported when it ends, and that of the commit ends first.
        let commit = commit.with_context(|| format!("{add:?} was committed"))?;
        ensure!(commit.process == add.process);
        processes.insert(add.process);
    }
    ensure!(processes.len() >= 5, "{trace:?}");
    collector.end().await;
    Ok(())
}
