//! Rows of ledgers in objects, in a directory and on a real S3 server, beside plain requests of the
//! same library for the same bytes in the same run. Requests are those that the server counts.
//!
//! Payloads do not compress and blocks are not compressed, so that bytes are bytes.

mod beside;
mod cost;
mod many;
mod moved;
mod plain;
mod requests;
mod store;

use std::path::Path;

use anyhow::{Result, ensure};
use aquifer_client::{Client, Place};
use aquifer_harness::wait::until;
use aquifer_model::id::Index;
use aquifer_model::policy::{Policies, Rollover};
use aquifer_model::stats::LedgerPlace;
use aquifer_runtime::clock::{Clock, SystemClock};

use crate::Suite;
use crate::load::{Load, Until};
use crate::objects::cost::Sheet;
use crate::objects::moved::{Moved, measured};
use crate::objects::requests::Requests;
use crate::objects::store::Store;
use crate::row::{Bound, Row};
use crate::server::Measured;

const NAMESPACE: &str = "public/objects";
/// One for each ledger that a broker offloads at once.
const TOPICS: [&str; 2] = ["public/objects/one", "public/objects/two"];
/// So large that the client is not what is measured.
const MESSAGE_BYTES: u32 = 8 * 1024;
/// Bytes of all messages.
const BYTES: u64 = 1 << 30;
/// Bytes of a ledger whose requests are counted: parts of 8 MiB are full.
const COST_LEDGER_BYTES: u64 = 64 << 20;
/// Places where readers begin at once.
const READERS: u64 = 10;
/// Readers that begin somewhere and read one message.
const SEEKS: u64 = 20;

/// A server with topics whose ledgers are in objects alone.
struct Objects {
    store: Store,
    server: Measured,
    /// Messages of each topic that are in objects.
    messages: u64,
}

impl Suite {
    /// Offload, reading back and seeking, in a directory and on an S3 server.
    pub(crate) async fn objects(&mut self) -> Result<()> {
        let directory = self.directory.join("objects-local");
        let local = Store::directory(&directory)?;
        self.objects_in(local, &directory).await?;
        let directory = self.directory.join("objects-s3");
        let store = Store::s3(&directory).await?;
        self.objects_in(store, &directory).await
    }

    /// Requests and bytes of a gigabyte alone, and prints the table of the page on cost.
    pub(crate) async fn cost_of_objects(&mut self) -> Result<()> {
        let directory = self.directory.join("objects-cost");
        let store = match Store::s3(&directory).await {
            Ok(store) => store,
            Err(error) => {
                // The server counts the same requests, whatever the store is.
                eprintln!("counted in a directory, for want of an S3 server: {error:#}");
                Store::directory(&directory)?
            }
        };
        let bytes = if self.quick { BYTES / 10 } else { BYTES };
        let mut objects = Objects::publish(store, &directory, COST_LEDGER_BYTES, bytes).await?;
        let offloaded = objects.offload().await?;
        objects.messages = objects.until_cold().await?;
        objects.server.restart_cold()?;
        let read = objects.read_back().await?;
        let seeks = objects.seek().await?.all;
        objects.server.stop()?;
        let sheet = Sheet {
            offloaded,
            read,
            seeks,
        };
        for line in sheet.page() {
            eprintln!("{line}");
        }
        self.rows.extend(sheet.rows());
        Ok(())
    }

    async fn objects_in(&mut self, store: Store, directory: &Path) -> Result<()> {
        let (name, is_local) = (store.name, store.is_local());
        let ledger_bytes = if self.quick { 8 << 20 } else { 64 << 20 };
        let bytes = if self.quick { BYTES / 10 } else { BYTES };
        let mut objects = Objects::publish(store, directory, ledger_bytes, bytes).await?;
        let found = objects.measure().await?;
        objects.server.stop()?;
        self.rows.extend(found.speeds(name, is_local));
        for (what, most) in [
            ("an index", found.seeks.of_index),
            ("a time", found.seeks.of_time),
        ] {
            self.rows.push(Row::new(
                &format!("{name}: requests of a cold seek to {what}, at most"),
                most,
                "requests",
                Bound::AtMost,
                3.0,
            ));
        }
        Ok(())
    }
}

/// What was measured in a place.
struct Measures {
    offloaded: Moved,
    /// The same bytes by plain requests.
    put: Moved,
    read: Moved,
    get: Moved,
    apart: Moved,
    seeks: Seeks,
}

