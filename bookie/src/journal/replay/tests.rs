//! The rule of torn and lost, from sequences alone, and the scanner over damaged bytes.

use aquifer_model::id::BookieId;
use aquifer_runtime::disk::SimDisk;
use proptest::prelude::*;

use super::*;
use crate::journal::commit::CommitBuilder;
use crate::journal::record::tests::any_record;

fn run(applied: u64, found: &[u64], mark: FoundMark) -> (Vec<u64>, u64, Option<(u64, u64)>) {
    let mut continuity = Continuity::new(applied);
    let applied: Vec<u64> = found
        .iter()
        .copied()
        .filter(|sequence| continuity.found(*sequence) == Verdict::Apply)
        .collect();
    let (last, loss) = continuity.finish(mark);
    (applied, last, loss.map(|loss| (loss.first, loss.last)))
}

#[test]
fn torn_lost_and_whole_are_told_apart() {
    let synced = FoundMark::Synced;
    // A torn commit 4 leaves no trace, and was never acknowledged.
    assert_eq!(run(0, &[1, 2, 3], synced(3)), (vec![1, 2, 3], 3, None));
    assert_eq!(run(0, &[1, 2, 3], synced(1)), (vec![1, 2, 3], 3, None));
    // The store has the beginning.
    assert_eq!(run(2, &[1, 2, 3], synced(3)), (vec![3], 3, None));
    assert_eq!(run(3, &[1, 3], synced(3)), (vec![], 3, None));
    assert_eq!(run(9, &[], synced(8)), (vec![], 9, None));
    // Damaged before an intact one.
    assert_eq!(run(0, &[1, 3], synced(0)), (vec![1, 3], 3, Some((2, 2))));
    // Ends before what was synced.
    assert_eq!(run(0, &[1], synced(3)), (vec![1], 3, Some((2, 3))));
    assert_eq!(run(0, &[], synced(2)), (vec![], 2, Some((1, 2))));
    // Both.
    assert_eq!(run(0, &[2, 4], synced(6)), (vec![2, 4], 6, Some((1, 6))));
    // Where it should end is not known.
    let unreadable = run(0, &[1, 2], FoundMark::Unreadable);
    assert_eq!(unreadable, (vec![1, 2], 3, Some((3, 3))));
}

/// A journal of segments, the first commit of each given, up to but without `end`.
fn journal(disk: &SimDisk, firsts: &[u64], end: u64) -> Inventory {
    let directory = Path::new("/journal");
    disk.create_dir_all(directory).unwrap();
    let ends = firsts.iter().skip(1).chain([&end]);
    for (generation, (first, end)) in (1..).zip(firsts.iter().zip(ends)) {
        let head = SegmentHead {
            segment: SegmentUse {
                generation,
                salt: 7,
            },
            first_sequence: *first,
            bookie: BookieId([1; 16]),
        };
        let mut image = head.encode().as_slice().to_vec();
        for sequence in *first..*end {
            let builder = CommitBuilder::new(AlignedBuffer::with_capacity(0));
            image.extend_from_slice(builder.finish(head.segment, sequence).as_slice());
        }
        // The later it was used the lower its number, as in a journal that goes round.
        let name = format!("segment-{:08}.aqj", 100 - generation);
        disk.write_atomic(&directory.join(name), &image).unwrap();
    }
    inventory(disk, directory).unwrap()
}

/// What the store has is not read again: those segments could as well be gone.
#[test]
fn only_segments_with_something_to_apply_are_read() {
    // With what the store has: which segments are read, counted from the first.
    for (applied, read_from) in [(0, 0), (3, 0), (4, 1), (5, 1), (8, 1), (9, 2), (20, 2)] {
        let disk = SimDisk::new();
        let inventory = journal(&disk, &[1, 5, 10], 13);
        for used in &inventory.used[..read_from] {
            disk.remove(&used.file.path).unwrap();
        }
        let mut continuity = Continuity::new(applied);
        let mut seen = Vec::new();
        let mut lasts = Vec::new();
        for used in inventory.used {
            let scanned =
                scan_segment::<io::Error>(&disk, used, u64::MAX, &mut continuity, &mut |found| {
                    seen.push(found.sequence());
                    Ok(())
                });
            lasts.push(scanned.unwrap().last_sequence);
        }
        assert_eq!(lasts, [4, 9, 12], "{applied}");
        assert_eq!(seen, Vec::from_iter(applied + 1..13), "{applied}");
        let (last, loss) = continuity.finish(FoundMark::Synced(12));
        assert_eq!((last, loss), (applied.max(12), None));
    }
}

