//! Which files the entries lie in, as RocksDB tells it, and which of them are worth rewriting.
//!
//! RocksDB's library has no call for the garbage of single blob files; the property that lists a
//! family's files has it as text. A text that cannot be read is an error, never an empty list.

use std::collections::HashSet;

/// A table file: the keys, and the small values beside them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// 0 for those that came from memory as they are.
    pub level: u32,
    pub number: u64,
    pub bytes: u64,
    pub first: Vec<u8>,
    pub last: Vec<u8>,
    /// The oldest blob file that one of its keys points into.
    pub oldest_blob: Option<u64>,
}

/// A blob file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blobs {
    pub number: u64,
    pub bytes: u64,
    /// Those of its bytes that no key points to any more.
    pub garbage: u64,
}

impl Blobs {
    /// Bytes that keys still point to.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        self.bytes.saturating_sub(self.garbage)
    }
}

/// The files of the entries.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Layout {
    pub tables: Vec<Table>,
    /// From the oldest to the youngest.
    pub blobs: Vec<Blobs>,
}

/// Keys from one to another, both of them included.
pub type KeyRange = (Vec<u8>, Vec<u8>);

/// What to rewrite next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Rewriting would cost more than it brings.
    Nothing,
    /// It would bring something, and there is not room enough for the smallest step.
    NoSpace,
    /// The values in this many of the oldest blob files, of the keys in these ranges.
    Collect {
        /// Blob files, counted from the oldest.
        oldest: usize,
        /// The keys, without overlaps.
        ranges: Vec<KeyRange>,
    },
}

impl Layout {
    /// Reads RocksDB's list; the error is the line that is not understood.
    pub fn parse(text: &str) -> Result<Layout, String> {
        let mut layout = Layout::default();
        let mut level = 0;
        for line in text.lines() {
            let unknown = || line.chars().take(200).collect::<String>();
            if let Some(rest) = line.strip_prefix("--- level ") {
                level = number_at(rest).ok_or_else(unknown)?;
            } else if line.starts_with("blob_file_number:") {
                layout.blobs.push(blobs(line).ok_or_else(unknown)?);
            } else if let Some(rest) = line.strip_prefix(' ') {
                layout.tables.push(table(level, rest).ok_or_else(unknown)?);
            } else if !line.is_empty() && !line.starts_with("--- blob files ") {
                return Err(unknown());
            }
        }
        layout.blobs.sort_by_key(|blobs| blobs.number);
        Ok(layout)
    }

    /// The tables that have keys of a range, in bytes.
    #[must_use]
    pub fn bytes_in(&self, (first, last): (&[u8], &[u8])) -> u64 {
        let in_range = |table: &&Table| *table.first <= *last && *first <= *table.last;
        self.tables.iter().filter(in_range).map(|t| t.bytes).sum()
    }

    /// Tables that lie in a range as a whole, hold their values themselves, and can be dropped as
    /// they are: RocksDB drops none of the youngest level, and does not notice the garbage that a
    /// dropped table leaves in blob files.
    #[must_use]
    pub fn droppable(&self, (first, last): (&[u8], &[u8])) -> Vec<KeyRange> {
        let inside = |table: &&Table| *first <= *table.first && *table.last <= *last;
        self.tables
            .iter()
            .filter(inside)
            .filter(|table| table.level > 0 && table.oldest_blob.is_none())
            .map(|table| (table.first.clone(), table.last.clone()))
            .collect()
    }

    /// The next step that gives garbage back, of at most `step` bytes if one file allows it, and
    /// of at most `room` bytes. The oldest files come first, and only while all that must be
    /// rewritten up to the last of them is no more than what comes back.
    #[must_use]
    pub fn next_step(&self, step: u64, room: u64) -> Step {
        let sizes = || self.sizes();
        let Some(goal) = sizes().find(|oldest| self.cost(*oldest) <= self.garbage(*oldest)) else {
            return Step::Nothing;
        };
        let smaller = || sizes().take_while(|oldest| *oldest <= goal);
        let fits = |most: u64| smaller().filter(|n| self.cost(*n) <= most).last();
        let oldest = fits(step.min(room)).or_else(|| smaller().find(|n| self.cost(*n) <= room));
        match oldest {
            Some(oldest) => Step::Collect {
                oldest,
                ranges: self.ranges(oldest),
            },
            None => Step::NoSpace,
        }
    }

