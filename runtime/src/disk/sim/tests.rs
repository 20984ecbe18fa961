//! What the simulated disk promises to those who test their crash recovery on it.

use proptest::prelude::*;

use super::*;
use crate::rng::SeededRng;

const CREATE: OpenOptions = OpenOptions {
    create: true,
    direct: false,
};

fn disk_with_directory() -> SimDisk {
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new("/data")).unwrap();
    disk
}

fn content(disk: &SimDisk, path: &str) -> Option<Vec<u8>> {
    disk.read(Path::new(path)).ok()
}

#[test]
fn a_created_file_is_forgotten_until_its_directory_is_synced() {
    let disk = disk_with_directory();
    let file = disk.open(Path::new("/data/a"), CREATE).unwrap();
    file.write_all_at(0, b"x").unwrap();
    file.sync_data().unwrap();
    disk.crash(&SeededRng::new(1));
    assert_eq!(content(&disk, "/data/a"), None);

    let file = disk.open(Path::new("/data/a"), CREATE).unwrap();
    file.write_all_at(0, b"x").unwrap();
    file.sync_data().unwrap();
    disk.sync_dir(Path::new("/data")).unwrap();
    disk.crash(&SeededRng::new(1));
    assert_eq!(content(&disk, "/data/a").as_deref(), Some(&b"x"[..]));
}

#[test]
fn renames_and_removals_are_forgotten_until_the_directory_is_synced() {
    let disk = disk_with_directory();
    disk.write_atomic(Path::new("/data/a"), b"a").unwrap();
    disk.write_atomic(Path::new("/data/b"), b"b").unwrap();
    disk.rename(Path::new("/data/a"), Path::new("/data/b"))
        .unwrap();
    assert_eq!(content(&disk, "/data/b").as_deref(), Some(&b"a"[..]));
    disk.crash(&SeededRng::new(1));
    assert_eq!(content(&disk, "/data/a").as_deref(), Some(&b"a"[..]));
    assert_eq!(content(&disk, "/data/b").as_deref(), Some(&b"b"[..]));

    disk.remove(Path::new("/data/a")).unwrap();
    disk.sync_dir(Path::new("/data")).unwrap();
    disk.crash(&SeededRng::new(1));
    assert_eq!(content(&disk, "/data/a"), None);
}

#[test]
fn unsynced_writes_are_kept_dropped_or_torn_by_sectors() {
    let (mut kept, mut dropped, mut torn) = (0, 0, 0);
    for seed in 0..60 {
        let disk = disk_with_directory();
        let file = disk.open(Path::new("/data/a"), CREATE).unwrap();
        file.write_all_at(0, &[1; 4 * SECTOR_BYTES]).unwrap();
        file.sync_data().unwrap();
        disk.sync_dir(Path::new("/data")).unwrap();
        file.write_all_at(0, &[2; 4 * SECTOR_BYTES]).unwrap();
        disk.crash(&SeededRng::new(seed));
        let after = content(&disk, "/data/a").unwrap();
        for sector in after.chunks(SECTOR_BYTES) {
            assert!(sector.iter().all(|byte| *byte == sector[0]));
        }
        let new = after.iter().filter(|byte| **byte == 2).count();
        match new {
            0 => dropped += 1,
            _ if new == after.len() => kept += 1,
            _ => torn += 1,
        }
    }
    assert!(
        kept > 0 && dropped > 0 && torn > 0,
        "{kept} {dropped} {torn}"
    );
}

#[test]
fn a_failed_sync_loses_the_writes_although_the_next_one_succeeds() {
    let disk = disk_with_directory();
    disk.write_atomic(Path::new("/data/a"), b"old").unwrap();
    let file = disk.open(Path::new("/data/a"), CREATE).unwrap();
    file.write_all_at(0, b"new").unwrap();
    disk.fail_next(FaultKind::SyncError, 0);
    assert!(file.sync_data().is_err());
    assert_eq!(content(&disk, "/data/a").as_deref(), Some(&b"new"[..]));
    file.sync_data().unwrap();
    disk.crash(&SeededRng::new(1));
    assert_eq!(content(&disk, "/data/a").as_deref(), Some(&b"old"[..]));
}

#[test]
fn faults_strike_the_operation_they_were_set_for() {
    let disk = disk_with_directory();
    let file = disk.open(Path::new("/data/a"), CREATE).unwrap();
    disk.fail_next(FaultKind::WriteError, 1);
    file.write_all_at(0, b"first").unwrap();
    assert!(file.write_all_at(0, b"second").is_err());
    file.write_all_at(0, b"third").unwrap();
    disk.fail_next(FaultKind::ReadError, 0);
    let mut buf = [0; 5];
    assert!(file.read_at(0, &mut buf).is_err());
    file.read_exact_at(0, &mut buf).unwrap();
    assert_eq!(&buf, b"third");
    disk.fail_next(FaultKind::NoSpace, 0);
    let full = file.write_all_at(0, b"x").unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
}

