//! Backups: what they are made of, and reading and writing them.
//!
//! A backup is a directory of small files beside the objects that it names:
//! `CLUSTER/backups/ID/part-…` with what is known of topics, and `root`, written last. Without a
//! root there is no backup. The root has the lists with their checksums, a list has the topics with
//! those of their parts, and a part has records of ledgers, which name objects.
//!
//! Invariants:
//! - No file is written twice: names are drawn, and the root is put only where none is.
//! - What was not read whole, with the checksums that the file above it says, is not used.

pub mod file;
mod found;
pub mod verify;

use std::collections::BTreeMap;
use std::sync::Arc;

use aquifer_model::backup::BackupFile;
use aquifer_model::id::{BackupId, LocationId};
use aquifer_proto::convert::backup::files;
use aquifer_proto::v1;
use aquifer_proto::v1::backup_item::Item;
use aquifer_runtime::rng::SharedRng;
use aquifer_runtime::secret::sha256;
use bytes::Bytes;
use prost::Message;

use crate::backup::file::{FILE_BYTES_MAX, Kind, decode, encode};
use crate::error::{ColdError, ColdResult};
use crate::format::Crc64;
use crate::location::PlaceOfObjects;
use crate::store::ColdStore;

pub use self::found::{Found, clusters, delete_parts, delete_root, list};

/// Bytes of the items of a part, beyond the first, and how many there are.
const PART_BYTES: usize = 8 << 20;
const PART_ITEMS: usize = 4096;
/// Files of one topic, at most: a million ledgers.
const TOPIC_FILES_MAX: usize = 256;
/// Topics of a backup, at most.
const TOPICS_MAX: usize = 2_000_000;
/// The file that is written last.
const ROOT: &str = "root";
/// What this build knows of what a root may need.
const FEATURES: u64 = 0;

/// Where a file of a backup is.
#[must_use]
pub fn name_of(cluster: &str, backup: BackupId, file: &str) -> String {
    format!("{cluster}/backups/{backup}/{file}")
}

fn damaged(name: &str, reason: impl Into<String>) -> ColdError {
    ColdError::Damaged {
        name: name.to_owned(),
        reason: reason.into(),
    }
}

fn crc64(bytes: &[u8]) -> u64 {
    let mut crc = Crc64::new();
    crc.update(bytes);
    crc.value()
}

/// Writes items into files of a bounded size.
pub struct PartWriter {
    store: Arc<dyn ColdStore>,
    cluster: String,
    backup: BackupId,
    rng: SharedRng,
    items: Vec<v1::BackupItem>,
    bytes: usize,
    written: Vec<BackupFile>,
}

impl PartWriter {
    /// Writes nothing yet.
    #[must_use]
    pub fn new(
        store: Arc<dyn ColdStore>,
        cluster: &str,
        backup: BackupId,
        rng: SharedRng,
    ) -> PartWriter {
        PartWriter {
            store,
            cluster: cluster.to_owned(),
            backup,
            rng,
            items: Vec::new(),
            bytes: 0,
            written: Vec::new(),
        }
    }

    /// Adds an item; writes what was added before when that is enough for a file.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn add(&mut self, item: Item) -> ColdResult<()> {
        let item = v1::BackupItem { item: Some(item) };
        let bytes = item.encoded_len() + 16;
        let is_full = self.bytes + bytes > PART_BYTES || self.items.len() >= PART_ITEMS;
        if is_full && !self.items.is_empty() {
            self.write().await?;
        }
        self.bytes += bytes;
        self.items.push(item);
        Ok(())
    }

    /// Writes the rest, and answers all files.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn finish(mut self) -> ColdResult<Vec<BackupFile>> {
        if !self.items.is_empty() {
            self.write().await?;
        }
        Ok(self.written)
    }

    async fn write(&mut self) -> ColdResult<()> {
        self.bytes = 0;
        let items = v1::BackupItems {
            items: std::mem::take(&mut self.items),
        };
        let drawn = BackupId(self.rng.id16());
        let name = format!("part-{drawn}");
        let path = name_of(&self.cluster, self.backup, &name);
        let bytes = encode(Kind::Part, self.backup, &items.encode_to_vec());
        let bytes = Bytes::from(bytes.map_err(|error| ColdError::damaged(&path, &error))?);
        put(&*self.store, &path, &bytes).await?;
        self.written.push(BackupFile {
            name,
            bytes: bytes.len() as u64,
            checksum: crc64(&bytes),
            sha256: sha256(&bytes),
        });
        Ok(())
    }
}

