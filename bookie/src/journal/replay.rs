//! Reading the journal at start: what is there, what is torn, what is lost.
//!
//! The rule (H4, docs/formats.md): commit N+1 is written only after N is synced. So only the last
//! commit of a journal can be torn, and it was never acknowledged; whatever is missing before a
//! later commit, or before the synced mark, was synced and is lost. [`Continuity`] decides this
//! from sequences alone; the scanner around it finds intact commits.

use std::io;
use std::path::Path;
use std::sync::Arc;

use aquifer_runtime::disk::{AlignedBuffer, BLOCK_BYTES, Disk, DiskFile, OpenOptions};

use crate::journal::commit::{
    Block, CommitHead, CommitPlace, Committed, CommittedRecord, Records, SegmentUse,
};
pub use crate::journal::mark::FoundMark;
use crate::journal::segment::{FIRST_COMMIT_OFFSET, FoundHead, SegmentFile, SegmentHead};

/// Bytes that the search for a later commit reads at once.
const SEARCH_BYTES: usize = 1024 * 1024;

/// Commits that were synced and are gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// The first.
    pub first: u64,
    /// The last that is known.
    pub last: u64,
    /// How it showed.
    pub reason: String,
}

impl Loss {
    /// A loss of which nothing else is known any more.
    #[must_use]
    pub fn unknown() -> Loss {
        Loss {
            first: 0,
            last: u64::MAX,
            reason: "the record of a loss is itself damaged".to_owned(),
        }
    }

    /// Two losses as one.
    #[must_use]
    pub fn merge(one: Option<Loss>, other: Option<Loss>) -> Option<Loss> {
        match (one, other) {
            (Some(one), Some(other)) => Some(Loss {
                first: one.first.min(other.first),
                last: one.last.max(other.last),
                reason: format!("{}; {}", one.reason, other.reason),
            }),
            (one, other) => one.or(other),
        }
    }
}

/// What to do with an intact commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The store has it.
    Skip,
    /// Apply it.
    Apply,
}

/// Follows the sequences of the commits that are found, in order, and notices what is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continuity {
    /// Everything up to here is applied, skipped, or lost.
    last: u64,
    loss: Option<Loss>,
}

impl Continuity {
    /// The store holds everything up to `applied`.
    #[must_use]
    pub fn new(applied: u64) -> Continuity {
        Continuity {
            last: applied,
            loss: None,
        }
    }

    /// Whether there is nothing left to find up to a commit.
    fn has(&self, sequence: u64) -> bool {
        sequence <= self.last
    }

    /// An intact commit was found.
    pub fn found(&mut self, sequence: u64) -> Verdict {
        if sequence <= self.last {
            return Verdict::Skip;
        }
        if sequence > self.last + 1 {
            let reason = format!(
                "commits {}..={} are damaged or missing although {sequence} after them is intact",
                self.last + 1,
                sequence - 1
            );
            self.lost(sequence - 1, reason);
        }
        self.last = sequence;
        Verdict::Apply
    }

    /// The journal ends. Returns the last sequence, lost ones included, and the loss.
    #[must_use]
    pub fn finish(mut self, mark: FoundMark) -> (u64, Option<Loss>) {
        match mark {
            FoundMark::Synced(mark) if mark > self.last => {
                let reason = format!(
                    "the journal ends at commit {} although {mark} was synced",
                    self.last
                );
                self.lost(mark, reason);
                self.last = mark;
            }
            FoundMark::Synced(_) => {}
            FoundMark::Unreadable => {
                let reason = format!(
                    "the synced mark is missing or damaged: what followed commit {} is not known",
                    self.last
                );
                self.lost(self.last + 1, reason);
                self.last += 1;
            }
        }
        (self.last, self.loss)
    }

    fn lost(&mut self, last: u64, reason: String) {
        match &mut self.loss {
            Some(loss) => {
                loss.last = last;
                loss.reason.push_str("; ");
                loss.reason.push_str(&reason);
            }
            None => {
                self.loss = Some(Loss {
                    first: self.last + 1,
                    last,
                    reason,
                });
            }
        }
    }
}

/// A used segment before its commits are read.
#[derive(Debug)]
pub struct UsedSegment {
    /// Its file.
    pub file: Arc<SegmentFile>,
    /// This use of it.
    pub head: SegmentHead,
    /// The last commit that may be in it, as the head of the segment behind it says: commits are
    /// numbered on from one to the next. `None` of the segment that was used last.
    pub last: Option<u64>,
}

