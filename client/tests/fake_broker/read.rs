//! Readers: no skips, no repeats, an end.

use std::sync::atomic::Ordering;

use aquifer_client::{ErrorKind, Index, Place, Reader};
use aquifer_proto::v1;
use aquifer_proto::v1::consume_request::Request;
use aquifer_proto::v1::consume_response::Response;

use crate::fake::{Consume, Fake, delivery, detail, subscribed};

async fn open(fake: &Fake, start: Place, end: u64) -> (Reader, Consume) {
    let client = fake.client();
    let accept = async {
        let mut stream = fake.consume().await;
        let request = stream.subscribed(subscribed(1, 0, end)).await;
        assert_eq!(request.subscription, "");
        assert_eq!(request.start, start.to_string());
        stream
    };
    let (reader, stream) = futures::join!(client.reader("t").start(start).open(), accept);
    (reader.unwrap(), stream)
}

fn seek_of(request: Request) -> Option<(u64, String)> {
    match request {
        Request::Seek(seek) => Some((seek.request_id, seek.place)),
        _ => None,
    }
}

async fn index(reader: &Reader) -> u64 {
    reader.next().await.unwrap().index.0
}

/// The broker sends whole entries again; the reader hands out what it had not.
#[tokio::test]
async fn a_reconnect_neither_skips_nor_repeats() {
    let fake = Fake::start().await;
    let (reader, stream) = open(&fake, Place::Earliest, 5).await;
    stream
        .deliver(1, 0, vec![delivery(0, 3), delivery(3, 2)])
        .await;
    assert_eq!((index(&reader).await, index(&reader).await), (0, 1));
    drop(stream);
    let mut stream = fake.consume().await;
    let request = stream.subscribed(subscribed(1, 2, 5)).await;
    assert_eq!(request.start, "2");
    stream
        .deliver(1, 0, vec![delivery(0, 3), delivery(3, 2)])
        .await;
    let rest = [
        index(&reader).await,
        index(&reader).await,
        index(&reader).await,
    ];
    assert_eq!(rest, [2, 3, 4]);
}

#[tokio::test]
async fn next_available_ends_where_the_topic_ends() {
    let fake = Fake::start().await;
    fake.settings.end_index.store(2, Ordering::SeqCst);
    let (reader, stream) = open(&fake, Place::Earliest, 2).await;
    stream.deliver(1, 0, vec![delivery(0, 2)]).await;
    let mut seen = Vec::new();
    while let Some(message) = reader.next_available().await.unwrap() {
        seen.push(message.index.0);
    }
    assert_eq!(seen, [0, 1]);
    assert_eq!(reader.end_index().await.unwrap(), Index(2));
    // The topic grows: there is something to wait for again.
    fake.settings.end_index.store(3, Ordering::SeqCst);
    let later = async { stream.deliver(1, 0, vec![delivery(2, 1)]).await };
    let (message, ()) = futures::join!(reader.next_available(), later);
    assert_eq!(
        message.unwrap().map(|message| message.index),
        Some(Index(2))
    );
}

#[tokio::test]
async fn a_seek_continues_elsewhere() {
    let fake = Fake::start().await;
    let (reader, mut stream) = open(&fake, Place::Latest, 9).await;
    let seek = async {
        let request_id = stream
            .until(|request| match request {
                Request::Seek(seek) => Some(seek.request_id),
                _ => None,
            })
            .await;
        let done = v1::SeekDone {
            request_id,
            seek_epoch: 1,
            index: 4,
            error: None,
        };
        stream.answer(Response::SeekDone(done)).await;
        stream.deliver(1, 1, vec![delivery(3, 3)]).await;
    };
    let (place, ()) = futures::join!(reader.seek(Place::Index(Index(4))), seek);
    assert_eq!(place.unwrap(), Index(4));
    assert_eq!((index(&reader).await, index(&reader).await), (4, 5));
}

