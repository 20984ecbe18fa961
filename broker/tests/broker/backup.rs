//! Topics are brought back from backups as long as their objects are kept for it.

use aquifer_ledger::testing::TestWorld;
use aquifer_log::offload::tier::OffloadSettings;
use aquifer_log::testing::{MemoryColdStore, over_cold};
use aquifer_metadata::store::{Expect, MetadataStore};
use aquifer_metadata::{keys, record};
use aquifer_model::backup::{BackupFile, BackupScope, ForgetBackup, RestoreOutcome, RestoreTopic};
use aquifer_model::id::{BackupId, LedgerId};
use aquifer_model::place::Place;
use aquifer_model::policy::{EffectivePolicies, Rollover};
use aquifer_proto::v1::{NamespaceRecord, Removal};
use aquifer_protocol_api::admin::{Admin, Deletion};
use aquifer_protocol_api::backup::Backups;
use aquifer_protocol_api::error::ErrorKind;

use crate::support::{Harness, batch, config, ctx, default_namespace, kind, name, open, until};

const URL: &str = "mem://1";

/// A backup of a topic: its files and its highest ledger.
struct Saved {
    id: BackupId,
    files: Vec<BackupFile>,
    last: LedgerId,
}

async fn save(harness: &Harness, topic: &str) -> Saved {
    let (broker, topic, ctx) = (&harness.broker, name(topic), ctx());
    let begun = broker.begin_backup(&ctx, URL.to_owned(), BackupScope::Cluster);
    let id = begun.await.unwrap().id;
    let (mut end, mut files) = (None, Vec::new());
    loop {
        let captured = broker.backup_topic(&ctx, id, topic.clone(), end).await;
        let captured = captured.unwrap();
        end = Some(captured.end);
        files.extend(captured.files);
        if let Some(totals) = captured.totals {
            broker.finish_backup(&ctx, id).await.unwrap();
            let last = LedgerId(totals.last_ledger);
            return Saved { id, files, last };
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

fn wanted(saved: &Saved, topic: &str) -> RestoreTopic {
    RestoreTopic {
        url: URL.to_owned(),
        cluster: "test".to_owned(),
        backup: saved.id,
        topic: name(topic),
        as_topic: None,
        files: saved.files.clone(),
        last_ledger: saved.last,
        trim_after_ms: None,
        prepare: false,
    }
}

async fn delete(harness: &Harness, topic: &str) {
    let ctx = ctx();
    let deleted = harness
        .broker
        .delete_topic(&ctx, name(topic), Deletion::Force);
    deleted.await.unwrap();
    until("the ledgers to go", || async {
        harness.world.store.keys("l/").is_empty()
    })
    .await;
}

/// A broker with objects in this store, and the topic `orders` with four messages in two ledgers.
async fn filled(cold: &MemoryColdStore) -> Harness {
    let mut world = TestWorld::new(1);
    world.clock = None;
    let logs = over_cold(world.process(), cold, OffloadSettings::default());
    let harness = Harness::over(world, config(), logs).await;
    let two_each = Rollover {
        entries: 2,
        ..Rollover::default()
    };
    harness
        .set_policies(EffectivePolicies {
            rollover: two_each,
            ..EffectivePolicies::default()
        })
        .await;
    let mut producer = harness.producer("orders", "p").await;
    for number in 0..4 {
        producer.publish(&[&format!("m{number}")]).await;
    }
    drop(producer);
    harness
}

/// A deletion of the namespace has begun, and the topics are all deleted.
#[tokio::test]
async fn a_topic_is_not_brought_back_into_a_namespace_that_is_deleted() {
    let cold = MemoryColdStore::default();
    let harness = filled(&cold).await;
    let saved = save(&harness, "orders").await;
    delete(&harness, "orders").await;

    let (store, namespace) = (&harness.world.store, default_namespace());
    let key = keys::namespace(&namespace);
    let found = store.get(&key).await.unwrap().unwrap();
    let mut marked: NamespaceRecord = record::decode(&found).unwrap();
    marked.set_removal(Removal::All);
    let partition = keys::partition_of_namespace(&namespace);
    let (value, expect) = (record::encode(marked), Expect::Revision(found.revision));
    store.put(&partition, &key, value, expect).await.unwrap();
    let prepare = RestoreTopic {
        prepare: true,
        ..wanted(&saved, "orders")
    };
    let refused = harness.broker.restore_topic(&ctx(), prepare).await;
    // The sweep may have finished the deletion.
    let kind = refused.unwrap_err().kind;
    let is_refused = matches!(kind, ErrorKind::FailedPrecondition | ErrorKind::NotFound);
    assert!(is_refused, "{kind:?}");
    assert!(harness.world.store.keys("restores/").is_empty());
}

#[tokio::test]
async fn a_topic_is_not_brought_back_from_a_backup_that_was_expired() {
    let cold = MemoryColdStore::default();
    let harness = filled(&cold).await;
    let saved = save(&harness, "orders").await;
    delete(&harness, "orders").await;
    // As long as it is kept.
    let broker = &harness.broker;
    let restored = broker.restore_topic(&ctx(), wanted(&saved, "orders")).await;
    assert_eq!(restored.unwrap().outcome, RestoreOutcome::Restored);
    let mut reader = harness.reader("orders", Place::Earliest).await;
    assert_eq!(reader.take_payloads(4).await, ["m0", "m1", "m2", "m3"]);
    drop(reader);
    delete(&harness, "orders").await;
    assert_eq!(cold.names().len(), 2, "the backup keeps them");

    let forget = ForgetBackup {
        url: URL.to_owned(),
        backup: Some(saved.id),
        unfinished: false,
    };
    broker.forget_backup(&ctx(), forget).await.unwrap();
    let refused = broker.restore_topic(&ctx(), wanted(&saved, "orders")).await;
    let error = refused.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidArgument, "{error:?}");
    let text = error.message;
    assert!(text.contains("does not keep the objects"), "{text}");
    // Nothing of it was written that would keep or miss an object.
    assert!(harness.world.store.keys("l/").is_empty());
    let found = harness
        .broker
        .describe_topic(&ctx(), name("orders"), false)
        .await;
    assert!(found.is_err(), "{found:?}");
}

#[tokio::test]
async fn a_topic_that_was_terminated_is_brought_back_with_its_end() {
    let cold = MemoryColdStore::default();
    let harness = filled(&cold).await;
    let broker = &harness.broker;
    let open_yet = save(&harness, "orders").await;
    let ends = broker.terminate_topic(&ctx(), name("orders")).await;
    let ends = ends.unwrap();
    let ended = save(&harness, "orders").await;
    for (saved, expected) in [(open_yet, Vec::new()), (ended, ends)] {
        delete(&harness, "orders").await;
        let restored = broker.restore_topic(&ctx(), wanted(&saved, "orders")).await;
        assert_eq!(restored.unwrap().outcome, RestoreOutcome::Restored);
        let stats = harness.stats("orders").await;
        assert_eq!((stats.end_index.0, &stats.ends), (4, &expected));
        let producer = harness.try_producer(open("orders", "q")).await;
        let refused = (!expected.is_empty()).then_some(ErrorKind::Terminated);
        assert_eq!(kind(&producer), refused);
    }
}

/// A copy comes beside what runs, and nothing is written over (I10).
#[tokio::test]
async fn a_topic_comes_back_under_another_name_beside_the_one_that_runs() {
    let cold = MemoryColdStore::default();
    let harness = filled(&cold).await;
    let saved = save(&harness, "orders").await;
    let broker = &harness.broker;
    let renamed = |target: &str| RestoreTopic {
        as_topic: Some(name(target)),
        ..wanted(&saved, "orders")
    };
    for expected in [RestoreOutcome::Restored, RestoreOutcome::Done] {
        let restored = broker.restore_topic(&ctx(), renamed("copy")).await;
        assert_eq!(restored.unwrap().outcome, expected);
    }
    let mut taken = harness.producer("taken", "p").await;
    taken.publish(&["t0"]).await;
    let refused = broker.restore_topic(&ctx(), renamed("taken")).await;
    let error = refused.unwrap_err();
    assert_eq!(error.kind, ErrorKind::AlreadyExists, "{error:?}");
    assert!(error.advice.contains("under another name"), "{error:?}");
    for (topic, expected) in [("orders", 4), ("copy", 4), ("taken", 1)] {
        let mut producer = harness.producer(topic, "later").await;
        producer.publish(&["later"]).await;
        let mut reader = harness.reader(topic, Place::Earliest).await;
        let found = reader.take_payloads(expected + 1).await;
        let before: Vec<String> = match topic {
            "taken" => vec!["t0".to_owned()],
            _ => (0..4).map(|number| format!("m{number}")).collect(),
        };
        assert_eq!(found[..expected], before, "{topic}");
        assert_eq!(found[expected], "later", "{topic}");
    }
}

/// What producers have stored is in the ledgers of the copy.
#[tokio::test]
async fn a_duplicate_in_a_copy_gets_its_position_there_i8() {
    let cold = MemoryColdStore::default();
    let harness = filled(&cold).await;
    let saved = save(&harness, "orders").await;
    let renamed = RestoreTopic {
        as_topic: Some(name("copy")),
        ..wanted(&saved, "orders")
    };
    let restored = harness.broker.restore_topic(&ctx(), renamed).await;
    assert_eq!(restored.unwrap().outcome, RestoreOutcome::Restored);
    let ledgers = harness.stats("copy").await.ledgers;
    let mut producer = harness.producer("copy", "p").await;
    for number in 0..4 {
        let again = batch("p", number, &[&format!("m{number}")]);
        producer.send_batch(again).await.unwrap();
        let repeated = producer.receipt().await.unwrap();
        assert!(repeated.duplicate, "{number}");
        let stored = repeated.stored.unwrap();
        let ledger = ledgers.iter().find(|stats| stats.ledger == stored.ledger);
        // Each entry has one message.
        let first = ledger.unwrap().first_index.0;
        assert_eq!(stored.base_index.0, number);
        assert_eq!(stored.entry.0, number - first);
    }
    assert_eq!(harness.stats("copy").await.end_index.0, 4);
}
