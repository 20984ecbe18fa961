//! Notes of objects that were written again since they were damaged or missing:
//! `CLUSTER/replaced/DAMAGED/ATTEMPT`, beside the objects. A backup names objects as they were when
//! it was made; by these notes a reader of it finds what took their place since, without the
//! metadata of the cluster.
//!
//! Invariants:
//! - A note is written before the ledger names the other object: none is missing.
//! - A note counts only where its object is there: the attempt may have been given up after it. Of
//!   several the newest counts: those before came to no end.

use std::collections::BTreeMap;

use aquifer_model::id::{AttemptId, BackupId};
use aquifer_proto::v1;
use prost::Message;

use crate::backup::file::{FILE_BYTES_MAX, Kind, decode, encode};
use crate::error::{ColdError, ColdResult};
use crate::format::FormatError;
use crate::listing;
use crate::store::{ColdStore, Listed};

/// Notes of one object. Each is an attempt to write it again, of which there are few.
const NOTES_MAX: usize = 1_000;
/// Objects that were written again one after the other for the same ledger.
const CHAIN_MAX: usize = 64;

fn directory(cluster: &str) -> String {
    format!("{cluster}/replaced")
}

fn name_of(cluster: &str, damaged: AttemptId, attempt: AttemptId) -> String {
    format!("{}/{damaged}/{attempt}", directory(cluster))
}

/// Notes that the object of another attempt is to take the place of a damaged one.
///
/// # Errors
/// Those of the store.
pub async fn note(
    store: &dyn ColdStore,
    cluster: &str,
    damaged: AttemptId,
    (attempt, object): (AttemptId, v1::StoredObject),
) -> ColdResult<()> {
    let name = name_of(cluster, damaged, attempt);
    let record = v1::OffloadRecord {
        attempt: attempt.0.to_vec().into(),
        object: Some(object),
        copies: v1::BookieCopies::Gone.into(),
        ..v1::OffloadRecord::default()
    };
    let raw = record.encode_to_vec();
    let bytes = encode(Kind::Replaced, BackupId(damaged.0), &raw);
    let bytes = bytes.map_err(|error| ColdError::damaged(&name, &error))?;
    match store.put_new(&name, bytes.into()).await {
        // No other writer uses this name: an answer was lost.
        Err(ColdError::AlreadyExists(_)) => Ok(()),
        put => put,
    }
}

/// Deletes the notes of a damaged object, which is gone.
///
/// # Errors
/// Those of the store.
pub async fn forget(store: &dyn ColdStore, cluster: &str, damaged: AttemptId) -> ColdResult<()> {
    let below = format!("{}/{damaged}", directory(cluster));
    for found in store.list(&below, None, NOTES_MAX).await? {
        store.delete(&found.name).await?;
    }
    Ok(())
}

/// Which objects of a place were written again.
#[derive(Debug, Default)]
pub struct Replaced {
    cluster: String,
    /// With each, when its note was written, oldest first.
    by: BTreeMap<AttemptId, Vec<(u64, AttemptId)>>,
}

