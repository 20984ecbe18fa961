//! Updates against rivals, lost outcomes and guards: every end says what is stored.

use std::future::ready;
use std::sync::Arc;

use aquifer_model::id::{BookieId, BrokerId, LedgerId};
use aquifer_model::policy::PolicyScope;
use aquifer_model::topic::{NamespaceName, TopicName};
use aquifer_proto::v1;
use aquifer_runtime::task::TaskGroup;

use super::*;
use crate::keys::{self, BundleRange};
use crate::record::encode;
use crate::scripted::{ScriptedStore, Turn};

type Outcome = Result<Updated<u32>, UpdateError<MetadataError>>;

fn key() -> String {
    keys::cluster("a")
}

/// Adds one to a number, unless it is above nine already.
async fn add_one(store: &Arc<ScriptedStore>, guards: &[Guard]) -> Outcome {
    let store: &dyn MetadataStore = &**store;
    store
        .update(&key(), guards, |stored| ready(one_more(stored)))
        .await
}

fn one_more(stored: Option<Versioned>) -> Result<Change<u32>, MetadataError> {
    let text = stored.map(|stored| String::from_utf8_lossy(&stored.value).into_owned());
    let number: u32 = text.map_or(0, |text| text.parse().unwrap());
    if number == 13 {
        return Err(MetadataError::Invalid("unlucky".to_owned()));
    }
    if number > 9 {
        return Ok(Change::none(number));
    }
    let more = (number + 1).to_string();
    Ok(Change::put(
        keys::CLUSTER_PARTITION,
        more.into(),
        number + 1,
    ))
}

async fn open() -> Arc<ScriptedStore> {
    ScriptedStore::new(&TaskGroup::new("test")).await
}

