//! What a store does over HTTP when it fails: every answer is right, or an error that says what is
//! the matter, in a bounded time.

use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::library::s3_server::{Kind, S3Server, Wrong, some_bytes};

/// More than the library tries.
const ALWAYS: usize = 20;
const NAME: &str = "c/data/x/one.aqo";
/// As the server sees it.
const KEY: &str = "p/c/data/x/one.aqo";

struct World {
    server: S3Server,
    store: Arc<dyn ColdStore>,
    _keys: tempfile::TempDir,
}

impl World {
    async fn new() -> World {
        aquifer_runtime::net::tls::install_provider();
        let server = S3Server::start().await;
        let keys = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = keys.path().join(name);
            std::fs::write(&path, "something").unwrap();
            path
        };
        let config = StoreConfig {
            endpoint: server.endpoint(),
            allow_http: true,
            access_key_file: file("key"),
            secret_key_file: file("secret"),
            ..StoreConfig::default()
        };
        let patience = Patience {
            request: Duration::from_millis(1_500),
            retries: 2,
            retry_time: Duration::from_secs(2),
        };
        World {
            store: open_with("s3://b/p", &config, patience).unwrap(),
            server,
            _keys: keys,
        }
    }

    /// With an object of some bytes.
    async fn with_object() -> (World, Bytes) {
        let (world, bytes) = (World::new().await, some_bytes(4_000));
        world.store.put_new(NAME, bytes.clone()).await.unwrap();
        (world, bytes)
    }

    async fn upload(&self, parts: &[&[u8]]) -> ColdResult<()> {
        let mut upload = self.store.begin(NAME).await?;
        for part in parts {
            upload.part(Bytes::copy_from_slice(part)).await?;
        }
        upload.complete().await
    }
}

fn is_unavailable<T>(result: &ColdResult<T>) -> bool {
    matches!(result, Err(ColdError::Unavailable(_)))
}

#[tokio::test]
async fn a_server_that_fails_now_and_then_is_asked_again() {
    let (world, bytes) = World::with_object().await;
    for wrong in [
        Wrong::Refused(500, "InternalError"),
        Wrong::Refused(502, "BadGateway"),
        Wrong::Refused(503, "SlowDown"),
        Wrong::Refused(429, "TooManyRequests"),
    ] {
        world.server.next(Kind::Get, &[wrong]);
        let got = world.store.get(NAME, 100..300).await;
        assert_eq!(got, Ok(bytes.slice(100..300)), "{wrong:?}");
        assert_eq!(world.server.count(Kind::Get), 2);
        world.server.next(Kind::Head, &[wrong]);
        assert_eq!(world.store.size(NAME).await, Ok(4_000), "{wrong:?}");
    }
}

#[tokio::test]
async fn a_server_that_always_fails_is_unavailable_and_has_no_half_objects() {
    let (world, _) = World::with_object().await;
    for (status, code) in [
        (500, "InternalError"),
        (503, "SlowDown"),
        // A full bucket.
        (507, "InsufficientStorage"),
    ] {
        let wrong = [Wrong::Refused(status, code); ALWAYS];
        for kind in [Kind::Get, Kind::Head, Kind::Put, Kind::Begin, Kind::List] {
            world.server.next(kind, &wrong);
        }
        let got = world.store.get(NAME, 0..10).await;
        assert!(is_unavailable(&got), "{code}: {got:?}");
        let size = world.store.size(NAME).await;
        assert!(is_unavailable(&size), "{code}: {size:?}");
        let put = world
            .store
            .put_new("c/other", Bytes::from_static(b"x"))
            .await;
        assert!(is_unavailable(&put), "{code}: {put:?}");
        let uploaded = world.upload(&[b"one"]).await;
        assert!(is_unavailable(&uploaded), "{code}: {uploaded:?}");
        // What a listing lacks is never taken for its end.
        let listed = world.store.list("c", None, 10).await;
        assert!(is_unavailable(&listed), "{code}: {listed:?}");
        world.server.heal();
        assert_eq!(world.server.object("p/c/other"), None);
        assert_eq!(world.store.list("c", None, 10).await.unwrap().len(), 1);
    }
}

/// The store has carried a request out, and its answer is lost.
#[tokio::test]
async fn what_was_done_without_an_answer_is_found_by_reading() {
    let world = World::new().await;
    let bytes = some_bytes(400);
    world.server.next(Kind::Put, &[Wrong::AnswerLost]);
    let put = world.store.put_new(NAME, bytes.clone()).await;
    assert!(put.is_err(), "{put:?}");
    assert_eq!(world.store.get(NAME, 0..400).await, Ok(bytes.clone()));
    let again = world.store.put_new(NAME, bytes).await;
    assert!(
        matches!(again, Err(ColdError::AlreadyExists(_))),
        "{again:?}"
    );

    // A part is sent again, in its place.
    world.store.delete(NAME).await.unwrap();
    world.server.next(Kind::Part, &[Wrong::AnswerLost]);
    world.upload(&[b"one", b"two"]).await.unwrap();
    assert_eq!(world.server.object(KEY).unwrap(), b"onetwo");

    // The end is asked for again, and the server knows of no such upload any more.
    world.store.delete(NAME).await.unwrap();
    world.server.next(Kind::Complete, &[Wrong::AnswerLost]);
    let uploaded = world.upload(&[b"one", b"two"]).await;
    assert!(uploaded.is_err(), "{uploaded:?}");
    assert_eq!(world.store.size(NAME).await, Ok(6));
    assert_eq!(world.server.object(KEY).unwrap(), b"onetwo");

    // A deletion: the second one finds nothing, and that is what was wanted.
    world.server.next(Kind::Delete, &[Wrong::AnswerLost]);
    let _ = world.store.delete(NAME).await;
    world.store.delete(NAME).await.unwrap();
    assert_eq!(world.server.object(KEY), None);
    world.store.abort(NAME, "u999").await.unwrap();
}

