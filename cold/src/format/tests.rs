//! Round trips, damage of every byte, and bytes that were never an object.

use aquifer_model::entry::{EntryData, EntryFlags, EntryHead};
use aquifer_model::extensions::Extensions;
use aquifer_model::format::FORMAT_NATIVE;
use aquifer_model::id::{
    AttemptId, CreationToken, EntryId, Index, LedgerId, LocationId, OwnerEpoch,
};
use aquifer_model::storage::{AddEntry, StoredEntry};
use aquifer_proto::v1;
use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::*;
use crate::format::block::Block;
use crate::format::check::check_whole;
use crate::format::parts::{Header, Trailer};
use crate::format::tail::Tail;
use crate::format::writer::{ObjectSpec, ObjectWriter, Written};

pub(crate) const LEDGER: LedgerId = LedgerId(42);
pub(crate) const ATTEMPT: AttemptId = AttemptId([7; 16]);
pub(crate) const TOKEN: CreationToken = CreationToken([9; 16]);

pub(crate) fn spec(compression: Compression) -> ObjectSpec {
    ObjectSpec {
        attempt: ATTEMPT,
        location: LocationId([3; 16]),
        cluster: "test".to_owned(),
        created_ms: 1_700_000_000_000,
        writer: "aquifer test".to_owned(),
        section: v1::ObjectSection {
            ledger_id: LEDGER.0,
            creation_token: Bytes::copy_from_slice(&TOKEN.0),
            home: "public/default".to_owned(),
            topic: "persistent://public/default/orders".to_owned(),
            ..v1::ObjectSection::default()
        },
        block_bytes: BLOCK_BYTES_MIN,
        compression,
    }
}

/// Entries with these bodies and LACs so far behind them, as bookies have them.
pub(crate) fn entries(bodies: impl IntoIterator<Item = (Vec<u8>, u64)>) -> Vec<StoredEntry> {
    let (mut length, mut index) = (0, 100);
    let entry = |(at, (body, behind)): (usize, (Vec<u8>, u64))| {
        let entry = EntryId(at as u64);
        let head = EntryHead {
            format: FORMAT_NATIVE,
            message_count: 1 + u32::try_from(at % 3).unwrap(),
            base_index: Index(index),
            broker_time_ms: 1_000 + at as u64 / 2,
            owner_epoch: OwnerEpoch(1),
            flags: EntryFlags::default(),
            extensions: Extensions::default(),
        };
        index = head.end_index().0;
        let mut data = BytesMut::from(head.encode().as_ref());
        data.extend(body);
        let data = data.freeze();
        length += data.len() as u64;
        let lac = entry
            .0
            .checked_sub(behind)
            .filter(|_| behind > 0)
            .map(EntryId);
        let body = EntryData {
            head: Bytes::new(),
            body: data.clone(),
        };
        let add = AddEntry::new(LEDGER, entry, lac, length, body);
        StoredEntry {
            entry,
            last_add_confirmed: lac,
            ledger_length: length,
            digest: add.digest,
            data,
        }
    };
    bodies.into_iter().enumerate().map(entry).collect()
}

pub(crate) fn written(entries: &[StoredEntry], spec: ObjectSpec) -> (Bytes, Written) {
    let mut writer = ObjectWriter::new(spec);
    let mut object = BytesMut::new();
    for entry in entries {
        writer.add(entry).unwrap();
        while let Some(part) = writer.take(1000) {
            assert_eq!(part.len(), 1000);
            object.extend(part);
        }
    }
    let (rest, written) = writer.finish().unwrap();
    object.extend(rest);
    assert_eq!(object.len() as u64, written.bytes);
    (object.freeze(), written)
}

/// What an object has, read by its index.
fn read_back(object: &Bytes) -> Vec<StoredEntry> {
    let tail = check_whole(object).unwrap();
    let block = |row: &tail::IndexRow| {
        let bytes = object.slice(usize::try_from(row.offset).unwrap()..);
        let block = Block::decode(tail.attempt, &bytes).unwrap();
        block.entries_from(EntryId::FIRST).collect::<Vec<_>>()
    };
    tail.blocks.iter().flat_map(block).collect()
}