    /// How many of the oldest blob files are looked at as one: 1, 2, 4 … and all of them.
    fn sizes(&self) -> impl Iterator<Item = usize> {
        let all = self.blobs.len();
        let doubled = std::iter::successors(Some(1_usize), |n| n.checked_mul(2));
        doubled
            .take_while(move |n| *n < all)
            .chain((all > 0).then_some(all))
    }

    fn garbage(&self, oldest: usize) -> u64 {
        self.blobs.iter().take(oldest).map(|b| b.garbage).sum()
    }

    /// What is rewritten to be rid of the oldest blob files: their live bytes, and the tables.
    fn cost(&self, oldest: usize) -> u64 {
        let live = self.blobs.iter().take(oldest).map(Blobs::live_bytes);
        let values: u64 = live.sum();
        let ranges = self.ranges(oldest);
        let keys = ranges
            .iter()
            .map(|(first, last)| self.bytes_in((first, last)));
        values.saturating_add(keys.sum())
    }

    /// The keys of the tables that point into the oldest blob files, without overlaps.
    fn ranges(&self, oldest: usize) -> Vec<KeyRange> {
        let files = self.blobs.iter().take(oldest);
        let files: HashSet<u64> = files.map(|blobs| blobs.number).collect();
        let mut tables: Vec<&Table> = self
            .tables
            .iter()
            .filter(|table| table.oldest_blob.is_some_and(|blob| files.contains(&blob)))
            .collect();
        tables.sort_by(|a, b| a.first.cmp(&b.first));
        let mut ranges: Vec<KeyRange> = Vec::new();
        for table in tables {
            match ranges.last_mut() {
                Some((_, last)) if *last >= table.first => {
                    *last = table.last.clone().max(std::mem::take(last));
                }
                _ => ranges.push((table.first.clone(), table.last.clone())),
            }
        }
        ranges
    }
}

fn number_at(text: &str) -> Option<u32> {
    text.split_whitespace().next()?.parse().ok()
}

/// `NUMBER:BYTES[SEQ .. SEQ]['KEY' seq:N, type:N .. 'KEY' seq:N, type:N] blob_file:NUMBER(READS)`
fn table(level: u32, text: &str) -> Option<Table> {
    let (number, rest) = text.split_once(':')?;
    let (bytes, rest) = rest.split_once('[')?;
    let mut quoted = rest.split('\'').skip(1).step_by(2);
    let first = bytes_of(quoted.next()?)?;
    let last = bytes_of(quoted.next()?)?;
    let oldest_blob = match rest.split_once("blob_file:") {
        Some((_, number)) => {
            let digits = number.split(|c: char| !c.is_ascii_digit()).next()?;
            Some(digits.parse().ok()?)
        }
        None => None,
    };
    Some(Table {
        level,
        number: number.parse().ok()?,
        bytes: bytes.parse().ok()?,
        first,
        last,
        oldest_blob,
    })
}

fn blobs(text: &str) -> Option<Blobs> {
    let value = |name: &str| -> Option<u64> {
        let (_, rest) = text.split_once(name)?;
        rest.split_whitespace().next()?.parse().ok()
    };
    Some(Blobs {
        number: value("blob_file_number:")?,
        bytes: value("total_blob_bytes:")?,
        garbage: value("garbage_blob_bytes:")?,
    })
}

