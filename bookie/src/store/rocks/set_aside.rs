//! Takes damaged table files out of the closed database, so that it is compacted and written to as
//! before. The files are kept in a directory beside it.
//!
//! What can be read of them is brought back first: from a copy of the database by links, which
//! still has them. A process that ends in between goes on at the next start, because that copy says
//! what it is for.

use std::path::{Path, PathBuf};

use aquifer_model::id::{EntryId, LedgerId};
use aquifer_runtime::disk::{Disk, RealDisk};

use crate::config::BookieConfig;
use crate::ledger_state::LedgerMeta;
use crate::report::{DamageReport, LostEntries, SetAsideReport};
use crate::store::rocks::check::{Shown, step};
use crate::store::rocks::db::{self, Db};
use crate::store::rocks::{keys, manifest, notes};
use crate::store::{ApplyTarget, CheckPlace, StoreError};

/// Where the files are kept, below the ledger directory.
const KEPT: &str = "damaged";
/// The copy by links, below the ledger directory.
const COPY: &str = "rescue";
/// In the copy, once it is complete: which files it is about.
const READY: &str = "READY";
/// What one write brings back.
const BATCH_BYTES: usize = 1024 * 1024;
/// Ranges of lost entries that a report lists.
const LISTED_MAX: usize = 1_000;

/// A table file of the database.
struct Table {
    place: manifest::Place,
    name: String,
    first: LedgerId,
    last: LedgerId,
}

/// Which files an earlier call of [`begin`] is about whose [`finish`] did not come to its end.
#[must_use]
pub fn begun(config: &BookieConfig) -> Option<DamageReport> {
    let ready = config.ledger_dir.join(COPY).join(READY);
    let stored = RealDisk.read(&ready).ok()?;
    Some(notes::decode_damage(&stored))
}

/// Prepares it while the database still has the files.
pub fn begin(config: &BookieConfig, report: &DamageReport) -> Result<(), StoreError> {
    let copy = config.ledger_dir.join(COPY);
    clear(&copy)?;
    RealDisk.create_dir_all(&copy).map_err(disk_error)?;
    for path in RealDisk.list(&db::directory(config)).map_err(disk_error)? {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let to = copy.join(name);
        if name.ends_with(".sst") || name.ends_with(".blob") {
            RealDisk.link(&path, &to).map_err(disk_error)?;
        } else if name == "CURRENT" || name == "IDENTITY" || name.starts_with("MANIFEST-") {
            let content = RealDisk.read(&path).map_err(disk_error)?;
            RealDisk.write_atomic(&to, &content).map_err(disk_error)?;
        }
    }
    RealDisk
        .write_atomic(&copy.join(READY), &notes::encode_damage(report))
        .map_err(disk_error)
}

/// Takes the files out and brings back what can be read of them.
pub fn finish(config: &BookieConfig, report: DamageReport) -> Result<SetAsideReport, StoreError> {
    let copy = config.ledger_dir.join(COPY);
    let before = Db::open_copy(config, &copy)?;
    let tables = tables(&before, &report)?;
    let db = take_out(config, &tables)?;
    let mut outcome = SetAsideReport {
        files: report.files,
        directory: config.ledger_dir.join(KEPT),
        lost: Vec::new(),
        lost_not_listed: 0,
    };
    for table in &tables {
        match table.place.family.as_str() {
            keys::ENTRIES => bring_entries(&before, &db, table, &mut outcome)?,
            keys::LEDGERS => bring_records(&before, &db, table)?,
            _ => bring_positions(&before, &db)?,
        }
    }
    db.set_damage(None)?;
    drop((before, db));
    RealDisk.remove(&copy.join(READY)).map_err(disk_error)?;
    clear(&copy)?;
    Ok(outcome)
}

/// Takes files out of which nothing can be read.
pub fn drop_files(config: &BookieConfig, db: Db, report: &DamageReport) -> Result<(), StoreError> {
    let tables = tables(&db, report)?;
    drop(db);
    let db = take_out(config, &tables)?;
    for table in &tables {
        if table.place.family == keys::LEDGERS {
            replace_records(&db, table)?;
        }
    }
    db.set_damage(None)
}

/// The tables of the database that a report names.
fn tables(db: &Db, report: &DamageReport) -> Result<Vec<Table>, StoreError> {
    let mut tables = Vec::new();
    for file in db.rocks.live_files()? {
        let name = file.name.trim_start_matches('/').to_owned();
        if report.files.iter().all(|damaged| damaged.name != name) {
            continue;
        }
        let number = name.trim_end_matches(".sst").parse();
        let level = u64::try_from(file.level);
        let (Ok(number), Ok(level)) = (number, level) else {
            continue;
        };
        let (first, last) = db.ledgers_in(&name)?;
        tables.push(Table {
            place: manifest::Place {
                family: file.column_family_name,
                level,
                number,
            },
            name,
            first,
            last,
        });
    }
    Ok(tables)
}

