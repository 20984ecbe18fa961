//! Producers: order and exactness through failures (I7, I8, H7), bounds, typed errors.

use std::time::Duration;

use aquifer_client::{
    Batching, ClientError, Compression, ErrorKind, Index, Message, Outcome, Producer,
};
use aquifer_model::batch::Batch;
use aquifer_proto::v1::ErrorCode;
use futures::FutureExt;

use crate::fake::{Fake, Produce};

async fn open(fake: &Fake, batching: Batching) -> (Producer, Produce) {
    let client = fake.client();
    let builder = client.producer("t").batching(batching);
    let accept = async {
        let mut stream = fake.produce().await;
        stream.open().await;
        stream.opened(None).await;
        stream
    };
    let (producer, stream) = futures::join!(builder.open(), accept);
    (producer.unwrap(), stream)
}

fn ids(frames: &[(u64, Batch)]) -> Vec<(u64, u64, u64)> {
    let id = |(number, batch): &(u64, Batch)| {
        let fields = batch.fields();
        (
            *number,
            fields.lowest_sequence_id,
            fields.highest_sequence_id,
        )
    };
    frames.iter().map(id).collect()
}

#[tokio::test]
async fn a_message_is_sent_at_once_and_its_receipt_says_where() {
    let fake = Fake::start().await;
    let (producer, mut stream) = open(&fake, Batching::default()).await;
    assert_eq!(producer.name(), "drawn");
    let pending = producer.enqueue(Message::new("a").key("k")).await.unwrap();
    let frames = stream.frames(1).await;
    assert_eq!(ids(&frames), [(1, 0, 0)]);
    assert_eq!(&frames[0].1.fields().producer_name[..], b"drawn");
    stream.receipt(1, 41, false).await;
    let receipt = pending.await.unwrap();
    assert_eq!(receipt.index, Some(Index(41)));
    assert_eq!((receipt.sequence_id, receipt.duplicate), (0, false));
    assert_eq!(receipt.partition, None);
}

/// Adaptive batching: what gathers while a batch is in flight leaves together.
#[tokio::test]
async fn messages_gather_while_one_is_in_flight() {
    let fake = Fake::start().await;
    let batching = Batching {
        delay_max: Duration::from_secs(3600),
        ..Batching::default()
    };
    let (producer, mut stream) = open(&fake, batching).await;
    let mut pending = vec![producer.enqueue(Message::new("0")).await.unwrap()];
    stream.frames(1).await;
    for text in ["1", "2", "3"] {
        pending.push(producer.enqueue(Message::new(text)).await.unwrap());
    }
    stream.receipt(1, 0, false).await;
    assert_eq!(ids(&stream.frames(1).await), [(2, 1, 3)]);
    stream.receipt(2, 1, false).await;
    let receipts = futures::future::try_join_all(pending).await.unwrap();
    let indexes: Vec<_> = receipts
        .iter()
        .filter_map(|receipt| receipt.index)
        .collect();
    assert_eq!(indexes, [0, 1, 2, 3].map(Index));
}

/// H7: the first error ends the stream; everything unacknowledged is sent again in the same
/// batches, numbered from 1, under the same name and instance with the next epoch.
#[tokio::test]
async fn after_an_error_everything_unacknowledged_is_sent_again_in_order() {
    let fake = Fake::start().await;
    let client = fake.client();
    let builder = client.producer("t").batching(Batching::disabled());
    let accept = async {
        let mut stream = fake.produce().await;
        let first = stream.open().await;
        stream.opened(None).await;
        (stream, first)
    };
    let (producer, (mut stream, first)) = futures::join!(builder.open(), accept);
    let producer = producer.unwrap();
    let mut pending = Vec::new();
    for text in ["0", "1", "2", "3"] {
        pending.push(producer.enqueue(Message::new(text)).await.unwrap());
    }
    let sent = stream.frames(4).await;
    stream.receipt(1, 0, false).await;
    stream.fail(ErrorCode::Overloaded, true).await;

    let mut stream = fake.produce().await;
    let again = stream.open().await;
    assert_eq!(
        (again.epoch, again.producer_name.as_str()),
        (first.epoch + 1, "drawn")
    );
    assert_eq!(again.instance, first.instance);
    assert_eq!(again.topic_incarnation.as_deref(), Some(&[7; 16][..]));
    assert!(!again.take_over);
    // Frame 2 was stored before the failure: its duplicate answers the original position.
    stream.opened(Some(1)).await;
    let resent = stream.frames(3).await;
    assert_eq!(ids(&resent), [(1, 1, 1), (2, 2, 2), (3, 3, 3)]);
    let bytes = |frames: &[(u64, Batch)]| -> Vec<_> {
        frames
            .iter()
            .map(|(_, batch)| batch.bytes().clone())
            .collect()
    };
    assert_eq!(
        bytes(&resent),
        bytes(&sent[1..]),
        "same composition, same bytes"
    );
    stream.receipt(1, 1, true).await;
    stream.receipt(2, 2, false).await;
    stream.receipt(3, 3, false).await;
    let receipts = futures::future::try_join_all(pending).await.unwrap();
    let told: Vec<_> = receipts
        .iter()
        .map(|r| (r.index.unwrap().0, r.duplicate))
        .collect();
    assert_eq!(told, [(0, false), (1, true), (2, false), (3, false)]);
}