/// Writes a file, once; an answer that was lost is asked for.
async fn put(store: &dyn ColdStore, path: &str, bytes: &Bytes) -> ColdResult<()> {
    match store.put_new(path, bytes.clone()).await {
        Ok(()) => Ok(()),
        Err(ColdError::AlreadyExists(_) | ColdError::Unavailable(_)) => {
            let found = read(store, path).await?;
            match found == *bytes {
                true => Ok(()),
                false => Err(ColdError::AlreadyExists(path.to_owned())),
            }
        }
        Err(error) => Err(error),
    }
}

async fn read(store: &dyn ColdStore, path: &str) -> ColdResult<Bytes> {
    let size = store.size(path).await?;
    if size > FILE_BYTES_MAX as u64 {
        return Err(damaged(path, "it is larger than any file of a backup"));
    }
    store.get(path, 0..size).await
}

/// Reads a part, and checks that it is what was written.
///
/// # Errors
/// Those of the store; `Damaged`.
pub async fn read_part(
    store: &dyn ColdStore,
    cluster: &str,
    backup: BackupId,
    file: &BackupFile,
) -> ColdResult<Vec<Item>> {
    let path = name_of(cluster, backup, &file.name);
    let bytes = read(store, &path).await?;
    let is_it = bytes.len() as u64 == file.bytes
        && crc64(&bytes) == file.checksum
        && sha256(&bytes) == file.sha256;
    if !is_it {
        return Err(damaged(
            &path,
            "its checksum is not the one of what was written",
        ));
    }
    let items: v1::BackupItems =
        decode(Kind::Part, backup, &bytes).map_err(|error| ColdError::damaged(&path, &error))?;
    // An item without content is of a kind that this build does not know.
    let item = |item: v1::BackupItem| {
        item.item
            .ok_or_else(|| damaged(&path, "an item is unknown"))
    };
    items.items.into_iter().map(item).collect()
}

/// Writes the root: from now on there is a backup.
///
/// # Errors
/// Those of the store; `AlreadyExists` when there is another root.
pub async fn write_root(store: &dyn ColdStore, root: &v1::BackupRoot) -> ColdResult<()> {
    let backup = id_of(root).map_err(|reason| damaged(ROOT, reason))?;
    let path = name_of(&root.cluster, backup, ROOT);
    let bytes = encode(Kind::Root, backup, &root.encode_to_vec());
    let bytes = bytes.map_err(|error| ColdError::damaged(&path, &error))?;
    put(store, &path, &bytes.into()).await
}

fn id_of(root: &v1::BackupRoot) -> Result<BackupId, String> {
    BackupId::try_from(root.backup_id.as_ref()).map_err(|_| "its id is malformed".to_owned())
}

/// Reads a root.
///
/// # Errors
/// Those of the store; `Damaged`.
pub async fn read_root(
    store: &dyn ColdStore,
    cluster: &str,
    backup: BackupId,
) -> ColdResult<v1::BackupRoot> {
    let path = name_of(cluster, backup, ROOT);
    let bytes = read(store, &path).await?;
    let root: v1::BackupRoot =
        decode(Kind::Root, backup, &bytes).map_err(|error| ColdError::damaged(&path, &error))?;
    let unknown = root.required_features & !FEATURES;
    match id_of(&root) {
        Ok(id) if id != backup => Err(damaged(&path, "it is the root of another backup")),
        Ok(_) if root.cluster != cluster => Err(damaged(&path, "it is of another cluster")),
        Ok(_) if unknown != 0 => Err(damaged(
            &path,
            format!("it needs a newer version of aquifer (features {unknown:x})"),
        )),
        Ok(_) => Ok(root),
        Err(reason) => Err(damaged(&path, reason)),
    }
}

/// What the lists of a backup say.
#[derive(Debug, Clone, Default)]
pub struct Lists {
    /// Tenants.
    pub tenants: Vec<v1::BackupTenant>,
    /// Namespaces.
    pub namespaces: Vec<v1::BackupNamespace>,
    /// Topics, a partitioned one before its partitions.
    pub topics: Vec<v1::BackupTopicEntry>,
    /// Tokens.
    pub tokens: Vec<v1::BackupToken>,
    /// Grants.
    pub grants: Vec<v1::BackupGrant>,
    /// Roles.
    pub roles: Vec<v1::BackupRole>,
    /// Revocations of JSON Web Tokens.
    pub revocations: Vec<v1::BackupRevocation>,
    /// The files that have tokens, grants, roles or revocations.
    pub access: Vec<BackupFile>,
}

