//! Shapes the broker's events into replies: deliveries that are ready together travel together,
//! but never more than fits a frame.

use aquifer_model::id::{OwnerEpoch, SeekEpoch};
use aquifer_protocol_api::consumer::{ConsumerEvent, Delivery};
use tokio::sync::mpsc;

/// Where a reply is full: large enough to carry many batches at once, small enough that a peer
/// which does not read holds little (I13). One delivery may be larger and then travels alone.
const REPLY_BYTES: usize = 256 * 1024;
/// Deliveries in one reply, whatever their size.
const REPLY_DELIVERIES_MAX: usize = 1024;
/// What a delivery costs on the wire besides its batch, roughly; each skipped range likewise.
const DELIVERY_OVERHEAD_BYTES: usize = 64;
const RANGE_BYTES: usize = 24;
const COUNTED_RANGE_BYTES: usize = 30;

/// The events of a session in the shape in which they are sent.
pub(crate) struct Frames {
    events: mpsc::Receiver<ConsumerEvent>,
    /// What did not fit the reply before, or must not be overtaken.
    carry: Option<ConsumerEvent>,
}

impl Frames {
    pub(crate) fn new(events: mpsc::Receiver<ConsumerEvent>) -> Frames {
        Frames {
            events,
            carry: None,
        }
    }

    /// The next reply; `None` when the broker has closed the session. Cancel-safe: nothing is
    /// lost when the future is dropped while it waits.
    pub(crate) async fn next(&mut self) -> Option<ConsumerEvent> {
        let mut event = match self.carry.take() {
            Some(event) => event,
            None => self.events.recv().await?,
        };
        if let ConsumerEvent::Deliveries {
            owner_epoch,
            seek_epoch,
            deliveries,
        } = &mut event
        {
            let epochs = (*owner_epoch, *seek_epoch);
            let mut room = Room::default();
            self.carry = room.fill(deliveries).map(|rest| again(epochs, rest));
            while self.carry.is_none() {
                match self.events.try_recv() {
                    Ok(ConsumerEvent::Deliveries {
                        owner_epoch,
                        seek_epoch,
                        deliveries: mut more,
                    }) if epochs == (owner_epoch, seek_epoch) => {
                        self.carry = room.fill(&mut more).map(|rest| again(epochs, rest));
                        deliveries.append(&mut more);
                    }
                    Ok(other) => self.carry = Some(other),
                    Err(_) => break,
                }
            }
        }
        Some(event)
    }
}

fn again(
    (owner_epoch, seek_epoch): (OwnerEpoch, SeekEpoch),
    deliveries: Vec<Delivery>,
) -> ConsumerEvent {
    ConsumerEvent::Deliveries {
        owner_epoch,
        seek_epoch,
        deliveries,
    }
}

/// What a reply holds so far.
#[derive(Default)]
struct Room {
    bytes: usize,
    count: usize,
}

impl Room {
    /// Takes deliveries while they fit, the first one in any case; returns the others.
    fn fill(&mut self, deliveries: &mut Vec<Delivery>) -> Option<Vec<Delivery>> {
        for (at, delivery) in deliveries.iter().enumerate() {
            let skip_bytes = delivery.skip.len() * RANGE_BYTES;
            let counts_bytes = delivery.redelivered.len() * COUNTED_RANGE_BYTES;
            let overhead_bytes = DELIVERY_OVERHEAD_BYTES + skip_bytes + counts_bytes;
            self.bytes += delivery.body.len() + overhead_bytes;
            let full = self.bytes > REPLY_BYTES || self.count == REPLY_DELIVERIES_MAX;
            if full && self.count > 0 {
                return Some(deliveries.split_off(at));
            }
            self.count += 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use aquifer_model::id::{EntryId, Index, LedgerId};
    use aquifer_protocol_api::consumer::Held;
    use aquifer_protocol_api::producer::StoredAt;
    use bytes::Bytes;

    use super::*;

    fn deliveries(epoch: u64, entries: std::ops::Range<u64>, bytes: usize) -> ConsumerEvent {
        let delivery = |entry| Delivery {
            at: StoredAt {
                ledger: LedgerId(1),
                entry: EntryId(entry),
                base_index: Index(entry),
            },
            broker_time_ms: 0,
            redelivered: Vec::new(),
            skip: Vec::new(),
            message_count: 1,
            format: 1,
            body: Bytes::from(vec![0; bytes]),
            held: Held::default(),
        };
        ConsumerEvent::Deliveries {
            owner_epoch: OwnerEpoch(epoch),
            seek_epoch: SeekEpoch(0),
            deliveries: entries.map(delivery).collect(),
        }
    }

    /// The entries of each reply, and `c` for a confirmation, of what the broker sent.
    async fn replies(sent: Vec<ConsumerEvent>) -> Vec<String> {
        let (sender, receiver) = mpsc::channel(sent.len().max(1));
        for event in sent {
            sender.try_send(event).unwrap();
        }
        drop(sender);
        let mut frames = Frames::new(receiver);
        let mut replies = Vec::new();
        while let Some(event) = frames.next().await {
            replies.push(match event {
                ConsumerEvent::Deliveries { deliveries, .. } => {
                    let entries = deliveries.iter().map(|d| d.at.entry.to_string());
                    entries.collect::<Vec<_>>().join(",")
                }
                _ => "c".to_owned(),
            });
        }
        replies
    }

    #[tokio::test]
    async fn ready_deliveries_share_a_reply_within_an_epoch_and_in_order() {
        let confirmed = ConsumerEvent::Confirmed { request_id: 1 };
        let sent = vec![
            deliveries(1, 0..2, 10),
            deliveries(1, 2..3, 10),
            confirmed,
            deliveries(1, 3..4, 10),
            deliveries(2, 4..5, 10),
        ];
        assert_eq!(replies(sent).await, ["0,1,2", "c", "3", "4"]);
    }

    #[tokio::test]
    async fn a_reply_is_bounded_and_a_large_delivery_travels_alone() {
        let half = REPLY_BYTES / 2 - DELIVERY_OVERHEAD_BYTES;
        let sent = vec![
            deliveries(1, 0..3, half),
            deliveries(1, 3..4, REPLY_BYTES * 3),
            deliveries(1, 4..5, 1),
        ];
        assert_eq!(replies(sent).await, ["0,1", "2", "3", "4"]);
        let many = vec![deliveries(1, 0..2500, 0)];
        assert_eq!(replies(many).await.len(), 3);
    }
}