/// A segment as the scan left it.
#[derive(Debug)]
pub struct ScannedSegment {
    /// Its file, for writing.
    pub file: Arc<SegmentFile>,
    /// This use of it.
    pub head: SegmentHead,
    /// The last intact commit in it; `first_sequence - 1` when it has no intact commit. Of one that
    /// was not read, the last that may be in it.
    pub last_sequence: u64,
    /// The end of the last intact commit, unless it was not read.
    pub end_offset: u64,
}

/// An intact commit that is to be applied.
#[derive(Debug)]
pub struct FoundCommit {
    head: CommitHead,
    place: CommitPlace,
    bytes: Vec<u8>,
}

impl FoundCommit {
    /// Its sequence.
    #[cfg(any(feature = "fuzzing", test))]
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.head.sequence
    }

    /// Its records.
    #[must_use]
    pub fn records(&self) -> Records<'_> {
        Records::of(&self.head, &self.bytes)
    }

    /// The commit with what was found out about its records.
    #[must_use]
    pub fn with(self, records: Vec<CommittedRecord>) -> Committed {
        Committed {
            sequence: self.head.sequence,
            place: self.place,
            block: Block::read_back(self.bytes),
            records,
        }
    }
}

/// The segments of a journal before their commits are read.
#[derive(Debug, Default)]
pub struct Inventory {
    /// Used ones, in the order of their use.
    pub used: Vec<UsedSegment>,
    /// Fresh ones, and those whose head is damaged.
    pub spare: Vec<Arc<SegmentFile>>,
    /// The largest file number.
    pub last_number: u64,
}

/// Lists the segments of a journal.
pub fn inventory(disk: &dyn Disk, directory: &Path) -> io::Result<Inventory> {
    let mut found = Inventory::default();
    let mut used = Vec::new();
    for path in disk.list(directory)? {
        let Some(number) = SegmentFile::number_of(&path) else {
            continue;
        };
        found.last_number = found.last_number.max(number);
        let file = Arc::new(SegmentFile::open(disk, &path, number)?);
        let mut block = AlignedBuffer::with_capacity(BLOCK_BYTES);
        block.resize(BLOCK_BYTES);
        let read = read_up_to(&*file.file, 0, block.as_mut_slice())?;
        match SegmentHead::decode(&block.as_slice()[..read]) {
            FoundHead::Used(head) => used.push((file, head)),
            // What a damaged head hides shows as a gap, or as an end before the mark.
            FoundHead::Fresh | FoundHead::Bad => found.spare.push(file),
        }
    }
    found.used = in_order(used);
    Ok(found)
}

/// Segments in the order of their use.
fn in_order(mut used: Vec<(Arc<SegmentFile>, SegmentHead)>) -> Vec<UsedSegment> {
    used.sort_by_key(|(_, head)| head.segment.generation);
    let firsts: Vec<u64> = used.iter().map(|(_, head)| head.first_sequence).collect();
    let lasts = firsts
        .into_iter()
        .skip(1)
        .map(|first| Some(first.saturating_sub(1)));
    used.into_iter()
        .zip(lasts.chain([None]))
        .map(|((file, head), last)| UsedSegment { file, head, last })
        .collect()
}

/// The used ones of these segments, in the order of their use.
pub fn inventory_of(
    disk: &dyn Disk,
    segments: &[Arc<SegmentFile>],
) -> io::Result<Vec<UsedSegment>> {
    let mut used = Vec::with_capacity(segments.len());
    for file in segments {
        let reader = disk.open(&file.path, OpenOptions::default())?;
        let mut block = vec![0; BLOCK_BYTES];
        let read = read_up_to(&*reader, 0, &mut block)?;
        if let FoundHead::Used(head) = SegmentHead::decode(&block[..read]) {
            used.push((Arc::clone(file), head));
        }
    }
    Ok(in_order(used))
}

