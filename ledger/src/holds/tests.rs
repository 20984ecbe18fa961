//! What backups keep, by the revisions of metadata.

use aquifer_model::id::{AttemptId, LedgerId};

use super::*;
use crate::testing::MemoryStore;

const ID: BackupId = BackupId([1; 16]);

fn object(claimed: u64, died: u64) -> DyingObject {
    DyingObject {
        attempt: AttemptId([2; 16]),
        ledger: LedgerId(1),
        home: "acme/shop".to_owned(),
        location: 1,
        name: "c/data/acme/shop/00/one.aqo".to_owned(),
        upload_id: String::new(),
        until_ms: 0,
        claimed: Revision(claimed),
        died: Revision(died),
        replaced: false,
    }
}

fn scoped(scope: BackupScope) -> Hold {
    Hold {
        id: ID,
        url: "mem://1".to_owned(),
        scope,
        started_ms: 0,
        revisions: Some(BackupRevisions { start: 10, end: 20 }),
        revision: Revision(20),
    }
}

#[test]
fn what_came_before_the_end_and_died_after_the_beginning_is_kept() {
    let hold = scoped(BackupScope::Cluster);
    for (claimed, died, kept) in [
        (1, 9, false),
        (1, 10, true),
        (15, 16, true),
        (20, 30, true),
        (21, 30, false),
    ] {
        assert_eq!(hold.keeps(&object(claimed, died)), kept, "{claimed} {died}");
    }
    let running = Hold {
        revisions: None,
        revision: Revision(10),
        ..hold
    };
    assert!(running.keeps(&object(1_000, 1_001)));
    assert!(!running.keeps(&object(1, 9)));
    let never_whole = DyingObject {
        until_ms: 1,
        ..object(15, 16)
    };
    assert!(!running.keeps(&never_whole));
}

#[test]
fn a_backup_of_a_part_keeps_only_that() {
    let topic = |name: &str| BackupScope::Topic(name.parse().unwrap());
    for (scope, kept) in [
        (BackupScope::Tenant("acme".to_owned()), true),
        (BackupScope::Tenant("acm".to_owned()), false),
        (BackupScope::Tenant("other".to_owned()), false),
        (topic("acme/shop/orders"), true),
        (topic("acme/other/orders"), false),
    ] {
        assert_eq!(
            scoped(scope.clone()).keeps(&object(15, 16)),
            kept,
            "{scope}"
        );
    }
}

#[tokio::test]
async fn a_backup_begins_ends_and_is_forgotten() {
    let store = MemoryStore::default();
    let scope = BackupScope::Tenant("acme".to_owned());
    let began = begin(&store, ID, "mem://1", scope.clone(), 5)
        .await
        .unwrap();
    let hold = load(&store, ID).await.unwrap().unwrap();
    assert!(hold.scope == scope && hold.revisions.is_none() && hold.started_ms == 5);
    assert!(hold.is_abandoned(UNFINISHED_MAX_MS + 6) && !hold.is_abandoned(UNFINISHED_MAX_MS));
    assert!(!forget(&store, ID, Hold::is_finished).await.unwrap());
    let revisions = finish(&store, ID).await.unwrap().unwrap();
    assert!(revisions.start == began.0 && revisions.end > began.0);
    // The answer may be lost, and is asked for again.
    assert_eq!(finish(&store, ID).await.unwrap(), Some(revisions));
    let kept = all(&store).await.unwrap();
    assert_eq!(kept[0].revisions, Some(revisions));
    assert!(!kept[0].is_abandoned(u64::MAX));
    assert!(forget(&store, ID, Hold::is_finished).await.unwrap());
    assert!(forget(&store, ID, Hold::is_finished).await.unwrap());
    assert!(all(&store).await.unwrap().is_empty());
    // What was given up is not finished any more.
    assert_eq!(finish(&store, ID).await.unwrap(), None);
}
