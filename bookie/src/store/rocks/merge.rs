//! Merges small blob files. Each flush makes one of its own, as large as a memtable, so without
//! this their number would grow with the data and not with the size that they may have.
//!
//! RocksDB moves the values of the keys that a compaction meets as far as they lie in a file older
//! than a cutoff. A step takes small files from the oldest on, puts the cutoff behind them, and
//! compacts the tables that may point into them, as many as it has bytes for: the next step goes on
//! with the others. How many bytes a table points to in older files is not known: it is estimated,
//! and only speed and room depend on that.
//!
//! A compaction that met a damaged value would stop writes, and nothing forces these values to
//! move: files are checked before, and those with damage stay as they are.

use std::collections::BTreeSet;

use crate::store::rocks::db::Db;
use crate::store::rocks::layout::{Blobs, KeyRange, Layout, Table};
use crate::store::rocks::verify;
use crate::store::{Merged, StoreError};

/// Fewer small files than this are not looked at by themselves.
const FILES_MIN: usize = 16;
/// Files of the full size that are checked at a time.
const FILES_READ_MAX: u64 = 4;
/// A merge rewrites this many times the bytes of the tables that it compacts, where these are many.
const BYTES_BY_TABLES: u64 = 4;
/// Files of the full size that a step rewrites, or one table more: what waits for the thread, such
/// as space of deleted ledgers, waits for a step.
const FILES_REWRITTEN_MAX: u64 = 8;

/// Small files to merge, and how.
#[derive(Debug, PartialEq, Eq)]
pub struct Merge {
    /// The small files, from the oldest to the youngest. Values in files up to the youngest move.
    pub files: Vec<u64>,
    /// The keys of the tables that may point into them, without overlaps: of as many as one step
    /// takes.
    pub ranges: Vec<KeyRange>,
    /// These are all such tables, so that the files go with this step.
    pub is_last: bool,
    /// About how many bytes are rewritten until the files go.
    pub bytes: u64,
}

impl Layout {
    /// The next small files to merge into files of `file_bytes`, without those in `skip`: those
    /// for which the fewest bytes are rewritten for each file that goes.
    pub fn next_merge(&self, file_bytes: u64, skip: &BTreeSet<u64>) -> Option<Merge> {
        let small = |blobs: &&Blobs| is_small(blobs, file_bytes) && !skip.contains(&blobs.number);
        let small: Vec<&Blobs> = self.blobs.iter().filter(small).collect();
        let sizes = std::iter::successors(Some(small.len()), |size| {
            (size / 2 >= FILES_MIN).then_some(size / 2)
        });
        let windows = sizes.map(|size| &small[small.len() - size..]);
        // Of equal ones the first, which is the largest.
        let window = windows.min_by_key(|window| per_file(self.cost_of(window), window.len()))?;
        let tables: u64 = self.pointing_into(window).map(|table| table.bytes).sum();
        let step = file_bytes
            .saturating_mul(2)
            .max(tables.saturating_mul(BYTES_BY_TABLES));
        let mut bytes = 0_u64;
        let taken = window.iter().take_while(|blobs| {
            let fits = bytes < step;
            bytes = bytes.saturating_add(blobs.bytes);
            fits
        });
        let count = taken.count();
        let files = window.get(..count)?;
        if files.len() < 2 {
            return None;
        }
        let most = file_bytes.saturating_mul(FILES_REWRITTEN_MAX);
        let (ranges, is_last) = self.ranges_into(files, most);
        Some(Merge {
            files: files.iter().map(|blobs| blobs.number).collect(),
            ranges,
            is_last,
            bytes: self.cost_of(files),
        })
    }

    /// Tables that may point into one of these files, which are in order: those whose oldest file
    /// is among them, and those that were made later and also point to older ones. A table is made
    /// after the files that it points to, unless it was made together with them.
    fn pointing_into(&self, files: &[&Blobs]) -> impl Iterator<Item = &Table> {
        let first = files.first().map_or(u64::MAX, |blobs| blobs.number);
        let last = files.last().map_or(0, |blobs| blobs.number);
        self.tables.iter().filter(move |table| {
            table
                .oldest_blob
                .is_some_and(|oldest| oldest <= last && (oldest >= first || table.number > first))
        })
    }

