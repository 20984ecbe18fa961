//! `aquifer tenant|namespace|topic policy` against a real server, through a restart of it.

use anyhow::{Context, Result, ensure};
use aquifer_harness::server::{Server, ServerOptions, aquifer};
use serde_json::{Value, json};

/// Runs a command that prints one JSON object; its exit code and errors where it fails.
fn run(url: &str, line: &str) -> Result<std::result::Result<Value, (Option<i32>, String)>> {
    let words: Vec<&str> = ["--output", "json"]
        .into_iter()
        .chain(line.split(' '))
        .collect();
    let output = aquifer(url, &words)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Ok(Err((output.status.code(), said)));
    }
    let printed = String::from_utf8(output.stdout)?;
    let value = match printed.trim() {
        "" => Value::Null,
        line => serde_json::from_str(line).with_context(|| line.to_owned())?,
    };
    Ok(Ok(value))
}

fn done(url: &str, line: &str) -> Result<Value> {
    let answer = run(url, line)?;
    answer.map_err(|(code, said)| anyhow::anyhow!("{line}: {code:?}: {said}"))
}

#[tokio::test]
async fn policies_are_inherited_and_say_where_from() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let server = Server::start(&data, ServerOptions::default()).await?;
    let url = server.url();
    for line in [
        "tenant create acme",
        "namespace create acme/shop --policy rollover.entries=500",
        "topic create acme/shop/orders --partitions 3",
        "tenant policy set acme retention.time=forever deduplication=off",
        "topic policy set acme/shop/orders retention.size=1GiB",
        "namespace policy set acme/shop publishRate.bytes=1MiB",
        "tenant policy set acme messageBytesMax=1000",
        "topic policy set acme/shop/orders messageBytesMax=1MiB",
    ] {
        done(&url, line)?;
    }
    let shown = done(&url, "topic policy get acme/shop/orders --effective")?;
    let expected = json!({
        "persistence": {
            "value": {"ensemble": 1, "writeQuorum": 1, "ackQuorum": 1},
            "origin": "default",
        },
        // What was not given of it is what was in force.
        "retention": {"value": {"time": "forever", "size": "1073741824"}, "origin": "topic"},
        "rollover": {
            "value": {"size": "1073741824", "age": "4h", "entries": "500"},
            "origin": "namespace",
        },
        "deduplication": {"value": false, "origin": "tenant"},
        "autoCreateTopics": {"value": true, "origin": "default"},
        "ttl": {"value": "off", "origin": "default"},
        "publishRate": {
            "value": {"messages": "unlimited", "bytes": "1048576", "burst": "1s"},
            "origin": "namespace",
        },
        // The tenant allows less than the topic says.
        "messageBytesMax": {"value": "1000", "origin": "topic", "cappedBy": "tenant"},
    });
    for (name, value) in expected.as_object().context("policies")? {
        assert_eq!(&shown[name], value, "{name}");
    }

    // Only on the version that was read.
    let own = done(&url, "topic policy get acme/shop/orders")?;
    let policies = own["policies"].as_object().context("policies")?;
    assert_eq!(
        policies.keys().collect::<Vec<_>>(),
        ["messageBytesMax", "retention"]
    );
    let version = own["version"].as_u64().context("a version")?;
    let at =
        |version| format!("topic policy unset acme/shop/orders retention --if-version {version}");
    let refused = run(&url, &at(version + 1))?;
    let (code, said) = refused.err().context("another version is refused")?;
    ensure!(
        code == Some(1) && said.contains("version"),
        "{code:?} {said}"
    );
    let unset = done(&url, &at(version))?;
    assert_eq!(
        unset["policies"],
        json!({"messageBytesMax": "1048576"}),
        "what it says itself, whatever is in force"
    );
    let shown = done(&url, "topic policy get acme/shop/orders --effective")?;
    assert_eq!(shown["retention"]["origin"], "tenant");

    refuses_wrong_scopes_and_values(&url)?;
    drop(server);
    let server = Server::start(&data, ServerOptions::default()).await?;
    let shown = done(&server.url(), "namespace show acme/shop")?;
    assert_eq!(shown["rollover"]["origin"], "namespace");
    assert_eq!(shown["deduplication"]["origin"], "tenant");
    Ok(())
}

fn refuses_wrong_scopes_and_values(url: &str) -> Result<()> {
    for (line, code) in [
        ("namespace policy get acme/none", 1),
        (
            "topic policy set acme/shop/orders-partition-1 deduplication=on",
            1,
        ),
        ("namespace policy get acme", 2),
        ("namespace policy set acme/shop quotas=1", 2),
    ] {
        let refused = run(url, line)?.err().context(line)?;
        ensure!(refused.0 == Some(code), "{line}: {refused:?}");
    }
    Ok(())
}

/// Commands that set different policies of one scope at once, 75 of them: all that end with 0 are
/// there.
#[tokio::test]
async fn policies_that_are_set_at_once_are_all_there() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Server::start(&folder.path().join("data"), ServerOptions::default()).await?;
    let url = server.url();
    for round in 1..=25 {
        let lines = [
            format!("namespace policy set public/default retention.time={round}m"),
            format!("namespace policy set public/default rollover.entries={round}"),
            format!("namespace policy set public/default rollover.age={round}m"),
        ];
        let commands = lines.map(|line| {
            let url = url.clone();
            tokio::task::spawn_blocking(move || done(&url, &line))
        });
        for command in commands {
            command.await??;
        }
        let shown = done(&url, "namespace show public/default")?;
        assert_eq!(shown["retention"]["value"]["time"], format!("{round}m"));
        let rollover = &shown["rollover"]["value"];
        assert_eq!(rollover["entries"], round.to_string());
        assert_eq!(rollover["age"], format!("{round}m"));
    }
    Ok(())
}
