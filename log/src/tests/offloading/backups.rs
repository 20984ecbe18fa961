//! Backups keep objects, and topics come back from them: in the same cluster, in another one, and
//! when the process that restores dies at any step.

use aquifer_ledger::testing::{Blow, Fuse};
use aquifer_model::backup::{BackupFile, BackupScope, ForgetBackup, RestoreTopic};
use aquifer_model::id::BackupId;
use aquifer_proto::v1::backup_item::Item;

use super::*;
use crate::backup::{self, BackedUpTopic};
use crate::testing::over_cold_of;

const URL: &str = "mem://1";

/// A backup of the topic of an owner.
pub(super) struct Backup {
    pub(super) id: BackupId,
    pub(super) files: Vec<BackupFile>,
    pub(super) last: LedgerId,
}

fn cursor_records() -> Vec<Bytes> {
    vec![Bytes::from_static(b"one"), Bytes::from_static(b"two")]
}

pub(super) async fn begin(owner: &Owner) -> BackupId {
    let begun = backup::begin(&owner.ctx, URL, BackupScope::Cluster);
    begun.await.unwrap().id
}

pub(super) async fn capture(owner: &Owner, id: BackupId) -> Backup {
    let end = owner.log.seal_for_backup(owner.log.end()).await.unwrap();
    while offload(owner, end).await != Offloading::default() {}
    let found = owner.log.capture(end).await.unwrap();
    let head = v1::BackupTopicHead {
        topic: topic().to_string(),
        incarnation: Bytes::copy_from_slice(&owner.cell.incarnation().0),
        key_hash: v1::KeyHash::Murmur3.into(),
        totals: Some(found.totals.into()),
        ..v1::BackupTopicHead::default()
    };
    let mut items = vec![Item::Head(head)];
    items.extend(found.places.into_iter().map(Item::Location));
    items.extend(found.ledgers.into_iter().map(Item::Ledger));
    items.extend(cursor_records().into_iter().map(Item::Cursors));
    Backup {
        id,
        files: backup::write(&owner.ctx, id, items).await.unwrap(),
        last: LedgerId(found.totals.last_ledger),
    }
}

pub(super) async fn back_up(owner: &Owner) -> Backup {
    let id = begin(owner).await;
    let backup = capture(owner, id).await;
    backup::finish(&owner.ctx, id).await.unwrap();
    backup
}

pub(super) async fn delete(world: &World, owner: &Owner) {
    owner.log.close().await.unwrap();
    owner.cell.delete().await.unwrap();
    sweep_intents(&owner.ctx.ledgers).await.unwrap();
    world.reap(owner).await;
}

pub(super) fn wanted(backup: &Backup) -> RestoreTopic {
    RestoreTopic {
        url: URL.to_owned(),
        cluster: "test".to_owned(),
        backup: backup.id,
        topic: topic(),
        as_topic: None,
        files: backup.files.clone(),
        last_ledger: backup.last,
        trim_after_ms: None,
        prepare: false,
    }
}

pub(super) async fn read(
    ctx: &Arc<LogContext>,
    backup: &Backup,
) -> Result<BackedUpTopic, LogError> {
    backup::read_topic(ctx, &wanted(backup)).await
}

/// What a broker does.
pub(super) async fn restore(ctx: &Arc<LogContext>, backup: &Backup) -> Result<(), LogError> {
    let source = read(ctx, backup).await?;
    let record = source.record.clone();
    let restoring = RestoringTopic::begin(ctx.clone(), &topic(), Vec::new(), record).await?;
    backup::reserve_up_to(ctx, backup.last).await?;
    restoring.put_ledgers(&source.ledgers).await?;
    restoring
        .write_cursors(ctx, options(10), &source.cursors)
        .await?;
    restoring.finish().await
}

/// The records of the cursor log, as a load reads them.
async fn cursors(ctx: &Arc<LogContext>) -> Vec<Bytes> {
    let cell = TopicRecordCell::load(ctx.clone(), &topic(), Vec::new()).await;
    let cell = cell.unwrap().unwrap();
    let log = TopicLog::open(ctx.clone(), cell, LogKind::Cursors, options(10)).await;
    bodies(&read_from(&log.unwrap(), Index(0)).await)
}

