//! The composition of a bookie: what a start has found becomes its parts and its threads. No
//! decisions.

use std::io;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use aquifer_model::storage::BookieError;
use aquifer_runtime::budget::ByteBudget;
use aquifer_runtime::task::spawn_vital_thread;
use parking_lot::Mutex;

use crate::answers::Answers;
use crate::apply::Applier;
use crate::checkpoints::Checkpointer;
use crate::config::BookieConfig;
use crate::cookie::io_error;
use crate::core::{Core, Threads};
use crate::deps::BookieDeps;
use crate::error::BookieOpenError;
use crate::housekeeping::Housekeeper;
use crate::journal::group_commit::JournalThread;
use crate::loss::Limbo;
use crate::open::Started;
use crate::reclaim::Reclaimer;
use crate::scrub::Scrubber;
use crate::shared::{Found, Shared};
use crate::workers::Workers;

/// Puts the parts together and starts the threads.
pub(crate) fn start(
    config: BookieConfig,
    deps: &BookieDeps,
    started: Started,
) -> Result<Arc<Core>, BookieOpenError> {
    let replayed = started.replayed;
    let found = Found {
        id: started.cookie.id,
        store: started.store,
        damage: started.damage,
        segments: replayed.segments,
        mark: replayed.mark,
        last_commit: replayed.tail.last_sequence,
        flushed_commit: replayed.flushed,
        deleted: replayed.deleted,
    };
    let shared = Arc::new(Shared::new(config, deps, found));
    let in_limbo = u64::from(started.limbo.is_some());
    shared.metrics.limbo.record(in_limbo, &[]);
    let housekeeper = Housekeeper::new(&shared);
    // Before the first add, not a second after it.
    housekeeper.look_at_space();
    let reads_bytes_max = shared.config.read_bytes_in_flight_max;
    let core = Arc::new(Core {
        cookie: Mutex::new(started.cookie),
        gate: OnceLock::new(),
        workers: Workers::new(&shared),
        reads: ByteBudget::new(reads_bytes_max),
        answers: Answers::new(reads_bytes_max),
        limbo: Limbo::new(started.limbo),
        accepted_loss: started.accepted_loss,
        set_aside: started.set_aside,
        reclaimer: Arc::new(Reclaimer::new(&shared)),
        scrubber: Arc::new(Scrubber::new(&shared)),
        threads: Mutex::new(Threads {
            lock: Some(started.lock),
            ..Threads::default()
        }),
        shared,
    });
    // Not the core itself: what is shared does not keep the bookie running.
    let serves = Arc::downgrade(&core);
    core.shared.turns.serve_with(move || {
        if let Some(core) = serves.upgrade() {
            core.serve_turns();
        }
    });
    let journal = JournalThread::new(&core.shared, deps.rng.clone(), replayed.tail);
    let thread_error = io_error(&core.shared.config.data_dir);
    spawn_threads(&core, journal, housekeeper).map_err(thread_error)?;
    Ok(core)
}

/// On an error the caller drops the core, which ends the threads that did start.
fn spawn_threads(core: &Core, journal: JournalThread, housekeeper: Housekeeper) -> io::Result<()> {
    let shared = &core.shared;
    let mut threads = core.threads.lock();
    threads.journal = Some(vital(shared, "bookie-journal", move || journal.run())?);
    let applier = Applier::new(shared);
    threads.applier = Some(vital(shared, "bookie-apply", move || applier.run())?);
    let checkpointer = Checkpointer::new(shared, &core.reclaimer);
    threads.checkpointer = Some(vital(shared, "bookie-flush", move || checkpointer.run())?);
    threads.housekeeper = Some(vital(shared, "bookie-house", move || housekeeper.run())?);
    if core.scrubber.is_enabled() {
        let scrubber = Arc::clone(&core.scrubber);
        threads.scrubber = Some(vital(shared, "bookie-scrub", move || scrubber.run())?);
    }
    Ok(())
}

/// Starts a thread without which the bookie must not go on: its panic is a failure of the bookie,
/// and what waits for the journal is answered.
fn vital(
    shared: &Arc<Shared>,
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    spawn_vital_thread(name, body, move |why| {
        shared.mode.fail(why);
        let error = BookieError::Io(why.to_owned());
        for item in shared.queue.abandon(error.clone()) {
            item.completion.run(Err(error.clone()));
        }
        shared.turns.journal_took();
    })
}
