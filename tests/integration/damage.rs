//! Flipped bytes and cut files (I2, I5, H4, H6): what is read is right or an error, a log never
//! just ends early, and `--accept-loss` is the way on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use aquifer_client::{ErrorKind, Message};
use aquifer_harness::fault::{files, find, flip_bit, truncate};
use aquifer_harness::server::{Server, ServerOptions, aquifer};
use aquifer_harness::wait::within;
use aquifer_model::place::Place;

const MESSAGES: usize = 200;

/// A message that can be found in a file and checked by its number.
fn payload(number: usize, bytes: usize) -> Vec<u8> {
    let mut payload = format!("event-{number:06}-").into_bytes();
    payload.resize(bytes, b'a' + u8::try_from(number % 26).unwrap_or_default());
    payload
}

/// Publishes one message after the other, so that each is an entry and a commit of its own.
async fn publish(server: &Server, topic: &str, bytes: usize) -> Result<()> {
    let producer = server.client()?.producer(topic).open().await?;
    for number in 0..MESSAGES {
        producer.send(Message::new(payload(number, bytes))).await?;
    }
    producer.close().await?;
    Ok(())
}

/// How a read of a topic ended.
#[derive(Debug, PartialEq, Eq)]
enum Ending {
    /// With every message there.
    Complete,
    /// With an error that says that data is damaged.
    DataLoss,
}

/// Reads a topic to its end and checks every byte on the way.
async fn read(server: &Server, topic: &str, bytes: usize) -> Result<Ending> {
    let client = server.client()?;
    let reader = client.reader(topic).start(Place::Earliest).open().await;
    let result = within("the read", async {
        let reader = match reader {
            Ok(reader) => reader,
            Err(error) => return Ok(Err(error)),
        };
        let mut count = 0;
        loop {
            match reader.next_available().await {
                Ok(Some(message)) => {
                    let index = usize::try_from(message.index.0)?;
                    ensure!(
                        message.payload == payload(index, bytes),
                        "wrong bytes at {index}"
                    );
                    count += 1;
                }
                Ok(None) => return Ok(Ok(count)),
                Err(error) => return Ok(Err(error)),
            }
        }
    })
    .await?;
    match result {
        Ok(MESSAGES) => Ok(Ending::Complete),
        Ok(count) => bail!("{topic} just ended after {count} of {MESSAGES} messages: silent loss"),
        Err(error) if error.kind() == ErrorKind::Damaged => Ok(Ending::DataLoss),
        Err(error) => bail!("{topic}: not a typed data-loss error: {error:?}"),
    }
}

/// A server with two topics whose journal still holds everything, killed.
async fn killed(folder: &Path) -> Result<(Server, PathBuf)> {
    let mut server = Server::start(&folder.join("data"), ServerOptions::default()).await?;
    publish(&server, "victim", 1_000).await?;
    server.kill()?;
    let journal = files(server.data_dir(), "")?
        .into_iter()
        .find(|path| path.to_string_lossy().contains("journal"))
        .context("a journal file")?;
    Ok((server, journal))
}

/// The journal file that holds a message, and where.
fn locate(data_dir: &Path, number: usize) -> Result<(PathBuf, u64)> {
    let needle = &payload(number, 1_000)[..200];
    for path in files(data_dir, "")? {
        let is_journal = path.to_string_lossy().contains("journal");
        if let Some(at) = if is_journal {
            find(&path, needle)?
        } else {
            None
        } {
            return Ok((path, at));
        }
    }
    bail!("message {number} is in no journal file")
}

