//! `aquifer produce`: messages from arguments, a file or standard input, pipelined. It succeeds
//! only when every message is acknowledged, which means durable.

mod input;
mod keys;
mod resume;

use std::time::Duration;

use aquifer_client::{
    Compression, ErrorKind, Message, PendingSend, Producer, ProducerBuilder, SendReceipt,
};
use aquifer_runtime::clock::{Clock, SystemClock, sleep};
use bytes::Bytes;
use futures::FutureExt;
use serde_json::json;
use tokio::sync::mpsc;

use crate::args::{CompressionArg, ProduceArgs};
use crate::connect::Connect;
use crate::exit::CliError;
use crate::output::{Output, Progress};
use crate::traced::traced;

use self::input::Input;
use self::keys::{KeySource, Keyed};
use self::resume::Resume;

/// Messages that may wait for their acknowledgement, or to be printed.
const PENDING_MAX: usize = 65_536;
/// How long a producer waits for its name, and how often it asks.
const BUSY_MAX: Duration = Duration::from_secs(5);
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// Runs the command.
///
/// # Errors
/// When a message was not acknowledged, or the input cannot be read.
pub async fn run(args: ProduceArgs, connect: &Connect, out: &Output) -> Result<(), CliError> {
    let to = args.trace.to.clone();
    traced(to, "aquifer-produce", publish(args, connect, out)).await
}

async fn publish(args: ProduceArgs, connect: &Connect, out: &Output) -> Result<(), CliError> {
    let keys = KeySource::new(args.key, args.key_column, args.key_pointer)?;
    let total = (!args.messages.is_empty()).then_some(args.messages.len());
    let file = args.file.as_deref();
    let is_named = args.producer_name.is_some();
    let resume = Resume::new(file, is_named, args.sequence_from, !args.no_check)?;
    let input = Input::open(args.messages, file).await?;

    let client = connect.client()?;
    client.connect().await?;
    let mut builder = client
        .producer(&args.topic.to_string())
        .compression(compression(args.compression))
        .skip_stored(true)
        .trace_one_in(args.trace.one_in())
        .send_timeout(Some(connect.timeout()));
    if let Some(name) = &args.producer_name {
        builder = builder.name(name.as_str());
    }
    let producer = open(builder, connect).await?;
    if let Some(resume) = &resume {
        resume.check(&client, &producer, keys.clone()).await?;
    }

    let progress = out.progress(
        "messages",
        total.and_then(|total| u64::try_from(total).ok()),
    );
    let (pending, acknowledgements) = mpsc::channel(PENDING_MAX);
    let feed = Feed {
        input,
        keys,
        resume,
        properties: args.properties,
        pace: args.rate.map(Pace::new).transpose()?,
        producer: &producer,
        pending,
    };
    let printed = Printer::new(out, &progress).run(acknowledgements);
    let summary = together(feed.run(), printed).await?;
    drop(progress);
    producer.close().await?;
    summary.print(out, &args.topic.to_string())
}

/// Opens the producer. A run that was killed a moment ago may still have the name.
async fn open(builder: ProducerBuilder, connect: &Connect) -> Result<Producer, CliError> {
    let until = SystemClock.monotonic() + connect.timeout().min(BUSY_MAX);
    loop {
        match builder.clone().open().await {
            Err(error) if error.kind() == ErrorKind::Busy && SystemClock.monotonic() < until => {
                sleep(BUSY_PAUSE).await;
            }
            opened => return Ok(opened?),
        }
    }
}

/// How a compression is called by the SDK.
pub fn compression(given: CompressionArg) -> Compression {
    match given {
        CompressionArg::None => Compression::None,
        CompressionArg::Lz4 => Compression::Lz4,
        CompressionArg::Zstd => Compression::Zstd,
    }
}

/// Runs both ends. When an acknowledgement fails, sending stops; when the input fails, what was
/// sent before is still waited for.
async fn together(
    feed: impl Future<Output = Result<u64, CliError>>,
    printed: impl Future<Output = Result<Summary, CliError>>,
) -> Result<Summary, CliError> {
    tokio::pin!(feed, printed);
    tokio::select! {
        biased;
        // The printer ends before the feed only when it failed, or when the feed is about to.
        summary = &mut printed => {
            let summary = summary?;
            let keyless = feed.await?;
            Ok(Summary { keyless, ..summary })
        }
        fed = &mut feed => {
            let summary = printed.await?;
            Ok(Summary { keyless: fed?, ..summary })
        }
    }
}