impl Measures {
    fn speeds(&self, name: &str, is_local: bool) -> [Row; 3] {
        let speed = |what: &str, ours: &Moved, of: &Moved| {
            let (ours, plain) = (ours.megabytes_per_second(), of.megabytes_per_second());
            let row = match is_local {
                true => Row::new(
                    &format!("{name}: {what}"),
                    ours,
                    "MB/s",
                    Bound::AtLeast,
                    300.0,
                ),
                false => Row::new(
                    &format!("{name}: {what}, of a plain one"),
                    100.0 * ours / plain,
                    "%",
                    Bound::AtLeast,
                    70.0,
                ),
            };
            row.note(format!("{ours:.0} MB/s, plain {plain:.0} MB/s"))
        };
        [
            speed("offload, read back and checked", &self.offloaded, &self.put),
            speed("sequential read", &self.read, &self.get),
            Row::new(
                &format!("{name}: {READERS} readers at different places, together"),
                self.apart.megabytes_per_second(),
                "MB/s",
                Bound::AtLeast,
                self.read.megabytes_per_second(),
            ),
        ]
    }
}

/// A namespace whose ledgers are closed at a size.
async fn namespace(client: &Client, ledger_bytes: u64) -> Result<()> {
    let policies = Policies {
        rollover: Some(Rollover {
            size_bytes: ledger_bytes,
            ..Rollover::default()
        }),
        ..Policies::default()
    };
    client.admin().create_namespace(NAMESPACE, policies).await?;
    Ok(())
}

/// Has everything offloaded that is closed, and waits until it is.
async fn offload(client: &Client, topics: &[String]) -> Result<()> {
    let admin = client.admin();
    until("the ledgers to be offloaded", || async {
        let asked = topics
            .iter()
            .map(|topic| admin.offload_topic(topic, Place::Latest));
        let left = futures::future::try_join_all(asked).await?;
        Ok(left.iter().all(|(ledgers, _)| *ledgers == 0).then_some(()))
    })
    .await
}

/// Waits until what is offloaded of a topic is in objects alone; answers up to which index that is.
async fn until_dropped(client: &Client, topic: &str) -> Result<u64> {
    until("copies at bookies to go", || async {
        let stats = client.admin().topic_stats(topic).await?;
        let mut cold = stats
            .ledgers
            .iter()
            .filter(|l| l.state == LedgerPlace::Offloaded);
        let behind = stats
            .ledgers
            .iter()
            .find(|l| l.state != LedgerPlace::Offloaded);
        let end = behind.map_or(stats.end_index, |ledger| ledger.first_index);
        Ok((!cold.any(|ledger| ledger.local)).then_some(end.0))
    })
    .await
}

/// Requests of a seek, at most and all together.
struct Seeks {
    of_index: f64,
    of_time: f64,
    all: Moved,
}

impl Objects {
    /// A server with topics of these bytes together.
    async fn publish(
        store: Store,
        directory: &Path,
        ledger_bytes: u64,
        bytes: u64,
    ) -> Result<Objects> {
        let mut options = store.options()?;
        let no_bound = ("AQUIFER_COLD_UPLOAD_BYTES_PER_SECOND_MAX", "0");
        let no_bound = (no_bound.0.to_owned(), no_bound.1.to_owned());
        options.environment.push(no_bound);
        let server = Measured::start_with(&directory.join("data"), options).await?;
        namespace(&server.client()?, ledger_bytes).await?;
        for topic in TOPICS {
            let count = bytes / u64::from(MESSAGE_BYTES) / TOPICS.len() as u64;
            let load = Load::new(server.url(), Until::Count(count), 1_000);
            let load = load.topic(topic).size(MESSAGE_BYTES);
            load.produce().await?.complete()?;
        }
        Ok(Objects {
            store,
            server,
            messages: 0,
        })
    }

    async fn measure(&mut self) -> Result<Measures> {
        let offloaded = self.offload().await?;
        self.messages = self.until_cold().await?;
        let plain = plain::Plain::of(&self.store.open()?).await?;
        let put = plain.put().await?;
        // Nothing of the objects is in the memory of the server.
        self.server.restart_cold()?;
        let read = self.read_back().await?;
        let get = plain.get().await?;
        plain.remove().await?;
        Ok(Measures {
            offloaded,
            put,
            read,
            get,
            apart: self.read_apart().await?,
            seeks: self.seek().await?,
        })
    }

    async fn requests(&self) -> Result<Requests> {
        Requests::of(&self.server).await
    }

