//! I13: what peers send, and what they do not read, takes memory within the bounds of
//! docs/operations.md ("Memory"), and others are served meanwhile. Each abuse took gigabytes once.

use anyhow::{Context, Result, bail, ensure};
use aquifer_client::{Client, ErrorKind, Message, SubscriptionType};
use aquifer_harness::abuse::{self, CREATE_TOPIC, PRODUCE};
use aquifer_harness::cluster::Cluster;
use aquifer_harness::http;
use aquifer_harness::processes::{peak_resident_bytes, resident_bytes};
use aquifer_harness::server::{Server, ServerOptions};
use aquifer_harness::wait::{until, within};
use aquifer_harness::wire::{self, RawConsumer};
use aquifer_model::place::Place;
use aquifer_proto::PROTOCOL_VERSION;
use aquifer_proto::v1::broker_client::BrokerClient;
use aquifer_proto::v1::{
    Acknowledge, ConsumeRequest, ConsumeResponse, Credit, ErrorCode, IndexRange, Seek, Subscribe,
    Subscribed, consume_request, consume_response,
};
use futures::future::{join_all, try_join_all};
use futures::stream::{self, FuturesUnordered};
use futures::{FutureExt, StreamExt};
use rustix::process::Signal;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

const MIB: u64 = 1 << 20;
/// Requests that are read, and those that wait for that: `protocols.grpc.inbound_bytes_max` twice.
const INBOUND: u64 = 64 * MIB;
/// What HTTP/2 may hold of a connection: `protocols.grpc.connection_window_bytes`.
const WINDOW: u64 = 8 * MIB;
/// Deliveries: `broker.read_bytes_in_flight_max`.
const DELIVERIES: u64 = 64 * MIB;
/// What waits for cursor logs: that of a server, and of a topic beyond it.
const WAITING: u64 = 64 * MIB;
const WAITING_BEYOND: u64 = 64 << 10;
/// Topics, tasks, streams, caches that fill meanwhile, and what the allocator keeps.
const ELSE: u64 = 64 * MIB;

async fn server(environment: &[(&str, &str)]) -> Result<(tempfile::TempDir, Server)> {
    let folder = tempfile::tempdir()?;
    let environment = environment
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let options = ServerOptions {
        environment: environment.collect(),
        ..ServerOptions::default()
    };
    let server = Server::start(&folder.path().join("data"), options).await?;
    Ok((folder, server))
}

async fn connect(url: &str) -> Result<Channel> {
    // Small windows: what is not read stays at the server.
    let endpoint = Endpoint::from_shared(url.to_owned())?;
    let endpoint = endpoint.initial_stream_window_size(65_535);
    Ok(endpoint.connect().await?)
}

fn ensure_grown_below(server: &Server, before: u64, bound: u64) -> Result<()> {
    ensure_below(server.peak_resident_bytes()?, before, bound)
}

fn ensure_below(peak: u64, before: u64, bound: u64) -> Result<()> {
    let grown = peak.saturating_sub(before) / MIB;
    let bound = bound / MIB;
    ensure!(
        grown <= bound,
        "grew by {grown} MiB, at most {bound} are documented"
    );
    Ok(())
}

async fn still_serves(server: &mut Server) -> Result<()> {
    within("a newcomer's message", async {
        let client = server.client()?;
        let producer = client.producer("alive").open().await?;
        Ok(producer.send(Message::new("yes")).await?)
    })
    .await?;
    Ok(())
}

/// H4 (a): two bytes on the wire were forty in memory.
#[tokio::test]
async fn messages_of_empty_elements_take_no_memory() -> Result<()> {
    let (_folder, mut server) = server(&[]).await?;
    let before = server.resident_bytes()?;
    let frames = abuse::empty_frames(3_000_000);
    let mut connections = Vec::new();
    for _ in 0..4 {
        connections.push(connect(&server.url()).await?);
    }
    let streams = (0..40).map(|at| {
        let channel = &connections[at % 4];
        abuse::exchange(channel, PRODUCE, frames.clone(), true)
    });
    for answered in within("answers", join_all(streams).map(Ok)).await? {
        ensure!(answered? > 0, "each is told what is wrong");
    }
    ensure_grown_below(&server, before, INBOUND + 4 * WINDOW + ELSE)?;
    still_serves(&mut server).await
}

