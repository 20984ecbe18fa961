//! A cluster in one thread and in virtual time: topic logs with their real drivers, machines and
//! placement, over simulated bookies, disks, network and metadata. A seed decides everything, so
//! that the same seed gives the same trace.
//!
//! Owners of a topic follow each other: some close cleanly, some crash, some hand it over and go on
//! with the ledger that is open, some go on as if nothing had happened while the next one takes
//! over. Faults come at random; after the last one everything heals, a last owner reads what there
//! is, and repair makes incomplete ledgers whole.
//!
//! With each owner goes a reader that keeps its place; in some runs it lets go what it has read
//! (H19).

mod faults;
mod follower;
mod history;
mod loss;
mod net;
mod node;
mod owner;
mod repair;
mod store;

use std::sync::Arc;
use std::time::Duration;

use aquifer_ledger::context::{LedgerContext, LedgerSettings, LedgerShared};
use aquifer_ledger::metrics::LedgerMetrics;
use aquifer_ledger::placement::{BookieInfo, Bookies};
use aquifer_log::cache::EntryCache;
use aquifer_log::context::{LogContext, LogSettings, LogShared};
use aquifer_log::metrics::LogMetrics;
use aquifer_log::pages::Paging;
use aquifer_model::id::BookieId;
use aquifer_model::quorum::Quorum;
use aquifer_runtime::clock::{Clock, SharedClock};
use aquifer_runtime::rng::{Rng, SeededRng, SharedRng};
use aquifer_runtime::task::TaskGroup;
use opentelemetry::metrics::MeterProvider;
use opentelemetry::metrics::noop::NoopMeterProvider;

use crate::defect::Defect;
use history::History;
use net::Net;
use store::SharedStore;

/// How long a seed runs before everything heals, in virtual time.
const FAULTS_FOR: Duration = Duration::from_secs(20);

/// What a seed is run with.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Decides everything else.
    pub seed: u64,
    /// The defect that is put back.
    pub defect: Option<Defect>,
}

/// What a seed did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Entries acknowledged.
    pub acknowledged: u64,
    /// Recoveries that began.
    pub recoveries: u64,
    /// Ensemble changes.
    pub changes: u64,
    /// Ledgers closed.
    pub closed: u64,
    /// Faults.
    pub faults: u64,
    /// Trims that began.
    pub trims: u64,
    /// Entries that were read by readers which keep their place.
    pub followed: u64,
    /// Ledgers that were incomplete when they were closed, and repaired at the end.
    pub repaired: u64,
    /// Events of bookies and network.
    pub events: u64,
    /// Hash over all events and outcomes.
    pub trace: u64,
    /// Invariants that did not hold.
    pub violations: Vec<String>,
}

/// Virtual time since the runtime began.
#[derive(Debug)]
struct VirtualClock {
    start: tokio::time::Instant,
}

