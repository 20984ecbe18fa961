//! Logs under real threads: replies come from a thread of the transport, owners run in parallel.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use aquifer_ledger::testing::TestBookies;
use aquifer_ledger::transport::BookieTransport;
use aquifer_model::id::BookieId;
use aquifer_model::storage::{BookieResult, OrderedRequest, ReadBatch, ReadRange, ReplyCallback};
use aquifer_runtime::task::spawn_thread;
use async_trait::async_trait;

use super::*;
use crate::owner::Step;

type Submitted = (BookieId, OrderedRequest, ReplyCallback);

/// Serves requests on a thread of its own, as a bookie's commit thread does.
struct Threaded {
    bookies: TestBookies,
    queue: SyncSender<Submitted>,
}

impl Threaded {
    fn start(bookies: TestBookies) -> Arc<Threaded> {
        let (queue, requests): (_, Receiver<Submitted>) = sync_channel(1 << 16);
        let serving = bookies.clone();
        let thread = spawn_thread("bookie", move || {
            for (bookie, request, reply) in requests {
                serving.submit(bookie, request, reply);
            }
        });
        drop(thread.expect("a thread can be started"));
        Arc::new(Threaded { bookies, queue })
    }
}

#[async_trait]
impl BookieTransport for Threaded {
    fn submit(&self, bookie: BookieId, request: OrderedRequest, reply: ReplyCallback) {
        self.queue
            .try_send((bookie, request, reply))
            .expect("the queue is larger than the test");
    }

    async fn read(&self, bookie: BookieId, range: ReadRange) -> BookieResult<ReadBatch> {
        self.bookies.read(bookie, range).await
    }

    async fn has(
        &self,
        bookie: BookieId,
        range: aquifer_model::storage::PresenceRange,
    ) -> BookieResult<aquifer_model::storage::Presence> {
        self.bookies.has(bookie, range).await
    }

    async fn wait(
        &self,
        bookie: BookieId,
        wait: aquifer_model::storage::TailWait,
    ) -> BookieResult<aquifer_model::storage::TailState> {
        self.bookies.wait(bookie, wait).await
    }
}

/// Looks, from inside the outcome of the last append of a ledger, at what the owner would do.
#[derive(Default)]
struct Watching {
    log: Mutex<Option<TopicLog>>,
    waits: Mutex<Vec<bool>>,
    told: Notify,
}

impl AppendSink for Watching {
    fn appended(&self, tag: u64, outcome: Result<Appended, LogError>) {
        outcome.unwrap();
        let log = self.log.lock().take();
        if let Some(log) = log {
            let later = Arc::new(Sink::default()) as Arc<dyn AppendSink>;
            let append = Append {
                format: FORMAT_NATIVE,
                message_count: 1,
                flags: EntryFlags::default(),
                extensions: Extensions::default(),
                body: body(tag + 1),
                tag: tag + 1,
                trace: None,
            };
            log.append(append, &later).unwrap();
            let step = log.inner.next_step();
            self.waits.lock().push(matches!(step, Step::Drain));
        }
        self.told.notify_one();
    }
}

/// I7: the next ledger is not opened before the outcome of the last append to this one is told,
/// however long that takes, or its outcomes could overtake it.
#[tokio::test]
async fn a_rollover_waits_until_the_last_outcome_is_told() {
    let owner = Owner::open(TestWorld::new(1).logs(), options(1)).await;
    let watching = Arc::new(Watching::default());
    *watching.log.lock() = Some(owner.log.clone());
    let sink: Arc<dyn AppendSink> = watching.clone();
    let append = Append {
        format: FORMAT_NATIVE,
        message_count: 1,
        flags: EntryFlags::default(),
        extensions: Extensions::default(),
        body: body(0),
        tag: 0,
        trace: None,
    };
    owner.log.append(append, &sink).unwrap();
    watching.told.notified().await;
    assert_eq!(*watching.waits.lock(), [true]);
}

const ENTRIES: u64 = 3000;

/// Appends from one task while another reads behind it; both see the same order.
async fn one_log(ctx: Arc<LogContext>, name: String) {
    let topic: TopicName = name.parse().unwrap();
    let cell = TopicRecordCell::create(ctx.clone(), &topic, Vec::new()).await;
    let kind = LogKind::Messages;
    let log = TopicLog::open(ctx.clone(), cell.unwrap(), kind, options(500))
        .await
        .unwrap();
    let collected = Arc::new(Sink::default());
    let sink: Arc<dyn AppendSink> = collected.clone();
    let reader = log.clone();
    let read = ctx.ledgers.tasks.spawn("reader", async move {
        let (mut at, mut end) = (ReadPoint::from(Index(0)), reader.watch_end());
        let mut seen = 0_u64;
        while seen < ENTRIES {
            for entry in reader.read(&mut at, LIMITS).await.unwrap() {
                assert_eq!(entry.body, body(seen));
                seen += 1;
            }
            if seen < ENTRIES && at.index >= *end.borrow_and_update() {
                end.changed().await.unwrap();
            }
        }
    });
    for tag in 0..ENTRIES {
        let append = Append {
            format: FORMAT_NATIVE,
            message_count: count(tag),
            flags: EntryFlags::default(),
            extensions: Extensions::default(),
            body: body(tag),
            tag,
            trace: None,
        };
        log.append(append, &sink).unwrap();
        if tag % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let outcomes = collected.wait_for(usize::try_from(ENTRIES).unwrap()).await;
    for (expected, (tag, outcome)) in (0..ENTRIES).zip(&outcomes) {
        assert_eq!(*tag, expected);
        assert!(outcome.is_ok(), "{tag}: {outcome:?}");
    }
    read.await.unwrap();
    log.close().await.unwrap();
    assert_eq!(log.stats().ledgers.len(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_holds_when_replies_come_from_other_threads() {
    let world = TestWorld::new(1);
    let store = Arc::new(world.store.clone());
    let transport = Threaded::start(world.bookies.clone());
    let ctx = world.logs_with(store, transport, TestWorld::settings());
    let logs = (0..4).map(|n| {
        let task = one_log(ctx.clone(), format!("public/default/topic-{n}"));
        ctx.ledgers.tasks.spawn("log", task)
    });
    for log in logs.collect::<Vec<_>>() {
        log.await.unwrap();
    }
    assert_eq!(ctx.shared.pending_bytes(), 0);
}
