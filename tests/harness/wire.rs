//! The wire without the SDK: what a faulty or hostile client may send.

use anyhow::{Context, Result, bail};
use aquifer_model::batch::{self, BatchFields, MessageRecord, MessageRow};
use aquifer_model::id::ProducerInstance;
use aquifer_proto::PROTOCOL_VERSION;
use aquifer_proto::v1::broker_client::BrokerClient;
use aquifer_proto::v1::{
    ConsumeRequest, ConsumeResponse, Credit, ErrorDetail, OpenProducer, ProduceRequest,
    ProduceResponse, PublishFrame, PublishFrames, Receipt, Subscribe, consume_request,
    consume_response, produce_request, produce_response,
};
use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::wait::within;

/// The producer object that this is.
const INSTANCE: ProducerInstance = ProducerInstance([7; 16]);

/// A produce stream, message by message.
pub struct RawProducer {
    requests: mpsc::Sender<ProduceRequest>,
    responses: Streaming<ProduceResponse>,
    /// The name that the broker gave.
    pub name: String,
}

/// What came back.
#[derive(Debug)]
pub enum Reply {
    /// The producer is open.
    Opened,
    /// Receipts.
    Receipts(Vec<Receipt>),
    /// The stream's last message.
    Error(ErrorDetail),
    /// The stream ended without one.
    Ended(Option<Status>),
}

impl RawProducer {
    /// A stream on which nothing was sent yet.
    ///
    /// # Errors
    /// When there is no connection.
    pub async fn stream(url: &str) -> Result<RawProducer> {
        let mut client = connect(url).await?;
        let (requests, receiver) = mpsc::channel(64);
        let responses = client
            .produce(ReceiverStream::new(receiver))
            .await?
            .into_inner();
        Ok(RawProducer {
            requests,
            responses,
            name: String::new(),
        })
    }

    /// A stream with an open producer.
    ///
    /// # Errors
    /// When the broker refuses it.
    pub async fn open(url: &str, topic: &str, name: &str) -> Result<RawProducer> {
        let mut producer = RawProducer::stream(url).await?;
        match producer.ask(open_request(topic, name)).await? {
            Reply::Opened => Ok(producer),
            other => bail!("{other:?}"),
        }
    }

    /// Sends anything.
    ///
    /// # Errors
    /// When the stream is gone.
    pub async fn send(&self, request: ProduceRequest) -> Result<()> {
        self.requests
            .send(request)
            .await
            .context("the stream is gone")
    }

    /// Sends frames.
    ///
    /// # Errors
    /// When the stream is gone.
    pub async fn publish(&self, frames: Vec<(u64, Bytes)>) -> Result<()> {
        let frames = frames
            .into_iter()
            .map(|(number, body)| PublishFrame {
                number,
                body,
                format: 1,
            })
            .collect();
        let request = produce_request::Request::Publish(PublishFrames { frames });
        self.send(ProduceRequest {
            request: Some(request),
        })
        .await
    }

    /// Sends, and waits for what comes next.
    ///
    /// # Errors
    /// When nothing comes in time.
    pub async fn ask(&mut self, request: ProduceRequest) -> Result<Reply> {
        self.send(request).await?;
        self.reply().await
    }

    /// The next reply.
    ///
    /// # Errors
    /// When nothing comes in time.
    pub async fn reply(&mut self) -> Result<Reply> {
        let message = within("a reply", async { Ok(self.responses.message().await) }).await?;
        Ok(match message {
            Ok(Some(ProduceResponse {
                response: Some(response),
            })) => match response {
                produce_response::Response::Opened(opened) => {
                    self.name = opened.producer_name;
                    Reply::Opened
                }
                produce_response::Response::Receipts(receipts) => {
                    Reply::Receipts(receipts.receipts)
                }
                produce_response::Response::Error(error) => Reply::Error(error),
            },
            Ok(_) => Reply::Ended(None),
            Err(status) => Reply::Ended(Some(status)),
        })
    }
}

/// Connects without the SDK.
///
/// # Errors
/// When there is no connection.
pub async fn connect(url: &str) -> Result<BrokerClient<Channel>> {
    let channel = Channel::from_shared(url.to_owned())?.connect().await?;
    Ok(BrokerClient::new(channel).max_encoding_message_size(usize::MAX))
}

/// The first message of a produce stream.
#[must_use]
pub fn open_request(topic: &str, name: &str) -> ProduceRequest {
    let open = OpenProducer {
        version: PROTOCOL_VERSION,
        topic: topic.to_owned(),
        producer_name: name.to_owned(),
        instance: Bytes::from_static(&INSTANCE.0),
        ..OpenProducer::default()
    };
    ProduceRequest {
        request: Some(produce_request::Request::Open(open)),
    }
}

