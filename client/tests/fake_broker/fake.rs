//! A broker without a mind of its own: each stream is handed to the test, which reads requests
//! and writes responses. Unary calls answer from a few settings.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use aquifer_client::{Client, ClientBuilder};
use aquifer_model::batch::{Batch, BatchFields, MessageRecord, MessageRow};
use aquifer_model::ranges::TopicRanges;
use aquifer_proto::convert::ranges::wire_ranges;
use aquifer_proto::v1;
use aquifer_proto::v1::admin_server::{Admin, AdminServer};
use aquifer_proto::v1::broker_server::{Broker, BrokerServer};
use aquifer_proto::v1::pull_server::{Pull, PullServer};
use aquifer_runtime::net::{ListenAddress, bind};
use aquifer_runtime::task::TaskGroup;
use bytes::{Bytes, BytesMut};
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::service::InterceptorLayer;
use tonic::{Request, Response, Status, Streaming};

type Answers<T> = ReceiverStream<Result<T, Status>>;

/// One stream: what the client sends, and where answers go.
pub struct Stream<Req, Resp> {
    pub requests: Streaming<Req>,
    pub answers: mpsc::Sender<Result<Resp, Status>>,
}

pub type Produce = Stream<v1::ProduceRequest, v1::ProduceResponse>;
pub type Consume = Stream<v1::ConsumeRequest, v1::ConsumeResponse>;

#[derive(Clone)]
struct Service {
    produce: mpsc::Sender<Produce>,
    consume: mpsc::Sender<Consume>,
    settings: Arc<Settings>,
}

/// What unary calls answer.
pub struct Settings {
    /// Of every topic that is described.
    pub ranges: std::sync::Mutex<Vec<v1::TopicRange>>,
    pub key_hash: AtomicI32,
    pub end_index: AtomicU64,
    /// The only token that is accepted; every call is without one.
    pub accepted: std::sync::Mutex<Option<String>>,
    /// Header `authorization` of every call, in order.
    pub shown: std::sync::Mutex<Vec<Option<String>>>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            ranges: std::sync::Mutex::default(),
            key_hash: AtomicI32::new(v1::KeyHash::Murmur3.into()),
            end_index: AtomicU64::default(),
            accepted: std::sync::Mutex::default(),
            shown: std::sync::Mutex::default(),
        }
    }
}

impl Settings {
    /// From now on this token is accepted, and no other.
    pub fn accept(&self, token: &str) {
        *self.accepted.lock().unwrap() = Some(format!("Bearer {token}"));
    }

    fn authenticate(&self, request: Request<()>) -> Result<Request<()>, Status> {
        let shown = request.metadata().get("authorization");
        let shown = shown.map(|shown| shown.to_str().unwrap().to_owned());
        self.shown.lock().unwrap().push(shown.clone());
        let accepted = self.accepted.lock().unwrap();
        match accepted.is_some() && *accepted != shown {
            true => Err(Status::unauthenticated("scripted refusal")),
            false => Ok(request),
        }
    }

    pub fn set_ranges(&self, ranges: &TopicRanges) {
        *self.ranges.lock().unwrap() = wire_ranges(ranges);
    }
}

/// The running fake.
pub struct Fake {
    pub address: SocketAddr,
    pub settings: Arc<Settings>,
    produce: Mutex<mpsc::Receiver<Produce>>,
    consume: Mutex<mpsc::Receiver<Consume>>,
    tasks: TaskGroup,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.tasks.shutdown();
    }
}