    /// About what merging these files rewrites: the tables, and of the values that they point to
    /// as much as they have of all tables, but no more than there is up to the youngest file.
    fn cost_of(&self, files: &[&Blobs]) -> u64 {
        let last = files.last().map_or(0, |blobs| blobs.number);
        let up_to_last = self.blobs.iter().take_while(|blobs| blobs.number <= last);
        let most: u64 = up_to_last.map(Blobs::live_bytes).sum();
        let tables: u64 = self.pointing_into(files).map(|table| table.bytes).sum();
        self.values_of()(tables).min(most).saturating_add(tables)
    }

    /// About how many bytes of values tables of this size point to: as much as they have of all
    /// tables.
    fn values_of(&self) -> impl Fn(u64) -> u64 {
        let values: u64 = self.blobs.iter().map(Blobs::live_bytes).sum();
        let with_values = self.tables.iter().filter(|t| t.oldest_blob.is_some());
        let all: u64 = with_values.map(|table| table.bytes).sum();
        move |tables| {
            let share = u128::from(values) * u128::from(tables) / u128::from(all.max(1));
            u64::try_from(share).unwrap_or(u64::MAX)
        }
    }

    /// The files of a merge.
    fn files_of(&self, merge: &Merge) -> Vec<&Blobs> {
        let is_taken = |blobs: &&Blobs| merge.files.binary_search(&blobs.number).is_ok();
        self.blobs.iter().filter(is_taken).collect()
    }

    /// The blob files that the compactions of a merge may read, those of its later steps included:
    /// all that the tables of its ranges, and all others that may point into its files, may point
    /// into. RocksDB takes the cutoff as a share of all files at the time: when some of the
    /// oldest have gone between two compactions, as many younger ones come before it.
    fn read_by(&self, merge: &Merge) -> Vec<&Blobs> {
        let youngest = merge.files.last().copied().unwrap_or(0);
        let up_to_it = self.blobs.iter().take_while(|b| b.number <= youngest);
        let reach = up_to_it.count().saturating_mul(2).min(self.blobs.len());
        let youngest = self.blobs.get(reach.saturating_sub(1));
        let youngest = youngest.map_or(0, |blobs| blobs.number);
        let is_met = |table: &&Table| {
            let mut ranges = merge.ranges.iter();
            ranges.any(|(first, last)| table.first <= *last && *first <= table.last)
        };
        let files = self.files_of(merge);
        let later = self.pointing_into(&files);
        let met = self.tables.iter().filter(is_met).chain(later);
        let oldest = met.filter_map(|table| table.oldest_blob).min();
        let oldest = oldest.unwrap_or(u64::MAX);
        let is_read = |blobs: &&Blobs| (oldest..=youngest).contains(&blobs.number);
        self.blobs.iter().filter(is_read).collect()
    }

    /// The keys of the tables that may point into these files, in order and up to the one with
    /// which about `most` bytes are rewritten; and whether these are all. Tables with nothing else
    /// between them are one range, because only what one compaction meets comes into one file.
    fn ranges_into(&self, files: &[&Blobs], most: u64) -> (Vec<KeyRange>, bool) {
        let chosen: BTreeSet<u64> = self.pointing_into(files).map(|t| t.number).collect();
        let mut tables: Vec<&Table> = self.tables.iter().collect();
        tables.sort_by(|a, b| a.first.cmp(&b.first));
        let values_of = self.values_of();
        let mut ranges: Vec<KeyRange> = Vec::new();
        let mut is_adjacent = false;
        let mut bytes = 0_u64;
        for table in tables {
            let is_chosen = chosen.contains(&table.number);
            if is_chosen {
                let overlaps = ranges.last().is_some_and(|(_, last)| *last >= table.first);
                if !overlaps && values_of(bytes).saturating_add(bytes) >= most {
                    return (ranges, false);
                }
                bytes = bytes.saturating_add(table.bytes);
            }
            match ranges.last_mut() {
                Some((_, last)) if is_chosen && (is_adjacent || *last >= table.first) => {
                    if *last < table.last {
                        last.clone_from(&table.last);
                    }
                    is_adjacent = true;
                }
                _ if is_chosen => {
                    ranges.push((table.first.clone(), table.last.clone()));
                    is_adjacent = true;
                }
                Some((_, last)) if *last < table.last => is_adjacent = false,
                _ => {}
            }
        }
        (ranges, true)
    }
}

