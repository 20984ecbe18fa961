//! The replication worker: takes marked ledgers, several at once, and gives them their replicas
//! back.
//!
//! Every step may be repeated by any worker: copies are idempotent, a position is swapped by
//! compare-and-swap, and the mark goes with the last swap or behind it. The lock of a ledger only
//! spares double work.
//!
//! The repairs of a round are futures of the one task that makes it, so a round that is dropped
//! drops all of them. Most of a repair is waiting for metadata, which is what doing several at once
//! saves. Invariants:
//! - A worker repairs a ledger once at a time: a round takes each ledger once, and a worker makes
//!   one round at a time. What it finds locked by itself is left over, and it takes that over.
//! - One ledger waits for another only where something is bounded for all of them: the rate and the
//!   bytes in flight ([`Pace`](crate::pace::Pace)), and recoveries. No repair waits for one of
//!   these while holding another.
//! - What has lost copies is repaired before anything is looked at, and so has the rate for itself.

pub(crate) mod ledger;
mod marked;
mod replace;
mod waits;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aquifer_ledger::error::LedgerError;
use aquifer_ledger::marks::Mark;
use aquifer_ledger::members::Members;
use aquifer_metadata::error::MetadataError;
use aquifer_metadata::store::{Expect, Session, Transaction};
use aquifer_metadata::{keys, record, store::Operation};
use aquifer_model::id::LedgerId;
use aquifer_proto::v1;
use futures::{StreamExt, stream};

use crate::config::ReplicationConfig;
use crate::context::RepairContext;
use crate::share::Share;
use crate::worker::ledger::{LedgerRepair, Outcome};
use crate::worker::marked::{Known, Marked, Next, Urgency};
use crate::worker::waits::PutOff;

/// What a round over the marks came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Round {
    /// Marks that were there.
    pub marked: usize,
    /// Ledgers that are whole again, or gone.
    pub repaired: usize,
    /// Ledgers that wait for their writer, for a bookie, or for another worker.
    pub waiting: usize,
    /// Ledgers that could not be repaired now.
    pub failed: usize,
}

/// A worker. It repairs several ledgers at once.
pub struct RepairWorker {
    ctx: Arc<RepairContext>,
    session: Arc<dyn Session>,
    holder: String,
    ledgers_at_once: usize,
    share: Arc<Share>,
    ledgers: LedgerRepair,
    put_off: PutOff,
}

impl RepairWorker {
    /// A worker whose locks live as long as `session`. `holder` names it in them: no other worker
    /// that may live at the same time has the same name.
    #[must_use]
    pub fn new(
        ctx: Arc<RepairContext>,
        session: Arc<dyn Session>,
        config: &ReplicationConfig,
        holder: String,
    ) -> RepairWorker {
        let share = Arc::new(Share::new(
            Arc::clone(&ctx),
            Arc::clone(&session),
            holder.clone(),
            config.repair_bytes_per_second,
        ));
        let open_grace = Duration::from_millis(config.open_ledger_grace_ms);
        RepairWorker {
            ledgers: LedgerRepair::new(Arc::clone(&ctx), Arc::clone(&share), open_grace),
            ctx,
            session,
            holder,
            ledgers_at_once: config.ledgers_at_once.max(1),
            share,
            put_off: PutOff::default(),
        }
    }

    /// Its share in the cluster's rate, which the process that runs it keeps up to date.
    pub(crate) fn share(&self) -> Arc<Share> {
        Arc::clone(&self.share)
    }

    /// Takes every mark once: first those of ledgers that have lost a copy, then those of ledgers
    /// that are only to be looked at, which may be all that there are. Begins none of the latter
    /// when they take long, so that the next round finds what was lost meanwhile. May be dropped at
    /// any time. There is one at a time, and `&mut` sees to it.
    ///
    /// # Errors
    /// When marks or bookies cannot be listed, or ledgers not be locked: those in progress are
    /// finished before. What fails at a single ledger is counted.
    pub async fn round(&mut self) -> Result<Round, LedgerError> {
        self.share.take().await?;
        let mut known = Known::load(&self.ctx).await?;
        let mut round = Round::default();
        let mut seen = BTreeSet::new();
        for urgency in [Urgency::Lost, Urgency::Other] {
            let mut marked = Marked::new(&self.ctx, urgency, &mut known, &mut seen);
            self.take_all(&mut marked, &mut round).await?;
            if urgency == Urgency::Other && marked.is_complete() {
                self.ledgers.writers().retain(&seen);
                self.put_off.retain(&seen);
            }
        }
        round.marked = seen.len();
        Ok(round)
    }

