//! The slots in which this process notes its commits, so that the outcome of each can be found
//! out (`docs/decisions/2026-11-25-etcd-outcomes.md`).
//!
//! A slot is a key that only this process writes, one commit at a time. Every transaction carries
//! two things for it: the condition that the slot is unchanged since the commit before, and a new
//! number in it. So a commit that gets no answer changes the slot itself, under the same condition:
//! - if that succeeds, the transaction was not applied and never will be, because its condition
//!   can never hold again;
//! - if not, the slot shows which number was faster.
//!
//! Slots go with a lease of the store, which lives much longer than any request may take, so that
//! nothing is left of a process that died. At most [`SLOTS_MAX`] exist for a process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use etcd_client::proto::PbTxnOpResponse;
use etcd_client::{Client, Compare, CompareOp, PutOptions, Txn, TxnOp, TxnResponse};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{MetadataError, MetadataResult};
use crate::etcd::errors::Failure;
use crate::etcd::lease::Lease;
use crate::etcd::shared::Shared;
use crate::keys;
use crate::store::Revision;

/// Commits of a process that are under way at once; later ones wait.
pub(super) const SLOTS_MAX: usize = 64;
/// How long slots outlive their process, and the longest pause of a process after which the
/// outcome of what it had under way can still be told.
const SLOTS_TTL: Duration = Duration::from_secs(60);

/// The slots of a store.
#[derive(Debug)]
pub(super) struct Slots {
    places: Arc<Semaphore>,
    lease: tokio::sync::Mutex<Option<Arc<Generation>>>,
    numbers: AtomicU64,
}

/// The slots that go with one lease.
#[derive(Debug)]
pub(super) struct Generation {
    lease: Arc<Lease>,
    /// Those in doubt first, so that they are used last.
    free: Mutex<Vec<Slot>>,
    made: AtomicU32,
}

/// A slot, as far as it is known.
#[derive(Debug)]
struct Slot {
    key: Vec<u8>,
    /// When it was written last; 0 when it does not exist yet.
    revision: i64,
    /// The number of a commit whose outcome is not known.
    doubt: Option<u64>,
}

/// A slot in use. Dropping it gives it back, with its doubt.
#[derive(Debug)]
pub(super) struct TakenSlot {
    slot: Option<Slot>,
    generation: Arc<Generation>,
    _place: OwnedSemaphorePermit,
}

/// What became of a commit in doubt.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Resolved {
    /// It was made, at this revision.
    Applied(Revision),
    /// It was not made and never will be.
    NotApplied,
    /// The slot is gone with its lease: nothing can tell any more.
    Lost,
}

impl Slots {
    pub(super) fn new() -> Slots {
        Slots {
            places: Arc::new(Semaphore::new(SLOTS_MAX)),
            lease: tokio::sync::Mutex::new(None),
            numbers: AtomicU64::new(0),
        }
    }

    /// Takes a slot; waits for one.
    pub(super) async fn take(&self, shared: &Arc<Shared>) -> MetadataResult<TakenSlot> {
        let place = Arc::clone(&self.places)
            .acquire_owned()
            .await
            .map_err(|_| MetadataError::Unavailable("the store is closed".to_owned()))?;
        let generation = self.generation(shared).await?;
        let free = generation.free.lock().pop();
        let slot = free.unwrap_or_else(|| generation.new_slot(shared));
        Ok(TakenSlot {
            slot: Some(slot),
            generation,
            _place: place,
        })
    }

    async fn generation(&self, shared: &Arc<Shared>) -> MetadataResult<Arc<Generation>> {
        let mut current = self.lease.lock().await;
        if let Some(generation) = current.as_ref()
            && !generation.lease.is_lost()
        {
            return Ok(Arc::clone(generation));
        }
        let lease = Lease::grant(&shared.endpoints, &shared.clock, SLOTS_TTL).await?;
        let (closed, shutdown) = (shared.closed.clone(), shared.tasks.shutdown_token());
        let ended = async move {
            tokio::select! {
                () = closed.cancelled() => {}
                // What is left to do then takes less time than the lease lives.
                () = shutdown.wait() => {}
            }
        };
        let keep = Arc::clone(&lease).keep(Arc::clone(&shared.endpoints), ended);
        // The task ends with the store; its handle is not needed.
        drop(shared.tasks.spawn("metadata-slots", keep));
        let generation = Arc::new(Generation {
            lease,
            free: Mutex::new(Vec::new()),
            made: AtomicU32::new(0),
        });
        *current = Some(Arc::clone(&generation));
        Ok(generation)
    }

    /// A number for a commit; none is used twice by this process.
    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Gives the lease of the slots back, when the store is closed.
    pub(super) async fn revoke(&self, shared: &Shared) {
        let generation = self.lease.lock().await.take();
        if let Some(generation) = generation
            && let Err(error) = generation.lease.revoke(&shared.endpoints).await
        {
            tracing::debug!(%error, "the slots of commits stay until their lease expires");
        }
    }
}

impl Generation {
    fn new_slot(&self, shared: &Shared) -> Slot {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let lease = u64::from_be_bytes(self.lease.id().to_be_bytes());
        Slot {
            key: shared.space.key(&keys::commit_slot(lease, number)),
            revision: 0,
            doubt: None,
        }
    }
}

