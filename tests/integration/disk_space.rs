//! A full and a read-only disk: publishing pauses with a retryable error, reading goes on, and both
//! recover by themselves.

use std::fs::{self, File};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use aquifer_client::{ErrorKind, Message, Producer};
use aquifer_harness::mount::{Mount, is_privileged};
use aquifer_harness::server::{Server, ServerOptions};
use aquifer_harness::wait::until;
use aquifer_model::place::Place;

const MIB: u64 = 1024 * 1024;

fn options(folder: &std::path::Path) -> ServerOptions {
    let environment = [
        (
            "AQUIFER_BOOKIE_READ_ONLY_BELOW_FREE_BYTES",
            (64 * MIB).to_string(),
        ),
        (
            "AQUIFER_BOOKIE_WRITABLE_ABOVE_FREE_BYTES",
            (96 * MIB).to_string(),
        ),
    ];
    ServerOptions {
        environment: environment
            .map(|(name, value)| (name.to_owned(), value))
            .to_vec(),
        log_dir: Some(folder.to_owned()),
        ..ServerOptions::default()
    }
}

async fn count(server: &Server, topic: &str) -> Result<u64> {
    let reader = server
        .client()?
        .reader(topic)
        .start(Place::Earliest)
        .open()
        .await?;
    let mut count = 0;
    while reader.next_available().await?.is_some() {
        count += 1;
    }
    Ok(count)
}

async fn producer(server: &Server) -> Result<Producer> {
    let client = server.client()?;
    let timeout = Some(Duration::from_secs(2));
    Ok(client.producer("full").send_timeout(timeout).open().await?)
}

#[tokio::test]
async fn a_full_disk_pauses_publishing_and_nothing_else() -> Result<()> {
    if !is_privileged() {
        eprintln!("skipped: a disk of its own needs root and loop devices");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mount = Mount::ext4(folder.path(), 1024 * MIB)?;
    let mut server = Server::start(&mount.path().join("data"), options(folder.path())).await?;
    let mut acknowledged = 0;
    let first = producer(&server).await?;
    for _ in 0..100 {
        first.send(Message::new(vec![7; 1000])).await?;
        acknowledged += 1;
    }
    drop(first);

    let ballast = mount.path().join("ballast");
    fill(&ballast, mount.available()?.saturating_sub(40 * MIB))?;
    let error = until("publishing to pause", || async {
        let error = match producer(&server).await {
            Ok(producer) => match producer.send(Message::new(vec![7; 1000])).await {
                Ok(_) => return Ok(None),
                Err(error) => error,
            },
            Err(error) => bail!("opening a producer must work: {error:#}"),
        };
        Ok(Some(error))
    })
    .await?;
    ensure!(error.is_retryable(), "{error:?}");
    ensure!(
        matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout),
        "{error:?}"
    );
    ensure!(
        error.to_string().contains("space"),
        "it must say why: {error}"
    );
    let stored = count(&server, "full").await?;
    ensure!(
        stored >= acknowledged,
        "{stored} of {acknowledged} can be read"
    );

    fs::remove_file(&ballast)?;
    until("publishing to go on", || async {
        let sent = producer(&server).await?.send(Message::new("room")).await;
        match sent {
            Ok(_) => Ok(Some(())),
            Err(error) if error.is_retryable() => Ok(None),
            Err(error) => Err(error.into()),
        }
    })
    .await?;
    ensure!(
        count(&server, "full").await? > stored,
        "what was published after it"
    );
    server.stop()?;
    server.check_logs()
}

#[tokio::test]
async fn a_read_only_disk_is_refused_at_the_start_and_its_data_is_there_afterwards() -> Result<()> {
    if !is_privileged() {
        eprintln!("skipped: a disk of its own needs root and loop devices");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mount = Mount::ext4(folder.path(), 1024 * MIB)?;
    let mut server = Server::start(&mount.path().join("data"), options(folder.path())).await?;
    producer(&server).await?.send(Message::new("kept")).await?;
    server.stop()?;
    mount.set_read_only(true)?;
    let Err(error) = server.restart() else {
        bail!("started on a read-only disk")
    };
    let text = format!("{error:#}");
    ensure!(
        text.to_lowercase().contains("read-only"),
        "it must say why: {text}"
    );
    mount.set_read_only(false)?;
    server.restart()?;
    ensure!(count(&server, "full").await? == 1, "the message is there");
    server.stop()?;
    server.check_logs()
}

fn fill(path: &std::path::Path, bytes: u64) -> Result<()> {
    rustix::fs::fallocate(
        File::create(path)?,
        rustix::fs::FallocateFlags::empty(),
        0,
        bytes,
    )?;
    Ok(())
}
