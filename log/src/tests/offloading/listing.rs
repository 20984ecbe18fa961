//! Audits by listing: what they find, and that they fail closed.

use aquifer_cold::location::Location;
use aquifer_cold::object::name_of;
use aquifer_cold::store::ColdStore;
use aquifer_ledger::ledger_metadata::LedgerInfo;
use aquifer_model::id::CreationToken;

use super::*;
use crate::offload::audit::{Audit, audit, condemn};

/// Everything is old enough to be judged.
const ALL_OLD: u64 = u64::MAX;

impl World {
    async fn place(&self, owner: &Owner) -> Arc<Location> {
        let tier = owner.ctx.cold.as_ref().unwrap();
        tier.locations.primary().await.unwrap()
    }

    async fn audit(&self, owner: &Owner) -> Result<Audit, LogError> {
        let place = self.place(owner).await;
        audit(&self.world.store, &place, ALL_OLD).await
    }

    async fn object(&self, name: &str) -> Bytes {
        let bytes = self.cold.size(name).await.unwrap();
        self.cold.get(name, 0..bytes).await.unwrap()
    }

    /// Ledgers are deleted with their objects, and the objects come back: their store has
    /// forgotten the deletions. Answers their names.
    async fn with_orphans(&self, ledgers: usize) -> (Owner, Vec<String>) {
        let owner = self.owner(10 * ledgers as u64 + 10).await;
        offload_all(&owner).await;
        let mut objects = Vec::new();
        for name in self.cold.names() {
            let bytes = self.object(&name).await;
            objects.push((name, bytes));
        }
        let end = owner.log.stats().ledgers[ledgers].first_index;
        owner.log.trim(end, KEEP_NOTHING).await.unwrap();
        sweep_intents(&owner.ctx.ledgers).await.unwrap();
        assert_eq!(self.reap(&owner).await.deleted, ledgers);
        let left = self.cold.names();
        let mut orphans = Vec::new();
        for (name, bytes) in objects {
            if !left.contains(&name) {
                self.cold.put_new(&name, bytes).await.unwrap();
                orphans.push(name);
            }
        }
        (owner, orphans)
    }
}

fn orphans(audit: &Audit) -> Vec<String> {
    let names = audit.orphans.iter().map(|orphan| orphan.name.clone());
    names.collect()
}

#[tokio::test(start_paused = true)]
async fn what_no_record_names_is_found_and_goes_by_the_reaper() {
    let world = World::new();
    let (owner, names) = world.with_orphans(2).await;
    // Nothing that came to be lately is judged.
    let place = world.place(&owner).await;
    let young = audit(&world.world.store, &place, 0).await.unwrap();
    assert_eq!((young.young, young.orphans.len()), (2, 0));
    let found = world.audit(&owner).await.unwrap();
    assert_eq!(orphans(&found), names);
    assert_eq!((found.objects, found.stored), (3, 1));
    assert!(found.absent.is_empty() && found.doubtful.is_empty());
    let store = &world.world.store;
    let found = [found];
    assert_eq!(condemn(store, &found).await.unwrap(), [2]);
    // A second tool at the same time.
    assert_eq!(condemn(store, &found).await.unwrap(), [0]);
    let after = world.audit(&owner).await.unwrap();
    assert_eq!((after.passing, after.orphans.len()), (2, 0));
    world.check_recorded("condemned").await;
    assert_eq!(world.reap(&owner).await.deleted, 2);
    assert_eq!(world.cold.names().len(), 1);
    assert_eq!(bodies(&owner.read_all().await), large_bodies(20..30));
}

