//! Topics of backups come back under other names, beside those that run.

use aquifer_model::backup::RestoreTopic;

use super::*;
use crate::backup;
use crate::tests::offloading::backups::{back_up, delete, forget, wanted};

fn other() -> TopicName {
    "public/default/copy".parse().unwrap()
}

/// All that is said of an entry but its place.
fn said(entries: &[LogEntry]) -> Vec<(Index, u64, Bytes)> {
    let of = |entry: &LogEntry| {
        let head = &entry.head;
        (head.base_index, head.broker_time_ms, entry.body.clone())
    };
    entries.iter().map(of).collect()
}

/// The copy has the indexes, times (H13) and bodies of the topic, goes on where a process died, and
/// names nothing of the backup (I10).
#[tokio::test(start_paused = true)]
async fn a_copy_has_every_entry_as_it_was_and_lives_without_the_backup() {
    let world = World::new();
    let owner = world.owner(40).await;
    let before = owner.read_all().await;
    let backup = back_up(&owner).await;
    let objects = world.cold.names();
    // What is copied is not of the time of the copy.
    world.pass(Duration::from_secs(24 * 3600));
    let name = other();
    let wanted = RestoreTopic {
        as_topic: Some(name.clone()),
        ..wanted(&backup)
    };
    let minute = Duration::from_secs(60);
    let ctx = world.process();
    let source = backup::read_topic(&ctx, &wanted).await.unwrap();
    let begin = |ctx: &Arc<LogContext>| {
        RestoringTopic::begin(ctx.clone(), &name, Vec::new(), source.record.clone())
    };
    let restoring = begin(&ctx).await.unwrap();
    let ledgers = &source.ledgers;
    let nothing = restoring.copy(&ctx, options(7), ledgers, Duration::ZERO);
    assert_eq!(nothing.await, Ok(false), "the time is over at once");
    let half = restoring.copy(&ctx, options(7), &ledgers[..2], minute);
    assert_eq!(half.await, Ok(true));
    drop(restoring);
    // Another process goes on.
    let ctx = world.process();
    let restoring = begin(&ctx).await.unwrap();
    let rest = restoring.copy(&ctx, options(7), ledgers, minute).await;
    assert_eq!(rest, Ok(true));
    restoring
        .write_cursors(&ctx, options(7), &source.cursors)
        .await
        .unwrap();
    restoring.finish().await.unwrap();
    assert_eq!(said(&owner.read_all().await), said(&before));
    assert_eq!(world.cold.names(), objects);

    // The topic and its backup go, and the copy stays.
    backup::forget(&ctx, &forget(&backup)).await.unwrap();
    delete(&world, &owner).await;
    assert!(world.cold.names().is_empty(), "{:?}", world.cold.names());
    let ctx = world.process();
    let cell = TopicRecordCell::load(ctx.clone(), &name, Vec::new()).await;
    let cell = cell.unwrap().unwrap();
    let log = TopicLog::open(ctx, cell, LogKind::Messages, options(7)).await;
    let log = log.unwrap();
    assert_eq!(said(&read_from(&log, log.first()).await), said(&before));
    assert_eq!(log.end(), before.last().unwrap().head.end_index());
}

/// A copy that another topic of the same backup has begun under the name is not gone on with.
#[tokio::test(start_paused = true)]
async fn a_copy_of_another_topic_begins_again() {
    let world = World::new();
    let owner = world.owner(20).await;
    let backup = back_up(&owner).await;
    let name = other();
    let wanted = RestoreTopic {
        as_topic: Some(name.clone()),
        ..wanted(&backup)
    };
    let ctx = world.process();
    let source = backup::read_topic(&ctx, &wanted).await.unwrap();
    let begin = |record: &v1::TopicRecord| {
        RestoringTopic::begin(ctx.clone(), &name, Vec::new(), record.clone())
    };
    let restoring = begin(&source.record).await.unwrap();
    let minute = Duration::from_secs(60);
    let copied = restoring.copy(&ctx, options(10), &source.ledgers, minute);
    assert_eq!(copied.await, Ok(true));
    let same = begin(&source.record).await.unwrap();
    assert_eq!(same.cell().incarnation(), restoring.cell().incarnation());
    let mut record = source.record.clone();
    record.restored.as_mut().unwrap().incarnation = Bytes::from_static(&[9; 16]);
    let another = begin(&record).await.unwrap();
    let (_, segments) = another.cell().all_segments().await.unwrap();
    assert!(segments.is_empty(), "{segments:?}");
}
