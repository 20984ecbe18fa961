//! Reads of keys that do not stand together, all as they were at one revision.
//!
//! A store serves a revision for a while only (see [`scan`](crate::scan)): after `Unavailable` the
//! caller begins again with another snapshot.

use crate::error::MetadataResult;
use crate::keys;
use crate::store::{MetadataStore, PageToken, Revision, ScanPage};

/// See the module.
pub struct Snapshot<'a> {
    store: &'a dyn MetadataStore,
    revision: Revision,
}

impl<'a> Snapshot<'a> {
    /// The newest state.
    ///
    /// # Errors
    /// Those of [`MetadataStore::scan`].
    pub async fn newest(store: &'a dyn MetadataStore) -> MetadataResult<Snapshot<'a>> {
        let page = store.scan(keys::TENANTS_PREFIX, None, 1).await?;
        Ok(Snapshot {
            store,
            revision: page.revision,
        })
    }

    /// A page of the keys that begin with a prefix, behind a key.
    ///
    /// # Errors
    /// Those of [`MetadataStore::scan`].
    pub async fn page(&self, prefix: &str, after: &str, limit: usize) -> MetadataResult<ScanPage> {
        let token = PageToken {
            after: after.to_owned(),
            revision: self.revision,
        };
        self.store.scan(prefix, Some(token), limit).await
    }
}

#[cfg(test)]
mod tests {
    use aquifer_runtime::clock::SystemClock;
    use aquifer_runtime::disk::{Disk, SimDisk};
    use aquifer_runtime::task::TaskGroup;
    use bytes::Bytes;

    use super::*;
    use crate::embedded::{EmbeddedOptions, EmbeddedStore};
    use crate::store::Expect;

    #[tokio::test]
    async fn keys_in_different_places_are_of_one_revision() {
        let (disk, tasks) = (SimDisk::new(), TaskGroup::new("store"));
        disk.create_dir_all("/data".as_ref()).unwrap();
        let store = EmbeddedStore::open(
            "/data/metadata.redb".into(),
            EmbeddedOptions::default(),
            disk.shared(),
            SystemClock::shared(),
            &tasks,
        );
        let store = store.await.unwrap();
        let put = async |key: String, value: &'static [u8]| {
            let value = Bytes::from_static(value);
            let put = store.put(keys::CLUSTER_PARTITION, &key, value, Expect::Any);
            put.await.unwrap();
        };
        for name in ["a", "ab"] {
            put(keys::tenant(name), b"old").await;
            put(keys::token(name), b"old").await;
        }
        let snapshot = Snapshot::newest(&store).await.unwrap();
        put(keys::tenant("a"), b"new").await;
        put(keys::token("a"), b"new").await;
        put(keys::tenant("b"), b"new").await;
        for prefix in [keys::TENANTS_PREFIX, keys::TOKENS_PREFIX] {
            let page = snapshot.page(prefix, "", 10).await.unwrap();
            assert_eq!(page.items.len(), 2, "{prefix}");
            assert!(page.items.iter().all(|stored| stored.value == "old"));
        }
        let first = keys::tenant("a");
        let behind = snapshot.page(keys::TENANTS_PREFIX, &first, 10);
        assert_eq!(behind.await.unwrap().items.len(), 1);
    }
}