impl Fake {
    pub async fn start() -> Fake {
        let (listener, address) = bind(ListenAddress::loopback_any_port()).await.unwrap();
        let (produce_in, produce) = mpsc::channel(16);
        let (consume_in, consume) = mpsc::channel(16);
        let settings = Arc::new(Settings::default());
        let service = Service {
            produce: produce_in,
            consume: consume_in,
            settings: Arc::clone(&settings),
        };
        let tasks = TaskGroup::new("fake broker");
        let stop = tasks.shutdown_token();
        let door = Arc::clone(&settings);
        let door = InterceptorLayer::new(move |request| door.authenticate(request));
        let server = tonic::transport::Server::builder()
            .layer(door)
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(4 << 20)
            .max_frame_size(256 << 10)
            .tcp_nodelay(true)
            .add_service(BrokerServer::new(service.clone()).max_decoding_message_size(8 << 20))
            .add_service(PullServer::new(service.clone()))
            .add_service(AdminServer::new(service))
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async move {
                stop.wait().await;
            });
        tasks.spawn("server", server);
        Fake {
            address,
            settings,
            produce: Mutex::new(produce),
            consume: Mutex::new(consume),
            tasks,
        }
    }

    pub fn builder(&self) -> ClientBuilder {
        Client::builder().url(format!("http://{}", self.address))
    }

    pub fn client(&self) -> Client {
        self.builder().build().unwrap()
    }

    /// The next produce stream that a client opens.
    pub async fn produce(&self) -> Produce {
        self.produce.lock().await.recv().await.unwrap()
    }

    /// The next consume stream that a client opens.
    pub async fn consume(&self) -> Consume {
        self.consume.lock().await.recv().await.unwrap()
    }
}

impl Produce {
    /// Reads the opening.
    pub async fn open(&mut self) -> v1::OpenProducer {
        match self.requests.message().await.unwrap().unwrap().request {
            Some(v1::produce_request::Request::Open(open)) => open,
            other => panic!("not an opening: {other:?}"),
        }
    }

    pub async fn opened(&self, last_sequence_id: Option<u64>) {
        self.opened_where(last_sequence_id, true).await;
    }

    /// The same where deduplication is on or off.
    pub async fn opened_where(&self, last_sequence_id: Option<u64>, deduplication: bool) {
        let opened = v1::ProducerOpened {
            producer_name: "drawn".to_owned(),
            last_sequence_id,
            topic_incarnation: Bytes::from_static(&[7; 16]),
            owner_epoch: 1,
            batch_bytes_max: 1 << 20,
            deduplication,
            last_index: None,
        };
        self.answer(v1::produce_response::Response::Opened(opened))
            .await;
    }

    pub async fn answer(&self, response: v1::produce_response::Response) {
        let response = v1::ProduceResponse {
            response: Some(response),
        };
        self.answers.send(Ok(response)).await.unwrap();
    }

    /// Reads frames until there are `count` of them.
    pub async fn frames(&mut self, count: usize) -> Vec<(u64, Batch)> {
        let mut frames = Vec::new();
        while frames.len() < count {
            match self.requests.message().await.unwrap().unwrap().request {
                Some(v1::produce_request::Request::Publish(publish)) => {
                    let parse =
                        |frame: v1::PublishFrame| (frame.number, Batch::parse(frame.body).unwrap());
                    frames.extend(publish.frames.into_iter().map(parse));
                }
                other => panic!("not frames: {other:?}"),
            }
        }
        frames
    }

    pub async fn receipt(&self, frame_number: u64, base_index: u64, duplicate: bool) {
        let receipt = v1::Receipt {
            frame_number,
            ledger_id: 1,
            entry_id: base_index,
            base_index,
            duplicate,
            position_unknown: false,
        };
        let receipts = v1::Receipts {
            receipts: vec![receipt],
        };
        self.answer(v1::produce_response::Response::Receipts(receipts))
            .await;
    }

    pub async fn fail(self, code: v1::ErrorCode, retryable: bool) {
        let detail = detail(code, retryable);
        self.answer(v1::produce_response::Response::Error(detail))
            .await;
    }

    /// Points to another broker.
    pub async fn redirect(self, url: &str) {
        let detail = v1::ErrorDetail {
            redirect_url: url.to_owned(),
            ..detail(v1::ErrorCode::Redirect, true)
        };
        self.answer(v1::produce_response::Response::Error(detail))
            .await;
    }
}

pub fn detail(code: v1::ErrorCode, retryable: bool) -> v1::ErrorDetail {
    v1::ErrorDetail {
        code: code.into(),
        retryable,
        message: format!("scripted {code:?}"),
        ..v1::ErrorDetail::default()
    }
}

impl Consume {
    pub async fn request(&mut self) -> v1::consume_request::Request {
        let request = self.requests.message().await.unwrap().unwrap();
        request.request.unwrap()
    }

