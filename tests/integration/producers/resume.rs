//! `produce --file --producer-name`, interrupted and repeated (I8).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use aquifer_client::{Client, ErrorKind};
use aquifer_harness::server::{Server, aquifer, binary};
use aquifer_harness::wait::until;

use crate::producers::{payloads, server};

const LINES: usize = 8_000;

/// A file whose lines are all different.
fn file(folder: &Path, name: &str, lines: usize) -> Result<PathBuf> {
    let path = folder.join(name);
    let text: String = (0..lines).map(|line| format!("{name} {line}\n")).collect();
    std::fs::write(&path, text)?;
    Ok(path)
}

fn lines(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path)?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// A run that takes longer than the test waits: it is to be interrupted.
fn begin(server: &Server, topic: &str, file: &Path) -> Result<Child> {
    let child = Command::new(binary())
        .args(["produce", topic, "--producer-name", "p", "--rate", "500"])
        .args(["--timeout", "3s", "--file"])
        .arg(file)
        .env("AQUIFER_URL", server.url())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok(child)
}

fn produce(server: &Server, topic: &str, file: &Path, more: &[&str]) -> Result<Output> {
    let file = file.to_str().context("a path in UTF-8")?;
    let mut words = vec!["produce", topic, "--producer-name", "p", "--file", file];
    words.extend(more);
    aquifer(&server.url(), &words)
}

fn succeeded(output: &Output) -> Result<String> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {stderr}", output.status);
    Ok(String::from_utf8(output.stdout.clone())?)
}

/// How many messages a topic has, over its partitions.
async fn stored(client: &Client, topic: &str) -> Result<u64> {
    let reader = client.reader(topic).open().await?;
    Ok(reader.end_index().await?.0)
}

/// Waits until the run has stored more than `before`, and is not at its end.
async fn wait_under_way(server: &Server, topic: &str, before: u64) -> Result<()> {
    let client = server.client()?;
    until("the run to store lines", || async {
        match stored(&client, topic).await {
            Ok(count) => Ok((count > before + 200).then_some(())),
            Err(error) => match error.downcast_ref::<aquifer_client::ClientError>() {
                Some(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                _ => Err(error),
            },
        }
    })
    .await
}

/// Every line once; in order where one partition has them all.
async fn check(server: &Server, topic: &str, expected: &[String], ordered: bool) -> Result<()> {
    let client = server.client()?;
    let mut found = payloads(&client, topic).await?;
    let mut expected = expected.to_vec();
    if !ordered {
        found.sort();
        expected.sort();
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for payload in &found {
        *counts.entry(payload).or_default() += 1;
    }
    let twice = counts.values().filter(|count| **count > 1).count();
    ensure!(
        found == expected,
        "{} of {} lines, {twice} of them more than once",
        found.len(),
        expected.len()
    );
    Ok(())
}

/// One run that is killed, one whose server is killed, one that comes to its end.
async fn interrupted_and_repeated(server: &mut Server, folder: &Path, topic: &str) -> Result<()> {
    let file = file(folder, "lines", LINES)?;
    let mut run = begin(server, topic, &file)?;
    wait_under_way(server, topic, 0).await?;
    run.kill()?;
    run.wait()?;
    let client = server.client()?;
    let before = stored(&client, topic).await?;
    let mut run = begin(server, topic, &file)?;
    wait_under_way(server, topic, before).await?;
    server.kill()?;
    let ended = run.wait()?;
    ensure!(
        !ended.success(),
        "the run ended although its server did not live"
    );
    server.restart()?;
    let client = server.client()?;
    let before = stored(&client, topic).await?;
    ensure!(before < LINES as u64, "the runs were not interrupted");
    let said = succeeded(&produce(server, topic, &file, &[])?)?;
    ensure!(said.contains("8000 messages are durable"), "{said}");
    ensure!(said.contains("were there before"), "{said}");
    let ordered = topic == "single";
    check(server, topic, &lines(&file)?, ordered).await?;
    // A whole file that is published again is there already.
    let said = succeeded(&produce(server, topic, &file, &[])?)?;
    ensure!(said.contains("8000 were there before"), "{said}");
    check(server, topic, &lines(&file)?, ordered).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_stored_once_through_crashes_of_either_side_i8() -> Result<()> {
    let (folder, mut server) = server().await?;
    interrupted_and_repeated(&mut server, folder.path(), "single").await?;
    let words = ["topic", "create", "several", "--partitions", "4"];
    succeeded(&aquifer(&server.url(), &words)?)?;
    interrupted_and_repeated(&mut server, folder.path(), "several").await?;
    server.stop()?;
    server.check_logs()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_file_under_the_name_is_refused_and_never_dropped() -> Result<()> {
    let (folder, mut server) = server().await?;
    let words = ["topic", "create", "several", "--partitions", "4"];
    succeeded(&aquifer(&server.url(), &words)?)?;
    for topic in ["single", "several"] {
        let one = file(folder.path(), "one", 3_000)?;
        let other = file(folder.path(), "other", 3_000)?;
        let short = file(folder.path(), "short", 10)?;
        succeeded(&produce(&server, topic, &one, &[])?)?;
        for (file, why) in [(&other, "another message"), (&short, "has only 10 lines")] {
            let refused = produce(&server, topic, file, &[])?;
            assert_eq!(refused.status.code(), Some(1), "{refused:?}");
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            ensure!(said.contains(why), "{said}");
            ensure!(said.contains("--sequence-from 3000"), "{said}");
        }
        let mut expected = lines(&one)?;
        check(&server, topic, &expected, topic == "single").await?;
        // What the advice says, twice.
        for _ in 0..2 {
            succeeded(&produce(
                &server,
                topic,
                &other,
                &["--sequence-from", "3000"],
            )?)?;
        }
        expected.extend(lines(&other)?);
        check(&server, topic, &expected, topic == "single").await?;
    }
    server.stop()?;
    server.check_logs()
}

/// A file that grows, as a log does: each run stores what has come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_file_has_gained_is_stored() -> Result<()> {
    let (folder, mut server) = server().await?;
    for count in [1, 700, 700, 1_500] {
        let grown = file(folder.path(), "log", count)?;
        succeeded(&produce(&server, "log", &grown, &[])?)?;
        check(&server, "log", &lines(&grown)?, true).await?;
    }
    server.stop()?;
    server.check_logs()
}
