//! How much the entries take, and how the space of deleted ones comes back.
//!
//! Every call is bounded: in what it rewrites, and in the room that it needs for that.

use aquifer_model::id::{EntryId, LedgerId};
use rocksdb::{BottommostLevelCompaction, CompactOptions};

use crate::store::rocks::db::Db;
use crate::store::rocks::keys;
use crate::store::rocks::layout::{KeyRange, Layout, Step};
use crate::store::{Collected, Pressure, StoreError, ValueFiles};

/// What one step of collecting rewrites.
const STEP_BYTES: u64 = 256 << 20;
/// Live bytes between two deleted ledgers that are rewritten along with them.
const GAP_BYTES: u64 = 4 << 20;
/// Properties that say how far writes are held up.
const STOPPED: &str = "rocksdb.is-write-stopped";
const SLOWED: &str = "rocksdb.actual-delayed-write-rate";
const DEBT: &str = "rocksdb.estimate-pending-compaction-bytes";
/// The ledgers of one compaction.
const LEDGERS_MAX: usize = 1_024;

impl Db {
    /// Reclaims the space of deleted ledgers, of as many of them as lie side by side; they are in
    /// order. Returns of how many. Compaction of the range, not deletion of files, because only
    /// compaction tells RocksDB which blobs are garbage; with the payloads in blob files it reads
    /// little more than keys.
    ///
    /// With `room` no more than that is rewritten, and files that hold nothing else are dropped
    /// as a whole; what is left stays for compactions to come.
    pub fn reclaim(&self, ledgers: &[LedgerId], room: Option<u64>) -> Result<usize, StoreError> {
        let count = self.side_by_side(ledgers);
        let (Some(first), Some(last)) =
            (ledgers.first(), ledgers.get(..count).and_then(<[_]>::last))
        else {
            return Ok(0);
        };
        let from = keys::entry_key(*first, EntryId::FIRST);
        let to = keys::ledger_end(*last);
        if let Some(room) = room {
            let layout = self.layout()?;
            for ledger in &ledgers[..count] {
                self.drop_tables(&layout, *ledger)?;
            }
            if self.layout()?.bytes_in((&from, &to)) > room {
                return Ok(count);
            }
        }
        self.compact((&from, &to), false)?;
        Ok(count)
    }

    /// How many of these ledgers one compaction takes: as long as little of others lies between.
    fn side_by_side(&self, ledgers: &[LedgerId]) -> usize {
        let Ok(family) = self.family(keys::ENTRIES) else {
            return ledgers.len().min(1);
        };
        let is_near = |pair: &&[LedgerId]| {
            let (after, before) = (keys::ledger_end(pair[0]), pair[1]);
            let before = keys::entry_key(before, EntryId::FIRST);
            let gap = rocksdb::Range::new(&after[..], &before[..]);
            let bytes = self.rocks.get_approximate_sizes_cf(family, &[gap]);
            bytes.iter().sum::<u64>() <= GAP_BYTES
        };
        let near = ledgers.windows(2).take(LEDGERS_MAX).take_while(is_near);
        ledgers.len().min(1 + near.count())
    }

    /// Drops the files that hold nothing but this deleted ledger.
    fn drop_tables(&self, layout: &Layout, ledger: LedgerId) -> Result<(), StoreError> {
        let (from, to) = (
            keys::entry_key(ledger, EntryId::FIRST),
            keys::ledger_end(ledger),
        );
        let tables = layout.droppable((&from, &to));
        if tables.is_empty() {
            return Ok(());
        }
        let family = self.family(keys::ENTRIES)?;
        for (first, last) in &tables {
            self.rocks.delete_file_in_range_cf(family, first, last)?;
        }
        // One of them may have been what hides entries in files that are not dropped.
        let mut batch = self.batch();
        batch.delete_entries(ledger)?;
        batch.write()
    }

    /// Rewrites values that share a blob file with garbage, so that the file can go: a file that
    /// a long-lived ledger shares with deleted ones does not go away by itself (H17). The oldest
    /// files come first, a step at a time and within `room`, and only while no more is rewritten
    /// than comes back. `prepare` is told up to which file files may go, before they do.
    pub fn collect_blobs(
        &self,
        room: u64,
        prepare: impl FnOnce(u64),
    ) -> Result<Collected, StoreError> {
        if self.entries_value("rocksdb.live-blob-file-garbage-size")? == 0 {
            return Ok(Collected::Nothing);
        }
        let layout = self.layout()?;
        let (oldest, ranges) = match layout.next_step(STEP_BYTES, room) {
            Step::Nothing => return Ok(Collected::Nothing),
            Step::NoSpace => return Ok(Collected::NoSpace),
            Step::Collect { oldest, ranges } => (oldest, ranges),
        };
        let youngest = layout.blobs.get(oldest.saturating_sub(1));
        prepare(youngest.map_or(u64::MAX, |blobs| blobs.number));
        let before = garbage_of(&layout);
        self.collect_from(oldest, layout.blobs.len(), &ranges)?;
        // A step that changes nothing would be repeated for ever.
        let after = self.layout()?;
        let changed = garbage_of(&after) != before || after.blobs.first() != layout.blobs.first();
        Ok(if changed {
            Collected::Some
        } else {
            Collected::Nothing
        })
    }

