//! Producers that the broker holds back: they wait alone.

use std::time::Duration;

use aquifer_client::Message;
use aquifer_proto::v1;
use aquifer_proto::v1::consume_request::Request;
use aquifer_proto::v1::consume_response::Response;

use crate::fake::{Fake, delivery, subscribed};

/// Long enough that only a hang exceeds it.
const HANG: Duration = Duration::from_secs(60);
/// Together more than HTTP/2 lets a connection send before the peer reads.
const MESSAGES: u64 = 16;
const MESSAGE_BYTES: u64 = 512 * 1024;

#[tokio::test]
async fn producers_that_are_held_back_do_not_hold_back_acknowledgements() {
    let fake = Fake::start().await;
    let client = fake.client();
    let accept = async {
        let mut stream = fake.consume().await;
        stream.subscribed(subscribed(1, 0, 0)).await;
        stream
    };
    let (consumer, mut stream) = futures::join!(client.consumer("t", "s").open(), accept);
    let consumer = consumer.unwrap();
    let accept = async {
        let mut stream = fake.produce().await;
        stream.open().await;
        stream.opened(None).await;
        stream
    };
    let (producer, _held_back) = futures::join!(client.producer("t").open(), accept);
    let producer = producer.unwrap();
    let mut pending = Vec::new();
    for message in 0..MESSAGES {
        // Bytes that do not compress.
        let mut noise = message + 1;
        let payload = (0..MESSAGE_BYTES).map(|_| {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            noise.to_le_bytes()[0]
        });
        let message = Message::new(payload.collect::<Vec<u8>>());
        pending.push(producer.enqueue(message).await.unwrap());
    }
    for round in 0..300 {
        stream.deliver(1, 0, vec![delivery(round, 1)]).await;
        let answers = async {
            let message = consumer.receive().await.unwrap();
            let acknowledged = consumer.ack(&message);
            let request_id = stream
                .until(|request| match request {
                    Request::Acknowledge(ack) => Some(ack.request_id),
                    _ => None,
                })
                .await;
            stream
                .answer(Response::Confirmed(v1::Confirmed {
                    request_id,
                    error: None,
                }))
                .await;
            acknowledged.await.unwrap();
        };
        let confirmed = tokio::time::timeout(HANG, answers).await;
        assert!(
            confirmed.is_ok(),
            "acknowledgement {round} did not get through"
        );
    }
}
