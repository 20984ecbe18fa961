//! The composition of a bookie: which part holds which other, and the threads. No decisions.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, OnceLock};

use aquifer_model::storage::BookieError;
use aquifer_runtime::budget::ByteBudget;
use aquifer_runtime::task::spawn_vital_thread;
use parking_lot::Mutex;

use crate::BookieDeps;
use crate::answers::Answers;
use crate::apply::{Applier, ApplyQueue};
use crate::background::Background;
use crate::bell::Bell;
use crate::config::BookieConfig;
use crate::cookie::io_error;
use crate::core::{Core, Threads};
use crate::damage::Damage;
use crate::error::BookieOpenError;
use crate::journal::commit::BlockPool;
use crate::journal::group_commit::{JournalThread, Tail};
use crate::journal::mark::Mark;
use crate::journal::queue::JournalQueue;
use crate::journal::segments::Segments;
use crate::ledgers::LedgerTable;
use crate::loss::Limbo;
use crate::metrics::BookieMetrics;
use crate::mode::Mode;
use crate::open::Started;
use crate::positions::Positions;
use crate::reclaim::Reclaimer;
use crate::reserve::Reserve;
use crate::scrub::Scrubber;
use crate::store::EntryStore;
use crate::watchers::Watchers;
use crate::workers::Workers;

/// What several parts share.
struct Parts {
    config: BookieConfig,
    deps: BookieDeps,
    store: Arc<dyn EntryStore>,
    segments: Arc<Segments>,
    mark: Arc<Mark>,
    pool: Arc<BlockPool>,
    positions: Arc<Positions>,
    mode: Arc<Mode>,
    damage: Arc<Damage>,
    metrics: Arc<BookieMetrics>,
    ledgers: Arc<LedgerTable>,
    watchers: Arc<Watchers>,
    reclaimer: Arc<Reclaimer>,
    queue: Arc<JournalQueue>,
    apply_queue: Arc<ApplyQueue>,
    unflushed_bytes: Arc<AtomicUsize>,
    checkpointer: Arc<Bell>,
    housekeeper: Arc<Bell>,
    stop: Arc<Bell>,
    adds: ByteBudget,
    control: ByteBudget,
}

/// Puts the parts together and starts the threads.
pub(crate) fn start(
    config: BookieConfig,
    deps: &BookieDeps,
    started: Started,
) -> Result<Arc<Core>, BookieOpenError> {
    let replayed = started.replayed;
    let parts = Parts {
        store: started.store,
        segments: Arc::new(replayed.segments),
        mark: Arc::new(replayed.mark),
        pool: Arc::default(),
        positions: Arc::default(),
        mode: Arc::default(),
        damage: Arc::new(Damage::new(started.damage)),
        metrics: Arc::new(BookieMetrics::new(&deps.meter)),
        ledgers: Arc::new(LedgerTable::new(config.ledgers_cached_max)),
        reclaimer: Arc::new(Reclaimer::new(config.ledger_dir.clone())),
        watchers: Arc::default(),
        queue: Arc::default(),
        apply_queue: Arc::default(),
        unflushed_bytes: Arc::default(),
        checkpointer: Arc::default(),
        housekeeper: Arc::default(),
        stop: Arc::default(),
        adds: ByteBudget::new(config.bytes_in_flight_max),
        control: ByteBudget::new(config.control_bytes_in_flight_max),
        deps: deps.clone(),
        config,
    };
    parts.begin_at(replayed.tail.last_sequence, replayed.flushed);
    for ledger in replayed.deleted {
        parts.reclaimer.add(ledger, replayed.tail.last_sequence);
    }
    let in_limbo = u64::from(started.limbo.is_some());
    parts.metrics.limbo.record(in_limbo, &[]);
    let background = Arc::new(parts.background());
    // Before the first add, not a second after it.
    background.look_at_space();
    let core = Arc::new(Core {
        id: started.cookie.id,
        cookie: Mutex::new(started.cookie),
        disk: parts.deps.disk.clone(),
        gate: OnceLock::new(),
        queue: Arc::clone(&parts.queue),
        applier: Arc::clone(&parts.apply_queue),
        ledgers: Arc::clone(&parts.ledgers),
        segments: Arc::clone(&parts.segments),
        store: Arc::clone(&parts.store),
        positions: Arc::clone(&parts.positions),
        mode: Arc::clone(&parts.mode),
        metrics: Arc::clone(&parts.metrics),
        reclaimer: Arc::clone(&parts.reclaimer),
        watchers: Arc::clone(&parts.watchers),
        workers: Workers::new(parts.config.read_threads, &parts.mode),
        adds: parts.adds.clone(),
        control: parts.control.clone(),
        reads: ByteBudget::new(parts.config.read_bytes_in_flight_max),
        answers: Answers::new(parts.config.read_bytes_in_flight_max),
        limbo: Limbo::new(started.limbo),
        damage: Arc::clone(&parts.damage),
        accepted_loss: started.accepted_loss,
        set_aside: started.set_aside,
        background: Arc::clone(&background),
        scrubber: Arc::new(Scrubber::new(&parts.config, &parts.store, &parts.metrics)),
        stop: Arc::clone(&parts.stop),
        threads: Mutex::new(Threads {
            lock: Some(started.lock),
            ..Threads::default()
        }),
    });
    let journal = parts.journal(core.id, replayed.tail);
    let thread_error = io_error(&parts.config.data_dir);
    spawn_threads(&core, journal, parts.applier(), background).map_err(thread_error)?;
    Ok(core)
}

