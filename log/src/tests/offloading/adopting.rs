//! Objects that are there already, and are taken instead of being written again.

use aquifer_cold::location::Location;
use aquifer_ledger::ledger_metadata::LedgerInfo;
use aquifer_ledger::objects::PlannedObject;
use aquifer_ledger::offload::StoredObject;
use aquifer_model::id::{BrokerId, CreationToken};

use super::*;
use crate::offload::adopt::adopt_doubtful;
use crate::offload::audit::audit;

/// Writes of objects since that was asked last.
fn count_writes(world: &World) -> usize {
    let writes = [Op::Put, Op::Begin, Op::Part, Op::Complete];
    writes.into_iter().map(|op| world.cold.count(op)).sum()
}

impl World {
    /// A ledger in an object, and an owner that has not looked at it.
    async fn stored(&self) -> (Owner, LedgerInfo, AttemptId, StoredObject) {
        let owner = self.owner(10).await;
        offload_all(&owner).await;
        owner.log.close().await.unwrap();
        let heir = Owner::open(self.process(), options(10)).await;
        let ledger = heir.log.stats().ledgers[0].ledger;
        let info = ledger_metadata::load_existing(&self.world.store, ledger).await;
        let info = info.unwrap();
        let Some(Offload::Stored {
            attempt, object, ..
        }) = info.offload.clone()
        else {
            panic!("it is offloaded");
        };
        let _ = count_writes(self);
        (heir, info, attempt, object)
    }

    /// The record of a ledger becomes what it was before its offload.
    async fn roll_back(&self, info: &LedgerInfo) -> LedgerInfo {
        let before = LedgerInfo {
            offload: None,
            ..info.clone()
        };
        let changed = self.world.store.commit(Transaction {
            partition: info.home.clone(),
            guards: Vec::new(),
            operations: vec![before.put(Expect::Any)],
        });
        let revision = changed.await.unwrap();
        LedgerInfo { revision, ..before }
    }

    /// Every ledger is in its object alone, and is read.
    async fn check_served(&self, owner: &Owner, name: &str) {
        offload_all(owner).await;
        assert_eq!(count_writes(self), 0, "it is not written again");
        assert_eq!(self.cold.names(), [name]);
        self.pass(LAG);
        drop_copies(owner, owner.log.end(), 0).await;
        assert_eq!(self.copies(), 0);
        let last = Owner::open(self.process(), options(10)).await;
        assert_eq!(bodies(&last.read_all().await), large_bodies(0..10));
    }
}

async fn place_of(owner: &Owner) -> Arc<Location> {
    let tier = owner.ctx.cold.as_ref().unwrap();
    tier.locations.primary().await.unwrap()
}

/// Its process has died after the last byte was written and before the ledger named the object.
#[tokio::test(start_paused = true)]
async fn what_an_attempt_had_written_whole_before_its_process_died_is_taken() {
    for is_damaged in [false, true] {
        let world = World::new();
        let (owner, info, attempt, object) = world.stored().await;
        let before = world.roll_back(&info).await;
        let place = (object.location, object.name.clone());
        let worker = BrokerId([9; 16]);
        let planned = PlannedObject::new(attempt, &before, place, worker, (1, 1_000_000));
        objects::claim(&world.world.store, &planned).await.unwrap();
        if is_damaged {
            world.cold.change(&object.name, |bytes| bytes[5_000] ^= 1);
        }
        world.reap(&owner).await;
        world.pass(Duration::from_secs(61));
        let reaped = world.reap(&owner).await;
        assert!(world.world.store.keys("oc/").is_empty());
        if !is_damaged {
            assert_eq!((reaped.adopted, reaped.given_up), (1, 0));
            world.check_served(&owner, &object.name).await;
            continue;
        }
        // What is not whole goes, and the ledger is written again.
        assert_eq!((reaped.adopted, reaped.given_up), (0, 1));
        offload_all(&owner).await;
        assert!(count_writes(&world) > 0);
        world.pass(Duration::from_secs(3 * 3600));
        world.reap(&owner).await;
        assert_eq!(world.cold.names().len(), 1);
        assert_ne!(world.cold.names(), [object.name]);
    }
}

/// Metadata of a snapshot from before the offload (H14).
#[tokio::test(start_paused = true)]
async fn what_restored_metadata_does_not_know_is_taken_after_an_audit() {
    let world = World::new();
    let (owner, info, _, object) = world.stored().await;
    let (store, place) = (&world.world.store, place_of(&owner).await);
    let before = world.roll_back(&info).await;
    let audited = audit(store, &place, u64::MAX).await.unwrap();
    assert_eq!(audited.doubtful, std::slice::from_ref(&object.name));
    let adopt = || adopt_doubtful(store, &place, &audited, 7);

    // Another ledger that has the same id now, and an object that is not whole.
    let other = LedgerInfo {
        token: CreationToken([9; 16]),
        ..before.clone()
    };
    world.roll_back(&other).await;
    assert_eq!(adopt().await.unwrap(), Vec::<String>::new());
    world.roll_back(&before).await;
    let flip = || world.cold.change(&object.name, |bytes| bytes[5_000] ^= 1);
    flip();
    assert_eq!(adopt().await.unwrap(), Vec::<String>::new());
    flip();
    // The store does not answer: nothing is known.
    world.cold.judge(|_, _| Some(Fault::Fails));
    assert!(adopt().await.is_err());
    world.cold.heal();

    assert_eq!(adopt().await.unwrap(), std::slice::from_ref(&object.name));
    assert_eq!(adopt().await.unwrap(), Vec::<String>::new(), "it has it");
    let after = audit(store, &place, u64::MAX).await.unwrap();
    assert_eq!((after.stored, after.doubtful.len()), (1, 0));
    world.check_served(&owner, &object.name).await;
}
