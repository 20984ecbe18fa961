//! Records of topics that this version must not serve.

use aquifer_model::hash::KeyHash;

use super::*;

/// A topic whose keys are hashed in another way is not served: they would go to other partitions.
#[tokio::test]
async fn a_topic_with_an_unknown_key_hash_is_refused() {
    let world = TestWorld::new(1);
    let owner = Owner::open(world.logs(), options(2)).await;
    assert_eq!(owner.cell.key_hash(), KeyHash::Murmur3);
    for hash in [0, 2] {
        let other = v1::TopicRecord {
            key_hash: hash,
            ..owner.cell.record()
        };
        let (key, home) = (keys::topic(&topic()), keys::partition_of_topic(&topic()));
        let put = world
            .store
            .put(&home, &key, record::encode(other), Expect::Any);
        put.await.unwrap();
        let loaded = TopicRecordCell::load(world.logs(), &topic(), Vec::new()).await;
        let error = loaded.map(drop).unwrap_err();
        assert!(error.to_string().contains("hashed"), "{hash}: {error}");
    }
}