fn is_small(blobs: &Blobs, file_bytes: u64) -> bool {
    blobs.bytes <= file_bytes / 2
}

/// What each of some files costs, in fractions of a byte.
fn per_file(cost: u64, files: usize) -> u128 {
    let files = u128::try_from(files).unwrap_or(u128::MAX);
    (u128::from(cost) << 32) / files.max(1)
}

/// What merging knows of blob files, for as long as the process runs.
#[derive(Debug, Default)]
pub struct Merging {
    /// Small files that are left as they are: a step could not end them, or met damage.
    skip: BTreeSet<u64>,
    /// Files all of whose values could be read.
    intact: BTreeSet<u64>,
}

/// What a look at the files that a step reads has shown.
enum Looked {
    Intact,
    Damaged,
    /// There are more of them than are read at a time, one has gone, or the end is near.
    NotYet,
}

impl Db {
    /// Merges small blob files: a step, of at most `room` bytes. It takes others than the steps
    /// before it. `prepare` is told up to which file files may go, before they do.
    pub fn merge_blobs(
        &self,
        room: u64,
        merging: &mut Merging,
        prepare: impl FnOnce(u64),
    ) -> Result<Merged, StoreError> {
        // Nothing is compacted around a damaged file.
        if self.is_damaged() {
            return Ok(Merged::Nothing);
        }
        let layout = self.layout()?;
        let before: BTreeSet<u64> = layout.blobs.iter().map(|blobs| blobs.number).collect();
        merging.skip.retain(|number| before.contains(number));
        merging.intact.retain(|number| before.contains(number));
        let Some(merge) = layout.next_merge(self.blob_file_bytes, &merging.skip) else {
            return Ok(Merged::Nothing);
        };
        let Some(youngest) = merge.files.last().copied() else {
            return Ok(Merged::Nothing);
        };
        if merge.bytes > room {
            return Ok(Merged::NoSpace);
        }
        let (looked, bytes) = self.look_at_blobs(&layout.read_by(&merge), &mut merging.intact);
        match looked {
            Looked::Intact => {}
            Looked::NotYet => return Ok(Merged::Checked { bytes }),
            Looked::Damaged => {
                merging.skip.extend(&merge.files);
                return Ok(Merged::Checked { bytes });
            }
        }
        prepare(youngest);
        self.merge_step(&merge, youngest)?;
        if self.is_cancelled() {
            return Ok(Merged::Checked { bytes });
        }
        let after = self.layout()?;
        let left: BTreeSet<u64> = after.blobs.iter().map(|blobs| blobs.number).collect();
        let (stay, gone): (Vec<u64>, Vec<u64>) = merge
            .files
            .iter()
            .partition(|number| left.contains(*number));
        let taken = layout.files_of(&merge);
        let tables_in = |state: &Layout| state.pointing_into(&taken).count();
        // The next step goes on with the tables that are left, if this one has come nearer.
        if merge.is_last || tables_in(&after) >= tables_in(&layout) {
            merging.skip.extend(stay);
        }
        let made = after.blobs.iter();
        let made = made.filter(|blobs| !before.contains(&blobs.number));
        Ok(Merged::Some {
            files: gone.len(),
            bytes: made.map(|blobs| blobs.bytes).sum(),
        })
    }

