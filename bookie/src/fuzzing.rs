//! What the fuzz target of the journal calls (`fuzz/targets/journal.rs`). Each function takes any
//! bytes and panics where the journal breaks a promise: what is intact is found, what is damaged
//! or stale is not taken for a commit, and what is missing before something intact is a loss (H4,
//! H5).

use std::io;
use std::path::Path;

use aquifer_model::checksum;
use aquifer_model::entry::EntryData;
use aquifer_model::id::{BookieId, CreationToken, EntryId, LEDGER_ID_MAX, LedgerId};
use aquifer_runtime::disk::{AlignedBuffer, BLOCK_BYTES, Disk, SimDisk};
use bytes::Bytes;

use crate::journal::commit::{CommitBuilder, CommitHead, Records, SegmentUse};
use crate::journal::record::{Record, RecordKind, RecordRef, ValueHead};
use crate::journal::replay::{Continuity, FoundMark, UsedSegment, scan_segment};
use crate::journal::segment::{FIRST_COMMIT_OFFSET, FoundHead, SegmentFile, SegmentHead};

const USE: SegmentUse = SegmentUse {
    generation: 7,
    salt: 0x5a17_0fa5_e6ed_2025,
};
/// The same segment in an earlier life.
const STALE: SegmentUse = SegmentUse {
    generation: 6,
    ..USE
};
const DIRECTORY: &str = "/journal";

/// Any bytes as records and heads. What is accepted is written back with the same meaning.
pub fn records(bytes: &[u8]) {
    // Heads are only looked at: whether they are right is decided by their checksums.
    let _ = (CommitHead::parse(bytes), SegmentHead::decode(bytes));
    let mut rest = bytes;
    while let Ok((record, more)) = RecordRef::decode(rest) {
        rest = more;
        let split = ValueHead::split(record.value);
        let mut again = AlignedBuffer::with_capacity(0);
        let written = Record {
            ledger: record.ledger,
            token: record.token,
            kind: record.kind,
            value: split.map(|(head, data)| (head, entry(data))),
        };
        written.encode(&mut again);
        let (read, left) = RecordRef::decode(again.as_slice())
            .expect("a record that was accepted is accepted again");
        assert!(left.is_empty(), "its length is its own");
        assert_eq!(
            (read.ledger, read.token, read.kind),
            (record.ledger, record.token, record.kind)
        );
        assert_eq!(ValueHead::split(read.value), split);
    }
}

/// Any bytes as what follows the head of a segment. There may be anything but a panic or a hang.
pub fn segment(bytes: &[u8]) {
    let mut content = AlignedBuffer::with_capacity(bytes.len());
    content.extend_from_slice(bytes);
    content.pad_to_block();
    // Errors are answers, too: the bytes are those of another version.
    let _ = scan(content.as_slice(), &mut Continuity::new(0));
}

/// Reads the bytes as a list of commits to write, some of them damaged or stale, and checks what
/// a start finds of them.
pub fn commits(bytes: &[u8]) {
    // Bytes that know the salt may imitate a commit, which real ones cannot: it is random.
    let salt = USE.salt.to_le_bytes();
    if bytes.windows(salt.len()).any(|window| window == salt) {
        return;
    }
    let mut content = AlignedBuffer::with_capacity(0);
    let mut intact = Vec::new();
    let mut is_readable = true;
    let mut sequence = 0;
    let mut rest = bytes;
    while let [how, blocks, more @ ..] = rest {
        let (records, more) = more.split_at(more.len().min(usize::from(*blocks) * 32));
        rest = more;
        sequence += 1 + u64::from(how >> 7);
        let written = Written::new(*how, records, sequence);
        content.extend_from_slice(written.bytes.as_slice());
        if written.is_intact && is_readable {
            is_readable = written.is_readable;
            intact.extend(written.is_readable.then_some(sequence));
        }
    }
    let mut continuity = Continuity::new(0);
    let (result, found) = scan(content.as_slice(), &mut continuity);
    assert_eq!(found, intact, "what is intact is applied, nothing else");
    assert_eq!(result.is_ok(), is_readable, "{result:?}");
    if !is_readable {
        return;
    }
    let (last, loss) = continuity.finish(FoundMark::Synced(sequence));
    assert_eq!(last, sequence);
    let missing = sequence > intact.len() as u64;
    assert_eq!(
        loss.is_some(),
        missing,
        "{loss:?} of {sequence}: {intact:?}"
    );
}

/// One commit as it lies on the disk.
struct Written {
    bytes: AlignedBuffer,
    /// It is found.
    is_intact: bool,
    /// Its records are those of this version.
    is_readable: bool,
}

