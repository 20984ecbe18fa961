//! The native protocol as a stranger sees it: a raw tonic client against a broker in memory.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

#[path = "wire/raw.rs"]
mod raw;

use std::sync::Arc;
use std::time::Duration;

use aquifer_model::id::Index;
use aquifer_model::limits::{ACK_RANGES_MAX, BATCH_BYTES_MAX, FRAME_BYTES_MAX};
use aquifer_model::listener::Listeners;
use aquifer_proto::v1;
use aquifer_proto::v1::consume_request::Request as Consume;
use aquifer_proto::v1::consume_response::Response as Consumed;
use aquifer_proto::v1::produce_request::Request as Produce;
use aquifer_protocol_api::conformance::pull::{PullClient, check_pull_handler};
use aquifer_protocol_api::conformance::{ConformanceClient, FakeBroker, check_all};
use aquifer_protocol_api::error::ErrorKind;
use aquifer_protocol_api::handler::ProtocolHandler;
use aquifer_protocol_api::pull::ReadLimits;
use aquifer_protocol_grpc::GrpcHandler;
use aquifer_protocol_grpc::config::GrpcConfig;
use aquifer_runtime::clock::{SystemClock, sleep, timeout};
use aquifer_runtime::net::ListenAddress;
use aquifer_runtime::task::TaskGroup;
use aquifer_runtime::telemetry::Telemetry;
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use raw::RawClient;

/// Long enough that only a hang exceeds it.
const HANG: Duration = Duration::from_secs(30);

struct Served {
    broker: FakeBroker,
    client: RawClient,
    address: std::net::SocketAddr,
    tasks: TaskGroup,
    telemetry: Telemetry,
}

async fn serve(change: impl FnOnce(&mut GrpcConfig)) -> Served {
    let mut config = GrpcConfig {
        listen: ListenAddress::loopback_any_port(),
        ..GrpcConfig::default()
    };
    change(&mut config);
    let telemetry = Telemetry::for_tests();
    let meter = telemetry.meter("grpc");
    let handler = GrpcHandler::new(config, SystemClock::shared(), &meter).unwrap();
    let broker = FakeBroker::default();
    let tasks = TaskGroup::new("test");
    let address = handler
        .serve(Arc::new(broker.clone()), tasks.clone())
        .await
        .unwrap();
    let url = format!("http://{address}");
    assert_eq!(handler.advertised(), Listeners::only_default(&url));
    let client = RawClient::connect(address).await;
    Served {
        broker,
        client,
        address,
        tasks,
        telemetry,
    }
}

#[tokio::test]
async fn grpc_passes_the_conformance_checks() {
    let served = serve(|_| {}).await;
    timeout(HANG, check_all(&served.broker, &served.client))
        .await
        .unwrap();
    let metrics = served.telemetry.render_metrics();
    assert!(metrics.contains("aquifer_grpc_frames_total"), "{metrics}");
    assert!(metrics.contains("ERROR_CODE_INVALID_ARGUMENT"), "{metrics}");
    assert_eq!(served.tasks.failed(), None, "no input may panic");
}

#[tokio::test]
async fn requests_that_stand_alone_pass_the_conformance_checks() {
    let served = serve(|_| {}).await;
    let checks = check_pull_handler(&served.broker, &served.client);
    timeout(HANG, checks).await.unwrap();
    // As large as a batch on a stream may be, and no larger.
    let large = vec![7; BATCH_BYTES_MAX];
    let stored = served.client.append("large", large.into()).await.unwrap();
    assert_eq!(stored.stored.unwrap().base_index.0, 0);
    let larger = vec![7; FRAME_BYTES_MAX + 1];
    let refusal = served.client.append("large", larger.into()).await;
    assert_eq!(refusal.unwrap_err().kind, ErrorKind::TooLarge);
    assert_eq!(served.tasks.failed(), None, "no input may panic");
}

#[tokio::test]
async fn a_handshake_agrees_on_version_and_features_or_says_what_is_spoken() {
    let served = serve(|_| {}).await;
    let shake = |version_min, version_max| v1::HandshakeRequest {
        version_min,
        version_max,
        features: vec!["shared".to_owned(), "telepathy".to_owned()],
        client: "test\u{7}".to_owned(),
    };
    let agreed = served.client.handshake(shake(1, 9)).await.unwrap();
    assert_eq!((agreed.version, agreed.cluster.as_str()), (1, "fake"));
    assert_eq!(agreed.features, ["shared"]);
    for (low, high) in [(2, 9), (0, 0), (9, 1)] {
        let refusal = served.client.handshake(shake(low, high)).await.unwrap_err();
        assert_eq!(
            refusal.kind,
            ErrorKind::UnsupportedVersion,
            "{low} to {high}"
        );
    }
}

