//! Where stored entries are read: from the bookies that must have them, or from the object that a
//! ledger is in.
//!
//! - What bookies must have is asked of bookies first, and of the object only when they cannot
//!   give it.
//! - Where bookies owe nothing, none is asked, but for what a re-import has brought back: its
//!   copies are another ledger, and the object serves whenever they cannot. An object that is not
//!   where it must be is damage, and said so, only once the place is known to be the right one.

use std::ops::Range;
use std::sync::Arc;

use aquifer_cold::cache::{ObjectRef, WantedEntries};
use aquifer_cold::error::{ColdError, ColdResult};
use aquifer_cold::format::Expected;
use aquifer_cold::location::Location;
use aquifer_ledger::error::LedgerError;
use aquifer_ledger::ledger_metadata::{self, LedgerInfo, LedgerState};
use aquifer_ledger::offload::{Copies, Offload, StoredObject};
use aquifer_ledger::reader::{Wanted, read_range};
use aquifer_model::entry::EntryHead;
use aquifer_model::id::{AttemptId, EntryId, Index, LedgerId};
use aquifer_model::storage::{StoredEntry, digest};
use aquifer_runtime::clock;

use crate::context::LogContext;
use crate::error::LogError;
use crate::offload::tier::ColdTier;

/// What the last entry is that a search is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Before {
    /// Its index is at most this.
    Index(Index),
    /// Its broker time is before this.
    TimeMs(u64),
}

impl Before {
    pub(crate) fn holds(self, head: &EntryHead) -> bool {
        match self {
            Before::Index(index) => head.base_index <= index,
            Before::TimeMs(ms) => head.broker_time_ms < ms,
        }
    }
}

/// Reads consecutive entries of a ledger, at least one.
pub(crate) async fn read_stored(
    ctx: &LogContext,
    info: &LedgerInfo,
    wanted: Wanted,
) -> Result<Vec<StoredEntry>, LogError> {
    let stored = stored_object(info);
    let is_local = info.offload.as_ref().is_none_or(Offload::keeps_copies);
    let Some((attempt, object)) = stored else {
        return Ok(read_range(&ctx.ledgers, info, wanted).await?);
    };
    if !is_local {
        if let Some(Copies::Imported { into, .. }) = info.offload.as_ref().and_then(Offload::copies)
        {
            match from_copies(ctx, (info.id, into), wanted).await {
                Ok(entries) => return Ok(entries),
                Err(error) => {
                    tracing::debug!(ledger = %info.id, %into, %error, "copies do not help");
                }
            }
        }
        return from_object(ctx, info, (attempt, object), wanted).await;
    }
    match read_range(&ctx.ledgers, info, wanted).await {
        Ok(entries) => Ok(entries),
        Err(error @ LedgerError::Unreadable { .. }) => {
            let found = from_object(ctx, info, (attempt, object), wanted).await;
            found.map_err(|of_object| {
                tracing::debug!(ledger = %info.id, error = %of_object, "the object does not help");
                error.into()
            })
        }
        Err(error) => Err(error.into()),
    }
}

/// The object of a ledger, and the attempt that wrote it.
pub(crate) fn stored_object(info: &LedgerInfo) -> Option<(AttemptId, &StoredObject)> {
    match &info.offload {
        Some(Offload::Stored {
            attempt, object, ..
        }) => Some((*attempt, object)),
        Some(Offload::Claimed { .. }) | None => None,
    }
}

/// The entries among which the one is that a search is for, where an object's index tells; all
/// those of the segment otherwise.
pub(crate) async fn narrowed(
    ctx: &LogContext,
    info: &LedgerInfo,
    entries: u64,
    before: Before,
) -> Range<u64> {
    let copies = info.offload.as_ref().and_then(Offload::copies);
    let is_local = copies.is_some_and(Copies::serve);
    let Some(stored) = stored_object(info).filter(|_| !is_local) else {
        return 0..entries;
    };
    // What keeps it from being read is said by the read that follows.
    match at_object(ctx, info, stored, Question::Among(before)).await {
        Ok(Answer::Among(among)) => among,
        Ok(Answer::Entries(_)) | Err(_) => 0..entries,
    }
}

/// Reads entries of a ledger from another one, which a re-import has written. Each is as the ledger
/// itself would give it, but that its LAC is the one that the copy carries.
async fn from_copies(
    ctx: &LogContext,
    (ledger, into): (LedgerId, LedgerId),
    wanted: Wanted,
) -> Result<Vec<StoredEntry>, LedgerError> {
    let known = ctx.cold.as_ref().and_then(|tier| tier.imported(into));
    let read = match known {
        Some(copies) => read_range(&ctx.ledgers, &copies, wanted).await.ok(),
        None => None,
    };
    let mut entries = match read {
        Some(entries) => entries,
        // Repair may have replaced every bookie that the record in memory names.
        None => {
            let loaded = ledger_metadata::load_existing(&*ctx.ledgers.store, into).await;
            let copies = loaded.map(Arc::new);
            if let Some(tier) = &ctx.cold {
                tier.note_imported(into, copies.as_ref().ok());
            }
            let copies = copies?;
            read_range(&ctx.ledgers, &copies, wanted).await?
        }
    };
    if wanted.prefix_bytes.is_none() {
        for entry in &mut entries {
            let (lac, length) = (entry.last_add_confirmed, entry.ledger_length);
            entry.digest = digest(ledger, entry.entry, lac, length, &[&entry.data]);
        }
    }
    Ok(entries)
}

