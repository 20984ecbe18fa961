//! Restores that are large, wait, go on or are given up, and what backups keep meanwhile.

use aquifer_ledger::holds;
use aquifer_ledger::testing::Mode;
use aquifer_metadata::error::MetadataResult;
use aquifer_metadata::intercept::Intercept;
use aquifer_metadata::store::{PageToken, ScanPage};
use aquifer_model::id::{BackupId, BookieId};
use async_trait::async_trait;

use super::*;
use crate::context::LogSettings;
use crate::testing::over_cold_with;
use crate::tests::offloading::backups::{back_up, begin, capture, delete, read, restore};

#[tokio::test(start_paused = true)]
async fn a_restore_that_waits_for_bookies_names_them_and_the_way_out() {
    let world = World::new();
    let owner = world.owner(10).await;
    let backup = back_up(&owner).await;
    let holder = |bookie: &BookieId| !world.world.bookies.ledgers(*bookie).is_empty();
    let away = world.world.bookies.ids().into_iter().find(holder).unwrap();
    owner.log.close().await.unwrap();
    world.world.bookies.set_mode(away, Mode::Unreachable);
    owner.cell.delete().await.unwrap();
    sweep_intents(&owner.ctx.ledgers).await.unwrap();
    let ctx = world.process();
    let told = |outcome: Result<(), LogError>| match outcome {
        Err(LogError::Unavailable(why)) => why,
        other => panic!("{other:?}"),
    };
    // It is announced, and does not answer.
    let why = told(restore(&ctx, &backup).await);
    assert!(
        why.contains(&away.to_string()) && why.contains("that are there"),
        "{why}"
    );
    let announced = ctx.ledgers.bookies.snapshot();
    let mut others = announced.to_vec();
    others.retain(|bookie| bookie.id != away);
    ctx.ledgers.bookies.replace(others);
    let why = told(restore(&ctx, &backup).await);
    assert!(
        why.contains(&away.to_string()) && why.contains("that are away"),
        "{why}"
    );
    assert!(why.contains("aquifer bookie decommission"), "{why}");
    world.world.bookies.set_mode(away, Mode::Up);
    sweep_intents(&ctx.ledgers).await.unwrap();
    restore(&ctx, &backup).await.unwrap();
}

/// The record of a topic that is restored has pages, as that of any other topic.
#[tokio::test(start_paused = true)]
async fn a_topic_of_very_many_ledgers_is_restored() {
    const LEDGERS: u64 = 16_000;
    let world = World::new();
    let owner = world.owner(10).await;
    let backup = back_up(&owner).await;
    delete(&world, &owner).await;
    let ctx = over_cold_with(
        "test",
        world.world.process(),
        &world.cold,
        (LogSettings::default(), offload_settings()),
    );
    let source = read(&ctx, &backup).await.unwrap();
    let one = &source.ledgers[0];
    let ledgers = (0..LEDGERS).map(|at| {
        let mut ledger = one.clone();
        // All of them name one object.
        ledger.is_own = false;
        ledger.info.id = LedgerId(1_000 + at);
        ledger.segment.ledger_id = 1_000 + at;
        ledger.segment.first_index = at * 10;
        ledger.segment.end_index = at * 10 + 10;
        ledger
    });
    let ledgers: Vec<RestoredLedger> = ledgers.collect();
    let name = topic();
    let begin = || RestoringTopic::begin(ctx.clone(), &name, Vec::new(), source.record.clone());
    // It goes on where it was interrupted.
    let half = &ledgers[..9_000];
    begin().await.unwrap().put_ledgers(half).await.unwrap();
    let restoring = begin().await.unwrap();
    restoring.put_ledgers(&ledgers).await.unwrap();
    let (record, all) = restoring.cell().all_segments().await.unwrap();
    assert!(record.segments.len() <= 80, "{}", record.segments.len());
    assert!(all.iter().eq(ledgers.iter().map(|ledger| &ledger.segment)));
    // A topic that has got the name meanwhile has pages of its own.
    let other = Owner::open(world.process(), options(1)).await;
    other.append_all(0..9).await;
    let again = RestoringTopic::begin(ctx.clone(), &name, Vec::new(), source.record.clone());
    assert_eq!(again.await.map(drop), Err(LogError::AlreadyExists));
    assert!(world.world.store.keys("restores/").is_empty());
    assert_eq!(bodies(&other.read_all().await), expected(0..9));
    let pages = world.world.store.keys(&keys::segment_pages_prefix(&name));
    let own = keys::segment_pages_of(&name, other.cell.incarnation());
    assert!(
        !pages.is_empty() && pages.iter().all(|key| key.starts_with(&own)),
        "{pages:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_restore_that_was_given_up_is_deleted_and_no_other() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let world = World::new();
    let owner = world.owner(60).await;
    let before = owner.read_all().await;
    let backup = back_up(&owner).await;
    delete(&world, &owner).await;
    let ctx = world.process();
    let source = read(&ctx, &backup).await.unwrap();
    let name = topic();
    let begin = || RestoringTopic::begin(ctx.clone(), &name, Vec::new(), source.record.clone());
    let restoring = begin().await.unwrap();
    restoring.put_ledgers(&source.ledgers).await.unwrap();
    let store = &world.world.store;
    let written = store.keys("l/").len();
    assert!(written >= 6 && !store.keys(&keys::segment_pages_prefix(&topic())).is_empty());
    // It went on after six days, and has six more.
    for _ in 0..2 {
        world.pass(6 * DAY);
        assert_eq!(delete_given_up(&ctx).await, Ok(0));
        begin().await.unwrap();
    }
    world.pass(8 * DAY);
    assert_eq!(delete_given_up(&world.process()).await, Ok(1));
    sweep_intents(&ctx.ledgers).await.unwrap();
    for prefix in ["restores/", "l/", &keys::segment_pages_prefix(&topic())] {
        assert!(store.keys(prefix).is_empty(), "{prefix}");
    }
    // A request that was away all the time does not let half a topic be seen.
    assert!(restoring.put_ledgers(&source.ledgers).await.is_err());
    assert!(restoring.finish().await.is_err());
    // The backup keeps the objects, and one that is finished stays.
    assert_eq!(world.reap(&owner).await.deleted, 0);
    restore(&ctx, &backup).await.unwrap();
    world.pass(30 * DAY);
    assert_eq!(delete_given_up(&ctx).await, Ok(0));
    let heir = Owner::open(world.process(), options(10)).await;
    assert_eq!(heir.read_all().await, before);
}

/// A restore that an earlier build has begun is not taken for one of 1970.
#[tokio::test(start_paused = true)]
async fn a_restore_without_a_time_is_given_one() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let world = World::new();
    let owner = world.owner(10).await;
    let backup = back_up(&owner).await;
    delete(&world, &owner).await;
    let ctx = world.process();
    let source = read(&ctx, &backup).await.unwrap();
    let name = topic();
    let begun = RestoringTopic::begin(ctx.clone(), &name, Vec::new(), source.record.clone());
    drop(begun.await.unwrap());
    let (store, key) = (&world.world.store, keys::restoring(&name));
    let stored = store.get(&key).await.unwrap().unwrap();
    let mut earlier: v1::TopicRecord = record::decode(&stored).unwrap();
    earlier.restored.as_mut().unwrap().asked_ms = 0;
    let partition = keys::partition_of_topic(&name);
    let put = store.put(&partition, &key, record::encode(earlier), Expect::Any);
    put.await.unwrap();
    assert_eq!(delete_given_up(&ctx).await, Ok(0));
    world.pass(6 * DAY);
    assert_eq!(delete_given_up(&ctx).await, Ok(0));
    world.pass(2 * DAY);
    assert_eq!(delete_given_up(&ctx).await, Ok(1));
}

