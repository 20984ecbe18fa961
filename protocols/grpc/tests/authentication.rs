//! The caller is found out before anything of a request is read, for every method; and sessions
//! end when their broker says so.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

use std::sync::Arc;
use std::time::Duration;

use aquifer_proto::v1::consume_request::Request as Consume;
use aquifer_proto::v1::consume_response::Response as Consumed;
use aquifer_proto::v1::produce_request::Request as Produce;
use aquifer_proto::v1::produce_response::Response as Produced;
use aquifer_proto::{METHODS, v1};
use aquifer_protocol_api::conformance::FakeBroker;
use aquifer_protocol_api::error::{ApiError, ErrorKind};
use aquifer_protocol_api::handler::ProtocolHandler;
use aquifer_protocol_grpc::GrpcHandler;
use aquifer_protocol_grpc::config::GrpcConfig;
use aquifer_runtime::clock::{SystemClock, timeout};
use aquifer_runtime::net::ListenAddress;
use aquifer_runtime::task::TaskGroup;
use aquifer_runtime::telemetry::Telemetry;
use bytes::{Buf, BufMut, Bytes};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// Long enough that only a hang exceeds it.
const HANG: Duration = Duration::from_secs(30);
const TOKEN: &str = "aqf_token";

/// Bytes as they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

async fn serve(broker: &FakeBroker, tasks: &TaskGroup) -> Channel {
    let config = GrpcConfig {
        listen: ListenAddress::loopback_any_port(),
        ..GrpcConfig::default()
    };
    let meter = Telemetry::for_tests().meter("grpc");
    let handler = GrpcHandler::new(config, SystemClock::shared(), &meter).unwrap();
    let served = handler.serve(Arc::new(broker.clone()), tasks.clone()).await;
    let url = format!("http://{}", served.unwrap());
    Endpoint::from_shared(url).unwrap().connect().await.unwrap()
}

fn with<T>(message: T, headers: &[&str]) -> Request<T> {
    let mut request = Request::new(message);
    for header in headers {
        let value: MetadataValue<_> = header.parse().unwrap();
        request.metadata_mut().append("authorization", value);
    }
    request
}

/// What a method answers to bytes that are not a message.
async fn call(channel: &Channel, method: &str, headers: &[&str]) -> Code {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let path: PathAndQuery = format!("/aquifer.v1.{method}").parse().unwrap();
    // No message: a wire type that does not exist.
    let message = Bytes::from_static(&[0x0f]);
    let answer = match method {
        "Broker/Produce" | "Broker/Consume" => {
            let messages = tokio_stream::iter([message]);
            let streaming = client.streaming(with(messages, headers), path, Raw);
            streaming.await.map(|_| ())
        }
        _ => client
            .unary(with(message, headers), path, Raw)
            .await
            .map(|_| ()),
    };
    answer.map_or_else(|status| status.code(), |()| Code::Ok)
}

#[tokio::test]
async fn no_method_reads_a_request_of_a_stranger() {
    let (broker, tasks) = (FakeBroker::asking_for(TOKEN), TaskGroup::new("test"));
    let channel = serve(&broker, &tasks).await;
    let good = format!("Bearer {TOKEN}");
    let methods = METHODS
        .iter()
        .filter(|method| !method.starts_with("Bookie/"));
    let mut count = 0;
    for method in methods {
        count += 1;
        for headers in [
            &[][..],
            &["Bearer other"],
            &["Basic YTpi"],
            &[&*good, &*good],
            &[&*good, "Bearer other"],
        ] {
            let code = timeout(HANG, call(&channel, method, headers))
                .await
                .unwrap();
            assert_eq!(code, Code::Unauthenticated, "{method} with {headers:?}");
        }
        let code = timeout(HANG, call(&channel, method, &[&good]))
            .await
            .unwrap();
        assert_ne!(code, Code::Unauthenticated, "{method} with its token");
        assert_ne!(code, Code::Unimplemented, "{method} is served");
    }
    assert!(count > 30, "the list is there");
    assert_eq!(broker.calls(), 0, "the broker sees none of them");
    assert_eq!(tasks.failed(), None, "no input may panic");
}

#[tokio::test]
async fn the_caller_is_told_who_it_is() {
    let (broker, tasks) = (FakeBroker::asking_for(TOKEN), TaskGroup::new("test"));
    let channel = serve(&broker, &tasks).await;
    let mut client = v1::security_client::SecurityClient::new(channel);
    let good = format!("Bearer {TOKEN}");
    let request = with(v1::WhoAmIRequest {}, &[&good]);
    let said = client.who_am_i(request).await.unwrap().into_inner();
    assert_eq!(said.principal, "token:fake");
    let (open, tasks) = (FakeBroker::default(), TaskGroup::new("test"));
    let mut client = v1::security_client::SecurityClient::new(serve(&open, &tasks).await);
    let said = client.who_am_i(with(v1::WhoAmIRequest {}, &[&good])).await;
    assert_eq!(
        said.unwrap().into_inner().principal,
        "",
        "nothing is asked for"
    );
}