/// Without deduplication what the broker has stored is not sent again.
#[tokio::test]
async fn without_deduplication_stored_batches_are_settled_by_their_ids() {
    let fake = Fake::start().await;
    let (producer, mut stream) = open(&fake, Batching::disabled()).await;
    let first = producer.enqueue(Message::new("0")).await.unwrap();
    let second = producer.enqueue(Message::new("1")).await.unwrap();
    stream.frames(2).await;
    drop(stream);
    let mut stream = fake.produce().await;
    stream.open().await;
    stream.opened_where(Some(0), false).await;
    assert_eq!(
        first.await.unwrap().index,
        None,
        "stored, it is not known where"
    );
    assert_eq!(ids(&stream.frames(1).await), [(1, 1, 1)]);
    stream.receipt(1, 1, false).await;
    assert_eq!(second.await.unwrap().index, Some(Index(1)));
}

#[tokio::test]
async fn being_fenced_ends_the_producer() {
    let fake = Fake::start().await;
    let (producer, mut stream) = open(&fake, Batching::disabled()).await;
    let pending = producer.enqueue(Message::new("0")).await.unwrap();
    stream.frames(1).await;
    stream.fail(ErrorCode::Fenced, false).await;
    let error = pending.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced);
    let error = producer.send(Message::new("1")).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::Fenced, Outcome::NotApplied)
    );
}

/// What is wrong with messages in flight fails those; the producer goes on.
#[tokio::test]
async fn a_refused_batch_fails_what_waits_but_not_the_producer() {
    let fake = Fake::start().await;
    let (producer, mut stream) = open(&fake, Batching::disabled()).await;
    let pending = producer.enqueue(Message::new("0")).await.unwrap();
    stream.frames(1).await;
    stream.fail(ErrorCode::TooLarge, false).await;
    assert_eq!(pending.await.unwrap_err().code(), Some(ErrorCode::TooLarge));
    let mut stream = fake.produce().await;
    stream.open().await;
    stream.opened(None).await;
    let pending = producer.enqueue(Message::new("1")).await.unwrap();
    assert_eq!(
        ids(&stream.frames(1).await),
        [(1, 1, 1)],
        "ids are never used twice"
    );
    stream.receipt(1, 0, false).await;
    pending.await.unwrap();
}

#[tokio::test]
async fn a_busy_name_is_told_at_once() {
    let fake = Fake::start().await;
    let client = fake.client();
    let refuse = async {
        let mut stream = fake.produce().await;
        stream.open().await;
        stream.fail(ErrorCode::ProducerBusy, true).await;
    };
    let (result, ()) = futures::join!(client.producer("t").name("p").open(), refuse);
    assert_eq!(
        result.err().map(|error| error.kind()),
        Some(ErrorKind::Busy)
    );
}

/// I13: `enqueue` waits while messages in flight are at their bound, and goes on with receipts.
#[tokio::test]
async fn enqueue_waits_for_budget() {
    let fake = Fake::start().await;
    let client = fake.client();
    let builder = client.producer("t").messages_in_flight_max(2);
    let accept = async {
        let mut stream = fake.produce().await;
        stream.open().await;
        stream.opened(None).await;
        stream
    };
    let (producer, mut stream) = futures::join!(builder.open(), accept);
    let producer = producer.unwrap();
    let first = producer.enqueue(Message::new("0")).await.unwrap();
    let second = producer.enqueue(Message::new("1")).await.unwrap();
    let mut third = Box::pin(producer.enqueue(Message::new("2")));
    assert!((&mut third).now_or_never().is_none(), "two are in flight");
    let frames = stream.frames(1).await;
    stream.receipt(1, 0, false).await;
    let third = third.await.unwrap();
    first.await.unwrap();
    let mut next = frames
        .last()
        .map_or(0, |(_, batch)| u64::from(batch.message_count()));
    let mut number = 2;
    while next < 3 {
        for (_, batch) in stream.frames(1).await {
            stream.receipt(number, next, false).await;
            next += u64::from(batch.message_count());
            number += 1;
        }
    }
    second.await.unwrap();
    assert_eq!(third.await.unwrap().index, Some(Index(2)));
}

