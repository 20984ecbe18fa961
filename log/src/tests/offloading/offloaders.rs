//! Brokers that leave their ledgers to offloaders.

use aquifer_ledger::objects::tasks;
use aquifer_model::id::BrokerId;
use aquifer_runtime::task::TaskGroup;

use super::*;
use crate::offload::offloader::{Looked, Rests, look};

/// A world in which brokers leave ledgers to offloaders.
fn delegating() -> World {
    let mut world = World::new();
    world.settings.leaves_to_offloaders = true;
    world
}

/// A process that offloads what brokers leave.
fn offloader(world: &World) -> Arc<LogContext> {
    over_cold(world.world.process(), &world.cold, offload_settings())
}

async fn look_once(ctx: &LogContext) -> Looked {
    let (tasks, mut rests) = (TaskGroup::new("test"), Rests::default());
    let tier = ctx.cold.as_ref().unwrap();
    let looked = look(ctx, tier, &mut rests, &tasks.shutdown_token()).await;
    looked.unwrap()
}

/// Asks for everything, and waits until it is written down.
async fn leave_all(world: &World, owner: &Owner, ledgers: usize) {
    let end = owner.log.end();
    while world.world.store.keys("offloads/").len() < ledgers {
        let left = owner.log.request_offload(end).await.unwrap();
        assert_eq!(left.failure, None);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_leaves_ledgers_to_offloaders_writes_no_object() {
    let world = delegating();
    let owner = world.owner(40).await;
    leave_all(&world, &owner, 4).await;
    world.pass(Duration::from_secs(3600));
    owner.log.care_for_offload(Index(0), Index(0));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(world.cold.names().is_empty() && world.cold.unfinished().is_empty());
    assert!(world.world.store.keys("oc/").is_empty());

    let looked = look_once(&offloader(&world)).await;
    assert_eq!((looked.found, looked.stored, looked.failed), (4, 4, 0));
    assert!(world.world.store.keys("offloads/").is_empty());
    assert_eq!(world.cold.names().len(), 4);
    // The owner finds that, and lets the copies go after their lag.
    offload_all(&owner).await;
    world.pass(LAG);
    drop_copies(&owner, owner.log.end(), 0).await;
    let heir = Owner::open(world.process(), options(10)).await;
    assert_eq!(bodies(&heir.read_all().await), large_bodies(0..40));
}

/// What an offloader had claimed that died is done by another once its lease is gone, and not
/// before (H22).
#[tokio::test(start_paused = true)]
async fn an_offloader_that_dies_is_replaced_once_its_lease_is_gone() {
    let world = delegating();
    let owner = world.owner(10).await;
    leave_all(&world, &owner, 1).await;
    let first = offloader(&world);
    let store = &world.world.store;
    let worker: BrokerId = first.cold.as_ref().unwrap().worker();
    let session = store.open_session(Duration::from_secs(10)).await.unwrap();
    let (key, said) = (keys::offloader(worker), tasks::announcement("test"));
    session.put(&key, said, Expect::Any).await.unwrap();
    // It dies while the store takes its time.
    world
        .cold
        .judge(|op, _| (op == Op::Part).then_some(Fault::Hangs));
    let died = tokio::time::timeout(Duration::from_secs(5), look_once(&first)).await;
    assert!(died.is_err(), "{died:?}");
    world.cold.heal();
    let second = offloader(&world);
    for _ in 0..3 {
        let looked = look_once(&second).await;
        assert_eq!((looked.found, looked.stored, looked.failed), (1, 0, 0));
        world.reap(&owner).await;
        world.pass(Duration::from_secs(61));
        world.reap(&owner).await;
        assert_eq!(store.keys("oc/").len(), 1, "it is announced");
    }
    session.close().await.unwrap();
    world.reap(&owner).await;
    world.pass(Duration::from_secs(61));
    world.reap(&owner).await;
    assert!(store.keys("oc/").is_empty());
    let looked = look_once(&second).await;
    assert_eq!((looked.found, looked.stored, looked.failed), (1, 1, 0));
    offload_all(&owner).await;
    assert_eq!(bodies(&owner.read_all().await), large_bodies(0..10));
}

#[tokio::test(start_paused = true)]
async fn of_two_offloaders_that_take_one_task_one_commits() {
    let world = delegating();
    let owner = world.owner(40).await;
    leave_all(&world, &owner, 4).await;
    let (one, two) = (offloader(&world), offloader(&world));
    let (first, second) = tokio::join!(look_once(&one), look_once(&two));
    assert_eq!(first.stored + second.stored, 4, "{first:?} {second:?}");
    assert_eq!(first.failed + second.failed, 0, "{first:?} {second:?}");
    for ctx in [&one, &two] {
        look_once(ctx).await;
    }
    assert!(world.world.store.keys("offloads/").is_empty());
    world.check_recorded("two offloaders").await;
    offload_all(&owner).await;
    world.pass(Duration::from_secs(3 * 3600));
    world.reap(&owner).await;
    assert_eq!(world.cold.names().len(), 4);
    assert_eq!(bodies(&owner.read_all().await), large_bodies(0..40));
}

#[tokio::test(start_paused = true)]
async fn a_task_whose_ledger_is_gone_ends() {
    let world = delegating();
    let owner = world.owner(20).await;
    leave_all(&world, &owner, 2).await;
    owner.log.close().await.unwrap();
    owner.cell.delete().await.unwrap();
    sweep_intents(&owner.ctx.ledgers).await.unwrap();
    let looked = look_once(&offloader(&world)).await;
    assert_eq!((looked.found, looked.stored, looked.failed), (2, 0, 0));
    assert!(world.world.store.keys("offloads/").is_empty());
    assert!(world.cold.names().is_empty());
}
