//! Start: identity, ledger store, replay of the journal, limbo.
//!
//! Invariants: nothing is served before what replay accepted is synced (H2); a loss is stored
//! durably before anything forgets that it happened.

use std::io;
use std::sync::Arc;

use aquifer_model::id::LedgerId;
use aquifer_runtime::disk::{BLOCK_BYTES, DiskLock};

use crate::apply::replay::{ReplayError, Replayer};
use crate::config::BookieConfig;
use crate::cookie::{self, Cookie, Setup, io_error};
use crate::deps::BookieDeps;
use crate::error::BookieOpenError;
use crate::journal::group_commit::Tail;
use crate::journal::mark::{FoundMark, Mark};
use crate::journal::replay::{self, Continuity, FoundCommit, Loss, ScannedSegment, UsedSegment};
use crate::journal::segments::Segments;
use crate::loss;
use crate::report::{DamageReport, LossReport, SetAsideReport};
use crate::reserve::Reserve;
use crate::store::{EntryStore, Opened, StoreError};

/// What replay leaves behind.
pub(crate) struct Replayed {
    pub(crate) segments: Segments,
    pub(crate) tail: Tail,
    pub(crate) mark: Mark,
    /// The last commit that the store had durably before this start.
    pub(crate) flushed: u64,
    pub(crate) deleted: Vec<LedgerId>,
    loss: Option<Loss>,
}

/// Everything that a start found out.
pub(crate) struct Started {
    pub(crate) cookie: Cookie,
    pub(crate) lock: DiskLock,
    pub(crate) store: Arc<dyn EntryStore>,
    pub(crate) replayed: Replayed,
    pub(crate) limbo: Option<LossReport>,
    pub(crate) accepted_loss: Option<LossReport>,
    pub(crate) damage: Option<DamageReport>,
    pub(crate) set_aside: Option<SetAsideReport>,
}

/// Opens a bookie whose ledger store `open_store` opens, or creates for a new one.
pub(crate) fn open(
    config: &BookieConfig,
    deps: &BookieDeps,
    open_store: impl FnOnce(&BookieConfig, bool) -> Result<Opened, StoreError>,
) -> Result<Started, BookieOpenError> {
    config.validate()?;
    Reserve::new(config).give_up_if_needed();
    let lock = cookie::lock(&*deps.disk, config)?;
    let mut cookie = cookie::check(&*deps.disk, config, &*deps.rng)?;
    let store_error = store_error(config);
    let is_new = cookie.setup == Setup::New;
    let Opened {
        store,
        damage,
        set_aside,
    } = open_store(config, is_new).map_err(&store_error)?;
    if is_new {
        Mark::create(&*deps.disk, &config.journal_dir, cookie.id)
            .map_err(io_error(&config.journal_dir))?;
        cookie = cookie::complete(&*deps.disk, config, &cookie)?;
    }
    let replayed = replay_journal(config, deps, &cookie, &*store, damage.is_some())?;
    // What was set aside just now, others may still have.
    let accepts = config.accept_loss && !(config.cluster.is_some() && set_aside.is_some());
    let (limbo, accepted_loss) =
        judge_loss(&*store, replayed.loss.as_ref(), accepts).map_err(&store_error)?;
    Ok(Started {
        cookie,
        lock,
        store,
        replayed,
        limbo,
        accepted_loss,
        damage,
        set_aside,
    })
}

fn store_error(config: &BookieConfig) -> impl Fn(StoreError) -> BookieOpenError + use<> {
    let path = config.ledger_dir.clone();
    move |error| match error {
        StoreError::Full(message) => BookieOpenError::Full {
            path: path.clone(),
            message,
        },
        error => BookieOpenError::Store {
            path: path.clone(),
            message: error.to_string(),
        },
    }
}

/// Reads the journal into the store and finds out where it goes on.
fn replay_journal(
    config: &BookieConfig,
    deps: &BookieDeps,
    cookie: &Cookie,
    store: &dyn EntryStore,
    is_damaged: bool,
) -> Result<Replayed, BookieOpenError> {
    let disk = &*deps.disk;
    let journal_error = |error| io_error(&config.journal_dir)(error);
    let mark = Mark::read(disk, &config.journal_dir, cookie.id).map_err(journal_error)?;
    let inventory = replay::inventory(disk, &config.journal_dir).map_err(journal_error)?;
    let (applied, stored_loss) =
        stored_positions(store, is_damaged).map_err(store_error(config))?;
    let mut flushed = applied;
    let mut continuity = Continuity::new(flushed);
    let mut replayer = Replayer::default();
    let mut scanned = Vec::new();
    for used in inventory.used {
        scanned.push(scan(
            config,
            deps,
            cookie,
            store,
            used,
            &mut continuity,
            &mut replayer,
        )?);
    }
    if replayer.records > 0 {
        tracing::info!(records = replayer.records, "journal replayed");
    }
    let (last, found_loss) = continuity.finish(mark);
    let is_new_loss = found_loss.is_some();
    let all_loss = Loss::merge(stored_loss, found_loss);
    if is_new_loss {
        store_loss(store, all_loss.as_ref(), last).map_err(store_error(config))?;
        flushed = last;
    }
    // Only now: until the loss is stored, a missing mark is what tells of it.
    if mark == FoundMark::Unreadable {
        Mark::create(disk, &config.journal_dir, cookie.id).map_err(journal_error)?;
    }
    let segments = Segments::new(
        deps.disk.clone(),
        config.journal_dir.clone(),
        config.journal_segment_bytes,
        config.journal_segments_max,
        inventory.last_number,
    );
    let bytes_min = smallest_segment(config);
    for file in inventory.spare {
        let added = segments.add_found(file, bytes_min);
        added.map_err(journal_error)?;
    }
    let tail = arrange(&segments, scanned, (flushed, last, is_new_loss), bytes_min);
    let tail = tail.map_err(journal_error)?;
    if tail.current.is_none() && segments.needs_spare() {
        let bytes = config.journal_first_segment_bytes;
        segments.create(bytes).map_err(journal_error)?;
    }
    let mark = Mark::open(disk, &config.journal_dir, cookie.id).map_err(journal_error)?;
    mark.write(last)
        .and_then(|()| mark.sync())
        .map_err(journal_error)?;
    Ok(Replayed {
        segments,
        tail,
        mark,
        flushed,
        deleted: replayer.deleted,
        loss: all_loss,
    })
}

