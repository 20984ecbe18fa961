//! A running bookie: what its callers use, and how its threads end.

use std::io;
use std::sync::{Arc, OnceLock};

use aquifer_model::storage::BookieError;
use aquifer_runtime::budget::ByteBudget;
use aquifer_runtime::disk::{Disk, DiskLock, DiskSpace, RealDisk};
use parking_lot::Mutex;

use crate::add_gate::AddGate;
use crate::answers::Answers;
use crate::cookie::{self, Cookie, Setup};
use crate::error::BookieOpenError;
use crate::loss::Limbo;
use crate::reclaim::Reclaimer;
use crate::report::{BookieStatusReport, LossReport, SetAsideReport};
use crate::scrub::Scrubber;
use crate::shared::Shared;
use crate::store::StoreError;
use crate::workers::Workers;

/// A running bookie: what its callers use. Its threads end when it is dropped; they hold what is
/// shared, and never this.
pub struct Core {
    pub(crate) shared: Arc<Shared>,
    pub(crate) cookie: Mutex<Cookie>,
    /// Asked before a ledger begins here; without one every ledger may.
    pub(crate) gate: OnceLock<AddGate>,
    pub(crate) workers: Workers,
    /// Bytes of answers to reads that are being prepared.
    pub(crate) reads: ByteBudget,
    pub(crate) answers: Answers,
    /// The loss that keeps every ledger in limbo.
    pub(crate) limbo: Limbo,
    pub(crate) accepted_loss: Option<LossReport>,
    pub(crate) set_aside: Option<SetAsideReport>,
    pub(crate) reclaimer: Arc<Reclaimer>,
    pub(crate) scrubber: Arc<Scrubber>,
    pub(crate) threads: Mutex<Threads>,
}

/// The threads, until they are joined.
#[derive(Default)]
pub struct Threads {
    pub(crate) journal: Option<std::thread::JoinHandle<()>>,
    pub(crate) applier: Option<std::thread::JoinHandle<()>>,
    pub(crate) checkpointer: Option<std::thread::JoinHandle<()>>,
    pub(crate) housekeeper: Option<std::thread::JoinHandle<()>>,
    pub(crate) scrubber: Option<std::thread::JoinHandle<()>>,
    pub(crate) lock: Option<DiskLock>,
}

impl Core {
    pub(crate) fn status(&self) -> BookieStatusReport {
        let (journal_live_bytes, journal_bytes) = self.shared.segments.bytes();
        BookieStatusReport {
            mode: self.shared.mode.report(),
            limbo: self.limbo.report(),
            damage: self.shared.damage.report(),
            journal_live_bytes,
            journal_bytes,
            synced_commit: self.shared.progress.synced.get(),
            applied_commit: self.shared.progress.applied.get(),
            flushed_commit: self.shared.progress.flushed.get(),
            bytes_in_flight: self.shared.bytes_in_flight(),
            store_bytes: self.shared.store.bytes().unwrap_or(0),
            scrub: self.scrubber.report(),
        }
    }

    /// Whether the cluster may not know this bookie yet.
    pub(crate) fn is_joining(&self) -> bool {
        self.cookie.lock().setup == Setup::Joining
    }

    /// The cluster knows this bookie. Blocks.
    pub(crate) fn joined(&self) -> Result<(), BookieOpenError> {
        let config = &self.shared.config;
        let mut cookie = self.cookie.lock();
        *cookie = cookie::joined(&*self.shared.disk, config, &cookie)?;
        Ok(())
    }

    /// Ends limbo: what was lost is here again, or is not needed. Blocks.
    pub(crate) fn end_limbo(&self) -> Result<(), StoreError> {
        self.shared.store.set_loss(None, None)?;
        self.limbo.end();
        self.shared.metrics.limbo.record(0, &[]);
        tracing::info!("limbo ends: everything that this bookie must hold is here");
        Ok(())
    }

    /// The room for ledgers, within what the configuration allows. Blocks.
    pub(crate) fn space(&self) -> io::Result<DiskSpace> {
        let config = &self.shared.config;
        let disk = Disk::space(&RealDisk, &config.ledger_dir)?;
        let Some(capacity) = config.capacity_bytes else {
            return Ok(disk);
        };
        let stored = self.shared.store.bytes().unwrap_or(0);
        Ok(DiskSpace {
            total_bytes: disk.total_bytes.min(capacity),
            available_bytes: disk.available_bytes.min(capacity.saturating_sub(stored)),
        })
    }

    /// Finishes what was accepted, flushes, and ends the threads. Blocks.
    pub(crate) fn shutdown(&self) {
        self.shared.mode.stop();
        self.scrubber.stop();
        let mut threads = self.threads.lock();
        join(threads.scrubber.take());
        self.shared.queue.close(BookieError::ShuttingDown);
        join(threads.journal.take());
        self.shared.turns.refuse_all(&BookieError::ShuttingDown);
        self.shared.stop.wake();
        self.shared.apply_queue.close();
        join(threads.applier.take());
        self.reclaimer.stop();
        self.shared.end_background(true);
        join(threads.checkpointer.take());
        join(threads.housekeeper.take());
        self.close_store(&mut threads);
    }

    /// Ends the threads without flushing: the journal has everything. Blocks. When it returns, no
    /// thread of the bookie or of its database is left, so that the process may end (a thread of
    /// the bookie that has dropped the last reference to it excepted).
    pub(crate) fn halt(&self) {
        self.shared.mode.stop();
        self.scrubber.stop();
        self.shared.queue.close(BookieError::ShuttingDown);
        self.shared.stop.wake();
        self.shared.apply_queue.close();
        self.reclaimer.stop();
        self.shared.end_background(false);
        let mut threads = self.threads.lock();
        join(threads.scrubber.take());
        join(threads.journal.take());
        self.shared.turns.refuse_all(&BookieError::ShuttingDown);
        join(threads.applier.take());
        join(threads.checkpointer.take());
        join(threads.housekeeper.take());
        self.close_store(&mut threads);
    }

    /// Ends what uses the database, then the database: a compaction of the whole of it is
    /// cancelled and not waited for.
    fn close_store(&self, threads: &mut Threads) {
        self.shared.store.cancel();
        self.workers.close().into_iter().map(Some).for_each(join);
        join(self.reclaimer.take_thread());
        self.shared.store.close();
        threads.lock.take();
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.halt();
    }
}

fn join(thread: Option<std::thread::JoinHandle<()>>) {
    // The last reference may be dropped by an answer that one of the threads gives.
    if let Some(thread) = thread
        && thread.thread().id() != std::thread::current().id()
        && thread.join().is_err()
    {
        // The panic itself was logged where it happened.
        tracing::warn!("a thread of the bookie had panicked");
    }
}