/// A batch that times out takes everything after it along: storing that would break the order.
#[tokio::test]
async fn a_timeout_fails_everything_behind_it_and_the_producer_goes_on() {
    let fake = Fake::start().await;
    let client = fake.client();
    let builder = client
        .producer("t")
        .batching(Batching::disabled())
        .send_timeout(Some(Duration::from_millis(50)));
    let accept = async {
        let mut stream = fake.produce().await;
        stream.open().await;
        stream.opened(None).await;
        stream
    };
    let (producer, _silent) = futures::join!(builder.open(), accept);
    let producer = producer.unwrap();
    let first = producer.enqueue(Message::new("0")).await.unwrap();
    let second = producer.enqueue(Message::new("1")).await.unwrap();
    for pending in [first, second] {
        let error = pending.await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
    }
    let mut stream = fake.produce().await;
    stream.open().await;
    stream.opened(Some(1)).await;
    let third = producer.enqueue(Message::new("2")).await.unwrap();
    assert_eq!(ids(&stream.frames(1).await), [(1, 2, 2)]);
    stream.receipt(1, 2, false).await;
    third.await.unwrap();
}

#[tokio::test]
async fn sequence_ids_continue_and_must_increase() {
    let fake = Fake::start().await;
    let client = fake.client();
    let builder = client.producer("t").name("p");
    let accept = async {
        let mut stream = fake.produce().await;
        assert_eq!(stream.open().await.producer_name, "p");
        stream.opened(Some(9)).await;
        stream
    };
    let (producer, mut stream) = futures::join!(builder.open(), accept);
    let producer = producer.unwrap();
    assert_eq!(producer.last_sequence_id(), Some(9));
    let drawn = producer.enqueue(Message::new("a")).await.unwrap();
    assert_eq!(drawn.sequence_id(), 10);
    assert_eq!(ids(&stream.frames(1).await), [(1, 10, 10)]);
    let own = producer
        .enqueue(Message::new("b").sequence_id(100))
        .await
        .unwrap();
    assert_eq!(own.sequence_id(), 100);
    let back = producer.enqueue(Message::new("c").sequence_id(100)).await;
    assert_eq!(back.map(|_| ()).unwrap_err().kind(), ErrorKind::Invalid);
    let next = producer.enqueue(Message::new("d")).await.unwrap();
    assert_eq!(next.sequence_id(), 101);
}

/// A batch is a duplicate as a whole or not at all (I8).
#[tokio::test]
async fn stored_ids_and_new_ones_never_share_a_batch() {
    let fake = Fake::start().await;
    let client = fake.client();
    let builder = client.producer("t").name("p");
    let accept = async {
        let mut stream = fake.produce().await;
        stream.open().await;
        stream.opened(Some(1)).await;
        stream
    };
    let (producer, mut stream) = futures::join!(builder.open(), accept);
    let producer = producer.unwrap();
    for id in 0..4 {
        let message = Message::new("x").sequence_id(id);
        drop(producer.enqueue(message).await.unwrap());
    }
    let (mut seen, mut number) = (Vec::new(), 0);
    while seen.last().is_none_or(|(_, highest)| *highest < 3) {
        for (_, lowest, highest) in ids(&stream.frames(1).await) {
            number += 1;
            stream.receipt(number, lowest, highest < 2).await;
            seen.push((lowest, highest));
        }
    }
    assert!(
        seen.iter()
            .all(|(lowest, highest)| (*lowest < 2) == (*highest < 2)),
        "{seen:?}"
    );
}