/// After damage to the journal: data loss is said, never served; then it is accepted, said what is
/// missing, and the server is usable again.
async fn damaged_journal_is_told_then_accepted(server: &mut Server) -> Result<()> {
    match server.restart() {
        Ok(()) => {
            ensure!(
                read(server, "victim", 1_000).await? == Ending::DataLoss,
                "must not be served"
            );
            server.kill()?;
        }
        Err(error) => {
            let text = format!("{error:#}");
            ensure!(
                text.contains("accept-loss"),
                "it must say what to do: {text}"
            );
        }
    }
    server.add_argument("--accept-loss");
    server.restart()?;
    let said = format!("{}\n{}", server.printed(), server.log());
    ensure!(
        said.contains("missing"),
        "it must print what is missing:\n{said}"
    );
    let client = server.client()?;
    let producer = client.producer("victim").open().await?;
    let receipt = producer.send(Message::new("after the loss")).await?;
    let index = receipt.index.context("it is no duplicate")?;
    let reader = client
        .reader("victim")
        .start(Place::Index(index))
        .open()
        .await?;
    let message = reader
        .next_available()
        .await?
        .context("what was published just now")?;
    ensure!(message.payload == "after the loss", "{message:?}");
    server.stop()?;
    server.check_logs()
}

#[tokio::test]
async fn a_flipped_bit_in_the_middle_of_the_journal_is_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (mut server, _) = killed(folder.path()).await?;
    let (path, at) = locate(server.data_dir(), MESSAGES / 2)?;
    flip_bit(&path, at + 100)?;
    damaged_journal_is_told_then_accepted(&mut server).await
}

/// H4: it must not be taken for a torn tail.
#[tokio::test]
async fn a_flipped_bit_in_the_last_commit_of_the_journal_is_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (mut server, _) = killed(folder.path()).await?;
    let (path, at) = locate(server.data_dir(), MESSAGES - 1)?;
    flip_bit(&path, at + 100)?;
    damaged_journal_is_told_then_accepted(&mut server).await
}

#[tokio::test]
async fn a_truncated_journal_is_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (mut server, _) = killed(folder.path()).await?;
    let (path, at) = locate(server.data_dir(), MESSAGES / 2)?;
    truncate(&path, at)?;
    damaged_journal_is_told_then_accepted(&mut server).await
}

#[tokio::test]
async fn a_lost_journal_file_is_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (mut server, _) = killed(folder.path()).await?;
    let (path, _) = locate(server.data_dir(), MESSAGES / 2)?;
    std::fs::remove_file(path)?;
    damaged_journal_is_told_then_accepted(&mut server).await
}

/// Flips bits of a stored payload in files of RocksDB, which hold it after a clean stop.
async fn damaged_store(suffix: &str, bytes: usize) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = Server::start(&folder.path().join("data"), ServerOptions::default()).await?;
    publish(&server, "victim", bytes).await?;
    publish(&server, "bystander", 10).await?;
    server.stop()?;
    let needle = &payload(MESSAGES / 2, bytes)[..bytes.min(200)];
    let mut flipped = 0;
    for path in files(server.data_dir(), suffix)? {
        if let Some(at) = find(&path, needle)? {
            flip_bit(&path, at + 20)?;
            flipped += 1;
        }
    }
    ensure!(flipped > 0, "no {suffix} file holds the payload");
    server.restart()?;
    ensure!(
        read(&server, "victim", bytes).await? == Ending::DataLoss,
        "must not be served"
    );
    // The reason is one bad entry: others are read, and publishing goes on.
    server
        .client()?
        .producer("victim")
        .open()
        .await?
        .send(Message::new("more"))
        .await?;
    what_is_damaged_is_given_up_on_command(&server.url())?;
    server.stop()?;
    server.check_logs()
}

