//! Start: identity, RocksDB, replay of the journal, limbo, threads.
//!
//! Invariants: nothing is served before what replay accepted is synced (H2); a loss is stored
//! durably before anything forgets that it happened.

use std::io;
use std::sync::Arc;

use aquifer_model::id::LedgerId;
use aquifer_runtime::disk::{BLOCK_BYTES, DiskLock};

use crate::BookieDeps;
use crate::apply::{ReplayError, Replayer};
use crate::assemble;
use crate::config::BookieConfig;
use crate::cookie::{self, Cookie, Setup, io_error};
use crate::core::Core;
use crate::error::BookieOpenError;
use crate::journal::group_commit::Tail;
use crate::journal::mark::{FoundMark, Mark};
use crate::journal::replay::{self, Continuity, FoundCommit, Loss, ScannedSegment, UsedSegment};
use crate::journal::segments::Segments;
use crate::loss;
use crate::report::{DamageReport, LossReport, SetAsideReport};
use crate::store::{self, Db, StoreError, files, set_aside};

/// Files that one start sets aside one after the other.
const SET_ASIDE_MAX: usize = 32;

/// What replay leaves behind.
pub(crate) struct Replayed {
    pub(crate) segments: Segments,
    pub(crate) tail: Tail,
    pub(crate) mark: Mark,
    /// The last commit that RocksDB had flushed before this start.
    pub(crate) flushed: u64,
    pub(crate) deleted: Vec<LedgerId>,
    loss: Option<Loss>,
}

/// Everything that start found out, for [`assemble`].
pub(crate) struct Started {
    pub(crate) cookie: Cookie,
    pub(crate) lock: DiskLock,
    pub(crate) db: Db,
    pub(crate) replayed: Replayed,
    pub(crate) limbo: Option<LossReport>,
    pub(crate) accepted_loss: Option<LossReport>,
    pub(crate) damage: Option<DamageReport>,
    pub(crate) set_aside: Option<SetAsideReport>,
}

pub(crate) fn open(config: BookieConfig, deps: &BookieDeps) -> Result<Arc<Core>, BookieOpenError> {
    config.validate()?;
    crate::Bookie::make_room(&config);
    let lock = cookie::lock(&*deps.disk, &config)?;
    let mut cookie = cookie::check(&*deps.disk, &config, &*deps.rng)?;
    let store_error = store_error(&config);
    let is_new = cookie.setup == Setup::New;
    let opened = open_store(&config, is_new).map_err(&store_error)?;
    let (db, damage, set_aside) = (opened.db, opened.damage, opened.set_aside);
    if is_new {
        Mark::create(&*deps.disk, &config.journal_dir, cookie.id)
            .map_err(io_error(&config.journal_dir))?;
        cookie = cookie::complete(&*deps.disk, &config, &cookie)?;
    }
    let replayed = replay_journal(&config, deps, &cookie, &db)?;
    // What was set aside just now, others may still have.
    let accepts = config.accept_loss && !(config.cluster.is_some() && set_aside.is_some());
    let (limbo, accepted_loss) =
        judge_loss(&db, replayed.loss.as_ref(), accepts).map_err(&store_error)?;
    let started = Started {
        cookie,
        lock,
        db,
        replayed,
        limbo,
        accepted_loss,
        damage,
        set_aside,
    };
    assemble::start(config, deps, started)
}

/// RocksDB as a start finds it.
struct OpenedStore {
    db: Db,
    /// Files that stop compactions; what can be read of them is served.
    damage: Option<DamageReport>,
    set_aside: Option<SetAsideReport>,
}

/// Opens RocksDB. Files that are damaged stay where they are until somebody accepts the loss; one
/// that cannot be opened at all is set aside at once, which is limbo, because it hides what is whole.
fn open_store(config: &BookieConfig, is_new: bool) -> Result<OpenedStore, StoreError> {
    let mut set_aside = None;
    for _ in 0..SET_ASIDE_MAX {
        if let Some(report) = set_aside::begun(config) {
            let outcome = set_aside::finish(config, report)?;
            tracing::warn!(?outcome, "damaged files of the ledger store were set aside");
            set_aside = Some(outcome);
        }
        let known = match Db::open(config, is_new) {
            Ok(db) => match db.damage() {
                Ok(None) => {
                    return Ok(OpenedStore {
                        db,
                        damage: None,
                        set_aside,
                    });
                }
                Ok(Some(known)) => Ok(known),
                Err(StoreError::Damaged(what)) => Err(what),
                Err(error) => return Err(error),
            },
            // Only where a table file is named: without the others nothing is known of what the
            // database has. One that is missing may be found again.
            Err(StoreError::Damaged(what)) if may_lack(config, &what) => Err(what),
            Err(error) => return Err(error),
        };
        let db = Db::open_damaged(config)?;
        match known {
            Err(what) => lose_file(config, db, &what)?,
            Ok(known) => {
                let report = db.look_at_damage(Some(known), None)?;
                if !config.accept_loss {
                    return Ok(OpenedStore {
                        db,
                        damage: Some(report),
                        set_aside,
                    });
                }
                if config.cluster.is_some() {
                    lose(&db, &report)?;
                }
                drop(db);
                set_aside::begin(config, &report)?;
            }
        }
    }
    Err(StoreError::Damaged("too many of its files".to_owned()))
}