/// What is given to the store lies in the journal where it says.
#[test]
fn a_commit_knows_its_place() {
    let disk = SimDisk::new();
    let mut places = Vec::new();
    for used in journal(&disk, &[1, 5], 8).used {
        let image = disk.read(&used.file.path).unwrap();
        let (number, generation) = (used.file.number, used.head.segment.generation);
        let apply = &mut |found: FoundCommit| {
            let commit = found.with(Vec::new());
            assert_eq!(commit.place.segment, number);
            assert_eq!(commit.place.generation, generation);
            let offset = usize::try_from(commit.place.offset).unwrap();
            assert!(image[offset..].starts_with(commit.block.bytes()));
            places.push((commit.sequence, offset));
            Ok::<_, io::Error>(())
        };
        scan_segment(&disk, used, u64::MAX, &mut Continuity::new(0), apply).unwrap();
    }
    let blocks = [(1, 1), (2, 2), (3, 3), (4, 4), (5, 1), (6, 2), (7, 3)];
    let expected = blocks.map(|(sequence, block)| (sequence, BLOCK_BYTES * block));
    assert_eq!(places, expected);
}

/// H4: a segment that the store does not have all of is read, however little is missing.
#[test]
fn a_segment_with_something_to_apply_is_not_passed() {
    let disk = SimDisk::new();
    let inventory = journal(&disk, &[1, 5, 10], 13);
    disk.remove(&inventory.used[1].file.path).unwrap();
    let mut continuity = Continuity::new(8);
    let mut lasts = inventory.used.into_iter().map(|used| {
        let apply = &mut |_: FoundCommit| Ok::<_, io::Error>(());
        let scanned = scan_segment(&disk, used, u64::MAX, &mut continuity, apply);
        scanned.map(|scanned| scanned.last_sequence)
    });
    assert_eq!(lasts.next().unwrap().unwrap(), 4);
    let missing = lasts.next().unwrap().unwrap_err();
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
}

proptest! {
    /// H4: with a mark that does not run ahead, a loss is reported exactly when a commit that
    /// was synced and is not in the store was not found.
    #[test]
    fn a_loss_is_reported_exactly_when_something_synced_is_missing(
        applied in 0u64..8,
        written in 0u64..20,
        damaged in prop::collection::btree_set(1u64..20, 0..4),
        mark_lag in 0u64..3,
    ) {
        let written = written.max(applied);
        let mark = written.saturating_sub(mark_lag);
        let found: Vec<u64> = (1..=written).filter(|s| !damaged.contains(s)).collect();
        let noticed = found.last().copied().unwrap_or(0).max(mark);
        let missing = (applied + 1..=noticed).any(|s| damaged.contains(&s));
        let (applied_now, last, loss) = run(applied, &found, FoundMark::Synced(mark));
        prop_assert_eq!(loss.is_some(), missing);
        prop_assert!(applied_now.iter().all(|s| *s > applied && !damaged.contains(s)));
        prop_assert!(last >= mark && last >= applied);
    }

    /// Arbitrary bytes as a journal: never a panic, never a commit that was not written.
    #[test]
    fn arbitrary_and_damaged_journals_never_panic(
        records in prop::collection::vec(any_record(), 1..4),
        commits in 1u64..5,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        noise in any::<u64>(),
    ) {
        let disk = SimDisk::new();
        let directory = Path::new("/journal");
        disk.create_dir_all(directory).unwrap();
        let head = SegmentHead {
            segment: SegmentUse { generation: 1, salt: noise },
            first_sequence: 1,
            bookie: BookieId([1; 16]),
        };
        let mut image = head.encode().as_slice().to_vec();
        for sequence in 1..=commits {
            let mut builder = CommitBuilder::new(AlignedBuffer::with_capacity(0));
            for record in &records {
                builder.push(record);
            }
            image.extend_from_slice(builder.finish(head.segment, sequence).as_slice());
        }
        for (at, byte) in damage {
            let at = at.index(image.len());
            image[at] = byte;
        }
        disk.write_atomic(&directory.join("segment-00000001.aqj"), &image).unwrap();
        let inventory = inventory(&disk, directory).unwrap();
        let mut continuity = Continuity::new(0);
        for used in inventory.used {
            let mut seen = Vec::new();
            let scanned = scan_segment::<io::Error>(
                &disk, used, u64::MAX, &mut continuity,
                &mut |found| {
                    seen.push((found.sequence(), found.records().count()));
                    Ok(())
                },
            ).unwrap();
            prop_assert!(scanned.last_sequence <= commits);
            prop_assert!(seen.iter().all(|(s, n)| *s <= commits && *n == records.len()));
            prop_assert!(seen.windows(2).all(|pair| pair[0].0 < pair[1].0));
        }
    }
}
