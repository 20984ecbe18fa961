//! Files of backups through a store: written once, read whole, and any change is found.

use aquifer_runtime::rng::SeededRng;

use super::*;
use crate::testing::{Fault, MemoryColdStore, Op};

const ID: BackupId = BackupId([7; 16]);

fn writer(store: &MemoryColdStore) -> PartWriter {
    PartWriter::new(Arc::new(store.clone()), "c", ID, SeededRng::shared(1))
}

fn topic(name: &str, bytes: usize) -> Item {
    Item::Topic(v1::BackupTopicEntry {
        topic: name.to_owned() + &"x".repeat(bytes),
        ..v1::BackupTopicEntry::default()
    })
}

async fn write(store: &MemoryColdStore, items: Vec<Item>) -> v1::BackupRoot {
    let mut parts = writer(store);
    for item in items {
        parts.add(item).await.unwrap();
    }
    let written = parts.finish().await.unwrap();
    let root = v1::BackupRoot {
        backup_id: Bytes::copy_from_slice(&ID.0),
        cluster: "c".to_owned(),
        lists: written.iter().map(v1::BackupFile::from).collect(),
        ..v1::BackupRoot::default()
    };
    write_root(store, &root).await.unwrap();
    root
}

#[tokio::test]
async fn what_is_written_is_read_in_parts_of_a_bounded_size() {
    let store = MemoryColdStore::default();
    let items: Vec<Item> = (0..40).map(|n| topic(&format!("t{n}-"), 1 << 20)).collect();
    let root = write(&store, items.clone()).await;
    assert_eq!(root.lists.len(), 6, "{:?}", root.lists);
    let read = read_root(&store, "c", ID).await.unwrap();
    assert_eq!(read, root);
    let lists = read_lists(&store, &read).await.unwrap();
    let topics: Vec<Item> = lists.topics.into_iter().map(Item::Topic).collect();
    assert!(topics == items);
    assert_eq!(clusters(&store).await.unwrap(), ["c"]);
    let found = list(&store, "c").await.unwrap();
    assert!(found.len() == 1 && found[0].has_root && found[0].files.len() == 7);
    delete_root(&store, &found[0]).await.unwrap();
    let found = list(&store, "c").await.unwrap();
    assert!(found.len() == 1 && !found[0].has_root && found[0].files.len() == 6);
    delete_parts(&store, &found[0]).await.unwrap();
    assert!(list(&store, "c").await.unwrap().is_empty());
}

#[tokio::test]
async fn every_flipped_bit_and_every_cut_is_found() {
    let store = MemoryColdStore::default();
    let root = write(&store, vec![topic("t", 10)]).await;
    let part = name_of("c", ID, &root.lists[0].name);
    let whole = store
        .get(&part, 0..store.size(&part).await.unwrap())
        .await
        .unwrap();
    for name in [part.clone(), name_of("c", ID, ROOT)] {
        let bytes = store
            .get(&name, 0..store.size(&name).await.unwrap())
            .await
            .unwrap();
        for at in 0..bytes.len() * 8 {
            store.change(&name, |stored| stored[at / 8] ^= 1 << (at % 8));
            let read = match read_root(&store, "c", ID).await {
                Ok(root) => read_lists(&store, &root).await.map(drop),
                Err(error) => Err(error),
            };
            assert!(
                matches!(read, Err(ColdError::Damaged { .. })),
                "{name} bit {at}: {read:?}"
            );
            store.change(&name, |stored| stored[at / 8] ^= 1 << (at % 8));
        }
        for length in 0..bytes.len() {
            store.change(&name, |stored| stored.truncate(length));
            let read = match read_root(&store, "c", ID).await {
                Ok(root) => read_lists(&store, &root).await.map(drop),
                Err(error) => Err(error),
            };
            assert!(read.is_err(), "{name} cut at {length}");
            store.change(&name, |stored| *stored = bytes.to_vec());
        }
    }
    // A part of another backup is refused.
    let other = BackupId([8; 16]);
    let moved = name_of("c", other, &root.lists[0].name);
    store.put_new(&moved, whole).await.unwrap();
    let file = BackupFile::try_from(root.lists[0].clone()).unwrap();
    assert!(read_part(&store, "c", other, &file).await.is_err());
}

#[tokio::test]
async fn an_answer_that_was_lost_is_no_failure_and_no_root_is_replaced() {
    let store = MemoryColdStore::default();
    store.judge(|op, _| (op == Op::Put).then_some(Fault::AnswerLost));
    let root = write(&store, vec![topic("t", 10)]).await;
    store.heal();
    assert_eq!(read_root(&store, "c", ID).await.unwrap(), root);
    let other = v1::BackupRoot {
        topics: 5,
        ..root.clone()
    };
    let again = write_root(&store, &other).await;
    assert!(
        matches!(again, Err(ColdError::AlreadyExists(_))),
        "{again:?}"
    );
    store.judge(|op, _| (op == Op::Put).then_some(Fault::Fails));
    let mut parts = writer(&store);
    parts.add(topic("u", 1)).await.unwrap();
    assert!(parts.finish().await.is_err());
}
