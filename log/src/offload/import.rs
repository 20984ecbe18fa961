//! One re-import: the entries of an object are written into another ledger, with the quorum of new
//! ledgers, and compared with the object before the record says that bookies have them
//! (`aquifer_ledger::offload::imports`).
//!
//! A re-import that fails gives itself up as far as metadata answers. One whose process ends is
//! given up by the next owner of the topic, when it looks after its offload.

use std::sync::{Arc, OnceLock};

use aquifer_ledger::error::LedgerError;
use aquifer_ledger::guards::Guards;
use aquifer_ledger::ledger_metadata::{self, LedgerInfo, LedgerState};
use aquifer_ledger::objects::imports;
use aquifer_ledger::offload::{Copies, Offload, StoredObject};
use aquifer_ledger::reader::{Wanted, read_range};
use aquifer_ledger::writer::driver::{LedgerWriter, WriterOwner};
use aquifer_ledger::writer::machine::LedgerEnd;
use aquifer_model::entry::EntryData;
use aquifer_model::id::{AttemptId, EntryId, LedgerId};
use aquifer_model::quorum::Quorum;
use aquifer_model::storage::StoredEntry;
use aquifer_runtime::clock;
use bytes::Bytes;
use tokio::sync::watch;

use crate::context::LogContext;
use crate::error::LogError;
use crate::offload::tier::ColdTier;
use crate::rollover::unwritten_ledger;
use crate::source::{from_object, stored_object};

/// Entries of one read of the object.
const READ_ENTRIES_MAX: usize = 4 * 1024;
/// Batches that a re-import has in memory: one as the object has it, and one as bookies do.
const BATCHES_IN_MEMORY: usize = 2;

/// What is certain of a re-import that did not come to its end.
pub(super) type Begun = OnceLock<(AttemptId, LedgerId)>;

/// Brings the copies of a ledger back to bookies, unless they have some. `false`: there was nothing
/// to do. After an error, and when it is dropped, the record may name a ledger that is not
/// complete, which is the one that has `begun`: [`forget`] is to follow.
pub(super) async fn import_ledger(
    ctx: &LogContext,
    tier: &ColdTier,
    (ledger, quorum): (LedgerId, Quorum),
    begun: &Begun,
) -> Result<bool, LogError> {
    let store = &*ctx.ledgers.store;
    let info = ledger_metadata::load_existing(store, ledger).await?;
    let (
        LedgerState::Closed(end),
        Some(Offload::Stored {
            copies: Copies::Gone,
            ..
        }),
    ) = (info.state, &info.offload)
    else {
        return Ok(false);
    };
    let Some((last, (attempt, object))) = end.last_entry.zip(stored_object(&info)) else {
        return Ok(false);
    };
    if object.is_damaged {
        let name = &object.name;
        return Err(LogError::Damaged(format!(
            "a scrub found object {name} damaged: it is not brought back to bookies"
        )));
    }
    let batch = tier.settings.read_bytes.saturating_mul(BATCHES_IN_MEMORY);
    let _memory = tier.memory.acquire(batch).await;
    let copy = unwritten_ledger(&ctx.ledgers, ledger, quorum, &info.home).await?;
    let _ = begun.set((attempt, copy.id)); // set once
    let copy = imports::begin(store, ledger, attempt, copy).await?;
    let work = Import {
        ctx,
        tier,
        info: &info,
        object: (attempt, object),
        end: (last, end),
    };
    let into = copy.id;
    let late = || LogError::Unavailable(format!("ledger {ledger} is not re-imported in time"));
    let limit = tier.attempt_max(end.length);
    let written = clock::timeout(limit, work.write_and_compare(copy)).await;
    written.unwrap_or_else(|_| Err(late()))?;
    let now_ms = ctx.ledgers.clock.wall_ms();
    imports::end(store, ledger, attempt, (into, now_ms)).await?;
    tracing::info!(%ledger, %into, bytes = end.length, "ledger re-imported to bookies");
    Ok(true)
}

/// Has what a re-import has written deleted, unless it has come to its end.
pub(super) async fn forget(
    ctx: &LogContext,
    ledger: LedgerId,
    begun: &Begun,
) -> Result<(), LogError> {
    let Some((attempt, into)) = begun.get().copied() else {
        return Ok(());
    };
    give_up(ctx, ledger, |coming| coming == (attempt, into)).await
}

/// The same with whatever re-import is in the middle, for the owner of the topic that has begun
/// none itself: what a former owner does late is refused.
pub(super) async fn forget_any(ctx: &LogContext, ledger: LedgerId) -> Result<(), LogError> {
    give_up(ctx, ledger, |_| true).await
}

async fn give_up(
    ctx: &LogContext,
    ledger: LedgerId,
    is_meant: impl Fn((AttemptId, LedgerId)) -> bool,
) -> Result<(), LogError> {
    let store = &*ctx.ledgers.store;
    let Some(info) = ledger_metadata::load(store, ledger).await? else {
        return Ok(());
    };
    if let Some(Offload::Stored {
        attempt,
        copies: Copies::Coming { into },
        ..
    }) = info.offload
        && is_meant((attempt, into))
        && imports::forget(store, ledger, attempt, into).await?
    {
        tracing::info!(%ledger, %into, "re-import of a ledger given up");
    }
    Ok(())
}

struct Import<'a> {
    ctx: &'a LogContext,
    tier: &'a ColdTier,
    info: &'a LedgerInfo,
    object: (AttemptId, &'a StoredObject),
    end: (EntryId, LedgerEnd),
}