    async fn offload(&self) -> Result<Moved> {
        let client = self.server.client()?;
        let counted = "aquifer_log_offloaded_bytes_total";
        let topics = TOPICS.map(str::to_owned);
        let before = self.server.metric(counted).await?;
        let mut moved = measured(&self.server, offload(&client, &topics)).await?;
        moved.bytes = self.server.metric(counted).await? - before;
        ensure!(moved.bytes > 0.0, "no ledger was offloaded");
        Ok(moved)
    }

    /// Up to which index both topics are in objects alone, once they are.
    async fn until_cold(&self) -> Result<u64> {
        let client = self.server.client()?;
        let mut least = u64::MAX;
        for topic in TOPICS {
            least = least.min(until_dropped(&client, topic).await?);
        }
        ensure!(
            least > READERS,
            "too little is in objects: {least} messages"
        );
        Ok(least)
    }

    /// One consumer reads all of a topic, then another one of the other topic.
    async fn read_back(&self) -> Result<Moved> {
        let reading = async {
            for topic in TOPICS {
                let count = Until::Count(self.messages);
                let load = Load::new(self.server.url(), count, 1_000);
                let load = load.topic(topic).size(MESSAGE_BYTES);
                load.consume().await?.complete()?;
            }
            Ok(())
        };
        let mut moved = measured(&self.server, reading).await?;
        moved.bytes = (self.messages * TOPICS.len() as u64 * u64::from(MESSAGE_BYTES)) as f64;
        Ok(moved)
    }

    /// Readers that begin at different places, each of which reads its part.
    async fn read_apart(&self) -> Result<Moved> {
        let client = self.server.client()?;
        let part = self.messages / READERS;
        let read = |number: u64| {
            let client = client.clone();
            async move {
                let start = Place::Index(Index(number * part));
                let reader = client.reader(TOPICS[0]).start(start).open().await?;
                for _ in 0..part {
                    reader.next().await?;
                }
                reader.close().await?;
                anyhow::Ok(())
            }
        };
        let all = async {
            futures::future::try_join_all((0..READERS).map(read)).await?;
            Ok(())
        };
        let mut moved = measured(&self.server, all).await?;
        moved.bytes = (part * READERS * u64::from(MESSAGE_BYTES)) as f64;
        Ok(moved)
    }

    /// Readers that begin at places which nothing in memory is near to, and read one message.
    async fn seek(&mut self) -> Result<Seeks> {
        self.server.restart_cold()?;
        let client = self.server.client()?;
        let one = async |place: Place| {
            let reader = client.reader(TOPICS[1]).start(place).queue_messages(1);
            let reader = reader.open().await?;
            let message = reader.next().await?;
            reader.close().await?;
            anyhow::Ok(message)
        };
        // The place of the objects is looked at once.
        let first = one(Place::Index(Index(0))).await?;
        let last = one(Place::Index(Index(self.messages - 1))).await?;
        let began = self.requests().await?;
        let clock = SystemClock;
        let from = clock.monotonic();
        let (mut of_index, mut of_time) = (0.0_f64, 0.0_f64);
        for number in 1..=SEEKS {
            let before = self.requests().await?;
            let index = self.messages * number / (SEEKS + 2);
            one(Place::Index(Index(index))).await?;
            let after = self.requests().await?;
            of_index = of_index.max(after.since(&before).count());
            let span = last.broker_time_ms.saturating_sub(first.broker_time_ms);
            // Between the places that were looked at by index.
            let time = first.broker_time_ms + span * (2 * number + 1) / (2 * SEEKS + 4);
            one(Place::TimeMs(time)).await?;
            of_time = of_time.max(self.requests().await?.since(&after).count());
        }
        let seconds = clock.monotonic().saturating_sub(from).as_secs_f64();
        let requests = self.requests().await?.since(&began);
        Ok(Seeks {
            of_index,
            of_time,
            all: Moved {
                bytes: (2 * SEEKS * u64::from(MESSAGE_BYTES)) as f64,
                seconds,
                requests,
            },
        })
    }
}

/// The bytes of a figure of a run, for people.
fn megabytes(bytes: f64) -> String {
    format!("{:.0} MB", bytes / 1e6)
}

#[test]
fn topics_are_in_the_namespace() {
    for topic in TOPICS {
        let name: aquifer_model::topic::TopicName = topic.parse().expect("a name");
        assert_eq!(name.namespace().to_string(), NAMESPACE);
    }
    assert_eq!(megabytes(2.4e6), "2 MB");
}
