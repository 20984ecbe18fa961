//! Metadata that has little room, or none: nothing grows that can wait, topics go on, and all comes
//! back by itself.

use std::time::Duration;

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::store::Usage;

use super::*;

fn used(percent: u64) -> Option<Usage> {
    Some(Usage {
        used_bytes: percent,
        quota_bytes: 100,
        refuses: false,
    })
}

fn ledgers(owner: &Owner) -> usize {
    owner.cell.record().segments.len()
}

/// An error that says what is full, and that waiting may help.
fn assert_full(error: &LogError) {
    assert!(matches!(error, LogError::StorageFull(_)), "{error:?}");
    assert!(
        error.is_retryable() && error.to_string().contains("metadata is full"),
        "{error}"
    );
}

/// A rollover that cannot be recorded does not end the topic: the current ledger goes on.
#[tokio::test(start_paused = true)]
async fn without_room_in_metadata_the_ledger_goes_on_and_rolls_over_later() {
    let world = TestWorld::new(1);
    let clock = world.clock.clone().unwrap();
    let owner = Owner::open(world.logs(), options(3)).await;
    owner.append_all(0..2).await;
    assert_eq!(ledgers(&owner), 1);
    for (round, percent) in [85, 95].into_iter().enumerate() {
        world.store.set_usage(used(percent));
        let first = 2 + 10 * round as u64;
        owner.append_all(first..first + 10).await;
        assert_eq!(ledgers(&owner), 1, "{percent} %");
    }
    world.store.set_usage(used(20));
    clock.advance(Duration::from_secs(600));
    owner.append_all(22..30).await;
    assert!(ledgers(&owner) > 1, "there is room again");
    assert_eq!(bodies(&owner.read_all().await), expected(0..30));
}

/// After a failover a topic has no ledger to go on with: what room is left is for those.
#[tokio::test(start_paused = true)]
async fn a_topic_without_a_ledger_gets_one_until_metadata_is_full() {
    let world = TestWorld::new(1);
    let clock = world.clock.clone().unwrap();
    Owner::open(world.logs(), options(100))
        .await
        .append_all(0..3)
        .await;
    world.store.set_usage(used(85));
    let heir = Owner::open(world.logs(), options(100)).await;
    heir.append_all(3..5).await;
    world.store.set_usage(used(95));
    let last = Owner::open(world.logs(), options(100)).await;
    last.append(5).unwrap();
    let (_, outcome) = last.collected.wait_for(1).await.remove(0);
    assert_full(&outcome.unwrap_err());
    assert_eq!(
        bodies(&last.read_all().await),
        expected(0..5),
        "reads go on"
    );
    world.store.set_usage(None);
    last.log.resume();
    clock.advance(Duration::from_secs(60));
    last.append_all(5..7).await;
    assert_eq!(bodies(&last.read_all().await), expected(0..7));
}

/// The store takes no change at all: what is open goes on, and what is not says why.
#[tokio::test(start_paused = true)]
async fn a_store_that_takes_nothing_ends_no_topic() {
    let world = TestWorld::new(1);
    let clock = world.clock.clone().unwrap();
    let owner = Owner::open(world.logs(), options(3)).await;
    owner.append_all(0..2).await;
    world.store.set_usage(Some(Usage {
        used_bytes: 50,
        quota_bytes: 100,
        refuses: true,
    }));
    owner.append_all(2..10).await;
    let other: TopicName = "public/default/other".parse().unwrap();
    let created = TopicRecordCell::create(world.logs(), &other, Vec::new()).await;
    let error = created.map(drop).unwrap_err();
    assert!(
        matches!(error, LogError::Metadata(MetadataError::Full(_))),
        "{error:?}"
    );
    world.store.set_usage(None);
    clock.advance(Duration::from_secs(600));
    owner.append_all(10..20).await;
    assert!(ledgers(&owner) > 1);
    assert_eq!(bodies(&owner.read_all().await), expected(0..20));
}

/// Storage 8: one record has a bound as well, and a topic that has reached it goes on in its
/// ledger.
#[tokio::test(start_paused = true)]
async fn a_record_that_is_as_large_as_can_be_ends_no_topic() {
    let world = TestWorld::new(1);
    let owner = Owner::open(world.logs(), options(3)).await;
    owner.append_all(0..2).await;
    // As many ledgers as years of rollovers leave, of the log that is not open here.
    let fill = |count: u64| {
        let cell = Arc::clone(&owner.cell);
        async move {
            let grow = |record: &mut v1::TopicRecord| {
                let from = record.cursor_segments.len() as u64;
                record
                    .cursor_segments
                    .extend((from..from + count).map(|n| v1::SegmentRecord {
                        ledger_id: (1 << 40) + n,
                        first_index: (1 << 40) + n,
                        ..Default::default()
                    }));
                Ok(())
            };
            cell.update(Vec::new(), grow).await.unwrap();
        }
    };
    while owner.cell.size().0 < 1_100_000 {
        fill(1_000).await;
    }
    owner.append_all(2..20).await;
    assert_eq!(ledgers(&owner), 1);
    // A failover finds room for its ledger,
    let heir = Owner::open(world.logs(), options(100)).await;
    heir.append_all(20..22).await;
    assert_eq!(ledgers(&heir), 2);
    // until there is no room for that either.
    while heir.cell.size().0 < 1_509_000 {
        fill(200).await;
        heir.cell.refresh().await.unwrap();
    }
    let last = Owner::open(world.logs(), options(100)).await;
    last.append(22).unwrap();
    let (_, outcome) = last.collected.wait_for(1).await.remove(0);
    assert_full(&outcome.unwrap_err());
    assert_eq!(bodies(&last.read_all().await), expected(0..22));
}
