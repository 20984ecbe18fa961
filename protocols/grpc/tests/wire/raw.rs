//! A client of the native protocol without any cleverness.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on must fail"
)]

#[path = "pull.rs"]
mod pull;

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use aquifer_model::id::{EntryId, Index, LedgerId};
use aquifer_model::limits::FRAME_BYTES_MAX;
use aquifer_proto::codec::RoomyCodec;
use aquifer_proto::v1::admin_client::AdminClient;
use aquifer_proto::v1::broker_client::BrokerClient;
use aquifer_proto::v1::consume_request::Request as Consume;
use aquifer_proto::v1::consume_response::Response as Consumed;
use aquifer_proto::v1::produce_request::Request as Produce;
use aquifer_proto::v1::produce_response::Response as Produced;
use aquifer_proto::{ERROR_TRAILER, v1};
use aquifer_protocol_api::conformance::{ConformanceClient, Refusal};
use aquifer_protocol_api::consumer::{Delivery, Held};
use aquifer_protocol_api::error::{ErrorKind, Outcome};
use aquifer_protocol_api::producer::{Receipt, StoredAt};
use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes};
use http_body::{Body as HttpBody, Frame};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codec::{Codec as _, DecodeBuf, EncodeBuf};
use tonic::codegen::{Service, http};
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

#[derive(Clone)]
pub struct RawClient {
    channel: Channel,
}

pub fn open(topic: &str) -> v1::OpenProducer {
    v1::OpenProducer {
        version: 1,
        topic: topic.to_owned(),
        instance: Bytes::from_static(&[9; 16]),
        ..v1::OpenProducer::default()
    }
}

pub fn publish(batches: Vec<Bytes>) -> Produce {
    let frames = (1..).zip(batches).map(|(number, body)| v1::PublishFrame {
        number,
        body,
        format: 1,
    });
    Produce::Publish(v1::PublishFrames {
        frames: frames.collect(),
    })
}

pub fn subscribe(topic: &str, subscription: &str) -> v1::Subscribe {
    v1::Subscribe {
        version: 1,
        topic: topic.to_owned(),
        subscription: subscription.to_owned(),
        r#type: v1::SubscriptionType::Exclusive.into(),
        start: "earliest".to_owned(),
        ..v1::Subscribe::default()
    }
}

impl RawClient {
    pub async fn connect(address: SocketAddr) -> RawClient {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let channel = endpoint.connect().await.unwrap();
        RawClient { channel }
    }

    /// A client that lets the server send only so much before it has read it.
    pub async fn connect_with_window(address: SocketAddr, bytes: u32) -> RawClient {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let endpoint = endpoint.initial_stream_window_size(bytes);
        let channel = endpoint.connect().await.unwrap();
        RawClient { channel }
    }

    fn broker(&self) -> BrokerClient<Channel> {
        BrokerClient::new(self.channel.clone()).max_decoding_message_size(FRAME_BYTES_MAX)
    }