impl Replaced {
    /// Looks for all notes.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn list(store: &dyn ColdStore, cluster: &str) -> ColdResult<Replaced> {
        let below = directory(cluster);
        let mut found = Replaced {
            cluster: cluster.to_owned(),
            by: BTreeMap::new(),
        };
        let look = |note: Listed| -> ColdResult<()> {
            // What has another name is no note.
            let ids = note.name.strip_prefix(&below).and_then(|rest| {
                let (damaged, attempt) = rest.strip_prefix('/')?.split_once('/')?;
                Some((damaged.parse().ok()?, attempt.parse().ok()?))
            });
            if let Some((damaged, attempt)) = ids {
                let attempt = (note.modified_ms, attempt);
                found.by.entry(damaged).or_default().push(attempt);
            }
            Ok(())
        };
        listing::each(store, &below, look).await??;
        for notes in found.by.values_mut() {
            notes.sort_unstable();
        }
        Ok(found)
    }

    /// What took the place of an object, if that is there.
    ///
    /// # Errors
    /// Those of the store; `Damaged` when a note is not what was written.
    pub async fn find(
        &self,
        store: &dyn ColdStore,
        damaged: AttemptId,
    ) -> ColdResult<Option<v1::OffloadRecord>> {
        let (mut now, mut found) = (damaged, None);
        for _ in 0..CHAIN_MAX {
            let Some((next, record)) = self.next(store, now).await? else {
                break;
            };
            (now, found) = (next, Some(record));
        }
        Ok(found)
    }

    /// Has a record of a ledger in a backup name what took the place of its object, in the same
    /// place.
    ///
    /// # Errors
    /// As [`Replaced::find`].
    pub async fn apply(
        &self,
        store: &dyn ColdStore,
        ledger: &mut v1::LedgerRecord,
    ) -> ColdResult<()> {
        let Some(offload) = &mut ledger.offload else {
            return Ok(());
        };
        let attempt = AttemptId::try_from(offload.attempt.as_ref()).ok();
        let Some(damaged) = attempt.filter(|attempt| self.by.contains_key(attempt)) else {
            return Ok(());
        };
        let Some(mut found) = self.find(store, damaged).await? else {
            return Ok(());
        };
        if let (Some(object), Some(old)) = (&mut found.object, &offload.object)
            && object.location == old.location
        {
            // A backup keeps both, or none of them.
            object.claimed_revision = object.claimed_revision.min(old.claimed_revision);
            *offload = found;
        }
        Ok(())
    }

    async fn next(
        &self,
        store: &dyn ColdStore,
        damaged: AttemptId,
    ) -> ColdResult<Option<(AttemptId, v1::OffloadRecord)>> {
        for (_, attempt) in self.by.get(&damaged).into_iter().flatten().rev() {
            let name = name_of(&self.cluster, damaged, *attempt);
            let wrong = |error: &FormatError| ColdError::damaged(&name, error);
            let size = store.size(&name).await?;
            if size > FILE_BYTES_MAX as u64 {
                return Err(wrong(&FormatError::invalid("it is larger than any note")));
            }
            let bytes = store.get(&name, 0..size).await?;
            let record = decode(Kind::Replaced, BackupId(damaged.0), &bytes);
            let record: v1::OffloadRecord = record.map_err(|error| wrong(&error))?;
            let Some(object) = &record.object else {
                return Err(wrong(&FormatError::invalid("it names no object")));
            };
            match store.size(&object.name).await {
                Ok(size) if size == object.size_bytes => return Ok(Some((*attempt, record))),
                // It was given up after all, or is bad itself.
                Ok(_) | Err(ColdError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::testing::MemoryColdStore;

    const IDS: [AttemptId; 4] = [
        AttemptId([1; 16]),
        AttemptId([2; 16]),
        AttemptId([3; 16]),
        AttemptId([4; 16]),
    ];

    fn object(name: &str, size_bytes: u64) -> v1::StoredObject {
        v1::StoredObject {
            name: name.to_owned(),
            size_bytes,
            ..v1::StoredObject::default()
        }
    }

    #[tokio::test]
    async fn what_took_the_place_of_an_object_is_found_if_it_is_there() {
        let store = MemoryColdStore::default();
        let [first, given_up, second, third] = IDS;
        let find = async |damaged| {
            let notes = Replaced::list(&store, "c").await.unwrap();
            let found = notes.find(&store, damaged).await.unwrap();
            found
                .and_then(|record| record.object)
                .map(|object| object.name)
        };
        assert_eq!(find(first).await, None);
        for (damaged, attempt, name) in [
            (first, given_up, "c/data/x/given-up"),
            (first, second, "c/data/x/second"),
            (second, third, "c/data/x/third"),
        ] {
            let replacement = (attempt, object(name, 3));
            note(&store, "c", damaged, replacement.clone())
                .await
                .unwrap();
            note(&store, "c", damaged, replacement).await.unwrap();
        }
        assert_eq!(find(first).await, None, "none of them is there");
        let put = |name| store.put_new(name, Bytes::from_static(b"abc"));
        put("c/data/x/second").await.unwrap();
        assert_eq!(find(first).await.as_deref(), Some("c/data/x/second"));
        put("c/data/x/third").await.unwrap();
        assert_eq!(find(first).await.as_deref(), Some("c/data/x/third"));
        let notes = Replaced::list(&store, "other").await.unwrap();
        assert_eq!(notes.find(&store, first).await.unwrap(), None);
        forget(&store, "c", first).await.unwrap();
        assert_eq!(find(first).await, None);
        assert_eq!(find(second).await.as_deref(), Some("c/data/x/third"));
    }

    #[tokio::test]
    async fn a_damaged_note_is_an_error() {
        let store = MemoryColdStore::default();
        let [damaged, attempt, ..] = IDS;
        let replacement = (attempt, object("c/data/x/second", 3));
        note(&store, "c", damaged, replacement).await.unwrap();
        let name = name_of("c", damaged, attempt);
        store.change(&name, |bytes| bytes[50] ^= 1);
        let notes = Replaced::list(&store, "c").await.unwrap();
        let found = notes.find(&store, damaged).await;
        assert!(matches!(found, Err(ColdError::Damaged { .. })), "{found:?}");
    }
}
