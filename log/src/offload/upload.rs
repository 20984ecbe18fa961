//! One attempt at one ledger: claim, write, read back, commit.
//!
//! An attempt that fails gives itself up as far as metadata answers. One whose process ends is
//! given up by the reaper.

use std::sync::Arc;
use std::time::Duration;

use aquifer_cold::error::ColdError;
use aquifer_cold::format::writer::ObjectSpec;
use aquifer_cold::format::{Compression, Expected};
use aquifer_cold::location::Location;
use aquifer_cold::object::{name_of, verify};
use aquifer_cold::replaced;
use aquifer_cold::upload::{ObjectUpload, PARTS_SENDING_MAX, part_bytes};
use aquifer_ledger::ledger_metadata::{self, LedgerInfo, LedgerState};
use aquifer_ledger::objects::{self, PlannedObject, replacing};
use aquifer_ledger::offload::{Offload, StoredObject};
use aquifer_ledger::reader::{Wanted, read_range};
use aquifer_ledger::writer::machine::LedgerEnd;
use aquifer_model::id::{AttemptId, EntryId, LedgerId};
use aquifer_model::policy::offload::OffloadCompression;
use aquifer_proto::v1;
use aquifer_runtime::budget::BytePermit;
use aquifer_runtime::clock;
use bytes::Bytes;

use crate::context::LogContext;
use crate::error::LogError;
use crate::offload::tier::{Active, ColdTier};
use crate::record::TopicRecordCell;

/// Entries of one read from bookies.
const READ_ENTRIES_MAX: usize = 16 * 1024;
/// Reads of the same entries, while repair changes where they are.
const READS_MAX: u32 = 3;
/// Bytes that are checked, compressed and copied before other tasks have a turn.
const ADDED_AT_ONCE: usize = 512 << 10;
/// Parts that an attempt has in memory: one that is being filled, and those that are being sent.
/// Reading everything back afterwards takes no more.
const PARTS_IN_MEMORY: usize = 1 + PARTS_SENDING_MAX;

/// What became of a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is in an object now.
    Stored,
    /// It was before, or holds nothing.
    NothingToDo,
    /// Another attempt is under way.
    Busy,
    /// An offloader is to do it.
    Left,
}

/// A closed ledger that is in no object, and how it ends; or else what there is to say of it.
pub(super) async fn unoffloaded(
    ctx: &LogContext,
    ledger: LedgerId,
) -> Result<Result<(LedgerInfo, LedgerEnd), Outcome>, LogError> {
    let info = ledger_metadata::load_existing(&*ctx.ledgers.store, ledger).await?;
    match info.offload {
        Some(Offload::Stored { .. }) => return Ok(Err(Outcome::NothingToDo)),
        Some(Offload::Claimed { .. }) => return Ok(Err(Outcome::Busy)),
        None => {}
    }
    let LedgerState::Closed(end) = info.state else {
        return Err(LogError::Invalid(format!("ledger {ledger} is not closed")));
    };
    Ok(match end.last_entry {
        Some(_) => Ok((info, end)),
        None => Err(Outcome::NothingToDo),
    })
}

/// Writes a closed ledger into an object, unless it is in one.
pub(crate) async fn offload_ledger(
    ctx: &LogContext,
    tier: &ColdTier,
    origin: &Origin,
    (ledger, compression): (LedgerId, OffloadCompression),
) -> Result<Outcome, LogError> {
    let (info, end) = match unoffloaded(ctx, ledger).await? {
        Ok(found) => found,
        Err(outcome) => return Ok(outcome),
    };
    let work = Attempt::prepare(ctx, tier, &info, compression).await?;
    let info = match objects::claim(&*ctx.ledgers.store, &work.planned).await {
        Ok(info) => info,
        Err(error) => {
            // It may have been made.
            work.give_up().await;
            return Err(error.into());
        }
    };
    let object = work.write_in_time(info, origin).await?;
    let stored = objects::store(&*ctx.ledgers.store, &work.planned, object).await;
    if let Err(error) = stored {
        // Given up only where the claim is as it was: the change may have been made.
        work.give_up().await;
        return Err(error.into());
    }
    let attempt = work.planned.attempt;
    tracing::info!(%ledger, topic = origin.topic, %attempt, bytes = end.length, "ledger offloaded");
    Ok(Outcome::Stored)
}