    pub async fn handshake(
        &self,
        request: v1::HandshakeRequest,
    ) -> Result<v1::HandshakeResponse, Refusal> {
        let answer = self.broker().handshake(request).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| unary(&status))
    }

    async fn produce(
        &self,
        requests: Vec<Option<Produce>>,
    ) -> Result<
        (
            mpsc::Sender<v1::ProduceRequest>,
            Streaming<v1::ProduceResponse>,
        ),
        Refusal,
    > {
        let (sender, receiver) = mpsc::channel(requests.len().max(1));
        for request in requests {
            sender.try_send(v1::ProduceRequest { request }).unwrap();
        }
        let answer = self.broker().produce(ReceiverStream::new(receiver)).await;
        let answer = answer.map_err(|status| unary(&status))?;
        Ok((sender, answer.into_inner()))
    }

    async fn consumer(
        &self,
        requests: Vec<Option<Consume>>,
    ) -> Result<
        (
            mpsc::Sender<v1::ConsumeRequest>,
            Streaming<v1::ConsumeResponse>,
        ),
        Refusal,
    > {
        let (sender, receiver) = mpsc::channel(requests.len().max(16));
        for request in requests {
            sender.try_send(v1::ConsumeRequest { request }).unwrap();
        }
        let answer = self.broker().consume(ReceiverStream::new(receiver)).await;
        let answer = answer.map_err(|status| unary(&status))?;
        Ok((sender, answer.into_inner()))
    }

    /// The error that ends a stream of these requests; `stay` keeps the client's side open.
    pub async fn produce_error(&self, requests: Vec<Option<Produce>>, stay: bool) -> ErrorKind {
        let (sender, mut answers) = self.produce(requests).await.unwrap();
        let _open = stay.then_some(sender);
        loop {
            let answer = answers.message().await.unwrap();
            match answer.expect("an error comes before the end").response {
                Some(Produced::Error(detail)) => {
                    assert!(
                        answers.message().await.unwrap().is_none(),
                        "an error is the last"
                    );
                    return kind(detail.code());
                }
                other => assert!(other.is_some()),
            }
        }
    }

    /// The same for a consumer.
    pub async fn consume_error(&self, requests: Vec<Option<Consume>>, stay: bool) -> ErrorKind {
        let (sender, mut answers) = self.consumer(requests).await.unwrap();
        let _open = stay.then_some(sender);
        loop {
            let answer = answers.message().await.unwrap();
            match answer.expect("an error comes before the end").response {
                Some(Consumed::Error(detail)) => {
                    assert!(
                        answers.message().await.unwrap().is_none(),
                        "an error is the last"
                    );
                    return kind(detail.code());
                }
                other => assert!(other.is_some()),
            }
        }
    }

    /// The first answers to these requests.
    pub async fn consume_answers(&self, requests: Vec<Consume>, count: usize) -> Vec<Consumed> {
        let requests = requests.into_iter().map(Some).collect();
        let (_open, mut answers) = self.consumer(requests).await.unwrap();
        let mut all = Vec::new();
        while all.len() < count {
            let answer = answers.message().await.unwrap();
            let answer = answer.expect("the session goes on");
            all.push(answer.response.expect("of a kind that is known"));
        }
        all
    }

    /// Announces a message of `announced` bytes on a produce stream, sends `sent` of it, and waits
    /// for the error that ends it.
    pub async fn begin_and_stay(&self, announced: usize, sent: usize) -> ErrorKind {
        let mut channel = self.channel.clone();
        std::future::poll_fn(|context| {
            Service::<http::Request<Body>>::poll_ready(&mut channel, context)
        })
        .await
        .unwrap();
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(announced).unwrap().to_be_bytes());
        bytes.resize(5 + sent, 0x12);
        let stays = Stays(Some(bytes.into()));
        let request = http::Request::post("http://server/aquifer.v1.Broker/Produce")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Body::new(stays))
            .unwrap();
        let answer = channel.call(request).await.unwrap();
        let decoder = RoomyCodec::<(), v1::ProduceResponse>::default().decoder();
        let status = answer.status();
        let mut answers = Streaming::new_response(decoder, answer.into_body(), status, None, None);
        match answers.message().await.unwrap().unwrap().response {
            Some(Produced::Error(detail)) => kind(detail.code()),
            other => panic!("an error was due: {other:?}"),
        }
    }

    async fn call(&self, path: &'static str, message: Vec<u8>) -> Result<(), Refusal> {
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        client.ready().await.unwrap();
        let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
        let request = tonic::Request::new(message);
        let answer = client.unary(request, path, RawCodec).await;
        answer.map(|_| ()).map_err(|status| unary(&status))
    }

    /// Sends these bytes as the request message of `CreateTopic`.
    pub async fn create_topic_with(&self, message: &[u8]) -> Result<(), Refusal> {
        self.call("/aquifer.v1.Admin/CreateTopic", message.to_vec())
            .await
    }

    /// Calls a method that does not exist.
    pub async fn call_unknown_method(&self) -> Result<(), Refusal> {
        self.call("/aquifer.v1.Admin/DrainTheOcean", Vec::new())
            .await
    }

    /// A producer that publishes batches one by one and reads no answers until it is dropped.
    pub async fn publish_blindly(&self, topic: &str, batches: u64) -> impl Drop + use<> {
        let frames = (1..=batches).map(|number| v1::PublishFrame {
            number,
            body: Bytes::from_static(b"x"),
            format: 1,
        });
        let publish = |frame| {
            Some(Produce::Publish(v1::PublishFrames {
                frames: vec![frame],
            }))
        };
        let open = Some(Produce::Open(open(topic)));
        let requests = std::iter::once(open).chain(frames.map(publish));
        let (sender, answers) = self.produce(requests.collect()).await.unwrap();
        OpenStream(sender, answers)
    }

    /// An open producer that does nothing until it is dropped.
    pub async fn hold_open(&self, topic: &str) -> impl Drop + use<> {
        let (sender, mut answers) = self
            .produce(vec![Some(Produce::Open(open(topic)))])
            .await
            .unwrap();
        assert!(answers.message().await.unwrap().is_some());
        OpenStream(sender, answers)
    }
}