/// H4 (b): each stream buffered a whole message that never ended, for ever.
#[tokio::test]
async fn messages_that_never_end_are_bounded_together_and_time_out() -> Result<()> {
    let timeout = ("AQUIFER_PROTOCOLS_GRPC_MESSAGE_TIMEOUT_MS", "3000");
    let (_folder, mut server) = server(&[timeout]).await?;
    let before = server.resident_bytes()?;
    const BYTES: usize = 6 << 20;
    let beginning = abuse::message(BYTES, &vec![0x12; BYTES - 1]);
    let mut connections = Vec::new();
    for _ in 0..4 {
        connections.push(connect(&server.url()).await?);
    }
    let mut streams: FuturesUnordered<_> = (0..200)
        .map(|at| abuse::exchange(&connections[at % 4], PRODUCE, beginning.clone(), true))
        .collect();
    let all_end = async {
        while let Some(ended) = streams.next().await {
            // Told so, or reset: both end it.
            let _ = ended;
        }
        Ok(())
    };
    let others = async {
        let used = || async { http::metric(&server.http(), "aquifer_grpc_inbound_bytes").await };
        until("messages that wait", || async {
            Ok((used().await? > 0.0).then_some(()))
        })
        .await?;
        // Another connection has its share.
        let client = server.client()?;
        let producer = client.producer("others").open().await?;
        producer.send(Message::new("yes")).await?;
        anyhow::Ok(())
    };
    let (ended, others) = tokio::join!(
        within("the streams to end", all_end),
        within("others", others)
    );
    ended.and(others)?;
    ensure_grown_below(&server, before, INBOUND + 4 * WINDOW + ELSE)?;
    let used = http::metric(&server.http(), "aquifer_grpc_inbound_bytes").await?;
    ensure!(
        used == 0.0,
        "{used} bytes are held for streams that have ended"
    );
    still_serves(&mut server).await
}

/// H4 (b): calls were counted nowhere, and had the limit of batches.
#[tokio::test]
async fn calls_that_never_end_are_refused_or_time_out() -> Result<()> {
    let timeout = ("AQUIFER_PROTOCOLS_GRPC_MESSAGE_TIMEOUT_MS", "3000");
    let (_folder, mut server) = server(&[timeout]).await?;
    let before = server.resident_bytes()?;
    let mut connections = Vec::new();
    for _ in 0..4 {
        connections.push(connect(&server.url()).await?);
    }
    let large = abuse::message(6 << 20, &vec![0; (6 << 20) - 1]);
    let small = abuse::message(60 << 10, &vec![0; (60 << 10) - 1]);
    let calls = (0..2_000).map(|at| {
        let bytes = if at % 2 == 0 { &large } else { &small };
        abuse::request(&connections[at % 4], CREATE_TOPIC, bytes.clone(), true)
    });
    let answers = within("answers to calls", join_all(calls).map(Ok)).await?;
    let answered = answers.into_iter().filter_map(Result::ok);
    let refused = answered.filter(|answer| {
        let status = answer.headers().get("grpc-status");
        status.is_some_and(|status| status != "0")
    });
    ensure!(refused.count() > 0, "a refusal is told");
    ensure_grown_below(&server, before, INBOUND + 4 * WINDOW + ELSE)?;
    still_serves(&mut server).await
}

/// A consumer that has subscribed, has all credit, and reads nothing.
async fn paused(
    channel: &Channel,
    topic: &str,
) -> Result<(mpsc::Sender<ConsumeRequest>, Streaming<ConsumeResponse>)> {
    let (requests, receiver) = mpsc::channel(4);
    let subscribe = Subscribe {
        version: PROTOCOL_VERSION,
        topic: topic.to_owned(),
        start: "earliest".to_owned(),
        ..Subscribe::default()
    };
    let credit = Credit {
        messages_total: u64::MAX,
        bytes_total: u64::MAX,
    };
    for request in [
        consume_request::Request::Subscribe(subscribe),
        consume_request::Request::Credit(credit),
    ] {
        let request = Some(request);
        requests.send(ConsumeRequest { request }).await?;
    }
    let mut client = BrokerClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
    let responses = client.consume(ReceiverStream::new(receiver)).await?;
    let mut responses = responses.into_inner();
    let first = within("subscribed", async { Ok(responses.message().await?) }).await?;
    let subscribed = first.and_then(|reply| reply.response);
    ensure!(matches!(
        subscribed,
        Some(consume_response::Response::Subscribed(_))
    ));
    Ok((requests, responses))
}