/// A seek that the connection lost is sent again.
#[tokio::test]
async fn a_seek_survives_a_reconnect() {
    let fake = Fake::start().await;
    let (reader, mut stream) = open(&fake, Place::Earliest, 9).await;
    let seek = async {
        stream
            .until(|request| matches!(request, Request::Seek(_)).then_some(()))
            .await;
        drop(stream);
        let mut stream = fake.consume().await;
        let request = stream.subscribed(subscribed(1, 0, 9)).await;
        assert_eq!(request.start, "0", "it comes back to where it was");
        let (request_id, place) = stream.until(seek_of).await;
        assert_eq!(place, "7");
        let done = v1::SeekDone {
            request_id,
            seek_epoch: 1,
            index: 7,
            error: None,
        };
        stream.answer(Response::SeekDone(done)).await;
        stream.deliver(1, 1, vec![delivery(6, 3)]).await;
        stream
    };
    let (place, _stream) = futures::join!(reader.seek(Place::Index(Index(7))), seek);
    assert_eq!(place.unwrap(), Index(7));
    assert_eq!((index(&reader).await, index(&reader).await), (7, 8));
}

/// A seek to the end that is sent again leads to where the end was when it was asked for: what was
/// published since is not passed over.
#[tokio::test]
async fn a_seek_to_the_end_that_is_sent_again_passes_over_nothing() {
    let fake = Fake::start().await;
    fake.settings.end_index.store(9, Ordering::SeqCst);
    let (reader, mut stream) = open(&fake, Place::Earliest, 9).await;
    let seek = async {
        let (_, place) = stream.until(seek_of).await;
        assert_eq!(place, "9");
        fake.settings.end_index.store(12, Ordering::SeqCst);
        drop(stream);
        let mut stream = fake.consume().await;
        stream.subscribed(subscribed(1, 0, 12)).await;
        let (request_id, place) = stream.until(seek_of).await;
        assert_eq!(place, "9", "messages 9 to 11 would be passed over");
        let done = v1::SeekDone {
            request_id,
            seek_epoch: 1,
            index: 9,
            error: None,
        };
        stream.answer(Response::SeekDone(done)).await;
        stream.deliver(1, 1, vec![delivery(9, 3)]).await;
        stream
    };
    let (place, _stream) = futures::join!(reader.seek(Place::Latest), seek);
    assert_eq!(place.unwrap(), Index(9));
    assert_eq!(index(&reader).await, 9);
}

/// A caller that may consume and not look places up leaves them to the session.
#[tokio::test]
async fn a_place_that_may_not_be_looked_up_is_found_by_the_session() {
    let fake = Fake::start().await;
    let (reader, mut stream) = open(&fake, Place::Earliest, 9).await;
    let seek = async {
        let (request_id, place) = stream.until(seek_of).await;
        assert_eq!(place, "@1000");
        let done = v1::SeekDone {
            request_id,
            seek_epoch: 1,
            index: 4,
            error: None,
        };
        stream.answer(Response::SeekDone(done)).await;
        stream
    };
    let (place, _stream) = futures::join!(reader.seek(Place::TimeMs(1_000)), seek);
    assert_eq!(place.unwrap(), Index(4));
}

/// A place that the topic does not have is the seek's error and nothing else's, also when the
/// connection is lost before it is answered.
#[tokio::test]
async fn a_refused_seek_leaves_the_reader_where_it_is() {
    let fake = Fake::start().await;
    let (reader, mut stream) = open(&fake, Place::Earliest, 9).await;
    stream.deliver(1, 0, vec![delivery(0, 2)]).await;
    assert_eq!(index(&reader).await, 0);
    let seek = async {
        stream.until(seek_of).await;
        drop(stream);
        let mut stream = fake.consume().await;
        let request = stream.subscribed(subscribed(1, 1, 9)).await;
        assert_eq!(request.start, "1");
        let (request_id, place) = stream.until(seek_of).await;
        assert_eq!(place, "7:3:0");
        let refused = v1::SeekDone {
            request_id,
            error: Some(detail(v1::ErrorCode::InvalidArgument, false)),
            ..v1::SeekDone::default()
        };
        stream.answer(Response::SeekDone(refused)).await;
        stream.deliver(1, 0, vec![delivery(0, 2)]).await;
        stream
    };
    let (sought, _stream) = futures::join!(reader.seek("7:3".parse().unwrap()), seek);
    assert_eq!(sought.unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(index(&reader).await, 1);
}
