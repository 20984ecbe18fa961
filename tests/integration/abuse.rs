//! I13: what peers send, and what they do not read, takes memory within the bounds of
//! docs/operations.md ("Memory"), and others are served meanwhile. Each abuse took gigabytes once.

use anyhow::{Result, ensure};
use aquifer_client::Message;
use aquifer_harness::abuse::{self, CREATE_TOPIC, PRODUCE};
use aquifer_harness::server::{Server, ServerOptions};
use aquifer_harness::wait::{until, within};
use aquifer_harness::{http, wire};
use aquifer_proto::PROTOCOL_VERSION;
use aquifer_proto::v1::broker_client::BrokerClient;
use aquifer_proto::v1::{
    ConsumeRequest, ConsumeResponse, Credit, Subscribe, consume_request, consume_response,
};
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
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
    let peak = server.peak_resident_bytes()?;
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
