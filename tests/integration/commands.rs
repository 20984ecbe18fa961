//! The command line as scripts use it: what it prints, and how it ends.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use aquifer_harness::server::{Server, ServerOptions, aquifer, binary};
use rustix::process::Signal;
use serde_json::{Value, json};

async fn server() -> Result<(tempfile::TempDir, Server)> {
    let folder = tempfile::tempdir()?;
    let server = Server::start(&folder.path().join("data"), ServerOptions::default()).await?;
    Ok((folder, server))
}

fn earthquakes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/earthquakes.ndjson")
}

/// Runs a command that must succeed; answers what it printed.
fn run(server: &Server, line: &str) -> Result<Vec<u8>> {
    let words: Vec<&str> = line.split(' ').collect();
    let output = aquifer(&server.url(), &words)?;
    succeeded(line, &output)?;
    Ok(output.stdout)
}

fn succeeded(line: &str, output: &Output) -> Result<()> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{line}: {}: {stderr}",
        output.status
    );
    Ok(())
}

/// The same with `--output json`: one object a line.
fn run_json(server: &Server, line: &str) -> Result<Vec<Value>> {
    let printed = run(server, &format!("--output json {line}"))?;
    let lines = String::from_utf8(printed)?;
    lines
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect()
}

fn run_with_input(server: &Server, line: &str, input: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new(binary())
        .args(line.split(' '))
        .env("AQUIFER_URL", server.url())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // Small enough for a pipe, so that writing it all before reading cannot block.
    assert!(input.len() < 32 * 1024);
    child
        .stdin
        .take()
        .context("stdin is piped")?
        .write_all(input)?;
    let output = child.wait_with_output()?;
    succeeded(line, &output)?;
    Ok(output.stdout)
}

fn keys_of(object: &Value) -> Vec<String> {
    let mut keys: Vec<String> = object
        .as_object()
        .map(|fields| fields.keys().cloned().collect())
        .unwrap_or_default();
    keys.sort();
    keys
}

fn field(objects: &[Value], name: &str) -> Vec<Value> {
    objects.iter().map(|object| object[name].clone()).collect()
}

#[tokio::test]
async fn messages_go_in_and_come_out_as_the_contract_says() -> Result<()> {
    let (_folder, mut server) = server().await?;

    let receipts = run_json(
        &server,
        "produce t one two --key k --property a=b --producer-name p",
    )?;
    assert_eq!(receipts.len(), 2);
    assert_eq!(keys_of(&receipts[0]), ["index", "position", "sequence_id"]);
    assert_eq!(field(&receipts, "index"), [0, 1]);

    let read = run_json(&server, "read t --from earliest")?;
    assert_eq!(
        keys_of(&read[0]),
        [
            "broker_time",
            "event_time",
            "index",
            "key",
            "payload",
            "position",
            "producer",
            "properties",
            "publish_time",
            "sequence_id",
        ]
    );
    assert_eq!(field(&read, "payload"), ["one", "two"]);
    assert_eq!(field(&read, "key"), ["k", "k"]);
    assert_eq!(field(&read, "producer"), ["p", "p"]);
    assert_eq!(field(&read, "position"), field(&receipts, "position"));
    assert_eq!(field(&read, "sequence_id"), field(&receipts, "sequence_id"));
    assert_eq!(read[0]["properties"]["a"], "b");

    // The broker's time is the one to seek by.
    let from = format!("read t --from @{}", read[0]["broker_time"]);
    assert_eq!(field(&run_json(&server, &from)?, "payload"), ["one", "two"]);

    // Any place will do, and text is the payload and nothing else.
    assert_eq!(run(&server, "read t --from 1")?, b"two\n");
    let position = receipts[1]["position"].as_str().context("a text")?;
    assert_eq!(
        run(&server, &format!("read t --from {position}"))?,
        b"two\n"
    );
    assert_eq!(run(&server, "read t --from latest")?, b"");
    assert_eq!(run(&server, "read t --from @0 --count 1")?, b"one\n");

    // I9: what was acknowledged does not come again; readers leave nothing behind.
    assert_eq!(
        run(&server, "consume t --subscription s --count 1")?,
        b"one\n"
    );
    assert_eq!(run(&server, "consume t --subscription s")?, b"two\n");
    assert_eq!(run(&server, "consume t --subscription s")?, b"");
    assert_eq!(
        run(&server, "consume t --subscription late --from latest")?,
        b""
    );
    let stats = run_json(&server, "topic stats t")?;
    let subscriptions = stats[0]["subscriptions"].as_array().context("a list")?;
    let mut names = field(subscriptions, "name");
    names.sort_by_key(ToString::to_string);
    assert_eq!(names, ["late", "s"]);
    server.stop()?;
    server.check_logs()
}