/// Writes the object of a ledger again from the copies that bookies have, and has it take the place
/// of the one of another attempt, which is damaged or missing.
pub(crate) async fn replace_object(
    ctx: &LogContext,
    tier: &ColdTier,
    (info, damaged): (&LedgerInfo, AttemptId),
    origin: &Origin,
) -> Result<(), LogError> {
    let compression = tier.settings.policy.compression;
    // Never closed.
    let _turn = tier.workers.acquire().await.ok();
    let work = Attempt::prepare(ctx, tier, info, compression).await?;
    let store = &*ctx.ledgers.store;
    let info = match replacing::begin(store, &work.planned, damaged).await {
        Ok(info) => info,
        Err(error) => {
            // It may have been made.
            work.give_up().await;
            return Err(error.into());
        }
    };
    let object = work.write_in_time(info, origin).await?;
    let noted = work.note(damaged, &object).await;
    let replaced = match noted {
        Ok(()) => replacing::replace(store, &work.planned, damaged, object)
            .await
            .map_err(LogError::from),
        Err(error) => Err(error),
    };
    if let Err(error) = replaced {
        // Given up only where the object is not named: the change may have been made.
        work.give_up().await;
        return Err(error);
    }
    let (ledger, attempt) = (work.planned.ledger, work.planned.attempt);
    tracing::warn!(%ledger, %attempt, %damaged, "damaged object replaced from copies at bookies");
    Ok(())
}

/// What an object says of the topic that its ledger belongs to.
pub(crate) struct Origin {
    pub(crate) topic: String,
    pub(crate) incarnation: Bytes,
}

impl Origin {
    pub(crate) fn of(cell: &TopicRecordCell) -> Origin {
        Origin {
            topic: cell.topic().to_string(),
            incarnation: Bytes::copy_from_slice(&cell.incarnation().0),
        }
    }
}

/// What an attempt with parts of a size has in memory.
fn memory_of(tier: &ColdTier, part: usize) -> Result<usize, LogError> {
    let settings = &tier.settings;
    let parts = part.saturating_mul(PARTS_IN_MEMORY);
    let wanted = parts.saturating_add(settings.read_bytes.saturating_mul(2));
    let wanted = wanted.saturating_add(settings.block_bytes.saturating_mul(2));
    match wanted <= tier.memory.capacity_bytes() {
        true => Ok(wanted),
        false => Err(LogError::Invalid(format!(
            "the ledger is so large that its object needs {wanted} bytes of memory: close ledgers \
             at a smaller size, or raise cold.workers_max"
        ))),
    }
}

/// An id that is never used again: the time, and what is random.
fn draw(ctx: &LogContext, now_ms: u64) -> AttemptId {
    let mut id = ctx.ledgers.rng.id16();
    id[..6].copy_from_slice(&now_ms.to_be_bytes()[2..]);
    AttemptId(id)
}

/// What a failure of the store means to the log.
pub(crate) fn of_store(error: ColdError) -> LogError {
    match error {
        ColdError::Damaged { .. } => LogError::Damaged(error.to_string()),
        ColdError::Config(_) => LogError::Invalid(error.to_string()),
        ColdError::Metadata(error) => LogError::Metadata(error),
        ColdError::NotFound(_)
        | ColdError::AlreadyExists(_)
        | ColdError::Denied(_)
        | ColdError::Unavailable(_)
        | ColdError::WrongPlace { .. } => LogError::Unavailable(error.to_string()),
    }
}

struct Attempt<'a> {
    ctx: &'a LogContext,
    tier: &'a ColdTier,
    location: Arc<Location>,
    planned: PlannedObject,
    end: (EntryId, LedgerEnd),
    part_bytes: usize,
    compression: Compression,
    limit: Duration,
    _memory: BytePermit,
    _active: Active<'a>,
}

