//! Updates against rivals, lost outcomes and guards: every end says what is stored.

use std::future::ready;
use std::sync::Arc;

use aquifer_runtime::task::TaskGroup;

use super::*;
use crate::keys;
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
    // Nobody can read it: it says so, and is not taken for refused.
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