    fn merge_step(&self, merge: &Merge, youngest: u64) -> Result<(), StoreError> {
        // The keys come down by themselves, so that each value moves once and not at every level.
        for (first, last) in &merge.ranges {
            self.compact((first, last), false)?;
        }
        for range in &merge.ranges {
            // The end does not wait for settings that are of no use any more.
            if self.is_cancelled() {
                return Ok(());
            }
            let blobs = self.layout()?.blobs;
            let oldest = blobs.iter().take_while(|blobs| blobs.number <= youngest);
            let oldest = oldest.count();
            if oldest > 0 {
                self.collect_from(oldest, blobs.len(), std::slice::from_ref(range))?;
            }
        }
        Ok(())
    }

    /// Reads files whose values were not all read before, some of them at a time; also returns how
    /// many bytes that were.
    fn look_at_blobs(&self, files: &[&Blobs], intact: &mut BTreeSet<u64>) -> (Looked, u64) {
        let most = self.blob_file_bytes.saturating_mul(FILES_READ_MAX);
        let mut bytes = 0_u64;
        for file in files {
            if intact.contains(&file.number) {
                continue;
            }
            if bytes >= most || self.is_cancelled() {
                return (Looked::NotYet, bytes);
            }
            bytes = bytes.saturating_add(file.bytes);
            let name = format!("{:06}.blob", file.number);
            if let Err(error) = verify::blob_file(&self.rocks.path().join(&name), file.bytes) {
                // It may have gone with a ledger since it was listed.
                if !self.has_blob_file(file.number) {
                    return (Looked::NotYet, bytes);
                }
                tracing::warn!(file = name, %error, "a damaged file is not merged with others");
                return (Looked::Damaged, bytes);
            }
            intact.insert(file.number);
        }
        (Looked::Intact, bytes)
    }