/// A request goes on between the look at a restore and its end.
#[tokio::test(start_paused = true)]
async fn a_restore_that_goes_on_at_that_moment_stays() {
    let world = World::new();
    let owner = world.owner(10).await;
    let backup = back_up(&owner).await;
    delete(&world, &owner).await;
    let ctx = world.process();
    let source = read(&ctx, &backup).await.unwrap();
    let name = topic();
    let begin = || RestoringTopic::begin(ctx.clone(), &name, Vec::new(), source.record.clone());
    begin().await.unwrap();
    world.pass(Duration::from_secs(8 * 24 * 3600));
    let key = keys::restoring(&topic());
    let seen = world.world.store.get(&key).await.unwrap().unwrap();
    let restoring = begin().await.unwrap();
    let old = crate::record::given_up::delete_if_given_up(&ctx, &seen).await;
    assert!(matches!(old, Err(LogError::Unavailable(_))), "{old:?}");
    restoring.put_ledgers(&source.ledgers).await.unwrap();
    restoring.finish().await.unwrap();
}

/// Metadata in which another process ends a backup right after the backups were read.
struct EndsBackup {
    inner: Arc<dyn MetadataStore>,
    backup: Mutex<Option<BackupId>>,
}

#[async_trait]
impl Intercept for EndsBackup {
    fn inner(&self) -> &dyn MetadataStore {
        &*self.inner
    }

    async fn on_scan(
        &self,
        prefix: &str,
        page: Option<PageToken>,
        limit: usize,
    ) -> MetadataResult<ScanPage> {
        let found = self.inner.scan(prefix, page, limit).await;
        let ending = match prefix == keys::BACKUPS_PREFIX {
            true => self.backup.lock().take(),
            false => None,
        };
        if let Some(id) = ending {
            let ended = holds::finish(&*self.inner, id).await;
            assert!(ended.unwrap().is_some());
        }
        found
    }
}

#[tokio::test(start_paused = true)]
async fn a_backup_that_ends_while_it_is_given_up_keeps_what_it_names() {
    let world = World::new();
    let owner = world.owner(20).await;
    let id = begin(&owner).await;
    let backup = capture(&owner, id).await;
    owner.log.close().await.unwrap();
    owner.cell.delete().await.unwrap();
    sweep_intents(&owner.ctx.ledgers).await.unwrap();
    world.pass(Duration::from_secs(8 * 24 * 3600));
    let store = Arc::new(EndsBackup {
        inner: Arc::new(world.world.store.clone()),
        backup: Mutex::new(Some(id)),
    });
    let transport = Arc::new(world.world.bookies.clone());
    let ledgers = world
        .world
        .process_with(store, transport, TestWorld::settings());
    let ctx = over_cold(ledgers, &world.cold, offload_settings());
    let tier = ctx.cold.as_ref().unwrap();
    let reaped = reap(&ctx, tier, |_| false).await.unwrap();
    assert_eq!((reaped.kept, reaped.deleted), (2, 0));
    let hold = holds::load(&world.world.store, id).await.unwrap();
    assert!(hold.is_some_and(|hold| hold.is_finished()));
    // So do later looks, and the backup is good.
    assert_eq!(world.reap(&owner).await.kept, 2);
    restore(&world.process(), &backup).await.unwrap();
    let heir = Owner::open(world.process(), options(10)).await;
    assert_eq!(bodies(&heir.read_all().await), large_bodies(0..20));
}