impl Written {
    /// Bits of `how`: 1 the records are these bytes as they are, otherwise entries; 2 damaged;
    /// 4 from an earlier use of the segment; 8, 16, 32 how many records, or what is damaged.
    fn new(how: u8, records: &[u8], sequence: u64) -> Written {
        let [raw, damaged, stale] = [1, 2, 4].map(|bit| how & bit != 0);
        let number = usize::from(how >> 3 & 7);
        let mut builder = CommitBuilder::new(AlignedBuffer::with_capacity(0));
        if !raw {
            for part in records.chunks((records.len() / (number + 1)).max(1)) {
                builder.push(&record(part, sequence));
            }
        }
        let mut bytes = builder.finish(if stale { STALE } else { USE }, sequence);
        if raw {
            bytes = with_records(bytes, records, number);
        }
        let head = CommitHead::parse(bytes.as_slice()).expect("it was just written");
        let mut found = Records::of(&head, bytes.as_slice());
        found.by_ref().for_each(drop);
        let is_readable = found.is_complete();
        if damaged {
            let at = sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (8 * number.min(6));
            let at = usize::try_from(at).unwrap_or(0) % head.content_bytes();
            bytes.as_mut_slice()[at] ^= 1 << number;
        }
        Written {
            bytes,
            is_intact: !damaged && !stale,
            is_readable,
        }
    }
}

/// The same commit with other bytes for records, and a right checksum.
fn with_records(empty: AlignedBuffer, records: &[u8], count: usize) -> AlignedBuffer {
    let head_bytes = crate::journal::commit::COMMIT_HEAD_BYTES;
    let mut bytes = AlignedBuffer::with_capacity(head_bytes + records.len());
    bytes.extend_from_slice(&empty.as_slice()[..head_bytes]);
    bytes.extend_from_slice(records);
    let lengths = [records.len(), count].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
    let head = bytes.as_mut_slice();
    head[32..36].copy_from_slice(&lengths[0].to_le_bytes());
    head[36..40].copy_from_slice(&lengths[1].to_le_bytes());
    let checksum = checksum::crc32c(&bytes.as_slice()[8..]);
    bytes.as_mut_slice()[4..8].copy_from_slice(&checksum.to_le_bytes());
    bytes.pad_to_block();
    bytes
}

fn record(data: &[u8], number: u64) -> Record {
    let kind = match data.first().map_or(0, |byte| byte % 5) {
        0 => RecordKind::Add(EntryId(number)),
        1 => RecordKind::RecoveryAdd(EntryId(number)),
        2 => RecordKind::Fence,
        3 => RecordKind::Lac(EntryId(number)),
        _ => RecordKind::Delete,
    };
    let head = ValueHead {
        digest: checksum::crc32c(data),
        last_add_confirmed: (number > 1).then_some(EntryId(number - 1)),
        ledger_length: number,
    };
    Record {
        ledger: LedgerId(number.min(LEDGER_ID_MAX)),
        token: CreationToken([3; 16]),
        kind,
        value: kind.entry().map(|_| (head, entry(data))),
    }
}

fn entry(data: &[u8]) -> EntryData {
    EntryData {
        head: Bytes::new(),
        body: Bytes::copy_from_slice(data),
    }
}

/// Scans a segment with these blocks behind its head; returns the commits that are applied.
fn scan(blocks: &[u8], continuity: &mut Continuity) -> (io::Result<u64>, Vec<u64>) {
    let mut found = Vec::new();
    let scanned = segment_with(blocks).and_then(|(disk, file, head)| {
        scan_segment(
            &disk,
            UsedSegment {
                file: file.into(),
                head,
                last: None,
            },
            u64::MAX,
            continuity,
            &mut |commit| {
                found.push(commit.sequence());
                Ok::<(), io::Error>(())
            },
        )
    });
    let end = scanned.map(|scanned| {
        let length = FIRST_COMMIT_OFFSET + blocks.len() as u64;
        assert!(scanned.end_offset <= length, "the end is within the file");
        assert_eq!(scanned.end_offset % BLOCK_BYTES as u64, 0);
        scanned.end_offset
    });
    (end, found)
}

fn segment_with(blocks: &[u8]) -> io::Result<(SimDisk, SegmentFile, SegmentHead)> {
    let disk = SimDisk::new();
    let directory = Path::new(DIRECTORY);
    disk.create_dir_all(directory)?;
    let bytes = BLOCK_BYTES + blocks.len();
    let file = SegmentFile::create(&disk, directory, (1, bytes), &|_| ())?;
    let head = SegmentHead {
        segment: USE,
        first_sequence: 1,
        bookie: BookieId([5; 16]),
    };
    file.activate(&head)?;
    file.file.write_all_at(FIRST_COMMIT_OFFSET, blocks)?;
    let block = head.encode();
    assert_eq!(SegmentHead::decode(block.as_slice()), FoundHead::Used(head));
    Ok((disk, file, head))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn arbitrary_bytes_break_no_promise(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            super::records(&bytes);
            super::segment(&bytes);
            super::commits(&bytes);
        }

        #[test]
        fn what_is_intact_is_found_around_what_is_not(
            commits in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..3)), 0..6)
        ) {
            let mut bytes = Vec::new();
            for (how, records) in commits {
                bytes.push(how & !1);
                bytes.push(u8::try_from(records.len()).unwrap());
                bytes.extend(records.iter().flat_map(|byte| [*byte; 32]));
            }
            super::commits(&bytes);
        }
    }
}
