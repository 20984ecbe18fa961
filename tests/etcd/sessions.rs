//! Sessions in real time: a process that was away or cut off for too long knows that it lost its
//! keys no later than the others.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use anyhow::{Context, Result};
use aquifer_harness::etcd::{Etcd, EtcdOptions};
use aquifer_harness::proxy::{Flow, Proxy};
use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys;
use aquifer_metadata::store::{Expect, MetadataStore, Session, Watch};
use aquifer_model::id::BrokerId;
use aquifer_runtime::task::{TaskGroup, spawn_thread};
use bytes::Bytes;

use crate::support::{config, connect, next, soon};

const TTL: Duration = Duration::from_secs(2);

fn broker() -> String {
    keys::broker(BrokerId([7; 16]))
}

async fn brokers(store: &dyn MetadataStore) -> Result<Box<dyn Watch>> {
    let page = store.scan(keys::BROKERS_PREFIX, None, 1).await?;
    Ok(store.watch(keys::BROKERS_PREFIX, page.revision).await?)
}

/// A process that stands still, as under SIGSTOP or when its machine is suspended: nothing of it
/// runs, its timers do not either, and it learns of the time only afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_stood_still_does_not_believe_in_its_session() -> Result<()> {
    let etcd = Etcd::start(EtcdOptions::members(1)).await?;
    let tasks = TaskGroup::new("observer");
    let observer = connect(&config(etcd.urls()), &tasks).await?;
    let mut events = brokers(observer.as_ref()).await?;
    let (go_on, stand_still) = sync_channel::<()>(0);
    let urls = etcd.urls();
    let process = spawn_thread("process", move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let tasks = TaskGroup::new("process");
        let (_store, session) = runtime.block_on(async {
            let store = connect(&config(urls), &tasks).await?;
            let session = store.open_session(TTL).await?;
            session.put(&broker(), Bytes::new(), Expect::Absent).await?;
            anyhow::Ok((store, session))
        })?;
        stand_still.recv()?;
        assert_eq!(session.remaining(), Duration::ZERO);
        runtime.block_on(async {
            let put = session.put(&broker(), Bytes::new(), Expect::Any).await;
            assert_eq!(put, Err(MetadataError::SessionExpired));
            soon("the loss", session.lost()).await;
        });
        Ok(())
    })?;
    assert!(next(events.as_mut()).await.1.is_some());
    let (gone, value, _) = next(events.as_mut()).await;
    assert_eq!((gone, value), (broker(), None));
    go_on.send(()).context("the process has failed")?;
    let ended = tokio::task::spawn_blocking(move || process.join()).await?;
    ended.map_err(|_| anyhow::anyhow!("the process has failed"))?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_cut_off_loses_its_session_before_others_see_it() -> Result<()> {
    let etcd = Etcd::start(EtcdOptions::members(1)).await?;
    let door = Proxy::start(etcd.address(0)).await?;
    let tasks = TaskGroup::new("test");
    let observer = connect(&config(etcd.urls()), &tasks).await?;
    let owner = connect(&config(vec![door.url()]), &tasks).await?;
    let mut events = brokers(observer.as_ref()).await?;
    let session: Arc<dyn Session> = Arc::from(owner.open_session(TTL).await?);
    session.put(&broker(), Bytes::new(), Expect::Absent).await?;
    assert!(next(events.as_mut()).await.1.is_some());
    door.requests(Flow::Hold);
    door.answers(Flow::Hold);
    let (_, value, _) = next(events.as_mut()).await;
    assert_eq!(value, None);
    assert_eq!(session.remaining(), Duration::ZERO);
    soon("the loss", session.lost()).await;
    door.requests(Flow::Pass);
    door.answers(Flow::Pass);
    door.cut();
    // The process goes on under another session.
    let next_session = owner.open_session(TTL).await?;
    next_session
        .put(&broker(), Bytes::new(), Expect::Absent)
        .await?;
    next_session.close().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_lives_through_members_that_die() -> Result<()> {
    let mut etcd = Etcd::start(EtcdOptions::members(3)).await?;
    let tasks = TaskGroup::new("test");
    let store = connect(&config(etcd.urls()), &tasks).await?;
    let ttl = Duration::from_secs(10);
    let session = store.open_session(ttl).await?;
    let written = session.put(&broker(), Bytes::new(), Expect::Absent).await?;
    for member in 0..3 {
        etcd.kill(member)?;
        // Asked of another member, and another leader after one of the three.
        assert!(store.get(&broker()).await?.is_some());
        etcd.restart(member)?;
        etcd.healthy().await?;
    }
    let found = store.get(&broker()).await?.context("the session lives")?;
    assert_eq!(found.revision, written);
    assert!(session.remaining() > Duration::ZERO);
    let again = session
        .put(&broker(), Bytes::from("2"), Expect::Revision(written))
        .await;
    assert!(again.is_ok(), "{again:?}");
    session.close().await?;
    assert_eq!(store.get(&broker()).await?, None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_etcd_ended_is_lost_at_once() -> Result<()> {
    let etcd = Etcd::start(EtcdOptions::members(1)).await?;
    let tasks = TaskGroup::new("test");
    let store = connect(&config(etcd.urls()), &tasks).await?;
    let session = store.open_session(Duration::from_secs(60)).await?;
    session.put(&broker(), Bytes::new(), Expect::Absent).await?;
    let leases = etcd.ctl(&["lease", "list"])?;
    for lease in leases.lines().skip(1) {
        etcd.ctl(&["lease", "revoke", lease.trim()])?;
    }
    // Both leases are gone, the session's and the one of the slots: each is told apart.
    let put = session.put(&broker(), Bytes::new(), Expect::Any).await;
    assert_eq!(put, Err(MetadataError::SessionExpired));
    soon("the loss", session.lost()).await;
    crate::support::put(store.as_ref(), &crate::support::key(1), "goes on").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abandoned_session_expires_and_nothing_of_a_closed_store_stays() -> Result<()> {
    let etcd = Etcd::start(EtcdOptions::members(1)).await?;
    let tasks = TaskGroup::new("test");
    let store = connect(&config(etcd.urls()), &tasks).await?;
    let mut events = brokers(store.as_ref()).await?;
    let session = store.open_session(TTL).await?;
    session.put(&broker(), Bytes::new(), Expect::Absent).await?;
    drop(session);
    assert!(next(events.as_mut()).await.1.is_some());
    assert!(next(events.as_mut()).await.1.is_none());
    store.close().await;
    assert_eq!(soon("the end", events.next()).await, None);
    let keys = etcd.ctl(&["get", "", "--from-key", "--keys-only"])?;
    assert_eq!(keys.trim(), "", "slots and sessions are gone");
    let late = store.get(&broker()).await;
    assert!(
        matches!(late, Err(MetadataError::Unavailable(_))),
        "{late:?}"
    );
    assert_eq!(tasks.drain(Duration::from_secs(10)).await, 0);
    Ok(())
}