struct OpenStream(
    #[allow(dead_code, reason = "keeps the stream open")] mpsc::Sender<v1::ProduceRequest>,
    #[allow(dead_code, reason = "keeps the stream open")] Streaming<v1::ProduceResponse>,
);

impl Drop for OpenStream {
    fn drop(&mut self) {}
}

fn kind(code: v1::ErrorCode) -> ErrorKind {
    // Codes and kinds have the same names and the same order: 1 is the first kind.
    let at = usize::try_from(i32::from(code)).unwrap();
    ErrorKind::ALL[at.checked_sub(1).expect("errors have a code")]
}

fn refusal(detail: &v1::ErrorDetail) -> Refusal {
    let kind = kind(detail.code());
    assert_eq!(detail.retryable, kind.is_retryable());
    Refusal {
        kind,
        outcome: match detail.outcome() {
            v1::Outcome::Unknown => Outcome::Unknown,
            v1::Outcome::NotApplied => Outcome::NotApplied,
            v1::Outcome::Applied => Outcome::Applied,
        },
        message: detail.message.clone(),
    }
}

fn unary(status: &Status) -> Refusal {
    let trailer = status.metadata().get_bin(ERROR_TRAILER);
    let bytes = trailer
        .expect("a typed error has its trailer")
        .to_bytes()
        .unwrap();
    refusal(&v1::ErrorDetail::decode(bytes).unwrap())
}

fn broken(status: &Status) -> Refusal {
    Refusal {
        kind: ErrorKind::Internal,
        outcome: Outcome::Unknown,
        message: format!("the stream broke: {status}"),
    }
}

fn cut_short() -> Refusal {
    broken(&Status::cancelled("it ended without an error"))
}

fn receipt(receipt: &v1::Receipt) -> Receipt {
    let stored = StoredAt {
        ledger: LedgerId(receipt.ledger_id),
        entry: EntryId(receipt.entry_id),
        base_index: Index(receipt.base_index),
    };
    Receipt {
        frame_number: receipt.frame_number,
        stored: (!receipt.position_unknown).then_some(stored),
        duplicate: receipt.duplicate,
    }
}

fn delivery(delivery: v1::Delivery) -> Delivery {
    Delivery {
        at: StoredAt {
            ledger: LedgerId(delivery.ledger_id),
            entry: EntryId(delivery.entry_id),
            base_index: Index(delivery.base_index),
        },
        broker_time_ms: delivery.broker_time_ms,
        redelivered: Vec::new(),
        skip: Vec::new(),
        message_count: delivery.message_count,
        format: u16::try_from(delivery.format).unwrap(),
        body: delivery.body,
        held: Held::default(),
    }
}