impl Clock for VirtualClock {
    fn wall_ms(&self) -> u64 {
        1_700_000_000_000 + u64::try_from(self.start.elapsed().as_millis()).unwrap_or(0)
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

/// What a seed has drawn for the whole run.
#[derive(Debug, Clone, Copy)]
struct Shape {
    quorum: Quorum,
    bookies: u8,
    topics: u8,
    /// Whether what was read is trimmed.
    trims: bool,
}

impl Shape {
    fn draw(rng: &dyn Rng) -> Shape {
        let shapes = [
            (3, 3, 2, 5),
            (3, 3, 2, 3),
            (3, 2, 2, 5),
            (5, 3, 2, 6),
            (2, 2, 2, 4),
            (3, 3, 3, 5),
            (2, 2, 1, 4),
            (1, 1, 1, 2),
        ];
        // The first is what clusters use.
        let at = rng.below(2 * shapes.len() as u64);
        let at = usize::try_from(at).unwrap_or(0);
        let (ensemble, write, ack, bookies) = *shapes.get(at).unwrap_or(&shapes[0]);
        Shape {
            quorum: Quorum::new(ensemble, write, ack).expect("shapes are in order"),
            bookies,
            topics: 1 + u8::try_from(rng.below(2)).unwrap_or(0),
            trims: rng.below(2) == 0,
        }
    }
}

/// Everything that the parts of a run share.
struct Cluster {
    shape: Shape,
    defect: Option<Defect>,
    rng: SharedRng,
    clock: SharedClock,
    net: Arc<Net>,
    store: Arc<SharedStore>,
    history: Arc<History>,
    tasks: TaskGroup,
}

/// Runs a seed.
///
/// # Errors
/// When the runtime cannot be made.
pub fn run(options: Options) -> std::io::Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()?;
    Ok(runtime.block_on(simulate(options)))
}

async fn simulate(options: Options) -> Report {
    let rng = SeededRng::shared(options.seed);
    let shape = Shape::draw(&*rng);
    let clock: SharedClock = Arc::new(VirtualClock {
        start: tokio::time::Instant::now(),
    });
    let history = Arc::new(History::new(shape.quorum));
    let seeds = [rng.next_u64(), rng.next_u64()];
    let net = Net::new(
        shape.bookies,
        options.defect,
        SeededRng::shared(seeds[0]),
        Arc::clone(&clock),
    );
    let store = SharedStore::new(
        SeededRng::shared(seeds[1]),
        Arc::clone(&clock),
        Arc::clone(&history),
        options.defect,
    );
    let tasks = TaskGroup::new("simulation");
    let cluster = Arc::new(Cluster {
        shape,
        defect: options.defect,
        rng,
        clock,
        net,
        store,
        history,
        tasks,
    });
    let net = Arc::clone(&cluster.net);
    drop(
        cluster
            .tasks
            .spawn("network", async move { net.run().await }),
    );
    let owners: Vec<_> = (0..shape.topics)
        .map(|topic| {
            let cluster = Arc::clone(&cluster);
            let life = async move { owner::owners_of(&cluster, topic, FAULTS_FOR).await };
            tasks_of(topic).spawn("owners", life)
        })
        .collect();
    faults::run(&cluster, FAULTS_FOR).await;
    for owner in owners {
        if owner.await.is_err() {
            cluster
                .history
                .violation("an owner's task panicked".to_owned());
        }
    }
    repair::run(&cluster).await;
    let (events, trace) = cluster.net.trace();
    if let Some(panic) = cluster.tasks.failed() {
        cluster.history.violation(panic);
    }
    cluster.history.report(events, trace)
}

fn tasks_of(topic: u8) -> TaskGroup {
    TaskGroup::new(format!("topic-{topic}"))
}

impl Cluster {
    /// Surroundings of a new process.
    fn process(self: &Arc<Cluster>) -> (u32, Arc<LogContext>) {
        let id = self.net.new_process();
        let info = |number: u8| BookieInfo {
            id: node::id_of(number),
            zone: format!("zone {}", number % 3),
            read_only: false,
            free_bytes: 1 << 30,
            capacity_bytes: 1 << 31,
        };
        let known = (0..self.shape.bookies).map(info).collect();
        let delay = match self.rng.below(3) {
            0 => Duration::from_millis(300),
            _ => Duration::ZERO,
        };
        let settings = LedgerSettings {
            request_timeout: Duration::from_secs(2),
            overload_backoff: Duration::from_millis(5),
            overload_retries_max: 100,
            ensemble_change_delay: delay,
            kept_bytes_per_ledger_max: 4 * 1024,
            quarantine: Duration::from_secs(1),
            recovery_window_entries: 1 + u32::try_from(self.rng.below(8)).unwrap_or(0),
            retry_backoff_min: Duration::from_millis(5),
            retry_backoff_max: Duration::from_millis(500),
            ..LedgerSettings::default()
        };
        let meter = NoopMeterProvider::new().meter("simulation");
        let ledgers = LedgerContext {
            store: self.store.of_process(id, &self.net),
            transport: self.net.transport(id),
            bookies: Bookies::with_clock(known, Arc::clone(&self.clock)),
            clock: Arc::clone(&self.clock),
            rng: SeededRng::shared(self.rng.next_u64()),
            tasks: TaskGroup::new("process"),
            metrics: LedgerMetrics::new(&meter),
            settings,
            shared: LedgerShared::default(),
        };
        let context = LogContext {
            ledgers: Arc::new(ledgers),
            cache: EntryCache::new(512, 1024),
            cold: None,
            metrics: LogMetrics::new(&meter),
            settings: LogSettings {
                read_ahead_range_bytes: 256,
                paging: Paging { kept: 2, page: 2 },
                ..LogSettings::default()
            },
            shared: LogShared::default(),
        };
        (id, Arc::new(context))
    }

    fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    /// A random duration between two bounds, in milliseconds.
    fn between(&self, from_ms: u64, to_ms: u64) -> Duration {
        Duration::from_millis(from_ms + self.rng.below(to_ms - from_ms + 1))
    }

    fn chance(&self, one_in: u64) -> bool {
        self.rng.below(one_in) == 0
    }

    fn random_node(&self) -> u8 {
        u8::try_from(self.rng.below(u64::from(self.shape.bookies))).unwrap_or(0)
    }
}

/// The number of a bookie, from its id.
fn number_of(id: BookieId) -> u8 {
    id.0[0].wrapping_sub(1)
}