/// The sending end.
struct Feed<'a> {
    input: Input,
    keys: KeySource,
    resume: Option<Resume>,
    properties: Vec<(String, String)>,
    pace: Option<Pace>,
    producer: &'a Producer,
    pending: mpsc::Sender<PendingSend>,
}

impl Feed<'_> {
    /// Sends everything; answers how many messages had no key where one was asked for.
    async fn run(mut self) -> Result<u64, CliError> {
        let mut keyless = 0;
        let mut line = 0_u64;
        while let Some(payload) = self.input.next().await? {
            line += 1;
            let key = match self.keys.key_of(&payload) {
                Ok(Keyed::Header) => continue,
                Ok(Keyed::Key(key)) => Some(key),
                Ok(Keyed::NotAsked) => None,
                Ok(Keyed::Missing) => {
                    keyless += 1;
                    None
                }
                Err(reason) => {
                    let message = format!("line {line}: {reason}; the lines before are stored");
                    return Err(CliError::failed(message));
                }
            };
            let mut message = self.message(payload, key);
            if let Some(resume) = &self.resume {
                message = message.sequence_id(resume.sequence_id(line - 1)?);
            }
            let mut sent = self.producer.enqueue(message).await?;
            // Lines that were stored before do not count against the rate.
            if let Some(pace) = &mut self.pace
                && !is_there_before(&mut sent)
            {
                pace.wait().await;
            }
            if self.pending.send(sent).await.is_err() {
                // The printer has failed and says why.
                break;
            }
        }
        Ok(keyless)
    }

    fn message(&self, payload: Bytes, key: Option<Bytes>) -> Message {
        let mut message = Message::new(payload);
        if let Some(key) = key {
            message = message.key(key);
        }
        for (name, value) in &self.properties {
            message = message.property(name, value);
        }
        message
    }
}

/// Whether it is known already that an earlier run has stored the message.
fn is_there_before(sent: &mut PendingSend) -> bool {
    let outcome = sent.now_or_never();
    outcome.is_some_and(|outcome| outcome.is_ok_and(|receipt| receipt.duplicate))
}

/// A maximum number of messages a second, evenly spread.
struct Pace {
    interval: Duration,
    next: Duration,
}

impl Pace {
    fn new(rate: f64) -> Result<Pace, CliError> {
        if !(rate.is_finite() && rate > 0.0) {
            return Err(CliError::usage("--rate must be a number above zero"));
        }
        Ok(Pace {
            interval: Duration::from_secs_f64(1.0 / rate.max(1e-6)),
            next: SystemClock.monotonic(),
        })
    }

    async fn wait(&mut self) {
        let now = SystemClock.monotonic();
        if self.next > now {
            sleep(self.next - now).await;
        }
        self.next += self.interval;
    }
}

/// The receiving end: one line for each acknowledged message, in the order they were sent.
struct Printer<'a> {
    out: &'a Output,
    progress: &'a Progress,
    summary: Summary,
}

impl<'a> Printer<'a> {
    fn new(out: &'a Output, progress: &'a Progress) -> Printer<'a> {
        Printer {
            out,
            progress,
            summary: Summary::default(),
        }
    }

    async fn run(mut self, mut pending: mpsc::Receiver<PendingSend>) -> Result<Summary, CliError> {
        while let Some(sent) = pending.recv().await {
            let receipt = sent.await.map_err(|error| {
                let stored = self.summary.messages;
                CliError::from(error).context(format!("{stored} messages are stored; the next"))
            })?;
            self.summary.count(&receipt);
            self.progress.add(1);
            if self.out.is_json() {
                self.out.object(&receipt_object(&receipt))?;
                if pending.is_empty() {
                    self.out.flush()?;
                }
            }
        }
        Ok(self.summary)
    }
}

