//! Subscriptions that are consumed through every fault: one exclusive, one with a stand-by, and one
//! that three consumers share; by processes on hosts of their own ([`crate::consuming`]), which are
//! killed, paused and cut off like the servers.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aquifer_client::{Client, Message};
use aquifer_harness::deliveries::{Counts, Event, Parser, What, check};
use aquifer_runtime::clock::sleep;

use crate::consuming::{file, open};
use crate::workload::{Kind, name_of, processes, topic};

/// What is known of a subscription while it is consumed.
#[derive(Debug, Default)]
struct Received {
    /// By index.
    seen: Vec<bool>,
    /// Everything below was received.
    all_below: usize,
    events: Vec<Event>,
}

/// A subscription of a topic, and the files of the processes that consume it.
#[derive(Debug)]
pub struct Subscription {
    /// The topic.
    pub topic: String,
    /// How it is consumed.
    pub kind: Kind,
    received: Mutex<Received>,
    files: Mutex<Vec<Followed>>,
}

/// A file of events, as far as it was read.
#[derive(Debug)]
struct Followed {
    path: PathBuf,
    offset: u64,
    parser: Parser,
}

impl Subscription {
    /// The subscription of this kind of a topic. `folder` has the files.
    pub fn new(number: usize, kind: Kind, folder: &std::path::Path) -> Arc<Subscription> {
        let own = processes().filter(|(other, _)| *other == kind);
        let files = own.enumerate().map(|(at, (_, process))| Followed {
            path: file(folder, &process, number),
            offset: 0,
            parser: Parser::new(u32::try_from(at).unwrap_or_default() << 24),
        });
        Arc::new(Subscription {
            topic: topic(number),
            kind,
            received: Mutex::default(),
            files: Mutex::new(files.collect()),
        })
    }

    /// Its name.
    pub fn name(&self) -> String {
        name_of(self.kind.into())
    }

    /// Reads what the processes have written since; says whether messages came.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn follow(&self) -> Result<bool> {
        let mut came = false;
        for followed in self.files.lock().expect("no holder panics").iter_mut() {
            for event in followed.read()? {
                came |= event.what == What::Received;
                self.note(event)?;
            }
        }
        Ok(came)
    }

    fn note(&self, event: Event) -> Result<()> {
        let received: &mut Received = &mut self.received.lock().expect("no holder panics");
        if event.what == What::Received {
            for (first, last) in &event.ranges {
                let (first, end) = (usize::try_from(*first)?, usize::try_from(*last)? + 1);
                if received.seen.len() < end {
                    received.seen.resize(end, false);
                }
                received.seen[first..end].fill(true);
            }
            while received.seen.get(received.all_below) == Some(&true) {
                received.all_below += 1;
            }
        }
        received.events.push(event);
        Ok(())
    }

    /// Messages from the first on that were all received.
    pub fn all_below(&self) -> u64 {
        self.received.lock().expect("no holder panics").all_below as u64
    }

    /// Checks everything that its consumers wrote down.
    ///
    /// # Errors
    /// I9 or P10, with the message.
    pub fn check(&self) -> Result<Counts> {
        self.follow()?;
        let received: &mut Received = &mut self.received.lock().expect("no holder panics");
        let events = std::mem::take(&mut received.events);
        check(events, self.kind != Kind::Shared)
            .with_context(|| format!("{} of {}", self.name(), self.topic))
    }

    /// After everything was consumed, and the brokers were replaced: the message that is published
    /// now is the only one that comes. P9: nothing that was acknowledged does.
    ///
    /// # Errors
    /// Says what came instead.
    pub async fn is_drained(&self, client: &Client, end: u64) -> Result<()> {
        let consumer = loop {
            match open(client, &self.topic, self.kind.into()).await? {
                Some(consumer) => break consumer,
                None => sleep(Duration::from_millis(100)).await,
            }
        };
        let message = consumer.receive().await?;
        ensure!(
            message.index.0 >= end,
            "P9: index {} comes again, although everything below {end} was acknowledged",
            message.index.0
        );
        Ok(())
    }
}

impl Followed {
    /// Events of whole lines that came since.
    fn read(&mut self) -> Result<Vec<Event>> {
        let Ok(mut opened) = File::open(&self.path) else {
            return Ok(Vec::new()); // its process has not begun
        };
        opened.seek(SeekFrom::Start(self.offset))?;
        let mut text = String::new();
        opened.read_to_string(&mut text)?;
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        self.offset += whole as u64;
        let mut events = Vec::new();
        for line in text[..whole].lines() {
            let event = self.parser.parse(line);
            events.extend(event.with_context(|| self.path.display().to_string())?);
        }
        Ok(events)
    }
}

/// Publishes one message behind everything; brokers may be starting.
pub async fn publish_last(client: &Client, topic: &str) -> Result<()> {
    let producer = loop {
        match client.producer(topic).send_timeout(None).open().await {
            Ok(producer) => break producer,
            Err(error) if error.is_retryable() => sleep(Duration::from_millis(100)).await,
            Err(error) => return Err(error.into()),
        }
    };
    producer.send(Message::new("the last one")).await?;
    Ok(())
}