/// Reads all commits of a segment and hands those that are to be applied to `apply`. Commits
/// after `until` are left alone. A segment that has none to apply is not read at all.
pub fn scan_segment<E: From<io::Error>>(
    disk: &dyn Disk,
    used: UsedSegment,
    until: u64,
    continuity: &mut Continuity,
    apply: &mut dyn FnMut(FoundCommit) -> Result<(), E>,
) -> Result<ScannedSegment, E> {
    let UsedSegment { file, head, last } = used;
    let mut scanned = ScannedSegment {
        last_sequence: head.first_sequence.saturating_sub(1),
        end_offset: FIRST_COMMIT_OFFSET,
        head,
        file,
    };
    // What is damaged in it is of no consequence, so nothing in it is.
    if let Some(last) = last.filter(|last| continuity.has(*last)) {
        scanned.last_sequence = last;
        return Ok(scanned);
    }
    // Through the page cache: reads of any length, and syncing makes what was read durable (H2).
    let reader = disk.open(&scanned.file.path, OpenOptions::default())?;
    let mut bytes = Vec::new();
    let mut synced = false;
    let mut next = Some(FIRST_COMMIT_OFFSET);
    while let Some(offset) = next {
        let at_least = scanned.last_sequence + 1;
        let Some(commit) = read_commit(&*reader, offset, head.segment, at_least, &mut bytes)?
        else {
            let after = offset + block_bytes();
            next = search(&*reader, after, head.segment, at_least, &mut bytes)?;
            continue;
        };
        if commit.sequence > until {
            break;
        }
        if continuity.found(commit.sequence) == Verdict::Apply {
            if !synced {
                reader.sync_data()?;
                synced = true;
            }
            apply(FoundCommit {
                head: commit,
                place: CommitPlace {
                    segment: scanned.file.number,
                    generation: head.segment.generation,
                    offset,
                },
                bytes: std::mem::take(&mut bytes),
            })?;
        }
        scanned.last_sequence = commit.sequence;
        scanned.end_offset = offset + u64_of(commit.padded_bytes());
        next = Some(scanned.end_offset);
    }
    Ok(scanned)
}

/// Reads the commit at `offset` if there is an intact one of this use; its bytes are in `bytes`.
fn read_commit(
    file: &dyn DiskFile,
    offset: u64,
    segment: SegmentUse,
    at_least: u64,
    bytes: &mut Vec<u8>,
) -> io::Result<Option<CommitHead>> {
    bytes.resize(BLOCK_BYTES, 0);
    let read = read_up_to(file, offset, bytes)?;
    let Some(head) = candidate(&bytes[..read], segment, at_least) else {
        return Ok(None);
    };
    // A commit lies within its segment: a head that says otherwise is damaged.
    let end = offset.saturating_add(u64_of(head.content_bytes()));
    if end > file.len()? {
        return Ok(None);
    }
    bytes.resize(head.content_bytes(), 0);
    let read = read_up_to(file, offset, bytes)?;
    bytes.truncate(read);
    if !head.is_intact(bytes) {
        return Ok(None);
    }
    let mut records = Records::of(&head, bytes);
    records.by_ref().for_each(drop);
    // The checksum is right and the records are not: another version wrote them.
    if !records.is_complete() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "commit {} holds records of an unknown version",
                head.sequence
            ),
        ));
    }
    Ok(Some(head))
}

/// Looks for an intact commit at any block from `offset` on.
fn search(
    file: &dyn DiskFile,
    mut offset: u64,
    segment: SegmentUse,
    at_least: u64,
    bytes: &mut Vec<u8>,
) -> io::Result<Option<u64>> {
    let mut piece = vec![0; SEARCH_BYTES];
    loop {
        let read = read_up_to(file, offset, &mut piece)?;
        if read == 0 {
            return Ok(None);
        }
        for (at, block) in piece[..read].chunks(BLOCK_BYTES).enumerate() {
            let place = offset + u64_of(at) * block_bytes();
            if candidate(block, segment, at_least).is_some()
                && read_commit(file, place, segment, at_least, bytes)?.is_some()
            {
                return Ok(Some(place));
            }
        }
        offset += u64_of(SEARCH_BYTES);
    }
}

fn candidate(block: &[u8], segment: SegmentUse, at_least: u64) -> Option<CommitHead> {
    CommitHead::parse(block).filter(|head| head.segment == segment && head.sequence >= at_least)
}

fn read_up_to(file: &dyn DiskFile, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(offset + u64_of(filled), &mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn u64_of(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn block_bytes() -> u64 {
    u64_of(BLOCK_BYTES)
}

#[cfg(test)]
mod tests;
