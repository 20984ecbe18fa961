//! The share of one repair worker in the rate of the whole cluster.
//!
//! Each takes the rate divided by how many workers repair ledgers now, which the locks that they
//! hold tell, however many each of them holds: one large ledger is copied at the whole rate while
//! the others have nothing to do. So the sum stays within the rate, but for the moment until a new
//! one is noticed; a worker that died stops counting when its session ends.
//!
//! Workers also announce themselves, so that their number is known.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aquifer_ledger::error::LedgerError;
use aquifer_metadata::store::{Expect, Session};
use aquifer_metadata::{keys, record, scan};
use aquifer_proto::v1;
use aquifer_runtime::clock;

use crate::context::RepairContext;
use crate::pace::Pace;

/// More locks than the workers of a cluster hold.
const LOCKS_MAX: usize = 1_000_000;
/// How often it is looked how many workers repair something.
const LOOK: Duration = Duration::from_secs(2);

/// A worker among others.
pub(crate) struct Share {
    ctx: Arc<RepairContext>,
    session: Arc<dyn Session>,
    holder: String,
    bytes_per_second: u64,
    pace: Arc<Pace>,
    announced: AtomicBool,
}

impl Share {
    /// A worker that is not announced yet, with the whole rate until it was.
    pub(crate) fn new(
        ctx: Arc<RepairContext>,
        session: Arc<dyn Session>,
        holder: String,
        bytes_per_second: u64,
    ) -> Share {
        Share {
            ctx,
            session,
            holder,
            bytes_per_second,
            pace: Arc::new(Pace::new(bytes_per_second)),
            announced: AtomicBool::new(false),
        }
    }

    /// What it may read now.
    pub(crate) fn pace(&self) -> &Pace {
        &self.pace
    }

    /// Announces the worker if need be, and takes its share among those that repair something.
    pub(crate) async fn take(&self) -> Result<(), LedgerError> {
        if !self.announced.load(Ordering::Relaxed) {
            let key = keys::repair_worker(&self.holder);
            let value = record::encode(v1::LockRecord {
                holder: self.holder.clone(),
            });
            self.session.put(&key, value, Expect::Any).await?;
            self.announced.store(true, Ordering::Relaxed);
        }
        let prefix = keys::REPAIR_LOCKS_PREFIX;
        let (locks, _) = scan::all(&*self.ctx.ledgers.store, prefix, LOCKS_MAX).await?;
        // One that cannot be read is held by another all the same.
        let holders = locks.iter().map(|lock| {
            let known = record::decode(lock).map(|lock: v1::LockRecord| lock.holder);
            known.map_err(|_| lock.key.as_str())
        });
        let mut others: BTreeSet<_> = holders.collect();
        others.remove(&Ok(self.holder.clone()));
        let share = self.bytes_per_second / (others.len() as u64 + 1);
        self.pace.set_rate(share);
        self.ctx.metrics.rate.record(share, &[]);
        Ok(())
    }

    /// Takes it again and again: a large ledger is copied for longer than others stay away.
    pub(crate) async fn keep(&self) {
        loop {
            if let Err(error) = self.take().await {
                tracing::debug!(%error, "how many others repair is not known");
            }
            clock::sleep(LOOK).await;
        }
    }
}
