//! Names of producers, and what a second run of `produce` makes of a first that was killed.

mod resume;

use anyhow::{Context, Result, ensure};
use aquifer_client::{Client, ClientError, ErrorKind, Message};
use aquifer_harness::proxy::{Flow, Proxy};
use aquifer_harness::server::{Server, ServerOptions, aquifer};
use aquifer_harness::wait::{until, within};

async fn server() -> Result<(tempfile::TempDir, Server)> {
    let folder = tempfile::tempdir()?;
    let server = Server::start(&folder.path().join("data"), ServerOptions::default()).await?;
    Ok((folder, server))
}

/// What a topic holds, in order.
async fn payloads(client: &Client, topic: &str) -> Result<Vec<String>> {
    let reader = client.reader(topic).open().await?;
    within("reading to the end", async {
        let mut payloads = Vec::new();
        while let Some(message) = reader.next_available().await? {
            payloads.push(String::from_utf8(message.payload.to_vec())?);
        }
        Ok(payloads)
    })
    .await
}

/// H20: a producer is cut off with a message unsent, another uses its name meanwhile: the first
/// learns that it was replaced, never that its message is stored.
async fn replaced_while_away(server: &Server, topic: &str) -> Result<()> {
    let proxy = Proxy::start(server.url().replace("http://", "")).await?;
    let far = Client::builder().url(proxy.url()).build()?;
    let near = server.client()?;
    let first = far.producer(topic).name("p").open().await?;
    first.send(Message::new("m0")).await?;
    // What it says from now on does not arrive until later.
    proxy.requests(Flow::Hold);
    proxy.cut();
    let lost = first.enqueue(Message::new("m1")).await?;
    let second = until("the name to be free", || async {
        match near.producer(topic).name("p").open().await {
            Ok(producer) => Ok(Some(producer)),
            Err(error) if error.kind() == ErrorKind::Busy => Ok(None),
            Err(error) => Err(error.into()),
        }
    })
    .await?;
    second.send(Message::new("mb")).await?;
    second.close().await?;
    proxy.requests(Flow::Pass);
    let outcome = within("the outcome of m1", async { Ok(lost.await) }).await?;
    let error = outcome.err().context("m1 was called stored")?;
    ensure!(error.kind() == ErrorKind::Fenced, "{error}");
    let after = first.send(Message::new("m2")).await.err();
    ensure!(
        after.as_ref().map(ClientError::kind) == Some(ErrorKind::Fenced),
        "{after:?}"
    );
    assert_eq!(payloads(&near, topic).await?, ["m0", "mb"]);
    proxy.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_whose_name_was_used_meanwhile_is_told_h20() -> Result<()> {
    let (_folder, mut server) = server().await?;
    replaced_while_away(&server, "with").await?;
    for line in [
        "tenant create plain",
        "namespace create plain/here --policy deduplication=off",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let done = aquifer(&server.url(), &words)?;
        ensure!(done.status.success(), "{line}: {done:?}");
    }
    replaced_while_away(&server, "plain/here/without").await?;
    server.stop()?;
    server.check_logs()
}