/// Subscribes and returns the first reply.
///
/// # Errors
/// When there is no connection or no reply.
pub async fn subscribe(url: &str, subscribe: Subscribe) -> Result<Result<ConsumeResponse, Status>> {
    let mut client = connect(url).await?;
    let (requests, receiver) = mpsc::channel(4);
    let request = consume_request::Request::Subscribe(subscribe);
    requests
        .send(ConsumeRequest {
            request: Some(request),
        })
        .await?;
    let mut replies = client
        .consume(ReceiverStream::new(receiver))
        .await?
        .into_inner();
    let first = within("a reply", async { Ok(replies.message().await) }).await?;
    Ok(first.and_then(|reply| reply.ok_or_else(|| Status::aborted("ended without a reply"))))
}

/// A consume stream, message by message.
pub struct RawConsumer {
    requests: mpsc::Sender<ConsumeRequest>,
    responses: Streaming<ConsumeResponse>,
}

impl RawConsumer {
    /// A stream that has subscribed; the answer to that is still to come.
    ///
    /// # Errors
    /// When there is no connection.
    pub async fn open(url: &str, subscribe: Subscribe) -> Result<RawConsumer> {
        let mut client = connect(url).await?;
        let (requests, receiver) = mpsc::channel(4);
        let request = consume_request::Request::Subscribe(subscribe);
        let request = Some(request);
        requests.send(ConsumeRequest { request }).await?;
        let responses = client.consume(ReceiverStream::new(receiver)).await?;
        Ok(RawConsumer {
            requests,
            responses: responses.into_inner(),
        })
    }

    /// Grants credit for this many messages since the beginning, without a bound of bytes.
    ///
    /// # Errors
    /// When the stream has ended.
    pub async fn grant(&self, messages_total: u64) -> Result<()> {
        let credit = Credit {
            messages_total,
            bytes_total: u64::MAX,
        };
        let request = Some(consume_request::Request::Credit(credit));
        Ok(self.requests.send(ConsumeRequest { request }).await?)
    }

    /// Sends a request.
    ///
    /// # Errors
    /// When the stream has ended.
    pub async fn ask(&self, request: consume_request::Request) -> Result<()> {
        let request = Some(request);
        Ok(self.requests.send(ConsumeRequest { request }).await?)
    }

    /// Closes this side, and returns what still comes until the other is closed.
    ///
    /// # Errors
    /// When the other side does not end, or the connection fails.
    pub async fn close(self) -> Result<Vec<consume_response::Response>> {
        let mut responses = self.responses;
        drop(self.requests);
        let rest = async {
            let mut rest = Vec::new();
            while let Some(reply) = responses.message().await? {
                rest.extend(reply.response);
            }
            Ok(rest)
        };
        within("the end of the stream", rest).await
    }

    /// What comes next; `None` when the stream has ended.
    ///
    /// # Errors
    /// When nothing comes, or the connection fails.
    pub async fn next(&mut self) -> Result<Option<consume_response::Response>> {
        let next = async { Ok(self.responses.message().await?) };
        let reply = within("a reply", next).await?;
        Ok(reply.and_then(|reply| reply.response))
    }
}

/// The error of a consume reply, if it is one.
#[must_use]
pub fn consume_error(reply: &ConsumeResponse) -> Option<&ErrorDetail> {
    match &reply.response {
        Some(consume_response::Response::Error(error)) => Some(error),
        _ => None,
    }
}

/// A batch of one message.
///
/// # Errors
/// When it breaks a bound.
pub fn batch(producer: &str, sequence_id: u64, payload: &[u8]) -> Result<Bytes> {
    let mut block = BytesMut::new();
    let record = MessageRecord {
        value: Bytes::copy_from_slice(payload),
        ..Default::default()
    };
    let size_bytes = u32::try_from(record.encode(&mut block))?;
    let fields = BatchFields {
        producer_name: Bytes::copy_from_slice(producer.as_bytes()),
        producer_instance: Some(INSTANCE),
        lowest_sequence_id: sequence_id,
        highest_sequence_id: sequence_id,
        uncompressed_bytes: size_bytes,
        ..BatchFields::default()
    };
    Ok(batch::encode(
        &fields,
        &[MessageRow {
            size_bytes,
            ..MessageRow::default()
        }],
        &block,
    )?)
}