    /// Moves the values in this many of the oldest of `all` blob files, of the keys in `ranges`.
    pub(super) fn collect_from(
        &self,
        oldest: usize,
        all: usize,
        ranges: &[KeyRange],
    ) -> Result<(), StoreError> {
        let family = self.family(keys::ENTRIES)?;
        // RocksDB takes this share of all files, rounded down, from the oldest on.
        let float = |files: usize| f64::from(u32::try_from(files).unwrap_or(u32::MAX));
        let share = ((float(oldest) + 0.5) / float(all.max(1)))
            .min(1.0)
            .to_string();
        let collect = |on: &str| {
            let options = [
                ("enable_blob_garbage_collection", on),
                ("blob_garbage_collection_age_cutoff", share.as_str()),
            ];
            self.rocks.set_options_cf(family, &options)
        };
        collect("true")?;
        let compacted = ranges
            .iter()
            .try_for_each(|(first, last)| self.compact((first, last), true));
        collect("false")?;
        compacted
    }

    /// Compacts a range, with `all` also what lies at the bottom already. The library says
    /// nothing of an error; RocksDB counts them.
    pub(super) fn compact(&self, (from, to): (&[u8], &[u8]), all: bool) -> Result<(), StoreError> {
        // A compaction that met a damaged file would stop writes.
        if self.is_damaged() {
            return Ok(());
        }
        let mut options = CompactOptions::default();
        // Compactions of what is being written go on beside it.
        options.set_exclusive_manual_compaction(false);
        if all {
            options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        }
        let before = self.entries_value("rocksdb.background-errors")?;
        let family = self.family(keys::ENTRIES)?;
        self.rocks
            .compact_range_cf_opt(family, Some(from), Some(to), &options);
        let errors = self.entries_value("rocksdb.background-errors")?;
        if errors > before {
            return Err(StoreError::Failed(format!(
                "{} errors of compactions; RocksDB's file LOG has them",
                errors - before
            )));
        }
        Ok(())
    }

    pub(super) fn layout(&self) -> Result<Layout, StoreError> {
        let family = self.family(keys::ENTRIES)?;
        let text = self.rocks.property_value_cf(family, "rocksdb.sstables")?;
        Layout::parse(text.as_deref().unwrap_or_default())
            .map_err(|line| StoreError::Failed(format!("an unknown line in its list: {line}")))
    }

    fn entries_value(&self, name: &str) -> Result<u64, StoreError> {
        let family = self.family(keys::ENTRIES)?;
        let value = self.rocks.property_int_value_cf(family, name)?;
        Ok(value.unwrap_or(0))
    }

    /// The blob files that hold something.
    pub fn value_files(&self) -> Result<ValueFiles, StoreError> {
        Ok(ValueFiles {
            count: self.entries_value("rocksdb.num-blob-files")?,
            bytes: self.entries_value("rocksdb.live-blob-file-size")?,
        })
    }

    /// How far writes are held up, and what compactions have to rewrite in all families.
    pub fn pressure(&self) -> Result<Pressure, StoreError> {
        // These are of the whole database.
        let stopped = self.rocks.property_int_value(STOPPED)?;
        let slowed = self.rocks.property_int_value(SLOWED)?;
        let mut debt_bytes = 0_u64;
        for name in ["default", keys::LEDGERS, keys::ENTRIES] {
            let family = self.family(name)?;
            let debt = self.rocks.property_int_value_cf(family, DEBT)?;
            debt_bytes = debt_bytes.saturating_add(known(DEBT, debt)?);
        }
        Ok(Pressure {
            is_stopped: known(STOPPED, stopped)? > 0,
            slowed_to: known(SLOWED, slowed)?,
            debt_bytes,
        })
    }

    /// Bytes of the files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let value = |name: &str| self.entries_value(name).unwrap_or(0);
        value("rocksdb.total-sst-files-size") + value("rocksdb.total-blob-file-size")
    }
}

/// The value of a property. Another version of RocksDB may not have it, and 0 would say that all is
/// well.
fn known(name: &str, value: Option<u64>) -> Result<u64, StoreError> {
    value.ok_or_else(|| StoreError::Failed(format!("RocksDB does not know {name}")))
}

fn garbage_of(layout: &Layout) -> u64 {
    layout.blobs.iter().map(|blobs| blobs.garbage).sum()
}
