//! Bad input on the wire: each gets a typed error, and the server goes on serving others.

use anyhow::{Result, bail, ensure};
use aquifer_harness::server::{Server, ServerOptions};
use aquifer_harness::wire::{
    self, RawConsumer, RawProducer, Reply, batch, consume_error, open_request, subscribe,
};
use aquifer_model::limits::{BATCH_BYTES_MAX, FRAME_BYTES_MAX, MESSAGE_BYTES_MAX};
use aquifer_proto::PROTOCOL_VERSION;
use aquifer_proto::v1;
use aquifer_proto::v1::{
    ErrorCode, ErrorDetail, Outcome, Subscribe, consume_request, consume_response,
};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use aquifer_client::{Client, ErrorKind, Message};

async fn server() -> Result<(tempfile::TempDir, Server)> {
    let folder = tempfile::tempdir()?;
    let server = Server::start(&folder.path().join("data"), ServerOptions::default()).await?;
    Ok((folder, server))
}

/// The proof that the server survived: a newcomer's message goes through.
async fn still_serves(server: &mut Server) -> Result<()> {
    let client = server.client()?;
    let producer = client.producer("alive").open().await?;
    producer.send(Message::new("yes")).await?;
    server.stop()?;
    server.check_logs()
}

fn error_of(reply: Reply) -> Result<ErrorDetail> {
    match reply {
        Reply::Error(error) => Ok(error),
        other => bail!("an error was due, got {other:?}"),
    }
}