#[tokio::test]
async fn the_first_message_must_open_the_stream() {
    let served = serve(|config| config.handshake_timeout_ms = 200).await;
    let client = &served.client;
    let publish = Produce::Publish(v1::PublishFrames::default());
    let credit = Consume::Credit(v1::Credit::default());
    assert_eq!(
        client.produce_error(vec![Some(publish)], false).await,
        ErrorKind::InvalidArgument
    );
    assert_eq!(
        client.produce_error(vec![None], false).await,
        ErrorKind::InvalidArgument
    );
    assert_eq!(
        client.consume_error(vec![Some(credit)], false).await,
        ErrorKind::InvalidArgument
    );
    assert_eq!(
        client.consume_error(vec![None], false).await,
        ErrorKind::InvalidArgument
    );
    // The peer closes its side without a word, or keeps it open in silence.
    assert_eq!(
        client.produce_error(vec![], false).await,
        ErrorKind::InvalidArgument
    );
    assert_eq!(client.produce_error(vec![], true).await, ErrorKind::Timeout);
    assert_eq!(client.consume_error(vec![], true).await, ErrorKind::Timeout);
    assert_eq!(served.broker.calls(), 0);
}

#[tokio::test]
async fn wrong_requests_of_a_producer_end_its_stream_with_a_typed_error() {
    let served = serve(|_| {}).await;
    let client = &served.client;
    let open = || Some(Produce::Open(raw::open("t")));
    let opens = |change: fn(&mut v1::OpenProducer)| {
        let mut open = raw::open("t");
        change(&mut open);
        vec![Some(Produce::Open(open))]
    };
    for (requests, kind) in [
        (opens(|o| o.version = 2), ErrorKind::UnsupportedVersion),
        (
            opens(|o| o.instance = Bytes::from_static(b"short")),
            ErrorKind::InvalidArgument,
        ),
        (
            opens(|o| o.topic_incarnation = Some(Bytes::new())),
            ErrorKind::InvalidArgument,
        ),
        (
            opens(|o| o.producer_name = "\n".to_owned()),
            ErrorKind::InvalidArgument,
        ),
        (vec![open(), open()], ErrorKind::InvalidArgument),
        (vec![open(), None], ErrorKind::InvalidArgument),
        (
            vec![
                open(),
                Some(raw::publish(vec![vec![0; FRAME_BYTES_MAX + 1].into()])),
            ],
            ErrorKind::TooLarge,
        ),
    ] {
        assert_eq!(client.produce_error(requests, true).await, kind);
    }
    served.broker.wait_until_no_sessions().await;
    assert_eq!(served.tasks.failed(), None);
}