#[tokio::test]
async fn files_and_standard_input_are_published_byte_for_byte() -> Result<()> {
    let (_folder, mut server) = server().await?;
    let path = earthquakes();
    let lines = fs::read_to_string(&path)?;

    let file = path.to_str().context("a path")?;
    run(
        &server,
        &format!("produce quakes --file {file} --key-pointer /properties/net"),
    )?;
    assert_eq!(run(&server, "read quakes")?, lines.as_bytes());
    let read = run_json(&server, "read quakes --count 10")?;
    for (message, line) in read.iter().zip(lines.lines()) {
        let event: Value = serde_json::from_str(line)?;
        assert_eq!(message["key"], event["properties"]["net"]);
    }

    let csv = b"year,tailnum\n2013,N1\n2013,N2\n\xff,N3\n";
    run_with_input(&server, "produce flights --key-column tailnum", csv)?;
    let read = run_json(&server, "read flights")?;
    assert_eq!(field(&read, "key"), ["N1", "N2", "N3"]);
    assert_eq!(read[0]["payload"], "2013,N1");
    // Bytes that are no text: ff 2c 4e 33.
    assert_eq!(read[2]["payload_base64"], "/yxOMw==");
    assert!(read[2].get("payload").is_none());

    // Nothing is published by nothing.
    run_with_input(&server, "produce flights", b"")?;
    assert_eq!(run_json(&server, "read flights")?.len(), 3);

    closed_pipes_are_quiet(&server)?;
    server.stop()?;
    server.check_logs()
}

/// `aquifer read quakes | head -1`: the reader of the pipe has seen enough, which is no error.
fn closed_pipes_are_quiet(server: &Server) -> Result<()> {
    let mut child = Command::new(binary())
        .args(["read", "quakes"])
        .env("AQUIFER_URL", server.url())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut first = String::new();
    BufReader::new(child.stdout.take().context("stdout is piped")?).read_line(&mut first)?;
    assert!(first.starts_with('{'));
    let mut complaints = String::new();
    let mut stderr = child.stderr.take().context("stderr is piped")?;
    stderr.read_to_string(&mut complaints)?;
    child.wait()?;
    assert_eq!(complaints, "");
    Ok(())
}

#[tokio::test]
async fn topics_are_looked_after() -> Result<()> {
    let (_folder, mut server) = server().await?;
    run(&server, "topic create plain")?;
    run(&server, "topic create parted --partitions 3")?;
    let listed = run_json(&server, "topic list public/default")?;
    let topics: Vec<(Value, Value)> = listed
        .iter()
        .map(|topic| (topic["topic"].clone(), topic["partitions"].clone()))
        .collect();
    assert_eq!(
        topics,
        [
            ("persistent://public/default/parted".into(), 3.into()),
            ("persistent://public/default/plain".into(), 0.into()),
        ]
    );
    run(&server, "produce parted a b c d e f --key k")?;
    let read = run_json(&server, "read parted")?;
    assert_eq!(
        field(&read, "payload"),
        ["a", "b", "c", "d", "e", "f"],
        "I7: one key, one order"
    );
    assert!(
        read.iter()
            .all(|message| message["partition"] == read[0]["partition"])
    );
    run(&server, "topic delete parted")?;
    assert_eq!(run_json(&server, "topic list")?.len(), 1);
    server.stop()?;
    server.check_logs()
}

