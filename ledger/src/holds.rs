//! Backups, as far as they keep objects: a record `backups/ID` for each.
//!
//! An object that a backup may name came to be before the backup ended, and died after it had
//! begun. Both are revisions of metadata, so that this is decided without reading what the backup
//! names: it keeps an object whose attempt began at or before its end, and that died at or after
//! its beginning. The beginning of an attempt is known, its commit comes later: some objects are
//! kept that a backup does not name, and no object is let go that it does.
//!
//! What deletes objects reads first which are to be deleted, then these records, then whether the
//! object is still to be deleted. A backup reads records of ledgers after it has begun: it does not
//! name an object that was seen dying before its record was there.

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys::{self, Key};
use aquifer_metadata::store::{MetadataStore, Revision, Versioned};
use aquifer_metadata::update::{Change, UpdateError};
use aquifer_metadata::{record, scan};
use aquifer_model::backup::{BackupRevisions, BackupScope};
use aquifer_model::id::BackupId;
use aquifer_model::topic::{DEFAULT_NAMESPACE, NamespaceName};
use aquifer_proto::convert::backup::scope;
use aquifer_proto::v1;

use crate::error::LedgerError;
use crate::objects::DyingObject;

/// Backups that a cluster may have.
const HOLDS_MAX: usize = 100_000;
/// A backup that was not finished in this time was given up.
const UNFINISHED_MAX_MS: u64 = 7 * 24 * 60 * 60 * 1000;

/// A backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Its id.
    pub id: BackupId,
    /// Where it is.
    pub url: String,
    /// What it has.
    pub scope: BackupScope,
    /// When it began, in milliseconds since 1970.
    pub started_ms: u64,
    /// Between which revisions it was made; `None` as long as it is.
    pub revisions: Option<BackupRevisions>,
    revision: Revision,
}

impl Hold {
    fn decode(stored: &Versioned) -> Result<Hold, LedgerError> {
        let damaged = |reason: String| MetadataError::Damaged {
            key: stored.key.clone(),
            reason,
        };
        let Ok(Key::Backup(id)) = stored.key.parse() else {
            return Err(damaged("it is no key of a backup".to_owned()).into());
        };
        let record: v1::BackupRecord = record::decode(stored)?;
        Ok(Hold {
            id,
            url: record.url,
            scope: scope(&record.tenant, &record.topic).map_err(damaged)?,
            started_ms: record.started_ms,
            revisions: record.finished.then_some(BackupRevisions {
                start: record.start_revision,
                end: stored.revision.0,
            }),
            revision: stored.revision,
        })
    }

    fn value(&self) -> bytes::Bytes {
        let (tenant, topic) = self.scope.texts();
        record::encode(v1::BackupRecord {
            url: self.url.clone(),
            tenant,
            topic,
            started_ms: self.started_ms,
            finished: self.revisions.is_some(),
            start_revision: self.revisions.map_or(0, |revisions| revisions.start),
        })
    }

    /// Whether the backup may name an object that is to be deleted.
    #[must_use]
    pub fn keeps(&self, object: &DyingObject) -> bool {
        // Never named by a ledger: nothing of it was ever complete.
        if object.until_ms > 0 {
            return false;
        }
        let is_within = match &self.scope {
            BackupScope::Cluster => true,
            BackupScope::Topic(topic) => object.home == keys::partition_of_topic(topic),
            BackupScope::Tenant(tenant) => {
                let some = NamespaceName::new(tenant, DEFAULT_NAMESPACE);
                // A name that cannot be has no objects.
                some.is_ok_and(|some| {
                    let of_tenant = keys::partition_of_namespace(&some);
                    of_tenant.split('/').next() == object.home.split('/').next()
                })
            }
        };
        let (start, end) = match self.revisions {
            Some(revisions) => (revisions.start, revisions.end),
            None => (self.revision.0, u64::MAX),
        };
        is_within && object.claimed.0 <= end && object.died.0 >= start
    }