    /// Reads the subscription and answers it.
    pub async fn subscribed(&mut self, answer: v1::Subscribed) -> v1::Subscribe {
        let v1::consume_request::Request::Subscribe(subscribe) = self.request().await else {
            panic!("not a subscription");
        };
        self.answer(v1::consume_response::Response::Subscribed(answer))
            .await;
        subscribe
    }

    /// Reads requests until one that `pick` takes.
    pub async fn until<T>(
        &mut self,
        pick: impl Fn(v1::consume_request::Request) -> Option<T>,
    ) -> T {
        loop {
            if let Some(picked) = pick(self.request().await) {
                return picked;
            }
        }
    }

    pub async fn answer(&self, response: v1::consume_response::Response) {
        let response = v1::ConsumeResponse {
            response: Some(response),
        };
        self.answers.send(Ok(response)).await.unwrap();
    }

    pub async fn deliver(&self, owner_epoch: u64, seek_epoch: u64, deliveries: Vec<v1::Delivery>) {
        self.answer(v1::consume_response::Response::Deliveries(v1::Deliveries {
            owner_epoch,
            seek_epoch,
            deliveries,
        }))
        .await;
    }

    pub async fn fail(self, code: v1::ErrorCode, retryable: bool) {
        let detail = detail(code, retryable);
        self.answer(v1::consume_response::Response::Error(detail))
            .await;
    }
}

pub fn subscribed(owner_epoch: u64, start: u64, end: u64) -> v1::Subscribed {
    v1::Subscribed {
        topic_incarnation: Bytes::from_static(&[7; 16]),
        owner_epoch,
        seek_epoch: 0,
        start_index: start,
        end_index: end,
    }
}

/// An entry whose messages say their index.
pub fn delivery(base_index: u64, count: u64) -> v1::Delivery {
    let mut payload = BytesMut::new();
    let rows: Vec<MessageRow> = (0..count)
        .map(|at| {
            let record = MessageRecord {
                value: (base_index + at).to_string().into(),
                ..MessageRecord::default()
            };
            let size = record.encode(&mut payload);
            MessageRow {
                size_bytes: u32::try_from(size).unwrap(),
                sequence_delta: u32::try_from(at).unwrap(),
                ..MessageRow::default()
            }
        })
        .collect();
    let fields = BatchFields {
        lowest_sequence_id: base_index,
        highest_sequence_id: base_index + count - 1,
        uncompressed_bytes: u32::try_from(payload.len()).unwrap(),
        ..BatchFields::default()
    };
    v1::Delivery {
        ledger_id: 1,
        entry_id: base_index,
        base_index,
        broker_time_ms: 1,
        message_count: u32::try_from(count).unwrap(),
        body: aquifer_model::batch::encode(&fields, &rows, &payload).unwrap(),
        format: 1,
        ..v1::Delivery::default()
    }
}

#[tonic::async_trait]
impl Broker for Service {
    type ProduceStream = Answers<v1::ProduceResponse>;
    type ConsumeStream = Answers<v1::ConsumeResponse>;

    async fn handshake(
        &self,
        request: Request<v1::HandshakeRequest>,
    ) -> Result<Response<v1::HandshakeResponse>, Status> {
        Ok(Response::new(v1::HandshakeResponse {
            version: request.into_inner().version_max,
            ..v1::HandshakeResponse::default()
        }))
    }

    async fn produce(
        &self,
        request: Request<Streaming<v1::ProduceRequest>>,
    ) -> Result<Response<Self::ProduceStream>, Status> {
        let (answers, out) = mpsc::channel(64);
        let requests = request.into_inner();
        let _ = self.produce.send(Stream { requests, answers }).await;
        Ok(Response::new(ReceiverStream::new(out)))
    }

    async fn consume(
        &self,
        request: Request<Streaming<v1::ConsumeRequest>>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        let (answers, out) = mpsc::channel(64);
        let requests = request.into_inner();
        let _ = self.consume.send(Stream { requests, answers }).await;
        Ok(Response::new(ReceiverStream::new(out)))
    }
}