#[tokio::test]
async fn tenants_namespaces_and_subscriptions_are_looked_after() -> Result<()> {
    let (_folder, mut server) = server().await?;
    let refused = |line: &str| -> Result<(Option<i32>, String)> {
        let words: Vec<&str> = line.split(' ').collect();
        let output = aquifer(&server.url(), &words)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok((output.status.code(), said))
    };
    run(&server, "tenant create acme")?;
    assert_eq!(run(&server, "tenant list")?, b"acme\npublic\n");
    let created = run_json(
        &server,
        "namespace create acme/shop --policy retention.time=forever --policy rollover.entries=500",
    )?;
    assert_eq!(created[0]["retention"]["value"]["time"], "forever");
    assert_eq!(created[0]["rollover"]["value"]["entries"], "500");
    // What is not given is as before.
    let change = "namespace policy set acme/shop retention.time=12h retention.size=1GiB";
    run(&server, change)?;
    let shown = run_json(&server, "namespace show acme/shop")?;
    assert_eq!(
        shown[0]["retention"]["value"],
        json!({"time": "12h", "size": "1073741824"})
    );
    assert_eq!(shown[0]["rollover"]["value"]["entries"], "500");
    assert_eq!(run(&server, "namespace list acme")?, b"acme/shop\n");
    let (code, said) = refused("namespace create acme/shop")?;
    ensure!(code == Some(1) && said.contains("exists"), "{said}");
    let (code, said) = refused("namespace create absent/shop")?;
    ensure!(code == Some(1) && said.contains("absent"), "{said}");
    let (code, said) = refused("namespace policy set acme/shop")?;
    ensure!(code == Some(2) && said.contains("NAME=VALUE"), "{said}");

    // A subscription that is there before its first consumer misses nothing; its name is taken.
    for (topic, partitions) in [("acme/shop/orders", 0), ("acme/shop/parts", 3)] {
        run(
            &server,
            &format!("topic create {topic} --partitions {partitions}"),
        )?;
        run(
            &server,
            &format!("subscription create {topic} billing --property team=blue"),
        )?;
        let (code, said) = refused(&format!("subscription create {topic} billing"))?;
        ensure!(code == Some(1) && said.contains("already"), "{said}");
        run(&server, &format!("produce {topic} a b c"))?;
        let consume = format!("consume {topic} --subscription billing");
        let taken = run(&server, &consume)?;
        assert_eq!(taken.len(), 6, "{topic}");
        run(
            &server,
            &format!("subscription seek {topic} billing earliest"),
        )?;
        let listed = run_json(&server, &format!("subscription list {topic}"))?;
        assert_eq!(field(&listed, "name"), ["billing"], "{topic}");
        assert_eq!(field(&listed, "backlog_messages"), [3], "{topic}");
        assert_eq!(listed[0]["properties"]["team"], "blue", "{topic}");
        assert_eq!(run(&server, &consume)?.len(), 6, "{topic}");
        run(&server, &format!("subscription delete {topic} billing"))?;
        assert!(run_json(&server, &format!("subscription list {topic}"))?.is_empty());
        let (code, said) = refused(&format!("subscription delete {topic} billing"))?;
        ensure!(code == Some(1) && said.contains("billing"), "{said}");
    }
    let (code, said) = refused("subscription seek acme/shop/parts billing 7")?;
    ensure!(code == Some(2) && said.contains("one partition"), "{said}");

    // A standalone server owns what is used, and is where it was asked.
    let status = run_json(&server, "cluster status acme/shop")?;
    assert_eq!(status[0]["owner_gone"], 0);
    let bundles = String::from_utf8(run(&server, "cluster bundles acme/shop")?)?;
    ensure!(!bundles.contains("gone"), "{bundles}");
    server.stop()
}