/// A subscription stops in front of what is damaged, and a command lets it go on behind it.
fn what_is_damaged_is_given_up_on_command(url: &str) -> Result<()> {
    let create = ["subscription", "create", "victim", "s", "--from=earliest"];
    ensure!(aquifer(url, &create)?.status.success(), "no subscription");
    let mut indexes = BTreeSet::new();
    let mut consume = |on_damage: &str| -> Result<Option<i32>> {
        let consume = ["--output=json", "consume", "victim", "--subscription=s"];
        let output = aquifer(url, &[&consume[..], &["--on-damage", on_damage]].concat())?;
        for line in output.stdout.split(|byte| *byte == b'\n') {
            if !line.is_empty() {
                let message: serde_json::Value = serde_json::from_slice(line)?;
                indexes.extend(message["index"].as_u64());
            }
        }
        Ok(output.status.code())
    };
    ensure!(consume("stop")? == Some(1), "it must end with an error");
    let skip = ["--output=json", "subscription", "skip", "victim", "s"];
    let skipped: serde_json::Value = serde_json::from_slice(&aquifer(url, &skip)?.stdout)?;
    ensure!(consume("stop")? == Some(0), "nothing is in the way");
    let ranges = skipped["skipped"].as_array().context("ranges")?;
    ensure!(!ranges.is_empty(), "{skipped}");
    for range in ranges {
        let end = |name: &str| range[name].as_u64().context("an index");
        indexes.extend(end("first_index")?..=end("last_index")?);
    }
    let all = u64::try_from(MESSAGES)?;
    ensure!(indexes == (0..=all).collect(), "{indexes:?}");
    Ok(())
}

#[tokio::test]
async fn a_flipped_bit_in_an_sst_file_is_told() -> Result<()> {
    damaged_store(".sst", 600).await
}

#[tokio::test]
async fn a_flipped_bit_in_a_blob_file_is_told() -> Result<()> {
    damaged_store(".blob", 60_000).await
}

/// A server that was killed, and whose store has everything since: its topics have open ledgers.
async fn killed_and_flushed(server: &mut Server) -> Result<()> {
    server.kill()?;
    server.restart()?;
    server.stop()
}

/// Flips a bit of every copy of some bytes in files of RocksDB, some way behind their beginning.
fn flip_stored(server: &Server, suffix: &str, needle: &[u8], behind: u64) -> Result<()> {
    let mut flipped = 0;
    for path in files(server.data_dir(), suffix)? {
        if let Some(at) = find(&path, needle)? {
            flip_bit(&path, at + behind)?;
            flipped += 1;
        }
    }
    ensure!(flipped > 0, "no {suffix} file has it");
    Ok(())
}

/// Messages of a topic that come although some are damaged, and whether publishing goes on.
fn goes_on(url: &str, topic: &str) -> Result<BTreeSet<u64>> {
    let produced = aquifer(url, &["produce", topic, "one more"])?;
    ensure!(produced.status.success(), "{produced:?}");
    let read = aquifer(url, &["--output=json", "read", topic, "--on-damage=skip"])?;
    let lines = read.stdout.split(|byte| *byte == b'\n');
    let mut indexes = BTreeSet::new();
    for line in lines.filter(|line| !line.is_empty()) {
        let message: serde_json::Value = serde_json::from_slice(line)?;
        indexes.extend(message["index"].as_u64());
    }
    Ok(indexes)
}

/// What was stored last before a crash is damaged in its only copy: it alone is lost, in the blob
/// file that holds it, and in a block of keys that hides where the ledger ends.
#[tokio::test]
async fn a_flipped_bit_in_what_was_stored_last_costs_that_alone() -> Result<()> {
    for (bytes, suffix, spared) in [
        (40_000, ".blob", MESSAGES - 1),
        (600, ".sst", MESSAGES - 30),
    ] {
        let folder = tempfile::tempdir()?;
        let data_dir = folder.path().join("data");
        let mut server = Server::start(&data_dir, ServerOptions::default()).await?;
        publish(&server, "victim", bytes).await?;
        // A block that has the end of one has the beginning of the next.
        publish(&server, "neighbour", 10).await?;
        publish(&server, "bystander", 10).await?;
        killed_and_flushed(&mut server).await?;
        flip_stored(&server, suffix, &payload(MESSAGES - 1, bytes)[..200], 20)?;
        server.restart()?;
        let (url, last) = (server.url(), u64::try_from(MESSAGES - 1)?);
        let mut indexes = goes_on(&url, "victim")?;
        let more = indexes.pop_last().context("what was published after it")?;
        ensure!(more > last, "{more} was given twice");
        let spared = u64::try_from(spared)?;
        ensure!(indexes.is_superset(&(0..spared).collect()), "{indexes:?}");
        ensure!(!indexes.contains(&last), "the damaged one is not served");
        ensure!(read(&server, "bystander", 10).await? == Ending::Complete);
        server.stop()?;
        server.check_logs()?;
    }
    Ok(())
}