#[tokio::test]
async fn sessions_end_when_their_broker_says_so() {
    let (broker, tasks) = (FakeBroker::default(), TaskGroup::new("test"));
    let channel = serve(&broker, &tasks).await;
    let mut client = v1::broker_client::BrokerClient::new(channel);
    let (produce, requests) = mpsc::channel(8);
    let open = Produce::Open(v1::OpenProducer {
        version: 1,
        topic: "t".to_owned(),
        instance: vec![1; 16].into(),
        ..v1::OpenProducer::default()
    });
    let message = |request| v1::ProduceRequest {
        request: Some(request),
    };
    produce.send(message(open)).await.unwrap();
    let answers = client.produce(ReceiverStream::new(requests)).await;
    let mut produced = answers.unwrap().into_inner();
    let opened = produced.message().await.unwrap().unwrap().response;
    assert!(matches!(opened, Some(Produced::Opened(_))), "{opened:?}");
    let publish = Produce::Publish(v1::PublishFrames {
        frames: vec![v1::PublishFrame {
            number: 1,
            format: 1,
            body: Bytes::from_static(b"x"),
        }],
    });
    produce.send(message(publish)).await.unwrap();
    let (consume, requests) = mpsc::channel(8);
    let subscribe = Consume::Subscribe(v1::Subscribe {
        version: 1,
        topic: "t".to_owned(),
        start: "earliest".to_owned(),
        ..v1::Subscribe::default()
    });
    let message = v1::ConsumeRequest {
        request: Some(subscribe),
    };
    consume.send(message).await.unwrap();
    let answers = client.consume(ReceiverStream::new(requests)).await;
    let mut consumed = answers.unwrap().into_inner();
    let opened = consumed.message().await.unwrap().unwrap().response;
    assert!(
        matches!(opened, Some(Consumed::Subscribed(_))),
        "{opened:?}"
    );
    broker.wait_until_stored("t", 1).await;
    broker.end_sessions(&ApiError::new(ErrorKind::PermissionDenied, "it is over"));
    let last = async {
        let mut receipts = 0;
        let produced = loop {
            match produced.message().await.unwrap().unwrap().response {
                Some(Produced::Receipts(more)) => receipts += more.receipts.len(),
                Some(Produced::Error(error)) => break error,
                other => assert!(other.is_none(), "{other:?}"),
            }
        };
        assert_eq!(receipts, 1, "what was accepted is answered");
        let consumed = loop {
            if let Some(Consumed::Error(error)) =
                consumed.message().await.unwrap().unwrap().response
            {
                break error;
            }
        };
        [produced, consumed]
    };
    for error in timeout(HANG, last).await.unwrap() {
        assert_eq!(error.code(), v1::ErrorCode::PermissionDenied);
        assert!(!error.retryable);
    }
    broker.wait_until_no_sessions().await;
}

/// Every answer says what its request is called: errors of handlers, of strangers, of no method.
#[tokio::test]
async fn answers_have_the_id_of_their_request() {
    let (broker, tasks) = (FakeBroker::asking_for(TOKEN), TaskGroup::new("test"));
    let channel = serve(&broker, &tasks).await;
    let good = format!("Bearer {TOKEN}");
    let ask = |path: &'static str, headers: Vec<String>, id: Option<&'static str>| {
        let mut client = Grpc::new(channel.clone());
        async move {
            client.ready().await.unwrap();
            let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
            let mut request = with(Bytes::from_static(&[0x0f]), &headers);
            if let Some(id) = id {
                let id: MetadataValue<_> = id.parse().unwrap();
                request.metadata_mut().insert("x-request-id", id);
            }
            let path = PathAndQuery::from_static(path);
            let refused = client.unary(request, path, Raw).await.unwrap_err();
            let found = refused.metadata().get("x-request-id").unwrap();
            found.to_str().unwrap().to_owned()
        }
    };
    let (method, no_method) = (
        "/aquifer.v1.Admin/CreateTenant",
        "/aquifer.v1.Admin/Nothing",
    );
    for headers in [vec![good.clone()], Vec::new()] {
        for path in [method, no_method] {
            assert_eq!(ask(path, headers.clone(), Some("me-1")).await, "me-1");
            let drawn = ask(path, headers.clone(), None).await;
            assert_eq!(drawn.len(), 32, "{drawn}");
            assert_ne!(drawn, ask(path, headers.clone(), None).await);
            let replaced = ask(path, headers.clone(), Some("not plain")).await;
            assert_eq!(replaced.len(), 32, "{replaced}");
        }
    }
}
