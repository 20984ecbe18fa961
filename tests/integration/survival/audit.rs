//! The authoritative log, read twice, against the history.

use anyhow::{Result, ensure};
use aquifer_client::{Message, SubscriptionType};
use aquifer_harness::checker::{
    Logged, delivered_at_least_once, dense, nothing_lost, nothing_twice, producers_in_order,
    readers_agree,
};
use aquifer_harness::log;
use aquifer_harness::server::Server;
use aquifer_harness::wait::within;

use crate::survival::traffic::{History, SUBSCRIPTION, TOPIC};

/// Checks P1–P7 and P9 on the log as two readers see it, before and after a restart, and that the
/// subscription's state survived the restart.
pub async fn check(server: &mut Server, history: History) -> Result<()> {
    let log = within("reading the log", read(server)).await?;
    server.kill()?;
    server.restart()?;
    let again = within("reading the log again", read(server)).await?;
    readers_agree(&log, &again)?;
    nothing_lost(&history.acknowledged, &log)?;
    nothing_twice(&log)?;
    producers_in_order(&log)?;
    dense(&log)?;
    ensure!(
        log.len() == history.acknowledged.len(),
        "{} in the log",
        log.len()
    );
    delivered_at_least_once(&log, &history.received)?;
    ensure!(
        history.delivered_again.is_empty(),
        "delivered after the acknowledgement was confirmed: {:?}",
        history.delivered_again
    );
    subscription_is_drained(server, log.len() as u64).await
}

async fn read(server: &Server) -> Result<Vec<Logged>> {
    log::read(&server.client()?, TOPIC).await
}

/// After the restart nothing is left to deliver: a message published now is the first to arrive.
async fn subscription_is_drained(server: &Server, end: u64) -> Result<()> {
    let client = server.client()?;
    let stats = client.admin().topic_stats(TOPIC).await?;
    let audit = stats
        .subscriptions
        .iter()
        .find(|found| found.name == SUBSCRIPTION);
    ensure!(
        audit.is_some_and(|found| found.mark_delete.0 == end),
        "{audit:?} at end {end}"
    );
    let consumer = client
        .consumer(TOPIC, SUBSCRIPTION)
        .kind(SubscriptionType::Shared)
        .open()
        .await?;
    client
        .producer(TOPIC)
        .open()
        .await?
        .send(Message::new("the last one"))
        .await?;
    let message = within("the last message", async { Ok(consumer.receive().await?) }).await?;
    ensure!(
        message.index.0 == end,
        "index {} was delivered again",
        message.index
    );
    Ok(())
}
