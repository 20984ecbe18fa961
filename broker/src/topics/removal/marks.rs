//! Marks in the records of namespaces and tenants that are being deleted.

use aquifer_metadata::keys;
use aquifer_metadata::record::{self, Record};
use aquifer_metadata::store::{Expect, Guard, Revision, Versioned};
use aquifer_metadata::update::{Change, UpdateError};
use aquifer_proto::v1::{NamespaceRecord, Removal, TenantRecord};

use crate::error::BrokerError;
use crate::topics::Topics;
use crate::topics::removal::{How, RemovalScope, not_empty};

/// How a record is marked, and at which revision.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marked {
    pub(super) removal: Removal,
    pub(super) revision: Revision,
}

/// A record that can be marked.
pub(super) trait Removable: Record {
    fn mark(&self) -> Removal;
    fn set_mark(&mut self, mark: Removal);
}

impl Removable for NamespaceRecord {
    fn mark(&self) -> Removal {
        self.removal()
    }

    fn set_mark(&mut self, mark: Removal) {
        self.set_removal(mark);
    }
}

impl Removable for TenantRecord {
    fn mark(&self) -> Removal {
        self.removal()
    }

    fn set_mark(&mut self, mark: Removal) {
        self.set_removal(mark);
    }
}

impl RemovalScope {
    /// The partition of its record.
    pub(super) fn partition(&self) -> String {
        match self {
            RemovalScope::Tenant(_) => keys::CLUSTER_PARTITION.to_owned(),
            RemovalScope::Namespace(namespace) => keys::partition_of_namespace(namespace),
        }
    }

    fn key(&self) -> String {
        match self {
            RemovalScope::Tenant(tenant) => keys::tenant(tenant),
            RemovalScope::Namespace(namespace) => keys::namespace(namespace),
        }
    }

    /// Its record, as it was marked.
    pub(super) fn guard(&self, marked: Marked) -> Guard {
        Guard {
            key: self.key(),
            expect: Expect::Revision(marked.revision),
        }
    }
}

impl Topics {
    /// Has a namespace or tenant take nothing more in. Answers how it is marked: as one of which
    /// everything goes, if it was once marked so. With `at` it is marked only as the record of that
    /// revision. `None`: it is not marked, and was not to be.
    pub(super) async fn mark<R: Removable>(
        &self,
        scope: &RemovalScope,
        how: How,
        at: Option<Revision>,
    ) -> Result<Option<Marked>, BrokerError> {
        let partition = &scope.partition();
        let decide = |stored: Option<Versioned>| async move {
            let (mut record, revision) = self.record_of::<R>(scope, stored).await?;
            let removal = record.mark();
            let wanted = match how.wanted() {
                Some(wanted) if wanted != removal && removal != Removal::All => wanted,
                None if removal == Removal::Unspecified => return Ok(Change::none(None)),
                _ => return Ok(Change::none(Some(Marked { removal, revision }))),
            };
            if at.is_some_and(|at| at != revision) {
                return Ok(Change::none(None));
            }
            if wanted == Removal::IfEmpty && self.has_any(scope).await? {
                return Err(not_empty(scope));
            }
            record.set_mark(wanted);
            let (value, removal) = (record::encode(record), wanted);
            Ok(Change::put(
                partition,
                value,
                Some(Marked { removal, revision }),
            ))
        };
        let store = self.shared.namespaces.store();
        let updated = store.update(&scope.key(), &[], decide).await;
        let updated = updated.map_err(UpdateError::<BrokerError>::flatten)?;
        Ok(updated.answer.map(|marked| Marked {
            revision: updated.applied.unwrap_or(marked.revision),
            ..marked
        }))
    }

    /// Has a namespace or tenant take things in again that was marked because it looked empty.
    pub(super) async fn unmark<R: Removable>(
        &self,
        scope: &RemovalScope,
    ) -> Result<(), BrokerError> {
        let partition = &scope.partition();
        let decide = |stored: Option<Versioned>| async move {
            let (mut record, _) = self.record_of::<R>(scope, stored).await?;
            if record.mark() != Removal::IfEmpty {
                return Ok(Change::none(()));
            }
            record.set_mark(Removal::Unspecified);
            Ok(Change::put(partition, record::encode(record), ()))
        };
        let store = self.shared.namespaces.store();
        let updated = store.update(&scope.key(), &[], decide).await;
        updated
            .map(drop)
            .map_err(UpdateError::<BrokerError>::flatten)
    }

    async fn record_of<R: Record>(
        &self,
        scope: &RemovalScope,
        stored: Option<Versioned>,
    ) -> Result<(R, Revision), BrokerError> {
        if let Some(stored) = stored {
            return Ok((record::decode(&stored)?, stored.revision));
        }
        Err(match scope {
            RemovalScope::Tenant(tenant) => BrokerError::no_tenant(tenant),
            RemovalScope::Namespace(namespace) => {
                let of = self.shared.namespaces.check_tenant(namespace.tenant());
                of.await
                    .err()
                    .unwrap_or_else(|| BrokerError::no_namespace(namespace))
            }
        })
    }

    /// Whether something is in a namespace or tenant.
    pub(super) async fn has_any(&self, scope: &RemovalScope) -> Result<bool, BrokerError> {
        Ok(match scope {
            RemovalScope::Tenant(tenant) => !self.namespaces_in(tenant).await?.is_empty(),
            RemovalScope::Namespace(namespace) => !self.topics_in(namespace, 1).await?.is_empty(),
        })
    }
}
