//! Taking a bookie out of the cluster: nothing new, then nothing at all, then never again.
//!
//! 1. [`set_draining`]: its cookie says that it is to be empty. Nobody chooses it for new entries,
//!    and the auditor marks its ledgers.
//! 2. Workers copy what it holds; [`references`] says how many ledgers still name it.
//! 3. [`Retirement`]: once no ledger names it, its cookie becomes a tombstone. The incarnation never
//!    starts again, and deletions do not wait for it.

use std::sync::Arc;
use std::time::Duration;

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::store::{Expect, MetadataStore};
use aquifer_metadata::{keys, record};
use aquifer_model::id::BookieId;
use aquifer_proto::v1;
use bytes::Bytes;

use crate::context::LogContext;
use crate::error::LedgerError;
use crate::ledger_metadata;
use crate::replication::index::LedgerIndex;
use crate::replication::marks::{self, Mark};
use crate::replication::members::Members;

/// How long writers may take to hear that a bookie is not announced as writable any more.
const SILENCE: Duration = Duration::from_secs(3);
/// Attempts at a cookie that others change at the same time.
const CONFLICTS_MAX: usize = 16;

/// Why a bookie is not retired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Retired {
    /// It is: its cookie is a tombstone.
    Yes,
    /// It announces itself as writable still, or did a moment ago: writers may choose it.
    Announced,
    /// So many ledgers still name it.
    Referenced(u64),
    /// Records that cannot be read may name it.
    Unknown(String),
}

/// Says that a bookie is to be emptied, or no longer. A bookie that has no cookie gets one, so
/// that one which was lost before it was known can be emptied as well.
///
/// # Errors
/// When metadata does not do it.
pub async fn set_draining(
    store: &dyn MetadataStore,
    bookie: BookieId,
    draining: bool,
) -> Result<(), LedgerError> {
    change(store, bookie, |cookie| cookie.draining = draining).await
}

/// How many ledgers name a bookie, and whether every record could be read.
///
/// # Errors
/// When ledgers cannot be listed.
pub async fn references(
    store: &dyn MetadataStore,
    bookie: BookieId,
) -> Result<(u64, bool), LedgerError> {
    let index = LedgerIndex::scan(store).await?;
    Ok((index.count_of(bookie), index.is_complete()))
}

/// A decommission on its way. A ledger may be created with a place on the bookie after a scan by a
/// writer that does not know yet: so the scan that counts begins a while after nothing announces
/// the bookie as writable. Adds of such a ledger are refused by the bookie's gate in any case.
pub struct Retirement {
    ctx: Arc<LogContext>,
    bookie: BookieId,
    /// Since when nobody is told to choose it.
    silent_since: Option<Duration>,
}

impl Retirement {
    /// Begins with a bookie that is draining.
    #[must_use]
    pub fn new(ctx: Arc<LogContext>, bookie: BookieId) -> Retirement {
        Retirement {
            ctx,
            bookie,
            silent_since: None,
        }
    }

    /// Makes the bookie's cookie a tombstone, if no ledger names it any more.
    ///
    /// # Errors
    /// When metadata does not do it.
    pub async fn step(&mut self) -> Result<Retired, LedgerError> {
        let store = &*self.ctx.store;
        let now = self.ctx.clock.monotonic();
        let members = Members::load(store).await?;
        let member = members.get(self.bookie);
        let announced = member.and_then(|member| member.registration.as_ref());
        if announced.is_some_and(|registration| !registration.read_only) {
            self.silent_since = None;
        } else {
            self.silent_since.get_or_insert(now);
        }
        let index = LedgerIndex::scan(store).await?;
        if let Some(damaged) = index.damaged().first() {
            return Ok(Retired::Unknown(damaged.clone()));
        }
        let count = index.count_of(self.bookie);
        if count > 0 {
            return Ok(Retired::Referenced(count));
        }
        let silent = self.silent_since.map(|since| now.saturating_sub(since));
        if silent.is_none_or(|silent| silent < SILENCE) {
            return Ok(Retired::Announced);
        }
        let now_ms = self.ctx.clock.wall_ms();
        change(store, self.bookie, |cookie| {
            cookie.draining = true;
            if cookie.decommissioned_ms == 0 {
                cookie.decommissioned_ms = now_ms.max(1);
            }
        })
        .await?;
        // A writer that stood still may have created one all the same: it is moved as well.
        match self.mark_late().await? {
            0 => Ok(Retired::Yes),
            late => Ok(Retired::Referenced(late)),
        }
    }

    /// Marks the ledgers that name a bookie which is a tombstone, for the repair workers.
    async fn mark_late(&self) -> Result<u64, LedgerError> {
        let store = &*self.ctx.store;
        let index = LedgerIndex::scan(store).await?;
        for ledger in index.ledgers_of(self.bookie) {
            let Some(info) = ledger_metadata::load(store, ledger).await? else {
                continue;
            };
            let now_ms = self.ctx.clock.wall_ms();
            let reason = "it names a bookie that is decommissioned";
            let mark = Mark::new(ledger, &info.home, reason, now_ms).lost([self.bookie]);
            marks::write(store, &mark).await?;
        }
        Ok(index.count_of(self.bookie))
    }
}

async fn change(
    store: &dyn MetadataStore,
    bookie: BookieId,
    change: impl Fn(&mut v1::CookieRecord),
) -> Result<(), LedgerError> {
    let key = keys::cookie(bookie);
    let mut unlucky = MetadataError::Unavailable("the cookie keeps changing".to_owned());
    for _ in 0..CONFLICTS_MAX {
        let (before, expect) = match store.get(&key).await? {
            None => (None, Expect::Absent),
            Some(stored) => {
                let cookie: v1::CookieRecord = record::decode(&stored)?;
                (Some(cookie), Expect::Revision(stored.revision))
            }
        };
        let mut cookie = before.clone().unwrap_or_else(|| v1::CookieRecord {
            bookie_id: Bytes::copy_from_slice(&bookie.0),
            ..v1::CookieRecord::default()
        });
        change(&mut cookie);
        if before.as_ref() == Some(&cookie) {
            return Ok(());
        }
        let value = record::encode(cookie);
        match store
            .put(keys::CLUSTER_PARTITION, &key, value, expect)
            .await
        {
            Ok(_) => return Ok(()),
            // Either way the next look shows what is there now.
            Err(error @ (MetadataError::Conflict { .. } | MetadataError::UnknownOutcome(_))) => {
                unlucky = error;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(unlucky.into())
}