impl Parts {
    /// The bookie goes on where replay has come to, with what is known of its files.
    fn begin_at(&self, last: u64, flushed: u64) {
        self.positions.synced.advance(last);
        self.positions.applied.advance(last);
        self.positions.flushed.advance(flushed);
        if let Some(damage) = self.damage.report() {
            self.mode.storage_damaged(&damage.to_string());
        }
    }

    fn journal(&self, bookie: aquifer_model::id::BookieId, tail: Tail) -> JournalThread {
        let reserve_bytes = u64::try_from(self.config.journal_reserve_bytes);
        JournalThread {
            queue: Arc::clone(&self.queue),
            applier: Arc::clone(&self.apply_queue),
            ledgers: Arc::clone(&self.ledgers),
            segments: Arc::clone(&self.segments),
            mark: Arc::clone(&self.mark),
            pool: Arc::clone(&self.pool),
            positions: Arc::clone(&self.positions),
            mode: Arc::clone(&self.mode),
            housekeeper: Arc::clone(&self.housekeeper),
            checkpointer: Arc::clone(&self.checkpointer),
            metrics: Arc::clone(&self.metrics),
            clock: self.deps.clock.clone(),
            rng: self.deps.rng.clone(),
            bookie,
            commit_bytes_max: self.config.commit_bytes_max,
            reserve_bytes: reserve_bytes.unwrap_or(u64::MAX),
            tail,
            starved: false,
            doubtful_until: 0,
            left_metas: BTreeMap::new(),
        }
    }

    fn applier(&self) -> Applier {
        Applier {
            queue: Arc::clone(&self.apply_queue),
            store: Arc::clone(&self.store),
            ledgers: Arc::clone(&self.ledgers),
            watchers: Arc::clone(&self.watchers),
            positions: Arc::clone(&self.positions),
            mode: Arc::clone(&self.mode),
            damage: Arc::clone(&self.damage),
            around_damage: self.damage.report().is_some(),
            reopened: 0,
            segments: Arc::clone(&self.segments),
            disk: self.deps.disk.clone(),
            reclaimer: Arc::clone(&self.reclaimer),
            unflushed_bytes: Arc::clone(&self.unflushed_bytes),
            // About when RocksDB has flushed another memtable.
            look_bytes: self.config.memtable_bytes,
            checkpointer: Arc::clone(&self.checkpointer),
            stop: Arc::clone(&self.stop),
        }
    }

    fn background(&self) -> Background {
        Background {
            config: self.config.clone(),
            disk: self.deps.disk.clone(),
            clock: self.deps.clock.clone(),
            store: Arc::clone(&self.store),
            segments: Arc::clone(&self.segments),
            mark: Arc::clone(&self.mark),
            pool: Arc::clone(&self.pool),
            positions: Arc::clone(&self.positions),
            mode: Arc::clone(&self.mode),
            metrics: Arc::clone(&self.metrics),
            reclaimer: Arc::clone(&self.reclaimer),
            reserve: Reserve::new(&self.config),
            apply_queue: Arc::clone(&self.apply_queue),
            budgets: [self.adds.clone(), self.control.clone()],
            unflushed_bytes: Arc::clone(&self.unflushed_bytes),
            checkpointer: Arc::clone(&self.checkpointer),
            housekeeper: Arc::clone(&self.housekeeper),
            stopping: AtomicBool::new(false),
            flush_at_end: AtomicBool::new(false),
        }
    }
}

/// On an error the caller drops the core, which ends the threads that did start.
fn spawn_threads(
    core: &Core,
    journal: JournalThread,
    applier: Applier,
    background: Arc<Background>,
) -> io::Result<()> {
    let mut threads = core.threads.lock();
    let checkpoints = Arc::clone(&background);
    threads.journal = Some(vital(core, "bookie-journal", move || journal.run())?);
    threads.applier = Some(vital(core, "bookie-apply", move || applier.run())?);
    let body = move || checkpoints.run_checkpoints();
    threads.checkpointer = Some(vital(core, "bookie-flush", body)?);
    let body = move || background.run_housekeeping();
    threads.housekeeper = Some(vital(core, "bookie-house", body)?);
    if core.scrubber.is_enabled() {
        let scrubber = Arc::clone(&core.scrubber);
        threads.scrubber = Some(vital(core, "bookie-scrub", move || scrubber.run())?);
    }
    Ok(())
}

/// Starts a thread without which the bookie must not go on: its panic is a failure of the bookie, and
/// what waits for the journal is answered.
fn vital(
    core: &Core,
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<std::thread::JoinHandle<()>> {
    let (mode, queue) = (Arc::clone(&core.mode), Arc::clone(&core.queue));
    spawn_vital_thread(name, body, move |why| {
        mode.fail(why);
        let error = BookieError::Io(why.to_owned());
        for item in queue.abandon(error.clone()) {
            item.completion.run(Err(error.clone()));
        }
    })
}