fn some_entries(count: usize) -> Vec<StoredEntry> {
    let body = |at: usize| {
        (
            vec![u8::try_from(at % 251).unwrap(); 900 + at],
            (at as u64).min(3),
        )
    };
    entries((0..count).map(body))
}

#[test]
fn an_object_has_what_was_written_and_says_so() {
    for compression in [Compression::None, Compression::Auto] {
        let wanted = some_entries(300);
        let (object, written) = written(&wanted, spec(compression));
        assert_eq!(read_back(&object), wanted);
        let tail = check_whole(&object).unwrap();
        assert!(tail.blocks.len() > 3, "{}", tail.blocks.len());
        let section = &tail.section;
        assert_eq!((section.last_entry_id, section.messages), (299, 600));
        assert_eq!((section.first_index, section.end_index), (100, 700));
        assert_eq!(
            (section.first_time_ms, section.last_time_ms),
            (1_000, 1_149)
        );
        assert_eq!(section.length_bytes, wanted[299].ledger_length);
        assert_eq!(tail.trailer.index_offset, written.index_offset);
        let is_small = object.len() < 100_000;
        assert_eq!(is_small, compression == Compression::Auto);
        // Places by index and by time are in the block that they are said to be in.
        for entry in &wanted {
            let (head, _) = EntryHead::decode(&entry.data).unwrap();
            let last = Index(head.end_index().0 - 1);
            assert!(tail.entries_at_index(last).contains(&entry.entry.0));
            assert!(tail.blocks[tail.block_of(entry.entry).unwrap()].first_entry <= entry.entry);
        }
        assert!(tail.entries_before_time(1_100).contains(&199));
        assert_eq!(tail.block_of(EntryId(300)), None);
    }
}

#[test]
fn every_flipped_bit_and_every_cut_is_found() {
    let (object, _) = written(&some_entries(3), spec(Compression::Auto));
    for at in 0..object.len() {
        let mut damaged = object.to_vec();
        damaged[at] ^= 1 << (at % 8);
        assert!(check_whole(&damaged.into()).is_err(), "byte {at}");
        assert!(check_whole(&object.slice(..at)).is_err(), "cut at {at}");
    }
    let longer = [object.as_ref(), &[0]].concat();
    assert!(check_whole(&longer.into()).is_err());
}

#[test]
fn parts_of_another_attempt_are_found() {
    let wanted = some_entries(3);
    let (object, _) = written(&wanted, spec(Compression::None));
    let other = ObjectSpec {
        attempt: AttemptId([8; 16]),
        ..spec(Compression::None)
    };
    let (other, end) = written(&wanted, other);
    assert_eq!(object.len(), other.len());
    let blocks = HEADER_BYTES..usize::try_from(end.index_offset).unwrap();
    for range in [
        0..HEADER_BYTES,
        blocks,
        object.len() - TRAILER_BYTES..object.len(),
    ] {
        let mut mixed = object.to_vec();
        mixed[range.clone()].copy_from_slice(&other[range.clone()]);
        assert!(check_whole(&mixed.into()).is_err(), "{range:?}");
    }
}

#[test]
fn an_object_is_compared_with_its_ledger() {
    let wanted = some_entries(5);
    let (object, _) = written(&wanted, spec(Compression::None));
    let tail = check_whole(&object).unwrap();
    let right = Expected {
        attempt: ATTEMPT,
        ledger: LEDGER,
        token: TOKEN,
        last_entry: EntryId(4),
        length: wanted[4].ledger_length,
    };
    assert_eq!(tail.check_expected(&right), Ok(()));
    let wrong: [fn(&mut Expected); 5] = [
        |e| e.attempt.0[0] += 1,
        |e| e.ledger.0 += 1,
        |e| e.token.0[0] += 1,
        |e| e.last_entry.0 += 1,
        |e| e.length += 1,
    ];
    for change in wrong {
        let mut expected = right;
        change(&mut expected);
        assert!(tail.check_expected(&expected).is_err(), "{expected:?}");
    }
}

