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

mod context;
mod faults;
mod follower;
mod history;
mod ids;
mod loss;
mod net;
mod node;
mod owner;
mod repair;
mod report;
mod store;

use std::sync::Arc;
use std::time::Duration;

use aquifer_runtime::clock::{Clock, SharedClock};
use aquifer_runtime::rng::SeededRng;
use aquifer_runtime::task::TaskGroup;

use crate::cluster::context::{Cluster, Shape};
use crate::cluster::history::History;
use crate::cluster::net::Net;
pub use crate::cluster::report::Report;
use crate::cluster::store::SharedStore;
use crate::defect::Defect;

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