impl TakenSlot {
    fn slot(&mut self) -> &mut Slot {
        self.slot
            .as_mut()
            .expect("a slot leaves only when it is dropped")
    }

    /// The condition and the change that note a commit, which is in doubt from now on.
    pub(super) fn note(&mut self, number: u64) -> (Compare, TxnOp) {
        let lease = self.generation.lease.id();
        let slot = self.slot();
        slot.doubt = Some(number);
        (slot.unchanged(), slot.write(number, lease))
    }

    pub(super) fn in_doubt(&self) -> bool {
        self.slot.as_ref().is_some_and(|slot| slot.doubt.is_some())
    }

    /// The commit was made at a revision.
    pub(super) fn applied(&mut self, revision: i64) {
        let slot = self.slot();
        slot.revision = revision;
        slot.doubt = None;
    }

    /// The commit was not made and never will be.
    pub(super) fn not_applied(&mut self) {
        self.slot().doubt = None;
    }

    /// The lease is gone, and all slots with it.
    pub(super) fn lose(&self) {
        self.generation.lease.lose();
    }

    /// Finds out what became of the commit that is in doubt.
    ///
    /// # Errors
    /// When etcd does not answer in time, or has no space and neither the commit nor an attempt to
    /// resolve was made yet. The slot stays in doubt then.
    pub(super) async fn resolve(&mut self, shared: &Shared) -> MetadataResult<Resolved> {
        let fence = shared.slots.number();
        let lease = self.generation.lease.id();
        let slot = self.slot();
        let Some(number) = slot.doubt else {
            return Ok(Resolved::NotApplied);
        };
        let resolve = Txn::new()
            .when([slot.unchanged()])
            .and_then([slot.write(fence, lease)])
            .or_else([TxnOp::get(slot.key.clone(), None)]);
        // It may be repeated: what a lost answer did is seen by the next one.
        let ask = |client: Client| {
            let resolve = resolve.clone();
            async move { client.kv_client().txn(resolve).await }
        };
        let answer = match shared.endpoints.call("resolving a commit", ask).await {
            Ok(answer) => answer,
            Err(Failure::NoLease) => {
                self.lose();
                return Ok(Resolved::Lost);
            }
            // Reads need no space. A slot that was not written yet resolves nothing: the commit may
            // still be made.
            Err(Failure::Final(full @ MetadataError::Full(_))) => {
                return self.look(shared).await?.ok_or(full);
            }
            Err(failure) => return Err(failure.into()),
        };
        Ok(self.read(number, &answer))
    }

    /// Reads the slot: what became of the commit that is in doubt, or `None` while nothing was
    /// written to the slot since the commit before.
    ///
    /// # Errors
    /// When etcd does not answer in time.
    pub(super) async fn look(&mut self, shared: &Shared) -> MetadataResult<Option<Resolved>> {
        let slot = self.slot();
        let Some(number) = slot.doubt else {
            return Ok(Some(Resolved::NotApplied));
        };
        let key = slot.key.clone();
        let get = |client: Client| {
            let key = key.clone();
            async move { client.kv_client().get(key, None).await }
        };
        let mut answer = shared.endpoints.call("reading a slot", get).await?;
        let found = answer.take_kvs().into_iter().next();
        let written = found.as_ref().map_or(0, |found| found.mod_revision());
        if written == self.slot().revision {
            return Ok(None);
        }
        let found = found.map(|found| (found.mod_revision(), found.value().to_vec()));
        Ok(Some(self.found(number, found)))
    }

    fn read(&mut self, number: u64, answer: &TxnResponse) -> Resolved {
        let slot = self.slot();
        if answer.succeeded()
            && let Some(header) = answer.header()
        {
            slot.revision = header.revision();
            slot.doubt = None;
            return Resolved::NotApplied;
        }
        let found = answer.0.responses.first();
        let Some(PbTxnOpResponse::ResponseRange(range)) =
            found.and_then(|found| found.response.as_ref())
        else {
            self.lose();
            return Resolved::Lost;
        };
        let found = range.kvs.first();
        self.found(
            number,
            found.map(|found| (found.mod_revision, found.value.clone())),
        )
    }

    /// What a changed slot says of the commit that is in doubt.
    fn found(&mut self, number: u64, found: Option<(i64, Vec<u8>)>) -> Resolved {
        let Some((revision, value)) = found else {
            self.lose();
            return Resolved::Lost;
        };
        let slot = self.slot();
        slot.revision = revision;
        slot.doubt = None;
        // Any other value was written by an attempt to resolve, this one or an earlier one.
        if value == number.to_be_bytes() {
            Resolved::Applied(crate::etcd::space::revision(revision))
        } else {
            Resolved::NotApplied
        }
    }
}

impl Slot {
    fn unchanged(&self) -> Compare {
        Compare::mod_revision(self.key.clone(), CompareOp::Equal, self.revision)
    }

    fn write(&self, number: u64, lease: i64) -> TxnOp {
        let options = PutOptions::new().with_lease(lease);
        TxnOp::put(self.key.clone(), number.to_be_bytes(), Some(options))
    }
}

impl Drop for TakenSlot {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            let mut free = self.generation.free.lock();
            if slot.doubt.is_some() {
                free.insert(0, slot);
            } else {
                free.push(slot);
            }
        }
    }
}