    /// Takes the marks of one kind, several at once. Marks are listed beside the repairs, so that
    /// neither stops the other.
    async fn take_all(
        &self,
        marked: &mut Marked<'_>,
        round: &mut Round,
    ) -> Result<(), LedgerError> {
        let ended = AtomicBool::new(false);
        let nexts = stream::unfold((marked, &ended), |(marked, ended)| async move {
            if ended.load(Ordering::Relaxed) {
                return None;
            }
            let next = marked.next().await.transpose()?;
            // There is no sense in listing on behind an error.
            ended.fetch_or(next.is_err(), Ordering::Relaxed);
            Some((next, (marked, ended)))
        });
        let taken = nexts.map(|next| self.take_next(next));
        let mut taken = taken.buffer_unordered(self.ledgers_at_once).boxed();
        let mut result = Ok(());
        while let Some(taken) = taken.next().await {
            match taken {
                Ok(Taken::Repaired) => round.repaired += 1,
                Ok(Taken::Waiting) => round.waiting += 1,
                Ok(Taken::Failed) => round.failed += 1,
                Err(error) => {
                    ended.store(true, Ordering::Relaxed);
                    result = result.and(Err(error));
                }
            }
        }
        result
    }

    async fn take_next(&self, next: Result<Next, LedgerError>) -> Result<Taken, LedgerError> {
        match next? {
            Next::Ledger(mark, members) => self.take(&mark, &members).await,
            Next::Unreadable => Ok(Taken::Failed),
        }
    }

    async fn take(&self, mark: &Mark, members: &Members) -> Result<Taken, LedgerError> {
        let now = self.ctx.ledgers.clock.monotonic();
        if self.put_off.holds(mark.ledger, now) {
            return Ok(Taken::Failed);
        }
        let Some(lock) = self.lock(mark.ledger).await? else {
            return Ok(Taken::Waiting);
        };
        let outcome = self.repair(mark, members).await;
        self.unlock(mark, lock).await;
        Ok(match outcome {
            Outcome::Repaired => {
                self.put_off.forget(mark.ledger);
                self.ledgers.writers().forget(mark.ledger);
                self.ctx.metrics.repaired_ledgers.add(1, &[]);
                Taken::Repaired
            }
            Outcome::Waiting => Taken::Waiting,
            Outcome::Failed(why) => {
                tracing::warn!(ledger = mark.ledger.0, why, "ledger is not repaired yet");
                self.ctx.metrics.failed_repairs.add(1, &[]);
                self.put_off.failed(mark.ledger, now);
                Taken::Failed
            }
        })
    }

    /// Repairs one ledger as far as possible now, whichever worker has its lock.
    pub(crate) async fn repair(&self, mark: &Mark, members: &Members) -> Outcome {
        let repaired = self.ledgers.repair(mark, members).await;
        repaired.unwrap_or_else(|error| Outcome::Failed(error.to_string()))
    }

    /// Takes the lock of a ledger; `None` when another worker has it. One of this holder is left
    /// over: an answer was lost, it could not be removed, or the round was dropped. It is not the
    /// lock of a repair in progress, however many ledgers this worker repairs at once: it takes
    /// each of them once a round, and has one round at a time.
    async fn lock(&self, ledger: LedgerId) -> Result<Option<Operation>, LedgerError> {
        let key = keys::repair_lock(ledger);
        let value = record::encode(v1::LockRecord {
            holder: self.holder.clone(),
        });
        let mut locked = self.session.put(&key, value.clone(), Expect::Absent).await;
        if matches!(locked, Err(MetadataError::Conflict { .. }))
            && let Some(left) = self.ctx.ledgers.store.get(&key).await?
            && left.value == value
        {
            let expect = Expect::Revision(left.revision);
            locked = self.session.put(&key, value, expect).await;
        }
        match locked {
            Ok(revision) => Ok(Some(Operation::Delete {
                key,
                expect: Expect::Revision(revision),
            })),
            Err(MetadataError::Conflict { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn unlock(&self, mark: &Mark, unlock: Operation) {
        let transaction = Transaction {
            partition: keys::CLUSTER_PARTITION.to_owned(),
            guards: Vec::new(),
            operations: vec![unlock],
        };
        // If this fails the next round of this worker takes it over, or it goes with the session.
        if let Err(error) = self.ctx.ledgers.store.commit(transaction).await {
            tracing::debug!(ledger = mark.ledger.0, %error, "repair lock is not removed");
        }
    }
}

/// What a round counts of one mark.
enum Taken {
    Repaired,
    Waiting,
    Failed,
}