impl Lists {
    fn access_items(&self) -> usize {
        self.tokens.len() + self.grants.len() + self.roles.len() + self.revocations.len()
    }
}

/// Reads the lists of a backup.
///
/// # Errors
/// Those of the store; `Damaged`.
pub async fn read_lists(store: &dyn ColdStore, root: &v1::BackupRoot) -> ColdResult<Lists> {
    let backup = id_of(root).map_err(|reason| damaged(ROOT, reason))?;
    let path = name_of(&root.cluster, backup, ROOT);
    let mut lists = Lists::default();
    for file in files(root.lists.clone()).map_err(|reason| damaged(&path, reason))? {
        let before = lists.access_items();
        for item in read_part(store, &root.cluster, backup, &file).await? {
            match item {
                Item::Token(token) => lists.tokens.push(token),
                Item::Grant(grant) => lists.grants.push(grant),
                Item::Role(role) => lists.roles.push(role),
                Item::Revocation(revocation) => lists.revocations.push(revocation),
                Item::Tenant(tenant) => lists.tenants.push(tenant),
                Item::Namespace(namespace) => lists.namespaces.push(namespace),
                Item::Topic(topic) if lists.topics.len() < TOPICS_MAX => lists.topics.push(topic),
                Item::Topic(_) => return Err(damaged(&path, "it has more topics than any")),
                Item::Head(_) | Item::Location(_) | Item::Ledger(_) | Item::Cursors(_) => {
                    return Err(damaged(&file.name, "it is no list"));
                }
            }
        }
        if lists.access_items() > before {
            lists.access.push(file);
        }
    }
    Ok(lists)
}

/// What the parts of a topic say.
#[derive(Debug, Clone)]
pub struct TopicParts {
    /// The topic.
    pub head: v1::BackupTopicHead,
    /// The places of its objects, by the numbers that its ledgers name.
    pub places: BTreeMap<u32, PlaceOfObjects>,
    /// Its ledgers, oldest first.
    pub ledgers: Vec<v1::BackupLedger>,
    /// Records of a snapshot of its subscriptions and producers.
    pub cursors: Vec<Bytes>,
}

/// Reads the parts of a topic.
///
/// # Errors
/// Those of the store; `Damaged`.
pub async fn read_topic(
    store: &dyn ColdStore,
    cluster: &str,
    backup: BackupId,
    topic: &str,
    files: &[BackupFile],
) -> ColdResult<TopicParts> {
    let path = name_of(cluster, backup, topic);
    if files.len() > TOPIC_FILES_MAX {
        return Err(damaged(&path, "it has more files than any topic"));
    }
    let mut head = None;
    let (mut places, mut ledgers, mut cursors) = (BTreeMap::new(), Vec::new(), Vec::new());
    for file in files {
        for item in read_part(store, cluster, backup, file).await? {
            match item {
                Item::Head(found) if head.is_none() => head = Some(found),
                Item::Location(place) => {
                    let id = LocationId::try_from(place.location_id.as_ref());
                    let id = id.map_err(|_| damaged(&path, "a location has no id"))?;
                    let (url, owner) = (place.url, place.cluster);
                    places.insert(place.number, PlaceOfObjects { id, url, owner });
                }
                Item::Ledger(ledger) => ledgers.push(ledger),
                Item::Cursors(record) => cursors.push(record),
                Item::Head(_)
                | Item::Tenant(_)
                | Item::Namespace(_)
                | Item::Topic(_)
                | Item::Token(_)
                | Item::Grant(_)
                | Item::Role(_)
                | Item::Revocation(_) => {
                    return Err(damaged(&file.name, "it is not of one topic"));
                }
            }
        }
    }
    let head = head.ok_or_else(|| damaged(&path, "the topic is missing"))?;
    match head.topic == topic {
        true => Ok(TopicParts {
            head,
            places,
            ledgers,
            cursors,
        }),
        false => Err(damaged(&path, format!("it is of {}", head.topic))),
    }
}

#[cfg(test)]
mod tests;
