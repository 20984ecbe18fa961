//! A bookie in its cluster: the permanent cookie in metadata, and the announcement under the
//! process's lease.
//!
//! Invariants:
//! - An identity that has served once is never written to metadata again: where its cookie is
//!   missing, metadata was lost or the bookie was taken out, and both mean that it must not serve.
//! - What is announced follows the bookie: read-only while it takes no adds or is in limbo.

#[cfg(test)]
mod tests;

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use aquifer_metadata::lease::Lease;
use aquifer_metadata::store::{MetadataStore, Versioned};
use aquifer_metadata::update::{Change, UpdateError};
use aquifer_metadata::{keys, record};
use aquifer_model::id::{BookieId, CreationToken, LedgerId};
use aquifer_model::storage::{BookieError, BookieResult};
use aquifer_proto::v1::{BookieRecord, CookieRecord, LedgerRecord, LedgerState};
use aquifer_runtime::clock::{sleep, timeout};
use aquifer_runtime::task::TaskGroup;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::error::BookieOpenError;
use crate::{Bookie, BookieMode};

/// How often the mode is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Free space is announced again after this many looks, and only when it changed by a share.
const SPACE_LOOKS: u32 = 30;
const SPACE_CHANGE_SHARE: u64 = 100;

/// Questions about new ledgers that metadata gets at once, and how long an answer may take.
const QUESTIONS_MAX: usize = 64;
const QUESTION_MAX: Duration = Duration::from_secs(5);

/// What a bookie says about itself to the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// Where clients reach it, `http://HOST:PORT`.
    pub address: String,
    /// Its failure domain; empty where unknown.
    pub zone: String,
}

/// Makes sure that the cluster's metadata knows this bookie; a new one joins. Nothing may be
/// served before. `now_ms` is when, for people, should the bookie be in limbo.
///
/// # Errors
/// `NotAMember` and `ForeignMember`; `Metadata` when the store cannot be asked.
pub async fn join(
    bookie: &Bookie,
    store: &dyn MetadataStore,
    now_ms: u64,
) -> Result<(), BookieOpenError> {
    let decide = |stored: Option<Versioned>| ready(known_as(bookie, stored.as_ref(), now_ms));
    let updated = store.update(&keys::cookie(bookie.id()), &[], decide).await;
    let updated = updated.map_err(UpdateError::<BookieOpenError>::flatten)?;
    if updated.answer == Member::New {
        tracing::info!(bookie = %bookie.id(), cluster = bookie.cluster(), "bookie joined");
    }
    joined(bookie).await
}

/// Whether the cluster knew a bookie before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Member {
    New,
    Known,
}

/// What a cookie becomes when its bookie starts, or comes out of limbo.
fn known_as(
    bookie: &Bookie,
    stored: Option<&Versioned>,
    now_ms: u64,
) -> Result<Change<Member>, BookieOpenError> {
    let put = |cookie, member| {
        let value = record::encode(cookie);
        Change::put(keys::CLUSTER_PARTITION, value, member)
    };
    let Some(stored) = stored else {
        if !bookie.core.is_joining() {
            return Err(BookieOpenError::NotAMember {
                bookie: bookie.id(),
                cluster: bookie.cluster().to_owned(),
            });
        }
        return Ok(put(cookie(bookie), Member::New));
    };
    let mut cookie = is_own(bookie, stored)?;
    let in_limbo = bookie.core.limbo.is_on();
    if !in_limbo && cookie.limbo_since_ms == 0 {
        return Ok(Change::none(Member::Known));
    }
    // Rewritten at each start in limbo: what others do with this bookie is in doubt if it was
    // begun before.
    cookie.limbo_since_ms = if in_limbo { now_ms.max(1) } else { 0 };
    Ok(put(cookie, Member::Known))
}

/// Says in the cluster's metadata that limbo is over. If it fails, the next start says it.
///
/// # Errors
/// When metadata does not do it.
pub async fn restored(bookie: &Bookie, store: &dyn MetadataStore) -> Result<(), BookieOpenError> {
    join(bookie, store, 0).await
}

/// From now on a ledger begins here only when metadata shows that its writer may (see
/// [`AddGate`](crate::AddGate)). Must be called on a runtime.
pub fn guard_new_ledgers(bookie: &Bookie, store: Arc<dyn MetadataStore>, tasks: &TaskGroup) {
    let (id, tasks) = (bookie.id(), tasks.clone());
    let turns = Arc::new(Semaphore::new(QUESTIONS_MAX));
    // The question comes from a thread of the bookie, which belongs to no runtime.
    let runtime = Handle::current();
    bookie.guard(Box::new(move |ledger, token, answer| {
        let (store, turns) = (Arc::clone(&store), Arc::clone(&turns));
        let _entered = runtime.enter();
        tasks.spawn("ledger-gate", async move {
            // The semaphore is never closed.
            let _turn = turns.acquire().await;
            answer.give(may_begin(&*store, id, ledger, token).await);
        });
    }));
}

