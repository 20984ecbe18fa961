//! Power loss, damage and failing disks: what was acknowledged stays (I6), what is unknown is
//! said to be unknown, and damage is an error.

use std::collections::BTreeMap;

use aquifer_runtime::disk::{Disk, FaultKind};
use aquifer_runtime::rng::{Rng, SeededRng};

use super::*;

/// What a key may hold after a crash, oldest first; the first is certain unless others follow.
type Model = BTreeMap<String, Vec<Option<String>>>;

async fn write_at_random(
    machine: &Machine,
    store: &EmbeddedStore,
    rng: &SeededRng,
    model: &mut Model,
) {
    for step in 0..rng.below(12) {
        let key = keys::cluster(&rng.below(5).to_string());
        let value = format!("{step}-{}", rng.next_u64());
        let outcome = put(store, &key, &value).await;
        let held = model.entry(key).or_insert_with(|| vec![None]);
        match outcome {
            Ok(_) => *held = vec![Some(value)],
            Err(MetadataError::UnknownOutcome(_)) => held.push(Some(value)),
            Err(MetadataError::Unavailable(_)) => {}
            Err(other) => panic!("{other:?}"),
        }
        if rng.below(8) == 0 {
            let kind = match rng.below(3) {
                0 => FaultKind::SyncError,
                1 => FaultKind::WriteError,
                _ => FaultKind::NoSpace,
            };
            machine.disk.fail_next(kind, rng.below(6));
        }
    }
}

#[tokio::test]
async fn acknowledged_changes_survive_any_crash_and_unknown_ones_go_either_way() {
    for seed in 0..40 {
        let rng = SeededRng::new(seed);
        let machine = Machine::new();
        let mut model = Model::new();
        let mut last = Revision(0);
        for _ in 0..6 {
            let store = machine.open().await.unwrap();
            let page = store.scan("clusters/", None, 1000).await.unwrap();
            assert!(
                page.revision >= last,
                "seed {seed}: revisions never go back"
            );
            for (key, held) in &mut model {
                let now = read(&store, key).await.unwrap();
                assert!(
                    held.contains(&now),
                    "seed {seed}: {key} is {now:?}, not one of {held:?}"
                );
                *held = vec![now];
            }
            write_at_random(&machine, &store, &rng, &mut model).await;
            if let Ok(page) = store.scan("clusters/", None, 1000).await {
                last = page.revision;
            }
            // No process outlives its machine: the crash comes first.
            machine.disk.crash(&rng);
            drop(store);
        }
    }
}

/// The first sync of a commit is about nothing that the commit changes, a later one is.
#[tokio::test]
async fn after_a_failed_sync_nothing_is_read_or_written_until_a_restart() {
    let mut unknown = 0;
    for syncs_before in 0..3 {
        let machine = Machine::new();
        let store = machine.open().await.unwrap();
        put(&store, "clusters/a", "old").await.unwrap();
        machine.disk.fail_next(FaultKind::SyncError, syncs_before);
        let mut outcome = put(&store, "clusters/a", "new").await;
        if outcome.is_ok() {
            outcome = put(&store, "clusters/a", "newer").await;
        }
        match outcome {
            Err(MetadataError::UnknownOutcome(_)) => unknown += 1,
            Err(MetadataError::Unavailable(_)) => {}
            other => panic!("{other:?}"),
        }
        for _ in 0..2 {
            let read = read(&store, "clusters/a").await;
            assert!(
                matches!(read, Err(MetadataError::Unavailable(_))),
                "{read:?}"
            );
            let write = put(&store, "clusters/b", "x").await;
            assert!(
                matches!(write, Err(MetadataError::Unavailable(_))),
                "{write:?}"
            );
        }
        machine.disk.crash(&SeededRng::new(3));
        let store = machine.open().await.unwrap();
        let value = read(&store, "clusters/a").await.unwrap();
        assert!(matches!(value.as_deref(), Some("old" | "new" | "newer")));
    }
    assert!(unknown > 0, "no sync of the commit itself failed");
}