#[async_trait]
impl ConformanceClient for RawClient {
    async fn publish(&self, topic: &str, batches: Vec<Bytes>) -> Result<Vec<Receipt>, Refusal> {
        let wanted = batches.len();
        let requests = vec![Some(Produce::Open(open(topic))), Some(publish(batches))];
        let (_open, mut answers) = self.produce(requests).await?;
        let mut receipts = Vec::new();
        let mut opened = false;
        while !opened || receipts.len() < wanted {
            let answer = answers.message().await.map_err(|status| broken(&status))?;
            match answer.ok_or_else(cut_short)?.response {
                Some(Produced::Opened(_)) => opened = true,
                Some(Produced::Receipts(more)) => {
                    receipts.extend(more.receipts.iter().map(receipt));
                }
                Some(Produced::Error(detail)) => return Err(refusal(&detail)),
                None => return Err(cut_short()),
            }
        }
        Ok(receipts)
    }

    async fn read(&self, topic: &str, messages: u64) -> Result<Vec<Delivery>, Refusal> {
        let credit = v1::Credit {
            messages_total: messages,
            bytes_total: u64::MAX,
        };
        let requests = vec![
            Some(Consume::Subscribe(subscribe(topic, ""))),
            Some(Consume::Credit(credit)),
        ];
        let (_open, mut answers) = self.consumer(requests).await?;
        let wanted = usize::try_from(messages).unwrap();
        let mut deliveries = Vec::new();
        while deliveries.len() < wanted {
            let answer = answers.message().await.map_err(|status| broken(&status))?;
            match answer.ok_or_else(cut_short)?.response {
                Some(Consumed::Deliveries(more)) => {
                    deliveries.extend(more.deliveries.into_iter().map(delivery));
                }
                Some(Consumed::Error(detail)) => return Err(refusal(&detail)),
                other => assert!(other.is_some()),
            }
        }
        Ok(deliveries)
    }

    async fn consume(&self, topic: &str, subscription: &str, messages: u64) -> Result<(), Refusal> {
        let credit = v1::Credit {
            messages_total: messages,
            bytes_total: u64::MAX,
        };
        let requests = vec![
            Some(Consume::Subscribe(subscribe(topic, subscription))),
            Some(Consume::Credit(credit)),
        ];
        let (sender, mut answers) = self.consumer(requests).await?;
        let mut confirmed = 0;
        while confirmed < messages {
            let answer = answers.message().await.map_err(|status| broken(&status))?;
            match answer.ok_or_else(cut_short)?.response {
                Some(Consumed::Deliveries(more)) => {
                    for delivery in more.deliveries {
                        let (first, last) = (delivery.base_index, delivery.base_index);
                        let acknowledge = v1::Acknowledge {
                            request_id: first + 1,
                            owner_epoch: more.owner_epoch,
                            seek_epoch: more.seek_epoch,
                            cumulative: None,
                            individual: vec![v1::IndexRange { first, last }],
                        };
                        let request = Some(Consume::Acknowledge(acknowledge));
                        sender.send(v1::ConsumeRequest { request }).await.unwrap();
                    }
                }
                Some(Consumed::Confirmed(confirmation)) => {
                    confirmed += 1;
                    assert_eq!(
                        confirmation.request_id, confirmed,
                        "in the order of the requests"
                    );
                }
                Some(Consumed::Error(detail)) => return Err(refusal(&detail)),
                other => assert!(other.is_some()),
            }
        }
        Ok(())
    }

    async fn create_topic(&self, topic: &str, partitions: u32) -> Result<(), Refusal> {
        let mut admin = AdminClient::new(self.channel.clone());
        let topic = topic.to_owned();
        let answer = admin
            .create_topic(v1::CreateTopicRequest { topic, partitions })
            .await;
        answer.map(|_| ()).map_err(|status| unary(&status))
    }
}

/// A body that neither goes on nor ends.
struct Stays(Option<Bytes>);

impl HttpBody for Stays {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.0.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None => Poll::Pending,
        }
    }
}

/// Sends bytes as they are.
struct RawCodec;

impl tonic::codec::Codec for RawCodec {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = RawCodec;
    type Decoder = RawCodec;

    fn encoder(&mut self) -> RawCodec {
        RawCodec
    }

    fn decoder(&mut self) -> RawCodec {
        RawCodec
    }
}

impl tonic::codec::Encoder for RawCodec {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl tonic::codec::Decoder for RawCodec {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        from.advance(from.remaining());
        Ok(Some(()))
    }
}