/// Whether the ledger is open, its last fragment names this bookie, and no operator wants the
/// bookie empty: a writer may have chosen it before it heard of that.
async fn may_begin(
    store: &dyn MetadataStore,
    here: BookieId,
    ledger: LedgerId,
    token: CreationToken,
) -> BookieResult<()> {
    let (record, cookie) = (keys::ledger(ledger), keys::cookie(here));
    let both = async { tokio::join!(store.get(&record), store.get(&cookie)) };
    let (stored, cookie) = match timeout(QUESTION_MAX, both).await {
        Ok((Ok(stored), Ok(cookie))) => (stored, cookie),
        // The writer has changed metadata a moment ago: it is back soon.
        Ok(_) | Err(_) => return Err(BookieError::Overloaded),
    };
    if let Some(cookie) = cookie {
        match record::decode::<CookieRecord>(&cookie) {
            Ok(cookie) if cookie.draining || cookie.decommissioned_ms > 0 => {
                return Err(BookieError::ReadOnly("the bookie is draining".to_owned()));
            }
            Ok(_) => {}
            Err(error) => return Err(BookieError::Invalid(error.to_string())),
        }
    }
    let refused = |why: &str| Err(BookieError::Invalid(format!("ledger {ledger} {why}")));
    let Some(stored) = stored else {
        return refused("is not in the metadata of this cluster");
    };
    let record: LedgerRecord = match record::decode(&stored) {
        Ok(record) => record,
        Err(error) => return Err(BookieError::Invalid(error.to_string())),
    };
    if record.creation_token.as_ref() != token.0 {
        return Err(BookieError::Token);
    }
    if record.state() != LedgerState::Open {
        return Err(BookieError::Fenced);
    }
    let last = record.fragments.last();
    match last {
        Some(last) if last.bookies.iter().any(|id| id.as_ref() == here.0) => Ok(()),
        _ => refused("has no place for new entries on this bookie"),
    }
}

fn cookie(bookie: &Bookie) -> CookieRecord {
    let config = &bookie.core.shared.config;
    let directories = [&config.data_dir, &config.journal_dir, &config.ledger_dir];
    CookieRecord {
        bookie_id: bookie.id().0.to_vec().into(),
        cluster: bookie.cluster().to_owned(),
        directories: directories.map(|path| path.display().to_string()).to_vec(),
        draining: false,
        decommissioned_ms: 0,
        limbo_since_ms: 0,
    }
}

/// Whether a stored cookie is this bookie's. Where its directories are may change.
fn is_own(bookie: &Bookie, stored: &Versioned) -> Result<CookieRecord, BookieOpenError> {
    let found: CookieRecord = record::decode(stored)?;
    let what = if found.bookie_id.as_ref() != bookie.id().0 {
        "it has another identity".to_owned()
    } else if found.cluster != bookie.cluster() {
        format!("it names cluster {}", found.cluster)
    } else if found.decommissioned_ms > 0 {
        "it is decommissioned, and never serves again".to_owned()
    } else {
        return Ok(found);
    };
    Err(BookieOpenError::ForeignMember {
        bookie: bookie.id(),
        cluster: bookie.cluster().to_owned(),
        what,
    })
}

/// Notes on disk that metadata has the cookie.
async fn joined(bookie: &Bookie) -> Result<(), BookieOpenError> {
    if !bookie.core.is_joining() {
        return Ok(());
    }
    let core = Arc::clone(&bookie.core);
    let noted = tokio::task::spawn_blocking(move || core.joined()).await;
    // A panic in there was logged; without the note the next start joins once more.
    noted.unwrap_or(Ok(()))
}

/// Announces the bookie under the lease of its process, and keeps the announcement true until the
/// group shuts down. Wait for [`Lease::announced`] to know that others can see it.
pub async fn announce(
    bookie: &Bookie,
    announcement: Announcement,
    lease: &Lease,
    tasks: &TaskGroup,
) {
    let key = keys::bookie(bookie.id());
    let mut now = BookieRecord {
        address: announcement.address,
        zone: announcement.zone,
        ..BookieRecord::default()
    };
    look(bookie, &mut now, true).await;
    lease.set(&key, record::encode(now.clone()));
    let (bookie, lease, shutdown) = (bookie.clone(), lease.clone(), tasks.shutdown_token());
    tasks.spawn("bookie-announce", async move {
        let mut looks = 0;
        loop {
            tokio::select! {
                () = shutdown.wait() => return,
                () = sleep(LOOK) => {}
            }
            looks = (looks + 1) % SPACE_LOOKS;
            if look(&bookie, &mut now, looks == 0).await {
                lease.set(&key, record::encode(now.clone()));
            }
        }
    });
}

/// Brings the record up to date; says whether it is worth a write. What is not stays as it was
/// announced, so that small changes add up.
async fn look(bookie: &Bookie, record: &mut BookieRecord, with_space: bool) -> bool {
    let read_only = !bookie.is_writable();
    let reason = match bookie.status().mode {
        BookieMode::ReadOnly(why) | BookieMode::Failed(why) => why,
        BookieMode::Writable => String::new(),
    };
    let mut changed = std::mem::replace(&mut record.read_only, read_only) != read_only;
    changed |= record.read_only_reason != reason;
    record.read_only_reason = reason;
    if with_space || changed {
        let core = Arc::clone(&bookie.core);
        let space = tokio::task::spawn_blocking(move || core.space()).await;
        if let Ok(Ok(space)) = space {
            let moved = space.available_bytes.abs_diff(record.free_bytes);
            changed |= space.total_bytes != record.capacity_bytes;
            changed |= moved > space.total_bytes / SPACE_CHANGE_SHARE;
            if changed {
                record.capacity_bytes = space.total_bytes;
                record.free_bytes = space.available_bytes;
            }
        }
    }
    changed
}
