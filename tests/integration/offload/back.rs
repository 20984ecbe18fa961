//! Ledgers that come back to bookies by command, and blocks that are kept on a local disk.

use super::*;

const BACK: &str = "public/back/topic";
const EVENTS: usize = 40;

/// Makes a topic with small ledgers, and has them offloaded until they are in objects alone.
/// Answers how many these are.
async fn offloaded(server: &Server) -> Result<u64> {
    let client = server.client()?;
    let policies = Policies {
        rollover: Some(Rollover {
            entries: 5,
            ..Rollover::default()
        }),
        ..Policies::default()
    };
    let admin = client.admin();
    admin.create_namespace("public/back", policies).await?;
    let producer = client.producer(BACK).open().await?;
    for number in 0..EVENTS {
        let event = Message::new(format!("event-{number}"));
        producer.send(event).await?;
    }
    producer.close().await?;
    let told = json(&server.url(), &["topic", "offload", BACK, "--wait"])?;
    let ledgers = told[0]["ledgers"].as_u64().context("ledgers")?;
    ensure!(ledgers >= 5, "{told:?}");
    wait_for(&client, ledgers, false).await?;
    Ok(ledgers)
}

/// Waits until this many ledgers are offloaded, with or without copies at the bookie.
async fn wait_for(client: &Client, wanted: u64, local: bool) -> Result<()> {
    until("copies of offloaded ledgers to come or go", || async {
        let stats = client.admin().topic_stats(BACK).await?;
        let ledgers = stats.ledgers.iter();
        let so = ledgers.filter(|l| l.state == LedgerPlace::Offloaded && l.local == local);
        Ok((so.count() as u64 == wanted).then_some(()))
    })
    .await
}

async fn read_events(client: &Client) -> Result<()> {
    let reader = client.reader(BACK).open().await?;
    for number in 0..EVENTS {
        let read = reader.next().await?.payload;
        ensure!(read == format!("event-{number}").as_bytes(), "{read:?}");
    }
    Ok(())
}

#[tokio::test]
async fn re_imported_ledgers_are_read_without_their_objects_until_their_lag_is_over() -> Result<()>
{
    let folder = tempfile::tempdir()?;
    let data_dir = folder.path().join("data");
    let mut server = Server::start(&data_dir, options(0)).await?;
    let ledgers = offloaded(&server).await?;
    let (url, http) = (server.url(), server.http());
    let set = |lag: &str| {
        let lag = format!("offload.lag={lag}");
        let words = [
            "namespace",
            "policy",
            "set",
            "public/back",
            "offload.age=1h",
        ];
        json(&url, &[&words[..], &[lag.as_str()]].concat())
    };
    set("1h")?;
    let told = json(&url, &["topic", "reimport", BACK, "--wait"])?;
    ensure!(told[0]["ledgers"].as_u64() == Some(ledgers), "{told:?}");
    wait_for(&server.client()?, ledgers, true).await?;

    // Nothing is in memory any more, and no object is asked.
    server.kill()?;
    server.restart()?;
    let client = server.client()?;
    read_events(&client).await?;
    ensure!(metric(&http, "aquifer_log_object_reads_total").await? == 0.0);

    set("0s")?;
    wait_for(&client, ledgers, false).await?;
    ensure!(objects(&data_dir.join("cold"))?.len() as u64 == ledgers);
    read_events(&client).await?;
    ensure!(metric(&http, "aquifer_log_object_reads_total").await? > 0.0);
    server.stop()?;
    server.check_logs()
}

#[tokio::test]
async fn blocks_are_read_from_the_local_disk_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data_dir = folder.path().join("data");
    let blocks = folder.path().join("blocks");
    let mut settings = options(0);
    let directory = blocks.to_str().context("a path of text")?.to_owned();
    settings
        .environment
        .push(("AQUIFER_COLD_DISK_CACHE_DIR".to_owned(), directory));
    settings.environment.push((
        "AQUIFER_COLD_BLOCK_CACHE_BYTES_MAX".to_owned(),
        "0".to_owned(),
    ));
    let mut server = Server::start(&data_dir, settings).await?;
    offloaded(&server).await?;
    server.kill()?;
    server.restart()?;
    let (client, http) = (server.client()?, server.http());
    until("blocks to be read from the disk", || async {
        read_events(&client).await?;
        let hits = metric(&http, "aquifer_log_object_disk_hits_total").await?;
        Ok((hits > 0.0).then_some(()))
    })
    .await?;
    ensure!(metric(&http, "aquifer_log_object_disk_bytes").await? > 0.0);
    ensure!(std::fs::read_dir(&blocks)?.count() >= 2);
    server.stop()?;
    server.check_logs()
}