fn bytes_of(hex: &str) -> Option<Vec<u8>> {
    let digits = hex.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(number: u64, bytes: u64, (first, last): (u8, u8), oldest_blob: u64) -> Table {
        Table {
            level: 6,
            number,
            bytes,
            first: vec![first],
            last: vec![last],
            oldest_blob: Some(oldest_blob),
        }
    }

    fn blobs(number: u64, bytes: u64, garbage: u64) -> Blobs {
        Blobs {
            number,
            bytes,
            garbage,
        }
    }

    #[test]
    fn the_list_of_rocksdb_is_read_and_what_is_none_is_an_error() {
        let text = "--- level 0 --- version# 7 ---\n \
            17:123[1 .. 124]['0A0B' seq:1, type:17 .. '0AFF' seq:124, type:15] blob_file:12(3)\n\
            --- level 1 --- version# 7 --- compact_cursor: '0A' seq:1, type:1 ---\n \
            9:44[1 .. 2]['' seq:1, type:1 .. '00' seq:2, type:1](0)\n\
            --- blob files --- version# 7 ---\n\
            blob_file_number: 12 total_blob_count: 3 total_blob_bytes: 1000 checksum_method:  \
            checksum_value:  linked_ssts: { 17 } garbage_blob_count: 1 garbage_blob_bytes: 400\n";
        let layout = Layout::parse(text).unwrap();
        assert_eq!(layout.blobs, [blobs(12, 1000, 400)]);
        assert_eq!(layout.tables.len(), 2);
        let young = &layout.tables[0];
        assert_eq!((young.level, young.number, young.bytes), (0, 17, 123));
        assert_eq!(young.first, [0x0a, 0x0b]);
        assert_eq!(young.last, [0x0a, 0xff]);
        assert_eq!(young.oldest_blob, Some(12));
        assert_eq!(layout.tables[1].level, 1);
        assert_eq!(layout.tables[1].oldest_blob, None);
        Layout::parse("another version's words").unwrap_err();
        Layout::parse(" 9:many[1 .. 2]").unwrap_err();
        assert_eq!(Layout::parse("").unwrap(), Layout::default());
    }

    /// What is rewritten is at most what comes back, keys and small values included.
    #[test]
    fn nothing_is_rewritten_that_costs_more_than_it_brings() {
        let mut layout = Layout {
            tables: vec![table(1, 10, (0, 9), 5), table(2, 500, (10, 19), 6)],
            blobs: vec![blobs(5, 100, 54), blobs(6, 100, 90)],
        };
        // 46 + 10 for 54; with the second file 56 + 510 for 144.
        assert_eq!(layout.next_step(1_000, 1_000), Step::Nothing);
        layout.blobs[0].garbage = 55;
        let first = Step::Collect {
            oldest: 1,
            ranges: vec![(vec![0], vec![9])],
        };
        assert_eq!(layout.next_step(1_000, 1_000), first);
        // It may be larger than a step, never than the room.
        assert_eq!(layout.next_step(10, 55), first);
        assert_eq!(layout.next_step(10, 54), Step::NoSpace);
    }

    /// Old files without garbage are in the way of younger ones that are nothing else: they are
    /// rewritten too, in steps, when it is worth it in all.
    #[test]
    fn a_goal_behind_live_files_is_reached_in_steps() {
        let live = (1..=4).map(|number| blobs(number, 100, 0));
        let dead = (5..=12).map(|number| blobs(number, 100, 99));
        let layout = Layout {
            tables: (1..=12)
                .map(|n| {
                    table(
                        n,
                        1,
                        (u8::try_from(n).unwrap(), u8::try_from(n).unwrap()),
                        n,
                    )
                })
                .collect(),
            blobs: live.chain(dead).collect(),
        };
        let Step::Collect { oldest, ranges } = layout.next_step(250, 10_000) else {
            panic!("792 come back for 420");
        };
        assert_eq!(oldest, 2);
        assert_eq!(ranges.len(), 2);
        assert_eq!(layout.next_step(250, 50), Step::NoSpace);
    }

    #[test]
    fn only_whole_tables_without_blobs_below_the_youngest_level_are_dropped() {
        let mut tables = vec![
            table(1, 10, (2, 4), 5),
            table(2, 10, (2, 4), 5),
            table(3, 10, (2, 4), 5),
            table(4, 10, (4, 6), 5),
        ];
        tables[0].oldest_blob = None;
        tables[1].oldest_blob = None;
        tables[1].level = 0;
        tables[3].oldest_blob = None;
        let layout = Layout {
            tables,
            blobs: Vec::new(),
        };
        assert_eq!(layout.droppable((&[1], &[5])), [(vec![2], vec![4])]);
        assert_eq!(layout.bytes_in((&[5], &[9])), 10);
    }
}