pub(crate) async fn from_object(
    ctx: &LogContext,
    info: &LedgerInfo,
    stored: (AttemptId, &StoredObject),
    wanted: Wanted,
) -> Result<Vec<StoredEntry>, LogError> {
    let entries = WantedEntries {
        first: wanted.first,
        last: wanted.last,
        bytes_max: wanted.bytes_max,
        entries_max: wanted.entries_max,
    };
    let answer = at_object(ctx, info, stored, Question::Entries(entries)).await?;
    let mut found = match answer {
        Answer::Entries(found) => found,
        Answer::Among(_) => Vec::new(),
    };
    if let Some(bytes) = wanted.prefix_bytes {
        for entry in &mut found {
            entry.data.truncate(bytes);
        }
    }
    Ok(found)
}

/// What an object is asked.
#[derive(Clone, Copy)]
enum Question {
    /// Entries.
    Entries(WantedEntries),
    /// Among which entries the one is that a search is for.
    Among(Before),
}

/// What it answers.
enum Answer {
    Entries(Vec<StoredEntry>),
    Among(Range<u64>),
}

async fn ask(
    tier: &ColdTier,
    location: &Location,
    object: &ObjectRef,
    question: Question,
) -> ColdResult<Answer> {
    let (cache, store) = (&tier.cache, &*location.store);
    Ok(match question {
        Question::Entries(wanted) => Answer::Entries(cache.read(store, object, wanted).await?),
        Question::Among(before) => {
            let tail = cache.tail(store, object).await?;
            Answer::Among(match before {
                Before::Index(index) => tail.entries_at_index(index),
                Before::TimeMs(ms) => tail.entries_before_time(ms),
            })
        }
    })
}

/// A marker that cannot be read says nothing about the objects beside it.
fn of_place(error: ColdError) -> ColdError {
    match error {
        ColdError::Damaged { .. } => ColdError::Unavailable(error.to_string()),
        error => error,
    }
}

/// Asks an object, in a bounded time, and says what its failure means.
async fn at_object(
    ctx: &LogContext,
    info: &LedgerInfo,
    (attempt, stored): (AttemptId, &StoredObject),
    question: Question,
) -> Result<Answer, LogError> {
    let unavailable = |what: String| {
        let (ledger, object) = (info.id, &stored.name);
        LogError::Unavailable(format!("ledger {ledger} is in object {object}: {what}"))
    };
    let tier = ctx.cold.as_ref();
    let tier = tier.ok_or_else(|| unavailable("this process reads no objects".to_owned()))?;
    let LedgerState::Closed(end) = info.state else {
        return Err(LogError::Damaged(format!(
            "ledger {} is not closed",
            info.id
        )));
    };
    let object = ObjectRef {
        name: stored.name.clone(),
        size_bytes: stored.size_bytes,
        index_offset: stored.index_offset,
        expected: Expected {
            attempt,
            ledger: info.id,
            token: info.token,
            last_entry: end.last_entry.unwrap_or(EntryId::FIRST),
            length: end.length,
        },
    };
    let found = async {
        let location = tier.locations.get(stored.location).await;
        let location = location.map_err(of_place)?;
        let mut answer = ask(tier, &location, &object, question).await;
        if let Err(ColdError::NotFound(_)) = answer {
            // Absence counts in the right place only, and when it is said twice.
            location.check().await.map_err(of_place)?;
            answer = ask(tier, &location, &object, question).await;
        }
        match answer {
            Err(error @ ColdError::Damaged { .. }) => {
                ctx.metrics.found_bad_object("damaged");
                Err(error)
            }
            Err(ColdError::NotFound(name)) => {
                ctx.metrics.found_bad_object("missing");
                let reason = "it is missing".to_owned();
                Err(ColdError::Damaged { name, reason })
            }
            done => done,
        }
    };
    ctx.metrics.object_reads.add(1, &[]);
    let found = clock::timeout(tier.settings.read_max, found).await;
    if !matches!(found, Ok(Ok(_))) {
        ctx.metrics.object_read_failures.add(1, &[]);
        // The place may have moved; the next read finds it then.
        if let Err(error) = tier.locations.look_again(stored.location).await {
            tracing::debug!(%error, location = stored.location, "no look whether a place has moved");
        }
    }
    match found {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error @ ColdError::Damaged { .. })) => {
            tracing::error!(ledger = %info.id, object = stored.name, %error, "an object is damaged or missing");
            Err(LogError::Damaged(error.to_string()))
        }
        Ok(Err(error)) => Err(unavailable(error.to_string())),
        Err(_) => Err(unavailable("its store does not answer in time".to_owned())),
    }
}
