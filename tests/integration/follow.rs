//! Tools that go on through restarts of the server.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use aquifer_client::{Client, Message};
use aquifer_harness::server::{Server, ServerOptions, binary};
use aquifer_harness::wait::until;

const MESSAGES: usize = 40_000;
const RESTARTS: usize = 3;

/// A tool at work; it ends with the test.
struct Tool {
    child: Child,
    words: String,
    out: PathBuf,
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Tool {
    fn start(folder: &Path, url: &str, words: &str) -> Result<Tool> {
        let out = folder.join(words.replace(' ', "_"));
        let child = Command::new(binary())
            .args(words.split(' '))
            .env("AQUIFER_URL", url)
            .stdin(Stdio::null())
            .stdout(File::create(&out)?)
            .stderr(File::create(out.with_extension("err"))?)
            .spawn()?;
        let words = words.to_owned();
        Ok(Tool { child, words, out })
    }

    fn lines(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(&self.out)?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    fn still_runs(&mut self) -> Result<()> {
        let ended = self.child.try_wait()?;
        let said = fs::read_to_string(self.out.with_extension("err"))?;
        ensure!(ended.is_none(), "{} ended: {ended:?}: {said}", self.words);
        Ok(())
    }
}

/// Whether each of them has printed so much.
fn printed_by_all(tools: &mut [Tool], count: usize) -> Result<bool> {
    for tool in tools {
        if tool.lines()?.len() < count {
            // One that has ended prints no more.
            return tool.still_runs().map(|()| false);
        }
    }
    Ok(true)
}

async fn publish(client: &Client, from: usize, count: usize) -> Result<()> {
    let producer = client.producer("t").open().await?;
    let mut pending = Vec::new();
    for number in from..from + count {
        pending.push(producer.enqueue(Message::new(number.to_string())).await?);
    }
    for sent in pending {
        sent.await?;
    }
    Ok(producer.close().await?)
}

/// kill -9 while messages are being acknowledged: what comes back is acknowledged again, every
/// message is printed, and nothing ends.
#[tokio::test]
async fn consume_and_read_go_on_through_restarts_of_the_server() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = Server::start(&folder.path().join("data"), ServerOptions::default()).await?;
    let client = server.client()?;
    publish(&client, 0, 0).await?;
    let mut tools = Vec::new();
    for words in [
        "consume t -s a --follow",
        "consume t -s b --follow --type failover",
        "consume t -s c --follow --type shared",
        "read t --follow",
    ] {
        tools.push(Tool::start(folder.path(), &server.url(), words)?);
    }
    for restart in 0..RESTARTS {
        publish(&client, restart * MESSAGES, MESSAGES).await?;
        // In the middle of it, as far as the slowest has come.
        let enough = restart * MESSAGES + MESSAGES / 4;
        until("some of it to be printed", || {
            let printed = printed_by_all(&mut tools, enough);
            async move { Ok(printed?.then_some(())) }
        })
        .await?;
        server.kill()?;
        server.restart()?;
    }
    publish(&client, RESTARTS * MESSAGES, 1).await?;
    let all = RESTARTS * MESSAGES + 1;
    for tool in &mut tools {
        let words = tool.words.clone();
        let printed = until("everything to be printed", || {
            let seen = tool.still_runs().and_then(|()| tool.lines());
            async move {
                let seen: BTreeSet<String> = seen?.into_iter().collect();
                Ok((seen.len() == all).then_some(()))
            }
        });
        printed.await.context(words)?;
    }
    server.stop()?;
    server.check_logs()
}

/// A script gets 0 when everything was delivered and acknowledged, through a restart.
#[tokio::test]
async fn consume_ends_with_success_after_a_restart_of_the_server() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = Server::start(&folder.path().join("data"), ServerOptions::default()).await?;
    let client = server.client()?;
    publish(&client, 0, MESSAGES * 2).await?;
    let mut tools = Vec::new();
    for words in ["consume t -s a", "consume t -s b", "consume t -s c"] {
        tools.push(Tool::start(folder.path(), &server.url(), words)?);
    }
    until("some of it to be printed", || {
        let printed = printed_by_all(&mut tools, 1);
        async move { Ok(printed?.then_some(())) }
    })
    .await?;
    server.kill()?;
    server.restart()?;
    for tool in &mut tools {
        let status = until("the tool to end", || {
            let status = tool.child.try_wait();
            async move { Ok(status?) }
        })
        .await?;
        let said = fs::read_to_string(tool.out.with_extension("err"))?;
        ensure!(status.success(), "{}: {status}: {said}", tool.words);
        let lines = tool.lines()?;
        let distinct: BTreeSet<_> = lines.iter().collect();
        ensure!(distinct.len() == MESSAGES * 2, "{}", distinct.len());
        ensure!(lines.len() == distinct.len(), "nothing is printed twice");
    }
    server.stop()?;
    server.check_logs()
}
