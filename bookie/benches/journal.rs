//! How fast adds become durable: `cargo bench -p aquifer-bookie --bench journal` prints one JSON
//! line per size and concurrency. Closed loop: each acknowledgement submits the next add, from the
//! thread that acknowledges. Every add is synced; RocksDB takes them meanwhile.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aquifer_bookie::{Bookie, BookieConfig, BookieDeps};
use aquifer_model::entry::EntryData;
use aquifer_model::id::{CreationToken, EntryId, LedgerId, TenantKey};
use aquifer_model::storage::{AddEntry, BookieError, OrderedOperation, OrderedRequest, ReadRange};
use aquifer_runtime::clock::{Clock, SystemClock};
use aquifer_runtime::disk::RealDisk;
use aquifer_runtime::rng::SystemRng;
use aquifer_runtime::telemetry::{Telemetry, resident_bytes};
use bytes::Bytes;

/// One run of a size and a concurrency.
struct Run {
    bookie: Bookie,
    ledger: u64,
    body: Bytes,
    next: AtomicU64,
    until: Duration,
    bytes_max: u64,
    refused: AtomicU64,
    latencies_us: Mutex<Vec<u64>>,
    events: SyncSender<Event>,
}

enum Event {
    /// One of the loops is over.
    Ended,
    /// The bookie refused this entry: it has too much in flight.
    Again(u64),
}

impl Run {
    fn submit_next(self: &Arc<Self>) {
        let entry = self.next.fetch_add(1, Ordering::Relaxed);
        let bytes = entry * u64::try_from(self.body.len()).unwrap_or(1);
        if SystemClock.monotonic() >= self.until || bytes >= self.bytes_max {
            let _ = self.events.send(Event::Ended);
            return;
        }
        self.submit(entry);
    }

    fn submit(self: &Arc<Self>, entry: u64) {
        let now = SystemClock.monotonic();
        let data = EntryData {
            head: Bytes::new(),
            body: self.body.clone(),
        };
        let ledger = LedgerId(self.ledger);
        let add = AddEntry::new(ledger, EntryId(entry), None, 0, data);
        let request = OrderedRequest {
            ledger,
            token: CreationToken([1; 16]),
            tenant: TenantKey::UNKNOWN,
            operation: OrderedOperation::Add(add),
        };
        let run = Arc::clone(self);
        let reply = move |outcome| {
            match outcome {
                Ok(_) => {
                    let took = SystemClock.monotonic().saturating_sub(now);
                    let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                    run.latencies_us.lock().expect("no panic inside").push(took);
                }
                Err(BookieError::Overloaded) => {
                    run.refused.fetch_add(1, Ordering::Relaxed);
                    // Not from here: a refusal comes before `submit` has returned.
                    let _ = run.events.send(Event::Again(entry));
                    return;
                }
                Err(error) => eprintln!("add failed: {error}"),
            }
            run.submit_next();
        };
        self.bookie.submit(request, Box::new(reply));
    }
}

fn measure(bookie: &Bookie, ledger: u64, size: usize, concurrency: usize) {
    let (events, received) = sync_channel(concurrency * 2);
    let started = SystemClock.monotonic();
    let run = Arc::new(Run {
        bookie: bookie.clone(),
        ledger,
        body: Bytes::from(vec![7; size]),
        next: AtomicU64::new(0),
        until: started + Duration::from_secs(4),
        bytes_max: 2 << 30,
        refused: AtomicU64::new(0),
        latencies_us: Mutex::default(),
        events,
    });
    (0..concurrency).for_each(|_| run.submit_next());
    let mut running = concurrency;
    while running > 0 {
        match received.recv() {
            Ok(Event::Again(entry)) => {
                // As long as the ledger client waits before it sends again.
                let pause = Duration::from_millis(5);
                std::thread::park_timeout(pause);
                run.submit(entry);
                while let Ok(event) = received.try_recv() {
                    match event {
                        Event::Ended => running -= 1,
                        Event::Again(entry) => run.submit(entry),
                    }
                }
            }
            Ok(Event::Ended) | Err(_) => running -= 1,
        }
    }
    let seconds = SystemClock
        .monotonic()
        .saturating_sub(started)
        .as_secs_f64();
    let mut latencies = run.latencies_us.lock().expect("no panic inside");
    latencies.sort_unstable();
    let at = |part: usize| latencies.get(latencies.len() * part / 1000).copied();
    let entries = f64::from(u32::try_from(latencies.len()).unwrap_or(u32::MAX));
    let megabytes = entries * f64::from(u32::try_from(size).unwrap_or(u32::MAX)) / 1e6;
    println!(
        "{{\"size\":{size},\"concurrency\":{concurrency},\"entries_per_second\":{:.0},\
         \"megabytes_per_second\":{:.1},\"p50_us\":{},\"p99_us\":{},\"p999_us\":{},\
         \"refused\":{},\"resident_mb\":{}}}",
        entries / seconds,
        megabytes / seconds,
        at(500).unwrap_or(0),
        at(990).unwrap_or(0),
        at(999).unwrap_or(0),
        run.refused.load(Ordering::Relaxed),
        resident_bytes().unwrap_or(0) >> 20,
    );
}

/// Reads a ledger from its beginning, in parts as a catch-up reader does.
async fn read_back(bookie: &Bookie, ledger: u64, size: usize) {
    let started = SystemClock.monotonic();
    let mut next = 0_u64;
    let mut bytes = 0_usize;
    while bytes < 1 << 30 {
        let range = ReadRange {
            ledger: LedgerId(ledger),
            token: None,
            first: EntryId(next),
            last: EntryId(u64::MAX - 1),
            bytes_max: 4 << 20,
            entries_max: 10_000,
            prefix_bytes: None,
        };
        let Ok(batch) = bookie.read(range).await else {
            break;
        };
        next += u64::try_from(batch.entries.len()).unwrap_or(0);
        bytes += batch.entries.iter().map(|e| e.data.len()).sum::<usize>();
    }
    let seconds = SystemClock
        .monotonic()
        .saturating_sub(started)
        .as_secs_f64();
    let megabytes = f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX)) * 1.024e-3;
    println!(
        "{{\"read_size\":{size},\"megabytes_per_second\":{:.1},\"entries\":{next}}}",
        megabytes / seconds
    );
}

fn main() {
    let directory = PathBuf::from("target/bench-bookie");
    let _ = std::fs::remove_dir_all(&directory);
    let deps = BookieDeps {
        disk: RealDisk::shared(),
        clock: SystemClock::shared(),
        rng: SystemRng::shared(),
        meter: Telemetry::for_tests().meter("bookie"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime starts");
    let started = SystemClock.monotonic();
    let config = BookieConfig::in_directory(&directory);
    let bookie = Bookie::open(config, deps).expect("a new directory opens");
    let took = SystemClock.monotonic().saturating_sub(started);
    println!("{{\"start_ms\":{}}}", took.as_millis());
    let mut ledger = 0;
    for (size, concurrencies) in [
        (1024, &[1, 16, 256, 4096][..]),
        (128 * 1024, &[1, 8, 64]),
        (1024 * 1024, &[1, 8]),
    ] {
        for concurrency in concurrencies {
            ledger += 1;
            measure(&bookie, ledger, size, *concurrency);
        }
        runtime.block_on(read_back(&bookie, ledger, size));
    }
    runtime.block_on(bookie.shutdown());
    let _ = std::fs::remove_dir_all(&directory);
}
