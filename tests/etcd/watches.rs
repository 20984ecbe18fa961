//! Watches: no gap and nothing twice, whatever happens to connections, members and history.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use aquifer_harness::etcd::{Etcd, EtcdOptions};
use aquifer_harness::proxy::Proxy;
use aquifer_metadata::cache::PrefixCache;
use aquifer_metadata::scan;
use aquifer_metadata::store::{MetadataStore, Revision, Watch, WatchEvent};
use aquifer_runtime::rng::SystemRng;
use aquifer_runtime::task::TaskGroup;
use aquifer_runtime::telemetry::Telemetry;

use crate::support::{PREFIX, config, connect, key, next, put, soon, text, watch};

/// Writes some values in turn to a few keys; returns what a watch has to bring.
async fn write_some(
    store: &dyn MetadataStore,
    numbers: std::ops::Range<usize>,
    value: &str,
) -> Result<Vec<(String, Revision)>> {
    let mut written = Vec::new();
    for number in numbers {
        let key = key(number % 7);
        let revision = put(store, &key, value).await?;
        written.push((key, revision));
    }
    Ok(written)
}

/// Reads as many events as were written and compares.
async fn expect(events: &mut dyn Watch, written: &[(String, Revision)]) {
    for (key, revision) in written {
        let (seen, _, at) = next(events).await;
        assert_eq!((&seen, at), (key, *revision));
    }
}

