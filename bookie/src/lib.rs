//! A storage node: journal, ledger store behind it, storage service.
//!
//! An add is acknowledged after a group commit to the journal; entries reach the store off the
//! acknowledgement path, and the journal is trimmed to what the store has flushed. Threads of this
//! crate: one journal thread, one applier, one for checkpoints, one for housekeeping, and a small
//! pool for reads, and one that scrubs. It knows ledgers and entries, never topics; only
//! [`autorecovery`], which hosts repair, imports `ledger`.
#![deny(missing_docs)]

pub mod autorecovery;
pub mod config;
pub mod error;
pub mod registration;
pub mod report;
pub mod service;

mod add_gate;
mod admission;
mod answers;
mod apply;
mod assemble;
mod checkpoints;
mod cookie;
mod core;
mod damage;
mod deletions;
mod deps;
mod housekeeping;
mod journal;
mod ledger_state;
mod ledgers;
mod loss;
mod metrics;
mod mode;
mod open;
mod reads;
mod reclaim;
mod reserve;
pub mod scrub;
mod shared;
mod store;
mod trace;
mod wakeup;
mod watchers;
mod workers;

#[cfg(any(feature = "fuzzing", test))]
pub mod fuzzing;
/// What a bookie decides without I/O, for the simulation of the ledger protocol, which runs the
/// same code over a model of disks.
#[cfg(feature = "testing")]
pub mod testing {
    pub use crate::journal::record::RecordKind;
    pub use crate::journal::replay::{Continuity, FoundMark, Loss, Verdict};
    pub use crate::ledger_state::{Decision, End, Facts, LedgerMeta, LedgerState, Pending, Stored};
}
#[cfg(test)]
mod tests;

use std::sync::Arc;

use aquifer_model::id::{BookieId, CreationToken, EntryId, LedgerId};
use aquifer_model::storage::{
    BookieError, BookieResult, Presence, PresenceRange, ReadBatch, ReadRange, TailState, TailWait,
};

pub use add_gate::{AddGate, GateAnswer};
pub use answers::uncounted;
pub use config::{BookieConfig, check_cluster};
pub use deps::BookieDeps;
pub use error::BookieOpenError;
pub use metrics::HISTOGRAMS;
pub use report::{
    BookieMode, BookieStatusReport, DamageReport, DamagedFile, LedgerLoss, LossReport, LostEntries,
    ScrubReport, SetAsideReport,
};

use crate::core::Core;
use crate::scrub::RepairHook;
use crate::store::{Opened, StoreError};

/// A running bookie. Clones share it; it stops with [`Bookie::shutdown`], or, without flushing,
/// when the last clone is dropped. Both return when its threads are gone.
#[derive(Clone)]
pub struct Bookie {
    core: Arc<Core>,
    /// Behind the core, so that its drop is the last thing that a clone does.
    _running: Arc<Running>,
}

/// Stops the bookie with its last clone: jobs that still run have references to the core, too, and
/// are waited for.
struct Running(Arc<Core>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.halt();
    }
}

impl Bookie {
    /// Opens or creates a bookie, replays its journal and starts its threads. It blocks while it
    /// does, normally a few milliseconds.
    ///
    /// # Errors
    /// When the directories are locked, foreign, damaged or unreadable.
    pub fn open(config: BookieConfig, deps: BookieDeps) -> Result<Bookie, BookieOpenError> {
        Bookie::open_on(config, &deps, store::open::open)
    }

    /// The same over a store that `open_store` opens.
    fn open_on(
        config: BookieConfig,
        deps: &BookieDeps,
        open_store: impl FnOnce(&BookieConfig, bool) -> Result<Opened, StoreError>,
    ) -> Result<Bookie, BookieOpenError> {
        let started = open::open(&config, deps, open_store)?;
        let core = assemble::start(config, deps, started)?;
        Ok(Bookie {
            _running: Arc::new(Running(Arc::clone(&core))),
            core,
        })
    }

    /// Gives up the space that a bookie keeps back when its disk has next to no other: before
    /// anything on that disk is opened for a start.
    pub fn give_up_reserve(config: &BookieConfig) {
        reserve::Reserve::new(config).give_up_if_needed();
    }

    /// The identity of this bookie's storage.
    #[must_use]
    pub fn id(&self) -> BookieId {
        self.core.shared.id
    }

    /// Reads consecutive entries, every one verified by its digest.
    ///
    /// # Errors
    /// Only `NoSuchLedger`, `NoSuchEntry` and `Deleted` are negatives; see
    /// [`BookieError`].
    pub async fn read(&self, range: ReadRange) -> BookieResult<ReadBatch> {
        self.core.read(range).await
    }