/// H5: each consumer that did not read held its own eight megabytes.
#[tokio::test]
async fn consumers_that_do_not_read_share_one_budget_and_leave_a_part_to_the_others() -> Result<()>
{
    const MESSAGES: u64 = 768;
    let (_folder, mut server) = server(&[]).await?;
    let client = server.client()?;
    let producer = client.producer("backlog").open().await?;
    for at in 0..MESSAGES {
        // Not compressible, and more than the caches hold: every reader has its own copy.
        let mut noise = at + 1;
        let payload = (0..64 * 1024).map(|_| {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            noise.to_le_bytes()[0]
        });
        let message = Message::new(payload.collect::<Vec<u8>>());
        producer.send(message).await?;
    }
    let before = server.resident_bytes()?;
    let mut held = Vec::new();
    for at in 0..100 {
        if at % 10 == 0 {
            held.push((connect(&server.url()).await?, Vec::new()));
        }
        if let Some((channel, paused_here)) = held.last_mut() {
            paused_here.push(paused(channel, "backlog").await?);
        }
    }
    let address = server.http();
    let delivery_bytes = || http::metric(&address, "aquifer_broker_delivery_bytes");
    until("the paused ones to hold something", || async {
        Ok((delivery_bytes().await? > 10.0 * 1024.0 * 1024.0).then_some(()))
    })
    .await?;
    // One that reads gets everything, and messages go on being stored.
    let reader = client.reader("backlog").open().await?;
    within("a reader to reach the end", async {
        let mut read = 0;
        while reader.next_available().await?.is_some() {
            read += 1;
        }
        ensure!(read == MESSAGES, "{read} messages");
        Ok(())
    })
    .await?;
    producer.send(Message::new("more")).await?;
    ensure_grown_below(&server, before, DELIVERIES + 10 * WINDOW + ELSE)?;
    drop(held);
    until("everything to be given back", || async {
        Ok((delivery_bytes().await? < 1024.0).then_some(()))
    })
    .await?;
    let _ = wire::connect(&server.url()).await?;
    still_serves(&mut server).await
}

/// A name as long as names may be about: every change of a subscription has it.
fn long_name() -> String {
    "s".repeat(500)
}

fn subscribe_shared(topic: &str) -> Subscribe {
    Subscribe {
        version: PROTOCOL_VERSION,
        topic: topic.to_owned(),
        subscription: long_name(),
        r#type: aquifer_proto::v1::SubscriptionType::Shared.into(),
        start: "earliest".to_owned(),
        ..Subscribe::default()
    }
}

/// A topic with two messages and a subscription.
async fn prepared(client: &Client, url: &str, topic: &str) -> Result<Subscribed> {
    let producer = client.producer(topic).open().await?;
    for message in ["first", "second"] {
        producer.send(Message::new(message)).await?;
    }
    let mut consumer = RawConsumer::open(url, subscribe_shared(topic)).await?;
    match consumer.next().await? {
        Some(consume_response::Response::Subscribed(subscribed)) => Ok(subscribed),
        other => bail!("{other:?}"),
    }
}

/// Moves a subscription and acknowledges what is before it, this often, and waits for no answer.
/// Returns when some of that has been refused; the rest is still being sent then.
async fn flood(
    channel: &Channel,
    topic: &str,
    opened: &Subscribed,
    pairs: u64,
) -> Result<Streaming<ConsumeResponse>> {
    // More of them than a client reads in time end its session.
    const REFUSALS: u64 = 10;
    let (owner_epoch, before) = (opened.owner_epoch, opened.seek_epoch);
    let subscribe = consume_request::Request::Subscribe(subscribe_shared(topic));
    let changes = (1..=pairs).flat_map(move |number| {
        let seek = consume_request::Request::Seek(Seek {
            request_id: 2 * number,
            place: (1 + number % 2).to_string(),
        });
        let acknowledge = consume_request::Request::Acknowledge(Acknowledge {
            request_id: 2 * number + 1,
            owner_epoch,
            seek_epoch: before + number,
            cumulative: None,
            individual: vec![IndexRange { first: 0, last: 0 }],
        });
        [seek, acknowledge]
    });
    let requests = stream::iter([subscribe].into_iter().chain(changes));
    let requests = requests.map(|request| ConsumeRequest {
        request: Some(request),
    });
    let mut client = BrokerClient::new(channel.clone());
    let responses = client.consume(requests.chain(stream::pending())).await?;
    let (mut responses, mut refusals) = (responses.into_inner(), 0);
    while refusals < REFUSALS {
        let reply = responses.message().await?.context("the session goes on")?;
        let error = match reply.response {
            Some(consume_response::Response::SeekDone(done)) => done.error,
            Some(consume_response::Response::Confirmed(confirmed)) => confirmed.error,
            Some(consume_response::Response::Error(error)) => bail!("{topic}: {error:?}"),
            _ => None,
        };
        if let Some(error) = error {
            ensure!(error.code() == ErrorCode::Overloaded, "{error:?}");
            refusals += 1;
        }
    }
    Ok(responses)
}