/// How many times watches started again, as metrics say.
fn restarts_in(text: &str) -> Option<u64> {
    let name = "aquifer_metadata_watch_restarts_total ";
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.parse().ok())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_outlives_each_member_in_turn() -> Result<()> {
    let mut etcd = Etcd::start(EtcdOptions::members(3)).await?;
    let tasks = TaskGroup::new("test");
    let store = connect(&config(etcd.urls()), &tasks).await?;
    let store = store.as_ref();
    let start = put(store, &key(0), "start").await?;
    let mut events = watch(store, start).await?;
    let mut written = write_some(store, 0..3, "x").await?;
    // It hangs on one member: that one is frozen, then killed; the leader is among the three.
    for member in 0..3 {
        expect(events.as_mut(), &written).await;
        etcd.pause(member)?;
        written = write_some(store, 0..3, "x").await?;
        expect(events.as_mut(), &written).await;
        etcd.kill(member)?;
        written = write_some(store, 0..3, "y").await?;
        etcd.restart(member)?;
        etcd.healthy().await?;
        written.extend(write_some(store, 0..3, "z").await?);
    }
    expect(events.as_mut(), &written).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_whose_connection_breaks_all_the_time_misses_nothing() -> Result<()> {
    let etcd = Etcd::start(EtcdOptions::members(1)).await?;
    let door = Proxy::start(etcd.address(0)).await?;
    let tasks = TaskGroup::new("test");
    let writer = connect(&config(etcd.urls()), &tasks).await?;
    let reader = connect(&config(vec![door.url()]), &tasks).await?;
    let telemetry = Telemetry::for_tests();
    reader.show(&telemetry.meter("metadata"));
    let restarts = || restarts_in(&telemetry.render_metrics());
    assert_eq!(restarts(), Some(0));
    let start = put(writer.as_ref(), &key(0), "start").await?;
    let mut events = watch(reader.as_ref(), start).await?;
    let mut answered = door.answered();
    for round in 0..10 {
        let mut written = write_some(writer.as_ref(), 0..20, "x").await?;
        if round % 2 == 0 {
            door.cut();
        }
        written.extend(write_some(writer.as_ref(), 0..20, "y").await?);
        soon("an answer", answered.changed()).await?;
        door.cut();
        expect(events.as_mut(), &written).await;
    }
    assert!(restarts() > Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_that_was_compacted_while_away_means_a_resync() -> Result<()> {
    let etcd = Etcd::start(EtcdOptions::members(1)).await?;
    let door = Proxy::start(etcd.address(0)).await?;
    let tasks = TaskGroup::new("test");
    let writer = connect(&config(etcd.urls()), &tasks).await?;
    let writer = writer.as_ref();
    let reader = connect(&config(vec![door.url()]), &tasks).await?;
    let start = put(writer, &key(1), "start").await?;
    put(writer, &key(2), "removed while away").await?;
    let mut events = watch(reader.as_ref(), start).await?;
    assert_eq!(next(events.as_mut()).await.0, key(2));
    let cache = PrefixCache::start(
        Arc::clone(&reader) as Arc<dyn MetadataStore>,
        PREFIX,
        100,
        SystemRng::shared(),
        &tasks,
    );
    soon("the cache", cache.ready()).await;
    assert!(cache.get(&key(2)).is_some());

    door.requests(aquifer_harness::proxy::Flow::Hold);
    door.cut();
    etcd.ctl(&["del", &format!("/aquifer/v1/test/{}", key(2))])?;
    let latest = put(writer, &key(1), "latest").await?;
    etcd.ctl(&["compact", &latest.0.to_string()])?;
    door.requests(aquifer_harness::proxy::Flow::Pass);
    door.cut();
    assert_eq!(
        soon("a resync", events.next()).await,
        Some(WatchEvent::Resync)
    );
    assert_eq!(soon("the end", events.next()).await, None);
    soon("the cache", cache.reached(latest)).await;
    assert_eq!(cache.get(&key(2)), None);
    let found = cache.get(&key(1)).expect("it was written");
    assert_eq!(text(&found.value), "latest");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_watch_holds_nobody_up_and_gets_everything() -> Result<()> {
    let etcd = Etcd::start(EtcdOptions::members(1)).await?;
    let tasks = TaskGroup::new("test");
    let store = connect(&config(etcd.urls()), &tasks).await?;
    let store = store.as_ref();
    let start = put(store, &key(0), "start").await?;
    // More than any queue or window on the way holds.
    let large = "x".repeat(500_000);
    let mut slow = watch(store, start).await?;
    let mut quick = watch(store, start).await?;
    let mut written = Vec::new();
    for number in 0..30 {
        let some = write_some(store, number..number + 1, &large).await?;
        expect(quick.as_mut(), &some).await;
        written.extend(some);
    }
    expect(slow.as_mut(), &written).await;
    // One that comes later reads the same, in fragments.
    let mut late = watch(store, start).await?;
    expect(late.as_mut(), &written).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_are_cut_where_a_message_would_be_too_large_and_foreign_keys_are_passed_over()
-> Result<()> {
    let etcd = Etcd::start(EtcdOptions::members(1)).await?;
    let tasks = TaskGroup::new("test");
    let store = connect(&config(etcd.urls()), &tasks).await?;
    let store = store.as_ref();
    let large = "x".repeat(900_000);
    for number in 0..9 {
        put(store, &key(number), &large).await?;
    }
    // Keys that are no text, among ours, and garbage as a value.
    for name in ["clusters/\u{1}", "clusters/~"] {
        etcd.ctl(&["put", &format!("/aquifer/v1/test/{name}"), "\u{7f}garbage"])?;
    }
    let (found, _) = scan::all(store, PREFIX, 100).await?;
    let ours = found.iter().filter(|item| item.value.len() == large.len());
    assert_eq!((ours.count(), found.len()), (9, 11));
    let all = store.scan("", None, 1_000).await?;
    assert!(all.items.iter().all(|item| !item.key.starts_with('~')));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_whose_snapshot_was_compacted_is_refused_and_begins_anew() -> Result<()> {
    let etcd = Etcd::start(EtcdOptions::members(1)).await?;
    let tasks = TaskGroup::new("test");
    let store = connect(&config(etcd.urls()), &tasks).await?;
    let store = store.as_ref();
    write_some(store, 0..7, "old").await?;
    let page = store.scan(PREFIX, None, 3).await?;
    let latest = put(store, &key(6), "new").await?;
    etcd.ctl(&["compact", &latest.0.to_string()])?;
    let late = store.scan(PREFIX, page.next, 3).await.unwrap_err();
    assert!(late.to_string().contains("restart the scan"), "{late}");
    let (found, at) = scan::all(store, PREFIX, 100).await?;
    assert_eq!((found.len(), at), (7, latest));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_watch_leaves_no_task() -> Result<()> {
    let etcd = Etcd::start(EtcdOptions::members(1)).await?;
    let tasks = TaskGroup::new("test");
    let store = connect(&config(etcd.urls()), &tasks).await?;
    let before = tasks.running();
    let events = watch(store.as_ref(), Revision(1)).await?;
    assert_eq!(tasks.running(), before + 1);
    drop(events);
    let ended = aquifer_harness::wait::until("the task to end", || async {
        Ok((tasks.running() == before).then_some(()))
    });
    ended.await?;
    // A watch that is held ends with the process.
    let mut events = watch(store.as_ref(), Revision(1)).await?;
    assert_eq!(tasks.drain(Duration::from_secs(10)).await, 0);
    assert_eq!(soon("the end", events.next()).await, None);
    Ok(())
}