/// Sets a file aside of which nothing can be read.
fn lose_file(config: &BookieConfig, db: Db, what: &str) -> Result<(), StoreError> {
    let report = db.look_at_damage(None, Some(what))?;
    lose(&db, &report)?;
    set_aside::drop_files(config, db, &report)
}

/// Notes that what damaged files had is lost.
fn lose(db: &Db, report: &DamageReport) -> Result<(), StoreError> {
    let known = match db.loss() {
        Ok(stored) => stored.map(|bytes| loss::decode(&bytes)),
        Err(StoreError::Damaged(_)) => Some(loss::decode(&[])),
        Err(error) => return Err(error),
    };
    let reason = format!("damaged files of the ledger store were set aside: {report}");
    tracing::error!(reason, "limbo");
    let lost = Loss {
        first: 0,
        last: 0,
        reason,
    };
    let all = loss::merge(known, Some(lost));
    let mut batch = db.batch();
    batch.set_loss(all.as_ref().map(loss::encode).as_deref());
    batch.write()?;
    db.flush()
}

/// Whether the start may go on without the table file that an error names.
fn may_lack(config: &BookieConfig, error: &str) -> bool {
    let path = files::named(error).map(|name| store::directory(config).join(name));
    path.is_some_and(|path| path.exists() || config.accept_loss)
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

/// Reads the journal into RocksDB and finds out where it goes on.
fn replay_journal(
    config: &BookieConfig,
    deps: &BookieDeps,
    cookie: &Cookie,
    db: &Db,
) -> Result<Replayed, BookieOpenError> {
    let disk = &*deps.disk;
    let journal_error = |error| io_error(&config.journal_dir)(error);
    let mark = Mark::read(disk, &config.journal_dir, cookie.id).map_err(journal_error)?;
    let inventory = replay::inventory(disk, &config.journal_dir).map_err(journal_error)?;
    let (applied, stored_loss) = stored_positions(db).map_err(store_error(config))?;
    let mut flushed = applied;
    let mut continuity = Continuity::new(flushed);
    let mut replayer = Replayer::default();
    let mut scanned = Vec::new();
    for used in inventory.used {
        scanned.push(scan(
            config,
            deps,
            cookie,
            db,
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
    let all_loss = loss::merge(stored_loss, found_loss);
    if is_new_loss {
        store_loss(db, all_loss.as_ref(), last).map_err(store_error(config))?;
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

/// The last commit that RocksDB has, and the loss that is stored there. What cannot be read is not
/// assumed: commits then seem to be missing, and that is limbo.
fn stored_positions(db: &Db) -> Result<(u64, Option<Loss>), StoreError> {
    let unknown = |error| match error {
        StoreError::Damaged(_) if db.is_damaged() => Ok(0),
        error => Err(error),
    };
    let applied = db.applied().or_else(unknown)?;
    let loss = match db.loss() {
        Ok(stored) => stored.map(|bytes| loss::decode(&bytes)),
        Err(StoreError::Damaged(_)) if db.is_damaged() => Some(loss::decode(&[])),
        Err(error) => return Err(error),
    };
    Ok((applied, loss))
}

/// Replays one segment, if RocksDB does not have all of it.
fn scan(
    config: &BookieConfig,
    deps: &BookieDeps,
    cookie: &Cookie,
    db: &Db,
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
    let apply = &mut |found: FoundCommit| replayer.apply(db, found).map_err(ReplayError::Store);
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

/// Makes a loss, and everything that was replayed, durable in RocksDB, so that the damaged
/// journal is not needed any more.
fn store_loss(db: &Db, loss: Option<&Loss>, last: u64) -> Result<(), StoreError> {
    if let Some(loss) = loss {
        tracing::error!(reason = loss.reason, "journal lost synced data: limbo");
    }
    let mut batch = db.batch();
    batch.set_loss(loss.map(loss::encode).as_deref());
    batch.set_applied(last);
    batch.write()?;
    db.flush()
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
    db: &Db,
    loss: Option<&Loss>,
    accepts: bool,
) -> Result<(Option<LossReport>, Option<LossReport>), StoreError> {
    let Some(loss) = loss else {
        return Ok((None, None));
    };
    let report = loss::report(db, loss)?;
    if !accepts {
        tracing::error!(
            reason = loss.reason,
            ledgers = report.ledgers.len(),
            "all ledgers are in limbo until the loss is repaired or accepted"
        );
        return Ok((Some(report), None));
    }
    let mut batch = db.batch();
    batch.set_loss(None);
    batch.write()?;
    db.flush()?;
    tracing::warn!(
        first_commit = report.first_commit,
        last_commit = report.last_commit,
        ledgers = report.ledgers.len(),
        "loss accepted: limbo ends"
    );
    Ok((None, Some(report)))
}