/// Seeks and acknowledgements are made durable again.
async fn changes_again(client: &Client, topic: &str) -> Result<()> {
    let consumer = client.consumer(topic, &long_name());
    let consumer = consumer.kind(SubscriptionType::Shared).open().await?;
    until("a seek", || async {
        match consumer.seek(Place::Earliest).await {
            Ok(_) => Ok(Some(())),
            Err(error) if error.kind() == ErrorKind::Unavailable => Ok(None),
            Err(error) => Err(error.into()),
        }
    })
    .await?;
    let message = within("its message", async { Ok(consumer.receive().await?) }).await?;
    ensure!(message.payload == "first", "{message:?}");
    within("a confirmation", async {
        Ok(consumer.ack(&message).await?)
    })
    .await?;
    Ok(consumer.close().await?)
}

/// While the cursor log cannot be written, changes of subscriptions wait. They were counted and
/// not weighed: pipelined ones took 182 MiB a topic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_wait_for_a_cursor_log_take_no_more_than_is_documented() -> Result<()> {
    const TOPICS: usize = 8;
    const CONNECTIONS: usize = 4;
    // Of one topic some 70 MiB, if all of them waited.
    const PAIRS: u64 = 60_000;
    let folder = tempfile::tempdir()?;
    let mut cluster = Cluster::start(&folder.path().join("cluster"), &["--bookies", "1"])?;
    let client = cluster.client()?;
    let topics: Vec<String> = (0..TOPICS).map(|n| format!("flooded-{n}")).collect();
    let opened = topics.iter().map(|t| prepared(&client, cluster.url(), t));
    let opened = try_join_all(opened).await?;
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(connect(cluster.url()).await?);
    }

    let broker = cluster.process("broker-1")?.pid;
    let before = resident_bytes(broker)?;
    let beyond = WAITING_BEYOND * u64::try_from(TOPICS)?;
    let windows = WINDOW * u64::try_from(CONNECTIONS)?;
    let bound = WAITING + beyond + INBOUND + windows + ELSE;
    cluster.signal("bookie-1", Signal::STOP)?;
    let floods = topics.iter().zip(&opened).enumerate();
    let floods = floods.map(|(n, (topic, opened))| {
        let channel = &connections[n % CONNECTIONS];
        flood(channel, topic, opened, PAIRS)
    });
    let too_much = until("what takes too much", || async {
        ensure_below(peak_resident_bytes(broker)?, before, bound)?;
        Ok(None::<()>)
    });
    let sessions = tokio::select! {
        sessions = within("refusals", try_join_all(floods)) => sessions?,
        failed = too_much => bail!("{failed:?}"),
    };
    // What was refused may be asked for again, by others too.
    let more = flood(&connections[0], &topics[0], &opened[0], PAIRS);
    let more = within("refusals", more).await?;
    ensure_below(peak_resident_bytes(broker)?, before, bound)?;
    drop((sessions, more));

    cluster.signal("bookie-1", Signal::CONT)?;
    try_join_all(topics.iter().map(|topic| changes_again(&client, topic))).await?;
    let producer = client.producer("alive").open().await?;
    within("a message", async {
        Ok(producer.send(Message::new("yes")).await?)
    })
    .await?;
    ensure_below(peak_resident_bytes(broker)?, before, bound)?;
    cluster.stop()?;
    cluster.check_logs()
}