/// The database without the tables, which are kept. Those that it does not have any more are
/// passed.
fn take_out(config: &BookieConfig, tables: &[Table]) -> Result<Db, StoreError> {
    let directory = db::directory(config);
    let kept = config.ledger_dir.join(KEPT);
    RealDisk.create_dir_all(&kept).map_err(disk_error)?;
    for table in tables {
        let (from, to) = (directory.join(&table.name), kept.join(&table.name));
        if from.exists() && !to.exists() {
            RealDisk.link(&from, &to).map_err(disk_error)?;
        }
    }
    RealDisk.sync_dir(&kept).map_err(disk_error)?;
    let db = Db::open_damaged(config)?;
    let live = db.rocks.live_files()?;
    let is_live = |table: &Table| {
        let mut live = live.iter();
        live.any(|file| file.name.trim_start_matches('/') == table.name)
    };
    let places: Vec<_> = tables
        .iter()
        .filter(|table| is_live(table))
        .map(|table| table.place.clone())
        .collect();
    if places.is_empty() {
        return Ok(db);
    }
    drop(db);
    let undo = manifest::remove(&directory, &places)?;
    Db::open_damaged(config).or_else(|error| {
        undo.run()?;
        Err(error)
    })
}

/// Entries that only the damaged table has, as far as they can be read.
fn bring_entries(
    before: &Db,
    db: &Db,
    table: &Table,
    outcome: &mut SetAsideReport,
) -> Result<(), StoreError> {
    for ledger in before.ledgers_with_entries(table.first, table.last)? {
        if db.ledger(ledger)?.is_some_and(|meta| meta.deleted) {
            // What deleted its entries may have been in the table.
            let mut batch = db.batch();
            batch.delete_entries(ledger)?;
            batch.write()?;
            continue;
        }
        let mut next = Some(CheckPlace::at(EntryId::FIRST));
        while let Some(place) = next {
            let mut found = Vec::new();
            next = step(before, ledger, place, BATCH_BYTES, &mut |entry, shown| {
                let value = match shown {
                    Shown::Value(value) => Some(value.to_vec()),
                    Shown::Unreadable | Shown::Hidden => None,
                };
                found.push((entry, value));
            })?;
            let mut batch = db.batch();
            for (entry, value) in found {
                let stored = match db.entry(ledger, entry) {
                    Err(StoreError::Damaged(_)) => None,
                    stored => stored?,
                };
                match value {
                    Some(value) if stored.as_ref() != Some(&value) => {
                        batch.put_entry(ledger, entry, &value)?;
                    }
                    None if stored.is_none() => lost(outcome, ledger, entry),
                    Some(_) | None => {}
                }
            }
            batch.write()?;
        }
    }
    db.flush()
}

fn lost(outcome: &mut SetAsideReport, ledger: LedgerId, entry: EntryId) {
    if let Some(last) = outcome.lost.last_mut()
        && last.ledger == ledger
        && last.last.next() == entry
    {
        last.last = entry;
    } else if outcome.lost.len() < LISTED_MAX {
        outcome.lost.push(LostEntries {
            ledger,
            first: entry,
            last: entry,
        });
    } else {
        outcome.lost_not_listed += 1;
    }
}

/// Ledger records, as far as they can be read.
fn bring_records(before: &Db, db: &Db, table: &Table) -> Result<(), StoreError> {
    let mut records = Vec::new();
    before.ledgers_from(table.first.0, &mut |ledger, meta| {
        if ledger <= table.last {
            records.push((ledger, meta));
        }
        ledger < table.last
    })?;
    let mut batch = db.batch();
    for (ledger, meta) in records {
        batch.put_meta(ledger, &meta)?;
    }
    batch.write()?;
    replace_records(db, table)
}

/// Ledgers that have entries get a record where theirs is lost: what is there is served.
fn replace_records(db: &Db, table: &Table) -> Result<(), StoreError> {
    let mut batch = db.batch();
    for ledger in db.ledgers_with_entries(table.first, table.last)? {
        if db.ledger(ledger)?.is_none() {
            batch.put_meta(ledger, &LedgerMeta::lost())?;
        }
    }
    batch.write()?;
    db.flush()
}

/// What the database says about itself.
fn bring_positions(before: &Db, db: &Db) -> Result<(), StoreError> {
    let mut batch = db.batch();
    for key in [keys::APPLIED, keys::LOSS, keys::SCRUBBED] {
        // What cannot be read stays unknown, which means limbo.
        if let Ok(Some(value)) = before.rocks.get(key) {
            batch.put_position(key, &value);
        }
    }
    batch.write()?;
    db.flush()
}

/// Removes the files in a directory, if it is there.
fn clear(directory: &Path) -> Result<(), StoreError> {
    if !directory.exists() {
        return Ok(());
    }
    let files: Vec<PathBuf> = RealDisk.list(directory).map_err(disk_error)?;
    for file in files {
        RealDisk.remove(&file).map_err(disk_error)?;
    }
    Ok(())
}

fn disk_error(error: std::io::Error) -> StoreError {
    StoreError::Failed(format!("damaged files are not set aside: {error}"))
}