    /// Whether it is finished.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.revisions.is_some()
    }

    /// Whether the tool that made it has given it up.
    #[must_use]
    pub fn is_abandoned(&self, now_ms: u64) -> bool {
        self.revisions.is_none() && self.started_ms.saturating_add(UNFINISHED_MAX_MS) < now_ms
    }
}

/// Begins a backup; answers the revision.
///
/// # Errors
/// When metadata cannot be changed.
pub async fn begin(
    store: &dyn MetadataStore,
    id: BackupId,
    url: &str,
    scope: BackupScope,
    now_ms: u64,
) -> Result<Revision, LedgerError> {
    let hold = Hold {
        id,
        url: url.to_owned(),
        scope,
        started_ms: now_ms,
        revisions: None,
        revision: Revision(0),
    };
    let decide = |stored: Option<Versioned>| {
        let change = match stored {
            // The id was drawn for this: it is what this very change has written.
            Some(stored) => Change::none(stored.revision),
            None => Change::put(keys::CLUSTER_PARTITION, hold.value(), Revision(0)),
        };
        std::future::ready(Ok(change))
    };
    let begun = store.update(&keys::backup(id), &[], decide).await;
    let begun = begun.map_err(UpdateError::<LedgerError>::flatten)?;
    Ok(begun.applied.unwrap_or(begun.answer))
}

/// The record of a backup.
///
/// # Errors
/// When it cannot be read.
pub async fn load(store: &dyn MetadataStore, id: BackupId) -> Result<Option<Hold>, LedgerError> {
    let stored = store.get(&keys::backup(id)).await?;
    stored.as_ref().map(Hold::decode).transpose()
}

/// Ends a backup: it names nothing that comes to be from now on. `None` when it was given up.
///
/// # Errors
/// When metadata cannot be changed.
pub async fn finish(
    store: &dyn MetadataStore,
    id: BackupId,
) -> Result<Option<BackupRevisions>, LedgerError> {
    let decide = |stored: Option<Versioned>| {
        let Some(stored) = stored else {
            return Ok(Change::none(None));
        };
        let hold = Hold::decode(&stored)?;
        if hold.revisions.is_some() {
            return Ok(Change::none(hold.revisions));
        }
        let revisions = Some(BackupRevisions {
            start: stored.revision.0,
            end: u64::MAX,
        });
        let finished = Hold { revisions, ..hold };
        Ok(Change::put(
            keys::CLUSTER_PARTITION,
            finished.value(),
            revisions,
        ))
    };
    let key = keys::backup(id);
    let finished = store.update(&key, &[], |stored| std::future::ready(decide(stored)));
    let finished = finished
        .await
        .map_err(UpdateError::<LedgerError>::flatten)?;
    Ok(finished.answer.map(|revisions| BackupRevisions {
        end: finished.applied.map_or(revisions.end, |applied| applied.0),
        ..revisions
    }))
}

/// Forgets a backup if it may be, so that what it kept may go; `false` when it stays.
///
/// # Errors
/// When metadata cannot be changed.
pub async fn forget(
    store: &dyn MetadataStore,
    id: BackupId,
    may_go: impl Fn(&Hold) -> bool,
) -> Result<bool, LedgerError> {
    let decide = |stored: Option<Versioned>| {
        let Some(stored) = stored else {
            return Ok(Change::none(true));
        };
        Ok(match may_go(&Hold::decode(&stored)?) {
            true => Change::delete(keys::CLUSTER_PARTITION, true),
            false => Change::none(false),
        })
    };
    let key = keys::backup(id);
    let forgotten = store.update(&key, &[], |stored| std::future::ready(decide(stored)));
    let forgotten = forgotten
        .await
        .map_err(UpdateError::<LedgerError>::flatten)?;
    Ok(forgotten.answer)
}

/// All backups.
///
/// # Errors
/// When they cannot be read, or are too many.
pub async fn all(store: &dyn MetadataStore) -> Result<Vec<Hold>, LedgerError> {
    let (found, _) = scan::all(store, keys::BACKUPS_PREFIX, HOLDS_MAX).await?;
    found.iter().map(Hold::decode).collect()
}

#[cfg(test)]
mod tests;