macro_rules! no_pull {
    ($($method:ident: $request:ident -> $response:ident),* $(,)?) => {
        #[tonic::async_trait]
        impl Pull for Service {
            async fn locate(
                &self,
                request: Request<v1::LocateRequest>,
            ) -> Result<Response<v1::LocateResponse>, Status> {
                match request.into_inner().place.as_str() {
                    "latest" => Ok(Response::new(v1::LocateResponse {
                        index: self.settings.end_index.load(Ordering::SeqCst),
                        message: None,
                    })),
                    _ => Err(Status::permission_denied("only the end may be looked up")),
                }
            }

            $(async fn $method(
                &self,
                _: Request<v1::$request>,
            ) -> Result<Response<v1::$response>, Status> {
                Err(Status::unimplemented("not scripted"))
            })*
        }
    };
}

no_pull! {
    append: AppendRequest -> AppendResponse,
    read: ReadTopicRequest -> ReadTopicResponse,
    bounds: BoundsRequest -> BoundsResponse,
    commit: CommitRequest -> CommitResponse,
    committed: CommittedRequest -> CommittedResponse,
}

macro_rules! not_scripted {
    ($($method:ident: $request:ident -> $response:ident),* $(,)?) => {
        #[tonic::async_trait]
        impl Admin for Service {
            async fn describe_topic(
                &self,
                request: Request<v1::DescribeTopicRequest>,
            ) -> Result<Response<v1::DescribeTopicResponse>, Status> {
                Ok(Response::new(v1::DescribeTopicResponse {
                    topic: request.into_inner().topic,
                    incarnation: Bytes::from_static(&[7; 16]),
                    key_hash: self.settings.key_hash.load(Ordering::SeqCst),
                    generation: 1,
                    ranges: self.settings.ranges.lock().unwrap().clone(),
                }))
            }

            async fn topic_stats(
                &self,
                request: Request<v1::TopicStatsRequest>,
            ) -> Result<Response<v1::TopicStatsResponse>, Status> {
                Ok(Response::new(v1::TopicStatsResponse {
                    topic: request.into_inner().topic,
                    end_index: self.settings.end_index.load(Ordering::SeqCst),
                    ..v1::TopicStatsResponse::default()
                }))
            }

            $(async fn $method(
                &self,
                _: Request<v1::$request>,
            ) -> Result<Response<v1::$response>, Status> {
                Err(Status::unimplemented("not scripted"))
            })*
        }
    };
}

not_scripted! {
    create_tenant: CreateTenantRequest -> CreateTenantResponse,
    list_tenants: ListTenantsRequest -> ListTenantsResponse,
    create_namespace: CreateNamespaceRequest -> CreateNamespaceResponse,
    get_policies: GetPoliciesRequest -> GetPoliciesResponse,
    update_policies: UpdatePoliciesRequest -> UpdatePoliciesResponse,
    list_namespaces: ListNamespacesRequest -> ListNamespacesResponse,
    delete_tenant: DeleteTenantRequest -> DeleteTenantResponse,
    delete_namespace: DeleteNamespaceRequest -> DeleteNamespaceResponse,
    grow_topic: GrowTopicRequest -> GrowTopicResponse,
    unload_topic: UnloadTopicRequest -> UnloadTopicResponse,
    terminate_topic: TerminateTopicRequest -> TerminateTopicResponse,
    clear_subscription: ClearSubscriptionRequest -> ClearSubscriptionResponse,
    peek_messages: PeekMessagesRequest -> PeekMessagesResponse,
    create_topic: CreateTopicRequest -> CreateTopicResponse,
    delete_topic: DeleteTopicRequest -> DeleteTopicResponse,
    offload_topic: OffloadTopicRequest -> OffloadTopicResponse,
    reimport_topic: ReimportTopicRequest -> ReimportTopicResponse,
    list_topics: ListTopicsRequest -> ListTopicsResponse,
    delete_subscription: DeleteSubscriptionRequest -> DeleteSubscriptionResponse,
    create_subscription: CreateSubscriptionRequest -> CreateSubscriptionResponse,
    seek_subscription: SeekSubscriptionRequest -> SeekSubscriptionResponse,
    skip_messages: SkipMessagesRequest -> SkipMessagesResponse,
    reset_subscriptions: ResetSubscriptionsRequest -> ResetSubscriptionsResponse,
}