    /// Says which entries are here durably, by their keys: their bytes are left to the scrubber.
    /// What is not named is only not known to be here.
    ///
    /// # Errors
    /// `Deleted` and `Token` say that nothing of the ledger is here; see [`BookieError`].
    pub async fn has(&self, range: PresenceRange) -> BookieResult<Presence> {
        self.core.has(range).await
    }

    /// Waits for news of a ledger's end: a higher LAC, or a fence. Without any, answers after the
    /// limit with what there is.
    ///
    /// # Errors
    /// As [`Bookie::read`].
    pub async fn wait(&self, wait: TailWait) -> BookieResult<TailState> {
        self.core.wait(wait).await
    }

    /// The name of its cluster; empty inside a standalone server.
    #[must_use]
    pub fn cluster(&self) -> &str {
        let cluster = self.core.shared.config.cluster.as_deref();
        cluster.unwrap_or_default()
    }

    /// Whether new ledgers may be placed here: it takes adds and nothing is in limbo.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        !self.core.limbo.is_on() && self.core.shared.mode.report() == BookieMode::Writable
    }

    /// Ledgers after one that are stored here and not deleted, in order, with their creation
    /// tokens; empty at the end. What arrives meanwhile may be missing.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn ledgers(
        &self,
        after: Option<LedgerId>,
        max: usize,
    ) -> BookieResult<Vec<(LedgerId, CreationToken)>> {
        self.core.list_ledgers(after, max).await
    }

    /// Sets what repairs damaged entries from now on.
    pub fn on_damage(&self, repair: Arc<dyn RepairHook>) {
        self.core.scrubber.set_hook(repair);
    }

    /// Waits until something else than `before` is known of damaged files of the ledger store, and
    /// says what.
    pub async fn damaged(&self, before: Option<&DamageReport>) -> DamageReport {
        self.core.shared.damage.wait(before).await
    }

    /// Reads everything that is stored of a ledger and names the entries that cannot be read, as
    /// ranges: where a whole block is damaged, numbers are named that may not exist.
    ///
    /// # Errors
    /// When the store cannot be read for another reason.
    pub async fn unreadable(&self, ledger: LedgerId) -> BookieResult<Vec<(EntryId, EntryId)>> {
        self.core.unreadable(ledger).await
    }

    /// Serves nothing any more; [`Bookie::failed`] says why.
    pub fn fail(&self, why: &str) {
        self.core.shared.mode.fail(why);
    }

    /// Refuses normal adds from now on, or no longer: the bookie is to become empty.
    pub fn set_draining(&self, draining: bool) {
        self.core.shared.mode.set_draining(draining);
    }

    /// What the bookie says about itself.
    #[must_use]
    pub fn status(&self) -> BookieStatusReport {
        self.core.status()
    }

    /// Ends limbo: the caller has made sure that nothing is missing that is needed, and that
    /// every ledger that is not open is fenced here.
    ///
    /// # Errors
    /// When that cannot be stored; limbo lasts then.
    pub async fn end_limbo(&self) -> BookieResult<()> {
        let core = Arc::clone(&self.core);
        let ended = tokio::task::spawn_blocking(move || core.end_limbo()).await;
        match ended {
            Ok(ended) => ended.map_err(BookieError::from),
            Err(error) => Err(BookieError::Io(error.to_string())),
        }
    }

    /// The loss that was accepted at this start because the configuration said so.
    #[must_use]
    pub fn accepted_loss(&self) -> Option<&LossReport> {
        self.core.accepted_loss.as_ref()
    }

    /// The damaged files that were set aside at this start.
    #[must_use]
    pub fn set_aside(&self) -> Option<&SetAsideReport> {
        self.core.set_aside.as_ref()
    }

    /// Sets what is asked before a ledger begins here; only the first call counts, and it belongs
    /// before anything is served. Without one every ledger may begin.
    pub fn guard(&self, gate: AddGate) {
        // The first one stays: a gate that could be replaced could be removed.
        let _ = self.core.gate.set(gate);
    }

    /// Waits until the bookie has failed for good (a sync failed) and says why. The process must
    /// end then: only a restart tells what is really on disk.
    pub async fn failed(&self) -> String {
        self.core.shared.mode.failed().await
    }

    /// Refuses new requests, finishes what was accepted, flushes, trims the journal and stops the
    /// threads.
    pub async fn shutdown(&self) {
        let core = Arc::clone(&self.core);
        // A panic in there was logged by the thread that had it.
        let _ = tokio::task::spawn_blocking(move || core.shutdown()).await;
    }
}
