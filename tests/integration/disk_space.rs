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
use rustix::process::Signal;

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

/// Another program fills the disk to the last byte at once: what subscriptions acknowledge, seeks,
/// their creation and deletion, deleting topics and a restart go on from what was kept back.
#[tokio::test]
async fn on_a_disk_without_any_space_consuming_and_deleting_go_on() -> Result<()> {
    if !is_privileged() {
        eprintln!("skipped: a disk of its own needs root and loop devices");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mount = Mount::ext4(folder.path(), 1024 * MIB)?;
    let data = mount.path().join("data");
    let mut server = Server::start(&data, options(folder.path())).await?;
    let first = producer(&server).await?;
    for _ in 0..300 {
        first.send(Message::new(vec![7; 1000])).await?;
    }
    drop(first);
    let admin = server.client()?.admin();
    admin.create_topic("other", 0).await?;
    let reserve = until("the reserve to be made", || async {
        let found = find(&data, "RESERVE")?;
        Ok(found.filter(|path| fs::metadata(path).is_ok_and(|file| file.len() >= 32 * MIB)))
    })
    .await?;
    // Not while it runs: the reserve, given up too early, would be filled as well.
    server.signal(Signal::STOP)?;
    fill_up(&mount)?;
    server.signal(Signal::CONT)?;
    until("the reserve to be given up", || async {
        Ok((!reserve.exists()).then_some(()))
    })
    .await?;
    consume(&server, "full", "during").await?;
    admin.delete_subscription("full", "during", true).await?;
    admin.delete_topic("other", true).await?;

    // Whatever was running is gone; the disk is as full as it was.
    server.kill()?;
    server.restart()?;
    consume(&server, "full", "after").await?;
    let admin = server.client()?.admin();
    admin.delete_topic("full", true).await?;
    server.stop()?;
    server.check_logs()
}

/// A start on a disk without any space, the reserve included, says what to do: nothing is lost.
#[tokio::test]
async fn a_start_without_any_space_says_so_and_nothing_is_lost() -> Result<()> {
    if !is_privileged() {
        eprintln!("skipped: a disk of its own needs root and loop devices");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mount = Mount::ext4(folder.path(), 1024 * MIB)?;
    let data = mount.path().join("data");
    let mut server = Server::start(&data, options(folder.path())).await?;
    producer(&server).await?.send(Message::new("kept")).await?;
    server.stop()?;
    if let Some(reserve) = find(&data, "RESERVE")? {
        fs::remove_file(reserve)?;
    }
    let filled = fill_up(&mount)?;
    match server.restart() {
        Ok(()) => {
            ensure!(count(&server, "full").await? == 1, "it serves what it has");
            server.stop()?;
        }
        Err(error) => {
            let text = format!("{error:#}");
            ensure!(text.contains("disk is full"), "it must say why: {text}");
            ensure!(text.contains("free some"), "it must say what to do: {text}");
            ensure!(!text.contains("copy"), "nothing is to be restored: {text}");
        }
    }
    fs::remove_file(&filled)?;
    server.restart()?;
    ensure!(count(&server, "full").await? == 1, "the message is there");
    server.stop()?;
    server.check_logs()
}

/// Takes every byte that there is, those that are kept for root included.
fn fill_up(mount: &Mount) -> Result<std::path::PathBuf> {
    let path = mount.path().join("filled");
    fill(&path, mount.available()?)?;
    let mut rest = File::options().append(true).open(&path)?;
    for piece in [1 << 20, 4096] {
        let zeros = vec![0; piece];
        while std::io::Write::write_all(&mut rest, &zeros).is_ok() {}
    }
    Ok(path)
}

/// Receives and acknowledges everything, seeks back, and does half of it again.
async fn consume(server: &Server, topic: &str, subscription: &str) -> Result<()> {
    let client = server.client()?;
    let consumer = client.consumer(topic, subscription).start(Place::Earliest);
    let consumer = consumer.open().await?;
    for round in [300, 150] {
        for _ in 0..round {
            let message = consumer.receive().await?;
            consumer.ack(&message).await?;
        }
        consumer.seek(Place::Earliest).await?;
    }
    consumer.close().await?;
    Ok(())
}

/// The file of this name somewhere in a directory.
fn find(directory: &std::path::Path, name: &str) -> Result<Option<std::path::PathBuf>> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|found| found == name) {
            return Ok(Some(path));
        }
        if path.is_dir()
            && let Some(found) = find(&path, name)?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
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