#[tokio::test]
async fn a_change_is_decided_again_on_what_a_rival_has_written() {
    let store = open().await;
    let made = add_one(&store, &[]).await.unwrap();
    assert_eq!((made.answer, made.applied.is_some()), (1, true));
    let rivals = ["3", "5", "7"].map(|value| Turn::Rival(key(), value));
    store.commits(rivals);
    assert_eq!(add_one(&store, &[]).await.unwrap().answer, 8);
    assert_eq!(store.text(&key()).await.as_deref(), Some("8"));
    store.commits([Turn::Rival(key(), "20")]);
    let kept = add_one(&store, &[]).await.unwrap();
    assert_eq!((kept.answer, kept.applied), (20, None));
    store.write(&key(), "13").await;
    let refused = add_one(&store, &[]).await;
    assert!(
        matches!(refused, Err(UpdateError::Refused(_))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn attempts_end() {
    let store = open().await;
    store.commits((0..ATTEMPTS_MAX).map(|_| Turn::Rival(key(), "5")));
    let contended = add_one(&store, &[]).await;
    assert!(
        matches!(&contended, Err(UpdateError::Contended { key: k, .. }) if *k == key()),
        "{contended:?}"
    );
    assert_eq!(store.text(&key()).await.as_deref(), Some("5"));
}

#[tokio::test]
async fn a_guard_that_does_not_hold_ends_it() {
    let store = open().await;
    let other = keys::cluster("owner");
    let revision = store.write(&other, "me").await;
    let guard = Guard {
        key: other.clone(),
        expect: Expect::Revision(revision),
    };
    assert!(add_one(&store, std::slice::from_ref(&guard)).await.is_ok());
    let now = store.write(&other, "you").await;
    let expected = UpdateError::Guard {
        key: other,
        current: Some(now),
    };
    assert_eq!(add_one(&store, &[guard]).await, Err(expected));
    assert_eq!(store.text(&key()).await.as_deref(), Some("1"));
}

#[tokio::test]
async fn what_is_not_known_is_decided_on_what_is_there() {
    let store = open().await;
    store.write(&key(), "9").await;
    // Made: the next look finds that nothing is left to do.
    store.commits([Turn::MadeUnknown]);
    let found = add_one(&store, &[]).await.unwrap();
    assert_eq!((found.answer, found.applied), (10, None));
    // Not made: it is made now.
    store.write(&key(), "1").await;
    store.commits([Turn::LostUnknown]);
    let made = add_one(&store, &[]).await.unwrap();
    assert_eq!((made.answer, made.applied.is_some()), (2, true));
    // What ends a later attempt does not say that the first was not made.
    let other = keys::cluster("owner");
    let guard = Guard {
        key: other.clone(),
        expect: Expect::Revision(store.write(&other, "me").await),
    };
    store.commits([Turn::LostUnknown, Turn::Rival(other, "you")]);
    let guarded = add_one(&store, &[guard]).await;
    assert!(
        matches!(guarded, Err(UpdateError::Unknown(_))),
        "{guarded:?}"
    );
    // It cannot be read: it says so, and is not taken for refused.
    store.commits([Turn::Away(1)]);
    let unknown = add_one(&store, &[]).await;
    assert!(
        matches!(unknown, Err(UpdateError::Unknown(_))),
        "{unknown:?}"
    );
    assert!(matches!(
        unknown.map_err(UpdateError::flatten),
        Err(MetadataError::UnknownOutcome(_))
    ));
}

#[tokio::test]
async fn what_goes_with_it_is_made_with_it_or_decided_anew() {
    let store = open().await;
    let beside = keys::cluster("b");
    let update = || async {
        let dynamic: &dyn MetadataStore = &*store;
        let beside = &beside;
        let change = |stored: Option<Versioned>| async move {
            let seen = dynamic.get(beside).await?;
            let expect = seen.map_or(Expect::Absent, |seen| Expect::Revision(seen.revision));
            let removal = Operation::Delete {
                key: beside.clone(),
                expect,
            };
            let one = one_more(stored)?;
            Ok::<_, MetadataError>(one.with([removal]))
        };
        dynamic.update(&key(), &[], change).await
    };
    store.commits([Turn::Rival(keys::cluster("b"), "late")]);
    assert_eq!(update().await.unwrap().answer, 1);
    assert_eq!(store.text(&keys::cluster("b")).await, None);
}

#[tokio::test]
async fn a_change_with_a_guard_is_decided_again_when_that_does_not_hold() {
    let store = open().await;
    let beside = keys::cluster("b");
    store.write(&beside, "old").await;
    let dynamic: &dyn MetadataStore = &*store;
    let (looks, beside) = (std::cell::Cell::new(0), &beside);
    let change = |stored: Option<Versioned>| {
        looks.set(looks.get() + 1);
        async move {
            let seen = dynamic.get(beside).await?;
            let expect = seen.map_or(Expect::Absent, |seen| Expect::Revision(seen.revision));
            let key = beside.clone();
            Ok::<_, MetadataError>(one_more(stored)?.guarded(Guard { key, expect }))
        }
    };
    store.commits([Turn::Rival(beside.clone(), "new")]);
    let made = dynamic.update(&key(), &[], change).await.unwrap();
    assert_eq!((made.answer, looks.get()), (1, 2));
    assert_eq!(store.text(beside).await.as_deref(), Some("new"));
}

/// A record as a build of the future has written it.
fn of_the_future(value: &Bytes) -> Bytes {
    let mut bytes = value.to_vec();
    assert_eq!(bytes[0], 8, "the version comes first");
    bytes[1] = 9;
    // A field that this build does not know.
    bytes.extend([0xfa, 0x3f, 0x01, 0x07]);
    bytes.into()
}

/// Every kind of record that goes with a namespace, at its key.
fn in_a_namespace() -> Vec<(String, Bytes)> {
    let namespace: NamespaceName = "a/b".parse().unwrap();
    let topic: TopicName = "a/b/t".parse().unwrap();
    let range = BundleRange { first: 0, last: 9 };
    let ledger = LedgerId(7);
    vec![
        (
            keys::namespace(&namespace),
            encode(v1::NamespaceRecord::default()),
        ),
        (keys::topic(&topic), encode(v1::TopicRecord::default())),
        (
            keys::policies(&PolicyScope::Topic(topic)),
            encode(v1::PolicyRecord::default()),
        ),
        (
            keys::bundle_owner(&namespace, range),
            encode(v1::BundleOwnerRecord::default()),
        ),
        (keys::ledger(ledger), encode(v1::LedgerRecord::default())),
        (
            keys::deletion(ledger),
            encode(v1::DeletionIntent::default()),
        ),
        (
            keys::under_replicated(ledger),
            encode(v1::UnderReplicatedRecord::default()),
        ),
    ]
}

/// Every other kind, at its key.
fn in_the_cluster() -> Vec<(String, Bytes)> {
    let bookie = BookieId([1; 16]);
    vec![
        (keys::tenant("a"), encode(v1::TenantRecord::default())),
        (
            keys::id_range(keys::IDS_LEDGER),
            encode(v1::IdRangeRecord::default()),
        ),
        (keys::bookie(bookie), encode(v1::BookieRecord::default())),
        (keys::cookie(bookie), encode(v1::CookieRecord::default())),
        (
            keys::broker(BrokerId([1; 16])),
            encode(v1::BrokerRecord::default()),
        ),
        (
            keys::repair_lock(LedgerId(7)),
            encode(v1::LockRecord::default()),
        ),
    ]
}

#[tokio::test]
async fn what_a_newer_build_has_written_is_left_alone() {
    let store = open().await;
    let namespace: NamespaceName = "a/b".parse().unwrap();
    let home = keys::partition_of_namespace(&namespace);
    let at_home = in_a_namespace()
        .into_iter()
        .map(|(key, value)| (key, home.clone(), value));
    let others = in_the_cluster().into_iter();
    let others = others.map(|(key, value)| (key, keys::CLUSTER_PARTITION.to_owned(), value));
    for (key, partition, value) in at_home.chain(others) {
        let value = of_the_future(&value);
        let put = store.put(&partition, &key, value.clone(), Expect::Absent);
        put.await.unwrap();
        let dynamic: &dyn MetadataStore = &*store;
        let asked = std::cell::Cell::new(false);
        let blind = |_| {
            asked.set(true);
            ready(Ok(Change::put(&partition, Bytes::from_static(b"mine"), ())))
        };
        let refused = dynamic
            .update::<(), MetadataError, _>(&key, &[], blind)
            .await;
        let Err(UpdateError::Store(MetadataError::NewerFormat { key: at, found, .. })) = &refused
        else {
            panic!("{key}: {refused:?}");
        };
        assert_eq!((at, *found, asked.get()), (&key, 9, false));
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("upgrade this process"), "{text}");
        assert_eq!(store.get(&key).await.unwrap().unwrap().value, value);
    }
}