#[tokio::test]
async fn what_no_broker_accepts_is_refused_at_once() {
    let fake = Fake::start().await;
    let (producer, _stream) = open(&fake, Batching::default()).await;
    let large = vec![0u8; aquifer_model::limits::MESSAGE_BYTES_MAX + 1];
    let error = producer
        .enqueue(Message::new(large))
        .await
        .map(|_| ())
        .unwrap_err();
    assert!(matches!(error, ClientError::TooLarge { .. }), "{error}");
    let key = vec![0u8; aquifer_model::limits::KEY_BYTES_MAX + 1];
    let error = producer.send(Message::new("x").key(key)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert_eq!(producer.last_sequence_id(), None, "nothing was accepted");
}

#[tokio::test]
async fn payloads_are_compressed_where_that_helps() {
    let fake = Fake::start().await;
    for compression in [Compression::Lz4, Compression::Zstd] {
        let client = fake.client();
        let builder = client.producer("t").compression(compression);
        let accept = async {
            let mut stream = fake.produce().await;
            stream.open().await;
            stream.opened(None).await;
            stream
        };
        let (producer, mut stream) = futures::join!(builder.open(), accept);
        let pending = producer.unwrap();
        let pending = (
            pending
                .enqueue(Message::new(vec![7u8; 10_000]))
                .await
                .unwrap(),
            pending,
        );
        let frames = stream.frames(1).await;
        let batch = &frames[0].1;
        assert_eq!(batch.fields().compression, compression);
        assert!(batch.payload().len() < 1_000);
        assert!(batch.fields().uncompressed_bytes > 10_000);
        stream.receipt(1, 0, false).await;
        pending.0.await.unwrap();
    }
}

#[tokio::test]
async fn close_sends_what_is_left_and_ends_the_stream() {
    let fake = Fake::start().await;
    let batching = Batching::explicit(1 << 20, 1_000, Duration::from_secs(3600));
    let (producer, mut stream) = open(&fake, batching).await;
    let pending = producer.enqueue(Message::new("0")).await.unwrap();
    let serve = async {
        stream.frames(1).await;
        stream.receipt(1, 0, false).await;
        assert!(
            stream.requests.message().await.unwrap().is_none(),
            "half closed"
        );
        drop(stream);
    };
    let (closed, ()) = futures::join!(producer.close(), serve);
    closed.unwrap();
    pending.await.unwrap();
    let error = producer.send(Message::new("1")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
}

/// Without a send timeout the operation timeout bounds the close.
#[tokio::test]
async fn close_does_not_wait_for_ever_without_a_send_timeout() {
    let fake = Fake::start().await;
    let limit = Duration::from_millis(300);
    let client = fake.builder().operation_timeout(limit).build().unwrap();
    let builder = client.producer("t").send_timeout(None);
    let accept = async {
        let mut stream = fake.produce().await;
        stream.open().await;
        stream.opened(None).await;
        stream
    };
    let (producer, silent) = futures::join!(builder.open(), accept);
    let producer = producer.unwrap();
    let pending = producer.enqueue(Message::new("0")).await.unwrap();
    let closed = tokio::time::timeout(Duration::from_secs(10), producer.close());
    let error = closed.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    let error = pending.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(error.outcome(), Outcome::Unknown);
    drop(silent);
}

#[tokio::test]
async fn a_send_timeout_of_zero_is_refused() {
    let fake = Fake::start().await;
    let builder = fake.client().producer("t");
    let error = builder.send_timeout(Some(Duration::ZERO)).open().await;
    let error = error.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("send timeout"), "{error}");
}

#[tokio::test]
async fn dropping_the_producer_settles_what_waits() {
    let fake = Fake::start().await;
    let (producer, mut stream) = open(&fake, Batching::disabled()).await;
    let pending = producer.enqueue(Message::new("0")).await.unwrap();
    stream.frames(1).await;
    drop(producer);
    let error = pending.await.unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::Closed, Outcome::Unknown)
    );
}

#[tokio::test]
async fn nobody_there_is_a_connect_error() {
    let client = aquifer_client::Client::builder()
        .url("127.0.0.1:1")
        .build()
        .unwrap();
    assert_eq!(
        client.connect().await.unwrap_err().kind(),
        ErrorKind::Connect
    );
    let error = client.producer("t").open().await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Connect);
}

#[tokio::test]
async fn a_redirect_leads_to_the_broker_that_serves() {
    let (first, second) = (Fake::start().await, Fake::start().await);
    let client = first.client();
    let serve = async {
        let mut stream = first.produce().await;
        stream.open().await;
        let mut redirect = crate::fake::detail(ErrorCode::Redirect, true);
        redirect.redirect_url = format!("http://{}", second.address);
        let error = aquifer_proto::v1::produce_response::Response::Error(redirect);
        stream.answer(error).await;
        drop(stream);
        let mut stream = second.produce().await;
        stream.open().await;
        stream.opened(None).await;
        stream.frames(1).await;
        stream.receipt(1, 3, false).await;
        stream
    };
    let send = async {
        let producer = client.producer("t").open().await.unwrap();
        producer.send(Message::new("x")).await.unwrap()
    };
    let (receipt, _stream) = futures::join!(send, serve);
    assert_eq!(receipt.index, Some(Index(3)));
}

#[tokio::test]
async fn the_next_address_is_tried_when_one_does_not_answer() {
    let fake = Fake::start().await;
    let urls = format!("127.0.0.1:1, {}", fake.address);
    let client = aquifer_client::Client::builder().url(urls).build().unwrap();
    client.connect().await.unwrap();
}