#[tokio::test(start_paused = true)]
async fn what_is_used_is_no_orphan_at_any_step() {
    let world = World::new();
    let owner = world.owner(30).await;
    let mut at_request = 0;
    loop {
        // Stops in the middle of an attempt, of the reaper or of none.
        let mut seen = 0;
        world.cold.judge(move |_, _| {
            seen += 1;
            (seen == at_request + 1).then_some(Fault::AnswerLost)
        });
        let left = offload(&owner, owner.log.end()).await;
        world.cold.heal();
        let found = world.audit(&owner).await.unwrap();
        assert_eq!(orphans(&found), Vec::<String>::new(), "at {at_request}");
        assert!(found.absent.is_empty(), "at {at_request}: {found:?}");
        assert_eq!(found.doubtful, Vec::<String>::new(), "at {at_request}");
        if left == Offloading::default() {
            break;
        }
        at_request += 1;
    }
    world.pass(LAG);
    drop_copies(&owner, owner.log.end(), 0).await;
    owner.log.trim(owner.log.end(), KEEP_NOTHING).await.unwrap();
    sweep_intents(&owner.ctx.ledgers).await.unwrap();
    let found = world.audit(&owner).await.unwrap();
    assert_eq!((found.orphans.len(), found.absent.len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn ledgers_without_their_objects_are_told() {
    let world = World::new();
    let owner = world.owner(30).await;
    offload_all(&owner).await;
    let names = world.cold.names();
    world.cold.lose(&names[0]);
    world.cold.change(&names[1], |bytes| bytes.truncate(100));
    let found = world.audit(&owner).await.unwrap();
    let mut absent: Vec<_> = found.absent.iter().map(|a| (&a.name, a.bytes)).collect();
    absent.sort();
    assert_eq!(absent, [(&names[0], None), (&names[1], Some(100))]);
    assert_eq!((found.stored, found.orphans.len()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_whole_says_nothing() {
    let world = World::new();
    let (owner, _) = world.with_orphans(2).await;
    // Each request fails once, or lies.
    for fault in [Fault::Fails, Fault::Denied] {
        let mut at_request = 0;
        loop {
            let mut seen = 0;
            world.cold.judge(move |_, _| {
                seen += 1;
                (seen == at_request + 1).then_some(fault)
            });
            let found = world.audit(&owner).await;
            world.cold.heal();
            if found.is_ok() {
                assert!(at_request >= 3, "an audit has requests: {at_request}");
                break;
            }
            at_request += 1;
        }
    }
    // The place of another cluster.
    let marker = "test/location";
    world.cold.change(marker, |bytes| bytes[30] ^= 1);
    assert!(world.audit(&owner).await.is_err());
    world.cold.change(marker, |bytes| bytes[30] ^= 1);
    // A record that cannot be read may name any object.
    let partition = keys::partition_of_topic(owner.cell.topic());
    let store = &world.world.store;
    for key in [
        keys::ledger(LedgerId(1_000_000)),
        keys::dying_object(AttemptId([0; 16])),
        keys::upload(AttemptId([0; 16])),
    ] {
        let garbage = Bytes::from_static(b"no record");
        let put = store.put(&partition, &key, garbage, Expect::Any);
        put.await.unwrap();
        assert!(world.audit(&owner).await.is_err(), "{key}");
        let forget = Transaction {
            partition: partition.clone(),
            guards: Vec::new(),
            operations: vec![Operation::Delete {
                key,
                expect: Expect::Any,
            }],
        };
        store.commit(forget).await.unwrap();
    }
    assert_eq!(world.audit(&owner).await.unwrap().orphans.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_what_its_name_says_is_never_deleted() {
    let world = World::new();
    let (owner, names) = world.with_orphans(1).await;
    let bytes = world.object(&names[0]).await;
    let cold = &world.cold;
    let put = |name: String, bytes: Bytes| async move { cold.put_new(&name, bytes).await };
    let other = name_of("test", "a/b", LedgerId(1), AttemptId([7; 16]));
    put(other, bytes.clone()).await.unwrap();
    put("test/data/note.aqo".to_owned(), bytes).await.unwrap();
    world.cold.change(&names[0], |bytes| bytes.truncate(500));
    let found = world.audit(&owner).await.unwrap();
    assert_eq!((found.orphans.len(), found.doubtful.len()), (0, 3));
    // What belongs to others is not even looked at.
    let foreign = put("other/data/x.aqo".to_owned(), Bytes::new()).await;
    foreign.unwrap();
    assert_eq!(world.audit(&owner).await.unwrap(), found);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_deleted_by_metadata_that_is_older_or_knows_too_little() {
    let world = World::new();
    let (owner, _) = world.with_orphans(2).await;
    let found = world.audit(&owner).await.unwrap();
    assert_eq!(found.objection(), None);
    // The counter of ledgers of a snapshot from before.
    let store = &world.world.store;
    let counter = keys::id_range(keys::IDS_LEDGER);
    let older = record::encode(v1::IdRangeRecord { next: 1 });
    let put = store.put(keys::CLUSTER_PARTITION, &counter, older, Expect::Any);
    put.await.unwrap();
    let sound = found;
    let found = world.audit(&owner).await.unwrap();
    assert!(found.is_rolled_back);
    // Also of a place that does not show it, and by objects that are not judged.
    let place = world.place(&owner).await;
    let young = audit(store, &place, 0).await.unwrap();
    assert!(young.is_rolled_back && young.orphans.is_empty());
    let refused = condemn(store, &[sound, young]).await;
    assert!(matches!(refused, Err(LogError::Invalid(_))), "{refused:?}");
    assert!(store.keys("od/").is_empty());

    let many = World::new();
    let (owner, names) = many.with_orphans(21).await;
    let found = many.audit(&owner).await.unwrap();
    assert_eq!(found.orphans.len(), 21);
    let refused = condemn(&many.world.store, &[found]).await;
    assert!(matches!(refused, Err(LogError::Invalid(_))), "{refused:?}");
    for name in names {
        assert!(many.cold.size(&name).await.is_ok());
    }
}

/// Metadata of a snapshot from before the offload: the object may be all that there is.
#[tokio::test(start_paused = true)]
async fn the_object_of_a_ledger_that_is_in_no_other_is_doubtful() {
    let world = World::new();
    let owner = world.owner(10).await;
    offload_all(&owner).await;
    let store = &world.world.store;
    let ledger = owner.log.stats().ledgers[0].ledger;
    let rewrite = |change: fn(&mut LedgerInfo)| async move {
        let mut info = ledger_metadata::load_existing(store, ledger).await.unwrap();
        change(&mut info);
        let changed = store.commit(Transaction {
            partition: info.home.clone(),
            guards: Vec::new(),
            operations: vec![info.put(Expect::Any)],
        });
        changed.await.unwrap();
    };
    rewrite(|info| info.offload = None).await;
    let found = world.audit(&owner).await.unwrap();
    assert_eq!((found.orphans.len(), found.doubtful.len()), (0, 1));
    rewrite(|info| {
        let attempt = AttemptId([7; 16]);
        info.offload = Some(Offload::Claimed { attempt });
    })
    .await;
    let found = world.audit(&owner).await.unwrap();
    assert_eq!((found.orphans.len(), found.doubtful.len()), (0, 1));
    // Another ledger that got the same id.
    rewrite(|info| info.token = CreationToken([9; 16])).await;
    let found = world.audit(&owner).await.unwrap();
    assert_eq!((found.orphans.len(), found.doubtful.len()), (1, 0));
    // It is the old one again by now.
    rewrite(|info| info.token = CreationToken([8; 16])).await;
    let mut changed = found;
    changed.orphans[0].token = CreationToken([8; 16]);
    assert_eq!(condemn(store, &[changed]).await.unwrap(), [0]);
}

/// A record that appears after the audit keeps its object.
#[tokio::test(start_paused = true)]
async fn what_a_record_names_by_now_is_left_alone() {
    let world = World::new();
    let (owner, names) = world.with_orphans(1).await;
    let mut found = world.audit(&owner).await.unwrap();
    // As if the ledger that is there now had not been seen.
    let info =
        ledger_metadata::load_existing(&world.world.store, owner.log.stats().ledgers[0].ledger);
    let info = info.await.unwrap();
    let Some(Offload::Stored {
        attempt, object, ..
    }) = info.offload
    else {
        panic!("it is offloaded");
    };
    found.orphans[0].attempt = attempt;
    found.orphans[0].ledger = info.id;
    found.orphans[0].name = object.name;
    assert_eq!(condemn(&world.world.store, &[found]).await.unwrap(), [0]);
    world.reap(&owner).await;
    assert_eq!(world.cold.names().len(), 1 + names.len());
}