#[test]
fn only_the_next_entry_of_the_ledger_is_taken() {
    let wanted = some_entries(3);
    let mut writer = ObjectWriter::new(spec(Compression::None));
    let refuses = |writer: &mut ObjectWriter, entry: &StoredEntry| writer.add(entry).is_err();
    assert!(refuses(&mut writer, &wanted[1]));
    let changed = StoredEntry {
        digest: wanted[0].digest ^ 1,
        ..wanted[0].clone()
    };
    assert!(refuses(&mut writer, &changed));
    writer.add(&wanted[0]).unwrap();
    assert!(refuses(&mut writer, &wanted[0]));
    writer.add(&wanted[1]).unwrap();
    let none = ObjectWriter::new(spec(Compression::None)).finish();
    assert!(none.is_err(), "a ledger without entries");
}

#[test]
fn newer_objects_are_refused_as_such() {
    let (object, _) = written(&some_entries(3), spec(Compression::None));
    let mut newer = object.to_vec();
    newer[8] = 2;
    let crc = aquifer_model::checksum::crc32c(&newer[..60]).to_le_bytes();
    newer[60..64].copy_from_slice(&crc);
    assert!(matches!(Header::parse(&newer), Err(FormatError::Newer(_))));
}

/// Objects outlive the builds that wrote them: this one was written by version 1.
#[test]
fn version_1_is_still_written_and_read() {
    let wanted = entries([(b"hello".to_vec(), 0), (b"world".to_vec(), 1)]);
    let (object, written) = written(&wanted, spec(Compression::None));
    let sum = aquifer_model::checksum::crc32c(&object);
    assert_eq!(
        (object.len(), written.index_offset, sum),
        GOLDEN,
        "the format has changed"
    );
}

/// Bytes, where the index begins, CRC32C of all: computed by another program from docs/formats.md.
const GOLDEN: (usize, u64, u32) = (539, 248, 0xf211e4ca);

proptest! {
    #[test]
    fn any_entries_round_trip(
        bodies in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 0..3000), 0_u64..40),
            1..120,
        ),
        repeat in 1_usize..40,
        auto in any::<bool>(),
    ) {
        let bodies = bodies.into_iter().map(|(body, behind)| (body.repeat(repeat), behind));
        let wanted = entries(bodies);
        let compression = if auto { Compression::Auto } else { Compression::None };
        let (object, _) = written(&wanted, spec(compression));
        prop_assert_eq!(read_back(&object), wanted);
    }

    #[test]
    fn garbage_is_never_an_object(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let bytes = Bytes::from(bytes);
        prop_assert!(check_whole(&bytes).is_err());
        prop_assert!(Block::decode(ATTEMPT, &bytes).is_err());
        prop_assert!(Trailer::parse(&bytes, bytes.len() as u64).is_err());
    }

    /// Whatever an attacker or a broken disk makes of an end whose checksums are right again.
    #[test]
    fn lengths_are_never_trusted(
        at in 0_usize..44,
        value in any::<u32>(),
        index in any::<prop::sample::Index>(),
    ) {
        let (object, end) = written(&some_entries(100), spec(Compression::None));
        let begin = usize::try_from(end.index_offset).unwrap();
        let mut tail = object[begin..].to_vec();
        let trailer = tail.len() - TRAILER_BYTES;
        tail[trailer + at..][..4].copy_from_slice(&value.to_le_bytes());
        let flip = index.index(trailer);
        tail[flip] ^= 1;
        let covered = aquifer_model::checksum::crc32c(&ATTEMPT.0);
        let crc = aquifer_model::checksum::crc32c_append(covered, &tail[trailer..trailer + 52]);
        tail[trailer + 52..][..4].copy_from_slice(&crc.to_le_bytes());
        prop_assert!(Tail::parse(&tail.into(), object.len() as u64).is_err());
    }
}