fn receipt_object(receipt: &SendReceipt) -> serde_json::Value {
    let mut object = json!({
        "position": receipt.position.map(|position| position.to_string()),
        "index": receipt.index.map(|index| index.0),
        "sequence_id": receipt.sequence_id,
    });
    // Only where they say something.
    if receipt.duplicate {
        object["duplicate"] = json!(true);
    }
    if let Some(partition) = receipt.partition {
        object["partition"] = json!(partition);
    }
    object
}

/// What was stored, for people.
#[derive(Debug, Default)]
struct Summary {
    messages: u64,
    duplicates: u64,
    keyless: u64,
    partitioned: bool,
    first: Option<u64>,
    last: Option<u64>,
}

impl Summary {
    fn count(&mut self, receipt: &SendReceipt) {
        self.messages += 1;
        self.duplicates += u64::from(receipt.duplicate);
        self.partitioned |= receipt.partition.is_some();
        let index = receipt.index.map(|index| index.0);
        self.first = self.first.or(index);
        self.last = index.or(self.last);
    }

    fn print(&self, out: &Output, topic: &str) -> Result<(), CliError> {
        if self.keyless > 0 {
            out.note(&format!("{} messages had no key", self.keyless));
        }
        if out.is_json() {
            return Ok(());
        }
        out.line(self.sentence(topic))
    }

    fn sentence(&self, topic: &str) -> String {
        let mut text = match self.messages {
            1 => format!("1 message is durable on {topic}"),
            count => format!("{count} messages are durable on {topic}"),
        };
        if let (false, Some(first), Some(last)) = (self.partitioned, self.first, self.last) {
            text.push_str(&if first == last {
                format!(", index {first}")
            } else {
                format!(", indexes {first} to {last}")
            });
        }
        if self.duplicates > 0 {
            text.push_str(&format!("; {} were there before", self.duplicates));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use aquifer_client::{Index, Position};

    use super::*;

    fn receipt(index: u64) -> SendReceipt {
        SendReceipt {
            position: "3:4:5".parse::<Position>().ok(),
            index: Some(Index(index)),
            sequence_id: 9,
            duplicate: false,
            partition: None,
        }
    }

    #[test]
    fn a_receipt_is_the_contracts_object() {
        assert_eq!(
            receipt_object(&receipt(7)).to_string(),
            r#"{"index":7,"position":"3:4:5","sequence_id":9}"#
        );
        let forgotten = SendReceipt {
            position: None,
            index: None,
            duplicate: true,
            partition: Some(2),
            ..receipt(0)
        };
        assert_eq!(
            receipt_object(&forgotten).to_string(),
            r#"{"duplicate":true,"index":null,"partition":2,"position":null,"sequence_id":9}"#
        );
    }

    #[test]
    fn the_summary_says_what_is_where() {
        let mut summary = Summary::default();
        summary.count(&receipt(7));
        assert_eq!(summary.sentence("t"), "1 message is durable on t, index 7");
        summary.count(&receipt(8));
        summary.duplicates = 1;
        assert_eq!(
            summary.sentence("t"),
            "2 messages are durable on t, indexes 7 to 8; 1 were there before"
        );
        summary.partitioned = true;
        summary.duplicates = 0;
        assert_eq!(summary.sentence("t"), "2 messages are durable on t");
    }

    #[tokio::test]
    async fn a_failed_acknowledgement_stops_an_endless_feed() {
        let feed = std::future::pending::<Result<u64, CliError>>();
        let printed = async { Err(CliError::failed("no")) };
        assert_eq!(together(feed, printed).await.unwrap_err().to_string(), "no");
    }

    #[tokio::test]
    async fn a_failed_input_waits_for_what_was_sent() {
        let (tell, told) = tokio::sync::oneshot::channel();
        let feed = async { Err(CliError::failed("line 3")) };
        let printed = async {
            tell.send(())
                .map_err(|()| CliError::failed("the receipts are not read any more"))?;
            Ok(Summary::default())
        };
        let error = together(feed, printed).await.unwrap_err();
        assert_eq!(error.to_string(), "line 3");
        assert!(told.await.is_ok(), "the printer ran to its end");
    }
}