#[test]
fn a_full_disk_refuses_growth_and_allows_overwrites() {
    let disk = disk_with_directory();
    disk.set_space_bytes(1_000);
    let file = disk.open(Path::new("/data/a"), CREATE).unwrap();
    file.write_all_at(0, &[1; 900]).unwrap();
    let space = disk.space(Path::new("/data")).unwrap();
    assert_eq!((space.total_bytes, space.available_bytes), (1_000, 100));
    let full = file.write_all_at(900, &[1; 101]).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    file.write_all_at(0, &[2; 900]).unwrap();
    assert!(file.set_len(1_001).is_err());
    disk.set_space_bytes(2_000);
    file.write_all_at(900, &[1; 101]).unwrap();
}

#[test]
fn a_flipped_bit_stays_flipped() {
    let disk = disk_with_directory();
    disk.write_atomic(Path::new("/data/a"), &[0; 10]).unwrap();
    disk.flip_bit(Path::new("/data/a"), 3, 6).unwrap();
    disk.crash(&SeededRng::new(1));
    assert_eq!(content(&disk, "/data/a").unwrap()[3], 64);
    assert!(disk.flip_bit(Path::new("/data/a"), 10, 0).is_err());
}

#[test]
fn handles_and_locks_of_an_earlier_life_are_dead() {
    let disk = disk_with_directory();
    let file = disk.open(Path::new("/data/a"), CREATE).unwrap();
    let old = disk.lock_exclusive(Path::new("/data/lock")).unwrap();
    disk.crash(&SeededRng::new(1));
    assert!(file.write_all_at(0, b"x").is_err());
    let new = disk.lock_exclusive(Path::new("/data/lock")).unwrap();
    drop(old);
    let taken = disk.lock_exclusive(Path::new("/data/lock")).unwrap_err();
    assert_eq!(taken.kind(), io::ErrorKind::WouldBlock);
    drop(new);
    disk.lock_exclusive(Path::new("/data/lock")).unwrap();
}

#[test]
fn direct_files_refuse_what_is_not_aligned() {
    let disk = disk_with_directory();
    let direct = OpenOptions {
        create: true,
        direct: true,
    };
    let file = disk.open(Path::new("/data/a"), direct).unwrap();
    let mut buffer = super::super::AlignedBuffer::with_capacity(10);
    buffer.extend_from_slice(b"x");
    assert!(file.write_all_at(0, buffer.as_slice()).is_err());
    buffer.pad_to_block();
    file.write_all_at(0, buffer.as_slice()).unwrap();
    assert!(file.write_all_at(512, buffer.as_slice()).is_err());
}

proptest! {
    /// Whatever happens, a crash leaves each sector as it was at the last sync or as some write
    /// since then made it, and never loses synced bytes that were not written again.
    #[test]
    fn a_crash_loses_nothing_that_was_synced(
        seed in any::<u64>(),
        steps in prop::collection::vec((0_u8..8, 0_u64..6_000, 1_usize..2_000), 1..30),
    ) {
        let disk = disk_with_directory();
        let file = disk.open(Path::new("/data/a"), CREATE).unwrap();
        disk.sync_dir(Path::new("/data")).unwrap();
        // For each byte, the values that it may have after a crash; the first is the synced one.
        let mut allowed: Vec<Vec<u8>> = Vec::new();
        for (number, (kind, offset, len)) in steps.into_iter().enumerate() {
            if kind == 0 {
                file.sync_data().unwrap();
                for values in &mut allowed {
                    let newest = *values.last().unwrap();
                    *values = vec![newest];
                }
                continue;
            }
            let value = u8::try_from(number + 1).unwrap();
            file.write_all_at(offset, &vec![value; len]).unwrap();
            let start = usize::try_from(offset).unwrap();
            if allowed.len() < start + len {
                allowed.resize(start + len, vec![0]);
            }
            for values in &mut allowed[start..start + len] {
                values.push(value);
            }
        }
        disk.crash(&SeededRng::new(seed));
        let after = content(&disk, "/data/a").unwrap();
        prop_assert!(after.len() <= allowed.len());
        for (at, values) in allowed.iter().enumerate() {
            match after.get(at) {
                Some(byte) => prop_assert!(values.contains(byte), "byte {} is {}", at, byte),
                None => prop_assert!(values.len() > 1 || values[0] == 0, "byte {} was synced", at),
            }
        }
    }
}
