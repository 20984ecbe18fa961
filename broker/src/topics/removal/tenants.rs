//! Deletion of tenants: namespace after namespace, then what is written of the tenant.

use std::sync::Arc;

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys::{self, Key};
use aquifer_metadata::record;
use aquifer_metadata::store::{Expect, Guard, Operation, Revision, Transaction, Versioned};
use aquifer_model::policy::PolicyScope;
use aquifer_model::topic::NamespaceName;
use aquifer_proto::v1::{ForgottenRecord, GrantRecord, Removal, TenantRecord, TokenRecord};
use aquifer_protocol_api::admin::{PageRequest, Removed};

use crate::error::BrokerError;
use crate::namespace::listing::{Listed, Lister, parse};
use crate::security::principal;
use crate::topics::Topics;
use crate::topics::removal::{
    ATTEMPTS_MAX, How, PAGE_ITEMS, RemovalScope, changing, not_empty, taken_back,
};

impl Topics {
    pub(super) async fn remove_tenant(
        self: &Arc<Self>,
        tenant: &str,
        how: How,
    ) -> Result<Removed, BrokerError> {
        let scope = RemovalScope::Tenant(tenant.to_owned());
        let (mut removed, mut step) = (Removed::default(), how);
        for attempt in 0..ATTEMPTS_MAX {
            let marked = match self.mark::<TenantRecord>(&scope, step, None).await {
                // Another broker was faster.
                Err(BrokerError::NotFound { .. }) if attempt > 0 => return Ok(removed),
                marked => marked?,
            };
            let Some(marked) = marked else {
                return match (attempt, how) {
                    (1.., How::IfEmpty) => Err(taken_back(&scope)),
                    _ => Ok(removed),
                };
            };
            let record = scope.guard(marked);
            let emptied = self.empty_tenant(tenant, marked.removal, &record, &mut removed);
            if emptied.await? && self.forget_tenant(tenant, &record).await? {
                tracing::info!(tenant, ?removed, "tenant deleted");
                return Ok(removed);
            }
            step = How::Resume;
        }
        Err(changing())
    }

    /// Deletes the namespaces of a tenant that takes none in. False: its record is not as expected
    /// any more.
    async fn empty_tenant(
        self: &Arc<Self>,
        tenant: &str,
        removal: Removal,
        record: &Guard,
        removed: &mut Removed,
    ) -> Result<bool, BrokerError> {
        loop {
            let found = self.namespaces_in(tenant).await?;
            if found.is_empty() {
                return Ok(true);
            }
            // Once another broker has deleted the tenant, they may be those of the next one.
            if !self.holds(record).await? {
                return Ok(false);
            }
            if removal != Removal::All {
                let scope = RemovalScope::Tenant(tenant.to_owned());
                self.unmark::<TenantRecord>(&scope).await?;
                return Err(not_empty(&scope));
            }
            for (namespace, revision) in found {
                let removal = self.remove_namespace(&namespace, How::Force, Some(revision));
                match removal.await {
                    Ok(more) => {
                        removed.namespaces += more.namespaces;
                        removed.topics += more.topics;
                    }
                    Err(BrokerError::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// Some namespaces of a tenant, each with the revision of its record.
    pub(super) async fn namespaces_in(
        &self,
        tenant: &str,
    ) -> Result<Vec<(NamespaceName, Revision)>, BrokerError> {
        let lister = Lister {
            store: self.shared.namespaces.store().as_ref(),
            prefix: keys::tenant_prefix(tenant),
        };
        let request = PageRequest {
            after: None,
            limit: PAGE_ITEMS,
        };
        let look = |found: &Versioned| -> Result<Listed<(NamespaceName, Revision)>, BrokerError> {
            Ok(match parse(found)? {
                Key::Namespace(namespace) => {
                    Listed::Item((namespace, found.revision), String::new())
                }
                Key::Topic(topic) | Key::SegmentPage(topic, ..) => {
                    Listed::SkipUnder(keys::topics_prefix(topic.namespace()))
                }
                _ => Listed::Skip,
            })
        };
        Ok(lister.page(&request, None, look).await?.items)
    }

    /// Deletes what is written of an empty tenant, its record last. False: the record is not as
    /// expected any more.
    pub(super) async fn forget_tenant(
        &self,
        tenant: &str,
        record: &Guard,
    ) -> Result<bool, BrokerError> {
        let of_tenant = keys::grants_prefix(Some(tenant));
        // A grant to a token of the tenant says the token's name, which the next tenant of the name
        // may give again, wherever the grant is.
        let of_tokens = principal::of_token(Some(tenant), "");
        let grants = self.found(keys::GRANTS_PREFIX, |found| {
            let grant = record::decode::<GrantRecord>(found);
            let is_given = grant.is_ok_and(|grant| grant.principal.starts_with(&of_tokens));
            is_given || found.key.starts_with(&of_tenant)
        });
        let grants = grants.await?;
        let tokens = self.found(keys::TOKENS_PREFIX, |found| {
            let token = record::decode::<TokenRecord>(found);
            token.is_ok_and(|token| token.tenant == tenant)
        });
        let tokens = tokens.await?;
        let roles = self
            .found(&keys::roles_prefix(Some(tenant)), |_| true)
            .await?;
        let has_any = [&grants, &tokens, &roles]
            .iter()
            .any(|found| !found.is_empty());
        if has_any && !self.note_forgotten(tenant, record).await? {
            return Ok(false);
        }
        // Roles go last: no grant names one that is not there.
        for found in [grants, tokens, roles] {
            let found = found.into_iter().map(|(key, _)| (key, Expect::Any));
            if !self.delete_all(Some(record), found.collect()).await? {
                return Ok(false);
            }
        }
        let policies = keys::policies(&PolicyScope::Tenant(tenant.to_owned()));
        let keys = vec![(record.key.clone(), record.expect), (policies, Expect::Any)];
        self.delete_keys(keys::CLUSTER_PARTITION, None, keys).await
    }

    /// Notes that what was given in a tenant is gone, so that no backup brings it back. False: the
    /// tenant's record is not as expected any more.
    async fn note_forgotten(&self, tenant: &str, record: &Guard) -> Result<bool, BrokerError> {
        let before_ms = self.shared.clock.wall_ms();
        let value = record::encode(ForgottenRecord { before_ms });
        let transaction = Transaction {
            partition: keys::CLUSTER_PARTITION.to_owned(),
            guards: vec![record.clone()],
            operations: vec![Operation::Put {
                key: keys::forgotten(tenant),
                value,
                expect: Expect::Any,
            }],
        };
        match self.shared.namespaces.store().commit(transaction).await {
            Ok(_) => Ok(true),
            Err(MetadataError::Conflict { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