impl Import<'_> {
    async fn write_and_compare(&self, copy: LedgerInfo) -> Result<(), LogError> {
        let copy = self.write(copy).await?;
        self.compare(&copy).await
    }

    /// Writes every entry, and closes the ledger.
    async fn write(&self, copy: LedgerInfo) -> Result<LedgerInfo, LogError> {
        let heard = Arc::new(Heard::default());
        let owner = Arc::downgrade(&heard);
        let ledgers = Arc::clone(&self.ctx.ledgers);
        ledgers.metrics.ledgers_created.add(1, &[]);
        let writer = LedgerWriter::new(ledgers, copy, Guards::default(), owner, false);
        let stops = Stops(writer.clone());
        let (last, end) = self.end;
        let mut next = EntryId::FIRST;
        while next <= last {
            let entries = self.of_object(next).await?;
            let bytes = entries.iter().map(|entry| entry.data.len()).sum();
            self.tier.pace(&*self.ctx.ledgers.clock, bytes).await;
            let mut sent = None;
            for StoredEntry { entry, data, .. } in entries {
                let head = Bytes::new();
                sent = writer.enqueue(EntryData { head, body: data }, None);
                if sent != Some(entry) {
                    return Err(heard.why_stopped());
                }
            }
            writer.flush();
            // At least one was read.
            let sent = sent.ok_or_else(|| heard.why_stopped())?;
            heard.wait_for(sent).await?;
            next = sent.next();
        }
        writer.drain(self.ctx.ledgers.settings.close_wait).await;
        let mut copy = writer.info();
        let incomplete = writer.unconfirmed(&copy);
        let written = writer.finish();
        drop(stops);
        if written != end {
            return Err(LogError::Damaged(format!(
                "ledger {} was re-imported into {} up to {written:?}, and ends at {end:?}",
                self.info.id, copy.id
            )));
        }
        let now_ms = self.ctx.ledgers.clock.wall_ms();
        let store = &*self.ctx.ledgers.store;
        imports::close(store, &mut copy, end, incomplete, now_ms).await?;
        Ok(copy)
    }

    /// Reads everything back from bookies, and compares it with the object.
    async fn compare(&self, copy: &LedgerInfo) -> Result<(), LogError> {
        let (last, _) = self.end;
        let mut next = EntryId::FIRST;
        while next <= last {
            let entries = self.of_object(next).await?;
            let mut left = entries.as_slice();
            while let (Some(first), Some(end)) = (left.first(), left.last()) {
                let wanted = Wanted {
                    last: end.entry,
                    bytes_max: self.tier.settings.read_bytes,
                    entries_max: READ_ENTRIES_MAX,
                    ..Wanted::one(first.entry)
                };
                let copies = read_range(&self.ctx.ledgers, copy, wanted).await?;
                let same = copies.iter().zip(left).take_while(|(copy, entry)| {
                    copy.entry == entry.entry && copy.data == entry.data
                });
                if copies.is_empty() || same.count() < copies.len() {
                    return Err(LogError::Damaged(format!(
                        "entry {} of ledger {} was not re-imported as it is in its object",
                        first.entry, self.info.id
                    )));
                }
                next = end.entry.next();
                left = &left[copies.len()..];
            }
        }
        Ok(())
    }

    /// The next entries, at least one.
    async fn of_object(&self, first: EntryId) -> Result<Vec<StoredEntry>, LogError> {
        let wanted = Wanted {
            first,
            last: self.end.0,
            bytes_max: self.tier.settings.read_bytes,
            entries_max: READ_ENTRIES_MAX,
            prefix_bytes: None,
        };
        let entries = from_object(self.ctx, self.info, self.object, wanted).await?;
        match entries.first() {
            Some(entry) if entry.entry == first => Ok(entries),
            _ => Err(LogError::Damaged(format!(
                "the object of ledger {} does not give entry {first}",
                self.info.id
            ))),
        }
    }
}

/// Stops a writer that is not waited for any more.
struct Stops(LedgerWriter);

impl Drop for Stops {
    fn drop(&mut self) {
        self.0.finish();
    }
}

/// What a writer has told.
#[derive(Debug, Default)]
struct Told {
    added: Option<EntryId>,
    stopped: Option<LedgerError>,
}

/// Hears how far a writer is.
#[derive(Default)]
struct Heard(watch::Sender<Told>);

impl WriterOwner for Heard {
    fn added(&self, _: LedgerId, entry: EntryId) {
        self.0.send_modify(|told| told.added = Some(entry));
    }

    fn stopped(&self, _: LedgerId, error: LedgerError) {
        self.0.send_modify(|told| told.stopped = Some(error));
    }
}

impl Heard {
    /// Waits until an entry is durable.
    async fn wait_for(&self, entry: EntryId) -> Result<(), LogError> {
        let mut told = self.0.subscribe();
        let is_told = |told: &Told| told.stopped.is_some() || told.added >= Some(entry);
        let is_added = match told.wait_for(is_told).await {
            Ok(told) => told.added >= Some(entry),
            Err(_) => false,
        };
        match is_added {
            true => Ok(()),
            false => Err(self.why_stopped()),
        }
    }

    fn why_stopped(&self) -> LogError {
        match &self.0.borrow().stopped {
            Some(error) => error.clone().into(),
            None => LogError::Unavailable("the writer of a re-import has stopped".to_owned()),
        }
    }
}