pub(super) fn forget(backup: &Backup) -> ForgetBackup {
    ForgetBackup {
        url: URL.to_owned(),
        backup: Some(backup.id),
        unfinished: false,
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_deleted_comes_back_as_long_as_a_backup_keeps_it() {
    let world = World::new();
    let owner = world.owner(40).await;
    let before = owner.read_all().await;
    let backup = back_up(&owner).await;
    delete(&world, &owner).await;
    let reaped = world.reap(&owner).await;
    assert_eq!((reaped.kept, reaped.deleted), (4, 0));
    assert_eq!((world.cold.names().len(), world.copies()), (4, 0));

    let ctx = world.process();
    restore(&ctx, &backup).await.unwrap();
    let heir = Owner::open(world.process(), options(10)).await;
    assert_eq!(heir.read_all().await, before);
    assert_ne!(heir.cell.incarnation(), owner.cell.incarnation());
    assert_eq!(cursors(&ctx).await, cursor_records());
    for prefix in ["restores/", "od/", "g/"] {
        assert!(world.world.store.keys(prefix).is_empty(), "{prefix}");
    }
    // It goes on behind its end, with ledgers above all that were.
    heir.append_all(100..103).await;
    let ledgers = heir.log.stats().ledgers;
    assert!(ledgers.last().unwrap().ledger > backup.last);
    // Restored once more, the topic that is there stays.
    let again = restore(&ctx, &backup).await;
    assert_eq!(again, Err(LogError::AlreadyExists));

    // Without the backup the objects stay as long as the topic, and go with it.
    backup::forget(&ctx, &forget(&backup)).await.unwrap();
    assert_eq!(world.reap(&heir).await.deleted, 0);
    assert_eq!(heir.read_all().await[..before.len()], before);
    delete(&world, &heir).await;
    assert!(world.cold.names().is_empty(), "{:?}", world.cold.names());
}

#[tokio::test(start_paused = true)]
async fn what_no_backup_names_goes() {
    let world = World::new();
    let owner = world.owner(20).await;
    let backup = back_up(&owner).await;
    // Came after the backup.
    owner.append_all(20..30).await;
    owner.log.roll().await.unwrap();
    offload_all(&owner).await;
    assert_eq!(world.cold.names().len(), 3);
    delete(&world, &owner).await;
    assert_eq!(world.cold.names().len(), 2);
    // A running one keeps what dies while it runs.
    let other = world.owner(10).await;
    offload_all(&other).await;
    let running = begin(&other).await;
    backup::forget(&owner.ctx, &forget(&backup)).await.unwrap();
    delete(&world, &other).await;
    assert_eq!(world.cold.names().len(), 1, "those of the first are gone");
    let unfinished = ForgetBackup {
        backup: Some(running),
        ..forget(&backup)
    };
    let refused = backup::forget(&owner.ctx, &unfinished).await;
    assert!(matches!(refused, Err(LogError::Invalid(_))), "{refused:?}");
    // It was given up by its tool a week ago.
    world.pass(Duration::from_secs(8 * 24 * 3600));
    world.reap(&other).await;
    assert!(world.cold.names().is_empty());
    let finished = backup::finish(&owner.ctx, running).await;
    assert!(
        matches!(finished, Err(LogError::Invalid(_))),
        "{finished:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn another_cluster_reads_the_objects_and_never_deletes_them() {
    let world = World::new();
    let owner = world.owner(40).await;
    let before = owner.read_all().await;
    let backup = back_up(&owner).await;
    let other = TestWorld::new(3);
    let process = || over_cold_of("other", other.process(), &world.cold, offload_settings());
    let ctx = process();
    restore(&ctx, &backup).await.unwrap();
    let heir = Owner::open(process(), options(10)).await;
    assert_eq!(heir.read_all().await, before);
    // Its own objects go elsewhere.
    heir.append_all(100..105).await;
    heir.log.roll().await.unwrap();
    offload_all(&heir).await;
    let own: Vec<String> = world
        .cold
        .names()
        .into_iter()
        .filter(|n| n.starts_with("other/"))
        .collect();
    assert_eq!((own.len(), world.cold.names().len()), (1, 5));
    heir.log.close().await.unwrap();
    heir.cell.delete().await.unwrap();
    sweep_intents(&ctx.ledgers).await.unwrap();
    let tier = heir.ctx.cold.as_ref().unwrap();
    reap(&heir.ctx, tier, |_| false).await.unwrap();
    assert!(other.store.keys("od/").is_empty());
    assert_eq!(world.cold.names().len(), 4, "those of the first cluster");
    assert_eq!(owner.read_all().await, before);
    // Another cluster of the same name does not take the place for its own.
    let third = TestWorld::new(1);
    let same = over_cold(third.process(), &world.cold, offload_settings());
    restore(&same, &backup).await.unwrap();
    let begun = backup::begin(&same, URL, BackupScope::Cluster).await;
    assert!(begun.is_err(), "{begun:?}");
}

#[tokio::test(start_paused = true)]
async fn ledgers_of_others_are_neither_replaced_nor_deleted() {
    let world = World::new();
    let owner = world.owner(30).await;
    let backup = back_up(&owner).await;
    let other = TestWorld::new(3);
    let cold = MemoryColdStore::default();
    let busy = Owner::open(
        over_cold(other.process(), &cold, offload_settings()),
        options(1),
    )
    .await;
    busy.append_all(0..3).await;
    busy.log.close().await.unwrap();
    // Another topic has the ids.
    let name: TopicName = "public/default/other".parse().unwrap();
    let ctx = over_cold_of("other", other.process(), &world.cold, offload_settings());
    let source = read(&ctx, &backup).await.unwrap();
    let begin =
        |record: v1::TopicRecord| RestoringTopic::begin(ctx.clone(), &name, Vec::new(), record);
    let restoring = begin(source.record.clone()).await.unwrap();
    let refused = restoring.put_ledgers(&source.ledgers).await;
    assert!(matches!(refused, Err(LogError::Invalid(_))), "{refused:?}");
    // What another backup wants instead removes what was begun, and nothing else.
    let mut record = source.record.clone();
    record.restored.as_mut().unwrap().backup_id = Bytes::from_static(&[9; 16]);
    begin(record).await.unwrap();
    sweep_intents(&ctx.ledgers).await.unwrap();
    let heir = Owner::open(other.logs(), options(1)).await;
    assert_eq!(bodies(&heir.read_all().await), expected(0..3));
}

#[tokio::test(start_paused = true)]
async fn a_process_that_dies_at_any_step_of_a_restore_leaves_it_to_the_next() {
    for blow in [Blow::Before, Blow::After] {
        let mut steps = 0;
        loop {
            let world = World::new();
            let owner = world.owner(50).await;
            let before = owner.read_all().await;
            let backup = back_up(&owner).await;
            delete(&world, &owner).await;
            let fuse = Fuse::new(steps, blow);
            let ledgers = world.world.fused_process(&fuse);
            let dying = over_cold(ledgers, &world.cold, offload_settings());
            let limit = Duration::from_secs(600);
            let lived = tokio::time::timeout(limit, restore(&dying, &backup)).await;
            let what = format!("{blow:?} step {steps}: {lived:?}");
            // Nothing sees a half of it.
            let ctx = world.process();
            let seen = TopicRecordCell::load(ctx.clone(), &topic(), Vec::new()).await;
            if seen.unwrap().is_none() {
                world.reap(&owner).await;
                restore(&ctx, &backup).await.expect(&what);
            }
            let heir = Owner::open(world.process(), options(10)).await;
            assert_eq!(heir.read_all().await, before, "{what}");
            let written = cursors(&ctx).await;
            assert!(written.ends_with(&cursor_records()), "{what}: {written:?}");
            assert!(world.world.store.keys("restores/").is_empty(), "{what}");
            let pages = keys::segment_pages_prefix(&topic());
            assert_eq!(world.world.store.keys(&pages).len(), 1, "{what}");
            world.check_recorded(&what).await;
            if !fuse.is_blown() {
                assert!(steps > 6, "a restore has steps: {steps}");
                break;
            }
            steps += 1;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_at_any_request_of_a_backup_loses_nothing() {
    for fault in [Fault::Fails, Fault::AnswerLost] {
        for at_request in 0.. {
            let world = World::new();
            let owner = world.owner(20).await;
            let before = owner.read_all().await;
            offload_all(&owner).await;
            let id = begin(&owner).await;
            let mut seen = 0;
            let hit = Arc::new(Mutex::new(false));
            let told = Arc::clone(&hit);
            world.cold.judge(move |_, _| {
                seen += 1;
                (seen == at_request + 1).then(|| {
                    *told.lock() = true;
                    fault
                })
            });
            let found = owner.log.capture(owner.log.end()).await.unwrap();
            let items = found.ledgers.into_iter().map(Item::Ledger).collect();
            let written = backup::write(&owner.ctx, id, items).await;
            world.cold.heal();
            let is_hit = *hit.lock();
            assert!(written.is_ok() || is_hit, "{written:?}");
            // The same backup, or the next one, has everything.
            let backup = capture(&owner, id).await;
            backup::finish(&owner.ctx, id).await.unwrap();
            delete(&world, &owner).await;
            restore(&world.process(), &backup).await.unwrap();
            let heir = Owner::open(world.process(), options(10)).await;
            assert_eq!(heir.read_all().await, before, "{fault:?} {at_request}");
            if !is_hit {
                assert!(at_request > 1, "a backup has requests: {at_request}");
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_backup_is_refused_before_anything_is_written() {
    let world = World::new();
    let owner = world.owner(20).await;
    let backup = back_up(&owner).await;
    delete(&world, &owner).await;
    let name = format!("test/backups/{}/{}", backup.id, backup.files[0].name);
    world.cold.change(&name, |bytes| bytes[60] ^= 1);
    let ctx = world.process();
    let refused = restore(&ctx, &backup).await;
    assert!(matches!(refused, Err(LogError::Damaged(_))), "{refused:?}");
    assert!(world.world.store.keys("restores/").is_empty());
    assert!(world.world.store.keys("l/").is_empty());
    world.cold.change(&name, |bytes| bytes[60] ^= 1);
    restore(&ctx, &backup).await.unwrap();
}
