//! Sessions: their keys live as long as they do.

use std::time::Duration;

use aquifer_model::id::BrokerId;
use bytes::Bytes;

use crate::contract::fixture::{StoreFactory, get, soon, value};
use crate::error::MetadataError;
use crate::keys;
use crate::store::{Expect, MetadataStore, Revision, WatchEvent};

const TTL: Duration = Duration::from_secs(2);

fn broker(number: u8) -> String {
    keys::broker(BrokerId([number; 16]))
}

/// Waits until a key is removed, and returns when.
async fn removed(store: &dyn MetadataStore, key: &str, after: Revision) -> Revision {
    let mut events = store
        .watch(keys::BROKERS_PREFIX, after)
        .await
        .expect("a watch begins");
    loop {
        match soon("a removal", events.next()).await {
            Some(WatchEvent::Delete {
                key: gone,
                revision,
            }) if gone == key => return revision,
            Some(WatchEvent::Resync) | None => unreachable!("the history is short"),
            Some(_) => {}
        }
    }
}

/// Closing a session removes its keys and no other's, and ends it.
pub async fn a_closed_session_takes_its_keys_along(factory: &dyn StoreFactory) {
    let store = factory.create().await;
    let store = store.as_ref();
    let session = store.open_session(TTL).await.expect("opened");
    let other = store.open_session(TTL).await.expect("opened");
    assert!(session.remaining() > Duration::ZERO && session.remaining() <= TTL);
    session
        .put(&broker(1), Bytes::from_static(b"url"), Expect::Absent)
        .await
        .expect("absent");
    let kept = other.put(&broker(2), Bytes::new(), Expect::Any).await;
    let kept = kept.expect("unconditional");
    let taken = session.put(&broker(2), Bytes::new(), Expect::Absent).await;
    assert!(
        matches!(taken, Err(MetadataError::Conflict { current, .. }) if current == Some(kept)),
        "{taken:?}"
    );
    assert_eq!(value(store, &broker(1)).await.as_deref(), Some("url"));

    session.close().await.expect("closed");
    assert_eq!(get(store, &broker(1)).await, None);
    assert!(get(store, &broker(2)).await.is_some());
    assert_eq!(session.remaining(), Duration::ZERO);
    soon("the loss", session.lost()).await;
    let late = session.put(&broker(1), Bytes::new(), Expect::Any).await;
    assert_eq!(late, Err(MetadataError::SessionExpired));
    assert_eq!(get(store, &broker(1)).await, None);
}

/// A session that was not renewed for its time to live is lost: its owner learns it no later than
/// the other processes, which see its keys vanish.
pub async fn a_paused_session_is_lost_and_takes_its_keys_along(factory: &dyn StoreFactory) {
    let store = factory.create().await;
    let store = store.as_ref();
    let session = store.open_session(TTL).await.expect("opened");
    let written = session.put(&broker(1), Bytes::new(), Expect::Any).await;
    let written = written.expect("unconditional");
    factory.pause(TTL * 2).await;
    removed(store, &broker(1), written).await;
    assert_eq!(session.remaining(), Duration::ZERO);
    soon("the loss", session.lost()).await;
    assert_eq!(get(store, &broker(1)).await, None);
    let late = session.put(&broker(1), Bytes::new(), Expect::Any).await;
    assert_eq!(late, Err(MetadataError::SessionExpired));

    // The process goes on under another session.
    let next = store.open_session(TTL).await.expect("opened");
    next.put(&broker(1), Bytes::new(), Expect::Absent)
        .await
        .expect("the old key is gone");
}

/// A key belongs to the session that wrote it last.
pub async fn a_put_outside_makes_a_key_stay(factory: &dyn StoreFactory) {
    let store = factory.create().await;
    let store = store.as_ref();
    let first = store.open_session(TTL).await.expect("opened");
    let second = store.open_session(TTL).await.expect("opened");
    for number in [1, 2, 3] {
        first
            .put(&broker(number), Bytes::new(), Expect::Any)
            .await
            .expect("unconditional");
    }
    store
        .put(
            keys::CLUSTER_PARTITION,
            &broker(1),
            Bytes::new(),
            Expect::Any,
        )
        .await
        .expect("unconditional");
    second
        .put(&broker(2), Bytes::new(), Expect::Any)
        .await
        .expect("unconditional");
    first.close().await.expect("closed");
    assert!(get(store, &broker(1)).await.is_some());
    assert!(get(store, &broker(2)).await.is_some());
    assert_eq!(get(store, &broker(3)).await, None);
    second.close().await.expect("closed");
    assert!(get(store, &broker(1)).await.is_some());
    assert_eq!(get(store, &broker(2)).await, None);
}

/// The keys of a process that died are gone, at the latest when its session has expired.
pub async fn no_key_of_a_session_survives_its_process(factory: &dyn StoreFactory) {
    let store = factory.create().await;
    let session = store.open_session(TTL).await.expect("opened");
    session
        .put(&broker(1), Bytes::new(), Expect::Any)
        .await
        .expect("unconditional");
    let kept = store
        .put(
            keys::CLUSTER_PARTITION,
            &broker(2),
            Bytes::new(),
            Expect::Any,
        )
        .await
        .expect("unconditional");
    // The handle stays: a process that dies closes nothing.
    let store = factory.restart(store).await;
    factory.pause(TTL * 2).await;
    let store = store.as_ref();
    if get(store, &broker(1)).await.is_some() {
        removed(store, &broker(1), kept).await;
    }
    assert_eq!(get(store, &broker(1)).await, None);
    assert!(get(store, &broker(2)).await.is_some());
    drop(session);
}