/// The last commit that the store has, and the loss that is stored there. What cannot be read among
/// damaged files is not assumed: commits then seem to be missing, and that is limbo.
fn stored_positions(
    store: &dyn EntryStore,
    is_damaged: bool,
) -> Result<(u64, Option<Loss>), StoreError> {
    let applied = match store.applied() {
        Err(StoreError::Damaged(_)) if is_damaged => 0,
        applied => applied?,
    };
    Ok((applied, store.loss()?))
}

/// Makes a loss, and everything that was replayed, durable in the store, so that the damaged
/// journal is not needed any more.
fn store_loss(store: &dyn EntryStore, loss: Option<&Loss>, last: u64) -> Result<(), StoreError> {
    if let Some(loss) = loss {
        tracing::error!(reason = loss.reason, "journal lost synced data: limbo");
    }
    store.set_loss(loss, Some(last))
}

/// Replays one segment, if the store does not have all of it.
fn scan(
    config: &BookieConfig,
    deps: &BookieDeps,
    cookie: &Cookie,
    store: &dyn EntryStore,
    used: UsedSegment,
    continuity: &mut Continuity,
    replayer: &mut Replayer,
) -> Result<ScannedSegment, BookieOpenError> {
    let (path, head) = (used.file.path.clone(), used.head);
    if head.bookie != cookie.id {
        return Err(BookieOpenError::Cookie {
            path,
            what: format!("this journal segment belongs to bookie {}", head.bookie),
        });
    }
    let apply = &mut |found: FoundCommit| {
        let applied = replayer.apply(store, found);
        applied.map_err(ReplayError::Store)
    };
    let scanned = replay::scan_segment(&*deps.disk, used, u64::MAX, continuity, apply);
    scanned.map_err(|error| match error {
        ReplayError::Store(error) => store_error(config)(error),
        ReplayError::Journal(source) if source.kind() == io::ErrorKind::InvalidData => {
            BookieOpenError::Format {
                path,
                what: source.to_string(),
            }
        }
        ReplayError::Journal(source) => io_error(&path)(source),
    })
}

/// Sorts the segments into live and spare, and finds where the journal goes on: in the segment
/// that was written last, behind its last intact commit.
fn arrange(
    segments: &Segments,
    scanned: Vec<ScannedSegment>,
    (flushed, last, is_new_loss): (u64, u64, bool),
    bytes_min: u64,
) -> io::Result<Tail> {
    let mut tail = Tail {
        current: None,
        offset: 0,
        last_sequence: last,
        last_generation: 0,
    };
    let count = scanned.len();
    for (at, segment) in scanned.into_iter().enumerate() {
        tail.last_generation = segment.head.segment.generation;
        let is_last = at + 1 == count;
        // A damaged journal is not continued: its last segment could hide more damage.
        if is_last && !is_new_loss {
            segments.add_live(Arc::clone(&segment.file), last);
            tail.offset = segment.end_offset;
            tail.current = Some((segment.file, segment.head.segment));
        } else if segment.last_sequence > flushed {
            segments.add_live(segment.file, segment.last_sequence);
        } else {
            segments.add_found(segment.file, bytes_min)?;
        }
    }
    Ok(tail)
}

/// The bytes of the smallest segment that these settings create.
fn smallest_segment(config: &BookieConfig) -> u64 {
    let bytes = config
        .journal_segment_bytes
        .min(config.journal_first_segment_bytes);
    u64::try_from(bytes / BLOCK_BYTES * BLOCK_BYTES).unwrap_or(u64::MAX)
}

/// Decides between limbo and going on without what was lost.
fn judge_loss(
    store: &dyn EntryStore,
    loss: Option<&Loss>,
    accepts: bool,
) -> Result<(Option<LossReport>, Option<LossReport>), StoreError> {
    let Some(loss) = loss else {
        return Ok((None, None));
    };
    let report = loss::report(store, loss)?;
    if !accepts {
        tracing::error!(
            reason = loss.reason,
            ledgers = report.ledgers.len(),
            "all ledgers are in limbo until the loss is repaired or accepted"
        );
        return Ok((Some(report), None));
    }
    store.set_loss(None, None)?;
    tracing::warn!(
        first_commit = report.first_commit,
        last_commit = report.last_commit,
        ledgers = report.ledgers.len(),
        "loss accepted: limbo ends"
    );
    Ok((None, Some(report)))
}