#[tokio::test]
async fn failures_have_the_contracts_exit_codes() -> Result<()> {
    let (_folder, mut server) = server().await?;
    let url = server.url();
    let code = |url: &str, words: &[&str]| -> Result<Option<i32>> {
        let output = aquifer(url, words)?;
        ensure!(!output.stderr.is_empty(), "{words:?} says why");
        Ok(output.status.code())
    };
    assert_eq!(code(&url, &["topic", "stats", "absent"])?, Some(1));
    assert_eq!(code(&url, &["topic", "delete", "absent"])?, Some(1));
    run(&server, "topic create twice")?;
    assert_eq!(code(&url, &["topic", "create", "twice"])?, Some(1));
    for words in [
        &["read", "../t"][..],
        &["read", ""],
        &["produce", "t", "m", "--key-pointer", "no-slash"],
        &["read", "t", "--from", "nowhere"],
        &["perf", "produce", "--seconds", "0"],
        &["perf", "produce", "--topics", "0"],
        &["read", "t", "--timeout", "0s"],
        &["nonsense"],
    ] {
        assert_eq!(code(&url, words)?, Some(2), "{words:?}");
    }
    assert_eq!(code("no url", &["read", "t"])?, Some(2));
    // A server that is paused takes connections and says nothing, for longer than one attempt
    // waits.
    server.signal(Signal::STOP)?;
    for words in [
        &["read", "twice", "--timeout", "7s"][..],
        &["topic", "stats", "twice", "--timeout", "1s"],
        &["produce", "twice", "m", "--timeout", "1s"],
    ] {
        assert_eq!(code(&url, words)?, Some(4), "{words:?}");
    }
    server.signal(Signal::CONT)?;
    // Nothing listens on the port of a server that has ended.
    server.stop()?;
    assert_eq!(code(&url, &["read", "t"])?, Some(3));
    assert_eq!(code(&url, &["produce", "t", "m"])?, Some(3));
    server.check_logs()
}

/// The keys of the object that every load reports.
const REPORT: [&str; 8] = [
    "bytes",
    "bytes_per_second",
    "durability",
    "errors",
    "latency_us",
    "messages",
    "messages_per_second",
    "seconds",
];

#[tokio::test]
async fn loads_report_the_contracts_object() -> Result<()> {
    let (_folder, mut server) = server().await?;
    for (line, messages) in [
        ("perf produce --count 2000 --size 100 --producers 2", 2_000),
        ("perf produce --count 300 --rate 3000", 300),
        ("perf produce --count 300 --topics 3 --producers 2", 300),
        ("perf consume --count 2000 --size 100", 2_000),
        ("perf consume --count 2000 --size 100 --consumers 3", 2_000),
        ("perf e2e --count 1000 --window 50", 1_000),
        ("perf e2e --count 500 --rate 5000 --consumers 2", 1_000),
    ] {
        let reports = run_json(&server, line)?;
        assert_eq!(reports.len(), 1, "{line}");
        let report = &reports[0];
        let mut keys = keys_of(report);
        if line.starts_with("perf e2e") {
            // And what the publishing end saw.
            assert_eq!(keys_of(&report["published"]), REPORT, "{line}");
            assert!(report["behind_at_end"].is_u64(), "{line}");
            keys.retain(|key| key != "published" && key != "behind_at_end");
        }
        assert_eq!(keys, REPORT, "{line}");
        assert_eq!(
            keys_of(&report["latency_us"]),
            ["max", "p50", "p99", "p999"]
        );
        assert_eq!(report["messages"], messages, "{line}");
        assert_eq!(report["errors"], 0, "{line}");
        assert!(report["messages_per_second"].as_f64() > Some(0.0), "{line}");
    }
    // Their topics went with them.
    assert_eq!(run_json(&server, "topic list")?.len(), 0);
    server.stop()?;
    server.check_logs()
}
