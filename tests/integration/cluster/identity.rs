//! Which storage may be a bookie of which cluster, and which processes may talk to it: each wrong
//! pairing is refused with an error that says what to do.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use aquifer_harness::cluster::Cluster;
use aquifer_harness::server::binary;
use aquifer_harness::wait::within;
use aquifer_proto::PROTOCOL_VERSION;
use aquifer_proto::v1::bookie_client::BookieClient;
use aquifer_proto::v1::{OpenBookie, OrderedFrame, ReadRequest};
use bytes::Bytes;
use tonic::{Code, Status};

use crate::cluster::start;

/// Runs a bookie that must refuse to start; returns what it said.
fn refused(cluster: &Cluster, data_dir: &str, name: &str) -> Result<String> {
    let etcd = &cluster.process("etcd")?.address;
    let output = Command::new(binary())
        .args(["bookie", "--data-dir", data_dir, "--cluster", name])
        .args(["--bookie-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0"])
        .args(["--metadata", &etcd.replace("http://", "etcd://")])
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1), "{}: {said}", output.status);
    Ok(said)
}

/// What a bookie answers to the opening of an ordered stream.
async fn open(address: &str, cluster: &str, bookie: &[u8]) -> Result<Status> {
    let mut client = BookieClient::connect(format!("http://{address}")).await?;
    let open = OrderedFrame {
        open: Some(OpenBookie {
            version: PROTOCOL_VERSION,
            bookie_id: Bytes::copy_from_slice(bookie),
            cluster: cluster.to_owned(),
            client_id: Bytes::from_static(b"test"),
        }),
        requests: Vec::new(),
    };
    let mut replies = client
        .ordered(tokio_stream::iter([open]))
        .await?
        .into_inner();
    match replies.message().await {
        Err(status) => Ok(status),
        Ok(None) => Ok(Status::ok("")),
        Ok(Some(replies)) => bail!("{replies:?} without a request"),
    }
}

/// The id in the cookie of a bookie's directory.
fn id_of(directory: &std::path::Path) -> Result<Vec<u8>> {
    let cookie = fs::read_to_string(directory.join("bookie/COOKIE"))?;
    let id = cookie.lines().find_map(|line| line.strip_prefix("id "));
    let id = id.context("a cookie has an id")?;
    let byte = |at: usize| Ok(u8::from_str_radix(&id[at..at + 2], 16)?);
    (0..id.len()).step_by(2).map(byte).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_cookies_clusters_and_incarnations_are_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut cluster = start(folder.path(), &["--bookies", "1"])?;
    let data_dir = folder.path().join("cluster");
    let address = cluster.process("bookie-1")?.address.clone();
    let first = id_of(&data_dir.join("bookie-1"))?;

    // Clients: the right pair is served, every other is told what is wrong.
    let answers = async {
        let right = open(&address, "dev", &first).await?;
        ensure!(right.code() == Code::Ok, "{right}");
        let other_cluster = open(&address, "other", &first).await?;
        ensure!(other_cluster.code() == Code::FailedPrecondition);
        ensure!(
            other_cluster.message().contains("cluster \"dev\""),
            "{other_cluster}"
        );
        let foreign = open(&address, "dev", &[7; 16]).await?;
        ensure!(foreign.code() == Code::FailedPrecondition);
        ensure!(
            foreign.message().contains("belongs to another"),
            "{foreign}"
        );
        Ok(())
    };
    within("answers", answers).await?;

    // The directory of this cluster's bookie in another cluster.
    cluster.kill("bookie-1")?;
    let bookie_1 = data_dir.join("bookie-1").display().to_string();
    let said = refused(&cluster, &bookie_1, "elsewhere")?;
    ensure!(
        said.contains("belongs to a bookie of cluster dev"),
        "{said}"
    );

    // Another storage at the same address is another bookie: it joins, and does not answer for
    // the one that was there (address reuse).
    fs::rename(data_dir.join("bookie-1"), data_dir.join("taken-away"))?;
    cluster.start_again("bookie-1")?;
    ensure!(id_of(&data_dir.join("bookie-1"))? != first);
    let reused = async {
        let status = open(&address, "dev", &first).await?;
        ensure!(status.code() == Code::FailedPrecondition, "{status}");
        let mut client = BookieClient::connect(format!("http://{address}")).await?;
        let read = ReadRequest {
            bookie_id: Bytes::copy_from_slice(&first),
            ledger_id: 1,
            ..ReadRequest::default()
        };
        let status = client.read(read).await.map(|_| ()).unwrap_err();
        ensure!(status.code() == Code::FailedPrecondition, "{status}");
        Ok(())
    };
    within("answers", reused).await?;
    cluster.stop()?;

    // Metadata that does not know the bookie: it must not serve, and says what may have happened.
    fs::remove_dir_all(data_dir.join("etcd"))?;
    let error = cluster
        .restart()
        .map(|()| "it started")
        .unwrap_err()
        .to_string();
    ensure!(error.contains("does not know bookie"), "{error}");
    ensure!(error.contains("empty directory"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storage_of_a_standalone_server_joins_no_cluster() -> Result<()> {
    use aquifer_harness::server::{Server, ServerOptions};
    let folder = tempfile::tempdir()?;
    let standalone = folder.path().join("standalone");
    let mut server = Server::start(&standalone, ServerOptions::default()).await?;
    server.stop()?;
    let mut cluster = start(folder.path(), &["--bookies", "1"])?;
    let said = refused(&cluster, &standalone.display().to_string(), "dev")?;
    ensure!(said.contains("standalone server"), "{said}");
    cluster.stop()
}