#[tokio::test]
async fn wrong_requests_of_a_consumer_end_its_stream_with_a_typed_error() {
    let served = serve(|_| {}).await;
    let client = &served.client;
    let subscribe = || Some(Consume::Subscribe(raw::subscribe("t", "s")));
    let subscribes = |change: fn(&mut v1::Subscribe)| {
        let mut subscribe = raw::subscribe("t", "s");
        change(&mut subscribe);
        vec![Some(Consume::Subscribe(subscribe))]
    };
    for (requests, kind) in [
        (subscribes(|s| s.version = 0), ErrorKind::UnsupportedVersion),
        (subscribes(|s| s.r#type = 0), ErrorKind::InvalidArgument),
        (subscribes(|s| s.r#type = -7), ErrorKind::InvalidArgument),
        (
            subscribes(|s| s.start = "x".repeat(1 << 20)),
            ErrorKind::InvalidArgument,
        ),
        (vec![subscribe(), subscribe()], ErrorKind::InvalidArgument),
    ] {
        assert_eq!(client.consume_error(requests, true).await, kind);
    }
    served.broker.wait_until_no_sessions().await;
    assert_eq!(served.tasks.failed(), None);
}

/// A request that is wrong in itself is refused with its id, and the session goes on.
#[tokio::test]
async fn a_refused_request_does_not_end_its_session() {
    let served = serve(|_| {}).await;
    let backwards = v1::Acknowledge {
        request_id: 5,
        individual: vec![v1::IndexRange { first: 2, last: 1 }],
        ..v1::Acknowledge::default()
    };
    let many = v1::NegativeAcknowledge {
        ranges: vec![v1::IndexRange::default(); ACK_RANGES_MAX + 1],
        ..v1::NegativeAcknowledge::default()
    };
    let nowhere = v1::Seek {
        request_id: 1,
        place: "nowhere".to_owned(),
    };
    let good = v1::Acknowledge {
        request_id: 6,
        ..v1::Acknowledge::default()
    };
    let requests = vec![
        Consume::Subscribe(raw::subscribe("t", "s")),
        Consume::Acknowledge(backwards),
        Consume::NegativeAcknowledge(many),
        Consume::Seek(nowhere),
        Consume::Acknowledge(good),
    ];
    let answers = served.client.consume_answers(requests, 5);
    let answers = timeout(HANG, answers).await.unwrap();
    let mut told = Vec::new();
    for answer in answers {
        told.push(match answer {
            Consumed::Subscribed(_) => "subscribed".to_owned(),
            Consumed::Confirmed(v1::Confirmed { request_id, error }) => {
                format!("ack {request_id} {:?}", error.map(|error| error.code()))
            }
            Consumed::SeekDone(v1::SeekDone {
                request_id, error, ..
            }) => format!("seek {request_id} {:?}", error.map(|error| error.code())),
            other => panic!("{other:?}"),
        });
    }
    // What the door refuses and what the broker answers take two ways.
    told.sort();
    let expected = [
        "ack 0 Some(TooLarge)",
        "ack 5 Some(InvalidArgument)",
        "ack 6 None",
        "seek 1 Some(InvalidArgument)",
        "subscribed",
    ];
    assert_eq!(told, expected);
}

/// Also what fails before any handler of ours runs has its detail.
#[tokio::test]
async fn unary_requests_that_cannot_be_read_are_typed_too() {
    let served = serve(|_| {}).await;
    let large = "x".repeat(FRAME_BYTES_MAX + 1);
    let refusal = served.client.create_topic(&large, 0).await.unwrap_err();
    assert_eq!(refusal.kind, ErrorKind::TooLarge);
    let bytes = served.client.create_topic_with(b"\x0a\xff").await;
    assert_eq!(bytes.unwrap_err().kind, ErrorKind::InvalidArgument);
    let unknown = served.client.call_unknown_method().await;
    assert_eq!(unknown.unwrap_err().kind, ErrorKind::Unimplemented);
}

/// A shutdown finishes what is in flight: the client learns the outcome of every batch it sent.
#[tokio::test]
async fn a_shutdown_tells_the_outcome_of_what_was_sent() {
    let served = serve(|_| {}).await;
    let (broker, client) = (served.broker.clone(), served.client.clone());
    let publishing = served.tasks.spawn("client", async move {
        client
            .publish("held", vec![Bytes::from_static(b"in flight")])
            .await
    });
    timeout(HANG, broker.wait_until_stored("held", 1))
        .await
        .unwrap();
    served.tasks.shutdown();
    broker.release();
    let receipts = timeout(HANG, publishing).await.unwrap().unwrap().unwrap();
    assert_eq!(receipts.len(), 1);
    assert_eq!(
        served.tasks.drain(HANG).await,
        0,
        "nothing had to be aborted"
    );
}

/// Reads that wait for messages have places of their own, and end when the server does.
#[tokio::test]
async fn a_read_that_waits_takes_no_place_of_a_call_and_ends_with_the_server() {
    let served = serve(|config| config.calls_max = 1).await;
    let before = served.broker.calls();
    let waiting = {
        let client = served.client.clone();
        TaskGroup::new("client").spawn("waiting", async move {
            let limits = ReadLimits {
                bytes_max: 1,
                batches_max: 1,
                bytes_min: 1,
            };
            let wait = Duration::from_secs(3600);
            PullClient::read(&client, "t", Index(0), limits, wait).await
        })
    };
    let begun = async {
        while served.broker.calls() == before {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(HANG, begun).await.unwrap();
    served.client.bounds("t").await.unwrap();
    assert_eq!(
        served.tasks.drain(HANG).await,
        0,
        "nothing had to be aborted"
    );
    let refusal = waiting.await.unwrap().unwrap_err();
    assert_eq!(refusal.kind, ErrorKind::Unavailable, "{refusal:?}");
}

/// A peer that is frozen with a stream open cannot hold up a shutdown.
#[tokio::test]
async fn a_frozen_peer_does_not_delay_a_shutdown() {
    let served = serve(|_| {}).await;
    let mut frozen = tokio::net::TcpStream::connect(served.address)
        .await
        .unwrap();
    // An HTTP/2 preface and settings, and not a word more: no ping is ever answered.
    frozen
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    let mut settings = [0; 9];
    frozen.read_exact(&mut settings).await.unwrap();
    let _held = served.client.hold_open("t").await;
    assert_eq!(
        served.tasks.drain(HANG).await,
        0,
        "nothing had to be aborted"
    );
}

/// A peer that takes no receipts kept its stream from seeing that the server stops.
#[tokio::test]
async fn a_peer_that_takes_no_receipts_does_not_delay_a_shutdown() {
    const BATCHES: u64 = 200;
    let served = serve(|config| config.drain_timeout_ms = 200).await;
    let deaf = RawClient::connect_with_window(served.address, 100).await;
    let _held = deaf.publish_blindly("t", BATCHES).await;
    let some = served.broker.wait_until_stored("t", 10);
    timeout(HANG, some).await.unwrap();
    assert_eq!(
        served.tasks.drain(HANG).await,
        0,
        "nothing had to be aborted"
    );
}

/// H4: what is read of requests is bounded, and what never ends is given up.
#[tokio::test]
async fn requests_that_never_end_hold_a_bounded_amount_for_a_bounded_time() {
    let served = serve(|config| config.message_timeout_ms = 500).await;
    let used = || {
        let metrics = served.telemetry.render_metrics();
        let line = metrics
            .lines()
            .find(|line| line.starts_with("aquifer_grpc_inbound_bytes"));
        let value = line.and_then(|line| line.rsplit(' ').next());
        value.map_or(0, |value| value.parse::<usize>().unwrap())
    };
    let most = 2 * GrpcConfig::default().inbound_bytes_max;
    let begin = || served.client.begin_and_stay(FRAME_BYTES_MAX - 10, 1 << 20);
    let all = async {
        let begun = futures::future::join_all((0..100).map(|_| begin()));
        let mut begun = std::pin::pin!(begun);
        let mut seen = 0;
        loop {
            tokio::select! {
                refused = &mut begun => return (refused, seen),
                () = aquifer_runtime::clock::sleep(Duration::from_millis(5)) => {
                    assert!(used() <= most, "{} bytes are held", used());
                    seen = seen.max(used());
                }
            }
        }
    };
    let (refused, seen) = timeout(HANG, all).await.unwrap();
    assert!(seen > 0, "something was held");
    let told = |kind: &ErrorKind| matches!(kind, ErrorKind::Timeout | ErrorKind::Overloaded);
    assert!(refused.iter().all(told), "{refused:?}");
    assert_eq!(used(), 0);
    // The connection serves on.
    let published = served.client.publish("t", vec![Bytes::from_static(b"x")]);
    assert_eq!(timeout(HANG, published).await.unwrap().unwrap().len(), 1);
}

#[tokio::test]
async fn a_silent_connection_is_closed() {
    let served = serve(|config| config.handshake_timeout_ms = 100).await;
    let mut mute = tokio::net::TcpStream::connect(served.address)
        .await
        .unwrap();
    let mut all = Vec::new();
    let closed = timeout(HANG, mute.read_to_end(&mut all)).await;
    assert!(
        closed.is_ok(),
        "the server closes a connection that says nothing"
    );
}

#[tokio::test]
async fn connections_and_streams_beyond_their_bounds_are_refused() {
    let served = serve(|config| {
        config.connections_max = 1;
        config.streams_max = 1;
    })
    .await;
    let mut second = tokio::net::TcpStream::connect(served.address)
        .await
        .unwrap();
    let mut all = Vec::new();
    assert_eq!(
        timeout(HANG, second.read_to_end(&mut all))
            .await
            .unwrap()
            .ok(),
        Some(0)
    );
    let held = served.client.hold_open("t").await;
    let refusal = served.client.publish("t", Vec::new()).await.unwrap_err();
    assert_eq!(refusal.kind, ErrorKind::Overloaded);
    drop(held);
    served.broker.wait_until_no_sessions().await;
}