impl<'a> Attempt<'a> {
    /// Changes nothing yet. The ledger is closed and holds something.
    async fn prepare(
        ctx: &'a LogContext,
        tier: &'a ColdTier,
        info: &LedgerInfo,
        compression: OffloadCompression,
    ) -> Result<Attempt<'a>, LogError> {
        let LedgerState::Closed(end) = info.state else {
            return Err(LogError::Invalid(format!(
                "ledger {} is not closed",
                info.id
            )));
        };
        let empty = || LogError::Invalid(format!("ledger {} holds nothing", info.id));
        let last_entry = end.last_entry.ok_or_else(empty)?;
        let part = tier.settings.part_bytes;
        let part = part.unwrap_or_else(|| part_bytes(end.length));
        let memory = tier.memory.acquire(memory_of(tier, part)?).await;
        let location = tier.locations.primary().await.map_err(of_store)?;
        // What is written elsewhere would be found nowhere.
        location.check().await.map_err(of_store)?;
        let now_ms = ctx.ledgers.clock.wall_ms();
        let attempt = draw(ctx, now_ms);
        let name = name_of(tier.locations.cluster(), &info.home, info.id, attempt);
        let limit = tier.attempt_max(end.length);
        let place = (location.number, name);
        let times = (now_ms, clock::millis(limit));
        Ok(Attempt {
            ctx,
            tier,
            planned: PlannedObject::new(attempt, info, place, tier.worker, times),
            location,
            end: (last_entry, end),
            part_bytes: part,
            compression: match compression {
                OffloadCompression::None => Compression::None,
                OffloadCompression::Auto => Compression::Auto,
            },
            limit,
            _memory: memory,
            _active: Active::new(tier, attempt),
        })
    }

    /// Writes the object and reads all of it back, within the limit; gives it up otherwise.
    async fn write_in_time(
        &self,
        info: LedgerInfo,
        origin: &Origin,
    ) -> Result<StoredObject, LogError> {
        let ledger = info.id;
        let late = || LogError::Unavailable(format!("ledger {ledger} is not offloaded in time"));
        let written = clock::timeout(self.limit, self.write(info, origin)).await;
        let written = written.unwrap_or_else(|_| Err(late()));
        if written.is_err() {
            self.give_up().await;
        }
        written
    }

    async fn give_up(&self) {
        let given_up = objects::give_up(&*self.ctx.ledgers.store, self.planned.attempt).await;
        if let Err(error) = given_up {
            tracing::debug!(attempt = %self.planned.attempt, %error, "the reaper gives it up");
        }
        self.tier.left.notify_one();
    }

    /// Tells backups which object takes the place of a damaged one.
    async fn note(&self, damaged: AttemptId, object: &StoredObject) -> Result<(), LogError> {
        let (store, cluster) = (&*self.location.store, self.tier.locations.cluster());
        let replacement = (self.planned.attempt, object.to_record());
        let noted = replaced::note(store, cluster, damaged, replacement).await;
        noted.map_err(of_store)
    }

    /// Writes the object and reads all of it back.
    async fn write(&self, info: LedgerInfo, origin: &Origin) -> Result<StoredObject, LogError> {
        let (last_entry, end) = self.end;
        let part = self.part_bytes;
        let (store, name) = (Arc::clone(&self.location.store), self.planned.name.clone());
        let mut upload = ObjectUpload::new(store, name, self.spec(&info, origin), part);
        let sent = self.send(&mut upload, info.clone(), last_entry).await;
        if let Err(error) = sent {
            let _ = upload.abort().await; // the reaper does it again
            return Err(error);
        }
        let (written, done) = upload.complete().await.map_err(of_store)?;
        if let Err(error) = &done {
            tracing::debug!(attempt = %self.planned.attempt, %error, "the end of an object failed, or its answer was lost");
        }
        let expected = Expected {
            attempt: self.planned.attempt,
            ledger: info.id,
            token: info.token,
            last_entry,
            length: end.length,
        };
        let store = &*self.location.store;
        let name = &self.planned.name;
        let checked = verify(store, name, written.bytes, Some(&expected), |_, _| {}).await;
        let tail = checked.map_err(|error| match done {
            Ok(()) => of_store(error),
            Err(earlier) => of_store(earlier),
        })?;
        let size = store.size(name).await.map_err(of_store)?;
        if tail.trailer.body_crc64 != written.body_crc64 || size != written.bytes {
            let what = "what was read back is not what was written";
            return Err(LogError::Damaged(format!("object {name}: {what}")));
        }
        Ok(StoredObject {
            location: self.location.number,
            name: name.clone(),
            section: 0,
            size_bytes: written.bytes,
            checksum: written.body_crc64,
            stored_ms: self.ctx.ledgers.clock.wall_ms(),
            index_offset: written.index_offset,
            claimed: info.revision,
            is_damaged: false,
        })
    }

    fn spec(&self, info: &LedgerInfo, origin: &Origin) -> ObjectSpec {
        let size = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        ObjectSpec {
            attempt: self.planned.attempt,
            location: self.location.id,
            cluster: self.tier.locations.cluster().to_owned(),
            created_ms: self.planned.started_ms,
            writer: concat!("aquifer ", env!("CARGO_PKG_VERSION")).to_owned(),
            section: v1::ObjectSection {
                ledger_id: info.id.0,
                creation_token: Bytes::copy_from_slice(&info.token.0),
                home: info.home.clone(),
                topic: origin.topic.clone(),
                incarnation: origin.incarnation.clone(),
                ensemble: size(info.quorum.ensemble()),
                write_quorum: size(info.quorum.write()),
                ack_quorum: size(info.quorum.ack()),
                ledger_created_ms: info.created_ms,
                ..v1::ObjectSection::default()
            },
            block_bytes: self.tier.settings.block_bytes,
            compression: self.compression,
        }
    }

    /// Reads the ledger from its bookies and sends what is full.
    async fn send(
        &self,
        upload: &mut ObjectUpload,
        mut info: LedgerInfo,
        last: EntryId,
    ) -> Result<(), LogError> {
        let (mut next, mut added) = (EntryId::FIRST, 0);
        while next <= last {
            let read = async {
                let entries = self.read(&mut info, next, last).await?;
                let bytes = entries.iter().map(|entry| entry.data.len()).sum();
                self.tier.pace(&*self.ctx.ledgers.clock, bytes).await;
                Ok::<_, LogError>(entries)
            };
            let entries = upload.while_sending(read).await.map_err(of_store)??;
            for entry in &entries {
                upload.add(entry).map_err(of_store)?;
                next = entry.entry.next();
                added += entry.data.len();
                if added >= ADDED_AT_ONCE {
                    added = 0;
                    let turn = upload.while_sending(tokio::task::yield_now()).await;
                    turn.map_err(of_store)?;
                }
                if !upload.is_full() {
                    continue;
                }
                if !upload.has_begun() {
                    let id = upload.begin().await.map_err(of_store)?;
                    if !id.is_empty() {
                        let store = &*self.ctx.ledgers.store;
                        objects::note_upload(store, &self.planned, &id).await?;
                    }
                }
                upload.send().await.map_err(of_store)?;
            }
        }
        Ok(())
    }

    async fn read(
        &self,
        info: &mut LedgerInfo,
        first: EntryId,
        last: EntryId,
    ) -> Result<Vec<aquifer_model::storage::StoredEntry>, LogError> {
        let wanted = Wanted {
            first,
            last,
            bytes_max: self.tier.settings.read_bytes,
            entries_max: READ_ENTRIES_MAX,
            prefix_bytes: None,
        };
        let mut reads = 1;
        loop {
            match read_range(&self.ctx.ledgers, info, wanted).await {
                Ok(entries) => return Ok(entries),
                Err(error) if reads >= READS_MAX => return Err(error.into()),
                Err(error) => tracing::debug!(%error, "reading a ledger to offload it, again"),
            }
            reads += 1;
            *info = ledger_metadata::load_existing(&*self.ctx.ledgers.store, info.id).await?;
        }
    }
}