/// The same in a cursor log: every message is read, more is published, and subscriptions are
/// listed.
#[tokio::test]
async fn a_flipped_bit_at_the_end_of_a_cursor_log_leaves_the_topic() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = Server::start(&folder.path().join("data"), ServerOptions::default()).await?;
    publish(&server, "victim", 10).await?;
    let name = format!("subscription-{}", "of-this-topic".repeat(8));
    let consumer = server.client()?.consumer("victim", &name);
    let consumer = consumer.start(Place::Earliest).open().await?;
    for _ in 0..MESSAGES / 2 {
        let message = consumer.receive().await?;
        consumer.ack(&message).await?;
    }
    drop(consumer);
    publish(&server, "bystander", 10).await?;
    killed_and_flushed(&mut server).await?;
    let mut flipped = false;
    for path in files(server.data_dir(), ".sst")? {
        let bytes = std::fs::read(&path)?;
        let mut parts = bytes.windows(name.len());
        if let Some(at) = parts.rposition(|part| part == name.as_bytes()) {
            flip_bit(&path, u64::try_from(at)? + 3)?;
            flipped = true;
        }
    }
    ensure!(flipped, "no file has the cursor log");
    server.restart()?;
    let indexes = goes_on(&server.url(), "victim")?;
    let all = u64::try_from(MESSAGES)?;
    ensure!(indexes == (0..=all).collect(), "{indexes:?}");
    let list = aquifer(&server.url(), &["subscription", "list", "victim"])?;
    ensure!(list.status.success(), "{list:?}");
    server.stop()?;
    server.check_logs()
}

/// A store that does not open: there is no other copy of its data, and the error does not advise to
/// give it up.
#[tokio::test]
async fn a_store_with_a_missing_file_does_not_start_and_says_what_to_do() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = Server::start(&folder.path().join("data"), ServerOptions::default()).await?;
    publish(&server, "victim", 10).await?;
    server.stop()?;
    let current = files(server.data_dir(), "CURRENT")?;
    ensure!(current.len() == 1, "{current:?}");
    std::fs::remove_file(&current[0])?;
    let Err(error) = server.restart() else {
        bail!("it started without a file of its store");
    };
    let text = format!("{error:#}");
    ensure!(text.contains("restore its files"), "{text}");
    ensure!(!text.contains("empty directory"), "{text}");
    let data_dir = server.data_dir().display().to_string();
    let list = ["ledger", "list", "--data-dir", &data_dir];
    let output = aquifer("http://127.0.0.1:1", &list)?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{output:?}");
    ensure!(text.contains("restore its files"), "{text}");
    Ok(())
}

#[tokio::test]
async fn two_servers_on_one_directory_are_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data_dir = folder.path().join("data");
    let mut first = Server::start(&data_dir, ServerOptions::default()).await?;
    let log_dir = Some(folder.path().join("second"));
    std::fs::create_dir_all(folder.path().join("second"))?;
    let options = ServerOptions {
        log_dir,
        ..ServerOptions::default()
    };
    let Err(error) = Server::start(&data_dir, options).await else {
        bail!("the second server started");
    };
    let text = format!("{error:#}");
    ensure!(
        text.contains("another") && text.contains("data"),
        "it must say why: {text}"
    );
    publish(&first, "victim", 10).await?;
    ensure!(
        read(&first, "victim", 10).await? == Ending::Complete,
        "the first serves on"
    );
    first.stop()
}