#[tokio::test]
async fn an_error_behind_a_status_of_success_is_an_error() {
    let world = World::new().await;
    let wrong = [Wrong::ErrorBehindSuccess; ALWAYS];
    world.server.next(Kind::Complete, &wrong);
    let uploaded = world.upload(&[b"one", b"two"]).await;
    assert!(uploaded.is_err(), "{uploaded:?}");
}

#[tokio::test]
async fn a_body_that_drips_ends_in_a_bounded_time() {
    let (world, bytes) = World::with_object().await;
    world.server.next(Kind::Get, &[Wrong::Drips; ALWAYS]);
    let got = world.store.get(NAME, 0..4_000).await;
    assert!(is_unavailable(&got), "{got:?}");
    world.server.heal();
    assert_eq!(world.store.get(NAME, 0..4_000).await, Ok(bytes));
}

#[tokio::test]
async fn a_body_that_ends_early_is_continued_or_an_error_and_never_short() {
    let (world, bytes) = World::with_object().await;
    world.server.next(Kind::Get, &[Wrong::Cut]);
    assert_eq!(world.store.get(NAME, 0..4_000).await, Ok(bytes.clone()));
    assert_eq!(world.server.count(Kind::Get), 2, "the rest is asked for");
    world.server.next(Kind::Get, &[Wrong::Cut; ALWAYS]);
    let got = world.store.get(NAME, 0..4_000).await;
    assert!(is_unavailable(&got), "{got:?}");
    world.server.heal();
    // An answer that says itself that it is shorter.
    world.server.next(Kind::Get, &[Wrong::Short]);
    let got = world.store.get(NAME, 0..4_000).await;
    assert!(is_unavailable(&got), "{got:?}");
    // One that ignores the range.
    world.server.next(Kind::Get, &[Wrong::Whole]);
    let got = world.store.get(NAME, 10..20).await;
    assert!(got.is_err(), "{got:?}");
    assert_eq!(world.store.get(NAME, 10..20).await, Ok(bytes.slice(10..20)));
}

#[tokio::test]
async fn two_objects_are_never_mixed_into_one_answer() {
    let (world, _) = World::with_object().await;
    // The first half comes, and then the object has another tag.
    world.server.next(Kind::Get, &[Wrong::Cut, Wrong::Replaced]);
    let got = world.store.get(NAME, 0..4_000).await;
    assert!(got.is_err(), "{got:?}");
}

#[tokio::test]
async fn an_upload_whose_parts_are_not_those_that_were_sent_does_not_appear() {
    for wrong in [Wrong::OtherTag, Wrong::PartLost] {
        let world = World::new().await;
        world.server.next(Kind::Part, &[wrong]);
        let uploaded = world.upload(&[b"one", b"two"]).await;
        assert!(uploaded.is_err(), "{wrong:?}: {uploaded:?}");
        assert_eq!(world.server.object(KEY), None, "{wrong:?}");
        assert_eq!(world.server.unfinished(), 1);
        world.store.abort(NAME, "u1").await.unwrap();
        assert_eq!(world.server.unfinished(), 0);
    }
    // A store that makes the object all the same: reading it back tells.
    let world = World::new().await;
    world.server.next(Kind::Complete, &[Wrong::MadeWithoutPart]);
    world.upload(&[b"one", b"two"]).await.unwrap();
    assert_eq!(world.store.size(NAME).await, Ok(3));
    let got = world.store.get(NAME, 0..6).await;
    assert!(matches!(got, Err(ColdError::Damaged { .. })), "{got:?}");
}

/// Expired and wrong credentials, and a clock that the store does not accept.
#[tokio::test]
async fn what_a_store_refuses_is_told_and_is_never_taken_for_absence() {
    let (world, bytes) = World::with_object().await;
    for (status, code) in [
        (403, "AccessDenied"),
        (403, "InvalidAccessKeyId"),
        (403, "SignatureDoesNotMatch"),
        (403, "RequestTimeTooSkewed"),
        (400, "ExpiredToken"),
    ] {
        let wrong = [Wrong::Refused(status, code)];
        let is_refused = |error: &ColdError| match status {
            403 => matches!(error, ColdError::Denied(_)),
            _ => matches!(error, ColdError::Unavailable(_)),
        };
        for kind in [Kind::Get, Kind::Put, Kind::Delete, Kind::List] {
            world.server.next(kind, &wrong);
        }
        let got = world.store.get(NAME, 0..10).await.unwrap_err();
        assert!(is_refused(&got), "{code}: {got:?}");
        assert!(got.to_string().contains(code), "{got}");
        let put = world.store.put_new("c/other", bytes.clone()).await;
        assert!(is_refused(&put.unwrap_err()), "{code}");
        let deleted = world.store.delete(NAME).await;
        assert!(is_refused(&deleted.unwrap_err()), "{code}");
        // Of listings the library does not tell why they fail.
        let listed = world.store.list("c", None, 10).await;
        assert!(is_unavailable(&listed), "{code}: {listed:?}");
        assert_eq!(world.store.get(NAME, 0..10).await, Ok(bytes.slice(0..10)));
    }
    assert_eq!(world.server.object("p/c/other"), None);
}