    /// Whether a file is still one of the store. When that cannot be told, the next step tells.
    fn has_blob_file(&self, number: u64) -> bool {
        let layout = self.layout();
        layout.is_ok_and(|layout| layout.blobs.iter().any(|blobs| blobs.number == number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BookieConfig;

    fn table(number: u64, (first, last): (u8, u8), oldest_blob: u64) -> Table {
        Table {
            level: 6,
            number,
            bytes: 1,
            first: vec![first],
            last: vec![last],
            oldest_blob: Some(oldest_blob),
        }
    }

    fn blobs(number: u64, bytes: u64) -> Blobs {
        Blobs {
            number,
            bytes,
            garbage: 0,
        }
    }

    fn key(from: u8, to: u8) -> KeyRange {
        (vec![from], vec![to])
    }

    /// Flushes that do not overlap: each table is beside the one before, and one compaction takes
    /// as many of them as a step has bytes for.
    #[test]
    fn small_files_are_merged_from_the_oldest_on() {
        let layout = Layout {
            tables: (1..=40_u8)
                .map(|n| table(2 * u64::from(n), (n, n), 2 * u64::from(n) + 1))
                .collect(),
            blobs: (1..=40).map(|n| blobs(2 * n + 1, 10)).collect(),
        };
        let merge = layout.next_merge(100, &BTreeSet::new()).unwrap();
        assert_eq!(merge.files.len(), 20);
        assert_eq!((merge.files[0], merge.files[19]), (3, 41));
        assert_eq!(merge.ranges, [key(1, 20)]);
        assert_eq!(merge.bytes, 220);
        // Files that a step could not end are not tried again.
        let skip: BTreeSet<u64> = merge.files.into_iter().collect();
        let next = layout.next_merge(100, &skip).unwrap();
        assert_eq!((next.files[0], next.files[19]), (43, 81));
        assert_eq!(layout.next_merge(10, &BTreeSet::new()), None);
    }

    /// A large file that lies before small ones by its number stays where no table that points
    /// into it was made since.
    #[test]
    fn tables_that_are_older_than_the_small_files_are_left_alone() {
        let old = [table(5, (1, 9), 6), table(7, (30, 40), 8)];
        let young = (0..20_u8).map(|n| {
            let number = 10 + 2 * u64::from(n);
            table(number, (10 + n, 10 + n), number + 1)
        });
        let small = (0..20).map(|n| blobs(11 + 2 * n, 10));
        let large = [blobs(6, 100), blobs(8, 100)];
        let mut layout = Layout {
            tables: old.into_iter().chain(young).collect(),
            blobs: large.into_iter().chain(small).collect(),
        };
        let merge = layout.next_merge(100, &BTreeSet::new()).unwrap();
        assert_eq!(merge.ranges, [key(10, 29)]);
        // A table between them that was written again since may point into both.
        layout.tables.push(table(60, (41, 50), 6));
        let merge = layout.next_merge(100, &BTreeSet::new()).unwrap();
        assert_eq!(merge.ranges, [key(10, 29), key(41, 50)]);
    }

    /// Many values would have to move with the small files: not all at once, because what deleted
    /// ledgers had is not given back meanwhile. The tables of one step are not those of the next.
    #[test]
    fn a_step_takes_as_many_tables_as_it_has_bytes_for() {
        let mut layout = Layout {
            tables: (1..=40_u8)
                .map(|n| table(100 + u64::from(n), (n, n), 2))
                .collect(),
            blobs: [blobs(2, 4_000)]
                .into_iter()
                .chain((3..=42).map(|n| blobs(n, 10)))
                .collect(),
        };
        let first = layout.next_merge(100, &BTreeSet::new()).unwrap();
        assert_eq!((first.files[0], first.files[19]), (3, 22));
        assert_eq!(first.ranges, [key(1, 8)]);
        assert!(!first.is_last);
        assert_eq!(first.bytes, 4_240);
        let read = layout.read_by(&first);
        assert_eq!((read.len(), read[0].number), (41, 2));
        // As the step leaves it: eight tables point into files of their own.
        for table in &mut layout.tables[..8] {
            (table.number, table.oldest_blob) = (200, Some(201));
        }
        layout.blobs[0].garbage = 880;
        layout.blobs.push(blobs(201, 880));
        let next = layout.next_merge(100, &BTreeSet::new()).unwrap();
        assert_eq!(next.files, first.files);
        assert_eq!(next.ranges, [key(9, 16)]);
        for table in &mut layout.tables[8..34] {
            (table.number, table.oldest_blob) = (200, Some(201));
        }
        let last = layout.next_merge(100, &BTreeSet::new()).unwrap();
        assert_eq!(last.ranges, [key(35, 40)]);
        assert!(last.is_last);
    }

    /// An old small file that much else would have to move for does not stop younger ones.
    #[test]
    fn the_files_that_cost_least_come_first() {
        let far = (0..100_u8).map(|n| table(10 + u64::from(n), (n, n), 2));
        let young = (0..20_u8).map(|n| {
            let number = 200 + 2 * u64::from(n);
            table(number, (100 + n, 100 + n), number + 1)
        });
        let layout = Layout {
            tables: far.chain(young).collect(),
            blobs: [blobs(2, 900), blobs(3, 10), blobs(4, 900)]
                .into_iter()
                .chain((0..32).map(|n| blobs(201 + 2 * n, 10)))
                .collect(),
        };
        let merge = layout.next_merge(100, &BTreeSet::new()).unwrap();
        assert!(merge.files[0] > 4, "{merge:?}");
        assert_eq!(merge.ranges.len(), 1);
    }

    /// A ledger that is deleted meanwhile takes files with it that were listed: nothing is damaged.
    #[test]
    fn a_file_that_has_gone_is_not_a_damaged_one() {
        let directory = tempfile::tempdir().unwrap();
        let db = Db::open(&BookieConfig::in_directory(directory.path()), true).unwrap();
        let gone = blobs(9, 10);
        let (looked, _) = db.look_at_blobs(&[&gone], &mut BTreeSet::new());
        assert!(matches!(looked, Looked::NotYet));
    }
}
