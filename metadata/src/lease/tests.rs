//! A lease on the embedded store, with a clock that tests move.

use std::path::Path;

use aquifer_model::id::BookieId;
use aquifer_runtime::clock::{ManualClock, SharedClock};
use aquifer_runtime::disk::{Disk, SimDisk};
use aquifer_runtime::rng::SystemRng;
use aquifer_runtime::telemetry::Telemetry;

use super::*;
use crate::embedded::{EmbeddedOptions, EmbeddedStore};
use crate::keys;
use crate::store::{Revision, WatchEvent};

const TTL: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(60);

struct World {
    clock: Arc<ManualClock>,
    tasks: TaskGroup,
    store: Arc<EmbeddedStore>,
    key: String,
}

impl World {
    async fn new() -> World {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("/data")).unwrap();
        let (clock, tasks) = (ManualClock::new(0), TaskGroup::new("test"));
        let store = EmbeddedStore::open(
            "/data/metadata.redb".into(),
            EmbeddedOptions::default(),
            disk.shared(),
            Arc::clone(&clock) as SharedClock,
            &tasks,
        );
        World {
            store: Arc::new(store.await.unwrap()),
            key: keys::bookie(BookieId([7; 16])),
            clock,
            tasks,
        }
    }

    fn lease(&self) -> Lease {
        let store = Arc::clone(&self.store) as Arc<dyn MetadataStore>;
        Lease::start(store, TTL, SystemRng::shared(), &self.tasks)
    }

    async fn stored(&self) -> Option<(Bytes, Revision)> {
        let found = self.store.get(&self.key).await.unwrap();
        found.map(|found| (found.value, found.revision))
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    let ended = clock::timeout(PATIENCE, future).await;
    ended.expect("it happens")
}

#[tokio::test]
async fn what_is_set_is_announced_until_the_lease_is_closed() {
    let world = World::new().await;
    let lease = world.lease();
    lease.set(&world.key, Bytes::from_static(b"one"));
    soon(lease.announced()).await;
    let (value, revision) = world.stored().await.unwrap();
    assert_eq!(value, "one");
    // The same again is no change.
    lease.set(&world.key, Bytes::from_static(b"one"));
    soon(lease.announced()).await;
    assert_eq!(world.stored().await.unwrap().1, revision);
    lease.set(&world.key, Bytes::from_static(b"two"));
    soon(lease.announced()).await;
    assert_eq!(world.stored().await.unwrap().0, "two");
    soon(lease.close()).await;
    assert_eq!(world.stored().await, None);
    lease.set(&world.key, Bytes::from_static(b"three"));
    soon(lease.announced()).await;
    assert_eq!(world.stored().await, None, "closed is closed");
}

#[tokio::test]
async fn a_lost_session_is_followed_by_another_with_the_same_keys() {
    let world = World::new().await;
    let lease = world.lease();
    lease.set(&world.key, Bytes::from_static(b"here"));
    soon(lease.announced()).await;
    let (_, first) = world.stored().await.unwrap();
    let mut watch = world
        .store
        .watch(keys::BOOKIES_PREFIX, first)
        .await
        .unwrap();
    // The process stands still for longer than its lease lasts.
    world.clock.advance(TTL * 2);
    let mut again = None;
    while again.is_none() {
        match soon(watch.next()).await {
            Some(WatchEvent::Put(item)) => again = Some(item),
            Some(WatchEvent::Delete { key, .. }) => assert_eq!(key, world.key),
            other => panic!("{other:?}"),
        }
    }
    let again = again.unwrap();
    assert_eq!(
        (again.key.as_str(), again.value.as_ref()),
        (world.key.as_str(), &b"here"[..])
    );
    assert!(again.revision > first);
    soon(lease.announced()).await;
    assert!(world.stored().await.is_some());
}

#[tokio::test]
async fn a_group_that_ends_lets_nobody_wait() {
    let world = World::new().await;
    let lease = world.lease();
    world.store.close().await;
    lease.set(&world.key, Bytes::new());
    assert_eq!(world.tasks.drain(PATIENCE).await, 0);
    soon(lease.announced()).await;
    soon(lease.close()).await;
}

#[tokio::test]
async fn locks_go_with_the_session_of_the_lease() {
    let world = World::new().await;
    let lease = world.lease();
    let first = soon(lease.session()).await.expect("it is open");
    let lock = keys::leader("test");
    let value = Bytes::from_static(b"me");
    first.put(&lock, value, Expect::Absent).await.unwrap();
    world.clock.advance(TTL * 2);
    soon(first.lost()).await;
    // Another session follows, and what was locked under the first is free.
    loop {
        let next = soon(lease.session()).await.expect("it is open");
        let value = Bytes::from_static(b"again");
        if next.put(&lock, value, Expect::Absent).await.is_ok() {
            break;
        }
        tokio::task::yield_now().await;
    }
    soon(lease.close()).await;
    assert!(lease.session().await.is_none());
    assert_eq!(world.store.get(&lock).await.unwrap(), None);
}

#[tokio::test]
async fn what_is_held_ends_with_its_session_and_the_next_has_another_number() {
    let world = World::new().await;
    let lease = world.lease();
    lease.set(&world.key, Bytes::from_static(b"here"));
    soon(lease.announced()).await;
    let first = lease.held();
    assert!(first.is_some());
    // Nothing is renewed while time jumps: from here on the store may have given the process up.
    world.clock.advance(TTL * 2);
    assert_ne!(lease.held(), first);
    let again = soon(async {
        loop {
            match lease.held() {
                Some(number) => return Some(number),
                None => clock::sleep(Duration::from_millis(1)).await,
            }
        }
    });
    assert!(again.await > first);
    lease.close().await;
    assert_eq!(lease.held(), None);
}

#[tokio::test]
async fn what_remains_of_the_session_is_shown() {
    let world = World::new().await;
    let lease = world.lease();
    let telemetry = Telemetry::for_tests();
    lease.show(&telemetry.meter("metadata"));
    let check = |seconds: &str| {
        let line = format!("{REMAINING_SECONDS} {seconds}");
        let text = telemetry.render_metrics();
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    };
    check("0");
    assert!(soon(lease.session()).await.is_some());
    // The clock stands still, so all of its time is left.
    check("1");
    soon(lease.close()).await;
    check("0");
}