#[tokio::test]
async fn a_full_disk_refuses_changes_and_heals_when_there_is_room() {
    let machine = Machine::new();
    let store = machine.open().await.unwrap();
    put(&store, "clusters/a", "old").await.unwrap();
    machine.disk.set_space_bytes(0);
    let large = "x".repeat(1 << 20);
    let refused = put(&store, "clusters/a", &large).await;
    assert!(
        matches!(
            refused,
            Err(MetadataError::Unavailable(_) | MetadataError::UnknownOutcome(_))
        ),
        "{refused:?}"
    );
    machine.disk.set_space_bytes(u64::MAX);
    put(&store, "clusters/b", "1").await.unwrap();
    let value = read(&store, "clusters/a").await.unwrap().unwrap();
    assert!(value == "old" || value == large);
}

#[tokio::test]
async fn a_crash_during_creation_leaves_a_store_that_opens() {
    for seed in 0..10 {
        for writes in 0..12 {
            let machine = Machine::new();
            machine.disk.fail_next(FaultKind::WriteError, writes);
            let opened = machine.open().await;
            machine.disk.crash(&SeededRng::new(seed));
            drop(opened);
            let store = machine.open().await.unwrap();
            assert_eq!(read(&store, "clusters/a").await, Ok(None));
        }
    }
}

#[tokio::test]
async fn a_file_that_is_no_store_is_damaged() {
    for content in [
        &b""[..],
        b"x",
        b"not a store at all",
        &[0; 8192],
        &[0xff; 70_000],
    ] {
        let machine = Machine::new();
        machine.disk.write_atomic(Path::new(PATH), content).unwrap();
        let error = machine.open().await.unwrap_err();
        assert!(matches!(error, MetadataError::Damaged { .. }), "{error:?}");
    }
}

/// Any single flipped bit is found when the file is opened, if it is verified, or else when the
/// value is read; no other value is ever returned, and nothing panics. Without verification a
/// flipped bit in a key can hide it.
#[tokio::test]
async fn flipped_bits_are_damage_and_never_another_value() {
    for verify_bytes_max in [u64::MAX, 0] {
        let mut machine = Machine::new();
        machine.options.verify_bytes_max = verify_bytes_max;
        let store = machine.open().await.unwrap();
        for name in 0..20 {
            let value = format!("value {name}");
            put(&store, &keys::cluster(&name.to_string()), &value)
                .await
                .unwrap();
        }
        store.close().await;
        let pristine = machine.disk.read(Path::new(PATH)).unwrap();
        let rng = SeededRng::new(9);
        let mut damaged = 0;
        for _ in 0..150 {
            machine
                .disk
                .write_atomic(Path::new(PATH), &pristine)
                .unwrap();
            let len = u64::try_from(pristine.len()).unwrap();
            let bit = u8::try_from(rng.below(8)).unwrap();
            machine
                .disk
                .flip_bit(Path::new(PATH), rng.below(len), bit)
                .unwrap();
            if is_damage_or_the_truth(&machine).await {
                damaged += 1;
            }
        }
        assert!(damaged > 0, "no flipped bit was noticed");
    }
}

/// Opens a file with a flipped bit and reads everything: whether damage was reported.
async fn is_damage_or_the_truth(machine: &Machine) -> bool {
    let store = match machine.open().await {
        Ok(store) => store,
        Err(MetadataError::Damaged { .. }) => return true,
        Err(other) => panic!("{other:?}"),
    };
    let mut damaged = false;
    for name in 0..20 {
        match read(&store, &keys::cluster(&name.to_string())).await {
            Ok(Some(value)) => assert_eq!(value, format!("value {name}")),
            Ok(None) => {
                assert_eq!(machine.options.verify_bytes_max, 0, "{name} is hidden");
                damaged = true;
            }
            Err(MetadataError::Damaged { .. }) => damaged = true,
            Err(other) => panic!("{other:?}"),
        }
    }
    store.close().await;
    damaged
}