fn ensure_code(error: &ErrorDetail, code: ErrorCode) -> Result<()> {
    ensure!(error.code() == code, "{code:?} was due, got {error:?}");
    ensure!(error.outcome() == Outcome::NotApplied, "{error:?}");
    ensure!(!error.message.is_empty(), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn damaged_and_malformed_batches_are_refused_and_nothing_of_them_is_stored() -> Result<()> {
    let (_folder, mut server) = server().await?;
    let url = server.url();
    let good = batch("p", 0, b"payload")?;
    let mut flipped = good.to_vec();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    let cases: [(&str, Bytes, ErrorCode); 4] = [
        ("flipped bit", flipped.into(), ErrorCode::Checksum),
        ("empty", Bytes::new(), ErrorCode::InvalidArgument),
        (
            "garbage",
            Bytes::from_static(&[0xff; 100]),
            ErrorCode::InvalidArgument,
        ),
        (
            "cut",
            good.slice(..good.len() - 3),
            ErrorCode::InvalidArgument,
        ),
    ];
    for (name, bytes, code) in cases {
        let mut producer = RawProducer::open(&url, "damaged", "p").await?;
        producer.publish(vec![(1, bytes)]).await?;
        let error = error_of(producer.reply().await?)?;
        ensure_code(&error, code).map_err(|error| error.context(name))?;
    }
    let stats = server.client()?.admin().topic_stats("damaged").await?;
    ensure!(stats.end_index.0 == 0, "nothing may be stored: {stats:?}");
    still_serves(&mut server).await
}

/// H7: frames are numbered without gaps, and the first error ends the stream.
#[tokio::test]
async fn frames_out_of_order_end_the_stream() -> Result<()> {
    let (_folder, mut server) = server().await?;
    let mut producer = RawProducer::open(&server.url(), "frames", "p").await?;
    producer
        .publish(vec![(1, batch("p", 0, b"a")?), (3, batch("p", 1, b"b")?)])
        .await?;
    let mut stored = 0;
    let error = loop {
        match producer.reply().await? {
            Reply::Receipts(receipts) => stored += receipts.len(),
            other => break error_of(other)?,
        }
    };
    ensure!(stored == 1, "{stored} receipts before the gap");
    ensure_code(&error, ErrorCode::InvalidArgument)?;
    ensure!(
        matches!(producer.reply().await?, Reply::Ended(None)),
        "the error is the last message"
    );
    still_serves(&mut server).await
}

#[tokio::test]
async fn a_stream_must_begin_with_open_and_a_known_version() -> Result<()> {
    let (_folder, mut server) = server().await?;
    let url = server.url();
    let mut producer = RawProducer::stream(&url).await?;
    producer.publish(vec![(1, batch("p", 0, b"a")?)]).await?;
    ensure_code(
        &error_of(producer.reply().await?)?,
        ErrorCode::InvalidArgument,
    )?;

    let mut producer = RawProducer::stream(&url).await?;
    let mut open = open_request("t", "p");
    if let Some(aquifer_proto::v1::produce_request::Request::Open(open)) = &mut open.request {
        open.version = 99;
    }
    ensure_code(
        &error_of(producer.ask(open).await?)?,
        ErrorCode::UnsupportedVersion,
    )?;

    // A second `open` on an open stream.
    let mut producer = RawProducer::open(&url, "t", "p").await?;
    let reply = producer.ask(open_request("t", "p")).await?;
    ensure_code(&error_of(reply)?, ErrorCode::InvalidArgument)?;
    still_serves(&mut server).await
}

#[tokio::test]
async fn oversized_messages_batches_and_frames_are_refused() -> Result<()> {
    let (_folder, mut server) = server().await?;
    let client = server.client()?;
    let producer = client.producer("large").open().await?;
    let error = producer
        .send(Message::new(vec![0; MESSAGE_BYTES_MAX + 1]))
        .await
        .unwrap_err();
    ensure!(
        error.kind() == ErrorKind::Invalid && !error.is_retryable(),
        "{error:?}"
    );
    producer
        .send(Message::new(vec![1; MESSAGE_BYTES_MAX - 1024]))
        .await?;

    let mut raw = RawProducer::open(&server.url(), "large", "raw").await?;
    raw.publish(vec![(1, vec![0; BATCH_BYTES_MAX + 1].into())])
        .await?;
    let code = error_of(raw.reply().await?)?.code();
    ensure!(
        matches!(code, ErrorCode::TooLarge | ErrorCode::InvalidArgument),
        "{code:?}"
    );

    let mut raw = RawProducer::open(&server.url(), "large", "raw2").await?;
    raw.publish(vec![(1, vec![0; FRAME_BYTES_MAX * 2].into())])
        .await?;
    match raw.reply().await? {
        Reply::Error(error) => ensure_code(&error, ErrorCode::TooLarge)?,
        Reply::Ended(Some(status)) => ensure!(status.code() != tonic::Code::Unknown, "{status:?}"),
        other => bail!("{other:?}"),
    }
    still_serves(&mut server).await
}

#[tokio::test]
async fn bad_names_are_refused_everywhere() -> Result<()> {
    let (_folder, mut server) = server().await?;
    let url = server.url();
    let long = "x".repeat(64 * 1024);
    let bad = [
        "",
        "../",
        "a/../b",
        "nul\0",
        "line\n",
        "\u{1b}[31m",
        "a/b/c/d",
        "é",
        &long,
    ];
    for name in bad {
        let mut producer = RawProducer::stream(&url).await?;
        let error = error_of(producer.ask(open_request(name, "p")).await?)?;
        ensure_code(&error, ErrorCode::InvalidArgument)?;
        ensure!(
            error.message.len() < 1_000,
            "the error repeats the whole name"
        );
        let request = Subscribe {
            version: PROTOCOL_VERSION,
            topic: name.to_owned(),
            start: "earliest".to_owned(),
            ..Subscribe::default()
        };
        let reply = subscribe(&url, request).await??;
        let error = consume_error(&reply).expect("a bad name is an error");
        ensure_code(error, ErrorCode::InvalidArgument)?;
    }
    for name in ["nul\0", "a b", &long] {
        let mut producer = RawProducer::stream(&url).await?;
        let error = error_of(producer.ask(open_request("t", name)).await?)?;
        ensure_code(&error, ErrorCode::InvalidArgument)?;
    }
    still_serves(&mut server).await
}

#[tokio::test]
async fn what_does_not_exist_is_said_to_be_not_found() -> Result<()> {
    let (_folder, mut server) = server().await?;
    let client = server.client()?;
    let admin = client.admin();
    let kinds = [
        admin.topic_stats("nowhere").await.map(drop).unwrap_err(),
        admin
            .delete_topic("nowhere", false)
            .await
            .map(drop)
            .unwrap_err(),
        client
            .producer("no/where/t")
            .open()
            .await
            .map(drop)
            .unwrap_err(),
        client
            .consumer("none/such/t", "s")
            .open()
            .await
            .map(drop)
            .unwrap_err(),
    ];
    for error in kinds {
        ensure!(
            error.kind() == ErrorKind::NotFound && !error.is_retryable(),
            "{error:?}"
        );
    }
    admin.create_topic("here", 0).await?;
    let place = "earliest".parse()?;
    let kinds = [
        admin
            .delete_subscription("here", "unknown", false)
            .await
            .map(drop)
            .unwrap_err(),
        admin
            .seek_subscription("here", "unknown", place)
            .await
            .map(drop)
            .unwrap_err(),
    ];
    for error in kinds {
        ensure!(
            error.kind() == ErrorKind::NotFound && !error.is_retryable(),
            "{error:?}"
        );
    }
    still_serves(&mut server).await
}

/// Bytes that are not even HTTP/2, on every port.
#[tokio::test]
async fn garbage_on_the_sockets_harms_nobody() -> Result<()> {
    let (_folder, mut server) = server().await?;
    let grpc = server.url().trim_start_matches("http://").to_owned();
    for address in [grpc, server.bookie(), server.http()] {
        for garbage in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[0xff; 4096],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff",
        ] {
            let mut socket = TcpStream::connect(&address).await?;
            // The server may close at once: both writing and reading may then fail.
            let _ = socket.write_all(garbage).await;
            let _ = socket.shutdown().await;
            let mut answer = Vec::new();
            let _ = aquifer_harness::wait::within("the server to close", async {
                Ok(socket.read_to_end(&mut answer).await)
            })
            .await?;
        }
    }
    let _: Client = server.client()?;
    let _ = wire::connect(&server.url()).await?;
    still_serves(&mut server).await
}

/// A client that does not wait for confirmations: fifty acknowledgements that ask for none, and its
/// side closed at once. The last one asks, and is told.
#[tokio::test]
async fn acknowledgements_right_before_a_half_close_count() -> Result<()> {
    const MESSAGES: u64 = 50;
    let (_folder, mut server) = server().await?;
    let client = server.client()?;
    let producer = client.producer("t").open().await?;
    for number in 0..MESSAGES {
        producer.send(Message::new(number.to_string())).await?;
    }
    for round in 0..10 {
        let request = Subscribe {
            version: PROTOCOL_VERSION,
            topic: "t".to_owned(),
            subscription: format!("s{round}"),
            r#type: v1::SubscriptionType::Exclusive.into(),
            start: "earliest".to_owned(),
            ..Subscribe::default()
        };
        let mut raw = RawConsumer::open(&server.url(), request).await?;
        raw.grant(MESSAGES).await?;
        let (mut received, mut owner_epoch) = (0, 0);
        while received < MESSAGES {
            if let Some(consume_response::Response::Deliveries(some)) = raw.next().await? {
                owner_epoch = some.owner_epoch;
                received += some
                    .deliveries
                    .iter()
                    .map(|d| u64::from(d.message_count))
                    .sum::<u64>();
            }
        }
        for index in 0..MESSAGES {
            let acknowledge = v1::Acknowledge {
                request_id: if index + 1 == MESSAGES { 7 } else { 0 },
                owner_epoch,
                individual: vec![v1::IndexRange {
                    first: index,
                    last: index,
                }],
                ..v1::Acknowledge::default()
            };
            raw.ask(consume_request::Request::Acknowledge(acknowledge))
                .await?;
        }
        let rest = raw.close().await?;
        let confirmed = |response: &consume_response::Response| match response {
            consume_response::Response::Confirmed(confirmed) => Some(confirmed.request_id),
            _ => None,
        };
        let confirmed: Vec<u64> = rest.iter().filter_map(confirmed).collect();
        ensure!(confirmed == [7], "round {round}: {confirmed:?}");
    }
    for subscription in client.admin().topic_stats("t").await?.subscriptions {
        ensure!(subscription.backlog_messages == 0, "{subscription:?}");
    }
    server.stop()?;
    server.check_logs()
}
