//! A topic as a reader sees it.

use anyhow::Result;
use aquifer_client::{Client, ReceivedMessage};
use aquifer_model::place::Place;

use crate::checker::Logged;

/// Reads a topic from its beginning to its current end.
///
/// # Errors
/// Every one that the reader meets.
pub async fn read(client: &Client, topic: &str) -> Result<Vec<Logged>> {
    let reader = client.reader(topic).start(Place::Earliest).open().await?;
    let mut log = Vec::new();
    while let Some(message) = reader.next_available().await? {
        log.push(logged(message));
    }
    Ok(log)
}

fn logged(message: ReceivedMessage) -> Logged {
    Logged {
        producer: message.producer_name.to_string(),
        sequence_id: message.sequence_id,
        payload: message.payload.to_vec(),
        position: message.position,
        index: message.index.0,
    }
}
